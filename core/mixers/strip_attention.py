"""Attention with queries and keys of a channel or a few per head, to a reduced map (S2AFormer's SSA).

Paper: arXiv 2505.22195, which states that keys and values are of a smaller map and queries and keys of fewer channels.
Our reading: sizes, norm, padding and output projection, see core.backbones.s2aformer.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from core.errors import SettingError
from core.layers import windows
from core.layers.attend import PLAIN, attend, merge_heads
from core.layers.convs import convolve
from core.layers.linear import Linear


class StripAttention(nn.Module):
    """Softmax attention of every position to the cells of a smaller map: (B, H, W, C) -> (B, H, W, C), any H and W.

    Each cell is a weighted sum, learned per channel, of a square of positions; the map is padded with zeros at the
    bottom and right to whole squares, so the last cells are keys, too. A head's value has C / heads channels.

    Args:
        dim: channels.
        heads: attention heads; they divide `dim`.
        reduction: side of the squares, 1 for the map itself.
        qk_dim: channels of a head's query and key, whose products are scaled by qk_dim ** -0.5.
    """

    def __init__(self, dim: int, heads: int, *, reduction: int = 1, qk_dim: int = 1) -> None:
        super().__init__()
        if heads < 1 or dim % heads:
            raise SettingError(f"{dim} channels do not divide into {heads} heads")
        if reduction < 1 or qk_dim < 1:
            raise SettingError(f"a reduction and a qk_dim of at least 1 were expected, got {reduction} and {qk_dim}")
        self.heads, self.reduction, self.qk_dim = heads, reduction, qk_dim
        self.q = Linear(dim, heads * qk_dim)
        if reduction > 1:
            self.reduce = nn.Conv2d(dim, dim, reduction, reduction, groups=dim)
            self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.kv = Linear(dim, heads * qk_dim + dim)
        self.proj = Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        C = x.shape[-1]
        k, v = self.kv(self._reduced(x)).split([self.heads * self.qk_dim, C], -1)
        q, k, v = self._heads(self.q(x)), self._heads(k), self._heads(v)
        if q.shape[-2] * k.shape[-2] > PLAIN:  # zeros change no product, and fused kernels want one width
            q, k = (F.pad(y, (0, max(0, v.shape[-1] - self.qk_dim))) for y in (q, k))
        out: Tensor = self.proj(merge_heads(attend(q, k, v, scale=self.qk_dim**-0.5)))
        return out.view(x.shape)

    def _reduced(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, ceil(H / reduction), ceil(W / reduction), C)."""
        if self.reduction == 1:
            return x
        x, _ = windows.pad(x, (self.reduction, self.reduction), "end")
        out: Tensor = self.norm(convolve(self.reduce, x))
        return out

    def _heads(self, x: Tensor) -> Tensor:
        """(B, ..., heads * d) -> (B, heads, T, d)."""
        return x.flatten(1, -2).unflatten(-1, (self.heads, -1)).transpose(1, 2)
