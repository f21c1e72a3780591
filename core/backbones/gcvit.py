"""GC ViT: window attention in turn with window attention whose queries are one map of the whole image.

Paper: arXiv 2206.09959. Reference: NVlabs/GCVit@8e1941f, models/gc_vit.py and detection/models/gc_vit.py (NVIDIA Source
Code License-NC).
Differs: the classification form takes any size by the dense code's padding and resizing of the query map; at the
published sizes it is the published function.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.backbones._gcvit_published import PUBLISHED as PUBLISHED
from core.backbones._gcvit_published import shapes
from core.errors import SettingError, expect_shape
from core.facts import Facts
from core.heads.classify import ClassifierHead
from core.layers.convs import SqueezeExcitation, convolve
from core.layers.linear import Linear
from core.layers.mlp import MLP
from core.layers.patches import to_channels_first
from core.layers.residual import Block, spread
from core.mixers.global_query import GlobalQueryAttention
from core.mixers.window import WindowAttention

FACTS = Facts(
    title="GC ViT",
    paper="arXiv 2206.09959",
    licence="CC-BY-NC-SA-4.0",
    top1={
        "xxtiny": 79.9, "xtiny": 82.0, "tiny": 83.5, "tiny2": 83.7, "small": 84.3, "small2": 84.8, "base": 85.0,
        "large": 85.7, "large_384": 87.4, "large_512": 87.6,
    },
    size={"large_384": 384, "large_512": 512},
)  # fmt: skip
HEAD = ClassifierHead(norm=nn.LayerNorm, eps=1e-5, pool="mean")


@dataclass(frozen=True)
class GCViTConfig:
    in_channels: int = 3
    dim: int = 64  # channels of level 1; each level doubles them
    depths: tuple[int, ...] = (2, 2, 6, 2)
    heads: tuple[int, ...] = (2, 4, 8, 16)
    window: tuple[int, ...] = (7, 7, 14, 7)  # side in cells, one per level; published: size / 32, / 32, / 16, / 32
    mlp_ratio: float = 3.0
    layer_scale: float | None = None  # its start; None for none
    dense: bool = False  # published dense form: a LayerNorm on each level; see also `query_chain`
    norms: tuple[int, ...] | None = None  # levels with an output norm, from 0; by default every one if dense, else none
    qkv_bias: bool = True
    scale: float | None = None  # of q; head width ** -0.5 by default
    drop_path: float = 0.0  # of the last block; linear from 0
    dropout: float = 0.0
    attention_dropout: float = 0.0


class FusedConv(nn.Module):
    """x + pointwise(SE(GELU(depthwise x))), (B, H, W, C) in and out (section 3.3)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, bias=False)
        self.act = nn.GELU()
        self.se = SqueezeExcitation(dim, dim // 4, activation="gelu", bias=False)
        self.pointwise = Linear(dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.pointwise(self.se(self.act(convolve(self.depthwise, x))))


class Downsampling(nn.Module):
    """Half the resolution, (B, H, W, C) -> (B, ceil(H / 2), ceil(W / 2), out)."""

    def __init__(self, dim: int, out: int) -> None:
        super().__init__()
        self.norm1, self.unit = nn.LayerNorm(dim), FusedConv(dim)
        self.reduction = nn.Conv2d(dim, out, 3, stride=2, padding=1, bias=False)
        self.norm2 = nn.LayerNorm(out)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm2(convolve(self.reduction, self.unit(self.norm1(x))))


class Stem(nn.Module):
    """(B, C, H, W) -> (B, ceil(H / 4), ceil(W / 4), dim)."""

    def __init__(self, c: GCViTConfig) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c.in_channels, c.dim, 3, stride=2, padding=1)
        self.reduce = Downsampling(c.dim, c.dim)
        self.dropout = nn.Dropout(c.dropout)

    def forward(self, image: Tensor) -> Tensor:
        x = self.conv(image.contiguous(memory_format=torch.channels_last))
        return self.dropout(self.reduce(x.permute(0, 2, 3, 1)))


class GlobalQuery(nn.Module):
    """The query map of a level, (B, H, W, C) -> (B, window, window, C) (section 3.2).

    `pools` of the `units` units are each followed by a max pool that halves the map; what comes out is resized
    bicubically where it is not the window.
    """

    def __init__(self, dim: int, window: int, units: int, pools: int) -> None:
        super().__init__()
        self.window, self.pools = window, pools
        self.units = nn.ModuleList(FusedConv(dim) for _ in range(units))

    def forward(self, x: Tensor) -> Tensor:
        for i, unit in enumerate(self.units):
            x = unit(x)
            if i < self.pools:
                x = F.max_pool2d(x.permute(0, 3, 1, 2), 3, 2, 1).permute(0, 2, 3, 1)
        size = (self.window, self.window)
        if x.shape[1:3] == size:
            return x
        x = F.interpolate(x.permute(0, 3, 1, 2), size=size, mode="bicubic", align_corners=False)
        return x.permute(0, 2, 3, 1)


class GlobalBlock(Block):
    """A residual block whose token mixer also takes the level's query map."""

    def forward(self, x: Tensor, query: Tensor) -> Tensor:  # type: ignore[override]
        x = x + self.drop_path(self.scale1(self.token_mixer(self.norm1(x), query)))
        return x + self.drop_path(self.scale2(self.channel_mixer(self.norm2(x))))


class Level(nn.Module):
    """One resolution: stem or downsampling, then blocks, every other one with the level's query map."""

    def __init__(self, merge: nn.Module, query: nn.Module, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.merge, self.query, self.blocks = merge, query, nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tensor:
        x = self.merge(x)
        query = self.query(x)  # from the level's input, for all of its blocks
        for block in self.blocks:
            x = block(x, query) if isinstance(block, GlobalBlock) else block(x)
        return x


class GCViT(nn.Module):
    """Image (B, C, H, W) -> pyramid, one (B, channels[i], ceil(h), ceil(w)) per level, for any H and W.

    Maps are padded with zeros after their norm to whole windows, at the bottom and right. In the dense form each level
    is normed; the un-normed map goes on.
    """

    def __init__(self, config: GCViTConfig) -> None:
        super().__init__()
        c = self.config = config
        if not len(c.depths) == len(c.heads) == len(c.window):
            raise SettingError(f"gcvit: {len(c.depths)} depths, {len(c.heads)} heads and {len(c.window)} windows")
        self.channels = tuple(c.dim * 2**i for i in range(len(c.depths)))
        self.strides = tuple(4 * 2**i for i in range(len(c.depths)))
        rates = spread(c.drop_path, c.depths)
        self.stages = nn.ModuleList(
            Level(
                Downsampling(dim // 2, dim) if i else Stem(c),
                GlobalQuery(dim, c.window[i], *query_chain(c, i)),
                [_block(c, i, dim, j, rate) for j, rate in enumerate(rates[i])],
            )
            for i, dim in enumerate(self.channels)
        )
        normed = c.norms if c.norms is not None else tuple(range(len(c.depths))) if c.dense else ()
        self.norms = nn.ModuleList(
            nn.LayerNorm(dim) if i in normed else nn.Identity() for i, dim in enumerate(self.channels)
        )
        if not c.dense:  # the dense code keeps the framework's start
            self.apply(_initialise)

    def forward(self, image: Tensor) -> list[Tensor]:
        expect_shape(image, "B C H W", C=self.config.in_channels)
        x, pyramid = image, []
        for stage, norm in zip(self.stages, self.norms, strict=True):
            x = stage(x)
            pyramid.append(to_channels_first(norm(x)))
        return pyramid


def query_chain(c: GCViTConfig, level: int) -> tuple[int, int]:
    """Units of a level's query map and how many of them pool: they bring strides 4 and 8 to 32, at 224 to the window.

    From stride 16 on there is one unit and no pooling; the dense code pools at stride 16 unless the window is 14.
    """
    if level < 2:
        return 3 - level, 3 - level
    return 1, int(c.dense and level == 2 and c.window[level] != 14)


def _block(c: GCViTConfig, level: int, dim: int, index: int, drop_path: float) -> Block:
    """Local attention in even blocks, global in odd ones."""
    block, mixer = (GlobalBlock, GlobalQueryAttention) if index % 2 else (Block, WindowAttention)
    attention = mixer(
        dim, c.heads[level], window=c.window[level], qkv_bias=c.qkv_bias, scale=c.scale,
        dropout=c.attention_dropout, proj_dropout=c.dropout,
    )  # fmt: skip
    mlp = MLP(dim, ratio=c.mlp_ratio, dropout=c.dropout)
    return block(dim, attention, mlp, drop_path=drop_path, layer_scale=c.layer_scale)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, FusedConv):  # after its parts: a published convolution, with the framework's start
        module.pointwise.reset_parameters()


XXTINY = GCViTConfig(drop_path=0.2)
TINY = replace(XXTINY, depths=(3, 4, 19, 5))
SMALL = replace(TINY, dim=96, heads=(3, 6, 12, 24), mlp_ratio=2.0, layer_scale=1e-5, drop_path=0.3)
LARGE = replace(SMALL, dim=192, heads=(6, 12, 24, 48), drop_path=0.5)

VARIANTS = {
    "xxtiny": XXTINY,
    "xtiny": replace(XXTINY, depths=(3, 4, 6, 5)),
    "tiny": TINY,
    "tiny2": replace(TINY, depths=(3, 4, 29, 5), drop_path=0.25),
    "small": SMALL,
    "small2": replace(SMALL, depths=(3, 4, 23, 5), mlp_ratio=3.0, drop_path=0.35),
    "base": replace(SMALL, dim=128, heads=(4, 8, 16, 32), drop_path=0.5),
    "large": LARGE,
    "large_384": replace(LARGE, window=(12, 12, 24, 12), drop_path=0.1),
    "large_512": replace(LARGE, window=(16, 16, 32, 16), drop_path=0.1),
}

build = GCViT

_ARGUMENTS = {  # the authors' constructor arguments and our settings
    "in_chans": "in_channels", "dim": "dim", "depths": "depths", "num_heads": "heads", "window_size": "window",
    "mlp_ratio": "mlp_ratio", "layer_scale": "layer_scale", "qkv_bias": "qkv_bias", "qk_scale": "scale",
    "drop_path_rate": "drop_path", "drop_rate": "dropout", "attn_drop_rate": "attention_dropout",
}  # fmt: skip


def from_published(
    build: Mapping[str, Any], names: Mapping[str, Sequence[int]], base: GCViTConfig = XXTINY
) -> GCViTConfig:
    """The authors' constructor arguments as ours; what they leave open by parameter names and shapes.

    Without arguments (a weights file) `base` stands but for the form: dense, its norms and, in that form, its windows.
    """
    seen = shapes(names)
    config = base
    if build:
        given = {ours: build[theirs] for theirs, ours in _ARGUMENTS.items() if theirs in build}
        given |= {k: tuple(given[k]) for k in ("depths", "heads", "window") if k in given}
        if "mlp_ratio" in given:
            given["mlp_ratio"] = float(given["mlp_ratio"])
        config = replace(base, **(seen | given))
    if not seen:
        return config
    levels = len(config.depths)
    norms = tuple(i for i in range(levels) if f"norm{i}.weight" in names)
    if norms and not build:
        config = replace(config, window=seen["window"])  # the dense code's own default differs from the variants'
    return replace(config, dense=bool(norms) or config.dense, norms=norms if 0 < len(norms) < levels else config.norms)
