"""A U-Net around any backbone: skips from its pyramid, and from the image itself where the pyramid is too coarse."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from core.errors import SettingError, ShapeError, expect_shape
from core.layers.unet import SLOPE, ResidualConvs, ResizingUpBlock

HEADS = 4  # at most; the scales of deep supervision


class UNet(nn.Module):
    """Image (B, C, H, W) -> logits (B, classes, H, W), any size that the backbone takes.

    Residual convolution blocks make skips of the image at 1, 1/2, 1/4 ... down to above the pyramid's finest stride
    (for a plain ViT, to above its patch); the pyramid gives the rest. Going up, every map is resized to the actual size
    of its skip. In training with deep supervision a list of logits, finest first, each at its own size; `scales(image)`
    gives that list in any mode. All heads are always in the state dict. `multiple` and `smallest` are the backbone's,
    where it has such attributes, else 1 and its last stride.

    Args:
        encoder: a backbone: pyramid of 4-dimensional maps, `channels`, `strides`.
        in_channels: of the image.
        classes: of the logits.
        width: channels at full size; they double with every halving up to those of the pyramid's finest level.
        widest: most channels of a decoder level (skips enter as they are).
        deep_supervision: whether training gives the list.

    Raises:
        SettingError: an encoder whose strides are no single numbers (clips).
        ShapeError: in forward, another number of channels, or an image so small that a skip has a single cell.
    """

    def __init__(
        self, encoder: Any, *, in_channels: int, classes: int, width: int = 32, widest: int = 256,
        deep_supervision: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        if not all(isinstance(s, int) for s in encoder.strides):
            raise SettingError("a U-Net needs an image backbone; this one reads clips")
        self.in_channels, self.deep_supervision = in_channels, deep_supervision
        self.encoder = encoder
        self.multiple = int(getattr(encoder, "multiple", 1))
        self.smallest = int(getattr(encoder, "smallest", encoder.strides[-1]))
        steps = 0  # halvings of the image above the finest level
        while 2**steps < encoder.strides[0]:
            steps += 1
        early = [min(width * 2**i, encoder.channels[0]) for i in range(steps)]
        self.details = nn.ModuleList(
            ResidualConvs(early[i - 1] if i else in_channels, out, stride=2 if i else 1) for i, out in enumerate(early)
        )
        skips = [*early, *encoder.channels[:-1]]  # finest first
        widths = [min(w, widest) for w in skips]
        below = [*widths[1:], encoder.channels[-1]]
        self.ups = nn.ModuleList(ResizingUpBlock(b, s, w) for b, s, w in zip(below, skips, widths, strict=True))
        self.heads = nn.ModuleList(nn.Conv2d(w, classes, 1) for w in widths[:HEADS])
        for part in (self.details, self.ups, self.heads):
            part.apply(_initialise)

    def features(self, image: Tensor) -> list[Tensor]:
        """The decoder's maps, finest first, (B, C_i, h_i, w_i): the image's size, then half of it rounded up ..."""
        expect_shape(image, "B C H W", C=self.in_channels)
        skips, x = [], image
        rows, columns = image.shape[2:]
        for i, block in enumerate(self.details):
            if i:
                rows, columns = -(-rows // 2), -(-columns // 2)
            self._expect_cells(rows, columns, image)
            x = block(x)
            skips.append(x)
        pyramid = self.encoder(image)
        for level in pyramid[:-1]:
            self._expect_cells(level.shape[2], level.shape[3], image)
            skips.append(level)
        x, found = pyramid[-1], []
        for up, skip in zip(reversed(self.ups), reversed(skips), strict=True):
            x = up(x, skip)
            found.append(x)
        return found[::-1]

    def _expect_cells(self, rows: int, columns: int, image: Tensor) -> None:
        """A skip of one cell has no spread to norm by."""
        if rows * columns < 2:
            raise ShapeError(
                f"this U-Net needs at least {self.smallest} pixels a side, got {image.shape[2]} x {image.shape[3]}"
            )

    def scales(self, image: Tensor) -> list[Tensor]:
        return [head(x) for head, x in zip(self.heads, self.features(image), strict=False)]

    def finest(self, image: Tensor) -> Tensor:
        return self.heads[0](self.features(image)[0])

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        return self.scales(image) if self.training and self.deep_supervision else self.finest(image)

    def freeze_encoder(self, frozen: bool = True) -> None:
        """Stop, or let again, the training of the encoder; its first convolution, which reads the image, trains."""
        self.encoder.requires_grad_(not frozen)
        next(m for m in self.encoder.modules() if isinstance(m, nn.Conv2d)).requires_grad_(True)


@torch.no_grad()
def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, a=SLOPE)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
