"""DualToken-ViT: local features by convolution, global ones by 7x7 tokens that keep their place in the image.

Paper: arXiv 2309.12424; no code was published. Reference: hunto/LightViT@e2452a1 (Apache-2.0, arXiv 2207.05557), for
the stem, merging and gates, which are LightViT's.
Differs: where the paper leaves a choice, as follows.

Certain: three stages; stem and merging; tokens that pass through all stages; the ConvNeXt block for local features;
a map reduced step by step, by a convolution and halving; self-attention on it; its weighted sum with the tokens; an MLP
of the tokens, over channels ("norm") or over tokens and channels ("mix"); cells that attend to the tokens; gates after
the MLP.
Our reading: a step is a residual separable convolution and a depthwise one of stride 2; the weight of the sum is one
learned number a block, 0.5 at first; the tokens' MLP is residual, two linear layers of equal width; local and global
features are added and projected; tokens start as a learned table and are widened as LightViT's are; pre-norms of eps
1e-6; the head is a norm, then the mean; drop path as LightViT's. Widths, depths and heads of s are those of LightViT-T
and its MLPs half as wide as there, t has three quarters of the width and two blocks less: with these s has 0.99 and t
0.50 GMACs (published: 1.0 and 0.5), the halvings of s cost 0.03 GMACs and 0.14 M parameters (step by step against at
once, published: 0.03 and 0.1), and "norm" costs a little more than "mix", as published. The published accuracies are
taken to be those of "mix".
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.config import merge
from core.errors import SettingError, expect_shape
from core.facts import Facts
from core.heads.classify import ClassifierHead
from core.layers import windows
from core.layers.convnext import ConvNeXtBlock
from core.layers.linear import Linear
from core.layers.mlp import MLP
from core.layers.patches import PatchMerging, to_channels_first
from core.layers.residual import DropPath, spread
from core.mixers.dual_token import BidirectionalGate, PositionAwareAttention, TokenMLP
from core.weights import KeyMap

FACTS = Facts(
    title="DualToken-ViT",
    paper="arXiv 2309.12424",
    licence="none published",
    top1={"t": 75.4, "s": 79.4},
    reading=True,
)
HEAD = ClassifierHead(norm=nn.LayerNorm, eps=1e-6, pool="mean")


@dataclass(frozen=True)
class DualTokenViTConfig:
    in_channels: int = 3
    dims: tuple[int, ...] = (64, 128, 256)  # channels of each stage
    depths: tuple[int, ...] = (2, 6, 6)
    heads: tuple[int, ...] = (2, 4, 8)
    mlp_ratios: tuple[float, ...] = (4, 2, 2)  # of the image's MLPs, per stage
    side: int = 7  # of the square of global tokens
    steps: tuple[int, ...] = (2, 1, 0)  # halvings of the map that meets the tokens; what is left is interpolated
    token_mlp: TokenMLP = "mix"  # "norm" works on channels alone, "mix" first on tokens, then on channels
    drop_path: float = 0.0  # of the last block; linear from 0


class Stem(nn.Module):
    """Image (B, C, H, W) -> (B, ceil(H / 8), ceil(W / 8), dim)."""

    def __init__(self, in_channels: int, dim: int) -> None:
        super().__init__()
        inner = dim // 2
        layers: list[nn.Module] = []
        for channels, stride, groups in ((in_channels, 2, 1), (inner, 1, inner), (inner, 1, inner), (inner, 2, inner)):
            conv = nn.Conv2d(channels, inner, 3, stride, 1, groups=groups, bias=False)
            layers += [conv, nn.BatchNorm2d(inner), nn.GELU()]
        self.convs = nn.Sequential(*layers, nn.Conv2d(inner, dim, 3, 2, 1))
        self.norm = nn.LayerNorm(dim)

    def forward(self, image: Tensor) -> Tensor:
        x = self.convs(image.contiguous(memory_format=torch.channels_last))
        return self.norm(x.permute(0, 2, 3, 1))


class Merging(PatchMerging):
    """2x2 cells to one, with a shortcut by their largest values: (B, H, W, C) -> (B, ceil(H/2), ceil(W/2), out).

    Where a side is odd, the zeros that complete the cells take part in the largest value. `widen` is for tokens.
    """

    def __init__(self, dim: int, out: int) -> None:
        super().__init__(dim, out)
        self.shortcut = Linear(dim, out, bias=False)
        self.token_norm, self.token_proj = nn.LayerNorm(dim), Linear(dim, out, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x, _ = windows.pad(x, (2, 2), "end")
        largest = F.max_pool2d(x.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)
        return super().forward(x) + self.shortcut(largest)

    def widen(self, tokens: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, out)."""
        return self.token_proj(self.token_norm(tokens))


