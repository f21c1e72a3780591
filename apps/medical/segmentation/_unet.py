"""The U-Net over any backbone of core, as a network with a name and settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from core import registry
from core.heads.unet import UNet


@dataclass(frozen=True)
class UNetConfig:
    in_channels: int = 1
    classes: int = 14  # background included
    deep_supervision: bool = True  # in training, logits at up to four scales
    backbone: str = "swin/tiny"  # family/variant
    overrides: Mapping[str, Any] = field(default_factory=dict)  # of the backbone's settings
    width: int = 32  # channels at full size; they double with every halving
    widest: int = 256  # most channels of a decoder level


class BackboneUNet(UNet):
    """core.heads.unet.UNet with its configuration; `multiple` is 1 and `smallest` the backbone's last stride."""

    def __init__(self, config: UNetConfig) -> None:
        encoder = registry.create(config.backbone, in_channels=config.in_channels, **config.overrides)
        super().__init__(
            encoder,
            in_channels=config.in_channels,
            classes=config.classes,
            width=config.width,
            widest=config.widest,
            deep_supervision=config.deep_supervision,
        )
        self.config = config
