"""Whole slides: tiled pyramids read at a stated number of micrometres to a pixel, by the window.

`tifffile` reads Aperio's .svs, OME and generic pyramids; OpenSlide, where it is installed, reads these with the same
pixels, and the makers' own forms besides. A level is never read whole. Coordinates of results are pixels of level 0,
as viewers have them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from apps.medical import _slide_openslide
from apps.medical._scan import quiet
from apps.medical._slide_identity import identifiers, safe_id
from apps.medical._slide_levels import ForeignFormError, Level, Levels, TiffLevels, opened
from apps.medical._slide_shrink import shrink, span
from apps.medical._sniff import sniffed
from core.data.sample import Meta
from core.errors import FileError, SettingError
from core.streaming.arrays import Window, file_identity, padded

__all__ = [
    "CHANNELS",
    "Reader",
    "Slide",
    "SlideSource",
    "identifiers",
    "inspect",
    "open_slide",
    "recognised",
    "safe_id",
]

Reader = Literal["auto", "tifffile", "openslide"]
CHANNELS = ("red", "green", "blue")
SAME = 0.01  # pixel sizes that differ by less are one: scanners say 0.499 for 0.5
LARGE = 4096  # pixels a side from which on a TIFF without levels is a slide, too
_CHUNK = 1 << 20  # fine samples that are shrunk at once


@dataclass(frozen=True, eq=False)
class Slide:
    """A slide that is open.

    Attributes:
        path: of the file.
        id: its name for results: the file's, or a hash where the file's repeats what its header says of a person.
        levels: fine to coarse.
        um: micrometres to a pixel of level 0, down and across; None where nobody says.
        power: of the objective, where the file says so.
        applied: what was taken for granted.
    """

    path: Path
    id: str
    um: tuple[float, float] | None
    applied: tuple[str, ...]
    _reader: Levels = field(repr=False)

    @property
    def levels(self) -> tuple[Level, ...]:
        return self._reader.levels

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of level 0."""
        return self.levels[0].size

    @property
    def power(self) -> float | None:
        return self._reader.power

    def level(self, number: int) -> SlideSource:
        """A level's own pixels. Raises SettingError for one that the slide lacks."""
        if not 0 <= number < len(self.levels):
            count = len(self.levels)
            raise SettingError(
                f"{self.path}: level {number} is missing; it has {count} level{'s' if count > 1 else ''}"
                + (f", 0 to {count - 1}" if count > 1 else ", level 0")
            )
        return SlideSource(self, number, (1.0, 1.0))

    def at(self, um: float) -> SlideSource:
        """The slide at `um` micrometres to a pixel.

        Of its levels the coarsest one that is fine enough is read, and averaged over area to the pixels asked for.
        Where a level, or a whole number of its pixels, is within 1 % of them, it is taken as it is.

        Raises FileError where nobody says how large its pixels are, or where all are coarser than asked for.
        """
        if self.um is None:
            nominal = f" (an objective of {self.power:g}x, which is often {10 / self.power:g})" if self.power else ""
            raise FileError(
                self.path, f"does not say how large its pixels are{nominal}",
                "give the micrometres to a pixel of its finest level by --um-per-px",
            )  # fmt: skip
        if not (np.isfinite(um) and um > 0):
            raise SettingError(f"micrometres to a pixel are a positive number, got {um}")
        own = [tuple(u * f for u, f in zip(self.um, level.factor, strict=True)) for level in self.levels]
        if max(own[0]) > um * (1 + SAME):
            raise FileError(
                self.path, f"its finest pixels are {max(own[0]):.3g} um, and {um:g} um are needed",
                "finer ones cannot be made up: give a scan at that resolution",
            )  # fmt: skip
        number = max(i for i, o in enumerate(own) if max(o) <= um * (1 + SAME))
        down, across = (_near(um / o) for o in own[number])
        return SlideSource(self, number, (down, across))

    def thumbnail(self, side: int = 1024) -> tuple[NDArray[np.uint8], NDArray[np.bool_], tuple[float, float]]:
        """The whole slide small: (rows, columns, 3), valid (rows, columns), pixels of level 0 to one of it.

        Its longer side has at most `side` pixels (a slide that is smaller stays as it is).
        """
        factor = max(1.0, max(self.size) / side)
        number = max(i for i, level in enumerate(self.levels) if max(level.factor) <= factor * (1 + SAME))
        own = self.levels[number].factor
        source = SlideSource(self, number, (max(1.0, factor / own[0]), max(1.0, factor / own[1])))
        values, valid = source.read((0, 0), source.shape)
        self._reader.forget(number)
        return np.ascontiguousarray(np.moveaxis(values, 0, -1)), valid, source.scale


