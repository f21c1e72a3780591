"""DaViT: attention inside windows and attention between channels in turn, at four resolutions.

Paper: arXiv 2204.03645. Reference: dingmyu/davit@fc79470 (MIT), its classification and its dense code.
Differs: nothing; both codes take any size, and one network serves both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.errors import SettingError, expect_shape
from core.facts import Facts
from core.heads.classify import ClassifierHead
from core.layers import windows
from core.layers.convs import convolve
from core.layers.gelu import GELU
from core.layers.mlp import MLP
from core.layers.patches import to_channels_first
from core.layers.residual import DropPath, spread
from core.mixers.channel import ChannelAttention
from core.mixers.window import PlainWindowAttention
from core.weights import KeyMap, choose

FACTS = Facts(
    title="DaViT",
    paper="arXiv 2204.03645",
    licence="MIT",
    # large was pre-trained on ImageNet-22k, huge and giant on 1.5 billion pairs of image and text
    top1={"tiny": 82.8, "small": 84.2, "base": 84.6, "large": 87.5, "huge": 90.2, "giant": 90.4},
    size={"large": 384},
)
HEAD = ClassifierHead(norm=nn.LayerNorm, eps=1e-5, pool="mean", norm_first=False)


@dataclass(frozen=True)
class DaViTConfig:
    in_channels: int = 3
    dims: tuple[int, ...] = (96, 192, 384, 768)  # channels of each stage
    depths: tuple[int, ...] = (1, 1, 3, 1)  # pairs of a spatial and a channel block in each stage
    heads: tuple[int, ...] = (3, 6, 12, 24)  # of the spatial blocks; the channel blocks have as many groups
    window: int = 7  # side in tokens
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    overlapped: bool = False  # 3x3 instead of 2x2 convolutions between the stages
    norms: tuple[int, ...] = ()  # levels with an output LayerNorm; the published dense form has all
    drop_path: float = 0.0  # of the last block; linear from 0 over all blocks


class PositionEncoding(nn.Module):
    """x + depthwise 3x3 convolution of x, (B, H, W, C) -> (B, H, W, C): zeros outside tell positions."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        near = convolve(self.conv, x)
        return near.add_(x)  # into the convolution's own output, which nothing else holds


class DualBlock(nn.Module):
    """Positions, token mixer, positions, MLP; (B, H, W, C) in and out.

    The branches are pre-norm and are added to the map that already holds its positions.
    """

    def __init__(self, dim: int, token_mixer: nn.Module, *, mlp_ratio: float, drop_path: float) -> None:
        super().__init__()
        self.positions = nn.ModuleList([PositionEncoding(dim), PositionEncoding(dim)])
        self.norm1, self.token_mixer = nn.LayerNorm(dim), token_mixer
        self.norm2, self.channel_mixer = nn.LayerNorm(dim), MLP(dim, ratio=mlp_ratio)
        self.channel_mixer.act = GELU()
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = self.positions[0](x)
        x = x + self.drop_path(self.token_mixer(self.norm1(x)))
        x = self.positions[1](x)
        return x + self.drop_path(self.channel_mixer(self.norm2(x)))


class Stem(nn.Module):
    """Image (B, C, H, W) -> (B, ceil(H / 4), ceil(W / 4), dim): zeros to whole cells, 7x7 convolution, LayerNorm."""

    def __init__(self, in_channels: int, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, dim, 7, stride=4, padding=3)
        self.norm = nn.LayerNorm(dim)

    def forward(self, image: Tensor) -> Tensor:
        down, right = -image.shape[2] % 4, -image.shape[3] % 4
        if down or right:
            image = F.pad(image, (0, right, 0, down))
        image = image.contiguous(memory_format=torch.channels_last)  # else the map comes out channels-first
        return self.norm(self.conv(image).permute(0, 2, 3, 1))


