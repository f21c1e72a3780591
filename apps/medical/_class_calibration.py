"""Thresholds chosen on one part of the patients for another, and how far probabilities can be taken at their word."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from apps.medical._class_answers import Answer
from core.errors import InputError, SettingError


def choose_threshold(answers: Sequence[Answer], positive_index: int, *, aim: str = "youden") -> float:
    """The probability of the positive class from which on a picture should be called positive.

    Args:
        answers: of pictures that are not scored with it afterwards (the validation part).
        positive_index: number of the class.
        aim: "youden" (largest sensitivity + specificity), "sensitivity=0.9" (the largest threshold that reaches it) or
            "specificity=0.9" (the smallest that reaches it).

    A threshold lies halfway between two scores that occur; of equally good ones the middle one is taken. Raises
    InputError where one class only is there, SettingError for another aim.
    """
    goal, wanted = _aim(aim)
    known = [x for x in answers if x.target is not None]
    score = np.array([x.probabilities[positive_index] for x in known])
    truth = np.array([x.target == positive_index for x in known], dtype=bool)
    if truth.all() or not truth.any():
        raise InputError("a threshold is chosen on pictures of both classes; these are of one")
    values = np.unique(score)
    # Below all scores: everything is positive. Above all: nothing, which 1 itself would still let pass.
    places = np.concatenate([values[:1], (values[1:] + values[:-1]) / 2, np.nextafter(values[-1:], 2)])
    true, false = np.sort(score[truth]), np.sort(score[~truth])
    sensitivity = 1 - np.searchsorted(true, places) / len(true)
    specificity = np.searchsorted(false, places) / len(false)
    if goal == "sensitivity":
        return float(places[np.flatnonzero(sensitivity >= wanted - 1e-12)[-1]])
    if goal == "specificity":
        return float(places[np.flatnonzero(specificity >= wanted - 1e-12)[0]])
    gain = sensitivity + specificity
    best = np.flatnonzero(gain >= gain.max() - 1e-12)
    return float(places[best[len(best) // 2]])


def _aim(aim: str) -> tuple[str, float]:
    goal, _, number = aim.partition("=")
    try:
        wanted = float(number) if number else 0.0
    except ValueError:
        wanted = -1.0
    good = (goal == "youden" and not number) or (goal in ("sensitivity", "specificity") and 0 < wanted <= 1)
    if not good:
        raise SettingError(f"a threshold aims at youden, sensitivity=0.9 or specificity=0.9, got {aim!r}")
    return goal, wanted


def reliability(answers: Sequence[Answer], *, bins: int = 15, positive: int | None = None) -> dict[str, list[float]]:
    """Mean probability and observed share by bins of equal width, those without pictures left out.

    Of class `positive` its probability and its share; by default of the largest probability and how often it is right.
    Keys: probability, share, n. Raises InputError for no answer with a known class.
    """
    from apps.medical import _class_weighted as weighted

    known = [x for x in answers if x.target is not None]
    if not known:
        raise InputError("no picture has a known class, so there is nothing to calibrate on")
    p, y = np.array([x.probabilities for x in known]), np.array([x.target for x in known])
    score = p.max(axis=1) if positive is None else p[:, positive]
    right = p.argmax(axis=1) == y if positive is None else y == positive
    place = np.minimum(weighted.bins(score, bins), bins - 1)
    held = [place == k for k in range(bins) if (place == k).any()]
    return {
        "probability": [float(score[m].mean()) for m in held],
        "share": [float(right[m].mean()) for m in held],
        "n": [float(m.sum()) for m in held],
    }


def reliability_figure(answers: Sequence[Answer], path: Path, *, bins: int = 15, positive: int | None = None) -> None:
    """The calibration plot as a PNG: observed share over mean probability, beside the diagonal of perfect ones."""
    from core import pictures
    from core.files import aside

    found = reliability(answers, bins=bins, positive=positive)
    lines = {"perfect": ([0.0, 1.0], [0.0, 1.0]), "observed": (found["probability"], found["share"])}
    words = "share that is right" if positive is None else "share of the class"
    drawn = pictures.curve(lines, "Calibration", "mean probability of a bin", words, (480, 400))
    with aside(path) as part:
        part.write_bytes(pictures.png(drawn))
