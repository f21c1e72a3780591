"""Where a slide shows tissue: a mask of its thumbnail, and the part of each tile that it covers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_COLOUR = (0.03, 0.10)  # between these the threshold of colourfulness is looked for: of glass and of pale tissue
_INK = 0.12  # brightness (0..1) below which it is a pen, a fold of the holder or an edge of the scan
_DUST = 64  # pixels of the thumbnail: smaller pieces are dust, smaller holes are tissue


def mask(
    picture: NDArray[np.uint8], valid: NDArray[np.bool_] | None = None, *, smallest: int = _DUST
) -> NDArray[np.bool_]:
    """True where a thumbnail shows tissue.

    Glass has no colour: what is more colourful (largest less smallest of red, green, blue, after smoothing) than
    Otsu's threshold is tissue. The threshold is kept between those of empty glass and of pale tissue, so that a slide
    of nothing but tissue, or of nothing but glass, is not cut in two. Black is none. Works for H&E and DAB.

    Args:
        picture: (rows, columns, 3).
        valid: (rows, columns), False where nothing was scanned.
        smallest: pixels of a piece, below which it is left out, and of a hole, below which it is filled.

    Returns (rows, columns) bool.
    """
    from skimage.filters import gaussian, threshold_otsu

    known = np.ones(picture.shape[:2], np.bool_) if valid is None else valid
    if not known.any():
        return known.copy()
    white = np.where(known[..., None], picture, np.uint8(255)).astype(np.float32) / 255
    smooth = gaussian(white, sigma=1, channel_axis=-1)
    colour = smooth.max(-1) - smooth.min(-1)
    inked = smooth.max(-1) < _INK
    seen = colour[known & ~inked]
    level = float(threshold_otsu(seen)) if seen.size and np.ptp(seen) > 0 else 0.0
    found = (colour > float(np.clip(level, *_COLOUR))) & known & ~inked
    return _without_small(~_without_small(~found, smallest), smallest)


def _without_small(found: NDArray[np.bool_], smallest: int) -> NDArray[np.bool_]:
    """Without connected pieces of fewer pixels."""
    from skimage.measure import label

    pieces = label(found, connectivity=1)
    sizes = np.bincount(pieces.ravel())
    kept = sizes >= smallest
    kept[0] = False
    return kept[pieces]


def covered(
    found: NDArray[np.bool_], scale: Sequence[float], rows: NDArray[np.floating], columns: NDArray[np.floating],
    size: tuple[float, float],
) -> NDArray[np.float32]:  # fmt: skip
    """The part of each tile that tissue covers, 0..1.

    Args:
        found: the mask.
        scale: pixels of level 0 to one of the mask, down and across.
        rows: upper edges of the tiles in level 0.
        columns: left edges of the tiles in level 0.
        size: rows and columns of a tile in level 0.

    Returns (len(rows), len(columns)). What of a tile lies outside the slide counts as glass.
    """
    summed = np.zeros((found.shape[0] + 1, found.shape[1] + 1))
    summed[1:, 1:] = found.cumsum(0, dtype=np.float64).cumsum(1)

    def at(y: NDArray[np.floating], x: NDArray[np.floating]) -> NDArray[np.float64]:
        """The mask's integral up to row y, column x, between its pixels linear in each."""
        y, x = np.clip(y, 0, found.shape[0]), np.clip(x, 0, found.shape[1])
        r, c = np.minimum(y.astype(int), found.shape[0] - 1), np.minimum(x.astype(int), found.shape[1] - 1)
        a, b = (y - r)[:, None], (x - c)[None]
        corners = [summed[r[:, None] + i, c[None] + j] for i in (0, 1) for j in (0, 1)]
        return (1 - a) * ((1 - b) * corners[0] + b * corners[1]) + a * ((1 - b) * corners[2] + b * corners[3])

    high, wide = size[0] / scale[0], size[1] / scale[1]
    top, left = np.asarray(rows) / scale[0], np.asarray(columns) / scale[1]
    inside = at(top + high, left + wide) - at(top, left + wide) - at(top + high, left) + at(top, left)
    return np.clip(inside / (high * wide), 0, 1).astype(np.float32)
