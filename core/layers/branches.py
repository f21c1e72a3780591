"""Layers that train as a sum of parallel branches, each with its batch norm, and are one layer in inference.

Papers: arXiv 2101.03697 (branches of convolutions), arXiv 2311.05707 (groups of several counts, FMViT's gMLP). In
evaluation both classes already run as the one layer; `merged()` answers that layer (see core.compression.fold).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.errors import SettingError
from core.layers.convs import scale_and_shift
from core.layers.linear import Linear, linear


class GroupedLinear(nn.Module):
    """Sum over g of BatchNorm(1x1 layer in g groups), and of BatchNorm(x) where nothing is in the way.

    Channels-last (B, H, W, dim) -> (B, H, W, out). A layer in g groups is a matrix of g blocks on the diagonal, so that
    the sum is one dense layer.

    Args:
        dim: channels.
        out: channels after.
        groups: group counts of the branches; they divide both widths.
    """

    def __init__(self, dim: int, out: int, groups: Sequence[int]) -> None:
        super().__init__()
        if not groups or any(g < 1 or dim % g or out % g for g in groups):
            raise SettingError(f"{dim} and {out} channels do not divide into groups of counts {tuple(groups)}")
        self.convs = nn.ModuleList(nn.Conv2d(dim, out, 1, groups=g, bias=False) for g in groups)
        self.norms = nn.ModuleList(nn.BatchNorm2d(out) for _ in groups)
        self.identity = nn.BatchNorm2d(dim) if dim == out else None

    def forward(self, x: Tensor) -> Tensor:
        return self.branches(x) if self.training else linear(x, *self.weights())

    def branches(self, x: Tensor) -> Tensor:
        """The sum as it is written, each norm with its own statistics."""
        y = x.permute(0, 3, 1, 2)
        outs = [norm(conv(y)) for conv, norm in zip(self.convs, self.norms, strict=True)]
        if self.identity is not None:
            outs.append(self.identity(y))
        out = outs[0]
        for other in outs[1:]:
            out = out + other
        return out.permute(0, 2, 3, 1)

    def weights(self) -> tuple[Tensor, Tensor]:
        """Weight (out, dim) and bias (out,) of the one layer that this is in evaluation."""
        weight, bias = [], []
        for conv, norm in zip(self.convs, self.norms, strict=True):
            scale, shift = scale_and_shift(norm)  # type: ignore[arg-type]
            weight.append(_dense(conv.weight.flatten(1), conv.groups) * scale[:, None])  # type: ignore[operator, arg-type]
            bias.append(shift)
        if self.identity is not None:
            scale, shift = scale_and_shift(self.identity)
            weight.append(scale.diag())
            bias.append(shift)
        return torch.stack(weight).sum(0), torch.stack(bias).sum(0)

    def merged(self, before: nn.BatchNorm2d | None = None) -> Linear:
        """The one layer, computed in float64; with a norm that comes before it inside."""
        exact = copy.deepcopy(self).double()
        with torch.no_grad():
            weight, bias = exact.weights()
            if before is not None:
                scale, shift = scale_and_shift(copy.deepcopy(before).double())
                weight, bias = weight * scale, bias + weight @ shift
        like = self.convs[0].weight
        assert isinstance(like, Tensor)
        out = Linear(weight.shape[1], weight.shape[0], device="meta")
        out.weight, out.bias = (nn.Parameter(v.to(like)) for v in (weight, bias))
        return out


class BranchedConv(nn.Module):
    """BatchNorm(3x3 in groups) + BatchNorm(1x1 in groups) + BatchNorm(x), (B, C, H, W) -> the same.

    Args:
        dim: channels.
        groups: of both convolutions; `dim` for depthwise ones.
    """

    def __init__(self, dim: int, groups: int) -> None:
        super().__init__()
        self.groups = groups
        self.conv = nn.Conv2d(dim, dim, 3, padding=1, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(dim)
        self.point = nn.Conv2d(dim, dim, 1, groups=groups, bias=False)
        self.norm_point, self.identity = nn.BatchNorm2d(dim), nn.BatchNorm2d(dim)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return self.branches(x)
        weight, bias = self.weights()
        return F.conv2d(x, weight, bias, padding=1, groups=self.groups)

    def branches(self, x: Tensor) -> Tensor:
        """The sum as it is written, each norm with its own statistics."""
        out: Tensor = self.norm(self.conv(x)) + self.norm_point(self.point(x)) + self.identity(x)
        return out

    def weights(self) -> tuple[Tensor, Tensor]:
        """Weight (C, C / groups, 3, 3) and bias (C,) of the one convolution that this is in evaluation."""
        scale, shift = scale_and_shift(self.norm)
        scale_point, shift_point = scale_and_shift(self.norm_point)
        scale_identity, shift_identity = scale_and_shift(self.identity)
        inside = self.conv.weight.shape[1]
        own = torch.eye(inside, dtype=scale.dtype, device=scale.device).repeat(self.groups, 1)
        centre = self.point.weight.flatten(1) * scale_point[:, None] + own * scale_identity[:, None]
        weight = self.conv.weight * scale[:, None, None, None] + F.pad(centre[:, :, None, None], (1, 1, 1, 1))
        return weight, shift + shift_point + shift_identity

    def merged(self) -> nn.Conv2d:
        """The one convolution, computed in float64."""
        exact = copy.deepcopy(self).double()
        with torch.no_grad():
            weight, bias = exact.weights()
        dim = len(bias)
        out = nn.Conv2d(dim, dim, 3, padding=1, groups=self.groups, device="meta")
        out.weight, out.bias = (nn.Parameter(v.to(self.norm.weight)) for v in (weight, bias))
        return out


def _dense(weight: Tensor, groups: int) -> Tensor:
    """Weights (out, dim / groups) of a layer in groups as a matrix (out, dim), zero outside of its blocks."""
    if groups == 1:
        return weight
    blocks = weight.unflatten(0, (groups, -1))
    on = torch.eye(groups, dtype=weight.dtype, device=weight.device)[:, None, :, None]
    return (blocks[:, :, None, :] * on).flatten(2).flatten(0, 1)
