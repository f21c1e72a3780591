"""Small pictures for pages and reports, as arrays and as PNG."""

from __future__ import annotations

import base64
import colorsys
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from core._charts import curve
from core.errors import ShapeError

if TYPE_CHECKING:
    from PIL import Image, ImageFont

__all__ = ["RGB", "curve", "font", "heat", "inline", "overlay", "palette", "panel", "png", "resized"]

RGB = tuple[int, int, int]
Picture = NDArray[np.uint8]

# Anchors of a dark-to-bright scale whose lightness rises evenly; read in grey it still orders right.
_SCALE = np.array([[8, 8, 24], [56, 24, 104], [140, 41, 110], [220, 80, 70], [250, 160, 50], [252, 250, 180]], float)

# Okabe and Ito 2008 without black, then Tol's "muted" scheme without what is close to those: told apart with any of the
# common colour deficiencies as long as there are few.
_COLOURS: tuple[RGB, ...] = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
    (136, 34, 85),
    (153, 153, 51),
    (136, 204, 238),
    (51, 34, 136),
    (221, 204, 119),
    (170, 68, 153),
    (17, 119, 51),
)
_PAPER, _INK, _QUIET = (255, 255, 255), (32, 32, 36), (112, 112, 118)


def heat(values: NDArray[np.floating]) -> Picture:
    """Values (H, W), any range, to colours (H, W, 3) uint8: the smallest dark, the largest bright; NaN is grey."""
    finite = np.isfinite(values)
    low, high = (values[finite].min(), values[finite].max()) if finite.any() else (0.0, 1.0)
    unit = np.where(finite, (values - low) / (high - low or 1.0), 0.0)
    place = np.linspace(0, 1, len(_SCALE))
    colours = np.stack([np.interp(unit, place, _SCALE[:, i]) for i in range(3)], axis=-1)
    colours[~finite] = 128
    return colours.round().astype(np.uint8)


def palette(n: int) -> list[RGB]:
    """`n` colours for classes, all different (n up to 256); the first seven are safe for the colour-blind.

    >>> palette(2)
    [(230, 159, 0), (86, 180, 233)]
    """
    colours = list(_COLOURS[:n])
    while len(colours) < n:  # hues by the golden angle, brightness in three steps
        i = len(colours)
        r, g, b = colorsys.hsv_to_rgb(i * 0.618034 % 1, 0.85 - 0.2 * (i % 2), (0.95, 0.7, 0.5)[i % 3])
        new = (round(r * 255), round(g * 255), round(b * 255))
        while new in colours:
            new = (new[0], new[1], (new[2] + 1) % 256)
        colours.append(new)
    return colours


def overlay(
    image: Picture,
    mask: NDArray[np.integer],
    colours: Mapping[int, RGB],
    alpha: float = 0.35,
    contour: int = 1,
) -> Picture:
    """A picture with the classes of a mask in colour: translucent inside, opaque along the edge.

    Args:
        image: (H, W) or (H, W, 3) uint8.
        mask: (H, W) ids; those without a colour stay as they are.
        colours: id -> colour.
        alpha: 0..1, how much of the colour covers the inside.
        contour: pixels that the edge is wide, inwards; 0 for none.

    Returns (H, W, 3) uint8. Raises ShapeError where the two differ in size.
    """
    if image.shape[:2] != mask.shape:
        raise ShapeError(f"the picture has {image.shape[:2]} pixels, its mask {mask.shape}")
    base = np.repeat(image[..., None], 3, axis=2) if image.ndim == 2 else image
    size = max([0, *colours, int(mask.max(initial=0))]) + 1
    table, known = np.zeros((size, 3), np.float32), np.zeros(size, bool)
    for i, colour in colours.items():
        table[i], known[i] = colour, True
    inside = known[mask]
    edge = np.zeros(mask.shape, bool)
    for step in range(1, contour + 1):
        for axis in (0, 1):
            there = np.moveaxis(mask, axis, 0)
            differs = there[step:] != there[:-step]
            rim = np.moveaxis(edge, axis, 0)
            rim[step:] |= differs
            rim[:-step] |= differs
    share = np.where(inside, np.where(edge, 1.0, alpha), 0.0).astype(np.float32)[..., None]
    return (base * (1 - share) + table[mask] * share).round().astype(np.uint8)


