"""Self-attention over the whole map or token sequence (arXiv 1706.03762, 3.2; BEiT's biases: arXiv 2106.08254)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.layers.attend import merge_heads, plain_is_faster
from core.layers.linear import Linear, linear
from core.layers.positions import relative_index

QKVBias = Literal["full", "qv", "none"]


@dataclass
class Tap:
    """What one attention layer did in its last forward pass.

    Attributes:
        q, k, v: (B, heads, N, d), before scaling.
        bias: added to the logits, broadcastable to (B, heads, N, N), or None.
        scale: of the logits.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    bias: Tensor | None
    scale: float

    @property
    def weights(self) -> Tensor:
        """Attention after the softmax, (B, heads, N, N)."""
        logits = self.q @ self.k.transpose(-2, -1) * self.scale
        return (logits if self.bias is None else logits + self.bias).softmax(-1)


class SelfAttention(nn.Module):
    """Multi-head attention of every position to every other: (B, ..., C) -> the same shape.

    Args:
        dim: channels.
        heads: attention heads.
        head_dim: width of one; `dim // heads` by default.
        qkv_bias: "full", "qv" for separate query and value biases without a key bias (BEiT, iColoriT), or "none".
        relative: rows and columns of the grid for a relative position bias; the layer then takes that grid only.
        prefix: positions before the grid. With a relative bias they share three further rows of the table (prefix to
            cell, cell to prefix, prefix to prefix), as BEiT's class token does.
        dropout: of the attention weights.
        proj_dropout: of the output.

    `keep_tap = True` leaves a Tap in `tap` at each forward pass; off, it costs nothing.
    """

    bias_index: Tensor

    def __init__(
        self, dim: int, heads: int, *, head_dim: int | None = None, qkv_bias: QKVBias = "full",
        relative: tuple[int, int] | None = None, prefix: int = 0, dropout: float = 0.0, proj_dropout: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.heads, self.head_dim, self.dropout = heads, head_dim or dim // heads, dropout
        self.scale = self.head_dim**-0.5
        inner = self.heads * self.head_dim
        self.qkv = Linear(dim, 3 * inner, bias=qkv_bias == "full")
        self.q_bias = nn.Parameter(torch.zeros(inner)) if qkv_bias == "qv" else None
        self.v_bias = nn.Parameter(torch.zeros(inner)) if qkv_bias == "qv" else None
        self.proj = Linear(inner, dim)
        self.proj_dropout = nn.Dropout(proj_dropout)
        self.bias_table = None
        if relative:
            index = _index_with_prefix(relative, prefix)
            self.positions = index.shape[0]
            self.bias_table = nn.Parameter(torch.empty(_rows(relative) + (3 if prefix else 0), heads))
            nn.init.trunc_normal_(self.bias_table, std=0.02)
            self.register_buffer("bias_index", index.reshape(-1), persistent=False)
        self.keep_tap = False
        self.tap: Tap | None = None

    def bias(self) -> Tensor | None:
        """Relative position bias (heads, N, N), None without a table."""
        if self.bias_table is None:
            return None
        if torch.is_grad_enabled():  # gathered by rows, whose gradient is the faster one
            rows = self.bias_table.index_select(0, self.bias_index).T.contiguous()
        else:
            rows = self.bias_table.T.contiguous().index_select(1, self.bias_index)
        return rows.view(self.heads, self.positions, self.positions)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, N, C) -> q, k, v, each (B, heads, N, d)."""
        if self.q_bias is not None and self.v_bias is not None:
            qkv = linear(x, self.qkv.weight, torch.cat([self.q_bias, torch.zeros_like(self.v_bias), self.v_bias]))
        else:
            qkv = self.qkv(x)
        q, k, v = qkv.unflatten(-1, (3, self.heads, self.head_dim)).permute(2, 0, 3, 1, 4).unbind(0)
        return q, k, v

    def forward(self, x: Tensor) -> Tensor:
        shape = x.shape
        q, k, v = self.project(x.flatten(1, -2))
        bias = self.bias()
        if self.keep_tap:
            self.tap = Tap(q, k, v, bias, self.scale)
        dropout = self.dropout if self.training else 0.0
        if not dropout and plain_is_faster(q, k):
            logits = torch.matmul(q * self.scale, k.transpose(-2, -1))
            if bias is not None:
                logits += bias
            out = torch.matmul(logits.softmax(-1), v)
        else:
            mask = None if bias is None else bias[None]
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=self.scale, dropout_p=dropout)
        out = self.proj_dropout(self.proj(merge_heads(out)))
        return out.reshape(*shape[:-1], out.shape[-1])


def _rows(grid: tuple[int, int]) -> int:
    return (2 * grid[0] - 1) * (2 * grid[1] - 1)


def _index_with_prefix(grid: tuple[int, int], prefix: int) -> Tensor:
    """Rows of the bias table (prefix + N, prefix + N); the prefix's three rows are the table's last."""
    index = relative_index(grid)
    if prefix:
        rows = _rows(grid)
        index = F.pad(index, (prefix, 0, prefix, 0))
        index[:prefix, prefix:], index[prefix:, :prefix], index[:prefix, :prefix] = rows, rows + 1, rows + 2
    return index
