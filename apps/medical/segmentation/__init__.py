"""Segmentation of scans and pictures: from a file to a mask on exactly its grid.

from apps.medical.segmentation import Pipeline
mask = Pipeline.load("runs/a")("scan.nii.gz")
mask.save("mask.nii.gz")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from apps.medical.segmentation.pipeline import Pipeline
    from apps.medical.segmentation.results import Segmentation

TASK = "segment"

__all__ = ["TASK", "Pipeline", "Segmentation"]


def __getattr__(name: str) -> Any:
    """Both pull in torch: they are imported when they are asked for."""
    if name == "Pipeline":
        from apps.medical.segmentation.pipeline import Pipeline

        return Pipeline
    if name == "Segmentation":
        from apps.medical.segmentation.results import Segmentation

        return Segmentation
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
