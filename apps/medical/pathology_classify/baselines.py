"""What needs no network: logistic regression on colours, to compare a network with."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from apps.medical._logistic import Floats, logistic_baseline
from core.errors import MissingExtraError

__all__ = ["BINS", "Floats", "features", "logistic_baseline"]

BINS = 8  # of each of red, green and blue together, and four times as many of each by itself


def features(tile: NDArray[np.uint8]) -> Floats:
    """Colours of a tile (rows, columns, 3) as one vector, whatever its size.

    Mean and deviation of red, green, blue and, by scikit-image's separation of stains (Ruifrok and Johnston 2001), of
    haematoxylin, eosin and rest; a histogram of 32 bins of each of the three channels; one of 8 x 8 x 8 of all at once.
    """
    try:
        from skimage.color import rgb2hed
    except ImportError:
        raise MissingExtraError("scikit-image", "dense") from None
    pixels = tile.reshape(-1, 3)
    stains = rgb2hed(tile).reshape(-1, 3)
    values = np.concatenate([pixels.astype(np.float64), stains], axis=1)
    count = len(pixels)
    each = [np.histogram(channel, 4 * BINS, (0, 256))[0] / count for channel in pixels.T]
    cells = pixels.astype(np.intp) * BINS // 256
    places = np.ravel_multi_index(tuple(cells.T), (BINS, BINS, BINS))
    joint = np.bincount(places, minlength=BINS**3) / count
    return np.concatenate([values.mean(0), values.std(0), *each, joint])
