"""Attention whose heads are mixed before and after the softmax (talking heads, arXiv 2003.02436; CaiT, 2103.17239)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from core.layers.attend import merge_heads
from core.layers.linear import Linear


class TalkingHeads(nn.Module):
    """Queries of x (B, ..., C) attend to `context` (B, T, C), by default to x itself; gives the shape of x.

    Args:
        dim: channels.
        heads: attention heads.
        head_dim: width of one; `dim // heads` by default.

    Scores and weights are each mixed by a (heads, heads) matrix M: head g gets the sum over h of M[h, g] times head h.
    Both matrices start standard normal. Only the last projection has a bias.
    """

    def __init__(self, dim: int, heads: int, *, head_dim: int | None = None) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, head_dim or dim // heads
        inner = heads * self.head_dim
        self.q = Linear(dim, inner, bias=False)
        self.kv = Linear(dim, 2 * inner, bias=False)
        self.mix_scores = nn.Parameter(torch.randn(heads, heads))
        self.mix_weights = nn.Parameter(torch.randn(heads, heads))
        self.proj = Linear(inner, dim)

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        """(B, heads, Tq, d), (B, heads, T, d) -> (B, heads, Tq, T), not mixed yet."""
        return torch.matmul(q * self.head_dim**-0.5, k.transpose(-2, -1))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        tokens = x.flatten(1, -2)
        q = self.q(tokens).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        kv = self.kv(tokens if context is None else context).unflatten(-1, (2, self.heads, -1))
        k, v = kv.permute(2, 0, 3, 1, 4).unbind(0)
        weights = mixed(mixed(self.scores(q, k), self.mix_scores).softmax(-1), self.mix_weights)
        return self.proj(merge_heads(torch.matmul(weights, v))).reshape(x.shape)


def mixed(maps: Tensor, matrix: Tensor) -> Tensor:
    """(B, heads, Tq, T) -> the same; head g is the sum over h of matrix[h, g] times head h."""
    return torch.matmul(matrix.T, maps.flatten(2)).view_as(maps)
