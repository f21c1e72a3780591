"""Window attention whose queries are one map for all windows of an image (GC ViT, arXiv 2206.09959, section 3.2)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.errors import expect_shape
from core.layers import windows
from core.layers.attend import plain_is_faster
from core.layers.linear import Linear
from core.layers.positions import relative_index


class GlobalQueryAttention(nn.Module):
    """Keys and values of each window, queries of the whole image.

    x (B, H, W, C), query (B, h, w, C) -> (B, H, W, C), for any H and W and a query map of the window's size. Image b's
    query serves image b's windows. There is no query projection. The map is padded with zeros at the bottom and right;
    padded cells enter the projection as zeros and are attended to.

    Args:
        dim: channels, those of the query cut into heads as they come.
        heads: attention heads; they divide `dim`.
        window: side in cells, or rows and columns.
        qkv_bias: bias of the k, v projection.
        scale: of the query; head width ** -0.5 by default.
        dropout: of the attention weights.
        proj_dropout: of the output.
    """

    bias_index: Tensor

    def __init__(
        self, dim: int, heads: int, *, window: int | tuple[int, int] = 7, qkv_bias: bool = True,
        scale: float | None = None, dropout: float = 0.0, proj_dropout: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.heads = heads
        self.window = (window, window) if isinstance(window, int) else window
        self.scale = (dim // heads) ** -0.5 if scale is None else scale
        self.dropout = dropout
        self.kv = Linear(dim, 2 * dim, bias=qkv_bias)
        self.proj = Linear(dim, dim)
        self.proj_dropout = nn.Dropout(proj_dropout)
        h, w = self.window
        self.bias_table = nn.Parameter(torch.empty((2 * h - 1) * (2 * w - 1), heads))
        nn.init.trunc_normal_(self.bias_table, std=0.02)
        self.register_buffer("bias_index", relative_index(self.window).reshape(-1), persistent=False)

    def bias(self) -> Tensor:
        """Relative position bias (heads, T, T), T = cells of a window."""
        T = self.window[0] * self.window[1]
        return self.bias_table.index_select(0, self.bias_index).T.contiguous().view(self.heads, T, T)

    def forward(self, x: Tensor, query: Tensor) -> Tensor:
        B, C = x.shape[0], x.shape[-1]
        h, w = self.window
        heads, d = self.heads, C // self.heads
        expect_shape(query, "B h w C", B=B, h=h, w=w, C=C)
        x, where = windows.pad(x, self.window, "end")
        Hp, Wp = x.shape[1:3]
        # One copy cuts windows and heads: (B, rows, h, columns, w, 2, heads, d) -> (2, B, windows, heads, h * w, d)
        kv = self.kv(x).reshape(B, Hp // h, h, Wp // w, w, 2, heads, d)
        k, v = kv.permute(5, 0, 1, 3, 6, 2, 4, 7).reshape(2, B, -1, heads, h * w, d).unbind(0)
        q = query.reshape(B, 1, h * w, heads, d).transpose(2, 3)  # (B, 1, heads, h * w, d)
        x = self._attend(q, k, v)  # (B, windows, heads, h * w, d)
        x = x.reshape(B, Hp // h, Wp // w, heads, h, w, d).permute(0, 1, 4, 2, 5, 3, 6).reshape(B, Hp, Wp, C)
        return self.proj_dropout(self.proj(windows.crop(x, where)))

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        bias = self.bias().to(q.dtype)
        if plain_is_faster(q, k):
            logits = torch.matmul(q * self.scale, k.transpose(-2, -1))
            logits += bias
            return torch.matmul(logits.softmax(-1), v)
        q, k, v = q.expand(k.shape).flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1)
        dropout = self.dropout if self.training else 0.0
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias[None], scale=self.scale, dropout_p=dropout)
        return out
