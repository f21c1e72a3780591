"""T2T-ViT: tokens made by three overlapping soft splits with attention between them, then a deep and narrow plain ViT.

Paper: arXiv 2101.11986. Reference: yitu-opensource/T2T-ViT@0f63dc9 (Clear BSD, which grants no patents).
Differs: any size and rectangles; the sinusoid positions are made for `table_size` and resized bicubically for other
maps, as the authors do when they load weights at another size. Their scale dim ** -0.5 for "pretrained" nets is an
option: released weights reach their accuracy with head_dim ** -0.5. Released files may hold two states; the figures are
those of "state_dict_ema": pass it as `wrapper`. The DenseNet-like exploration and the convolutional tokeniser, which is
only constructed, are left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from core.backbones._t2t_vit_layers import ExcitedAttention, GhostAttention, GhostMLP
from core.backbones._t2t_vit_published import EMBED, resized
from core.backbones._t2t_vit_published import PUBLISHED as PUBLISHED
from core.errors import SettingError, ShapeError, expect_shape
from core.facts import Facts
from core.heads.classify import ClassifierHead
from core.layers.linear import Linear
from core.layers.mlp import MLP
from core.layers.patches import to_map
from core.layers.positions import sincos_1d
from core.layers.residual import Block, spread
from core.mixers.attention import SelfAttention
from core.mixers.soft_split import PerformerAttention, ValueSkipAttention, soft_split

FACTS = Facts(
    title="T2T-ViT",
    paper="arXiv 2101.11986",
    licence="Clear BSD",
    top1={
        "7": 71.7, "10": 75.2, "12": 76.5, "14": 81.5, "19": 81.9, "24": 82.3,
        "t_14": 81.7, "t_19": 82.4, "t_24": 82.6, "14_384": 83.3,
    },
    size={"14_384": 384},
)  # fmt: skip
HEAD = ClassifierHead(norm=None, pool="token", norm_first=False)  # the backbone norms its tokens


@dataclass(frozen=True)
class T2TViTConfig:
    in_channels: int = 3
    tokens: Literal["performer", "transformer"] = "performer"  # attention between the soft splits
    token_dim: int = 64  # channels between the soft splits
    dim: int = 256
    depth: int = 7
    heads: int = 4
    mlp_ratio: float = 2.0
    qkv_bias: bool = False  # in the backbone only
    qk_scale: float | None = None  # of the backbone's logits; head_dim ** -0.5 by default
    table_size: int = 224  # pixels, side of the square image that positions are made for; 16 divides it
    excite: bool = False  # squeeze-and-excitation behind each attention
    ghost: bool = False  # half of q, k and v and most of the MLPs' channels are scaled copies of the others
    drop_path: float = 0.0  # of the last block, linear from 0
    dropout: float = 0.0  # of tokens, projections and MLPs of the backbone; the performer has its own, 0.1
    attention_dropout: float = 0.0


class TokenTransformer(nn.Module):
    """Attention and MLP that bring a map to fewer channels: (B, H, W, wide) -> (B, H, W, dim)."""

    def __init__(self, wide: int, dim: int, kind: str) -> None:
        super().__init__()
        performer = kind == "performer"
        self.norm1 = nn.LayerNorm(wide)
        self.token_mixer = PerformerAttention(wide, dim) if performer else ValueSkipAttention(wide, dim)
        self.norm2 = nn.LayerNorm(dim)
        self.channel_mixer = MLP(dim, ratio=1)
        self.dropout = nn.Dropout(0.1 if performer else 0.0)

    def forward(self, x: Tensor) -> Tensor:
        x = self.token_mixer(self.norm1(x))
        return x + self.dropout(self.channel_mixer(self.norm2(x)))


class TokensToToken(nn.Module):
    """Image (B, C, H, W) -> (B, h, w, dim): floor((H + 1) / 4) rows, then twice half of them, rounded up."""

    def __init__(self, c: T2TViTConfig) -> None:
        super().__init__()
        self.mix1 = TokenTransformer(49 * c.in_channels, c.token_dim, c.tokens)
        self.mix2 = TokenTransformer(9 * c.token_dim, c.token_dim, c.tokens)
        self.project = Linear(9 * c.token_dim, c.dim)

    def forward(self, image: Tensor) -> Tensor:
        x = self.mix1(soft_split(image.permute(0, 2, 3, 1), 7, 4, 2))
        x = self.mix2(soft_split(x, 3, 2, 1))
        return self.project(soft_split(x, 3, 2, 1))


class Embedding(nn.Module):
    """Image (B, C, H, W) -> tokens with positions (B, 1 + h * w, dim), class token first, and (h, w)."""

    table: Tensor

    def __init__(self, c: T2TViTConfig) -> None:
        super().__init__()
        self.side = c.table_size // 16
        self.tokens_to_token = TokensToToken(c)
        self.class_token = nn.Parameter(torch.zeros(1, 1, c.dim))
        nn.init.trunc_normal_(self.class_token, std=0.02)
        self.register_buffer("table", sincos_1d(1 + self.side**2, c.dim)[None].float(), persistent=False)
        self.dropout = nn.Dropout(c.dropout)

    def forward(self, image: Tensor) -> tuple[Tensor, tuple[int, int]]:
        x = self.tokens_to_token(image)
        B, h, w, _ = x.shape
        table = self.table if h == w == self.side else resized(self.table, (h, w))
        x = torch.cat([self.class_token.expand(B, -1, -1), x.flatten(1, 2)], 1) + table
        return self.dropout(x), (h, w)


def _block(c: T2TViTConfig, rate: float) -> Block:
    kind = GhostAttention if c.ghost else ExcitedAttention if c.excite else SelfAttention
    mixer = kind(
        c.dim, c.heads, qkv_bias="full" if c.qkv_bias else "none", dropout=c.attention_dropout, proj_dropout=c.dropout
    )
    if c.qk_scale is not None:
        mixer.scale = c.qk_scale
    mlp = (GhostMLP if c.ghost else MLP)(c.dim, ratio=c.mlp_ratio, dropout=c.dropout)
    return Block(c.dim, mixer, mlp, drop_path=rate)


class Encoder(nn.Module):
    """Embedding and blocks, the one stage: image (B, C, H, W) -> tokens (B, 1 + h * w, dim)."""

    def __init__(self, c: T2TViTConfig) -> None:
        super().__init__()
        self.embed = Embedding(c)
        self.blocks = nn.ModuleList(_block(c, rate) for rate in spread(c.drop_path, (c.depth,))[0])

    def forward(self, image: Tensor) -> Tensor:
        x, _ = self.embed(image)
        for block in self.blocks:
            x = block(x)
        return x


class T2TViT(nn.Module):
    """Image (B, C, H, W) -> one level (B, dim, h, w) of about a sixteenth of each side, for any H and W from 3 pixels.

    h is floor((H + 1) / 4), halved twice and rounded up: H / 16 where 16 divides H.
    """

    prefix = 1

    def __init__(self, config: T2TViTConfig) -> None:
        super().__init__()
        c = self.config = config
        if c.dim % c.heads:
            raise SettingError(f"t2t_vit: {c.heads} heads do not divide {c.dim} channels")
        if c.token_dim % 2 or c.table_size < 16:
            raise SettingError(
                f"t2t_vit: an even token_dim and a table_size from 16 up were expected, got {c.token_dim} and "
                f"{c.table_size}"
            )
        if c.ghost and c.excite:
            raise SettingError("t2t_vit: ghost blocks come without squeeze-and-excitation")
        self.channels, self.strides = (c.dim,), (16,)
        self.stages = nn.ModuleList([Encoder(c)])
        self.norm = nn.LayerNorm(c.dim)
        self.apply(_initialise)

    @property
    def blocks(self) -> nn.ModuleList:
        return self.stages[0].blocks  # type: ignore[return-value]

    def embed(self, image: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Tokens (B, 1 + h * w, C) as the first block sees them, and (h, w)."""
        size = expect_shape(image, "B C H W", C=self.config.in_channels)
        if min(size["H"], size["W"]) < 3:
            raise ShapeError(f"an image of {size['H']} x {size['W']} pixels is too small, sides start at 3")
        x, grid = self.stages[0].embed(image)  # type: ignore[operator]
        return x, grid

    def tokens(self, image: Tensor) -> Tensor:
        """All tokens after the last norm, (B, 1 + h * w, C), class token first."""
        x, _ = self.embed(image)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def forward(self, image: Tensor) -> list[Tensor]:
        x, (h, w) = self.embed(image)
        for block in self.blocks:
            x = block(x)
        return [to_map(self.norm(x)[:, 1:], h, w)]

    def features(self, image: Tensor, at: Sequence[int], *, norm: bool = False) -> list[Tensor]:
        """Maps (B, C, h, w) behind the blocks with these indices (from 0), raw or with the last `norm`."""
        if outside := [i for i in at if not -len(self.blocks) <= i < len(self.blocks)]:
            raise SettingError(f"no block {outside[0]} in a network of {len(self.blocks)} blocks")
        x, (h, w) = self.embed(image)
        found = []
        for block in self.blocks:
            x = block(x)
            found.append(x)
        return [to_map((self.norm(found[i]) if norm else found[i])[:, 1:], h, w) for i in at]


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


