"""Attention in cross-shaped windows with locally enhanced positions (CSWin, arXiv 2107.00652, sections 3.2 and 3.3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.errors import SettingError
from core.layers import windows
from core.layers.attend import attend
from core.layers.linear import Linear


def lepe(v: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Positions from the values (section 3.3): a depthwise 3x3 convolution of maps (B, H, W, C) with zeros around each.

    Given a whole map, this is the paper's drawing; given windows as images of a batch, nothing leaks from one into the
    next, which is what CSWin's weights were trained with. `weight` is (C, 1, 3, 3).
    """
    x = F.conv2d(v.permute(0, 3, 1, 2), weight, bias, padding=1, groups=v.shape[-1])
    return x.permute(0, 2, 3, 1)


class CrossWindowAttention(nn.Module):
    """Half of the heads attend inside vertical stripes, half inside horizontal ones: (B, H, W, C) -> (B, H, W, C).

    A stripe spans the whole height or width of the map it is given. Where `stripe` does not divide the other side,
    q, k and v get zeros on both sides (the odd one at the bottom or right) that are attended to like any other cell.

    Args:
        dim: channels.
        heads: attention heads; with stripes, half of them for each direction.
        stripe: width of a stripe in cells; None for one window over the whole map and all heads in it.
        qkv_bias: biases of the q, k, v projection.
        scale: of q; head width ** -0.5 by default.
        dropout: of the attention weights.
        proj_dropout: of the output.
    """

    def __init__(
        self, dim: int, heads: int, *, stripe: int | None = 7, qkv_bias: bool = True, scale: float | None = None,
        dropout: float = 0.0, proj_dropout: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.branches = 1 if stripe is None else 2
        if heads % self.branches or dim % heads:
            raise SettingError(f"{heads} heads do not go into {dim} channels and {self.branches} directions of stripes")
        self.head_dim, self.stripe, self.dropout = dim // heads, stripe, dropout
        self.scale = self.head_dim**-0.5 if scale is None else scale
        self.qkv = Linear(dim, 3 * dim, bias=qkv_bias)
        self.lepe = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)  # vertical stripes' half first
        self.proj = Linear(dim, dim)
        self.proj_dropout = nn.Dropout(proj_dropout)

    def forward(self, x: Tensor) -> Tensor:
        B, H, W, C = x.shape
        qkv = self.qkv(x).reshape(B, H, W, 3, self.branches, C // self.branches)
        weight, bias = self.lepe.weight, self.lepe.bias
        assert bias is not None
        if self.stripe is None:
            x = self._stripes([qkv[..., 0, :]], H, [weight], bias)
        else:
            # Vertical stripes are horizontal ones of the transposed map. Long rows suit the convolution, and where
            # both maps have the same shape, their heads go together as one map's.
            vertical, horizontal = qkv[..., 0, :].transpose(1, 2), qkv[..., 1, :]
            first, second = weight[: C // 2].transpose(2, 3), weight[C // 2 :]
            if H == W:
                both = self._stripes([vertical, horizontal], self.stripe, [first, second], bias)
                down, across = both.chunk(2, -1)
            else:
                down = self._stripes([vertical], self.stripe, [first], bias[: C // 2])
                across = self._stripes([horizontal], self.stripe, [second], bias[C // 2 :])
            x = torch.cat([down.transpose(1, 2), across], dim=-1)
        return self.proj_dropout(self.proj(x))

    def _stripes(self, parts: Sequence[Tensor], stripe: int, weights: Sequence[Tensor], bias: Tensor) -> Tensor:
        """Attention and LePE inside stripes of `stripe` rows.

        Args:
            parts: q, k and v of maps with the same shape, (B, H, W, 3, C) each.
            stripe: rows.
            weights: of LePE, (C, 1, 3, 3) for each part.
            bias: of LePE, for all parts.

        Returns:
            (B, H, W, parts * C), the parts in turn.
        """
        B, H, W = parts[0].shape[:3]
        rows = -(-H // stripe)
        where = (0, 0, H, W)
        if H % stripe:
            padded = [[windows.pad(t, (stripe, 1), "centre") for t in p.unbind(3)] for p in parts]
            where = padded[0][0][1]
            parts = [torch.stack([t for t, _ in p], dim=3) for p in padded]
        v = _join([p[..., 2, :] for p in parts], -1).reshape(B * rows, stripe, W, -1)
        # One copy cuts stripes and heads: (B, rows, stripe, W, 2, heads, d) -> (2, B, rows, heads, stripe, W, d)
        cells = [
            p[..., :2, :].unflatten(-1, (-1, self.head_dim)).unflatten(1, (rows, stripe)).permute(4, 0, 1, 5, 2, 3, 6)
            for p in parts
        ]
        q, k = _join(cells, 3).reshape(2, B * rows, -1, stripe * W, self.head_dim).unbind(0)
        heads = (B * rows, stripe * W, -1, self.head_dim)
        x = self._attend(q, k, v.reshape(heads).transpose(1, 2)).transpose(1, 2)
        x = lepe(v, _join(weights, 0), bias).reshape(heads) + x
        return windows.crop(x.reshape(B, rows * stripe, W, -1), where)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(B * stripes, heads, cells, d) -> the same."""
        if self.training and self.dropout:
            return F.scaled_dot_product_attention(q, k, v, scale=self.scale, dropout_p=self.dropout)
        return attend(q, k, v, scale=self.scale)


def _join(parts: Sequence[Tensor], dim: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim)
