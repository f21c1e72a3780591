"""Scores of bundles on pairs of photographs, and two of them on the same ones.

Beside each restored photograph stands the blurred one itself, scored alike: what a network must beat.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from apps.deblurring import data as sets
from apps.deblurring import scoring
from apps.deblurring.data import Data, Pair
from apps.deblurring.pipeline import Pipeline
from apps.deblurring.scoring import CLASS, CaseScore
from core import batch, score_tables
from core.files import write_text
from core.scores import MEAN, Comparison, Report

__all__ = ["Scored", "compared", "save", "score", "table"]


@dataclass(frozen=True)
class Scored:
    """A bundle's scores over photographs, those of the photographs as they came, and what could not be scored.

    Attributes:
        data: name of the folder.
        layout: of the data set.
    """

    cases: tuple[CaseScore, ...]
    inputs: tuple[CaseScore, ...]
    failures: tuple[batch.Failure, ...]
    data: str
    layout: str

    @property
    def report(self) -> Report:
        """Of the restored photographs."""
        return scoring.report(self.cases)

    @property
    def baseline(self) -> Report:
        """Of the blurred photographs themselves."""
        return scoring.report(self.inputs)

    @property
    def gain(self) -> Comparison:
        """Restored minus blurred, photograph by photograph."""
        return scoring.paired(self.cases, self.inputs)

    def as_dict(self) -> dict[str, Any]:
        """For report.json."""
        gain = [row for row in self.gain.rows if row["class"] == CLASS]
        both = [
            {**case.as_dict(), "input": own.as_dict()["values"]}
            for case, own in zip(self.cases, self.inputs, strict=True)
        ]
        words = {
            "data": self.data,
            "layout": self.layout,
            "input": self.baseline.as_dict()["classes"][CLASS],
            "gain": _json(gain),
            "scores": both,
        }
        return {**self.report.as_dict(), **words}


def score(
    pipeline: Pipeline, data: Data, pairs: Sequence[Pair], *, by: str = "house", log: batch.Log | None = None
) -> Scored:
    """Restore and score every photograph; one that fails is listed.

    Raises UnknownNameError for a protocol that does not exist.
    """
    scoring.protocol(by)
    good: list[tuple[CaseScore, CaseScore]] = []
    bad: list[batch.Failure] = []
    for answer in batch.each(list(pairs), lambda: partial(_one, pipeline, by), name=lambda p: p.id):
        if isinstance(answer, batch.Done):
            good.append(answer.result)
        else:
            bad.append(answer)
        if log is not None:
            log.add(answer, _line(*answer.result) if isinstance(answer, batch.Done) else "")
    both = tuple(a for a, _ in good), tuple(b for _, b in good)
    return Scored(*both, tuple(bad), data.folder.name, data.layout)


def _one(pipeline: Pipeline, by: str, pair: Pair) -> tuple[CaseScore, CaseScore]:
    """Restored and blurred; the network gets and gives floats, so that only the protocol rounds."""
    read = sets.read_pair(pair)
    tile = read.blurred.shape[:2] if scoring.protocol(by).whole else None
    result = pipeline(read.blurred, tile=tile)
    found = result.mask.astype(np.float32) / np.float32(255)
    return (
        scoring.score(result.image, read.sharp, read.mask, found, by=by, id=pair.id, group=pair.group),
        scoring.score(read.blurred, read.sharp, read.mask, by=by, id=pair.id, group=pair.group),
    )


def _line(case: CaseScore, own: CaseScore) -> str:
    told = [f"{m} {v:.3f} (input {own.row[m]:.3f})" for m, v in case.row.items() if not np.isnan(v + own.row[m])]
    return f"{case.id}: {', '.join(told)}"


def table(scored: Scored) -> str:
    """Metric by metric: restored, the input itself, and the gain with its interval; below, what each number means."""
    gains = {row["metric"]: row for row in scored.gain.rows if row["class"] == CLASS}
    restored, own = scored.report, scored.baseline
    rows = [["metric", "restored [95 %]", "input", "gain [95 %]", "n"]]
    for metric, found in restored.mean.items():
        gain = gains[metric]
        rows.append([
            metric,
            _number(found.mean) + _spread(found.low, found.high),
            _number(own.mean[metric].mean),
            _number(gain["difference"], "+") + _spread(gain["low"], gain["high"], "+") if gain["n"] else "-",
            str(found.n),
        ])  # fmt: skip
    widths = [max(len(r[i]) for r in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in rows]
    return "\n".join([*lines, "", *(f"{name}: {words}" for name, words in restored.definitions.items())])


def compared(found: Comparison) -> str:
    """Rows of a comparison, A minus B; the mean over the one class says nothing more."""
    return score_tables.compared(replace(found, rows=[row for row in found.rows if row["class"] != MEAN]))


def save(scored: Scored, out: Path, extra: dict[str, Any]) -> None:
    """report.json with everything, cases.csv with a row for each photograph and metric."""
    document = {**extra, **scored.as_dict()}
    write_text(out / "report.json", json.dumps(_json(document), indent=1, default=str) + "\n")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("id", "group", "metric", "value", "input"))
    writer.writerows(_rows(scored))
    write_text(out / "cases.csv", text.getvalue())
    if scored.failures:
        batch.write_failures(out / batch.FAILURES, scored.failures)


def _rows(scored: Scored) -> Iterator[tuple[str, str, str, str, str]]:
    for case, own in zip(scored.cases, scored.inputs, strict=True):
        for metric, value in case.row.items():
            yield case.id, case.group, metric, _cell(value), _cell(own.row[metric])


def _cell(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.6f}"


def _number(value: float | None, sign: str = "") -> str:
    return "-" if value is None else f"{value:{sign}.3f}"


def _spread(low: float | None, high: float | None, sign: str = "") -> str:
    return "" if low is None or high is None else f" [{low:{sign}.3f}, {high:{sign}.3f}]"


def _json(value: Any) -> Any:
    """JSON has no NaN: null in its place."""
    if isinstance(value, dict):
        return {k: _json(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_json(v) for v in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
