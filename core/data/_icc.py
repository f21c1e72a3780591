"""The numbers in an ICC profile (ICC.1:2022) of a matrix and three curves, or of one grey curve."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LEVELS = 65_536


@dataclass(frozen=True)
class Curves:
    """A profile as numbers: `curves` (C, 65536) from stored to linear light, `matrix` (3, 3) to XYZ (D50) or None."""

    curves: NDArray[np.float64]
    matrix: NDArray[np.float64] | None


def numbers(data: bytes) -> Curves | None:
    """Curves and matrix of a profile, None where it has tables beside them or cannot be read."""
    try:
        if data[20:24] != b"XYZ ":
            return None
        (count,) = struct.unpack_from(">I", data, 128)
        tags = {}
        for i in range(min(count, 200)):
            name, at, size = struct.unpack_from(">4sII", data, 132 + 12 * i)
            tags[name] = data[at : at + size]
        if b"A2B0" in tags or b"A2B1" in tags:
            return None
        if data[16:20] == b"GRAY":
            return Curves(_curve(tags[b"kTRC"])[None], None)
        matrix = np.array([struct.unpack_from(">3i", tags[c + b"XYZ"], 8) for c in (b"r", b"g", b"b")]).T / 65_536
        if abs(np.linalg.det(matrix)) < 1e-4:
            return None
        return Curves(np.stack([_curve(tags[c + b"TRC"]) for c in (b"r", b"g", b"b")]), matrix)
    except (struct.error, KeyError, ValueError, IndexError):
        return None


def _curve(tag: bytes) -> NDArray[np.float64]:
    """(65536,) rising from 0 to 1: the linear light of every stored level. ValueError for one that does not rise."""
    x = np.linspace(0, 1, LEVELS)
    if tag[:4] == b"curv":
        (count,) = struct.unpack_from(">I", tag, 8)
        if count == 0:
            y = x
        elif count == 1:
            y = x ** (struct.unpack_from(">H", tag, 12)[0] / 256)
        else:
            y = np.interp(x, np.linspace(0, 1, count), np.frombuffer(tag, ">u2", count, 12) / 65_535)
    elif tag[:4] == b"para":
        (kind,) = struct.unpack_from(">H", tag, 8)
        y = _parametric(x, kind, tag[12:])
    else:
        raise ValueError("another kind of curve")
    y = np.clip(y, 0, 1)
    if (np.diff(y) < 0).any() or y[-1] - y[0] < 0.5:
        raise ValueError("not a rising curve")
    return y


def _parametric(x: NDArray[np.float64], kind: int, packed: bytes) -> NDArray[np.float64]:
    """ICC.1:2022, table 68."""
    g, a, b, c, d, e, f = [*[v / 65_536 for v in struct.unpack_from(f">{(1, 3, 4, 5, 7)[kind]}i", packed)], *[0.0] * 6][
        :7
    ]
    if kind == 0:
        return x**g
    power = np.clip(a * x + b, 0, None) ** g
    if kind in (1, 2):
        return np.where(x >= -b / a, power, 0.0) + (c if kind == 2 else 0.0)
    return np.where(x >= d, power + e, c * x + f)
