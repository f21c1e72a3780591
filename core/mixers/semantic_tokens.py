"""Semantic tokens: centres of clusters of a map, made by attention from pooled windows (STViT, arXiv 2303.08685).

Tokens lie on a grid (B, h, w, C) of `sample` x `sample` per window, row-major over the whole map.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.errors import SettingError
from core.layers import windows
from core.layers.attend import attend, merge_heads
from core.layers.convs import ResidualDepthwise
from core.layers.linear import Linear
from core.layers.mlp import MLP
from core.layers.positions import relative_index
from core.layers.residual import DropPath, LayerScale

HIDDEN = -1000.0  # added to the logits of keys outside the map
Mask = Literal["published", "whole", "none"]


def spans(window: int, sample: int) -> list[tuple[int, int]]:
    """First and past-the-last cell of each of `sample` overlapping parts of a window's side (adaptive pooling).

    >>> spans(7, 3)
    [(0, 3), (2, 5), (4, 7)]
    """
    return [(i * window // sample, -(-(i + 1) * window // sample)) for i in range(sample)]


def pooled(x: Tensor, window: int, sample: int) -> Tensor:
    """Adaptive max pooling of each window: (B, H, W, C) -> (B, H / window * sample, W / window * sample, C)."""
    B, H, W, C = x.shape
    parts = spans(window, sample)
    x = x.reshape(B, H // window, window, W // window, window, C)
    x = torch.stack([x[:, :, a:b].amax(2) for a, b in parts], 2)
    x = torch.stack([x[:, :, :, :, a:b].amax(4) for a, b in parts], 4)
    return x.reshape(B, H // window * sample, W // window * sample, C)


def patches(x: Tensor, size: int, stride: int) -> Tensor:
    """Overlapping patches of a map: (B, H, W, C) -> (B, rows, columns, C, size, size), a view."""
    return x.unfold(1, size, stride).unfold(2, size, stride)


def around(window: int, size: int) -> tuple[int, int]:
    """Cells before and after a window's side in the patch of `size` around it; the odd one comes after."""
    if size < window:
        raise SettingError(f"keys of a window of {window} cells come from at least as many, got {size}")
    return (size - window) // 2, -((window - size) // 2)


def key_mask(
    map_size: tuple[int, int], missing: tuple[int, int], size: int, window: int, *, published: bool = True,
    device: torch.device | None = None,
) -> Tensor | None:  # fmt: skip
    """Mask of the keys that `size` x `size` patches around windows take from outside the map.

    The published mask hides the border around the padded map, and of the padding inside it only where its rows and
    its columns meet. Without padding on a side the published slice `[-0:]` is that whole axis, so padding on the other
    side alone is hidden whole; where everything would be hidden, adding the same number to every logit hides nothing:
    then there is no mask and border keys count.

    Args:
        map_size: rows and columns of the padded map of keys.
        missing: its last rows and columns that are padding, by the published count (may exceed the map).
        size: side of a patch.
        window: side of a window in keys, the stride of patches.
        published: as above; else border and padding are hidden, always and whole.
        device: where it is built.

    Returns:
        (windows, 1, 1, size * size) of 0 and HIDDEN, None where nothing is hidden.
    """
    ends = [n - m for n, m in zip(map_size, missing, strict=True)]
    if published:
        ends = [end if m else 0 for end, m in zip(ends, missing, strict=True)]
        if max(ends) <= 0:
            return None
    row, column = (torch.arange(n, device=device) >= end for n, end in zip(map_size, ends, strict=True))
    hidden = row[:, None] & column[None, :] if published else row[:, None] | column[None, :]
    before, after = around(window, size)
    hidden = F.pad(hidden.float() * HIDDEN, (before, after, before, after), value=HIDDEN)
    return hidden.unfold(0, size, window).unfold(1, size, window).reshape(-1, 1, 1, size * size)


