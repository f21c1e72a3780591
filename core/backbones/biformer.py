"""BiFormer: every region of the map attends to the regions that it chooses, in three of four stages.

Paper: arXiv 2303.08810. Reference: rayleizhu/BiFormer@1697bbb (MIT), its first operator, the NCHW one, the dense code.
Differs: the classification form takes any size by the dense code's padding, as does the NCHW operator for maps with
fewer cells than regions, where the published one fails; more regions to see than there are means all of them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.errors import SettingError, ShapeError, expect_shape
from core.facts import Facts
from core.heads.classify import ClassifierHead
from core.layers.convs import convolve, scale_and_shift
from core.layers.linear import linear
from core.layers.mlp import MLP
from core.layers.patches import to_channels_first
from core.layers.residual import Block, Stage, spread
from core.mixers.routing import BiLevelRoutingAttention, PlainAttention, Regions
from core.weights import KeyMap

FACTS = Facts(
    title="BiFormer",
    paper="arXiv 2303.08810",
    licence="MIT",
    top1={"tiny": 81.4, "small": 83.8, "base": 84.3, "stl": 82.7, "stl_nchw": 82.7},
)
HEAD = ClassifierHead(norm=nn.BatchNorm2d, eps=1e-5, pool="mean")


@dataclass(frozen=True)
class BiFormerConfig:
    in_channels: int = 3
    dims: tuple[int, ...] = (64, 128, 256, 512)  # channels of each stage
    depths: tuple[int, ...] = (2, 2, 8, 2)
    regions: int = 7  # along each side of a map; published dense forms have 16 (COCO) or 8 (ADE20K)
    topk: tuple[int, ...] = (1, 4, 16, 0)  # regions that each one sees, per stage; 0 is plain attention
    cut: Regions = "count"  # how a map becomes regions; "size" is the NCHW operator's way
    head_dim: int = 32  # of routed attention; the plain one has 8 heads
    qk_dims: tuple[int, ...] = ()  # width of queries and keys in routed stages; by default `dims`
    lepe: int = 5  # side of the convolution beside attention
    plain_lepe: Literal["input", "value", "none"] = "input"  # what that convolution sees in plain attention
    stem: Literal["overlapping", "patches"] = "overlapping"  # 3x3 convolutions, or cells of 4x4 and 2x2 as in Swin
    positions: bool = True  # depthwise 3x3 convolution before each attention
    mlp_ratio: float = 3.0
    layer_scale: float | None = None  # start of the factors; published networks have none
    norms: tuple[int, ...] = ()  # levels with an output LayerNorm; the published dense form has all
    drop_path: float = 0.0  # of the last block; linear from 0


class ConvNorm(nn.Module):
    """3x3 convolution with stride 2, batch norm: channels-last (B, H, W, C) -> (B, ceil(H / 2), ceil(W / 2), out)."""

    def __init__(self, dim: int, out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, out, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(out)

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 3, 1, 2)
        if self.training:
            return self.norm(self.conv(x)).permute(0, 2, 3, 1)
        scale, shift = scale_and_shift(self.norm)
        assert self.conv.bias is not None
        weight, bias = self.conv.weight * scale[:, None, None, None], self.conv.bias * scale + shift
        return F.conv2d(x, weight, bias, stride=2, padding=1).permute(0, 2, 3, 1)


class OverlappingStem(nn.Module):
    """Image (B, C, H, W) -> (B, ceil(H / 4), ceil(W / 4), dim): two convolutions, GELU between."""

    def __init__(self, in_channels: int, dim: int) -> None:
        super().__init__()
        self.first, self.second = ConvNorm(in_channels, dim // 2), ConvNorm(dim // 2, dim)

    def forward(self, image: Tensor) -> Tensor:
        image = image.contiguous(memory_format=torch.channels_last)  # else the map comes out channels-first
        return self.second(F.gelu(self.first(image.permute(0, 2, 3, 1))))


class PatchStem(nn.Module):
    """Image (B, C, H, W) -> (B, H // 4, W // 4, dim): cells of 4x4 pixels, batch norm."""

    def __init__(self, in_channels: int, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, dim, 4, stride=4)
        self.norm = nn.BatchNorm2d(dim)

    def forward(self, image: Tensor) -> Tensor:
        image = image.contiguous(memory_format=torch.channels_last)
        return self.norm(self.conv(image)).permute(0, 2, 3, 1)


class PatchMerging(nn.Module):
    """Batch norm, cells of 2x2: (B, H, W, C) -> (B, H // 2, W // 2, out)."""

    def __init__(self, dim: int, out: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(dim)
        self.conv = nn.Conv2d(dim, out, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:  # the norm's statistics are of the whole map, a last odd row and column included
            return convolve(self.conv, self.norm(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
        B, H, W, C = x.shape
        h, w = H // 2, W // 2
        cells = x[:, : 2 * h, : 2 * w].reshape(B, h, 2, w, 2, C).transpose(2, 3).reshape(B, h, w, 4 * C)
        scale, shift = (t.repeat(4) for t in scale_and_shift(self.norm))
        weight = self.conv.weight.permute(0, 2, 3, 1).flatten(1)
        assert self.conv.bias is not None
        return linear(cells, weight * scale, torch.mv(weight, shift) + self.conv.bias)


class PositionedBlock(Block):
    """Pre-norm residual block on the map plus a depthwise 3x3 convolution of itself, where `positions` is one."""

    def __init__(self, dim: int, token_mixer: nn.Module, channel_mixer: nn.Module, *, positions: bool, **more: Any):
        super().__init__(dim, token_mixer, channel_mixer, **more)
        self.positions = nn.Conv2d(dim, dim, 3, padding=1, groups=dim) if positions else None

    def forward(self, x: Tensor) -> Tensor:
        if self.positions is not None:
            x = x + convolve(self.positions, x)
        return super().forward(x)


class BiFormer(nn.Module):
    """Image (B, C, H, W) -> pyramid, one (B, channels[i], h, w) per stage.

    Any H and W, sides rounded up at each halving; with the "patches" stem from 32 up, rounded down. In the dense form
    each level is normed; the un-normed map goes on.
    """

    def __init__(self, config: BiFormerConfig) -> None:
        super().__init__()
        c = self.config = config
        if not len(c.dims) == len(c.depths) == len(c.topk):
            raise SettingError(f"biformer: {len(c.dims)} dims, {len(c.depths)} depths and {len(c.topk)} topk")
        if c.qk_dims and len(c.qk_dims) != len(c.dims):
            raise SettingError(f"biformer: {len(c.dims)} dims and {len(c.qk_dims)} qk_dims")
        self.channels = c.dims
        self.strides = tuple(4 * 2**i for i in range(len(c.dims)))
        stem, merging = (OverlappingStem, ConvNorm) if c.stem == "overlapping" else (PatchStem, PatchMerging)
        rates = spread(c.drop_path, c.depths)
        self.stages = nn.ModuleList(
            Stage(
                merging(c.dims[i - 1], dim) if i else stem(c.in_channels, dim),
                [_block(c, i, rate) for rate in rates[i]],
            )
            for i, dim in enumerate(c.dims)
        )
        norms = (nn.LayerNorm(dim, eps=1e-6) if i in c.norms else nn.Identity() for i, dim in enumerate(c.dims))
        self.norms = nn.ModuleList(norms)
        self.apply(_initialise)

    def forward(self, image: Tensor) -> list[Tensor]:
        size = expect_shape(image, "B C H W", C=self.config.in_channels)
        least = self.strides[-1] if self.config.stem == "patches" else 1
        if size["H"] < least or size["W"] < least:
            raise ShapeError(f"biformer: an image of {size['H']} x {size['W']} pixels, sides start at {least}")
        x, pyramid = image, []
        for stage, norm in zip(self.stages, self.norms, strict=True):
            x = stage(x)
            pyramid.append(to_channels_first(norm(x)))
        return pyramid


def _block(c: BiFormerConfig, stage: int, drop_path: float) -> nn.Module:
    dim = c.dims[stage]
    mixer: nn.Module
    if c.topk[stage]:
        qk_dim = c.qk_dims[stage] if c.qk_dims else dim
        mixer = BiLevelRoutingAttention(
            dim, qk_dim // c.head_dim, regions=c.regions, topk=c.topk[stage], cut=c.cut, qk_dim=qk_dim, lepe=c.lepe
        )
    else:
        mixer = PlainAttention(dim, lepe_of=c.plain_lepe, lepe=c.lepe)
    return PositionedBlock(
        dim, mixer, MLP(dim, ratio=c.mlp_ratio), positions=c.positions, drop_path=drop_path,
        layer_scale=c.layer_scale, norm=partial(nn.LayerNorm, eps=1e-6),
    )  # fmt: skip


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


TINY = BiFormerConfig(drop_path=0.1)
STL = BiFormerConfig(
    dims=(96, 192, 384, 768), depths=(2, 2, 6, 2), stem="patches", positions=False, mlp_ratio=4.0, drop_path=0.1
)

VARIANTS = {
    "tiny": TINY,
    "small": replace(TINY, depths=(4, 4, 18, 4), drop_path=0.15),
    "base": replace(TINY, dims=(96, 192, 384, 768), depths=(4, 4, 18, 4)),  # drop path not stated: the default
    "stl": STL,
    "stl_nchw": replace(STL, cut="size", plain_lepe="value"),
}

build = BiFormer

_ARGUMENTS = {  # the authors' constructor arguments and our settings
    "in_chans": "in_channels", "embed_dim": "dims", "depth": "depths", "n_win": "regions", "head_dim": "head_dim",
    "qk_dims": "qk_dims", "drop_path_rate": "drop_path",
}  # fmt: skip
_ONLY = {"kv_downsample_mode": "identity", "pre_norm": True, "pe": None, "mlp_dwconv": False}  # of any weights


def from_published(
    build: Mapping[str, Any], names: Mapping[str, Sequence[int]], base: BiFormerConfig = TINY
) -> BiFormerConfig:
    """The authors' constructor arguments or the name of their function as ours; the rest by names and shapes.

    No weight shows how many regions there are and how many are seen: where nobody states them, those of `base`.
    """
    base = VARIANTS.get(str(build.get("fn", "")).removeprefix("biformer_"), base)
    if wrong := [f"{k}={build[k]!r}" for k, v in _ONLY.items() if build.get(k, v) != v]:
        raise SettingError(f"biformer: in no published network: {', '.join(wrong)}")
    given: dict[str, Any] = _shapes(names, base.topk) if names else {}
    given |= {ours: build[theirs] for theirs, ours in _ARGUMENTS.items() if build.get(theirs) is not None}
    if "topks" in build:  # -1 and -2 are plain attention
        if 0 in build["topks"]:
            raise SettingError("biformer: convolutions in place of attention (top-k 0) are in no published network")
        given["topk"] = tuple(max(k, 0) for k in build["topks"])
    if build.get("layer_scale_init_value", -1) > 0:
        given["layer_scale"] = build["layer_scale_init_value"]
    given |= {k: tuple(given[k]) for k in ("dims", "depths", "qk_dims") if k in given}
    if given.get("qk_dims") == given.get("dims", base.dims):
        given["qk_dims"] = ()
    config = replace(base, **given)
    if len(config.topk) != len(config.depths) and "topks" not in build:
        raise SettingError(f"biformer: {len(config.depths)} stages, and nobody states the regions that each one sees")
    return config


def _shapes(names: Mapping[str, Sequence[int]], seen: Sequence[int]) -> dict[str, Any]:
    """Settings that published names and shapes show, where `seen` are the regions for routed stages."""
    patches = "downsample_layers.0.3.weight" not in names
    inner = "blocks." if any(n.startswith("stages.0.blocks.") for n in names) else ""
    merges = ["downsample_layers.0.0.weight" if patches else "downsample_layers.0.3.weight"]
    while (name := f"downsample_layers.{len(merges)}.{int(patches)}.weight") in names:
        merges.append(name)
    dims = tuple(names[n][0] for n in merges)
    at = [f"stages.{i}.{inner}" for i in range(len(dims))]
    start = len(at[0].split(".")) - 1
    depths = tuple(len({n.split(".")[start] for n in names if n.startswith(a)}) for a in at)
    plain = [f"{a}0.attn.proj.weight" in names for a in at]
    routed = [names.get(f"{a}0.attn.qkv.qkv.weight", names.get(f"{a}0.attn.qkv_linear.weight")) for a in at]
    nchw = any(".attn.qkv_linear." in n for n in names)
    lepe = [shape[2] for n, shape in names.items() if n.endswith(".attn.lepe.weight")]
    beside = any(f"{a}0.attn.lepe.weight" in names for a, p in zip(at, plain, strict=True) if p)
    norms = tuple(sorted(int(found[1]) for n in names if (found := re.match(_NORMS, n)) and n.endswith("weight")))
    return {
        "in_channels": names["downsample_layers.0.0.weight"][1],
        "dims": dims,
        "depths": depths,
        **({"cut": "size" if nchw else "count"} if any(routed) else {}),
        **({"plain_lepe": ("value" if nchw else "input") if beside else "none"} if any(plain) else {}),
        **({"topk": tuple(0 if p else k for p, k in zip(plain, seen, strict=True))} if len(seen) == len(at) else {}),
        **({"lepe": lepe[0]} if lepe else {}),
        "qk_dims": tuple((s[0] - d) // 2 if s else d for s, d in zip(routed, dims, strict=True)),
        "stem": "patches" if patches else "overlapping",
        "positions": f"{at[0]}0.pos_embed.weight" in names,
        "mlp_ratio": names[f"{at[0]}0.mlp.0.weight"][0] / dims[0],
        **({} if not norms and "norm.weight" not in names else {"norms": norms}),
    }


_NORMS = r"^(?:extra_)?norms?\.?(\d)\."  # of the dense form, however its code calls them
_BLOCKS = [
    (r"^stages\.(\d+)\.(?:blocks\.)?(\d+)\.", r"backbone.stages.\1.blocks.\2."),
    (r"\.pos_embed\.", ".positions."),
    (r"\.attn\.(?:qkv\.qkv|qkv_linear)\.", ".attn.qkv."),
    (r"\.attn\.(?:wo|output_linear)\.", ".attn.proj."),
    (r"\.attn\.", ".token_mixer."),
    (r"\.mlp\.0\.", ".channel_mixer.fc1."),
    (r"\.mlp\.[23]\.", ".channel_mixer.fc2."),
    (_NORMS, r"backbone.norms.\1."),
    (r"^norm\.", "head.norm."),
    (r"^head\.(weight|bias)$", r"head.fc.\1"),
]
_MATRICES = {r"\.(?:attn\.(?:qkv|qkv_linear|output_linear|proj)|mlp\.\d)\.weight$": lambda value: value.flatten(1)}

PUBLISHED = (
    KeyMap(
        rename=[
            (r"^downsample_layers\.0\.0\.", "backbone.stages.0.merge.first.conv."),
            (r"^downsample_layers\.0\.1\.", "backbone.stages.0.merge.first.norm."),
            (r"^downsample_layers\.0\.3\.", "backbone.stages.0.merge.second.conv."),
            (r"^downsample_layers\.0\.4\.", "backbone.stages.0.merge.second.norm."),
            (r"^downsample_layers\.(\d+)\.0\.", r"backbone.stages.\1.merge.conv."),
            (r"^downsample_layers\.(\d+)\.1\.", r"backbone.stages.\1.merge.norm."),
            *_BLOCKS,
        ],
        transform=_MATRICES,
        when=r"^downsample_layers\.0\.3\.",
    ),
    KeyMap(  # the layouts of Swin-T; 1x1 convolutions of the NCHW operator as matrices
        rename=[
            (r"^downsample_layers\.0\.0\.", "backbone.stages.0.merge.conv."),
            (r"^downsample_layers\.0\.1\.", "backbone.stages.0.merge.norm."),
            (r"^downsample_layers\.(\d+)\.0\.", r"backbone.stages.\1.merge.norm."),
            (r"^downsample_layers\.(\d+)\.1\.", r"backbone.stages.\1.merge.conv."),
            *_BLOCKS,
        ],
        transform=_MATRICES,
    ),
)