class Merging(nn.Module):
    """LayerNorm, zeros to even sides, convolution with stride 2: (B, H, W, C) -> (B, ceil(H/2), ceil(W/2), out)."""

    def __init__(self, dim: int, out: int, *, overlapped: bool) -> None:
        super().__init__()
        self.overlapped = overlapped
        self.norm = nn.LayerNorm(dim)
        conv = nn.Conv2d(dim, out, 3, stride=2, padding=1) if overlapped else nn.Conv2d(dim, out, 2, stride=2)
        self.conv = conv.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: Tensor) -> Tensor:
        x, _ = windows.pad(self.norm(x), (2, 2), "end")
        if self.overlapped:
            return convolve(self.conv, x)
        # 2x2 cells do not overlap: one matrix product, without the reordering of weights that a convolution starts with
        B, H, W, C = x.shape
        cells = x.reshape(B, H // 2, 2, W // 2, 2, C).transpose(2, 3).reshape(B, H // 2, W // 2, 4 * C)
        return F.linear(cells, self.conv.weight.permute(0, 2, 3, 1).flatten(1), self.conv.bias)


class Stage(nn.Module):
    """One resolution: stem or merging, then pairs of a spatial and a channel block; gives (B, H, W, C)."""

    def __init__(self, merge: nn.Module, pairs: Sequence[nn.Module]) -> None:
        super().__init__()
        self.merge, self.pairs = merge, nn.Sequential(*pairs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pairs(self.merge(x))
        return x


class DaViT(nn.Module):
    """Image (B, C, H, W) -> pyramid, one (B, channels[i], h, w) per stage, for any H and W.

    Sides are ceil(H / 4), then halved and rounded up; all padding is zeros at the bottom and right. In the dense form
    each level is normed; the un-normed map goes on.
    """

    def __init__(self, config: DaViTConfig) -> None:
        super().__init__()
        c = self.config = config
        if not len(c.dims) == len(c.depths) == len(c.heads):
            raise SettingError(f"davit: {len(c.dims)} dims, {len(c.depths)} depths and {len(c.heads)} heads")
        if wrong := [f"{d} by {h}" for d, h in zip(c.dims, c.heads, strict=True) if d % h]:
            raise SettingError(f"davit: channels do not divide into heads: {', '.join(wrong)}")
        self.channels = c.dims
        self.strides = tuple(4 * 2**i for i in range(len(c.dims)))
        rates = spread(c.drop_path, tuple(2 * d for d in c.depths))
        stages = []
        for i, dim in enumerate(c.dims):
            merge = Merging(c.dims[i - 1], dim, overlapped=c.overlapped) if i else Stem(c.in_channels, dim)
            pairs = [_pair(c, i, rates[i][2 * j : 2 * j + 2]) for j in range(c.depths[i])]
            stages.append(Stage(merge, pairs))
        self.stages = nn.ModuleList(stages)
        self.norms = nn.ModuleList(nn.LayerNorm(d) if i in c.norms else nn.Identity() for i, d in enumerate(c.dims))
        self.apply(_initialise)

    def forward(self, image: Tensor) -> list[Tensor]:
        expect_shape(image, "B C H W", C=self.config.in_channels)
        x, pyramid = image, []
        for stage, norm in zip(self.stages, self.norms, strict=True):
            x = stage(x)
            pyramid.append(to_channels_first(norm(x)))
        return pyramid


def _pair(c: DaViTConfig, stage: int, rates: Sequence[float]) -> nn.Module:
    dim, heads = c.dims[stage], c.heads[stage]
    mixers = (
        PlainWindowAttention(dim, heads, window=c.window, qkv_bias=c.qkv_bias),
        ChannelAttention(dim, heads, qkv_bias=c.qkv_bias),
    )
    blocks = [DualBlock(dim, m, mlp_ratio=c.mlp_ratio, drop_path=r) for m, r in zip(mixers, rates, strict=True)]
    return nn.Sequential(*blocks)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


TINY = DaViTConfig(drop_path=0.1)
DEEP = (1, 1, 9, 1)

VARIANTS = {
    "tiny": TINY,
    "small": replace(TINY, depths=DEEP, drop_path=0.2),
    "base": DaViTConfig(dims=(128, 256, 512, 1024), depths=DEEP, heads=(4, 8, 16, 32), drop_path=0.4),
    # The paper gives no drop path for the larger ones, and no window for huge and giant: the authors' defaults.
    "large": DaViTConfig(dims=(192, 384, 768, 1536), depths=DEEP, heads=(6, 12, 24, 48), window=12, drop_path=0.1),
    "huge": DaViTConfig(dims=(256, 512, 1024, 2048), depths=DEEP, heads=(8, 16, 32, 64), drop_path=0.1),
    "giant": DaViTConfig(dims=(384, 768, 1536, 3072), depths=(1, 1, 12, 3), heads=(12, 24, 48, 96), drop_path=0.1),
}

build = DaViT

_ARGUMENTS = {  # the authors' constructor arguments and our settings
    "in_chans": "in_channels", "embed_dims": "dims", "depths": "depths", "num_heads": "heads", "window_size": "window",
    "mlp_ratio": "mlp_ratio", "qkv_bias": "qkv_bias", "overlapped_patch": "overlapped", "drop_path_rate": "drop_path",
}  # fmt: skip


def from_published(
    build: Mapping[str, Any], names: Mapping[str, Sequence[int]], base: DaViTConfig = TINY
) -> DaViTConfig:
    """The authors' constructor arguments as ours; what they leave open by parameter names and shapes.

    Heads that nobody states are those of `base` where it has the same widths, else 32 channels wide as in every
    published variant.
    """
    if build.get("patch_size", 4) != 4:
        raise SettingError(f"davit: published networks have patches of 4 pixels, got {build['patch_size']}")
    keymap = choose(PUBLISHED, names)
    seen = _shapes({ours: shape for n, shape in names.items() if (ours := keymap.name(n))})
    given = seen | {ours: build[theirs] for theirs, ours in _ARGUMENTS.items() if theirs in build}
    given |= {k: tuple(given[k]) for k in ("dims", "depths", "heads") if k in given}
    if "heads" not in given and given.get("dims", base.dims) != base.dims:
        given["heads"] = tuple(dim // 32 for dim in given["dims"])
    return replace(base, **given)


def _shapes(names: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """Settings that parameter names (ours) and shapes show."""
    first = "backbone.stages.0.merge.conv.weight"
    if first not in names:
        return {}
    stages = 0
    while f"backbone.stages.{stages}.merge.conv.weight" in names:
        stages += 1
    merges = [names[f"backbone.stages.{i}.merge.conv.weight"] for i in range(stages)]
    pairs = [{n.split(".")[4] for n in names if n.startswith(f"backbone.stages.{i}.pairs.")} for i in range(stages)]
    norms = tuple(i for i in range(stages) if f"backbone.norms.{i}.weight" in names)
    block = "backbone.stages.0.pairs.0.0."
    return {
        "in_channels": names[first][1],
        "dims": tuple(shape[0] for shape in merges),
        "depths": tuple(map(len, pairs)),
        "mlp_ratio": names[block + "channel_mixer.fc1.weight"][0] / merges[0][0],
        "qkv_bias": block + "token_mixer.qkv.bias" in names,
        "overlapped": any(shape[2] == 3 for shape in merges[1:]),
        **({} if not norms and "head.norm.weight" not in names else {"norms": norms}),
    }


_BLOCKS = [(r"\.attn\.", ".token_mixer."), (r"\.mlp\.", ".channel_mixer.")]
PUBLISHED = (
    KeyMap(  # timm
        rename=[
            (r"^stem\.", "backbone.stages.0.merge."),
            (r"^stages\.(\d+)\.downsample\.", r"backbone.stages.\1.merge."),
            (r"^stages\.(\d+)\.blocks\.", r"backbone.stages.\1.pairs."),
            (r"\.cpe1\.proj\.", ".positions.0.conv."),
            (r"\.cpe2\.proj\.", ".positions.1.conv."),
            *_BLOCKS,
        ],
        when=r"^stem\.conv\.",
    ),
    KeyMap(
        rename=[
            (r"^patch_embeds\.(\d+)\.proj\.", r"backbone.stages.\1.merge.conv."),
            (r"^patch_embeds\.(\d+)\.norm\.", r"backbone.stages.\1.merge.norm."),
            (r"^main_blocks\.(\d+)\.", r"backbone.stages.\1.pairs."),
            (r"\.cpe\.([01])\.proj\.", r".positions.\1.conv."),
            *_BLOCKS,
            (r"^norm(\d)\.", r"backbone.norms.\1."),
            (r"^norms\.", "head.norm."),
            (r"^head\.(weight|bias)$", r"head.fc.\1"),
        ],
    ),
)
