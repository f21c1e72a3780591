"""DuoFormer: the pathology app's network from the authors' names and arguments, step by step."""

from __future__ import annotations

from typing import Any

import torch
from run import Fixture
from torch import Tensor, nn

from apps.medical.pathology_classify._duoformer import DuoFormer, DuoFormerConfig
from apps.medical.pathology_classify._duoformer_published import PUBLISHED, from_published
from core.weights import convert


def model(fixture: Fixture, dtype: torch.dtype) -> nn.Module:
    state = fixture.state_dict()
    shapes = {n: tuple(v.shape) for n, v in state.items()}
    network = DuoFormer(from_published(fixture.build, shapes, DuoFormerConfig()))
    network.load_state_dict(convert(state, PUBLISHED, network))
    return network.to(dtype).eval()


def answers(model: Any, fixture: Fixture, dtype: torch.dtype) -> dict[str, Tensor]:
    levels = model.scales(fixture.input().to(dtype))
    tokens = model.gather(levels)
    scales = model.attend_scales(tokens)
    patches = model.attend_patches(scales)
    found = {f"stage{i}": level for i, level in enumerate(levels, 1)}
    return found | {"tokens": tokens, "after_scale": scales, "after_patch": patches, "logits": model.answer(patches)}
