"""STViT-R: a Swin pyramid whose third stage runs on semantic tokens and restores the map after each round.

Paper: arXiv 2303.08685. Reference: changsn/STViT-R@b4a27a0; for dense tasks changsn/STViT-R-Object-Detection@8b8eb1e
(both MIT).
Differs: a cell that several windows look at is normed and projected once, not once per window.
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

from core.errors import SettingError, ShapeError, expect_shape
from core.facts import Facts
from core.heads.classify import ClassifierHead
from core.layers import windows
from core.layers.mlp import MLP
from core.layers.patches import PatchMerging, to_channels_first
from core.layers.residual import Block, Stage, spread
from core.mixers.dumbbell import ROUND, DenseDumbbell, Dumbbell, DumbbellSettings
from core.mixers.semantic_tokens import Mask
from core.mixers.window import WindowAttention
from core.weights import KeyMap

FACTS = Facts(
    title="STViT-R",
    paper="arXiv 2303.08685",
    licence="MIT",
    top1={"r_swin_small": 82.7, "r_swin_base": 83.2},
)
HEAD = ClassifierHead(norm=nn.LayerNorm, eps=1e-5, pool="mean")


@dataclass(frozen=True)
class STViTConfig:
    in_channels: int = 3
    dim: int = 96  # channels of stage 1; each stage doubles them
    depths: tuple[int, ...] = (2, 2, 3, 2)  # blocks; of the third stage rounds, of six blocks each
    heads: tuple[int, ...] = (3, 6, 12, 24)
    window: int = 7  # side in tokens
    sample: int = 3  # side of a window's semantic tokens
    dense: bool = False  # published detection form: any size, other semantic blocks, a LayerNorm on each level
    norms: tuple[int, ...] | None = None  # levels with an output norm; by default every one if dense, else none
    shortcut: bool = False  # generation adds the pooled cells to its attention; the dense form always does
    relative_pos: bool = False  # position bias among semantic tokens; not dense, like the next two
    use_conv_pos: bool = False  # depthwise convolution over pooled cells
    use_global: bool = False  # learned global centres
    reach: tuple[int, int, int] = (14, 21, 27)  # dense: sides of what generation, refinement and recovery look at
    mask: Mask = "published"  # dense: of keys outside the map; "whole" hides all of them, "none" hides none
    layer_scale: float = 1e-5  # start, in semantic blocks
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    scale: float | None = None  # of q; head width ** -0.5 by default
    drop_path: float = 0.0  # of the last block; linear from 0
    dropout: float = 0.0
    attention_dropout: float = 0.0


class Stem(nn.Module):
    """Image (B, C, H, W) -> (B, ceil(H / 4), ceil(W / 4), dim): zeros to whole cells, two 3x3 convolutions, norms."""

    fusable = (("conv1", "norm1"), ("conv2", "norm2"))

    def __init__(self, in_channels: int, dim: int, dropout: float) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, dim // 2, 3, 2, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(dim // 2)
        self.conv2 = nn.Conv2d(dim // 2, dim, 3, 2, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, image: Tensor) -> Tensor:
        x, _ = windows.pad(image.permute(0, 2, 3, 1), (4, 4), "end")
        x = x.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
        x = F.hardswish(self.norm1(self.conv1(x)))
        x = F.hardswish(self.norm2(self.conv2(x)))
        return self.dropout(x.permute(0, 2, 3, 1))


class STViT(nn.Module):
    """Image (B, C, H, W) -> pyramid, one (B, channels[i], h, w) per stage.

    The classification form takes the one size of which the third stage has the windows that its patches of keys are
    made for, 224 x 224; another one raises ShapeError. The dense form takes any: sides are padded with zeros at the
    bottom and right, the image to whole cells of 4, maps to whole windows, odd maps by one before merging.
    """

    def __init__(self, config: STViTConfig) -> None:
        super().__init__()
        c = self.config = config
        if not len(c.depths) == len(c.heads) >= 3:
            raise SettingError(
                f"stvit: {len(c.depths)} depths and {len(c.heads)} heads; both have one entry a stage, three or more"
            )
        if c.dense and c.shortcut:
            raise SettingError("stvit: the dense form's generation always has its shortcut; leave `shortcut` out")
        self.channels = tuple(c.dim * 2**i for i in range(len(c.depths)))
        self.strides = tuple(4 * 2**i for i in range(len(c.depths)))
        tokens = self._tokens(c)
        self.side = 0 if c.dense else 16 * c.window * tokens.rows()
        rates = spread(c.drop_path, _blocks(c.depths))
        stages: list[nn.Module] = []
        for i in range(len(c.depths)):
            merge = PatchMerging(self.channels[i - 1]) if i else Stem(c.in_channels, c.dim, c.dropout)
            if i == 2:
                firsts = [self._block(i, 0, rate) for rate in rates[i][::ROUND]]
                stages.append((DenseDumbbell if c.dense else Dumbbell)(merge, firsts, tokens, rates[i]))
            else:
                stages.append(Stage(merge, [self._block(i, j, rate) for j, rate in enumerate(rates[i])]))
        self.stages = nn.ModuleList(stages)
        normed = c.norms if c.norms is not None else tuple(range(len(c.depths))) if c.dense else ()
        self.norms = nn.ModuleList(
            nn.LayerNorm(dim) if i in normed else nn.Identity() for i, dim in enumerate(self.channels)
        )
        self.apply(_initialise)

    def _tokens(self, c: STViTConfig) -> DumbbellSettings:
        return DumbbellSettings(
            self.channels[2], c.heads[2], window=c.window, sample=c.sample, mlp_ratio=c.mlp_ratio, qkv_bias=c.qkv_bias,
            scale=c.scale, layer_scale=c.layer_scale, dropout=c.dropout, attention_dropout=c.attention_dropout,
            shortcut=c.shortcut, relative=c.relative_pos, positions=c.use_conv_pos, centres=c.use_global,
            reach=c.reach, mask=c.mask,
        )  # fmt: skip

    def _block(self, stage: int, index: int, rate: float) -> nn.Module:
        """A Swin block; of the classification form windows are never larger than the map."""
        c = self.config
        dim = self.channels[stage]
        window = c.window if c.dense else min(c.window, -(-self.side // self.strides[stage]))
        mixer = WindowAttention(
            dim, c.heads[stage], window=window, shift=index % 2 * (window // 2), shift_single=c.dense,
            qkv_bias=c.qkv_bias, scale=c.scale, dropout=c.attention_dropout, proj_dropout=c.dropout,
        )  # fmt: skip
        return Block(dim, mixer, MLP(dim, ratio=c.mlp_ratio, dropout=c.dropout), drop_path=rate)

    def forward(self, image: Tensor) -> list[Tensor]:
        expect_shape(image, "B C H W", C=self.config.in_channels)
        if self.side and image.shape[2:] != (self.side, self.side):
            raise ShapeError(
                f"stvit: the classification form takes images of {self.side} x {self.side} pixels, got "
                f"{image.shape[2]} x {image.shape[3]}; the dense form (dense=True) takes any size"
            )
        x, pyramid = image, []
        for stage, norm in zip(self.stages, self.norms, strict=True):
            x = stage(x)
            pyramid.append(to_channels_first(norm(x)))
        return pyramid


def _blocks(depths: Sequence[int]) -> tuple[int, ...]:
    """Blocks of each stage."""
    return tuple(n * ROUND if i == 2 else n for i, n in enumerate(depths))


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


SMALL = STViTConfig(drop_path=0.3)
VARIANTS = {"r_swin_small": SMALL, "r_swin_base": STViTConfig(dim=128, heads=(4, 8, 16, 32), drop_path=0.4)}

build = STViT

_ARGUMENTS = {  # the authors' constructor arguments and our settings
    "in_chans": "in_channels", "embed_dim": "dim", "depths": "depths", "num_heads": "heads", "window_size": "window",
    "window_sample_size": "sample", "shortcut": "shortcut", "relative_pos": "relative_pos",
    "use_conv_pos": "use_conv_pos", "use_global": "use_global", "mlp_ratio": "mlp_ratio", "qkv_bias": "qkv_bias",
    "qk_scale": "scale", "drop_path_rate": "drop_path", "drop_rate": "dropout", "attn_drop_rate": "attention_dropout",
}  # fmt: skip
_REACH = ("k_window_size_1", "k_window_size_2", "restore_k_window_size")


def from_published(
    build: Mapping[str, Any], names: Mapping[str, Sequence[int]], base: STViTConfig = SMALL
) -> STViTConfig:
    """The authors' constructor arguments as ours; what names and shapes show comes first."""
    given: dict[str, Any] = {ours: build[theirs] for theirs, ours in _ARGUMENTS.items() if theirs in build}
    dense = "detection" in str(build.get("cls", "")) or _REACH[0] in build or base.dense
    given["reach"] = tuple(build.get(k, v) for k, v in zip(_REACH, base.reach, strict=True))
    if not build.get("pad_mask", True):
        given["mask"] = "none"
    if "depths" in given:
        given["depths"] = _rounds(given["depths"])
    if any(n.startswith("layers.") for n in names):
        seen = _seen(names)
        stages = len(seen["depths"])
        norms = tuple(i for i in range(stages) if f"norm{i}.weight" in names)
        dense = bool(norms) or ("norm.weight" not in names and dense)
        given |= seen | {"norms": norms if norms and len(norms) < stages else None}
    if dense:
        given |= {"shortcut": False}  # the dense form has no such option
    settings: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
    return replace(base, dense=dense, **settings)


