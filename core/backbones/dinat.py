"""Neighborhood Attention Transformer (NAT), its dilated form (DiNAT), and DiNAT_s on Swin's skeleton.

Papers: arXiv 2204.07143 (NAT), arXiv 2209.15001 (DiNAT, DiNAT_s and the isotropic forms). Reference:
SHI-Labs/Neighborhood-Attention-Transformer@d334f5b (MIT), attention of SHI-Labs/NATTEN v0.14.6 (MIT).
Differs: no copies of keys and values for each query (core.mixers.neighborhood).
Our reading: of the isotropic forms the papers state width, layers and dilations; we take ViT's patches of 16 without a
norm, no positions beside the relative biases, and the head of the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice
from typing import Any, Literal

import torch
from torch import Tensor, nn

from core.errors import SettingError, expect_shape
from core.facts import Facts
from core.heads.classify import ClassifierHead
from core.layers.mlp import MLP
from core.layers.patches import PatchEmbedding, PatchMerging, to_channels_first
from core.layers.residual import Block, Stage, spread
from core.mixers.neighborhood import NeighborhoodAttention
from core.weights import KeyMap

FACTS = Facts(
    title="NAT / DiNAT",
    paper="arXiv 2209.15001",
    licence="MIT",
    top1={
        "nat_mini": 81.8, "nat_tiny": 83.2, "nat_small": 83.7, "nat_base": 84.3,
        "dinat_mini": 81.8, "dinat_tiny": 82.7, "dinat_small": 83.8, "dinat_base": 84.4, "dinat_large": 86.6,
        "dinat_large_384": 87.4, "dinat_large_384_k11": 87.5,
        "dinat_s_tiny": 81.8, "dinat_s_small": 83.5, "dinat_s_base": 83.8, "dinat_s_large": 86.5,
        "dinat_s_large_384": 87.4,
        "nat_iso_small": 80.0, "nat_iso_base": 81.6, "dinat_iso_small": 80.8, "dinat_iso_base": 82.1,
    },
    size={"dinat_large_384": 384, "dinat_large_384_k11": 384, "dinat_s_large_384": 384},
)  # fmt: skip
HEAD = ClassifierHead(norm=nn.LayerNorm, eps=1e-5, pool="mean")


@dataclass(frozen=True)
class DinatConfig:
    in_channels: int = 3
    dim: int = 64  # channels of stage 1; each stage doubles them
    depths: tuple[int, ...] = (3, 4, 6, 5)
    heads: tuple[int, ...] = (2, 4, 8, 16)
    kernel: int = 7  # side of a neighbourhood in cells
    dilations: tuple[tuple[int, ...], ...] = ((1,), (1,), (1,), (1,))  # of each stage's blocks, repeated to its depth
    stem: Literal["convolutions", "patches"] = "convolutions"  # "patches": Swin's stem and merging
    patch: int = 4  # pixels; the convolutions always make 4
    patch_norm: bool = True  # LayerNorm after the patches
    mlp_ratio: float = 3.0
    layer_scale: float | None = None  # start value
    qkv_bias: bool = True
    relative_bias: bool = True  # False for weights of NATTEN from 0.20 on, which has none
    scale: float | None = None  # of q; head width ** -0.5 by default
    drop_path: float = 0.0  # of the last block; linear from 0
    dropout: float = 0.0
    dense: bool = False  # published dense form: a LayerNorm on each level; the un-normed map goes on
    norms: tuple[int, ...] | None = None  # levels with an output norm; by default every one if dense, else none


class ConvolutionStem(nn.Module):
    """Two 3x3 convolutions of stride 2, nothing between, LayerNorm: (B, C, H, W) -> (B, ceil(H/4), ceil(W/4), dim)."""

    def __init__(self, in_channels: int, dim: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, dim // 2, 3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(dim // 2, dim, 3, stride=2, padding=1)
        self.norm = nn.LayerNorm(dim)

    def forward(self, image: Tensor) -> Tensor:
        x = self.conv2(self.conv1(image.contiguous(memory_format=torch.channels_last)))
        return self.norm(x.permute(0, 2, 3, 1))


class ConvolutionMerging(nn.Module):
    """3x3 convolution of stride 2 without bias, LayerNorm: (B, H, W, C) -> (B, ceil(H/2), ceil(W/2), 2 C)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.reduction = nn.Conv2d(dim, 2 * dim, 3, stride=2, padding=1, bias=False)
        self.norm = nn.LayerNorm(2 * dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.reduction(to_channels_first(x)).permute(0, 2, 3, 1))


