"""Small pictures for pages and reports, as arrays and as PNG."""

from __future__ import annotations

import base64
import io

import numpy as np
from numpy.typing import NDArray

# Anchors of a dark-to-bright scale whose lightness rises evenly; read in grey it still orders right.
_SCALE = np.array([[8, 8, 24], [56, 24, 104], [140, 41, 110], [220, 80, 70], [250, 160, 50], [252, 250, 180]], float)


def heat(values: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Values (H, W), any range, to colours (H, W, 3) uint8: the smallest dark, the largest bright; NaN is grey."""
    finite = np.isfinite(values)
    low, high = (values[finite].min(), values[finite].max()) if finite.any() else (0.0, 1.0)
    unit = np.where(finite, (values - low) / (high - low or 1.0), 0.0)
    place = np.linspace(0, 1, len(_SCALE))
    colours = np.stack([np.interp(unit, place, _SCALE[:, i]) for i in range(3)], axis=-1)
    colours[~finite] = 128
    return colours.round().astype(np.uint8)


def png(picture: NDArray[np.uint8]) -> bytes:
    """(H, W) or (H, W, 3) uint8 as a PNG file's bytes."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def inline(picture: NDArray[np.uint8]) -> str:
    """A picture as an address that a page holds in itself."""
    return "data:image/png;base64," + base64.b64encode(png(picture)).decode()
