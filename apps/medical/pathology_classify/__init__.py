"""Classification of histology: tiles, pictures and whole slides, with a map of what decided.

from apps.medical.pathology_classify import Pipeline
answer = Pipeline.load("runs/a")("slide.svs")
answer.save("slide.geojson")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from apps.medical.pathology_classify.pipeline import Look, Pipeline
    from apps.medical.pathology_classify.results import Classification, SlideClassification

TASK = "pathology classify"

__all__ = ["TASK", "Classification", "Look", "Pipeline", "SlideClassification"]


def __getattr__(name: str) -> Any:
    """All pull in torch: they are imported when they are asked for."""
    if name in ("Look", "Pipeline"):
        from apps.medical.pathology_classify import pipeline

        return getattr(pipeline, name)
    if name in ("Classification", "SlideClassification"):
        from apps.medical.pathology_classify import results

        return getattr(results, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
