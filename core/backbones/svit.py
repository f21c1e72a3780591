"""SViT: super tokens give early stages a view of the whole image (the repository calls the network STViT).

Paper: arXiv 2211.11167. Reference: hhb072/STViT@c9ed9a4 (no licence file; source headers say MIT).
Differs: the published one-hot kernels that gather and scatter neighbours are constants here, not parameters; a
depthwise convolution beside its own input is one convolution whose centre is larger by 1.
"""

from __future__ import annotations

import re
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.errors import SettingError, expect_shape
from core.facts import Facts
from core.layers.convs import ResidualDepthwise, scale_and_shift
from core.layers.linear import Linear, linear
from core.layers.patches import to_channels_first
from core.layers.residual import DropPath, LayerScale, Stage, spread
from core.mixers.super_tokens import SLOTS, SuperTokenAttention
from core.weights import KeyMap

FACTS = Facts(
    title="SViT (super tokens)",
    paper="arXiv 2211.11167",
    licence="MIT by source headers",
    top1={"small": 83.6, "base": 84.8, "large": 85.3},
)


def head(backbone: Any, classes: int) -> nn.Module:
    return ProjectedHead(backbone.channels[-1], backbone.config.projection, classes)


@dataclass(frozen=True)
class SViTConfig:
    in_channels: int = 3
    dims: tuple[int, ...] = (64, 128, 320, 512)  # channels of each stage
    depths: tuple[int, ...] = (3, 5, 9, 3)
    heads: tuple[int, ...] = (1, 2, 5, 8)
    cells: tuple[int, ...] = (8, 4, 1, 1)  # side of a super token's cell, per stage; 1 is plain attention
    iterations: tuple[int, ...] = (1, 1, 1, 1)  # assignments of pixels to super tokens
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    scaled: tuple[bool, ...] = (False, False, False, False)  # stages with layer scale
    layer_scale: float = 1e-6  # its start
    projection: int = 1024  # width of the classifier before its pooling
    drop_path: float = 0.0  # of the last block; linear from 0


class ConvMLP(nn.Module):
    """Batch norm, widening, GELU, the map plus its depthwise 3x3, narrowing: (B, H, W, C) -> the same."""

    fusable = (("norm", "fc1"),)

    def __init__(self, dim: int, ratio: float) -> None:
        super().__init__()
        self.norm: nn.Module = nn.BatchNorm2d(dim)
        self.fc1 = Linear(dim, int(dim * ratio))
        self.depthwise = ResidualDepthwise(int(dim * ratio))
        self.fc2 = Linear(int(dim * ratio), dim)

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.norm, nn.BatchNorm2d) and not self.training:  # its scale and shift inside the layer
            scale, shift = scale_and_shift(self.norm)
            weight = self.fc1.weight
            x = linear(x, weight * scale, torch.mv(weight, shift) + self.fc1.bias, "gelu")
        else:
            x = F.gelu(self.fc1(self.norm(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)))
        return self.fc2(self.depthwise(x))


class SViTBlock(nn.Module):
    """Positions by a depthwise convolution, super token attention, a convolutional channel mixer; (B, H, W, C)."""

    def __init__(self, dim: int, token_mixer: nn.Module, ratio: float, *, drop_path: float, scale: float | None):
        super().__init__()
        self.positions = ResidualDepthwise(dim)
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.token_mixer = token_mixer
        self.channel_mixer = ConvMLP(dim, ratio)
        self.scale1 = nn.Identity() if scale is None else LayerScale(dim, scale)
        self.scale2 = nn.Identity() if scale is None else LayerScale(dim, scale)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = self.positions(x)
        x = x + self.drop_path(self.scale1(self.token_mixer(self.norm1(x))))
        return x + self.drop_path(self.scale2(self.channel_mixer(x)))