class CrossAttention(nn.Module):
    """Attention of queries (N, T, dim) to keys (N, K, dim), which are values, too: (N, T, dim).

    Args:
        dim: channels.
        heads: attention heads; they divide `dim`.
        qkv_bias: biases of both projections.
        scale: of the logits; head width ** -0.5 by default.
        grid: rows and columns of the tokens for a relative position bias; queries and keys are then these tokens.
        dropout: of the attention weights.
        proj_dropout: of the output.
    """

    bias_index: Tensor

    def __init__(
        self, dim: int, heads: int, *, qkv_bias: bool = True, scale: float | None = None,
        grid: tuple[int, int] | None = None, dropout: float = 0.0, proj_dropout: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        if dim % heads:
            raise SettingError(f"{dim} channels on {heads} heads")
        self.heads, self.scale, self.dropout = heads, scale, dropout
        self.q = Linear(dim, dim, bias=qkv_bias)
        self.kv = Linear(dim, 2 * dim, bias=qkv_bias)
        self.proj = Linear(dim, dim)
        self.proj_dropout = nn.Dropout(proj_dropout)
        self.bias_table = None
        if grid is not None:
            self.bias_table = nn.Parameter(torch.empty((2 * grid[0] - 1) * (2 * grid[1] - 1), heads))
            nn.init.trunc_normal_(self.bias_table, std=0.02)
            self.register_buffer("bias_index", relative_index(grid), persistent=False)

    def split(self, kv: Tensor) -> tuple[Tensor, Tensor]:
        """Projected keys (N, K, 2 dim) -> k and v, each (N, heads, K, d)."""
        k, v = kv.unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return k, v

    def split_patches(self, kv: Tensor, size: int, stride: int) -> tuple[Tensor, Tensor]:
        """`split` of a projected map (B, H, W, 2 dim) in overlapping patches, each (B * patches, heads, size^2, d)."""
        cut = patches(kv, size, stride).unflatten(3, (2, self.heads, -1))  # (B, r, c, 2, heads, d, size, size)
        cut = cut.permute(3, 0, 1, 2, 4, 6, 7, 5)
        k, v = cut.reshape(2, -1, self.heads, size * size, cut.shape[-1]).unbind(0)
        return k, v

    def attend(self, queries: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """Queries (N, T, dim) before their projection to split keys, `mask` broadcastable to the logits."""
        q = self.q(queries).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        if self.bias_table is not None:
            mask = self.bias_table[self.bias_index].permute(2, 0, 1)[None]
        if self.training and self.dropout:
            out = F.scaled_dot_product_attention(q, k, v, mask, self.dropout, scale=self.scale)
        else:
            out = attend(q, k, v, mask, scale=self.scale)
        return self.proj_dropout(self.proj(merge_heads(out)))

    def forward(self, queries: Tensor, keys: Tensor) -> Tensor:
        return self.attend(queries, *self.split(self.kv(keys)))


class TokenBlock(nn.Module):
    """What every semantic block is: norm, cross-attention, norm, MLP, with scaled residual branches.

    Here queries x (B, T, C) look at keys (B, K, C), by default at themselves; both go through the same norm.
    """

    def __init__(
        self, dim: int, token_mixer: CrossAttention, channel_mixer: MLP, *, drop_path: float = 0.0,
        layer_scale: float | None = 1e-5, eps: float = 1e-5,
    ) -> None:  # fmt: skip
        super().__init__()
        self.norm1, self.token_mixer = nn.LayerNorm(dim, eps), token_mixer
        self.norm2, self.channel_mixer = nn.LayerNorm(dim, eps), channel_mixer
        self.scale1 = nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale)
        self.scale2 = nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale)
        self.drop_path = DropPath(drop_path)

    def finish(self, shortcut: Tensor | None, attended: Tensor) -> Tensor:
        """Both residual sums; without a shortcut the scaled attention stands alone, and is never dropped."""
        attended = self.scale1(attended)
        x = attended if shortcut is None else shortcut + self.drop_path(attended)
        return x + self.drop_path(self.scale2(self.channel_mixer(self.norm2(x))))

    def forward(self, x: Tensor, keys: Tensor | None = None) -> Tensor:
        q = self.norm1(x)
        return self.finish(x, self.token_mixer(q, q if keys is None else self.norm1(keys)))


