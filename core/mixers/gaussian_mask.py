"""Attention scores times a learned function of distance (Gaussian mixture mask, arXiv 2309.05375).

With s_ij the scaled product of query i and key j, and d_ij their distance on the grid, a head's scores become

    s_ij * sum_k alpha_k G_ij ** (1 / (sigma_k ** 2 + 1e-5)),   G_ij = exp(-d_ij ** 2) ** 0.5

before any bias and before the softmax: a far token's score tends to 0, not to minus infinity, so it keeps some weight.
`with_masks` lays such masks on a network that exists.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.errors import SettingError, ShapeError
from core.layers import windows
from core.layers.attend import merge_heads
from core.layers.kept import Kept
from core.mixers.attention import SelfAttention, Tap
from core.mixers.soft_split import ValueSkipAttention
from core.mixers.talking_heads import TalkingHeads
from core.mixers.window import WindowAttention

MaskKind = Literal["gaussian", "elements"]
Host = TypeVar("Host", bound=nn.Module)

SOFTEN = 1e-5  # added to sigma ** 2; part of the definition


def base(grid: tuple[int, int]) -> Tensor:
    """G for every distance in rows and columns, (h * w,) float32, entry dy * w + dx.

    exp comes first and underflows, as published: from a squared distance of 104 on it is 0, which no sigma undoes, and
    from 88 on it has the few digits of a subnormal number.
    """
    y, x = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in grid), indexing="ij")
    squared = (y.square() + x.square()).reshape(-1)
    unit = 2.0**-149  # the least float32; rounding to it by hand does not depend on how subnormals are treated
    exact = torch.exp(-squared)
    coarse = (exact / unit).round() * unit
    return torch.where(squared < 87, exact.float().double(), coarse).sqrt().float()


def offsets(grid: tuple[int, int]) -> Tensor:
    """Entry of `base` for every pair of cells i, j, flat (N * N,)."""
    h, w = grid
    y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    y, x = y.reshape(-1), x.reshape(-1)
    return ((y[:, None] - y).abs() * w + (x[:, None] - x).abs()).reshape(-1)


def pairs(grid: tuple[int, int]) -> Tensor:
    """G for every pair of cells, (N, N)."""
    cells = grid[0] * grid[1]
    return base(grid)[offsets(grid)].view(cells, cells)


class GaussianMask(nn.Module):
    """One factor per head and pair of cells of a grid, (heads, N, N), N = h * w, cells row-major.

    Args:
        heads: attention heads.
        grid: rows and columns.
        kernels: Gaussians in the mixture.

    `sigma` and `alpha` are (kernels, heads, 1, 1) and start at 10 + 10 n and 2 n, n standard normal. The sign of sigma
    does not matter, alpha may be negative; on the diagonal the factor is the sum of the alphas.
    """

    log: Tensor
    reach: Tensor
    index: Tensor

    def __init__(self, heads: int, grid: tuple[int, int], kernels: int = 5) -> None:
        super().__init__()
        self.heads, self.cells = heads, grid[0] * grid[1]
        self.sigma = nn.Parameter(10 + 10 * torch.randn(kernels, heads, 1, 1))
        self.alpha = nn.Parameter(2 * torch.randn(kernels, heads, 1, 1))
        # G ** p as exp(p log G), with the zeros of G apart: the gradient of 0 ** p has log 0 times 0 in it.
        G = base(grid)
        self.register_buffer("log", G.double().clamp_min(2.0**-149).log().float(), persistent=False)
        self.register_buffer("reach", (G > 0).float(), persistent=False)
        self.register_buffer("index", offsets(grid), persistent=False)
        self._kept = Kept()

    def forward(self) -> Tensor:
        return self._kept(self._factors, (self.sigma, self.alpha, self.log))

    def _factors(self) -> Tensor:
        exponent = (self.sigma.square() + SOFTEN).reciprocal().flatten(1)  # (kernels, heads)
        alpha = self.alpha.flatten(1)[..., None]
        # Over the h * w distances that there are, not over all pairs.
        factors = (alpha * (exponent[..., None] * self.log).exp()).sum(0) * self.reach
        return factors.index_select(1, self.index).view(self.heads, self.cells, self.cells)


class ElementMask(nn.Module):
    """The paper's comparison: one trained number per pair of cells, shared by the heads, (1, N, N); it starts at 0."""

    def __init__(self, grid: tuple[int, int]) -> None:
        super().__init__()
        self.cells = grid[0] * grid[1]
        self.weight = nn.Parameter(torch.zeros(self.cells, self.cells))

    def forward(self) -> Tensor:
        return self.weight[None]