LITE = T2TViTConfig()
MIDDLE = T2TViTConfig(dim=384, depth=14, heads=6, mlp_ratio=3.0)
LARGE = replace(MIDDLE, dim=448, depth=19, heads=7)
HUGE = replace(MIDDLE, dim=512, depth=24, heads=8)

VARIANTS = {
    "7": LITE,
    "10": replace(LITE, depth=10),
    "12": replace(LITE, depth=12),
    "14": MIDDLE,
    "19": LARGE,
    "24": HUGE,
    "t_14": replace(MIDDLE, tokens="transformer"),
    "t_19": replace(LARGE, tokens="transformer"),
    "t_24": replace(HUGE, tokens="transformer"),
    "14_384": MIDDLE,  # fine-tuned at 384 pixels, with the positions of 224 resized
    "14_resnext": replace(MIDDLE, heads=32),
    "14_wide": replace(MIDDLE, dim=768, depth=4, heads=12),
    "14_se": replace(MIDDLE, excite=True),
    "16_ghost": replace(MIDDLE, depth=16, ghost=True),
}

build = T2TViT

_ARGUMENTS = {  # the authors' constructor arguments and our settings
    "in_chans": "in_channels", "tokens_type": "tokens", "token_dim": "token_dim", "embed_dim": "dim", "depth": "depth",
    "num_heads": "heads", "mlp_ratio": "mlp_ratio", "qkv_bias": "qkv_bias", "qk_scale": "qk_scale",
    "img_size": "table_size", "drop_path_rate": "drop_path", "drop_rate": "dropout",
    "attn_drop_rate": "attention_dropout",
}  # fmt: skip


