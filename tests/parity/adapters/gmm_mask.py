"""Gaussian mixture masks: the plain ViT that they are laid on. Masks and the other hosts come with the method."""

from __future__ import annotations

from typing import Any

import torch
from run import Fixture, filled
from torch import Tensor, nn

LATER = {r"logits|mask.*": "masks and their hosts come with Gaussian mixture masks"}


def model(fixture: Fixture, dtype: torch.dtype) -> nn.Module | None:
    masked = any(".fn.mask." in n for n in fixture.state)
    if masked or "to_patch_embedding.1.weight" not in fixture.state:
        return None
    return filled("vit", fixture, dtype)


def answers(model: Any, fixture: Fixture, dtype: torch.dtype) -> dict[str, Tensor]:
    return {} if model is None else {"logits": model(fixture.input().to(dtype))}
