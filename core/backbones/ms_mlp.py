"""MS-MLP: groups of channels shifted by growing distances and mixed by growing kernels, then an MLP; no attention.

Paper: arXiv 2202.06510. Reference: JegZheng/MS-MLP@a10d34d (MIT), classification only.
Differs: takes any size from 32 pixels up, where the published code asserts the one that it was built for; what the
strides do not divide is dropped at the bottom and right, as its unpadded convolutions would.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from core.errors import SettingError, ShapeError, expect_shape
from core.facts import Facts
from core.heads.classify import ClassifierHead
from core.layers.mlp import MLP
from core.layers.patches import PatchEmbedding, to_channels_first
from core.layers.residual import DropPath, LayerScale, Stage, spread
from core.mixers.mix_shift import MixShift
from core.weights import KeyMap

FACTS = Facts(
    title="MS-MLP",
    paper="arXiv 2202.06510",
    licence="MIT",
    top1={"tiny": 82.1, "small": 83.4, "base": 83.8},
)
HEAD = ClassifierHead(norm=nn.LayerNorm, eps=1e-6, pool="mean", norm_first=False)


@dataclass(frozen=True)
class MSMLPConfig:
    in_channels: int = 3
    patch: int = 4  # pixels
    dim: int = 96  # channels of stage 1; each stage doubles them
    depths: tuple[int, ...] = (3, 3, 9, 3)
    kernels: tuple[tuple[int, ...], ...] = (  # of each stage, one per group of channels
        (1, 1, 3, 5, 7), (1, 3, 3, 5, 7), (1, 5, 5, 5, 7), (1, 7, 7, 7, 7),
    )  # fmt: skip
    distances: tuple[int, ...] = (-2, -1, 0, 1, 2)  # of the shifts, one per group
    mlp_ratio: float = 4.0
    layer_scale: float | None = 1e-6  # start value
    drop_path: float = 0.1  # of the last block, linear from 0
    dropout: float = 0.0  # of the embedded image


class Embedding(PatchEmbedding):
    """Convolution over patches, LayerNorm: (B, C, H, W) -> (B, H / patch, W / patch, dim), rounded down."""

    def __init__(self, in_channels: int, dim: int, patch: int, *, dropout: float = 0.0) -> None:
        super().__init__(in_channels, dim, patch)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.dropout = nn.Dropout(dropout)

    def forward(self, image: Tensor) -> Tensor:
        return self.dropout(super().forward(image))


class Merging(Embedding):
    """The same between stages: (B, H, W, C) -> (B, H / 2, W / 2, 2 C), rounded down."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, 2 * dim, 2)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 3, 1, 2))


class MixShiftBlock(nn.Module):
    """x + MLP(norm(mixed x)), (B, H, W, C) -> the same; nothing is normed before the mixer."""

    def __init__(self, dim: int, kernels: Sequence[int], c: MSMLPConfig, drop_path: float) -> None:
        super().__init__()
        self.token_mixer = MixShift(dim, kernels, c.distances)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.channel_mixer = MLP(dim, ratio=c.mlp_ratio)
        self.scale = nn.Identity() if c.layer_scale is None else LayerScale(dim, c.layer_scale)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop_path(self.scale(self.channel_mixer(self.norm(self.token_mixer(x)))))


class MSMLP(nn.Module):
    """Image (B, C, H, W) -> pyramid, one (B, channels[i], h, w) per stage, for any H and W of at least 32 pixels.

    The first level has floor(H / 4) rows, each further one half of them, rounded down; columns likewise.
    """

    def __init__(self, config: MSMLPConfig) -> None:
        super().__init__()
        c = self.config = config
        if len(c.kernels) != len(c.depths):
            raise SettingError(f"ms_mlp: {len(c.depths)} depths and kernels for {len(c.kernels)} stages")
        self.channels = tuple(c.dim * 2**i for i in range(len(c.depths)))
        self.strides = tuple(c.patch * 2**i for i in range(len(c.depths)))
        stages = []
        for i, rates in enumerate(spread(c.drop_path, c.depths)):
            dim = self.channels[i]
            merge = Merging(self.channels[i - 1]) if i else Embedding(c.in_channels, dim, c.patch, dropout=c.dropout)
            stages.append(Stage(merge, [MixShiftBlock(dim, c.kernels[i], c, rate) for rate in rates]))
        self.stages = nn.ModuleList(stages)
        self.apply(_initialise)

    def forward(self, image: Tensor) -> list[Tensor]:
        size = expect_shape(image, "B C H W", C=self.config.in_channels)
        if min(size["H"], size["W"]) < self.strides[-1]:
            raise ShapeError(
                f"an image of {size['H']} x {size['W']} pixels is too small, sides start at {self.strides[-1]}"
            )
        x, pyramid = image, []
        for stage in self.stages:
            x = stage(x)
            pyramid.append(to_channels_first(x))
        return pyramid


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


