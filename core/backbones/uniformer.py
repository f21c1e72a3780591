"""UniFormer: convolution mixes where maps are large, self-attention over the whole map where they are small.

Paper: arXiv 2201.09450. Reference: Sense-X/UniFormer@52a0415 (Apache-2.0), its image classification (light models and
token labelling too), detection, segmentation and pose code.
Differs: the plain classification form takes any size of 32 pixels and more, as the dense code does, and not the
published one alone; light models prune the patches of each image by index, in any precision, and in training answer the
mean of their two heads' logits. In evaluation batch norms are computed as part of the weights beside them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from core.backbones._uniformer_heads import Box, TokenLabelHead, swapped
from core.backbones._uniformer_layers import OverlappingMerging, WindowedAttention
from core.backbones._uniformer_published import ARGUMENTS, shapes
from core.backbones._uniformer_published import PUBLISHED as PUBLISHED
from core.errors import SettingError, ShapeError, expect_shape
from core.facts import Facts
from core.heads.classify import ClassifierHead, LightHead
from core.layers.local_global import GlobalBlock, LocalBlock, Merging, OverlappingStem, block_norm
from core.layers.mlp import MLP
from core.layers.patches import PatchEmbedding, to_channels_first
from core.layers.residual import Stage, spread
from core.mixers.attention import SelfAttention
from core.mixers.token_pruning import Carried, LightStage, PruningBlock

FACTS = Facts(
    title="UniFormer",
    paper="arXiv 2201.09450",
    licence="Apache-2.0",
    top1={
        "small": 82.9, "small_plus": 83.4, "base": 83.8, "base_ls": 83.9,
        "small_tl": 83.4, "small_plus_tl": 83.9, "base_tl": 85.1, "large_ls": 85.6,
        "small_tl_dim64": 83.4, "small_plus_tl_dim64": 83.6, "base_tl_dim64": 84.8,
        "small_tl_384": 84.6, "small_plus_tl_384": 84.9, "base_tl_384": 86.0, "large_ls_384": 86.3,
        "xxs": 80.6, "xxs_192": 79.9, "xxs_160": 79.1, "xxs_128": 76.8, "xs": 82.0, "xs_192": 81.5,
    },
    size={
        "small_tl_384": 384, "small_plus_tl_384": 384, "base_tl_384": 384, "large_ls_384": 384,
        "xxs_192": 192, "xxs_160": 160, "xxs_128": 128, "xs_192": 192,
    },
)  # fmt: skip


def head(backbone: Any, classes: int) -> nn.Module:
    """Batch norm, mean, Linear; light models have a head on their class token too, token labelling a dense one."""
    c, dim = backbone.config, backbone.channels[-1]
    if c.keep is not None:
        return LightHead(dim, classes)
    if c.token_labels:
        return TokenLabelHead(dim, classes, backbone.strides)
    return ClassifierHead(norm=nn.BatchNorm2d, eps=1e-5, pool="mean")(backbone, classes)


@dataclass(frozen=True)
class UniFormerConfig:
    in_channels: int = 3
    dims: tuple[int, ...] = (64, 128, 320, 512)
    depths: tuple[int, ...] = (3, 4, 8, 3)  # two stages of local blocks, two of global ones
    head_dim: int = 64  # of the global blocks; the weights' shapes do not tell it
    mlp_ratio: float = 4.0
    overlap: Literal["none", "stem", "all"] = "none"  # overlapping convolutions in front of stage 1, of all stages
    keep: float | None = None  # light models: share of patches that go through a deep block; None for all, no token
    windows: Literal["none", "all", "hybrid"] = "none"  # blocks of stage 3 in windows: hybrid, all but each fourth
    window: int = 14  # side in cells of those windows
    norms: tuple[int, ...] = ()  # levels with an output LayerNorm; the published dense form has all
    layer_scale: float | None = None  # its start; None for none
    scaled: Literal["global", "all"] = "global"  # blocks that have layer scale; token labelling has it in all
    token_labels: bool = False  # a dense head beside the usual one, heard in evaluation
    qkv_bias: bool = True
    scale: float | None = None  # of q; head_dim ** -0.5 by default
    drop_path: float = 0.0  # of the last block; linear from 0 over all blocks


class UniFormer(nn.Module):
    """Image (B, C, H, W) -> pyramid, one (B, channels[i], h, w) per stage, strides 4, 8, 16 and 32.

    Sides are rounded down at each step, by overlapping convolutions up. In the dense form each level is normed; the
    un-normed map goes on.

    Raises:
        ShapeError: an image too small to be rounded down five times.
    """

    def __init__(self, config: UniFormerConfig) -> None:
        super().__init__()
        c = self.config = config
        _check(c)
        self.channels, self.strides = c.dims, (4, 8, 16, 32)
        self.prefix = 0 if c.keep is None else 1
        rates = spread(c.drop_path, c.depths)
        stages: list[nn.Module] = []
        for i, dim in enumerate(c.dims):
            merge = _merge(c, i)
            if i < 2:
                start = c.layer_scale if c.scaled == "all" else None
                made = [LocalBlock(dim, mlp_ratio=c.mlp_ratio, drop_path=r, layer_scale=start) for r in rates[i]]
                stages.append(Stage(merge, made))
            elif c.keep is None:
                stages.append(Stage(merge, [_block(c, i, j, rate) for j, rate in enumerate(rates[i])]))
            else:
                pruning = [_pruning_block(c, i, j, rate) for j, rate in enumerate(rates[i])]
                stages.append(LightStage(merge, pruning, dim, before=None if i == 2 else c.dims[2]))
        self.stages = nn.ModuleList(stages)
        self.norms = nn.ModuleList(block_norm(d) if i in c.norms else nn.Identity() for i, d in enumerate(c.dims))
        _initialise(self)

    def forward(self, image: Tensor) -> list[Tensor]:
        return self._run(image)[0]

    def tokens(self, image: Tensor) -> Tensor:
        """The last level's cells, in light models after the class token: (B, prefix + N, C)."""
        pyramid, token = self._run(image)
        patches = pyramid[-1].flatten(2).transpose(1, 2)
        return patches if token is None else torch.cat([token, patches], 1)

    def mixed(self, image: Tensor, box: Box) -> list[Tensor]:
        """The pyramid of a batch whose first maps, fresh from the embedding, have swapped a box (MixToken).

        Args:
            image: (B, C, H, W).
            box: top, left, bottom and right in cells of the first level, the last two outside.
        """
        return self._run(image, box)[0]

    def _run(self, image: Tensor, box: Box | None = None) -> tuple[list[Tensor], Tensor | None]:
        size = expect_shape(image, "B C H W", C=self.config.in_channels)
        least = {"none": 32, "stem": 29, "all": 1}[self.config.overlap]
        if min(size["H"], size["W"]) < least:
            raise ShapeError(f"uniformer takes {least} pixels a side and more, got {size['H']} x {size['W']}")
        x: Any = image
        pyramid, token = [], None
        for i, (stage, norm) in enumerate(zip(self.stages, self.norms, strict=True)):
            x = stage(x) if i or box is None else self._swapping(x, box)
            token, level = (x.token, x.map) if isinstance(x, Carried) else (None, x)
            pyramid.append(to_channels_first(norm(level)))
        return pyramid, token

    def _swapping(self, image: Tensor, box: Box) -> Tensor:
        first: Any = self.stages[0]
        x: Tensor = first.blocks(swapped(first.merge(image), box))
        return x


