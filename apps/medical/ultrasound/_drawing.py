"""The picture that an answer is judged by."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from apps.medical.ultrasound import burned
from core import pictures

if TYPE_CHECKING:
    from apps.medical.ultrasound.results import Screening

_COLOURS: dict[str, pictures.RGB] = {
    "text": (0, 114, 178), "caliper": (0, 158, 115), "dotted line": (86, 180, 233), "graphics": (204, 121, 167),
}  # fmt: skip
_SIDE = 420  # pixels that the longer side is shown at, at least
_LARGEST = 900
Picture = NDArray[np.uint8]


def draw(result: Screening, notice: str, *, keep_identifiers: bool) -> Picture:
    """The frame with its marks framed, what the network looked at, and of a loop the probability by frame."""
    marks = result.marks if result.marks is not None else burned.find(result.picture)
    plain = result.picture if keep_identifiers else burned.masked(result.picture, marks, text=True)
    shown = scaled(plain)
    factor = shown.shape[0] / plain.shape[0]
    panels = [(_title(result), framed(shown, marks, factor))]
    if result.looked is not None:
        panels.append(("what the network looked at", blended(shown, result.looked)))
    if result.cine:
        panels.append(("probability by frame", _by_frame(result, shown.shape[0])))
    kinds = dict.fromkeys(m.kind for m in marks.marks)
    legend = {_named(kind, keep_identifiers): _COLOURS[kind] for kind in kinds}
    return pictures.panel(panels, columns=3, legend=legend, note=notice)


def _named(kind: str, kept: bool) -> str:
    return f"burned-in {kind}" + (" (masked here)" if kind == "text" and not kept else "")


def _title(result: Screening) -> str:
    said = f"{result.called}: {result.probability(result.called):.2f}"
    return f"frame {result.shown + 1} of {len(result.frames)}; {said}" if result.cine else said


def scaled(picture: Picture) -> Picture:
    """(H, W, 3) enlarged or reduced, in its own proportions, to be seen well."""
    longest = max(picture.shape[:2])
    side = min(max(longest, _SIDE), _LARGEST)
    if side == longest:
        return picture
    height, width = (max(1, round(n * side / longest)) for n in picture.shape[:2])
    return np.asarray(pictures.resized(picture, height, width, smooth=True))


def framed(picture: Picture, marks: burned.Marks, factor: float) -> Picture:
    """The picture with a frame around each mark."""
    from PIL import Image, ImageDraw

    sheet = Image.fromarray(picture)
    pen = ImageDraw.Draw(sheet)
    for mark in marks.marks:
        box = (mark.left * factor - 3, mark.top * factor - 3, mark.right * factor + 2, mark.bottom * factor + 2)
        pen.rectangle(box, outline=_COLOURS[mark.kind])
    return np.asarray(sheet)


def blended(picture: Picture, looked: NDArray[np.floating[Any]]) -> Picture:
    """The picture in grey with a map (h, w) in colours over it; where the map is strong, its colour is."""
    from PIL import Image

    height, width = picture.shape[:2]
    spread = Image.fromarray(looked.astype(np.float32)).resize((width, height), Image.Resampling.BILINEAR)
    values = np.asarray(spread)
    low, high = float(values.min()), float(values.max())
    unit = (values - low) / (high - low) if high > low else np.zeros_like(values)
    grey = np.repeat(picture.mean(axis=-1, keepdims=True), 3, axis=-1)
    share = (0.15 + 0.6 * unit)[..., None]
    mixed = grey * (1 - share) + pictures.heat(unit) * share
    return np.clip(np.rint(mixed), 0, 255).astype(np.uint8)


def _by_frame(result: Screening, height: int) -> Picture:
    """Lines of probability over the frames."""
    names = [result.positive] if result.positive else list(result.classes)
    at = list(range(1, len(result.frames) + 1))
    lines = {name: (at, result.frames[:, result.classes[name]].tolist()) for name in names}
    if result.threshold is not None and result.positive:
        lines["threshold"] = ([1, len(at)], [result.threshold] * 2)
    return pictures.curve(lines, "", "frame", f"P({names[0]})" if result.positive else "P", (480, min(height, 360)))
