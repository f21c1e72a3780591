"""HSQformer: its two pyramids, Swin-S and ConvNeXt-S. Fusion, queries and head come with ultrasound screening."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from run import Fixture, filled
from torch import Tensor, nn

LATER = {r"fused\d|queries|logits": "comes with ultrasound screening"}


def model(fixture: Fixture, dtype: torch.dtype) -> nn.Module:
    bare = replace(fixture, build={})  # its arguments are of the rest
    return nn.ModuleDict({
        "swin": filled("swin", bare, dtype, prefix="swintransformer.", classes=0, depths=(2, 2, 18, 2)),
        "convnext": filled("convnext", bare, dtype, prefix="convnext.", classes=0),
    })  # fmt: skip


def answers(model: Any, fixture: Fixture, dtype: torch.dtype) -> dict[str, Tensor]:
    image = fixture.input().to(dtype)
    found = {f"stage{i}": level for i, level in enumerate(model["swin"](image), 1)}
    return found | {f"conv_stage{i}": level for i, level in enumerate(model["convnext"](image), 1)}