@dataclass(frozen=True, eq=False)
class SlideSource:
    """A slide at one resolution, as core.protocols.Source: shape (rows, columns), red, green, blue of 8 bits.

    Not valid is what lies outside, was never scanned, or is transparent.
    """

    slide: Slide
    number: int  # of the level that is read
    shrunk: tuple[float, float]  # its pixels to one of ours, down and across

    channels = CHANNELS
    dtype = np.dtype(np.uint8)

    @property
    def level(self) -> Level:
        return self.slide.levels[self.number]

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = (max(1, int(n / f + 1e-9)) for n, f in zip(self.level.size, self.shrunk, strict=True))
        return rows, columns

    @property
    def scale(self) -> tuple[float, float]:
        """Pixels of level 0 to one of ours, down and across."""
        down, across = (f * s for f, s in zip(self.level.factor, self.shrunk, strict=True))
        return down, across

    @property
    def um(self) -> tuple[float, float] | None:
        """Micrometres to a pixel, down and across."""
        if self.slide.um is None:
            return None
        down, across = (u * s for u, s in zip(self.slide.um, self.scale, strict=True))
        return down, across

    @property
    def meta(self) -> Meta:
        um = self.um
        words = [f"level {self.number} of {len(self.slide.levels)} read"]
        if self.shrunk != (1.0, 1.0):
            words.append(f"averaged over {self.shrunk[0]:.4g} x {self.shrunk[1]:.4g} of its pixels")
        return Meta(
            path=str(self.slide.path),
            id=self.slide.id,
            spacing=None if um is None else (um[0] / 1000, um[1] / 1000),
            orientation="down right",
            channels=CHANNELS,
            applied=(*self.slide.applied, *words),
        )

    @property
    def identity(self) -> str:
        return f"{file_identity(self.slide.path)} {self.slide.um} {self.number} {self.shrunk}"

    def read(self, start: Sequence[int], stop: Sequence[int]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Values (3, rows, columns) and valid (rows, columns) of start <= index < stop; zero where not valid.

        Raises FileError for a tile that is missing, cut off or damaged.
        """
        return padded(self._inside, self.shape, start, stop)

    def _inside(self, window: Window) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        rows, columns = window
        size = (rows.stop - rows.start, columns.stop - columns.start)
        values, valid = np.zeros((*size, 3), np.uint8), np.ones(size, np.bool_)
        if not values.size:
            return np.moveaxis(values, -1, 0), valid
        down, across = self.shrunk
        step = max(1, int(_CHUNK / max(1.0, size[1] * across * down * 3)))
        for r in range(0, size[0], step):
            part = slice(r, min(r + step, size[0]))
            values[part], valid[part] = self._rows(rows.start + part.start, rows.start + part.stop, columns)
        return np.moveaxis(values, -1, 0), valid

    def _rows(self, first: int, last: int, columns: slice) -> tuple[NDArray[np.uint8], NDArray[np.bool_] | bool]:
        (down, across), (high, wide) = self.shrunk, self.level.size
        top, bottom = span(first, last, down, high)
        left, right = span(columns.start, columns.stop, across, wide)
        values, valid = self.slide._reader.window(self.number, top, left, bottom, right)
        if self.shrunk == (1.0, 1.0):
            return values, True if valid is None else valid
        if valid is not None:  # glass that was not scanned is white, not black, where it meets what was
            values = np.where(valid[..., None], values, np.uint8(255))
        size = (last - first, columns.stop - columns.start)
        out = shrink(values, (first, columns.start), size, self.shrunk, (top, left))
        if valid is None:
            return out, True
        r = ((np.arange(first, last) + 0.5) * down).astype(int).clip(top, bottom - 1) - top
        c = ((np.arange(columns.start, columns.stop) + 0.5) * across).astype(int).clip(left, right - 1) - left
        return out, valid[r[:, None], c]


def open_slide(path: str | Path, *, um_per_px: float | None = None, reader: Reader = "auto") -> Slide:
    """Open a slide.

    Args:
        path: .svs, a pyramid as TIFF, or what OpenSlide reads.
        um_per_px: micrometres to a pixel of its finest level, where the file does not say or says wrong.
        reader: "tifffile", "openslide", or "auto": the first for what it reads, the second for the rest.

    Raises:
        FileError: missing, damaged, cut off, or no slide.
        InputError: OpenSlide is needed and not installed.
        SettingError: a pixel size that is not positive.
    """
    path = Path(path)
    if reader not in ("auto", "tifffile", "openslide"):
        raise SettingError(f"reader is auto, tifffile or openslide, got {reader!r}")
    if um_per_px is not None and not (np.isfinite(um_per_px) and um_per_px > 0):
        raise SettingError(f"--um-per-px is a positive number, got {um_per_px:g}")
    levels = _levels(path, reader)
    applied, um = levels.applied, levels.um
    if um_per_px is not None:
        other = f", its file says {um[0]:.4g}" if um is not None and abs(um[0] / um_per_px - 1) > SAME else ""
        applied = (*(w for w in applied if "pixel size" not in w), f"{um_per_px:g} um to a pixel given by hand{other}")
        um = (um_per_px, um_per_px)
    return Slide(path, safe_id(path), um, applied, levels)


def _levels(path: Path, reader: str) -> Levels:
    if path.is_dir():
        raise FileError(path, "is a folder", "give a slide")
    if not path.is_file():
        raise FileError(path, "no such file")
    if reader == "openslide":
        return _slide_openslide.OpenSlideLevels(path)
    foreign = path.suffix.lower() in _slide_openslide.SUFFIXES
    if reader == "auto" and (foreign or (sniffed(path) != "tiff" and _slide_openslide.known(path))):
        return _slide_openslide.OpenSlideLevels(path)
    if sniffed(path) != "tiff":
        raise FileError(path, "no slide that is read here", "give a tiled pyramid (.svs, .tif)")
    try:
        return TiffLevels(path)
    except ForeignFormError:
        if reader == "auto" and _slide_openslide.known(path):
            return _slide_openslide.OpenSlideLevels(path)
        raise


def recognised(path: str | Path) -> bool:
    """Whether a file is a slide rather than a picture: a pyramid, an .svs, a large TIFF, or a maker's own form.

    A damaged TIFF named .svs is one, too: opening it says what is wrong.
    """
    path = Path(path)
    if path.suffix.lower() in (*_slide_openslide.SUFFIXES, ".svs"):
        return True
    if sniffed(path) != "tiff":
        return False
    try:
        with opened(path) as file, quiet():
            series = file.series[0]
            page = series.keyframe
            return file.is_svs or len(series.levels) > 1 or max(page.imagelength, page.imagewidth) > LARGE
    except FileError:
        return False


def inspect(path: str | Path, *, um_per_px: float | None = None, reader: Reader = "auto") -> dict[str, Any]:
    """Format, size, levels, micrometres to a pixel, compression; nothing of the label or of what names a person."""
    slide = open_slide(path, um_per_px=um_per_px, reader=reader)
    levels = slide._reader
    return {
        "format": levels.format,
        "kind": "slide",
        "size": list(slide.size),
        "channels": 3,
        "dtype": "uint8",
        "levels": [f"{level.size[0]} x {level.size[1]} (1 : {level.factor[0]:.4g})" for level in slide.levels],
        "um per px": [round(u, 4) for u in slide.um] if slide.um else "not stated; give it by --um-per-px",
        "objective": f"{slide.power:g}x" if slide.power else None,
        **levels.about,
        "lossy": levels.lossy,
        "notes": list(slide.applied),
    }


def _near(factor: float) -> float:
    """The whole number that a factor is meant to be."""
    near = max(1, round(factor))
    return float(near) if abs(factor / near - 1) <= SAME else factor
