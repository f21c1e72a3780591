"""From the tiles of a slide to its label, and which of them decided it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from core.errors import UnknownNameError

POOLS = {
    "mean": "the mean of all tiles' probabilities",
    "top": "for each class the mean of its highest tenth of tiles, brought to a sum of one",
    "vote": "the part of the tiles that each class wins",
}
_TOP = 0.1


def pooled(tiles: NDArray[np.floating], how: str) -> NDArray[np.float64]:
    """Class probabilities (K,) of a slide from those of its tiles (n, K), n at least 1.

    Raises UnknownNameError for another way than POOLS names.

    >>> pooled(np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]]), "vote").round(3).tolist()
    [0.667, 0.333]
    """
    if how not in POOLS:
        raise UnknownNameError("way of pooling tiles", how, POOLS)
    values = tiles.astype(np.float64)
    if how == "mean":
        found = values.mean(0)
    elif how == "vote":
        found = np.bincount(values.argmax(1), minlength=values.shape[1]) / len(values)
    else:
        count = max(1, round(_TOP * len(values)))
        found = np.sort(values, axis=0)[-count:].mean(0)
    return found / found.sum()


def shares(tiles: NDArray[np.floating], how: str, winner: int) -> NDArray[np.float64]:
    """What each tile (n, K) gave to the probability of class `winner`, as part of the whole: (n,), sum 1 (or all 0)."""
    values = tiles[:, winner].astype(np.float64)
    if how == "vote":
        values = (tiles.argmax(1) == winner).astype(np.float64)
    elif how == "top":
        count = max(1, round(_TOP * len(values)))
        last = np.argsort(-values, kind="stable")[count:]
        values[last] = 0
    total = values.sum()
    return values / total if total > 0 else values


def decided(
    probabilities: Sequence[float], classes: Sequence[str], positive: str | None = None, threshold: float | None = None
) -> str:
    """The label: the likeliest class, or, of two with a threshold, `positive` from that probability on.

    >>> decided((0.7, 0.3), ("benign", "malignant"), "malignant", 0.25)
    'malignant'
    """
    if positive is not None and threshold is not None and len(classes) == 2:
        at = list(classes).index(positive)
        return classes[at if probabilities[at] >= threshold else 1 - at]
    return classes[int(np.argmax(probabilities))]
