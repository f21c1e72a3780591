"""Results written as TIFF."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from core.data.sample import Meta
from core.errors import SettingError
from core.streaming.sinks import JournalSink
from core.streaming.tiffs import import_tifffile

_CLASSIC = 3_900_000_000
_TILE = 512


class TiffSink(JournalSink):
    """A TIFF (rows, columns) of 1 to 4 bands, or a stack (pages, rows, columns) of one, tiled by 512 and deflated.

    BigTIFF where a classic one may be too small. `meta.spacing` (mm) becomes the resolution. `key` as in GeoTiffSink.
    Raises SettingError for what it does not hold, MissingExtraError without tifffile.
    """

    def __init__(
        self,
        path: str | Path,
        shape: Sequence[int],
        dtype: DTypeLike,
        *,
        meta: Meta | None = None,
        bands: int = 1,
        key: object = None,
    ) -> None:
        import_tifffile()
        kind = np.dtype(dtype)
        if (len(shape), bands) not in {(2, 1), (2, 2), (2, 3), (2, 4), (3, 1)} or kind.kind not in "uif":
            raise SettingError(f"TIFF does not hold {bands} bands of {kind} of shape {tuple(shape)} here")
        self._tile = [min(_TILE, -(-int(n) // 16) * 16) for n in shape[-2:]]
        spacing = meta.spacing if meta else None
        self._spacing = spacing[-2:] if spacing and len(spacing) == len(shape) else None
        rows = self._tile[0] if len(shape) == 2 else 1
        settings = {"block": self._tile, "spacing": self._spacing}
        super().__init__(path, shape, kind, bands=bands, rows=rows, settings=settings, key=key)

    def _encode(self, strip: NDArray[Any]) -> list[bytes]:
        """The tiles of a row of tiles, or of one page."""
        plane = np.moveaxis(strip, 0, -1) if len(self.shape) == 2 else strip[0, 0, ..., None]  # (rows, columns, bands)
        height, width = self._tile
        blocks = []
        for r in range(0, plane.shape[0], height):
            for c in range(0, plane.shape[1], width):
                tile = np.zeros((height, width, self.bands), self.dtype.newbyteorder("<"))
                part = plane[r : r + height, c : c + width]
                tile[: part.shape[0], : part.shape[1]] = part
                blocks.append(zlib.compress(tile.data))
        return blocks

    def _assemble(self, path: Path) -> None:
        from tifffile import TiffWriter

        assert self._journal is not None
        blocks: Iterator[bytes] = (block for strip in self._journal.read() for block in strip)
        size = self.bands * int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize
        place: dict[str, Any] = {}
        if self._spacing:
            place = {"resolution": tuple(10 / s for s in self._spacing[::-1]), "resolutionunit": "CENTIMETER"}
        with TiffWriter(path, bigtiff=size > _CLASSIC, byteorder="<") as file:
            file.write(
                blocks,
                shape=(*self.shape, self.bands) if self.bands > 1 else self.shape,
                dtype=self.dtype,
                tile=self._tile,
                compression="zlib",
                photometric="rgb" if self.bands == 3 else "minisblack",
                planarconfig="contig" if self.bands > 1 else None,
                metadata=None,
                **place,
            )
