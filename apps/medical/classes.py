"""Scores of class probabilities with intervals over patients, thresholds chosen on other patients, calibration.

A picture's answer is an `Answer`; pictures of one patient are drawn together in every interval.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from apps.medical._class_answers import Answer
from apps.medical._class_calibration import choose_threshold, reliability, reliability_figure
from core.errors import InputError

if TYPE_CHECKING:
    from apps.medical._class_measures import Measure, Table

__all__ = [
    "Answer", "Report", "Score", "aligned", "checked", "choose_threshold", "compared", "paired", "reliability",
    "reliability_figure", "report",
]  # fmt: skip

LEVEL = 0.95
DRAWS = 2000
_CHUNK = 2**22  # weights held at once: 32 MB
_TOLERANCE = 1e-3  # of a sum of probabilities
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Score:
    """One number.

    Attributes:
        label: class, "" for all of them.
        n: pictures that it is of.
        low, high: 95 % interval over groups; None with fewer than two groups.
    """

    label: str
    metric: str
    value: float
    n: int
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Report:
    """What was scored, and how.

    Attributes:
        classes: in the order of their numbers.
        positive: the class looked for where it is one against the rest, else None.
        threshold: of its probability.
        pictures, groups: with a known class.
        unknown: pictures without one; they are not scored.
        scores: of all classes together first.
        left_out: metric -> why it has no value.
        definitions: metric, "interval" -> a sentence.
    """

    classes: tuple[str, ...]
    positive: str | None
    threshold: float | None
    pictures: int
    groups: int
    unknown: int
    scores: tuple[Score, ...]
    left_out: dict[str, str]
    definitions: dict[str, str]

    def value(self, metric: str, label: str = "") -> float | None:
        """One number, None where it was left out."""
        return next((s.value for s in self.scores if (s.metric, s.label) == (metric, label)), None)

    def rows(self) -> list[dict[str, Any]]:
        """Flat rows: class ("all" for all of them), metric, value, low, high, n."""
        return [
            {"class": s.label or "all", "metric": s.metric, "value": s.value, "low": s.low, "high": s.high, "n": s.n}
            for s in self.scores
        ]

    def as_dict(self) -> dict[str, Any]:
        """For report.json."""
        return vars(self) | {"classes": list(self.classes), "scores": self.rows()}

    def text(self) -> str:
        """A table for the terminal, and below it what each number means."""
        cells = [("class", "metric", "value [95 %]", "n")]
        for s in self.scores:
            spread = "" if s.low is None or s.high is None else f" [{s.low:.3f}, {s.high:.3f}]"
            cells.append((s.label or "all", s.metric, f"{s.value:.3f}{spread}", str(s.n)))
        lines = aligned(cells)
        counted = f"{self.pictures} pictures of {self.groups} patients"
        if self.unknown:
            counted += f"; {self.unknown} more without a known class are not scored"
        lines += ["", counted]
        lines += [f"{metric}: left out, {why}" for metric, why in self.left_out.items()]
        lines += [f"{metric}: {words}" for metric, words in self.definitions.items()]
        return "\n".join(lines)


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table whose columns stand below one another."""
    widths = [max(len(r[i]) for r in rows) for i in range(len(rows[0]))]
    return ["  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in rows]


def report(
    answers: Sequence[Answer],
    classes: Sequence[str],
    *,
    positive: str | None = None,
    threshold: float | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> Report:
    """Score answers whose class is known.

    Args:
        answers: of any number of groups.
        classes: their names.
        positive: the class looked for; it is measured against the rest. Of two classes the second by default; with
            more, without it, each class is measured against the rest and means are taken.
        threshold: of the positive class's probability, 0.5 by default.
        draws: of the bootstrap.
        seed: of the draws.

    A metric that has no value (an absent class) is left out with its reason. Raises InputError for no answer with a
    known class, an id that occurs twice, probabilities that are none, a positive class that is not there.
    """
    chosen = _positive(classes, positive)
    known = checked(answers, classes)
    measures, reasons, words = _measured(_table(known, classes), chosen, threshold)
    groups = _groups(known)
    times = _times(groups, draws, seed)
    scores = []
    for measure in measures:
        low, high = _interval(_drawn(measure, groups, times), groups)
        scores.append(Score(measure.label, measure.metric, measure.value, measure.n, low, high))
    words["interval"] = (
        f"95 %, percentile bootstrap of {draws} draws of whole groups (patients, slides); draws in which a number has "
        "no value are passed over; none with fewer than two groups."
    )
    return Report(
        tuple(classes), None if chosen is None else classes[chosen], _threshold(chosen, threshold), len(known),
        len(set(groups.tolist())), len(answers) - len(known), tuple(scores), reasons, words,
    )  # fmt: skip


def paired(
    a: Sequence[Answer],
    b: Sequence[Answer],
    classes: Sequence[str],
    *,
    positive: str | None = None,
    thresholds: tuple[float | None, float | None] = (None, None),
    draws: int = DRAWS,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Two sets of answers on the pictures that both have, each drawn with the same groups.

    Rows of class, metric, n, a, b, difference (a - b), low, high; a metric that either lacks is left out. Raises
    InputError as `report` does, where no picture occurs in both, and where class or group of one differ.
    """
    chosen = _positive(classes, positive)
    left = {x.id: x for x in checked(a, classes)}
    right = {x.id: x for x in checked(b, classes)}
    shared = [i for i in left if i in right]
    if not shared:
        raise InputError("the two sets of answers have no picture in common; compare models on the same pictures")
    for i in shared:
        if (left[i].target, left[i].group) != (right[i].target, right[i].group):
            raise InputError(f"{i}: its class or patient differs between the two sets; score both on the same data")
    ones, others = [left[i] for i in shared], [right[i] for i in shared]
    groups = _groups(ones)
    times = _times(groups, draws, seed)
    first, _, _ = _measured(_table(ones, classes), chosen, thresholds[0])
    second, _, _ = _measured(_table(others, classes), chosen, thresholds[1])
    rows = []
    for x in first:
        y = next((m for m in second if (m.label, m.metric) == (x.label, x.metric)), None)
        if y is None:
            continue
        low, high = _interval(_drawn(x, groups, times) - _drawn(y, groups, times), groups)
        row = {"class": x.label or "all", "metric": x.metric, "n": x.n, "a": x.value, "b": y.value}
        rows.append(row | {"difference": x.value - y.value, "low": low, "high": high})
    return rows


def compared(rows: Sequence[dict[str, Any]]) -> str:
    """Rows of `paired` as a table, A minus B."""
    cells = [("class", "metric", "A", "B", "A - B [95 %]", "n")]
    for row in rows:
        spread = "" if row["low"] is None else f" [{row['low']:+.3f}, {row['high']:+.3f}]"
        means = (f"{row['a']:.3f}", f"{row['b']:.3f}")
        cells.append((row["class"], row["metric"], *means, f"{row['difference']:+.3f}{spread}", str(row["n"])))
    return "\n".join(aligned(cells))


def checked(answers: Sequence[Answer], classes: Sequence[str]) -> list[Answer]:
    """The answers with a known class. Raises InputError as `report` says."""
    seen: set[str] = set()
    for x in answers:
        if x.id in seen:
            raise InputError(f"{x.id}: was answered twice; give each picture its own id")
        seen.add(x.id)
        p = np.asarray(x.probabilities, float)
        if p.shape != (len(classes),):
            raise InputError(f"{x.id}: {p.size} probabilities for {len(classes)} classes")
        if not np.isfinite(p).all() or p.min() < 0 or abs(p.sum() - 1) > _TOLERANCE:
            raise InputError(f"{x.id}: {x.probabilities} are no probabilities; they are 0 to 1 and add up to 1")
        if x.target is not None and not 0 <= x.target < len(classes):
            raise InputError(f"{x.id}: class number {x.target}, but there are {len(classes)} classes")
    known = [x for x in answers if x.target is not None]
    if not known:
        raise InputError("no picture has a known class, so there is nothing to score")
    return known


def _positive(classes: Sequence[str], positive: str | None) -> int | None:
    if len(classes) < 2:
        raise InputError(f"only one class ({', '.join(classes)}); two are needed to tell apart")
    if positive is None:
        return 1 if len(classes) == 2 else None
    if positive not in classes:
        raise InputError(f"no class is named {positive!r}; the classes are {', '.join(classes)}")
    return list(classes).index(positive)


def _threshold(chosen: int | None, threshold: float | None) -> float | None:
    return None if chosen is None else 0.5 if threshold is None else threshold


def _table(known: Sequence[Answer], classes: Sequence[str]) -> Table:
    from apps.medical._class_measures import Table

    p, y = np.array([x.probabilities for x in known], float), np.array([x.target for x in known], np.intp)
    # What is above 1 by rounding, torchmetrics would take for logits. Not divided by its sum: that would undo ties.
    return Table(np.clip(p, 0, 1), y, tuple(classes))


def _measured(
    table: Table, chosen: int | None, threshold: float | None
) -> tuple[list[Measure], dict[str, str], dict[str, str]]:
    from apps.medical import _class_measures as of

    if chosen is None:
        measures, reasons = of.several(table)
        return measures, reasons, of.definitions(of.SEVERAL, [m.metric for m in measures])
    at = 0.5 if threshold is None else threshold
    measures, reasons = of.binary(table, chosen, at)
    told = f"{at:.4g}" + (" (none was chosen)" if threshold is None else "")
    named = {"positive": table.classes[chosen], "threshold": told}
    return measures, reasons, of.definitions(of.BINARY, [m.metric for m in measures], **named)


def _groups(known: Sequence[Answer]) -> NDArray[np.intp]:
    """(N,): the group of each answer as a number; one without a group is its own."""
    keys = [("group", x.group) if x.group else ("picture", x.id) for x in known]
    order = {key: i for i, key in enumerate(dict.fromkeys(keys))}
    return np.array([order[key] for key in keys], np.intp)


def _times(groups: NDArray[np.intp], draws: int, seed: int) -> NDArray[np.int64]:
    """(draws, groups): how often each group was drawn."""
    count = int(groups.max()) + 1
    return np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=draws)


def _drawn(measure: Measure, groups: NDArray[np.intp], times: NDArray[np.int64]) -> Floats:
    step = max(1, _CHUNK // len(groups))
    return np.concatenate([measure.drawn(w) for w in _weights(groups, times, step)])


def _weights(groups: NDArray[np.intp], times: NDArray[np.int64], step: int) -> Iterator[Floats]:
    for start in range(0, len(times), step):
        yield times[start : start + step, groups].astype(np.float64)


def _interval(drawn: Floats, groups: NDArray[np.intp]) -> tuple[float | None, float | None]:
    drawn = drawn[~np.isnan(drawn)]
    if len(set(groups.tolist())) < 2 or not drawn.size:
        return None, None
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
