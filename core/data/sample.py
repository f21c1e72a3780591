"""What every reader hands on: values, where they are valid, and where they lie in the world."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Affine = tuple[tuple[float, float, float, float], ...]


@dataclass(frozen=True)
class Meta:
    """Where an item comes from and how its array lies in the world; what is unknown is None or empty.

    Attributes:
        path: of the file or folder, as the user gave it; never written into results (see `id`).
        id: a name without a person's data: the file's stem, or a number where that could name someone.
        group: what must not be split over training and test (patient, slide, scene, recording); "" where unknown.
        spacing: millimetres (or the unit of the field) between samples along each spatial axis of the array.
        affine: 4 x 4, from array index (axis 0, 1, 2, 1) to millimetres RAS+, row by row.
        crs: coordinate reference system as WKT.
        transform: the six numbers from (column, row) to the CRS, as rasterio orders them.
        rate: samples or frames a second.
        orientation: of the array's axes, as letters of the side that an index grows towards ("SPL", "down right").
        channels: names in the stored order.
        applied: what the reader did, in order, in words ("rescaled by slope 1 and intercept -1024").
    """

    path: str = ""
    id: str = ""
    group: str = ""
    spacing: tuple[float, ...] | None = None
    affine: Affine | None = None
    crs: str | None = None
    transform: tuple[float, ...] | None = None
    rate: float | None = None
    orientation: str = ""
    channels: tuple[str, ...] = ()
    applied: tuple[str, ...] = ()

    def did(self, *words: str) -> Meta:
        """The same with further steps in `applied`."""
        return replace(self, applied=(*self.applied, *words))


@dataclass(frozen=True)
class Sample:
    """One item for training or evaluation.

    Attributes:
        image: (C, *size).
        valid: (*size) bool, False where there is no measurement (nodata, NaN, padding).
        target: what is to be found: (*size) integer classes for segmentation, (K,) or a number for others, or None.
        points: (N, 2) x, y in original pixels, or None.
        meta: where it comes from.
    """

    image: NDArray[Any]
    valid: NDArray[np.bool_]
    target: Any = None
    points: NDArray[Any] | None = None
    meta: Meta = field(default_factory=Meta)
