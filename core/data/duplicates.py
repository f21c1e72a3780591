"""Near-duplicates by perceptual hash: the same picture rescaled, recompressed, brightened, or turned.

The hash is the usual one of 64 bits: the picture as 32 x 32 means, its discrete cosine transform, and for each of the
8 x 8 lowest frequencies but the constant whether it is above their median.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from core.errors import ShapeError

SIDE, KEPT = 32, 8
DETAIL = 48
NEAR = 6  # bits of 64; unrelated pictures differ by about 32, and by 12 or fewer about once in 10 million pairs
_FLAT = 1e-6  # spread, as a share of the largest value, under which a picture shows nothing to compare
Hash = NDArray[np.uint64]


def perceptual(picture: NDArray[np.generic], *, turns: bool = False) -> Hash:
    """Hashes of a picture (Y, X) or (C, Y, X), or of the middle slice of a volume (1, Z, Y, X).

    Shape (1,), or with `turns` (8,): the picture turned by 0, 90, 180, 270 degrees and each of them mirrored, the
    picture itself first. A picture without any structure gives 0 everywhere, which `near_duplicates` passes over.
    Raises ShapeError for another number of axes.

    >>> import numpy as np
    >>> ramp = np.add.outer(np.arange(40.0), np.sin(np.arange(50.0)))
    >>> int(np.bitwise_count(perceptual(ramp) ^ perceptual(3 * ramp + 7))[0])
    0
    """
    small = _means(_flat(picture))
    if not np.isfinite(small).all() or np.ptp(small) <= _FLAT * max(1e-12, float(np.abs(small).max())):
        return np.zeros(8 if turns else 1, np.uint64)
    views = [np.rot90(side, k) for side in (small, small[:, ::-1]) for k in range(4)] if turns else [small]
    return np.array([_bits(v) for v in views], np.uint64)


def near_duplicates(
    hashes: Sequence[Hash] | NDArray[np.uint64],
    distance: int = NEAR,
    *,
    parts: Mapping[str, Sequence[int]] | None = None,
) -> list[tuple[int, int, int]]:
    """(i, j, bits that differ) of every two items, i < j, whose hashes differ by at most `distance` of 64 bits.

    With `parts` only pairs whose items lie in different parts of a split. Where items have hashes of their turns, the
    best turn of either counts. Pairs come in order. Ten thousand pictures take about a second (with their eight turns
    four) and some megabytes.
    """
    if len(hashes) == 0:
        return []
    table = np.array([h if np.ndim(h) else [h] for h in hashes], np.uint64)  # (N, turns)
    plain = np.ascontiguousarray(table[:, 0])
    place = np.full(len(table), -1)
    for k, items in enumerate((parts or {}).values()):
        place[list(items)] = k
    found: dict[tuple[int, int], int] = {}
    step = max(1, 2**21 // len(table))
    with_content = plain != 0
    for start in range(0, len(table), step):
        for turn in range(table.shape[1]):
            block = table[start : start + step, turn]
            bits = np.bitwise_count(block[:, None] ^ plain[None, :])
            near = (bits <= distance) & with_content[start : start + step, None] & with_content[None, :]
            if parts is not None:
                one, other = place[start : start + step, None], place[None, :]
                near &= (one != other) & (one >= 0) & (other >= 0)
            for a, b in zip(*np.nonzero(near), strict=True):
                i, j = int(a) + start, int(b)
                if i != j:
                    pair = (min(i, j), max(i, j))
                    found[pair] = min(found.get(pair, 64), int(bits[a, b]))
    return [(i, j, bits) for (i, j), bits in sorted(found.items())]


def detail(picture: NDArray[np.generic]) -> NDArray[np.int8]:
    """Where a picture is brighter (1) or darker (-1) than around, (48, 48); 0 where nothing is to be told.

    Pictures of one scanner share their outline and their fading with depth, so their hashes can agree; what is theirs
    alone is in the detail. Takes what `perceptual` takes.

    >>> import numpy as np
    >>> speckle = np.random.default_rng(0).rayleigh(size=(2, 200, 200))
    >>> agreement(detail(speckle[0]), detail(3 * speckle[0] + 7)), agreement(*map(detail, speckle)) < 0.1
    (1.0, True)
    """
    small = _means(_flat(picture), DETAIL)
    padded = np.pad(small, 2, mode="edge")
    around = sum(padded[i : i + DETAIL, j : j + DETAIL] for i in range(5) for j in range(5)) / 25
    rest = small - around
    return (np.sign(rest) * (np.abs(rest) > 0.05 * max(1e-12, float(rest.std())))).astype(np.int8)


def agreement(a: NDArray[np.int8], b: NDArray[np.int8]) -> float:
    """Of two pictures' `detail`: 1 for equal ones, about 0 for unrelated ones; 0 where there is none to compare."""
    both = (a != 0) & (b != 0)
    return float((a[both] == b[both]).mean() * 2 - 1) if both.any() else 0.0


def _flat(picture: NDArray[np.generic]) -> NDArray[np.generic]:
    """(Y, X) of a picture or the middle slice of a volume."""
    array = np.asarray(picture)
    if array.ndim == 4:
        array = array[:, array.shape[1] // 2]
    if array.ndim == 3:
        array = array.mean(axis=0, dtype=np.float64)
    if array.ndim != 2 or 0 in array.shape:
        raise ShapeError(f"a picture (Y, X), (C, Y, X) or a volume (C, Z, Y, X) is expected, got {np.shape(picture)}")
    return array


def _means(array: NDArray[np.generic], side: int = SIDE) -> NDArray[np.float64]:
    """(side, side) means over equal areas; NaN and Inf count as the smallest finite value."""
    values = array.astype(np.float64)
    finite = np.isfinite(values)
    if not finite.all():
        values = np.where(finite, values, values[finite].min() if finite.any() else 0.0)
    down, right = (_areas(n, side) for n in values.shape)
    return down @ values @ right.T


@cache
def _areas(size: int, side: int) -> NDArray[np.float64]:
    """(side, size): how much of each pixel lies in each of `side` equal stretches, rows adding up to 1."""
    edges = np.linspace(0, size, side + 1)
    pixel = np.arange(size)
    low = np.maximum(edges[:-1, None], pixel)
    high = np.minimum(edges[1:, None], pixel + 1)
    cover = np.clip(high - low, 0, None)
    return cover / cover.sum(axis=1, keepdims=True)


@cache
def _cosines() -> NDArray[np.float64]:
    """(KEPT, SIDE): the lowest cosine frequencies."""
    return np.cos(np.pi * np.arange(KEPT)[:, None] * (2 * np.arange(SIDE) + 1) / (2 * SIDE))


def _bits(small: NDArray[np.float64]) -> int:
    low = (_cosines() @ small @ _cosines().T).reshape(-1)
    low[np.abs(low) < 1e-9 * np.abs(low[1:]).max()] = 0.0  # rounding decides nothing
    above = low > np.median(low[1:])
    above[0] = True  # the mean says nothing; set, so that no picture with content has hash 0
    return int.from_bytes(np.packbits(above).tobytes(), "big")
