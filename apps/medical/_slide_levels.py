"""The levels of a slide: tiled pyramids as TIFF (Aperio's .svs, OME, generic), by the window.

Only the pyramid itself is read. The pictures of a slide's label and of the whole glass, which show names, and the
fields of its header that name people are never opened.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from apps.medical._scan import quiet
from apps.medical._tiff_measures import measures
from apps.medical._tiff_pages import Plane
from core.errors import FileError, MissingExtraError

MAX_BLOCK = 128 * 2**20  # bytes of one decoded strip or tile
_KEPT = 64 * 2**20  # bytes of decoded tiles: a row of them across a slide of 40,000 pixels
_OTHERS = ("ndpi", "scn", "bif", "philips", "qpi", "mdgel", "vista", "avs")  # whose levels lie in ways of their own
_LOST = "a level of its pyramid is missing: the file is cut off or damaged"


@dataclass(frozen=True)
class Level:
    """One resolution of a slide.

    Attributes:
        size: rows and columns.
        factor: pixels of the finest level to one of it, down and across; a whole number where it is meant to be one.
    """

    size: tuple[int, int]
    factor: tuple[float, float]


class Levels(Protocol):
    """What a reader of slides gives.

    Attributes:
        levels: fine to coarse; the first is level 0.
        um: micrometres to a pixel of level 0, down and across, where the file says so.
        power: of the objective, where the file says so.
        format: "svs", "ome", "tiff" or the reader's own name.
        about: facts for `inspect`, none of which names anybody.
        lossy: whether the stored values were compressed with loss.
        applied: what was taken for granted, in words.
    """

    path: Path
    levels: tuple[Level, ...]
    um: tuple[float, float] | None
    power: float | None
    format: str
    about: dict[str, Any]
    lossy: bool
    applied: tuple[str, ...]

    def window(
        self, level: int, top: int, left: int, bottom: int, right: int
    ) -> tuple[NDArray[np.uint8], NDArray[np.bool_] | None]:
        """Values (rows, columns, 3) inside a level, and where they are measured; None for everywhere."""
        ...

    def forget(self, level: int) -> None:
        """Let go of decoded tiles of a level that is done with."""
        ...


class ForeignFormError(FileError):
    """A TIFF whose levels lie in a maker's own way."""


