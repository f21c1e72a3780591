"""Attention between channels: every channel of a group is a token whose feature is the whole map (DaViT)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ChannelAttention(nn.Module):
    """Each output channel is a mix of its group's query channels (arXiv 2204.03645, 3.2, in the published code's form).

    (B, H, W, C) -> (B, H, W, C) for any H and W. In each group of d channels, with q, k, v of shape (N, d) and
    N = H * W positions:

        A = softmax(d^-0.5 k^T v), rows over the channels of k, the softmax over those of v
        out = q A^T

    so A, of shape (d, d), is built from k and v and applied to q: the names are rotated against attention between
    positions. Nothing is divided by N: the logits grow with the area of the map.

    Args:
        dim: channels.
        groups: channel groups; they divide `dim`.
        qkv_bias: biases of the q, k, v projection.
    """

    def __init__(self, dim: int, groups: int, *, qkv_bias: bool = True) -> None:
        super().__init__()
        self.groups, self.scale = groups, (dim // groups) ** -0.5
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        B, H, W, C = x.shape
        qkv = self.qkv(x).reshape(B, H * W, 3, self.groups, C // self.groups)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (B, groups, N, d)
        mix = torch.matmul((k * self.scale).transpose(-2, -1), v).softmax(-1)  # (B, groups, d, d)
        out = torch.matmul(q, mix.transpose(-2, -1))
        return self.proj(out.transpose(1, 2).reshape(B, H, W, C))
