"""A bundle's answers on labelled pictures: gathered, written down, and compared with another's."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apps.medical import classes as scores
from apps.medical import tables
from apps.medical.classes import Answer, Report
from apps.medical.labelled import Labelled, Picture
from core import batch
from core.errors import InputError
from core.files import aside, write_text

CASES, CURVE, CALIBRATION = "cases.csv", "calibration.png", "calibration.csv"


@dataclass(frozen=True)
class Scored:
    """A bundle's answers on pictures, and what could not be answered.

    Attributes:
        classes: in the order of the answers' probabilities.
        positive: the class that is looked for, None with more than two.
        threshold: of its probability; None for 0.5.
        called: id -> class that was called.
    """

    answers: tuple[Answer, ...]
    failures: tuple[batch.Failure, ...]
    classes: tuple[str, ...]
    positive: str | None
    threshold: float | None
    called: Mapping[str, str]

    @property
    def report(self) -> Report:
        """Raises InputError where nothing was answered."""
        return scores.report(self.answers, self.classes, positive=self.positive, threshold=self.threshold)


def same_task(data: Labelled, pictures: Sequence[Picture], classes: Sequence[str]) -> None:
    """Raises InputError for pictures of a class that a bundle does not know."""
    if {p.label for p in pictures} - set(classes):
        raise InputError(
            f"{data.folder}: has the classes {', '.join(data.classes)}, the bundle answers {', '.join(classes)}; "
            "score it on its own task"
        )


def gathered(
    answered: Iterable[batch.Done[tuple[Answer, str]] | batch.Failure],
    classes: Sequence[str],
    positive: str | None,
    threshold: float | None,
    log: batch.Log | None = None,
) -> Scored:
    """Answers with the class that was called, as they come; one that failed is listed."""
    good, bad, said = [], [], {}
    for one in answered:
        if isinstance(one, batch.Done):
            found, name = one.result
            good.append(found)
            said[found.id] = name
        else:
            bad.append(one)
        if log is not None:
            log.add(one, _line(one.result, classes) if isinstance(one, batch.Done) else "")
    return Scored(tuple(good), tuple(bad), tuple(classes), positive, threshold, said)


def _line(result: tuple[Answer, str], names: Sequence[str]) -> str:
    answer, called = result
    assert answer.target is not None
    right = "right" if called == names[answer.target] else f"is {names[answer.target]}"
    return f"{answer.id}: {called} {answer.probabilities[names.index(called)]:.3f}, {right}"


def save(scored: Scored, out: Path, extra: dict[str, Any]) -> None:
    """report.json with everything, cases.csv with a row for each picture, calibration.csv and .png.

    Patients are numbered: what a list of groups calls them may be a name.
    """
    report = scored.report
    place = None if scored.positive is None else scored.classes.index(scored.positive)
    bins = scores.reliability(scored.answers, positive=place)
    document = {**extra, **report.as_dict(), "reliability": bins}
    write_text(out / "report.json", json.dumps(document, indent=1, default=str) + "\n")
    write_text(out / CASES, tables.written(_rows(scored)))
    curve = [dict(zip(bins, row, strict=True)) for row in zip(*bins.values(), strict=True)]
    write_text(out / CALIBRATION, tables.written(curve))
    with aside(out / CURVE) as part:
        scores.reliability_figure(scored.answers, part, positive=place)
    if scored.failures:
        batch.write_failures(out / batch.FAILURES, scored.failures)


def _rows(scored: Scored) -> list[dict[str, Any]]:
    numbers = {group: i for i, group in enumerate(dict.fromkeys(a.group for a in scored.answers), 1)}
    return [
        {
            "id": a.id,
            "patient": numbers[a.group],
            "class": "" if a.target is None else scored.classes[a.target],
            "called": scored.called[a.id],
        }
        | {f"p_{name}": p for name, p in zip(scored.classes, a.probabilities, strict=True)}
        for a in scored.answers
    ]


def paired(a: Scored, b: Scored) -> list[dict[str, Any]]:
    """Two bundles on the pictures that both answered, each at its own threshold.

    Raises InputError where they answer other classes or have no picture in common.
    """
    if (a.classes, a.positive) != (b.classes, b.positive):
        raise InputError(
            f"the two bundles answer {', '.join(a.classes)} and {', '.join(b.classes)}; compare bundles of one task"
        )
    return scores.paired(a.answers, b.answers, a.classes, positive=a.positive, thresholds=(a.threshold, b.threshold))
