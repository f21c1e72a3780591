"""Captions and classes of slides from a bag of their patches, and which patches decided.

from apps.medical.pathology_caption import Pipeline
answer = Pipeline.load("runs/a")("patches/slide_17")
answer.caption, answer.representative_rows()
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from apps.medical.pathology_caption.pipeline import Pipeline
    from apps.medical.pathology_caption.results import Captioned

TASK = "pathology caption"

__all__ = ["TASK", "Captioned", "Pipeline"]


def __getattr__(name: str) -> Any:
    """Both pull in torch: they are imported when they are asked for."""
    if name == "Pipeline":
        from apps.medical.pathology_caption.pipeline import Pipeline

        return Pipeline
    if name == "Captioned":
        from apps.medical.pathology_caption.results import Captioned

        return Captioned
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
