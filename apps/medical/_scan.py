"""A scan or picture that can be read by the window."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from apps.medical._grid import Grid
from core.data.sample import Meta
from core.errors import FileError, ShapeError

Kind = Literal["picture", "volume", "frames"]
Window = tuple[NDArray[Any], NDArray[np.bool_] | None]
LIMIT = 4 * 2**30  # bytes of decoded values that one file may take


@dataclass(frozen=True, eq=False)
class Scan:
    """What the user's file holds, as core.protocols.Source: read by the window, never written to.

    Attributes:
        shape: (Y, X) of a picture, (Z, Y, X) of a volume in canonical order, (T, Y, X) of frames.
        channels: names in order; colour is red, green, blue.
        dtype: of the values, in the machine's byte order.
        meta: where it comes from and what the reader did to it.
        grid: of the file as stored; its `restore` puts a mask on exactly the input's grid.
        kind: "frames" is a cine loop or time series: axis 0 is time, without a place in the world.
        format: "nifti", "dicom", "png", "jpeg", "bmp" or "tiff".
        lossy: whether the stored values were compressed with loss.
    """

    shape: tuple[int, ...]
    channels: tuple[str, ...]
    dtype: np.dtype[Any]
    meta: Meta
    grid: Grid
    kind: Kind
    format: str
    window: Callable[[tuple[int, ...], tuple[int, ...]], Window] = field(repr=False)  # inside the scan only
    lossy: bool = False

    def read(self, start: Sequence[int], stop: Sequence[int]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Values (C, *size) and valid (*size) of start <= index < stop; outside the scan 0 and False.

        The arrays are the caller's own. Raises ShapeError for a window of another number of axes or none of size.
        """
        if not len(start) == len(stop) == len(self.shape) or any(b <= a for a, b in zip(start, stop, strict=True)):
            raise ShapeError(f"a window of {len(self.shape)} axes with stop above start, got {start} to {stop}")
        low = tuple(min(max(a, 0), n) for a, n in zip(start, self.shape, strict=True))
        high = tuple(min(max(b, 0), n) for b, n in zip(stop, self.shape, strict=True))
        size = tuple(b - a for a, b in zip(start, stop, strict=True))
        if any(b <= a for a, b in zip(low, high, strict=True)):
            return np.zeros((len(self.channels), *size), self.dtype), np.zeros(size, bool)
        values, valid = self.window(low, high)
        if tuple(b - a for a, b in zip(low, high, strict=True)) == size:
            return values.copy(), np.ones(size, bool) if valid is None else valid.copy()
        inside = tuple(slice(a - s, b - s) for a, b, s in zip(low, high, start, strict=True))
        padded, known = np.zeros((len(self.channels), *size), self.dtype), np.zeros(size, bool)
        padded[(slice(None), *inside)] = values
        known[inside] = True if valid is None else valid
        return padded, known

    def array(self) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """The whole: values (C, *shape) and valid (*shape)."""
        return self.read((0,) * len(self.shape), self.shape)


def held(values: NDArray[Any], valid: NDArray[np.bool_] | None) -> Callable[[tuple[int, ...], tuple[int, ...]], Window]:
    """Windows of arrays (C, *shape) and (*shape) that are in memory."""

    def window(start: tuple[int, ...], stop: tuple[int, ...]) -> Window:
        cut = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
        return values[(slice(None), *cut)], None if valid is None else valid[cut]

    return window


def bounded(path: Path, count: int, dtype: np.dtype[Any]) -> None:
    """Raise FileError before more than LIMIT bytes would be taken for `count` values."""
    if count * dtype.itemsize > LIMIT:
        raise FileError(
            path,
            f"its {count:,} values would take {count * dtype.itemsize / 2**30:.1f} GiB of memory",
            f"at most {LIMIT / 2**30:g} GiB are read whole; crop it, or save pictures as tiled TIFF",
        )


def finite(
    path: Path, values: NDArray[Any], valid: NDArray[np.bool_] | None, what: str = "voxels"
) -> tuple[NDArray[Any], NDArray[np.bool_] | None, list[str]]:
    """Values (C, *shape) with NaN and Inf replaced by 0 and marked in `valid`, and a sentence with their number.

    Raises FileError where no value is a number.
    """
    if values.dtype.kind != "f":
        return values, valid, []
    good = np.isfinite(values)
    if good.all():
        return values, valid, []
    if not good.any():
        raise FileError(path, f"every one of its {what} is NaN or Inf", "export the scan again")
    whole = good.all(axis=0)
    words = [f"{int((~whole).sum()):,} {what} with NaN or Inf set to 0 and marked invalid"]
    return np.where(good, values, values.dtype.type(0)), whole if valid is None else valid & whole, words


@contextmanager
def quiet() -> Iterator[None]:
    """Warnings and logs of pydicom and tifffile quote header values, which can name a person: none of them is shown."""
    logs = [logging.getLogger(n) for n in ("pydicom", "tifffile")]
    levels = [log.level for log in logs]
    for log in logs:
        log.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)
