"""Next-ViT: group convolutions, and at the end of each stage attention on a part of the channels.

Paper: arXiv 2207.05501. Reference: bytedance/Next-ViT@922e771 (Apache-2.0).
Differs: a third stage of a depth that is not in whole fives ends with a transformer block, too. The segmentation form
with norms between its stages is left out: as released it fails at its fourth output.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor, nn

from core.backbones._next_vit_layers import MLP, GroupConvolution, ReducedAttention, conv_norm, divisible, embedding
from core.backbones._next_vit_published import PUBLISHED as PUBLISHED
from core.backbones._next_vit_published import settings
from core.errors import SettingError, ShapeError, expect_shape
from core.facts import Facts
from core.heads.classify import ClassifierHead
from core.layers.residual import DropPath, spread
from core.weights import choose

FACTS = Facts(
    title="Next-ViT",
    paper="arXiv 2207.05501",
    licence="Apache-2.0",
    top1={"small": 82.5, "base": 83.2, "large": 83.6},
)
HEAD = ClassifierHead(norm=nn.BatchNorm2d, eps=1e-5, pool="mean")


@dataclass(frozen=True)
class NextViTConfig:
    in_channels: int = 3
    stem: tuple[int, int, int, int] = (64, 32, 64, 64)  # channels of its convolutions
    depths: tuple[int, ...] = (3, 4, 10, 3)
    dims: tuple[int, ...] = (96, 256, 512, 1024)  # channels of each level, and of transformer blocks
    conv_dims: tuple[int, ...] = (96, 192, 384, 768)  # channels of convolution blocks; the first stage has only these
    period: int = 5  # blocks of the third stage after which a transformer block comes again
    head_dim: int = 32  # channels of an attention head and of a group of the convolutions
    mix: float = 0.75  # of a transformer block's channels attend, in whole heads; the rest is convolved
    reductions: tuple[int, ...] = (8, 4, 2, 1)  # per stage: keys are means over runs of this number squared
    conv_ratio: float = 3.0  # inner width of a convolution block's MLP over its channels
    mlp_ratio: float = 2.0  # of a transformer block's
    drop_path: float = 0.0  # of the last block; linear from 0


class ConvolutionBlock(nn.Module):
    """Embedding, group convolution without a norm before it, MLP: (B, dim, H, W) -> (B, out, h, w) (NCB)."""

    def __init__(self, dim: int, out: int, *, halve: bool, drop_path: float, c: NextViTConfig) -> None:
        super().__init__()
        self.embedding = embedding(dim, out, halve=halve)
        self.token_mixer = GroupConvolution(out, c.head_dim)
        self.channel_mixer = MLP(out, c.conv_ratio)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embedding(x)
        x = x + self.drop_path(self.token_mixer(x))
        return x + self.drop_path(self.channel_mixer(x))


class TransformerBlock(nn.Module):
    """Attention, then a narrower group convolution of its result; both side by side through an MLP (NTB)."""

    def __init__(
        self, dim: int, out: int, *, halve: bool, reduction: int, drop_path: float, c: NextViTConfig
    ) -> None:  # fmt: skip
        super().__init__()
        attending = divisible(int(out * c.mix), c.head_dim)
        convolved = out - attending
        if convolved <= 0:
            raise SettingError(f"next_vit: {attending} of {out} channels would attend, and none be convolved")
        self.embedding = embedding(dim, attending, halve=halve)
        self.attention = ReducedAttention(attending, c.head_dim, reduction)
        self.narrow = embedding(attending, convolved)
        self.token_mixer = GroupConvolution(convolved, c.head_dim)
        self.channel_mixer = MLP(out, c.mlp_ratio)
        self.drop_attention = DropPath(c.mix * drop_path)
        self.drop_convolution = DropPath((1 - c.mix) * drop_path)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embedding(x)
        x = x + self.drop_attention(self.attention(x))
        y = self.narrow(x)
        y = y + self.drop_convolution(self.token_mixer(y))
        x = torch.cat([x, y], 1)
        return x + self.drop_path(self.channel_mixer(x))


def _kinds(c: NextViTConfig) -> list[list[bool]]:
    """Per stage and block: whether it is a transformer block."""
    kinds = []
    for i, depth in enumerate(c.depths):
        ends = {depth - 1} if i else set()
        if i == 2:
            ends |= set(range(c.period - 1, depth, c.period))
        kinds.append([j in ends for j in range(depth)])
    return kinds


class NextViT(nn.Module):
    """Image (B, C, H, W) -> pyramid, one (B, channels[i], ceil(H / strides[i]), ceil(W / strides[i])) per stage.

    Blocks are one flat list, as published: their names do not tell the stage. `stages` groups them.

    Raises:
        ShapeError: the image is so small that attention at some stage would have no keys.
    """

    def __init__(self, config: NextViTConfig) -> None:
        super().__init__()
        c = self.config = config
        if not len(c.depths) == len(c.dims) == len(c.conv_dims) == len(c.reductions):
            raise SettingError(
                f"next_vit: {len(c.depths)} depths, {len(c.dims)} dims, {len(c.conv_dims)} widths of convolution "
                f"blocks and {len(c.reductions)} reductions"
            )
        if wrong := [str(d) for d in (*c.dims[1:], *c.conv_dims) if d % c.head_dim]:
            raise SettingError(f"next_vit: heads of {c.head_dim} channels do not divide {', '.join(wrong)}")
        if c.dims[0] != c.conv_dims[0]:
            raise SettingError(f"next_vit: the first level has no transformer block, so {c.conv_dims[0]} channels")
        self.channels = c.dims
        self.strides = tuple(4 * 2**i for i in range(len(c.depths)))
        self.kinds = _kinds(c)
        widths = (c.in_channels, *c.stem)
        self.stem = nn.Sequential(
            *(
                nn.Sequential(conv_norm(a, b, 3, stride=2 if i in (0, 3) else 1), nn.ReLU(inplace=True))
                for i, (a, b) in enumerate(pairwise(widths))
            )
        )
        blocks: list[nn.Module] = []
        dim = c.stem[-1]
        for i, rates in enumerate(spread(c.drop_path, c.depths)):
            for j, rate in enumerate(rates):
                halve = i > 0 and j == 0
                if self.kinds[i][j]:
                    out = c.dims[i]
                    block: nn.Module = TransformerBlock(
                        dim, out, halve=halve, reduction=c.reductions[i], drop_path=rate, c=c
                    )
                else:
                    out = c.conv_dims[i]
                    block = ConvolutionBlock(dim, out, halve=halve, drop_path=rate, c=c)
                blocks.append(block)
                dim = out
        self.blocks = nn.ModuleList(blocks)
        bounds = [0, *accumulate(c.depths)]
        groups = [blocks[a:b] for a, b in pairwise(bounds)]
        groups[0] = [self.stem, *groups[0]]
        self._levels = tuple(nn.Sequential(*group) for group in groups)  # the same modules; a tuple registers nothing
        self.apply(_initialise)

    @property
    def stages(self) -> nn.ModuleList:
        """Item i makes level i from level i - 1, level 0 from the image."""
        return nn.ModuleList(self._levels)

    def forward(self, image: Tensor) -> list[Tensor]:
        size = expect_shape(image, "B C H W", C=self.config.in_channels)
        self._check(size["H"], size["W"])
        x, pyramid = image.contiguous(memory_format=torch.channels_last), []
        for level in self._levels:
            x = level(x)
            pyramid.append(x)
        return pyramid

    def _check(self, height: int, width: int) -> None:
        for stride, reduction, kinds in zip(self.strides, self.config.reductions, self.kinds, strict=True):
            if any(kinds) and -(-height // stride) * -(-width // stride) < reduction**2:
                side = stride * (reduction - 1) + 1
                raise ShapeError(
                    f"next_vit: an image of {height} x {width} pixels leaves attention at stride {stride} fewer than "
                    f"{reduction**2} positions and so no keys: resize or pad it to {side} x {side} or more"
                )


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


SMALL = NextViTConfig(drop_path=0.1)

VARIANTS = {
    "small": SMALL,
    "base": replace(SMALL, depths=(3, 4, 20, 3), drop_path=0.2),
    "large": replace(SMALL, depths=(3, 4, 30, 3), drop_path=0.2),
}

build = NextViT

_ARGUMENTS = {  # the authors' constructor arguments and our settings
    "depths": "depths", "sr_ratios": "reductions", "mix_block_ratio": "mix", "path_dropout": "drop_path",
}  # fmt: skip


def from_published(
    build: Mapping[str, Any], names: Mapping[str, Sequence[int]], base: NextViTConfig = SMALL
) -> NextViTConfig:
    """The variant that the authors' function name says ("nextvit_small"), then all that names and shapes show.

    Shapes say nothing of the reductions: they are the authors' argument, or those of `base`.
    """
    if build.get("with_extra_norm"):
        raise SettingError("next_vit: the form with extra norms between stages fails as released; there is none here")
    function = str(build.get("factory", build.get("class", ""))).removeprefix("nextvit_")
    base = VARIANTS.get(function, base)
    given = {ours: build[theirs] for theirs, ours in _ARGUMENTS.items() if theirs in build}
    given |= {k: tuple(given[k]) for k in ("depths", "reductions") if k in given}
    base = replace(base, **given)
    keymap = choose(PUBLISHED, names)
    ours = {mapped: tuple(shape) for n, shape in names.items() if (mapped := keymap.name(n))}
    return replace(base, **settings(ours, base.conv_dims)) if "backbone.stem.0.0.0.weight" in ours else base
