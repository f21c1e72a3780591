"""What the colorization pipeline answers for one photograph."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from apps.colorization import _fidelity, hints
from apps.colorization._fidelity import Reached
from apps.colorization.hints import Hint
from core.errors import ShapeError

if TYPE_CHECKING:
    from core.data.photos import Photo
    from core.data.sample import Meta

OPAQUE = (".jpg", ".jpeg", ".jpe")  # formats without transparency
_SHOWN = 480  # longest side of a drawn picture


@dataclass(frozen=True, eq=False)
class Coloured:
    """A photograph in colour, with its own luminance.

    Attributes:
        pixels: (H, W, 3) sRGB, upright, of the photograph's type: uint8, uint16, or float32 from 0 to 1.
        ab: (2, S, S) float32: a', b' as the network gave them.
        photo: the photograph.
        hints: as asked for, in order, all of them.
        reached: the colour at each hint that counts.
        meta: of the photograph; `applied` says what was done.
        said: what a user should know: several hints in one cell.
    """

    pixels: NDArray[Any]
    ab: NDArray[np.float32]
    photo: Photo
    hints: tuple[Hint, ...]
    reached: tuple[Reached, ...]
    meta: Meta
    said: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.pixels.shape != (*self.photo.pixels.shape[:2], 3):
            raise ShapeError(f"the result is {self.pixels.shape}, the photograph {self.photo.pixels.shape}")

    def save(self, path: str | Path, *, quality: int = 95) -> None:
        """Write the picture, whole or not at all; the suffix says how: .png, .tif (16-bit kept), .jpg.

        ICC profile, EXIF (upright now) and transparency are the photograph's; JPEG has no place for transparency, which
        is left out there. Raises SettingError for another suffix or more bits than a format holds, FileError for a full
        disk or a folder that cannot be written.
        """
        from core.data import photos

        path, like = Path(path), self.photo
        if path.suffix.lower() in OPAQUE:
            like = replace(like, alpha=None)
        photos.save(path, self.pixels, like=like, quality=quality)

    def save_hints(self, path: str | Path) -> None:
        """Write the hints that count, as .csv or .json, beside each what it came to: got_r, got_g, got_b and Delta E.

        `hints.read` gives the hints back. Raises FileError as `hints.write`.
        """
        hints.write(path, [r.hint for r in self.reached], [r.columns() for r in self.reached])

    def draw(self) -> NDArray[np.uint8]:
        """Input, hints as dots, and result side by side, (H, W, 3) uint8."""
        from PIL import Image

        from core import pictures

        given, shown = self.photo.pixels, self.pixels
        rows, columns = (max(1, round(n * min(1, _SHOWN / max(given.shape[:2])))) for n in given.shape[:2])
        before, after = (_small(p, rows, columns) for p in (given, shown))
        factor = columns / given.shape[1], rows / given.shape[0]
        grey = np.asarray(Image.fromarray(before).convert("L").convert("RGB"))  # what the network sees of it
        dotted = _dots(grey, self.hints, factor)
        count = f"{len(self.reached)} hint{'' if len(self.reached) == 1 else 's'}"
        return pictures.panel(
            [("photograph", before), (count, dotted), ("coloured", after)], note=_fidelity.told(self.reached)
        )

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "id": self.meta.id,
            "shape": list(self.pixels.shape),
            "dtype": str(self.pixels.dtype),
            "hints": [
                {"x": r.hint.x, "y": r.hint.y, "r": r.hint.r, "g": r.hint.g, "b": r.hint.b, **r.columns()}
                for r in self.reached
            ],
            "delta_e": dict(_fidelity.means(self.reached)),
            "said": list(self.said),
            "applied": list(self.meta.applied),
        }

    def told(self) -> str:
        """In a few words: how near the colours at the hints are to those asked for."""
        return "; ".join([_fidelity.told(self.reached), *self.said])


def _small(pixels: NDArray[Any], rows: int, columns: int) -> NDArray[np.uint8]:
    from apps.colorization import _canvas

    values = _canvas.reduced(pixels, rows, columns)
    return _canvas.stored(np.broadcast_to(values, (rows, columns, 3)), np.dtype(np.uint8))


def _dots(picture: NDArray[np.uint8], points: tuple[Hint, ...], factor: tuple[float, float]) -> NDArray[np.uint8]:
    """A dot in each hint's colour, with a dark and a light rim so that it stands out from any ground."""
    from PIL import Image, ImageDraw

    sheet = Image.fromarray(picture)
    draw = ImageDraw.Draw(sheet)
    radius = max(2.0, max(picture.shape[:2]) / 90)
    for hint in points:
        x, y = (hint.x + 0.5) * factor[0] - 0.5, (hint.y + 0.5) * factor[1] - 0.5
        for grow, colour in ((2, (0, 0, 0)), (1, (255, 255, 255)), (0, hint.colour)):
            r = radius + grow
            draw.ellipse((x - r, y - r, x + r, y + r), fill=colour)
    return np.asarray(sheet)
