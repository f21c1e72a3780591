"""Pixels to coarser ones by their mean over area: the same numbers however a picture is cut into windows."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def span(start: int, stop: int, factor: float, length: int) -> tuple[int, int]:
    """From, to: the fine samples that the coarse ones start <= i < stop lie on, of `length`."""
    first = int(np.floor(start * factor + 1e-9))
    last = int(np.ceil(stop * factor - 1e-9))
    return min(first, length - 1), max(min(last, length), min(first, length - 1) + 1)


def shrink(
    values: NDArray[np.uint8], start: tuple[int, int], size: tuple[int, int], factor: tuple[float, float],
    origin: tuple[int, int],
) -> NDArray[np.uint8]:  # fmt: skip
    """The mean over area of fine pixels in each coarse one.

    Args:
        values: (rows, columns, C) of the fine picture, from `origin` on, as far as `span` says.
        start: row and column of the first coarse pixel.
        size: coarse rows and columns.
        factor: fine pixels to a coarse one, down and across, at least 1.
        origin: row and column of values[0, 0] in the fine picture.

    Returns (*size, C) uint8, rounded to nearest.
    """
    whole = [int(f) if float(f).is_integer() else 0 for f in factor]
    fits = all(
        w and w * s == o and v == w * n
        for w, s, o, v, n in zip(whole, start, origin, values.shape[:2], size, strict=True)
    )
    if fits:
        down, across = whole
        blocks = values.reshape(size[0], down, size[1], across, values.shape[2])
        total = blocks.sum(axis=(1, 3), dtype=np.uint32)
        return np.rint(total / (down * across)).astype(np.uint8)
    rows = _means(values.astype(np.float64), start[0], size[0], factor[0], origin[0])
    columns = _means(rows.swapaxes(0, 1), start[1], size[1], factor[1], origin[1])
    return np.rint(columns.swapaxes(0, 1)).astype(np.uint8)


def _means(values: NDArray[np.float64], start: int, count: int, factor: float, origin: int) -> NDArray[np.float64]:
    """Along axis 0. Edges are computed from the picture's own beginning, so that no window shifts them."""
    length = len(values)
    edges = np.clip((np.arange(count + 1) + start) * factor - origin, 0, length)
    low = np.minimum(edges.astype(np.int64), length - 1)
    part = (edges - low).reshape(-1, *(1,) * (values.ndim - 1))
    summed = np.concatenate([np.zeros_like(values[:1]), np.cumsum(values, axis=0)])
    at = summed[low] + part * values[low]  # the integral up to each edge
    widths = np.maximum(np.diff(edges), 1e-9).reshape(-1, *(1,) * (values.ndim - 1))
    return np.diff(at, axis=0) / widths
