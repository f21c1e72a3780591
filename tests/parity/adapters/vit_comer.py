"""ViT-CoMer: which of the two published copies a vector was made with stands in the path of its source."""

from __future__ import annotations

from typing import Any

from run import Fixture, filled
from torch import dtype, nn


def model(fixture: Fixture, dtype: dtype) -> nn.Module:
    form = str(fixture.source.get("path", "")).partition("/")[0]
    known: dict[str, Any] = {"form": form} if form in ("detection", "segmentation") else {}
    return filled("vit_comer", fixture, dtype, **known)
