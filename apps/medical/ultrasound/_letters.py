"""Lines of letters in a picture, told from speckle and tissue by the shape, level and surroundings of their parts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from core.errors import MissingExtraError

Box = tuple[int, int, int, int]  # top, left, bottom, right
LEVELS = (40, 64, 96, 128, 160, 192, 216, 236, 250)  # at which the picture is cut; letters stand out at one of them
_LOW, _HIGH = 5, 64  # rows of a letter
_WIDE = 14  # times its height that joined letters are wide
_MOST = 5000  # parts of one cut; more are speckle
_CONSTANT = 5  # grey levels that a background without an echo differs by
_EVEN, _JOINED = 0.0, 2.0  # evidence (`_drawn`) asked for on such a background, and of less than three parts there
_UNEVEN, _FAINT = 3.2, 5.0  # on tissue, and of faint letters there
_CONTRAST, _CLEAR = 40, 70  # grey levels between letters and what is behind them, at least, and not to be faint


@dataclass(frozen=True, eq=False)
class _Parts:
    """Connected parts of a cut that may be letters.

    Attributes:
        boxes: (N, 4).
        strokes: (N,) runs of lit pixels that a row meets, in the mean.
        numbers: (N,) of the parts in `labels`.
        labels: (H, W).
    """

    boxes: NDArray[np.intp]
    strokes: NDArray[np.float64]
    numbers: NDArray[np.intp]
    labels: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.boxes)

    def levels(self, grey: NDArray[np.uint8], group: NDArray[np.intp]) -> NDArray[np.float64]:
        """The upper level of each part of a group."""
        found = []
        for i in group:
            top, left, bottom, right = self.boxes[i]
            inside = self.labels[top:bottom, left:right] == self.numbers[i]
            found.append(np.quantile(grey[top:bottom, left:right][inside], 0.9))
        return np.array(found)


def lines(grey: NDArray[np.uint8], *, flat: bool = False, least: int = 0) -> list[Box]:
    """Boxes of lines of bright letters in (H, W), joined where cuts at several levels found the same.

    Args:
        grey: the picture.
        flat: only on a constant background.
        least: level that the letters reach.
    """
    found: list[Box] = []
    for level in LEVELS:
        cut = grey >= level
        if level >= least and 0 < cut.mean() < 0.6:
            parts = _parts(cut)
            for group in _groups(parts):
                box = _line(grey, cut, parts, group, flat=flat)
                if box is not None:
                    found.append(box)
    return _joined(found)


def _parts(cut: NDArray[np.bool_]) -> _Parts:
    try:
        from scipy import ndimage
    except ImportError:
        raise MissingExtraError("scipy", "medical") from None
    labels, count = ndimage.label(cut, np.ones((3, 3), bool))
    places = ndimage.find_objects(labels) if count <= 20 * _MOST else []
    boxes = np.array([(r.start, c.start, r.stop, c.stop) for r, c in places], np.intp).reshape(-1, 4)
    starts = cut.copy()
    starts[:, 1:] &= ~cut[:, :-1]
    runs = np.bincount(labels[starts], minlength=count + 1)[1:] if len(places) else np.zeros(0)
    height, width = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    kept = np.flatnonzero((height >= _LOW) & (height <= _HIGH) & (width <= _WIDE * height) & (width * height >= 6))
    return _Parts(boxes[kept], runs[kept] / height[kept], kept + 1, labels)


def _groups(parts: _Parts) -> list[NDArray[np.intp]]:
    """Parts side by side on one line, of about one height."""
    count = len(parts)
    if not 1 <= count <= _MOST:
        return []
    order = np.argsort(parts.boxes[:, 1], kind="stable")
    top, left, bottom, right = parts.boxes[order].T
    height = bottom - top
    group = np.arange(count)
    for a in range(count):
        # Only those that begin within a letter's height of its end, in the order of their left sides.
        end = np.searchsorted(left, right[a] + 1.1 * height[a], side="right")
        b = np.arange(a + 1, end)
        if not len(b):
            continue
        shared = np.minimum(bottom[a], bottom[b]) - np.maximum(top[a], top[b])
        near = left[b] - right[a] <= 1.1 * np.minimum(height[a], height[b])
        alike = (shared >= 0.6 * np.minimum(height[a], height[b])) & near
        alike &= np.maximum(height[a], height[b]) <= 2.1 * np.minimum(height[a], height[b])
        for other in b[alike]:
            group[group == group[other]] = group[a]
    return [order[group == g] for g in np.unique(group)]


def _line(
    grey: NDArray[np.uint8], cut: NDArray[np.bool_], parts: _Parts, group: NDArray[np.intp], *, flat: bool
) -> Box | None:
    """The box of a group where it is a line of letters."""
    boxes = parts.boxes[group]
    strokes = float(parts.strokes[group].sum())
    if strokes < 2.4:
        return None
    top, left = boxes[:, :2].min(axis=0)
    bottom, right = boxes[:, 2:].max(axis=0)
    height = int(bottom - top)
    if right - left < 1.1 * height or strokes > 4.0 * (right - left) / height:
        return None
    heights = boxes[:, 2] - boxes[:, 0]
    usual = float(np.median(heights))
    slack = max(1.0, 0.12 * usual)
    on_line = np.abs(boxes[:, 2] - np.median(boxes[:, 2])) <= slack
    on_top = np.abs(boxes[:, 0] - np.median(boxes[:, 0])) <= slack
    if max(on_line.mean(), on_top.mean()) < 0.6 or height > 2.2 * usual:
        return None
    ink = cut[top:bottom, left:right]
    share = float(ink.mean())
    if not 0.08 <= share <= 0.72:
        return None
    levels = parts.levels(grey, group)
    level, back = float(np.median(levels)), float(np.median(grey[top:bottom, left:right][~ink]))
    contrast = level - back
    if contrast < _CONTRAST:
        return None
    margin = max(2, round(0.25 * height))
    ring = _ring(cut, top, left, bottom, right, margin)
    if ring > 0.25 * share:
        return None
    around = _surroundings(grey, top, left, bottom, right, margin)
    low, high = np.quantile(around, (0.1, 0.6))  # neighbouring lines may reach into it
    even = float(high - low) <= (_CONSTANT if flat else 12)
    if np.median(np.abs(levels - level)) > (0.35 if even else 0.08) * contrast:
        return None
    crowd = strokes * height / (right - left)
    # Letters that touch look like an interface that is broken in places, and dark tissue is nearly even.
    alone = len(group) < 3 or high - low > _CONSTANT
    needed = (_JOINED if alone else _EVEN) if even else _UNEVEN if contrast >= _CLEAR else _FAINT
    if _drawn(grey, top, left, bottom, right, back, contrast, crowd) < needed:
        return None
    if even:
        return None if len(group) < 2 and strokes < 3 else _longer(cut, int(top), int(left), int(bottom), int(right))
    if flat or len(group) < 3 or np.quantile(around, 0.98) > back + 0.8 * contrast:
        return None
    return int(top), int(left), int(bottom), int(right)


def _longer(cut: NDArray[np.bool_], top: int, left: int, bottom: int, right: int) -> Box:
    """The box with what stands beside it on its line, up to a letter's height away: signs that are no letters."""
    height = bottom - top
    lit = np.asarray(cut[top:bottom].any(axis=0))
    gap = max(3, height)
    while (nearer := np.flatnonzero(lit[max(0, left - gap) : left])).size and left > 0:
        left = max(0, left - gap) + int(nearer[0])
    while (further := np.flatnonzero(lit[right : right + gap])).size:
        right += int(further[-1]) + 1
    return top, left, bottom, right


