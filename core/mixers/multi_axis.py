"""Multi-axis attention: inside blocks, or over a grid that spans the map (MaxViT, arXiv 2204.01697, section 3.2)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from core.errors import ShapeError
from core.layers.attend import attend
from core.layers.linear import Linear
from core.layers.positions import relative_index

Axis = Literal["block", "grid"]


class MultiAxisAttention(nn.Module):
    """Attention among `window` = P x Q positions of the map, (B, H, W, C) -> the same; P divides H and Q divides W.

    "block": the positions of one of the contiguous windows. "grid": the map is cut into P x Q equal cells, and the
    positions with the same place in their cell attend to one another, cells row-major: a dilated window over all of it.

    The relative position bias of query i and key j is table[head, yj - yi + P - 1, xj - xi + Q - 1]: key minus query,
    where Swin has query minus key.

    Args:
        dim: channels.
        heads: attention heads; they divide `dim`.
        window: P, or P and Q.
        axis: "block" or "grid".

    Raises:
        ShapeError: the window does not divide the map. Nothing is padded.
    """

    bias_index: Tensor

    def __init__(self, dim: int, heads: int, *, window: int | tuple[int, int] = 7, axis: Axis = "block") -> None:
        super().__init__()
        self.heads, self.axis = heads, axis
        self.window = (window, window) if isinstance(window, int) else window
        self.qkv = Linear(dim, 3 * dim)
        self.proj = Linear(dim, dim)
        P, Q = self.window
        self.bias_table = nn.Parameter(torch.empty(heads, 2 * P - 1, 2 * Q - 1))
        nn.init.normal_(self.bias_table, std=0.02)
        self.register_buffer("bias_index", relative_index(self.window).T.reshape(-1), persistent=False)

    def bias(self) -> Tensor:
        """Relative position bias (heads, T, T), T = P * Q."""
        T = self.window[0] * self.window[1]
        return self.bias_table.flatten(1).index_select(1, self.bias_index).reshape(self.heads, T, T)

    def forward(self, x: Tensor) -> Tensor:
        B, H, W, C = x.shape
        P, Q = self.window
        d = C // self.heads
        if H % P or W % Q:
            raise ShapeError(f"{self.axis} attention of window {P} x {Q} needs a map that it divides, got {H} x {W}")
        # One copy cuts windows and heads. Cells (u, v) of a window lie beside each other in a block, H / P apart in a
        # grid: (B, ..., 3, heads, d) -> (3, B * windows, heads, P * Q, d)
        if self.axis == "block":
            shape, order, back = (H // P, P, W // Q, Q), (5, 0, 1, 3, 6, 2, 4, 7), (0, 1, 4, 2, 5, 3, 6)
        else:
            shape, order, back = (P, H // P, Q, W // Q), (5, 0, 2, 4, 6, 1, 3, 7), (0, 4, 1, 5, 2, 3, 6)
        qkv = self.qkv(x).reshape(B, *shape, 3, self.heads, d)
        q, k, v = qkv.permute(order).reshape(3, -1, self.heads, P * Q, d).unbind(0)
        x = attend(q, k, v, self.bias().to(q.dtype)[None])
        x = x.reshape(B, H // P, W // Q, self.heads, P, Q, d).permute(back).reshape(B, H, W, C)
        return self.proj(x)