def _rounds(depths: Sequence[int]) -> tuple[int, ...]:
    """Published depths, in which the third stage has single blocks, as ours."""
    if len(depths) < 3 or depths[2] % ROUND:
        raise SettingError(f"stvit: the third stage has rounds of {ROUND} blocks, got depths {tuple(depths)}")
    return tuple(n // ROUND if i == 2 else n for i, n in enumerate(depths))


def _seen(names: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """Settings that parameter names and shapes show."""
    found = (re.match(r"layers\.(\d+)\.blocks\.(\d+)\.", n) for n in names)
    count = Counter(stage for stage, _ in sorted({(int(m[1]), int(m[2])) for m in found if m}))
    first = "layers.0.blocks.0."
    table = "attn.relative_position_bias_table"
    dim = names["patch_embed.proj.2.c.weight"][0]
    local = names.get(f"layers.2.blocks.3.{table}")
    seen = {
        "in_channels": names["patch_embed.proj.0.c.weight"][1],
        "dim": dim,
        "depths": _rounds([count[i] for i in range(len(count))]),
        "heads": tuple(names[f"layers.{i}.blocks.0.{table}"][1] for i in range(len(count))),
        "window": (math.isqrt(names[f"{first}{table}"][0]) + 1) // 2,
        "mlp_ratio": names[f"{first}mlp.fc1.weight"][0] / dim,
        "qkv_bias": f"{first}attn.qkv.bias" in names,
        "relative_pos": local is not None,
        "use_conv_pos": any(n.startswith("layers.2.blocks.1.") and len(shape) == 4 for n, shape in names.items()),
        "use_global": "layers.2.semantic_token2" in names,
    }
    return seen if local is None else seen | {"sample": (math.isqrt(local[0]) + 1) // 2}


PUBLISHED = (
    KeyMap(
        rename=[
            *((rf"^patch_embed\.proj\.{i}\.c\.", f"backbone.stages.0.merge.conv{i // 2 + 1}.") for i in (0, 2)),
            *((rf"^patch_embed\.proj\.{i}\.bn\.", f"backbone.stages.0.merge.norm{i // 2 + 1}.") for i in (0, 2)),
            *((rf"^layers\.{i}\.downsample\.", f"backbone.stages.{i + 1}.merge.") for i in range(8)),
            (r"^layers\.2\.semantic_token2$", "backbone.stages.2.centres"),
            (r"^layers\.", "backbone.stages."),
            (r"\.attn\.relative_position_bias_table$", ".token_mixer.bias_table"),
            (r"\.attn\.", ".token_mixer."),
            (r"\.mlp\.", ".channel_mixer."),
            (r"\.layer_scale_(\d)$", r".scale\1.scale"),
            (r"(blocks\.\d+)\.\w*pos\w*\.(?:\w+\.)*(weight|bias)$", r"\1.positions.\2"),
            (r"^norm(\d)\.", r"backbone.norms.\1."),
            (r"^norm\.", "head.norm."),
            (r"^head\.(weight|bias)$", r"head.fc.\1"),
        ],
        drop=[r"relative_position_index$", r"attn_mask$"],
    ),
)
