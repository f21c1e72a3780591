"""Swin-UMamba and Swin-UMamba-D: U-Nets whose encoder is VMamba-Tiny of the first generation.

Paper: arXiv 2402.03302. Reference: JiarunLiu/Swin-UMamba@2c1f72e (Apache-2.0); residual and up blocks as in MONAI
1.6.1. Differs: Swin-UMamba-D refuses sides that are 1 to 3 pixels over a multiple of 32, where the published network
drops them and answers smaller than the image; `drop_remainder` brings that back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from core.backbones.vmamba import VMamba, VMambaConfig, VSSBlock
from core.errors import SettingError, ShapeError, expect_shape
from core.layers.linear import Linear, linear
from core.layers.patches import to_channels_first
from core.layers.unet import SLOPE, PatchExpanding, ResidualConvs, UpBlock

LEVELS = 4  # of the encoder


@dataclass(frozen=True)
class SwinUMambaConfig:
    in_channels: int = 1
    classes: int = 14  # background included
    deep_supervision: bool = True  # in training, logits at four scales
    widths: tuple[int, ...] = (48, 96, 192, 384, 768)  # of skips and decoder, full size to 1/16; the stem has the first
    dims: tuple[int, ...] = (96, 192, 384, 768)  # of the encoder, 1/4 to 1/32
    depths: tuple[int, ...] = (2, 2, 9, 2)
    state: int = 16  # of each scanned channel
    drop_path: float = 0.2  # of the encoder's last block; linear from 0


@dataclass(frozen=True)
class SwinUMambaDConfig:
    in_channels: int = 1
    classes: int = 14  # background included
    deep_supervision: bool = True  # in training, logits at four scales
    patch: int = 4  # pixels
    dims: tuple[int, ...] = (96, 192, 384, 768)  # of encoder and decoder, 1/4 to 1/32
    depths: tuple[int, ...] = (2, 2, 9, 2)
    state: int = 16  # of each scanned channel
    decoder_depth: int = 2  # blocks a level
    decoder_state: int = 16
    drop_path: float = 0.2  # of the encoder's last block; linear from 0
    decoder_drop_path: float = 0.2  # of the decoder's first block; linear to 0
    drop_remainder: bool = False  # take sides up to patch - 1 over a multiple; logits are then smaller, as published


class _Network(nn.Module):
    """What both share: the choice between one answer and one per scale, freezing, initialisation."""

    multiple = 32
    smallest = 32
    encoder: VMamba
    deep_supervision: bool

    def scales(self, image: Tensor) -> list[Tensor]:
        raise NotImplementedError

    def finest(self, image: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        return self.scales(image) if self.training and self.deep_supervision else self.finest(image)

    def freeze_encoder(self, frozen: bool = True) -> None:
        """Stop, or let again, the training of the encoder; its patch embedding always trains (first ten epochs)."""
        self.encoder.requires_grad_(not frozen)
        self.encoder.stages[0].merge.requires_grad_(True)

    @torch.no_grad()
    def _initialise(self) -> None:
        """Kaiming-normal for every convolution, the encoder's too, as nnU-Net does after construction."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_normal_(module.weight, a=SLOPE)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)


class SwinUMamba(_Network):
    """Image (B, C, H, W) -> logits (B, classes, H, W); H and W are multiples of 32, at least 32.

    In training with deep supervision a list of four, finest first: full size, 1/2, 1/4, 1/8. All heads are always in
    the state dict; `scales(image)` gives the list in any mode, `finest(image)` the first of it.

    Raises:
        ShapeError: another number of channels, or sides that are no multiples of 32 (nothing is padded inside).
    """

    def __init__(self, config: SwinUMambaConfig) -> None:
        super().__init__()
        c = self.config = config
        _four("swin_umamba", c.dims, c.depths)
        if len(c.widths) != LEVELS + 1:
            raise SettingError(f"swin_umamba has five skip widths, full size to 1/16, got {len(c.widths)}")
        self.deep_supervision = c.deep_supervision
        self.stem = nn.Sequential(
            nn.Conv2d(c.in_channels, c.widths[0], 7, 2, 3), nn.InstanceNorm2d(c.widths[0], affine=True)
        )
        self.encoder = VMamba(VMambaConfig(c.widths[0], 2, c.dims, c.depths, c.state, c.drop_path))
        sources = (c.in_channels, c.widths[0], *c.dims[:-1])  # image, stem, stages 1 to 3
        self.skips = nn.ModuleList(ResidualConvs(a, b) for a, b in zip(sources, c.widths, strict=True))
        up = (*c.widths, c.dims[-1])
        self.ups = nn.ModuleList(UpBlock(up[i + 1], up[i]) for i in reversed(range(LEVELS + 1)))  # deepest first
        self.last = ResidualConvs(c.widths[0], c.widths[0])
        self.heads = nn.ModuleList(nn.Conv2d(w, c.classes, 1) for w in c.widths[:-1])  # finest first
        self._initialise()

    def features(self, image: Tensor) -> list[Tensor]:
        """The decoder's maps (B, widths[i], H / 2^i, W / 2^i) of the four heads, finest first."""
        n = expect_shape(image, "B C H W", C=self.config.in_channels)
        if n["H"] % 32 or n["W"] % 32 or not min(n["H"], n["W"]):
            raise ShapeError(
                f"swin_umamba takes sides that are multiples of 32, got {n['H']} x {n['W']}; pad the image"
            )
        half = self.stem(image)
        pyramid = self.encoder(half)
        x, found = pyramid[-1], []
        for i, up in zip(reversed(range(LEVELS + 1)), self.ups, strict=True):
            source = image if i == 0 else half if i == 1 else pyramid[i - 2]
            x = up(x, self.skips[i](source))
            found.append(x)
        return [self.last(x), *reversed(found[1:-1])]

    def scales(self, image: Tensor) -> list[Tensor]:
        return [head(x) for head, x in zip(self.heads, self.features(image), strict=True)]

    def finest(self, image: Tensor) -> Tensor:
        return self.heads[0](self.features(image)[0])


