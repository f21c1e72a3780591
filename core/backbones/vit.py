"""Plain Vision Transformer: every published form of it that the house's systems stand on.

Papers: arXiv 2010.11929 (ViT), 2012.12877 (DeiT), 2104.14294 (DINO), 2304.07193 and 2309.16588 (DINOv2, registers),
2106.08254 (BEiT's biases), 2106.01548 (the Flax networks trained with SAM), 2103.00020 (CLIP), 2303.15343 (SigLIP, its
attention pooling left out). References: those of the systems' cards
deit-lt, gmml, sam, glsim, icolorit, ph-reg, asit, dsva, lgvit, gmm-mask, locality-alignment.
Differs: tokens are always ordered [class, distillation, registers, patches], wherever the authors put the registers;
separate q, k, v are one projection.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from core.backbones._vit_published import PUBLISHED as PUBLISHED
from core.backbones._vit_settings import settings
from core.errors import SettingError, ShapeError, expect_shape
from core.facts import Facts
from core.heads.classify import ClassifierHead
from core.layers.mlp import MLP, Activation
from core.layers.patches import PatchEmbedding, to_map
from core.layers.positions import Resizing, resize_grid, sincos_1d, sincos_2d
from core.layers.residual import Block, spread
from core.mixers.attention import QKVBias, SelfAttention

FACTS = Facts(
    title="Vision Transformer",
    paper="arXiv 2010.11929",
    licence="Apache-2.0 (ViT, DeiT, DINO, DINOv2, SigLIP), MIT (CLIP)",
    top1={"flax_base": 79.9},  # trained with SAM, arXiv 2106.01548
    size={
        "dinov2_small": 518, "dinov2_base": 518, "dinov2_large": 518,
        "dinov2_small_registers": 518, "dinov2_base_registers": 518, "clip_large_336": 336, "siglip_so400m_384": 384,
    },
)  # fmt: skip


@dataclass(frozen=True)
class ViTConfig:
    in_channels: int = 3
    image_size: int | tuple[int, int] = 224  # pixels, rows and columns; sets the grid that positions are built for
    patch: int | tuple[int, int] = 16  # pixels
    stride: int | tuple[int, int] | None = None  # pixels between patches, by default the patch; positions follow
    dim: int = 768
    depth: int = 12
    heads: int = 12
    head_dim: int | None = None  # dim // heads by default
    mlp_ratio: float = 4.0
    class_token: bool = True
    distillation_token: bool = False
    registers: int = 0  # tokens without a position
    positions: Literal["learned", "sincos_1d", "sincos_2d", "none"] = "learned"
    prefix_positions: bool = True  # class and distillation tokens have a position, too
    resize: Resizing = "offset"  # how positions reach other sizes (core.layers.positions.resize_grid)
    relative: bool = False  # relative position bias over the built grid, in every block
    qkv_bias: QKVBias = "full"
    layer_scale: float | None = None  # start value
    activation: Activation = "gelu"
    eps: float = 1e-6  # of every LayerNorm
    patch_bias: bool = True
    norm_pre: bool = False  # LayerNorm before the first block (CLIP)
    norm: bool = True  # LayerNorm after the last block; without it the classifier norms what it pooled
    norm_eps: float | None = None  # of that LayerNorm; `eps` by default
    pool: Literal["token", "mean_tokens"] = "token"  # what the classifier looks at, without a distillation token
    drop_path: float | tuple[float, ...] = 0.0  # of the last block, linear from 0; or one per block
    dropout: float = 0.0
    attention_dropout: float = 0.0


def grid(c: ViTConfig) -> tuple[int, int]:
    """Rows and columns of whole patches at the built image size. A smaller stride makes more of them, and positions
    are resized to it: so do DINO's dense extractors (dSVA).
    """
    sizes = (c.image_size, c.image_size) if isinstance(c.image_size, int) else c.image_size
    patches = (c.patch, c.patch) if isinstance(c.patch, int) else c.patch
    return sizes[0] // patches[0], sizes[1] // patches[1]


class Embedding(nn.Module):
    """Image (B, C, H, W) -> tokens (B, N, C) with their positions, prefix first, and the grid of the patches."""

    table: Tensor

    def __init__(self, c: ViTConfig) -> None:
        super().__init__()
        self.grid, self.how = grid(c), c.resize
        self.patches = PatchEmbedding(c.in_channels, c.dim, c.patch, bias=c.patch_bias, stride=c.stride)
        self.class_token = nn.Parameter(torch.zeros(1, 1, c.dim)) if c.class_token else None
        self.distillation_token = nn.Parameter(torch.zeros(1, 1, c.dim)) if c.distillation_token else None
        self.registers = nn.Parameter(torch.zeros(1, c.registers, c.dim)) if c.registers else None
        self.placed = (c.class_token + c.distillation_token) if c.prefix_positions else 0  # rows before the grid
        self.learned = None
        h, w = self.grid
        if c.positions == "learned":
            self.learned = nn.Parameter(torch.zeros(1, self.placed + h * w, c.dim))
        else:
            self.register_buffer("table", self._fixed(c), persistent=False)
        self.dropout = nn.Dropout(c.dropout)
        self.norm = nn.LayerNorm(c.dim, eps=c.eps) if c.norm_pre else nn.Identity()
        for parameter in (self.class_token, self.distillation_token, self.registers, self.learned):
            if parameter is not None:
                nn.init.trunc_normal_(parameter, std=0.02)

    def _fixed(self, c: ViTConfig) -> Tensor:
        h, w = self.grid
        if c.positions == "none":
            return torch.zeros(1, self.placed + h * w, c.dim)
        if c.positions == "sincos_1d":  # the class token is position 0
            return sincos_1d(self.placed + h * w, c.dim)[None].float()
        return torch.cat([torch.zeros(self.placed, c.dim), sincos_2d(self.grid, c.dim).float()])[None]

    def positions(self, size: tuple[int, int], square_image: bool) -> Tensor:
        """Positions for a grid of this size, (1, placed + h * w, C)."""
        table = self.table if self.learned is None else self.learned
        # The published "offset" code leaves the table alone only for square images: one of 230 x 225 pixels has the
        # built 14 x 14 patches, and still goes through the resizing.
        same = size == self.grid and (self.how != "offset" or square_image or self.grid[0] != self.grid[1])
        if same:
            return table
        cells = table[:, self.placed :].unflatten(1, self.grid)
        return torch.cat([table[:, : self.placed], resize_grid(cells, size, self.how).flatten(1, 2)], dim=1)

    def forward(self, image: Tensor) -> tuple[Tensor, tuple[int, int]]:
        patch = self.patches.patch
        if image.shape[2] < patch[0] or image.shape[3] < patch[1]:
            raise ShapeError(f"an image of {image.shape[2]} x {image.shape[3]} pixels is smaller than a {patch} patch")
        x: Tensor = self.patches(image)
        B, h, w, _ = x.shape
        positions = self.positions((h, w), image.shape[2] == image.shape[3])
        first = [t.expand(B, -1, -1) for t in (self.class_token, self.distillation_token) if t is not None]
        x = x.flatten(1, 2)
        if self.placed:
            x = torch.cat([*first, x], dim=1) + positions
            first = []
        else:
            x = x + positions
        if self.registers is not None:
            cut = self.placed
            x = torch.cat([x[:, :cut], *first, self.registers.expand(B, -1, -1), x[:, cut:]], dim=1)
        elif first:
            x = torch.cat([*first, x], dim=1)
        return self.norm(self.dropout(x)), (h, w)


class Encoder(nn.Module):
    """Embedding and blocks: the one stage of a plain ViT, image (B, C, H, W) -> tokens (B, N, C)."""

    def __init__(self, c: ViTConfig) -> None:
        super().__init__()
        self.embed = Embedding(c)
        rates = list(c.drop_path) if isinstance(c.drop_path, tuple) else spread(c.drop_path, (c.depth,))[0]
        if len(rates) != c.depth:
            raise SettingError(f"vit: {c.depth} blocks but {len(rates)} drop-path rates")
        if c.relative and c.stride is not None:
            raise SettingError("vit: a relative bias goes with whole patches, leave `stride` out")
        prefix = c.class_token + c.distillation_token + c.registers
        self.blocks = nn.ModuleList(
            Block(
                c.dim,
                SelfAttention(
                    c.dim, c.heads, head_dim=c.head_dim, qkv_bias=c.qkv_bias, relative=grid(c) if c.relative else None,
                    prefix=prefix, dropout=c.attention_dropout, proj_dropout=c.dropout,
                ),
                MLP(c.dim, ratio=c.mlp_ratio, activation=c.activation, dropout=c.dropout),
                drop_path=rate,
                layer_scale=c.layer_scale,
                norm=partial(nn.LayerNorm, eps=c.eps),
            )
            for rate in rates
        )  # fmt: skip

    def forward(self, image: Tensor) -> Tensor:
        x, _ = self.embed(image)
        for block in self.blocks:
            x = block(x)
        return x


class ViT(nn.Module):
    """Image (B, C, H, W) -> one level (B, dim, h, w), h = floor((H - patch) / stride) + 1.

    Any size from one patch up, where `resize` says how positions follow; sides that the patch does not divide lose the
    remainder. A relative bias ties the network to its built grid: another one raises ShapeError.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        c = self.config = config
        stride = c.stride or c.patch
        self.channels = (c.dim,)
        self.strides = (stride if isinstance(stride, int) else stride[0],)
        self.prefix = c.class_token + c.distillation_token + c.registers
        self.stages = nn.ModuleList([Encoder(c)])
        self.norm = nn.LayerNorm(c.dim, eps=c.norm_eps or c.eps) if c.norm else nn.Identity()
        self.apply(_initialise)

    @property
    def blocks(self) -> nn.ModuleList:
        return self.stages[0].blocks  # type: ignore[return-value]

    def embed(self, image: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Tokens (B, N, C) as the first block sees them, and the rows and columns of patches."""
        expect_shape(image, "B C H W", C=self.config.in_channels)
        x, size = self.stages[0].embed(image)  # type: ignore[operator]
        if self.config.relative and size != grid(self.config):
            raise ShapeError(
                f"relative positions were built for {grid(self.config)} patches (image_size {self.config.image_size}), "
                f"the image has {size}"
            )
        return x, size

    def tokens(self, image: Tensor) -> Tensor:
        """All tokens after the final norm, (B, prefix + h * w, C), prefix first."""
        x, _ = self.embed(image)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def forward(self, image: Tensor) -> list[Tensor]:
        x, (h, w) = self.embed(image)
        for block in self.blocks:
            x = block(x)
        return [to_map(self.norm(x)[:, self.prefix :], h, w)]

    def features(self, image: Tensor, at: Sequence[int] = (2, 5, 8, 11), *, norm: bool = False) -> list[Tensor]:
        """Maps (B, C, h, w) of the blocks with these indices (from 0), raw or with the final `norm`."""
        outside = [i for i in at if not -len(self.blocks) <= i < len(self.blocks)]
        if outside:
            raise SettingError(f"no block {outside[0]} in a network of {len(self.blocks)} blocks")
        x, (h, w) = self.embed(image)
        found: dict[int, Tensor] = {}
        for i, block in enumerate(self.blocks):
            x = block(x)
            found[i] = x
        kept = [found[i % len(self.blocks)] for i in at]
        return [to_map((self.norm(x) if norm else x)[:, self.prefix :], h, w) for x in kept]

    @contextmanager
    def tapped(self, *blocks: int) -> Iterator[dict[int, SelfAttention]]:
        """Keep q, k, v and attention of these blocks (from 0; all by default) while the context is open.

        >>> vit = ViT(ViTConfig(dim=32, depth=2, heads=2, image_size=32))
        >>> with vit.tapped(1) as layers:
        ...     _ = vit(torch.zeros(1, 3, 32, 32))
        ...     tuple(layers[1].tap.weights.shape)
        (1, 2, 5, 5)
        """
        chosen = blocks or tuple(range(len(self.blocks)))
        layers: dict[int, Any] = {i: self.blocks[i].token_mixer for i in chosen}
        for layer in layers.values():
            layer.keep_tap = True
        try:
            yield layers
        finally:
            for layer in layers.values():
                layer.keep_tap, layer.tap = False, None


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def head(backbone: ViT, classes: int) -> nn.Module:
    """The final norm is the backbone's, or else comes after pooling (timm's fc_norm, Gaussian mask ViT); a distilled
    network answers with the mean of its two logits.
    """
    c = backbone.config
    pool = "distilled_mean" if c.distillation_token else c.pool
    return ClassifierHead(norm=None if c.norm else nn.LayerNorm, eps=c.norm_eps or c.eps, pool=pool, norm_first=False)(
        backbone, classes
    )


TINY = ViTConfig(dim=192, heads=3)
SMALL = ViTConfig(dim=384, heads=6)
BASE = ViTConfig()
LARGE = ViTConfig(dim=1024, depth=24, heads=16)
HUGE = ViTConfig(dim=1280, depth=32, heads=16, patch=14)
DINOV2 = ViTConfig(patch=14, image_size=518, resize="exact", layer_scale=1.0)
FLAX = ViTConfig(activation="gelu_tanh", resize="linear")
CLIP = ViTConfig(activation="quick_gelu", eps=1e-5, norm_pre=True, patch_bias=False)
SIGLIP = ViTConfig(class_token=False, resize="exact", pool="mean_tokens")

VARIANTS = {
    "tiny": TINY,
    "small": SMALL,
    "base": BASE,
    "large": LARGE,
    "huge": HUGE,
    "tiny_4": replace(TINY, patch=4),
    "tiny_8": replace(TINY, patch=8),
    "tiny_32": replace(TINY, patch=32),
    "small_8": replace(SMALL, patch=8),
    "base_8": replace(BASE, patch=8),
    "small_32": replace(SMALL, patch=32),
    "base_32": replace(BASE, patch=32),
    "large_32": replace(LARGE, patch=32),
    "tiny_distilled": replace(TINY, distillation_token=True),
    "small_distilled": replace(SMALL, distillation_token=True),
    "base_distilled": replace(BASE, distillation_token=True, drop_path=0.1),
    "dinov2_small": replace(DINOV2, dim=384, heads=6),
    "dinov2_base": DINOV2,
    "dinov2_large": replace(DINOV2, dim=1024, depth=24, heads=16),
    "dinov2_small_registers": replace(DINOV2, dim=384, heads=6, registers=4),
    "dinov2_base_registers": replace(DINOV2, registers=4),
    "flax_tiny": replace(FLAX, dim=192, heads=3),
    "flax_small": replace(FLAX, dim=384, heads=6),
    "flax_small_8": replace(FLAX, dim=384, heads=6, patch=8),
    "flax_small_32": replace(FLAX, dim=384, heads=6, patch=32),
    "flax_base": FLAX,
    "flax_base_32": replace(FLAX, patch=32),
    "clip_base": CLIP,
    "clip_base_32": replace(CLIP, patch=32),
    "clip_large": replace(CLIP, patch=14, dim=1024, depth=24, heads=16),
    "clip_large_336": replace(CLIP, patch=14, dim=1024, depth=24, heads=16, image_size=336),
    "siglip_base": SIGLIP,
    "siglip_so400m": replace(SIGLIP, patch=14, dim=1152, depth=27, heads=16, mlp_ratio=4304 / 1152),
    "siglip_so400m_384": replace(SIGLIP, patch=14, dim=1152, depth=27, heads=16, mlp_ratio=4304 / 1152, image_size=384),
}

build = ViT


def from_published(build: Mapping[str, Any], names: Mapping[str, Sequence[int]], base: ViTConfig = BASE) -> ViTConfig:
    """The authors' arguments as ours. Width, depth, patch, tokens, biases and layer scale are read from the shapes;
    heads, epsilons, activation and image size, which no shape shows, come from `build`, else from the naming, else
    from `base`.
    """
    return replace(base, **settings(build, names, base))
