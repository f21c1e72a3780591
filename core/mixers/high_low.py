"""High and low frequency attention (HiLo, arXiv 2205.13213, section 3.2)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.errors import SettingError
from core.layers import windows
from core.layers.attend import attend, merge_heads
from core.layers.linear import Linear


class HiLoAttention(nn.Module):
    """Some heads attend inside small windows, the others to the map's window means: (B, H, W, C) -> (B, H, W, C).

    The first channels of the result are those of the window heads (high frequencies), then come those of the others
    (low); each branch has its own output projection and none joins them. Any H and W: the map is padded with zeros at
    the bottom and right to whole windows, and the padded cells are keys of their windows and part of the means.

    Args:
        dim: channels.
        heads: attention heads; they divide `dim`.
        window: side in cells. 1 gives every head to the low branch, which then sees each cell: plain attention.
        alpha: share of the heads for the low branch, rounded down; 0 leaves only windows, 1 only means.
        qkv_bias: biases of the q, k and v projections.
    """

    def __init__(self, dim: int, heads: int, *, window: int = 2, alpha: float = 0.5, qkv_bias: bool = False) -> None:
        super().__init__()
        if dim % heads:
            raise SettingError(f"{heads} heads do not divide {dim} channels")
        if window < 1 or not 0 <= alpha <= 1:
            raise SettingError(f"a window of at least 1 and alpha from 0 to 1 were expected, got {window} and {alpha}")
        self.window = window
        self.low_heads = low_heads(heads, alpha, window)
        self.high_heads = heads - self.low_heads
        low, high = (n * (dim // heads) for n in (self.low_heads, self.high_heads))
        if high:
            self.high_qkv = Linear(dim, 3 * high, bias=qkv_bias)
            self.high_proj = Linear(high, high)
        if low:
            self.low_q = Linear(dim, low, bias=qkv_bias)
            self.low_kv = Linear(dim, 2 * low, bias=qkv_bias)
            self.low_proj = Linear(low, low)

    def forward(self, x: Tensor) -> Tensor:
        padded, where = windows.pad(x, (self.window, self.window), "end")
        if not self.low_heads:
            return self._high(padded, where)
        if not self.high_heads:
            return self._low(x, padded)
        return torch.cat([self._high(padded, where), self._low(x, padded)], dim=-1)

    def _high(self, padded: Tensor, where: windows.Crop) -> Tensor:
        """Attention inside windows of the padded map -> (B, H, W, high)."""
        side, size = (self.window, self.window), (padded.shape[1], padded.shape[2])
        qkv = self.high_qkv(windows.partition(padded, side)).unflatten(-1, (3, self.high_heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (B * windows, heads, cells, d)
        x = windows.join(merge_heads(attend(q, k, v)), side, size)
        return self.high_proj(windows.crop(x, where))

    def _low(self, x: Tensor, padded: Tensor) -> Tensor:
        """Attention of every cell of the map to the padded map's window means -> (B, H, W, low)."""
        s = self.window
        q = self.low_q(x).flatten(1, 2).unflatten(-1, (self.low_heads, -1)).transpose(1, 2)
        means = padded if s == 1 else F.avg_pool2d(padded.permute(0, 3, 1, 2), s).permute(0, 2, 3, 1)
        kv = self.low_kv(means.flatten(1, 2)).unflatten(-1, (2, self.low_heads, -1))
        k, v = kv.permute(2, 0, 3, 1, 4).unbind(0)  # each (B, heads, windows, d)
        return self.low_proj(merge_heads(attend(q, k, v)).unflatten(1, x.shape[1:3]))


def low_heads(heads: int, alpha: float, window: int) -> int:
    """Heads of the low branch; the product is cut as a float, as published.

    >>> low_heads(12, 0.9, 2), low_heads(24, 0.9, 1)
    (10, 24)
    """
    return heads if window == 1 else int(heads * alpha)
