"""Marks that a scanner or reader burned into a picture: text, calipers, dotted lines, other graphics.

They name patients, and a network can learn them instead of the disease (a lesion that was measured was suspected).
Text is told from speckle by what only letters have: parts of one height on one line, of one level, with strokes side
by side and nothing around them (`_letters`). Calipers are crosses whose four arms are lit and whose corners are not,
dotted lines are dots in equal steps (`_crosses`). Of a cine loop the marks are what does not move.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from apps.medical.ultrasound import _crosses, _letters
from core.errors import MissingExtraError, ShapeError

Kind = Literal["text", "caliper", "dotted line", "graphics"]
Frames = NDArray[np.uint8]
Mask = NDArray[np.bool_]

KINDS: tuple[Kind, ...] = ("text", "caliper", "dotted line", "graphics")
DARK = 24  # grey level up to which nothing is lit
COLOURED = 48  # largest minus smallest of red, green and blue from which on a pixel is coloured
_NAMES = {"text": "line{} of text", "caliper": "caliper{}", "dotted line": "dotted line{}", "graphics": "drawn mark{}"}
_LASTING = 90  # level of letters that are looked for in what all frames share
_PIXELS = 2_000_000  # of a picture; a larger one is searched reduced
_FRAMES = 12  # of a loop that are looked at
_GREY = 12  # largest minus smallest of red, green and blue of a grey pixel
_TONED = 0.05  # share of grey among lit pixels under which the whole picture is toned
_VARIED, _PATCH = 0.035, 40  # spread of the tone, and pixels, of a coloured patch that is flow


@dataclass(frozen=True)
class Mark:
    """One thing that was drawn into the picture: rows top <= y < bottom, columns left <= x < right."""

    kind: Kind
    top: int
    left: int
    bottom: int
    right: int


@dataclass(frozen=True, eq=False)
class Marks:
    """All that was found in a picture or loop.

    Attributes:
        marks: from top to bottom.
        mask: (H, W) True where something drawn covers the picture, with a margin.
        text: (H, W) the part of it that is text.
    """

    marks: tuple[Mark, ...]
    mask: Mask
    text: Mask

    def __bool__(self) -> bool:
        return bool(self.marks)

    def counts(self) -> dict[str, int]:
        """Kind -> how many."""
        return dict(Counter(m.kind for m in self.marks))

    def sentence(self) -> str:
        """What was found, in words ("burned-in: 2 lines of text, 1 caliper"); "" for nothing."""
        counts = self.counts()
        parts = [f"{n} {_NAMES[kind].format('' if n == 1 else 's')}" for kind in KINDS if (n := counts.get(kind, 0))]
        return f"burned-in: {', '.join(parts)}" if parts else ""


def find(frames: Frames) -> Marks:
    """The marks in a picture (H, W, 3) or (H, W), or in a loop (T, H, W, 3), of 8 bits.

    Raises ShapeError for other arrays.
    """
    whole = _stack(frames)
    times = max(1, math.ceil(math.sqrt(whole.shape[1] * whole.shape[2] / _PIXELS)))
    stack = whole if times == 1 else _reduced(whole, times)
    views = [(stack[0], 0)]
    if len(stack) > 1:
        step = stack[np.linspace(0, len(stack) - 1, min(_FRAMES, len(stack))).round().astype(int)]
        views += [(stack[-1], 0), (step.min(axis=0), _LASTING)]  # what is lit in every frame stands still
    marks: list[Mark] = []
    mask, text = (np.zeros(stack.shape[1:3], bool) for _ in range(2))
    for view, least in views:
        for mark, where in _found(view, least):
            mask |= where
            if mark.kind == "text":
                text |= where
            if not any(_inside(mark, other) for other in marks):
                marks = [other for other in marks if not _inside(other, mark)] + [mark]
    marks.sort(key=lambda m: (m.top, m.left))
    if times == 1:
        return Marks(tuple(marks), mask, text)
    H, W = whole.shape[1:3]
    mask, text = (np.pad(m.repeat(times, 0).repeat(times, 1), ((0, times), (0, times)))[:H, :W] for m in (mask, text))
    scaled = (Mark(m.kind, *(times * v for v in (m.top, m.left, m.bottom, m.right))) for m in marks)
    return Marks(tuple(scaled), mask, text)


def _reduced(stack: Frames, times: int) -> Frames:
    """(T, H, W, 3) by the mean of squares of so many pixels, frame by frame; an incomplete rim is left out."""
    rows, columns = (n // times for n in stack.shape[1:3])
    small = np.empty((len(stack), rows, columns, 3), np.uint8)
    for i, frame in enumerate(stack):
        squares = frame[: rows * times, : columns * times].reshape(rows, times, columns, times, 3)
        small[i] = squares.mean(axis=(1, 3))
    return small


def _stack(frames: Frames) -> Frames:
    array = np.asarray(frames)
    if array.ndim == 2:
        array = np.repeat(array[..., None], 3, axis=2)
    if array.ndim == 3:
        array = array[None]
    if array.ndim != 4 or array.shape[-1] != 3 or array.dtype != np.uint8 or 0 in array.shape:
        raise ShapeError(
            f"expected a picture (H, W[, 3]) or frames (T, H, W, 3) of 8 bits, got {array.dtype} {array.shape}"
        )
    return array


def _inside(one: Mark, other: Mark) -> bool:
    """Whether `one` is `other`, or a part of it, of the same kind."""
    rows = min(one.bottom, other.bottom) - max(one.top, other.top)
    columns = min(one.right, other.right) - max(one.left, other.left)
    area = (one.bottom - one.top) * (one.right - one.left)
    return one.kind == other.kind and rows > 0 and columns > 0 and rows * columns >= 0.6 * area


def _found(view: Frames, least: int) -> Iterator[tuple[Mark, Mask]]:
    """The marks of one picture (H, W, 3), each with the pixels that it covers; letters of at least that level."""
    grey = view.max(-1)
    colour = colourfulness(view)
    flow = _flow(view, colour)
    coloured = (colour > COLOURED) & ~flow
    taken = np.zeros(grey.shape, bool)
    planes = [grey, *([np.where(coloured, grey, 0).astype(np.uint8)] if coloured.any() else [])]
    boxes = [box for plane in planes for box in _letters.lines(plane, least=least)]
    boxes += _letters.lines(255 - grey, flat=True)  # dark letters on a light bar
    for box in boxes:
        cut = slice(box[0], box[2]), slice(box[1], box[3])
        if flow[cut][grey[cut] >= np.quantile(grey[cut], 0.8)].mean() < 0.5:
            where = _grown(box, grey.shape, 2)
            taken |= where
            yield Mark("text", *box), where
    for plane in planes:
        drawn: list[tuple[Kind, _crosses.Box, Mask]] = [*_crosses.crosses(plane), *_crosses.dotted(plane)]
        for kind, box, where in drawn:
            # A "+" or dots inside text are text; in a coloured flow they are flow.
            if max(taken[where].mean(), flow[where].mean()) < 0.5:
                yield Mark(kind, *box), where
    for box, where in _graphics(coloured & ~taken):
        yield Mark("graphics", *box), where


def _grown(box: tuple[int, int, int, int], shape: tuple[int, ...], margin: int) -> Mask:
    where = np.zeros(shape, bool)
    top, left, bottom, right = box
    where[max(0, top - margin) : bottom + margin, max(0, left - margin) : right + margin] = True
    return where


def colourfulness(view: Frames) -> NDArray[np.uint8]:
    """(..., 3) -> (...): how far a pixel is from the tone that pixels as bright as it have, 0..255.

    That tone is grey, or of a picture that is toned as a whole (sepia, say) its own.
    """
    values = view.astype(np.int16)
    light = values.max(-1)
    away = values - light[..., None]  # of a grey pixel 0
    lit = light > DARK
    grey = lit & (away.min(axis=-1) >= -_GREY)
    if grey.sum() >= _TONED * lit.sum():
        return np.abs(away).max(-1).astype(np.uint8)
    bins = light >> 4
    usual = np.zeros((16, 3), np.int16)
    for i in range(16):
        inside = away[bins == i]
        if len(inside):
            usual[i] = np.median(inside[:: max(1, len(inside) // 20_000)], axis=0)
    return np.abs(away - usual[bins]).max(-1).astype(np.uint8)


def _flow(view: Frames, colour: NDArray[np.uint8]) -> Mask:
    """The coloured pixels of a Doppler picture and its scale: their tone changes, that of letters does not."""
    nd = scipy()
    coloured = colour > COLOURED
    labels, count = nd.label(coloured, np.ones((3, 3), bool))
    if not count:
        return coloured
    index = np.arange(1, count + 1)
    most = np.concatenate([[0.0], nd.maximum(colour, labels, index)])
    full = np.where(colour >= 0.7 * most[labels], labels, 0)  # the smooth edges of letters are paler
    tone = view / np.maximum(view.max(-1, keepdims=True), 1).astype(np.float32)
    spread = np.max([nd.standard_deviation(tone[..., c], full, index) for c in range(3)], axis=0)
    size = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    thick = np.bincount(
        np.where(nd.binary_opening(coloured, np.ones((5, 5), bool)), labels, 0).ravel(), minlength=count + 1
    )
    blob = thick[1:] > 0.3 * size
    varied = (size >= _PATCH) & (spread > np.where(blob, _VARIED, 3 * _VARIED))
    seed = np.concatenate([[False], varied])[labels]
    if not seed.any():
        return seed
    near = nd.uniform_filter(seed.astype(np.float32), 25) > 0.02  # small coloured spots between them are flow, too
    result: Mask = coloured & near
    return result


def _graphics(coloured: Mask) -> Iterator[tuple[tuple[int, int, int, int], Mask]]:
    """Other coloured strokes and signs: arrows, frames, tracings."""
    nd = scipy()
    labels, count = nd.label(nd.binary_dilation(coloured, np.ones((5, 5), bool)), np.ones((3, 3), bool))
    if not count or count > 200:  # scattered coloured pixels are noise of colour, not drawings
        return
    sizes = np.bincount(labels[coloured], minlength=count + 1)
    for i, cut in enumerate(nd.find_objects(labels), 1):
        if sizes[i] >= 12:
            where = nd.binary_dilation((labels == i) & coloured, np.ones((3, 3), bool))
            yield (cut[0].start, cut[1].start, cut[0].stop, cut[1].stop), where


def masked(frames: Frames, marks: Marks, *, text: bool = False) -> Frames:
    """Frames (H, W, 3) or (T, H, W, 3) whose marks (or text alone) are filled in from around them.

    The filling is smooth, so nothing of a letter can be read in it.
    """
    where = marks.text if text else marks.mask
    return filled(frames, where) if where.any() else frames


def filled(frames: Frames, where: Mask) -> Frames:
    """(..., H, W, 3) of 8 bits with the pixels `where` (H, W) taken from the mean of known ones around them."""
    nd = scipy()
    shown = frames.astype(np.float32)
    known = ~where
    if not known.any():
        return np.zeros_like(frames)
    left, result = where.copy(), shown
    axes = frames.ndim - 3
    for sigma in (2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0):
        weight = nd.gaussian_filter(known.astype(np.float32), sigma, truncate=3)
        reached = left & (weight > 0.02)
        if reached.any():
            total = nd.gaussian_filter(shown * known[..., None], (*(0.0,) * axes, sigma, sigma, 0.0), truncate=3)
            result = np.where(reached[..., None], total / np.maximum(weight, 1e-6)[..., None], result)
            left &= ~reached
        if not left.any():
            break
    result = np.where(left[..., None], shown[..., known, :].mean(axis=-2)[..., None, None, :], result)
    smooth = nd.gaussian_filter(result, (*(0.0,) * axes, 2.0, 2.0, 0.0))  # over the seams between the steps
    result = np.where(where[..., None], smooth, shown)
    return np.clip(np.rint(result), 0, 255).astype(np.uint8)


def rows(marks: Sequence[Mark]) -> list[dict[str, Any]]:
    """Kind and place of each, for tables: x, y of the upper left pixel, width and height."""
    return [
        {"kind": m.kind, "x": m.left, "y": m.top, "width": m.right - m.left, "height": m.bottom - m.top} for m in marks
    ]


def scipy() -> Any:
    """scipy.ndimage. Raises MissingExtraError where it is not installed."""
    try:
        from scipy import ndimage
    except ImportError:
        raise MissingExtraError("scipy", "medical") from None
    return ndimage
