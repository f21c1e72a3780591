"""A slide's class probabilities as a map: a pyramid with micrometres to a pixel, and outlines for QuPath."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from apps.medical import pyramids
from core.files import aside
from core.pictures import palette

_FINEST = 8.0  # micrometres to a pixel of a map, about: a tile of 112 um has 14 of its pixels a side
CLASSIFIED = "classified"  # the map's last channel


@dataclass(frozen=True, eq=False)
class Cells:
    """Squares of one step of the tiles: on each the mean of the tiles that cover it.

    Attributes:
        values: (K, rows, columns), NaN where no tile was classified.
        size: rows and columns of a cell, in pixels of level 0.
        slide: rows and columns of level 0.
        um: micrometres to a pixel of level 0, down and across.
    """

    values: NDArray[np.float32]
    size: tuple[float, float]
    slide: tuple[int, int]
    um: tuple[float, float]


def cells(
    tiles: NDArray[np.float32], steps: int, size: tuple[float, float], slide: tuple[int, int], um: tuple[float, float]
) -> Cells:
    """Cells of a grid of tiles.

    Args:
        tiles: (K, rows, columns), NaN for those that were not classified.
        steps: of which a tile is as many, along each side.
        size: rows and columns of one step, in pixels of level 0.
        slide: rows and columns of level 0.
        um: micrometres to a pixel of level 0.
    """
    K, rows, columns = tiles.shape
    there = np.isfinite(tiles[0])
    total = np.zeros((K, rows + steps - 1, columns + steps - 1), np.float32)
    count = np.zeros(total.shape[1:], np.float32)
    for r in range(steps):
        for c in range(steps):
            total[:, r : r + rows, c : c + columns] += np.where(there, tiles, 0)
            count[r : r + rows, c : c + columns] += there
    values = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    seen = tuple(min(n, -(-length // s)) for n, length, s in zip(values.shape[1:], slide, size, strict=True))
    return Cells(values[:, : int(seen[0]), : int(seen[1])].astype(np.float32), size, slide, um)


def write_tiff(path: str | Path, cells: Cells, classes: Sequence[str]) -> None:
    """An OME-TIFF pyramid with a channel of 8 bits for each class (255: probability 1) and one that is 255 where a tile
    was classified. It begins at the slide's corner and states micrometres to a pixel, by which it lies on the slide.
    """
    own = [s * u for s, u in zip(cells.size, cells.um, strict=True)]  # micrometres of a cell
    parts = [max(1, round(u / _FINEST)) for u in own]
    um = own[0] / parts[0], own[1] / parts[1]
    rows, columns = (
        min(n * p, int(np.ceil(length * u / w - 1e-6)))
        for n, p, length, u, w in zip(cells.values.shape[1:], parts, cells.slide, cells.um, um, strict=True)
    )
    there = np.isfinite(cells.values[0])
    shown = np.rint(np.where(there, cells.values, 0) * 255).astype(np.uint8)
    shown = np.concatenate([shown, there[None] * np.uint8(255)])

    def read(level: int, channel: int, top: int, left: int, bottom: int, right: int) -> NDArray[np.uint8]:
        r = ((np.arange(top, bottom) + 0.5) * 2**level / parts[0]).astype(int).clip(0, shown.shape[1] - 1)
        c = ((np.arange(left, right) + 0.5) * 2**level / parts[1]).astype(int).clip(0, shown.shape[2] - 1)
        return shown[channel, r[:, None], c, None]

    pyramids.write(path, (rows, columns), read, um, channels=(*classes, CLASSIFIED))


def write_geojson(path: str | Path, cells: Cells, classes: Sequence[str], id: str) -> None:
    """A FeatureCollection that QuPath opens: a tile for each classified cell, in pixels of level 0, with its likeliest
    class and the probabilities of all as measurements.
    """
    with aside(path) as part, part.open("w", encoding="utf-8") as stream:
        stream.write('{"type": "FeatureCollection", "features": [')
        _features(stream, cells, classes, id)
        stream.write("\n]}\n")


def _features(stream: IO[str], cells: Cells, classes: Sequence[str], id: str) -> None:
    colours = palette(len(classes))
    before = ""
    for r, c in np.argwhere(np.isfinite(cells.values[0])):
        top, bottom = (_pixel(i * cells.size[0], cells.slide[0]) for i in (r, r + 1))
        left, right = (_pixel(i * cells.size[1], cells.slide[1]) for i in (c, c + 1))
        probabilities = cells.values[:, r, c]
        winner = int(probabilities.argmax())
        feature = {
            "type": "Feature",
            "id": str(uuid.uuid5(uuid.NAMESPACE_OID, f"{id} {top} {left}")),
            "geometry": {
                "type": "Polygon",
                "coordinates": [[[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]],
            },
            "properties": {
                "objectType": "tile",
                "isLocked": True,
                "classification": {"name": classes[winner], "color": list(colours[winner])},
                "measurements": {
                    f"probability {name}": round(float(p), 5) for name, p in zip(classes, probabilities, strict=True)
                },
            },
        }
        stream.write(f"{before}\n{json.dumps(feature)}")
        before = ","


def _pixel(place: float, length: int) -> float:
    """A corner inside the slide; whole numbers without a point."""
    kept = round(min(place, length), 2)
    return int(kept) if float(kept).is_integer() else kept