Mask = GaussianMask | ElementMask


def times(scores: Tensor, mask: Mask, prefix: int = 0) -> Tensor:
    """Scores (B, heads, T, T), times the mask; rows and columns of the first `prefix` tokens stay as they are.

    Without gradients the scores are changed in place.

    Raises:
        ShapeError: where T is not the mask's cells and the prefix.
    """
    if tuple(scores.shape[-2:]) != (mask.cells + prefix,) * 2:
        raise ShapeError(
            f"the mask was built for {mask.cells} tokens and a prefix of {prefix}, attention sees {scores.shape[-1]}"
        )
    factors = mask().to(scores.dtype)
    if prefix:
        factors = F.pad(factors, (prefix, 0, prefix, 0), value=1.0)
    return scores * factors if torch.is_grad_enabled() else scores.mul_(factors)


def masked_attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Mask, bias: Tensor | None = None, *, scale: float, prefix: int = 0,
    dropout: float = 0.0,
) -> Tensor:  # fmt: skip
    """softmax(mask * (scale q k^T) + bias) v; q, k, v (B, heads, T, d), bias broadcastable to (B, heads, T, T)."""
    scores = times(torch.matmul(q * scale, k.transpose(-2, -1)), mask, prefix)
    if bias is not None:
        scores += bias
    weights = scores.softmax(-1)
    return torch.matmul(F.dropout(weights, dropout) if dropout else weights, v)


@dataclass
class MaskedTap(Tap):
    """`Tap` of a layer whose scores were multiplied by `mask`, (heads or 1, N, N)."""

    mask: Tensor | None = None

    @property
    def weights(self) -> Tensor:
        """Attention after the softmax, (B, heads, N, N)."""
        logits = self.q @ self.k.transpose(-2, -1) * self.scale
        logits = logits if self.mask is None else logits * self.mask
        return (logits if self.bias is None else logits + self.bias).softmax(-1)


class MaskedSelfAttention(SelfAttention):
    """`SelfAttention` with a mask on its scores; the layer given lends its parameters."""

    def __init__(self, layer: SelfAttention, mask: Mask, prefix: int = 0) -> None:
        super().__init__(
            layer.qkv.in_features, layer.heads, head_dim=layer.head_dim, dropout=layer.dropout,
            proj_dropout=layer.proj_dropout.p,
        )  # fmt: skip
        self.qkv, self.proj, self.scale = layer.qkv, layer.proj, layer.scale
        self.q_bias, self.v_bias, self.bias_table = layer.q_bias, layer.v_bias, layer.bias_table
        if layer.bias_table is not None:
            self.positions = layer.positions
            self.register_buffer("bias_index", layer.bias_index, persistent=False)
        self.mask, self.prefix = mask, prefix

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.project(x.flatten(1, -2))
        bias = self.bias()
        if self.keep_tap:
            factors = F.pad(self.mask(), (self.prefix, 0, self.prefix, 0), value=1.0)
            self.tap = MaskedTap(q, k, v, bias, self.scale, factors)
        dropout = self.dropout if self.training else 0.0
        out = masked_attend(q, k, v, self.mask, bias, scale=self.scale, prefix=self.prefix, dropout=dropout)
        out = self.proj_dropout(self.proj(merge_heads(out)))
        return out.reshape(*x.shape[:-1], out.shape[-1])


