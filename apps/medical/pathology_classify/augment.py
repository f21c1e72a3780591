"""Tiles for training and validation: read once as prediction reads them, cut, changed and normalised."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from apps.medical import slides
from apps.medical.pathology_classify import cutting, inputs
from apps.medical.pathology_classify.data import Picture
from apps.medical.pathology_classify.look import DEFAULT_LOOK
from apps.medical.pathology_classify.options import Options
from core.bundle import Input
from core.data.sample import Meta
from core.errors import FileError, SettingError

_KEPT = 1 << 30  # bytes of decoded tiles that stay in memory


class Shelf:
    """Tiles (rows, columns, 3) at the network's pixels, at least its size a side, kept while there is room.

    Args:
        options: size, micrometres to a pixel, stain normalisation.
        room: bytes.
    """

    def __init__(self, options: Options, *, room: int = _KEPT) -> None:
        self.size, self.um, self.stained, self.room = options.size, options.um, bool(options.stain), room
        self._held: dict[str, NDArray[np.uint8]] = {}

    def tile(self, picture: Picture) -> NDArray[np.uint8]:
        """Raises core.errors.FileError for what cannot be read, and for slides."""
        name = str(picture.path)
        if name in self._held:
            return self._held[name]
        if slides.recognised(picture.path):
            raise FileError(picture.path, "is a whole slide", "train on tiles of it; slides are scored and predicted")
        _, found, _ = cutting.cut(
            picture.path, Meta(), DEFAULT_LOOK, size=self.size, um=self.um, stained=self.stained
        )  # fmt: skip
        if found.nbytes <= self.room:
            self.room -= found.nbytes
            self._held[name] = found
        return found


class Tiles(Dataset[dict[str, Tensor]]):
    """Tiles as the network sees them, with the number of their class.

    Args:
        pictures: which.
        classes: names in order.
        options: size and random changes.
        contract: how they are normalised.
        shelf: that reads.
        train: change at random; else the middle square.
    """

    def __init__(
        self, pictures: Sequence[Picture], classes: Sequence[str], options: Options, contract: Input, shelf: Shelf, *,
        train: bool,
    ) -> None:  # fmt: skip
        self.pictures, self.contract, self.shelf = tuple(pictures), contract, shelf
        self.targets = [list(classes).index(p.label) for p in self.pictures]
        self.change = augmentation(options.augment if train else "none", options.size)

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        stored = torch.from_numpy(np.ascontiguousarray(np.moveaxis(self.shelf.tile(self.pictures[index]), -1, 0)))
        image = inputs.normalised(self.change(stored)[None], self.contract)[0]
        return {"image": image, "target": torch.tensor(self.targets[index])}


class QuarterTurn(torch.nn.Module):
    """A picture (..., rows, columns) turned by 0, 90, 180 or 270 degrees: tissue has no upright."""

    def forward(self, image: Tensor) -> Tensor:
        return torch.rot90(image, int(torch.randint(4, ())), (-2, -1))


def augmentation(kind: str, size: int) -> Any:
    """Random changes of uint8 tiles (3, H, W) -> (3, size, size), by torchvision; sizes of nuclei stay as they are.

    "light": any cut of that size, turned by quarters, mirrored. "stain": also brightness, contrast and saturation by up
    to a quarter, hue by up to 0.04 of the circle. "none": the middle.
    """
    if kind == "none":
        return v2.CenterCrop(size)
    steps: list[Any] = [v2.RandomCrop(size), QuarterTurn(), v2.RandomHorizontalFlip()]
    if kind == "light":
        return v2.Compose(steps)
    if kind == "stain":
        return v2.Compose([*steps, v2.ColorJitter(brightness=0.25, contrast=0.25, saturation=0.25, hue=0.04)])
    raise SettingError(f"augment is none, light or stain, got {kind!r}")
