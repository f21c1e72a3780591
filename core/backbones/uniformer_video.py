"""UniFormer on clips: convolution over space and time where maps are large, self-attention over all of a clip's cells.

Paper: arXiv 2201.04676, extended in arXiv 2201.09450. Reference: Sense-X/UniFormer@52a0415 (Apache-2.0), its video
classification. Weights of images are inflated: each kernel repeated along time and divided by its length.
Differs: a clip is one tensor, not the first entry of a list; light models prune the patches of each clip by index and
in training answer the mean of their two heads' logits; weights must fit one to one, where the published code skips what
does not. In evaluation batch norms are computed as part of the weights beside them. The kernels' inflation at their
middle alone, which no published recipe uses, is left out.

A variant's number is that of its frames, in light ones with their side (`xxs_4x128`); `small` and `base` take 16
frames, `xxs` and `xs` 32. Their accuracy is that on Kinetics-400, with 8 frames from every 8th of a video and more from
every 4th; weights for other data sets fit the same variants. Something-Something's expect frames in blue, green, red.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from core.backbones._uniformer_video_layers import ClipEmbedding, SplitBlock
from core.backbones._uniformer_video_published import PUBLISHED as PUBLISHED
from core.backbones._uniformer_video_published import arguments, shapes
from core.errors import SettingError, ShapeError, expect_shape
from core.facts import Facts
from core.heads.classify import ClassifierHead, LightHead
from core.layers.local_global import GlobalBlock, LocalBlock, Merging, OverlappingStem
from core.layers.mlp import MLP
from core.layers.residual import Stage, spread
from core.mixers.attention import SelfAttention
from core.mixers.token_pruning import Carried, LightStage, PruningBlock


def _something(*top1: float) -> dict[str, float]:
    """Of both versions of Something-Something, each from the weights of Kinetics-400 and of Kinetics-600."""
    names = [f"Something-Something V{v} top-1 from K{k}" for v in (1, 2) for k in (400, 600)]
    return dict(zip(names, top1, strict=True))


FACTS = Facts(
    title="UniFormer (video)",
    paper="arXiv 2201.04676",
    licence="Apache-2.0",
    data="Kinetics-400",
    classes=400,
    top1={
        "small_8": 78.4, "small": 80.8, "small_32": 82.0, "base_8": 79.8, "base": 82.0, "base_32": 82.9,
        "xxs_4x128": 63.2, "xxs_4x160": 65.8, "xxs_8x128": 68.3, "xxs_8x160": 71.4, "xxs_16x128": 73.3,
        "xxs_16x160": 75.1, "xxs": 77.9, "xs": 78.6,
    },
    scores={
        "small": {
            "Kinetics-600 top-1": 82.8, **_something(57.2, 57.6, 67.7, 69.4), "UCF101 top-1": 98.3, "HMDB51 top-1": 77.5
        },
        "small_32": _something(58.8, 59.9, 69.0, 70.4),
        "base": {"Kinetics-600 top-1": 84.0, **_something(59.1, 58.8, 70.4, 70.2)},
        "base_32": {"Kinetics-600 top-1": 84.5, **_something(60.9, 61.0, 71.1, 71.2)},
    },
    size={
        "small_8": (8, 224, 224), "small": (16, 224, 224), "small_32": (32, 224, 224), "small_split": (16, 224, 224),
        "small_std": (16, 224, 224), "base_8": (8, 224, 224), "base": (16, 224, 224), "base_32": (32, 224, 224),
        "xxs_4x128": (4, 128, 128), "xxs_4x160": (4, 160, 160), "xxs_8x128": (8, 128, 128), "xxs_8x160": (8, 160, 160),
        "xxs_16x128": (16, 128, 128), "xxs_16x160": (16, 160, 160), "xxs": (32, 160, 160), "xs": (32, 192, 192),
    },
)  # fmt: skip


def head(backbone: Any, classes: int) -> nn.Module:
    """Batch norm, mean over space and time, Linear; light models have a head on their class token too."""
    dim = backbone.channels[-1]
    if backbone.config.keep is not None:
        return LightHead(dim, classes)
    return ClassifierHead(norm=nn.BatchNorm3d, eps=1e-5, pool="mean")(backbone, classes)


@dataclass(frozen=True)
class UniFormerVideoConfig:
    in_channels: int = 3
    dims: tuple[int, ...] = (64, 128, 320, 512)
    depths: tuple[int, ...] = (3, 4, 8, 3)  # two stages of local blocks, two of global ones
    head_dim: int = 64  # of the global blocks; the weights' shapes do not tell it
    mlp_ratio: float = 4.0
    attention: Literal["joint", "split"] = "joint"  # over space and time, or first over time and then over space
    merging_frames: int = 1  # that the halvings of the map see at once; 3 in the published option STD
    keep: float | tuple[tuple[float, ...], ...] | None = None  # light models: share of patches that go through each
    # deep block but the first, or through each of stages 3 and 4; None: no class token, another stem
    layer_scale: float | None = None  # of light models, its start; None for none
    qkv_bias: bool = True
    scale: float | None = None  # of q; head_dim ** -0.5 by default
    drop_path: float = 0.0  # of the last block; linear from 0 over all blocks


class UniFormerVideo(nn.Module):
    """Clip (B, C, T, H, W) -> pyramid, one (B, channels[i], t, h, w) per stage.

    Frames are halved once, rounded up; rows and columns are divided by 4, 8, 16 and 32, rounded down at each step, by
    the stem of light models up.

    Raises:
        ShapeError: frames too small to be rounded down, or no clip.
    """

    def __init__(self, config: UniFormerVideoConfig) -> None:
        super().__init__()
        c = self.config = config
        shares = _check(c)
        self.channels, self.strides = c.dims, ((2, 4, 4), (2, 8, 8), (2, 16, 16), (2, 32, 32))
        self.prefix = 0 if c.keep is None else 1
        rates = spread(c.drop_path, c.depths)
        stages: list[nn.Module] = []
        for i, dim in enumerate(c.dims):
            merge = _merge(c, i)
            if i < 2:
                ratio, start = c.mlp_ratio, c.layer_scale
                made = [LocalBlock(dim, mlp_ratio=ratio, drop_path=r, layer_scale=start, axes=3) for r in rates[i]]
                stages.append(Stage(merge, made))
            elif c.keep is None:
                stages.append(Stage(merge, [_block(c, dim, rate) for rate in rates[i]]))
            else:
                pairs = zip(shares[i - 2], rates[i], strict=True)
                pruning = [_pruning_block(c, dim, keep, rate) for keep, rate in pairs]
                stages.append(LightStage(merge, pruning, dim, before=None if i == 2 else c.dims[2]))
        self.stages = nn.ModuleList(stages)
        _initialise(self)

    def forward(self, clip: Tensor) -> list[Tensor]:
        return self._run(clip)[0]

    def tokens(self, clip: Tensor) -> Tensor:
        """The last level's cells, in light models after the class token: (B, prefix + N, C)."""
        pyramid, token = self._run(clip)
        patches = pyramid[-1].flatten(2).transpose(1, 2)
        return patches if token is None else torch.cat([token, patches], 1)

    def _run(self, clip: Tensor) -> tuple[list[Tensor], Tensor | None]:
        size = expect_shape(clip, "B C T H W", C=self.config.in_channels)
        least = 32 if self.config.keep is None else 29
        if min(size["H"], size["W"]) < least or not size["T"]:
            given = f"{size['T']} of {size['H']} x {size['W']}"
            raise ShapeError(f"uniformer_video takes one frame and more of {least} pixels a side and more, got {given}")
        x: Any = clip
        pyramid, token = [], None
        for stage in self.stages:
            x = stage(x)
            token, level = (x.token, x.map) if isinstance(x, Carried) else (None, x)
            pyramid.append(level.movedim(-1, 1))
        return pyramid, token


