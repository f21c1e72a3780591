"""Pyramids written as tiled TIFF, tile by tile: slides in colour, and maps with a channel for each class (OME).

QuPath, OpenSlide (in colour), Bio-Formats and tifffile open them, with their micrometres to a pixel.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.errors import MissingExtraError
from core.files import aside

TILE = 256
_CLASSIC = 3_900_000_000  # bytes from which on a classic TIFF may be too small
Read = Callable[[int, int, int, int, int, int], NDArray[np.uint8]]


def write(
    path: str | Path,
    size: tuple[int, int],
    read: Read,
    um: tuple[float, float] | None,
    *,
    factors: Sequence[int] | None = None,
    channels: Sequence[str] = (),
    tile: int = TILE,
    description: str | None = None,
) -> None:
    """Write a pyramid, whole or not at all.

    Args:
        path: of a .tif; with `channels` of an .ome.tif.
        size: rows and columns of the finest level.
        read: (level, channel, top, left, bottom, right) -> (rows, columns, 3) uint8, or (rows, columns, 1) with
            `channels`; asked tile by tile, always inside the level.
        um: micrometres to a pixel of the finest level, down and across.
        factors: of the levels, beginning with 1; by default halves until one has at most `tile` pixels a side.
        channels: names, for a map; () for a picture in red, green and blue.
        tile: rows and columns of a tile, a multiple of 16.
        description: text of the first page (for pictures in colour).

    Raises MissingExtraError without tifffile, and what core.files.aside does.
    """
    try:
        from tifffile import TiffWriter
    except ImportError:
        raise MissingExtraError("tifffile", "medical") from None
    steps = list(factors or halves(size, tile))
    sizes = [level_size(size, f) for f in steps]
    samples = 1 if channels else 3
    whole = sum(rows * columns for rows, columns in sizes) * max(samples, len(channels))
    with aside(path) as part, TiffWriter(part, ome=bool(channels), bigtiff=whole > _CLASSIC) as file:
        for level, (factor, (rows, columns)) in enumerate(zip(steps, sizes, strict=True)):
            options: dict[str, Any] = {"photometric": "minisblack" if channels else "rgb", "metadata": None}
            if um is not None:
                options["resolution"] = tuple(10_000 / (u * factor) for u in um[::-1])
                options["resolutionunit"] = "CENTIMETER"
            if level:
                options["subfiletype"] = 1  # the same picture, smaller
            elif channels:
                options |= {"metadata": _ome(channels, um), "subifds": len(steps) - 1}
            elif description is not None:
                options["description"] = description
            shape = (len(channels), rows, columns) if channels else (rows, columns, 3)
            blocks = _blocks(read, level, (rows, columns), max(1, len(channels)), tile, samples)
            file.write(blocks, shape=shape, dtype=np.uint8, tile=(tile, tile), compression="zlib", **options)


def halves(size: tuple[int, int], smallest: int = TILE) -> list[int]:
    """1, 2, 4 ... until the longer side has at most `smallest` pixels.

    >>> halves((1000, 600))
    [1, 2, 4]
    """
    found = [1]
    while max(size) / found[-1] > smallest:
        found.append(found[-1] * 2)
    return found


def level_size(size: tuple[int, int], factor: int) -> tuple[int, int]:
    """Rows and columns of the level that has every `factor`-th pixel; those at the end that are not whole are lost."""
    return max(1, size[0] // factor), max(1, size[1] // factor)


def _blocks(read: Read, level: int, size: tuple[int, int], channels: int, tile: int, samples: int) -> Iterator[bytes]:
    """Deflated tiles in the order of the file, filled up with zeros at the ends."""
    for channel in range(channels):
        for top in range(0, size[0], tile):
            for left in range(0, size[1], tile):
                bottom, right = min(top + tile, size[0]), min(left + tile, size[1])
                whole = np.zeros((tile, tile, samples), np.uint8)
                whole[: bottom - top, : right - left] = read(level, channel, top, left, bottom, right)
                yield zlib.compress(whole.data, 6)


def _ome(channels: Sequence[str], um: tuple[float, float] | None) -> dict[str, Any]:
    found: dict[str, Any] = {"axes": "CYX", "Channel": {"Name": list(channels)}}
    if um is not None:
        for axis, size in (("Y", um[0]), ("X", um[1])):
            found |= {f"PhysicalSize{axis}": size, f"PhysicalSize{axis}Unit": "µm"}
    return found
