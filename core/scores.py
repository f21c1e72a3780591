"""From the scores of cases to means with n, what was left out, intervals, and two models compared; for every app.

An app scores its cases by its own metrics (`Case`) and says what each number means (`Definitions`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from core.errors import InputError, MissingExtraError

LEVEL = 0.95
REPEATS = 2000
MEAN = "mean"


class Rule(Protocol):
    """How cases were scored."""

    @property
    def name(self) -> str: ...
    @property
    def metrics(self) -> tuple[str, ...]: ...
    @property
    def average(self) -> str: ...  # "classes": over cases first, then classes; "images": over a case's classes first


class Case(Protocol):
    """What one case scored: class -> metric -> value, NaN where left out; `group` (patient, scene) is resampled."""

    @property
    def id(self) -> str: ...
    @property
    def group(self) -> str: ...
    @property
    def protocol(self) -> Any: ...  # a Rule
    @property
    def unit(self) -> str: ...
    @property
    def values(self) -> Mapping[str, Mapping[str, float]]: ...
    @property
    def left_out(self) -> Mapping[str, Mapping[str, str]]: ...


Definitions = Callable[[Any, str, Sequence[str], int], dict[str, str]]
"""Rule, unit, classes and number of draws -> metric, "empty", "mean", "interval" -> a sentence."""


@dataclass(frozen=True)
class Summary:
    """One metric of one class, or of all.

    Attributes:
        mean: None where no case counts.
        n: cases that count.
        left_out: reason -> cases that do not.
        low, high: bounds of the 95 % interval over groups; None with fewer than two groups.
    """

    mean: float | None
    n: int
    left_out: dict[str, int]
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Report:
    """What a model scored, with how it was scored.

    Attributes:
        protocol: its name.
        cases, groups: how many; the intervals resample groups.
        classes: class -> metric -> Summary.
        mean: metric -> Summary over all, n in cases that count for at least one class.
        never_scored: classes without one case that counts; they are not in the mean.
        definitions: metric, "empty", "mean", "interval" -> a sentence.
    """

    protocol: str
    cases: int
    groups: int
    classes: dict[str, dict[str, Summary]]
    mean: dict[str, Summary]
    never_scored: tuple[str, ...]
    definitions: dict[str, str]

    def rows(self) -> list[dict[str, Any]]:
        """Flat rows for a table or CSV, the mean over all last."""
        everything = [*self.classes.items(), (MEAN, self.mean)]
        return [
            {"class": c, "metric": m, "mean": s.mean, "low": s.low, "high": s.high, "n": s.n}
            | {"left_out": sum(s.left_out.values())}
            for c, row in everything
            for m, s in row.items()
        ]

    def as_dict(self) -> dict[str, Any]:
        """For report.json."""
        plain = {c: {m: vars(s) for m, s in row.items()} for c, row in self.classes.items()}
        return vars(self) | {
            "classes": plain,
            "mean": {m: vars(s) for m, s in self.mean.items()},
            "never_scored": list(self.never_scored),
        }


@dataclass(frozen=True)
class Comparison:
    """Two models on the same items.

    Attributes:
        rows: class ("mean" for all), metric, n, mean_a, mean_b, difference (a - b), low, high, p.
        only_a, only_b: ids that the other lacks; they are not compared.
        definitions: as in Report, and "p".
    """

    rows: list[dict[str, Any]]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    definitions: dict[str, str]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return vars(self) | {"only_a": list(self.only_a), "only_b": list(self.only_b)}


def report(cases: Sequence[Case], definitions: Definitions, *, repeats: int = REPEATS, seed: int = 0) -> Report:
    """Sum up cases that one protocol scored.

    Raises InputError for no cases, for cases of unlike protocol, classes or unit (millimetres and samples do not mix),
    or for an id that occurs twice.
    """
    names, metrics = _checked(cases)
    groups = _groups(cases)
    rule = cases[0].protocol
    classes: dict[str, dict[str, Summary]] = {name: {} for name in names}
    mean: dict[str, Summary] = {}
    for metric in metrics:
        values = np.array([[case.values[name][metric] for name in names] for case in cases])
        drawn = _resampled(values, groups, repeats, seed)
        for k, name in enumerate(names):
            reasons: dict[str, int] = {}
            for case in cases:
                word = case.left_out.get(name, {}).get(metric)
                if word:
                    reasons[word] = reasons.get(word, 0) + 1
            classes[name][metric] = _summary(_mean(values[:, k]), values[:, k], reasons, drawn[:, k], groups)
        each = _row_means(values)
        if rule.average == "images":
            whole, drawn = _mean(each), _resampled(each[:, None], groups, repeats, seed)[:, 0]
        else:
            whole, drawn = _mean(_row_means(values.T)), _row_means(drawn)
        lost = int(np.isnan(each).sum())
        mean[metric] = _summary(whole, each, {"no class counts": lost} if lost else {}, drawn, groups)
    never = tuple(name for name in names if all(s.n == 0 for s in classes[name].values()))
    return Report(
        rule.name, len(cases), len(set(groups)), classes, mean, never, definitions(rule, cases[0].unit, names, repeats)
    )


def paired(
    a: Sequence[Case], b: Sequence[Case], definitions: Definitions, *, repeats: int = REPEATS, seed: int = 0
) -> Comparison:
    """Compare two models case by case, on the ids that both have.

    Only pairs where both values count are used, so means can differ from the reports'. Raises InputError as `report`
    does, where an id is empty, and where none occurs in both.
    """
    if not all(case.id for case in (*a, *b)):
        raise InputError("a case without an id cannot be paired; give each item its own id")
    left, right = {case.id: case for case in a}, {case.id: case for case in b}
    shared = [i for i in left if i in right]
    if not shared:
        raise InputError("the two sets of scores have no item in common; compare models on the same items")
    ones, others = [left[i] for i in shared], [right[i] for i in shared]
    names, metrics = _checked([*a])
    if (names, metrics) != _checked([*b]) or (a[0].protocol, a[0].unit) != (b[0].protocol, b[0].unit):
        raise InputError("the two models were scored by other protocols, classes or units; score both alike")
    groups = _groups(ones)
    rows: list[dict[str, Any]] = []
    for metric in metrics:
        first, second = (
            np.array([[*(case.values[name][metric] for name in names)] for case in part]) for part in (ones, others)
        )
        both = ~np.isnan(first) & ~np.isnan(second)
        first, second = np.where(both, first, np.nan), np.where(both, second, np.nan)
        for k, name in enumerate([*names, MEAN]):
            x, y = (_row_means(m) if name == MEAN else m[:, k] for m in (first, second))
            gap = x - y
            drawn = _resampled(gap[:, None], groups, repeats, seed)[:, 0]
            low, high = _interval(drawn, gap, groups)
            count = int((~np.isnan(gap)).sum())
            row = {"class": name, "metric": metric, "n": count, "mean_a": _mean(x), "mean_b": _mean(y)}
            rows.append(row | {"difference": _mean(gap), "low": low, "high": high, "p": _p(gap, groups)})
    words = definitions(a[0].protocol, a[0].unit, names, repeats)
    words["mean"] = "over the classes of a case first, then over cases; only pairs in which both models' values count."
    words["p"] = (
        "Two-sided Wilcoxon signed-rank test of the groups' mean differences (scipy.stats.wilcoxon), not corrected "
        "for the number of rows; fewer than six groups cannot come below 0.05."
    )
    missing = tuple(i for i in left if i not in right), tuple(i for i in right if i not in left)
    return Comparison(rows, *missing, words)


def _checked(cases: Sequence[Case]) -> tuple[list[str], list[str]]:
    if not cases:
        raise InputError("no case was scored, so there is nothing to report")
    first = cases[0]
    for case in cases:
        if (case.protocol, case.unit, list(case.values)) != (first.protocol, first.unit, list(first.values)):
            raise InputError(
                f"{case.id} and {first.id} were scored by another protocol, class list or unit "
                f"({case.unit} and {first.unit}); score them alike, or apart"
            )
    ids = [case.id for case in cases]
    twice = sorted({i for i in ids if i and ids.count(i) > 1})
    if twice:
        raise InputError(f"the item {twice[0]} was scored twice; give each item its own id")
    return list(first.values), list(first.protocol.metrics)


def _groups(cases: Sequence[Case]) -> NDArray[np.intp]:
    """The group of each case as a number; a case without one is its own."""
    keys = [("group", case.group) if case.group else ("case", str(i)) for i, case in enumerate(cases)]
    order = {key: i for i, key in enumerate(dict.fromkeys(keys))}
    return np.array([order[key] for key in keys])


def _mean(values: NDArray[np.floating[Any]]) -> float | None:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else None


def _row_means(values: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
    """Mean of each row without its NaN; NaN where the row has nothing else."""
    known = ~np.isnan(values)
    return np.where(known, values, 0).sum(axis=1) / np.where(known.any(axis=1), known.sum(axis=1), np.nan)


def _resampled(
    values: NDArray[np.floating[Any]], groups: NDArray[np.intp], repeats: int, seed: int
) -> NDArray[np.floating[Any]]:
    """Means (repeats, K) of values (cases, K) when whole groups are drawn with replacement."""
    count = int(groups.max()) + 1
    known = ~np.isnan(values)
    sums, sizes = np.zeros((count, values.shape[1])), np.zeros((count, values.shape[1]))
    np.add.at(sums, groups, np.where(known, values, 0))
    np.add.at(sizes, groups, known)
    times = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=repeats)
    n = times @ sizes
    return (times @ sums) / np.where(n > 0, n, np.nan)


def _interval(
    drawn: NDArray[np.floating[Any]], values: NDArray[np.floating[Any]], groups: NDArray[np.intp]
) -> tuple[float | None, float | None]:
    """Percentile bounds; None with fewer than two groups that have a value."""
    drawn = drawn[~np.isnan(drawn)]
    if len(set(groups[~np.isnan(values)])) < 2 or not drawn.size:
        return None, None
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _summary(
    mean: float | None,
    values: NDArray[np.floating[Any]],
    reasons: dict[str, int],
    drawn: NDArray[np.floating[Any]],
    groups: NDArray[np.intp],
) -> Summary:
    return Summary(mean, int((~np.isnan(values)).sum()), reasons, *_interval(drawn, values, groups))


def _p(gap: NDArray[np.floating[Any]], groups: NDArray[np.intp]) -> float | None:
    """Of no difference between groups; None with fewer than two groups."""
    try:
        from scipy.stats import wilcoxon
    except ImportError:
        raise MissingExtraError("scipy", "train") from None
    means = np.array([m for g in np.unique(groups) if (m := _mean(gap[groups == g])) is not None])
    if len(means) < 2:
        return None
    return 1.0 if not means.any() else float(wilcoxon(means).pvalue)
