"""How the frames of a clip become one answer, and which class that is; the scores are those of `apps.medical.classes`.

AUROC, AUPRC, sensitivity and specificity at the bundle's threshold, calibration error: each with its definition and a
bootstrap interval over patients, from `report`; two models on the same pictures from `paired`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apps.medical.classes import Answer, Report, choose_threshold, paired, reliability, reliability_figure, report
from core.errors import ShapeError, UnknownNameError

__all__ = [
    "POOLS", "Answer", "Report", "called", "choose_threshold", "paired", "pooled", "reliability", "reliability_figure",
    "report", "strongest",
]  # fmt: skip

POOLS = {
    "mean": "mean of the frames' probabilities",
    "median": "median of the frames' probabilities of each class, divided by their sum",
    "strongest": "probabilities of the frame that speaks most for the positive class (of several: that is surest)",
}
_HALF = 0.5  # threshold where none was chosen


def pooled(frames: NDArray[np.floating[Any]], pool: str = "mean", positive: int | None = None) -> NDArray[np.float64]:
    """Probabilities (K,) of a clip from those of its frames (T, K); frames with NaN have no say.

    Args:
        frames: rows that add up to 1.
        pool: a name of POOLS.
        positive: number of the class that is looked for.

    Raises UnknownNameError for another pool, ShapeError where no frame has a say.
    """
    if pool not in POOLS:
        raise UnknownNameError("pool", pool, POOLS)
    known = np.asarray(frames, np.float64)
    known = known[~np.isnan(known).any(axis=1)]
    if not len(known):
        raise ShapeError("no frame was scored, so there is nothing to pool")
    if pool == "mean":
        return known.mean(axis=0)
    if pool == "median":
        middle = np.median(known, axis=0)
        total = float(middle.sum())
        return middle / total if total > 0 else known.mean(axis=0)
    return known[strongest(known, positive)]


def strongest(frames: NDArray[np.floating[Any]], positive: int | None = None) -> int:
    """The frame of (T, K) that speaks most for class `positive`, or without one is surest of any class."""
    said = frames.max(axis=1) if positive is None else frames[:, positive]
    return int(np.nanargmax(said))


def called(
    probabilities: NDArray[np.floating[Any]],
    classes: Mapping[str, int],
    positive: str | None = None,
    threshold: float | None = None,
) -> str:
    """The class that probabilities (K,) stand for.

    With a positive class (of two) that one from `threshold` (0.5 where none was chosen) on; else the likeliest.
    """
    names = {number: name for name, number in classes.items()}
    if positive is None:
        return names[int(np.argmax(probabilities))]
    at = _HALF if threshold is None else threshold
    if probabilities[classes[positive]] >= at:
        return positive
    return next(name for name in classes if name != positive)
