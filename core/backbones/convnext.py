"""ConvNeXt and ConvNeXt V2: convolutional baselines, timm's network behind the house's contract.

Papers: arXiv 2201.03545, 2301.00808. Reference: huggingface/pytorch-image-models 1.0.31, timm/models/convnext.py
(Apache-2.0), after facebookresearch/ConvNeXt (MIT).
Differs: nothing.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from timm.models.convnext import ConvNeXt as Published
from torch import Tensor, nn

from core.errors import SettingError, ShapeError, expect_shape
from core.facts import Facts
from core.heads.classify import ClassifierHead
from core.layers.residual import DropPath, spread
from core.weights import KeyMap, choose

FACTS = Facts(
    title="ConvNeXt",
    paper="arXiv 2201.03545",
    licence="MIT (V2: CC-BY-NC-4.0)",
    top1={
        "tiny": 82.1, "small": 83.1, "base": 83.8, "large": 84.3,
        "v2_atto": 76.7, "v2_femto": 78.5, "v2_pico": 80.3, "v2_nano": 81.9, "v2_tiny": 83.0, "v2_base": 84.9,
        "v2_large": 85.8, "v2_huge": 86.3,
    },
)  # fmt: skip
HEAD = ClassifierHead(norm=nn.LayerNorm, eps=1e-6, pool="mean", norm_first=False)


@dataclass(frozen=True)
class ConvNeXtConfig:
    in_channels: int = 3
    depths: tuple[int, ...] = (3, 3, 9, 3)
    dims: tuple[int, ...] = (96, 192, 384, 768)
    layer_scale: float | None = 1e-6  # start value
    response_norm: bool = False  # global response normalisation between the two pointwise layers (V2)
    drop_path: float = 0.0  # of the last block; linear from 0


class Network(nn.Module):
    """Image (B, C, H, W) -> pyramid at strides 4, 8, 16, 32, sizes rounded down, for any H and W from 32 pixels up."""

    def __init__(self, config: ConvNeXtConfig) -> None:
        super().__init__()
        c = self.config = config
        if len(c.depths) != len(c.dims):
            raise SettingError(f"convnext: {len(c.depths)} depths but {len(c.dims)} dims")
        net: Any = Published(
            in_chans=c.in_channels, num_classes=0, depths=c.depths, dims=c.dims, ls_init_value=c.layer_scale,
            use_grn=c.response_norm,
        )  # fmt: skip
        for stage, rates in zip(net.stages, spread(c.drop_path, c.depths), strict=True):
            for block, rate in zip(stage.blocks, rates, strict=True):
                block.drop_path = DropPath(rate)  # timm's rates cannot be computed on the meta device everywhere
        self.channels = tuple(c.dims)
        self.strides = tuple(4 * 2**i for i in range(len(c.dims)))
        self.stages = nn.ModuleList([
            nn.Sequential(OrderedDict(stem=net.stem, body=net.stages[0])),
            *(nn.Sequential(OrderedDict(body=stage)) for stage in net.stages[1:]),
        ])  # fmt: skip

    def forward(self, image: Tensor) -> list[Tensor]:
        expect_shape(image, "B C H W", C=self.config.in_channels)
        if min(image.shape[2:]) < self.strides[-1]:
            raise ShapeError(
                f"convnext takes images of at least {self.strides[-1]} pixels a side, got {tuple(image.shape[2:])}"
            )
        x, pyramid = image, []
        for stage in self.stages:
            x = stage(x)
            pyramid.append(x)
        return pyramid


TINY = ConvNeXtConfig(drop_path=0.1)
DEEP = ConvNeXtConfig(depths=(3, 3, 27, 3))
V2 = ConvNeXtConfig(depths=(2, 2, 6, 2), layer_scale=None, response_norm=True)


def _dims(first: int) -> tuple[int, ...]:
    return tuple(first * 2**i for i in range(4))


VARIANTS = {
    "tiny": TINY,
    "small": replace(DEEP, drop_path=0.4),
    "base": replace(DEEP, dims=_dims(128), drop_path=0.5),
    "large": replace(DEEP, dims=_dims(192), drop_path=0.5),
    "xlarge": replace(DEEP, dims=_dims(256), drop_path=0.5),
    "v2_atto": replace(V2, dims=_dims(40)),
    "v2_femto": replace(V2, dims=_dims(48)),
    "v2_pico": replace(V2, dims=_dims(64)),
    "v2_nano": replace(V2, dims=_dims(80), depths=(2, 2, 8, 2)),
    "v2_tiny": replace(V2, depths=(3, 3, 9, 3)),
    "v2_base": replace(V2, dims=_dims(128), depths=(3, 3, 27, 3)),
    "v2_large": replace(V2, dims=_dims(192), depths=(3, 3, 27, 3)),
    "v2_huge": replace(V2, dims=_dims(352), depths=(3, 3, 27, 3)),
}

build = Network


def from_published(
    build: Mapping[str, Any], names: Mapping[str, Sequence[int]], base: ConvNeXtConfig = TINY
) -> ConvNeXtConfig:
    """Depths, widths, layer scale and response norm read from parameter names and shapes; drop path from `build`."""
    if "drop_path_rate" in build:
        base = replace(base, drop_path=float(build["drop_path_rate"]))
    keymap = choose(PUBLISHED, names)
    ours = {keymap.name(n): tuple(s) for n, s in names.items()}
    stem = ours.get("backbone.stages.0.stem.0.weight")
    if stem is None:
        return base
    blocks = [m for n in ours if n and (m := re.match(r"backbone\.stages\.(\d+)\.body\.blocks\.(\d+)\.", n))]
    stages = range(1 + max(int(m[1]) for m in blocks))
    first = "backbone.stages.0.body.blocks.0."
    scaled = f"{first}gamma" in ours
    return replace(
        base,
        in_channels=stem[1],
        depths=tuple(1 + max(int(m[2]) for m in blocks if int(m[1]) == i) for i in stages),
        dims=tuple(ours[f"backbone.stages.{i}.body.blocks.0.norm.weight"][0] for i in stages),
        layer_scale=(base.layer_scale or 1e-6) if scaled else None,
        response_norm=f"{first}mlp.grn.weight" in ours,
    )


def _flat(value: Tensor) -> Tensor:
    """(1, 1, 1, C) or (C, 1, 1) -> (C,)."""
    return value.flatten()


def _matrix(value: Tensor) -> Tensor:
    """(out, in, 1, 1) of timm's small V2 networks -> (out, in)."""
    return value.flatten(1)


