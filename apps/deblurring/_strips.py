"""Where finished strips of a photograph go: into arrays, or to the disk until the picture is whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from core.errors import SettingError
from core.streaming.blend import Finish
from core.streaming.sinks import StripSink

if TYPE_CHECKING:
    from apps.deblurring.results import Deblurred as Result


def largest(dtype: np.dtype[Any]) -> float:
    """What 1 is stored as."""
    return float(np.iinfo(dtype).max) if dtype.kind == "u" else 1.0


def finish(dtype: np.dtype[Any]) -> Finish:
    """Scores (C + 1, rows, columns), 0..1, to stored values: rounded and limited to their range."""
    top = np.float32(largest(dtype))

    def strip(scores: NDArray[Any], _: NDArray[np.bool_]) -> NDArray[Any]:
        out = np.empty(scores.shape, dtype)
        for plane, values in zip(out, scores, strict=True):  # one after the other: little is needed beside
            scaled = np.clip(values, 0, 1, dtype=np.float32)
            scaled *= top
            plane[:] = np.rint(scaled, out=scaled) if dtype.kind == "u" else scaled
        return out

    return strip


class Pixels:
    """The picture (H, W, C) and its mask (H, W) uint8, filled strip by strip."""

    def __init__(self, shape: tuple[int, int], bands: int, dtype: np.dtype[Any]) -> None:
        self.image: NDArray[Any] = np.zeros((*shape, bands - 1), dtype)
        self.mask: NDArray[np.uint8] = np.zeros(shape, np.uint8)
        self.written = 0

    def write(self, start: int, strip: NDArray[Any]) -> None:
        """Rows `start` and on, (C + 1, rows, W), the mask last."""
        stop = start + strip.shape[1]
        if start != self.written or stop > len(self.mask):
            raise SettingError(f"a strip of rows {start} to {stop} where row {self.written} comes next")
        self.image[start:stop] = np.moveaxis(strip[:-1], 0, -1)
        self.mask[start:stop] = _as_bytes(strip[-1])
        self.written = stop

    def close(self) -> None:
        if self.written != len(self.mask):
            raise SettingError(f"{self.written} of {len(self.mask)} rows were written")


class Kept(StripSink):
    """Strips on the disk beside the result, so that a killed run goes on.

    `close` leaves them there: the files are made by `finish`, once the input has been let go of.
    """

    def __init__(
        self,
        path: Path,
        shape: tuple[int, int],
        bands: int,
        dtype: np.dtype[Any],
        *,
        key: str,
        write: Callable[[Path, Result], None],
    ) -> None:
        """`write(path, result)` makes the file at `path`, and others under their own names."""
        super().__init__(path, shape, dtype, bands=bands, key=key)
        self._make: Callable[[Pixels], Result] | None = None
        self._result: Result | None = None
        self._write_files = write

    def close(self) -> None:
        """Nothing yet."""

    def finish(self, make: Callable[[Pixels], Result]) -> Result:
        """Join the strips, write the files of the result that `make` gives of them, and return it."""
        self._make = make
        try:
            super().close()
        except BaseException:
            self.release()
            raise
        assert self._result is not None
        return self._result

    def _assemble(self, path: Path) -> None:
        pixels = Pixels((self.shape[0], self.shape[1]), self.bands, self.dtype)
        for row, strip in self._strips():
            pixels.write(row, strip)
        pixels.close()
        assert self._make is not None
        self._result = self._make(pixels)
        self._write_files(path, self._result)


def _as_bytes(values: NDArray[Any]) -> NDArray[np.uint8]:
    if values.dtype == np.uint8:
        return values
    if values.dtype == np.uint16:
        return (values // 257).astype(np.uint8)
    return np.rint(values * 255).astype(np.uint8)
