"""T2T-ViT's explorations: squeeze-and-excitation behind the attention, and channels that are cheap copies (Ghost)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.errors import SettingError
from core.layers.convs import SqueezeExcitation
from core.layers.linear import Linear
from core.mixers.attention import SelfAttention


class ExcitedAttention(SelfAttention):
    """Self-attention whose result is weighted, channel by channel, by what its mean over all tokens says."""

    def __init__(self, dim: int, heads: int, **more: Any) -> None:
        super().__init__(dim, heads, **more)
        self.excite = SqueezeExcitation(dim, dim // 16, bias=False)

    def forward(self, x: Tensor) -> Tensor:  # (B, N, C) -> the same
        return self.excite(super().forward(x)[:, :, None])[:, :, 0]


class GhostAttention(SelfAttention):
    """Self-attention; only the first half of q, k and v is projected, the second is that times a factor per channel.

    The factors are depthwise 1x1 convolutions in the paper's code and start as such do, uniform from -1 to 1.
    """

    def __init__(self, dim: int, heads: int, **more: Any) -> None:
        super().__init__(dim, heads, **more)
        self.qkv = Linear(dim, 3 * (dim // 2), bias=more.get("qkv_bias") == "full")
        self.copies = nn.Parameter(torch.empty(3, dim // 2).uniform_(-1, 1))

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # (B, N, C) -> each (B, heads, N, d)
        half = self.qkv(x).unflatten(-1, (3, -1))
        qkv = torch.cat([half, half * self.copies], -1).unflatten(-1, (self.heads, self.head_dim))
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        return q, k, v


class GhostMLP(nn.Module):
    """Linear, beside its result activated copies of it (factors per channel), Linear: (..., C) -> the same.

    Args:
        dim: channels, also of the first layer's result.
        ratio: width between the layers over `dim`, a whole number.
        dropout: of the joined channels and of the result.
    """

    def __init__(self, dim: int, *, ratio: float, dropout: float = 0.0) -> None:
        super().__init__()
        if ratio != int(ratio) or ratio < 2:
            raise SettingError(f"the MLP of a Ghost block widens by a whole number from 2 up, got {ratio}")
        self.fc1 = Linear(dim, dim)
        self.copies = nn.Parameter(torch.empty(int(ratio) - 1, dim).uniform_(-1, 1))
        self.fc2 = Linear(int(ratio) * dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        wide = torch.cat([x, F.gelu(x[..., None, :] * self.copies).flatten(-2)], -1)
        return self.dropout(self.fc2(self.dropout(wide)))
