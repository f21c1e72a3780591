"""The scores of `apps.medical.classes`, each with its definition and a bootstrap interval over patients or slides.

AUROC, AUPRC, sensitivity and specificity at the bundle's threshold, balanced accuracy, calibration error; two models on
the same tiles from `paired`.
"""

from __future__ import annotations

from apps.medical.classes import (
    Answer,
    Report,
    choose_threshold,
    compared,
    paired,
    reliability,
    reliability_figure,
    report,
)

__all__ = [
    "Answer", "Report", "choose_threshold", "compared", "paired", "reliability", "reliability_figure", "report",
]  # fmt: skip
