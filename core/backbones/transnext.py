"""TransNeXt: neighbours and a pooled map in one softmax, a gated convolutional channel mixer.

Paper: arXiv 2311.17132. Reference: DaiShiResearch/TransNeXt@c8a9974 (Apache-2.0), native operators, both networks.
Differs: the classification form takes any size, by the dense network's rules (its position bias is resized or made
anew); at the size that it was built for both are the same.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.errors import SettingError, expect_shape
from core.facts import Facts
from core.heads.classify import ClassifierHead
from core.layers.convs import convolve
from core.layers.linear import Linear
from core.layers.patches import to_channels_first
from core.layers.residual import Block, Stage, spread
from core.mixers.aggregated import AggregatedAttention, CosineAttention, LogBias, Positions
from core.weights import KeyMap

FACTS = Facts(
    title="TransNeXt",
    paper="arXiv 2311.17132",
    licence="Apache-2.0",
    top1={
        "micro": 82.5, "tiny": 84.0, "small": 84.7, "base": 84.8, "micro_aaaa": 82.6, "small_384": 86.0,
        "base_384": 86.2,
    },
    size={"micro_aaaa": 256, "small_384": 384, "base_384": 384},
)  # fmt: skip
HEAD = ClassifierHead(norm=None, pool="mean")  # the last stage's norm is the backbone's


@dataclass(frozen=True)
class TransNeXtConfig:
    in_channels: int = 3
    dims: tuple[int, ...] = (48, 96, 192, 384)  # channels of each stage
    depths: tuple[int, ...] = (2, 2, 15, 2)
    heads: tuple[int, ...] = (2, 4, 8, 16)
    mlp_ratios: tuple[float, ...] = (8, 8, 4, 4)  # of the gated mixer; its inner width is two thirds of that
    aggregated: tuple[bool, ...] = (True, True, True, False)  # stages with neighbours and pooled map; else plain
    pools: tuple[int, ...] = (8, 4, 2, 1)  # cells along a side of a pooled key
    pool_size: int = 0  # pooled keys along a side in aggregated stages, whatever the map ("linear mode"); 0: by `pools`
    window: int = 3  # side of the neighbourhood
    qkv_bias: bool = True
    image_size: int = 224  # side that the position bias is built for, where it is interpolated
    pretrain_size: int | None = None  # side that it was trained at; by default `image_size`
    positions: Positions = "interpolate"  # of other sizes: "interpolate", or "extrapolate" by the bias's own network
    drop_path: float = 0.0  # of the last block; linear from 0


class ConvGLU(nn.Module):
    """Half of a widened map through a depthwise 3x3 and GELU gates the other half: (B, H, W, C) -> the same."""

    def __init__(self, dim: int, ratio: float) -> None:
        super().__init__()
        self.hidden = inner = int(2 * int(dim * ratio) / 3)
        self.fc1 = Linear(dim, 2 * inner)
        self.depthwise = nn.Conv2d(inner, inner, 3, padding=1, groups=inner)
        self.fc2 = Linear(inner, dim)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.fc1(x).split(self.hidden, -1)
        return self.fc2(F.gelu(convolve(self.depthwise, a)) * b)


class Embedding(nn.Module):
    """Overlapping convolution, LayerNorm: channels-last (B, H, W, C) -> (B, ceil(H / s), ceil(W / s), dim)."""

    def __init__(self, in_channels: int, dim: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, dim, kernel, stride, kernel // 2)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
        return self.norm(self.conv(x).permute(0, 2, 3, 1))


class NormedStage(Stage):
    """A stage whose norm is also what the next one reads."""

    def __init__(self, merge: nn.Module, blocks: Sequence[nn.Module], dim: int) -> None:
        super().__init__(merge, blocks)
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(super().forward(x))


class TransNeXt(nn.Module):
    """Image (B, C, H, W) -> pyramid, one (B, channels[i], h, w) per stage, each after its norm, for any H and W.

    The first level has ceil(H / 4) rows, each further one half of them, rounded up; columns likewise.
    """

    def __init__(self, config: TransNeXtConfig) -> None:
        super().__init__()
        c = self.config = config
        lists = (c.dims, c.depths, c.heads, c.mlp_ratios, c.aggregated, c.pools)
        if len({len(values) for values in lists}) > 1:
            raise SettingError(
                "transnext: dims, depths, heads, mlp_ratios, aggregated and pools have one entry a stage, "
                f"got {', '.join(str(len(v)) for v in lists)}"
            )
        self.channels = c.dims
        self.strides = tuple(4 * 2**i for i in range(len(c.dims)))
        rates = spread(c.drop_path, c.depths)
        stages = []
        for i, dim in enumerate(c.dims):
            merge = Embedding(c.dims[i - 1], dim, 3, 2) if i else Embedding(c.in_channels, dim, 7, 4)
            blocks = [_block(c, i, rate) for rate in rates[i]]
            stages.append(NormedStage(merge, blocks, dim))
        self.stages = nn.ModuleList(stages)
        self.apply(_start)

    def forward(self, image: Tensor) -> list[Tensor]:
        expect_shape(image, "B C H W", C=self.config.in_channels)
        x, pyramid = image.permute(0, 2, 3, 1), []
        for stage in self.stages:
            x = stage(x)
            pyramid.append(to_channels_first(x))
        return pyramid


def _block(c: TransNeXtConfig, stage: int, rate: float) -> Block:
    dim, heads, stride = c.dims[stage], c.heads[stage], 4 * 2**stage
    mixer: nn.Module
    bias = LogBias(
        heads,
        built=max(c.image_size // stride, 1),
        pool=c.pools[stage] if c.aggregated[stage] else 1,
        pretrained=(c.pretrain_size or c.image_size) // stride,
        fixed=c.pool_size if c.aggregated[stage] else 0,
        positions=c.positions,
    )
    if c.aggregated[stage]:
        mixer = AggregatedAttention(dim, heads, bias, window=c.window, qkv_bias=c.qkv_bias)
    else:
        mixer = CosineAttention(dim, heads, bias, qkv_bias=c.qkv_bias)
    return Block(dim, mixer, ConvGLU(dim, c.mlp_ratios[stage]), drop_path=rate, norm=_norm)


def _norm(dim: int) -> nn.Module:
    return nn.LayerNorm(dim, eps=1e-6)


def _start(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):
        fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
        if module.bias is not None:
            nn.init.zeros_(module.bias)


MICRO = TransNeXtConfig(drop_path=0.15)
TINY = replace(MICRO, dims=(72, 144, 288, 576), heads=(3, 6, 12, 24), drop_path=0.25)
SMALL = replace(TINY, depths=(5, 5, 22, 5), drop_path=0.45)
BASE = replace(MICRO, dims=(96, 192, 384, 768), depths=(5, 5, 23, 5), heads=(4, 8, 16, 32), drop_path=0.6)

VARIANTS = {
    "micro": MICRO,
    "tiny": TINY,
    "small": SMALL,
    "base": BASE,
    "micro_aaaa": replace(MICRO, aggregated=(True,) * 4, pools=(16, 8, 4, 2), image_size=256),
    "small_384": replace(SMALL, image_size=384, pretrain_size=224),
    "base_384": replace(BASE, image_size=384, pretrain_size=224, drop_path=0.8),
}

build = TransNeXt

_ARGUMENTS = {
    "img_size": "image_size", "pretrain_size": "pretrain_size", "num_heads": "heads", "mlp_ratios": "mlp_ratios",
    "sr_ratios": "pools", "fixed_pool_size": "pool_size",
}  # fmt: skip


def from_published(
    build: Mapping[str, Any], names: Mapping[str, Sequence[int]], base: TransNeXtConfig = MICRO
) -> TransNeXtConfig:
    """The variant of the authors' function name ("transnext_micro"), then names and shapes, then the arguments."""
    name = str(build.get("fn", "")).lower().removeprefix("transnext_").replace("_aaaa", "").replace("aaaa", "")
    base = VARIANTS.get(name, base)
    found = (re.match(r"block(\d+)\.(\d+)\.norm1\.weight$", n) for n in names)
    blocks = sorted({(int(m[1]), int(m[2])) for m in found if m})
    given: dict[str, Any] = {}
    if blocks:
        depths = tuple(Counter(stage for stage, _ in blocks).values())
        at = [f"block{i + 1}.0." for i in range(len(depths))]
        dims = tuple(names[f"{a}norm1.weight"][0] for a in at)
        aggregated = tuple(f"{a}attn.sr.weight" in names for a in at)
        local = [names[f"{a}attn.learnable_bias"][2] for a, on in zip(at, aggregated, strict=True) if on]
        given = {
            "in_channels": names["patch_embed1.proj.weight"][1],
            "dims": dims,
            "depths": depths,
            "heads": tuple(names[f"{a}attn.temperature"][0] for a in at),
            "mlp_ratios": tuple(_ratio(d, names[f"{a}mlp.fc2.weight"][1]) for a, d in zip(at, dims, strict=True)),
            "aggregated": aggregated,
            "window": math.isqrt(local[0]) if local else base.window,
            "qkv_bias": f"{at[0]}attn.q.bias" in names or f"{at[0]}attn.qkv.bias" in names,
        }
        if all(aggregated) and not all(base.aggregated):
            given |= {"pools": VARIANTS["micro_aaaa"].pools, "image_size": VARIANTS["micro_aaaa"].image_size}
    given |= {ours: build[k] for k, ours in _ARGUMENTS.items() if build.get(k) is not None}
    if "is_extrapolation" in build:
        given["positions"] = "extrapolate" if build["is_extrapolation"] else "interpolate"
    settings: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
    return replace(base, **settings)


