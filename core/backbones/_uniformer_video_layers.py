"""Layers of UniFormer that clips alone have: their embedding, attention divided into time and space."""

from __future__ import annotations

from torch import Tensor, nn

from core.layers.local_global import GlobalBlock, block_norm


class ClipEmbedding(nn.Module):
    """Clip (B, C, T, H, W) -> (B, ceil(T / 2), floor(H / 4), floor(W / 4), dim): a convolution and LayerNorm."""

    def __init__(self, in_channels: int, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(in_channels, dim, (3, 4, 4), stride=(2, 4, 4), padding=(1, 0, 0))
        self.norm = nn.LayerNorm(dim)

    def forward(self, clip: Tensor) -> Tensor:
        return self.norm(self.conv(clip).movedim(1, -1))


class SplitBlock(GlobalBlock):
    """Positions, attention over time, attention over space, MLP (divided as in arXiv 2102.05095); (B, T, H, W, C).

    Attention over space sees what attention over time gave, but is added to the map from before it. Drop path leaves
    out attention over time of single positions, attention over space of single frames, the MLP of whole clips.

    Args:
        dim: channels.
        time: takes the sequences of all positions, (B * H * W, T, C).
        space: takes the frames, (B * T, H * W, C).
        channel_mixer: takes the map.
        drop_path: of all three.
    """

    def __init__(
        self, dim: int, time: nn.Module, space: nn.Module, channel_mixer: nn.Module, *, drop_path: float
    ) -> None:
        super().__init__(dim, space, channel_mixer, drop_path=drop_path, axes=3)
        self.norm_time, self.time_mixer = block_norm(dim), time

    def forward(self, x: Tensor) -> Tensor:
        x = self.position(x)
        B, T, H, W, C = x.shape
        tracks = x.permute(0, 2, 3, 1, 4).reshape(B * H * W, T, C)
        tracks = tracks + self.drop_path(self.time_mixer(self.norm_time(tracks)))
        frames = tracks.view(B, H * W, T, C).transpose(1, 2).reshape(B * T, H * W, C)
        x = x + self.drop_path(self.token_mixer(self.norm1(frames))).view(B, T, H, W, C)
        return x + self.drop_path(self.channel_mixer(self.norm2(x)))
