"""Removal of motion blur: from a photograph to the sharp one and the mask of where it was blurred.

from apps.deblurring import Pipeline
sharp = Pipeline.load("runs/a")("photo.jpg")
sharp.save("sharp.jpg")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from apps.deblurring.pipeline import Pipeline
    from apps.deblurring.results import Deblurred

TASK = "deblurring"

__all__ = ["TASK", "Deblurred", "Pipeline"]


def __getattr__(name: str) -> Any:
    """Both pull in torch: they are imported when they are asked for."""
    if name == "Pipeline":
        from apps.deblurring.pipeline import Pipeline

        return Pipeline
    if name == "Deblurred":
        from apps.deblurring.results import Deblurred

        return Deblurred
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
