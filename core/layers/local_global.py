"""UniFormer's blocks, of images and of clips: convolution in small neighbourhoods, attention over the whole map.

Papers: arXiv 2201.09450 (images), arXiv 2201.04676 (clips). Maps are channels-last, (B, H, W, C) with `axes` 2 and
(B, T, H, W, C) with 3; below, (B, ..., C) stands for either.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from core.layers.convs import convolve, scale_and_shift
from core.layers.linear import Fused, Linear, linear
from core.layers.residual import Block, DropPath, LayerScale

Norm = nn.BatchNorm2d | nn.BatchNorm3d

_CONVS: dict[int, type[nn.Conv2d] | type[nn.Conv3d]] = {2: nn.Conv2d, 3: nn.Conv3d}
_NORMS: dict[int, type[Norm]] = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_LAST = {2: torch.channels_last, 3: torch.channels_last_3d}


class PositionConv(nn.Module):
    """x + depthwise convolution of x over 3 cells an axis, (B, ..., C) in and out ("dynamic position encoding")."""

    def __init__(self, dim: int, axes: int = 2) -> None:
        super().__init__()
        self.conv = _CONVS[axes](dim, dim, 3, padding=1, groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        near = convolve(self.conv, x)
        return near.add_(x) if near.dtype == x.dtype else near + x  # the convolution's own output, held by nobody else


def normed_linear(norm: nn.Module, layer: nn.Linear, x: Tensor, activation: Fused = "none") -> Tensor:
    """activation(layer(norm(x))) on channels-last maps; outside training a batch norm is part of the weights.

    Args:
        norm: batch norm over the channels, or Identity where it is already folded.
        layer: the linear map that alone reads the norm.
        x: (B, ..., C).
        activation: after the layer.
    """
    if isinstance(norm, nn.Identity) or norm.training:
        x = x if isinstance(norm, nn.Identity) else norm(x.movedim(-1, 1)).movedim(1, -1)
        return linear(x, layer.weight, layer.bias, activation)
    scale, shift = scale_and_shift(cast(Norm, norm))
    return linear(x, layer.weight * scale, torch.mv(layer.weight, shift) + layer.bias, activation)


class LocalMixer(nn.Module):
    """Batch norm, 1x1, depthwise 5x5, 1x1 convolution, no activation: (B, ..., C) in and out."""

    fusable = (("norm", "pointwise1"),)

    def __init__(self, dim: int, axes: int = 2) -> None:
        super().__init__()
        self.norm = _NORMS[axes](dim)
        self.pointwise1 = Linear(dim, dim)
        self.depthwise = _CONVS[axes](dim, dim, 5, padding=2, groups=dim)
        self.pointwise2 = Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        x = normed_linear(self.norm, self.pointwise1, x)
        return self.pointwise2(convolve(self.depthwise, x))


class LocalMLP(nn.Module):
    """Batch norm, linear, exact GELU, linear over channels: (B, ..., C) in and out."""

    fusable = (("norm", "fc1"),)

    def __init__(self, dim: int, *, ratio: float, axes: int = 2) -> None:
        super().__init__()
        self.norm = _NORMS[axes](dim)
        self.fc1 = Linear(dim, int(dim * ratio))
        self.fc2 = Linear(int(dim * ratio), dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(normed_linear(self.norm, self.fc1, x, "gelu"))


class LocalBlock(nn.Module):
    """Block of the shallow stages: positions, local mixing, MLP; (B, ..., C) in and out."""

    def __init__(
        self, dim: int, *, mlp_ratio: float, drop_path: float, layer_scale: float | None, axes: int = 2
    ) -> None:
        super().__init__()
        self.position = PositionConv(dim, axes)
        self.token_mixer = LocalMixer(dim, axes)
        self.channel_mixer = LocalMLP(dim, ratio=mlp_ratio, axes=axes)
        self.scale1 = nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale)
        self.scale2 = nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = self.position(x)
        x = x + self.drop_path(self.scale1(self.token_mixer(x)))
        return x + self.drop_path(self.scale2(self.channel_mixer(x)))


class GlobalBlock(Block):
    """Block of the deep stages: positions, attention, MLP; (B, ..., C) in and out."""

    def __init__(
        self, dim: int, token_mixer: nn.Module, channel_mixer: nn.Module, *, drop_path: float,
        layer_scale: float | None = None, axes: int = 2,
    ) -> None:  # fmt: skip
        super().__init__(dim, token_mixer, channel_mixer, drop_path=drop_path, layer_scale=layer_scale, norm=block_norm)
        self.position = PositionConv(dim, axes)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.position(x))


def block_norm(dim: int) -> nn.LayerNorm:
    """LayerNorm of blocks and of dense levels; patch embeddings have 1e-5."""
    return nn.LayerNorm(dim, eps=1e-6)


class Merging(nn.Module):
    """2x2 convolution with stride 2 and LayerNorm: (B, ..., H, W, C) -> (B, ..., floor(H / 2), floor(W / 2), out).

    Args:
        dim: channels.
        out: channels after.
        axes: 3 for clips, whose time stays as long as it is.
        frames: of a clip that the convolution sees at once, an odd number; there are zeros before and after the clip.
    """

    def __init__(self, dim: int, out: int, *, axes: int = 2, frames: int = 1) -> None:
        super().__init__()
        self.frames = frames
        conv: nn.Conv2d | nn.Conv3d
        if axes == 2:
            conv = nn.Conv2d(dim, out, 2, stride=2)
        else:
            conv = nn.Conv3d(dim, out, (frames, 2, 2), stride=(1, 2, 2), padding=(frames // 2, 0, 0))
        self.conv = conv.to(memory_format=_LAST[axes])  # type: ignore[call-overload]
        self.norm = nn.LayerNorm(out)

    def forward(self, x: Tensor) -> Tensor:
        if self.frames > 1:
            return self.norm(convolve(self.conv, x))
        *lead, H, W, C = x.shape
        h, w = H // 2, W // 2
        cells = x[..., : 2 * h, : 2 * w, :].reshape(-1, h, 2, w, 2, C).transpose(2, 3).reshape(*lead, h, w, 4 * C)
        weight = self.conv.weight.flatten(2).transpose(1, 2).flatten(1)  # cells do not overlap: one matrix product
        return self.norm(linear(cells, weight, self.conv.bias))


class OverlappingStem(nn.Module):
    """Two convolutions over 3 cells an axis: (B, C, H, W) -> (B, ceil(H / 4), ceil(W / 4), dim), rounded up each time.

    Args:
        in_channels: of the image or clip.
        dim: channels after.
        strides: of the two convolutions, per axis: as many as the image or clip has.
    """

    def __init__(self, in_channels: int, dim: int, strides: Sequence[tuple[int, ...]] = ((2, 2), (2, 2))) -> None:
        super().__init__()
        half, axes = dim // 2, len(strides[0])
        conv: Any = _CONVS[axes]
        norm = _NORMS[axes]
        self.layout = _LAST[axes]
        self.layers = nn.Sequential(
            conv(in_channels, half, 3, stride=strides[0], padding=1), norm(half), nn.GELU(),
            conv(half, dim, 3, stride=strides[1], padding=1), norm(dim),
        )  # fmt: skip

    def forward(self, image: Tensor) -> Tensor:
        x: Tensor = self.layers(image.contiguous(memory_format=self.layout))
        return x.movedim(1, -1)