_BLOCK = r"backbone.stages.\1.body.blocks.\2."
_LINEAR = [(r"\.dwconv\.", ".conv_dw."), (r"\.pwconv(\d)\.", r".mlp.fc\1.")]
_RESPONSE = [(r"\.grn\.gamma$", ".mlp.grn.weight"), (r"\.grn\.beta$", ".mlp.grn.bias")]
PUBLISHED = (
    KeyMap(  # Facebook
        rename=[
            (r"^downsample_layers\.0\.", "backbone.stages.0.stem."),
            (r"^downsample_layers\.(\d+)\.", r"backbone.stages.\1.body.downsample."),
            (r"^stages\.(\d+)\.(\d+)\.", _BLOCK),
            *_LINEAR,
            *_RESPONSE,
            (r"^head\.", "head.fc."),
            (r"^norm\.", "head.norm."),
        ],
        transform={r"\.grn\.(gamma|beta)$": _flat},
        when=r"^downsample_layers\.",
    ),
    KeyMap(  # Hugging Face
        rename=[
            (r"^convnext(?:v2)?\.", ""),
            (r"^embeddings\.patch_embeddings\.", "backbone.stages.0.stem.0."),
            (r"^embeddings\.layernorm\.", "backbone.stages.0.stem.1."),
            (r"^encoder\.stages\.(\d+)\.downsampling_layer\.", r"backbone.stages.\1.body.downsample."),
            (r"^encoder\.stages\.(\d+)\.layers\.(\d+)\.", _BLOCK),
            *_LINEAR,
            (r"\.layernorm\.", ".norm."),
            (r"\.layer_scale_parameter$", ".gamma"),
            (r"\.grn\.weight$", ".mlp.grn.weight"),
            (r"\.grn\.bias$", ".mlp.grn.bias"),
            (r"^layernorm\.", "head.norm."),
            (r"^classifier\.", "head.fc."),
        ],
        transform={r"\.grn\.(weight|bias)$": _flat},
        when=r"^(convnext(v2)?\.)?encoder\.stages\.",
    ),
    KeyMap(  # torchvision; its `features` alternate between downsampling and blocks
        rename=[
            (r"^features\.0\.", "backbone.stages.0.stem."),
            *((rf"^features\.{2 * i}\.", f"backbone.stages.{i}.body.downsample.") for i in (1, 2, 3)),
            *((rf"^features\.{2 * i + 1}\.(\d+)\.", rf"backbone.stages.{i}.body.blocks.\1.") for i in range(4)),
            (r"\.block\.0\.", ".conv_dw."),
            (r"\.block\.2\.", ".norm."),
            (r"\.block\.3\.", ".mlp.fc1."),
            (r"\.block\.5\.", ".mlp.fc2."),
            (r"\.layer_scale$", ".gamma"),
            (r"^classifier\.0\.", "head.norm."),
            (r"^classifier\.2\.", "head.fc."),
        ],
        transform={r"\.layer_scale$": _flat},
        when=r"^features\.0\.0\.",
    ),
    KeyMap(  # timm
        rename=[
            (r"^stem\.", "backbone.stages.0.stem."),
            (r"^stages\.(\d+)\.", r"backbone.stages.\1.body."),
            (r"^head\.norm\.", "head.norm."),
            (r"^head\.fc\.", "head.fc."),
        ],
        transform={r"\.mlp\.fc\d\.weight$": _matrix},
    ),
)
