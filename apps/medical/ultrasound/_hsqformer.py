"""HSQformer: a Swin and a ConvNeXt side by side, fused level by level, read by learned queries through experts.

Paper: arXiv 2502.03772. Reference: Asunatan/HSQformer@4cc583a (Apache-2.0), models/LivNet.py, `LENet`.
Differs: router noise in training only (`noise="always"` is the published behaviour: an answer that differs from call to
call); any two backbones of core that give equal pyramids, and any side that is a multiple of 32, built for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from apps.medical.ultrasound._hsqformer_attention import Attention, Fusion, Order, QueryBlock
from apps.medical.ultrasound._hsqformer_experts import Choice, Expert, Experts, Kind, Noise
from core import registry
from core.errors import SettingError, expect_shape
from core.layers.linear import Linear
from core.layers.patches import to_map
from core.layers.residual import spread

Head = Literal["linear", "mlp", "experts"]
Start = Literal["published", "scaled"]
_POSITIONS = 0.1  # spread of the positions where the start is scaled: beside features that are no larger than 1


@dataclass(frozen=True)
class HSQformerConfig:
    in_channels: int = 3
    classes: int = 2
    size: int = 224  # side of the image in pixels, a multiple of 32; no other is taken
    order: Order = "serial"  # of cross and self attention in a level: serial, parallel or invert_serial
    experts: Kind = "sparse_token"  # or dense_token, sparse_expert, dense_expert, mlp (one MLP, no router)
    count: int = 4  # experts
    top: int = 1  # experts that the sparse kinds keep
    noise: Noise = "training"  # of the router; "always" is published and makes answers random
    choice: Choice = "batch"  # over what the *_expert kinds choose; "image" keeps answers apart from their batch
    queries: int = 200
    dim: int = 384  # of the queries
    depths: tuple[int, ...] = (1, 1, 1, 1)  # query blocks of each level; fewer than four take the last levels
    heads: tuple[int, ...] = (3, 6, 12, 24)  # of attention, by level
    head: Head = "linear"  # per query, before the mean: linear, mlp, or experts (the authors' moe_head)
    dropout: float = 0.5  # inside the experts of the fused levels
    start: Start = (
        "published"  # of the weights; "scaled", by each layer's width, lets narrow networks learn from scratch
    )
    drop_path: float = 0.2  # of the last block, linear from 0: in both backbones and over the query blocks
    swin: str = "swin/small"  # family/variant
    convnext: str = "convnext/small"  # likewise; its levels are as wide as the first one's
    swin_settings: Mapping[str, Any] = field(default_factory=dict)  # of that backbone
    convnext_settings: Mapping[str, Any] = field(default_factory=dict)  # of that one


class HSQformer(nn.Module):
    """Image (B, C, size, size) -> logits (B, classes).

    `mixes`: whether an image's answer depends on the others of its batch (experts chosen for a whole batch).

    Raises SettingError for settings that do not fit one another.
    """

    def __init__(self, config: HSQformerConfig) -> None:
        super().__init__()
        c = self.config = config
        _check(c)
        self.size, self.multiple = c.size, 32
        self.swin = _backbone(c, c.swin, c.swin_settings)
        self.convnext = _backbone(c, c.convnext, c.convnext_settings)
        dims, strides = _levels(c, self.swin, self.convnext)
        self.first = len(self.swin.channels) - len(dims)  # of the levels that are used
        self.sides = tuple(c.size // stride for stride in strides)
        heads = c.heads[-len(dims) :]
        spread_of = 1.0 if c.start == "published" else _POSITIONS
        self.positions = nn.ParameterList(
            torch.randn(n * n, dim) * spread_of for n, dim in zip(self.sides, dims, strict=True)
        )
        self.fusions = nn.ModuleList(
            Fusion(dim, h, c.order, _experts(c, dim, c.dropout)) for dim, h in zip(dims, heads, strict=True)
        )
        self.projections = nn.ModuleList(Linear(dim, c.dim) for dim in dims)
        self.levels = nn.Parameter(torch.randn(len(dims), c.dim))
        self.blocks = nn.ModuleList(
            nn.ModuleList(QueryBlock(c.dim, h, _experts(c, c.dim), drop_path=rate) for rate in rates)
            for h, rates in zip(heads, spread(c.drop_path, c.depths), strict=True)
        )
        self.queries = nn.Parameter(torch.zeros(1, c.queries, c.dim))
        self.query_positions = nn.Parameter(torch.randn(1, c.queries, c.dim) * 0.02)
        self.norm = nn.LayerNorm(c.dim)
        self.head = _head(c)
        self.mixes = c.choice == "batch" and c.experts.endswith("_expert")
        self.apply(_initialise if c.start == "published" else _scale)

    def forward(self, image: Tensor) -> Tensor:
        return self.answer(self.read(self.fused(image)))

    def fused(self, image: Tensor) -> list[Tensor]:
        """The fused tokens of the levels used, (B, N, C) each, fine to coarse."""
        n = self.size
        expect_shape(image, "B C H W", C=self.config.in_channels, H=n, W=n)
        pairs = zip(self.swin(image)[self.first :], self.convnext(image)[self.first :], strict=True)
        return [
            fusion(_tokens(s) + table, _tokens(c) + table)
            for fusion, table, (s, c) in zip(self.fusions, self.positions, pairs, strict=True)
        ]

    def read(self, levels: list[Tensor], seen: list[Tensor] | None = None) -> Tensor:
        """The queries (B, Q, dim) after they have read the fused levels; `seen` gets what they looked at."""
        q = (self.queries + self.query_positions).expand(len(levels[0]), -1, -1)
        stages: Any = zip(levels, self.projections, self.levels, self.blocks, strict=True)
        for level, project, mark, blocks in stages:
            tokens = project(level) + mark
            looks = []
            for block in blocks:
                if seen is not None:
                    looks.append(block.looked_at(q, tokens))
                q = block(q, tokens)
            if seen is not None:
                seen.append(sum(looks[1:], looks[0]) / len(looks))
        return q

    def answer(self, queries: Tensor) -> Tensor:
        """Logits (B, classes) of queries (B, Q, dim): the head's answer for each of them, then their mean."""
        logits: Tensor = self.head(self.norm(queries)).mean(1)
        return logits

    def explained(self, image: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits, and per level what the queries looked at: (B, h, w), the mean over queries, heads and blocks.

        Each map adds up to 1. The logits are those of `forward`.
        """
        seen: list[Tensor] = []
        logits = self.answer(self.read(self.fused(image), seen))
        return logits, [m.unflatten(1, (n, n)) for m, n in zip(seen, self.sides, strict=True)]

    def scales(self, image: Tensor) -> list[Tensor]:
        """The fused levels as maps (B, C, h, w), for core.facts_table."""
        return [to_map(x, n, n) for x, n in zip(self.fused(image), self.sides, strict=True)]

    def freeze_encoder(self, frozen: bool = True) -> None:
        """Stop, or let again, the training of both backbones."""
        for part in (self.swin, self.convnext):
            part.requires_grad_(not frozen)

    def no_weight_decay(self) -> set[str]:
        """Tables and tokens that stand for places."""
        return {"queries", "query_positions", "levels", *(f"positions.{i}" for i in range(len(self.positions)))}


def _tokens(level: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, h * w, C), row by row."""
    return level.flatten(2).transpose(1, 2).contiguous()


def _check(c: HSQformerConfig) -> None:
    if c.size < 32 or c.size % 32:
        raise SettingError(f"hsqformer: size is a multiple of 32 pixels, got {c.size}")
    if c.queries < 1 or c.classes < 1:
        raise SettingError(f"hsqformer: at least one query and one class, got {c.queries} and {c.classes}")
    if not c.depths or min(c.depths) < 1:
        raise SettingError(f"hsqformer: depths are query blocks of each level, at least 1, got {list(c.depths)}")
    if len(c.heads) < len(c.depths):
        raise SettingError(f"hsqformer: {len(c.depths)} levels, but heads for {len(c.heads)}")


def _backbone(c: HSQformerConfig, name: str, settings: Mapping[str, Any]) -> Any:
    given: dict[str, Any] = {"in_channels": c.in_channels, "drop_path": c.drop_path}
    _, base = registry.lookup(name)
    if hasattr(base, "image_size"):  # it decides the windows of small maps
        given["image_size"] = c.size
    return registry.create(name, **{**given, **settings})


def _levels(c: HSQformerConfig, swin: Any, convnext: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Channels and strides of the levels used."""
    for what in ("channels", "strides"):
        a, b = tuple(getattr(swin, what)), tuple(getattr(convnext, what))
        if a != b:
            raise SettingError(f"hsqformer: {c.swin} has the {what} {a}, {c.convnext} has {b}; they must be equal")
    if len(swin.channels) < len(c.depths):
        raise SettingError(f"hsqformer: depths for {len(c.depths)} levels, but {c.swin} has {len(swin.channels)}")
    used = len(c.depths)
    if c.size % swin.strides[-1]:
        raise SettingError(f"hsqformer: size is a multiple of {swin.strides[-1]} pixels with {c.swin}, got {c.size}")
    return tuple(swin.channels[-used:]), tuple(swin.strides[-used:])


def _experts(c: HSQformerConfig, dim: int, dropout: float = 0.0) -> Expert | Experts:
    if c.experts == "mlp":
        return Expert(dim, dropout=dropout)
    return Experts(dim, c.experts, count=c.count, top=c.top, dropout=dropout, noise=c.noise, choice=c.choice)


def _head(c: HSQformerConfig) -> nn.Module:
    if c.head == "linear":
        return Linear(c.dim, c.classes)
    if c.head == "mlp":
        return Expert(c.dim, out=c.classes)
    return Experts(c.dim, count=c.count, top=c.top, out=c.classes, noise=c.noise)


def _initialise(module: nn.Module) -> None:
    """The authors' start, over the backbones, too; an Attention comes after its own layers."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)
    elif isinstance(module, Attention):
        module.initialise()


def _scale(module: nn.Module) -> None:
    """Weights whose spread is one over the root of a layer's inputs.

    The published 0.02 suits layers of some thousand inputs and backbones that were trained before: of a hundred inputs
    it leaves a fifth of what goes in, layer after layer.
    """
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.trunc_normal_(module.weight, std=module.weight[0].numel() ** -0.5)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
