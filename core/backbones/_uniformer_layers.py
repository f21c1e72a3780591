"""UniFormer's layers of images alone: windowed attention, overlapping halving of maps."""

from __future__ import annotations

from torch import Tensor, nn

from core.layers import windows
from core.mixers.attention import SelfAttention


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


class OverlappingMerging(nn.Module):
    """3x3 convolution with stride 2 and batch norm: (B, H, W, C) -> (B, ceil(H / 2), ceil(W / 2), out)."""

    def __init__(self, dim: int, out: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(dim, out, 3, stride=2, padding=1), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x.permute(0, 3, 1, 2))
        return y.permute(0, 2, 3, 1)
