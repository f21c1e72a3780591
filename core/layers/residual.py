"""Residual blocks and the ways in which a branch is scaled or dropped."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn


def spread(top: float, depths: tuple[int, ...]) -> list[list[float]]:
    """Drop-path rates per stage and block, linear from 0 at the first block of the net to `top` at the last.

    >>> spread(0.2, (1, 2))
    [[0.0], [0.1, 0.2]]
    """
    last = max(sum(depths) - 1, 1)
    flat = iter(top * i / last for i in range(sum(depths)))
    return [[next(flat) for _ in range(d)] for d in depths]


class DropPath(nn.Module):
    """Drops a residual branch per sample with probability `p` in training; kept ones are scaled by 1 / (1 - p)."""

    def __init__(self, p: float = 0.0) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0.0:
            return x
        keep = torch.empty(x.shape[0], *[1] * (x.ndim - 1), device=x.device, dtype=x.dtype).bernoulli_(1 - self.p)
        return x * keep.div_(1 - self.p)

    def extra_repr(self) -> str:
        return f"p={self.p:.3f}"


class LayerScale(nn.Module):
    """A learned factor per channel, (..., C) -> (..., C) (arXiv 2103.17239, equation 6)."""

    def __init__(self, dim: int, start: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((dim,), start))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class Block(nn.Module):
    """Pre-norm residual block: a token mixer, then a channel mixer, on channels-last maps or tokens."""

    def __init__(
        self,
        dim: int,
        token_mixer: nn.Module,
        channel_mixer: nn.Module,
        *,
        drop_path: float = 0.0,
        layer_scale: float | None = None,
        norm: Callable[[int], nn.Module] = nn.LayerNorm,
    ) -> None:
        super().__init__()
        self.norm1, self.token_mixer = norm(dim), token_mixer
        self.norm2, self.channel_mixer = norm(dim), channel_mixer
        self.scale1 = nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale)
        self.scale2 = nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:  # (B, ..., C) -> (B, ..., C)
        x = x + self.drop_path(self.scale1(self.token_mixer(self.norm1(x))))
        return x + self.drop_path(self.scale2(self.channel_mixer(self.norm2(x))))


class Stage(nn.Module):
    """One resolution of a channels-last network: what brings the map there, then blocks; gives (B, H, W, C).

    Args:
        merge: merging of the map before, in the first stage the embedding of the image.
        blocks: of this resolution.
    """

    def __init__(self, merge: nn.Module, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.merge, self.blocks = merge, nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.blocks(self.merge(x))
        return y
