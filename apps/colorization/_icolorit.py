"""iColoriT: a plain ViT over luminance and colour hints, with a head that colours each patch (arXiv 2207.06831).

Reference: pmh9960/iColoriT@8a02415a (MIT).
Differs: the body is core's ViT (one 4-channel patch convolution, query and value biases, a bias table per block); the
input is never written to; only a and b are averaged over the cells, since the full-resolution L is what the network
sees.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.backbones.vit import ViT, ViTConfig
from core.errors import SettingError, ShapeError
from core.layers.attend import attend, merge_heads
from core.layers.linear import Linear
from core.layers.patches import to_map

HEADS = 8  # of the locally restricted head, whatever the body's number


@dataclass(frozen=True)
class IColoriTConfig:
    size: int = 224  # side of the square image in pixels: the network takes this one only
    patch: int = 16  # side of a patch in pixels
    cell: int = 2  # side of a hint cell in pixels that is usual; a mask of another length says its own
    dim: int = 192
    depth: int = 12
    heads: int = 3
    mlp_ratio: float = 4.0
    head: Literal["cnn", "linear", "locattn"] = "cnn"  # what turns a token into the colours of its patch
    relative: bool = True  # relative position bias in every block
    average: bool = True  # a hint is the mean colour of its cell, else its pixels' own colours
    centred: bool = False  # 0.5 is subtracted from the channel that says where hints are
    drop_path: float = 0.0  # of the last block, linear from 0

    in_channels: ClassVar[int] = 3  # L', a', b'
    classes: ClassVar[None] = None  # it answers colours


class LocalAttention(nn.Module):
    """Attention of each token to the 3 x 3 tokens around it; its output projection is the head.

    Tokens (B, N, C), N = grid * grid -> (B, N, out). Query, key and value have no bias.
    """

    outside: Tensor

    def __init__(self, dim: int, out: int, grid: int) -> None:
        super().__init__()
        if dim < HEADS:
            raise SettingError(f"head 'locattn' has {HEADS} heads, the width is {dim}")
        self.width = dim // HEADS
        self.qkv = Linear(dim, 3 * HEADS * self.width, bias=False)
        self.proj = Linear(HEADS * self.width, out)
        y, x = torch.arange(grid * grid) // grid, torch.arange(grid * grid) % grid
        near = ((y[:, None] - y).abs() <= 1) & ((x[:, None] - x).abs() <= 1)
        # Added to the logits: the same softmax as the authors' most negative float, and it survives any precision.
        self.register_buffer("outside", torch.zeros(near.shape).masked_fill(~near, -math.inf), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        q, k, v = self.qkv(tokens).unflatten(-1, (3, HEADS, self.width)).permute(2, 0, 3, 1, 4).unbind(0)
        y: Tensor = self.proj(merge_heads(attend(q, k, v, self.outside)))
        return y


class PerToken(nn.Module):
    """One linear layer: (B, N, C) -> (B, N, out)."""

    def __init__(self, dim: int, out: int) -> None:
        super().__init__()
        self.out = Linear(dim, out)

    def forward(self, tokens: Tensor) -> Tensor:
        y: Tensor = self.out(tokens)
        return y


class Convolution(nn.Module):
    """3 x 3 convolution over the map of tokens, its border mirrored: (B, N, C) -> (B, N, out)."""

    def __init__(self, dim: int, out: int, grid: int) -> None:
        super().__init__()
        if grid < 2:
            raise SettingError("head 'cnn' mirrors the border, which takes at least 2 x 2 patches")
        self.grid = grid
        self.out = nn.Conv2d(dim, out, 3, padding=1, padding_mode="reflect")

    def forward(self, tokens: Tensor) -> Tensor:
        y: Tensor = self.out(to_map(tokens, self.grid, self.grid))
        return y.flatten(2).transpose(1, 2)


class IColoriT(nn.Module):
    """Colours from luminance and hints: `forward(lab, mask)` -> a', b'.

    Attributes:
        size: side of the image in pixels; no other is taken.
        patch: side of a patch.
        cells: hint cells along a side, at the usual cell.
    """

    def __init__(self, config: IColoriTConfig) -> None:
        super().__init__()
        c = self.config = config
        if c.size % c.patch or c.size % c.cell:
            raise SettingError(f"iColoriT: patch {c.patch} and cell {c.cell} must divide the image's {c.size} pixels")
        self.size, self.patch, self.cells, self.grid = c.size, c.patch, c.size // c.cell, c.size // c.patch
        self.backbone = ViT(
            ViTConfig(
                in_channels=4, image_size=c.size, patch=c.patch, dim=c.dim, depth=c.depth, heads=c.heads,
                mlp_ratio=c.mlp_ratio, class_token=False, positions="sincos_1d", resize="refuse", relative=c.relative,
                qkv_bias="qv", drop_path=c.drop_path, pool="mean_tokens",
            )
        )  # fmt: skip
        out = 2 * c.patch**2
        if c.head == "cnn":
            self.head: nn.Module = Convolution(c.dim, out, self.grid)
        elif c.head == "linear":
            self.head = PerToken(c.dim, out)
        else:
            self.head = LocalAttention(c.dim, out, self.grid)
        self.apply(_initialise)

    def forward(self, lab: Tensor, mask: Tensor | None = None) -> Tensor:
        """Colour of every pixel.

        Args:
            lab: (B, 3, size, size), L' = (L - 50) / 100, a' = a / 110, b' = b / 110; a' and b' count at hints only.
            mask: (B, L) bool, True where a cell has NO hint; cells row by row, L a square, cell side = size / sqrt(L).
                None: no hint anywhere.

        Returns:
            a', b' (B, 2, size, size), within -1..1.

        Raises:
            ShapeError: an image of another size, a mask whose cells do not divide it.
        """
        return self.from_planes(self.planes(lab, mask))

    def from_planes(self, planes: Tensor) -> Tensor:
        """As `forward`, from what `planes` gives, (B, 4, size, size)."""
        return self.unfolded(self.patches(self.backbone.tokens(planes)))

    def scales(self, lab: Tensor) -> list[Tensor]:
        """What it answers without hints, by resolution: here one."""
        return [self(lab)]

    def planes(self, lab: Tensor, mask: Tensor | None = None) -> Tensor:
        """What the network sees, (B, 4, size, size): L', a' and b' at hints (else 0), 1 at hints and 0 elsewhere."""
        size = self.size
        if mask is None:
            mask = torch.ones(lab.shape[0], self.cells**2, dtype=torch.bool, device=lab.device)
        if lab.ndim != 4 or lab.shape[1] != 3 or tuple(lab.shape[2:]) != (size, size):
            raise ShapeError(f"this network takes Lab images (B, 3, {size}, {size}), got {tuple(lab.shape)}")
        cells = math.isqrt(mask.shape[-1])
        if mask.ndim != 2 or mask.shape[0] != lab.shape[0] or not cells or cells**2 != mask.shape[1] or size % cells:
            raise ShapeError(
                f"hints of {lab.shape[0]} images of {size} pixels are a mask ({lab.shape[0]}, {self.cells**2}) "
                f"(or of other square cells that divide the side), got {tuple(mask.shape)}"
            )
        hidden = mask.bool().reshape(-1, 1, cells, cells)
        colour = lab[:, 1:]
        if self.config.average:
            # Bilinear without smoothing: the mean of a cell of 2 x 2, of larger ones only of the pixels in its middle.
            colour = F.interpolate(colour, size=(cells, cells), mode="bilinear", align_corners=False)
            colour = _enlarged(colour.masked_fill(hidden, 0), size)
            hidden = _enlarged(hidden, size)
        else:
            hidden = _enlarged(hidden, size)
            colour = colour.masked_fill(hidden, 0)
        there = (~hidden).to(lab.dtype)
        return torch.cat([lab[:, :1], colour, there - 0.5 if self.config.centred else there], dim=1)

    def patches(self, tokens: Tensor) -> Tensor:
        """Tokens after the last norm (B, N, C) -> colours of their patches (B, N, 2 patch^2), (row, column, a or b)."""
        y: Tensor = self.head(tokens)
        return y.tanh()

    def unfolded(self, patches: Tensor) -> Tensor:
        """(B, N, 2 patch^2) -> (B, 2, size, size)."""
        g, p = self.grid, self.patch
        return patches.reshape(-1, g, g, p, p, 2).permute(0, 5, 1, 3, 2, 4).reshape(-1, 2, self.size, self.size)


class FromPlanes(nn.Module):
    """The network over one tensor, for ONNX: planes (B, 4, size, size) as `IColoriT.planes` makes them -> a', b'."""

    def __init__(self, network: IColoriT) -> None:
        super().__init__()
        self.network = network

    def forward(self, planes: Tensor) -> Tensor:
        return self.network.from_planes(planes)


def _enlarged(x: Tensor, size: int) -> Tensor:
    """(B, C, n, n) -> (B, C, size, size), every value repeated."""
    n, times = x.shape[-1], size // x.shape[-1]
    whole = x[:, :, :, None, :, None].expand(-1, -1, n, times, n, times)
    return whole.reshape(*x.shape[:2], size, size)


def _initialise(module: nn.Module) -> None:
    """The card's start: Xavier for linear layers, tables cut at +-0.02; convolutions keep torch's."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    table = getattr(module, "bias_table", None)
    if isinstance(table, nn.Parameter):
        nn.init.trunc_normal_(table, std=0.02, a=-0.02, b=0.02)
