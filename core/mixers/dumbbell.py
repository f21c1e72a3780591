"""The stage of STViT-R: rounds that gather a map into semantic tokens, work on these, and spread them out again.

Paper: arXiv 2303.08685, section 3.4. A round of six: a window block on the map, generation of the tokens, their
refinement by the map, attention inside windows, attention of all tokens, recovery of the map.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn

from core.errors import SettingError, ShapeError
from core.layers import windows
from core.layers.mlp import MLP
from core.layers.residual import Stage
from core.mixers.semantic_tokens import (
    CrossAttention,
    GenerationBlock,
    LocalTokenBlock,
    Mask,
    NeighbourBlock,
    TokenBlock,
    key_mask,
    pooled,
    spans,
)  # fmt: skip

ROUND = 6  # blocks


@dataclass(frozen=True)
class DumbbellSettings:
    dim: int
    heads: int
    window: int = 7  # side in cells of the map
    sample: int = 3  # side of a window's tokens
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    scale: float | None = None  # of the logits; head width ** -0.5 by default
    layer_scale: float | None = 1e-5  # start, in the five blocks of a round that see tokens
    dropout: float = 0.0
    attention_dropout: float = 0.0
    # Of the classification form:
    shortcut: bool = False  # generation adds the pooled cells
    relative: bool = False  # position bias in the two attentions of tokens
    positions: bool = False  # depthwise convolution over pooled cells
    centres: bool = False  # learned global centres, added to the tokens before their first refinement
    patch: int = 10  # side of the patches whose cells are a window's keys
    stride: int = 4  # between them
    # Of the dense form: sides of the patches around a window that generation, refinement and recovery look at
    reach: tuple[int, int, int] = (14, 21, 27)
    mask: Mask = "published"  # of keys outside the map; "whole" hides all of them

    def rows(self) -> int:
        """Windows along a side of the only map that the classification form takes."""
        gain = self.window - self.stride  # each further window needs so many cells more than its patch brings
        rows, rest = divmod(self.patch - self.stride, gain) if gain > 0 else (0, 0)
        if rest or rows < 1:
            raise SettingError(
                f"patches of {self.patch} cells with a stride of {self.stride} never come to one per window of "
                f"{self.window} cells: the published 10 and 4 go with windows of 7"
            )
        return rows


def _part(c: DumbbellSettings, grid: int | None = None) -> tuple[int, CrossAttention, MLP]:
    """The arguments that all blocks share; `grid` is the side of the tokens that a relative bias is for."""
    mixer = CrossAttention(
        c.dim, c.heads, qkv_bias=c.qkv_bias, scale=c.scale, grid=(grid, grid) if grid and c.relative else None,
        dropout=c.attention_dropout, proj_dropout=c.dropout,
    )  # fmt: skip
    return c.dim, mixer, MLP(c.dim, ratio=c.mlp_ratio, dropout=c.dropout)


class Dumbbell(Stage):
    """Rounds of six blocks over one map, the published classification form: gives (B, H, W, C).

    Args:
        merge: what brings the map there.
        firsts: the first block of each round, on the map.
        settings: of the other five.
        rates: of drop path, six a round.
    """

    def __init__(
        self, merge: nn.Module, firsts: Sequence[nn.Module], settings: DumbbellSettings, rates: Sequence[float]
    ) -> None:
        if len(rates) != ROUND * len(firsts):
            raise SettingError(f"{len(firsts)} rounds of semantic tokens have {ROUND} blocks each, got {len(rates)}")
        self.settings = settings
        blocks: list[nn.Module] = []
        for i, first in enumerate(firsts):
            blocks += [first, *self._round(settings, rates[ROUND * i + 1 : ROUND * (i + 1)])]
        super().__init__(merge, blocks)
        self.centres = self._centres(settings)

    def _centres(self, c: DumbbellSettings) -> nn.Parameter | None:
        if not c.centres:
            return None
        centres = nn.Parameter(torch.empty(1, (c.rows() * c.sample) ** 2, c.dim))
        nn.init.trunc_normal_(centres, std=0.02)
        return centres

    def _round(self, c: DumbbellSettings, rates: Sequence[float]) -> list[nn.Module]:
        scale = c.layer_scale
        return [
            GenerationBlock(
                *_part(c), window=c.window, sample=c.sample, size=c.patch, stride=c.stride, shortcut=c.shortcut,
                positions=c.positions, drop_path=rates[0], layer_scale=scale,
            ),
            TokenBlock(*_part(c), drop_path=rates[1], layer_scale=scale),
            LocalTokenBlock(*_part(c, c.sample), sample=c.sample, drop_path=rates[2], layer_scale=scale),
            TokenBlock(*_part(c, c.rows() * c.sample), drop_path=rates[3], layer_scale=scale),
            TokenBlock(*_part(c), drop_path=rates[4], layer_scale=scale),
        ]  # fmt: skip

    def rounds(self) -> list[list[nn.Module]]:
        """Blocks of each round, in order."""
        blocks = list(self.blocks)
        return [blocks[i : i + ROUND] for i in range(0, len(blocks), ROUND)]

    def forward(self, x: Tensor) -> Tensor:
        x = self.merge(x)
        side = self.settings.rows() * self.settings.window
        if x.shape[1:3] != (side, side):
            raise ShapeError(
                f"semantic tokens in the classification form take maps of {side} x {side} cells, got "
                f"{x.shape[1]} x {x.shape[2]}; the dense form takes any"
            )
        for i, (first, generate, refine, local, whole, recover) in enumerate(self.rounds()):
            x = first(x)
            s = generate(x)
            grid = s.shape[1:3]
            cells, s = x.flatten(1, 2), s.flatten(1, 2)
            centred = s if self.centres is None or i else s + self.centres
            s = refine(centred, torch.cat([s, cells], 1))
            s = whole(local(s.unflatten(1, grid)).flatten(1, 2))
            x = recover(cells, s).unflatten(1, x.shape[1:3])
        return x


class DenseDumbbell(Dumbbell):
    """The published form for detection: any size, padded to whole windows; keys are a window's surroundings."""

    def _centres(self, c: DumbbellSettings) -> nn.Parameter | None:
        if c.centres or c.relative or c.positions:
            raise SettingError("centres, relative biases and positions of semantic tokens are for a map of one size, "
                               "the classification form's")  # fmt: skip
        return None

    def _round(self, c: DumbbellSettings, rates: Sequence[float]) -> list[nn.Module]:
        m, n, scale = c.window, c.sample, c.layer_scale
        first, second, back = c.reach
        return [
            NeighbourBlock(*_part(c), ours=n, theirs=m, size=first, drop_path=rates[0], layer_scale=scale),
            NeighbourBlock(*_part(c), ours=n, theirs=m, size=second, drop_path=rates[1], layer_scale=scale),
            LocalTokenBlock(*_part(c), sample=n, drop_path=rates[2], layer_scale=scale),
            TokenBlock(*_part(c), drop_path=rates[3], layer_scale=scale),
            NeighbourBlock(*_part(c), ours=m, theirs=n, size=back, drop_path=rates[4], layer_scale=scale),
        ]

    def masks(self, size: tuple[int, int], device: torch.device) -> list[Tensor | None]:
        """Masks of generation, refinement and recovery for a map of this size."""
        c = self.settings
        make = _masks.__wrapped__ if torch.compiler.is_compiling() else _masks
        return make(size, c.window, c.sample, c.reach, c.mask, device)

    def forward(self, x: Tensor) -> Tensor:
        x = self.merge(x)
        c = self.settings
        size = (x.shape[1], x.shape[2])
        near, far, back = self.masks(size, x.device)
        for first, generate, refine, local, whole, recover in self.rounds():
            x, where = windows.pad(first(x), (c.window, c.window), "end")
            s = generate(pooled(x, c.window, c.sample), x, near)
            s = local(refine(s, x, far))
            s = whole(s.flatten(1, 2)).unflatten(1, s.shape[1:3])
            x = windows.crop(recover(x, s, back), where)
        return x


@lru_cache(maxsize=64)
def _masks(
    size: tuple[int, int], window: int, sample: int, reach: tuple[int, int, int], kind: Mask, device: torch.device
) -> list[Tensor | None]:
    if kind == "none":
        return [None] * 3
    published = kind == "published"
    height, width = -size[0] % window, -size[1] % window
    whole = (size[0] + height, size[1] + width)
    tokens = (whole[0] // window * sample, whole[1] // window * sample)
    # The published code counts the padding of the tokens' grid in cells of the map.
    starts = [a for a, _ in spans(window, sample)]
    empty = [missing if published else sum(a >= window - missing for a in starts) for missing in (height, width)]
    near, far = (key_mask(whole, (height, width), r, window, published=published, device=device) for r in reach[:2])
    return [near, far, key_mask(tokens, (empty[0], empty[1]), reach[2], sample, published=published, device=device)]