class Stem(nn.Sequential):
    """Image (B, C, H, W) -> (B, ceil(H / 4), ceil(W / 4), dim): four 3x3 convolutions, each GELU, then batch norm."""

    def __init__(self, in_channels: int, dim: int) -> None:
        widths, strides = (in_channels, dim // 2, dim // 2, dim, dim), (2, 1, 2, 1)
        layers: list[nn.Module] = []
        for i, stride in enumerate(strides):
            conv = nn.Conv2d(widths[i], widths[i + 1], 3, stride, padding=1)
            layers += [conv, nn.GELU(), nn.BatchNorm2d(widths[i + 1])]
        super().__init__(*layers)

    def forward(self, input: Tensor) -> Tensor:
        x = input.contiguous(memory_format=torch.channels_last)
        return super().forward(x).permute(0, 2, 3, 1)


class Merging(nn.Sequential):
    """3x3 convolution of stride 2, batch norm: (B, H, W, C) -> (B, ceil(H / 2), ceil(W / 2), out)."""

    fusable = (("0", "1"),)

    def __init__(self, dim: int, out: int) -> None:
        super().__init__(nn.Conv2d(dim, out, 3, stride=2, padding=1), nn.BatchNorm2d(out))

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class SViT(nn.Module):
    """Image (B, C, H, W) -> pyramid, one (B, channels[i], h, w) per stage, for any H and W.

    The first level has ceil(H / 4) rows, each further one half of them, rounded up; columns likewise.
    """

    def __init__(self, config: SViTConfig) -> None:
        super().__init__()
        c = self.config = config
        lists = (c.dims, c.depths, c.heads, c.cells, c.iterations, c.scaled)
        if len({len(values) for values in lists}) > 1:
            raise SettingError(
                "svit: dims, depths, heads, cells, iterations and scaled have one entry a stage, "
                f"got {', '.join(str(len(v)) for v in lists)}"
            )
        self.channels = c.dims
        self.strides = tuple(4 * 2**i for i in range(len(c.dims)))
        rates = spread(c.drop_path, c.depths)
        stages = []
        for i, dim in enumerate(c.dims):
            cell = (c.cells[i], c.cells[i])
            mixer = partial(SuperTokenAttention, dim, c.heads[i], cell, iterations=c.iterations[i], qkv_bias=c.qkv_bias)
            scale = c.layer_scale if c.scaled[i] else None
            blocks = [SViTBlock(dim, mixer(), c.mlp_ratio, drop_path=rate, scale=scale) for rate in rates[i]]
            stages.append(Stage(Merging(c.dims[i - 1], dim) if i else Stem(c.in_channels, dim), blocks))
        self.stages = nn.ModuleList(stages)

    def forward(self, image: Tensor) -> list[Tensor]:
        expect_shape(image, "B C H W", C=self.config.in_channels)
        x, pyramid = image, []
        for stage in self.stages:
            x = stage(x)
            pyramid.append(to_channels_first(x))
        return pyramid


class ProjectedHead(nn.Sequential):
    """Last level (B, C, H, W) -> logits (B, classes): 1x1 convolution, batch norm, x sigmoid(x), mean, linear."""

    takes = "pyramid"
    fusable = (("proj", "norm"),)

    def __init__(self, dim: int, width: int, classes: int) -> None:
        fc = nn.Linear(width, classes)
        nn.init.trunc_normal_(fc.weight, std=0.02)
        nn.init.zeros_(fc.bias)
        layers = OrderedDict(
            proj=nn.Conv2d(dim, width, 1), norm=nn.BatchNorm2d(width), act=nn.SiLU(),
            pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten(), fc=fc,
        )  # fmt: skip
        super().__init__(layers)

    def forward(self, input: list[Tensor]) -> Tensor:
        return super().forward(input[-1])


SMALL = SViTConfig(drop_path=0.1)
_SCALED = (False, False, True, True)

VARIANTS = {
    "small": SMALL,
    "base": SViTConfig(
        dims=(96, 192, 384, 512), depths=(4, 6, 14, 6), heads=(2, 3, 6, 8), scaled=_SCALED, drop_path=0.4
    ),
    "large": SViTConfig(
        dims=(96, 192, 448, 640), depths=(4, 7, 19, 8), heads=(2, 3, 7, 10), scaled=_SCALED, drop_path=0.6
    ),
}

build = SViT

_ARGUMENTS = {"num_heads": "heads", "stoken_size": "cells", "n_iter": "iterations", "init_values": "layer_scale"}


def from_published(
    build: Mapping[str, Any], names: Mapping[str, Sequence[int]], base: SViTConfig = SMALL
) -> SViTConfig:
    """The variant that the authors' function name says ("stvit_small"), then what arguments, names and shapes show."""
    base = VARIANTS.get(str(build.get("fn", "")).removeprefix("stvit_"), base)
    given: dict[str, Any] = {
        ours: build[theirs] for theirs, ours in _ARGUMENTS.items() if build.get(theirs) is not None
    }
    found = (re.match(r"layers\.(\d+)\.blocks\.(\d+)\.", n) for n in names)
    blocks = sorted({(int(m[1]), int(m[2])) for m in found if m})
    if blocks:
        depths = tuple(Counter(stage for stage, _ in blocks).values())
        at = [f"layers.{i}.blocks.0." for i in range(len(depths))]
        dims = tuple(names[f"{a}norm2.weight"][0] for a in at)
        given |= {
            "in_channels": names["patch_embed.proj.0.weight"][1],
            "dims": dims,
            "depths": depths,
            "mlp_ratio": names[f"{at[0]}mlp2.fc1.weight"][0] / dims[0],
            "qkv_bias": f"{at[0]}attn.stoken_refine.qkv.bias" in names,
            "scaled": tuple(f"{a}gamma_1" in names for a in at),
        }
    if "proj.weight" in names:
        given["projection"] = names["proj.weight"][0]
    settings: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
    return replace(base, **settings)


def _one_hot(value: Tensor) -> bool:
    """Whether these are the kernels (9, 1, 3, 3) that pick one neighbour each."""
    return tuple(value.shape) == (SLOTS, 1, 3, 3) and torch.equal(value.flatten(1), torch.eye(SLOTS).to(value))


PUBLISHED = (
    KeyMap(
        rename=[
            (r"^patch_embed\.proj\.", "backbone.stages.0.merge."),
            *((rf"^layers\.{i}\.downsample\.proj\.", f"backbone.stages.{i + 1}.merge.") for i in range(8)),
            (r"^layers\.", "backbone.stages."),
            (r"\.pos_embed\.conv\.", ".positions."),
            (r"\.norm1\.norm\.", ".norm1."),
            (r"\.attn\.stoken_refine\.", ".token_mixer."),
            (r"\.norm2\.", ".channel_mixer.norm."),
            (r"\.mlp2\.conv\.conv\.", ".channel_mixer.depthwise."),
            (r"\.mlp2\.", ".channel_mixer."),
            (r"\.gamma_(\d)$", r".scale\1.scale"),
            (r"^proj\.", "head.proj."),
            (r"^norm\.", "head.norm."),
            (r"^head\.(weight|bias)$", r"head.fc.\1"),
        ],
        transform={r"\.(qkv|attn\.stoken_refine\.proj|fc1|fc2)\.weight$": lambda v: v.flatten(1),
                   r"\.gamma_\d$": lambda v: v.flatten()},
        constants={r"\.attn\.(un)?fold\.weights$": _one_hot},
    ),
)  # fmt: skip