def _check(c: UniFormerVideoConfig) -> tuple[tuple[float, ...], ...]:
    """Refuse settings that do not fit; the share of patches of each block of stages 3 and 4, () without pruning."""
    if not len(c.dims) == len(c.depths) == 4:
        raise SettingError(f"uniformer_video: four stages, got {len(c.dims)} dims and {len(c.depths)} depths")
    if wrong := [d for d in c.dims[2:] if d % c.head_dim]:
        raise SettingError(f"uniformer_video: {wrong[0]} channels do not divide into heads of {c.head_dim}")
    if c.merging_frames not in (1, 3):
        raise SettingError(f"uniformer_video: the halvings see 1 or 3 frames at once, got {c.merging_frames}")
    if c.keep is None:
        if c.layer_scale is not None:
            raise SettingError("uniformer_video: light models alone have layer scale")
        return ()
    if c.attention == "split":
        raise SettingError("uniformer_video: light models attend to space and time jointly")
    shares = _shares(c.keep, c.depths)
    if tuple(map(len, shares)) != c.depths[2:]:
        raise SettingError(f"uniformer_video: keep needs a share for each of {c.depths[2:]} blocks, got {c.keep}")
    if any(not 0 < share <= 1 for stage in shares for share in stage):
        raise SettingError(f"uniformer_video: keep has shares above 0 and up to 1, got {c.keep}")
    if shares[0] and shares[0][0] != 1:
        raise SettingError(f"uniformer_video: the first deep block keeps all patches, got {shares[0][0]}")
    return shares