class LocalTokenBlock(TokenBlock):
    """Tokens look at the tokens of their own window: grid (B, h, w, C) -> the same."""

    def __init__(self, *args: object, sample: int, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self.window = (sample, sample)

    def forward(self, x: Tensor, keys: Tensor | None = None) -> Tensor:
        tokens = windows.partition(self.norm1(x), self.window)
        return self.finish(x, windows.join(self.token_mixer(tokens, tokens), self.window, (x.shape[1], x.shape[2])))


class GenerationBlock(TokenBlock):
    """Tokens of a map: (B, H, W, C) -> grid (B, h, w, C), in the published classification form.

    Each window's pooled cells look at themselves and at the patch of the map for their window, none of it padded.

    Args:
        window: side of a window in cells.
        sample: side of its tokens.
        size: side of the patch, which the map must hold as often as windows.
        stride: between patches.
        shortcut: add the pooled cells to what attention gives.
        positions: a residual depthwise convolution over each window's pooled cells.
    """

    def __init__(
        self, dim: int, token_mixer: CrossAttention, channel_mixer: MLP, *, window: int, sample: int, size: int,
        stride: int, shortcut: bool, positions: bool, drop_path: float = 0.0, layer_scale: float | None = 1e-5,
    ) -> None:  # fmt: skip
        super().__init__(dim, token_mixer, channel_mixer, drop_path=drop_path, layer_scale=layer_scale)
        self.window, self.sample, self.size, self.stride, self.shortcut = window, sample, size, stride, shortcut
        self.positions = ResidualDepthwise(dim) if positions else None

    def forward(self, x: Tensor, keys: Tensor | None = None) -> Tensor:
        cells = (self.sample, self.sample)
        tokens = pooled(x, self.window, self.sample)
        size = (tokens.shape[1], tokens.shape[2])
        if self.positions is not None:
            apart = windows.partition(tokens, cells).unflatten(1, cells)
            tokens = windows.join(self.positions(apart).flatten(1, 2), cells, size)
        mixer = self.token_mixer
        queries = windows.partition(self.norm1(tokens), cells)
        # A cell lies in up to four patches: it is normed and projected once, then cut.
        own = mixer.split(mixer.kv(queries))
        near = mixer.split_patches(mixer.kv(self.norm1(x)), self.size, self.stride)
        k, v = (torch.cat(pair, 2) for pair in zip(own, near, strict=True))
        attended = windows.join(mixer.attend(queries, k, v), cells, size)
        return self.finish(tokens if self.shortcut else None, attended)


class NeighbourBlock(TokenBlock):
    """Each window of one map looks at the surroundings of the same window in another: the published dense form.

    Queries (B, h, w, C) in windows of `ours`, keys (B, H, W, C) in as many windows of `theirs`; each window's keys are
    the `size` x `size` patch around its own. Outside the keys' map lie zeros, which become the norm's bias.
    """

    def __init__(
        self, dim: int, token_mixer: CrossAttention, channel_mixer: MLP, *, ours: int, theirs: int, size: int,
        drop_path: float = 0.0, layer_scale: float | None = 1e-5,
    ) -> None:  # fmt: skip
        super().__init__(dim, token_mixer, channel_mixer, drop_path=drop_path, layer_scale=layer_scale)
        self.ours, self.theirs, self.size = (ours, ours), theirs, size
        self.border = around(theirs, size)

    def forward(self, x: Tensor, keys: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        mixer, (before, after) = self.token_mixer, self.border
        queries = windows.partition(self.norm1(x), self.ours)
        kv = mixer.kv(self.norm1(x if keys is None else keys))
        outside = mixer.kv(self.norm1(kv.new_zeros(x.shape[-1])))
        kv = F.pad(kv - outside, (0, 0, before, after, before, after)) + outside
        k, v = mixer.split_patches(kv, self.size, self.theirs)
        if mask is not None:
            mask = mask.to(kv).repeat(x.shape[0], 1, 1, 1)
        attended = windows.join(mixer.attend(queries, k, v, mask), self.ours, (x.shape[1], x.shape[2]))
        return self.finish(x, attended)
