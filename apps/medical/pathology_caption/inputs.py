"""From a picture of a patch to what the network sees, and from the patches of a bag to their embeddings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from core.bundle import Input
from core.data import photos
from core.data.contract import COLOURS, IMAGENET_MEAN, IMAGENET_STD
from core.device import autocast
from core.errors import FileError, InputError, ShapeError

Patch = str | Path | NDArray[np.uint8]

# In stored values, 0..255.
MEAN, STD = tuple(255 * v for v in IMAGENET_MEAN), tuple(255 * v for v in IMAGENET_STD)
MAX_PIXELS = 1 << 26  # of one patch; larger pictures are slides


def contract() -> Input:
    """What a bundle says of its input: colours as bytes, ImageNet's mean and spread."""
    return Input(channels=COLOURS, dtype="uint8", range=(0.0, 255.0), normalise="fixed", mean=MEAN, std=STD)


def square(patch: Patch, size: int) -> NDArray[np.uint8]:
    """A patch as (size, size, 3) bytes: its shorter side is brought to `size` (bicubic, antialiased), the middle kept.

    Args:
        patch: a picture file, or its pixels (H, W, 3) or (H, W) as bytes; 16 bits of a file become 8, and what is
            transparent becomes white, as the slide's glass.
        size: pixels.

    Raises FileError for a file that cannot be read, ShapeError for an array of another form.
    """
    from PIL import Image

    if isinstance(patch, np.ndarray):
        pixels = np.repeat(patch[..., None], 3, axis=2) if patch.ndim == 2 else patch
        if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8 or not pixels.size:
            raise ShapeError(f"a patch is (H, W, 3) or (H, W) bytes, got {patch.dtype} {patch.shape}")
    else:
        pixels = _read(Path(patch))
    height, width = pixels.shape[:2]
    scale = size / min(height, width)
    if scale != 1:
        rows, columns = (max(size, round(side * scale)) for side in (height, width))
        pixels = np.asarray(Image.fromarray(pixels).resize((columns, rows), Image.Resampling.BICUBIC))
    top, left = (pixels.shape[0] - size) // 2, (pixels.shape[1] - size) // 2
    return np.ascontiguousarray(pixels[top : top + size, left : left + size])


def _read(path: Path) -> NDArray[np.uint8]:
    photo = photos.read(path, max_pixels=MAX_PIXELS)
    if photo.pixels.dtype == np.uint8 and photo.alpha is None:
        return photo.pixels
    values = photos.as_float(photo)
    if photo.alpha is not None:
        shown = photos.as_float(replace(photo, pixels=photo.alpha[..., None]))
        values = values * shown + (1 - shown)
    return photos.as_stored(values, np.uint8)


def tensor(pixels: NDArray[np.uint8]) -> Tensor:
    """Patches (P, S, S, 3) as bytes -> (P, 3, S, S) float32."""
    return normalised(torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2).float())


def normalised(values: Tensor) -> Tensor:
    """Values (P, 3, S, S) from 0 to 255 by mean and spread."""
    mean, std = (torch.tensor(v, device=values.device).view(1, 3, 1, 1) for v in (MEAN, STD))
    return (values - mean) / std


@torch.no_grad()
def embed(
    network: Any,
    patches: Iterable[Patch],
    *,
    device: torch.device | str = "cpu",
    precision: str = "32",
    batch: int = 32,
) -> Tensor:
    """Embeddings (N, D) float32 of a bag's patches, on `device`; no more than `batch` patches are in memory at once.

    Args:
        network: a GNNViTCap in evaluation mode, on `device`.
        patches: files or pixels, as `square` takes them.
        device: where the network is.
        precision: "32", "bf16" or "16".
        batch: patches at once.

    Raises InputError for no patch, FileError for one that cannot be read.
    """
    where = torch.device(device)
    found = []
    for some in _batches(patches, batch):
        pixels = np.stack([square(p, network.size) for p in some])
        with autocast(where, precision):
            found.append(network.embed(tensor(pixels).to(where)).float())
    if not found:
        raise InputError("a bag without patches; give at least one picture")
    return torch.cat(found)


def _batches(items: Iterable[Patch], size: int) -> Iterator[list[Patch]]:
    iterator = iter(items)
    while some := list(islice(iterator, size)):
        yield some


def readable(patch: Path) -> None:
    """Raise FileError where a file is no picture that `square` could read."""
    if not patch.is_file():
        raise FileError(patch, "no such file")
    photos.read(patch, max_pixels=MAX_PIXELS)