def _shares(keep: float | tuple[tuple[float, ...], ...], depths: tuple[int, ...]) -> tuple[tuple[float, ...], ...]:
    """Of patches, for each block of stages 3 and 4; one number is that of all blocks but the first."""
    if not isinstance(keep, tuple):
        return (1.0, *[keep] * (depths[2] - 1)), (keep,) * depths[3]
    return keep


def _merge(c: UniFormerVideoConfig, stage: int) -> nn.Module:
    dim = c.dims[stage]
    if stage:
        return Merging(c.dims[stage - 1], dim, axes=3, frames=c.merging_frames)
    if c.keep is None:
        return ClipEmbedding(c.in_channels, dim)
    return OverlappingStem(c.in_channels, dim, strides=((1, 2, 2), (2, 2, 2)))


def _attention(c: UniFormerVideoConfig, dim: int) -> SelfAttention:
    mixer = SelfAttention(dim, dim // c.head_dim, qkv_bias="full" if c.qkv_bias else "none")
    mixer.scale = c.head_dim**-0.5 if c.scale is None else c.scale
    return mixer


def _block(c: UniFormerVideoConfig, dim: int, drop_path: float) -> nn.Module:
    mlp = MLP(dim, ratio=c.mlp_ratio)
    if c.attention == "split":
        return SplitBlock(dim, _attention(c, dim), _attention(c, dim), mlp, drop_path=drop_path)
    return GlobalBlock(dim, _attention(c, dim), mlp, drop_path=drop_path, axes=3)


def _pruning_block(c: UniFormerVideoConfig, dim: int, keep: float, drop_path: float) -> nn.Module:
    """Attention and scores in float32, as the published class that the recipes use has them."""
    return PruningBlock(
        dim, dim // c.head_dim, mlp_ratio=c.mlp_ratio, qkv_bias=c.qkv_bias, scale=c.scale, keep=keep,
        drop_path=drop_path, layer_scale=c.layer_scale, axes=3, wide=True,
    )  # fmt: skip


def _initialise(network: UniFormerVideo) -> None:
    """Linear maps of the deep stages; 1x1 convolutions of the shallow ones keep the framework's start.

    Attention over time starts by adding nothing, with a gradient only because its last weights are 1 and not 0, too.
    """
    for stage in network.stages[2:]:
        for module in stage.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for module in stage.modules():
            if isinstance(module, SplitBlock):
                time: Any = module.time_mixer
                nn.init.zeros_(time.qkv.weight)
                nn.init.ones_(time.proj.weight)


SMALL = UniFormerVideoConfig(drop_path=0.1)
BASE = replace(SMALL, depths=(5, 8, 20, 7), drop_path=0.3)
XXS = UniFormerVideoConfig(
    dims=(56, 112, 224, 448), depths=(2, 5, 8, 2), head_dim=28, mlp_ratio=3.0, keep=0.5, drop_path=0.05
)
XS = replace(XXS, dims=(64, 128, 256, 512), depths=(3, 5, 9, 3), head_dim=32, drop_path=0.1)

VARIANTS = {
    "small_8": SMALL,
    "small": SMALL,
    "small_32": SMALL,
    "small_split": replace(SMALL, attention="split"),
    "small_std": replace(SMALL, merging_frames=3),
    "base_8": BASE,
    "base": BASE,
    "base_32": BASE,
    "xxs_4x128": XXS,
    "xxs_4x160": XXS,
    "xxs_8x128": XXS,
    "xxs_8x160": XXS,
    "xxs_16x128": XXS,
    "xxs_16x160": XXS,
    "xxs": XXS,
    "xs": XS,
}

build = UniFormerVideo


def from_published(
    build: Mapping[str, Any], names: Mapping[str, Sequence[int]], base: UniFormerVideoConfig = SMALL
) -> UniFormerVideoConfig:
    """The authors' settings as ours; what they leave open by names and shapes, of clips or of images to be inflated.

    The width of heads shows in no shape. Where nobody states it, it is that of `base` if the network has its widths and
    form, else that of the first variant that has.
    """
    given = arguments(build)
    seen = shapes(names)
    light = given.pop("light") or "keep" in given
    if seen:
        light, scaled = seen.pop("light"), bool(seen.pop("scaled"))
        seen["layer_scale"] = (base.layer_scale or 1.0) if scaled else None
    given = seen | given
    given["keep"] = given.get("keep", base.keep or 0.5) if light else None
    if not light or (seen and not scaled):
        given["layer_scale"] = None  # the configuration's start of it, in a class that has none
    merged = replace(base, **given)
    if "head_dim" not in given:
        merged = replace(merged, head_dim=_head_dim(merged, base))
    return merged


def _head_dim(found: UniFormerVideoConfig, base: UniFormerVideoConfig) -> int:
    for known in (base, *VARIANTS.values()):
        if known.dims == found.dims and (known.keep is None) == (found.keep is None):
            return known.head_dim
    return base.head_dim
