"""How a scan's values become the network's input, in training and in prediction alike: plane, range, spacing.

A network sees 2-D slices (N, C, h, w) at the spacing that its bundle states. Nothing here knows a file format.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from core.bundle import Input
from core.data.sample import Meta
from core.errors import FileError
from core.protocols import Source

PLANES = {"axial": 0, "coronal": 1, "sagittal": 2}  # plane -> axis of a volume (superior, posterior, left) across it
_CHUNK = 1 << 24  # values read at once for statistics


@dataclass(frozen=True)
class Slices:
    """A scan as a stack of 2-D slices of one plane: a Source of shape (slices, rows, columns).

    A picture is a stack of one slice.
    """

    scan: Source
    axis: int = 0  # of the scan, across the slices; ignored for a picture

    @property
    def picture(self) -> bool:
        return len(self.scan.shape) == 2

    @property
    def shape(self) -> tuple[int, ...]:
        return (1, *self.scan.shape) if self.picture else _first(self.scan.shape, self.axis)

    @property
    def channels(self) -> tuple[str, ...]:
        return self.scan.channels

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.scan.dtype

    @property
    def meta(self) -> Meta:
        return self.scan.meta

    @property
    def spacing(self) -> tuple[float, float] | None:
        """Of rows and columns."""
        given = self.scan.meta.spacing
        if given is None:
            return None
        rows, columns = given[-2:] if self.picture else _first(given, self.axis)[1:]
        return rows, columns

    def read(self, start: Sequence[int], stop: Sequence[int]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        if self.picture:
            values, valid = self.scan.read(start[1:], stop[1:])
            count = stop[0] - start[0]
            if start[0] == 0 and count == 1:
                return values[:, None], valid[None]
            inside = [0 <= i < 1 for i in range(start[0], stop[0])]
            held = np.array(inside)[:, None, None]
            return np.where(held, values[:, None], 0), held & valid[None]
        values, valid = self.scan.read(_back(start, self.axis), _back(stop, self.axis))
        return np.moveaxis(values, self.axis + 1, 1), np.moveaxis(valid, self.axis, 0)

    def restore(self, stack: NDArray[Any]) -> NDArray[Any]:
        """(..., slices, rows, columns) in the scan's own order of axes."""
        lead = stack.ndim - 3
        return stack.squeeze(lead) if self.picture else np.moveaxis(stack, lead, lead + self.axis)


def _first(values: Sequence[Any], axis: int) -> tuple[Any, ...]:
    return (values[axis], *(v for i, v in enumerate(values) if i != axis))


def _back(values: Sequence[int], axis: int) -> list[int]:
    rest = list(values[1:])
    rest.insert(axis, values[0])
    return rest


def slices(scan: Source, plane: str) -> Slices:
    """The scan in a plane; frames and volumes without a known orientation are cut along their first axis."""
    known = len(scan.shape) == 3 and scan.meta.affine is not None and bool(plane)
    return Slices(scan, PLANES[plane] if known else 0)


