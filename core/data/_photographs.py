"""Seven colour photographs that scikit-image and scikit-learn ship, as sets to colour and to deblur."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from core.data import motion_blur, photos
from core.errors import MissingExtraError

TRAIN = ("astronaut", "china", "coffee", "motorcycle")
TEST = ("chelsea", "flower", "rocket")
_SKLEARN = ("china", "flower")
_CROP = 256  # pixels of a square to deblur
_PAIRS = {"train": 8, "test": 2}  # of each photograph
_LENGTH = (6.0, 28.0)  # of a path in pixels
Picture = NDArray[np.uint8]


def photograph(name: str) -> Picture:
    """(H, W, 3) of one of the seven. Raises MissingExtraError without its package."""
    package = "scikit-learn" if name in _SKLEARN else "scikit-image"
    try:
        if name in _SKLEARN:
            from sklearn.datasets import load_sample_image

            picture = load_sample_image(f"{name}.jpg")
        else:
            from skimage import data

            picture = data.stereo_motorcycle()[0] if name == "motorcycle" else getattr(data, name)()
    except ImportError:
        raise MissingExtraError(package, "dense") from None
    return np.asarray(picture, np.uint8)


def write(folder: Path) -> None:
    """train/NAME.png and test/NAME.png, whole: with squares of them as well, colours on the others get worse."""
    for part, names in (("train", TRAIN), ("test", TEST)):
        for name in names:
            photos.save(folder / part / f"{name}.png", photograph(name))


def write_blurred(folder: Path) -> None:
    """Pairs as in ReLoBlur: dataset/PART/NAME/NN/NN_{blur,sharp}.png, masks/PART/NAME/NN/NN.png.

    To train on there are in turn a square of the photograph and the whole of it at half its size; to test, the whole.
    """
    for part, names in (("train", TRAIN), ("test", TEST)):
        for k, name in enumerate(names):
            picture = photograph(name)
            for number in range(1, _PAIRS[part] + 1):
                seed = 1000 * (part == "test") + 100 * k + number
                sharp = _shown(picture, seed, number) if part == "train" else picture
                pair = motion_blur.local_blur(sharp / np.float32(255), seed, length=_LENGTH)
                inside = folder / "dataset" / part / name / f"{number:02d}"
                photos.save(inside / f"{number:02d}_sharp.png", sharp)
                photos.save(inside / f"{number:02d}_blur.png", photos.as_stored(pair.blurred, np.uint8))
                masks = folder / "masks" / part / name / f"{number:02d}"
                photos.save(masks / f"{number:02d}.png", photos.as_stored(pair.mask, np.uint8))


def _shown(picture: Picture, seed: int, number: int) -> Picture:
    """A square at a random place, or every other time the whole, each two by two pixels made one in linear light."""
    H, W = picture.shape[:2]
    if number % 2:
        top, left = np.random.default_rng([812, seed]).integers(0, (H - _CROP + 1, W - _CROP + 1))
        return picture[top : top + _CROP, left : left + _CROP]
    light = motion_blur.to_light(picture[: H // 2 * 2, : W // 2 * 2] / np.float32(255))
    mean = light.reshape(H // 2, 2, W // 2, 2, 3).mean(axis=(1, 3))
    return photos.as_stored(motion_blur.from_light(mean), np.uint8)
