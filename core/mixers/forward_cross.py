"""Forward cross attention: cells attend to one another and to compact tokens of earlier blocks (arXiv 2211.07198)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from core.errors import SettingError, ShapeError
from core.layers.attend import attend, merge_heads
from core.layers.linear import Linear, linear


def absolute_index(grid: tuple[int, int]) -> Tensor:
    """Entry of a table of h * w absolute offsets for query i and key j, (T, T), T = h * w, cells row-major.

    LeViT's: |yi - yj| * w + |xi - xj| (arXiv 2104.01136, 4.2).

    >>> absolute_index((1, 3))
    tensor([[0, 1, 2],
            [1, 0, 1],
            [2, 1, 0]])
    """
    h, w = grid
    y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    y, x = y.reshape(-1), x.reshape(-1)
    return (y[:, None] - y[None, :]).abs() * w + (x[:, None] - x[None, :]).abs()


class ForwardCrossAttention(nn.Module):
    """One softmax over the cells of a map and `cross` further tokens: (B, h, w, C) and (B, cross, C) -> (B, h, w, C).

    The further tokens are scaled and normed, pass the same projection as the map, and have no queries. A bias is
    learned per head for each absolute offset of two cells and for each further token.

    Args:
        dim: channels.
        heads: attention heads.
        grid: h, w of every map.
        cross: number of further tokens, 0 for none.
    """

    bias_index: Tensor

    def __init__(self, dim: int, heads: int, grid: tuple[int, int], *, cross: int = 0) -> None:
        super().__init__()
        if dim % heads:
            raise SettingError(f"{dim} channels do not divide into {heads} heads")
        self.dim, self.heads, self.grid, self.cross = dim, heads, grid, cross
        self.qkv = Linear(dim, 3 * dim)
        self.proj = Linear(dim, dim)
        self.bias_table = nn.Parameter(torch.zeros(heads, grid[0] * grid[1]))
        self.register_buffer("bias_index", absolute_index(grid).reshape(-1), persistent=False)
        if cross:
            self.cross_scale = nn.Parameter(torch.ones(1, cross, 1))
            self.cross_norm = nn.LayerNorm(dim)
            self.cross_bias = nn.Parameter(torch.zeros(1, heads, 1, cross))

    def bias(self) -> Tensor:
        """(1, heads, T, T + cross), cells first."""
        T = self.grid[0] * self.grid[1]
        if torch.is_grad_enabled():  # gathered by rows, whose gradient is the faster one
            table = self.bias_table.T.contiguous().index_select(0, self.bias_index).T
        else:
            table = self.bias_table.index_select(1, self.bias_index)
        bias = table.reshape(1, self.heads, T, T)
        if not self.cross:
            return bias
        return torch.cat([bias, self.cross_bias.expand(1, self.heads, T, self.cross)], -1)

    def forward(self, x: Tensor, tokens: Tensor | None = None) -> Tensor:
        B, h, w, C = x.shape
        given = 0 if tokens is None else tokens.shape[1]
        if (h, w) != self.grid or given != self.cross:
            raise ShapeError(
                f"attention for maps of {self.grid[0]} x {self.grid[1]} with {self.cross} tokens of earlier blocks "
                f"got {h} x {w} with {given}"
            )
        x = x.reshape(B, h * w, C)
        if tokens is None:
            q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        else:
            weight, bias = self.qkv.weight, self.qkv.bias
            seen = torch.cat([x, self.cross_norm(tokens * self.cross_scale)], 1)
            q = linear(x, weight[:C], bias[:C]).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            kv = linear(seen, weight[C:], bias[C:]).unflatten(-1, (2, self.heads, -1))
            k, v = kv.permute(2, 0, 3, 1, 4).unbind(0)
        y = attend(q, k, v, self.bias().to(q.dtype))
        return self.proj(merge_heads(y)).reshape(B, h, w, C)
