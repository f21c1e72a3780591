"""ViT-CoMer's layers: the companion network, its layers of multiple receptive fields, the ViT's padded windows."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.errors import SettingError
from core.layers import windows
from core.layers.attend import attend, merge_heads
from core.layers.convs import convolve, scale_and_shift
from core.layers.gelu import GELU
from core.layers.linear import Linear, linear
from core.mixers.attention import SelfAttention
from core.mixers.deformable import Sizes

LEVELS = 3  # maps that are exchanged
EPS = 1e-6  # of every LayerNorm


def norm(dim: int) -> nn.LayerNorm:
    return nn.LayerNorm(dim, eps=EPS)


def maps_of(tokens: Tensor, sizes: Sizes) -> list[Tensor]:
    """Cells of several maps, one map after the other and row-major, (B, N, C) -> one (B, h, w, C) per map, views."""
    parts = tokens.split([h * w for h, w in sizes], 1)
    return [part.unflatten(1, size) for part, size in zip(parts, sizes, strict=True)]


def tokens_of(maps: Sequence[Tensor]) -> Tensor:
    """Undo `maps_of`, with a copy."""
    return torch.cat([m.flatten(1, 2) for m in maps], 1)


def resized(x: Tensor, height: int, width: int) -> Tensor:
    """(B, H, W, C) -> (B, height, width, C), bilinear without aligned corners."""
    if x.shape[1:3] == (height, width):
        return x
    y = F.interpolate(x.permute(0, 3, 1, 2), size=(height, width), mode="bilinear", align_corners=False)
    return y.permute(0, 2, 3, 1)


class ConvNorm(nn.Module):
    """3x3 convolution, batch norm, ReLU: (B, C, H, W) -> (B, out, ceil(H / stride), ceil(W / stride))."""

    fusable = (("conv", "norm"),)

    def __init__(self, dim: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, out, 3, stride, 1, bias=False)
        self.norm: nn.Module = nn.BatchNorm2d(out)

    def forward(self, x: Tensor) -> Tensor:
        if self.training or isinstance(self.norm, nn.Identity):
            return F.relu_(self.norm(self.conv(x)))
        scale, shift = scale_and_shift(cast(nn.BatchNorm2d, self.norm))
        weight = self.conv.weight * scale[:, None, None, None]
        return F.relu_(F.conv2d(x, weight, shift, self.conv.stride, self.conv.padding))


class Companion(nn.Module):
    """Image (B, in_channels, H, W) -> maps (B, h, w, dim) with strides 4, 8, 16 and 32 (the paper's CNN branch)."""

    def __init__(self, in_channels: int, width: int, dim: int) -> None:
        super().__init__()
        widths = (width, 2 * width, 4 * width, 4 * width)
        self.stem = nn.Sequential(
            ConvNorm(in_channels, width, 2), ConvNorm(width, width, 1), ConvNorm(width, width, 1),
            nn.MaxPool2d(3, 2, 1),
        )  # fmt: skip
        self.steps = nn.ModuleList(ConvNorm(a, b, 2) for a, b in pairwise(widths))
        self.projections = nn.ModuleList(Linear(w, dim) for w in widths)

    def forward(self, image: Tensor) -> list[Tensor]:
        x = self.stem(image.contiguous(memory_format=torch.channels_last))
        found = [x]
        for step in self.steps:
            x = step(x)
            found.append(x)
        return [p(m.permute(0, 2, 3, 1)) for p, m in zip(self.projections, found, strict=True)]


class TwoKernels(nn.Module):
    """Depthwise 3x3 convolution of one half of the channels, 5x5 of the other; batch norm and GELU over both."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        half = dim // 2
        self.conv3 = nn.Conv2d(half, half, 3, padding=1, groups=half)
        self.conv5 = nn.Conv2d(half, half, 5, padding=2, groups=half)
        self.norm: nn.Module = nn.BatchNorm2d(dim)
        self.act = GELU()

    def forward(self, a: Tensor, b: Tensor) -> list[Tensor]:
        """Two halves (B, h, w, half) -> the same, in training (B, h, w, 2 * half), alone."""
        if self.training:
            x = torch.cat([convolve(self.conv3, a), convolve(self.conv5, b)], -1)
            return [self.act(self.norm(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))]
        found = []
        for conv, x, (weight, bias) in zip((self.conv3, self.conv5), (a, b), self._folded(), strict=True):
            y = F.conv2d(x.permute(0, 3, 1, 2), weight, bias, padding=conv.padding, groups=conv.groups)
            found.append(self.act(y.permute(0, 2, 3, 1)))
        return found

    def _folded(self) -> list[tuple[Tensor, Tensor]]:
        """Weight and bias of the two convolutions with their half of the norm."""
        layers: tuple[Any, ...] = (self.conv3, self.conv5)
        parts: list[tuple[Tensor, Tensor]] = [(conv.weight, conv.bias) for conv in layers]
        if not isinstance(self.norm, nn.Identity):
            halves = zip(*(v.chunk(2) for v in scale_and_shift(cast(nn.BatchNorm2d, self.norm))), strict=True)
            parts = [(w * s[:, None, None, None], b * s + t) for (w, b), (s, t) in zip(parts, halves, strict=True)]
        return parts

    def merged(self) -> TwoKernels:
        """The same function in evaluation without the norm, for core.compression.fold."""
        out: Any = copy.deepcopy(self)
        with torch.no_grad():
            exact = copy.deepcopy(self).double()._folded()
            for conv, (weight, bias) in zip((out.conv3, out.conv5), exact, strict=True):
                conv.weight.copy_(weight)
                conv.bias.copy_(bias)
        out.norm = nn.Identity()
        return cast(TwoKernels, out)


class ReceptiveFields(nn.Module):
    """Linear, two depthwise kernels (each map its own), GELU, Linear: maps (B, h, w, C) in and out (the paper's MRFP).

    No shortcut, and two GELUs follow each other. The hidden channels stay two halves wherever that is possible, so that
    none of them is copied out of a wider map and back.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        if hidden < 2 or hidden % 2:
            raise SettingError(f"vit_comer: half of the {hidden} hidden channels of {dim} go to each of two kernels")
        self.fc1 = Linear(dim, hidden)
        self.kernels = nn.ModuleList(TwoKernels(hidden) for _ in range(LEVELS))
        self.act = GELU()
        self.fc2 = Linear(hidden, dim)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        into = list(zip(self.fc1.weight.chunk(2), self.fc1.bias.chunk(2), strict=True))
        found = []
        for x, kernels in zip(maps, self.kernels, strict=True):
            x = x.contiguous()
            parts = kernels(*(linear(x, weight, bias) for weight, bias in into))
            back = (weight.contiguous() for weight in self.fc2.weight.chunk(len(parts), 1))
            done = [linear(self.act(p), w, b) for p, w, b in zip(parts, back, (self.fc2.bias, None), strict=False)]
            found.append(sum(done[1:], done[0]))
        return found


class PaddedWindows(SelfAttention):
    """`SelfAttention` inside windows, with the parameters of the layer given: (B, H, W, C) in and out.

    q, k and v are padded with zeros at the bottom and right, so padded keys and values are 0 and not the biases; no
    mask, they are attended to.
    """

    def __init__(self, layer: SelfAttention, window: int) -> None:
        super().__init__(layer.qkv.in_features, layer.heads, head_dim=layer.head_dim, dropout=layer.dropout)
        if layer.q_bias is not None or layer.bias_table is not None:
            raise SettingError("vit_comer: windows are for attention with one bias of q, k and v, or none, alone")
        self.qkv, self.proj, self.proj_dropout, self.scale = layer.qkv, layer.proj, layer.proj_dropout, layer.scale
        self.window = (window, window)

    def forward(self, x: Tensor) -> Tensor:
        qkv, where = windows.pad(self.qkv(x), self.window, "end")
        size = (qkv.shape[1], qkv.shape[2])
        parts = windows.partition(qkv, self.window).unflatten(-1, (3, self.heads, self.head_dim))
        q, k, v = parts.permute(2, 0, 3, 1, 4).unbind(0)  # each (B * windows, heads, T, d)
        if self.training and self.dropout:
            out = F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout, scale=self.scale)
        else:
            out = attend(q, k, v, scale=self.scale)
        out = windows.join(merge_heads(out), self.window, size)
        return self.proj_dropout(self.proj(windows.crop(out, where)))
