"""Crops of pairs to train on and to look at, and the photographs that are kept in memory for them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from apps.deblurring.data import Pair, read_pair
from apps.deblurring.options import Options
from core.errors import InputError

DRAWS = 1 << 20  # different crops; an epoch takes its own part of them, in an order of its own
LOOKED = 24  # crops that an epoch's validation looks at
MEMORY = 1 << 30  # bytes of photographs that a process keeps open
Arrays = tuple[NDArray[np.generic], NDArray[np.generic], NDArray[np.generic] | None]


class Shelf:
    """Pairs as arrays, the last used ones in memory; 8-bit photographs take a byte a value."""

    def __init__(self, limit: int = MEMORY) -> None:
        self.limit, self.held = limit, 0
        self._pairs: OrderedDict[str, Arrays] = OrderedDict()

    def read(self, pair: Pair) -> Arrays:
        """Blurred and sharp (H, W, 3), mask (H, W) or None. Raises FileError for what cannot be read."""
        if pair.id in self._pairs:
            self._pairs.move_to_end(pair.id)
            return self._pairs[pair.id]
        found = read_pair(pair)
        if found.sharp is None:
            raise InputError(f"{pair.blurred}: has no sharp partner to learn from")
        arrays = (_small(found.blurred), _small(found.sharp), None if found.mask is None else _small(found.mask))
        self._pairs[pair.id] = arrays
        self.held += _bytes(arrays)
        while self.held > self.limit and len(self._pairs) > 1:
            self.held -= _bytes(self._pairs.popitem(last=False)[1])
        return arrays


class Crops(Dataset[dict[str, Tensor]]):
    """blurred, sharp (3, n, n) and mask (1, n, n), float32 0..1, drawn at random; the same number gives the same crop.

    Where some pairs have masks and some have none (local blur, and blur all over), half of the crops are of each. A
    pair without a mask counts as blurred all over. `options.blurred` of the crops hold a pixel that its mask marks.
    """

    def __init__(self, pairs: Sequence[Pair], side: int, options: Options, seed: int, shelf: Shelf) -> None:
        with_mask = [p for p in pairs if p.mask is not None or p.blurred.suffix.lower() == ".npy"]
        rest = [p for p in pairs if p not in with_mask]
        self.pools = [pool for pool in (with_mask, rest) if pool]
        self.side, self.options, self.seed, self.shelf = side, options, seed, shelf

    def __len__(self) -> int:
        return DRAWS

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        draw = np.random.default_rng((self.seed, index))
        pool = self.pools[draw.integers(len(self.pools))]
        arrays = self.shelf.read(pool[draw.integers(len(pool))])
        found = cut(arrays, self.side, draw, self.options.blurred)
        if self.options.flip and draw.random() < 0.5:
            found = {name: value.flip(-1) for name, value in found.items()}
        return changed(found, draw) if self.options.colours else found


def changed(crop: dict[str, Tensor], draw: np.random.Generator) -> dict[str, Tensor]:
    """A crop turned by quarters, its channels in another order, its values 0..1 laid linearly into a narrower range.

    The range starts below 0.35 and ends above 0.65, or the other way round: half of the crops are negatives.
    """
    order, turns = torch.from_numpy(draw.permutation(3)), int(draw.integers(4))
    ends = [float(draw.uniform(0, 0.35)), float(draw.uniform(0.65, 1))]
    low, high = ends if draw.random() < 0.5 else ends[::-1]
    pictures = {name: low + (high - low) * crop[name][order] for name in ("blurred", "sharp")}
    return {name: value.rot90(turns, (1, 2)).contiguous() for name, value in (crop | pictures).items()}


class Looks(Dataset[dict[str, Tensor]]):
    """Crops of validation pairs, always the same, as many of each, anywhere: what a whole photograph would score.

    `photograph` says which pair a crop is of.
    """

    def __init__(self, pairs: Sequence[Pair], side: int, shelf: Shelf, limit: int = LOOKED) -> None:
        places = np.linspace(0, len(pairs) - 1, min(limit, len(pairs))).round().astype(int)
        self.pairs = [pairs[i] for i in np.unique(places)]
        self.each = max(1, limit // max(1, len(self.pairs)))
        self.side, self.shelf = side, shelf

    def __len__(self) -> int:
        return len(self.pairs) * self.each

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        draw, place = np.random.default_rng((7, index)), index // self.each
        found = cut(self.shelf.read(self.pairs[place]), self.side, draw, 0.0)
        return {**found, "photograph": torch.tensor(place)}


def cut(arrays: Arrays, side: int, draw: np.random.Generator, blurred: float) -> dict[str, Tensor]:
    """One crop; what a small photograph lacks is mirrored. `blurred`: the chance that it is laid on a blurred pixel."""
    first, sharp, mask = arrays
    height, width = first.shape[:2]
    top, left = (int(draw.integers(0, max(n - side, 0) + 1)) for n in (height, width))
    if mask is not None and draw.random() < blurred:
        marked = np.flatnonzero(mask)
        if len(marked):
            at = divmod(int(marked[draw.integers(len(marked))]), width)
            top, left = (
                int(np.clip(place - draw.integers(side), 0, max(n - side, 0)))
                for place, n in zip(at, (height, width), strict=True)
            )
    pictures = [_piece(a, top, left, side) for a in (first, sharp)]
    marks = np.ones((side, side), np.float32) if mask is None else _piece(mask, top, left, side)
    images = [torch.from_numpy(np.ascontiguousarray(p.transpose(2, 0, 1))) for p in pictures]
    return {"blurred": images[0], "sharp": images[1], "mask": torch.from_numpy(marks)[None]}


def _piece(array: NDArray[np.generic], top: int, left: int, side: int) -> NDArray[np.float32]:
    piece = array[top : top + side, left : left + side]
    lack = [(0, side - n) for n in piece.shape[:2]]
    piece = np.pad(piece, [*lack, *[(0, 0)] * (piece.ndim - 2)], mode="symmetric")
    scale = np.float32(255) if array.dtype == np.uint8 else np.float32(1)
    return piece.astype(np.float32) / scale


def _small(values: NDArray[np.float32]) -> NDArray[np.generic]:
    """As uint8 where that is exact."""
    stored = np.rint(values * 255).astype(np.uint8)
    return stored if np.array_equal(stored.astype(np.float32) / np.float32(255), values) else values


def _bytes(arrays: Arrays) -> int:
    return sum(a.nbytes for a in arrays if a is not None)
