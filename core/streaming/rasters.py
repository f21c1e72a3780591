"""GeoTIFF and what else rasterio reads, by the window; class maps and images written as GeoTIFF."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from core.data.sample import Meta
from core.errors import FileError, MissingExtraError
from core.streaming.arrays import Window, file_identity, padded

if TYPE_CHECKING:
    from types import ModuleType

_CACHE = (
    16 << 20,
    256 << 20,
)  # least and most bytes of decoded blocks that GDAL keeps; its own rule is 5% of the memory


class RasterSource:
    """A raster on disk, shape (rows, columns), read by the window.

    Channels are the bands but alpha, named by their descriptions or their numbers ("1", ...). Valid is what the
    dataset's mask says (nodata value, mask band or alpha above zero) and, for floats, what is finite in every band.
    Values stay as stored: a scale or offset stated in the file is named in `meta.applied` and not applied. Raises
    FileError for a file that is missing, broken or complex-valued, MissingExtraError without rasterio.
    """

    def __init__(self, path: str | Path) -> None:
        rasterio = import_rasterio()
        self._path = Path(path)
        if not self._path.is_file():
            raise FileError(path, "no such file", "give the path of a raster")
        with _reading(path), without_warning():
            self._data = rasterio.open(self._path)
        data = self._data
        alpha = rasterio.enums.ColorInterp.alpha
        self._bands = [i for i, c in zip(data.indexes, data.colorinterp, strict=True) if c != alpha] or list(
            data.indexes
        )
        if any("complex" in data.dtypes[i - 1] for i in self._bands):
            raise FileError(path, "holds complex numbers", "give amplitudes")
        self.shape: tuple[int, ...] = (data.height, data.width)
        self.channels = tuple(data.descriptions[i - 1] or str(i) for i in self._bands)
        self.dtype: np.dtype[Any] = np.result_type(*(data.dtypes[i - 1] for i in self._bands))
        self._all_valid = all(rasterio.enums.MaskFlags.all_valid in data.mask_flag_enums[i - 1] for i in self._bands)
        height, width = data.block_shapes[0]
        row = data.count * self.dtype.itemsize * height * -(-data.width // width) * width
        self._cache = min(max(2 * row, _CACHE[0]), _CACHE[1])  # strips that end within a row of blocks decode it once
        self.meta = self._meta()

    @property
    def identity(self) -> str:
        return file_identity(self._path)

    @property
    def nodata(self) -> float | None:
        """Value that the file states for pixels without a measurement."""
        return None if self._data.nodata is None else float(self._data.nodata)

    @property
    def tags(self) -> dict[str, str]:
        return dict(self._data.tags())

    def read(self, start: Sequence[int], stop: Sequence[int]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Values (C, rows, columns) and valid (rows, columns); zero where not valid. FileError for damaged blocks."""
        return padded(self._inside, self.shape, start, stop)

    def close(self) -> None:
        self._data.close()

    def _inside(self, window: Window) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        from rasterio import Env
        from rasterio.windows import Window as Box

        rows, columns = window
        size = (rows.stop - rows.start, columns.stop - columns.start)
        if not min(size):
            return np.zeros((len(self._bands), *size), self.dtype), np.zeros(size, np.bool_)
        box = Box(columns.start, rows.start, size[1], size[0])
        with _reading(self._path), Env(GDAL_CACHEMAX=self._cache):
            values = self._data.read(self._bands, window=box, out_dtype=self.dtype)
            valid = np.ones(size, np.bool_) if self._all_valid else self._data.dataset_mask(window=box) > 0
        return values, valid

    def _meta(self) -> Meta:
        data = self._data
        applied = []
        if len(self._bands) < data.count:
            applied.append("alpha band read as validity")
        if data.nodata is not None:
            applied.append(f"nodata value {data.nodata:g} read as invalid")
        if any(s != 1 for s in data.scales) or any(o != 0 for o in data.offsets):
            applied.append(f"scale {data.scales[0]:g} and offset {data.offsets[0]:g} stated in the file, not applied")
        plain = data.transform.is_identity
        square = not plain and data.transform.is_rectilinear
        return Meta(
            path=str(self._path),
            id=self._path.stem,
            spacing=(abs(data.transform.e), abs(data.transform.a)) if square else None,
            crs=data.crs.to_wkt() if data.crs else None,
            transform=None if plain else tuple(data.transform)[:6],
            orientation="down right",
            channels=self.channels,
            applied=tuple(applied),
        )


def import_rasterio() -> ModuleType:
    try:
        import rasterio
        import rasterio.enums
        import rasterio.errors
    except ImportError:
        raise MissingExtraError("rasterio", "remote_sensing") from None
    return rasterio


@contextmanager
def _reading(path: str | Path) -> Iterator[None]:
    """One sentence for what GDAL cannot read."""
    from rasterio.errors import RasterioError

    try:
        yield
    except (RasterioError, OSError):
        raise FileError(path, "is damaged or cut short: it cannot be decoded", "get the file again") from None


@contextmanager
def without_warning() -> Iterator[None]:
    """A picture without coordinates is nothing to warn of."""
    import rasterio.errors

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        yield
