"""Gaussian mixture masks: the five hosts by their names, and the mask alone."""

from __future__ import annotations

import math
from typing import Any

import torch
from run import Fixture, filled, pyramid_answers
from torch import Tensor, nn

from core.mixers.gaussian_mask import GaussianMask


def model(fixture: Fixture, dtype: torch.dtype) -> nn.Module:
    if fixture.state:
        return filled("gmm_mask", fixture, dtype)
    kernels, heads = fixture.inputs["sigma"]["shape"][:2]
    return GaussianMask(heads, (1, 1), kernels)


def answers(model: Any, fixture: Fixture, dtype: torch.dtype) -> dict[str, Tensor]:
    if fixture.state:
        return pyramid_answers(model, fixture, dtype)
    found = {}
    for name in (n for n in fixture.inputs if n.startswith("scores")):
        scores = fixture.input(name).to(dtype)
        side = math.isqrt(scores.shape[-1])
        layer = GaussianMask(scores.shape[1], (side, side), fixture.build.get("num_kernals", 5)).to(dtype)
        layer.sigma.copy_(10 * fixture.input("sigma") + 10)
        layer.alpha.copy_(2 * fixture.input("alpha"))
        found[name.replace("scores", "mask")] = layer()
        found[name.replace("scores", "masked")] = layer() * scores
    return found