class SwinUMambaD(_Network):
    """Image (B, C, H, W) -> logits (B, classes, H, W); H and W are multiples of 32, at least 32.

    In training with deep supervision a list of four, finest first: full size, 1/4, 1/8, 1/16. All heads are always in
    the state dict; `scales(image)` gives the list in any mode, `finest(image)` the first of it.

    Raises:
        ShapeError: another number of channels, or sides that are no multiples of 32 (nothing is padded inside).
    """

    def __init__(self, config: SwinUMambaDConfig) -> None:
        super().__init__()
        c = self.config = config
        _four("swin_umamba_d", c.dims, c.depths)
        self.multiple = self.smallest = c.patch * 8
        self.deep_supervision = c.deep_supervision
        self.encoder = VMamba(VMambaConfig(c.in_channels, c.patch, c.dims, c.depths, c.state, c.drop_path))
        dims = c.dims[::-1]
        self.expands = nn.ModuleList(PatchExpanding(a, b) for a, b in pairwise(dims))
        self.joins = nn.ModuleList(Linear(2 * dim, dim) for dim in dims[1:])
        last = (LEVELS - 1) * c.decoder_depth - 1
        rates = [c.decoder_drop_path * (1 - i / max(last, 1)) for i in range(last + 1)]
        self.blocks = nn.ModuleList(
            nn.Sequential(
                *(
                    VSSBlock(dim, state=c.decoder_state, drop_path=rate)
                    for rate in rates[i * c.decoder_depth : (i + 1) * c.decoder_depth]
                )
            )
            for i, dim in enumerate(dims[1:])
        )
        self.last = PatchExpanding(dims[-1], dims[-1], c.patch)
        self.heads = nn.ModuleList(nn.Conv2d(w, c.classes, 1) for w in (dims[-1], *dims[:0:-1]))  # finest first
        self._initialise()

    def features(self, image: Tensor) -> list[Tensor]:
        """The decoder's maps (B, H / s, W / s, dims[i]) at s = 4, 8, 16, finest first."""
        c = self.config
        n = expect_shape(image, "B C H W", C=c.in_channels)
        for side in (n["H"], n["W"]):
            over = side % self.multiple
            if side < self.smallest or (over and not (c.drop_remainder and over < c.patch)):
                raise ShapeError(
                    f"swin_umamba_d takes sides that are multiples of {self.multiple}, got {n['H']} x {n['W']}; "
                    "pad the image"
                )
        pyramid = [level.permute(0, 2, 3, 1) for level in self.encoder(image)]  # the memory is channels-last already
        x, found = pyramid.pop(), []
        for expand, join, blocks in zip(self.expands, self.joins, self.blocks, strict=True):
            x = blocks(join(torch.cat([expand(x), pyramid.pop()], -1)))
            found.append(x)
        return found[::-1]

    def scales(self, image: Tensor) -> list[Tensor]:
        maps = self.features(image)
        coarse = [head(to_channels_first(x)) for head, x in zip(self.heads[1:], maps, strict=True)]
        return [self._full(maps[0]), *coarse]

    def finest(self, image: Tensor) -> Tensor:
        return self._full(self.features(image)[0])

    def _full(self, x: Tensor) -> Tensor:
        """(B, h, w, C) -> logits (B, classes, 4h, 4w): norm and head work cell by cell, so only logits are moved."""
        head, p = self.heads[0], self.config.patch
        assert isinstance(head, nn.Conv2d)
        logits = linear(self.last.cells(x), head.weight.flatten(1), head.bias)  # (B, h, w, p * p, K)
        logits = logits.unflatten(3, (p, p)).permute(0, 5, 1, 3, 2, 4)  # (B, K, h, p, w, p)
        return logits.flatten(2, 3).flatten(3, 4)


def _four(name: str, dims: Sequence[int], depths: Sequence[int]) -> None:
    if len(dims) != LEVELS or len(depths) != LEVELS:
        raise SettingError(f"{name} has four stages, got {len(dims)} dims and {len(depths)} depths")
