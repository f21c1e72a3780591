"""Single-head self-attention on a part of the channels (SHViT, arXiv 2401.16456, section 3.2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from core.layers.attend import attend


def conv_norm(
    dim: int, out: int, kernel: int = 1, *, stride: int = 1, groups: int = 1, zero: bool = False
) -> nn.Sequential:
    """Convolution without bias, then BatchNorm; padding keeps the size at stride 1. `zero` starts the norm at weight 0.

    (B, dim, H, W) -> (B, out, ceil(H / stride), ceil(W / stride)).
    """
    conv = nn.Conv2d(dim, out, kernel, stride, kernel // 2, groups=groups, bias=False)
    norm = nn.BatchNorm2d(out)
    if zero:
        nn.init.zeros_(norm.weight)
    return nn.Sequential(conv, norm)


class SingleHeadPartialAttention(nn.Module):
    """Attention of the first `partial` channels over all positions, (B, H, W, C) -> the same, for any H and W.

    The other channels pass by it and by its norm; all of them, attended ones first, go through ReLU and a projection.

    Args:
        dim: channels.
        partial: channels that attend; their width is also that of the values.
        qk_dim: width of queries and keys.
    """

    def __init__(self, dim: int, partial: int, *, qk_dim: int = 16) -> None:
        super().__init__()
        self.partial, self.qk_dim = partial, qk_dim
        self.norm = nn.GroupNorm(1, partial)
        self.qkv = conv_norm(partial, 2 * qk_dim + partial)
        self.act = nn.ReLU()
        self.proj = conv_norm(dim, dim, zero=True)

    def forward(self, x: Tensor) -> Tensor:
        B, H, W, C = x.shape
        attending, passing = x.split([self.partial, C - self.partial], -1)
        qkv = self.qkv(self.norm(attending.permute(0, 3, 1, 2)))  # (B, 2 qk_dim + partial, H, W)
        tokens = qkv.permute(0, 2, 3, 1).reshape(B, 1, H * W, -1)  # one head
        q, k, v = tokens.split([self.qk_dim, self.qk_dim, self.partial], -1)
        mixed = torch.cat([attend(q, k, v).reshape(B, H, W, -1), passing], -1)
        return self.proj(self.act(mixed).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
