"""Colours of an ICC profile (ICC.1:2022) to sRGB and back.

Colours of 8 bits go through LittleCMS, which has no more for RGB in Pillow. More bits are computed in float where the
profile is a matrix and three curves, as cameras, phones and screens have, or the one curve of a grey one; where it is
tables, they are interpolated in a grid of LittleCMS's answers. Intent: relative colorimetric, black point kept.
"""

from __future__ import annotations

import io
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from core.data._icc import LEVELS, Curves, numbers

if TYPE_CHECKING:
    from PIL.Image import Image

Floats = NDArray[np.float32]
_NODES = 52  # of the grid along each colour: every fifth of the 256 values
_ROWS = 1 << 18  # pixels converted at once


class Profile:
    """What an embedded ICC profile means for a picture of `channels` 1 or 3.

    Attributes:
        name: its description.
        fits: whether it describes such a picture at all.
        usable: whether it can be applied both ways; where not, colours are taken as they are.
        same: whether it is sRGB itself, to within one of 255 levels everywhere.
        exact: whether it is computed in float, so that 16 bits keep their precision.
    """

    def __init__(self, data: bytes, channels: int) -> None:
        self._data, self._channels = data, channels
        self.name, self._space = described(data)
        self.fits = self._space == {1: "GRAY", 3: "RGB"}[channels]
        self._numbers = numbers(data) if self.fits else None
        self.exact = self._numbers is not None
        self.usable = self.exact or (self.fits and channels == 3 and _tables(data) is not None)
        self.same = self.usable and self._is_srgb()

    def to_srgb(self, pixels: NDArray[Any]) -> NDArray[Any]:
        """(H, W, C) uint8, uint16 or float32 in 0..1 -> the same type in sRGB; what sRGB cannot show is clipped."""
        return self._converted(pixels, back=False)

    def from_srgb(self, pixels: NDArray[Any]) -> NDArray[Any]:
        """The way back; exact but for rounding where nothing had been clipped."""
        return self._converted(pixels, back=True)

    def _is_srgb(self) -> bool:
        if self._channels == 1:
            grid = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
        else:
            steps = np.linspace(0, 255, 18).astype(np.uint8)
            grid = np.stack(np.meshgrid(steps, steps, steps), -1).reshape(-1, 18, 3)
        return int(np.abs(self.to_srgb(grid).astype(int) - grid).max()) <= 1

    def _converted(self, pixels: NDArray[Any], *, back: bool) -> NDArray[Any]:
        if self._channels == 3 and pixels.dtype == np.uint8 and _tables(self._data) is not None:
            return _tabled(self._data, pixels, back)  # many times faster, and right to the level
        if self._channels == 1 and pixels.dtype == np.uint8:
            table = self._strip(np.arange(256, dtype=np.uint8)[:, None], back)
            return table[pixels[..., 0]]
        flat, out = pixels.reshape(-1, self._channels), np.empty(pixels.shape, pixels.dtype)
        whole = out.reshape(-1, self._channels)
        for start in range(0, len(flat), _ROWS):
            whole[start : start + _ROWS] = self._strip(flat[start : start + _ROWS], back)
        return out

    def _strip(self, values: NDArray[Any], back: bool) -> NDArray[Any]:
        """(N, C)."""
        if self._numbers is None:
            unit = _interpolated(_grid(self._data, back), _unit(values))
        else:
            srgb = _srgb()
            there, here = (srgb, self._numbers) if back else (self._numbers, srgb)
            linear = _linear(there.curves[: self._channels], values)
            if there.matrix is not None and here.matrix is not None:
                linear = linear @ np.linalg.solve(here.matrix, there.matrix).T
            unit = _encoded(here.curves[: self._channels], np.clip(linear, 0, 1))
        if values.dtype.kind == "f":
            return unit.astype(values.dtype)
        top = np.iinfo(values.dtype).max
        return np.rint(unit * top).astype(values.dtype)


@lru_cache(maxsize=8)
def profile(data: bytes, channels: int) -> Profile:
    """`Profile`, made once: a folder of photographs has few."""
    return Profile(data, channels)


def described(data: bytes) -> tuple[str, str]:
    """Name of a profile ("unreadable" where it is damaged) and its colour space ("RGB", "GRAY", "CMYK" ..., or "")."""
    from PIL import ImageCms

    try:
        opened = ImageCms.ImageCmsProfile(io.BytesIO(data))
        name = " ".join(ImageCms.getProfileDescription(opened).split())
        return name[:80] or "without a name", str(opened.profile.xcolor_space).strip()
    except (OSError, ValueError, TypeError, ImageCms.PyCMSError):
        return "unreadable", ""


