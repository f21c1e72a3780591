"""Aggregated attention: a token's neighbours finely and the pooled map coarsely in one softmax (TransNeXt).

Paper: arXiv 2311.17132, section 3.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.errors import SettingError
from core.layers.attend import attend, merge_heads
from core.layers.kept import Kept
from core.layers.linear import Linear

Positions = Literal["interpolate", "extrapolate"]
Size = tuple[int, int]

HIDDEN = 512  # width of the position bias's MLP
_ROWS = 1 << 16  # of that MLP at once in inference: a megapixel map has a quarter of a million


class LogBias(nn.Module):
    """Position bias from log-spaced relative coordinates by a small MLP: (heads, queries, keys).

    Relative coordinates (query - pooled key, row and column) are divided by P - 1, P the side of the map in
    pre-training, times 8, and t becomes sign(t) log2(|t| + 1) / 3 (arXiv 2311.17132, section 3.4).

    Args:
        heads: of the attention.
        built: side of the square map that the bias is made for with "interpolate"; it is then resized bilinearly, first
            over the keys, then over the queries. With "extrapolate" it is made for the map itself.
        pool: cells of that map to a key along each side.
        pretrained: P.
        fixed: number of keys along each side instead, 0 for none.
        positions: "interpolate" or "extrapolate".

    Inference keeps the last answer (core.layers.kept).
    """

    def __init__(self, heads: int, *, built: int, pool: int, pretrained: int, fixed: int, positions: Positions) -> None:
        super().__init__()
        if pretrained < 2:
            raise SettingError(
                f"a map of side {pretrained} has no relative positions to scale by: state a larger pretrain_size"
            )
        self.heads, self.built, self.pool, self.pretrained = heads, built, pool, pretrained
        self.fixed, self.positions = fixed, positions
        self.fc1, self.fc2 = nn.Linear(2, HIDDEN), nn.Linear(HIDDEN, heads)
        self._kept = Kept()

    def keys(self, size: Size) -> Size:
        """Rows and columns of the pooled map."""
        if self.fixed:
            return self.fixed, self.fixed
        return max(size[0] // self.pool, 1), max(size[1] // self.pool, 1)

    def forward(self, size: Size) -> Tensor:
        """(heads, H * W, keys) for a map of H rows and W columns."""
        return self._kept(lambda: self._answer(size), list(self.parameters()), size)

    def _answer(self, size: Size) -> Tensor:
        if self.positions == "extrapolate":
            return self.made(size, self.keys(size))
        built = (self.built, self.built)
        inner, wanted = self.keys(built), self.keys(size)
        bias = self.made(built, inner)
        if inner != wanted:
            bias = _resized(bias.reshape(-1, 1, *inner), wanted)
        bias = bias.reshape(self.heads, self.built**2, -1)
        if built != size:
            bias = _resized(bias.transpose(1, 2).reshape(self.heads, -1, *built), size)
            bias = bias.flatten(2).transpose(1, 2)
        return bias

    def made(self, size: Size, keys: Size) -> Tensor:
        """The MLP's answers, computed once for each distinct pair of coordinates."""
        device, dtype = self.fc1.weight.device, self.fc1.weight.dtype
        rows, row = _differences(size[0], keys[0], device)
        columns, column = _differences(size[1], keys[1], device)
        t = [(d.to(dtype) * (8 / (self.pretrained - 1))) for d in (rows, columns)]
        y, x = ((v.abs() + 1).log2() / 3 * v.sign() for v in t)
        grid = torch.stack(torch.broadcast_tensors(y[:, None], x[None]), -1).reshape(-1, 2)
        if torch.is_grad_enabled() or len(grid) <= _ROWS:
            table = self.fc2(self.fc1(grid).relu())
        else:
            table = torch.cat([self.fc2(self.fc1(part).relu_()) for part in grid.split(_ROWS)])
        table = table.T.reshape(self.heads, len(rows), len(columns))
        bias = table.index_select(1, row.reshape(-1)).index_select(2, column.reshape(-1))
        bias = bias.reshape(self.heads, size[0], keys[0], size[1], keys[1]).transpose(2, 3)
        return bias.reshape(self.heads, size[0] * size[1], keys[0] * keys[1])


