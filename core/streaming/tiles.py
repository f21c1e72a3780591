"""Where tiles lie on a scene, and the weights that join them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from core.errors import SettingError

if TYPE_CHECKING:
    from core.protocols import Source

_LEVELS = 4096  # weights are multiples of 1 / 4096: their sums are exact in float32


@dataclass(frozen=True)
class Axis:
    """Tiles along one axis, in the samples of the input (or of the output, where `scaled`).

    Attributes:
        length: of the scene.
        tile: of every tile; a scene shorter than it has one tile that reaches beyond its end.
        starts: of the tiles; the last one is shifted back so that it ends with the scene.
        used: the part of each tile that counts, (from, to) inside the tile.
        weights: of the samples of each used part, or None where they are all one. Over the tiles that cover a sample
            they sum to exactly one.
    """

    length: int
    tile: int
    starts: tuple[int, ...]
    used: tuple[tuple[int, int], ...]
    weights: tuple[NDArray[np.float32], ...] | None

    def scaled(self, scale: int) -> Axis:
        """The same tiles in output samples, `scale` to an input sample."""
        if scale == 1:
            return self
        starts = tuple(s * scale for s in self.starts)
        return _axis(self.length * scale, self.tile * scale, starts, blended=self.weights is not None)


def cut(length: int, tile: int, overlap: float) -> Axis:
    """Tiles of `tile` samples on `length` samples, each sharing the fraction `overlap` with the next.

    >>> cut(10, 4, 0.5).starts, cut(10, 4, 0).starts, cut(3, 4, 0.5).starts
    ((0, 2, 4, 6), (0, 4, 6), (0,))
    """
    if tile >= length:
        return _axis(length, tile, (0,), blended=False)
    step = min(tile, max(1, round(tile * (1 - overlap))))
    starts = (*range(0, length - tile, step), length - tile)
    return _axis(length, tile, starts, blended=step < tile)


def grid(size: Sequence[int], tile: int | Sequence[int], overlap: float | Sequence[float]) -> tuple[Axis, ...]:
    """Tiles of a scene of `size` samples, one Axis a spatial axis.

    `tile` in samples and `overlap` as a fraction of it (0 <= overlap < 1), each for all axes or one an axis. Raises
    SettingError for values outside these ranges.
    """
    axes = len(size)
    tiles = (tile,) * axes if isinstance(tile, int) else tuple(tile)
    overlaps = (overlap,) * axes if isinstance(overlap, int | float) else tuple(overlap)
    if len(tiles) != axes or any(t < 1 for t in tiles):
        raise SettingError(f"tile is a size of at least 1, or one for each of {axes} axes, got {tile!r}")
    if len(overlaps) != axes or not all(0 <= o < 1 for o in overlaps):
        raise SettingError(f"overlap is a fraction 0 <= overlap < 1, or one for each of {axes} axes, got {overlap!r}")
    if any(n < 1 for n in size):
        raise SettingError(f"there is nothing to cut in a scene of {' x '.join(map(str, size))} samples")
    return tuple(cut(n, t, o) for n, t, o in zip(size, tiles, overlaps, strict=True))


def weights(tile: int | Sequence[int], overlap: float | Sequence[float]) -> NDArray[np.float32]:
    """Weights (*tile) of a tile in the middle of a scene; a grid of them, cut by `overlap`, sums to exactly one.

    For results that are joined elsewhere. Give `tile` as a sequence for more than one axis.

    >>> weights(4, 0.5).tolist()
    [0.146484375, 0.853515625, 0.853515625, 0.146484375]
    """
    sizes = (tile,) if isinstance(tile, int) else tuple(tile)
    middle = []
    for axis in grid([8 * t for t in sizes], sizes, overlap):
        i = len(axis.starts) // 2
        w = np.zeros(axis.tile, np.float32)
        w[slice(*axis.used[i])] = 1 if axis.weights is None else axis.weights[i]
        middle.append(w)
    return outer(middle)


def outer(factors: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Product of one vector an axis, (*sizes)."""
    w = factors[0]
    for f in factors[1:]:
        w = w[..., None] * f
    return w


def windows(
    source: Source, tile: int | Sequence[int], overlap: float | Sequence[float] = 0.0
) -> Iterator[tuple[tuple[int, ...], NDArray[Any], NDArray[np.bool_]]]:
    """(start, values (C, *tile), valid (*tile)) of every tile, for results of one vector a tile.

    In row-major order; tiles without a valid sample are given, too. Each window is read by itself.
    """
    axes = grid(source.shape, tile, overlap)
    for start in itertools.product(*(axis.starts for axis in axes)):
        yield start, *source.read(start, [s + axis.tile for s, axis in zip(start, axes, strict=True)])


def count(axes: Sequence[Axis]) -> int:
    """How many tiles the axes make together."""
    return prod(len(axis.starts) for axis in axes)


def _axis(length: int, tile: int, starts: tuple[int, ...], *, blended: bool) -> Axis:
    if not blended:  # every sample belongs to the first tile that holds it
        ends = (0, *(s + tile for s in starts[:-1]))
        used = tuple((max(0, end - s), min(tile, length - s)) for s, end in zip(starts, ends, strict=True))
        return Axis(length, tile, starts, used, None)
    return Axis(length, tile, starts, ((0, tile),) * len(starts), _shares(length, tile, starts))


def _shares(length: int, tile: int, starts: tuple[int, ...]) -> tuple[NDArray[np.float32], ...]:
    """A raised cosine over each tile, divided by the sum of those that cover the sample.

    Quantised so that the shares of a sample sum to one without rounding: what is rounded is their running sum.
    """
    window = np.sin((np.arange(tile) + 0.5) * np.pi / tile) ** 2
    total = np.zeros(length)
    for s in starts:
        total[s : s + tile] += window
    running = np.zeros(length)
    shares = []
    for s in starts:
        here = slice(s, s + tile)
        before = np.rint(running[here] * _LEVELS)
        running[here] += window / total[here]
        shares.append(((np.rint(running[here] * _LEVELS) - before) / _LEVELS).astype(np.float32))
    return tuple(shares)
