"""Hints drawn from the truth: for training any number of them, for tests always the same ones."""

from __future__ import annotations

import zlib

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from core.errors import SettingError, ShapeError
from core.training.loading import mixed

COUNTS = (0, 1, 2, 5, 10, 20, 50, 100, 200)  # of the authors' test sets
SEED = 1234


def training_mask(cells: int, most: int, draw: np.random.Generator) -> Tensor:
    """Hint cells of a training picture: their number is 0 to `most`, all alike likely, their places differ.

    Args:
        cells: along a side.
        most: the largest number; no more than there are cells.
        draw: the generator.

    Returns (cells * cells,) bool, True where there is no hint. Raises SettingError for more hints than cells.
    """
    if not 0 <= most <= cells * cells:
        raise SettingError(f"hints are 0 to {cells * cells} with {cells} x {cells} cells, got {most}")
    mask = torch.ones(cells * cells, dtype=torch.bool)
    count = int(draw.integers(0, most, endpoint=True))
    mask[torch.from_numpy(draw.choice(cells * cells, count, replace=False))] = False
    return mask


def test_cells(count: int, cells: int, name: str, seed: int = SEED) -> NDArray[np.int64]:  # noqa: PT028
    """Hint cells of a test picture: the first `count` of a sequence that its name and the seed fix.

    A cell may come twice, as in the published sets; those themselves are files (which generator drew them is not
    published). Fewer hints are always part of more.

    Args:
        count: how many.
        cells: along a side.
        name: of the picture, without ending; its sequence does not depend on the others.
        seed: of the set.

    Returns (count, 2), row and column of each cell.
    """
    if count < 0:
        raise SettingError(f"the number of hints is 0 or more, got {count}")
    draw = np.random.default_rng(mixed(seed, zlib.crc32(name.encode())))
    return draw.integers(0, cells, (max(count, COUNTS[-1]), 2))[:count]


test_cells.__test__ = False  # type: ignore[attr-defined]  # no test, whatever pytest thinks of its name


def as_mask(places: NDArray[np.integer], cells: int) -> Tensor:
    """(N, 2) rows and columns of cells -> (cells * cells,) bool, True where there is no hint.

    Raises ShapeError for places outside.
    """
    if (
        places.ndim != 2
        or places.shape[1:] != (2,)
        or (places.size and not (places.min() >= 0 and places.max() < cells))
    ):
        raise ShapeError(f"hint cells are rows and columns from 0 to {cells - 1}, (N, 2)")
    mask = torch.ones(cells * cells, dtype=torch.bool)
    mask[torch.from_numpy(places[:, 0] * cells + places[:, 1]).long()] = False
    return mask
