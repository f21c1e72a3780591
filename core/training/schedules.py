"""The learning rate as a pure function of how far the run is: nothing to save, nothing to restore."""

from __future__ import annotations

import math

from core.training.recipe import Recipe

_CYCLE_END = 1e-4  # where one-cycle ends, as part of where it starts: torch's constant


def cosine(t: float, peak: float, low: float = 0.0) -> float:
    """From `peak` at t = 0 to `low` at t = 1 along half a cosine (torch's CosineAnnealingLR, t = step / T_max).

    >>> round(cosine(0.5, 1.0, 0.2), 3)
    0.6
    """
    return low + (peak - low) * (1 + math.cos(math.pi * t)) / 2


def poly(t: float, peak: float, low: float = 0.0, power: float = 0.9) -> float:
    """From `peak` to `low` as (1 - t)^0.9 (nnU-Net, t = epoch / epochs)."""
    return low + (peak - low) * (1 - t) ** power


def onecycle(t: float, peak: float, rise: float = 0.3, start: float = 1 / 25) -> float:
    """From start * peak up along a cosine while t < `rise`, then down to 1/10000 of that (torch's OneCycleLR).

    `start` is one over torch's `div_factor`.
    """
    if t <= rise and rise > 0:
        return cosine(t / rise, peak * start, peak)
    return cosine((t - rise) / (1 - rise), peak, peak * start * _CYCLE_END)


def rate(recipe: Recipe, progress: float, peak: float | None = None) -> float:
    """The learning rate when the part `progress` of the run, 0 to 1, lies behind.

    With a warm-up the rate rises linearly from 0, and the schedule takes the rest of the run (as in MAE and Hugging
    Face's cosine schedule). One-cycle takes `warmup` as its rising part, 0.3 where it is 0.

    Args:
        recipe: schedule, warmup, min_lr and, where `peak` is None, lr.
        progress: steps done / all steps (or epochs, or elapsed time).
        peak: of a parameter group with its own rate.

    >>> rate(Recipe(lr=1.0, warmup=0.1), 0.05)
    0.5
    """
    peak = recipe.lr if peak is None else peak
    t = min(max(progress, 0.0), 1.0)
    warmup = recipe.warmup_fraction
    if recipe.schedule == "onecycle":
        return onecycle(t, peak, warmup or 0.3, recipe.cycle_start)
    if t < warmup:
        return peak * t / warmup
    t = (t - warmup) / (1 - warmup)
    low = min(recipe.min_lr, peak)
    if recipe.schedule == "cosine":
        return cosine(t, peak, low)
    if recipe.schedule == "poly":
        return poly(t, peak, low)
    return peak
