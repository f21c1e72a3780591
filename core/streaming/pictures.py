"""Photographs and other pictures that Pillow reads, decoded whole; results written as PNG or JPEG."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from core.data.sample import Meta
from core.errors import SettingError
from core.streaming import png
from core.streaming.arrays import ArraySource, file_identity, numbered
from core.streaming.decode import MAX_PIXELS, decode, import_pillow
from core.streaming.sinks import StripSink

_NAMES = {1: ("grey",), 3: ("red", "green", "blue")}


class PictureSource(ArraySource):
    """PNG, JPEG, BMP, GIF, WebP ...: shape (rows, columns); uint8, uint16, int32 or float32 as stored.

    Turned as its EXIF orientation says. A palette gives its colours, or its numbers with `indices`; CMYK and other
    colour spaces become RGB; where alpha is zero nothing is valid, and alpha is dropped. `meta.applied` says which of
    these was done. Raises FileError for a file that is missing, damaged, cut short or of more than `max_pixels`.
    Colours are those of the file: an RGB profile is not applied (`core.data.photos` does that).
    """

    def __init__(self, path: str | Path, *, indices: bool = False, max_pixels: int = MAX_PIXELS) -> None:
        self._path = Path(path)
        found = decode(self._path, indices=indices, max_pixels=max_pixels)
        array = np.ascontiguousarray(np.moveaxis(found.values, -1, 0))
        valid = None if found.alpha is None else found.alpha > 0
        said = () if valid is None else ("alpha read as validity",)
        meta = Meta(
            path=str(path),
            id=self._path.stem,
            orientation="down right",
            channels=_NAMES.get(len(array), numbered(len(array))),
            applied=(*found.applied, *said),
        )
        super().__init__(array, valid, meta=meta)

    @property
    def identity(self) -> str:
        return file_identity(self._path)


class PictureSink(StripSink):
    """PNG (8 or 16 bits) or JPEG, by the suffix of `path`; 1 or 3 bands, (rows, columns) at most MAX_PIXELS.

    `quality` is JPEG's, 1 to 95. `icc`, `exif` and `dpi` (across, down) are written as they are: values are those of
    the profile, and EXIF says orientation 1 (`core.data.photos` gives both). `key` as in GeoTiffSink. Raises
    SettingError for what the format does not hold.
    """

    def __init__(
        self,
        path: str | Path,
        shape: Sequence[int],
        dtype: DTypeLike = np.uint8,
        *,
        bands: int = 1,
        quality: int = 95,
        icc: bytes | None = None,
        exif: bytes | None = None,
        dpi: tuple[float, float] | None = None,
        key: object = None,
    ) -> None:
        import_pillow()
        kind, suffix = np.dtype(dtype), Path(path).suffix.lower()
        formats = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}
        if suffix not in formats:
            raise SettingError(f"a picture is written as {', '.join(formats)}, got {Path(path).name!r}")
        self._format, self._quality = formats[suffix], quality
        self._blocks: dict[str, Any] = {"icc": icc, "exif": exif, "dpi": dpi}
        deep = kind == np.uint16 and self._format == "PNG"
        if len(shape) != 2 or bands not in (1, 3) or not (kind == np.uint8 or deep):
            raise SettingError(
                f"{self._format} does not hold {bands} bands of {kind} of shape {tuple(shape)}; write a TIFF"
            )
        if shape[0] * shape[1] > MAX_PIXELS or (self._format == "JPEG" and max(shape) > 65_535):
            raise SettingError(f"{shape[0]} x {shape[1]} pixels are too many for {self._format}; write a TIFF")
        crcs = {name: zlib.crc32(repr(block).encode()) for name, block in self._blocks.items()}
        settings = {"quality": quality, **crcs}
        super().__init__(path, shape, kind, bands=bands, settings=settings, key=key)

    def _assemble(self, path: Path) -> None:
        if self._format == "PNG":
            png.write(path, self._last(), (self.shape[0], self.shape[1]), **self._blocks)
            return
        from PIL import Image

        whole = np.empty((*self.shape, self.bands), self.dtype)
        row = 0
        for strip in self._last():
            whole[row : row + len(strip)] = strip
            row += len(strip)
        picture = Image.fromarray(whole[..., 0] if self.bands == 1 else whole)
        picture.save(path, format="JPEG", quality=self._quality, **pillow_blocks(**self._blocks))

    def _last(self) -> Iterator[NDArray[Any]]:
        """Strips with their channels last."""
        for _, strip in self._strips():
            yield np.moveaxis(strip, 0, -1)


def pillow_blocks(icc: bytes | None, exif: bytes | None, dpi: tuple[float, float] | None) -> dict[str, Any]:
    """What of a picture's metadata there is, by the names of Pillow's `save`."""
    given = {"icc_profile": icc, "exif": b"Exif\0\0" + exif.removeprefix(b"Exif\0\0") if exif else None, "dpi": dpi}
    return {name: value for name, value in given.items() if value}
