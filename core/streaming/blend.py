"""Tiles joined in a strip, and what makes the result of a finished strip from its scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray
from torch import Tensor

from core.errors import SettingError, ShapeError
from core.streaming.tiles import Axis, outer

Finish = Callable[[NDArray[Any], NDArray[np.bool_]], NDArray[Any]]
_CACHED = 32 << 20  # bytes of weights kept
_CHUNK = 1 << 18  # samples that a finish works on at once: what it needs beside stays in the cache


class Strip:
    """Scores of one row of tiles, (K, tile, *rest), all in output samples; the rows that are finished leave it.

    Where no axis overlaps, scores are copied in the type that the model gave. Else they are summed with the weights of
    `tiles`, in float64 where the scores are whole numbers of 32 or 64 bits or float64, in float32 otherwise.
    """

    def __init__(self, axes: Sequence[Axis]) -> None:
        self.axes = tuple(axes)
        self._blended = any(axis.weights is not None for axis in axes)
        self._scores: NDArray[Any] | None = None
        self._cache: dict[tuple[int, ...], NDArray[Any]] = {}
        self._kinds = [_kinds(axis) for axis in axes]

    @property
    def ready(self) -> bool:
        """Whether the number of scores and their type are known."""
        return self._scores is not None

    def expect(self, scores: Tensor) -> None:
        """Take the number and type of the scores from a first tile (K, *tile)."""
        kind = _plain(scores[:0]).dtype
        if self._blended:
            kind = np.dtype(np.float64 if kind in (np.int32, np.int64, np.float64) else np.float32)
        rest = [axis.length for axis in self.axes[1:]]
        self._scores = np.zeros((len(scores), self.axes[0].tile, *rest), kind)

    def add(self, place: Sequence[int], scores: Tensor) -> None:
        """Join the scores (K, *tile) of the tile that is number `place[i]` along axis i; its row is the present one."""
        strip = self._scores
        assert strip is not None
        size = (len(strip), *(axis.tile for axis in self.axes))
        if tuple(scores.shape) != size:
            raise ShapeError(f"the model gave scores {tuple(scores.shape)} for a tile where {size} were expected")
        used = [axis.used[i] for axis, i in zip(self.axes, place, strict=True)]
        starts = [0, *(axis.starts[i] for axis, i in zip(self.axes[1:], place[1:], strict=True))]
        here = (slice(None), *(slice(s + a, s + b) for s, (a, b) in zip(starts, used, strict=True)))
        part = _plain(scores[(slice(None), *(slice(a, b) for a, b in used))])
        if self._blended:  # NumPy, not torch: its threads would wait for those of the model
            strip[here] += part * self._weights(place)
        else:
            strip[here] = part

    def rows(self, row: int) -> tuple[int, int]:
        """Output rows from, to that are finished when tile row `row` has been joined."""
        axis = self.axes[0]
        firsts = [s + a for s, (a, _) in zip(axis.starts, axis.used, strict=True)]
        return firsts[row], firsts[row + 1] if row + 1 < len(firsts) else axis.length

    def finished(self, row: int) -> NDArray[Any]:
        """Scores (K, rows, *rest) of `rows(row)`; a view that holds until `advance`."""
        assert self._scores is not None
        start = self.axes[0].starts[row]
        first, last = self.rows(row)
        return self._scores[:, first - start : last - start]

    def advance(self, row: int) -> None:
        """Make room for tile row `row + 1`."""
        assert self._scores is not None
        starts = self.axes[0].starts
        if row + 1 < len(starts):
            step = starts[row + 1] - starts[row]
            if keep := max(0, self.axes[0].tile - step):
                for plane in self._scores:  # one after the other: the copy that an overlap needs stays small
                    plane[:keep] = plane[step : step + keep].copy() if step < keep else plane[step : step + keep]
            self._scores[:, keep:] = 0

    def _weights(self, place: Sequence[int]) -> NDArray[Any]:
        """Weights of the used part of a tile, (*used), in the type of the sum."""
        assert self._scores is not None
        name = tuple(kinds[i] for kinds, i in zip(self._kinds, place, strict=True))
        if name not in self._cache:
            kind = self._scores.dtype
            factors = [
                np.ones(b - a, kind) if axis.weights is None else axis.weights[i].astype(kind)
                for axis, i in zip(self.axes, place, strict=True)
                for a, b in [axis.used[i]]
            ]
            w = outer(factors)
            if sum(kept.nbytes for kept in self._cache.values()) + w.nbytes > _CACHED:
                self._cache.clear()
            self._cache[name] = w
        return self._cache[name]


def _whole(scores: NDArray[Any], kind: np.dtype[Any]) -> NDArray[Any]:
    """Rounded and limited to a whole-number type."""
    least, most = np.iinfo(kind).min, np.iinfo(kind).max
    if scores.dtype.kind in "iu":
        held = np.iinfo(scores.dtype)
        return scores.clip(max(least, held.min), min(most, held.max)).astype(kind)
    highest = scores.dtype.type(most)
    if float(highest) > most:  # the float nearest to 2 ** 31 - 1 lies above it
        highest = np.nextafter(highest, scores.dtype.type(0))
    whole = np.rint(scores)
    return np.clip(whole, scores.dtype.type(least), highest, out=whole).astype(kind)


def _kinds(axis: Axis) -> list[int]:
    """A number for each tile, the same for tiles of equal weights."""
    numbers: dict[Any, int] = {}
    names = axis.used if axis.weights is None else [w.tobytes() for w in axis.weights]
    return [numbers.setdefault(name, len(numbers)) for name in names]


def _plain(scores: Tensor) -> NDArray[Any]:
    """On the CPU and of a type that NumPy has."""
    scores = scores.detach()
    return (scores.float() if scores.dtype == torch.bfloat16 else scores).cpu().numpy()


def argmax(dtype: DTypeLike = np.uint8, invalid: int = 255) -> Finish:
    """A finish that gives the class of the highest score, the lowest one of equals; `invalid` where nothing is valid.

    scores (K, *strip) -> (*strip) of `dtype`. Raises SettingError where K classes do not fit the type beside `invalid`.

    >>> argmax()(np.array([[1.0, 5.0, 0.0], [2.0, 5.0, 0.0]]), np.array([True, True, False])).tolist()
    [1, 0, 255]
    """

    def finish(scores: NDArray[Any], valid: NDArray[np.bool_]) -> NDArray[Any]:
        top = np.iinfo(np.dtype(dtype)).max
        if len(scores) > top + 1 or (0 <= invalid < len(scores) and not valid.all()):
            raise SettingError(f"{len(scores)} classes and {invalid} for invalid do not fit {np.dtype(dtype)} together")
        out = np.zeros(valid.shape, dtype)
        rows = max(1, _CHUNK // max(1, valid[0].size))
        for r in range(0, len(out), rows):
            part, classes = scores[:, r : r + rows], out[r : r + rows]
            best = part[0].copy()
            for k in range(1, len(scores)):
                np.copyto(classes, k, where=part[k] > best)
                np.maximum(best, part[k], out=best)
        if not valid.all():
            out[~valid] = invalid
        return out

    return finish


def image(dtype: DTypeLike = np.float32, invalid: float = 0) -> Finish:
    """A finish that gives the scores themselves, (K, *strip) of `dtype`; `invalid` where nothing is valid.

    Whole-number types are rounded to nearest, halves to even, and limited to their range.

    >>> image("uint8")(np.array([[1.4, 300.0, -2.0]]), np.array([True, True, True])).tolist()
    [[1, 255, 0]]
    """
    kind = np.dtype(dtype)

    def finish(scores: NDArray[Any], valid: NDArray[np.bool_]) -> NDArray[Any]:
        if scores.dtype == kind:
            out = scores
        else:
            out = np.empty(scores.shape, kind)
            rows = max(1, _CHUNK // max(1, scores[:, :1].size))
            for r in range(0, out.shape[1], rows):
                part = scores[:, r : r + rows]
                out[:, r : r + rows] = _whole(part, kind) if kind.kind in "iu" else part
        return out if valid.all() else np.where(valid, out, np.asarray(invalid, kind))

    return finish