def _ratio(dim: int, inner: int) -> float:
    """The ratio whose gated mixer has this inner width; the whole number where one does."""
    near = round(3 * inner / (2 * dim))
    return near if int(2 * int(dim * near) / 3) == inner else (3 * inner / 2 + 0.5) / dim


PUBLISHED = (
    KeyMap(
        rename=[
            *((rf"^patch_embed{i + 1}\.proj\.", f"backbone.stages.{i}.merge.conv.") for i in range(8)),
            *((rf"^patch_embed{i + 1}\.norm\.", f"backbone.stages.{i}.merge.norm.") for i in range(8)),
            *((rf"^block{i + 1}\.", f"backbone.stages.{i}.blocks.") for i in range(8)),
            *((rf"^norm{i + 1}\.", f"backbone.stages.{i}.norm.") for i in range(8)),
            (r"\.attn\.sr\.", ".attn.reduce."),
            (r"\.attn\.cpb_fc(\d)\.", r".attn.bias.fc\1."),
            (r"\.attn\.relative_pos_bias_local$", ".attn.local_bias"),
            (r"\.attn\.", ".token_mixer."),
            (r"\.mlp\.dwconv\.dwconv\.", ".mlp.depthwise."),
            (r"\.mlp\.", ".channel_mixer."),
            (r"^head\.(weight|bias)$", r"head.fc.\1"),
        ],
        drop=[r"\.(relative_pos_index|relative_coords_table|seq_length_scale|padding_mask|local_mask)$"],
        transform={r"\.attn\.sr\.weight$": lambda value: value.flatten(1)},
    ),
)
