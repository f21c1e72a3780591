"""Global tokens that keep their place in the image, and gates over channels and positions (arXiv 2309.12424)."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.errors import SettingError, ShapeError
from core.layers.attend import attend, merge_heads
from core.layers.convs import convolve
from core.layers.linear import Linear, linear
from core.mixers.attention import SelfAttention

TokenMLP = Literal["norm", "mix"]


class Reduction(nn.Module):
    """x + pointwise(GELU(depthwise 3x3 of LayerNorm of x)), then a depthwise 3x3 of stride 2.

    (B, H, W, C) -> (B, ceil(H / 2), ceil(W / 2), C).
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.depthwise = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.pointwise = Linear(dim, dim)
        self.down = nn.Conv2d(dim, dim, 3, stride=2, padding=1, groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.pointwise(F.gelu(convolve(self.depthwise, self.norm(x))))
        return convolve(self.down, x)


class TokenMixing(nn.Module):
    """Two linear layers with GELU between, on tokens (B, N, C).

    Args:
        dim: C.
        count: N.
        kind: "norm", both over channels; "mix", the first one over the N tokens.
    """

    def __init__(self, dim: int, count: int, kind: TokenMLP) -> None:
        super().__init__()
        self.mix = kind == "mix"
        self.fc1 = Linear(count, count) if self.mix else Linear(dim, dim)
        self.fc2 = Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x.transpose(1, 2)).transpose(1, 2) if self.mix else self.fc1(x)
        return self.fc2(F.gelu(x))


class PositionAwareAttention(nn.Module):
    """What the whole image tells each cell of a map, by way of global tokens that it also renews.

    The map (B, H, W, C) is halved `steps` times, brought to side x side cells (bilinear, where it has another size)
    and attends to itself. Token k, (B, side^2, C), is the weighted mean of what it was and of cell k, and then passes
    an MLP. The cells of the map attend to the new tokens. Linear in the area of the map, halving included.

    Args:
        dim: channels.
        heads: of both attentions.
        side: of the square of tokens.
        steps: halvings.
        kind: of the tokens' MLP (see TokenMixing).
    """

    def __init__(self, dim: int, heads: int, *, side: int = 7, steps: int = 0, kind: TokenMLP = "mix") -> None:
        super().__init__()
        if dim % heads:
            raise SettingError(f"{dim} channels do not divide into {heads} heads")
        self.heads, self.side = heads, side
        self.reduce = nn.Sequential(*(Reduction(dim) for _ in range(steps)))
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.gather = SelfAttention(dim, heads)
        self.share = nn.Parameter(torch.full((1,), 0.5))  # of the old token
        self.norm2, self.mlp = nn.LayerNorm(dim, eps=1e-6), TokenMixing(dim, side * side, kind)
        self.norm3, self.norm4 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.q, self.kv = Linear(dim, dim), Linear(dim, 2 * dim)

    def renewed(self, x: Tensor, tokens: Tensor) -> Tensor:
        """Map (B, H, W, C) and tokens (B, side^2, C) -> the new tokens."""
        x = self.reduce(x)
        if x.shape[1:3] != (self.side, self.side):
            x = F.interpolate(x.permute(0, 3, 1, 2), size=(self.side, self.side), mode="bilinear").permute(0, 2, 3, 1)
        x = x.flatten(1, 2)
        x = x + self.gather(self.norm1(x))
        tokens = tokens * self.share + x * (1 - self.share)
        return tokens + self.mlp(self.norm2(tokens))

    def forward(self, x: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        B, H, W, C = x.shape
        if tuple(tokens.shape) != (B, self.side**2, C):
            raise ShapeError(f"expected tokens ({B}, {self.side**2}, {C}), got {tuple(tokens.shape)}")
        tokens = self.renewed(x, tokens)
        q = self.q(self.norm3(x)).reshape(B, H * W, self.heads, -1).transpose(1, 2)
        k, v = self.kv(self.norm4(tokens)).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return merge_heads(attend(q, k, v)).reshape(B, H, W, C), tokens


class BidirectionalGate(nn.Module):
    """Gates from the map's mean over its channels and from both over its positions: (B, H, W, C) -> the same.

    LightViT's bi-dimensional attention (arXiv 2207.05557, 3.3).
    """

    def __init__(self, dim: int, *, reduction: int = 4) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.whole, self.local = Linear(dim, dim // reduction), Linear(dim, dim // reduction)
        self.channels = Linear(dim // reduction, dim)
        self.positions = Linear(2 * (dim // reduction), 1)  # of a position first, then of the mean

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        whole = F.gelu(self.whole(y.mean((1, 2), keepdim=True)))
        local = F.gelu(self.local(y))
        weight, r = self.positions.weight, local.shape[-1]
        places = linear(local, weight[:, :r], self.positions.bias) + linear(whole, weight[:, r:], None)
        return x * (self.channels(whole).sigmoid() * places.sigmoid())
