"""Pictures of classifications: a tile with its bars, a slide with its classes, the tiles that decided."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from core.pictures import font, heat, palette, panel, resized

if TYPE_CHECKING:
    from apps.medical.pathology_classify.results import Classification, SlideClassification

_SIDE = 520  # pixels of the longer side of a slide
_TILE = 112  # of a tile in a strip
_PICTURE = 320  # of a picture beside its bars
_INK = (32, 32, 36)
_BAR = (220, 22)  # width and height
_COVER = (0.15, 0.45)  # how much of its colour covers a cell: at probability 0, and more at 1


def tile(result: Classification, notice: str) -> NDArray[np.uint8]:
    """See `Classification.draw`."""
    parts = [("probability", bars(result.classes, result.probabilities))]
    if result.image is not None:
        rows, columns = result.image.shape[:2]
        by = min(1.0, _PICTURE / max(rows, columns))
        small = resized(result.image, max(1, round(rows * by)), max(1, round(columns * by)), smooth=True)
        if result.heat is not None:
            shown = resized(heat(result.heat.values), *small.shape[:2], smooth=True)
            grey = np.repeat(small.mean(2, keepdims=True), 3, axis=2)
            parts.insert(0, (result.heat.what, np.rint(0.45 * grey + 0.55 * shown).astype(np.uint8)))
        parts.insert(0, ("picture", small))
    return panel(parts, len(parts), note=notice)


def bars(classes: Sequence[str], probabilities: Sequence[float]) -> NDArray[np.uint8]:
    """A bar for each class, (H, W, 3)."""
    from PIL import Image, ImageDraw

    sheet = Image.new("RGB", (_BAR[0] + 210, max(_BAR[1] * (len(classes) + 1), 40)), (255, 255, 255))
    draw = ImageDraw.Draw(sheet)
    for i, (name, p, colour) in enumerate(zip(classes, probabilities, palette(len(classes)), strict=True)):
        top = i * _BAR[1] + 4
        draw.text((0, top), name[:18], _INK, font(14))
        draw.rectangle((140, top + 2, 140 + round(_BAR[0] * p), top + 15), colour)
        draw.text((150 + _BAR[0], top), f"{p:.3f}", _INK, font(14))
    return np.asarray(sheet)


def slide(result: SlideClassification, notice: str) -> NDArray[np.uint8]:
    """See `SlideClassification.draw`."""
    picture, scale = result.plan.thumbnail, result.plan.scale
    by = min(1.0, _SIDE / max(picture.shape[:2]))
    rows, columns = (max(1, round(n * by)) for n in picture.shape[:2])
    plain = resized(picture, rows, columns, smooth=True)
    down, across = scale[0] * picture.shape[0] / rows, scale[1] * picture.shape[1] / columns
    cells = result.cells
    r = ((np.arange(rows) + 0.5) * down / cells.size[0]).astype(int).clip(0, cells.values.shape[1] - 1)
    c = ((np.arange(columns) + 0.5) * across / cells.size[1]).astype(int).clip(0, cells.values.shape[2] - 1)
    values = cells.values[:, r[:, None], c]  # (K, rows, columns)
    known = np.isfinite(values[0])
    winner = np.where(known, values, 0).argmax(0)
    colours = np.array(palette(len(result.classes)), np.float32)
    share = np.where(known, _COVER[0] + _COVER[1] * np.where(known, values, 0).max(0), 0)[..., None]
    shown = np.rint(plain * (1 - share) + colours[winner] * share).astype(np.uint8)
    for t in result.tiles[:3]:
        _frame(shown, round(t.y / down), round(t.x / across), round(t.height / down), round(t.width / across))
    legend = dict(zip(result.classes, palette(len(result.classes)), strict=True))
    words = f"{result.label} {result.probability:.2f}, {len(result.tiles):,} tiles"
    return panel([("slide", plain), (words, shown)], 2, legend, note=notice)


def _frame(picture: NDArray[np.uint8], top: int, left: int, height: int, width: int) -> None:
    """A dark line around a part, in place."""
    bottom, right = min(top + max(height, 3), picture.shape[0]) - 1, min(left + max(width, 3), picture.shape[1]) - 1
    top, left = min(max(top, 0), bottom), min(max(left, 0), right)
    picture[[top, bottom], left : right + 1] = 0
    picture[top : bottom + 1, [left, right]] = 0


def strip(result: SlideClassification, count: int, notice: str) -> NDArray[np.uint8]:
    """See `SlideClassification.strip`."""
    shown = []
    for t in result.tiles[:count]:
        pixels = result.plan.read(*t.place)
        caption = f"{t.label} {max(t.probabilities):.2f}"
        shown.append((caption, resized(pixels, _TILE, _TILE, smooth=True)))
    return panel(shown, 6, note=f"{result.label}: the tiles that decided it, the first most; {notice}", size=12)
