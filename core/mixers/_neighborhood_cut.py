"""How a map is cut into query blocks and the key blocks that hold all their windows (neighborhood attention)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise, product

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

# Cost of a query apart from its keys, in keys (copies and small products; measured, it hardly depends on the machine).
FIXED = 128


@dataclass(frozen=True)
class Axis:
    """How one side of a group's map is cut.

    Attributes:
        length: cells.
        block: queries of a block; the last one is filled up.
        count: blocks.
        keys: cells of a key block.
        step: between key blocks.
        before, after: cells added on both ends so that every key block is whole; no window ever reaches them.
    """

    length: int
    block: int
    count: int
    keys: int
    step: int
    before: int = 0
    after: int = 0

    @property
    def kinds(self) -> list[tuple[int, int]]:
        """First and last + 1 block of each kind."""
        return list(pairwise(sorted({0, 1, self.count - 1, self.count})))

    def index(self, kernel: int) -> npt.NDArray[np.int64]:
        """Row of the bias table, (kinds, block, keys): key - query + k - 1 inside the window, -1 outside."""
        first = np.array([a for a, _ in self.kinds])
        query = (first[:, None] * self.block + np.arange(self.block)).clip(max=self.length - 1)[:, :, None]
        key = (first[:, None] * self.step - self.before + np.arange(self.keys))[:, None, :]
        start = (query - kernel // 2).clip(0, self.length - kernel)
        return np.where((key >= start) & (key < start + kernel), key - query + kernel - 1, -1)


Cut = tuple[Axis, Axis]  # rows, columns


def axes(length: int, kernel: int) -> list[Axis]:
    """The ways of cutting one side: whole, in two, in blocks of r + 1 and more."""
    r = kernel // 2
    found = [Axis(length, length, 1, length, 1)]
    if length > kernel:
        half = -(-length // 2)
        found.append(Axis(length, half, 2, half + r, length - half - r))
    for block in range(r + 1, 2 * kernel + 2):
        count = -(-length // block)
        rest = length - (count - 1) * block  # queries of the last block
        if count == 3 or (count > 3 and rest >= r):  # else the windows of the last block but one would be clamped, too
            more = max(0, r + 1 - rest)  # the windows of a short last block start further left
            before, after = r + more, count * block + r - length
            found.append(Axis(length, block, count, block + 2 * r + more, block, before, after))
    return found


@lru_cache(maxsize=1024)
def plan(height: int, width: int, kernel: int) -> Cut:
    """The cheapest cut of a map."""

    def cost(cut: Cut) -> int:
        y, x = cut
        return y.count * y.block * x.count * x.block * (y.keys * x.keys + FIXED)

    return min(product(axes(height, kernel), axes(width, kernel)), key=cost)


def bias_index(cut: Cut, kernel: int, device: torch.device) -> Tensor:
    """Entry of a flat (2k - 1)^2 table, or (2k - 1)^2 outside the window: (y kinds * x kinds * queries * keys)."""
    if torch.compiler.is_compiling():  # an exporter's stand-in for a tensor must not be kept
        return torch.from_numpy(_bias_index(cut, kernel)).to(device)
    return _kept_bias_index(cut, kernel, device)


def _bias_index(cut: Cut, kernel: int) -> npt.NDArray[np.int64]:  # in NumPy: a constant for exporters
    y, x = (axis.index(kernel) for axis in cut)  # (kinds, block, keys)
    y, x = y[:, None, :, None, :, None], x[None, :, None, :, None, :]
    side = 2 * kernel - 1
    return np.where((y >= 0) & (x >= 0), y * side + x, side * side).reshape(-1)


@lru_cache(maxsize=64)
def _kept_bias_index(cut: Cut, kernel: int, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # a kept tensor must serve training, too
        return torch.from_numpy(_bias_index(cut, kernel)).to(device)