def _check(c: UniFormerConfig) -> None:
    if not len(c.dims) == len(c.depths) == 4:
        raise SettingError(f"uniformer: four stages, got {len(c.dims)} dims and {len(c.depths)} depths")
    if wrong := [d for d in c.dims[2:] if d % c.head_dim]:
        raise SettingError(f"uniformer: {wrong[0]} channels do not divide into heads of {c.head_dim}")
    if c.keep is not None and (c.windows != "none" or c.layer_scale is not None or c.token_labels):
        raise SettingError("uniformer: light models have neither windows nor layer scale nor token labels")
    if c.keep is not None and not 0 < c.keep < 1:
        raise SettingError(f"uniformer: keep is a share between 0 and 1, got {c.keep}")


def _merge(c: UniFormerConfig, stage: int) -> nn.Module:
    dim = c.dims[stage]
    if stage == 0:
        plain = c.overlap == "none"
        return PatchEmbedding(c.in_channels, dim, 4, norm=True) if plain else OverlappingStem(c.in_channels, dim)
    kind = OverlappingMerging if c.overlap == "all" else Merging
    return kind(c.dims[stage - 1], dim)


def _block(c: UniFormerConfig, stage: int, index: int, drop_path: float) -> nn.Module:
    dim = c.dims[stage]
    windowed = stage == 2 and (c.windows == "all" or (c.windows == "hybrid" and (index + 1) % 4 != 0))
    heads = dim // c.head_dim
    mixer: SelfAttention
    if windowed:
        mixer = WindowedAttention(dim, heads, window=c.window, qkv_bias=c.qkv_bias)
    else:
        mixer = SelfAttention(dim, heads, qkv_bias="full" if c.qkv_bias else "none")
    mixer.scale = c.head_dim**-0.5 if c.scale is None else c.scale
    mlp = MLP(dim, ratio=c.mlp_ratio)
    return GlobalBlock(dim, mixer, mlp, drop_path=drop_path, layer_scale=c.layer_scale)


