"""Token pruning by a class token's attention: it scores the patches, and those that it looks at least share one result.

After Evo-ViT's slow and fast updates (arXiv 2108.01390), as UniFormer's light models use them on images and on clips
(arXiv 2201.09450). Maps are channels-last, (B, H, W, C) or (B, T, H, W, C); (B, ..., C) stands for either.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.layers.attend import attend, merge_heads
from core.layers.linear import Linear
from core.layers.local_global import GlobalBlock
from core.layers.mlp import MLP
from core.mixers.attention import SelfAttention

TRADE_OFF = 0.5  # of old and new scores


class Carried(NamedTuple):
    """What goes from block to block and from stage to stage."""

    map: Tensor  # (B, ..., C)
    token: Tensor  # (B, 1, C), of the class
    scores: Tensor | None  # (B, N), of the N cells of the map; None before the first attention


class ScoringAttention(SelfAttention):
    """SelfAttention over (B, T, C) whose first token is the class, (B, T, C) and the class's row of weights (B, T).

    With `wide`, both are computed in float32 where the input is of less precision, under autocast, too.
    """

    wide = False

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        q, k, v = self.project(x)
        if self.wide:
            with _as_given(x.device):
                if q.dtype in (torch.float16, torch.bfloat16):
                    q, k, v = q.float(), k.float(), v.float()
                out, row = self._attend(q, k, v)
            return self.proj(out.to(x.dtype)), row
        out, row = self._attend(q, k, v)
        return self.proj(out), row

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        row = (torch.matmul(q[:, :, :1] * self.scale, k.transpose(-2, -1))).softmax(-1)  # (B, heads, 1, T)
        return merge_heads(attend(q, k, v, scale=self.scale)), row.mean(1)[:, 0]


def _as_given(device: torch.device) -> AbstractContextManager[object]:
    """Autocast switched off, on devices that have it."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


class PruningBlock(GlobalBlock):
    """Positions on the whole map, then attention and MLP on the class token and the patches that it looks at.

    The int(N keep) patches of the highest score take part; the rest are averaged by score to one token that takes part
    for them, and what each branch adds to it is added to all of them. With `keep` 1 every patch takes part. The first
    block, which gets no scores, must be such a one; the scores begin there.

    Args:
        dim: channels.
        heads: attention heads.
        mlp_ratio: inner width of the MLP over `dim`.
        qkv_bias: of the attention.
        scale: of q; head width ** -0.5 by default.
        keep: share of patches, more than 0 and at most 1.
        drop_path: of both branches.
        layer_scale: start of a factor per channel on both; None for none.
        axes: 2 for images, 3 for clips.
        wide: attention and scores in float32.
    """

    def __init__(
        self, dim: int, heads: int, *, mlp_ratio: float, qkv_bias: bool, scale: float | None, keep: float,
        drop_path: float, layer_scale: float | None = None, axes: int = 2, wide: bool = False,
    ) -> None:  # fmt: skip
        mixer = ScoringAttention(dim, heads, qkv_bias="full" if qkv_bias else "none")
        mixer.scale = mixer.scale if scale is None else scale
        mixer.wide = wide
        mlp = MLP(dim, ratio=mlp_ratio)
        super().__init__(dim, mixer, mlp, drop_path=drop_path, layer_scale=layer_scale, axes=axes)
        self.keep = keep

    def forward(self, given: Carried) -> Carried:  # type: ignore[override]
        x = self.position(given.map)
        size = x.shape[1:-1]
        patches, token, scores = x.flatten(1, -2), given.token, given.scores
        if scores is None or self.keep == 1:
            tokens, row, _ = self._mix(torch.cat([token, patches], 1))
            scores = row[:, 1:] if scores is None else _mixed(scores, row[:, 1:])
            return Carried(tokens[:, 1:].unflatten(1, size), tokens[:, :1], scores)
        count = int(patches.shape[1] * self.keep)
        best = scores.topk(count, 1).indices  # (B, count)
        places = best[..., None].expand(-1, -1, patches.shape[2])
        left = scores.scatter(1, best, 0.0)  # the scores of those that sit out
        shares = (left / left.sum(1, keepdim=True))[:, None]
        standin = torch.matmul(shares, patches.to(shares.dtype)).to(patches.dtype)  # (B, 1, C)
        tokens, row, change = self._mix(torch.cat([token, patches.gather(1, places), standin], 1))
        patches = (patches + change).scatter(1, places, tokens[:, 1:-1])
        scores = scores.scatter(1, best, _mixed(scores.gather(1, best), row[:, 1:-1]))
        return Carried(patches.unflatten(1, size), tokens[:, :1], scores)

    def _mix(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Both branches on (B, T, C): tokens, the class's row, and what they added to the last one before drop path."""
        attended, row = self.token_mixer(self.norm1(x))
        attended = self.scale1(attended)
        x = x + self.drop_path(attended)
        mixed = self.scale2(self.channel_mixer(self.norm2(x)))
        return x + self.drop_path(mixed), row, attended[:, -1:] + mixed[:, -1:]


def _mixed(old: Tensor, new: Tensor) -> Tensor:
    return (1 - TRADE_OFF) * old + TRADE_OFF * new


class LightStage(nn.Module):
    """One resolution with a class token beside the map.

    The first of them takes the map of the stage before (B, ..., C) and starts the token; a later one takes what the
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
            pooled = pooled_scores(x.scores, x.map.shape[1:-1])
            given = Carried(self.merge(x.map), self.carry(x.token), pooled)
        out: Carried = self.blocks(given)
        return out


def pooled_scores(scores: Tensor, size: Sequence[int]) -> Tensor:
    """Scores of a map's cells, (B, N), for a map of half its rows and columns, rounded down, with the same sum.

    Args:
        scores: the cells row by row, of a clip frame by frame.
        size: rows and columns; before them the frames of a clip, which stay.
    """
    maps = scores.unflatten(1, (-1, *size[-2:]))  # (B, frames, H, W)
    halved = F.avg_pool2d(maps, 2).flatten(1)
    return halved * (scores.sum(1, keepdim=True) / halved.sum(1, keepdim=True))
