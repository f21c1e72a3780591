"""Attention to a pooled map with narrow queries and keys, its maps sums of grouped layers (FMViT's RLMHSA).

Paper: arXiv 2311.05707, which states the name and the aim; Our reading: everything else, see core.backbones.fmvit.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from core.errors import SettingError
from core.layers.attend import attend, merge_heads
from core.layers.branches import GroupedLinear


class LightAttention(nn.Module):
    """Pre-norm attention of every position to the means of squares of positions, (B, C, H, W) -> the same.

    Squares that reach over the end of the map are means of the positions that exist, so any size has keys.

    Args:
        dim: channels.
        heads: attention heads; they divide `dim`.
        reduction: side of the pooled squares, 1 for none.
        narrowing: channels of a query or key over those of a value.
        groups: group counts of the maps' branches.
    """

    def __init__(self, dim: int, heads: int, *, reduction: int, narrowing: float, groups: Sequence[int]) -> None:
        super().__init__()
        if dim % heads or int(dim // heads * narrowing) < 1:
            raise SettingError(f"{dim} channels in {heads} heads with queries of {narrowing} of a head's width")
        inner = heads * int(dim // heads * narrowing)
        self.heads, self.reduction = heads, reduction
        self.norm: nn.Module = nn.BatchNorm2d(dim)
        self.q: Any = GroupedLinear(dim, inner, groups)
        self.k: Any = GroupedLinear(dim, inner, groups)
        self.v: Any = GroupedLinear(dim, dim, groups)
        self.proj: Any = GroupedLinear(dim, dim, groups)

    def forward(self, x: Tensor) -> Tensor:
        B, C, H, W = x.shape
        x = self.norm(x)
        small, r = x, self.reduction
        if r > 1:
            small = F.avg_pool2d(x, r, r, ceil_mode=True, count_include_pad=False)
        x, small = x.permute(0, 2, 3, 1), small.permute(0, 2, 3, 1)
        q, k, v = (self._heads(y) for y in (self.q(x), self.k(small), self.v(small)))
        out: Tensor = self.proj(merge_heads(attend(q, k, v)).view(B, H, W, C))
        return out.permute(0, 3, 1, 2)

    def _heads(self, x: Tensor) -> Tensor:
        """(B, h, w, D) -> (B, heads, h * w, D / heads)."""
        return x.flatten(1, 2).unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def merged(self) -> LightAttention:
        """The same function in evaluation of four linear layers, the norm inside: means let an affine map through."""
        norm = self.norm
        if not isinstance(norm, nn.BatchNorm2d):
            return self  # merged before
        out = copy.copy(self)
        out._modules = dict(self._modules)
        out.q, out.k, out.v = (layer.merged(norm) for layer in (self.q, self.k, self.v))
        out.proj, out.norm = self.proj.merged(), nn.Identity()
        return out
