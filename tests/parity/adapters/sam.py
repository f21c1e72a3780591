"""The Flax networks trained with sharpness-aware minimisation: the plain ViT under timm's names."""

from __future__ import annotations

from typing import Any

import torch
from run import Fixture, filled
from torch import Tensor, nn

LATER = {r".*": "the Mixer, the optimiser and the curvature analyses come with sharpness-aware minimisation"}


def model(fixture: Fixture, dtype: torch.dtype) -> nn.Module | None:
    if "patch_embed.proj.weight" not in fixture.state:
        return None
    return filled("vit", fixture, dtype, classes=fixture.build["num_classes"])


def answers(model: Any, fixture: Fixture, dtype: torch.dtype) -> dict[str, Tensor]:
    if model is None:
        return {}
    tokens = model.backbone.tokens(fixture.input().to(dtype))
    return {"tokens": tokens, "logits": model.head(tokens)}
