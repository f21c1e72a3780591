"""PH-Reg: teacher and student are DINOv2 in Hugging Face's names. Views and losses come with its training."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from run import Fixture, filled
from torch import Tensor, nn

LATER = {
    r"shifted_.*|teacher_denoised": "views come with PH-Reg's training",
    r"loss.*": "losses come with PH-Reg's training",
    r"teacher_tokens|student_tokens|neighbourhood_bias": "CLIP's changed last block comes with PH-Reg",
}


def model(fixture: Fixture, dtype: torch.dtype) -> nn.Module | None:
    if "dinov2" not in fixture.build:
        return None
    tower = replace(fixture, build=fixture.build["dinov2"])
    return nn.ModuleDict({k: filled("vit", tower, dtype, prefix=f"{k}.") for k in ("teacher", "student")})


def answers(model: Any, fixture: Fixture, dtype: torch.dtype) -> dict[str, Tensor]:
    if model is None:
        return {}
    image = fixture.input().to(dtype)
    tokens = model["student"].tokens(image)
    prefix = model["student"].prefix  # ours: class, registers, patches; theirs: registers, class, patches
    student = torch.cat([tokens[:, 1:prefix], tokens[:, :1], tokens[:, prefix:]], dim=1)
    return {"teacher_plain": model["teacher"].tokens(image), "student_tokens": student}
