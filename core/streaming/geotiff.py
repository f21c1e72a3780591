"""Results written as GeoTIFF, safe against a kill."""

from __future__ import annotations

import io
import json
import shutil
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from core.data.sample import Meta
from core.errors import SettingError
from core.streaming.rasters import import_rasterio, without_warning
from core.streaming.sinks import JournalSink
from core.streaming.tiffs import import_tifffile, quiet

if TYPE_CHECKING:
    from tifffile import TiffTag

_BLOCK = 512
_CACHE = 16 << 20  # bytes of blocks that GDAL keeps while it encodes
_CLASSIC = 3_900_000_000  # bytes from which the offsets of a classic TIFF may not reach
_WORDS = {3: "H", 4: "I", 16: "Q"}  # TIFF's types of offsets and byte counts
_COMPRESSIONS = ("deflate", "lzw", "zstd", "none")


class GeoTiffSink(JournalSink):
    """A raster (rows, columns) of one or several bands, tiled by 512, on the grid of the source's `meta` times `scale`.

    Every row of blocks is encoded by GDAL in memory and kept in the journal. At `close` GDAL writes the header of the
    whole file with empty blocks; the encoded ones are put behind it and their places entered.

    Args:
        path: of the result.
        shape: rows and columns of the result.
        dtype: of its pixels.
        meta: of the source: CRS and transform are kept.
        bands: number of bands, above four stored one after the other.
        scale: output pixels to an input pixel, as given to `run`.
        nodata: value that means no measurement, or None.
        classes: names of the values, written as tags of band 1 (`class_0=water`).
        colors: value to (red, green, blue) or (red, green, blue, alpha) of one band of uint8 or uint16.
        tags: of the dataset.
        descriptions: of the bands.
        compress: "deflate", "lzw", "zstd" or "none", all lossless.
        key: what else the pixels depend on (model, settings): a journal of another key is not gone on with.

    Raises SettingError for values that do not go together, FileError where nothing can be written.
    """

    def __init__(
        self,
        path: str | Path,
        shape: Sequence[int],
        dtype: DTypeLike,
        *,
        meta: Meta | None = None,
        bands: int = 1,
        scale: int = 1,
        nodata: float | None = None,
        classes: Mapping[int, str] | None = None,
        colors: Mapping[int, Sequence[int]] | None = None,
        tags: Mapping[str, str] | None = None,
        descriptions: Sequence[str] = (),
        compress: str = "deflate",
        key: object = None,
    ) -> None:
        import_rasterio()
        import_tifffile()
        kind, meta = np.dtype(dtype), meta or Meta()
        if len(shape) != 2:
            raise SettingError(f"a GeoTIFF has rows and columns, got a result of shape {tuple(shape)}")
        if compress not in _COMPRESSIONS:
            raise SettingError(f"compress is one of {', '.join(_COMPRESSIONS)}, got {compress!r}")
        if colors and (bands != 1 or kind not in (np.uint8, np.uint16)):
            raise SettingError(f"a colour table goes with one band of uint8 or uint16, got {bands} of {kind}")
        if kind.kind == "b" or (nodata is not None and kind.kind != "f" and not _fits(nodata, kind)):
            raise SettingError(f"nodata {nodata} does not fit pixels of {kind}")
        block = [min(_BLOCK, -(-int(n) // 16) * 16) for n in shape]
        self._apart = bands > 4
        self._profile: dict[str, Any] = {
            "driver": "GTiff",
            "count": bands,
            "dtype": kind.name,
            "tiled": True,
            "blockysize": block[0],
            "blockxsize": block[1],
            "compress": None if compress == "none" else compress,
            "interleave": "band" if self._apart else "pixel",
            "BIGTIFF": "YES" if bands * int(np.prod(shape, dtype=np.int64)) * kind.itemsize > _CLASSIC else "NO",
        }
        self._place = {"crs": meta.crs, "nodata": nodata}
        self._transform = _scaled(meta.transform, scale)
        self._classes, self._colors = dict(classes or {}), {k: tuple(c) for k, c in (colors or {}).items()}
        self._tags, self._descriptions = dict(tags or {}), tuple(descriptions)
        texts = [self._place, self._transform, self._classes, self._colors, self._tags, self._descriptions]
        settings = {"profile": self._profile, "georeference": json.dumps(texts, default=str)}
        super().__init__(path, shape, kind, bands=bands, rows=block[0], settings=settings, key=key)

    def _encode(self, strip: NDArray[Any]) -> list[memoryview]:
        """The blocks of one row of blocks, in the order of the file's tables."""
        from rasterio import Affine, Env, MemoryFile
        from tifffile import TiffFile

        with Env(GDAL_CACHEMAX=_CACHE), MemoryFile() as memory:
            # The transform says nothing; without one rasterio warns.
            size = {"height": strip.shape[1], "width": strip.shape[2], "transform": Affine(2, 0, 0, 0, -2, 0)}
            with memory.open(**self._profile, **size) as data:
                data.write(strip)
            content = memoryview(bytes(memory.getbuffer()))
        with TiffFile(io.BytesIO(content)) as file:
            page = file.pages.first
            return [content[o : o + n] for o, n in zip(page.dataoffsets, page.databytecounts, strict=True)]

    def _assemble(self, path: Path) -> None:
        tables, order = self._header(path)
        assert self._journal is not None
        offsets, counts = self._places(tables[0].count, path.stat().st_size)
        with path.open("r+b") as out, (self._journal.folder / "blocks.bin").open("rb") as blocks:
            out.seek(0, io.SEEK_END)
            shutil.copyfileobj(blocks, out, 1 << 20)
            for tag, values in zip(tables, (offsets, counts), strict=True):
                out.seek(tag.valueoffset)
                out.write(_packed(order, tag, values))

    def _header(self, path: Path) -> tuple[list[TiffTag], str]:
        """Let GDAL write a file whose blocks are all empty; its tables of blocks and its byte order."""
        import rasterio
        from rasterio.errors import RasterioError
        from tifffile import TiffFile

        place = {name: value for name, value in self._place.items() if value is not None}
        if self._transform is not None:
            place["transform"] = rasterio.Affine(*self._transform)
        size = {"height": self.shape[0], "width": self.shape[1]}
        try:
            with without_warning(), rasterio.open(path, "w", **self._profile, **size, **place, SPARSE_OK=True) as data:
                data.update_tags(**self._tags)
                data.update_tags(1, **{f"class_{value}": name for value, name in self._classes.items()})
                if self._colors:
                    data.write_colormap(1, self._colors)
                for band, text in enumerate(self._descriptions, start=1):
                    data.set_band_description(band, text)
            with quiet(), TiffFile(path) as file:
                tags = file.pages.first.tags
                return [tags["TileOffsets"], tags["TileByteCounts"]], file.byteorder
        except OSError:
            raise
        except (RasterioError, ValueError, KeyError, IndexError, TypeError, struct.error) as error:
            raise OSError(
                f"its header could not be written: {error}"
            ) from None  # GDAL does not say that a disk is full

    def _places(self, total: int, begin: int) -> tuple[list[int], list[int]]:
        """Offset and length of every block of the file. The journal has them by rows of blocks, bands inside."""
        assert self._journal is not None
        planes = self.bands if self._apart else 1
        across = -(-self.shape[1] // self._profile["blockxsize"])
        offsets, counts = [0] * total, [0] * total
        for row, sizes in enumerate(self._journal.sizes):
            for i, size in enumerate(sizes):
                plane, column = divmod(i, across)
                at = plane * (total // planes) + row * across + column
                offsets[at], counts[at] = begin, size
                begin += size
        return offsets, counts


def _packed(order: str, tag: TiffTag, values: list[int]) -> bytes:
    return struct.pack(f"{order}{tag.count}{_WORDS[int(tag.dtype)]}", *values)


def _scaled(transform: tuple[float, ...] | None, scale: int) -> tuple[float, ...] | None:
    """The same corner with pixels `scale` times smaller."""
    if transform is None:
        return None
    a, b, c, d, e, f = transform
    return (a / scale, b / scale, c, d / scale, e / scale, f)


def _fits(value: float, kind: np.dtype[Any]) -> bool:
    limits = np.iinfo(kind)
    return float(value).is_integer() and limits.min <= value <= limits.max
