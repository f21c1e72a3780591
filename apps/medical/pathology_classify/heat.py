"""Where the label of a picture comes from: its cuts' answers side by side, or what hiding a part costs."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise, product

import numpy as np
from numpy.typing import NDArray

from apps.medical.pathology_classify import inputs
from apps.medical.pathology_classify.results import Heat

_STEP = 8  # pixels of a picture to one of its map
_PARTS = 7  # along each side of a tile: 32 pixels of 224, as DuoFormer's patches


def of_cuts(cuts: NDArray[np.float64], image: tuple[int, int], size: int, overlap: float, winner: int) -> Heat:
    """The mean over the cuts (n, K) that cover a place of a picture (rows, columns), of class `winner`."""
    rows, columns = inputs.places(image[0], size, overlap), inputs.places(image[1], size, overlap)
    y, x = (np.arange(0, n, _STEP) + _STEP / 2 for n in image)
    total, count = np.zeros((len(y), len(x)), np.float32), np.zeros((len(y), len(x)), np.float32)
    for i, (r, c) in enumerate((r, c) for r in rows for c in columns):
        inside = ((y >= r) & (y < r + size))[:, None] & ((x >= c) & (x < c + size))
        total[inside] += cuts[i, winner]
        count[inside] += 1
    return Heat(np.where(count > 0, total / np.maximum(count, 1), np.nan).astype(np.float32), "probability by place")


def hidden(tile: NDArray[np.uint8], answer: Callable[[NDArray[np.uint8]], NDArray[np.float64]], winner: int) -> Heat:
    """How much the probability of class `winner` falls when a part of a tile takes the tile's mean colour.

    The method is occlusion (Zeiler and Fergus, ECCV 2014); what is bright is what the label needs.
    """
    size = tile.shape[0]
    edges = np.linspace(0, size, _PARTS + 1).round().astype(int)
    mean = np.rint(tile.reshape(-1, 3).mean(0)).astype(np.uint8)
    variants = [tile]
    for (top, bottom), (left, right) in product(pairwise(edges), repeat=2):
        part = tile.copy()
        part[top:bottom, left:right] = mean
        variants.append(part)
    found = answer(np.stack(variants))[:, winner]
    return Heat((found[0] - found[1:]).reshape(_PARTS, _PARTS).astype(np.float32), "what the label needs")