class TiffLevels:
    """Levels of a TIFF by tifffile; as `Levels`.

    Raises FileError for a file that is missing, damaged, not a pyramid that is read here (ForeignFormError where
    OpenSlide may) or not RGB of 8 bits; MissingExtraError without tifffile.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with opened(path) as file, quiet():
            if which := next((k for k in _OTHERS if getattr(file, f"is_{k}", False)), ""):
                raise ForeignFormError(
                    path, f"a slide in {which.upper()}'s form", "OpenSlide reads it (--reader openslide)"
                )
            series = file.series[0]
            deep = [n for a, n in zip(series.axes, series.shape, strict=True) if a not in "YXSC" and n > 1]
            if deep:
                raise FileError(path, f"holds {deep[0]} planes of focus or time", "save one plane as RGB")
            if lost(file):
                raise FileError(path, _LOST, "copy or export it again")
            self.format = next((k for k in ("svs", "ome") if getattr(file, f"is_{k}")), "tiff")
            tiled = [[p.aspage()] for p in file.pages if p.is_tiled] if self.format == "svs" else []
            found = tiled or [list(s.pages) for s in series.levels]  # of an .svs the rest is thumbnail, label and glass
            if self.format == "tiff" and len(reduced := _reduced(file)) > len(found):
                found = reduced  # tifffile leaves out levels whose steps are uneven
            found.sort(key=lambda pages: -int(pages[0].imagelength) * int(pages[0].imagewidth))
            self._planes = tuple(tuple(Plane(path, p, _KEPT) for p in _pages(path, pages)) for pages in found)
            spacing, _, words = measures(file, "picture")
            self.power = _power(file) if self.format == "svs" else None
            others = len(file.pages) - len(tiled) if tiled else len(file.series) - 1
        for level in range(len(self._planes)):
            self._whole(level)
        page = self._planes[0][0].page
        self.um = None if spacing is None else (spacing[0] * 1000, spacing[1] * 1000)
        sizes = [p[0].shape[:2] for p in self._planes]
        self.levels = tuple(Level(s, factors(sizes[0], s)) for s in sizes)
        self.lossy = int(page.compression) in (6, 7, 33003, 33005, 34712)
        self.applied = tuple(words)
        name = getattr(page.compression, "name", str(page.compression)).lower()
        self.about = {
            "compression": name,
            "blocks": [page.tilelength, page.tilewidth] if page.is_tiled else [page.rowsperstrip, page.imagewidth],
            "other pictures (label, glass ...; not read)": others or None,
        }

    def window(
        self, level: int, top: int, left: int, bottom: int, right: int
    ) -> tuple[NDArray[np.uint8], NDArray[np.bool_] | None]:
        planes = self._planes[level]
        stored = [p.window(top, left, bottom, right) for p in planes]
        values = stored[0] if len(stored) == 1 else np.concatenate(stored, axis=-1)
        valid = _written(planes[0], top, left, bottom, right)
        if values.shape[2] == 4:
            opaque = values[..., 3] > 0
            values, valid = values[..., :3], opaque if valid is None else valid & opaque
        return values, valid

    def forget(self, level: int) -> None:
        for plane in self._planes[level]:
            plane.forget()

    def _whole(self, level: int) -> None:
        """Refuse a level of which tiles are missing, before hours of work are spent on the others."""
        size = self.path.stat().st_size
        for plane in self._planes[level]:
            page = plane.page
            offsets, counts = np.asarray(page.dataoffsets, np.int64), np.asarray(page.databytecounts, np.int64)
            blocks = _blocks(plane)
            wanted = blocks[0] * blocks[1] * (page.samplesperpixel if page.planarconfig == 2 else 1)
            if len(offsets) != len(counts) or len(offsets) < wanted:
                raise FileError(self.path, f"level {level} of its pyramid is missing its tiles", "export it again")
            behind = np.flatnonzero(offsets + counts > size)
            if len(behind):
                said = f"cut off: tile {int(behind[0]) + 1} of {wanted:,} of level {level} lies behind its end"
                raise FileError(self.path, said, "copy it again")


def opened(path: Path) -> Any:
    """The tifffile.TiffFile of a path, with at least one picture in it."""
    try:
        import tifffile
    except ImportError:
        raise MissingExtraError("tifffile", "medical") from None
    try:
        with quiet():
            file = tifffile.TiffFile(path)
            try:
                if not file.series:
                    raise ValueError("no pictures")
            except BaseException:
                file.close()
                raise
            return file
    except FileNotFoundError:
        raise FileError(path, "no such file") from None
    except Exception as error:  # many kinds for a damaged directory
        raise FileError(path, f"a damaged or cut-off TIFF ({type(error).__name__})", "export it again") from None


def factors(finest: Sequence[int], size: Sequence[int]) -> tuple[float, float]:
    """Pixels of the finest level to one of a level of `size`, down and across.

    Sizes of levels are rounded: a whole number is taken where it explains them within a pixel.

    >>> factors((601, 800), (150, 200)), factors((600, 800), (250, 333))
    ((4.0, 4.0), (2.4, 2.4024024024024024))
    """
    down, across = (_factor(a, b) for a, b in zip(finest, size, strict=True))
    return down, across


def _factor(finest: int, size: int) -> float:
    near = max(1, round(finest / size))
    return float(near) if abs(finest / near - size) <= 1 else finest / size


def _reduced(file: Any) -> list[list[Any]]:
    """The first page and the tiled ones that say they are it at a lower resolution (NewSubfileType 1)."""
    pages = [p.aspage() for p in list(file.pages)[:32]]
    first = pages[0]
    near = [p for p in pages[1:] if p.is_tiled and p.subfiletype & 1 and p.samplesperpixel == first.samplesperpixel]
    shape = first.imagewidth / first.imagelength
    return [[first], *([p] for p in near if abs(p.imagewidth / p.imagelength / shape - 1) < 0.02)]


def _pages(path: Path, pages: list[Any]) -> list[Any]:
    """The pages of one level, checked: one in colour, or one for each of red, green and blue."""
    full = [p if hasattr(p, "samplesperpixel") and hasattr(p, "decode") else p.aspage() for p in pages]
    page = full[0]
    photometric, samples = int(page.photometric), int(page.samplesperpixel)
    jpeg = int(page.compression) in (6, 7, 33003)
    coloured = photometric == 2 or (photometric == 6 and jpeg)
    if page.dtype is None or page.dtype != np.uint8 or page.bitspersample != 8:
        kind = "" if page.dtype is None else f" of {page.dtype}"
        raise FileError(path, f"holds values{kind}", "slides are read as RGB of 8 bits; convert it")
    apart = samples == 1 and len(full) == 3 and photometric == 1
    if not apart and (not coloured or samples not in (3, 4) or len(full) != 1):
        name = getattr(page.photometric, "name", str(photometric)).lower()
        raise FileError(path, f"its colours are {name} in {samples * len(full)} channels", "save it as RGB")
    rows, columns = Plane(path, page)._block
    if rows * columns * samples > MAX_BLOCK:
        raise FileError(path, f"is stored in pieces of {rows} x {columns} pixels", "save it as a tiled pyramid")
    return full


def _blocks(plane: Plane) -> tuple[int, int]:
    """Strips or tiles down and across."""
    rows, columns = plane._block
    return -(-plane.shape[0] // rows), -(-plane.shape[1] // columns)


def _written(plane: Plane, top: int, left: int, bottom: int, right: int) -> NDArray[np.bool_] | None:
    """Where a window lies on tiles that were written at all: scanners leave out empty glass."""
    rows, columns = plane._block
    counts = plane.page.databytecounts
    down, across = _blocks(plane)
    r = np.arange(top // rows, min(down, -(-bottom // rows)))
    c = np.arange(left // columns, min(across, -(-right // columns)))
    there = np.array([[counts[i * across + j] > 0 for j in c] for i in r], np.bool_)
    if there.all():
        return None
    valid = there.repeat(rows, 0).repeat(columns, 1)
    y, x = top - r[0] * rows, left - c[0] * columns
    return valid[y : y + bottom - top, x : x + right - left]


def _power(file: Any) -> float | None:
    found = re.search(r"AppMag\s*=\s*([0-9.]+)", file.series[0].keyframe.description)
    try:
        return float(found[1]) if found else None
    except ValueError:
        return None


def lost(file: Any) -> bool:
    """Whether a directory that the file points to, of a level say, lies behind its end or is cut off.

    tifffile passes over such a directory, and the level with it.
    """
    size = file.filehandle.size
    wide = file.is_bigtiff
    order = ">" if file.byteorder == ">" else "<"
    count, entry, pointer = (8, 20, 8) if wide else (2, 12, 4)

    def after(offset: int) -> int | None:
        """Where the directory behind the one at `offset` lies, 0 for none; None where this one is cut off."""
        if not 0 < offset <= size - count:
            return None
        file.filehandle.seek(offset)
        (tags,) = struct.unpack(order + ("Q" if wide else "H"), file.filehandle.read(count))
        if tags > 4096 or offset + count + tags * entry + pointer > size:
            return None
        file.filehandle.seek(offset + count + tags * entry)
        (behind,) = struct.unpack(order + ("Q" if wide else "I"), file.filehandle.read(pointer))
        return int(behind)

    file.filehandle.seek(8 if wide else 4)
    (offset,) = struct.unpack(order + ("Q" if wide else "I"), file.filehandle.read(pointer))
    seen: set[int] = set()
    while offset:
        if offset in seen or len(seen) > 100_000:
            return True
        seen.add(offset)
        behind = after(offset)
        if behind is None:
            return True
        offset = behind
    inner = [o for page in file.pages for o in (getattr(page, "subifds", None) or ())]
    return any(after(o) is None for o in inner)
