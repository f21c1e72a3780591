"""Overlap and surface measures of one structure, by MONAI, on the part of the scan that holds it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.errors import MissingExtraError

SLAB = 500_000  # voxels whose surface is found at once


def boxes(
    truth: NDArray[np.integer], prediction: NDArray[np.integer], ids: Sequence[int]
) -> dict[int, tuple[slice, ...]]:
    """For each id the smallest box that holds it in both masks, one sample wider; absent ids are left out."""
    from scipy.ndimage import find_objects

    found: dict[int, tuple[slice, ...]] = {}
    places = [find_objects(mask, max_label=max(ids, default=0)) for mask in (truth, prediction)]
    for i in ids:
        both = [place[i - 1] for place in places if place[i - 1] is not None]
        if both:
            found[i] = tuple(
                slice(max(min(s.start for s in axis) - 1, 0), min(max(s.stop for s in axis) + 1, size))
                for axis, size in zip(zip(*both, strict=True), truth.shape, strict=True)
            )
    return found


def dice(truth: NDArray[np.bool_], prediction: NDArray[np.bool_]) -> float:
    """Dice overlap, 0..1; at least one of the masks holds something. `monai.metrics.compute_dice`."""
    from torch import from_numpy

    monai = _monai()
    pair = (from_numpy(np.ascontiguousarray(m))[None, None] for m in (prediction, truth))
    return float(monai.compute_dice(*pair, ignore_empty=False).item())


def hd95(truth: NDArray[np.bool_], prediction: NDArray[np.bool_], spacing: Sequence[float]) -> float:
    """95th percentile Hausdorff distance in the unit of `spacing`; neither mask may be empty.

    Distances run between the boundary voxels (those that one erosion step removes); the percentile is taken in each
    direction over voxels, each counting once, and the larger of the two is the answer. Equal to
    `monai.metrics.compute_hausdorff_distance(percentile=95)`, which takes the memory of the whole box many times over.
    """
    from scipy.ndimage import binary_erosion

    there, here = (np.argwhere(m & ~binary_erosion(m)) * np.asarray(spacing, float) for m in (truth, prediction))
    return float(max(np.percentile(_nearest(a, b), 95) for a, b in ((there, here), (here, there))))


def nsd(truth: NDArray[np.bool_], prediction: NDArray[np.bool_], spacing: Sequence[float], tolerance: float) -> float:
    """Normalised surface Dice, 0..1, at `tolerance` in the unit of `spacing`; at least one mask holds something.

    Elements of the surface (contour in 2-D) come from `monai.metrics.utils.get_mask_edges` and count by their area
    (length), as in DeepMind's surface-distance package. Equal to it, and to `monai.metrics.compute_surface_dice(
    use_subvoxels=True)`, which takes 190 bytes a voxel of the box; here that holds for a slab of it at a time.
    """
    if not (truth.any() and prediction.any()):
        return 0.0
    surfaces = _elements(truth, prediction, spacing)
    near = total = 0.0
    for (places, areas), (others, _) in ((surfaces[0], surfaces[1]), (surfaces[1], surfaces[0])):
        within = _nearest(places, others).astype(np.float32) <= np.float32(tolerance)  # in single precision, as MONAI
        near += float(areas[within].sum())
        total += float(areas.sum())
    return near / total


def _elements(
    truth: NDArray[np.bool_], prediction: NDArray[np.bool_], spacing: Sequence[float]
) -> list[tuple[NDArray[np.floating[Any]], NDArray[np.floating[Any]]]]:
    """Of either mask the surface elements: their places (n, axes) in the unit of `spacing` and their areas (n,)."""
    from torch import from_numpy

    edges = _monai().utils.get_mask_edges
    steps = [float(s) for s in spacing]
    padded = [np.pad(m, 1) for m in (truth, prediction)]
    rows = max(1, SLAB // int(np.prod(padded[0].shape[1:])))
    found: list[list[tuple[NDArray[Any], NDArray[Any]]]] = [[], []]
    for first in range(0, len(padded[0]) - 1, rows):  # an element lies between two neighbours along each axis
        slabs = [m[first : first + rows + 1] for m in padded]
        if any(slab.any() for slab in slabs):
            *at, one, other = edges(*(from_numpy(slab) for slab in slabs), crop=False, spacing=steps)
            for k, (edge, area) in enumerate(zip(at, (one, other), strict=True)):
                places = np.argwhere(edge.numpy())
                places[:, 0] += first
                found[k].append((places * np.asarray(steps), area[edge].numpy().astype(np.float64)))
    return [(np.concatenate([p for p, _ in parts]), np.concatenate([a for _, a in parts])) for parts in found]


def _nearest(places: NDArray[np.floating[Any]], others: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
    """The distance of each of `places` (n, axes) to the nearest of `others`."""
    from scipy.spatial import KDTree

    distances: NDArray[np.floating[Any]] = KDTree(others, leafsize=32).query(places)[0]
    return distances


def _monai() -> Any:
    try:
        from monai import metrics
    except ImportError:
        raise MissingExtraError("monai", "medical") from None
    return metrics
