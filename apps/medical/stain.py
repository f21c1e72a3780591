"""Stain normalisation after Macenko et al. (ISBI 2009): every laboratory's haematoxylin and eosin as one reference's.

The stains' colours are found by MONAI. They are found once for a slide, on pixels from all of it, and then hold for
each of its tiles: found tile by tile, a tile with one stain alone would change its meaning.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from core.errors import MissingExtraError

# MONAI's defaults, which are those of the authors' published code.
LIGHT = 240.0  # what the lamp sends through glass, 0..255
REFERENCE = np.array([[0.5626, 0.2159], [0.7201, 0.8012], [0.4062, 0.5581]])  # absorbance of H, E in red, green, blue
STRENGTH = np.array([1.9705, 1.0308])  # of both in the reference: the 99th percentile
LEAST = 200  # stained pixels, of which both colours can be told
_FAINT = 0.15  # absorbance in every channel from which on a pixel counts as stained


@dataclass(frozen=True)
class Stain:
    """The colours of one slide's (or picture's) stains.

    Attributes:
        colours: (3, 2), absorbance of haematoxylin and eosin in red, green, blue, of length 1 each.
        strength: (2,), the 99th percentile of each one's concentration.
    """

    colours: NDArray[np.float64]
    strength: NDArray[np.float64]

    def __call__(self, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The picture (..., 3) as if it had been stained like the reference."""
        absorbed = _absorbed(picture.reshape(-1, 3))
        amounts = absorbed @ np.linalg.pinv(self.colours).T * (STRENGTH / self.strength)
        values = LIGHT * np.exp(-amounts @ REFERENCE.T)
        return np.clip(values, 0, 255).astype(np.uint8).reshape(picture.shape)


def fit(pixels: NDArray[np.uint8]) -> Stain | None:
    """The stains of pixels (..., 3); None where too few of them are stained, or with one colour alone."""
    try:
        from monai.apps.pathology.transforms.stain.array import ExtractHEStains
    except ImportError:
        raise MissingExtraError("monai", "medical") from None
    pixels = np.ascontiguousarray(pixels.reshape(-1, 3))
    absorbed = _absorbed(pixels)
    if (absorbed > _FAINT).all(-1).sum() < LEAST:
        return None
    colours = np.asarray(ExtractHEStains(tli=LIGHT, beta=_FAINT)(pixels[:, None]), np.float64)
    if not np.isfinite(colours).all() or np.linalg.cond(colours) > 1e3:
        return None
    strength = np.percentile(absorbed @ np.linalg.pinv(colours).T, 99, axis=0)
    if not (strength > 1e-3).all():
        return None
    return Stain(colours, strength)


def normalised(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A picture (rows, columns, 3) by its own stains; as it was where they cannot be told (glass, one colour)."""
    found = fit(picture)
    return picture if found is None else found(picture)


def _absorbed(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """(N, 3): how much light each pixel held back (Beer-Lambert), at least 0."""
    table = -np.log(np.minimum(np.arange(256) + 1.0, LIGHT) / LIGHT)
    return table[pixels]
