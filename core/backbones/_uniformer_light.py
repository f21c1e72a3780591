"""The light UniFormer's deep stages: a class token scores the patches, and half of them share one result.

After Evo-ViT's token pruning (arXiv 2108.01390), as UniFormer's light models use it (arXiv 2201.09450).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.backbones._uniformer_layers import PositionConv, block_norm
from core.layers.attend import attend, merge_heads
from core.layers.linear import Linear
from core.layers.mlp import MLP
from core.layers.residual import Block
from core.mixers.attention import SelfAttention

TRADE_OFF = 0.5  # of old and new scores


class Carried(NamedTuple):
    """What goes from block to block and from stage to stage."""

    map: Tensor  # (B, H, W, C)
    token: Tensor  # (B, 1, C), of the class
    scores: Tensor | None  # (B, H * W), of the patches; None before the first attention


class ScoringAttention(SelfAttention):
    """SelfAttention over (B, T, C) whose first token is the class, (B, T, C) and the class's row of weights (B, T)."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        q, k, v = self.project(x)
        out = self.proj(merge_heads(attend(q, k, v, scale=self.scale)))
        row = (torch.matmul(q[:, :, :1] * self.scale, k.transpose(-2, -1))).softmax(-1)  # (B, heads, 1, T)
        return out, row.mean(1)[:, 0]


class PruningBlock(Block):
    """Positions on the whole map, then attention and MLP on the class token and the patches that it looks at.

    The int(N keep) patches of the highest score take part; the rest are averaged by score to one token that takes part
    for them, and what each branch adds to it is added to all of them. With `keep` None every patch takes part and the
    scores begin here.
    """

    def __init__(
        self, dim: int, heads: int, *, mlp_ratio: float, qkv_bias: bool, scale: float | None, keep: float | None,
        drop_path: float,
    ) -> None:  # fmt: skip
        mixer = ScoringAttention(dim, heads, qkv_bias="full" if qkv_bias else "none")
        mixer.scale = mixer.scale if scale is None else scale
        super().__init__(dim, mixer, MLP(dim, ratio=mlp_ratio), drop_path=drop_path, norm=block_norm)
        self.position = PositionConv(dim)
        self.keep = keep

    def forward(self, given: Carried) -> Carried:  # type: ignore[override]
        x = self.position(given.map)
        size = (x.shape[1], x.shape[2])
        patches, token, scores = x.flatten(1, 2), given.token, given.scores
        if self.keep is None or scores is None:
            tokens, row, _ = self._mix(torch.cat([token, patches], 1))
            return Carried(tokens[:, 1:].unflatten(1, size), tokens[:, :1], row[:, 1:])
        count = int(patches.shape[1] * self.keep)
        best = scores.topk(count, 1).indices  # (B, count)
        places = best[..., None].expand(-1, -1, patches.shape[2])
        left = scores.scatter(1, best, 0.0)  # the scores of those that sit out
        standin = torch.matmul((left / left.sum(1, keepdim=True))[:, None], patches)  # (B, 1, C)
        tokens, row, change = self._mix(torch.cat([token, patches.gather(1, places), standin], 1))
        patches = (patches + change).scatter(1, places, tokens[:, 1:-1])
        kept = scores.gather(1, best)
        scores = scores.scatter(1, best, TRADE_OFF * kept + (1 - TRADE_OFF) * row[:, 1:-1])
        return Carried(patches.unflatten(1, size), tokens[:, :1], scores)

    def _mix(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Both branches on (B, T, C): tokens, the class's row, and what they added to the last one before drop path."""
        attended, row = self.token_mixer(self.norm1(x))
        x = x + self.drop_path(attended)
        mixed = self.channel_mixer(self.norm2(x))
        return x + self.drop_path(mixed), row, attended[:, -1:] + mixed[:, -1:]


class LightStage(nn.Module):
    """One resolution with a class token beside the map.

    The first of them takes the map of the stage before (B, H, W, C) and starts the token; a later one takes what the
    stage before carried, and carries the token over by a linear map and the scores by their means over 2x2 cells.

    Args:
        merge: halving of the map, rounding down.
        blocks: of this resolution.
        dim: channels.
        before: channels of the stage before where it has a token, else None.
    """

    def __init__(self, merge: nn.Module, blocks: Sequence[nn.Module], dim: int, *, before: int | None) -> None:
        super().__init__()
        self.merge, self.blocks = merge, nn.Sequential(*blocks)
        self.class_token = nn.Parameter(torch.zeros(1, 1, dim)) if before is None else None
        self.carry = None if before is None else Linear(before, dim)

    def forward(self, x: Tensor | Carried) -> Carried:
        if isinstance(x, Tensor):
            assert self.class_token is not None
            given = Carried(self.merge(x), self.class_token.repeat(x.shape[0], 1, 1), None)
        else:
            assert self.carry is not None
            assert x.scores is not None
            pooled = pooled_scores(x.scores, (x.map.shape[1], x.map.shape[2]))
            given = Carried(self.merge(x.map), self.carry(x.token), pooled)
        out: Carried = self.blocks(given)
        return out


def pooled_scores(scores: Tensor, size: tuple[int, int]) -> Tensor:
    """Scores (B, H * W) of a map for one of half its size, (B, floor(H / 2) * floor(W / 2)), with the same sum."""
    halved = F.avg_pool2d(scores.unflatten(1, size)[:, None], 2).flatten(1)
    return halved * (scores.sum(1, keepdim=True) / halved.sum(1, keepdim=True))
