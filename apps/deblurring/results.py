"""What the deblurring pipeline answers for one photograph."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from core import pictures
from core.data.sample import Meta
from core.errors import ShapeError
from core.files import aside

if TYPE_CHECKING:
    from core.data.photos import Photo

BLURRED = 128  # a mask's value from which a pixel counts as blurred, in `as_dict` and `draw`
_SHOWN = 640  # pixels that a picture of `draw` is wide or high at most
_MASK = (213, 94, 0)


@dataclass(frozen=True, eq=False)
class Deblurred:
    """A photograph without its blur, on exactly the pixels of its input.

    Attributes:
        image: (H, W, 3), or (H, W, 1) of a grey photograph, in the input's own type: uint8, uint16, or float32 0..1.
        mask: (H, W) uint8: where the network's predictor found blur, 0 nowhere to 255 surely.
        before: what came in, like `image`, or a smaller form of it, for `draw`.
        meta: of the input, with what was done to it.
        photo: the opened file, whose profile, EXIF data and transparency `save` keeps; None for arrays.

    Raises ShapeError for arrays that do not fit one another.
    """

    image: NDArray[Any]
    mask: NDArray[np.uint8]
    before: NDArray[Any]
    meta: Meta
    photo: Photo | None = None

    def __post_init__(self) -> None:
        one, other = self.image, self.before
        if one.ndim != 3 or other.ndim != 3 or (one.shape[2], one.dtype) != (other.shape[2], other.dtype):
            raise ShapeError(f"a result is like its input, {other.dtype} {other.shape}, got {one.dtype} {one.shape}")
        if self.mask.shape != self.image.shape[:2] or self.mask.dtype != np.uint8:
            raise ShapeError(f"the mask is uint8 {self.image.shape[:2]}, got {self.mask.dtype} {self.mask.shape}")

    def save(self, path: str | Path, *, quality: int = 95) -> None:
        """Write the picture, whole or not at all: PNG, JPEG or TIFF by the suffix, with all that the input's file had.

        Raises FileError or SettingError for what a format does not hold (16 bits in JPEG), and for a full disk.
        """
        from core.data import photos

        photos.save(Path(path), self.image, like=self.photo, quality=quality)

    def save_mask(self, path: str | Path) -> None:
        """Write the mask as a grey PNG, 0 (sharp) to 255 (blurred). Raises FileError as `save` does."""
        with aside(path) as part:
            part.write_bytes(pictures.png(self.mask))

    def draw(self) -> NDArray[np.uint8]:
        """A picture to judge the result by, (h, w, 3) uint8: before, after, and the mask over what came in."""
        height, width = _shown(self.mask.shape)
        before, after = (pictures.resized(_bytes(smaller(a)), height, width, smooth=True) for a in (
            self.before, self.image
        ))  # fmt: skip
        found = pictures.resized(smaller(self.mask[..., None])[..., 0], height, width, smooth=True) >= BLURRED
        over = pictures.overlay(before, found.astype(np.uint8), {1: _MASK}, alpha=0.4)
        columns = 3 if width <= 2 * height else 1
        return pictures.panel(
            [("before", before), ("after", after), ("blur that was found", over)], columns, {"found blurred": _MASK}
        )

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "id": self.meta.id,
            "shape": list(self.image.shape),
            "dtype": str(self.image.dtype),
            "blurred": self.blurred,
            "applied": list(self.meta.applied),
        }

    @property
    def blurred(self) -> float:
        """The share of the pixels that were found blurred, 0..1."""
        return float(np.count_nonzero(self.mask >= BLURRED) / self.mask.size)


def smaller(values: NDArray[Any]) -> NDArray[Any]:
    """(H, W, C) by whole steps to at most twice what `draw` shows, a copy: of a large photograph little is kept."""
    step = max(1, max(values.shape[:2]) // (2 * _SHOWN))
    return np.ascontiguousarray(values[::step, ::step])


def _shown(size: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns of a picture of `draw`."""
    factor = min(1.0, _SHOWN / max(size))
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def _bytes(values: NDArray[Any]) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 of a picture of any of the types."""
    if values.dtype == np.uint16:
        values = (values >> 8).astype(np.uint8)
    elif values.dtype != np.uint8:
        values = np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)
    return np.ascontiguousarray(np.repeat(values, 3, axis=2) if values.shape[2] == 1 else values)
