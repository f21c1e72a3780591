"""Scores of classification with a weight for each picture, for many sets of weights at once: the bootstrap's draws.

Weights (D, N) are how often each of N pictures was drawn; every function gives (D,), NaN where a draw has no value.
With weights of 1 they are torchmetrics' numbers.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def _ratio(upper: Floats, lower: Floats) -> Floats:
    return np.divide(upper, lower, out=np.full(np.broadcast(upper, lower).shape, np.nan), where=lower > 0)


def _curve(scores: Floats, truth: NDArray[np.bool_], weights: Floats) -> tuple[Floats, Floats]:
    """Weights of the true and the false pictures at or above each distinct score (D, T), from the highest down."""
    order = np.argsort(-scores, kind="stable")
    last = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
    drawn = weights[:, order]
    hits = np.cumsum(drawn * truth[order], axis=1)[:, last]
    return hits, np.cumsum(drawn, axis=1)[:, last] - hits


def auroc(scores: Floats, truth: NDArray[np.bool_], weights: Floats) -> Floats:
    """Area under the ROC curve by trapezoids: a tie of a true and a false picture counts half."""
    hits, alarms = _curve(scores, truth, weights)
    steps = np.diff(alarms, axis=1, prepend=0)
    before = np.concatenate([np.zeros((len(hits), 1)), hits[:, :-1]], axis=1)
    return _ratio((steps * (hits + before) / 2).sum(axis=1), hits[:, -1] * alarms[:, -1])


def auprc(scores: Floats, truth: NDArray[np.bool_], weights: Floats) -> Floats:
    """Average precision: the precision at each distinct score, weighted by the recall that it adds."""
    hits, alarms = _curve(scores, truth, weights)
    every = hits + alarms
    precision = np.divide(hits, every, out=np.zeros_like(hits), where=every > 0)
    return _ratio((np.diff(hits, axis=1, prepend=0) * precision).sum(axis=1), hits[:, -1])


def share(correct: NDArray[np.bool_], among: NDArray[np.bool_], weights: Floats) -> Floats:
    """Part of the pictures `among` that are correct."""
    return _ratio(weights @ (correct & among).astype(float), weights @ among.astype(float))


def f1(truth: NDArray[np.bool_], called: NDArray[np.bool_], weights: Floats) -> Floats:
    """2 TP / (2 TP + FP + FN)."""
    hits, wrong = weights @ (truth & called).astype(float), weights @ (truth ^ called).astype(float)
    return _ratio(2 * hits, 2 * hits + wrong)


def mean(values: Floats, weights: Floats) -> Floats:
    """Mean over pictures of one value each."""
    return _ratio(weights @ values, weights.sum(axis=1))


def bins(confidence: Floats, count: int) -> NDArray[np.intp]:
    """The bin of each confidence: `count` of equal width from 0 to 1, each with its lower bound; 1 is a bin of its own.

    A confidence of exactly 1 lies beyond the last bound, as in torchmetrics.
    """
    bounds = np.linspace(0, 1, count + 1)
    return np.searchsorted(bounds, confidence, side="right") - 1


def ece(confidence: Floats, correct: NDArray[np.bool_], weights: Floats, count: int) -> Floats:
    """Expected calibration error: mean over bins, by their pictures, of |share correct - mean confidence|."""
    place = np.eye(count + 1)[bins(confidence, count)]  # (N, bins)
    gap = np.abs(weights @ (place * (correct - confidence)[:, None]))
    return _ratio(gap.sum(axis=1), weights.sum(axis=1))
