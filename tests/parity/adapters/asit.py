"""ASiT: a plain ViT on spectrograms (time, mel). Its two pre-training heads and losses come later."""

from __future__ import annotations

from typing import Any

import torch
from run import Fixture, filled
from torch import Tensor, nn

LATER = {
    r"cls|data|recons": "the heads come with ASiT's pre-training",
    r".*loss.*|.*centre.*|.*center.*": "losses come with ASiT's pre-training",
}


def model(fixture: Fixture, dtype: torch.dtype) -> nn.Module | None:
    if "backbone.cls_token" in fixture.state:
        return filled("vit", fixture, dtype, prefix="backbone.", resize="refuse")
    return filled("vit", fixture, dtype, resize="refuse")


def answers(model: Any, fixture: Fixture, dtype: torch.dtype) -> dict[str, Tensor]:
    spectrogram = fixture.input().to(dtype)
    tokens = getattr(model, "backbone", model).tokens(spectrogram)
    return {"tokens": tokens} if not hasattr(model, "head") else {"tokens": tokens, "logits": model.head(tokens)}
