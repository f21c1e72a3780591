"""Which ids a mask holds, without a copy of it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

CHUNK = 4_000_000  # samples counted at once; counting takes eight bytes for each


def counts(mask: NDArray[np.integer[Any]], valid: NDArray[np.bool_] | None = None) -> NDArray[np.int64]:
    """How often each id 0..65535 occurs in a mask of uint8 or uint16, where `valid` if that is given."""
    total = np.zeros(65536, np.int64)
    rows = max(1, CHUNK // max(1, int(np.prod(mask.shape[1:]))))
    for first in range(0, len(mask), rows):
        part = mask[first : first + rows]
        part = part.ravel() if valid is None else part[valid[first : first + rows]]
        found = np.bincount(part)
        total[: len(found)] += found
    return total


def present(mask: NDArray[np.integer[Any]]) -> set[int]:
    """The ids in a mask of any integers."""
    if mask.dtype in (np.uint8, np.uint16):
        return {int(i) for i in np.flatnonzero(counts(mask))}
    return {int(i) for i in np.unique(mask)}
