"""CoSwin: Swin for small images, with a convolution beside each window attention and a learned blend of both.

Paper: arXiv 2509.08959. Reference: anynomous-user/coswin@11eda92 (no licence stated), the authors' review copy.
Differs: any size by the padding of Swin's dense code (image to whole patches, maps after their norm to whole windows,
odd maps by one before merging; zeros at the bottom and right); the published code takes the built square only, and
there it is the same function.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from core.errors import SettingError, expect_shape
from core.facts import Facts
from core.heads.classify import ClassifierHead
from core.layers.mlp import MLP
from core.layers.patches import PatchEmbedding, PatchMerging, to_channels_first
from core.layers.positions import resize_bias_table, resize_grid
from core.layers.residual import DropPath, Stage, spread
from core.mixers.window import WindowAttention
from core.weights import KeyMap

FACTS = Facts(
    title="CoSwin",
    paper="arXiv 2509.08959",
    licence="none stated",
    size={"patch2_32": 32, "patch4_64": 64},
)
HEAD = ClassifierHead(norm=nn.LayerNorm, eps=1e-5, pool="mean")


@dataclass(frozen=True)
class CoSwinConfig:
    in_channels: int = 3
    dim: int = 96  # channels of stage 1; each stage doubles them
    depths: tuple[int, ...] = (2, 6, 4)
    heads: tuple[int, ...] = (3, 6, 12)
    window: int = 4  # side in tokens
    image_size: int = 32  # pixels, of a square; sets the windows and shifts of small maps, and `absolute`
    patch: int = 2  # pixels
    patch_norm: bool = True  # LayerNorm after the patch embedding
    absolute: bool = False  # learned absolute positions; resized bicubically to other sizes
    mlp_ratio: float = 2.0
    qkv_bias: bool = True
    scale: float | None = None  # of q; head width ** -0.5 by default
    drop_path: float = 0.1  # of the last block; linear from 0
    dropout: float = 0.0
    attention_dropout: float = 0.0


class ConvBranch(nn.Module):
    """Two full 3x3 convolutions over the whole map, 1.1 times as wide between them: (B, H, W, C) -> the same."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        hidden = int(1.1 * dim)
        self.conv1, self.act = nn.Conv2d(dim, hidden, 3, padding=1), nn.ReLU()
        self.conv2 = nn.Conv2d(hidden, dim, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 3, 1, 2)
        # For a channels-last map torch turns the weight round at each call: where the map is the smaller, turn that.
        if x.numel() < self.conv1.weight.numel():
            x = x.contiguous()
        return self.conv2(self.act(self.conv1(x))).permute(0, 2, 3, 1)


class CoSwinBlock(nn.Module):
    """x + DropPath(attention(norm(x)) + sigmoid(blend) * convolutions(x)), then a pre-norm MLP; (B, H, W, C).

    The convolutions read the map before its norm. One draw of the drop path covers both branches.
    """

    def __init__(self, dim: int, attention: nn.Module, mlp: nn.Module, drop_path: float) -> None:
        super().__init__()
        self.norm1, self.token_mixer, self.conv = nn.LayerNorm(dim), attention, ConvBranch(dim)
        self.blend = nn.Parameter(torch.full((), 0.5))
        self.norm2, self.channel_mixer = nn.LayerNorm(dim), mlp
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.token_mixer(self.norm1(x)) + self.conv(x) * self.blend.sigmoid()
        x = x + self.drop_path(mixed)
        return x + self.drop_path(self.channel_mixer(self.norm2(x)))


class Stem(nn.Module):
    """Patches and absolute positions, (B, C, H, W) -> (B, h, w, dim)."""

    def __init__(self, c: CoSwinConfig) -> None:
        super().__init__()
        self.patches = PatchEmbedding(c.in_channels, c.dim, c.patch, pad=True, norm=c.patch_norm)
        self.positions = None
        if c.absolute:
            side = map_side(c)
            self.positions = nn.Parameter(torch.empty(1, side, side, c.dim))
            nn.init.trunc_normal_(self.positions, std=0.02)
        self.dropout = nn.Dropout(c.dropout)

    def forward(self, image: Tensor) -> Tensor:
        x: Tensor = self.patches(image)
        if self.positions is not None:
            size = (x.shape[1], x.shape[2])
            same = self.positions.shape[1:3] == size
            x = x + (self.positions if same else resize_grid(self.positions, size, "exact"))
        return self.dropout(x)


