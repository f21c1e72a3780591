"""Fine tokens that look up a shortened stream of the whole map: MAFormer's global branch and its fusion.

Paper: arXiv 2209.01620, which states the parts; the equations are those that a later paper restates. Our reading:
heads, output projection, the table of positions and other sizes, see core.backbones.maformer.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.errors import SettingError
from core.layers.attend import attend, merge_heads
from core.layers.linear import Linear


class GlobalTokens(nn.Module):
    """One linear map over a map's positions, shared by its channels, and a learned position of each token (GLD).

    (B, H, W, C) -> (B, tokens, C). The linear map is of one grid: a map of another size is first resized to it,
    bilinearly, so that the number of tokens does not grow with the image.

    Args:
        dim: channels.
        grid: rows and columns that the linear map is built for.
        ratio: tokens over positions of the grid, rounded down.
    """

    def __init__(self, dim: int, grid: tuple[int, int], ratio: float) -> None:
        super().__init__()
        positions = grid[0] * grid[1]
        tokens = int(positions * ratio)
        if tokens < 1:
            raise SettingError(f"a grid of {grid[0]} x {grid[1]} and a ratio of {ratio} leave no global token")
        self.grid = grid
        self.weight = nn.Parameter(nn.init.trunc_normal_(torch.empty(tokens, positions), std=0.02))
        self.bias = nn.Parameter(torch.zeros(tokens))
        self.positions = nn.Parameter(nn.init.trunc_normal_(torch.empty(tokens, dim), std=0.02))

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1:3] != self.grid:
            x = F.interpolate(x.permute(0, 3, 1, 2), self.grid, mode="bilinear", align_corners=False)
            x = x.permute(0, 2, 3, 1)
        return torch.matmul(self.weight, x.flatten(1, 2)) + (self.positions + self.bias[:, None])


class ScaleFusion(nn.Module):
    """Attention with queries of a map and keys and values of other tokens: (B, H, W, C), (B, T, C) -> (B, H, W, C).

    Args:
        dim: channels of both.
        heads: attention heads; they divide `dim`.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        if dim % heads:
            raise SettingError(f"{dim} channels do not divide into {heads} heads")
        self.heads = heads
        self.q, self.kv, self.proj = Linear(dim, dim), Linear(dim, 2 * dim), Linear(dim, dim)

    def forward(self, local: Tensor, tokens: Tensor) -> Tensor:
        q = self.q(local).flatten(1, 2).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = self.kv(tokens).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(merge_heads(attend(q, k, v)).view(local.shape))
