"""DeiT-LT: its student is a distilled plain ViT. Losses and the ResNet teacher come with the training method."""

from __future__ import annotations

from typing import Any

import torch
from run import Fixture, filled
from torch import Tensor, nn

LATER = {
    r"logits": "the PaCo teacher comes with DeiT-LT's training",
    r"class_.*|(hard|soft|none)\..*|.*loss.*": "losses come with DeiT-LT's training",
}


def model(fixture: Fixture, dtype: torch.dtype) -> nn.Module | None:
    if "model" not in fixture.build:
        return None
    return filled("vit", fixture, dtype, classes=fixture.build["num_classes"])


def answers(model: Any, fixture: Fixture, dtype: torch.dtype) -> dict[str, Tensor]:
    if model is None:
        return {}
    tokens = model.backbone.tokens(fixture.input().to(dtype))
    first, second = model.head.both(tokens)
    return {
        "logits_cls": first, "logits_dist": second, "logits_mean": model.head(tokens),
        "token_cls": tokens[:, 0], "token_dist": tokens[:, 1], "tokens": tokens,
    }  # fmt: skip
