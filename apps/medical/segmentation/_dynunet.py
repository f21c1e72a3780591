"""MONAI's DynUNet, the network of nnU-Net, in two dimensions: the baseline that users compare with.

Paper: arXiv 1904.08128 (nnU-Net); DynUNet of MONAI 1.6 (Apache-2.0).
Differs: deep supervision gives each scale at its own size, as nnU-Net trains it, where DynUNet resizes and stacks them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from core.errors import MissingExtraError, SettingError, ShapeError, expect_shape
from core.weights import KeyMap


@dataclass(frozen=True)
class DynUNetConfig:
    in_channels: int = 1
    classes: int = 14  # background included
    deep_supervision: bool = True  # in training, logits at several scales; without it their heads are not built
    scales: int = 4  # of deep supervision at most, full size included
    patch_size: tuple[int, int] = (320, 320)  # pixels, rows and columns; decides how often each axis is halved
    width: int = 32  # channels at full size; they double with every halving
    widest: int = 512  # most channels
    residual: bool = False  # residual blocks in place of plain ones


def plan(patch_size: Sequence[int]) -> list[tuple[int, int]]:
    """Strides of every resolution: an axis is halved while it has at least 8 cells, so that at least 4 remain.

    Sides are those that the patch has when rounded up to a multiple of what it is divided by.

    >>> plan((64, 24))
    [(1, 1), (2, 2), (2, 2), (2, 1), (2, 1)]
    """
    sides = list(patch_size)
    strides = [(1, 1)]
    while max(sides) >= 8:
        step = (1 + (sides[0] >= 8), 1 + (sides[1] >= 8))
        sides = [-(-side // s) for side, s in zip(sides, step, strict=True)]
        strides.append(step)
    return strides


class DynUNet(nn.Module):
    """Image (B, C, H, W) -> logits (B, classes, H, W); H and W are multiples of `multiple`.

    In training with deep supervision a list of logits, finest first: full size, then each halving. `scales(image)`
    gives the list in any mode. Parameters are named as in MONAI.

    Raises:
        SettingError: a patch that is halved fewer than twice.
        MissingExtraError: MONAI is not installed.
        ShapeError: in forward, another number of channels or sides that are no multiples.
    """

    def __init__(self, config: DynUNetConfig) -> None:
        super().__init__()
        try:
            from monai.networks.nets.dynunet import DynUNet as Published
        except ImportError:
            raise MissingExtraError("monai", "medical") from None
        c = self.config = config
        strides = plan(c.patch_size)
        if len(strides) < 3:
            raise SettingError(f"dynunet needs a patch that can be halved twice, 16 pixels or more, got {c.patch_size}")
        self.deep_supervision = c.deep_supervision
        rows, columns = 1, 1
        for step in strides:
            rows, columns = rows * step[0], columns * step[1]
        self.steps = (rows, columns)
        self.multiple = max(self.steps)  # both are powers of two
        self.smallest = 2 * self.multiple  # one cell could not be normed
        supervised = min(c.scales - 1, len(strides) - 2) if c.deep_supervision else 0
        net = Published(
            spatial_dims=2,
            in_channels=c.in_channels,
            out_channels=c.classes,
            kernel_size=[3] * len(strides),
            strides=strides,
            upsample_kernel_size=strides[1:],
            filters=[min(c.width * 2**i, c.widest) for i in range(len(strides))],
            deep_supervision=supervised > 0,
            deep_supr_num=max(supervised, 1),
            res_block=c.residual,
        )
        # The parts without MONAI's second tree of the same modules, which keeps the last pass's maps and graph alive.
        self.input_block, self.downsamples, self.bottleneck = net.input_block, net.downsamples, net.bottleneck
        self.upsamples, self.output_block = net.upsamples, net.output_block
        self.deep_supervision_heads = net.deep_supervision_heads if supervised > 0 else nn.ModuleList()

    def features(self, image: Tensor) -> list[Tensor]:
        """The decoder's maps, finest first: full size, then each halving."""
        n = expect_shape(image, "B C H W", C=self.config.in_channels)
        (rows, columns), height, width = self.steps, n["H"], n["W"]
        if height % rows or width % columns or height * width <= rows * columns:
            raise ShapeError(
                f"this dynunet takes rows in multiples of {rows} and columns of {columns}, and more than one of each, "
                f"got {height} x {width}; pad the image"
            )
        skips = [self.input_block(image)]
        for block in self.downsamples:
            skips.append(block(skips[-1]))
        x, found = self.bottleneck(skips[-1]), []
        for block in self.upsamples:
            x = block(x, skips.pop())
            found.append(x)
        return found[::-1]

    def scales(self, image: Tensor) -> list[Tensor]:
        heads = [self.output_block, *self.deep_supervision_heads]
        return [head(x) for head, x in zip(heads, self.features(image), strict=False)]

    def finest(self, image: Tensor) -> Tensor:
        return self.output_block(self.features(image)[0])

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        return self.scales(image) if self.training and self.deep_supervision else self.finest(image)


def from_published(build: Mapping[str, Any], names: Mapping[str, Sequence[int]], base: DynUNetConfig) -> DynUNetConfig:
    """Everything from MONAI's parameter shapes; a patch size that gives the file's strides, `base`'s where it does."""
    first = names["input_block.conv1.conv.weight"]
    heads = {n.split(".")[1] for n in names if n.startswith("deep_supervision_heads.")}
    ups = sorted({int(n.split(".")[1]) for n in names if n.startswith("upsamples.")}, reverse=True)
    steps = [tuple(names[f"upsamples.{i}.transp_conv.conv.weight"][2:]) for i in ups]  # finest first
    patch = base.patch_size
    if [(1, 1), *steps] != plan(patch):
        patch = (4 * math.prod(s[0] for s in steps), 4 * math.prod(s[1] for s in steps))
    return replace(
        base,
        in_channels=first[1],
        classes=names["output_block.conv.conv.weight"][0],
        deep_supervision=bool(heads),
        scales=1 + len(heads) if heads else base.scales,
        patch_size=patch,
        width=first[0],
        widest=names["bottleneck.conv1.conv.weight"][0],
        residual="downsamples.0.conv3.conv.weight" in names,
    )


PUBLISHED = KeyMap(when=r"^input_block\.", drop=[r"^skip_layers\."])  # the second names of the same tensors
