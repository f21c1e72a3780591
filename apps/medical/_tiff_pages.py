"""Windows of TIFF pages, decoded strip by strip or tile by tile.

Knows nothing of medicine: `Plane` could serve core's streaming as it stands.
"""

from __future__ import annotations

import io
import struct
import threading
import zlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.errors import FileError

JPEG = 7
_JPEG2000 = (33003, 33005, 34712)  # Aperio's with YCbCr, Aperio's with RGB, the standard's
CACHE = 96 * 2**20  # bytes of decoded strips and tiles a page keeps
_ZLIB = (8, 32946)
_BYTES = (1, 5, 32773, 50000, *_ZLIB)  # none, LZW, PackBits, Zstandard, deflate: undone without knowing the values


@dataclass(frozen=True)
class Plane:
    """One page of a TIFF file: (Y, X, S) by the window. `page` is tifffile's and needs no open file.

    Strips and tiles decoded last are kept, up to `cache` bytes: neighbouring windows share them. Raises FileError where
    a strip or tile is missing or damaged, or its compression has no decoder here.
    """

    path: Path
    page: Any
    cache: int = CACHE
    _kept: OrderedDict[int, NDArray[Any]] = field(default_factory=OrderedDict, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.page.imagelength, self.page.imagewidth, self.page.samplesperpixel

    @property
    def _block(self) -> tuple[int, int]:
        """Rows and columns of a strip or tile."""
        if self.page.is_tiled:
            return self.page.tilelength, self.page.tilewidth
        return max(1, min(self.page.rowsperstrip, self.page.imagelength)), self.page.imagewidth

    def _size(self, index: int) -> tuple[int, int, int]:
        """Rows, columns and samples stored in a strip or tile; the last strip may be short."""
        rows, columns = self._block
        if not self.page.is_tiled:
            down = -(-self.page.imagelength // rows)
            rows = min(rows, self.page.imagelength - index % down * rows)
        return rows, columns, 1 if self.page.planarconfig == 2 else self.page.samplesperpixel

    def window(self, top: int, left: int, bottom: int, right: int) -> NDArray[Any]:
        """(bottom - top, right - left, S) in the machine's byte order."""
        page, (rows, columns) = self.page, self._block
        across, down = -(-page.imagewidth // columns), -(-page.imagelength // rows)
        planes = page.samplesperpixel if page.planarconfig == 2 else 1
        out = np.zeros((bottom - top, right - left, self.shape[2]), page.dtype.newbyteorder("="))
        with self.path.open("rb") as file:
            for plane in range(planes):
                samples = slice(plane, plane + 1) if planes > 1 else slice(None)
                for r in range(top // rows, -(-bottom // rows)):
                    for c in range(left // columns, -(-right // columns)):
                        part = self._recent(file, (plane * down + r) * across + c)
                        y, x = r * rows, c * columns
                        t, b, lf, rt = max(top, y), min(bottom, y + rows), max(left, x), min(right, x + columns)
                        cut = part[t - y : b - y, lf - x : rt - x]
                        out[t - top : b - top, lf - left : rt - left, samples] = cut
        return out

    def forget(self) -> None:
        """Let go of what is kept."""
        with self._lock:
            self._kept.clear()

    def _recent(self, file: Any, index: int) -> NDArray[Any]:
        with self._lock:
            if index in self._kept:
                self._kept.move_to_end(index)
                return self._kept[index]
        part = self._segment(file, index)
        with self._lock:
            self._kept[index] = part
            while len(self._kept) > max(1, self.cache // max(1, part.nbytes)):
                self._kept.popitem(last=False)
        return part

    def _segment(self, file: Any, index: int) -> NDArray[Any]:
        """One decoded strip or tile (rows, columns, samples)."""
        page = self.page
        try:
            offset, count = page.dataoffsets[index], page.databytecounts[index]
        except IndexError:
            raise FileError(self.path, "cut off: its list of strips or tiles is short", "export it again") from None
        if count == 0:  # a tile that was never written
            return np.zeros(self._size(index), page.dtype)
        file.seek(offset)
        data = file.read(count)
        if len(data) < count:
            raise FileError(self.path, f"cut off: strip or tile {index + 1} ends early", "export it again")
        try:
            return self._decode(data, index)
        except FileError:
            raise
        except Exception as error:  # codecs raise many kinds
            raise FileError(
                self.path, f"strip or tile {index + 1} is damaged ({type(error).__name__})", "export it again"
            ) from None

    def _decode(self, data: bytes, index: int) -> NDArray[Any]:
        page = self.page
        code = int(page.compression)
        if not _missing(page):
            part, *_ = page.decode(data, index, jpegtables=page.jpegtables)
            return np.asarray(part)[0]
        rows, columns, samples = self._size(index)
        if code == JPEG and page.bitspersample == 8:
            return _jpeg(data, page.jpegtables, rgb=int(page.photometric) == 2)
        if code in _JPEG2000 and page.bitspersample == 8:
            return _jpeg2000(data, ycbcr=code == 33003)
        if code in _BYTES and page.bitspersample % 8 == 0 and page.predictor in (1, 2, 3):
            raw = _undone(data, code, columns * samples * page.dtype.itemsize, rows)
            return _unpredicted(raw, page, (rows, columns, samples))
        raise FileError(
            self.path, f"its compression {page.compression.name} has no decoder here", "pip install imagecodecs"
        )


def _missing(page: Any) -> bool:
    """Whether tifffile needs imagecodecs for this page and it is not installed."""
    code, predictor = int(page.compression), int(page.predictor)
    if find_spec("imagecodecs") is not None:
        return False
    return code not in (1, *_ZLIB, 32773) or predictor == 3 or (predictor == 2 and page.dtype.kind == "f")


def _jpeg(data: bytes, tables: bytes | None, *, rgb: bool) -> NDArray[np.uint8]:
    """(Y, X, S) of a JPEG tile; `rgb` where its values are stored as RGB, which only the TIFF tag says."""
    from PIL import Image

    adobe = b"\xff\xee\x00\x0eAdobe\x00\x64" + bytes(5)  # transform 0: not YCbCr
    shared = tables[2:-2] if tables else b""
    whole = b"\xff\xd8" + (adobe if rgb else b"") + shared + data[2:]
    picture = np.asarray(Image.open(io.BytesIO(whole)))
    return picture if picture.ndim == 3 else picture[..., None]


def _jpeg2000(data: bytes, *, ycbcr: bool) -> NDArray[np.uint8]:
    """(Y, X, S) of a JPEG 2000 tile; `ycbcr` where its values are stored so, which only the TIFF tag says."""
    from PIL import Image

    picture: Image.Image = Image.open(io.BytesIO(data))
    if ycbcr and picture.mode in ("RGB", "YCbCr"):
        picture = Image.merge("YCbCr", picture.split()).convert("RGB")
    values = np.asarray(picture)
    return values if values.ndim == 3 else values[..., None]


def _undone(data: bytes, code: int, width: int, rows: int) -> bytes:
    """Decompressed bytes: libtiff, in Pillow, reads them as one strip of an 8-bit grey picture of `rows` rows."""
    from PIL import Image

    if code in _ZLIB:
        return zlib.decompressobj().decompress(data, width * rows)
    tags: Sequence[tuple[int, int, int]] = (
        (256, 4, width), (257, 4, rows), (258, 3, 8), (259, 3, code), (262, 3, 1), (273, 4, 8 + 2 + 12 * 9 + 4),
        (277, 3, 1), (278, 4, rows), (279, 4, len(data)),
    )  # fmt: skip
    head = struct.pack("<2sHIH", b"II", 42, 8, len(tags))
    for tag, kind, value in tags:
        head += struct.pack("<HHI", tag, kind, 1) + struct.pack("<I", value)
    return Image.open(io.BytesIO(head + struct.pack("<I", 0) + data)).tobytes()


def _unpredicted(raw: bytes, page: Any, shape: tuple[int, int, int]) -> NDArray[Any]:
    """Decompressed bytes to values (rows, columns, samples); differences of numbers (2) or of floats (3) are summed."""
    rows, columns, samples = shape
    own = page.dtype.newbyteorder("=")
    if page.predictor == 3:  # bytes of equal weight lie together, the heaviest first, as differences over the samples
        parts = np.frombuffer(raw, np.uint8).reshape(rows, page.dtype.itemsize * columns, samples)
        summed = np.cumsum(parts, axis=1, dtype=np.uint8).reshape(rows, page.dtype.itemsize, columns, samples)
        heavy_first = np.ascontiguousarray(np.moveaxis(summed, 1, -1))
        return heavy_first.view(page.dtype.newbyteorder(">"))[..., 0].astype(own)
    part = np.frombuffer(raw, page.dtype.newbyteorder(page.parent.byteorder)).reshape(shape)
    if page.predictor == 1:
        return part.astype(own)
    bits = np.dtype(f"u{own.itemsize}")  # differences of floats are those of their bit patterns
    return np.cumsum(part.astype(own).view(bits), axis=1, dtype=bits).view(own)
