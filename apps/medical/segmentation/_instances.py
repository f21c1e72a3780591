"""Cells counted one by one: matching of instances by overlap, as the Microscopy figures of Swin-UMamba are made."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from core.errors import SettingError, ShapeError


@dataclass(frozen=True)
class InstanceScore:
    """Counts of one image: instances in the truth and in the prediction, and the pairs among them."""

    truth: int
    prediction: int
    matched: int

    @property
    def precision(self) -> float:
        """Matched over predicted instances, 0..1; 0 where nothing matched."""
        return self.matched / self.prediction if self.matched else 0.0

    @property
    def recall(self) -> float:
        """Matched over true instances, 0..1; 0 where nothing matched."""
        return self.matched / self.truth if self.matched else 0.0

    @property
    def f1(self) -> float:
        """2 matched / (truth + prediction), 0..1; 0 where nothing matched, even if both hold nothing (as published)."""
        return 2 * self.matched / (self.truth + self.prediction) if self.matched else 0.0

    def __add__(self, other: InstanceScore) -> InstanceScore:
        return InstanceScore(self.truth + other.truth, self.prediction + other.prediction, self.matched + other.matched)


def components(mask: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Connected parts of a mask (H, W), touching at sides or corners, numbered from 1."""
    from scipy.ndimage import label

    numbered: NDArray[np.int32] = np.zeros(mask.shape, np.int32)
    label(mask, structure=np.ones((3,) * mask.ndim), output=numbered)
    return numbered


def match(
    truth: NDArray[np.integer],
    prediction: NDArray[np.integer],
    *,
    threshold: float = 0.5,
    border: int = 2,
    tile: int = 2000,
    large: int = 25_000_000,
) -> InstanceScore:
    """Match the instances of two maps (H, W), 0 outside instances, other numbers one instance each.

    Instances that reach within `border` pixels of the image's edge are taken out of both maps. An image of `large`
    pixels or more is cut into tiles of `tile` pixels, padded with zeros at the right and bottom, whose counts are added
    (the same border rule in each tile). Pairs come from the Hungarian method on the cost
    -(IoU >= threshold) - IoU / (2 n_min), n_min the smaller number of instances; a pair counts if IoU >= threshold.

    Raises ShapeError for maps of unlike shape, SettingError for a threshold outside 0..1.
    Source: the Swin-UMamba card, "Data".
    """
    if truth.shape != prediction.shape or truth.ndim != 2:
        raise ShapeError(f"expected two instance maps of one shape (H, W), got {truth.shape} and {prediction.shape}")
    if not 0 < threshold <= 1:
        raise SettingError(f"the IoU that makes a pair lies above 0 and up to 1, got {threshold}")
    if truth.size < large:
        return _match(_inner(truth, border), _inner(prediction, border), threshold)
    total = InstanceScore(0, 0, 0)
    for top in range(0, truth.shape[0], tile):
        for left in range(0, truth.shape[1], tile):
            window = np.s_[top : top + tile, left : left + tile]
            parts = [_inner(_padded(m[window], tile), border) for m in (truth, prediction)]
            total += _match(parts[0], parts[1], threshold)
    return total


def _padded(part: NDArray[np.integer], tile: int) -> NDArray[np.integer]:
    return np.pad(part, [(0, tile - size) for size in part.shape])


def _inner(numbers: NDArray[np.integer], border: int) -> NDArray[np.integer]:
    """The map without the instances that reach within `border` pixels of an edge."""
    edge = np.ones(numbers.shape, bool)
    edge[border : numbers.shape[0] - border, border : numbers.shape[1] - border] = False
    return np.where(np.isin(numbers, np.unique(numbers[edge])), 0, numbers)


def _match(truth: NDArray[np.integer], prediction: NDArray[np.integer], threshold: float) -> InstanceScore:
    from scipy.optimize import linear_sum_assignment

    names, sizes, codes = [], [], []
    for numbers in (truth, prediction):
        known, code, count = np.unique(numbers, return_inverse=True, return_counts=True)
        if known[0] != 0:  # no background at all
            known, code, count = np.r_[0, known], code + 1, np.r_[0, count]
        names.append(known)
        codes.append(code.ravel())
        sizes.append(count)
    n_truth, n_prediction = len(names[0]) - 1, len(names[1]) - 1
    pairs, overlap = np.unique(codes[0].astype(np.int64) * (n_prediction + 1) + codes[1], return_counts=True)
    t, p = pairs // (n_prediction + 1), pairs % (n_prediction + 1)
    iou = overlap / (sizes[0][t] + sizes[1][p] - overlap)
    good = (t > 0) & (p > 0) & (iou >= threshold)
    t, p, iou = t[good], p[good], iou[good]
    # Pairs below the threshold never count, and a pair above it always costs less than none: the number matched over
    # the instances that have such a pair is the number matched over all, without a matrix of all by all.
    rows, row = np.unique(t, return_inverse=True)
    columns, column = np.unique(p, return_inverse=True)
    if len(rows) == len(columns) == len(t):  # each has one partner: nothing to choose, as always where threshold > 0.5
        return InstanceScore(n_truth, n_prediction, len(t))
    cost = np.zeros((len(rows), len(columns)))
    cost[row, column] = -1 - iou / (2 * min(n_truth, n_prediction))
    chosen = cost[linear_sum_assignment(cost)]
    return InstanceScore(n_truth, n_prediction, int((chosen < 0).sum()))
