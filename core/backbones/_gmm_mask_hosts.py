"""The five networks of the Gaussian-mask paper, plain: ViT, Swin, CaiT, PiT and T2T-ViT for small images.

They differ from the networks that they are named after where the paper's code does. CaiT's class token is not among its
own keys, nor are the keys normed. T2T's blocks add their normed input once more. None resizes its positions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from core.errors import ShapeError, expect_shape
from core.heads.classify import ClassifierHead
from core.layers.linear import Linear
from core.layers.mlp import MLP
from core.layers.patches import PatchEmbedding, PatchMerging, to_channels_first, to_map
from core.layers.positions import sincos_1d
from core.layers.residual import Block, DropPath, LayerScale, Stage, spread
from core.mixers.attention import SelfAttention
from core.mixers.soft_split import ValueSkipAttention, soft_split
from core.mixers.talking_heads import TalkingHeads
from core.mixers.window import WindowAttention

TOKEN_DIM = 64  # channels of T2T's tokens between soft splits


class Tower(nn.Module):
    """Square image (B, C, side, side) -> one (B, channels[i], h, h) per stage.

    Args:
        c: settings of the family.
        stages: each gives a map (B, h, h, C) or, with a prefix, tokens (B, 1 + h * h, C), class token first.
        channels: of the levels.
        prefix: 1 where the stages carry a class token, else 0.
        head: the classifier that belongs to it.
    """

    def __init__(
        self, c: Any, stages: Sequence[nn.Module], channels: Sequence[int], head: ClassifierHead, prefix: int = 0
    ) -> None:
        super().__init__()
        self.config, self.classifier, self.carried = c, head, prefix
        self.prefix = prefix or int(head.pool == "token")  # of `tokens`
        self.channels = tuple(channels)
        self.strides = tuple(c.patch * 2**i for i in range(len(channels)))
        self.sides = tuple(c.image_size // stride for stride in self.strides)
        self.stages = nn.ModuleList(stages)

    def levels(self, image: Tensor) -> list[Tensor]:
        """What the stages give, tokens or maps."""
        side = self.config.image_size
        found = expect_shape(image, "B C H W", C=self.config.in_channels)
        if (found["H"], found["W"]) != (side, side):
            raise ShapeError(
                f"positions and masks were built for {side} x {side} pixels, the image has {found['H']} x {found['W']};"
                " image_size=32 or 64 builds them anew"
            )
        x, levels = image, []
        for stage in self.stages:
            x = stage(x)
            levels.append(x)
        return levels

    def tokens(self, image: Tensor) -> Tensor:
        """Tokens of the last level (B, prefix + h * h, C)."""
        last = self.levels(image)[-1]
        return last if last.ndim == 3 else last.flatten(1, 2)

    def forward(self, image: Tensor) -> list[Tensor]:
        if not self.carried:
            return [to_channels_first(x) for x in self.levels(image)]
        return [to_map(x[:, 1:], n, n) for x, n in zip(self.levels(image), self.sides, strict=True)]


def head(backbone: Tower, classes: int) -> nn.Module:
    """ViT with a mask norms the mean of its tokens, Swin and T2T every token before the mean; the rest the class token.

    Weights start as each host's others do; Swin's and T2T's truncated normal, 0.02.
    """
    made = backbone.classifier(backbone, classes)
    if backbone.config.host in ("vit", "cait", "pit"):
        _xavier(made)
    return made


def _xavier(module: nn.Module) -> None:
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            nn.init.xavier_normal_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


class Embedding(nn.Module):
    """Patches and learned positions, (B, C, H, W) -> (B, h, w, dim), with a class token (B, 1 + h * w, dim)."""

    def __init__(self, c: Any, class_token: bool) -> None:
        super().__init__()
        self.patches = PatchEmbedding(c.in_channels, c.dim, c.patch)
        cells = (c.image_size // c.patch) ** 2
        self.class_token = nn.Parameter(torch.randn(1, 1, c.dim)) if class_token else None
        self.positions = nn.Parameter(torch.randn(1, cells + class_token, c.dim))

    def forward(self, image: Tensor) -> Tensor:
        x: Tensor = self.patches(image)
        if self.class_token is None:
            return x + self.positions.view(1, *x.shape[1:])
        return torch.cat([self.class_token.expand(x.shape[0], -1, -1), x.flatten(1, 2)], 1) + self.positions

    def as_linear(self) -> None:
        """Start the convolution as the Linear over flattened patches that ViT and CaiT have."""
        nn.init.xavier_normal_(self.patches.conv.weight.view(self.patches.conv.out_channels, -1))


def _block(c: Any, dim: int, heads: int, drop_path: float) -> Block:
    attention = SelfAttention(dim, heads, head_dim=c.head_dim, qkv_bias="none")
    return Block(dim, attention, MLP(dim, ratio=c.mlp_ratio), drop_path=drop_path)


def vit(c: Any) -> Tower:
    """Without a mask it keeps the class token, with one it has none and pools by the mean."""
    token = c.mask == "none"
    embedding = Embedding(c, token)
    stage = Stage(embedding, [_block(c, c.dim, c.heads[0], c.drop_path) for _ in range(c.depths[0])])
    pool = ClassifierHead(pool="token" if token else "mean_tokens", norm_first=False)
    tower = Tower(c, [stage], (c.dim,), pool, int(token))
    _xavier(tower)
    embedding.as_linear()
    return tower


class Stem(nn.Module):
    """Normed patches and learned positions, (B, C, H, W) -> (B, h, w, dim)."""

    def __init__(self, c: Any) -> None:
        super().__init__()
        self.patches = PatchEmbedding(c.in_channels, c.dim, c.patch, norm=True)
        self.positions = nn.Parameter(torch.empty(1, (c.image_size // c.patch) ** 2, c.dim))
        nn.init.trunc_normal_(self.positions, std=0.02)

    def forward(self, image: Tensor) -> Tensor:
        x: Tensor = self.patches(image)
        return x + self.positions.view(1, *x.shape[1:])


def swin(c: Any) -> Tower:
    """Linear layers keep the framework's start. Where one window is the whole map nothing shifts."""
    channels = [c.dim * 2**i for i in range(len(c.depths))]
    rates, side, stages = spread(c.drop_path, c.depths), c.image_size // c.patch, []
    for i, dim in enumerate(channels):
        window = min(c.window, side >> i)
        step = c.window // 2 if side >> i > c.window else 0
        blocks = [
            Block(
                dim,
                WindowAttention(dim, c.heads[i], window=window, shift=step * (j % 2)),
                MLP(dim, ratio=c.mlp_ratio),
                drop_path=rate,
            )
            for j, rate in enumerate(rates[i])
        ]
        stages.append(Stage(PatchMerging(dim // 2) if i else Stem(c), blocks))
    return Tower(c, stages, channels, ClassifierHead())


class ClassBlock(nn.Module):
    """The class token looks at the patches: (B, 1, C), (B, N, C) -> (B, 1, C). Only the query is normed."""

    def __init__(self, c: Any, layer_scale: float) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(c.dim), TalkingHeads(c.dim, c.heads[0], head_dim=c.head_dim)
        self.norm2, self.channel_mixer = nn.LayerNorm(c.dim), MLP(c.dim, ratio=c.mlp_ratio)
        self.scale1, self.scale2 = LayerScale(c.dim, layer_scale), LayerScale(c.dim, layer_scale)
        self.drop_path = DropPath(c.drop_path)

    def forward(self, x: Tensor, patches: Tensor) -> Tensor:
        x = x + self.drop_path(self.scale1(self.attention(self.norm1(x), patches)))
        return x + self.drop_path(self.scale2(self.channel_mixer(self.norm2(x))))


class CaiT(Tower):
    """A tower of patches, and class layers on its last map; `forward` gives the map alone."""

    def __init__(self, c: Any) -> None:
        embedding = Embedding(c, False)
        blocks = [
            Block(
                c.dim,
                TalkingHeads(c.dim, c.heads[0], head_dim=c.head_dim),
                MLP(c.dim, ratio=c.mlp_ratio),
                drop_path=c.drop_path,
                layer_scale=_layer_scale(i),
            )
            for i in range(1, c.depths[0] + 1)
        ]
        super().__init__(c, [Stage(embedding, blocks)], (c.dim,), ClassifierHead(pool="token", norm_first=False))
        self.class_token = nn.Parameter(torch.randn(1, 1, c.dim))
        self.class_blocks = nn.ModuleList(ClassBlock(c, _layer_scale(i)) for i in range(1, c.class_depth + 1))
        _xavier(self)
        embedding.as_linear()

    def tokens(self, image: Tensor) -> Tensor:
        patches = super().tokens(image)
        x = self.class_token.repeat(patches.shape[0], 1, 1)
        for block in self.class_blocks:
            x = block(x, patches)
        return torch.cat([x, patches], 1)


def _layer_scale(layer: int) -> float:
    """Start of a layer's factors, counted from 1 in its own part of the net."""
    return 0.1 if layer <= 18 else 1e-5 if layer <= 24 else 1e-6


class Pooling(nn.Module):
    """Half the side and twice the channels, (B, 1 + n * n, C) -> (B, 1 + ceil(n / 2) ** 2, 2 C), class token apart."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(dim, 2 * dim, 3, 2, 1, groups=dim)
        self.pointwise = nn.Conv2d(2 * dim, 2 * dim, 1)
        self.class_token = Linear(dim, 2 * dim)

    def forward(self, x: Tensor) -> Tensor:
        side = math.isqrt(x.shape[1] - 1)
        cells = self.pointwise(self.depthwise(to_map(x[:, 1:], side, side)))
        return torch.cat([self.class_token(x[:, :1]), cells.flatten(2).transpose(1, 2)], 1)


def pit(c: Any) -> Tower:
    channels = [c.dim * 2**i for i in range(len(c.depths))]
    stages: list[Stage] = []
    for dim, depth, heads in zip(channels, c.depths, c.heads, strict=True):
        merge = Pooling(dim // 2) if stages else Embedding(c, True)
        stages.append(Stage(merge, [_block(c, dim, heads, c.drop_path) for _ in range(depth)]))
    tower = Tower(c, stages, channels, ClassifierHead(pool="token", norm_first=False), 1)
    _xavier(tower)
    return tower


class TokenTransformer(nn.Module):
    """Attention and MLP that bring a map to fewer channels: (B, H, W, wide) -> (B, H, W, dim)."""

    def __init__(self, wide: int, dim: int) -> None:
        super().__init__()
        self.norm1, self.token_mixer = nn.LayerNorm(wide), ValueSkipAttention(wide, dim)
        self.norm2, self.channel_mixer = nn.LayerNorm(dim), MLP(dim, ratio=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.token_mixer(self.norm1(x))
        return x + self.channel_mixer(self.norm2(x))


class TokensToToken(nn.Module):
    """Image (B, C, H, W) -> (B, H / patch, W / patch, dim), with positions; each soft split halves the sides."""

    table: Tensor

    def __init__(self, c: Any) -> None:
        super().__init__()
        halvings = c.patch.bit_length() - 1
        widths = [9 * c.in_channels, *[9 * TOKEN_DIM] * (halvings - 1)]
        self.mixers = nn.ModuleList(TokenTransformer(wide, TOKEN_DIM) for wide in widths[:-1])
        # Published, trained by nobody: a norm before the projection, and the class token.
        self.unused_norm, self.unused_token = nn.LayerNorm(widths[-1]), nn.Parameter(torch.empty(1, 1, c.dim))
        nn.init.trunc_normal_(self.unused_token, std=0.02)
        for parameter in (*self.unused_norm.parameters(), self.unused_token):
            parameter.requires_grad_(False)
        self.project = Linear(widths[-1], c.dim)
        side = c.image_size // c.patch
        table = sincos_1d(side * side, c.dim).float().view(1, side, side, c.dim)
        self.register_buffer("table", table, persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        x = soft_split(image.permute(0, 2, 3, 1), 3, 2, 1)
        for mixer in self.mixers:
            x = soft_split(mixer(x), 3, 2, 1)
        return self.project(x) + self.table


class SkipAttention(nn.Module):
    """Attention plus its own input: in a block x + attention(LN x) + LN x comes out, as published."""

    def __init__(self, attention: SelfAttention) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, x: Tensor) -> Tensor:
        return x + self.attention(x)


def t2t(c: Any) -> Tower:
    blocks = [_block(c, c.dim, c.heads[0], rate) for rate in spread(c.drop_path, c.depths)[0]]
    for block in blocks:
        block.token_mixer = SkipAttention(block.token_mixer)  # type: ignore[arg-type]
    tower = Tower(c, [Stage(TokensToToken(c), blocks)], (c.dim,), ClassifierHead())
    for layer in tower.modules():
        if isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return tower


HOSTS: dict[str, Callable[[Any], Tower]] = {"vit": vit, "swin": swin, "cait": CaiT, "pit": pit, "t2t": t2t}