class MaskedWindowAttention(WindowAttention):
    """`WindowAttention` with a mask, whose grid is the window, on each window's scores; parameters are lent."""

    def __init__(self, layer: WindowAttention, mask: Mask) -> None:
        super().__init__(
            layer.qkv.in_features, layer.heads, window=layer.window, shift=layer.shift,
            shift_single=layer.shift_single, scale=layer.scale, dropout=layer.dropout,
            proj_dropout=layer.proj_dropout.p,
        )  # fmt: skip
        self.qkv, self.proj, self.bias_table, self.mask = layer.qkv, layer.proj, layer.bias_table, mask

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, shift: int, grid: tuple[int, int]) -> Tensor:
        scores = times(torch.matmul(q * self.scale, k.transpose(-2, -1)), self.mask)
        scores += self.bias().to(q.dtype)
        if shift and not torch.compiler.is_compiling():
            windows.add_shift_mask_(scores, grid, self.masks.to(q.dtype))
        elif shift:  # the compiler of torch 2.11 fails on the sliced form
            full = windows.full_shift_mask(grid, self.masks.to(q.dtype))  # (windows, 1, T, T), the same for each image
            scores = (scores.unflatten(0, (-1, full.shape[0])) + full).flatten(0, 1)
        weights = scores.softmax(-1)
        return torch.matmul(F.dropout(weights, self.dropout) if self.dropout and self.training else weights, v)


class MaskedValueSkipAttention(ValueSkipAttention):
    """`ValueSkipAttention` (T2T's token transformers) with a mask on its scores; parameters are lent."""

    def __init__(self, layer: ValueSkipAttention, mask: Mask) -> None:
        super().__init__(layer.qkv.in_features, layer.proj.in_features)
        self.qkv, self.proj, self.mask = layer.qkv, layer.proj, mask

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).flatten(1, 2)[:, None].chunk(3, -1)  # each (B, 1, H * W, dim)
        y = v + self.proj(masked_attend(q, k, v, self.mask, scale=self.scale))
        return y.reshape(*x.shape[:-1], -1)


class MaskedTalkingHeads(TalkingHeads):
    """`TalkingHeads` with a mask on its scores, before heads are mixed; parameters are lent."""

    def __init__(self, layer: TalkingHeads, mask: Mask) -> None:
        super().__init__(layer.q.in_features, layer.heads, head_dim=layer.head_dim)
        self.q, self.kv, self.proj = layer.q, layer.kv, layer.proj
        self.mix_scores, self.mix_weights, self.mask = layer.mix_scores, layer.mix_weights, mask

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        return times(super().scores(q, k), self.mask)


def with_masks(
    host: Host, grid: tuple[int, int] | None = None, *, kind: MaskKind = "gaussian", kernels: int = 5, prefix: int = 0
) -> Host:
    """Give every attention layer of a network (or of one of its stages) a mask of its own; the network is changed.

    Args:
        host: has layers of the kinds SelfAttention, WindowAttention, ValueSkipAttention or TalkingHeads. Layers of
            derived kinds stay as they are.
        grid: rows and columns of the tokens that attend to each other; layers of windows have theirs.
        kind: "gaussian", or "elements" for one free number per pair.
        kernels: Gaussians in the mixture.
        prefix: tokens before the grid, whose scores are not masked.

    Raises:
        SettingError: no layer of these kinds, or no grid for those that need one.

    >>> tuple(with_masks(nn.Sequential(SelfAttention(8, 2)), (4, 4))[0].mask().shape)
    (2, 16, 16)
    """

    def mask(heads: int, cells: tuple[int, int] | None) -> Mask:
        if cells is None:
            raise SettingError("a mask for attention over the whole map needs its grid, (rows, columns)")
        return GaussianMask(heads, cells, kernels) if kind == "gaussian" else ElementMask(cells)

    found = 0
    for parent in list(host.modules()):
        for name, layer in list(parent.named_children()):
            new: nn.Module
            if type(layer) is WindowAttention:
                new = MaskedWindowAttention(layer, mask(layer.heads, layer.window))
            elif type(layer) is SelfAttention:
                new = MaskedSelfAttention(layer, mask(layer.heads, grid), prefix)
            elif type(layer) is TalkingHeads:
                new = MaskedTalkingHeads(layer, mask(layer.heads, grid))
            elif type(layer) is ValueSkipAttention:
                new = MaskedValueSkipAttention(layer, mask(1, grid))
            else:
                continue
            setattr(parent, name, new.to(next(layer.parameters())).train(layer.training))
            found += 1
    if not found:
        raise SettingError(f"{type(host).__name__} has no attention layer that a mask could go on")
    return host
