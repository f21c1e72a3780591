"""GMML: the plain ViT under its reconstruction head. Corruption, head and loss come with its pre-training."""

from __future__ import annotations

from typing import Any

import torch
from run import Fixture, filled
from torch import Tensor, nn

LATER = {r"recons.*|loss.*|masks?.*|.*corrupt.*|.*damaged.*|.*logits.*": "comes with GMML's pre-training"}


def model(fixture: Fixture, dtype: torch.dtype) -> nn.Module:
    return filled("vit", fixture, dtype, prefix="backbone.")


def answers(model: Any, fixture: Fixture, dtype: torch.dtype) -> dict[str, Tensor]:
    image = fixture.input("image").to(dtype)
    last = model.config.depth - 1
    embedded, _ = model.embed(image)
    with model.tapped(last) as layers:
        tokens = model.tokens(image)
        attention = layers[last].tap.weights
    return {"embedded": embedded, "last_tokens": tokens, "last_attention": attention}