def map_side(c: CoSwinConfig) -> int:
    """Side of the first stage's map at the built image size."""
    return -(-c.image_size // c.patch)


def stage_windows(c: CoSwinConfig) -> list[tuple[int, int]]:
    """Window side of each stage and the shift of its odd blocks.

    Where the built map is not larger than the window, its side is the window and nothing shifts.
    """
    plan = []
    side = map_side(c)
    for _ in c.depths:
        plan.append((c.window, c.window // 2) if side > c.window else (side, 0))
        side = -(-side // 2)
    return plan


class CoSwin(nn.Module):
    """Image (B, C, H, W) -> pyramid, one (B, channels[i], ceil(h), ceil(w)) per stage, for any H and W."""

    def __init__(self, config: CoSwinConfig) -> None:
        super().__init__()
        c = self.config = config
        if len(c.heads) != len(c.depths):
            raise SettingError(f"coswin: {len(c.depths)} depths but {len(c.heads)} heads")
        self.channels = tuple(c.dim * 2**i for i in range(len(c.depths)))
        self.strides = tuple(c.patch * 2**i for i in range(len(c.depths)))
        rates = spread(c.drop_path, c.depths)
        stages = []
        for i, (dim, (window, shift)) in enumerate(zip(self.channels, stage_windows(c), strict=True)):
            blocks = [
                CoSwinBlock(
                    dim,
                    WindowAttention(
                        dim, c.heads[i], window=window, shift=shift if j % 2 else 0, qkv_bias=c.qkv_bias,
                        scale=c.scale, dropout=c.attention_dropout, proj_dropout=c.dropout,
                    ),
                    MLP(dim, ratio=c.mlp_ratio, dropout=c.dropout),
                    rate,
                )
                for j, rate in enumerate(rates[i])
            ]  # fmt: skip
            stages.append(Stage(PatchMerging(dim // 2) if i else Stem(c), blocks))
        self.stages = nn.ModuleList(stages)
        self.apply(_initialise)

    def forward(self, image: Tensor) -> list[Tensor]:
        expect_shape(image, "B C H W", C=self.config.in_channels)
        x, pyramid = image, []
        for stage in self.stages:
            x = stage(x)
            pyramid.append(to_channels_first(x))
        return pyramid


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):  # convolutions keep the framework's default
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


SMALL_IMAGES = CoSwinConfig()  # CIFAR-10, CIFAR-100, SVHN, MNIST

VARIANTS = {
    "patch2_32": SMALL_IMAGES,
    "patch4_64": replace(SMALL_IMAGES, patch=4, image_size=64),  # Tiny ImageNet
}

build = CoSwin

_ARGUMENTS = {  # the authors' constructor arguments and our settings
    "in_chans": "in_channels", "embed_dim": "dim", "depths": "depths", "num_heads": "heads", "window_size": "window",
    "img_size": "image_size", "patch_size": "patch", "ape": "absolute", "patch_norm": "patch_norm",
    "mlp_ratio": "mlp_ratio", "qkv_bias": "qkv_bias", "qk_scale": "scale", "drop_path_rate": "drop_path",
    "drop_rate": "dropout", "attn_drop_rate": "attention_dropout",
}  # fmt: skip


def from_published(
    build: Mapping[str, Any], names: Mapping[str, Sequence[int]], base: CoSwinConfig = SMALL_IMAGES
) -> CoSwinConfig:
    """The authors' constructor arguments as ours; positions, patch norm and biases by parameter names."""
    given = {ours: build[theirs] for theirs, ours in _ARGUMENTS.items() if theirs in build}
    given |= {k: tuple(given[k]) for k in ("depths", "heads") if k in given}
    for name in ("image_size", "patch"):  # squares, sometimes given as pairs
        if isinstance(given.get(name), list | tuple):
            given[name] = given[name][0]
    config = replace(base, **given)
    if "patch_embed.proj.weight" not in names:
        return config
    return replace(
        config,
        absolute="absolute_pos_embed" in names,
        patch_norm="patch_embed.norm.weight" in names,
        qkv_bias="layers.0.blocks.0.attn.qkv.bias" in names,
    )


def _grid(value: Tensor) -> Tensor:
    """(1, tokens, C) of a square -> (1, h, w, C); anything else is left for `convert` to complain of."""
    side = math.isqrt(value.shape[1])
    return value.unflatten(1, (side, side)) if side * side == value.shape[1] else value


def _fit_positions(value: Tensor, ours: Tensor, model: nn.Module) -> Tensor:
    return resize_grid(value, (ours.shape[1], ours.shape[2]), "exact") if value.ndim == 4 else value


def _fit_table(value: Tensor, ours: Tensor, model: nn.Module) -> Tensor:
    return resize_bias_table(value, ours.shape[0]) if value.shape[1] == ours.shape[1] else value


PUBLISHED = (
    KeyMap(
        rename=[
            *((rf"^layers\.{i}\.downsample\.", f"backbone.stages.{i + 1}.merge.") for i in range(8)),
            (r"^layers\.(\d+)\.blocks\.(\d+)\.", r"backbone.stages.\1.blocks.\2."),
            (r"\.attn\.relative_position_bias_table$", ".token_mixer.bias_table"),
            (r"\.attn\.", ".token_mixer."),
            (r"\.mlp\.", ".channel_mixer."),
            (r"\.conv\.conv\.0\.", ".conv.conv1."),
            (r"\.conv\.conv\.2\.", ".conv.conv2."),
            (r"\.convInfluenceWeight$", ".blend"),
            (r"^absolute_pos_embed$", "backbone.stages.0.merge.positions"),
            (r"^patch_embed\.proj\.", "backbone.stages.0.merge.patches.conv."),
            (r"^patch_embed\.norm\.", "backbone.stages.0.merge.patches.norm."),
            (r"^norm\.", "head.norm."),
            (r"^head\.(weight|bias)$", r"head.fc.\1"),
        ],
        drop=[r"\.relative_position_index$", r"\.attn_mask$"],
        transform={r"^absolute_pos_embed$": _grid},
        resize={r"bias_table$": _fit_table, r"merge\.positions$": _fit_positions},
    ),
)
