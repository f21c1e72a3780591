"""What is measured of class probabilities: each number by its package, by draw, or the reason why there is none."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from apps.medical import _class_weighted as weighted
from core.errors import MissingExtraError

Floats = NDArray[np.float64]
Drawn = Callable[[Floats], Floats]  # weights (D, N) -> values (D,)
BINS = 15


@dataclass(frozen=True)
class Measure:
    """One number: its value by the package, and the same for many draws."""

    label: str  # class, "" for all
    metric: str
    value: float
    n: int  # pictures that it is of
    drawn: Drawn


@dataclass(frozen=True)
class Table:
    """Pictures with a known class.

    Attributes:
        p: (N, K) probabilities.
        y: (N,) class numbers.
    """

    p: Floats
    y: NDArray[np.intp]
    classes: tuple[str, ...]


def binary(table: Table, positive: int, threshold: float) -> tuple[list[Measure], dict[str, str]]:
    """Of one class against the rest: measures, and metric -> why it is left out."""
    metrics = _torchmetrics()
    import torch

    score, truth = np.ascontiguousarray(table.p[:, positive]), table.y == positive
    called = score >= threshold
    p, y, c = torch.from_numpy(score), torch.from_numpy(truth.astype(np.int64)), torch.from_numpy(called.astype(int))
    n, true, false = len(truth), int(truth.sum()), int((~truth).sum())
    name = table.classes[positive]
    reasons: dict[str, str] = {}
    found: list[Measure] = []

    def add(
        metric: str, value: Callable[[], float], drawn: Drawn, *, of: int, needs: Sequence[tuple[int, str]]
    ) -> None:
        lacking = [words for count, words in needs if not count]
        if lacking:
            reasons[metric] = lacking[0]
        else:
            found.append(Measure("", metric, value(), of, drawn))

    yes, no = (true, f"no picture is of {name}"), (false, f"every picture is of {name}")
    add("auroc", lambda: float(metrics.binary_auroc(p, y)), lambda w: weighted.auroc(score, truth, w), of=n,
        needs=(yes, no))  # fmt: skip
    add("auprc", lambda: float(metrics.binary_average_precision(p, y)), lambda w: weighted.auprc(score, truth, w), of=n,
        needs=(yes,))  # fmt: skip
    right = called == truth

    def sensitivity(w: Floats) -> Floats:
        return weighted.share(right, truth, w)

    def specificity(w: Floats) -> Floats:
        return weighted.share(right, ~truth, w)

    add("sensitivity", lambda: float(metrics.binary_recall(c, y)), sensitivity, of=true, needs=(yes,))
    add("specificity", lambda: float(metrics.binary_specificity(c, y)), specificity, of=false, needs=(no,))
    add("balanced_accuracy", lambda: _balanced(truth, called), lambda w: (sensitivity(w) + specificity(w)) / 2, of=n,
        needs=(yes, no))  # fmt: skip
    add("f1", lambda: float(metrics.binary_f1_score(c, y)), lambda w: weighted.f1(truth, called, w), of=n,
        needs=((true + int(called.sum()), f"no picture is of {name}, and none was called so"),))  # fmt: skip
    add("accuracy", lambda: float(metrics.binary_accuracy(c, y)), lambda w: weighted.mean(right.astype(float), w),
        of=n, needs=())  # fmt: skip
    add("ece", lambda: float(metrics.binary_calibration_error(p, y, n_bins=BINS, norm="l1")),
        lambda w: weighted.ece(score, truth, w, BINS), of=n, needs=())  # fmt: skip
    squares = (score - truth) ** 2
    add("brier", lambda: float(squares.mean()), lambda w: weighted.mean(squares, w), of=n, needs=())
    return found, reasons


def several(table: Table) -> tuple[list[Measure], dict[str, str]]:
    """Of three or more classes, the largest probability deciding: means over classes first, then each class."""
    metrics = _torchmetrics()
    import torch

    K, n = len(table.classes), len(table.y)
    called, y = table.p.argmax(axis=1), table.y
    p, t, c = torch.from_numpy(np.ascontiguousarray(table.p)), torch.from_numpy(y), torch.from_numpy(called)
    reasons: dict[str, str] = {}
    each: list[Measure] = []
    for k, name in enumerate(table.classes):
        one = Table(np.stack([1 - table.p[:, k], table.p[:, k]], axis=1), (y == k).astype(np.intp), ("rest", name))
        ranked, why = binary(one, 1, 0.5)
        each += [Measure(name, m.metric, m.value, m.n, m.drawn) for m in ranked if m.metric in ("auroc", "auprc")]
        truth, so, rest = y == k, called == k, y != k
        if truth.any():
            each.append(_share(name, "sensitivity", so, truth))
        if rest.any():
            each.append(_share(name, "specificity", ~so, rest))
        lacking = {"auroc", "auprc"} & set(why) | ({"sensitivity"} if not truth.any() else set())
        lacking |= {"specificity"} if not rest.any() else set()
        words = f"no picture is of {name}" if not truth.any() else f"every picture is of {name}"
        reasons |= {f"{metric} of {name}": words for metric in sorted(lacking)}
    whole: list[Measure] = []
    for metric in ("auroc", "auprc"):
        parts = [m for m in each if m.metric == metric]
        if parts:
            value = float(np.mean([m.value for m in parts]))
            whole.append(Measure("", metric, value, n, _mean_of(parts)))
        else:
            reasons[metric] = "every picture is of one class"
    hit = called == y
    spread = [((y == k), (called == k)) for k in range(K)]
    whole += [
        Measure("", "balanced_accuracy", _balanced(y, called), n,
                lambda w: _over([weighted.share(hit, a, w) for a, _ in spread])),
        Measure("", "f1_macro", float(metrics.multiclass_f1_score(c, t, K, average="macro")), n,
                lambda w: _over([weighted.f1(a, b, w) for a, b in spread])),
        Measure("", "f1_weighted", float(metrics.multiclass_f1_score(c, t, K, average="weighted")), n,
                lambda w: _supported([(w @ a.astype(float), weighted.f1(a, b, w)) for a, b in spread])),
        Measure("", "accuracy", float(metrics.multiclass_accuracy(c, t, K, average="micro")), n,
                lambda w: weighted.mean(hit.astype(float), w)),
        Measure("", "ece", float(metrics.multiclass_calibration_error(p, t, K, n_bins=BINS, norm="l1")), n,
                lambda w: weighted.ece(table.p.max(axis=1), hit, w, BINS)),
    ]  # fmt: skip
    squares = ((table.p - np.eye(K)[y]) ** 2).sum(axis=1)
    whole.append(Measure("", "brier", float(squares.mean()), n, lambda w: weighted.mean(squares, w)))
    return [*whole, *each], reasons


def _mean_of(parts: Sequence[Measure]) -> Drawn:
    return lambda w: _over([m.drawn(w) for m in parts])


def _share(label: str, metric: str, right: NDArray[np.bool_], among: NDArray[np.bool_]) -> Measure:
    value = float(right[among].mean())
    return Measure(label, metric, value, int(among.sum()), lambda w: weighted.share(right, among, w))


def _over(parts: Sequence[Floats]) -> Floats:
    """Mean over classes (D,), without those that a draw does not have."""
    values = np.stack(parts)
    known = ~np.isnan(values)
    count = known.sum(axis=0)
    return np.where(known, values, 0).sum(axis=0) / np.where(count, count, np.nan)


def _supported(parts: Sequence[tuple[Floats, Floats]]) -> Floats:
    """Mean over classes weighted by their pictures."""
    support = np.stack([s for s, _ in parts])
    values = np.stack([np.where(np.isnan(v), 0, v) for _, v in parts])
    return (support * values).sum(axis=0) / np.where(support.sum(axis=0), support.sum(axis=0), np.nan)


def _balanced(truth: NDArray[np.generic], called: NDArray[np.generic]) -> float:
    """Mean sensitivity of the classes that occur: what scikit-learn's balanced_accuracy_score gives, and no warning."""
    return float(np.mean([(called[truth == k] == k).mean() for k in np.unique(truth)]))


