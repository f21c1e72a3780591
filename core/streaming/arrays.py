"""Arrays as sources and sinks."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from core.data.sample import Meta
from core.errors import SettingError, ShapeError

Window = tuple[slice, ...]


class ArraySource:
    """An array (C, *size) in memory, read by the window.

    `valid` is (*size) bool; what is NaN or infinite in any channel is invalid beside it. Channels take their names from
    `meta.channels` where these are as many, else "0", "1", ... Whole numbers and floats; bool becomes uint8.
    """

    def __init__(
        self, array: NDArray[Any], valid: NDArray[np.bool_] | None = None, *, meta: Meta | None = None
    ) -> None:
        if array.ndim < 2 or array.dtype.kind not in "buif":
            raise ShapeError(f"expected numbers of shape (C, *size), got {array.dtype} {array.shape}")
        if valid is not None and valid.shape != array.shape[1:]:
            raise ShapeError(f"expected valid of shape {array.shape[1:]}, got {valid.shape}")
        if array.dtype.kind == "b":
            array = array.astype(np.uint8)
        self._array, self._valid = array.astype(array.dtype.newbyteorder("="), copy=False), valid
        self.meta = meta or Meta()
        if len(self.meta.channels) != len(array):
            self.meta = replace(self.meta, channels=numbered(len(array)))

    @property
    def shape(self) -> tuple[int, ...]:
        return self._array.shape[1:]

    @property
    def channels(self) -> tuple[str, ...]:
        return self.meta.channels

    @property
    def dtype(self) -> np.dtype[Any]:
        return self._array.dtype

    @cached_property
    def identity(self) -> str:
        """A sum over the values: two arrays of one shape are told apart when a run goes on."""
        sums = [zlib.crc32(np.ascontiguousarray(plane).data) for plane in self._array]
        return f"{sums} {0 if self._valid is None else zlib.crc32(np.ascontiguousarray(self._valid).data)}"

    def read(self, start: Sequence[int], stop: Sequence[int]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Values (C, *size) and valid (*size) of start <= index < stop; zero where not valid."""

        def inside(window: Window) -> tuple[NDArray[Any], NDArray[np.bool_]]:
            values = self._array[(slice(None), *window)]
            valid = np.ones(values.shape[1:], np.bool_) if self._valid is None else self._valid[window]
            return values, valid

        return padded(inside, self.shape, start, stop)


class ArraySink:
    """Strips joined in memory: `array` is (*size), or (bands, *size) for more than one band."""

    def __init__(self, shape: Sequence[int], dtype: DTypeLike, *, bands: int = 1) -> None:
        self.array = np.zeros((bands, *shape) if bands > 1 else tuple(shape), dtype)
        self.written = 0
        self._rows = self.array[None] if bands == 1 else self.array

    def write(self, start: int, strip: NDArray[Any]) -> None:
        rows = self._rows
        if strip.ndim == rows.ndim - 1:
            strip = strip[None]
        stop = start + (strip.shape[1] if strip.ndim > 1 else 0)
        if start != self.written or strip.shape != rows[:, start:stop].shape:
            raise SettingError(
                f"a strip {strip.shape} at {start} for {rows.shape}, of which {self.written} are written"
            )
        rows[:, start:stop] = strip
        self.written = stop

    def close(self) -> None:
        if self.written != self._rows.shape[1]:
            raise SettingError(f"{self.written} of {self._rows.shape[1]} rows were written")


def file_identity(path: str | Path) -> str:
    """Path, size and time of a file, or "" where there is none."""
    with contextlib.suppress(OSError, ValueError):
        stat = Path(path).stat()
        return f"{Path(path).resolve()} {stat.st_size} {stat.st_mtime_ns}"
    return ""


def numbered(channels: int) -> tuple[str, ...]:
    """Names of channels that have none."""
    return tuple(map(str, range(channels)))


def padded(
    inside: Callable[[Window], tuple[NDArray[Any], NDArray[np.bool_]]],
    shape: Sequence[int],
    start: Sequence[int],
    stop: Sequence[int],
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """A window that may reach outside `shape`, from `inside(window)`, which reads what lies within.

    Where a value is not finite in some channel, or `inside` says so, values are zero and valid False.
    """
    size = [b - a for a, b in zip(start, stop, strict=True)]
    low = [min(max(0, a), n) for a, n in zip(start, shape, strict=True)]
    high = [max(min(b, n), a) for b, n, a in zip(stop, shape, low, strict=True)]
    values, valid = inside(tuple(slice(a, b) for a, b in zip(low, high, strict=True)))
    if values.dtype.kind == "f":
        for plane in values:
            valid = valid & np.isfinite(plane)
    if not valid.all():
        values = np.where(valid, values, values.dtype.type(0))
    if [b - a for a, b in zip(low, high, strict=True)] == size:
        return values, valid
    into = tuple(slice(a - s, b - s) for a, b, s in zip(low, high, start, strict=True))
    whole, known = np.zeros((len(values), *size), values.dtype), np.zeros(size, np.bool_)
    whole[(slice(None), *into)], known[into] = values, valid
    return whole, known
