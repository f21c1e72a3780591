"""FaViT: a four-level pyramid whose attention is factorized over groups of channels.

Paper: arXiv 2312.08614. Reference: q2479036243/FaViT@529b46b (no licence stated).
Differs: one network for the classification and the dense code: levels are the maps after their stage's norm, which is
what goes on to the next stage and what the dense code gives out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor, nn

from core.errors import SettingError, ShapeError, expect_shape
from core.facts import Facts
from core.heads.classify import ClassifierHead
from core.layers.convs import convolve
from core.layers.gelu import GELU
from core.layers.linear import Linear
from core.layers.patches import to_channels_first
from core.layers.residual import Block, spread
from core.mixers.factorized import FactorizedAttention
from core.weights import KeyMap

FACTS = Facts(
    title="FaViT",
    paper="arXiv 2312.08614",
    licence="none stated; no weights published",
    top1={"b0": 71.5, "b1": 79.4, "b2": 82.3, "b3": 83.4},
)
HEAD = ClassifierHead(norm=None, pool="mean")  # the last stage's norm is the backbone's


@dataclass(frozen=True)
class FaViTConfig:
    in_channels: int = 3
    dims: tuple[int, ...] = (32, 64, 128, 256)  # channels of each stage
    depths: tuple[int, ...] = (2, 2, 6, 2)
    heads: tuple[int, ...] = (1, 2, 4, 8)
    ratios: tuple[int, ...] = (8, 4, 2, 1)  # side of the coarse cells and dilation of the far taps, in tokens
    mlp_ratios: tuple[float, ...] = (8.0, 6.0, 4.0, 4.0)
    window: int = 7  # taps on a side
    qkv_bias: bool = True
    drop_path: float = 0.0  # of the last block; linear from 0


class Embedding(nn.Module):
    """Overlapping patches and their LayerNorm: (B, H, W, C) -> (B, ceil(H / stride), ceil(W / stride), out)."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out, kernel, stride, padding=kernel // 2)
        self.norm = nn.LayerNorm(out)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(convolve(self.conv, x.contiguous()))


class ConvMLP(nn.Module):
    """Linear, depthwise 3x3 convolution, GELU, Linear: (B, H, W, C) -> (B, H, W, C)."""

    def __init__(self, dim: int, ratio: float) -> None:
        super().__init__()
        inner = int(dim * ratio)
        self.fc1 = Linear(dim, inner)
        self.depthwise = nn.Conv2d(inner, inner, 3, padding=1, groups=inner)
        self.act = GELU()
        self.fc2 = Linear(inner, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(convolve(self.depthwise, self.fc1(x))))


class Stage(nn.Module):
    """One resolution: embedding, blocks, norm; gives (B, H, W, C). The first takes the image (B, C, H, W)."""

    def __init__(self, c: FaViTConfig, i: int, rates: Sequence[float]) -> None:
        super().__init__()
        dim, norm = c.dims[i], partial(nn.LayerNorm, eps=1e-6)
        self.first = i == 0
        self.embed = Embedding(c.dims[i - 1], dim, 3, 2) if i else Embedding(c.in_channels, dim, 7, 4)
        self.blocks = nn.Sequential(
            *(
                Block(
                    dim,
                    FactorizedAttention(dim, c.heads[i], ratio=c.ratios[i], window=c.window, qkv_bias=c.qkv_bias),
                    ConvMLP(dim, c.mlp_ratios[i]),
                    drop_path=rate,
                    norm=norm,
                )
                for rate in rates
            )
        )
        self.norm = norm(dim)

    def unnormed(self, x: Tensor) -> Tensor:
        """What the last block answers, (B, H, W, C)."""
        x = self.blocks(self.embed(x.permute(0, 2, 3, 1) if self.first else x))
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.unnormed(x))


