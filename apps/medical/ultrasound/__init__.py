"""Ultrasound screening: from a still or cine loop to the probability of each class, and what was looked at.

from apps.medical.ultrasound import Pipeline
answer = Pipeline.load("runs/a")("liver.dcm")
answer.called, answer.probability()
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from apps.medical.ultrasound.pipeline import Pipeline
    from apps.medical.ultrasound.results import Screening

TASK = "ultrasound"

__all__ = ["TASK", "Pipeline", "Screening"]


def __getattr__(name: str) -> Any:
    """Both pull in torch: they are imported when they are asked for."""
    if name == "Pipeline":
        from apps.medical.ultrasound.pipeline import Pipeline

        return Pipeline
    if name == "Screening":
        from apps.medical.ultrasound.results import Screening

        return Screening
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
