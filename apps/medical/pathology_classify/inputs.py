"""How a tile or picture becomes the network's input, in training and in prediction alike."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from apps.medical import readers, slides, stain
from apps.medical._scan import Scan
from core.bundle import Input
from core.errors import FileError

SIZE = 224
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # ImageNet's, in stored units (0..255)
_NEAR = 1.02  # a picture whose sides differ by less counts as a square


def contract(
    size: int = SIZE,
    *,
    um: float | None = None,
    stain: str = "",
    mean: tuple[float, ...] = MEAN,
    std: tuple[float, ...] = STD,
) -> Input:
    """What a bundle says of its input.

    Args:
        size: pixels a side of a tile (its bundle's `[tile]` says so, too).
        um: micrometres to a pixel that the network works at; None where the data do not say.
        stain: "macenko" where pictures are normalised first, else "".
        mean: of red, green, blue in stored units.
        std: likewise.
    """
    return Input(
        channels=slides.CHANNELS,
        dtype="uint8",
        range=(0.0, 255.0),
        normalise="fixed",
        mean=mean,
        std=std,
        spacing=None if um is None else (um, um),
        unit="um",
        steps=(stain,) if stain else (),
    )


def picture(path: str | Path) -> NDArray[np.uint8]:
    """A picture (rows, columns, 3) in red, green, blue; grey becomes colour, what is transparent white.

    Raises FileError for what cannot be read, volumes, cine loops, and values other than of 8 bits.
    """
    return from_scan(readers.read(path))


def from_scan(scan: Scan) -> NDArray[np.uint8]:
    """As `picture`, of an opened one."""
    if scan.kind != "picture":
        raise FileError(scan.meta.path, f"holds {scan.shape[0]} slices or frames", "give a picture of a tile")
    if scan.dtype != np.uint8 or len(scan.channels) not in (1, 3):
        raise FileError(
            scan.meta.path, f"holds {scan.dtype} values in {len(scan.channels)} channels",
            "tiles are RGB of 8 bits, as scanners write them",
        )  # fmt: skip
    values, valid = scan.array()
    values = np.where(valid, values, np.uint8(255))
    return np.ascontiguousarray(np.moveaxis(np.broadcast_to(values, (3, *values.shape[1:])), 0, -1))


def spacing(path: str | Path) -> float | None:
    """Micrometres to a pixel of a picture, where its file says so."""
    return scan_spacing(readers.read(path))


def scan_spacing(scan: Scan) -> float | None:
    """As `spacing`, of an opened one; the mean of both directions."""
    found = scan.meta.spacing
    return None if found is None or len(found) != 2 else 500 * (found[0] + found[1])


def fitted(image: NDArray[np.uint8], size: int, factor: float | None = None) -> NDArray[np.uint8]:
    """A picture (rows, columns, 3) resampled to the network's pixels, smoothed where it shrinks.

    Args:
        image: of any size.
        size: pixels a side of a tile.
        factor: its pixels' size over the network's, where both are known; then what is smaller than a tile is set
            on white. None: the shorter side becomes `size`.
    """
    from PIL import Image

    rows, columns = image.shape[:2]
    by = size / min(rows, columns) if factor is None else factor
    new = max(1, round(rows * by)), max(1, round(columns * by))
    if factor is None:
        new = max(new[0], size), max(new[1], size)
    if new != (rows, columns):
        resized: Image.Image = Image.fromarray(image).resize(new[::-1], Image.Resampling.BICUBIC)
        image = np.asarray(resized)
    missing = [max(0, size - n) for n in image.shape[:2]]
    if any(missing):
        around = [(m // 2, m - m // 2) for m in missing]
        image = np.pad(image, (*around, (0, 0)), constant_values=255)
    return image


def places(length: int, size: int, overlap: float = 0.0) -> list[int]:
    """Where cuts of `size` pixels begin that cover `length` evenly, as few as can be with at least that overlap.

    >>> places(224, 224), places(500, 224), places(500, 224, 0.5), places(227, 224)
    ([0], [0, 138, 276], [0, 92, 184, 276], [2])
    """
    if length <= size * _NEAR:
        return [(length - size + 1) // 2]
    step = max(1.0, size * (1 - overlap))
    count = int(np.ceil((length - size) / step - 1e-9)) + 1
    return [round(i * (length - size) / (count - 1)) for i in range(count)]


def crops(image: NDArray[np.uint8], size: int, overlap: float = 0.0) -> NDArray[np.uint8]:
    """Square cuts (n, size, size, 3), row by row, that cover a picture of at least `size` a side."""
    rows, columns = places(image.shape[0], size, overlap), places(image.shape[1], size, overlap)
    return np.stack([image[r : r + size, c : c + size] for r in rows for c in columns])


def normalised(tiles: Tensor, contract: Input) -> Tensor:
    """Stored values (N, 3, rows, columns), any type, to the network's (float32)."""
    mean = torch.tensor(contract.mean, device=tiles.device).view(-1, 1, 1)
    std = torch.tensor(contract.std, device=tiles.device).view(-1, 1, 1)
    return (tiles.float() - mean) / std


def stained(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A picture (rows, columns, 3) with the reference's stains; as it was where its own cannot be told."""
    return stain.normalised(image)