class FaViT(nn.Module):
    """Image (B, C, H, W) -> pyramid, one (B, channels[i], h, w) per stage; h = ceil(H / 4), then halved, rounded up.

    Any size from `smallest` pixels a side (97 in the published networks): smaller maps cannot be mirrored to whole
    tiles, and the published code fails there, too.
    """

    def __init__(self, config: FaViTConfig) -> None:
        super().__init__()
        c = self.config = config
        lists = {"dims": c.dims, "depths": c.depths, "heads": c.heads, "ratios": c.ratios, "mlp_ratios": c.mlp_ratios}
        if len({len(values) for values in lists.values()}) > 1:
            raise SettingError(f"favit: one value a stage, got {', '.join(f'{len(v)} {n}' for n, v in lists.items())}")
        self.channels = c.dims
        self.strides = tuple(4 * 2**i for i in range(len(c.dims)))
        # A map must be longer than half a tile, whose side is (window - 1) * dilation + 1.
        halves = [((c.window - 1) * r + 1) // 2 for r in c.ratios]
        self.smallest = max(stride * half for stride, half in zip(self.strides, halves, strict=True)) + 1
        rates = spread(c.drop_path, c.depths)
        self.stages = nn.ModuleList(Stage(c, i, rates[i]) for i in range(len(c.dims)))
        self.apply(_initialise)

    def forward(self, image: Tensor) -> list[Tensor]:
        size = expect_shape(image, "B C H W", C=self.config.in_channels)
        if min(size["H"], size["W"]) < self.smallest:
            raise ShapeError(
                f"an image of {size['H']} x {size['W']} pixels is too small for this network, whose maps are mirrored "
                f"to whole tiles: each side needs at least {self.smallest} pixels"
            )
        x, pyramid = image, []
        for stage in self.stages:
            x = stage(x)
            pyramid.append(to_channels_first(x))
        return pyramid


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
    elif isinstance(module, nn.Conv2d):
        k, out = module.kernel_size, module.out_channels // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2 / (k[0] * k[1] * out)))
    if isinstance(module, nn.Linear | nn.Conv2d) and module.bias is not None:
        nn.init.zeros_(module.bias)


B0 = FaViTConfig(drop_path=0.1)  # the only published training file; the same rate for the others
B1 = replace(B0, dims=(64, 128, 256, 512))

VARIANTS = {
    "b0": B0,
    "b1": B1,
    "b2": replace(B1, depths=(2, 3, 18, 3)),
    "b3": replace(B1, dims=(96, 192, 384, 768), depths=(2, 3, 14, 3)),
}

build = FaViT

_ARGUMENTS = {  # the authors' constructor arguments and our settings
    "in_chans": "in_channels", "embed_dims": "dims", "depths": "depths", "num_heads": "heads", "sr_ratios": "ratios",
    "mlp_ratios": "mlp_ratios", "qkv_bias": "qkv_bias", "drop_path_rate": "drop_path",
}  # fmt: skip


def from_published(build: Mapping[str, Any], names: Mapping[str, Sequence[int]], base: FaViTConfig = B0) -> FaViTConfig:
    """A factory's name and the authors' constructor arguments as ours; the rest by parameter names and shapes."""
    given = {ours: build[theirs] for theirs, ours in _ARGUMENTS.items() if theirs in build}
    given = {n: tuple(v) if isinstance(v, list) else v for n, v in given.items()}
    if "mlp_ratios" in given:
        given["mlp_ratios"] = tuple(map(float, given["mlp_ratios"]))
    named = VARIANTS.get(str(build.get("name", "")).removeprefix("favit_"), base)
    return replace(named, **(_shapes(names) | given))


def _shapes(names: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """Settings that the published parameter names and shapes show."""
    found: dict[str, list[Any]] = {n: [] for n in ("dims", "depths", "heads", "ratios", "mlp_ratios")}
    stage = 1
    while f"patch_embed{stage}.proj.weight" in names:
        block = f"block{stage}."
        dim = names[f"patch_embed{stage}.proj.weight"][0]
        ratio = names[f"{block}0.attn.sr.weight"][2]
        found["dims"].append(dim)
        found["depths"].append(1 + max(int(n.removeprefix(block).split(".")[0]) for n in names if n.startswith(block)))
        found["ratios"].append(ratio)
        found["heads"].append(7 * dim // (16 if ratio > 1 else 8) // names[f"{block}0.attn.fcs.0.weight"][0])
        found["mlp_ratios"].append(names[f"{block}0.mlp.fc1.weight"][0] / dim)
        stage += 1
    if stage == 1:
        return {}
    seen: dict[str, Any] = {n: tuple(values) for n, values in found.items()}
    return seen | {"in_channels": names["patch_embed1.proj.weight"][1], "qkv_bias": "block1.0.attn.q.bias" in names}


PUBLISHED = (
    KeyMap(
        rename=[
            *((rf"^patch_embed{i + 1}\.proj\.", f"backbone.stages.{i}.embed.conv.") for i in range(8)),
            *((rf"^patch_embed{i + 1}\.norm\.", f"backbone.stages.{i}.embed.norm.") for i in range(8)),
            *((rf"^block{i + 1}\.", f"backbone.stages.{i}.blocks.") for i in range(8)),
            *((rf"^norm{i + 1}\.", f"backbone.stages.{i}.norm.") for i in range(8)),
            (r"\.attn\.sr\.", ".token_mixer.coarse.reduce."),
            (r"\.attn\.norm\.", ".token_mixer.coarse.norm."),
            (r"\.attn\.kv_g\.", ".token_mixer.coarse.kv."),
            (r"\.attn\.local_conv_g\.", ".token_mixer.coarse.near."),
            (r"\.attn\.kv_l\.depth_conv\.", ".token_mixer.depthwise."),
            (r"\.attn\.kv_l\.point_conv\.", ".token_mixer.pointwise."),
            (r"\.attn\.fcs\.(\d+)\.", r".token_mixer.tapped.\1.blend."),
            (r"\.attn\.single_heads\.(\d+)\.", r".token_mixer.tapped.\1.kv."),
            (r"\.attn\.local_convs\.(\d+)\.", r".token_mixer.tapped.\1.near."),
            (r"\.attn\.", ".token_mixer."),
            (r"\.mlp\.dwconv\.dwconv\.", ".channel_mixer.depthwise."),
            (r"\.mlp\.", ".channel_mixer."),
            (r"^head\.(weight|bias)$", r"head.fc.\1"),
        ],
    ),
)
