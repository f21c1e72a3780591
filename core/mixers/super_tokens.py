"""Super token attention: pixels softly grouped into a coarse grid that attends to itself (SViT, arXiv 2211.11167)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.errors import SettingError
from core.layers.attend import attend, merge_heads
from core.layers.linear import Linear

SLOTS = 9  # super tokens that a pixel may belong to: its cell's own and the eight around it, row by row


class SuperTokenAttention(nn.Module):
    """Attention between super tokens, spread back to the pixels: (B, H, W, C) -> the same, for any H and W.

    The map is padded with zeros at the bottom and right to whole cells. The mean of each cell is its first super token.
    Every pixel belongs to the 3 x 3 super tokens around its cell by a softmax over their products with it (scale
    C ** -0.5; outside of the grid they are zero vectors, which take their share). A super token becomes the mean of the
    pixels weighted so. What belongs where carries no gradient, as published. Only (cells, pixels of a cell, 9) weights
    are held, never pixels x super tokens. With cells of one pixel this is plain attention.

    Args:
        dim: channels.
        heads: of the attention between super tokens (scale head_dim ** -0.5; qkv laid out head by head).
        cell: rows and columns of a cell.
        iterations: how often pixels are assigned.
        qkv_bias: of the attention between super tokens.
    """

    def __init__(
        self, dim: int, heads: int, cell: tuple[int, int], *, iterations: int = 1, qkv_bias: bool = True
    ) -> None:
        super().__init__()
        if iterations < 1 or min(cell) < 1 or dim % heads:
            raise SettingError(
                f"super tokens: {dim} channels on {heads} heads, cells of {cell}, {iterations} iterations do not work"
            )
        self.dim, self.heads, self.cell, self.iterations = dim, heads, cell, iterations
        self.qkv = Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        if self.cell == (1, 1):
            return self.refine(x)
        B, H, W, C = x.shape
        h, w = self.cell
        down, right = -H % h, -W % w
        if down or right:
            x = F.pad(x, (0, 0, 0, right, 0, down))
        rows, columns = (H + down) // h, (W + right) // w
        pixels = x.view(B, rows, h, columns, w, C).transpose(2, 3).reshape(B, rows, columns, h * w, C)
        weights, mass = self.assign(pixels)
        tokens = self.refine(update(pixels, weights, mass))
        spread = weights @ around(tokens)  # (B, rows, columns, h * w, C)
        x = spread.view(B, rows, columns, h, w, C).transpose(2, 3).reshape(B, rows * h, columns * w, C)
        return x[:, :H, :W] if down or right else x

    @torch.no_grad()
    def assign(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """What belongs where, of pixels (B, rows, columns, T, C) by cell.

        Returns:
            Shares (B, rows, columns, T, 9) of each pixel in the super tokens around it, and what each super token has
            of all pixels, (B, rows, columns, 1).
        """
        weights, mass = shares(pixels, pixels.mean(3))
        for _ in range(1, self.iterations):
            weights, mass = shares(pixels, update(pixels, weights, mass))
        return weights, mass

    def refine(self, x: Tensor) -> Tensor:
        """Attention of every position to every other, (B, rows, columns, C) -> the same."""
        qkv = self.qkv(x).flatten(1, 2).unflatten(-1, (self.heads, 3, -1)).permute(3, 0, 2, 1, 4)
        q, k, v = qkv.unbind(0)
        return self.proj(merge_heads(attend(q, k, v))).view(x.shape)


def shares(pixels: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """What `SuperTokenAttention.assign` answers, given the super tokens (B, rows, columns, C)."""
    weights = (pixels @ around(tokens).mT * pixels.shape[-1] ** -0.5).softmax(-1)
    return weights, gathered(weights.sum(3)[..., None])


def update(pixels: Tensor, weights: Tensor, mass: Tensor) -> Tensor:
    """Super tokens (B, rows, columns, C) as the weighted means of pixels (B, rows, columns, T, C)."""
    return gathered(weights.mT @ pixels) / (mass + 1e-12)


def around(tokens: Tensor) -> Tensor:
    """The 3 x 3 neighbours of each of (B, rows, columns, C), zeros outside: (B, rows, columns, 9, C)."""
    padded = F.pad(tokens, (0, 0, 1, 1, 1, 1))
    return padded.unfold(1, 3, 1).unfold(2, 3, 1).flatten(-2).mT


def gathered(slots: Tensor) -> Tensor:
    """The transpose of `around`: what (B, rows, columns, 9, C) say of each neighbour, summed there."""
    rows, columns = slots.shape[1:3]
    padded = F.pad(slots, (0, 0, 0, 0, 1, 1, 1, 1))
    total = padded[:, 2 : 2 + rows, 2 : 2 + columns, 0]
    for j in range(1, SLOTS):
        up, left = 2 - j // 3, 2 - j % 3
        total = total + padded[:, up : up + rows, left : left + columns, j]
    return total
