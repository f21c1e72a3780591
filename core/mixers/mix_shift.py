"""Groups of channels shifted along each axis and mixed by depthwise convolutions (MS-MLP, arXiv 2202.06510, section 3).

The published code pairs kernels and shifts otherwise than the paper's text does; weights need the code's pairs, which
the caller gives.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from core.errors import SettingError


class Depthwise(nn.Conv2d):
    """Depthwise convolution of a channels-last map, zeros around it: (B, H, W, C) -> the same."""

    def __init__(self, dim: int, kernel: int) -> None:
        super().__init__(dim, dim, kernel, padding=kernel // 2, groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        if self.kernel_size == (1, 1):  # on the CPU torch's own takes longer than that of 7x7
            assert self.bias is not None
            return x * self.weight.flatten() + self.bias
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def group_sizes(dim: int, groups: int) -> list[int]:
    """Channels of each group: equal ones, rounded up, and a smaller last one.

    >>> group_sizes(96, 5)
    [20, 20, 20, 20, 16]
    """
    size = -(-dim // groups)
    sizes = [min(size, dim - start) for start in range(0, dim, size)]
    if len(sizes) != groups:
        raise SettingError(f"{dim} channels make {len(sizes)} groups of {size}, not {groups}")
    return sizes


class MixShift(nn.Module):
    """Axial mix and shift, (B, H, W, C) -> (B, H, W, C), for any H and W.

    A group of channels is rolled by its distance along the width (positive: to the right, out of one side and in at the
    other), then convolved; likewise along the height (positive: down), with other weights; both are added.

    Args:
        dim: channels.
        kernels: odd side of each group's kernels.
        distances: cells by which each group is rolled.
    """

    def __init__(self, dim: int, kernels: Sequence[int], distances: Sequence[int]) -> None:
        super().__init__()
        if len(kernels) != len(distances):
            raise SettingError(f"{len(kernels)} kernels and {len(distances)} distances: each group has one of both")
        if even := [k for k in kernels if k % 2 == 0]:
            raise SettingError(f"kernels have odd sides, got {even[0]}")
        self.distances = tuple(distances)
        self.sizes = group_sizes(dim, len(kernels))
        pairs = list(zip(self.sizes, kernels, strict=True))
        self.horizontal = nn.ModuleList(Depthwise(n, k) for n, k in pairs)
        self.vertical = nn.ModuleList(Depthwise(n, k) for n, k in pairs)

    def forward(self, x: Tensor) -> Tensor:
        groups = zip(x.split(self.sizes, -1), self.distances, self.horizontal, self.vertical, strict=True)
        return torch.cat([along(part.roll(d, 2)) + down(part.roll(d, 1)) for part, d, along, down in groups], -1)