class Dinat(nn.Module):
    """Image (B, C, H, W) -> pyramid, one (B, channels[i], ceil(h), ceil(w)) per stage, for any H and W.

    With patches, sides are padded with zeros at the bottom and right: the image to whole patches, odd maps by one
    before merging. Maps smaller than a window are padded inside the attention.
    """

    def __init__(self, config: DinatConfig) -> None:
        super().__init__()
        c = self.config = config
        if not len(c.heads) == len(c.dilations) == len(c.depths):
            raise SettingError(
                f"dinat: {len(c.depths)} depths but {len(c.heads)} heads and dilations for {len(c.dilations)} stages"
            )
        if c.stem == "convolutions" and c.patch != 4:
            raise SettingError(f"dinat: the two convolutions make patches of 4 pixels, not {c.patch}")
        self.channels = tuple(c.dim * 2**i for i in range(len(c.depths)))
        self.strides = tuple(c.patch * 2**i for i in range(len(c.depths)))
        merging = ConvolutionMerging if c.stem == "convolutions" else PatchMerging
        self.stages = nn.ModuleList(
            Stage(
                merging(dim // 2) if i else _stem(c),
                [
                    Block(
                        dim,
                        NeighborhoodAttention(
                            dim, c.heads[i], kernel=c.kernel, dilation=dilation, qkv_bias=c.qkv_bias,
                            relative_bias=c.relative_bias, scale=c.scale, proj_dropout=c.dropout,
                        ),
                        MLP(dim, ratio=c.mlp_ratio, dropout=c.dropout),
                        drop_path=rate, layer_scale=c.layer_scale,
                    )
                    for rate, dilation in zip(rates, cycle(c.dilations[i]), strict=False)
                ],
            )
            for i, (dim, rates) in enumerate(zip(self.channels, spread(c.drop_path, c.depths), strict=True))
        )  # fmt: skip
        normed = c.norms if c.norms is not None else tuple(range(len(c.depths))) if c.dense else ()
        self.norms = nn.ModuleList(
            nn.LayerNorm(dim) if i in normed else nn.Identity() for i, dim in enumerate(self.channels)
        )
        self.apply(_initialise)

    def forward(self, image: Tensor) -> list[Tensor]:
        expect_shape(image, "B C H W", C=self.config.in_channels)
        x, pyramid = image, []
        for stage, norm in zip(self.stages, self.norms, strict=True):
            x = stage(x)
            pyramid.append(to_channels_first(norm(x)))
        return pyramid


def _stem(c: DinatConfig) -> nn.Module:
    stem = (
        ConvolutionStem(c.in_channels, c.dim)
        if c.stem == "convolutions"
        else PatchEmbedding(c.in_channels, c.dim, c.patch, pad=True, norm=c.patch_norm)
    )
    return nn.Sequential(stem, nn.Dropout(c.dropout))


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


_DILATED = ((1, 8), (1, 4), (1, 2), (1,))  # the most that a map of an image of 224 holds
_DILATED_384 = ((1, 13), (1, 6), (1, 3), (1,))
MINI = DinatConfig(drop_path=0.2)
TINY = replace(MINI, depths=(3, 4, 18, 5))
SMALL = replace(TINY, dim=96, heads=(3, 6, 12, 24), mlp_ratio=2.0, drop_path=0.3)
BASE = replace(SMALL, dim=128, heads=(4, 8, 16, 32), layer_scale=1e-5, drop_path=0.5)
LARGE = replace(SMALL, dim=192, heads=(6, 12, 24, 48), dilations=_DILATED, drop_path=0.35)
S_TINY = DinatConfig(
    dim=96, depths=(2, 2, 6, 2), heads=(3, 6, 12, 24), dilations=_DILATED, stem="patches", mlp_ratio=4.0, drop_path=0.2
)
S_LARGE = replace(S_TINY, dim=192, depths=(2, 2, 18, 2), heads=(6, 12, 24, 48), drop_path=0.35)
ISO_SMALL = DinatConfig(
    dim=384, depths=(12,), heads=(6,), dilations=((1,),), stem="patches", patch=16, patch_norm=False, mlp_ratio=4.0
)
ISO_BASE = replace(ISO_SMALL, dim=768, heads=(12,))

VARIANTS = {
    "dinat_mini": replace(MINI, dilations=_DILATED),
    "dinat_tiny": replace(TINY, dilations=_DILATED),
    "dinat_small": replace(SMALL, dilations=_DILATED),
    "dinat_base": replace(BASE, dilations=_DILATED),
    "dinat_large": LARGE,
    "dinat_large_384": replace(LARGE, dilations=_DILATED_384),
    "dinat_large_384_k11": replace(LARGE, kernel=11, dilations=((1, 8), (1, 4), (1, 2), (1,))),
    "dinat_s_tiny": S_TINY,
    "dinat_s_small": replace(S_TINY, depths=(2, 2, 18, 2), drop_path=0.3),
    "dinat_s_base": replace(S_TINY, dim=128, depths=(2, 2, 18, 2), heads=(4, 8, 16, 32), drop_path=0.5),
    "dinat_s_large": S_LARGE,
    "dinat_s_large_384": replace(S_LARGE, dilations=_DILATED_384),
    "nat_mini": MINI,
    "nat_tiny": TINY,
    "nat_small": replace(SMALL, layer_scale=1e-5),
    "nat_base": BASE,
    "nat_iso_small": ISO_SMALL,
    "nat_iso_base": ISO_BASE,
    "dinat_iso_small": replace(ISO_SMALL, dilations=((1, 2),)),
    "dinat_iso_base": replace(ISO_BASE, dilations=((1, 2),)),
}

build = Dinat

_ARGUMENTS = {  # the authors' constructor arguments and our settings
    "in_chans": "in_channels", "embed_dim": "dim", "depths": "depths", "num_heads": "heads", "kernel_size": "kernel",
    "dilations": "dilations", "patch_size": "patch", "patch_norm": "patch_norm", "mlp_ratio": "mlp_ratio",
    "layer_scale": "layer_scale", "qkv_bias": "qkv_bias", "qk_scale": "scale", "drop_path_rate": "drop_path",
    "drop_rate": "dropout",
}  # fmt: skip


def from_published(
    build: Mapping[str, Any], names: Mapping[str, Sequence[int]], base: DinatConfig = VARIANTS["dinat_mini"]
) -> DinatConfig:
    """The authors' factory name and constructor arguments as ours; sizes and form by parameter names and shapes."""
    if "name" in build:  # "dinat_large_in22k" is a dinat_large
        fitting = [v for v in VARIANTS if str(build["name"]).startswith(v)]
        if not fitting:
            raise SettingError(f"dinat: no published network is called {build['name']!r}")
        base = VARIANTS[max(fitting, key=len)]
    given = {ours: build[theirs] for theirs, ours in _ARGUMENTS.items() if theirs in build}
    given |= {k: tuple(given[k]) for k in ("depths", "heads") if k in given}
    if isinstance(given.get("patch"), list | tuple):
        given["patch"] = given["patch"][0]
    asked = given.pop("dilations", None)
    config = replace(base, **given | _sizes(names, replace(base, **given)))
    stages = len(config.depths)
    if asked is None:  # null is NAT's 1 everywhere; what is not said stays as the variant has it
        asked = [[1]] * stages if "dilations" in build else islice(cycle(base.dilations), stages)
    return replace(config, dilations=tuple(tuple(d or (1,)) for d in asked))


def _sizes(names: Mapping[str, Sequence[int]], base: DinatConfig) -> dict[str, Any]:
    """What parameter names and shapes say of a configuration."""
    root = next((r for r in ("levels", "layers") if any(n.startswith(f"{r}.") for n in names)), None)
    if root is None:
        return {}
    blocks = (n.split(".") for n in names if n.startswith(f"{root}.") and ".blocks." in n)
    places = {(int(parts[1]), int(parts[3])) for parts in blocks}
    stages = 1 + max(i for i, _ in places)
    norms = tuple(i for i in range(stages) if f"norm{i}.weight" in names)
    headless = "norm.weight" not in names
    found: dict[str, Any] = {
        "depths": tuple(sum(i == j for j, _ in places) for i in range(stages)),
        "dim": names[f"{root}.0.blocks.0.norm1.weight"][0],
        "stem": "convolutions" if root == "levels" else "patches",
        "qkv_bias": f"{root}.0.blocks.0.attn.qkv.bias" in names,
        "relative_bias": f"{root}.0.blocks.0.attn.rpb" in names,
        "dense": bool(norms) or (headless and base.dense),
        "norms": norms if norms and len(norms) < stages else None,
    }
    hidden = names[f"{root}.0.blocks.0.mlp.fc1.weight"][0]
    if int(found["dim"] * base.mlp_ratio) != hidden:
        found["mlp_ratio"] = hidden / found["dim"]
    scaled = f"{root}.0.blocks.0.gamma1" in names
    found["layer_scale"] = (base.layer_scale or 1e-5) if scaled else None
    if found["relative_bias"]:
        tables = [names[f"{root}.{i}.blocks.0.attn.rpb"] for i in range(stages)]
        found |= {"heads": tuple(t[0] for t in tables), "kernel": (tables[0][1] + 1) // 2}
    if root == "layers":
        found |= {"patch": names["patch_embed.proj.weight"][2], "patch_norm": "patch_embed.norm.weight" in names}
    else:
        found["patch"] = 4
    return found


PUBLISHED = (
    KeyMap(
        rename=[
            *((rf"^(?:levels|layers)\.{i}\.downsample", f"backbone.stages.{i + 1}.merge") for i in range(8)),
            (r"^(?:levels|layers)\.(\d+)\.blocks\.(\d+)", r"backbone.stages.\1.blocks.\2"),
            (r"\.attn\.rpb$", ".token_mixer.bias_table"),
            (r"\.attn\.", ".token_mixer."),
            (r"\.mlp\.", ".channel_mixer."),
            (r"\.gamma([12])$", r".scale\1.scale"),
            (r"^patch_embed\.proj\.0\.", "backbone.stages.0.merge.0.conv1."),
            (r"^patch_embed\.proj\.1\.", "backbone.stages.0.merge.0.conv2."),
            (r"^patch_embed\.proj\.", "backbone.stages.0.merge.0.conv."),
            (r"^patch_embed\.norm\.", "backbone.stages.0.merge.0.norm."),
            (r"^norm(\d)\.", r"backbone.norms.\1."),
            (r"^norm\.", "head.norm."),
            (r"^head\.(weight|bias)$", r"head.fc.\1"),
        ],
    ),
)
