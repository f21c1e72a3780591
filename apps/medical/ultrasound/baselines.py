"""What needs no network: logistic regression on intensity and texture, to compare a network with."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from apps.medical._logistic import Floats, logistic_baseline
from core.errors import MissingExtraError

__all__ = ["Floats", "features", "logistic_baseline"]

SIDE = 224  # pixels that pictures are brought to: texture depends on scale
LEVELS = 32  # of grey in co-occurrence matrices
DISTANCES = (1, 2, 4, 8)  # pixels
_PROPERTIES = ("contrast", "dissimilarity", "homogeneity", "energy", "correlation")
_PATTERNS = ((8, 1), (16, 2))  # points and radius of local binary patterns


def features(picture: NDArray[np.uint8]) -> Floats:
    """Intensity and texture of a picture, grey (H, W) or RGB (H, W, 3), brought to 224 x 224 pixels, as one vector.

    Intensity: mean, deviation, skewness, kurtosis, five percentiles, a histogram of 16 bins. Texture, by scikit-image:
    grey-level co-occurrence (Haralick, doi 10.1109/TSMC.1973.4309314) at four distances, mean and range over four
    directions; uniform local binary patterns at two radii.
    """
    try:
        from skimage.feature import graycomatrix, graycoprops, local_binary_pattern
    except ImportError:
        raise MissingExtraError("scikit-image", "dense") from None
    grey = _grey(picture)
    values = grey.astype(np.float64).ravel()
    spread = values.std()
    unit = (values - values.mean()) / (spread or 1.0)
    found: list[Any] = [values.mean(), spread, (unit**3).mean(), (unit**4).mean()]
    found += np.percentile(values, [5, 25, 50, 75, 95]).tolist()
    found += (np.histogram(grey, 16, (0, 256))[0] / grey.size).tolist()
    coarse = (grey.astype(int) * LEVELS // 256).astype(np.uint8)
    turns = [0, np.pi / 4, np.pi / 2, 3 * np.pi / 4]
    pairs = graycomatrix(coarse, DISTANCES, turns, levels=LEVELS, symmetric=True, normed=True)
    for name in _PROPERTIES:
        of = graycoprops(pairs, name)  # (distances, turns)
        found += [*of.mean(1).tolist(), *np.ptp(of, axis=1).tolist()]
    for points, radius in _PATTERNS:
        pattern = local_binary_pattern(grey, points, radius, method="uniform")
        found += (np.histogram(pattern, points + 2, (0, points + 2))[0] / grey.size).tolist()
    return np.asarray(found, dtype=np.float64)


def _grey(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(224, 224) luma (ITU-R BT.601) of a picture, bilinear over pixel areas."""
    from PIL import Image

    if picture.ndim == 3 and picture.shape[-1] == 1:
        picture = picture[..., 0]
    image = Image.fromarray(picture).convert("L").resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    return np.asarray(image)
