"""Overlapping neighbourhoods as tokens, and attention that makes them narrower (T2T-ViT, arXiv 2101.11986, section 3.1;
Performer, arXiv 2009.14794, section 2).
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.layers.attend import attend
from core.layers.linear import Linear

FLOOR = 1e-8  # added to the sum of a performer's kernel values; part of its definition, since they may underflow


def soft_split(x: Tensor, kernel: int, stride: int, padding: int) -> Tensor:
    """Neighbourhoods as tokens, (B, H, W, C) -> (B, h, w, C * kernel**2).

    `padding` zeros surround the map: h = floor((H + 2 padding - kernel) / stride) + 1. In a token the channel is
    slowest, then come the neighbourhood's row and its column.
    """
    if x.shape[-1] < kernel and not torch.compiler.is_compiling():
        # An image: its rows are copied piece by piece. Its unfold has to be transposed, ten times as slow on the CPU.
        around = F.pad(x, (0, 0, padding, padding, padding, padding))
        places = around.unfold(1, kernel, stride).unfold(2, kernel, stride)  # (B, h, w, C, kernel, kernel)
        return places.flatten(3)
    h, w = ((n + 2 * padding - kernel) // stride + 1 for n in x.shape[1:3])
    tokens = F.unfold(x.permute(0, 3, 1, 2), kernel, padding=padding, stride=stride)
    return tokens.transpose(1, 2).unflatten(1, (h, w))


class ValueSkipAttention(nn.Module):
    """Attention whose shortcut is its own values, since widths differ: (B, H, W, wide) -> (B, H, W, dim); one head.

    Args:
        wide: channels of the map; logits are scaled by wide ** -0.5, not by the width of the queries.
        dim: channels of queries, keys, values and of the result.
    """

    def __init__(self, wide: int, dim: int) -> None:
        super().__init__()
        self.scale = wide**-0.5
        self.qkv = Linear(wide, 3 * dim, bias=False)
        self.proj = Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).flatten(1, 2)[:, None].chunk(3, -1)  # each (B, 1, H * W, dim)
        y = v + self.proj(attend(q, k, v, scale=self.scale))
        return y.reshape(*x.shape[:-1], -1)


class PerformerAttention(nn.Module):
    """`ValueSkipAttention` by positive random features, in time linear in H * W: (B, H, W, wide) -> (B, H, W, dim).

    With phi(u) = exp(w u - |u|^2 / 2) / sqrt(m), query t gets the mean of the values v_s with weights
    phi(q_t) phi(k_s). Queries and keys are not scaled. Where all weights are far below FLOOR, the shortcut is left.

    Args:
        wide: channels of the map.
        dim: channels of queries, keys, values and of the result; m is half of them.
        dropout: of the projected result, before the shortcut.
    """

    features: Tensor  # w, (m, dim): drawn once, then part of the network's state, never trained

    def __init__(self, wide: int, dim: int, *, dropout: float = 0.1) -> None:
        super().__init__()
        self.dim, count = dim, dim // 2
        self.kqv = Linear(wide, 3 * dim)  # in this order
        self.proj = Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)
        self.register_buffer("features", nn.init.orthogonal_(torch.empty(count, dim)) * count**0.5)

    def forward(self, x: Tensor) -> Tensor:
        kq, v = self.kqv(x).flatten(1, 2).split([2 * self.dim, self.dim], -1)
        y = v + self.dropout(self.proj(self._attend(kq, v)))
        return y.reshape(*x.shape[:-1], -1)

    def _attend(self, kq: Tensor, v: Tensor) -> Tensor:
        """Keys and queries (B, T, 2 dim), values (B, T, dim) -> (B, T, dim); inside in float32 at least, for range."""
        device = kq.device.type
        mixed = device != "meta" and torch.is_autocast_enabled(device)
        with torch.autocast(device, enabled=False) if mixed else nullcontext():
            kind = torch.promote_types(v.dtype, torch.float32)
            w = self.features.to(kind)
            u = kq.to(kind).unflatten(-1, (2, self.dim))
            phi = (u @ w.T - u.square().sum(-1, keepdim=True) / 2).exp() / w.shape[0] ** 0.5
            keys, queries = phi.unbind(2)  # each (B, T, m)
            values = keys.transpose(1, 2) @ v.to(kind)
            total = keys.sum(1)[..., None]
            return (queries @ values / (queries @ total + FLOOR)).to(v.dtype)
