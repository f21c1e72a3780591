"""Numbers for a restored photograph: against the sharp one, against the blur mask, and without any reference.

Pictures are (H, W, C) or (H, W) of floats in 0..1, masks (H, W). Every answer is a float, NaN where it is not defined.
NIQE, MUSIQ and their like are not here: no library of this house brings them without downloaded weights.
"""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from core.errors import ShapeError

Picture = NDArray[np.floating]
Mask = NDArray[np.floating]

RADIUS = 5  # of SSIM's Gaussian: what its map lacks on each side
FOUND = 0.5  # a mask that a network found says blurred from here on


class Agreement(NamedTuple):
    """Of a found mask with the true one, pixel by pixel.

    Attributes:
        precision: share of what was found that is blurred.
        recall: share of what is blurred that was found.
        accuracy: share of all pixels on which both agree.
    """

    precision: float
    recall: float
    accuracy: float


def psnr(picture: Picture, sharp: Picture) -> float:
    """Peak signal to noise in dB over all values, peak 1; infinite for equal pictures. Raises ShapeError."""
    return _decibels(float(_squares(picture, sharp).mean()))


def weighted_psnr(picture: Picture, sharp: Picture, mask: Mask) -> float:
    """PSNR in dB of the squared error weighted by the mask, which counts for every channel. Raises ShapeError."""
    errors = _squares(picture, sharp)
    weights = _weights(mask, errors)
    total = float(weights.sum()) * errors.shape[2]
    return _decibels(float((errors * weights).sum()) / total) if total else float("nan")


def ssim(picture: Picture, sharp: Picture) -> float:
    """SSIM (Wang 2004), mean over channels and the map without its border of 5; NaN for sides below 11.

    skimage.metrics.structural_similarity with gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
    data_range=1. Raises ShapeError.
    """
    found = _ssim_map(picture, sharp)
    return float("nan") if found is None else float(found.mean())


def weighted_ssim(picture: Picture, sharp: Picture, mask: Mask) -> float:
    """The same map weighted by the mask, both without the border of 5. Raises ShapeError."""
    found = _ssim_map(picture, sharp)
    if found is None:
        return float("nan")
    weights = _weights(mask, _squares(picture, sharp))[RADIUS:-RADIUS, RADIUS:-RADIUS]
    total = float(weights.sum()) * found.shape[2]
    return float((found * weights).sum()) / total if total else float("nan")


def aligned_psnr(picture: Picture, sharp: Picture) -> float:
    """PSNR in dB after the picture is moved as a whole onto the sharp one; never below `psnr`.

    The shift is the better one of skimage.registration.phase_cross_correlation's two (phase and plain correlation, to
    1/20 pixel, at most an eighth of a side), the resampling cubic, and what enters from outside is left out. LBAG
    aligns by OpenCV's ECC, which may also turn and scale: its numbers can differ. Raises ShapeError.
    """
    from scipy.ndimage import shift as moved
    from skimage.registration import phase_cross_correlation

    best = psnr(picture, sharp)
    a, b = _channels(picture), _channels(sharp)
    if not np.isfinite(best) or a.std() == 0 or b.std() == 0:
        return best
    still, other = b.mean(2) - b.mean(), a.mean(2) - a.mean()
    for kind in ("phase", None):  # the first for sharp pictures, the second for smooth ones
        step = np.asarray(phase_cross_correlation(still, other, upsample_factor=20, normalization=kind)[0])
        if not step.any() or (np.abs(step) > np.array(b.shape[:2]) / 8).any():
            continue
        laid = moved(a, (*step, 0), order=3, mode="nearest")
        inner = tuple(
            slice(int(np.ceil(max(s, 0))), n - int(np.ceil(max(-s, 0)))) for s, n in zip(step, b.shape, strict=False)
        )
        best = max(best, psnr(np.clip(laid[inner], 0, 1), b[inner]))
    return best


def blur_effect(picture: Picture) -> float:
    """How blurred a picture looks, without a reference: 0 sharp to 1 (Crete-Roffet 2007; skimage.measure.blur_effect).

    NaN for sides below 12, which its filter of 11 does not fit, and for a flat picture.
    """
    from skimage.measure import blur_effect as measured

    values = _channels(picture)
    if min(values.shape[:2]) < 12 or not np.ptp(values):
        return float("nan")
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        return float(measured(values, channel_axis=2))


def agreement(found: Mask, mask: Mask) -> Agreement:
    """A mask that a network found, blurred from 0.5 on, against the true one, blurred above 0. Raises ShapeError.

    Precision is NaN where nothing was found, recall where nothing is blurred.
    """
    if found.shape != mask.shape:
        raise ShapeError(f"two masks of one picture have one shape, got {found.shape} and {mask.shape}")
    said, true = found >= FOUND, mask > 0
    both = float((said & true).sum())
    precision = both / said.sum() if said.any() else float("nan")
    recall = both / true.sum() if true.any() else float("nan")
    return Agreement(float(precision), float(recall), float((said == true).mean()))


def _ssim_map(picture: Picture, sharp: Picture) -> NDArray[np.float64] | None:
    """(H - 10, W - 10, C); None where a side is too short."""
    from skimage.metrics import structural_similarity

    a, b = _pair(picture, sharp)
    if min(a.shape[:2]) < 2 * RADIUS + 1:
        return None
    how: dict[str, Any] = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0}
    _, found = structural_similarity(a, b, channel_axis=2, full=True, **how)
    inner: NDArray[np.float64] = found[RADIUS:-RADIUS, RADIUS:-RADIUS]
    return inner


def _squares(picture: Picture, sharp: Picture) -> NDArray[np.float64]:
    a, b = _pair(picture, sharp)
    return np.square(a - b)


def _pair(picture: Picture, sharp: Picture) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if picture.shape != sharp.shape or not picture.size:
        raise ShapeError(f"two pictures to compare have one shape, got {picture.shape} and {sharp.shape}")
    return _channels(picture), _channels(sharp)


def _channels(picture: Picture) -> NDArray[np.float64]:
    """(H, W, C) in float64."""
    values = np.asarray(picture, np.float64)
    return values[..., None] if values.ndim == 2 else values


def _weights(mask: Mask, errors: NDArray[np.float64]) -> NDArray[np.float64]:
    if mask.shape != errors.shape[:2]:
        raise ShapeError(f"the mask has shape {mask.shape}, the picture {errors.shape[:2]}")
    return np.asarray(mask, np.float64)[..., None]


def _decibels(error: float) -> float:
    return float("inf") if error == 0 else -10 * float(np.log10(error))
