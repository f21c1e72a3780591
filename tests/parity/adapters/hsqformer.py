"""HSQformer: the ultrasound app's network from the authors' names and arguments; its pyramids, levels and queries."""

from __future__ import annotations

from typing import Any

import torch
from run import Fixture
from torch import Tensor, nn

from apps.medical.ultrasound.model import NETWORKS, PUBLISHED, build, from_published
from core.weights import choose, convert


def model(fixture: Fixture, dtype: torch.dtype) -> nn.Module:
    state = fixture.state_dict()
    shapes = {n: tuple(v.shape) for n, v in state.items()}
    network = build(from_published(fixture.build, shapes, NETWORKS["hsqformer"]))
    network.load_state_dict(convert(state, choose(PUBLISHED, state), network))
    return network.to(dtype).eval()


def answers(model: Any, fixture: Fixture, dtype: torch.dtype) -> dict[str, Tensor]:
    image = fixture.input(next(iter(fixture.inputs))).to(dtype)
    found = {f"stage{i}": level for i, level in enumerate(model.swin(image), 1)}
    found |= {f"conv_stage{i}": level for i, level in enumerate(model.convnext(image), 1)}
    levels = model.fused(image)
    found |= {f"fused{i}": level for i, level in enumerate(levels, 1)}
    queries = model.read(levels)
    return found | {"queries": queries, "logits": model.answer(queries)}
