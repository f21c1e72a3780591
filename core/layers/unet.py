"""Pieces of U-Nets: the residual convolution block, the up block with its skip, patch expanding."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.layers.linear import Linear

SLOPE = 0.01  # of the leaky ReLU below zero


class ResidualConvs(nn.Module):
    """Two 3 x 3 convolutions with instance norms and a shortcut, (B, C, H, W) -> (B, out, ceil(H/s), ceil(W/s)).

    Norms have no parameters (eps 1e-5); where width or stride changes the shortcut is a normed 1 x 1 convolution.
    The residual block of UNETR and nnU-Net (arXiv 2103.10504; as in Swin-UMamba, arXiv 2402.03302).

    Raises:
        ValueError: from torch, for a map of one cell, which has no spread to norm by.
    """

    def __init__(self, dim: int, out: int, *, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(dim, out, 3, stride, padding=1, bias=False)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        change = dim != out or stride != 1
        self.shortcut = nn.Conv2d(dim, out, 1, stride, bias=False) if change else None

    def forward(self, x: Tensor) -> Tensor:
        y = F.leaky_relu(F.instance_norm(self.conv1(x)), SLOPE, inplace=True)
        y = F.instance_norm(self.conv2(y))
        y = y.add_(x if self.shortcut is None else F.instance_norm(self.shortcut(x)))
        return F.leaky_relu(y, SLOPE, inplace=True)


class UpBlock(nn.Module):
    """Twice the size by a transposed convolution, the skip beside it, a residual block.

    (B, dim, h, w) and skip (B, out, 2h, 2w) -> (B, out, 2h, 2w); the upsampled map comes first in the concatenation.
    """

    def __init__(self, dim: int, out: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(dim, out, 2, 2, bias=False)
        self.block = ResidualConvs(2 * out, out)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.block(torch.cat([self.up(x), skip], 1))


class ResizingUpBlock(nn.Module):
    """As UpBlock, for a skip of any size and width: the map is narrowed and then resized (bilinear) to the skip.

    (B, dim, h, w) and skip (B, skip, H, W) -> (B, out, H, W).
    """

    def __init__(self, dim: int, skip: int, out: int) -> None:
        super().__init__()
        self.narrow = nn.Conv2d(dim, out, 1, bias=False)  # before resizing: the same map for less work
        self.block = ResidualConvs(out + skip, out)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        up = F.interpolate(self.narrow(x), size=skip.shape[2:], mode="bilinear", align_corners=False)
        return self.block(torch.cat([up, skip], 1))


class PatchExpanding(nn.Module):
    """Every cell to factor x factor cells: (B, H, W, dim) -> (B, factor H, factor W, out) (arXiv 2105.05537, 3.4).

    A linear map without bias, its channels read as (row, column, out), then a norm over `out`.
    """

    def __init__(self, dim: int, out: int, factor: int = 2) -> None:
        super().__init__()
        self.factor = factor
        self.expand = Linear(dim, factor * factor * out, bias=False)
        self.norm = nn.LayerNorm(out)

    def cells(self, x: Tensor) -> Tensor:
        """The new cells beside the old: (B, H, W, dim) -> (B, H, W, factor * factor, out)."""
        return self.norm(self.expand(x).unflatten(-1, (self.factor * self.factor, -1)))

    def forward(self, x: Tensor) -> Tensor:
        cells = self.cells(x).unflatten(3, (self.factor, self.factor))  # (B, H, W, p, p, out)
        return cells.transpose(2, 3).flatten(1, 2).flatten(2, 3)