TINY = MSMLPConfig()
SMALL = replace(TINY, depths=(3, 3, 27, 3), drop_path=0.4)

VARIANTS = {
    "tiny": TINY,
    "small": SMALL,
    "base": replace(SMALL, dim=128, drop_path=0.5),
}

build = MSMLP

_ARGUMENTS = {  # the authors' constructor arguments and our settings
    "in_chans": "in_channels", "patch_size": "patch", "embed_dim": "dim", "depths": "depths", "mix_size": "kernels",
    "shift_dist": "distances", "mlp_ratio": "mlp_ratio", "drop_path_rate": "drop_path", "drop_rate": "dropout",
}  # fmt: skip


def from_published(
    build: Mapping[str, Any], names: Mapping[str, Sequence[int]], base: MSMLPConfig = TINY
) -> MSMLPConfig:
    """The authors' arguments, and over them what parameter names and shapes show: all but distances and rates."""
    given = {ours: build[theirs] for theirs, ours in _ARGUMENTS.items() if theirs in build}
    for key in ("depths", "distances"):
        if key in given:
            given[key] = tuple(given[key])
    if "kernels" in given:
        given["kernels"] = tuple(tuple(stage) for stage in given["kernels"])
    for key in ("mlp_ratio", "drop_path", "dropout"):
        if key in given:
            given[key] = float(given[key])
    if "patch_embed.proj.weight" in names:
        given |= _seen(names, base)
    return replace(base, **given)


def _seen(names: Mapping[str, Sequence[int]], base: MSMLPConfig) -> dict[str, Any]:
    """What published names and shapes tell."""
    dim, in_channels, patch, _ = names["patch_embed.proj.weight"]
    depths: dict[int, int] = {}
    kernels: dict[int, dict[int, int]] = {}
    for name, shape in names.items():
        if found := re.match(r"layers\.(\d+)\.blocks\.(\d+)\.", name):
            stage, block = int(found[1]), int(found[2])
            depths[stage] = max(depths.get(stage, 0), block + 1)
        if found := re.fullmatch(r"layers\.(\d+)\.blocks\.0\.dwconv_lr\.(\d+)\.weight", name):
            kernels.setdefault(int(found[1]), {})[int(found[2])] = shape[-1]
    ratio = names["layers.0.blocks.0.pwconv1.weight"][0] / dim
    scaled = "layers.0.blocks.0.gamma" in names
    return {
        "in_channels": in_channels,
        "patch": patch,
        "dim": dim,
        "depths": tuple(depths[i] for i in sorted(depths)),
        "kernels": tuple(tuple(kernels[i][g] for g in sorted(kernels[i])) for i in sorted(kernels)),
        "mlp_ratio": ratio if int(dim * ratio) == round(dim * ratio) else math.nextafter(ratio, math.inf),
        "layer_scale": (base.layer_scale or TINY.layer_scale) if scaled else None,
    }


_MOST = 8  # stages
PUBLISHED = (
    KeyMap(
        rename=[
            (r"^patch_embed\.proj\.", "backbone.stages.0.merge.conv."),
            (r"^patch_embed\.norm\.", "backbone.stages.0.merge.norm."),
            *((rf"^layers\.{i}\.downsample\.", f"backbone.stages.{i + 1}.merge.") for i in range(_MOST)),
            (r"\.merge\.proj\.", ".merge.conv."),
            (r"^layers\.", "backbone.stages."),
            (r"\.dwconv_lr\.", ".token_mixer.horizontal."),
            (r"\.dwconv_td\.", ".token_mixer.vertical."),
            (r"\.pwconv(\d)\.", r".channel_mixer.fc\1."),
            (r"\.gamma$", ".scale.scale"),
            (r"^norm\.", "head.norm."),
            (r"^head\.(weight|bias)$", r"head.fc.\1"),
        ],
    ),
)
