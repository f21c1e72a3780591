"""Photographs as training and validation items: square pieces in Lab, and hints drawn from them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from apps.colorization import simulate
from apps.colorization.data import Photograph
from apps.colorization.lab import to_lab
from apps.colorization.options import Options
from core.data import photos

KEPT = 1 << 29  # bytes of decoded photographs kept in memory, in each process
FINE = 4  # kept ones have a shorter side of at most so many times the network's
CHROMA = (0.5, 1.6)  # factors of "colours" on a' and b'
CONTRAST = (0.7, 1.4)  # and on L' around its mean


class Crops(Dataset[dict[str, Tensor]]):
    """lab (3, size, size) and mask (cells^2,): random crops with 0 to `options.hints` hints, all different cells.

    Crops are torchvision's RandomResizedCrop. With `augment` "colours" they are also mirrored and turned by quarters,
    and their colours turned around grey, mirrored and made paler or stronger, so that only hints tell them. Draws come
    from torch's generator, which core.training seeds.
    """

    def __init__(self, photographs: Sequence[Photograph], size: int, cells: int, options: Options) -> None:
        self.photographs, self.size, self.cells, self.options = list(photographs), size, cells, options
        self.store = Decoded(FINE * size)

    def __len__(self) -> int:
        return len(self.photographs)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        from torchvision.transforms import RandomResizedCrop

        draw = np.random.default_rng(int(torch.randint(2**62, ())))
        rgb = self.store.read(self.photographs[index].path)
        top, left, high, wide = RandomResizedCrop.get_params(rgb, list(self.options.crop), [3 / 4, 4 / 3])
        lab = to_lab(square(rgb[:, top : top + high, left : left + wide], self.size))[0]
        if self.options.augment == "colours":
            lab = recoloured(lab, draw)
        return {"lab": lab, "mask": simulate.training_mask(self.cells, self.options.hints, draw)}


class Squares(Dataset[dict[str, Tensor]]):
    """Whole photographs brought to (size, size): lab, rgb, and masks (counts, cells^2) of the test's hints."""

    def __init__(self, photographs: Sequence[Photograph], size: int, cells: int, counts: Sequence[int]) -> None:
        self.photographs, self.size, self.cells, self.counts = list(photographs), size, cells, tuple(counts)
        self.store = Decoded(FINE * size)

    def __len__(self) -> int:
        return len(self.photographs)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        photograph = self.photographs[index]
        rgb = square(self.store.read(photograph.path), self.size)
        masks = [
            simulate.as_mask(simulate.test_cells(n, self.cells, photograph.path.stem), self.cells) for n in self.counts
        ]
        return {"lab": to_lab(rgb)[0], "rgb": rgb[0], "masks": torch.stack(masks)}


class Decoded:
    """Photographs as (3, H, W) uint8 or float, the first ones that fit into KEPT bytes held in memory.

    Those are brought to a shorter side of at most `side`.
    """

    def __init__(self, side: int) -> None:
        self.side, self.bytes = side, 0
        self.held: dict[Path, Tensor] = {}

    def read(self, path: Path) -> Tensor:
        """Values of uint8 as stored, else 0..1. Raises FileError for what cannot be read."""
        if path in self.held:
            return self.held[path]
        photo = photos.read(path)
        values = torch.from_numpy(np.array(photo.pixels if photo.pixels.dtype == np.uint8 else photos.as_float(photo)))
        values = values.permute(2, 0, 1)
        if self.bytes > KEPT:
            return values
        shorter = min(values.shape[1:])
        if shorter > self.side:
            sides = [max(1, round(n * self.side / shorter)) for n in values.shape[1:]]
            small = F.interpolate(_unit(values)[None], size=sides, mode="bilinear", antialias=True)[0]
            values = (small * 255).round().to(torch.uint8) if values.dtype == torch.uint8 else small
        self.held[path] = values.contiguous()
        self.bytes += values.nbytes
        return self.held[path]


def square(rgb: Tensor, size: int) -> Tensor:
    """(3, H, W) as `Decoded` gives it -> (1, 3, size, size) float in 0..1, bilinear and smoothed when made smaller."""
    values = _unit(rgb)[None]
    if tuple(values.shape[2:]) == (size, size):
        return values
    return F.interpolate(values, size=(size, size), mode="bilinear", antialias=True).clamp(0, 1)


def recoloured(lab: Tensor, draw: np.random.Generator) -> Tensor:
    """Lab (3, S, S) mirrored and turned by quarters, its contrast changed, its colours turned, mirrored and scaled
    around grey.
    """
    lab = torch.rot90(lab.flip(2) if draw.random() < 0.5 else lab, int(draw.integers(4)), (1, 2))
    light, contrast = lab[0], draw.uniform(*CONTRAST)
    middle = light.mean()
    turn, flip, scale = draw.uniform(0, 2 * math.pi), draw.choice([-1.0, 1.0]), draw.uniform(*CHROMA)
    cos, sin = scale * math.cos(turn), scale * math.sin(turn)
    a, b = lab[1], lab[2] * flip
    colours = [(cos * a - sin * b).clamp(-1, 1), (sin * a + cos * b).clamp(-1, 1)]
    return torch.stack([((light - middle) * contrast + middle).clamp(-0.5, 0.5), *colours])


def _unit(values: Tensor) -> Tensor:
    return values.float() / 255 if values.dtype == torch.uint8 else values