def _torchmetrics():  # type: ignore[no-untyped-def]
    try:
        from torchmetrics.functional import classification
    except ImportError:
        raise MissingExtraError("torchmetrics", "train") from None
    return classification


BINARY = {
    "auroc": "area under the ROC curve of P({positive}), trapezoids, a tie counts half (torchmetrics binary_auroc).",
    "auprc": "average precision of P({positive}), by steps, not interpolated (torchmetrics binary_average_precision).",
    "sensitivity": "share of {positive} pictures with P({positive}) at or above {threshold} "
    "(torchmetrics binary_recall).",
    "specificity": "share of the other pictures with P({positive}) below {threshold} "
    "(torchmetrics binary_specificity).",
    "balanced_accuracy": "mean of sensitivity and specificity.",
    "f1": "2 TP / (2 TP + FP + FN) of {positive} at {threshold} (torchmetrics binary_f1_score).",
    "accuracy": "share of pictures on the right side of {threshold} (torchmetrics binary_accuracy).",
    "ece": "expected calibration error of P({positive}): 15 bins of equal width, mean over bins by their pictures of "
    "|share of {positive} - mean P| (torchmetrics binary_calibration_error, l1).",
    "brier": "mean over pictures of (P({positive}) - 1 or 0)^2; 0.25 for P = 0.5 everywhere.",
}
SEVERAL = {
    "auroc": "area under the ROC curve of each class against the rest, mean over the classes that occur "
    "(torchmetrics, macro, one-vs-rest).",
    "auprc": "average precision of each class against the rest, mean over the classes that occur "
    "(torchmetrics, macro).",
    "balanced_accuracy": "mean of the sensitivities of the classes that occur.",
    "f1_macro": "mean over classes of 2 TP / (2 TP + FP + FN), without classes that neither occur nor are called "
    "(torchmetrics multiclass_f1_score, macro).",
    "f1_weighted": "the same, weighted by the pictures of each class (torchmetrics, weighted).",
    "accuracy": "share of pictures whose most probable class is the true one.",
    "ece": "expected calibration error of the largest probability: 15 bins of equal width, mean over bins by their "
    "pictures of |share correct - mean probability| (torchmetrics multiclass_calibration_error, l1).",
    "brier": "mean over pictures of the sum over classes of (p - 1 or 0)^2, from 0 to 2.",
    "sensitivity": "share of a class's pictures that are called so, the most probable class deciding.",
    "specificity": "share of the other pictures that are not called so.",
}


def definitions(kind: Mapping[str, str], metrics: Sequence[str], **words: str) -> dict[str, str]:
    """Metric -> sentence, of the metrics that there are."""
    return {m: kind[m].format(**words) for m in kind if m in metrics}
