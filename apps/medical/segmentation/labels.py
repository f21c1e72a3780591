"""Label files as classes in the order of their image's axes; nothing is scaled, rotated or resampled."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from apps.medical import readers
from apps.medical.segmentation.data import Data
from core.errors import FileError

UNKNOWN = 255  # in what `classes` gives: ignored, or outside what is known


def classes(path: Path, scan: readers.Scan, data: Data) -> NDArray[np.uint8]:
    """The classes of a label file on its image's canonical grid: uint8 of `scan.shape`, UNKNOWN where ignored.

    Raises FileError for another grid, values that are not whole, and values that `data.classes` does not have.
    """
    values = readers.read_labels(path, scan)
    known = set(data.classes.values()) | ({data.ignore} if data.ignore is not None else set())
    if data.binary:
        values = np.where(values == 255, 1, values)
    present = [int(v) for v in np.unique(values)]
    strange = [v for v in present if v not in known]
    if strange:
        shown = ", ".join(map(str, strange[:5])) + (" ..." if len(strange) > 5 else "")
        names = ", ".join(f"{v} ({k})" for k, v in data.classes.items())
        raise FileError(path, f"holds the value{'s' if len(strange) > 1 else ''} {shown}", f"known are {names}")
    if data.ignore is None:
        return values.astype(np.uint8)
    return np.where(values == data.ignore, UNKNOWN, values).astype(np.uint8)


def values(label: Path, image: Path) -> set[int]:
    """The values that occur in a label file."""
    return {int(v) for v in np.unique(readers.read_labels(label, readers.read(image)))}
