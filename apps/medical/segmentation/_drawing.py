"""Pictures of a mask over its image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from apps.medical.segmentation import _ids
from core.errors import SettingError, ShapeError
from core.pictures import RGB, overlay, palette, panel, resized

if TYPE_CHECKING:
    from apps.medical.segmentation.results import Segmentation

SIDE = 300  # pixels of the longer side of a slice in a panel of several, of which a single one has half as many again


def colours(classes: Mapping[str, int]) -> dict[int, RGB]:
    """A colour for each id but 0, by the order of ids, so the same in every case."""
    ids = sorted({i for i in classes.values() if i})
    return dict(zip(ids, palette(len(ids)), strict=True))


def draw(
    result: Segmentation, number: int | None, columns: int, truth: NDArray[np.integer] | None, notice: str
) -> NDArray[np.uint8]:
    """See `Segmentation.draw`. Raises SettingError for a slice that is not there, ShapeError for an unlike truth."""
    mask = result.mask
    if truth is not None and truth.shape != mask.shape:
        raise ShapeError(f"the mask has shape {mask.shape}, the truth {truth.shape}")
    if mask.ndim == 2:
        shown, count = [0], 1
    else:
        shown, count = _slices(mask, truth, columns) if number is None else [number], mask.shape[0]
        if not all(0 <= s < count for s in shown):
            raise SettingError(f"slice {number} is not there; slices run from 0 to {count - 1}")
    image = _levelled(result, shown)
    spacing = result.meta.spacing
    steps = (1.0, 1.0) if spacing is None or len(spacing) < 2 else (float(spacing[-2]), float(spacing[-1]))
    known = {i: c for i, c in colours(result.classes).items() if i != result.ignore}
    masks = [("mask", mask)] + ([("truth", truth)] if truth is not None else [])
    size = _size(mask.shape[-2:], steps, SIDE if len(shown) > 1 else SIDE * 3 // 2)
    pictures: list[tuple[str, NDArray[np.uint8]]] = []
    present: set[int] = set()
    plain = [resized(picture, *size, smooth=True) for picture in image]
    word = "frame" if result.frames else "slice"
    for place, picture in zip(shown, plain, strict=True):
        pictures.append(("image" if count == 1 else f"{word} {place + 1} of {count}", picture))
    for name, ids in masks:
        for place, picture in zip(shown, plain, strict=True):
            part = ids if ids.ndim == 2 else ids[place]
            present |= _ids.present(part)
            pictures.append((name, overlay(picture, resized(part, *size, smooth=False), known, contour=2)))
    legend = {name: known[i] for name, i in sorted(result.classes.items(), key=lambda c: c[1]) if i in known}
    legend = {name: colour for name, colour in legend.items() if result.classes[name] in present}
    return panel(pictures, len(shown) if len(shown) > 1 else len(pictures), legend, note=notice)


def _slices(mask: NDArray[np.integer], truth: NDArray[np.integer] | None, columns: int) -> list[int]:
    """The slices that together show each class at its largest and lie apart; evenly spread where none is labelled."""
    depth = len(mask)
    size = int(max(mask.max(initial=0), 0 if truth is None else truth.max(initial=0))) + 1
    counts = np.stack([np.bincount(mask[z].ravel(), minlength=size)[1:] for z in range(depth)]).astype(float)
    if truth is not None:
        counts += np.stack([np.bincount(truth[z].ravel(), minlength=size)[1:] for z in range(depth)])
    if not counts.any():
        return sorted({int((2 * k + 1) * depth / (2 * columns)) for k in range(columns)})
    share = counts / np.maximum(counts.max(axis=0), 1)  # of each class's largest slice
    area = counts.sum(axis=1) / counts.sum(axis=1).max()
    seen, near = np.zeros(counts.shape[1]), np.zeros(depth)
    chosen: list[int] = []
    for _ in range(min(columns, int((area > 0).sum()))):
        gain = np.maximum(share - seen, 0).sum(axis=1) + area / 2 + near * area / depth
        gain[[*chosen, *np.flatnonzero(area == 0)]] = -1
        chosen.append(int(gain.argmax()))
        seen = np.maximum(seen, share[chosen[-1]])
        near = np.abs(np.arange(depth)[:, None] - chosen).min(axis=1)
    return sorted(chosen)


def _levelled(result: Segmentation, shown: list[int]) -> list[NDArray[np.uint8]]:
    """The shown slices (H, W) or (H, W, 3) as uint8, grey values alike in all of them; dark where there is no image."""
    parts = [_slice(result, place) for place in shown]
    if parts[0] is None:
        return [np.full(result.mask.shape[-2:], 48, np.uint8)] * len(shown)
    known = [part for part in parts if part is not None]
    values, valid = [v if len(v) == 3 else v[:1] for v, _ in known], [ok for _, ok in known]
    if values[0].dtype != np.uint8 or len(values[0]) == 1:
        seen = np.concatenate([v[:, ok].ravel() for v, ok in zip(values, valid, strict=True)]).astype(np.float64)
        seen = seen[np.isfinite(seen)]
        low, high = np.percentile(seen, [1, 99]) if seen.size else (0.0, 1.0)
        values = [_grey(v, low, high) for v in values]
    return [np.ascontiguousarray(np.moveaxis(v, 0, -1)) if len(v) == 3 else v[0] for v in values]


def _slice(result: Segmentation, place: int) -> tuple[NDArray[Any], NDArray[np.bool_]] | None:
    """Values (C, Y, X) and valid (Y, X) of one slice, None where there is no image."""
    flat = result.mask.ndim == 2
    if result.scan is not None:
        start = (0, 0) if flat else (place, 0, 0)
        stop = result.mask.shape if flat else (place + 1, *result.mask.shape[1:])
        values, valid = result.scan.read(start, stop)
        return (values, valid) if flat else (values[:, 0], valid[0])
    if result.image is None:
        return None
    image = result.image if result.image.ndim > result.mask.ndim else result.image[None]
    valid = np.ones(result.mask.shape, bool) if result.valid is None else result.valid
    return (image, valid) if flat else (image[:, place], valid[place])


def _grey(values: NDArray[Any], low: float, high: float) -> NDArray[np.uint8]:
    scaled = (np.nan_to_num(values.astype(np.float64), nan=low) - low) / ((high - low) or 1.0)
    return (scaled.clip(0, 1) * 255).round().astype(np.uint8)


def _size(shape: tuple[int, ...], steps: tuple[float, float], side: int) -> tuple[int, int]:
    """Height and width in pixels of a slice whose samples lie `steps` apart, the longer side being `side`."""
    extent = np.array(shape) * steps
    height, width = (extent * side / extent.max()).round().astype(int)
    return max(int(height), 1), max(int(width), 1)
