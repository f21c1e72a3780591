"""DuoFormer: its ResNet pyramid. Scale and patch attention come with pathology classification."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from run import Fixture, filled
from torch import Tensor, nn

LATER = {r"tokens|after_(scale|patch)|logits": "comes with pathology classification"}


def model(fixture: Fixture, dtype: torch.dtype) -> nn.Module:
    bare = replace(fixture, build={})  # its arguments are of the rest
    return filled("resnet", bare, dtype, prefix="resnet_projector.", classes=0)


def answers(model: Any, fixture: Fixture, dtype: torch.dtype) -> dict[str, Tensor]:
    return {f"stage{i}": level for i, level in enumerate(model(fixture.input().to(dtype)), 1)}
