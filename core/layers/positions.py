"""Positions: relative bias tables, sine-cosine tables, and the published ways of resizing both."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from core.errors import ShapeError

Resizing = Literal["offset", "exact", "linear", "refuse"]


def relative_index(window: tuple[int, int]) -> Tensor:
    """Row of a ((2h-1)(2w-1), heads) bias table for query i and key j, (T, T), T = h * w, cells row-major.

    Swin's layout: (yi - yj + h - 1) * (2w - 1) + (xi - xj + w - 1) (arXiv 2103.14030, 3.2).

    >>> relative_index((1, 2))
    tensor([[1, 0],
            [2, 1]])
    """
    h, w = window
    y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    y, x = y.reshape(-1), x.reshape(-1)
    return (y[:, None] - y[None, :] + h - 1) * (2 * w - 1) + x[:, None] - x[None, :] + w - 1


def resize_bias_table(table: Tensor, rows: int) -> Tensor:
    """A square window's table (S*S, heads) as an S x S image per head, resized bicubically to (rows, heads)."""
    old, new = math.isqrt(table.shape[0]), math.isqrt(rows)
    if old * old != table.shape[0] or new * new != rows:
        raise ShapeError(f"a bias table of {table.shape[0]} rows cannot be resized to {rows}: both must be squares")
    image = table.T.reshape(1, -1, old, old)
    image = F.interpolate(image, size=(new, new), mode="bicubic", align_corners=False)
    return image.reshape(-1, new * new).T.contiguous()


def resize_grid(grid: Tensor, size: tuple[int, int], how: Resizing) -> Tensor:
    """A position grid (1, h0, w0, C) for a map of another size, (1, h, w, C).

    Args:
        grid: positions as built.
        size: h, w wanted.
        how: "offset", bicubic with the factors (h + 0.1) / h0 driving the sampling points, never the sizes' ratio
            (DINO, DeiT-LT, GMML); "exact", bicubic between the two sizes (DINOv2 from transformers 4.45, Swin);
            "linear", bilinear with the corners aligned, square grids only (Flax ViT's zoom); "refuse", an error.

    Raises:
        ShapeError: with "refuse" for another size, with "linear" for a grid that is not square.
    """
    h0, w0 = grid.shape[1:3]
    if how == "refuse":
        raise ShapeError(f"positions were built for {h0} x {w0} patches, the image has {size[0]} x {size[1]}")
    image = grid.permute(0, 3, 1, 2)
    if how == "offset":
        factors = ((size[0] + 0.1) / h0, (size[1] + 0.1) / w0)
        image = F.interpolate(image, scale_factor=factors, mode="bicubic", align_corners=False)
        assert tuple(image.shape[2:]) == tuple(size)
    elif how == "exact":
        image = F.interpolate(image, size=size, mode="bicubic", align_corners=False)
    else:
        if h0 != w0 or size[0] != size[1]:
            raise ShapeError(f"these positions are resized between squares only, not from {h0} x {w0} to {size}")
        image = F.interpolate(image, size=size, mode="bilinear", align_corners=True)
    return image.permute(0, 2, 3, 1)


def sincos_1d(length: int, dim: int) -> Tensor:
    """Interleaved table over flat positions, (length, dim): angle pos / 10000^(2 (i // 2) / dim), even columns sine,
    odd cosine (arXiv 1706.03762, 3.5; iColoriT, T2T-ViT). Computed in float64.
    """
    i = torch.arange(dim, dtype=torch.float64)
    angle = torch.arange(length, dtype=torch.float64)[:, None] / 10000 ** (2 * (i // 2) / dim)
    return torch.where(i % 2 == 0, angle.sin(), angle.cos())


def sincos_2d(size: tuple[int, int], dim: int) -> Tensor:
    """MAE's table, (h * w, dim): first half of the channels from the column, second from the row, each half the sines
    then the cosines of 10000^(-i / (dim / 4)) (arXiv 2111.06377). Computed in float64.
    """
    if dim % 4:
        raise ShapeError(f"two-dimensional sine-cosine positions need a width that 4 divides, got {dim}")
    frequency = 10000 ** (-torch.arange(dim // 4, dtype=torch.float64) / (dim / 4))
    y, x = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in size), indexing="ij")
    halves = [torch.outer(axis.reshape(-1), frequency) for axis in (x, y)]
    return torch.cat([f(a) for a in halves for f in (torch.sin, torch.cos)], dim=1)
