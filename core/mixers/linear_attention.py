"""Linear attention with ReLU features and a learned temperature (L2ViT, arXiv 2501.16182)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from core.layers.linear import Linear


class LinearAttention(nn.Module):
    """Attention of every position to every other at a cost linear in their number: (B, H, W, C) -> the same.

    y_i = relu(q_i) (sum_j relu(k_j)^T v_j * t) / max(relu(q_i) . sum_j relu(k_j), floor), t a learned number a head.
    Keys and values are summed first, so no (N, N) matrix exists.

    Args:
        dim: channels.
        heads: attention heads; they divide `dim`.
        floor: of the denominator. 100 is the published one, deliberately large; there is no epsilon beside it.
        qkv_bias: biases of the q, k, v projection.
    """

    def __init__(self, dim: int, heads: int, *, floor: float = 100.0, qkv_bias: bool = True) -> None:
        super().__init__()
        self.heads, self.floor = heads, floor
        self.qkv = Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = Linear(dim, dim)
        self.temperature = nn.Parameter(torch.full((heads, 1, 1), (dim // heads) ** -0.5))

    def forward(self, x: Tensor) -> Tensor:
        B, H, W, C = x.shape
        qkv = self.qkv(x).view(B, H * W, 3, self.heads, C // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0].relu(), qkv[1].relu(), qkv[2]  # each (B, heads, N, d)
        mass = q @ k.sum(2)[..., None]  # (B, heads, N, 1)
        y = q @ (k.mT @ v * self.temperature) / mass.clamp(min=self.floor)
        return self.proj(y.transpose(1, 2).reshape(B, H, W, C))


class LocalConcentration(nn.Module):
    """Depthwise 7x7, GELU, batch norm, depthwise 7x7: what linear attention spread is gathered again; (B, H, W, C)."""

    def __init__(self, dim: int, kernel: int = 7) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(dim, dim, kernel, padding=kernel // 2, groups=dim)
        self.act = nn.GELU()
        self.norm = nn.BatchNorm2d(dim)
        self.conv2 = nn.Conv2d(dim, dim, kernel, padding=kernel // 2, groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(self.norm(self.act(self.conv1(x.permute(0, 3, 1, 2))))).permute(0, 2, 3, 1)
