"""SHViT: a stride-16 stem, three stages, and one attention head on a part of the channels.

Paper: arXiv 2401.16456. Reference: ysj9909/SHViT@6a729cc (MIT); timm's port (1.0.31, Apache-2.0) is read, too.
Differs: a distilled classifier answers the mean of its two heads in training as well; `head.both` gives the pair. Drop
path, which the published recipe leaves at 0, is left out.
"""

from __future__ import annotations

import copy
import re
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from core.errors import SettingError, expect_shape
from core.facts import Facts
from core.heads.classify import ClassifierHead
from core.layers.convs import SqueezeExcitation, scale_and_shift
from core.mixers.partial_attention import SingleHeadPartialAttention, conv_norm
from core.weights import KeyMap, choose

FACTS = Facts(
    title="SHViT",
    paper="arXiv 2401.16456",
    licence="MIT",
    top1={"s1": 72.8, "s2": 75.2, "s3": 77.4, "s4": 79.4},
    size={"s4": 256},
)


def head(backbone: Any, classes: int) -> nn.Module:
    """Mean, BatchNorm, Linear; of a distilled network two of them."""
    if backbone.config.distilled:
        return DistilledHead(backbone.channels[-1], classes)
    return ClassifierHead(norm=nn.BatchNorm2d, eps=1e-5, norm_first=False)(backbone, classes)


@dataclass(frozen=True)
class SHViTConfig:
    in_channels: int = 3
    dims: tuple[int, ...] = (128, 224, 320)  # channels of each stage
    depths: tuple[int, ...] = (2, 4, 5)  # blocks of each stage, those around its merging not counted
    partial: tuple[int, ...] = (32, 48, 68)  # channels that attend, per stage; unused where `attention` is off
    attention: tuple[bool, ...] = (False, True, True)  # stages with attention
    qk_dim: int = 16  # width of queries and keys
    distilled: bool = False  # two classifier heads


class Residual(nn.Module):
    """x + branch(x), (B, C, H, W) in and out."""

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


class Depthwise(Residual):
    """x + norm(depthwise 3x3 of x); `zero` starts as x itself."""

    def __init__(self, dim: int, *, zero: bool) -> None:
        super().__init__(conv_norm(dim, dim, 3, groups=dim, zero=zero))

    def merged(self) -> nn.Conv2d:
        """The same function in evaluation as one convolution: x is its own depthwise convolution with a centre of 1."""
        conv, norm = cast(Any, copy.deepcopy(self.branch))
        scale, shift = scale_and_shift(norm)
        weight = conv.weight.detach() * scale[:, None, None, None]
        weight[:, :, 1, 1] += 1
        conv.weight, conv.bias = nn.Parameter(weight.detach()), nn.Parameter(shift.detach())
        return cast(nn.Conv2d, conv)


def _channel_mixer(dim: int) -> Residual:
    """Two pointwise layers, twice as wide between them."""
    return Residual(nn.Sequential(conv_norm(dim, 2 * dim), nn.ReLU(), conv_norm(2 * dim, dim, zero=True)))


