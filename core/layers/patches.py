"""Images to tokens, and the halving of maps."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.layers.linear import Linear


class PatchEmbedding(nn.Module):
    """Convolution over patches: (B, C, H, W) -> channels-last (B, h, w, dim).

    Sides that the patch does not divide lose the remainder, or with `pad` get zeros at the bottom and right. A `stride`
    smaller than the patch makes patches overlap.
    """

    def __init__(
        self, in_channels: int, dim: int, patch: int | tuple[int, int], *, pad: bool = False, norm: bool = False,
        bias: bool = True, stride: int | tuple[int, int] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.patch = (patch, patch) if isinstance(patch, int) else patch
        self.pad = pad
        self.conv = nn.Conv2d(in_channels, dim, self.patch, stride or self.patch, bias=bias)
        self.norm = nn.LayerNorm(dim) if norm else nn.Identity()

    def forward(self, image: Tensor) -> Tensor:
        ph, pw = self.patch
        down, right = -image.shape[2] % ph, -image.shape[3] % pw
        if self.pad and (down or right):
            image = F.pad(image, (0, right, 0, down))
        return self.norm(self.conv(image).permute(0, 2, 3, 1))


class PatchMerging(nn.Module):
    """2x2 cells to one: (B, H, W, C) -> (B, h, w, out), h = ceil(H/2), floor(H/2) with `floor` (arXiv 2103.14030, 3.1).

    The four phases are joined column by column, as the published weights need: (row, column) = (0, 0), (1, 0), (0, 1),
    (1, 1). Odd sides get one row or column of zeros, or lose one.
    """

    def __init__(self, dim: int, out: int | None = None, *, floor: bool = False) -> None:
        super().__init__()
        self.floor = floor
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = Linear(4 * dim, out or 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        B, H, W, C = x.shape
        if self.floor:
            x = x[:, : H - H % 2, : W - W % 2]
        elif H % 2 or W % 2:
            x = F.pad(x, (0, 0, 0, W % 2, 0, H % 2))
        h, w = x.shape[1] // 2, x.shape[2] // 2
        x = x.reshape(B, h, 2, w, 2, C).permute(0, 1, 3, 4, 2, 5)  # (B, h, w, column phase, row phase, C)
        return self.reduction(self.norm(x.reshape(B, h, w, 4 * C)))


def to_map(tokens: Tensor, height: int, width: int) -> Tensor:
    """Row-major tokens (B, H * W, C) -> (B, C, H, W)."""
    return tokens.transpose(1, 2).unflatten(2, (height, width))


def to_channels_first(x: Tensor) -> Tensor:
    """(B, H, W, C) -> (B, C, H, W), the same memory (channels-last)."""
    return torch.permute(x, (0, 3, 1, 2))
