"""Factorized self-attention: one coarse global, one local and one dilated group of channels (FaViT)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from core.errors import SettingError
from core.layers import windows
from core.layers.attend import attend, merge_heads
from core.layers.convs import convolve
from core.layers.linear import Linear


class CoarseKeys(nn.Module):
    """Keys and values of one head from cells of `ratio` x `ratio`: (B, H, W, C) -> two of (B, 1, h * w, C).

    h = floor(H / ratio), w alike. Values get a depthwise 3x3 convolution of themselves added.
    """

    def __init__(self, dim: int, ratio: int, *, bias: bool) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(dim, dim, ratio, stride=ratio)
        self.norm = nn.LayerNorm(dim)
        self.kv = Linear(dim, 2 * dim, bias=bias)
        self.near = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        k, v = self.kv(self.norm(convolve(self.reduce, x))).chunk(2, dim=-1)
        v = v + convolve(self.near, v)
        return k.flatten(1, 2)[:, None], v.flatten(1, 2)[:, None]


class TappedKeys(nn.Module):
    """Keys and values from `window` x `window` taps of a map, each blended from every tile of it.

    (B, H, W, C) -> two of (B, heads, T, c), T = window * window taps and c = C / heads. The map is mirrored at the
    bottom and right to whole tiles with sides of (window - 1) * dilation + 1, and each tile is read at multiples of
    the dilation. Published pooling over the L tiles is kept as it is: for every head and tap the (L, c) numbers, row
    by row, are cut into c runs of L and each run is averaged, so channels of neighbouring tiles mix; only for L = 1 is
    that the mean over tiles which the paper describes.
    """

    def __init__(self, dim: int, heads: int, *, window: int, dilation: int, bias: bool) -> None:
        super().__init__()
        self.heads, self.window, self.dilation = heads, window, dilation
        width = dim // heads
        self.blend = Linear(width, width)
        self.kv = Linear(width, 2 * width, bias=bias)
        self.near = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def pooled(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, heads, T, c)."""
        M, side = self.window, (self.window - 1) * self.dilation + 1
        x, _ = windows.pad(x, (side, side), "reflect")
        B, H, W, C = x.shape
        x = x.reshape(B, H // side, side, W // side, side, C)[:, :, :: self.dilation, :, :: self.dilation]
        x = x.reshape(B, H // side, M, W // side, M, self.heads, C // self.heads).permute(0, 5, 2, 4, 1, 3, 6)
        return x.reshape(B, self.heads, M * M, C // self.heads, -1).mean(-1)  # the published runs of L numbers

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        k, v = self.kv(self.blend(self.pooled(x))).chunk(2, dim=-1)
        B, heads, T, c = v.shape
        image = v.transpose(2, 3).reshape(B, heads * c, self.window, self.window)
        return k, v + self.near(image).reshape(B, heads, c, T).transpose(2, 3)


class FactorizedAttention(nn.Module):
    """Every position to coarse cells, to local taps and to dilated taps, each in its own group of channels.

    (B, H, W, C) -> (B, H, W, C) (FaSA, arXiv 2312.08614, 3.2, in the form of the published code). With a `ratio` above
    1 the channels are split 2 : 7 : 7 (coarse, dilation 1, dilation `ratio`), else 1 : 7 (coarse, dilation 1). The
    coarse group is one head. Queries of the others lie interleaved, all groups inside each head; their keys and the
    output lie group by group.

    Args:
        dim: channels; 16 divides them (8 with a ratio of 1).
        heads: attention heads of the tapped groups; they divide each group.
        ratio: side of the coarse cells, and dilation of the second tapped group.
        window: taps on a side.
        qkv_bias: biases of the linear maps to q, k and v.

    Raises:
        ShapeError: a map too small to be mirrored: a side below a tile's must be more than half of it.
    """

    def __init__(self, dim: int, heads: int, *, ratio: int, window: int = 7, qkv_bias: bool = True) -> None:
        super().__init__()
        coarse, tapped = (dim // 8, (7 * dim // 16,) * 2) if ratio > 1 else (dim // 8, (7 * dim // 8,))
        if coarse + sum(tapped) != dim or tapped[0] % heads:
            raise SettingError(
                f"{dim} channels do not divide into groups of {'2 : 7 : 7' if ratio > 1 else '1 : 7'} and {heads} heads"
            )
        self.heads, self.groups, self.widths = heads, (coarse, *tapped), [n // heads for n in tapped]
        self.q = Linear(dim, dim, bias=qkv_bias)
        self.coarse = CoarseKeys(coarse, ratio, bias=qkv_bias)
        self.depthwise = nn.Conv2d(dim - coarse, dim - coarse, 3, padding=1, groups=dim - coarse)
        self.pointwise = nn.Conv2d(dim - coarse, dim - coarse, 1)
        self.tapped = nn.ModuleList(
            TappedKeys(n, heads, window=window, dilation=d, bias=qkv_bias)
            for n, d in zip(tapped, (1, ratio), strict=False)
        )
        self.proj = Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        B, H, W, C = x.shape
        coarse, rest = self.groups[0], C - self.groups[0]
        q = self.q(x).flatten(1, 2)
        first, near = x.split([coarse, rest], dim=-1)
        out = [attend(q[:, None, :, :coarse], *self.coarse(first)).squeeze(1)]
        near = convolve(self.pointwise, convolve(self.depthwise, near))
        queries = q[..., coarse:].unflatten(-1, (self.heads, -1)).transpose(1, 2).split(self.widths, dim=-1)
        for keys, part, query in zip(self.tapped, near.split(self.groups[1:], dim=-1), queries, strict=True):
            out.append(merge_heads(attend(query, *keys(part))))
        return self.proj(torch.cat(out, dim=-1)).reshape(B, H, W, C)
