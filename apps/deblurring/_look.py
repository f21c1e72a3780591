"""What `inspect` says of a photograph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from core.data import photos

TILE = 512  # pixels that the measure of blur looks at together


def inspect(path: Path) -> dict[str, object]:
    """What the file is, and how blurred it looks by the measure without a reference. FileError as `photos.read`."""
    told = photos.inspect(path)
    measured = blur(photos.read(path, colour=False).pixels)
    words = ""
    if measured:
        words = f"{np.mean(measured):.3f} (0 sharp, 1 blurred)"
        if len(measured) > 1:
            words += f", from {min(measured):.3f} to {max(measured):.3f} over tiles of {TILE} pixels"
    return told | {"blur effect": words}


def blur(pixels: NDArray[np.generic]) -> list[float]:
    """Crete and Roffet's measure of each tile of a photograph (H, W, C), 0 sharp to 1 blurred.

    Without the tiles that are too small or flat. By tiles, so that a large photograph needs little memory and one that
    is blurred in places shows it.
    """
    from apps.deblurring import metrics

    found = []
    for row in range(0, pixels.shape[0], TILE):
        for column in range(0, pixels.shape[1], TILE):
            part = pixels[row : row + TILE, column : column + TILE]
            values = photos.as_float(photos.Photo(part))
            value = metrics.blur_effect(values if values.shape[2] == 3 else np.repeat(values, 3, axis=2))
            if np.isfinite(value):
                found.append(value)
    return found
