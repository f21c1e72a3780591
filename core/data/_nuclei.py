"""Blocks of one immunohistochemistry picture with nuclei labelled by colour: weak labels, made by a rule."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.errors import MissingExtraError

SIDE = 128  # pixels of a block
PART = {0: "train", 1: "train", 2: "train", 3: "test"}  # column of blocks -> part: the two share one straight border
SMALLEST = 30  # pixels of a nucleus
BROWN, AROUND, ABOVE = 0.3, 12.0, 0.008  # share of DAB, pixels of the mean, density: chosen by eye on this picture


def labelled(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(Y, X): 1 where haematoxylin is denser than around it, from (Y, X, 3) RGB.

    Stains are told apart by colour deconvolution (Ruifrok and Johnston 2001, as scikit-image computes it). A nucleus
    stands out in haematoxylin less a share of DAB against a mean over about two nuclei, and holds some haematoxylin at
    all (0.6 of Otsu's threshold); then opened, filled, and freed of specks.
    """
    try:
        from scipy import ndimage
        from skimage.color import rgb2hed
        from skimage.filters import gaussian, threshold_otsu
        from skimage.measure import label
    except ImportError:
        raise MissingExtraError("scikit-image", "dense") from None
    blue, _, brown = (gaussian(c, 1.0) for c in np.moveaxis(rgb2hed(picture), -1, 0))
    contrast = blue - BROWN * brown
    stands_out = (contrast - gaussian(contrast, AROUND) > ABOVE) & (blue > 0.6 * threshold_otsu(blue))
    dense = ndimage.binary_fill_holes(ndimage.binary_opening(stands_out, iterations=2))
    parts = np.asarray(label(dense))
    sizes = np.bincount(parts.reshape(-1))
    sizes[0] = 0
    return (sizes[parts] >= SMALLEST).astype(np.uint8)


def blocks(picture: NDArray[Any]) -> dict[str, tuple[str, NDArray[Any]]]:
    """Name -> (part, block): squares of SIDE pixels that share no pixel, from (Y, X, ...)."""
    out = {}
    for row in range(picture.shape[0] // SIDE):
        for column, part in PART.items():
            cut = picture[row * SIDE : (row + 1) * SIDE, column * SIDE : (column + 1) * SIDE]
            out[f"ihc_r{row}_c{column}"] = (part, cut)
    return out


def write(folder: Path) -> None:
    """train/ and test/, each with images/ (RGB) and masks/ (0 background, 1 nucleus) under the same names."""
    try:
        import skimage.data
        from PIL import Image
    except ImportError:
        raise MissingExtraError("scikit-image", "dense") from None
    picture = np.asarray(skimage.data.immunohistochemistry(), np.uint8)
    images, masks = blocks(picture), blocks(labelled(picture))
    for name, (part, image) in images.items():
        for kind, array in (("images", image), ("masks", masks[name][1])):
            inside = folder / part / kind
            inside.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(inside / f"{name}.png", format="PNG")
