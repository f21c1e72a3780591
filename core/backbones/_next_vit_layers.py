"""Next-ViT's layers on maps (B, C, H, W) in channels-last memory."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn

from core.layers.attend import attend, merge_heads
from core.layers.convs import scale_and_shift
from core.layers.linear import Linear


def conv_norm(dim: int, out: int, kernel: int = 1, *, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(dim, out, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out))


def divisible(value: float, by: int) -> int:
    """The nearest multiple, half up, but not under 0.9 of the value."""
    nearest = max(by, int(value + by / 2) // by * by)
    return nearest + by if nearest < 0.9 * value else nearest


def embedding(dim: int, out: int, *, halve: bool = False) -> nn.Module:
    """(B, dim, H, W) -> (B, out, h, w): means of 2x2 cells where it halves (odd sides round up), then a 1x1 layer."""
    if not halve and dim == out:
        return nn.Identity()
    pool = nn.AvgPool2d(2, ceil_mode=True, count_include_pad=False) if halve else nn.Identity()
    return nn.Sequential(pool, conv_norm(dim, out))


class GroupConvolution(nn.Module):
    """3x3 convolution inside groups of channels, then across them: (B, C, H, W) in and out (MHCA, section 3.2)."""

    def __init__(self, dim: int, group: int) -> None:
        super().__init__()
        self.conv = conv_norm(dim, dim, 3, groups=dim // group)
        self.act = nn.ReLU(inplace=True)
        self.proj = Linear(dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(self.act(self.conv(x)).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ReducedAttention(nn.Module):
    """Pre-norm attention to the means of runs of `reduction` squared positions: (B, C, H, W) in and out (E-MHSA, 3.3).

    Runs follow the row-major scan, also over the ends of rows, and positions left over after the last whole run are not
    attended to. That is no pooling of squares, but what the published weights were trained with.
    """

    def __init__(self, dim: int, head_dim: int, reduction: int) -> None:
        super().__init__()
        self.heads, self.run = dim // head_dim, reduction**2
        self.norm: nn.Module = nn.BatchNorm2d(dim)
        self.norm_means: nn.Module = nn.BatchNorm1d(dim) if reduction > 1 else nn.Identity()
        self.q = Linear(dim, dim)
        self.kv = Linear(dim, 2 * dim)
        self.proj = Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        _, C, H, W = x.shape
        tokens = self.norm(x).permute(0, 2, 3, 1).flatten(1, 2)
        q = self.q(tokens).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = self.kv(self._reduced(tokens)).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        out = self.proj(merge_heads(attend(q, k, v)))
        return out.reshape(-1, H, W, C).permute(0, 3, 1, 2)

    def _reduced(self, tokens: Tensor) -> Tensor:
        """(B, N, C) -> (B, N // run, C)."""
        if self.run == 1:
            return tokens
        N = tokens.shape[1]
        means = tokens[:, : N - N % self.run].unflatten(1, (-1, self.run)).mean(2)
        return self.norm_means(means.transpose(1, 2)).transpose(1, 2)

    def merged(self) -> ReducedAttention:
        """The same function in evaluation with its norms inside q, k and v: a mean lets an affine map through."""
        out = copy.deepcopy(self)
        norms = [n for n in (self.norm, self.norm_means) if not isinstance(n, nn.Identity)]
        maps = [scale_and_shift(cast(nn.BatchNorm2d, n)) for n in norms]
        _take_in(out.q, maps[:1])
        _take_in(out.kv, maps)
        out.norm, out.norm_means = nn.Identity(), nn.Identity()
        return out


def _take_in(layer: nn.Linear, maps: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Make a linear layer the same layer after the maps x -> scale x + shift, the first of them first."""
    weight, bias = layer.weight.detach().double(), layer.bias.detach().double()
    for scale, shift in reversed(maps):
        weight, bias = weight * scale.double(), bias + weight @ shift.double()
    layer.weight, layer.bias = (nn.Parameter(v.to(layer.weight.dtype)) for v in (weight, bias))


class MLP(nn.Module):
    """BatchNorm, Linear, ReLU, Linear at each position: (B, C, H, W) in and out."""

    fusable = (("norm", "fc1"),)

    def __init__(self, dim: int, ratio: float) -> None:
        super().__init__()
        hidden = divisible(dim * ratio, 32)
        self.norm = nn.BatchNorm2d(dim)
        self.fc1, self.act, self.fc2 = Linear(dim, hidden), nn.ReLU(inplace=True), Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(self.norm(x).permute(0, 2, 3, 1)))).permute(0, 3, 1, 2)
