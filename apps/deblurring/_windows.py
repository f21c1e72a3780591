"""Which windows of a map are worked on, where their cells lie, and maps of them made by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from core.errors import SettingError, ShapeError

Keep = float | Sequence[Tensor] | None  # share of windows, or a map for each decision


@dataclass(frozen=True)
class Kept:
    """The windows of a batch of maps that are worked on, those that the shift does not cut first.

    Attributes:
        cells: (K, T) places of their cells in the maps flattened to (B * H * W, C); T cells a window, row-major.
        cut: (K - inside,) which of the masks of core.layers.windows.shift_mask each of the last ones takes.
        total: windows of all maps together.
    """

    cells: Tensor
    cut: Tensor
    total: int

    @property
    def count(self) -> int:
        return self.cells.shape[0]

    @property
    def inside(self) -> int:
        return self.count - self.cut.shape[0]


def kept(keep: Tensor, window: int, shift: int) -> Kept:
    """Find the windows to work on; each image of the batch has its own.

    Args:
        keep: (B, 1, h, w), above a half where a window is kept; in the frame of the rolled map.
        window: side in cells.
        shift: roll of the map in cells; 0 for none.
    """
    _, _, h, w = keep.shape
    image, row, column = (keep[:, 0] > 0.5).nonzero().unbind(1)
    cut = row.new_zeros(0)
    if shift:
        kind = (row == h - 1).long() + 2 * (column == w - 1).long()
        kind, order = kind.sort(stable=True)
        image, row, column = image[order], row[order], column[order]
        cut = kind[int((kind == 0).sum()) :]
    steps = torch.arange(window, device=keep.device)
    y = (row[:, None] * window + shift + steps) % (h * window)
    x = (column[:, None] * window + shift + steps) % (w * window)
    cells = ((image * h * window)[:, None, None] + y[:, :, None]) * (w * window) + x[:, None, :]
    return Kept(cells.flatten(1), cut, keep.numel())


def by_hand(keep: Keep, sizes: Sequence[tuple[int, int]], image: Tensor) -> list[Tensor] | None:
    """The maps that a caller sets in place of the predictors' decisions.

    Args:
        keep: None to let the predictors decide; a share of the windows, 0..1, spread by a fixed pseudo-random order
            that depends on the place in the network and the number of windows alone; or a map for each decision, in
            their order: (h, w), (1, 1, h, w) or (B, 1, h, w), 1 where a window is kept.
        sizes: rows and columns of windows of each decision.
        image: (B, ...), whose batch, device and type the maps take.

    Raises:
        SettingError: a share outside 0..1, another number of maps.
        ShapeError: a map of another size.
    """
    if keep is None:
        return None
    batch = image.shape[0]
    if isinstance(keep, int | float):
        if not 0 <= keep <= 1:
            raise SettingError(f"keep is a share of the windows, 0..1, got {keep}")
        maps = [_spread(float(keep), i, size) for i, size in enumerate(sizes)]
    elif len(keep) != len(sizes):
        raise SettingError(f"keep names {len(keep)} maps, the network decides {len(sizes)} times")
    else:
        maps = [m if m.ndim == 4 else m[None, None] for m in keep]
    for i, (found, size) in enumerate(zip(maps, sizes, strict=True)):
        if found.ndim != 4 or found.shape[1:] != (1, *size) or found.shape[0] not in (1, batch):
            raise ShapeError(
                f"map {i} of keep has shape {tuple(found.shape)}; {size[0]} x {size[1]} windows of {batch} images "
                f"are ({batch}, 1, {size[0]}, {size[1]})"
            )
    return [m.to(image).expand(batch, -1, -1, -1) for m in maps]


def _spread(share: float, place: int, size: tuple[int, int]) -> Tensor:
    """(1, 1, h, w): the rounded share of the windows kept, in a fixed random order."""
    count = size[0] * size[1]
    order = torch.randperm(count, generator=torch.Generator().manual_seed(1000 * place + count))
    return (order < round(share * count)).float().reshape(1, 1, *size)
