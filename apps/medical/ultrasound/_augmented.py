"""Pictures for training and validation: read once, cut, changed and normalised."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2
from torchvision.transforms.v2 import InterpolationMode

from apps.medical.ultrasound import burned, inputs
from apps.medical.ultrasound.data import Picture
from apps.medical.ultrasound.options import Options
from core.errors import SettingError

Frames = NDArray[np.uint8]
_KEPT = 1 << 30  # bytes of decoded pictures that stay in memory
_FRAMES = 8  # of a cine loop that training draws from
_SCALE = (0.7, 1.0)  # area of a random cut as part of the picture
_ERASED = 0.1  # part of the pictures that lose a rectangle


class Shelf:
    """Decoded pictures (T, H, W, 3), RGB of 8 bits, kept while there is room; of a loop a few frames, evenly spread.

    Args:
        mask: mask burned-in marks.
        room: bytes.
    """

    def __init__(self, *, mask: bool, room: int = _KEPT) -> None:
        self.mask, self.room = mask, room
        self._held: dict[str, Frames] = {}

    def frames(self, picture: Picture) -> Frames:
        """Raises core.errors.FileError for what cannot be read."""
        name = str(picture.path)
        if name in self._held:
            return self._held[name]
        found = inputs.opened(picture.path).sampled(_FRAMES)
        if self.mask:
            found = burned.masked(found, burned.find(found))
        if found.nbytes <= self.room:
            self.room -= found.nbytes
            self._held[name] = found
        return found


class Pictures(Dataset[dict[str, Tensor]]):
    """Pictures as the network sees them, with the number of their class.

    Args:
        pictures: which.
        classes: names in order.
        options: size and random changes.
        shelf: that reads.
        train: change at random, and draw a frame of a loop; else the evaluation transform of the middle frame.
    """

    def __init__(
        self, pictures: Sequence[Picture], classes: Sequence[str], options: Options, shelf: Shelf, *, train: bool
    ) -> None:
        self.pictures, self.size, self.shelf = tuple(pictures), options.size, shelf
        self.targets = [list(classes).index(p.label) for p in self.pictures]
        self.change = augmentation(options.augment, options.size) if train else None

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        frames = self.shelf.frames(self.pictures[index])
        count = len(frames)
        if self.change is None:
            image = inputs.prepared(frames[count // 2][None], (self.size, self.size))[0]
        else:
            frame = frames[int(torch.randint(count, ())) if count > 1 else 0]
            changed = self.change(torch.from_numpy(frame).permute(2, 0, 1))
            image = inputs.normalised(changed[None])[0]
        return {"image": image, "target": torch.tensor(self.targets[index])}


def augmentation(kind: str, size: int) -> v2.Transform:
    """Random changes of uint8 pictures (3, H, W) -> (3, size, size), by torchvision.

    "published": a cut of 0.7 to 1 of the area, AutoAugment for ImageNet, mirrored, 1 in 10 loses a rectangle. "light":
    the cut, mirrored, brightness and contrast by up to a fifth. "none": the evaluation transform.
    """
    bilinear = InterpolationMode.BILINEAR
    if kind == "none":
        return v2.Resize([size, size], bilinear, antialias=True)
    cut = v2.RandomResizedCrop(size, _SCALE, interpolation=bilinear, antialias=True)
    if kind == "light":
        return v2.Compose([cut, v2.RandomHorizontalFlip(), v2.ColorJitter(brightness=0.2, contrast=0.2)])
    if kind == "published":
        policy = v2.AutoAugment(v2.AutoAugmentPolicy.IMAGENET, bilinear)
        return v2.Compose([cut, policy, v2.RandomHorizontalFlip(), v2.RandomErasing(_ERASED)])
    raise SettingError(f"augment is none, light or published, got {kind!r}")
