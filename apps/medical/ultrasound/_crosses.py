"""Calipers in a picture: crosses upright and diagonal, and dots in equal steps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from core.errors import MissingExtraError

Box = tuple[int, int, int, int]
_ARMS = (4, 6, 9, 13)  # pixels from the middle of a cross to the end of an arm, tried in turn
_CONTRAST = 60  # grey levels between the arms and the corners between them
_DOT = 4  # pixels that a dot is wide at most
_DOTS = 7  # of a line
_MOST = 1500  # dots of a picture; more are speckle
_STEPS = (3.0, 24.0)  # pixels between neighbouring dots
_UPRIGHT = ((0, 1), (0, -1), (1, 0), (-1, 0))
_DIAGONAL = ((1, 1), (1, -1), (-1, 1), (-1, -1))


def crosses(grey: NDArray[np.uint8]) -> Iterator[tuple[Literal["caliper"], Box, NDArray[np.bool_]]]:
    """Crosses in (H, W): kind, box, pixels."""
    H, W = grey.shape
    seen = np.zeros((H, W), bool)
    for arm in sorted(_ARMS, reverse=True):
        for arms, corners in ((_UPRIGHT, _DIAGONAL), (_DIAGONAL, _UPRIGHT)):
            for y, x in _centres(grey, arm, arms, corners):
                if seen[y, x]:
                    continue
                box = max(0, y - arm), max(0, x - arm), min(H, y + arm + 1), min(W, x + arm + 1)
                seen[max(0, y - arm - 2) : y + arm + 3, max(0, x - arm - 2) : x + arm + 3] = True
                where = np.zeros((H, W), bool)
                for dy, dx in arms:
                    for step in range(arm + 3):
                        b, a = y + dy * step, x + dx * step
                        where[max(0, b - 2) : b + 3, max(0, a - 2) : a + 3] = True
                yield "caliper", box, where


def _centres(
    grey: NDArray[np.uint8], arm: int, arms: tuple[tuple[int, int], ...], corners: tuple[tuple[int, int], ...]
) -> list[tuple[int, int]]:
    """Middles of crosses with arms of this length."""
    H, W = grey.shape
    if min(H, W) < 2 * arm + 5:
        return []
    pad = arm + 4
    wide = np.pad(grey, pad, mode="edge").astype(np.int16)

    def shifted(dy: int, dx: int) -> NDArray[np.int16]:
        return wide[pad + dy : pad + dy + H, pad + dx : pad + dx + W]

    lit = shifted(0, 0).copy()
    for dy, dx in arms:
        for step in range(1, arm + 1):
            np.minimum(lit, shifted(dy * step, dx * step), out=lit)
    maybe = lit > _CONTRAST
    if not maybe.any():
        return []
    # Between two arms, at half their length and beyond, nothing is lit: the brightest corner counts.
    dark = np.zeros_like(lit)
    first = 3
    for dy, dx in corners:
        scale = 1 if abs(dy) + abs(dx) == 2 else 2
        reach = max(first, arm - 1 if scale == 1 else arm)
        corner = np.mean([shifted(dy * s, dx * s) for s in range(first, reach + 1)], axis=0)
        dark = np.maximum(dark, corner)
    good = maybe & (lit - dark >= np.maximum(_CONTRAST, 0.24 * lit))
    # Arms end: a crossing of two long lines is no caliper.
    ends = np.zeros((H, W), np.int16)
    for dy, dx in arms:
        beyond = np.minimum(shifted(dy * (arm + 3), dx * (arm + 3)), shifted(dy * (arm + 4), dx * (arm + 4)))
        ends += beyond < lit - 0.3 * lit
    good &= ends >= 3
    ys, xs = np.nonzero(good)
    strength = (lit - dark)[ys, xs]
    found: list[tuple[int, int]] = []
    for i in np.argsort(-strength, kind="stable"):
        y, x = int(ys[i]), int(xs[i])
        if all(abs(y - b) > 3 or abs(x - a) > 3 for b, a in found):
            found.append((y, x))
        if len(found) > 40:
            return []  # a texture of crosses is none
    return found


def dotted(grey: NDArray[np.uint8]) -> Iterator[tuple[Literal["dotted line"], Box, NDArray[np.bool_]]]:
    """Lines of dots in equal steps in (H, W): kind, box, pixels."""
    try:
        from scipy import ndimage
    except ImportError:
        raise MissingExtraError("scipy", "medical") from None
    taken: list[Box] = []
    for level in (250, 224, 192, 160, 128):
        labels, count = ndimage.label(grey >= level, np.ones((3, 3), bool))
        if not _DOTS <= count <= 40 * _MOST:
            continue
        dots = []
        for rows, columns in ndimage.find_objects(labels):
            if rows.stop - rows.start <= _DOT and columns.stop - columns.start <= _DOT:
                y, x = (rows.start + rows.stop - 1) / 2, (columns.start + columns.stop - 1) / 2
                if _alone(grey, rows, columns, level):
                    dots.append((y, x))
        if _DOTS <= len(dots) <= _MOST:
            for line in _chains(np.array(dots)):
                box = _box(line, grey.shape)
                if not any(_within(box, other) for other in taken):
                    taken.append(box)
                    yield "dotted line", box, _covered(line, grey.shape)


def _alone(grey: NDArray[np.uint8], rows: slice, columns: slice, level: int) -> bool:
    """Whether a dot is sharp: two pixels off it, little of it is left."""
    margin = 2
    top, left = max(0, rows.start - margin), max(0, columns.start - margin)
    around = grey[top : rows.stop + margin, left : columns.stop + margin].astype(np.int16)
    rim = np.concatenate([around[0], around[-1], around[:, 0], around[:, -1]])
    return bool(np.median(rim) < 0.7 * level and (rim < 0.8 * level).mean() > 0.85)


def _chains(dots: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """Runs of at least _DOTS dots in equal steps along a straight line."""
    try:
        from scipy.spatial import cKDTree
    except ImportError:
        raise MissingExtraError("scipy", "medical") from None
    tree = cKDTree(dots)
    used: set[int] = set()
    found = []
    near = tree.query_ball_point(dots, _STEPS[1])
    for a in range(len(dots)):
        if a in used:
            continue
        best: list[int] = []
        for b in near[a]:
            step = dots[b] - dots[a]
            if b == a or b in used or np.hypot(*step) < _STEPS[0]:
                continue
            line = _run(tree, dots, a, b)
            if len(line) > len(best):
                best = line
        if len(best) >= _DOTS:
            used.update(best)
            found.append(dots[best])
    return found


def _run(tree: object, dots: NDArray[np.float64], a: int, b: int) -> list[int]:
    """The dots that go on from a over b in equal steps, and back from a."""
    line = [a, b]
    for last, at_end in ((b, True), (a, False)):
        while True:
            ends = (line[0], line[-1]) if len(line) > 1 else (a, b)
            mean = (dots[ends[1]] - dots[ends[0]]) / (len(line) - 1)
            step = mean if at_end else -mean
            gap, new = tree.query(dots[last] + step)  # type: ignore[attr-defined]
            if gap > 1.0 + 1.0 / (len(line) - 1) or int(new) in line:  # dots lie on whole pixels
                break
            last = int(new)
            line = [*line, last] if at_end else [last, *line]
    return line


def _box(line: NDArray[np.float64], shape: tuple[int, ...]) -> Box:
    top, left = np.floor(line.min(axis=0)).astype(int) - 1
    bottom, right = np.ceil(line.max(axis=0)).astype(int) + 2
    return max(0, int(top)), max(0, int(left)), min(shape[0], int(bottom)), min(shape[1], int(right))


def _within(one: Box, other: Box) -> bool:
    rows = min(one[2], other[2]) - max(one[0], other[0])
    columns = min(one[3], other[3]) - max(one[1], other[1])
    return rows > 0 and columns > 0 and rows * columns >= 0.7 * (one[2] - one[0]) * (one[3] - one[1])


def _covered(line: NDArray[np.float64], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    where = np.zeros(shape, bool)
    for y, x in line:
        b, a = round(y), round(x)
        where[max(0, b - 3) : b + 4, max(0, a - 3) : a + 4] = True
    return where
