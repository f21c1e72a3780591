"""What a network must beat: the blurred picture itself, unsharp masking, and deconvolution by a guessed kernel.

Each takes a picture (H, W, 3) or (H, W, 1), float32 0..1, and answers one of the same shape within 0..1.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray

from core.errors import SettingError

Picture = NDArray[np.float32]
Baseline = Callable[[Picture], Picture]


def identity(picture: Picture) -> Picture:
    """The picture as it came."""
    return picture


def unsharp(picture: Picture, *, radius: float = 2.0, amount: float = 0.5) -> Picture:
    """Unsharp masking (skimage.filters.unsharp_mask): `amount` of what a Gaussian of `radius` pixels took away."""
    from skimage.filters import unsharp_mask

    answer: Picture = unsharp_mask(picture, radius=radius, amount=amount, channel_axis=2).astype(np.float32)
    return answer


def line(length: int, angle: float = 0.0) -> NDArray[np.float64]:
    """A motion kernel: a line `length` pixels long, turned by `angle` degrees, drawn with bilinear weights; its sum is
    1. Raises SettingError below 1.
    """
    if length < 1:
        raise SettingError(f"a motion kernel is at least 1 pixel long, got {length}")
    side = length + 2 + (length + 1) % 2
    kernel, centre = np.zeros((side, side)), side // 2
    steps = np.linspace(-(length - 1) / 2, (length - 1) / 2, 8 * length + 1)
    for y, x in zip(-np.sin(np.radians(angle)) * steps, np.cos(np.radians(angle)) * steps, strict=True):
        row, column = int(np.floor(y)), int(np.floor(x))
        for dy, wy in ((0, 1 - (y - row)), (1, y - row)):
            for dx, wx in ((0, 1 - (x - column)), (1, x - column)):
                if wy * wx:
                    kernel[centre + row + dy, centre + column + dx] += wy * wx
    return kernel / kernel.sum()


def richardson_lucy(picture: Picture, *, kernel: NDArray[np.float64], rounds: int = 10) -> Picture:
    """Richardson-Lucy deconvolution of each channel (skimage.restoration.richardson_lucy), the border mirrored."""
    from skimage.restoration import richardson_lucy as deconvolved

    return _by_channel(picture, kernel, lambda x: deconvolved(x, kernel, num_iter=rounds, filter_epsilon=1e-6))


def wiener(picture: Picture, *, kernel: NDArray[np.float64], balance: float = 0.05) -> Picture:
    """Wiener-Hunt deconvolution of each channel (skimage.restoration.wiener), the border mirrored.

    A larger `balance` smooths more.
    """
    from skimage.restoration import wiener as deconvolved

    return _by_channel(picture, kernel, lambda x: deconvolved(x, kernel, balance, clip=False))


def _by_channel(
    picture: Picture, kernel: NDArray[np.float64], change: Callable[[NDArray[np.float64]], NDArray[np.float64]]
) -> Picture:
    around = 2 * max(kernel.shape)
    pads = [(min(around, n - 1), min(around, n - 1)) for n in picture.shape[:2]]
    padded = np.pad(picture.astype(np.float64), [*pads, (0, 0)], mode="reflect")
    found = np.stack([change(padded[..., i]) for i in range(padded.shape[2])], -1)
    (top, _), (left, _) = pads
    inner = found[top : top + picture.shape[0], left : left + picture.shape[1]]
    return np.clip(inner, 0, 1).astype(np.float32)


BASELINES: dict[str, Baseline] = {
    "the blurred picture": identity,
    "unsharp mask (radius 2, amount 0.5)": unsharp,
    "Richardson-Lucy (horizontal line of 9, 10 rounds)": partial(richardson_lucy, kernel=line(9)),
    "Wiener (horizontal line of 9, balance 0.05)": partial(wiener, kernel=line(9)),
}