def from_published(
    build: Mapping[str, Any], names: Mapping[str, Sequence[int]], base: T2TViTConfig = LITE
) -> T2TViTConfig:
    """The variant that the authors' function name says ("t2t_vit_14"), their arguments, and over both what parameter
    names and shapes show; heads that nobody tells are 64 wide, but in the width of `base`.
    """
    base = VARIANTS.get(str(build.get("fn", "")).removeprefix("t2t_vit_"), base)
    given = {ours: build[theirs] for theirs, ours in _ARGUMENTS.items() if theirs in build}
    if isinstance(given.get("table_size"), list | tuple):
        given["table_size"] = given["table_size"][0]
    for key in ("mlp_ratio", "drop_path", "dropout", "attention_dropout"):
        if key in given:
            given[key] = float(given[key])
    shapes = {mapped: tuple(shape) for n, shape in names.items() if (mapped := PUBLISHED[0].name(n))}
    seen = _seen(shapes) if EMBED + "class_token" in shapes else {}
    new = given | seen
    dim = new.get("dim", base.dim)
    if "heads" not in new and dim != base.dim:
        new["heads"] = max(1, dim // 64)
    if build.get("pretrained") and "qk_scale" not in given:
        new["qk_scale"] = dim**-0.5
    return replace(base, **new)


def _seen(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """What our names and published shapes tell."""
    split, block = EMBED + "tokens_to_token.", "backbone.stages.0.blocks."
    dim = shapes[split + "project.weight"][0]
    inner = shapes[block + "0.channel_mixer.fc2.weight"][1]
    return {
        "in_channels": shapes[split + "mix1.norm1.weight"][0] // 49,
        "tokens": "performer" if split + "mix1.token_mixer.features" in shapes else "transformer",
        "token_dim": shapes[split + "mix1.norm2.weight"][0],
        "dim": dim,
        "depth": 1 + max(int(n.removeprefix(block).split(".")[0]) for n in shapes if n.startswith(block)),
        "mlp_ratio": inner / dim if int(dim * (inner / dim)) == inner else math.nextafter(inner / dim, math.inf),
        "qkv_bias": any(n.startswith(block + "0.token_mixer.qkv.bias") for n in shapes),
        "excite": block + "0.token_mixer.excite.fc1.weight" in shapes,
        "ghost": any(n.startswith(block + "0.token_mixer.copies") for n in shapes),
    }
