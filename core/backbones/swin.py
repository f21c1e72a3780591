"""Swin Transformer and Swin-MLP: shifted windows at four resolutions.

Paper: arXiv 2103.14030. Reference: microsoft/Swin-Transformer@f82860b (MIT); for dense tasks
SwinTransformer/Swin-Transformer-Semantic-Segmentation@87e6f90 (Apache-2.0).
Differs: the classification form takes any size by the dense code's padding; at a divisible size it is the published
function.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from core.errors import SettingError, expect_shape
from core.facts import Facts
from core.heads.classify import ClassifierHead
from core.layers.mlp import MLP
from core.layers.patches import PatchEmbedding, PatchMerging, to_channels_first
from core.layers.positions import resize_bias_table, resize_grid
from core.layers.residual import Block, Stage, spread
from core.mixers.window import WindowAttention, WindowMLP
from core.weights import KeyMap

FACTS = Facts(
    title="Swin Transformer",
    paper="arXiv 2103.14030",
    licence="MIT",
    top1={
        "tiny": 81.2, "small": 83.2, "base": 83.5, "base_384": 84.5, "large": 86.3, "large_384": 87.3,
        "tiny_c24": 81.6, "mlp_tiny_c24": 79.4, "mlp_tiny_c12": 79.6, "mlp_tiny_c6": 79.7, "mlp_base": 81.3,
    },
    size={"base_384": 384, "large_384": 384, "tiny_c24": 256, "mlp_tiny_c24": 256, "mlp_tiny_c12": 256,
          "mlp_tiny_c6": 256},
)  # fmt: skip
HEAD = ClassifierHead(norm=nn.LayerNorm, eps=1e-5, pool="mean")


@dataclass(frozen=True)
class SwinConfig:
    in_channels: int = 3
    dim: int = 96  # channels of stage 1; each stage doubles them
    depths: tuple[int, ...] = (2, 2, 6, 2)
    heads: tuple[int, ...] = (3, 6, 12, 24)
    window: int = 7  # side in tokens
    mixer: Literal["attention", "mlp"] = "attention"  # "mlp" is Swin-MLP
    image_size: int | tuple[int, int] = 224  # pixels; sets the windows of small maps (not dense) and `absolute`
    dense: bool = False  # published dense form: a LayerNorm on each level, windows and shifts never reduced
    norms: tuple[int, ...] | None = None  # levels with an output norm; by default every one if dense, else none
    absolute: bool = False  # learned absolute positions; resized bicubically to other sizes
    patch: int = 4  # pixels
    patch_norm: bool = True  # LayerNorm after the patch embedding
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    scale: float | None = None  # of q; head width ** -0.5 by default
    drop_path: float = 0.0  # of the last block; linear from 0
    dropout: float = 0.0
    attention_dropout: float = 0.0


class Stem(nn.Module):
    """Patches and absolute positions, (B, C, H, W) -> (B, h, w, dim)."""

    def __init__(self, c: SwinConfig) -> None:
        super().__init__()
        self.patches = PatchEmbedding(c.in_channels, c.dim, c.patch, pad=True, norm=c.patch_norm)
        self.positions = None
        if c.absolute:
            self.positions = nn.Parameter(torch.empty(1, *map_size(c), c.dim))
            nn.init.trunc_normal_(self.positions, std=0.02)
        self.dropout = nn.Dropout(c.dropout)

    def forward(self, image: Tensor) -> Tensor:
        x: Tensor = self.patches(image)
        if self.positions is not None:
            grid = self.positions
            x = x + (grid if grid.shape[1:3] == x.shape[1:3] else resize_grid(grid, (x.shape[1], x.shape[2]), "exact"))
        return self.dropout(x)


def map_size(c: SwinConfig) -> tuple[int, int]:
    """Rows and columns of the first stage's map at the built image size."""
    H, W = (c.image_size, c.image_size) if isinstance(c.image_size, int) else c.image_size
    return -(-H // c.patch), -(-W // c.patch)


def stage_windows(c: SwinConfig) -> list[tuple[int, bool]]:
    """Side of each stage's windows and whether odd blocks may shift.

    Where the built map's shorter side is not larger than the window, the classification code makes the window that
    side, its bias table with it, and shifts nothing; the dense code changes nothing.
    """
    plan = []
    side = min(map_size(c))
    for _ in c.depths:
        plan.append((c.window, True) if c.dense or side > c.window else (side, False))
        side = -(-side // 2)
    return plan


class Swin(nn.Module):
    """Image (B, C, H, W) -> pyramid, one (B, channels[i], ceil(h), ceil(w)) per stage, for any H and W.

    Sides are padded with zeros at the bottom and right: the image to whole patches, maps after their norm to whole
    windows, odd maps by one before merging. In the dense form each level is normed; the un-normed map goes on.
    """

    def __init__(self, config: SwinConfig) -> None:
        super().__init__()
        c = self.config = config
        if len(c.heads) != len(c.depths):
            raise SettingError(f"swin: {len(c.depths)} depths but {len(c.heads)} heads")
        self.channels = tuple(c.dim * 2**i for i in range(len(c.depths)))
        self.strides = tuple(c.patch * 2**i for i in range(len(c.depths)))
        rates = spread(c.drop_path, c.depths)
        stages = []
        for i, (dim, (window, _)) in enumerate(zip(self.channels, stage_windows(c), strict=True)):
            blocks = [
                Block(
                    dim,
                    _mixer(c, dim, c.heads[i], window, (j % 2) * (window // 2)),
                    MLP(dim, ratio=c.mlp_ratio, dropout=c.dropout),
                    drop_path=rate,
                )
                for j, rate in enumerate(rates[i])
            ]
            stages.append(Stage(PatchMerging(dim // 2) if i else Stem(c), blocks))
        self.stages = nn.ModuleList(stages)
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


def _mixer(c: SwinConfig, dim: int, heads: int, window: int, shift: int) -> nn.Module:
    if c.mixer == "mlp":
        return WindowMLP(dim, heads, window=window, shift=shift, shift_single=c.dense)
    return WindowAttention(
        dim, heads, window=window, shift=shift, shift_single=c.dense, qkv_bias=c.qkv_bias, scale=c.scale,
        dropout=c.attention_dropout, proj_dropout=c.dropout,
    )  # fmt: skip


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


TINY = SwinConfig(drop_path=0.2)
BASE = SwinConfig(dim=128, depths=(2, 2, 18, 2), heads=(4, 8, 16, 32), drop_path=0.5)
LARGE = SwinConfig(dim=192, depths=(2, 2, 18, 2), heads=(6, 12, 24, 48), drop_path=0.2)
C24 = SwinConfig(heads=(4, 8, 16, 32), window=8, image_size=256, drop_path=0.2)

VARIANTS = {
    "tiny": TINY,
    "small": SwinConfig(depths=(2, 2, 18, 2), drop_path=0.3),
    "base": BASE,
    "base_384": replace(BASE, window=12, image_size=384),
    "large": LARGE,
    "large_384": replace(LARGE, window=12, image_size=384),
    "tiny_c24": C24,
    "mlp_tiny_c24": replace(C24, mixer="mlp"),
    "mlp_tiny_c12": replace(C24, mixer="mlp", heads=(8, 16, 32, 64)),
    "mlp_tiny_c6": replace(C24, mixer="mlp", heads=(16, 32, 64, 128)),
    "mlp_base": replace(BASE, mixer="mlp"),
}

build = Swin

_ARGUMENTS = {  # the authors' constructor arguments and our settings
    "in_chans": "in_channels", "embed_dim": "dim", "depths": "depths", "num_heads": "heads", "window_size": "window",
    "img_size": "image_size", "image_size": "image_size", "pretrain_img_size": "image_size",
    "ape": "absolute", "patch_size": "patch",
    "patch_norm": "patch_norm", "mlp_ratio": "mlp_ratio", "qkv_bias": "qkv_bias", "qk_scale": "scale",
    "drop_path_rate": "drop_path", "drop_rate": "dropout", "attn_drop_rate": "attention_dropout",
}  # fmt: skip


def from_published(build: Mapping[str, Any], names: Mapping[str, Sequence[int]], base: SwinConfig = TINY) -> SwinConfig:
    """The authors' constructor arguments as ours; dense form, MLP form, norms and positions by parameter names."""
    given = {ours: build[theirs] for theirs, ours in _ARGUMENTS.items() if theirs in build}
    given |= {k: tuple(given[k]) for k in ("depths", "heads") if k in given}
    if isinstance(given.get("image_size"), list):
        given["image_size"] = tuple(given["image_size"])
    if isinstance(given.get("patch"), list | tuple):
        given["patch"] = given["patch"][0]
    config = replace(base, **given)
    bare = {re.sub(r"^(swin\.)?(encoder\.)?", "", n) for n in names}
    if not any(n.startswith("layers.") for n in bare):
        return config
    stages = 1 + max(int(n.split(".")[1]) for n in bare if n.startswith("layers."))
    norms = tuple(i for i in range(stages) if f"norm{i}.weight" in bare)
    headless = not bare & {"norm.weight", "layernorm.weight"}
    return replace(
        config,
        dense=bool(norms) or (headless and config.dense),
        norms=norms if norms and len(norms) < stages else None,
        mixer="mlp" if any(".spatial_mlp." in n for n in bare) else "attention",
        absolute=bool(bare & {"absolute_pos_embed", "embeddings.position_embeddings"}),
        patch_norm=bool(bare & {"patch_embed.norm.weight", "embeddings.norm.weight"}),
    )


def _positions(value: Tensor) -> Tensor:
    """(1, tokens, C) or (1, C, h, w) -> (1, h, w, C); tokens are taken as a square until `resize` knows better."""
    if value.ndim == 4:
        return value.permute(0, 2, 3, 1)
    side = round(value.shape[1] ** 0.5)
    return value.unflatten(1, (side, -1) if side * side == value.shape[1] else (1, -1))


def _fit_positions(value: Tensor, ours: Tensor, model: nn.Module) -> Tensor:
    if value.numel() == ours.numel():  # a rectangle that came as a flat list of tokens
        return value.reshape(ours.shape)
    return resize_grid(value, (ours.shape[1], ours.shape[2]), "exact")


_BLOCKS = [
    (r"^layers\.(\d+)\.blocks\.(\d+)", r"backbone.stages.\1.blocks.\2"),
    (r"\.attn\.relative_position_bias_table", ".token_mixer.bias_table"),
    (r"\.attn\.", ".token_mixer."),
    (r"\.spatial_mlp\.", ".token_mixer."),
    (r"\.mlp\.", ".channel_mixer."),
    (r"^absolute_pos_embed", "backbone.stages.0.merge.positions"),
    (r"^patch_embed\.proj", "backbone.stages.0.merge.patches.conv"),
    (r"^patch_embed\.norm", "backbone.stages.0.merge.patches.norm"),
    (r"^norm(\d)\.", r"backbone.norms.\1."),
    (r"^norm\.", "head.norm."),
]


def _heads(value: Tensor) -> Tensor:
    """Grouped 1x1 convolution over (head, cell) -> one matrix or bias row per head; a window has T cells."""
    if value.ndim == 3:  # (heads * T, T, 1)
        return value.reshape(-1, value.shape[1], value.shape[1])
    return value


def _head_bias(value: Tensor, ours: Tensor, model: nn.Module) -> Tensor:
    return value.reshape(ours.shape) if value.numel() == ours.numel() else value


def _table(value: Tensor, ours: Tensor, model: nn.Module) -> Tensor:
    return resize_bias_table(value, ours.shape[0]) if value.shape[1] == ours.shape[1] else value


_COMMON: dict[str, Any] = {
    "drop": [r"relative_position_index$", r"attn_mask$"],
    "transform": {
        r"\.spatial_mlp\.weight$": _heads,
        r"^absolute_pos_embed$|embeddings\.position_embeddings$": _positions,
    },
    "resize": {r"bias_table$": _table, r"positions$": _fit_positions, r"token_mixer\.bias$": _head_bias},
}
_DOWN = [(rf"^layers\.{i}\.downsample", f"backbone.stages.{i + 1}.merge") for i in range(8)]
PUBLISHED = (
    KeyMap(  # Hugging Face: separate q, k and v; LGViT's files, too
        rename=[
            (r"^(?:swin\.)?(?:encoder\.)?", ""),
            *_DOWN,
            (r"^layers\.(\d+)\.blocks\.(\d+)", r"backbone.stages.\1.blocks.\2"),
            (r"\.attention\.self\.relative_position_bias_table$", ".token_mixer.bias_table"),
            *(
                (rf"\.attention\.self\.{part}\.(weight|bias)$", rf".token_mixer.qkv.\1[{i}]")
                for i, part in enumerate(("query", "key", "value"))
            ),
            (r"\.attention\.output\.dense\.", ".token_mixer.proj."),
            (r"\.layernorm_before\.", ".norm1."),
            (r"\.layernorm_after\.", ".norm2."),
            (r"\.intermediate\.dense\.", ".channel_mixer.fc1."),
            (r"(blocks\.\d+)\.output\.dense\.", r"\1.channel_mixer.fc2."),
            (r"^embeddings\.patch_embeddings\.projection\.", "backbone.stages.0.merge.patches.conv."),
            (r"^embeddings\.norm\.", "backbone.stages.0.merge.patches.norm."),
            (r"^embeddings\.position_embeddings$", "backbone.stages.0.merge.positions"),
            (r"^layernorm\.", "head.norm."),
            (r"^classifier\.", "head.fc."),
        ],
        when=r"^(swin\.)?encoder\.layers\.\d+\.blocks\.",
        **_COMMON,
    ),
    KeyMap(  # timm keeps the merging with the stage after it, and the last layer under head.fc
        rename=[(r"^layers\.(\d+)\.downsample", r"backbone.stages.\1.merge"), *_BLOCKS, (r"^head\.fc\.", "head.fc.")],
        when=r"^head\.fc\.|^layers\.3\.downsample\.",
        **_COMMON,
    ),
    KeyMap(
        rename=[
            *_DOWN,
            *_BLOCKS,
            (r"^head\.(weight|bias)", r"head.fc.\1"),
        ],
        **_COMMON,
    ),
)
