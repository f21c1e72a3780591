"""Attention of HSQformer: between the two pyramids of a level, and of queries to a level (arXiv 2502.03772)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from apps.medical.ultrasound._hsqformer_experts import Expert, Experts
from core.errors import SettingError
from core.layers.attend import attend, merge_heads
from core.layers.linear import Linear, linear
from core.layers.residual import DropPath

Order = Literal["serial", "parallel", "invert_serial"]


class Attention(nn.Module):
    """Multi-head attention, query (B, T, dim) to key (B, S, dim) or to itself -> (B, T, dim).

    Queries, keys and values come from one packed matrix (3 * dim, dim), in this order, as in PyTorch's own layer.

    Raises SettingError where the heads do not divide `dim`.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        if heads < 1 or dim % heads:
            raise SettingError(f"{dim} channels do not divide into {heads} attention heads")
        self.heads = heads
        self.qkv, self.proj = Linear(dim, 3 * dim), Linear(dim, dim)
        self.initialise()

    def initialise(self) -> None:
        """The packed matrix as one, by Xavier; the output as every other layer of the network."""
        nn.init.xavier_uniform_(self.qkv.weight)
        nn.init.trunc_normal_(self.proj.weight, std=0.02)
        for layer in (self.qkv, self.proj):
            nn.init.zeros_(layer.bias)

    def forward(self, query: Tensor, key: Tensor | None = None) -> Tensor:
        out: Tensor = self.proj(merge_heads(attend(*self.split(query, key))))
        return out

    def split(self, query: Tensor, key: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, (B, heads, T or S, dim / heads)."""
        if key is None:
            q, k, v = self._parts(self.qkv(query), 3)
            return q, k, v
        weight, bias = self.qkv.weight, self.qkv.bias
        dim = weight.shape[1]
        (q,) = self._parts(linear(query, weight[:dim], bias[:dim]), 1)
        k, v = self._parts(linear(key, weight[dim:], bias[dim:]), 2)
        return q, k, v

    def shares(self, query: Tensor, key: Tensor) -> Tensor:
        """What each query takes from each key: softmax weights, mean over heads, (B, T, S)."""
        q, k, _ = self.split(query, key)
        return (q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)).softmax(-1).mean(1)

    def _parts(self, x: Tensor, count: int) -> tuple[Tensor, ...]:
        """(B, T, count * dim) -> so many of (B, heads, T, dim / heads)."""
        return x.unflatten(2, (count, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)


class CrossSelf(nn.Module):
    """Two token maps of one level (B, N, dim) into one: each reads the other, and each reads itself.

    "serial" (published): both read each other, then themselves, with residuals. "invert_serial": themselves first.
    "parallel": all four attentions read the inputs, and everything is added up.
    """

    def __init__(self, dim: int, heads: int, order: Order = "serial") -> None:
        super().__init__()
        self.order = order
        self.cross_norm_swin, self.cross_norm_convnext = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.self_norm_swin, self.self_norm_convnext = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.cross_swin, self.cross_convnext = Attention(dim, heads), Attention(dim, heads)
        self.self_swin, self.self_convnext = Attention(dim, heads), Attention(dim, heads)

    def forward(self, swin: Tensor, convnext: Tensor) -> Tensor:
        if self.order == "parallel":
            s, c = self._cross(swin, convnext)
            t, d = self._self(swin, convnext)
            return t + s + d + c + swin + convnext
        for step in (self._cross, self._self) if self.order == "serial" else (self._self, self._cross):
            s, c = step(swin, convnext)
            swin, convnext = swin + s, convnext + c
        return convnext + swin

    def _cross(self, swin: Tensor, convnext: Tensor) -> tuple[Tensor, Tensor]:
        s, c = self.cross_norm_swin(swin), self.cross_norm_convnext(convnext)
        return self.cross_swin(s, c), self.cross_convnext(c, s)

    def _self(self, swin: Tensor, convnext: Tensor) -> tuple[Tensor, Tensor]:
        return self.self_swin(self.self_norm_swin(swin)), self.self_convnext(self.self_norm_convnext(convnext))


class Fusion(nn.Module):
    """The fused map of a level, CrossSelf and then experts: (B, N, dim) twice -> (B, N, dim)."""

    def __init__(self, dim: int, heads: int, order: Order, experts: Expert | Experts) -> None:
        super().__init__()
        self.attention = CrossSelf(dim, heads, order)
        self.norm, self.experts = nn.LayerNorm(dim), experts

    def forward(self, swin: Tensor, convnext: Tensor) -> Tensor:
        x = self.attention(swin, convnext)
        out: Tensor = x + self.experts(self.norm(x))
        return out


class QueryBlock(nn.Module):
    """Queries (B, Q, dim) read a level's tokens (B, N, dim), then each other, then go through experts."""

    def __init__(self, dim: int, heads: int, experts: Expert | Experts, *, drop_path: float = 0.0) -> None:
        super().__init__()
        self.norm_query, self.norm_level = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.cross = Attention(dim, heads)
        self.norm_self, self.self_attention = nn.LayerNorm(dim), Attention(dim, heads)
        self.norm_experts, self.experts = nn.LayerNorm(dim), experts
        self.drop_path = DropPath(drop_path)

    def forward(self, queries: Tensor, level: Tensor) -> Tensor:
        q = queries + self.drop_path(self.cross(self.norm_query(queries), self.norm_level(level)))
        q = q + self.drop_path(self.self_attention(self.norm_self(q)))
        return q + self.drop_path(self.experts(self.norm_experts(q)))

    def looked_at(self, queries: Tensor, level: Tensor) -> Tensor:
        """What the queries take from each token, mean over queries and heads: (B, N), each row adds up to 1."""
        with torch.no_grad():
            return self.cross.shares(self.norm_query(queries), self.norm_level(level)).mean(1)
