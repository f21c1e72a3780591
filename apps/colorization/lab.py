"""CIE Lab from sRGB and back under D65, on tensors, in the units that the networks use (the iColoriT card).

L' = (L - 50) / 100, a' = a / 110, b' = b / 110. `to_rgb` does not cut values off at 1; saving a picture does.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from core.errors import ShapeError

CENTRE, L_SCALE, AB_SCALE = 50.0, 100.0, 110.0
TO_XYZ = ((0.412453, 0.357580, 0.180423), (0.212671, 0.715160, 0.072169), (0.019334, 0.119193, 0.950227))
TO_RGB = (
    (3.24048134, -1.53715152, -0.49853633),
    (-0.96925495, 1.87599, 0.04155593),
    (0.05564664, -0.20404134, 1.05731107),
)
WHITE = (0.95047, 1.0, 1.08883)


def to_lab(rgb: Tensor) -> Tensor:
    """SRGB (B, 3, H, W) in 0..1 -> L', a', b' (B, 3, H, W). Raises ShapeError without three channels."""
    _three(rgb)
    linear = torch.where(rgb > 0.04045, ((rgb + 0.055) / 1.055).pow(2.4), rgb / 12.92)
    xyz = _mixed(linear, TO_XYZ) / _column(WHITE, rgb)
    # The root of what is not above the threshold is not used; it is kept from zero for the gradient's sake.
    f = torch.where(xyz > 0.008856, xyz.clamp(min=0.008856).pow(1 / 3), 7.787 * xyz + 16 / 116)
    x, y, z = f.unbind(1)
    lightness = (116 * y - 16 - CENTRE) / L_SCALE
    return torch.stack([lightness, 500 / AB_SCALE * (x - y), 200 / AB_SCALE * (y - z)], dim=1)


def to_rgb(lab: Tensor) -> Tensor:
    """L', a', b' (B, 3, H, W) -> sRGB (B, 3, H, W), 0 and up; above 1 where the colour lies outside sRGB.

    Raises ShapeError without three channels.
    """
    _three(lab)
    lightness, a, b = lab.unbind(1)
    y = (lightness * L_SCALE + CENTRE + 16) / 116
    x = a * (AB_SCALE / 500) + y
    z = (y - b * (AB_SCALE / 200)).clamp(min=0)  # z alone, as published
    f = torch.stack([x, y, z], dim=1)
    xyz = torch.where(f > 0.2068966, f.pow(3), (f - 16 / 116) / 7.787) * _column(WHITE, lab)
    linear = _mixed(xyz, TO_RGB).clamp(min=0)
    return torch.where(linear > 0.0031308, 1.055 * linear.clamp(min=0.0031308).pow(1 / 2.4) - 0.055, 12.92 * linear)


def units(lab: Tensor) -> Tensor:
    """L', a', b' (B, 3, ...) in the units of CIE Lab: L 0..100, a and b about -110..110."""
    return lab * _column((L_SCALE, AB_SCALE, AB_SCALE), lab) + _column((CENTRE, 0.0, 0.0), lab)


def delta_e(
    one: NDArray[np.floating], other: NDArray[np.floating], formula: Literal["cie76", "ciede2000"] = "ciede2000"
) -> NDArray[np.float64]:
    """How different colours look, by scikit-image.

    Args:
        one: CIE Lab (..., 3), L 0..100.
        other: of the same shape.
        formula: "cie76", the Euclidean distance, or "ciede2000".

    Returns (...). Raises ShapeError where the last axis is not L, a, b.
    """
    from skimage import color

    if one.shape[-1:] != (3,) or one.shape != other.shape:
        raise ShapeError(f"colours are (..., 3) on both sides, got {one.shape} and {other.shape}")
    measure = color.deltaE_cie76 if formula == "cie76" else color.deltaE_ciede2000
    return np.asarray(measure(one.astype(np.float64), other.astype(np.float64)), np.float64)


def _three(x: Tensor) -> None:
    if x.ndim != 4 or x.shape[1] != 3:
        raise ShapeError(f"expected a tensor of shape (B, 3, H, W), got {tuple(x.shape)}")


def _column(values: tuple[float, float, float], like: Tensor) -> Tensor:
    """One value for each channel, (3, 1, 1) or as many ones as `like` needs."""
    return torch.tensor(values, dtype=like.dtype, device=like.device).view(3, *[1] * (like.ndim - 2))


def _mixed(x: Tensor, rows: tuple[tuple[float, float, float], ...]) -> Tensor:
    matrix = torch.tensor(rows, dtype=x.dtype, device=x.device)
    return torch.einsum("ij,bjhw->bihw", matrix, x)
