"""S2AFormer: convolution, attention by strips of a channel, local interaction and MLP in each block.

Paper: arXiv 2505.22195. Reference: none; no code and no weights were published.
Certain is what the abstract says: blocks that join convolution and attention (HPB), and attention with keys and values
of a smaller map and queries and keys of fewer channels (SSA). Digests of the paper add the order: three 3x3
convolutions, the first of stride 2, then four stages of strides 4, 8, 16 and 32, each a patch embedding and blocks of
four residual steps, a = DWConv(x) + x, b = SSA(LN(a)) + a, c = LIM(LN(b)) + b, MLP(LN(c)) + c; the smaller map comes by
a depthwise convolution, and softmax(Q K^T) weights V.
Our reading: a strip is one channel, so a head's query and key are numbers and their product is not scaled; values
have all channels, in heads of 32 (24 in small); squares of 8, 4, 2 and 1 cells a side become one key, with zeros
where the map ends inside, and a LayerNorm follows; queries, keys, values and the output projection have biases. DWConv
is 3x3 with bias; LIM a depthwise 3x3 and a 1x1 convolution, each with batch norm, GELU between. The stem is half as
wide as the first stage, with batch norm and GELU; embeddings are 3x3 of stride 2 with a LayerNorm; exact GELU;
LayerNorm eps 1e-6; weights start at a truncated normal of 0.02; levels of the pyramid are not normed; the head is a
norm, then the mean. Sizes are fitted to parameters and MACs of the paper's table, as igm503/heedless-backbones@61f2b9f
repeats it: MLP ratios of 3 in the light sizes and 4 in the others, widths of few kinds, and depths of which no
neighbour comes nearer. The larger of both deviations is 1.3 % in mini and at most 1 % in the others; the published
widths and depths are not known. Drop path is ours, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.errors import SettingError, expect_shape
from core.facts import Facts
from core.heads.classify import ClassifierHead
from core.layers.convs import ResidualDepthwise, convolve, scale_and_shift
from core.layers.linear import Linear, linear
from core.layers.mlp import MLP
from core.layers.patches import to_channels_first
from core.layers.residual import DropPath, Stage, spread
from core.mixers.strip_attention import StripAttention
from core.weights import KeyMap

FACTS = Facts(
    title="S2AFormer",
    paper="arXiv 2505.22195",
    licence="none published",
    top1={"mini": 75.1, "tiny": 77.7, "xs": 78.9, "small": 80.8, "medium": 82.3},
    reading=True,
)
HEAD = ClassifierHead(norm=nn.LayerNorm, eps=1e-6, pool="mean")

norm = partial(nn.LayerNorm, eps=1e-6)


@dataclass(frozen=True)
class S2AFormerConfig:
    in_channels: int = 3
    stem: int = 16  # channels of its three convolutions
    dims: tuple[int, ...] = (32, 64, 160, 320)  # channels of each stage
    depths: tuple[int, ...] = (1, 1, 1, 4)
    head_dim: int = 32  # channels of an attention head's values
    qk_dim: int = 1  # channels of a head's queries and keys
    reductions: tuple[int, ...] = (8, 4, 2, 1)  # per stage: side of the squares of cells that become one key
    mlp_ratio: float = 3.0
    drop_path: float = 0.0  # of the last block; linear from 0


class Stem(nn.Module):
    """Three 3x3 convolutions with batch norm and GELU: image (B, C, H, W) -> (B, ceil(H / 2), ceil(W / 2), dim)."""

    def __init__(self, in_channels: int, dim: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for channels, stride in ((in_channels, 2), (dim, 1), (dim, 1)):
            conv = nn.Conv2d(channels, dim, 3, stride, 1, bias=False)
            layers += [conv, nn.BatchNorm2d(dim), nn.GELU()]
        self.layers = nn.Sequential(*layers)

    def forward(self, image: Tensor) -> Tensor:
        x: Tensor = self.layers(image.contiguous(memory_format=torch.channels_last))
        return x.permute(0, 2, 3, 1)


class Embedding(nn.Module):
    """3x3 convolution of stride 2, LayerNorm: (B, H, W, C) -> (B, ceil(H / 2), ceil(W / 2), out)."""

    def __init__(self, dim: int, out: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(dim, out, 3, 2, 1), norm(out)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(convolve(self.conv, x))


class LocalInteraction(nn.Module):
    """Depthwise 3x3, batch norm, GELU, 1x1, batch norm: (B, H, W, C) in and out (LIM)."""

    fusable = (("conv", "norm1"), ("proj", "norm2"))  # for core.compression.fold

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, bias=False)
        self.norm1, self.act = nn.BatchNorm2d(dim), nn.GELU()
        self.proj = Linear(dim, dim, bias=False)
        self.norm2 = nn.BatchNorm2d(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 3, 1, 2)
        if self.training or isinstance(self.norm1, nn.Identity):  # folded for good by core.compression.fold
            x = self.act(self.norm1(self.conv(x)))
            return self.norm2(self.proj(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        s1, t1 = scale_and_shift(self.norm1)
        s2, t2 = scale_and_shift(self.norm2)
        x = self.act(F.conv2d(x, self.conv.weight * s1[:, None, None, None], t1, padding=1, groups=self.conv.groups))
        return linear(x.permute(0, 2, 3, 1), self.proj.weight * s2[:, None], t2)


class PerceptionBlock(nn.Module):
    """Convolution, attention, local interaction, MLP, all residual; (B, H, W, C) in and out (HPB)."""

    def __init__(self, c: S2AFormerConfig, stage: int, drop_path: float) -> None:
        super().__init__()
        dim = c.dims[stage]
        self.position = ResidualDepthwise(dim)
        self.norm1, self.norm2, self.norm3 = norm(dim), norm(dim), norm(dim)
        self.token_mixer = StripAttention(
            dim, dim // c.head_dim, reduction=c.reductions[stage], qk_dim=c.qk_dim
        )  # fmt: skip
        self.local = LocalInteraction(dim)
        self.channel_mixer = MLP(dim, ratio=c.mlp_ratio)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = self.position(x)
        x = x + self.drop_path(self.token_mixer(self.norm1(x)))
        x = x + self.drop_path(self.local(self.norm2(x)))
        return x + self.drop_path(self.channel_mixer(self.norm3(x)))


class S2AFormer(nn.Module):
    """Image (B, C, H, W) -> pyramid, one (B, channels[i], h, w) per stage, for any H and W.

    The first level has ceil(H / 4) rows, each further one half of them, rounded up; columns likewise.
    """

    def __init__(self, config: S2AFormerConfig) -> None:
        super().__init__()
        c = self.config = config
        lists = (c.dims, c.depths, c.reductions)
        if len({len(values) for values in lists}) > 1:
            raise SettingError(
                "s2aformer: dims, depths and reductions have one entry a stage, "
                f"got {', '.join(str(len(v)) for v in lists)}"
            )
        if wrong := [str(d) for d in c.dims if d % c.head_dim]:
            raise SettingError(f"s2aformer: heads of {c.head_dim} channels do not divide {', '.join(wrong)}")
        self.channels = c.dims
        self.strides = tuple(4 * 2**i for i in range(len(c.dims)))
        stages = []
        for i, rates in enumerate(spread(c.drop_path, c.depths)):
            embedding = Embedding(c.dims[i - 1] if i else c.stem, c.dims[i])
            merge = embedding if i else nn.Sequential(Stem(c.in_channels, c.stem), embedding)
            stages.append(Stage(merge, [PerceptionBlock(c, i, rate) for rate in rates]))
        self.stages = nn.ModuleList(stages)
        self.apply(_initialise)

    def forward(self, image: Tensor) -> list[Tensor]:
        expect_shape(image, "B C H W", C=self.config.in_channels)
        x, pyramid = image, []
        for stage in self.stages:
            x = stage(x)
            pyramid.append(to_channels_first(x))
        return pyramid


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


MINI = S2AFormerConfig()

VARIANTS = {
    "mini": MINI,
    "tiny": replace(MINI, depths=(2, 3, 4, 4)),
    "xs": replace(MINI, depths=(2, 3, 7, 4)),
    "small": replace(
        MINI, stem=24, dims=(48, 96, 192, 384), depths=(2, 2, 6, 4), head_dim=24, mlp_ratio=4.0, drop_path=0.1
    ),
    "medium": replace(
        MINI, stem=32, dims=(64, 128, 320, 512), depths=(2, 4, 11, 3), mlp_ratio=4.0, drop_path=0.1
    ),
}  # fmt: skip

build = S2AFormer


def from_published(
    build: Mapping[str, Any], names: Mapping[str, Sequence[int]], base: S2AFormerConfig = MINI
) -> S2AFormerConfig:
    """`base` with the input channels of a file of ours: the authors published none."""
    return replace(base, in_channels=names["backbone.stages.0.merge.0.layers.0.weight"][1])


PUBLISHED = (KeyMap(),)