def cmyk_to_srgb(picture: Image, data: bytes) -> Image | None:
    """A CMYK picture in sRGB by its profile; None where the profile is not one of CMYK."""
    from PIL import ImageCms

    if described(data)[1] != "CMYK":
        return None
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(data))
        return ImageCms.profileToProfile(
            picture, source, ImageCms.createProfile("sRGB"), ImageCms.Intent.RELATIVE_COLORIMETRIC, "RGB",
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )  # fmt: skip
    except (OSError, ValueError, ImageCms.PyCMSError):
        return None


@lru_cache(maxsize=1)
def _srgb() -> Curves:
    from PIL import ImageCms

    found = numbers(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    assert found is not None
    return found


def _unit(values: NDArray[Any]) -> Floats:
    return values if values.dtype.kind == "f" else (values / np.float32(np.iinfo(values.dtype).max)).astype(np.float32)


def _linear(curves: NDArray[np.float64], values: NDArray[Any]) -> NDArray[np.float64]:
    """Light (N, C) of stored values."""
    if values.dtype.kind == "f":
        return _each(np.interp, values, [(np.linspace(0, 1, LEVELS), c) for c in curves])
    step = (LEVELS - 1) // np.iinfo(values.dtype).max
    return np.stack([curve[values[:, i].astype(np.int64) * step] for i, curve in enumerate(curves)], axis=1)


def _encoded(curves: NDArray[np.float64], light: NDArray[np.float64]) -> NDArray[np.float64]:
    """Stored values (N, C) in 0..1 of light."""
    return _each(np.interp, light, [(c, np.linspace(0, 1, LEVELS)) for c in curves])


def _each(function: Any, values: NDArray[Any], tables: list[tuple[Any, Any]]) -> NDArray[np.float64]:
    return np.stack([function(values[:, i], *table) for i, table in enumerate(tables)], axis=1)


@lru_cache(maxsize=4)
def _tables(data: bytes) -> tuple[Any, Any] | None:
    """LittleCMS's transforms to and from sRGB; None for a profile that does not go both ways."""
    from PIL import ImageCms

    intent, flags = ImageCms.Intent.RELATIVE_COLORIMETRIC, ImageCms.Flags.BLACKPOINTCOMPENSATION
    srgb = ImageCms.createProfile("sRGB")
    try:
        own = ImageCms.ImageCmsProfile(io.BytesIO(data))
        to = ImageCms.buildTransform(own, srgb, "RGB", "RGB", intent, flags)
        return to, ImageCms.buildTransform(srgb, own, "RGB", "RGB", intent, flags)
    except (OSError, ValueError, ImageCms.PyCMSError):
        return None


def _tabled(data: bytes, pixels: NDArray[np.uint8], back: bool) -> NDArray[np.uint8]:
    from PIL import Image, ImageCms

    pair = _tables(data)
    assert pair is not None
    rows = max(1, _ROWS * 4 // pixels.shape[1])
    out = np.empty_like(pixels)
    for start in range(0, len(pixels), rows):
        part = Image.fromarray(np.ascontiguousarray(pixels[start : start + rows]))
        out[start : start + rows] = np.asarray(ImageCms.applyTransform(part, pair[back]))
    return out


@lru_cache(maxsize=4)
def _grid(data: bytes, back: bool) -> Floats:
    """(52, 52, 52, 3): what LittleCMS makes of every fifth level."""
    steps = np.linspace(0, 255, _NODES).astype(np.uint8)
    colours = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1)
    answers = _tabled(data, colours.reshape(_NODES, -1, 3), back).reshape(colours.shape)
    return np.divide(answers, 255, dtype=np.float32)


def _interpolated(grid: Floats, unit: Floats) -> NDArray[np.float64]:
    """Trilinear, (N, 3)."""
    place = np.clip(unit, 0, 1).astype(np.float64) * (_NODES - 1)
    low = np.minimum(place.astype(np.int64), _NODES - 2)
    share = place - low
    out = np.zeros(place.shape)
    for corner in np.ndindex(2, 2, 2):
        at = low + np.array(corner)
        weight = np.prod(np.where(corner, share, 1 - share), axis=1, keepdims=True)
        out += weight * grid[at[:, 0], at[:, 1], at[:, 2]]
    return out