def _drawn(
    grey: NDArray[np.uint8], top: int, left: int, bottom: int, right: int, back: float, contrast: float, crowd: float
) -> float:
    """How much more a box looks drawn than scanned; about 0 in between, from -8 to 8.

    Letters change along the row more than down the column (speckle and interfaces lie along it), end within a pixel,
    have few half-lit pixels, and a stroke or two for each square of the line.
    """
    from scipy import ndimage

    wide = np.pad(grey[top:bottom, left:right].astype(np.int16), 1, constant_values=round(back))
    inside = wide[1:-1, 1:-1]
    along, down = np.abs(np.diff(inside, axis=1)).mean(), np.abs(np.diff(inside, axis=0)).mean()
    core = wide >= back + 0.5 * contrast
    rim = ndimage.binary_dilation(core, np.ones((3, 3), bool)) & ~core
    soft = (float(wide[rim].mean()) - back) / contrast
    half = ((wide > back + 0.25 * contrast) & (wide < back + 0.7 * contrast)).sum() / max(1, core.sum())
    evidence = (
        (along / max(down, 1e-6) - 0.85) / 0.3, (0.15 - soft) / 0.08, (crowd - 1.25) / 0.25, (0.7 - half) / 0.3,
    )  # fmt: skip
    return float(np.clip(evidence, -2, 2).sum())


def _surroundings(
    grey: NDArray[np.uint8], top: int, left: int, bottom: int, right: int, margin: int
) -> NDArray[np.uint8]:
    """Values of the frame around a box."""
    outer = grey[max(0, top - margin) : bottom + margin, max(0, left - margin) : right + margin]
    known = np.ones(outer.shape, bool)
    a, b = top - max(0, top - margin), left - max(0, left - margin)
    known[a : a + bottom - top, b : b + right - left] = False
    return outer[known] if known.any() else outer.ravel()


def _ring(cut: NDArray[np.bool_], top: int, left: int, bottom: int, right: int, margin: int) -> float:
    """Share of lit pixels right above and below a line."""
    above, below = cut[max(0, top - margin) : top, left:right], cut[bottom : bottom + margin, left:right]
    both = np.concatenate([above.ravel(), below.ravel()])
    return float(both.mean()) if both.size else 0.0


def _joined(boxes: list[Box]) -> list[Box]:
    """Boxes that overlap for the most part, as one."""
    kept: list[Box] = []
    for box in sorted(boxes, key=lambda b: (b[2] - b[0]) * (b[3] - b[1]), reverse=True):
        for i, other in enumerate(kept):
            rows = min(box[2], other[2]) - max(box[0], other[0])
            columns = min(box[3], other[3]) - max(box[1], other[1])
            if rows > 0 and columns > 0 and rows * columns > 0.5 * (box[2] - box[0]) * (box[3] - box[1]):
                top, left = min(box[0], other[0]), min(box[1], other[1])
                kept[i] = (top, left, max(box[2], other[2]), max(box[3], other[3]))
                break
        else:
            kept.append(box)
    return kept
