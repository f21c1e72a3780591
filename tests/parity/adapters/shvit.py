"""SHViT: the stem's map beside the pyramid."""

from __future__ import annotations

from typing import Any

import torch
from run import Fixture, pyramid_answers
from torch import Tensor


def answers(model: Any, fixture: Fixture, dtype: torch.dtype) -> dict[str, Tensor]:
    found = pyramid_answers(model, fixture, dtype)
    if "stem" in fixture.outputs:
        image = fixture.input(next(iter(fixture.inputs))).to(dtype)
        found["stem"] = getattr(model, "backbone", model).stages[0].merge(image)
    return found
