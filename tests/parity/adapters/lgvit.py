"""LGViT: its backbones are ViT, DeiT and Swin in Hugging Face's names. Exits and losses come with early exiting."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from run import Fixture, filled
from torch import Tensor, nn

LATER = {r"exit.*": "exits come with LGViT", r"stage\d_loss.*": "losses come with LGViT"}


def model(fixture: Fixture, dtype: torch.dtype) -> nn.Module:
    family = "swin" if any(n.startswith("swin.") for n in fixture.state) else "vit"
    plain = replace(fixture, state={n: s for n, s in fixture.state.items() if ".highway." not in n})
    fixed = {"resize": "refuse"} if family == "vit" else {}
    return filled(family, plain, dtype, classes=fixture.build["num_labels"], **fixed)


def answers(model: Any, fixture: Fixture, dtype: torch.dtype) -> dict[str, Tensor]:
    image = fixture.input().to(dtype)
    found = {"final.logits.sample0": model(image[:1])}
    if len(model.backbone.channels) > 1:
        found |= {f"stage{i}": level for i, level in enumerate(model.backbone(image), 1)}
    return found
