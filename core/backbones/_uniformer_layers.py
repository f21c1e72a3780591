"""UniFormer's layers: position convolution, local and global mixing, the ways into a stage."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from core.layers import windows
from core.layers.convs import convolve, scale_and_shift
from core.layers.linear import Fused, Linear, linear
from core.layers.residual import Block, DropPath, LayerScale
from core.mixers.attention import SelfAttention


class PositionConv(nn.Module):
    """x + depthwise 3x3 convolution of x, (B, H, W, C) in and out (arXiv 2201.09450, "dynamic position encoding")."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        near = convolve(self.conv, x)
        return near.add_(x) if near.dtype == x.dtype else near + x  # the convolution's own output, held by nobody else


def normed_linear(norm: nn.Module, layer: nn.Linear, x: Tensor, activation: Fused = "none") -> Tensor:
    """activation(layer(norm(x))) on channels-last maps; outside training a batch norm is part of the weights.

    Args:
        norm: BatchNorm2d over the channels, or Identity where it is already folded.
        layer: the linear map that alone reads the norm.
        x: (B, H, W, C).
        activation: after the layer.
    """
    if not isinstance(norm, nn.BatchNorm2d):
        return linear(norm(x), layer.weight, layer.bias, activation)
    if norm.training:
        x = norm(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return linear(x, layer.weight, layer.bias, activation)
    scale, shift = scale_and_shift(norm)
    return linear(x, layer.weight * scale, torch.mv(layer.weight, shift) + layer.bias, activation)


class LocalMixer(nn.Module):
    """Batch norm, 1x1, depthwise 5x5, 1x1 convolution, no activation: (B, H, W, C) in and out."""

    fusable = (("norm", "pointwise1"),)

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(dim)
        self.pointwise1 = Linear(dim, dim)
        self.depthwise = nn.Conv2d(dim, dim, 5, padding=2, groups=dim)
        self.pointwise2 = Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        x = normed_linear(self.norm, self.pointwise1, x)
        return self.pointwise2(convolve(self.depthwise, x))


class LocalMLP(nn.Module):
    """Batch norm, linear, exact GELU, linear over channels: (B, H, W, C) in and out."""

    fusable = (("norm", "fc1"),)

    def __init__(self, dim: int, *, ratio: float) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(dim)
        self.fc1 = Linear(dim, int(dim * ratio))
        self.fc2 = Linear(int(dim * ratio), dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(normed_linear(self.norm, self.fc1, x, "gelu"))


class LocalBlock(nn.Module):
    """Block of the shallow stages: positions, local mixing, MLP; (B, H, W, C) in and out."""

    def __init__(self, dim: int, *, mlp_ratio: float, drop_path: float, layer_scale: float | None) -> None:
        super().__init__()
        self.position = PositionConv(dim)
        self.token_mixer = LocalMixer(dim)
        self.channel_mixer = LocalMLP(dim, ratio=mlp_ratio)
        self.scale1 = nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale)
        self.scale2 = nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = self.position(x)
        x = x + self.drop_path(self.scale1(self.token_mixer(x)))
        return x + self.drop_path(self.scale2(self.channel_mixer(x)))


class GlobalBlock(Block):
    """Block of the deep stages: positions, attention, MLP; (B, H, W, C) in and out."""

    def __init__(
        self, dim: int, token_mixer: nn.Module, channel_mixer: nn.Module, *, drop_path: float, layer_scale: float | None
    ) -> None:
        super().__init__(dim, token_mixer, channel_mixer, drop_path=drop_path, layer_scale=layer_scale, norm=block_norm)
        self.position = PositionConv(dim)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.position(x))


def block_norm(dim: int) -> nn.LayerNorm:
    """LayerNorm of blocks and of dense levels; patch embeddings have 1e-5."""
    return nn.LayerNorm(dim, eps=1e-6)


class WindowedAttention(SelfAttention):
    """SelfAttention inside windows without shift, bias or mask, the same parameters: (B, H, W, C) in and out.

    The map is padded with zeros at the bottom and right after its norm, so padded cells are keys made of the biases.
    """

    def __init__(self, dim: int, heads: int, *, window: int, qkv_bias: bool) -> None:
        super().__init__(dim, heads, qkv_bias="full" if qkv_bias else "none")
        self.window = (window, window)

    def forward(self, x: Tensor) -> Tensor:
        x, where = windows.pad(x, self.window, "end")
        size = (x.shape[1], x.shape[2])
        x = super().forward(windows.partition(x, self.window))
        return windows.crop(windows.join(x, self.window, size), where)


class Merging(nn.Module):
    """2x2 convolution with stride 2 and LayerNorm: (B, H, W, C) -> (B, floor(H / 2), floor(W / 2), out)."""

    def __init__(self, dim: int, out: int) -> None:
        super().__init__()
        conv = nn.Conv2d(dim, out, 2, stride=2)
        self.conv = conv.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.norm = nn.LayerNorm(out)

    def forward(self, x: Tensor) -> Tensor:
        B, H, W, C = x.shape
        h, w = H // 2, W // 2
        cells = x[:, : 2 * h, : 2 * w].reshape(B, h, 2, w, 2, C).transpose(2, 3).reshape(B, h, w, 4 * C)
        weight = self.conv.weight.permute(0, 2, 3, 1).flatten(1)  # cells do not overlap: one matrix product
        return self.norm(linear(cells, weight, self.conv.bias))


class OverlappingStem(nn.Module):
    """Two 3x3 convolutions with stride 2: (B, C, H, W) -> (B, ceil(H / 4), ceil(W / 4), dim), rounded up each time."""

    def __init__(self, in_channels: int, dim: int) -> None:
        super().__init__()
        half = dim // 2
        self.layers = nn.Sequential(
            nn.Conv2d(in_channels, half, 3, stride=2, padding=1), nn.BatchNorm2d(half), nn.GELU(),
            nn.Conv2d(half, dim, 3, stride=2, padding=1), nn.BatchNorm2d(dim),
        )  # fmt: skip

    def forward(self, image: Tensor) -> Tensor:
        x: Tensor = self.layers(image.contiguous(memory_format=torch.channels_last))
        return x.permute(0, 2, 3, 1)


class OverlappingMerging(nn.Module):
    """3x3 convolution with stride 2 and batch norm: (B, H, W, C) -> (B, ceil(H / 2), ceil(W / 2), out)."""

    def __init__(self, dim: int, out: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(dim, out, 3, stride=2, padding=1), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x.permute(0, 3, 1, 2))
        return y.permute(0, 2, 3, 1)