@dataclass(frozen=True)
class Norm:
    """What turns stored values into the network's: (clipped value - mean) / std, invalid ones 0 afterwards."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    clip: tuple[float, float] | None = None

    def __call__(self, values: Tensor, valid: Tensor) -> Tensor:
        """(N, C, h, w) of any type and valid (N, h, w) -> float32 of the same shape."""
        values = values.float()
        if self.clip is not None:
            values = values.clamp(*self.clip)
        shape = (1, -1, 1, 1)
        mean, std = (
            torch.tensor(v, dtype=torch.float32, device=values.device).view(shape) for v in (self.mean, self.std)
        )
        return ((values - mean) / std).masked_fill(~valid[:, None], 0.0)


@dataclass(frozen=True)
class Moments:
    """Of the valid values of one item, per channel."""

    count: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


def moments(stack: Slices, clip: tuple[float, float] | None = None) -> Moments:
    """Mean, standard deviation and range of a scan, read piece by piece.

    Raises FileError where nothing in it is valid.
    """
    count, C = 0, len(stack.channels)
    # Sums are taken around the first value seen: of squares of large offsets nothing would be left.
    origin: NDArray[np.float64] | None = None
    first, second = np.zeros(C), np.zeros(C)
    low, high = np.full(C, np.inf), np.full(C, -np.inf)
    for start, stop in _pieces(stack.shape, C):
        values, valid = stack.read(start, stop)
        inside = values[:, valid].astype(np.float64)
        if clip is not None:
            inside = inside.clip(*clip)
        if not inside.size:
            continue
        if origin is None:
            origin = inside[:, 0]
        away = inside - origin[:, None]
        count += inside.shape[1]
        first += away.sum(1)
        second += np.square(away).sum(1)
        low, high = np.minimum(low, inside.min(1)), np.maximum(high, inside.max(1))
    if origin is None:
        raise FileError(stack.meta.path, "has no valid value (all NaN, padding or transparent)")
    mean = first / count
    std = np.sqrt(np.maximum(second / count - mean**2, 0))
    as_floats = [tuple(map(float, v)) for v in (mean + origin, std, low, high)]
    return Moments(count, *as_floats)


def _pieces(shape: tuple[int, ...], channels: int) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Windows that cover a stack, whole slices or bands of rows, at most about _CHUNK values each."""
    S, H, W = shape
    rows = max(1, min(H, _CHUNK // max(1, W * channels)))
    deep = max(1, _CHUNK // max(1, H * W * channels)) if rows == H else 1
    return [((s, r, 0), (min(s + deep, S), min(r + rows, H), W)) for s in range(0, S, deep) for r in range(0, H, rows)]


def norm(stack: Slices, settings: Input) -> Norm:
    """The normalisation that the input contract states, for this item."""
    if settings.normalise == "fixed":
        return Norm(settings.mean, settings.std, settings.clip)
    found = moments(stack, settings.clip)
    return Norm(found.mean, tuple(s if s > 1e-8 else 1.0 for s in found.std), settings.clip)


def factors(stack: Slices, settings: Input) -> tuple[float, float]:
    """Rows and columns of the network's grid per row and column of the scan's; 1 where the spacing agrees within 1 %.

    Raises FileError where the bundle states a spacing and the scan has none.
    """
    if settings.spacing is None:
        return 1.0, 1.0
    if stack.spacing is None:
        raise FileError(
            stack.meta.path,
            f"has no pixel spacing, and the bundle works at {_times(settings.spacing)} {settings.unit}",
            "give it by --spacing ROWS COLUMNS",
        )
    rows, columns = (have / want for have, want in zip(stack.spacing, settings.spacing, strict=True))
    return (1.0 if abs(rows - 1) < 0.01 else rows), (1.0 if abs(columns - 1) < 0.01 else columns)


def _times(values: Sequence[float]) -> str:
    return " x ".join(f"{v:.4g}" for v in values)


def resize(image: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, C, h, w) to (N, C, *size): bilinear over pixel areas, smoothed first where it shrinks."""
    if tuple(image.shape[-2:]) == tuple(size):
        return image
    shrinks = size[0] < image.shape[-2] or size[1] < image.shape[-1]
    return functional.interpolate(image, size=size, mode="bilinear", align_corners=False, antialias=shrinks)


def resize_classes(target: Tensor, size: tuple[int, int]) -> Tensor:
    """Integer classes (N, h, w) to (N, *size), nearest pixel centre."""
    if tuple(target.shape[-2:]) == tuple(size):
        return target
    return functional.interpolate(target[:, None].float(), size=size, mode="nearest-exact")[:, 0].to(target.dtype)


def scaled(size: Sequence[int], factor: Sequence[float]) -> tuple[int, int]:
    """A size on the network's grid."""
    h, w = (max(1, round(n * f)) for n, f in zip(size, factor, strict=True))
    return h, w


def padded(image: Tensor, multiple: int, smallest: int = 1) -> Tensor:
    """Mirrored below and to the right, up to a multiple and to the smallest side taken.

    Not zeros: networks with instance norm would see another mean and spread than they were trained on.
    """
    down, right = (max(-(-n // multiple) * multiple, smallest) - n for n in image.shape[-2:])
    if not down and not right:
        return image
    fits = down < image.shape[-2] and right < image.shape[-1]
    return functional.pad(image, (0, right, 0, down), mode="reflect" if fits else "replicate")
