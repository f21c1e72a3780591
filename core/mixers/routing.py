"""Bi-level routing attention: regions choose regions, cells attend to the cells of those (arXiv 2303.08810, 3.2)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from core.errors import SettingError
from core.layers import windows
from core.layers.attend import attend
from core.layers.convs import convolve
from core.layers.linear import Linear

Regions = Literal["count", "size"]


class BiLevelRoutingAttention(nn.Module):
    """Cells of a region attend to the cells of the `topk` regions most like it: (B, H, W, C) -> (B, H, W, C).

    How like two regions are is the product of their mean query and mean key over all channels. The choice is hard: no
    weight and no gradient comes from it; among equals the earlier region is taken. Any H and W.

    Args:
        dim: channels.
        heads: attention heads.
        regions: along each side of the map.
        topk: regions that each one sees; with as many as there are, or more, every cell sees every cell.
        cut: "count", exactly `regions` to a side: the map is padded with zeros at the bottom and right before its
            projection, so the padded cells hold the biases, and are part of the means and of the convolution; "size",
            regions of floor(side / regions) cells (at least one): q, k and v are padded with zeros, the means are over
            true cells, and there can be more regions than `regions` to a side. Padded cells are attended to in both.
        qk_dim: width of queries and keys; `dim` by default.
        lepe: side of the depthwise convolution of the values that is added to the result.
        scale: of the logits; by default `qk_dim` ** -0.5, of all heads together as the published weights need.
    """

    def __init__(
        self, dim: int, heads: int, *, regions: int = 7, topk: int = 4, cut: Regions = "count",
        qk_dim: int | None = None, lepe: int = 5, scale: float | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.qk_dim = dim if qk_dim is None else qk_dim
        if dim % heads or self.qk_dim % heads:
            raise SettingError(f"{heads} heads do not divide {dim} channels and {self.qk_dim} of queries")
        if regions < 1 or topk < 1:
            raise SettingError(f"at least one region and one to see were expected, got {regions} and {topk}")
        self.dim, self.heads, self.regions, self.topk, self.cut = dim, heads, regions, topk, cut
        self.scale = self.qk_dim**-0.5 if scale is None else scale
        self.qkv = Linear(dim, 2 * self.qk_dim + dim)
        self.lepe = nn.Conv2d(dim, dim, lepe, padding=lepe // 2, groups=dim)
        self.proj = Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        B, H, W, _ = x.shape
        S = self.regions
        if self.cut == "count":
            x, _ = windows.pad(x, (S, S), "end")
            side = (x.shape[1] // S, x.shape[2] // S)
        else:
            side = (max(1, H // S), max(1, W // S))
        qkv = self.qkv(x)
        near = convolve(self.lepe, qkv[..., 2 * self.qk_dim :])[:, :H, :W]
        qkv, _ = windows.pad(qkv, side, "end")
        grid = (qkv.shape[1] // side[0], qkv.shape[2] // side[1])
        widths = [self.qk_dim, self.qk_dim, self.dim]
        q, k, v = (self._regions(part, side) for part in qkv.split(widths, -1))
        if self.topk < grid[0] * grid[1]:
            best = self._route(q, k, B, self._cells(side, (H, W), q) if self.cut == "size" else None)
            k, v = (self._gather(t, best) for t in (k, v))
        else:  # every cell of an image together
            q, k, v = (t.reshape(self.heads, B, -1, t.shape[-1]) for t in (q, k, v))
        out = attend(q, k, v, scale=self.scale)
        out = out.reshape(self.heads, B, *grid, *side, -1).permute(1, 2, 4, 3, 5, 0, 6)
        out = out.reshape(B, grid[0] * side[0], grid[1] * side[1], self.dim)[:, :H, :W]
        return self.proj(out + near)

    def _regions(self, x: Tensor, side: tuple[int, int]) -> Tensor:
        """(B, H, W, C) -> (heads, B * regions, cells, d), so that regions can be picked as rows of memory."""
        B, H, W, _ = x.shape
        (h, w), m = side, self.heads
        x = x.reshape(B, H // h, h, W // w, w, m, x.shape[-1] // m).permute(5, 0, 1, 3, 2, 4, 6)
        return x.reshape(m, B * (H // h) * (W // w), h * w, -1)

    def _route(self, q: Tensor, k: Tensor, B: int, cells: Tensor | None) -> Tensor:
        """Regions that each region of q sees: (B, regions, topk)."""
        kind = torch.promote_types(q.dtype, torch.float32)
        means = [t.detach().mean(2, dtype=kind).unflatten(1, (B, -1)).permute(1, 2, 0, 3).flatten(2) for t in (q, k)]
        if cells is not None:  # the sums are over as many cells everywhere, padded ones being zero
            means = [t / cells[:, None] for t in means]
        likeness = means[0] @ means[1].transpose(1, 2)  # (B, regions, regions); a scale would not change the order
        return _largest(likeness, self.topk)

    @staticmethod
    def _gather(x: Tensor, best: Tensor) -> Tensor:
        """The chosen regions of each one: (heads, B * regions, cells, d) -> (heads, B * regions, topk * cells, d)."""
        first = torch.arange(best.shape[0], device=x.device) * best.shape[1]
        rows = (best + first[:, None, None]).reshape(-1)
        return x.flatten(2).index_select(1, rows).reshape(*x.shape[:2], -1, x.shape[-1])

    @staticmethod
    def _cells(side: tuple[int, int], size: tuple[int, int], like: Tensor) -> Tensor:
        """True cells of each region, (regions), as a share of a whole one."""
        kind = torch.promote_types(like.dtype, torch.float32)
        shares = []
        for s, n in zip(side, size, strict=True):
            start = torch.arange(-(-n // s), device=like.device) * s
            shares.append((n - start).clamp(max=s).to(kind) / s)
        return (shares[0][:, None] * shares[1][None, :]).reshape(-1)


def _largest(scores: Tensor, count: int) -> Tensor:
    """Columns of the `count` largest of each row, the earlier of equals first: (..., N) -> (..., count)."""
    if torch.compiler.is_exporting() or torch.onnx.is_in_onnx_export():  # ONNX has no stable sort; its top k is stable
        return scores.topk(count, dim=-1).indices
    return scores.sort(dim=-1, descending=True, stable=True).indices[..., :count]


class PlainAttention(nn.Module):
    """Attention of every cell to every cell with a depthwise convolution beside it: (B, H, W, C) -> (B, H, W, C).

    Args:
        dim: channels.
        heads: attention heads; 8 in every published network, whatever its other heads are.
        lepe_of: what the convolution sees: the layer's "input", its "value" or, without one, "none".
        lepe: side of the convolution.
    """

    def __init__(
        self, dim: int, heads: int = 8, *, lepe_of: Literal["input", "value", "none"] = "input", lepe: int = 5
    ) -> None:
        super().__init__()
        if dim % heads:
            raise SettingError(f"{heads} heads do not divide {dim} channels")
        self.heads, self.lepe_of = heads, lepe_of
        self.qkv = Linear(dim, 3 * dim, bias=False)
        if lepe_of != "none":
            self.lepe = nn.Conv2d(dim, dim, lepe, padding=lepe // 2, groups=dim)
        self.proj = Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        B, H, W, C = x.shape
        qkv = self.qkv(x)
        q, k, v = qkv.reshape(B, H * W, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)  # (B, heads, H * W, d)
        out = attend(q, k, v).transpose(1, 2).reshape(B, H, W, C)
        if self.lepe_of != "none":
            out = out + convolve(self.lepe, x if self.lepe_of == "input" else qkv[..., 2 * C :])
        return self.proj(out)
