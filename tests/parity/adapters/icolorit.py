"""iColoriT: a plain ViT on Lab and hints. Colour conversion, hint masks and the head come with colorization."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from run import Fixture, filled
from torch import Tensor, nn

LATER = {r"output|ab": "the head comes with colorization"}


def model(fixture: Fixture, dtype: torch.dtype) -> nn.Module:
    return filled("vit", fixture, dtype, classes=0, positions="sincos_1d", resize="refuse")


def answers(model: Any, fixture: Fixture, dtype: torch.dtype) -> dict[str, Tensor]:
    return {"tokens": model.tokens(network_input(fixture, dtype))}


def network_input(fixture: Fixture, dtype: torch.dtype) -> Tensor:
    """(B, 4, H, W): L, the hinted a and b, and where hints are."""
    lab, hidden = fixture.input().to(dtype), fixture.input("hint") != 0  # True: no hint in this cell
    size, cells = lab.shape[2:], math.isqrt(hidden.shape[1])
    hidden = hidden.reshape(-1, 1, cells, cells)
    hinted = 1 - F.interpolate(hidden.to(dtype), size=size, mode="nearest")
    colour = lab[:, 1:]
    if fixture.build.get("avg_hint", True):
        colour = F.interpolate(colour, size=(cells, cells), mode="bilinear").masked_fill(hidden, 0)
        colour = F.interpolate(colour, size=size, mode="nearest")
    else:
        colour = colour * hinted
    if fixture.build.get("mask_cent"):
        hinted = hinted - 0.5
    return torch.cat([lab[:, :1], colour, hinted], dim=1)
