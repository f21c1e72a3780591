"""T2T-ViT: tokens on their way, and the performer's random matrices counted as the frozen parameters that they were."""

from __future__ import annotations

from typing import Any

import torch
from run import Fixture, filled, pyramid_answers
from torch import Tensor, nn

from core.mixers.soft_split import PerformerAttention


def model(fixture: Fixture, dtype: torch.dtype) -> nn.Module:
    network = filled("t2t_vit", fixture, dtype)
    for layer in network.modules():
        if isinstance(layer, PerformerAttention):
            features = layer.features
            del layer.features
            layer.register_parameter("features", nn.Parameter(features, requires_grad=False))
    return network


def answers(model: Any, fixture: Fixture, dtype: torch.dtype) -> dict[str, Tensor]:
    backbone = getattr(model, "backbone", model)
    split, kept = backbone.stages[0].embed.tokens_to_token, {}
    parts = {"t2t1": split.mix1, "t2t2": split.mix2, "tokens": split.project}
    hooks = [
        part.register_forward_hook(lambda _, __, out, name=name: kept.update({name: out.flatten(1, 2)}))
        for name, part in parts.items()
    ]
    found = pyramid_answers(model, fixture, dtype)
    for hook in hooks:
        hook.remove()
    if "normed" in fixture.outputs:
        found["normed"] = backbone.tokens(fixture.input(next(iter(fixture.inputs))).to(dtype))
    return found | kept
