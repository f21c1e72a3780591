"""What the demonstrations of picture classes show alike: gains, tables of scores, calibration, learning."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apps.medical import classes as scores
from apps.medical.classes import Answer
from apps.medical.labelled import Labelled
from core import page, pictures
from core.data import splits
from core.files import write_text
from core.training.fit import Fitted

SHOWN = ("auroc", "auprc", "sensitivity", "specificity", "balanced_accuracy", "ece")


def write_parts(found: Labelled, shares: Mapping[str, float], file: Path) -> None:
    """A CSV beside the pictures that deals their patients out: image, label, patient, part; a data set by itself."""
    at = splits.split([p.group for p in found.pictures], shares, strata=[p.label for p in found.pictures])
    part = {i: name for name, indices in at.items() for i in indices}
    rows = [
        f"{p.path.relative_to(found.folder).as_posix()},{p.label},{p.group},{part[i]}"
        for i, p in enumerate(found.pictures)
    ]
    write_text(file, "\n".join(["image,label,patient,part", *rows]) + "\n")


def gain(name: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Of rows of `classes.paired`: how much the AUROC is above that of `name`, in words."""
    row = next(r for r in rows if r["metric"] == "auroc")
    spread = "" if row["low"] is None else f" (95 % {row['low']:+.3f} to {row['high']:+.3f}, over patients)"
    return f"Gain in AUROC over {name}: {row['difference']:+.3f}{spread}"


def table(reports: Mapping[str, scores.Report]) -> page.Table:
    """A row for each of the reports, and below them what the numbers mean."""
    rows: list[list[str | float | None]] = [["", "AUROC", "95 %", *SHOWN[1:]]]
    for name, report in reports.items():
        auroc = next((s for s in report.scores if s.metric == "auroc"), None)
        spread = "-" if auroc is None or auroc.low is None else f"{auroc.low:.3f} to {auroc.high:.3f}"
        rows.append([name, report.value("auroc"), spread, *(report.value(m) for m in SHOWN[1:])])
    first = next(iter(reports.values()))
    words = " ".join(f"{m}: {first.definitions[m]}" for m in SHOWN if m in first.definitions)
    return page.Table(rows, f"{first.pictures} pictures of {first.groups} patients left out. {words}")


def extremes(answers: Sequence[Answer], classes: Sequence[str]) -> list[tuple[Answer, str, str]]:
    """Of each class the picture judged best and the one judged worst (answer, class, words); none is picked by hand."""
    found = []
    for number, name in enumerate(classes):
        order = sorted((a for a in answers if a.target == number), key=lambda a: a.probabilities[number])
        for answer, words in ((order[-1], "judged best"), (order[0], "judged worst")):
            found.append((answer, name, f"{name}, {words}: probability {answer.probabilities[number]:.2f}"))
    return found


def calibration(
    file: Path, answers: Sequence[Answer], threshold: float | None, classes: Sequence[str], positive: str | None
) -> page.Figure:
    """The calibration plot, by way of a file."""
    from PIL import Image

    scores.reliability_figure(answers, file, positive=None if positive is None else list(classes).index(positive))
    with Image.open(file) as image:
        shown: NDArray[np.uint8] = np.asarray(image.convert("RGB"))
    chosen = "" if threshold is None else f" Chosen threshold: {threshold:.3f}."
    return page.Figure(shown, f"Calibration on the test patients.{chosen}")


def curve(fitted: Fitted) -> page.Figure:
    """The score on the validation patients over time."""
    seconds = np.cumsum([float(row["seconds"]) for row in fitted.history]).tolist()
    lines = {"AUROC": (seconds, [float(row["val/score"]) for row in fitted.history])}
    return page.Figure(pictures.curve(lines, "Validation patients", "seconds of training", "AUROC"), "Learning.")


def toml(value: Any) -> str:
    """A setting as --set reads it."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k} = {toml(v)}" for k, v in value.items()) + "}"
    return json.dumps(value)
