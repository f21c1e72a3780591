"""Locality alignment: the teacher, a plain ViT without its last block. Student and decoder come with the method."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from run import Fixture, filled
from torch import Tensor, nn

LATER = {
    r"encoder_tokens|reconstruction": "soft-capped attention and the decoder come with locality alignment",
    r"loss.*|target_variance": "losses come with locality alignment",
}


def model(fixture: Fixture, dtype: torch.dtype) -> nn.Module | None:
    name = fixture.build.get("teacher", "")
    if not name:
        return None
    return filled("vit", fixture, dtype, prefix="teacher.", activation="quick_gelu" if "quickgelu" in name else "gelu")


def answers(model: Any, fixture: Fixture, dtype: torch.dtype) -> dict[str, Tensor]:
    return {} if model is None else {"teacher_tokens": model.tokens(masked(model, fixture, dtype))}


def masked(model: Any, fixture: Fixture, dtype: torch.dtype) -> Tensor:
    """Each image under each of its masks: hidden patches, and what lies outside whole patches, are 0."""
    image, visible = fixture.input().to(dtype), (fixture.input("mask_noise") > 0).to(dtype)
    side, patch = math.isqrt(visible.shape[1]), model.config.patch
    visible = visible.reshape(-1, 1, side, side).repeat_interleave(patch, 2).repeat_interleave(patch, 3)
    visible = F.pad(visible, (0, image.shape[3] - visible.shape[3], 0, image.shape[2] - visible.shape[2]))
    return image.repeat_interleave(len(visible) // len(image), 0) * visible