def _differences(size: int, keys: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Distinct differences of coordinates 0 .. size - 1 and their adaptive means, and the place of each (size, keys).

    Means lie on halves, so differences do; on whole steps where `keys` divides `size`.
    """
    k = torch.arange(keys, device=device)
    first, last = k * size // keys, ((k + 1) * size + keys - 1) // keys - 1
    twice = 2 * torch.arange(size, device=device)[:, None] - (first + last)[None]
    low = -((keys - 1) * size // keys + size - 1)
    high = 2 * (size - 1) - (-(-size // keys) - 1)
    step = 1 if size % keys else 2
    values = torch.arange(low, high + 1, step, device=device)
    return values / 2, (twice - low) // step


def _resized(bias: Tensor, size: Size) -> Tensor:
    return F.interpolate(bias, size=size, mode="bilinear", align_corners=False)


class _Cosine(nn.Module):
    """What both kinds share: a query embedding and a learned temperature over normalised q and k."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        if dim % heads:
            raise SettingError(f"{dim} channels do not divide into {heads} heads")
        self.heads = heads
        self.temperature = nn.Parameter(torch.full((heads, 1, 1), math.log(math.exp(1 / 0.24) - 1)))
        self.query_embedding = nn.Parameter(nn.init.trunc_normal_(torch.empty(heads, 1, dim // heads), std=0.02))

    def queries(self, q: Tensor, scale: Tensor | float) -> Tensor:
        """Normalised q (B, heads, N, d) with the embedding, times temperature and scale."""
        return (q + self.query_embedding) * (F.softplus(self.temperature) * scale)


class CosineAttention(_Cosine):
    """Every position to every other by normalised q and k, (B, H, W, C) -> the same; scale ln(H W)."""

    def __init__(self, dim: int, heads: int, bias: LogBias, *, qkv_bias: bool = True) -> None:
        super().__init__(dim, heads)
        self.qkv, self.proj = Linear(dim, 3 * dim, bias=qkv_bias), Linear(dim, dim)
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        B, H, W, C = x.shape
        q, k, v = self.qkv(x).view(B, H * W, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        y = attend(self.queries(q, math.log(H * W)), k, v, self.bias((H, W)), scale=1.0)
        return self.proj(merge_heads(y)).view(B, H, W, C)


class AggregatedAttention(_Cosine):
    """Neighbours and pooled map in one softmax, and query-conditioned weights beside it: (B, H, W, C) -> the same.

    The softmax runs over window x window neighbours (none outside of the map) and the keys of the pooled map, with
    scale ln(neighbours + pooled keys) of each token. After it the neighbours' weights get q . learnable tokens + bias
    added, with q as normalised, so they may be negative and need not add up to 1.

    Args:
        dim: channels.
        heads: attention heads.
        bias: of the pooled keys, which also says how many there are.
        window: side of the neighbourhood, odd.
        qkv_bias: biases of the linear maps to q, k and v.
    """

    def __init__(self, dim: int, heads: int, bias: LogBias, *, window: int = 3, qkv_bias: bool = True) -> None:
        super().__init__(dim, heads)
        if not window % 2:
            raise SettingError(f"a neighbourhood has an odd side, got {window}")
        self.window = window
        d, slots = dim // heads, window * window
        self.q, self.kv = Linear(dim, dim, bias=qkv_bias), Linear(dim, 2 * dim, bias=qkv_bias)
        self.proj = Linear(dim, dim)
        self.reduce, self.norm = Linear(dim, dim), nn.LayerNorm(dim)
        self.bias = bias
        self.local_bias = nn.Parameter(nn.init.trunc_normal_(torch.empty(heads, slots), std=0.0004))
        self.learnable_tokens = nn.Parameter(nn.init.trunc_normal_(torch.empty(heads, d, slots), std=0.02))
        self.learnable_bias = nn.Parameter(torch.zeros(heads, 1, slots))

    def forward(self, x: Tensor) -> Tensor:
        B, H, W, C = x.shape
        heads, d = self.heads, C // self.heads
        rows, columns = self.bias.keys((H, W))
        inside = self._inside(H, W, x)
        q = F.normalize(self.q(x).view(B, H * W, heads, d).transpose(1, 2), dim=-1)
        k, v = self.kv(x).split(C, -1)
        k = F.normalize(k.unflatten(-1, (heads, d)), dim=-1).flatten(-2)
        scale = (inside.sum(-1, dtype=x.dtype) + rows * columns).log()[:, None]
        scaled = self.queries(q, scale)
        near = self._dots(scaled.transpose(1, 2).reshape(B, H, W, C), k)
        near = near + self.local_bias[None, :, None]
        near = near.masked_fill(~inside, -math.inf)
        pooled_k, pooled_v = self._pooled(x, (rows, columns))
        far = scaled @ pooled_k.mT
        bias = self.bias((H, W)).to(far.dtype)
        far = far.add_(bias) if not torch.is_grad_enabled() else far + bias
        weights = torch.cat([near, far], -1).softmax(-1)
        near, far = weights.split([self.window**2, rows * columns], -1)
        near = near + (q @ self.learnable_tokens + self.learnable_bias)
        y = (far @ pooled_v).transpose(1, 2).reshape(B, H, W, C)
        return self.proj(self._summed(near, v, y))

    def _pooled(self, x: Tensor, size: Size) -> tuple[Tensor, Tensor]:
        """Keys and values (B, heads, rows * columns, d) of the pooled map."""
        small = F.adaptive_avg_pool2d(F.gelu(self.reduce(x)).permute(0, 3, 1, 2), size).permute(0, 2, 3, 1)
        kv = self.kv(self.norm(small)).view(x.shape[0], size[0] * size[1], 2, self.heads, -1).permute(2, 0, 3, 1, 4)
        return F.normalize(kv[0], dim=-1), kv[1]

    def _inside(self, H: int, W: int, x: Tensor) -> Tensor:
        """Which neighbours exist, (H * W, window * window)."""
        offset = torch.arange(self.window, device=x.device) - self.window // 2
        row, column = (torch.arange(n, device=x.device)[:, None] + offset for n in (H, W))
        rows, columns = (row >= 0) & (row < H), (column >= 0) & (column < W)
        return (rows[:, None, :, None] & columns[None, :, None, :]).reshape(H * W, -1)

    def _neighbours(self, x: Tensor) -> list[Tensor]:
        """(B, H, W, C) moved so that each position holds its neighbour: views in the order of the slots."""
        H, W, n = x.shape[1], x.shape[2], self.window
        padded = F.pad(x, (0, 0, n // 2, n // 2, n // 2, n // 2))
        return [padded[:, i : i + H, j : j + W] for i in range(n) for j in range(n)]

    def _dots(self, q: Tensor, k: Tensor) -> Tensor:
        """Products of q with each neighbour's k by head, (B, H, W, C) twice -> (B, heads, H * W, slots)."""
        B, H, W, _ = q.shape
        dots = [(q * near).view(B, H * W, self.heads, -1).sum(-1) for near in self._neighbours(k)]
        return torch.stack(dots, -1).transpose(1, 2)

    def _summed(self, weights: Tensor, v: Tensor, y: Tensor) -> Tensor:
        """The neighbours' values by their weights (B, heads, H * W, slots), added to y."""
        B, H, W, C = v.shape
        shares = weights.transpose(1, 2).reshape(B, H, W, self.heads, -1).unbind(-1)
        y = y.view(B, H, W, self.heads, -1)
        for share, near in zip(shares, self._neighbours(v), strict=True):
            y = torch.addcmul(y, share[..., None], near.unflatten(-1, (self.heads, -1)))
        return y.view(B, H, W, C)
