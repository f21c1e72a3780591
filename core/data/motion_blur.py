"""Motion blur made on sharp photographs: one thing moves, or the camera shakes, while the shutter is open.

A sensor adds up light. So values are first taken from sRGB back to linear light (IEC 61966-2-1), the exposure is the
mean of the frames along a smooth path of the moving thing, and only the mean is encoded again. The scene has two
layers: the thing F with its opacity A, and the background B, continued behind the thing. At a displacement d a frame is

    A(x - d) F(x - d) + (1 - A(x - d)) B(x)

and their mean is K * (A F) + (1 - K * A) B, where K is the path drawn with bilinear weights: the mean over every
sub-step at the cost of one convolution. In the middle of the exposure d is 0; the sharp picture is that moment.

What is not in it: depth, turning and changing shape, defocus, rolling shutter, noise, and light above white, which the
sharp file has already cut off.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from core.data import _moving
from core.errors import MissingExtraError, SettingError, ShapeError

Floats = NDArray[np.float32]
SMALLEST = 32  # pixels of a side
SEGMENTS = ("any", "region", "blob")
_LONGEST = 0.5  # of the shorter side: a path that leaves more of the picture than that leaves the thing behind


@dataclass(frozen=True)
class Blurred:
    """A made pair.

    Attributes:
        blurred: (H, W, C) in 0..1, sRGB.
        mask: (H, W) in 0..1: how opaque the moving thing was here at most; 0 where nothing moved.
        sharp: (H, W, C) in 0..1, sRGB, as it was given.
        path: (N, 2) displacements x, y in pixels at evenly spaced moments; (0, 0) in the middle of them.
    """

    blurred: Floats
    mask: Floats
    sharp: Floats
    path: NDArray[np.float64]


def local_blur(
    sharp: NDArray[np.floating],
    seed: int,
    *,
    length: tuple[float, float] = (8.0, 36.0),
    area: tuple[float, float] = (0.04, 0.30),
    segment: str = "any",
) -> Blurred:
    """One thing of the picture moves along a random curve. The same pair for the same picture and seed.

    Args:
        sharp: (H, W, C) in 0..1, sRGB; both sides at least 32 pixels.
        seed: of the thing and its path.
        length: shortest and longest path in pixels, drawn evenly; at most half of the shorter side is gone.
        area: smallest and largest share of the picture that the thing takes, drawn evenly, met roughly.
        segment: "region" grows superpixels (SLIC) of similar colour from one with texture, so the thing ends at edges
            of the picture; "blob" is a random smooth outline; "any" is a region three times in four.

    Raises ShapeError for another shape, SettingError for ranges that are none, MissingExtraError without scikit-image.
    """
    sharp, rng = _checked(sharp, seed, length)
    if segment not in SEGMENTS:
        raise SettingError(f"segment is one of {', '.join(SEGMENTS)}, got {segment!r}")
    if not 0 < area[0] <= area[1] <= 0.9:
        raise SettingError(f"area is two shares between 0 and 0.9, the smaller first, got {area}")
    _import_skimage()
    share = float(rng.uniform(*area))
    if segment == "any":
        segment = "region" if rng.uniform() < 0.75 else "blob"
    alpha = (_moving.region if segment == "region" else _moving.blob)(sharp, share, rng)
    path = trajectory(rng, _drawn(rng, length, sharp), bend=0.5)
    light = to_light(sharp)
    exposed, swept = expose(light, alpha, _moving.behind(light, alpha), path)
    blurred = np.where(swept[..., None] > 0, from_light(exposed), sharp)
    return Blurred(blurred, swept, sharp, path)


def global_blur(sharp: NDArray[np.floating], seed: int, *, length: tuple[float, float] = (6.0, 24.0)) -> Blurred:
    """The camera shakes: the whole picture moves along a random, more curved path; its border is mirrored.

    Arguments, answer and errors as of `local_blur`; the mask is 1 everywhere.
    """
    sharp, rng = _checked(sharp, seed, length)
    path = trajectory(rng, _drawn(rng, length, sharp), bend=2.0)
    whole = np.ones(sharp.shape[:2], np.float32)
    light = to_light(sharp)
    exposed, _ = expose(light, whole, light, path)
    return Blurred(from_light(exposed), whole, sharp, path)


def trajectory(rng: np.random.Generator, length: float, *, bend: float) -> NDArray[np.float64]:
    """(N, 2) displacements x, y of a smooth curve `length` pixels long, four moments a pixel; the middle one is 0.

    The direction of travel is random and turns by a few slow waves of about `bend` radians; the speed varies by a
    third, as that of a hand or a foot does within an exposure.
    """
    moments = 4 * max(4, int(np.ceil(length))) + 1
    t = np.linspace(0, 1, moments - 1)
    angle = np.full(t.shape, rng.uniform(0, 2 * np.pi))
    for wave in (1, 2, 3):
        angle += bend / wave * rng.normal() * np.sin(np.pi * wave * t + rng.uniform(0, 2 * np.pi))
    speed = 1 + rng.uniform(0, 0.33) * np.sin(2 * np.pi * t * rng.uniform(0.5, 1.5) + rng.uniform(0, 2 * np.pi))
    steps = np.stack([np.cos(angle), np.sin(angle)], axis=1) * speed[:, None]
    steps *= length / np.linalg.norm(steps, axis=1).sum()
    path = np.concatenate([np.zeros((1, 2)), np.cumsum(steps, axis=0)])
    return path - path[moments // 2]


def expose(light: Floats, alpha: Floats, background: Floats, path: NDArray[np.float64]) -> tuple[Floats, Floats]:
    """The mean of the frames along a path, and how opaque the thing was at most.

    Args:
        light: (H, W, C) of the thing, linear; only where `alpha` is above 0 matters.
        alpha: (H, W) in 0..1.
        background: (H, W, C), linear.
        path: (N, 2) displacements x, y in pixels.

    Returns exposure (H, W, C) in linear light and (H, W) in 0..1. What leaves the picture is mirrored at its border.
    """
    from scipy.signal import oaconvolve

    kernel = drawn(path)
    reach = kernel.shape[0] // 2
    rows, columns = _box(alpha, reach)
    pads = [(min(reach, r.start), min(reach, n - r.stop)) for r, n in zip((rows, columns), alpha.shape, strict=True)]
    around = tuple(
        slice(r.start - p, r.stop + q) for r, (p, q) in zip((rows, columns), pads, strict=True)
    )  # what the kernel sees within the picture
    lack = [(reach - p, reach - q) for p, q in pads]
    opaque = np.pad(alpha[around], lack, mode="symmetric")
    shown = np.pad(light[around] * alpha[around][..., None], [*lack, (0, 0)], mode="symmetric")
    cover = np.clip(oaconvolve(opaque, kernel, mode="valid"), 0, 1)
    thing = np.clip(oaconvolve(shown, kernel[..., None], mode="valid", axes=(0, 1)), 0, None)
    exposed, swept = background.astype(np.float32, copy=True), np.zeros(alpha.shape, np.float32)
    exposed[rows, columns] = thing + (1 - cover[..., None]) * background[rows, columns]
    size = cover.shape
    for x, y in np.unique(np.rint(path).astype(int), axis=0):
        moved = opaque[reach - y : reach - y + size[0], reach - x : reach - x + size[1]]
        np.maximum(swept[rows, columns], moved, out=swept[rows, columns])
    return exposed, swept


def drawn(path: NDArray[np.float64]) -> NDArray[np.float64]:
    """A path as a kernel (2 r + 1, 2 r + 1) whose sum is 1: each moment spread over its four nearest pixels."""
    reach = int(np.ceil(np.abs(path).max())) + 1
    kernel = np.zeros((2 * reach + 1, 2 * reach + 1))
    low = np.floor(path).astype(int)
    share = path - low
    for dx, dy in ((0, 0), (1, 0), (0, 1), (1, 1)):
        weight = np.where(dx, share[:, 0], 1 - share[:, 0]) * np.where(dy, share[:, 1], 1 - share[:, 1])
        np.add.at(kernel, (low[:, 1] + dy + reach, low[:, 0] + dx + reach), weight)
    return kernel / len(path)


def to_light(srgb: NDArray[np.floating]) -> Floats:
    """SRGB values in 0..1 to linear light in 0..1 (IEC 61966-2-1)."""
    low = srgb <= 0.04045
    return np.where(low, srgb / 12.92, ((np.maximum(srgb, 0.04045) + 0.055) / 1.055) ** 2.4).astype(np.float32)


def from_light(light: NDArray[np.floating]) -> Floats:
    """The way back; clipped to 0..1."""
    light = np.clip(light, 0, 1)
    low = light <= 0.0031308
    return np.where(low, light * 12.92, 1.055 * np.maximum(light, 0.0031308) ** (1 / 2.4) - 0.055).astype(np.float32)


def _box(alpha: Floats, reach: int) -> tuple[slice, slice]:
    """Rows and columns that the thing can come to."""
    out = []
    for axis, n in enumerate(alpha.shape):
        at = np.flatnonzero(alpha.any(axis=1 - axis))
        low, high = (int(at[0]), int(at[-1]) + 1) if len(at) else (0, 0)
        out.append(slice(max(0, low - reach), min(n, high + reach)))
    return out[0], out[1]


def _drawn(rng: np.random.Generator, length: tuple[float, float], sharp: Floats) -> float:
    return min(float(rng.uniform(*length)), _LONGEST * min(sharp.shape[:2]))


def _checked(sharp: NDArray[np.floating], seed: int, length: tuple[float, float]) -> tuple[Floats, np.random.Generator]:
    if sharp.ndim != 3 or min(sharp.shape[:2]) < SMALLEST or sharp.dtype.kind != "f":
        raise ShapeError(f"expected floats (H, W, C) of at least 32 x 32 pixels, got {sharp.dtype} {sharp.shape}")
    if not 0 < length[0] <= length[1] < 1000:
        raise SettingError(f"length is two numbers of pixels below 1000, the smaller first, got {length}")
    return sharp.astype(np.float32, copy=False), np.random.default_rng([811, seed])


def _import_skimage() -> None:
    try:
        import skimage  # noqa: F401
    except ImportError:
        raise MissingExtraError("scikit-image", "dense") from None
