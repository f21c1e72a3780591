"""FMViT: low frequencies by attention and high ones by convolution, side by side; branches that fold for inference.

Paper: arXiv 2311.05707. Reference: none, tany0699/FMViT@40b6bbf (Apache-2.0) is a readme without code or weights.
Certain is what the abstract says: convolution blocks (CFB) and blocks that mix several frequencies, a multi-group
re-parameterised MLP (gMLP) and a lightweight re-parameterised attention (RLMHSA), folded for inference.
Our reading: stages, stem, the ratios of both MLPs and the places of mixing blocks are Next-ViT's, whose line this
continues. Widths and depths are fitted to parameters and MACs of the paper's table, as it is repeated in
igm503/heedless-backbones@e67cc36, its parameters taken for those of the folded network: base and large have Next-ViT's
widths and tiny a quarter of them, small and medium widths of powers of two; the third stage is the deepest, and no
neighbouring depth comes nearer. Parameters and MACs are off by 0.3 and 0.8 % in tiny, -1.3 and 0.6 % in small, 0.7 and
-0.9 % in medium, 0.0 and -0.2 % in base, -0.4 and -0.7 % in large; the published widths and depths are not known, and
drop path is ours, too.
gMLP: both layers of the MLP are sums of 1x1 layers in 1, 2 and 4 groups and, at equal widths, of the input, each with
its batch norm. RLMHSA: Next-ViT's attention on a true 2-D mean of squares, its four maps such sums, queries and keys
half as wide as values, one batch norm before. CFB: 3x3 in groups of a head's width beside 1x1 and identity, ReLU, 1x1;
then gMLP. Mixing: three quarters of the channels are low (attention), the rest high, one half convolved from the
low ones after attention and one from those before it; all go side by side through gMLP.
Differs: in evaluation the branches are already one layer, so the MACs are those of the folded network; parameters count
every branch of training, 39.0 M in base, of which folding leaves the 24.3 M that the table is compared with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from core.errors import SettingError, expect_shape
from core.facts import Facts
from core.heads.classify import ClassifierHead
from core.layers.branches import BranchedConv, GroupedLinear
from core.layers.linear import Linear
from core.layers.residual import DropPath, spread
from core.mixers.light_attention import LightAttention
from core.weights import KeyMap

FACTS = Facts(
    title="FMViT",
    paper="arXiv 2311.05707",
    licence="none published",
    top1={"tiny": 72.9, "small": 78.5, "medium": 80.3, "base": 82.4, "large": 83.3},
    reading=True,
)
HEAD = ClassifierHead(norm=nn.BatchNorm2d, eps=1e-5, pool="mean")


@dataclass(frozen=True)
class FMViTConfig:
    in_channels: int = 3
    stem: tuple[int, int, int, int] = (64, 32, 64, 64)  # channels of its convolutions
    depths: tuple[int, ...] = (2, 4, 5, 3)
    dims: tuple[int, ...] = (96, 256, 512, 1024)  # channels of each level, and of mixing blocks
    conv_dims: tuple[int, ...] = (96, 192, 384, 768)  # channels of convolution blocks; the first stage has only these
    period: int = 5  # blocks of the third stage after which a mixing block comes again
    head_dim: int = 32  # channels of an attention head's values and of a group of the 3x3 convolutions
    low: float = 0.75  # of a mixing block's channels attend, in whole heads; the rest is convolved
    high_paths: int = 2  # 1: convolved from the low frequencies after attention alone; 2: and from those before it
    reductions: tuple[int, ...] = (8, 4, 2, 1)  # per stage: side of the squares whose means are keys
    narrowing: float = 0.5  # channels of a query over those of a value
    groups: tuple[int, ...] = (1, 2, 4)  # group counts of the branches of every folded linear map
    conv_ratio: float = 3.0  # inner width of a convolution block's MLP over its channels
    mlp_ratio: float = 2.0  # of a mixing block's
    drop_path: float = 0.0  # of the last block; linear from 0


def conv_norm(dim: int, out: int, kernel: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(dim, out, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(out))


def embedding(dim: int, out: int, *, halve: bool = False) -> nn.Module:
    """(B, dim, H, W) -> (B, out, h, w): means of 2x2 cells where it halves (odd sides round up), then a 1x1 layer."""
    if not halve and dim == out:
        return nn.Identity()
    pool = nn.AvgPool2d(2, ceil_mode=True, count_include_pad=False) if halve else nn.Identity()
    return nn.Sequential(pool, conv_norm(dim, out, 1))


class GroupConvolution(nn.Module):
    """Branched 3x3 convolution inside groups of channels, ReLU, then across them: (B, C, H, W) in and out."""

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.conv = BranchedConv(dim, dim // width)
        self.proj = Linear(dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(self.conv(x).relu().permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class GroupMLP(nn.Module):
    """BatchNorm, grouped layers, ReLU, grouped layers at each position: (B, C, H, W) in and out (gMLP)."""

    fusable = (("norm", "fc1"),)  # once both are linear layers

    def __init__(self, dim: int, ratio: float, groups: Sequence[int]) -> None:
        super().__init__()
        hidden = int(dim * ratio)
        self.norm = nn.BatchNorm2d(dim)
        self.fc1, self.act, self.fc2 = GroupedLinear(dim, hidden, groups), nn.ReLU(), GroupedLinear(hidden, dim, groups)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc2(self.act(self.fc1(self.norm(x).permute(0, 2, 3, 1))))
        return x.permute(0, 3, 1, 2)


class ConvolutionBlock(nn.Module):
    """Embedding, group convolution, gMLP: (B, dim, H, W) -> (B, out, h, w) (CFB)."""

    def __init__(self, dim: int, out: int, *, halve: bool, drop_path: float, c: FMViTConfig) -> None:
        super().__init__()
        self.embedding = embedding(dim, out, halve=halve)
        self.token_mixer = GroupConvolution(out, c.head_dim)
        self.channel_mixer = GroupMLP(out, c.conv_ratio, c.groups)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embedding(x)
        x = x + self.drop_path(self.token_mixer(x))
        return x + self.drop_path(self.channel_mixer(x))


class HighPath(nn.Module):
    """To fewer channels, then a group convolution on top: (B, dim, H, W) -> (B, out, H, W)."""

    def __init__(self, dim: int, out: int, width: int, drop_path: float) -> None:
        super().__init__()
        self.narrow, self.token_mixer = embedding(dim, out), GroupConvolution(out, width)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = self.narrow(x)
        return x + self.drop_path(self.token_mixer(x))


class MixingBlock(nn.Module):
    """Embedding; low by attention, high of the low, high of the input; side by side through gMLP."""

    def __init__(
        self, dim: int, out: int, *, halve: bool, reduction: int, drop_path: float, c: FMViTConfig
    ) -> None:  # fmt: skip
        super().__init__()
        low = round(out * c.low / c.head_dim) * c.head_dim
        high, rest = divmod(out - low, c.high_paths)
        if low <= 0 or high <= 0 or rest or high % c.head_dim:
            raise SettingError(
                f"fmvit: of {out} channels {low} would attend, and {out - low} do not divide into {c.high_paths} "
                f"paths of whole groups of {c.head_dim}"
            )
        self.embedding = embedding(dim, low, halve=halve)
        self.attention = LightAttention(
            low, low // c.head_dim, reduction=reduction, narrowing=c.narrowing, groups=c.groups
        )
        share = (1 - c.low) * drop_path
        self.high = nn.ModuleList(HighPath(low, high, c.head_dim, share) for _ in range(c.high_paths))
        self.channel_mixer = GroupMLP(out, c.mlp_ratio, c.groups)
        self.drop_attention, self.drop_path = DropPath(c.low * drop_path), DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embedding(x)
        low = x + self.drop_attention(self.attention(x))
        x = torch.cat([low, *(path(y) for path, y in zip(self.high, (low, x), strict=False))], 1)
        return x + self.drop_path(self.channel_mixer(x))


class FMViT(nn.Module):
    """Image (B, C, H, W) -> pyramid, one (B, channels[i], ceil(H / strides[i]), ceil(W / strides[i])) per stage."""

    def __init__(self, config: FMViTConfig) -> None:
        super().__init__()
        c = self.config = config
        if not len(c.depths) == len(c.dims) == len(c.conv_dims) == len(c.reductions):
            raise SettingError(
                f"fmvit: {len(c.depths)} depths, {len(c.dims)} dims, {len(c.conv_dims)} widths of convolution "
                f"blocks and {len(c.reductions)} reductions"
            )
        if wrong := [str(d) for d in (*c.dims[1:], *c.conv_dims) if d % c.head_dim]:
            raise SettingError(f"fmvit: heads of {c.head_dim} channels do not divide {', '.join(wrong)}")
        if c.dims[0] != c.conv_dims[0]:
            raise SettingError(f"fmvit: the first level has no mixing block, so {c.conv_dims[0]} channels")
        if c.high_paths not in (1, 2):
            raise SettingError(f"fmvit: one or two paths of high frequencies, got {c.high_paths}")
        self.channels = c.dims
        self.strides = tuple(4 * 2**i for i in range(len(c.depths)))
        widths = (c.in_channels, *c.stem)
        layers: list[nn.Module] = []
        for i, (a, b) in enumerate(pairwise(widths)):
            layers += [conv_norm(a, b, 3, 2 if i in (0, 3) else 1), nn.ReLU(inplace=True)]
        stages, dim = [], c.stem[-1]
        for i, rates in enumerate(spread(c.drop_path, c.depths)):
            for j, rate in enumerate(rates):
                halve = i > 0 and j == 0
                if _mixes(c, i, j):
                    out, reduction = c.dims[i], c.reductions[i]
                    layers.append(MixingBlock(dim, out, halve=halve, reduction=reduction, drop_path=rate, c=c))
                else:
                    out = c.conv_dims[i]
                    layers.append(ConvolutionBlock(dim, out, halve=halve, drop_path=rate, c=c))
                dim = out
            stages.append(nn.Sequential(*layers))
            layers = []
        self.stages = nn.ModuleList(stages)
        self.apply(_initialise)

    def forward(self, image: Tensor) -> list[Tensor]:
        expect_shape(image, "B C H W", C=self.config.in_channels)
        x, pyramid = image.contiguous(memory_format=torch.channels_last), []
        for stage in self.stages:
            x = stage(x)
            pyramid.append(x)
        return pyramid


def _mixes(c: FMViTConfig, stage: int, block: int) -> bool:
    """Whether a block is one that mixes frequencies: the last of stages 2 to 4, in the third every `period`th, too."""
    if not stage:
        return False
    return block == c.depths[stage] - 1 or (stage == 2 and (block + 1) % c.period == 0)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


BASE = FMViTConfig(drop_path=0.1)

VARIANTS = {
    "tiny": replace(
        BASE, stem=(16, 8, 16, 16), depths=(2, 2, 9, 3), dims=(24, 64, 128, 256), conv_dims=(24, 48, 96, 192),
        head_dim=8, drop_path=0.0,
    ),
    "small": replace(
        BASE, stem=(16, 8, 16, 16), depths=(1, 2, 11, 4), dims=(32, 128, 256, 512), conv_dims=(32, 64, 128, 256),
        head_dim=16, drop_path=0.0,
    ),
    "medium": replace(
        BASE, stem=(32, 16, 32, 32), depths=(1, 2, 13, 3), dims=(64, 128, 256, 512), conv_dims=(64, 128, 256, 512),
        head_dim=16,
    ),
    "base": BASE,
    "large": replace(BASE, depths=(4, 2, 17, 2), drop_path=0.2),
}  # fmt: skip

build = FMViT


def from_published(
    build: Mapping[str, Any], names: Mapping[str, Sequence[int]], base: FMViTConfig = BASE
) -> FMViTConfig:
    """`base` with the input channels of a file of ours: the authors published none."""
    return replace(base, in_channels=names["backbone.stages.0.0.0.weight"][1])


PUBLISHED = (KeyMap(),)
