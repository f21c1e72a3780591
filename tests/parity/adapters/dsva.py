"""dSVA: features of a frozen DINO ViT. The generator, its projection and the losses come with dSVA."""

from __future__ import annotations

from typing import Any

import torch
from run import Fixture, filled
from torch import Tensor, nn

LATER = {
    r"generated|adversarial|perturbation": "the generator comes with dSVA",
    r"loss\..*": "losses come with dSVA",
}


def model(fixture: Fixture, dtype: torch.dtype) -> nn.Module:
    stride = fixture.build.get("stride")
    return filled("vit", fixture, dtype, prefix="vit.", stride=None if stride == fixture.build.get("patch") else stride)


def answers(model: Any, fixture: Fixture, dtype: torch.dtype) -> dict[str, Tensor]:
    image = fixture.input("noise").to(dtype).sigmoid()
    mean, std = (torch.tensor(v, dtype=dtype)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    image, layer = (image - mean) / std, fixture.build["layer"]
    with model.tapped(layer) as layers:
        found = {"token": model.features(image, at=(layer,))[0].flatten(2).transpose(1, 2)}
        tap = layers[layer].tap
    for name, facet in {"query": tap.q, "key": tap.k, "value": tap.v}.items():  # (B, heads, N, d)
        found[name] = facet[:, :, model.prefix :].permute(0, 2, 3, 1).flatten(2)  # the head varies fastest
    return {f"clean.{name}": value[:, None] for name, value in found.items()}
