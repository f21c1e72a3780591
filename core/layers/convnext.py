"""The ConvNeXt block on channels-last maps (arXiv 2201.03545, 2.6)."""

from __future__ import annotations

from torch import Tensor, nn

from core.layers.convs import convolve
from core.layers.mlp import MLP
from core.layers.residual import DropPath, LayerScale


class ConvNeXtBlock(nn.Module):
    """x + scale * MLP(LayerNorm(depthwise 7x7 of x)): (B, H, W, C) -> the same.

    Args:
        dim: channels.
        ratio: inner width of the MLP over `dim`.
        drop_path: of the branch.
        layer_scale: start of the factors per channel; None for none.
    """

    def __init__(
        self, dim: int, *, ratio: float = 4.0, drop_path: float = 0.0, layer_scale: float | None = None
    ) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(dim, dim, 7, padding=3, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.channel_mixer = MLP(dim, ratio=ratio)
        self.scale = nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        y = self.channel_mixer(self.norm(convolve(self.depthwise, x)))
        return x + self.drop_path(self.scale(y))
