"""Photographs and other pictures that Pillow reads, decoded whole; results written as PNG or JPEG."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from core.data.sample import Meta
from core.errors import FileError, MissingExtraError, SettingError
from core.streaming.arrays import ArraySource, file_identity, numbered
from core.streaming.sinks import StripSink

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_PIXELS = 178_956_970  # from here Pillow itself suspects a decompression bomb
_NAMES = {1: ("grey",), 3: ("red", "green", "blue")}
_ALPHA = ("LA", "La", "PA", "RGBA", "RGBa")


class PictureSource(ArraySource):
    """PNG, JPEG, BMP, GIF, WebP ...: shape (rows, columns); uint8, uint16, int32 or float32 as stored.

    Turned as its EXIF orientation says. A palette gives its colours, or its numbers with `indices`; CMYK and other
    colour spaces become RGB; where alpha is zero nothing is valid, and alpha is dropped. `meta.applied` says which of
    these was done. Raises FileError for a file that is missing, damaged, cut short or of more than `max_pixels`;
    16-bit colour PNG needs rasterio, since Pillow halves its depth.
    """

    def __init__(self, path: str | Path, *, indices: bool = False, max_pixels: int = MAX_PIXELS) -> None:
        self._path = Path(path)
        array, valid, applied = _decoded(self._path, indices, max_pixels)
        meta = Meta(
            path=str(path),
            id=self._path.stem,
            orientation="down right",
            channels=_NAMES.get(len(array), numbered(len(array))),
            applied=tuple(applied),
        )
        super().__init__(array, valid, meta=meta)

    @property
    def identity(self) -> str:
        return file_identity(self._path)


class PictureSink(StripSink):
    """PNG (8 bits, or 16 of grey) or JPEG, by the suffix of `path`; 1 or 3 bands, (rows, columns) at most MAX_PIXELS.

    `quality` is JPEG's, 1 to 95. `key` as in GeoTiffSink. Raises SettingError for what the format does not hold.
    """

    def __init__(
        self,
        path: str | Path,
        shape: Sequence[int],
        dtype: DTypeLike = np.uint8,
        *,
        bands: int = 1,
        quality: int = 95,
        key: object = None,
    ) -> None:
        _import_pillow()
        kind, suffix = np.dtype(dtype), Path(path).suffix.lower()
        formats = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}
        if suffix not in formats:
            raise SettingError(f"a picture is written as {', '.join(formats)}, got {Path(path).name!r}")
        self._format, self._quality = formats[suffix], quality
        deep = kind == np.uint16 and bands == 1 and self._format == "PNG"
        if len(shape) != 2 or bands not in (1, 3) or not (kind == np.uint8 or deep):
            raise SettingError(
                f"{self._format} does not hold {bands} bands of {kind} of shape {tuple(shape)}; write a TIFF"
            )
        if shape[0] * shape[1] > MAX_PIXELS or (self._format == "JPEG" and max(shape) > 65_535):
            raise SettingError(f"{shape[0]} x {shape[1]} pixels are too many for {self._format}; write a TIFF")
        super().__init__(path, shape, kind, bands=bands, settings={"quality": quality}, key=key)

    def _assemble(self, path: Path) -> None:
        from PIL import Image

        whole = np.empty((*self.shape, self.bands), self.dtype)
        for row, strip in self._strips():
            whole[row : row + strip.shape[1]] = np.moveaxis(strip, 0, -1)
        picture = Image.fromarray(whole[..., 0] if self.bands == 1 else whole)
        picture.save(path, format=self._format, **({"quality": self._quality} if self._format == "JPEG" else {}))


def _decoded(path: Path, indices: bool, limit: int) -> tuple[NDArray[Any], NDArray[np.bool_] | None, list[str]]:
    """Values (C, rows, columns), valid (rows, columns) or None for all, and what was done."""
    _import_pillow()
    from PIL import Image, UnidentifiedImageError

    if not path.is_file():
        raise FileError(path, "no such file", "give the path of a picture")
    applied: list[str] = []
    valid: NDArray[np.bool_] | None
    try:
        with _opened(path) as picture:
            if picture.width * picture.height > limit:
                raise Image.DecompressionBombError
            frames = getattr(picture, "n_frames", 1)
            if frames > 1:
                applied.append(f"first of {frames} frames read")
            turn = picture.getexif().get(0x0112, 1)
            if deep := _deep_colour(path, picture):
                array, valid = _deep(path, deep)
            else:
                array, valid = _plain(picture, indices, applied)
    except Image.DecompressionBombError:
        raise FileError(path, f"has more than {limit:,} pixels", "convert it to a tiled TIFF") from None
    except UnidentifiedImageError:
        raise FileError(path, "is not a picture that can be read", "give PNG, JPEG or TIFF") from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        if isinstance(error, FileError):
            raise
        raise FileError(path, "is damaged or cut short", "get the file again") from None
    if turn in range(2, 9):
        applied.append(f"turned as EXIF orientation {turn} says")
        array = np.stack([_turned(plane, turn) for plane in array])
        valid = None if valid is None else _turned(valid, turn)
    return array, valid, applied


def _opened(path: Path) -> Image:
    """Pillow's warning of large pictures is left out: the limit is ours."""
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return Image.open(path)


