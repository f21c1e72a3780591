"""MaxViT: every block is a mobile convolution, attention inside windows and attention over a grid of the whole map.

Paper: arXiv 2204.01697. Reference: google-research/maxvit@70a4707 (Apache-2.0, TensorFlow) and its port in timm 1.0.31,
maxvit_*_tf_* (Apache-2.0), whose parameter names are read.
Differs: in evaluation the batch norms of the mobile convolution are computed as part of the weights beside them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import lcm
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.errors import SettingError, ShapeError, expect_shape
from core.facts import Facts
from core.heads.classify import ClassifierHead
from core.layers.convs import MBConv, TanhGELU
from core.layers.mlp import MLP
from core.layers.patches import to_channels_first
from core.layers.residual import Block, spread
from core.mixers.multi_axis import MultiAxisAttention
from core.weights import KeyMap

FACTS = Facts(
    title="MaxViT",
    paper="arXiv 2204.01697",
    licence="Apache-2.0",
    top1={
        "tiny": 83.62, "tiny_384": 85.24, "tiny_512": 85.72, "small": 84.45, "small_384": 85.74, "small_512": 86.19,
        "base": 84.95, "base_384": 86.34, "base_512": 86.66, "large": 85.17, "large_384": 86.40, "large_512": 86.70,
    },
    size={f"{name}_{size}": size for name in ("tiny", "small", "base", "large", "xlarge") for size in (384, 512)},
)  # fmt: skip


def head(backbone: Any, classes: int) -> nn.Module:
    """Mean, LayerNorm, Linear, tanh, Linear; kernels start like all others."""
    make = ClassifierHead(norm=nn.LayerNorm, eps=1e-5, norm_first=False, hidden=nn.Tanh)
    return make(backbone, classes).apply(_initialise)


@dataclass(frozen=True)
class MaxViTConfig:
    in_channels: int = 3
    stem: int = 64  # channels of the stem
    dims: tuple[int, ...] = (64, 128, 256, 512)  # channels of each stage
    depths: tuple[int, ...] = (2, 2, 5, 2)
    head_dim: int = 32
    window: int | tuple[int, int] = 7  # positions of windows and of grids, rows and columns; published: size / 32
    mlp_ratio: float = 4.0
    expand: float = 4.0  # inner width of the mobile convolution over its output's
    squeeze: float = 0.25  # width of its squeeze-and-excitation over its output's
    drop_path: float = 0.0  # block b of N drops with drop_path * b / N


class Stem(nn.Module):
    """Two 3 x 3 convolutions, (B, C, H, W) -> (B, H / 2, W / 2, dim)."""

    fusable = (("conv1", "norm"),)  # for core.compression.fold

    def __init__(self, in_channels: int, dim: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, dim, 3, 2)
        self.norm = nn.BatchNorm2d(dim, eps=1e-3, momentum=0.01)
        self.act = TanhGELU()
        self.conv2 = nn.Conv2d(dim, dim, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        x = F.pad(image, (0, 1, 0, 1))  # TensorFlow's "same" padding of an even size at stride 2
        return self.conv2(self.act(self.norm(self.conv1(x)))).permute(0, 2, 3, 1)


class MaxViTBlock(nn.Module):
    """Mobile convolution, then window and grid attention, each with its MLP; (B, H, W, C) in and out."""

    def __init__(self, dim: int, out: int, stride: int, drop_path: float, c: MaxViTConfig) -> None:
        super().__init__()
        self.conv = MBConv(dim, out, stride=stride, expand=c.expand, squeeze=c.squeeze, drop_path=drop_path)
        mixer = partial(MultiAxisAttention, out, out // c.head_dim, window=c.window)
        self.block = Block(out, mixer(axis="block"), _mlp(out, c), drop_path=drop_path)
        self.grid = Block(out, mixer(axis="grid"), _mlp(out, c), drop_path=drop_path)

    def forward(self, x: Tensor) -> Tensor:
        return self.grid(self.block(self.conv(x)))


def _mlp(dim: int, c: MaxViTConfig) -> MLP:
    mlp = MLP(dim, ratio=c.mlp_ratio, activation="gelu_tanh")
    mlp.act = TanhGELU()
    return mlp


class Stage(nn.Module):
    """One resolution, half of the one before; the first has the stem in front."""

    def __init__(self, stem: nn.Module, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.stem, self.blocks = stem, nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.stem(x))


class MaxViT(nn.Module):
    """Image (B, C, H, W) -> pyramid, one (B, channels[i], H / strides[i], W / strides[i]) per stage.

    Raises:
        ShapeError: a side is not a multiple of 32 times the window, so that windows do not divide every stage's map.
    """

    def __init__(self, config: MaxViTConfig) -> None:
        super().__init__()
        c = self.config = config
        if len(c.dims) != len(c.depths):
            raise SettingError(f"maxvit: {len(c.depths)} depths but {len(c.dims)} widths")
        if any(dim % c.head_dim for dim in c.dims):
            raise SettingError(f"maxvit: heads of {c.head_dim} channels do not divide the widths {c.dims}")
        self.channels = c.dims
        self.strides = tuple(4 * 2**i for i in range(len(c.depths)))
        self.multiple = self.strides[-1] * lcm(*_sides(c.window))  # of both sides, for who pads
        blocks = sum(c.depths)
        rates = spread(c.drop_path * (blocks - 1) / blocks, c.depths)  # the published schedule stops short of the rate
        stages, dim = [], c.stem
        for i, out in enumerate(c.dims):
            inner = [MaxViTBlock(out if j else dim, out, 1 if j else 2, rate, c) for j, rate in enumerate(rates[i])]
            stages.append(Stage(nn.Identity() if i else Stem(c.in_channels, c.stem), inner))
            dim = out
        self.stages = nn.ModuleList(stages)
        self.apply(_initialise)

    def forward(self, image: Tensor) -> list[Tensor]:
        size = expect_shape(image, "B C H W", C=self.config.in_channels)
        self._check(size["H"], size["W"])
        x, pyramid = image.contiguous(memory_format=torch.channels_last), []
        for stage in self.stages:
            x = stage(x)
            pyramid.append(to_channels_first(x))
        return pyramid

    def _check(self, height: int, width: int) -> None:
        P, Q = _sides(self.config.window)
        stride = self.strides[-1]
        if height % (stride * P) or width % (stride * Q):
            raise ShapeError(
                f"maxvit with window {P} x {Q} takes multiples of {stride * P} x {stride * Q} pixels, "
                f"got {height} x {width}: resize or pad the image, or set `window` to a divisor of size / {stride}"
            )


def _sides(window: int | tuple[int, int]) -> tuple[int, int]:
    return (window, window) if isinstance(window, int) else window


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


TINY = MaxViTConfig(drop_path=0.2)
SMALL = MaxViTConfig(dims=(96, 192, 384, 768), drop_path=0.3)
BASE = replace(SMALL, depths=(2, 6, 14, 2), drop_path=0.4)
LARGE = replace(BASE, stem=128, dims=(128, 256, 512, 1024), drop_path=0.6)
XLARGE = replace(LARGE, stem=192, dims=(192, 384, 768, 1536))
_SIZES = {"tiny": TINY, "small": SMALL, "base": BASE, "large": LARGE, "xlarge": XLARGE}

VARIANTS = {
    **_SIZES,
    **{f"{name}_384": replace(config, window=12) for name, config in _SIZES.items()},
    **{f"{name}_512": replace(config, window=16) for name, config in _SIZES.items()},
}

build = MaxViT


def from_published(
    build: Mapping[str, Any], names: Mapping[str, Sequence[int]], base: MaxViTConfig = TINY
) -> MaxViTConfig:
    """A timm model's arguments as ours. They are a name and a few changes: sizes are read from the shapes.

    Without arguments (a weights file) `base` stands, and what does not fit it is the file's reader to refuse.
    """
    if not build:
        return base
    given: dict[str, Any] = {}
    if "drop_path_rate" in build:
        given["drop_path"] = float(build["drop_path_rate"])
    return replace(base, **_shapes(names), **given)


def _shapes(names: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """Settings that timm's parameter names and shapes show."""
    first = "stages.0.blocks.0."
    if f"{first}conv.conv1_1x1.weight" not in names:
        return {}
    depths: list[int] = []
    while f"stages.{len(depths)}.blocks.0.conv.conv1_1x1.weight" in names:
        stage = f"stages.{len(depths)}.blocks."
        depths.append(1 + max(int(n.removeprefix(stage).split(".")[0]) for n in names if n.startswith(stage)))
    dims = tuple(names[f"stages.{i}.blocks.0.conv.conv3_1x1.weight"][0] for i in range(len(depths)))
    heads, *sides = names[f"{first}attn_block.attn.rel_pos.relative_position_bias_table"]
    P, Q = ((side + 1) // 2 for side in sides)
    return {
        "in_channels": names["stem.conv1.weight"][1],
        "stem": names["stem.conv1.weight"][0],
        "dims": dims,
        "depths": tuple(depths),
        "head_dim": dims[0] // heads,
        "window": P if P == Q else (P, Q),
        "mlp_ratio": names[f"{first}attn_block.mlp.fc1.weight"][0] / dims[0],
        "expand": names[f"{first}conv.conv1_1x1.weight"][0] / dims[0],
        "squeeze": names[f"{first}conv.se.fc1.weight"][0] / dims[0],
    }


def _matrix(value: Tensor) -> Tensor:
    return value.flatten(1)


def _table(value: Tensor, ours: Tensor, model: nn.Module) -> Tensor:
    """(heads, 2P - 1, 2Q - 1) for another window, bilinear between cell centres, as the authors fine-tune."""
    if value.ndim != 3 or value.shape[0] != ours.shape[0]:
        return value
    return F.interpolate(value[None], size=tuple(ours.shape[1:]), mode="bilinear", align_corners=False)[0]


PUBLISHED = (
    KeyMap(
        rename=[
            (r"^stem\.norm1\.", "stem.norm."),
            (r"^stem\.", "backbone.stages.0.stem."),
            (r"^stages\.(\d+)\.", r"backbone.stages.\1."),
            (r"\.conv\.pre_norm\.", ".conv.norm0."),
            (r"\.conv\.conv1_1x1\.", ".conv.widen."),
            (r"\.conv\.conv2_kxk\.", ".conv.depthwise."),
            (r"\.conv\.conv3_1x1\.", ".conv.narrow."),
            (r"\.conv\.shortcut\.expand\.", ".conv.shortcut."),
            (r"\.attn_(block|grid)\.", r".\1."),
            (r"\.attn\.rel_pos\.relative_position_bias_table$", ".token_mixer.bias_table"),
            (r"\.attn\.", ".token_mixer."),
            (r"\.mlp\.", ".channel_mixer."),
            (r"^head\.pre_logits\.fc\.", "head.hidden.0."),
        ],
        drop=[r"relative_position_index$"],
        transform={r"\.(conv1_1x1|conv3_1x1|se\.fc1|se\.fc2|shortcut\.expand)\.weight$": _matrix},
        resize={r"bias_table$": _table},
    ),
)
