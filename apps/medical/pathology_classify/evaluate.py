"""Scores of bundles on labelled tiles or slides, and two of them on the same ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from apps.medical import _class_scored
from apps.medical._class_scored import CALIBRATION, CASES, CURVE, Scored, paired, save
from apps.medical.pathology_classify import metrics
from apps.medical.pathology_classify.data import Found, Picture
from apps.medical.pathology_classify.metrics import Answer, Report
from apps.medical.pathology_classify.pipeline import DEFAULT_LOOK, Look, Pipeline
from core import batch

__all__ = ["CALIBRATION", "CASES", "CURVE", "Scored", "compared", "paired", "save", "score", "table"]


def score(
    pipeline: Pipeline,
    data: Found,
    pictures: Sequence[Picture],
    *,
    look: Look = DEFAULT_LOOK,
    log: batch.Log | None = None,
) -> Scored:
    """Answer every tile or slide; one that fails is listed.

    Raises InputError for pictures of a class that the bundle does not know.
    """
    names = pipeline.classes
    _class_scored.same_task(data, pictures, names)
    output = pipeline.settings.output
    return _class_scored.gathered(_answered(pipeline, pictures, look), names, output.positive, output.threshold, log)


def _answered(
    pipeline: Pipeline, pictures: Sequence[Picture], look: Look
) -> Iterator[batch.Done[tuple[Answer, str]] | batch.Failure]:
    """What the pipeline says of each, with the class that it is."""
    found = pipeline.many([p.path for p in pictures], look=look)
    for picture, one in zip(pictures, found, strict=True):
        if isinstance(one, batch.Failure):
            yield batch.Failure(picture.id, one.error)
            continue
        shares = one.result.probabilities
        target = pipeline.classes.index(picture.label)
        answer = Answer(picture.id, picture.group, target, tuple(float(p) for p in shares))
        yield batch.Done(picture.id, (answer, one.result.label), one.seconds)


def table(report: Report) -> str:
    """The scores with their intervals, and below them what each number means."""
    return report.text()


def compared(a: Scored, b: Scored) -> str:
    """Two bundles on the tiles that both answered as a table, A minus B; errors as of `paired`."""
    return metrics.compared(paired(a, b))
