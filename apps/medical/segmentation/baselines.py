"""Segmentations without learning, to compare a network with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from core.errors import InputError, ShapeError

Case = tuple[NDArray[np.number], NDArray[np.integer]]
SAMPLES = 200_000  # voxels that k-means looks at


def kmeans_baseline(
    train: Sequence[Case], test: Sequence[NDArray[np.number]], *, clusters: int | None = None, seed: int = 0
) -> list[NDArray[np.uint16]]:
    """Classes by brightness alone: scikit-learn's k-means on the intensities of all training cases.

    Each case is scaled by its own mean and standard deviation. Clusters are given to classes so that the mean Dice of
    the classes on the training cases is as high as moving one cluster at a time makes it; `clusters` is twice the
    number of classes unless given.

    Args:
        train: image and mask pairs, (Z, Y, X) or (Y, X), sizes may differ.
        test: images.
        clusters: number of clusters.
        seed: of the drawn voxels and of k-means.

    Returns masks of the test images. Raises InputError for no training case, ShapeError for unlike shapes in one.
    """
    from sklearn.cluster import KMeans

    _checked(train)
    draw = np.random.default_rng(seed)
    share = max(1, SAMPLES // len(train))
    scaled = [_scaled(image).ravel() for image, _ in train]
    drawn = [values[draw.integers(0, values.size, min(share, values.size))] for values in scaled]
    ids = np.unique(np.concatenate([np.unique(mask) for _, mask in train]))
    many = clusters or 2 * len(ids)
    model = KMeans(many, n_init=4, random_state=seed).fit(np.concatenate(drawn)[:, None])
    # Clusters of one number are intervals: the boundaries lie half-way between neighbouring centres.
    centres = np.sort(model.cluster_centers_[:, 0])
    bounds = (centres[1:] + centres[:-1]) / 2
    both = np.zeros((many, len(ids)))
    for values, (_, mask) in zip(scaled, train, strict=True):
        pairs = np.searchsorted(bounds, values) * len(ids) + np.searchsorted(ids, mask.ravel())
        both += np.bincount(pairs, minlength=both.size).reshape(both.shape)
    classes = ids[_shared_out(both, ids)].astype(np.uint16)
    return [classes[np.searchsorted(bounds, _scaled(image))] for image in test]


def _shared_out(both: NDArray[np.float64], ids: NDArray[np.integer]) -> NDArray[np.intp]:
    """The class (as a place in `ids`) of each cluster, from counts (clusters, classes); all are background at first."""
    background = int(np.argmin(ids != 0))
    found = [k for k in range(len(ids)) if k != background]
    truth = both.sum(axis=0)

    def mean_dice(chosen: NDArray[np.intp]) -> float:
        scores = []
        for k in found:
            mine = both[chosen == k]
            scores.append(2 * mine[:, k].sum() / max(mine.sum() + truth[k], 1))
        return float(np.mean(scores)) if scores else 0.0

    chosen = np.full(len(both), background)
    best, improved = mean_dice(chosen), True
    while improved:
        improved = False
        for cluster in range(len(both)):
            for k in range(len(ids)):
                moved = chosen.copy()
                moved[cluster] = k
                if mean_dice(moved) > best:
                    chosen, best, improved = moved, mean_dice(moved), True
    return chosen


def atlas_baseline(train: Sequence[Case], test: Sequence[NDArray[np.number]]) -> list[NDArray[np.uint16]]:
    """The mean training mask: each class's frequency over the training masks, linearly resampled to the shape of the
    test image; the most frequent class of each sample is the answer. It does not look at the image.

    Arguments, result and errors as of `kmeans_baseline`; all arrays have the same number of axes.
    """
    from scipy.ndimage import zoom

    _checked(train)
    ids = np.unique(np.concatenate([np.unique(mask) for _, mask in train]))
    done: dict[tuple[int, ...], NDArray[np.uint16]] = {}
    answers = []
    for image in test:
        if image.ndim != train[0][1].ndim:
            raise ShapeError(f"the training masks have {train[0][1].ndim} axes, a test image has shape {image.shape}")
        if image.shape not in done:
            best, answer = np.full(image.shape, -1.0, np.float32), np.zeros(image.shape, np.uint16)
            for i in ids:  # one class at a time: frequencies of all would take classes times the memory
                share = np.zeros(image.shape, np.float32)
                for _, mask in train:
                    factors = [b / a for a, b in zip(mask.shape, image.shape, strict=True)]
                    share += zoom((mask == i).astype(np.float32), factors, order=1, mode="nearest", grid_mode=True)
                answer[share > best] = i
                best = np.maximum(best, share)
            done[image.shape] = answer
        answers.append(done[image.shape].copy())
    return answers


def _checked(train: Sequence[Case]) -> None:
    if not train:
        raise InputError("a baseline needs at least one training case")
    for image, mask in train:
        if image.shape != mask.shape:
            raise ShapeError(f"a training image has shape {image.shape}, its mask {mask.shape}")


def _scaled(image: NDArray[np.number]) -> NDArray[np.float32]:
    """Zero mean, unit deviation; what is not finite counts as the mean."""
    values = image.astype(np.float32)
    good = np.isfinite(values)
    spread = values[good].std() if good.any() else 0.0
    return np.where(good, (values - (values[good].mean() if good.any() else 0)) / (spread or 1), 0).astype(np.float32)
