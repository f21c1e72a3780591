"""GLSim: its encoder is the plain ViT. Crops, the second pass and the aggregator come with GLSim itself."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from run import Fixture, filled
from torch import Tensor, nn

LATER = {r"crops|logits": "the crop and the aggregator come with GLSim's recognition"}


def model(fixture: Fixture, dtype: torch.dtype) -> nn.Module:
    return filled("vit", fixture, dtype, classes=0)


def answers(model: Any, fixture: Fixture, dtype: torch.dtype) -> dict[str, Tensor]:
    tokens = model.tokens(fixture.input().to(dtype))
    return {"tokens": tokens, "similarity": F.cosine_similarity(tokens[:, :1], tokens[:, 1:], dim=-1)}
