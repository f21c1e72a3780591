"""DuoFormer: the scales of a CNN pyramid attend to each other inside every patch, then patches to each other.

Source: arXiv 2506.12982 (MIDL 2025), its model without extra parameters; numbers after xiaoyatang/duoformer_TCGA at
1f11140 (no licence stated; read through this project's notes only).
Differs: the two faults with which the released class cannot be built are mended (two scales have 6 tokens a patch, not
21); with ResNet-18, two and three scales take the coarse stages, as with ResNet-50.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core import registry
from core.errors import SettingError, ShapeError, expect_shape
from core.layers.linear import Linear
from core.layers.mlp import MLP
from core.layers.residual import Block
from core.mixers.attention import SelfAttention

PATCH = 32  # pixels of a patch's side: one place of the coarsest map
GRID = 7  # patches along a side, which the learned positions fix
SIZE = PATCH * GRID
_STD = 0.036  # of the learned vectors


@dataclass(frozen=True)
class DuoFormerConfig:
    in_channels: int = 3
    classes: int = 2
    backbone: str = "resnet/50"  # family/variant of a four-stage CNN at strides 4 to 32
    scales: int = 2  # stages that are read, counted from the coarsest: 2, 3 or 4
    scale_token: Literal["random", "channel"] = "channel"  # learned, or made of all four stages
    dim: int = 768  # with a channel token, too, the published code takes 768 only
    heads: int = 12
    depth: int = 12  # blocks of each of the two kinds
    mlp_ratio: float = 4.0
    dropout: float = 0.0  # of the attention weights
    frozen: bool = False  # the backbone's weights are not trained; its batch norms' statistics still move, as published
    backbone_settings: Mapping[str, Any] = field(default_factory=dict)  # that differ from the variant's


class ChannelToken(nn.Module):
    """A token per patch from all four stages: four maps -> (B, GRID * GRID, dim), row by row.

    Two convolutions of stride 2 for the finest map, one for the next, then each is halved by its largest values; no
    activation so far.
    """

    def __init__(self, channels: Sequence[int], dim: int) -> None:
        super().__init__()
        first, second = channels[:2]
        self.fine = nn.Sequential(_halving(first), _halving(first))
        self.middle = _halving(second)
        widths = [sum(channels), dim, dim, dim]
        self.mix = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(n, dim, 3, padding=1), nn.BatchNorm2d(dim), nn.ReLU(inplace=True))
                for n in widths
            )
        )

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        halved = (self.fine(maps[0]), self.middle(maps[1]), maps[2])
        joined = torch.cat([*(F.max_pool2d(x, 2) for x in halved), maps[3]], 1)
        mixed: Tensor = self.mix(joined)
        return mixed.flatten(2).transpose(1, 2)


class DuoFormer(nn.Module):
    """Image (B, C, 224, 224) -> logits (B, classes). `encoder` is the backbone.

    Raises:
        SettingError: other than 2 to 4 scales, a width that the heads do not divide, a backbone of other strides.
        ShapeError: another size; the learned positions are of 7 x 7 patches.
    """

    mixes = False  # an answer does not depend on the others of its batch

    def __init__(self, config: DuoFormerConfig) -> None:
        super().__init__()
        c = self.config = config
        if c.scales not in (2, 3, 4):
            raise SettingError(f"duoformer: scales is 2, 3 or 4, got {c.scales}")
        if c.dim < 1 or c.heads < 1 or c.dim % c.heads:
            raise SettingError(f"duoformer: heads divide dim, got {c.heads} and {c.dim}")
        if c.scale_token not in ("random", "channel"):
            raise SettingError(f"duoformer: scale_token is random or channel, got {c.scale_token!r}")
        if c.depth < 1:
            raise SettingError(f"duoformer: depth is at least 1, got {c.depth}")
        self.size = SIZE
        self.encoder = registry.create(c.backbone, **{"in_channels": c.in_channels, **c.backbone_settings})
        strides = tuple(getattr(self.encoder, "strides", ()))
        if strides != (4, 8, 16, 32):
            raise SettingError(f"duoformer: its backbone has strides 4, 8, 16, 32, and {c.backbone} has {strides}")
        channels = tuple(self.encoder.channels)
        self.projections = nn.ModuleList(nn.Conv2d(n, c.dim, 1) for n in reversed(channels[4 - c.scales :]))
        self.channel_token = ChannelToken(channels, c.dim) if c.scale_token == "channel" else None
        self.scale_token = None if self.channel_token is not None else nn.Parameter(torch.empty(1, 1, 1, c.dim))
        self.scale_positions = nn.Parameter(torch.empty(1, 1, 1 + sum(4**i for i in range(c.scales)), c.dim))
        self.scale_blocks = nn.Sequential(
            *(
                Block(
                    c.dim,
                    SelfAttention(c.dim, c.heads, dropout=c.dropout),
                    MLP(c.dim, ratio=c.mlp_ratio),
                    norm=lambda n: nn.LayerNorm(n, eps=1e-6),
                )
                for _ in range(c.depth)
            )
        )
        self.class_token = nn.Parameter(torch.empty(1, 1, c.dim))
        self.positions = nn.Parameter(torch.empty(1, 1 + GRID * GRID, c.dim))
        # Bare attention: no norm, no residual, no MLP.
        self.patch_blocks = nn.Sequential(*(SelfAttention(c.dim, c.heads, dropout=c.dropout) for _ in range(c.depth)))
        # Part of every published file; its result is thrown away there, so here it is not even computed.
        self.unused_norm = nn.LayerNorm(c.dim, eps=1e-6).requires_grad_(False)
        self.head = Linear(c.dim, c.classes)
        self._start()
        self.freeze_encoder(c.frozen)

    def _start(self) -> None:
        for module in (*self.scale_blocks.modules(), *self.patch_blocks.modules(), self.head):
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        for conv in self.projections.modules():
            if isinstance(conv, nn.Conv2d):
                nn.init.kaiming_normal_(conv.weight)
                assert conv.bias is not None
                nn.init.normal_(conv.bias, std=1e-6)
        for positions in (self.scale_positions, self.positions):
            nn.init.trunc_normal_(positions, std=_STD)
        for token in (self.class_token, self.scale_token):
            if token is not None:
                nn.init.normal_(token, std=_STD)

    def forward(self, image: Tensor) -> Tensor:
        return self.answer(self.attend_patches(self.attend_scales(self.gather(self.scales(image)))))

    def scales(self, image: Tensor) -> list[Tensor]:
        """The backbone's four maps, fine to coarse: (B, C_i, 56, 56) to (B, C_i, 7, 7)."""
        expect_shape(image, "B C H W", C=self.config.in_channels)
        if tuple(image.shape[-2:]) != (SIZE, SIZE):
            raise ShapeError(
                f"duoformer takes {SIZE} x {SIZE} pixels, its positions are learned for {GRID} x {GRID} patches; got "
                f"{image.shape[-2]} x {image.shape[-1]}"
            )
        maps: list[Tensor] = self.encoder(image)
        return maps

    def gather(self, maps: Sequence[Tensor]) -> Tensor:
        """Tokens of every patch (B, 49, S, dim): the scale token, then the scales coarse to fine."""
        B = maps[0].shape[0]
        if self.channel_token is None:
            assert self.scale_token is not None
            first = self.scale_token.expand(B, GRID * GRID, -1, -1)
        else:
            first = self.channel_token(maps)[:, :, None]
        parts = [
            inside_patches(conv(level), by_columns=i == 1)
            for i, (conv, level) in enumerate(zip(self.projections, reversed(maps), strict=False))
        ]
        return torch.cat([first, *parts], 2)

    def attend_scales(self, tokens: Tensor) -> Tensor:
        """(B, 49, S, dim) -> the same: position and blocks over the S tokens of each patch."""
        x = (tokens + self.scale_positions).flatten(0, 1)
        mixed: Tensor = self.scale_blocks(x)
        return mixed.unflatten(0, (-1, GRID * GRID))

    def attend_patches(self, tokens: Tensor) -> Tensor:
        """(B, 49, S, dim) -> (B, 50, dim): a class token and the scale token of each patch through the patch blocks."""
        x = torch.cat([self.class_token.expand(tokens.shape[0], -1, -1), tokens[:, :, 0]], 1)
        mixed: Tensor = self.patch_blocks(x + self.positions)
        return mixed

    def answer(self, patches: Tensor) -> Tensor:
        """(B, 50, dim) -> logits (B, classes), of the class token."""
        logits: Tensor = self.head(patches[:, 0])
        return logits

    def freeze_encoder(self, frozen: bool = True) -> None:
        """Stop, or let again, the training of the backbone; the batch norms' statistics move either way.

        One that the configuration has frozen stays so.
        """
        self.encoder.requires_grad_(not (frozen or self.config.frozen))

    def no_weight_decay(self) -> set[str]:
        """Parameters that weight decay spares by default."""
        return {"positions", "scale_positions", "class_token", "scale_token"}


def inside_patches(level: Tensor, *, by_columns: bool) -> Tensor:
    """A map (B, C, 7 k, 7 k) -> the k x k places of every patch (B, 49, k * k, C).

    Patches go row by row. Inside a patch places go row by row, or, with `by_columns`, column by column, as the
    published code has it for 2 x 2; the learned positions of a patch go with that order.
    """
    B, C, H, _ = level.shape
    k = H // GRID
    cells = level.reshape(B, C, GRID, k, GRID, k)
    order = (0, 2, 4, 5, 3, 1) if by_columns else (0, 2, 4, 3, 5, 1)
    return cells.permute(order).reshape(B, GRID * GRID, k * k, C)


def _halving(channels: int) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, 3, stride=2, padding=1)
