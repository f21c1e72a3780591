"""L2ViT: softmax attention inside windows and linear attention over the whole map, in turn.

Paper: arXiv 2501.16182. Reference: ChuanyangZheng/L2ViT@fad0341 (MIT), classification and dense code.
Differs: the authors' inert options (layer scale, kinds of mixers) do not exist; a drop path of tiny and small is not
stated by the authors and is 0 here.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from core.errors import SettingError, expect_shape
from core.facts import Facts
from core.heads.classify import ClassifierHead
from core.layers import windows
from core.layers.convs import ResidualDepthwise
from core.layers.linear import linear
from core.layers.mlp import MLP
from core.layers.patches import to_channels_first
from core.layers.residual import DropPath, Stage, spread
from core.mixers.linear_attention import LinearAttention, LocalConcentration
from core.mixers.window import PlainWindowAttention
from core.weights import KeyMap

FACTS = Facts(
    title="L2ViT",
    paper="arXiv 2501.16182",
    licence="MIT",
    top1={"tiny": 83.1, "small": 84.1, "base": 84.4, "base_384": 87.0},
    size={"base_384": 384},
)
HEAD = ClassifierHead(norm=nn.LayerNorm, eps=1e-5, pool="mean")


@dataclass(frozen=True)
class L2ViTConfig:
    in_channels: int = 3
    dims: tuple[int, ...] = (96, 192, 384, 768)  # channels of each stage
    depths: tuple[int, ...] = (2, 2, 6, 2)  # blocks: local and global ones in turn
    heads: tuple[int, ...] = (3, 6, 12, 24)
    window: int = 7  # side of the local attention's windows; no parameter depends on it
    mlp_ratio: float = 4.0
    norms: tuple[int, ...] = ()  # levels with an output LayerNorm; the published dense form has all
    drop_path: float = 0.0  # of the last block; linear from 0


class Stem(nn.Module):
    """Image (B, C, H, W) -> (B, ceil(H / 4), ceil(W / 4), dim): zeros to whole cells, two 3x3 convolutions, norms."""

    fusable = (("conv1", "norm1"), ("conv2", "norm2"))

    def __init__(self, in_channels: int, dim: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, dim // 2, 3, 2, 1)
        self.norm1 = nn.BatchNorm2d(dim // 2)
        self.conv2 = nn.Conv2d(dim // 2, dim, 3, 2, 1)
        self.norm2 = nn.BatchNorm2d(dim)
        self.norm = nn.LayerNorm(dim)

    def forward(self, image: Tensor) -> Tensor:
        x, _ = windows.pad(image.permute(0, 2, 3, 1), (4, 4), "end")
        x = x.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
        x = self.norm2(self.conv2(self.norm1(self.conv1(x)).relu()))
        return self.norm(x.permute(0, 2, 3, 1))


class Merging(nn.Module):
    """LayerNorm, zeros to even sides, cells of 2x2: (B, H, W, C) -> (B, ceil(H / 2), ceil(W / 2), out)."""

    def __init__(self, dim: int, out: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.conv = nn.Conv2d(dim, out, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        x, _ = windows.pad(self.norm(x), (2, 2), "end")
        B, H, W, C = x.shape
        cells = x.reshape(B, H // 2, 2, W // 2, 2, C).transpose(2, 3).reshape(B, H // 2, W // 2, 4 * C)
        return linear(cells, self.conv.weight.permute(0, 2, 3, 1).flatten(1), self.conv.bias)


class LocalBlock(nn.Module):
    """Positions, window attention, positions again, MLP; (B, H, W, C) in and out."""

    def __init__(self, dim: int, heads: int, window: int, ratio: float, drop_path: float) -> None:
        super().__init__()
        self.positions1, self.positions2 = ResidualDepthwise(dim), ResidualDepthwise(dim)
        self.norm1 = nn.LayerNorm(dim)
        self.token_mixer = PlainWindowAttention(dim, heads, window=window, qkv_bias=True)
        self.norm2, self.channel_mixer = nn.LayerNorm(dim), MLP(dim, ratio=ratio)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = self.positions1(x)
        x = self.positions2(x + self.drop_path(self.token_mixer(self.norm1(x))))
        return x + self.drop_path(self.channel_mixer(self.norm2(x)))


class GlobalBlock(nn.Module):
    """Positions, linear attention, local concentration, MLP, each residual; (B, H, W, C) in and out."""

    def __init__(self, dim: int, heads: int, ratio: float, drop_path: float) -> None:
        super().__init__()
        self.positions1 = ResidualDepthwise(dim)
        self.norm1, self.token_mixer = nn.LayerNorm(dim), LinearAttention(dim, heads)
        self.norm3, self.concentration = nn.LayerNorm(dim), LocalConcentration(dim)
        self.norm2, self.channel_mixer = nn.LayerNorm(dim), MLP(dim, ratio=ratio)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = self.positions1(x)
        x = x + self.drop_path(self.token_mixer(self.norm1(x)))
        x = x + self.drop_path(self.concentration(self.norm3(x)))
        return x + self.drop_path(self.channel_mixer(self.norm2(x)))


class L2ViT(nn.Module):
    """Image (B, C, H, W) -> pyramid, one (B, channels[i], h, w) per stage, for any H and W.

    Sides are ceil(H / 4), then halved and rounded up; windows see unmasked zeros where they go beyond the map. In the
    dense form each level is normed; the un-normed map goes on.
    """

    def __init__(self, config: L2ViTConfig) -> None:
        super().__init__()
        c = self.config = config
        if not len(c.dims) == len(c.depths) == len(c.heads):
            raise SettingError(f"l2vit: {len(c.dims)} dims, {len(c.depths)} depths and {len(c.heads)} heads")
        if wrong := [f"{d} by {h}" for d, h in zip(c.dims, c.heads, strict=True) if d % h]:
            raise SettingError(f"l2vit: channels do not divide into heads: {', '.join(wrong)}")
        self.channels = c.dims
        self.strides = tuple(4 * 2**i for i in range(len(c.dims)))
        rates = spread(c.drop_path, c.depths)
        stages = []
        for i, (dim, heads) in enumerate(zip(c.dims, c.heads, strict=True)):
            blocks: list[nn.Module] = [
                GlobalBlock(dim, heads, c.mlp_ratio, rate)
                if j % 2
                else LocalBlock(dim, heads, c.window, c.mlp_ratio, rate)
                for j, rate in enumerate(rates[i])
            ]
            stages.append(Stage(Merging(c.dims[i - 1], dim) if i else Stem(c.in_channels, dim), blocks))
        self.stages = nn.ModuleList(stages)
        self.norms = nn.ModuleList(nn.LayerNorm(d) if i in c.norms else nn.Identity() for i, d in enumerate(c.dims))
        self.apply(_dense_start if c.norms else _start)

    def forward(self, image: Tensor) -> list[Tensor]:
        expect_shape(image, "B C H W", C=self.config.in_channels)
        x, pyramid = image, []
        for stage, norm in zip(self.stages, self.norms, strict=True):
            x = stage(x)
            pyramid.append(to_channels_first(norm(x)))
        return pyramid


def _start(module: nn.Module) -> None:
    """Classification: convolutions and linear layers from a truncated normal, biases 0."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _dense_start(module: nn.Module) -> None:
    """Dense forms: convolutions by Kaiming's rule over what they give."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    else:
        _start(module)


TINY = L2ViTConfig()
BASE = L2ViTConfig(dims=(128, 256, 512, 1024), depths=(2, 2, 18, 2), heads=(4, 8, 16, 32), drop_path=0.3)

VARIANTS = {
    "tiny": TINY,
    "small": replace(TINY, depths=(2, 2, 18, 2)),
    "base": BASE,
    "base_384": replace(BASE, window=12, drop_path=0.2),
}

build = L2ViT

_ARGUMENTS = {"num_heads": "heads", "window_size": "window", "mlp_ratio": "mlp_ratio"}


def from_published(
    build: Mapping[str, Any], names: Mapping[str, Sequence[int]], base: L2ViTConfig = TINY
) -> L2ViTConfig:
    """The variant of the authors' function name ("L2ViT_Tiny"), then what names and shapes show, then the arguments.

    Of a dense form (norms of levels) the window is 7, whatever the arguments say: that code never passes it on.
    """
    base = VARIANTS.get(str(build.get("fn", "")).lower().removeprefix("l2vit_"), base)
    found = (re.match(r"stages\.(\d+)\.(\d+)\.norm1\.weight$", n) for n in names)
    blocks = sorted({(int(m[1]), int(m[2])) for m in found if m})
    given: dict[str, Any] = {}
    if blocks:
        depths = tuple(Counter(stage for stage, _ in blocks).values())
        dims = tuple(names[f"stages.{i}.0.norm1.weight"][0] for i in range(len(depths)))
        learned = [names.get(f"stages.{i}.1.attn.temperature") for i in range(len(depths))]
        before = base.heads if len(base.heads) == len(dims) else tuple(d // 32 for d in dims)
        given = {
            "in_channels": names["downsample_layers.0.proj.proj.0.weight"][1],
            "dims": dims,
            "depths": depths,
            "heads": tuple(shape[0] if shape else before[i] for i, shape in enumerate(learned)),
            "mlp_ratio": names["stages.0.0.mlp.fc1.weight"][0] / dims[0],
            "norms": tuple(sorted(int(m[1]) for n in names if (m := re.match(r"norm(\d)\.weight$", n)))),
        }
    given |= {ours: build[k] for k, ours in _ARGUMENTS.items() if build.get(k) is not None}
    if given.get("norms"):
        given["window"] = 7
    settings: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
    return replace(base, **settings)


PUBLISHED = (
    KeyMap(
        rename=[
            (r"^downsample_layers\.0\.proj\.proj\.0\.", "backbone.stages.0.merge.conv1."),
            (r"^downsample_layers\.0\.proj\.proj\.1\.", "backbone.stages.0.merge.norm1."),
            (r"^downsample_layers\.0\.proj\.proj\.3\.", "backbone.stages.0.merge.conv2."),
            (r"^downsample_layers\.0\.proj\.proj\.4\.", "backbone.stages.0.merge.norm2."),
            (r"^downsample_layers\.(\d+)\.norm\.", r"backbone.stages.\1.merge.norm."),
            (r"^downsample_layers\.(\d+)\.proj\.", r"backbone.stages.\1.merge.conv."),
            (r"^stages\.(\d+)\.(\d+)\.", r"backbone.stages.\1.blocks.\2."),
            (r"\.cpe\.0\.proj\.", ".positions1."),
            (r"\.cpe\.1\.proj\.", ".positions2."),
            (r"\.attn\.", ".token_mixer."),
            (r"\.local_mp\.bn\.", ".concentration.norm."),
            (r"\.local_mp\.", ".concentration."),
            (r"\.mlp\.", ".channel_mixer."),
            (r"^norm(\d)\.", r"backbone.norms.\1."),
            (r"^norm\.", "head.norm."),
            (r"^head\.(weight|bias)$", r"head.fc.\1"),
        ],
        drop=[r"\.relative_position_index$"],
    ),
)
