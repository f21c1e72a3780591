"""MAFormer: windows and a shortened stream of the whole map, fused by attention token by token.

Paper: arXiv 2209.01620. Reference: none; no code and no weights were published (others of this name are not it).
Certain is what the abstract says: a branch of window attention, a global branch of learned down-sampling (GLD) over the
whole image, a fusion of both by attention. A later paper restates the form: these blocks in the early stages and plain
transformer blocks in the later ones; local L = MLP(LN(L')) + L', L' = LWA(LN(X)) + X in windows of 7; global
G = FC(X) + positions, the FC along the tokens from M to M / 2; fusion softmax(Q K^T / sqrt(d)) V, Q of L, K and V of G.
Our reading: two early stages; patches by 7x7 convolution of stride 4, merging by 3x3 of stride 2, LayerNorm after each;
windows with Swin's position bias, without shift, the map padded at the bottom and right without a mask; an FC to each
block, with bias, and a learned table of positions; fusion in heads of 32 channels with a LayerNorm on both
inputs and an output projection, added to L; MLP ratio 4, exact GELU, q, k, v biases, LayerNorm eps 1e-6; weights start
at a truncated normal of 0.02. A map of another size than the one built for is resized to it before the FC: cost then
grows linearly with the area in the early stages. The paper's table was not to be had: widths are those of Swin's and
CSWin's sizes, and the depth of the third stage is the one at which parameters and MACs come nearest to what is
remembered of that table, which nobody could verify.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from core.errors import SettingError, expect_shape
from core.facts import Facts
from core.heads.classify import ClassifierHead
from core.layers.mlp import MLP
from core.layers.patches import to_channels_first
from core.layers.residual import Block, DropPath, Stage, spread
from core.mixers.attention import SelfAttention
from core.mixers.scale_fusion import GlobalTokens, ScaleFusion
from core.mixers.window import WindowAttention
from core.weights import KeyMap

FACTS = Facts(title="MAFormer", paper="arXiv 2209.01620", licence="none published", top1={"large": 85.9}, reading=True)
HEAD = ClassifierHead(norm=nn.LayerNorm, eps=1e-6, pool="mean")

norm = partial(nn.LayerNorm, eps=1e-6)


@dataclass(frozen=True)
class MAFormerConfig:
    in_channels: int = 3
    dims: tuple[int, ...] = (64, 128, 256, 512)  # channels of each stage
    depths: tuple[int, ...] = (2, 2, 5, 2)
    fused: tuple[bool, ...] = (True, True, False, False)  # stages of fusion blocks; the others attend everywhere
    head_dim: int = 32  # channels of an attention head
    window: int = 7  # side of the local branch's windows
    token_ratio: float = 0.5  # global tokens over positions
    built_size: int = 224  # side of the image that the global branch is built for; maps of others are resized for it
    mlp_ratio: float = 4.0
    drop_path: float = 0.0  # of the last block; linear from 0


class Embedding(nn.Module):
    """Overlapping convolution, LayerNorm: channels-last (B, H, W, C) -> (B, ceil(H / s), ceil(W / s), dim)."""

    def __init__(self, in_channels: int, dim: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, dim, kernel, stride, kernel // 2)
        self.norm = norm(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
        return self.norm(self.conv(x).permute(0, 2, 3, 1))


class FusionBlock(nn.Module):
    """Local branch and global branch of one input, then the fusion of both; (B, H, W, C) in and out (MAF)."""

    def __init__(self, c: MAFormerConfig, stage: int, drop_path: float) -> None:
        super().__init__()
        dim, side = c.dims[stage], -(-c.built_size // (4 * 2**stage))
        heads = dim // c.head_dim
        self.local = Block(
            dim, WindowAttention(dim, heads, window=c.window), MLP(dim, ratio=c.mlp_ratio),
            drop_path=drop_path, norm=norm,
        )  # fmt: skip
        self.tokens = GlobalTokens(dim, (side, side), c.token_ratio)
        self.norm_local, self.norm_tokens = norm(dim), norm(dim)
        self.fusion = ScaleFusion(dim, heads)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        local, tokens = self.local(x), self.tokens(x)
        out: Tensor = local + self.drop_path(self.fusion(self.norm_local(local), self.norm_tokens(tokens)))
        return out


class MAFormer(nn.Module):
    """Image (B, C, H, W) -> pyramid, one (B, channels[i], h, w) per stage, for any H and W.

    The first level has ceil(H / 4) rows, each further one half of them, rounded up; columns likewise.
    """

    def __init__(self, config: MAFormerConfig) -> None:
        super().__init__()
        c = self.config = config
        lists = (c.dims, c.depths, c.fused)
        if len({len(values) for values in lists}) > 1:
            raise SettingError(
                f"maformer: dims, depths and fused have one entry a stage, got {', '.join(str(len(v)) for v in lists)}"
            )
        if wrong := [str(d) for d in c.dims if d % c.head_dim]:
            raise SettingError(f"maformer: heads of {c.head_dim} channels do not divide {', '.join(wrong)}")
        self.channels = c.dims
        self.strides = tuple(4 * 2**i for i in range(len(c.dims)))
        rates = spread(c.drop_path, c.depths)
        stages = []
        for i, dim in enumerate(c.dims):
            merge = Embedding(c.dims[i - 1], dim, 3, 2) if i else Embedding(c.in_channels, dim, 7, 4)
            stages.append(Stage(merge, [_block(c, i, rate) for rate in rates[i]]))
        self.stages = nn.ModuleList(stages)
        self.apply(_initialise)

    def forward(self, image: Tensor) -> list[Tensor]:
        expect_shape(image, "B C H W", C=self.config.in_channels)
        x, pyramid = image.permute(0, 2, 3, 1), []
        for stage in self.stages:
            x = stage(x)
            pyramid.append(to_channels_first(x))
        return pyramid


def _block(c: MAFormerConfig, stage: int, drop_path: float) -> nn.Module:
    if c.fused[stage]:
        return FusionBlock(c, stage, drop_path)
    dim = c.dims[stage]
    mixer = SelfAttention(dim, dim // c.head_dim)
    return Block(dim, mixer, MLP(dim, ratio=c.mlp_ratio), drop_path=drop_path, norm=norm)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


SMALL = MAFormerConfig(drop_path=0.1)

VARIANTS = {
    "small": SMALL,
    "base": replace(SMALL, dims=(96, 192, 384, 768), depths=(2, 2, 11, 2), drop_path=0.3),
    "large": replace(SMALL, dims=(128, 256, 512, 1024), depths=(2, 2, 19, 2), drop_path=0.5),
}

build = MAFormer


def from_published(
    build: Mapping[str, Any], names: Mapping[str, Sequence[int]], base: MAFormerConfig = SMALL
) -> MAFormerConfig:
    """`base` with the input channels of a file of ours: the authors published none."""
    return replace(base, in_channels=names["backbone.stages.0.merge.conv.weight"][1])


PUBLISHED = (KeyMap(),)
