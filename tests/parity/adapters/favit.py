"""FaViT: its classification vectors hold what the last block of a stage answers, before the stage's norm.

The dense code keeps a head that it never uses among its parameters.
"""

from __future__ import annotations

from typing import Any

import torch
from run import Fixture, filled
from torch import Tensor, nn

from core.layers.patches import to_channels_first


def model(fixture: Fixture, dtype: torch.dtype) -> nn.Module:
    return filled("favit", fixture, dtype, classes=fixture.state.get("head.weight", [0])[0])


def answers(model: Any, fixture: Fixture, dtype: torch.dtype) -> dict[str, Tensor]:
    image = fixture.input().to(dtype)
    if "logits" not in fixture.outputs:  # dense: levels after their norms
        return {f"stage{i}": level for i, level in enumerate(getattr(model, "backbone", model)(image), 1)}
    found, x = {"logits": model(image)}, image
    for i, stage in enumerate(model.backbone.stages, 1):
        last = stage.unnormed(x)
        found[f"stage{i}"], x = to_channels_first(last), stage.norm(last)
    return found
