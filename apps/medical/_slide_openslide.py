"""The levels of a slide by OpenSlide, where it is installed, which reads the makers' own forms (.ndpi, .mrxs, ...)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apps.medical._slide_levels import Level, factors
from core.errors import FileError, InputError

SUFFIXES = (".ndpi", ".mrxs", ".scn", ".vms", ".vmu", ".bif", ".svslide")


class MissingOpenSlideError(InputError, ImportError):
    def __init__(self, path: Path) -> None:
        super().__init__(
            f"{path}: a slide that only OpenSlide reads here, which is not installed; it comes with: "
            "pip install openslide-python openslide-bin"
        )


def installed() -> bool:
    try:
        import openslide  # noqa: F401
    except (ImportError, OSError):  # the second: the library below it is missing
        return False
    return True


def known(path: Path) -> bool:
    """Whether OpenSlide is here and takes a file for a slide."""
    if not installed():
        return False
    import openslide

    return openslide.OpenSlide.detect_format(str(path)) is not None


class OpenSlideLevels:
    """As `_slide_levels.Levels`, with the same pixels where a level is a whole number of times smaller than the finest.

    (Where it is not, OpenSlide shifts a window by parts of a pixel and smooths it.) What is missing of a file is found
    when it is read. Label and macro pictures and the header's other fields are never asked for.

    Raises FileError for a file that is missing, damaged or unknown to OpenSlide, MissingOpenSlideError without it.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise FileError(path, "no such file")
        if not installed():
            raise MissingOpenSlideError(path)
        import openslide

        self.path = path
        self._error = openslide.OpenSlideError
        try:
            self._slide = openslide.OpenSlide(str(path))
        except openslide.OpenSlideUnsupportedFormatError:
            raise FileError(path, "no slide that OpenSlide reads", "give a tiled pyramid (.svs, .tif)") from None
        except self._error:
            raise FileError(path, "a damaged or cut-off slide", "copy or export it again") from None
        sizes = [(rows, columns) for columns, rows in self._slide.level_dimensions]
        self.levels = tuple(Level(s, factors(sizes[0], s)) for s in sizes)
        self.um = self._pair("openslide.mpp-y", "openslide.mpp-x")
        self.power = self._number("openslide.objective-power")
        self.format = str(self._slide.properties.get("openslide.vendor", "openslide"))
        self.about: dict[str, Any] = {"read by": "OpenSlide"}
        self.lossy = True  # OpenSlide does not say; slides nearly always are
        self.applied: tuple[str, ...] = ("read by OpenSlide",)

    def window(
        self, level: int, top: int, left: int, bottom: int, right: int
    ) -> tuple[NDArray[np.uint8], NDArray[np.bool_] | None]:
        # A place is named in pixels of level 0, whatever the level.
        scale = self._slide.level_downsamples[level]
        place = (round(left * scale), round(top * scale))
        try:
            picture = self._slide.read_region(place, level, (right - left, bottom - top))
        except self._error:
            raise FileError(self.path, f"a tile of level {level} is damaged or cut off", "copy it again") from None
        values = np.asarray(picture)
        opaque = values[..., 3] > 0
        return values[..., :3], None if opaque.all() else opaque

    def forget(self, level: int) -> None:
        """OpenSlide keeps 32 MB of tiles of all levels together."""

    def _number(self, name: str) -> float | None:
        try:
            found = float(self._slide.properties.get(name, ""))
        except ValueError:
            return None
        return found if np.isfinite(found) and found > 0 else None

    def _pair(self, down: str, across: str) -> tuple[float, float] | None:
        y, x = self._number(down), self._number(across)
        return None if y is None or x is None else (y, x)
