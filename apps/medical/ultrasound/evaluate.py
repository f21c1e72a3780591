"""Scores of bundles on labelled pictures, and two of them on the same ones."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from apps.medical import _class_scored
from apps.medical import classes as scores
from apps.medical._class_scored import CALIBRATION, CASES, CURVE, Scored, paired, save
from apps.medical.classes import Answer, Report
from apps.medical.ultrasound.data import Found, Picture
from apps.medical.ultrasound.pipeline import Pipeline
from core import batch

__all__ = ["CALIBRATION", "CASES", "CURVE", "Scored", "compared", "paired", "save", "score", "table"]


def score(
    pipeline: Pipeline,
    data: Found,
    pictures: Sequence[Picture],
    *,
    pool: str = "mean",
    log: batch.Log | None = None,
) -> Scored:
    """Answer every picture; one that fails is listed.

    Raises InputError for pictures of a class that the bundle does not know.
    """
    names = pipeline.names
    _class_scored.same_task(data, pictures, names)
    work = partial(_one, pipeline, pool)
    answered = batch.each(list(pictures), lambda: work, name=lambda p: p.id)
    return _class_scored.gathered(answered, names, pipeline.positive, pipeline.threshold, log)


def _one(pipeline: Pipeline, pool: str, picture: Picture) -> tuple[Answer, str]:
    result = pipeline(picture.path, pool=pool, marks=False, looked=False)
    target = pipeline.classes[picture.label]
    found = Answer(picture.id, picture.group, target, tuple(float(p) for p in result.probabilities))
    return found, result.called


def table(report: Report) -> str:
    """The scores with their intervals, and below them what each number means."""
    return report.text()


def compared(rows: Sequence[dict[str, Any]]) -> str:
    """Rows of `paired` as a table, A minus B."""
    return scores.compared(rows)
