"""ResNet, Wide ResNet and ResNeXt: the convolutional baselines, torchvision's blocks behind the house's contract.

Papers: arXiv 1512.03385, 1605.07146 (wide), 1611.05431 (ResNeXt). Reference: pytorch/vision 0.26, models/resnet.py
(BSD-3-Clause).
Differs: nothing; its "v1.5", with the stride in the 3x3 convolution.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.models.resnet import ResNet as Published

from core.errors import SettingError, expect_shape
from core.facts import Facts
from core.heads.classify import ClassifierHead
from core.weights import KeyMap

FACTS = Facts(
    title="ResNet",
    paper="arXiv 1512.03385",
    licence="BSD-3-Clause",
    top1={  # torchvision's first weights; its later recipes reach more
        "18": 69.76, "34": 73.31, "50": 76.13, "101": 77.37, "152": 78.31,
        "next50_32x4": 77.62, "next101_32x8": 79.31, "next101_64x4": 83.25, "wide50": 78.47, "wide101": 78.85,
    },
)  # fmt: skip
HEAD = ClassifierHead(norm=None, pool="mean")


@dataclass(frozen=True)
class ResNetConfig:
    in_channels: int = 3
    depths: tuple[int, ...] = (3, 4, 6, 3)
    bottleneck: bool = True  # 1x1, 3x3, 1x1 to four times the width; else two 3x3
    groups: int = 1  # of the 3x3 convolutions
    group_width: int = 64  # their channels per group in the first stage


class Network(nn.Module):
    """Image (B, C, H, W) -> pyramid of four levels at strides 4, 8, 16, 32, sizes rounded up, for any H and W."""

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        c = self.config = config
        if len(c.depths) != 4:
            raise SettingError(f"resnet: four stages, got {len(c.depths)} depths")
        block = Bottleneck if c.bottleneck else BasicBlock
        if not c.bottleneck and (c.groups, c.group_width) != (1, 64):
            raise SettingError("resnet: groups and their width are settings of bottleneck blocks")
        net: Any = Published(block, list(c.depths), num_classes=1, groups=c.groups, width_per_group=c.group_width)
        if c.in_channels != 3:
            net.conv1 = nn.Conv2d(c.in_channels, 64, 7, 2, 3, bias=False)
            nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")
        self.channels = tuple(n * block.expansion for n in (64, 128, 256, 512))
        self.strides = (4, 8, 16, 32)
        stem = OrderedDict(conv=net.conv1, norm=net.bn1, act=net.relu, pool=net.maxpool)
        self.stages = nn.ModuleList([
            nn.Sequential(OrderedDict(**stem, blocks=net.layer1)),
            *(nn.Sequential(OrderedDict(blocks=layer)) for layer in (net.layer2, net.layer3, net.layer4)),
        ])  # fmt: skip

    def forward(self, image: Tensor) -> list[Tensor]:
        expect_shape(image, "B C H W", C=self.config.in_channels)
        x, pyramid = image, []
        for stage in self.stages:
            x = stage(x)
            pyramid.append(x)
        return pyramid


FIFTY = ResNetConfig()
HUNDRED = ResNetConfig(depths=(3, 4, 23, 3))
VARIANTS = {
    "18": ResNetConfig(depths=(2, 2, 2, 2), bottleneck=False),
    "34": ResNetConfig(bottleneck=False),
    "50": FIFTY,
    "101": HUNDRED,
    "152": ResNetConfig(depths=(3, 8, 36, 3)),
    "next50_32x4": replace(FIFTY, groups=32, group_width=4),
    "next101_32x8": replace(HUNDRED, groups=32, group_width=8),
    "next101_64x4": replace(HUNDRED, groups=64, group_width=4),
    "wide50": replace(FIFTY, group_width=128),
    "wide101": replace(HUNDRED, group_width=128),
}

build = Network


def from_published(
    build: Mapping[str, Any], names: Mapping[str, Sequence[int]], base: ResNetConfig = FIFTY
) -> ResNetConfig:
    """Depths, blocks, groups and channels, all read from the parameter names and shapes; `build` adds nothing."""
    keymap = next((m for m in PUBLISHED if m.fits(names)), None)
    ours = {} if keymap is None else {keymap.name(n): tuple(s) for n, s in names.items()}
    if "backbone.stages.0.conv.weight" not in ours:
        return base
    prefixes = [f"backbone.stages.{i}.blocks." for i in range(4)]
    places = ([int(n.removeprefix(p).split(".")[0]) for n in ours if n and n.startswith(p)] for p in prefixes)
    bottleneck = "backbone.stages.0.blocks.0.conv3.weight" in ours
    grouped = ours["backbone.stages.0.blocks.0.conv2.weight"]  # (groups * width, width, 3, 3)
    return replace(
        base,
        in_channels=ours["backbone.stages.0.conv.weight"][1],
        depths=tuple(1 + max(found, default=0) for found in places),
        bottleneck=bottleneck,
        groups=grouped[0] // grouped[1] if bottleneck else 1,
        group_width=grouped[1] if bottleneck else 64,
    )


PUBLISHED = (
    KeyMap(  # children of torchvision's network by their place, as `nn.Sequential(*net.children())` numbers them
        rename=[
            (r"^0\.", "backbone.stages.0.conv."),
            (r"^1\.", "backbone.stages.0.norm."),
            *((rf"^{i + 4}\.", f"backbone.stages.{i}.blocks.") for i in range(4)),
        ],
        when=r"^4\.0\.conv1\.",
    ),
    KeyMap(  # torchvision and timm
        rename=[
            (r"^conv1\.", "backbone.stages.0.conv."),
            (r"^bn1\.", "backbone.stages.0.norm."),
            *((rf"^layer{i + 1}\.", f"backbone.stages.{i}.blocks.") for i in range(4)),
            (r"^fc\.", "head.fc."),
        ]
    ),
)