def _pruning_block(c: UniFormerConfig, stage: int, index: int, drop_path: float) -> nn.Module:
    keep = c.keep if c.keep is not None and (stage, index) != (2, 0) else 1.0
    dim = c.dims[stage]
    return PruningBlock(
        dim, dim // c.head_dim, mlp_ratio=c.mlp_ratio, qkv_bias=c.qkv_bias, scale=c.scale, keep=keep,
        drop_path=drop_path,
    )  # fmt: skip


def _initialise(network: UniFormer) -> None:
    """Linear maps of the deep stages; 1x1 convolutions of the shallow ones keep the framework's start."""
    for stage in network.stages[2:]:
        for module in stage.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)


SMALL = UniFormerConfig(drop_path=0.1)
SMALL_PLUS = replace(SMALL, depths=(3, 5, 9, 3), head_dim=32, overlap="all")
BASE = replace(SMALL, depths=(5, 8, 20, 7), drop_path=0.3)
SMALL_TL, SMALL_PLUS_TL, BASE_TL = (replace(c, head_dim=32, token_labels=True) for c in (SMALL, SMALL_PLUS, BASE))
LARGE = UniFormerConfig(
    dims=(128, 192, 448, 640), depths=(5, 10, 24, 7), layer_scale=1e-6, scaled="all", token_labels=True, drop_path=0.4
)
XXS = UniFormerConfig(
    dims=(56, 112, 224, 448), depths=(2, 5, 8, 2), head_dim=28, mlp_ratio=3.0, overlap="stem", keep=0.5
)
XS = replace(XXS, dims=(64, 128, 256, 512), depths=(3, 5, 9, 3), head_dim=32, drop_path=0.1)

VARIANTS = {
    "small": SMALL,
    "small_plus": SMALL_PLUS,  # S-dagger
    "small_plus_dim64": replace(SMALL_PLUS, head_dim=64),
    "base": BASE,
    "base_ls": replace(BASE, layer_scale=1e-6),
    "small_tl": SMALL_TL,
    "small_plus_tl": SMALL_PLUS_TL,
    "base_tl": BASE_TL,
    "large_ls": LARGE,
    "small_tl_dim64": replace(SMALL_TL, head_dim=64),
    "small_plus_tl_dim64": replace(SMALL_PLUS_TL, head_dim=64),
    "base_tl_dim64": replace(BASE_TL, head_dim=64),
    "small_tl_384": SMALL_TL,
    "small_plus_tl_384": SMALL_PLUS_TL,
    "base_tl_384": BASE_TL,
    "large_ls_384": LARGE,
    "xxs": XXS,
    "xxs_192": XXS,
    "xxs_160": XXS,
    "xxs_128": XXS,
    "xs": XS,
    "xs_192": XS,
}

build = UniFormer


def from_published(
    build: Mapping[str, Any], names: Mapping[str, Sequence[int]], base: UniFormerConfig = SMALL
) -> UniFormerConfig:
    """The authors' constructor (or its name) and arguments as ours; what they leave open by names and shapes.

    The width of heads shows in no shape. Where nobody states it, it is that of `base` if the network is of base's form
    and widths, else that of the first published variant of this form and these widths.
    """
    seen = shapes(names)
    config = base
    named = str(build.get("factory", "")).removeprefix("uniformer_")
    if (variant := named.removesuffix("_dim64")) in VARIANTS:
        config = replace(VARIANTS[variant], in_channels=base.in_channels)
    given = {ours: build[theirs] for theirs, ours in ARGUMENTS.items() if build.get(theirs) is not None}
    given |= {k: tuple(given[k]) for k in ("dims", "depths") if k in given}
    given |= {k: float(given[k]) for k in ("mlp_ratio", "drop_path") if k in given}
    if build.get("windows") or build.get("hybrid"):
        given["windows"] = "all" if build.get("windows") else "hybrid"
    if seen:
        light, scaled = seen.pop("light"), seen.pop("scaled")
        form: dict[str, Any] = {"keep": (config.keep or 0.5) if light else None, "layer_scale": None}
        if scaled:
            form |= {"layer_scale": config.layer_scale or 1e-6, "scaled": scaled[0]}
        given = seen | form | given
    merged = replace(config, **given)
    if "head_dim" not in given:
        wide = named.endswith("_dim64") or ("class" in build and not any(d % 64 for d in merged.dims[2:]))
        merged = replace(merged, head_dim=64 if wide else _head_dim(merged, base))  # 64: the class's own default
    return merged


def _head_dim(found: UniFormerConfig, base: UniFormerConfig) -> int:
    form = ("dims", "overlap", "keep", "token_labels")
    for some in (form, form[:2]):
        for known in (base, *VARIANTS.values()):
            if all(getattr(found, k) == getattr(known, k) for k in some):
                return known.head_dim
    return base.head_dim