class SHViTBlock(nn.Module):
    """Depthwise 3x3, attention where there is a mixer, two pointwise layers, all residual; (B, C, H, W) in and out."""

    def __init__(self, dim: int, token_mixer: nn.Module | None) -> None:
        super().__init__()
        self.depthwise = Depthwise(dim, zero=True)
        self.token_mixer = token_mixer
        self.channel_mixer = _channel_mixer(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.depthwise(x)
        if self.token_mixer is not None:
            x = x + self.token_mixer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.channel_mixer(x)


class Merging(nn.Module):
    """Half the resolution, (B, C, H, W) -> (B, out, ceil(H / 2), ceil(W / 2)): an inverted bottleneck of width 4 C."""

    def __init__(self, dim: int, out: int) -> None:
        super().__init__()
        inner = 4 * dim
        self.widen = conv_norm(dim, inner)
        self.depthwise = conv_norm(inner, inner, 3, stride=2, groups=inner)
        self.se = SqueezeExcitation(inner, max(8, (dim + 4) // 8 * 8))  # a quarter, in whole eights
        self.narrow = conv_norm(inner, out)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.depthwise(self.act(self.widen(x))))
        return self.narrow(self.se(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))


def _stem(in_channels: int, dim: int) -> nn.Sequential:
    """(B, C, H, W) -> (B, dim, ceil(H / 16), ceil(W / 16)): four 3x3 convolutions of stride 2."""
    widths = (in_channels, dim // 8, dim // 4, dim // 2, dim)
    layers: list[nn.Module] = []
    for i in range(4):
        layers += [conv_norm(widths[i], widths[i + 1], 3, stride=2), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def _downsampling(dim: int, out: int) -> nn.Sequential:
    """Merging between two pairs of residual layers, on the old and on the new width."""
    before, after = (nn.Sequential(Depthwise(d, zero=False), _channel_mixer(d)) for d in (dim, out))
    return nn.Sequential(OrderedDict(before=before, merging=Merging(dim, out), after=after))


class SHViT(nn.Module):
    """Image (B, C, H, W) -> pyramid, one (B, channels[i], h, w) per stage, for any H and W.

    The first level has ceil(H / 16) rows, each further one half of them, rounded up; columns likewise.
    """

    def __init__(self, config: SHViTConfig) -> None:
        super().__init__()
        c = self.config = config
        if not len(c.dims) == len(c.depths) == len(c.partial) == len(c.attention):
            raise SettingError(
                f"shvit: {len(c.dims)} dims, {len(c.depths)} depths, {len(c.partial)} partial widths and "
                f"{len(c.attention)} stage types"
            )
        if wrong := [f"{p} of {d}" for p, d, on in zip(c.partial, c.dims, c.attention, strict=True) if on and p > d]:
            raise SettingError(f"shvit: more channels would attend than there are: {', '.join(wrong)}")
        if c.dims[0] % 8:
            raise SettingError(f"shvit: the stem needs a first width in whole eights, got {c.dims[0]}")
        self.channels = c.dims
        self.strides = tuple(16 * 2**i for i in range(len(c.dims)))
        stages = []
        for i, dim in enumerate(c.dims):
            mixers = [
                SingleHeadPartialAttention(dim, c.partial[i], qk_dim=c.qk_dim) if c.attention[i] else None
                for _ in range(c.depths[i])
            ]
            merge = _downsampling(c.dims[i - 1], dim) if i else _stem(c.in_channels, dim)
            blocks = nn.Sequential(*(SHViTBlock(dim, mixer) for mixer in mixers))
            stages.append(nn.Sequential(OrderedDict(merge=merge, blocks=blocks)))
        self.stages = nn.ModuleList(stages)

    def forward(self, image: Tensor) -> list[Tensor]:
        expect_shape(image, "B C H W", C=self.config.in_channels)
        x, pyramid = image.contiguous(memory_format=torch.channels_last), []
        for stage in self.stages:
            x = stage(x)
            pyramid.append(x)
        return pyramid


class DistilledHead(nn.Module):
    """Last level (B, C, H, W) -> logits (B, classes), the mean of two heads."""

    takes = "pyramid"
    fusable = (("norm", "fc"), ("norm_distilled", "fc_distilled"))

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__()
        self.norm, self.norm_distilled = nn.BatchNorm1d(dim), nn.BatchNorm1d(dim)
        self.fc, self.fc_distilled = nn.Linear(dim, classes), nn.Linear(dim, classes)
        for fc in (self.fc, self.fc_distilled):
            nn.init.trunc_normal_(fc.weight, std=0.02)
            nn.init.zeros_(fc.bias)

    def both(self, pyramid: list[Tensor]) -> tuple[Tensor, Tensor]:
        """The two logits, (B, classes) each: of the class and of the teacher's answer."""
        x = pyramid[-1].mean((2, 3))
        return self.fc(self.norm(x)), self.fc_distilled(self.norm_distilled(x))

    def forward(self, pyramid: list[Tensor]) -> Tensor:
        first, second = self.both(pyramid)
        return (first + second) / 2


S1 = SHViTConfig()

VARIANTS = {
    "s1": S1,
    "s2": replace(S1, dims=(128, 308, 448), partial=(32, 66, 96)),
    "s3": replace(S1, dims=(192, 352, 448), depths=(3, 5, 5), partial=(48, 75, 96)),
    "s4": replace(S1, dims=(224, 336, 448), depths=(4, 7, 6), partial=(48, 72, 96)),
}

build = SHViT


def from_published(build: Mapping[str, Any], names: Mapping[str, Sequence[int]], base: SHViTConfig = S1) -> SHViTConfig:
    """The variant that the authors' function name says ("shvit_s1"), then all that parameter names and shapes show."""
    base = VARIANTS.get(str(build.get("fn", "")).removeprefix("shvit_"), base)
    keymap = choose(PUBLISHED, names)
    ours = {mapped: tuple(shape) for n, shape in names.items() if (mapped := keymap.name(n))}
    stem = ours.get("backbone.stages.0.merge.0.0.weight")
    if stem is None:
        return base
    found = (re.match(r"backbone\.stages\.(\d+)\.blocks\.(\d+)\.", n) for n in ours)
    blocks = sorted({(int(m[1]), int(m[2])) for m in found if m})
    depths = tuple(Counter(stage for stage, _ in blocks).values())
    first = [f"backbone.stages.{i}.blocks.0." for i in range(len(depths))]
    qkv = [ours.get(f"{block}token_mixer.qkv.0.weight") for block in first]
    unused = dict(enumerate(base.partial))
    widths = [(shape[0] - shape[1]) // 2 for shape in qkv if shape]
    return replace(
        base,
        in_channels=stem[1],
        dims=tuple(ours[f"{block}depthwise.branch.0.weight"][0] for block in first),
        depths=depths,
        partial=tuple(shape[1] if shape else unused.get(i, 0) for i, shape in enumerate(qkv)),
        attention=tuple(shape is not None for shape in qkv),
        qk_dim=widths[0] if widths else base.qk_dim,
        distilled="head.fc_distilled.weight" in ours,
    )


def _matrix(value: Tensor) -> Tensor:
    """(out, in, 1, 1) -> (out, in)."""
    return value.flatten(1)


_PIECES = [  # what both name alike
    (r"^patch_embed\.", "backbone.stages.0.merge."),
    (r"\.conv\.m\.", ".depthwise.branch."),
    (r"\.mixer\.m\.pre_norm\.", ".token_mixer.norm."),
    (r"\.mixer\.m\.proj\.1\.", ".token_mixer.proj."),
    (r"\.mixer\.m\.qkv\.", ".token_mixer.qkv."),
    (r"\.ffn\.m\.pw1\.", ".channel_mixer.branch.0."),
    (r"\.ffn\.m\.pw2\.", ".channel_mixer.branch.2."),
    (r"\.m\.pw1\.", ".branch.0."),
    (r"\.m\.pw2\.", ".branch.2."),
    (r"\.m\.", ".branch."),
    (r"\.conv1\.", ".widen."),
    (r"\.conv2\.", ".depthwise."),
    (r"\.conv3\.", ".narrow."),
    (r"\.c\.", ".0."),
    (r"^head\.bn\.", "head.norm."),
    (r"^head\.l\.", "head.fc."),
    (r"^head_dist\.bn\.", "head.norm_distilled."),
    (r"^head_dist\.l\.", "head.fc_distilled."),
    (r"\.bn\.", ".1."),
]
_MATRICES = {r"\.se\.fc\d\.weight$": _matrix}
_MOST = 64  # blocks of a stage, and then some
PUBLISHED = (
    KeyMap(  # timm: its downsampling is one flat list
        rename=[
            (r"^stages\.(\d+)\.downsample\.([01])\.", r"backbone.stages.\1.merge.before.\2."),
            (r"^stages\.(\d+)\.downsample\.2\.", r"backbone.stages.\1.merge.merging."),
            (r"^stages\.(\d+)\.downsample\.3\.", r"backbone.stages.\1.merge.after.0."),
            (r"^stages\.(\d+)\.downsample\.4\.", r"backbone.stages.\1.merge.after.1."),
            (r"^stages\.", "backbone.stages."),
            *_PIECES,
        ],
        transform=_MATRICES,
        when=r"^stages\.\d+\.blocks\.",
    ),
    KeyMap(  # stages count from 1, and from the second on downsampling is their first three blocks
        rename=[
            (r"^blocks1\.", "backbone.stages.0.blocks."),
            (r"^(blocks\d+)\.0\.", r"\1.merge.before."),
            (r"^(blocks\d+)\.1\.", r"\1.merge.merging."),
            (r"^(blocks\d+)\.2\.", r"\1.merge.after."),
            *((rf"^(blocks\d+)\.{i + 3}\.", rf"\1.blocks.{i}.") for i in range(_MOST)),
            *((rf"^blocks{i + 1}\.", f"backbone.stages.{i}.") for i in range(1, 9)),
            *_PIECES,
        ],
        transform=_MATRICES,
    ),
)
