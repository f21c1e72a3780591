"""A photograph's luminance at its own size, and the network's colours laid over it strip by strip."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from apps.colorization import lab

STRIP = 1 << 17  # pixels worked on at once: few enough for the cache
_DRIFT = 0.4  # of L: what a colour outside sRGB may change of the luminance when it is cut off
_BEND = 0.2068966  # where CIE Lab's curve turns into a line
_HALVINGS = 6


@dataclass(frozen=True, eq=False)
class Canvas:
    """What stays of a photograph while hints come and go.

    Attributes:
        lightness: (H, W) float32, (L - 50) / 100 of the photograph at its own size.
        dtype: of its pixels: uint8, uint16 or float32 (0..1).
    """

    lightness: NDArray[np.float32]
    dtype: np.dtype[Any]

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.lightness.shape[0], self.lightness.shape[1]

    def colour(self, ab: Tensor) -> NDArray[Any]:
        """The photograph's luminance with these colours.

        Args:
            ab: (2, S, S) a', b' over the whole photograph, of any size S.

        Returns (H, W, 3) sRGB of `dtype`. Colours that sRGB does not have are made paler, so that the luminance stays.
        """
        rows, columns = self.size
        wide = _stretched(ab.float(), columns, 2)  # (2, S, W): columns first, rows strip by strip
        out = np.empty((rows, columns, 3), self.dtype)
        for start, stop in strips(rows, columns):
            part = _stretched(wide, rows, 1, start, stop)
            light = torch.from_numpy(self.lightness[start:stop])
            out[start:stop] = stored(in_srgb(light, part).permute(1, 2, 0).numpy(), self.dtype)
        return out


def canvas(pixels: NDArray[Any]) -> Canvas:
    """Of (H, W, C) sRGB: uint8, uint16, or float from 0 to 1; C is 1 or 3."""
    rows, columns = pixels.shape[:2]
    lightness = np.empty((rows, columns), np.float32)
    for start, stop in strips(rows, columns):
        lightness[start:stop] = lab_of(pixels[start:stop])[0].numpy()
    dtype = pixels.dtype if pixels.dtype in (np.uint8, np.uint16) else np.dtype(np.float32)
    return Canvas(lightness, dtype)


def lab_of(pixels: NDArray[Any]) -> Tensor:
    """(H, W, C) sRGB as above -> (3, H, W) float32 of L', a', b'."""
    values = torch.from_numpy(fractions(pixels)).permute(2, 0, 1)
    return lab.to_lab(values.expand(3, -1, -1)[None])[0]


def fractions(pixels: NDArray[Any]) -> NDArray[np.float32]:
    """Stored values as float32 from 0 to 1."""
    values = pixels.astype(np.float32)
    if pixels.dtype in (np.uint8, np.uint16):
        values /= np.iinfo(pixels.dtype).max
    return values


def stored(values: NDArray[np.float32], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Values from 0 to 1 as `dtype` stores them: rounded and cut off."""
    values = np.clip(values, 0, 1)
    return (values * np.iinfo(dtype).max + 0.5).astype(dtype) if dtype.kind == "u" else values.astype(dtype)


def reduced(pixels: NDArray[Any], rows: int, columns: int) -> NDArray[np.float32]:
    """(H, W, C) to so many rows and columns, bilinear with its filter widened as PIL does; float32 from 0 to 1."""
    from PIL import Image

    if pixels.dtype == np.uint8:  # rounded to 8 bit in between, as the published test pictures are
        picture = Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0])
        small = np.asarray(picture.resize((columns, rows), Image.Resampling.BILINEAR))
        return fractions(small.reshape(rows, columns, pixels.shape[2]))
    planes = []
    for k in range(pixels.shape[2]):
        plane = Image.fromarray(fractions(np.ascontiguousarray(pixels[:, :, k])))
        planes.append(np.asarray(plane.resize((columns, rows), Image.Resampling.BILINEAR)))
    return np.stack(planes, axis=2)


def strips(rows: int, columns: int) -> Iterator[tuple[int, int]]:
    """First row and the one after the last of each strip."""
    step = max(1, STRIP // max(1, columns))
    for start in range(0, rows, step):
        yield start, min(rows, start + step)


def _stretched(values: Tensor, size: int, axis: int, start: int = 0, stop: int | None = None) -> Tensor:
    """Linear interpolation along an axis to `size`, of which start..stop are made; as `interpolate` without corners."""
    old = values.shape[axis]
    place = (torch.arange(start, size if stop is None else stop, dtype=torch.float64) + 0.5) * old / size - 0.5
    place = place.clamp(0, old - 1)
    low = place.floor().long()
    share = (place - low).float().view([-1 if i == axis else 1 for i in range(values.ndim)])
    first, second = values.index_select(axis, low), values.index_select(axis, (low + 1).clamp(max=old - 1))
    return torch.lerp(first, second, share)


def in_srgb(light: Tensor, ab: Tensor) -> Tensor:
    """L' (H, W) and a', b' (2, H, W) -> sRGB (3, H, W) from 0 to 1 of that luminance, paler where need be."""
    height = (light * 100 + 66) / 116  # of CIE Lab's curve: 16 / 116 for black, 1 for white
    linear = _linear(height, ab)
    bound = height.clamp(min=_BEND).square() * (_DRIFT * 3 / 116)  # what the drift of L is in luminance
    outside = _drift(linear) > bound
    if outside.any():
        height, ab, bound = height[outside], ab[:, outside], bound[outside]
        low, high = torch.zeros_like(height), torch.ones_like(height)
        for _ in range(_HALVINGS):  # the largest share of the colour that keeps the luminance
            middle = (low + high) / 2
            good = _drift(_linear(height, ab * middle)) <= bound
            low, high = torch.where(good, middle, low), torch.where(good, high, middle)
        linear[:, outside] = _linear(height, ab * low)
    linear.clamp_(0, 1)
    return torch.where(linear > 0.0031308, 1.055 * linear.pow(1 / 2.4) - 0.055, 12.92 * linear)


def _linear(height: Tensor, ab: Tensor) -> Tensor:
    """(...) and a', b' (2, ...) -> linear sRGB (3, ...), below 0 and above 1 for colours that it lacks."""
    curve = torch.stack([height + ab[0] * 0.22, height, height - ab[1] * 0.55])  # 110 / 500 and 110 / 200
    xyz = torch.where(curve > _BEND, curve * curve * curve, (curve - 16 / 116) / 7.787)
    matrix = torch.tensor(lab.TO_RGB, dtype=xyz.dtype) * torch.tensor(lab.WHITE, dtype=xyz.dtype)
    return (matrix @ xyz.flatten(1)).reshape(xyz.shape)


def _drift(linear: Tensor) -> Tensor:
    """By how much the luminance Y changes when (3, ...) is cut off at 0 and 1."""
    gap = (linear.clamp(0, 1) - linear).flatten(1)
    return (torch.tensor(lab.TO_XYZ[1], dtype=gap.dtype) @ gap).abs().reshape(linear.shape[1:])


def mean_over(pixels: NDArray[Any], box: tuple[int, int, int, int]) -> Tensor:
    """Mean L', a', b' (3,) over rows box[0] to box[1] and columns box[2] to box[3], ends not included."""
    top, bottom, left, right = box
    return lab_of(pixels[top:bottom, left:right]).mean(dim=(1, 2))
