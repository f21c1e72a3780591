"""CSWin Transformer: cross-shaped windows at four resolutions.

Paper: arXiv 2107.00652. Reference: microsoft/CSWin-Transformer@f111ae2 (MIT), models/cswin.py for classification and
segmentation/backbone/cswin_transformer.py for dense tasks.
Differs: the classification form takes any size by the dense code's padding; at a divisible size it is the published
function. Widths double whatever the heads do, so CSWin-L has a dense form, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from core.errors import SettingError, ShapeError, expect_shape
from core.facts import Facts
from core.heads.classify import ClassifierHead
from core.layers.mlp import MLP
from core.layers.patches import to_channels_first
from core.layers.residual import Block, spread
from core.mixers.cross_window import CrossWindowAttention
from core.weights import KeyMap

FACTS = Facts(
    title="CSWin Transformer",
    paper="arXiv 2107.00652",
    licence="MIT",
    top1={"tiny": 82.8, "small": 83.6, "base": 84.2, "base_384": 85.5, "large": 86.5, "large_384": 87.5},
    size={"base_384": 384, "large_384": 384},
)
HEAD = ClassifierHead(norm=nn.LayerNorm, eps=1e-5, pool="mean")


@dataclass(frozen=True)
class CSWinConfig:
    in_channels: int = 3
    dim: int = 64  # channels of stage 1; each stage doubles them
    depths: tuple[int, ...] = (1, 2, 21, 1)
    heads: tuple[int, ...] = (2, 4, 8, 16)  # half of them for each direction of stripes
    stripes: tuple[int, ...] = (1, 2, 7, 7)  # width of a stripe in tokens, per stage; unused where `whole`
    whole: tuple[int, ...] | None = None  # stages with one window over the whole map; by default `whole_stages`' rule
    image_size: int = 224  # pixels; sets `whole` for classification and nothing else
    dense: bool = False  # published dense form: a LayerNorm on each level, only the last stage is `whole`
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    scale: float | None = None  # of q; head width ** -0.5 by default
    drop_path: float = 0.0  # of the last block; linear from 0
    dropout: float = 0.0
    attention_dropout: float = 0.0


class Stem(nn.Module):
    """Image (B, C, H, W) -> (B, h, w, dim), h = floor((H - 3) / 4) + 1: overlapping patches, then LayerNorm."""

    def __init__(self, in_channels: int, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, dim, 7, stride=4, padding=2)
        self.norm = nn.LayerNorm(dim)

    def forward(self, image: Tensor) -> Tensor:
        image = image.contiguous(memory_format=torch.channels_last)  # then the result needs no turning round
        return self.norm(self.conv(image).permute(0, 2, 3, 1))


class Merge(nn.Module):
    """Half the resolution, (B, H, W, C) -> (B, ceil(H / 2), ceil(W / 2), out): 3x3 convolution, then LayerNorm."""

    def __init__(self, dim: int, out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, out, 3, stride=2, padding=1)
        self.norm = nn.LayerNorm(out)

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 3, 1, 2)
        # For a channels-last map torch turns the weight round at each call: where the map is the smaller, turn that.
        if x.numel() < self.conv.weight.numel():
            x = x.contiguous()
        return self.norm(self.conv(x).permute(0, 2, 3, 1))


class Stage(nn.Module):
    """One resolution: embedding (first stage) or merging, then blocks; (B, H, W, C) out."""

    def __init__(self, merge: nn.Module, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.merge, self.blocks = merge, nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.merge(x))
        return x


def whole_stages(c: CSWinConfig) -> tuple[int, ...]:
    """Stages (from 0) whose blocks see the whole map in one window: the last; in the classification code also those
    where the built map is one stripe wide, which gives their LePE another shape (stage 3 at 112 pixels, say).
    """
    if c.whole is not None:
        return c.whole
    last = len(c.depths) - 1
    return tuple(i for i, w in enumerate(c.stripes) if i == last or (not c.dense and c.image_size >> (i + 2) == w))


class CSWin(nn.Module):
    """Image (B, C, H, W) -> pyramid, one (B, channels[i], h_i, w_i) per stage, for any H and W from 3 up.

    h_0 = floor((H - 3) / 4) + 1, then h_i = ceil(h_(i-1) / 2). Nothing is padded but q, k and v inside the stripes. In
    the dense form each level is normed; the un-normed map goes on.
    """

    def __init__(self, config: CSWinConfig) -> None:
        super().__init__()
        c = self.config = config
        if not len(c.depths) == len(c.heads) == len(c.stripes):
            raise SettingError(f"cswin: {len(c.depths)} depths, {len(c.heads)} heads and {len(c.stripes)} stripes")
        self.channels = tuple(c.dim * 2**i for i in range(len(c.depths)))
        self.strides = tuple(4 * 2**i for i in range(len(c.depths)))
        rates, whole = spread(c.drop_path, c.depths), whole_stages(c)
        stages = []
        for i, dim in enumerate(self.channels):
            blocks = [
                Block(
                    dim,
                    CrossWindowAttention(
                        dim, c.heads[i], stripe=None if i in whole else c.stripes[i], qkv_bias=c.qkv_bias,
                        scale=c.scale, dropout=c.attention_dropout, proj_dropout=c.dropout,
                    ),
                    MLP(dim, ratio=c.mlp_ratio, dropout=c.dropout),
                    drop_path=rate,
                )
                for rate in rates[i]
            ]  # fmt: skip
            stages.append(Stage(Merge(dim // 2, dim) if i else Stem(c.in_channels, dim), blocks))
        self.stages = nn.ModuleList(stages)
        self.norms = nn.ModuleList(nn.LayerNorm(dim) if c.dense else nn.Identity() for dim in self.channels)
        self.apply(_initialise)

    def forward(self, image: Tensor) -> list[Tensor]:
        size = expect_shape(image, "B C H W", C=self.config.in_channels)
        if size["H"] < 3 or size["W"] < 3:
            raise ShapeError(f"cswin: an image of {size['H']} x {size['W']} pixels is too small, sides start at 3")
        x, pyramid = image, []
        for stage, norm in zip(self.stages, self.norms, strict=True):
            x = stage(x)
            pyramid.append(to_channels_first(norm(x)))
        return pyramid


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


TINY = CSWinConfig(drop_path=0.2)
SMALL = CSWinConfig(depths=(2, 4, 32, 2), drop_path=0.4)
BASE = CSWinConfig(dim=96, depths=(2, 4, 32, 2), heads=(4, 8, 16, 32), drop_path=0.5)
LARGE = CSWinConfig(dim=144, depths=(2, 4, 32, 2), heads=(6, 12, 24, 24))

VARIANTS = {
    "tiny": TINY,
    "small": SMALL,
    "base": BASE,
    "base_384": replace(BASE, stripes=(1, 2, 12, 12), image_size=384, drop_path=0.7),
    "large": LARGE,
    "large_384": replace(LARGE, stripes=(1, 2, 12, 12), image_size=384),
}

build = CSWin

_ARGUMENTS = {  # the authors' constructor arguments and our settings
    "img_size": "image_size", "in_chans": "in_channels", "embed_dim": "dim", "depth": "depths", "num_heads": "heads",
    "split_size": "stripes", "mlp_ratio": "mlp_ratio", "qkv_bias": "qkv_bias", "qk_scale": "scale",
    "drop_path_rate": "drop_path", "drop_rate": "dropout", "attn_drop_rate": "attention_dropout",
}  # fmt: skip


def from_published(
    build: Mapping[str, Any], names: Mapping[str, Sequence[int]], base: CSWinConfig = TINY
) -> CSWinConfig:
    """The authors' constructor arguments as ours; dense form, biases and whole stages by parameter names."""
    given = {ours: build[theirs] for theirs, ours in _ARGUMENTS.items() if theirs in build}
    given |= {k: tuple(given[k]) for k in ("depths", "heads", "stripes") if k in given}
    config = replace(base, **given)
    if "stage1.0.norm1.weight" not in names:
        return config
    whole = tuple(i for i in range(len(config.depths)) if f"stage{i + 1}.0.attns.1.get_v.weight" not in names)
    return replace(
        config,
        dense="norm1.weight" in names or ("norm.weight" not in names and config.dense),
        qkv_bias="stage1.0.qkv.bias" in names,
        whole=whole,
    )


PUBLISHED = (
    KeyMap(
        rename=[
            (r"^stage1_conv_embed\.0\.", "backbone.stages.0.merge.conv."),
            (r"^stage1_conv_embed\.2\.", "backbone.stages.0.merge.norm."),
            *((rf"^merge{i}\.", f"backbone.stages.{i}.merge.") for i in range(1, 8)),
            *((rf"^stage{i}\.(\d+)\.", rf"backbone.stages.{i - 1}.blocks.\1.") for i in range(1, 9)),
            *((rf"^norm{i}\.", f"backbone.norms.{i - 1}.") for i in range(1, 9)),
            (r"\.(qkv|proj)\.", r".token_mixer.\1."),
            (r"\.attns\.(\d)\.get_v\.(weight|bias)$", r".token_mixer.lepe.\2[\1]"),
            (r"\.mlp\.", ".channel_mixer."),
            (r"^norm\.", "head.norm."),
            (r"^head\.(weight|bias)", r"head.fc.\1"),
        ],
    ),
)
