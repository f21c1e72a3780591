"""LRP-QViT: its plain ViT in float. Relevance and quantisers come with compression."""

from __future__ import annotations

from typing import Any

import torch
from run import Fixture, filled
from torch import Tensor, nn

LATER = {
    r"relevance\..*|sums\..*|blocks\.\d.*|head\.in|map\..*": "relevance comes with the analyses",
    r"(initial|reparam|final|block\d)\..*": "quantisers come with compression",
}


def model(fixture: Fixture, dtype: torch.dtype) -> nn.Module:
    # The network of the relevance code has another epsilon in its last norm than in its blocks.
    last = 1e-5 if "class_index" in fixture.build else None
    return filled("vit", fixture, dtype, classes=fixture.build["num_classes"], norm_eps=last)


def answers(model: Any, fixture: Fixture, dtype: torch.dtype) -> dict[str, Tensor]:
    logits = model(fixture.input().to(dtype))
    return {"logits": logits, "float.logits": logits}