def panel(
    pictures: Sequence[tuple[str, Picture]],
    columns: int = 3,
    legend: Mapping[str, RGB] | None = None,
    note: str = "",
    size: int = 15,
) -> Picture:
    """Pictures side by side, each under its caption, with a legend of colours below.

    Args:
        pictures: caption and (H, W) or (H, W, 3) uint8, of any sizes; a row is as high as its highest.
        columns: pictures in a row.
        legend: name -> colour.
        note: a line at the bottom.
        size: of the letters in pixels.

    Returns (H, W, 3) uint8 on white. Raises ShapeError for no picture.
    """
    from PIL import Image, ImageDraw

    if not pictures:
        raise ShapeError("no picture to set in a panel")
    letters, gap = font(size), max(6, size // 2)
    shown = [(text, p if p.ndim == 3 else np.repeat(p[..., None], 3, axis=2)) for text, p in pictures]
    rows = [shown[i : i + columns] for i in range(0, len(shown), columns)]
    widths = [max(r[c][1].shape[1] for r in rows if c < len(r)) for c in range(min(columns, len(shown)))]
    line = round(size * 1.5)
    tops, y = [], gap
    for row in rows:
        tops.append(y)
        y += line + max(p.shape[0] for _, p in row) + gap
    width = sum(widths) + gap * (len(widths) + 1)
    entries = _legend(legend or {}, letters, line, max(width, 240) - 2 * gap)
    end = y + (entries[-1][2] + line + gap if entries else 0)
    wide = max(width, 240 if entries or note else 0)
    sheet = Image.new("RGB", (wide, end + (line if note else 0)), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for row, top in zip(rows, tops, strict=True):
        x = gap
        for (text, picture), column in zip(row, widths, strict=False):
            draw.text((x, top), _fitted(text, letters, column), _INK, letters)
            sheet.paste(Image.fromarray(picture), (x, top + line))
            x += column + gap
    for name, x, down, colour in entries:
        top = y + down
        draw.rectangle((gap + x, top + line // 4, gap + x + size, top + line // 4 + size - 3), colour, _INK)
        draw.text((gap + x + round(size * 1.5), top), name, _INK, letters)
    if note:
        draw.text((gap, end - gap // 2), _fitted(note, font(size - 3), wide - 2 * gap), _QUIET, font(size - 3))
    return np.asarray(sheet)


def _legend(
    legend: Mapping[str, RGB], letters: ImageFont.FreeTypeFont | ImageFont.ImageFont, line: int, width: int
) -> list[tuple[str, int, int, RGB]]:
    """Name, x, y and colour of each entry, set in lines of at most `width` pixels."""
    entries, x, y = [], 0, 0
    for name, colour in legend.items():
        name = _fitted(name, letters, width - 2 * line)
        wide = round(letters.getlength(name)) + 2 * line
        if x and x + wide > width:
            x, y = 0, y + line
        entries.append((name, x, y, colour))
        x += wide
    return entries


def _fitted(text: str, letters: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """`text`, cut with dots where it is wider than `width` pixels."""
    if letters.getlength(text) <= width:
        return text
    while text and letters.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font at `size` pixels."""
    from PIL import ImageFont

    return ImageFont.load_default(size)


def resized(picture: NDArray[Any], height: int, width: int, *, smooth: bool) -> NDArray[Any]:
    """(H, W) or (H, W, 3) to that many pixels: smooth for pictures, the nearest pixel for masks (any integers)."""
    from PIL import Image

    if not smooth:
        rows, columns = (np.arange(n) * old // n for n, old in zip((height, width), picture.shape, strict=False))
        return picture[rows[:, None], columns]
    scaled: Image.Image = Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(scaled)


def png(picture: Picture) -> bytes:
    """(H, W) or (H, W, 3) uint8 as a PNG file's bytes."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def inline(picture: Picture) -> str:
    """A picture as an address that a page holds in itself."""
    return "data:image/png;base64," + base64.b64encode(png(picture)).decode()