def _plain(picture: Image, indices: bool, applied: list[str]) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
    mode = picture.mode
    if mode == "P" and indices:
        applied.append("palette numbers read")
        return np.asarray(picture)[None], None
    clear = mode in _ALPHA or "transparency" in picture.info
    if mode in ("P", "PA"):
        applied.append("palette applied")
    elif mode in ("CMYK", "YCbCr", "LAB", "HSV"):
        applied.append(f"{mode} converted to RGB")
    if clear:
        picture = picture.convert("LA" if mode in ("LA", "La") else "RGBA")
        applied.append("alpha read as validity")
    elif mode in ("P", "CMYK", "YCbCr", "LAB", "HSV", "RGBX"):
        picture = picture.convert("RGB")
    array = np.asarray(picture)
    if mode == "1":
        applied.append("one bit a pixel: 0 and 1")
    if mode == "I" and picture.format == "PNG":
        array = array.astype(np.uint16)  # PNG has no more
    array = array[None] if array.ndim == 2 else np.ascontiguousarray(np.moveaxis(array, -1, 0))
    if clear:
        return array[:-1], array[-1] > 0
    return array, None


def _deep_colour(path: Path, picture: Image) -> int:
    """PNG's colour type where it has 16 bits and more than one channel, else 0."""
    if picture.format != "PNG":
        return 0
    with path.open("rb") as file:
        head = file.read(26)
    return head[25] if head[24] == 16 and head[25] in (2, 4, 6) else 0


def _deep(path: Path, colour: int) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    from core.streaming.rasters import RasterSource

    try:
        source = RasterSource(path)
    except MissingExtraError:
        kind = {2: "RGB", 4: "grey with alpha", 6: "RGBA"}[colour]
        raise FileError(
            path, f"is {kind} of 16 bits, which Pillow cannot hold", "install rasterio or convert it to TIFF"
        ) from None
    try:
        return source.read((0, 0), source.shape)
    finally:
        source.close()


def _turned(plane: NDArray[Any], orientation: int) -> NDArray[Any]:
    """A plane (rows, columns) as it is to be seen (EXIF 2.32, tag 0x0112)."""
    if orientation in (5, 6, 7, 8):
        plane = plane.T
    if orientation in (3, 4, 7, 8):
        plane = plane[::-1]
    if orientation in (2, 3, 6, 7):
        plane = plane[:, ::-1]
    return plane


def _import_pillow() -> None:
    try:
        import PIL  # noqa: F401
    except ImportError:
        raise MissingExtraError("pillow", "dense") from None
