"""Windows of a channels-last map, and every way in which published code pads a map to whole windows.

When the padding happens (image, before or after a norm, after the q, k, v projection) is where the caller calls `pad`;
what the new cells hold and on which sides they lie is the policy named there.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from core.errors import ShapeError

Policy = Literal["end", "start", "centre", "reflect", "refuse"]
Crop = tuple[int, int, int, int]  # top, left, height, width of the map inside the padded one

MASKED = -100.0  # Swin's mask: added to the logits of pairs that the roll brought together; not minus infinity


def pad(x: Tensor, multiple: tuple[int, int], policy: Policy) -> tuple[Tensor, Crop]:
    """Pad a map so that both sides divide.

    Args:
        x: (B, H, W, C).
        multiple: rows and columns of a window.
        policy: "end", zeros at the bottom and right (Swin, GC ViT, DaViT, HiLo, L2ViT); "start", zeros at the top and
            left (every other block of FcaFormer); "centre", zeros on both sides, the odd one at the bottom or right
            (CSWin, LMD-ViT); "reflect", the map mirrored at the bottom and right without its edge (FaViT); "refuse",
            an error (MaxViT, Swin's classification code).

    Returns:
        The padded map and where the original lies in it, for `crop`.

    Raises:
        ShapeError: with "refuse" where a side does not divide; with "reflect" where a map is too small to mirror.
    """
    _, H, W, _ = x.shape
    down, right = -H % multiple[0], -W % multiple[1]
    if not (down or right):
        return x, (0, 0, H, W)
    if policy == "refuse":
        raise ShapeError(f"a map of {H} x {W} does not divide into windows of {multiple[0]} x {multiple[1]}")
    if policy == "reflect":
        if down >= H or right >= W:
            raise ShapeError(
                f"a map of {H} x {W} is too small to be mirrored to whole windows of {multiple[0]} x {multiple[1]}"
            )
        x = F.pad(x.permute(0, 3, 1, 2), (0, right, 0, down), mode="reflect").permute(0, 2, 3, 1)
        return x, (0, 0, H, W)
    share = {"end": 0, "centre": 1, "start": 2}[policy]  # halves of the padding that go before the map
    top, left = down * share // 2, right * share // 2
    return F.pad(x, (0, 0, left, right - left, top, down - top)), (top, left, H, W)


def crop(x: Tensor, where: Crop) -> Tensor:
    """Undo `pad`: (B, Hp, Wp, C) -> (B, H, W, C)."""
    top, left, height, width = where
    if x.shape[1:3] == (height, width):
        return x
    return x[:, top : top + height, left : left + width]


def partition(x: Tensor, window: tuple[int, int]) -> Tensor:
    """(B, H, W, C) -> (B * windows, rows * columns, C); windows and cells row-major, images outermost."""
    B, H, W, C = x.shape
    h, w = window
    return x.reshape(B, H // h, h, W // w, w, C).transpose(2, 3).reshape(-1, h * w, C)


def join(x: Tensor, window: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Undo `partition`: (B * windows, rows * columns, C) -> (B, H, W, C)."""
    (H, W), (h, w) = size, window
    return x.reshape(-1, H // h, W // w, h, w, x.shape[-1]).transpose(2, 3).reshape(-1, H, W, x.shape[-1])


def grid_partition(x: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B, H, W, C) -> (B * cells, rows * columns, C): dilated windows of one cell from each grid tile (MaxViT, 3.2)."""
    B, H, W, C = x.shape
    h, w = grid
    return x.reshape(B, h, H // h, w, W // w, C).permute(0, 2, 4, 1, 3, 5).reshape(-1, h * w, C)


def grid_join(x: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Undo `grid_partition`."""
    (H, W), (h, w) = size, grid
    x = x.reshape(-1, H // h, W // w, h, w, x.shape[-1]).permute(0, 3, 1, 4, 2, 5)
    return x.reshape(-1, H, W, x.shape[-1])


def shift_mask(window: tuple[int, int], shift: tuple[int, int]) -> Tensor:
    """Masks for a map that was rolled by `-shift`: (4, T, T), T = cells of a window.

    MASKED between cells that the roll brought together, 0 elsewhere; in turn for windows inside (all 0), in the last
    row, in the last column, and in the corner. There are no others, so the size of the map does not matter and a layer
    can keep this as a buffer.
    """
    row, column = (torch.arange(w) >= w - s for w, s in zip(window, shift, strict=True))
    row, column = row[:, None].expand(window).reshape(-1), column[None, :].expand(window).reshape(-1)
    rows, columns = row[:, None] != row[None, :], column[:, None] != column[None, :]
    return torch.stack([rows & ~rows, rows, columns, rows | columns]).float() * MASKED


def add_shift_mask_(logits: Tensor, grid: tuple[int, int], masks: Tensor) -> Tensor:
    """Add `shift_mask` in place to logits (B * windows, heads, T, T) of `grid` rows and columns of windows."""
    a = logits.unflatten(0, (-1, *grid))
    a[:, -1, :-1] += masks[1]
    a[:, :-1, -1] += masks[2]
    a[:, -1, -1] += masks[3]
    return logits


def full_shift_mask(grid: tuple[int, int], masks: Tensor) -> Tensor:
    """`shift_mask` laid out for every window, (windows, 1, T, T), for kernels that take one mask for all."""
    rows, columns = (torch.arange(n, device=masks.device) == n - 1 for n in grid)
    kind = rows.long()[:, None] + 2 * columns.long()[None, :]
    return masks[kind.reshape(-1)][:, None]
