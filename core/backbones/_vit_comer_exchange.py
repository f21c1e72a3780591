"""ViT-CoMer's exchanges: what the ViT takes from the companion's maps, and what these take from it and one another.

`tokens` here are the companion's cells (B, N, C), those of the maps with strides 8, 16 and 32 one after the other, each
row-major; `sizes` are rows and columns of the three.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from core.backbones._vit_comer_layers import LEVELS, ReceptiveFields, maps_of, norm, resized, tokens_of
from core.layers.convs import convolve
from core.layers.gelu import GELU
from core.layers.linear import Linear
from core.layers.residual import DropPath
from core.mixers.deformable import DeformableAttention, Sizes

EXTRA = 4  # extractions after the last exchange


class DepthwiseMLP(nn.Module):
    """Linear, depthwise 3x3 convolution (one for all maps), GELU, Linear: tokens in and out."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = Linear(dim, hidden)
        self.depthwise = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.act = GELU()
        self.fc2 = Linear(hidden, dim)

    def forward(self, tokens: Tensor, sizes: Sizes) -> Tensor:
        maps = maps_of(self.fc1(tokens), sizes)
        return self.fc2(self.act(tokens_of([convolve(self.depthwise, m) for m in maps])))


class Refine(nn.Module):
    """tokens + MLP(norm(tokens)): tokens in and out."""

    def __init__(self, dim: int, hidden: int, drop_path: float) -> None:
        super().__init__()
        self.norm, self.mlp, self.drop_path = norm(dim), DepthwiseMLP(dim, hidden), DropPath(drop_path)

    def forward(self, tokens: Tensor, sizes: Sizes) -> Tensor:
        return tokens + self.drop_path(self.mlp(self.norm(tokens), sizes))


class Extract(nn.Module):
    """The companion's maps look at each other: tokens in and out (the paper's CTI, to the CNN).

    What goes on is not the tokens but their norm: a first pair of norms lies before the residual stream, a second one
    in it, as published.
    """

    def __init__(self, dim: int, attention: Callable[[], DeformableAttention], hidden: int, drop_path: float) -> None:
        super().__init__()
        self.outer_query, self.outer_cells = norm(dim), norm(dim)
        self.norm_query, self.norm_cells, self.attention = norm(dim), norm(dim), attention()
        self.refine = Refine(dim, hidden, drop_path)

    def forward(self, tokens: Tensor, points: Tensor, sizes: Sizes) -> Tensor:
        stream: Tensor = self.outer_query(tokens)
        cells = self.norm_cells(self.outer_cells(tokens))
        return self.refine(stream + self.attention(self.norm_query(stream), points, cells, sizes), sizes)


class OuterNorms(nn.Module):
    """`Extract` without interaction: tokens stay as they are; its outer norms are there, as published, but unused."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.outer_query, self.outer_cells = norm(dim), norm(dim)
        self.requires_grad_(False)

    def forward(self, tokens: Tensor, points: Tensor, sizes: Sizes) -> Tensor:
        return tokens


class Offer(nn.Module):
    """What the ViT takes from the companion: tokens (B, N, C) -> map (B, h, w, C) of stride 16 (CTI, to the ViT)."""

    def __init__(self, dim: int, attention: Callable[[], DeformableAttention], hidden: int, drop_path: float) -> None:
        super().__init__()
        self.norm_query, self.norm_cells, self.attention = norm(dim), norm(dim), attention()
        self.refine = Refine(dim, hidden, drop_path)
        self.scale = nn.Parameter(torch.zeros(dim))

    def forward(self, tokens: Tensor, points: Tensor, sizes: Sizes) -> Tensor:
        found = self.attention(self.norm_query(tokens), points, self.norm_cells(tokens), sizes)
        fine, middle, coarse = (resized(m, *sizes[1]) for m in maps_of(self.refine(found, sizes), sizes))
        return self.scale * (fine + middle + coarse)


class Further(nn.Module):
    """An extraction after the last exchange: tokens in and out."""

    def __init__(self, refine: Refine, extract: nn.Module) -> None:
        super().__init__()
        self.refine, self.extract = refine, extract

    def forward(self, tokens: Tensor, points: Tensor, sizes: Sizes) -> Tensor:
        out: Tensor = self.extract(self.refine(tokens, sizes), points, sizes)
        return out


class Exchange(nn.Module):
    """Companion to ViT, some blocks of the ViT, ViT to companion.

    Args:
        c: settings of the family.
        index: which of its exchanges.
    """

    def __init__(self, c: Any, index: int) -> None:
        super().__init__()
        attention = partial(
            DeformableAttention, c.dim, c.deform_heads, maps=LEVELS, points=c.points, ratio=c.deform_ratio
        )
        hidden = int(c.dim * c.exchange_mlp_ratio)
        parts: Any = (c.dim, attention, hidden, c.drop_path)
        self.fields: ReceptiveFields | None = None
        self.offer: Offer | None = None
        if c.to_vit[index] or c.form == "segmentation":
            self.fields = ReceptiveFields(c.dim, int(c.dim * c.field_ratio))
        if c.to_vit[index]:
            self.offer = Offer(*parts)
        elif self.fields is not None:
            self.fields.requires_grad_(False)  # published, used by nobody

        def extract() -> nn.Module:
            return Extract(*parts) if c.interaction[index] else OuterNorms(c.dim)

        self.extract = extract() if c.to_companion[index] else None
        further = EXTRA if c.extra and index == len(c.depths) - 1 else 0
        self.extra = nn.ModuleList(Further(Refine(c.dim, hidden, c.drop_path), extract()) for _ in range(further))

    def forward(
        self, x: Tensor, tokens: Tensor, blocks: Sequence[nn.Module], points: Tensor, sizes: Sizes
    ) -> tuple[Tensor, Tensor]:
        """One exchange.

        Args:
            x: the ViT's patches (B, h, w, C).
            tokens: the companion's cells (B, N, C).
            blocks: of the ViT.
            points: where the cells lie, (N, 2).
            sizes: rows and columns of the companion's maps.
        """
        if self.fields is not None and self.offer is not None:
            fine, middle, coarse = self.fields(maps_of(tokens, sizes))
            tokens = tokens_of([fine, middle + x, coarse])
            x = x + self.offer(tokens, points, sizes)
        for block in blocks:
            x = block(x)
        for layer in ([] if self.extract is None else [self.extract]) + list(self.extra):
            fine, middle, coarse = maps_of(tokens, sizes)
            tokens = layer(tokens_of([fine, middle + x, coarse]), points, sizes)
        return x, tokens