class GatedMLP(nn.Module):
    """MLP, then gates over channels and positions: (B, H, W, C) -> the same."""

    def __init__(self, dim: int, ratio: float) -> None:
        super().__init__()
        self.mlp, self.gate = MLP(dim, ratio=ratio), BidirectionalGate(dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.gate(self.mlp(x))


class DualTokenBlock(nn.Module):
    """Local and global features, added and projected; gated MLP: (B, H, W, C) and tokens (B, N, C) -> the same."""

    def __init__(self, dim: int, mixer: PositionAwareAttention, ratio: float, drop_path: float) -> None:
        super().__init__()
        self.local, self.token_mixer, self.proj = ConvNeXtBlock(dim), mixer, Linear(dim, dim)
        self.norm, self.channel_mixer = nn.LayerNorm(dim, eps=1e-6), GatedMLP(dim, ratio)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        local = self.local(x)
        told, tokens = self.token_mixer(local, tokens)
        x = x + self.drop_path(self.proj(local + told))
        return x + self.drop_path(self.channel_mixer(self.norm(x))), tokens


class DualTokenStage(nn.Module):
    """Merging (of the image: the stem), then blocks; the map (B, h, w, C) and the tokens (B, N, C)."""

    def __init__(self, merge: nn.Module, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.merge, self.blocks = merge, nn.ModuleList(blocks)

    def forward(self, x: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        x = self.merge(x)
        if isinstance(self.merge, Merging):
            tokens = self.merge.widen(tokens)
        for block in self.blocks:
            x, tokens = block(x, tokens)
        return x, tokens


class DualTokenViT(nn.Module):
    """Image (B, C, H, W) -> pyramid, one (B, channels[i], h, w) per stage, for any H and W.

    The first level has ceil(H / 8) rows, each further one half of them, rounded up; columns likewise.
    """

    def __init__(self, config: DualTokenViTConfig) -> None:
        super().__init__()
        c = self.config = config
        lists = (c.dims, c.depths, c.heads, c.mlp_ratios, c.steps)
        if len({len(values) for values in lists}) > 1:
            raise SettingError(
                "dualtoken_vit: dims, depths, heads, mlp_ratios and steps have one entry a stage, "
                f"got {', '.join(str(len(v)) for v in lists)}"
            )
        self.channels = c.dims
        self.strides = tuple(8 * 2**i for i in range(len(c.dims)))
        self.global_tokens = nn.Parameter(torch.empty(1, c.side**2, c.dims[0]))
        rates = spread(c.drop_path, c.depths)
        stages = []
        for i, dim in enumerate(c.dims):
            blocks = []
            for rate in rates[i]:
                mixer = PositionAwareAttention(dim, c.heads[i], side=c.side, steps=c.steps[i], kind=c.token_mlp)
                blocks.append(DualTokenBlock(dim, mixer, c.mlp_ratios[i], rate))
            stages.append(DualTokenStage(Merging(c.dims[i - 1], dim) if i else Stem(c.in_channels, dim), blocks))
        self.stages = nn.ModuleList(stages)
        nn.init.trunc_normal_(self.global_tokens, std=0.02)
        self.apply(_start)

    def forward(self, image: Tensor) -> list[Tensor]:
        expect_shape(image, "B C H W", C=self.config.in_channels)
        x, tokens, pyramid = image, self.global_tokens.repeat(image.shape[0], 1, 1), []
        for stage in self.stages:
            x, tokens = stage(x, tokens)
            pyramid.append(to_channels_first(x))
        return pyramid


def _start(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


S = DualTokenViTConfig(drop_path=0.1)

VARIANTS = {
    "s": S,
    "s_norm": replace(S, token_mlp="norm"),
    "t": replace(S, dims=(48, 96, 192), depths=(2, 4, 6), heads=(1, 3, 6)),
}

build = DualTokenViT


def from_published(
    build: Mapping[str, Any], names: Mapping[str, Sequence[int]], base: DualTokenViTConfig = S
) -> DualTokenViTConfig:
    """`base`, settings of ours in `build`, then all that our own names and shapes show: there are no others."""
    base = merge(base, build)
    found = (re.match(r"backbone\.stages\.(\d+)\.blocks\.(\d+)\.", n) for n in names)
    blocks = sorted({(int(m[1]), int(m[2])) for m in found if m})
    if not blocks:
        return base
    depths = tuple(Counter(stage for stage, _ in blocks).values())
    at = [f"backbone.stages.{i}.blocks.0." for i in range(len(depths))]
    dims = tuple(names[f"{a}proj.weight"][0] for a in at)
    count = names["backbone.global_tokens"][1]
    reduce = r"backbone\.stages\.(\d+)\.blocks\.0\.token_mixer\.reduce\.\d+\.norm\.weight$"
    halvings = Counter(int(m[1]) for n in names if (m := re.match(reduce, n)))
    widths = {names[f"{a}token_mixer.mlp.fc1.weight"][0] for a in at}
    return replace(
        base,
        in_channels=names["backbone.stages.0.merge.convs.0.weight"][1],
        dims=dims,
        depths=depths,
        mlp_ratios=tuple(names[f"{a}channel_mixer.mlp.fc1.weight"][0] / d for a, d in zip(at, dims, strict=True)),
        side=math.isqrt(count),
        steps=tuple(halvings[i] for i in range(len(depths))),
        token_mlp="mix" if widths == {count} else "norm",
    )


PUBLISHED = (KeyMap(),)  # nothing was published; our own names
