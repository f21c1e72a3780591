"""Stored numbers to the few types that a scan has: uint8, uint16, int16, int32 and float32."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

KEPT = ("uint8", "uint16", "int16", "int32", "float32")


def native(values: NDArray[Any]) -> NDArray[Any]:
    """In the machine's byte order, as the narrowest kept type that holds every value; float32 where none does."""
    if values.dtype.name in KEPT:
        return values.astype(values.dtype.newbyteorder("="), copy=False)
    if values.dtype.kind == "b":
        return values.astype(np.uint8)
    if values.dtype.kind in "iu" and values.size:
        return values.astype(fitting(int(values.min()), int(values.max())))
    with np.errstate(over="ignore"):  # beyond float32 becomes Inf, which is then marked invalid
        return values.astype(np.float32)


def fitting(low: int, high: int) -> np.dtype[Any]:
    """The narrowest kept type for whole numbers from low to high."""
    for name in ("uint8", "int16", "uint16", "int32"):
        if np.iinfo(name).min <= low and high <= np.iinfo(name).max:
            return np.dtype(name)
    return np.dtype(np.float32)


def rescaled(values: NDArray[Any], slope: float, intercept: float) -> NDArray[Any]:
    """Values * slope + intercept; exact whole numbers where the slope is 1 and the intercept whole, else float32."""
    if slope == 1 and intercept == 0:
        return native(values)
    if slope == 1 and float(intercept).is_integer() and values.dtype.kind in "iu" and values.size:
        low, high = int(values.min()) + int(intercept), int(values.max()) + int(intercept)
        kind = fitting(min(low, 0), high)
        if kind.kind in "iu":
            return (values.astype(np.int64) + int(intercept)).astype(kind)
    with np.errstate(over="ignore", invalid="ignore"):
        return (values.astype(np.float64) * slope + intercept).astype(np.float32)


def number(value: float) -> str:
    """As people write it: 1, -1024, 0.5."""
    return f"{value:g}"
