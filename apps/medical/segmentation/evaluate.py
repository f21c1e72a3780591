"""Scores of bundles on labelled cases, and two of them on the same ones."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from apps.medical.segmentation import labels, metrics
from apps.medical.segmentation.data import Case, Data
from apps.medical.segmentation.metrics import CaseScore
from apps.medical.segmentation.pipeline import Pipeline
from apps.medical.segmentation.prepare import scan
from core import batch
from core.errors import InputError
from core.files import aside, write_text
from core.score_tables import compared, table
from core.scores import Report

__all__ = ["Scored", "compared", "save", "score", "table"]


@dataclass(frozen=True)
class Scored:
    """A bundle's scores over cases, and what could not be scored."""

    cases: tuple[CaseScore, ...]
    failures: tuple[batch.Failure, ...]

    @property
    def report(self) -> Report:
        return metrics.report(self.cases)


def score(
    pipeline: Pipeline, data: Data, cases: Sequence[Case], *, by: str = "house", log: batch.Log | None = None
) -> Scored:
    """Predict and score every case; one that fails is listed.

    Raises InputError where the bundle's classes are not the data's.
    """
    ours, theirs = dict(pipeline.classes), dict(data.classes)
    if ours != theirs:
        raise InputError(
            f"{data.folder}: has the classes {theirs}, the bundle answers {ours}; score it on its own task"
        )
    metrics.protocol(by)
    good, bad = [], []
    for answer in batch.each(list(cases), lambda: partial(_one, pipeline, data, by), name=lambda c: c.id):
        if isinstance(answer, batch.Done):
            good.append(answer.result)
        else:
            bad.append(answer)
        if log is not None:
            log.add(answer, _line(answer.result) if isinstance(answer, batch.Done) else "")
    return Scored(tuple(good), tuple(bad))


def _one(pipeline: Pipeline, data: Data, by: str, case: Case) -> CaseScore:
    found = scan(case, pipeline.settings.input.channels)
    assert case.label is not None
    truth = labels.classes(case.label, found, data)
    result = pipeline(found)
    return metrics.score(
        np.where(truth == labels.UNKNOWN, 0, truth),
        result.mask,
        data.classes,
        spacing=found.meta.spacing,
        valid=truth != labels.UNKNOWN,
        by=by,
        id=case.id,
        group=case.group,
    )


def _line(score: CaseScore) -> str:
    means = {m: score.mean(m) for m in score.protocol.metrics}
    return f"{score.id}: " + ", ".join(f"{m} {v:.3f}" for m, v in means.items() if not np.isnan(v))


def save(scored: Scored, out: Path, extra: dict[str, Any]) -> None:
    """report.json with everything, cases.csv with a row for each case, class and metric."""
    document = {**extra, **scored.report.as_dict(), "scores": [c.as_dict() for c in scored.cases]}
    write_text(out / "report.json", json.dumps(document, indent=1, default=str) + "\n")
    with aside(out / "cases.csv") as part:
        part.write_text("\n".join(["id,group,class,metric,value", *_rows(scored.cases)]) + "\n", encoding="utf-8")
    if scored.failures:
        batch.write_failures(out / batch.FAILURES, scored.failures)


def _rows(cases: Sequence[CaseScore]) -> Iterator[str]:
    for case in cases:
        for label, row in case.values.items():
            for metric, value in row.items():
                yield f"{case.id},{case.group},{label},{metric},{'' if np.isnan(value) else f'{value:.6f}'}"
