"""Shifted-window self-attention, and its MLP form (Swin, arXiv 2103.14030, section 3.2)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.layers import windows
from core.layers.attend import merge_heads, plain_is_faster
from core.layers.kept import Kept
from core.layers.linear import Linear
from core.layers.positions import relative_index


class WindowAttention(nn.Module):
    """Attention inside windows of `window` x `window` cells, the map rolled by `shift` before.

    (B, H, W, C) -> (B, H, W, C) for any H and W: the map is padded with zeros at the bottom and right, so padded cells
    enter the projection as zeros and are attended to; only the shift mask, built on the padded size, hides anything.

    Args:
        dim: channels.
        heads: attention heads; they divide `dim`.
        window: side in cells, or rows and columns.
        shift: roll in cells, 0 for none.
        shift_single: shift also where one window covers a side of the map. The published dense code does; the
            classification code sets the shift to 0 there.
        qkv_bias: biases of the q, k, v projection.
        scale: of q; head width ** -0.5 by default.
        dropout: of the attention weights.
        proj_dropout: of the output.
    """

    bias_index: Tensor
    masks: Tensor

    def __init__(
        self, dim: int, heads: int, *, window: int | tuple[int, int] = 7, shift: int = 0, shift_single: bool = False,
        qkv_bias: bool = True, scale: float | None = None, dropout: float = 0.0, proj_dropout: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.heads, self.shift, self.shift_single = heads, shift, shift_single
        self.window = (window, window) if isinstance(window, int) else window
        self.scale = (dim // heads) ** -0.5 if scale is None else scale
        self.dropout = dropout
        self.qkv = Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = Linear(dim, dim)
        self.proj_dropout = nn.Dropout(proj_dropout)
        h, w = self.window
        self.bias_table = nn.Parameter(torch.empty((2 * h - 1) * (2 * w - 1), heads))
        nn.init.trunc_normal_(self.bias_table, std=0.02)
        self.register_buffer("bias_index", relative_index(self.window).reshape(-1), persistent=False)
        self._kept = Kept()
        if shift:
            self.register_buffer("masks", windows.shift_mask(self.window, (shift, shift)), persistent=False)

    def bias(self) -> Tensor:
        """Relative position bias (heads, T, T), T = cells of a window."""
        return self._kept(self._gathered, (self.bias_table,))

    def _gathered(self) -> Tensor:
        T = self.window[0] * self.window[1]
        return self.bias_table.index_select(0, self.bias_index).T.contiguous().view(self.heads, T, T)

    def shift_for(self, height: int, width: int) -> int:
        """The roll for a map of this size."""
        single = height <= self.window[0] or width <= self.window[1]
        return 0 if single and not self.shift_single else self.shift

    def forward(self, x: Tensor) -> Tensor:
        B, H, W, C = x.shape
        h, w = self.window
        shift = self.shift_for(H, W)
        x, where = windows.pad(x, self.window, "end")
        Hp, Wp = x.shape[1:3]
        if shift:
            x = x.roll((-shift, -shift), (1, 2))
        # One copy cuts windows and heads: (B, rows, h, columns, w, 3, heads, d) -> (3, B * windows, heads, h * w, d)
        qkv = self.qkv(x).reshape(B, Hp // h, h, Wp // w, w, 3, self.heads, C // self.heads)
        q, k, v = qkv.permute(5, 0, 1, 3, 6, 2, 4, 7).reshape(3, -1, self.heads, h * w, C // self.heads).unbind(0)
        x = self._attend(q, k, v, shift, (Hp // h, Wp // w))
        x = x.reshape(B, Hp // h, Wp // w, self.heads, h, w, C // self.heads)
        x = x.permute(0, 1, 4, 2, 5, 3, 6).reshape(B, Hp, Wp, C)
        if shift:
            x = x.roll((shift, shift), (1, 2))
        return self.proj_dropout(self.proj(windows.crop(x, where)))

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, shift: int, grid: tuple[int, int]) -> Tensor:
        """(B * windows, heads, T, d) -> the same."""
        bias = self.bias().to(q.dtype)
        dropout = self.dropout if self.training else 0.0
        if not dropout and plain_is_faster(q, k):
            logits = torch.matmul(q * self.scale, k.transpose(-2, -1))
            logits += bias
            if shift and torch.compiler.is_compiling():  # the compiler of torch 2.11 fails on the sliced form
                full = windows.full_shift_mask(grid, self.masks.to(q.dtype))
                logits = (logits.unflatten(0, (-1, full.shape[0])) + full).flatten(0, 1)
            elif shift:
                windows.add_shift_mask_(logits, grid, self.masks.to(q.dtype))
            return torch.matmul(logits.softmax(-1), v)
        bias = bias[None]
        if shift:
            full = windows.full_shift_mask(grid, self.masks.to(q.dtype))
            bias = (bias + full).repeat(q.shape[0] // full.shape[0], 1, 1, 1)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=self.scale, dropout_p=dropout)


class PlainWindowAttention(nn.Module):
    """Attention inside windows without position bias, shift or mask: (B, H, W, C) -> (B, H, W, C).

    The map is padded with zeros at the bottom and right; padded cells are projected and attended to (DaViT's spatial
    half, arXiv 2204.03645, 3.2; L2ViT's local half).
    """

    def __init__(self, dim: int, heads: int, *, window: int, qkv_bias: bool) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.qkv = Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        M = self.window
        x, where = windows.pad(x, (M, M), "end")
        size = (x.shape[1], x.shape[2])
        # Cut before the projection: its output then holds whole windows, and heads are views of it.
        qkv = self.qkv(windows.partition(x, (M, M))).unflatten(-1, (3, self.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (B * windows, heads, M * M, d)
        x = self.proj(merge_heads(F.scaled_dot_product_attention(q, k, v)))
        return windows.crop(windows.join(x, (M, M), size), where)


class WindowMLP(nn.Module):
    """One linear map over the cells of a window for each head, shared by the head's channels (Swin-MLP).

    (B, H, W, C) -> (B, H, W, C) for any H and W. The shift is zero padding: `window - shift` at the top and left,
    `shift` at the bottom and right, cut off afterwards. No q, k, v, no output projection, no mask.
    """

    def __init__(
        self, dim: int, heads: int, *, window: int | tuple[int, int] = 7, shift: int = 0, shift_single: bool = False
    ) -> None:
        super().__init__()
        self.heads, self.shift, self.shift_single = heads, shift, shift_single
        self.window = (window, window) if isinstance(window, int) else window
        T = self.window[0] * self.window[1]
        self.weight = nn.Parameter(torch.empty(heads, T, T))
        self.bias = nn.Parameter(torch.zeros(heads, T))
        nn.init.trunc_normal_(self.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        B, H, W, C = x.shape
        h, w = self.window
        shift = self.shift
        if not self.shift_single and (h >= H or w >= W):
            shift = 0
        x, where = windows.pad(x, self.window, "end")
        if shift:
            x = F.pad(x, (0, 0, w - shift, shift, h - shift, shift))
        Hp, Wp = x.shape[1:3]
        # (B, rows, h, columns, w, heads, d) -> (heads, h * w, B * windows * d): one product per head
        x = x.reshape(B, Hp // h, h, Wp // w, w, self.heads, C // self.heads)
        x = x.permute(5, 2, 4, 0, 1, 3, 6).reshape(self.heads, h * w, -1)
        x = torch.baddbmm(self.bias[:, :, None], self.weight, x)
        x = x.reshape(self.heads, h, w, B, Hp // h, Wp // w, C // self.heads)
        x = x.permute(3, 4, 1, 5, 2, 0, 6).reshape(B, Hp, Wp, C)
        if shift:
            x = x[:, h - shift : Hp - shift, w - shift : Wp - shift]
        return windows.crop(x, where)
