"""TIFF pictures and stacks by the window."""

from __future__ import annotations

import logging
import struct
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from core.data.sample import Meta
from core.errors import FileError, MissingExtraError
from core.streaming.arrays import Window, file_identity, numbered, padded

if TYPE_CHECKING:
    from types import ModuleType

    from tifffile import TiffFile, TiffPage

_KEPT = 64 << 20  # bytes of decoded segments kept for the next window
MAX_SEGMENT = 2 << 30  # bytes of one compressed strip or tile
_NAMES = {"RGB": ("red", "green", "blue"), "MINISBLACK": ("grey",), "MINISWHITE": ("grey",)}


class CodecError(FileError):
    """A TIFF compression that tifffile has no decoder for here; rasterio may have it."""


class TiffSource:
    """A TIFF read by the window, shape (rows, columns), or (pages, rows, columns) with `stack`.

    Strips or tiles, planes apart or together, whole numbers of 8 to 64 bits and floats of 16 to 64. Without `stack` the
    first page is read, or all pages as channels where OME or ImageJ metadata calls them so. A palette gives its
    colours, or its numbers with `indices`; white-is-zero is inverted; where alpha is zero nothing is valid, and alpha
    is dropped. `meta.applied` says which of these was done. Raises FileError for a file that is missing, damaged, cut
    short, or whose pages differ; CodecError for a compression without a decoder; MissingExtraError without tifffile.
    """

    def __init__(self, path: str | Path, *, stack: bool = False, indices: bool = False) -> None:
        tifffile = import_tifffile()
        self._path = Path(path)
        if not self._path.is_file():
            raise FileError(path, "no such file", "give the path of a TIFF")
        self._kept: OrderedDict[tuple[int, int], NDArray[Any]] = OrderedDict()
        self._applied: list[str] = []
        try:
            with quiet():
                self._file = tifffile.TiffFile(self._path)
                weakref.finalize(self, self._file.close)
                self._pages, self._joined = self._chosen(self._file, stack)
        except FileError:
            raise
        except (OSError, ValueError, KeyError, IndexError, TypeError, struct.error):  # TiffFileError is a ValueError
            raise FileError(path, "is damaged or not a TIFF", "get the file again") from None
        self._order: Any = self._file.byteorder
        page = self._pages[0]
        if page.dtype is None or page.dtype.kind not in "buif" or page.shaped[1] != 1:
            raise FileError(path, f"holds {page.dtype} pixels of {page.bitspersample} bits", "give real numbers")
        self._kind: np.dtype[Any] = page.dtype.newbyteorder("=")
        self._check()
        S, _, Y, X, s = page.shaped
        self.shape: tuple[int, ...] = (len(self._pages), Y, X) if stack else (Y, X)
        photometric = getattr(page.photometric, "name", str(page.photometric))
        if photometric not in (*_NAMES, "PALETTE") and not (photometric == "YCBCR" and int(page.compression) in (6, 7)):
            raise FileError(path, f"has {photometric} colours", "convert it to RGB")
        self._stored = S * s
        self._alpha = next(
            (self._stored - len(page.extrasamples) + i for i, e in enumerate(page.extrasamples) if e), -1
        )
        self._colours = self._colour_table(page, photometric, indices)
        self._white = photometric == "MINISWHITE" and page.dtype.kind == "u"
        if self._white:
            self._applied.append("white-is-zero inverted")
        if self._alpha >= 0:
            self._applied.append("alpha read as validity")
        self.dtype: np.dtype[Any] = (
            np.dtype(np.uint8) if self._colours is not None or self._kind.kind == "b" else self._kind
        )
        count = 3 if self._colours is not None else self._stored - (self._alpha >= 0)
        count *= len(self._pages) if self._joined else 1
        names = _NAMES["RGB"] if count == 3 and photometric != "MINISBLACK" else _NAMES["MINISBLACK"]
        self.channels = names if len(names) == count else numbered(count)
        self.meta = Meta(
            path=str(path),
            id=self._path.stem,
            orientation="deep down right"[0 if stack else 5 :],
            channels=self.channels,
            applied=tuple(self._applied),
        )

    @property
    def identity(self) -> str:
        return file_identity(self._path)

    def read(self, start: Sequence[int], stop: Sequence[int]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Values (C, *size) and valid (*size) of start <= index < stop; zero where not valid. FileError for damage."""
        return padded(self._inside, self.shape, start, stop)

    def whole(self) -> tuple[NDArray[Any], NDArray[Any] | None]:
        """Values (C, rows, columns), also where alpha is zero, and alpha (rows, columns) as stored; not of a stack."""
        rows, columns = (slice(0, n) for n in self.shape)
        planes = np.concatenate([self._page(i, rows, columns) for i in range(len(self._pages))])
        alpha = planes[self._alpha] if self._alpha >= 0 else None
        values = planes if alpha is None else np.delete(planes, self._alpha, axis=0)
        if self._colours is not None:
            values = self._colours[:, values[0]]
        return values.astype(self.dtype, copy=False), alpha

    def close(self) -> None:
        self._file.close()

    def _inside(self, window: Window) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        rows, columns = window[-2:]
        pages = range(*window[0].indices(len(self._pages))) if len(window) == 3 else range(len(self._pages))
        planes = [self._page(i, rows, columns) for i in pages]  # (stored, rows, columns) each
        if not planes:
            size = [w.stop - w.start for w in window]
            return np.zeros((len(self.channels), *size), self.dtype), np.zeros(size, np.bool_)
        values = np.concatenate(planes) if self._joined else np.stack(planes, axis=1)
        if len(window) == 2 and not self._joined:
            values = values[:, 0]
        valid = np.ones(values.shape[1:], np.bool_)
        if self._alpha >= 0:
            valid = values[self._alpha] > 0
            values = np.delete(values, self._alpha, axis=0)
        if self._colours is not None:
            values = self._colours[:, values[0]]
        return values.astype(self.dtype, copy=False), valid

    def _page(self, number: int, rows: slice, columns: slice) -> NDArray[Any]:
        """Values (stored, rows, columns) of a window of one page, in native byte order."""
        page = self._pages[number]
        S, _, Y, X, s = page.shaped
        out = np.zeros((S * s, rows.stop - rows.start, columns.stop - columns.start), self._kind)
        if not out.size:
            return out
        if page.is_memmappable:  # segments may be the whole image here
            stored = np.memmap(self._path, self._kind.newbyteorder(self._order), "r", page.dataoffsets[0], (S, Y, X, s))
            part = stored[:, rows, columns]
            out[...] = np.moveaxis(part, -1, 1).reshape(out.shape)
        else:
            height, width = (page.tilelength, page.tilewidth) if page.is_tiled else (page.rowsperstrip, X)
            height = min(height, Y) if not page.is_tiled else height
            down, across = -(-Y // height), -(-X // width)
            for plane in range(S):
                for r in range(rows.start // height, -(-rows.stop // height)):
                    for c in range(columns.start // width, -(-columns.stop // width)):
                        segment = self._segment(number, (plane * down + r) * across + c)
                        top, left = r * height, c * width
                        a, b = max(rows.start, top), min(rows.stop, top + segment.shape[0])
                        e, f = max(columns.start, left), min(columns.stop, left + segment.shape[1])
                        if a < b and e < f:
                            part = segment[a - top : b - top, e - left : f - left]
                            out[plane * s : (plane + 1) * s, a - rows.start : b - rows.start,
                                e - columns.start : f - columns.start] = np.moveaxis(part, -1, 0)  # fmt: skip
        if self._white:
            out = np.iinfo(out.dtype).max - out
        return out

    def _segment(self, number: int, index: int) -> NDArray[Any]:
        """A decoded strip or tile (rows, columns, samples) without its padding."""
        if (number, index) in self._kept:
            self._kept.move_to_end((number, index))
            return self._kept[number, index]
        page = self._pages[number]
        file = self._file.filehandle
        try:
            file.seek(page.dataoffsets[index])
            encoded = file.read(page.databytecounts[index])
            tables = {"jpegtables": page.jpegtables} if page.jpegtables is not None else {}
            segment, _, (_, height, width, _) = page.decode(encoded or None, index, **tables)
        except Exception as error:  # decoders raise whatever they like
            if isinstance(error, ImportError) or "imagecodecs" in str(error):
                name = getattr(page.compression, "name", str(page.compression))
                raise CodecError(self._path, f"is compressed by {name}, for which there is no decoder here",
                                 "install imagecodecs or rasterio") from None  # fmt: skip
            raise FileError(self._path, "is damaged: a part cannot be decoded", "get the file again") from None
        if segment is None:  # a block that was never written
            fill = page.nodata if isinstance(page.nodata, int | float) else 0
            segment = np.full((1, height, width, page.shaped[4]), fill, page.dtype)
        segment = np.asarray(segment)[0, :height, :width]
        self._kept[number, index] = segment
        while len(self._kept) > 1 and sum(part.nbytes for part in self._kept.values()) > _KEPT:
            self._kept.popitem(last=False)
        return segment

    def _chosen(self, file: TiffFile, stack: bool) -> tuple[list[TiffPage], bool]:
        """The pages to read, and whether they are channels."""
        series = file.series[0]
        first = file.pages.first
        more = len(file.pages) > 1
        stated = (file.imagej_metadata or {}).get("images", 1)
        if stated > len(file.pages):
            raise FileError(
                self._path, f"is an ImageJ stack of {stated} images without their entries", "save it as TIFF"
            )
        if stack:
            pages = [page.aspage() for page in file.pages]
            if any((page.shaped, page.dtype) != (first.shaped, first.dtype) for page in pages):
                raise FileError(self._path, "has pages of different size or type", "give pages of one kind")
            return pages, False
        if more and series.axes == "CYX" and series.shape[0] == len(file.pages):
            self._applied.append("pages read as channels")
            return [page.aspage() for page in file.pages], True
        if more:
            self._applied.append(f"first of {len(file.pages)} pages read")
        return [first], False

    def _check(self) -> None:
        """Refuse what is not all there, before memory is taken, and what has no decoder."""
        size = self._path.stat().st_size
        for page in self._pages:
            ends = [o + n for o, n in zip(page.dataoffsets, page.databytecounts, strict=False)]
            if not ends or max(ends) > size or len(page.dataoffsets) != len(page.databytecounts):
                raise FileError(self._path, "is cut short", "get the file again")
        page = self._pages[0]
        if not page.is_memmappable:
            pixels = (
                page.tilelength * page.tilewidth
                if page.is_tiled
                else min(page.rowsperstrip, page.shaped[2]) * page.shaped[3]
            )
            if pixels * page.shaped[4] * self._kind.itemsize > MAX_SEGMENT:
                raise FileError(self._path, f"has strips or tiles of {pixels:,} pixels", "convert it to a tiled TIFF")
            self._segment(0, 0)

    def _colour_table(self, page: TiffPage, photometric: str, indices: bool) -> NDArray[np.uint8] | None:
        if photometric != "PALETTE" or page.colormap is None:
            return None
        if indices:
            self._applied.append("palette numbers read")
            return None
        self._applied.append("palette applied")
        table = np.asarray(page.colormap)
        return (table >> 8 if table.max() > 255 else table).astype(np.uint8)


def import_tifffile() -> ModuleType:
    try:
        import tifffile
    except ImportError:
        raise MissingExtraError("tifffile", "medical") from None
    return tifffile


@contextmanager
def quiet() -> Iterator[None]:
    """No log lines of tifffile: what is wrong with a file is said in one sentence."""
    log = logging.getLogger("tifffile")
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before
