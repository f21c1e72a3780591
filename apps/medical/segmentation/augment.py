"""Patches out of prepared slices, changed at random by MONAI's transforms."""

from __future__ import annotations

from collections.abc import Sequence
from math import pi
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from apps.medical.segmentation.labels import UNKNOWN
from apps.medical.segmentation.prepare import Prepared

Kind = Literal["none", "light", "nnunet"]
DRAWS = 1 << 20  # different patches; an epoch takes its own part of them, in an order of its own
FOREGROUND = 1 / 3  # of the patches hold a class that is drawn first (nnU-Net's share)


class Patches(Dataset[dict[str, Tensor]]):
    """image (C, h, w) float32 and target (h, w) int64, drawn at random; the same number gives the same patch.

    So what a run sees hangs on its seed and the loader's order alone, and a run that was stopped goes on alike.
    """

    def __init__(self, cases: Sequence[Prepared], patch: tuple[int, int], kind: Kind, seed: int) -> None:
        self.cases, self.patch, self.seed = list(cases), patch, seed
        self.margin = 1.0 if kind == "none" else 1.4  # of the cut before rotation and scaling
        self.change = transforms(patch, kind)

    def __len__(self) -> int:
        return DRAWS

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        draw = np.random.default_rng((self.seed, index))
        case = self.cases[draw.integers(len(self.cases))]
        image, target = case.image, case.target
        held = [k for k, rows in enumerate(case.rows) if rows]
        centre: tuple[int, int] | None = None
        if held and draw.random() < FOREGROUND:
            k = held[draw.integers(len(held))]
            row = case.rows[k][draw.integers(len(case.rows[k]))]
            where = np.argwhere(target[row] == k + 1)
            y, x = where[draw.integers(len(where))]
            centre = int(y), int(x)
        else:
            row = int(draw.integers(len(target)))
        cut = [round(p * self.margin) for p in self.patch]
        picture, classes = _cut(image[row], target[row], cut, centre, draw)
        # Zero is what transforms pad with: it stands for unknown here, and classes count from 1.
        marked = np.where(classes == UNKNOWN, 0, classes.astype(np.int16) + 1).astype(np.float32)
        self.change.set_random_state(seed=int(draw.integers(2**31)))
        item: Any = self.change({"image": torch.from_numpy(picture), "target": torch.from_numpy(marked)[None]})
        back = torch.as_tensor(item["target"])[0].round().long() - 1
        return {"image": torch.as_tensor(item["image"]).float(), "target": torch.where(back < 0, UNKNOWN, back)}


def _cut(
    image: NDArray[np.float32],
    target: NDArray[np.uint8],
    size: Sequence[int],
    centre: tuple[int, int] | None,
    draw: np.random.Generator,
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """A piece (C, *size) and (*size), around `centre` if given; outside the slice mirrored and UNKNOWN."""
    starts = []
    for axis, (side, n) in enumerate(zip(target.shape, size, strict=True)):
        low, high = min(0, (side - n) // 2), max(side - n, (side - n) // 2)
        if centre is None:
            starts.append(int(draw.integers(low, high + 1)))
        else:  # anywhere that keeps the centre in the middle half
            away = n // 4
            starts.append(int(np.clip(centre[axis] - n // 2 + draw.integers(-away, away + 1), low, high)))
    inside, outside = [], []
    for s, n, side in zip(starts, size, target.shape, strict=True):
        inside.append(slice(max(s, 0), min(s + n, side)))
        outside.append((max(-s, 0), max(s + n - side, 0)))
    # As in prediction (inputs.padded): mirrored, and nothing is learned from it.
    piece = np.pad(image[(slice(None), *inside)], ((0, 0), *outside), mode="reflect")
    return piece, np.pad(target[tuple(inside)], outside, constant_values=UNKNOWN)


def transforms(patch: tuple[int, int], kind: Kind) -> Any:
    """MONAI's random transforms on {"image", "target"}; the last of them leaves the patch size.

    "light": turns of 15 degrees, scale 0.85 to 1.2, contrast, brightness, gamma, noise. "nnunet": nnU-Net's list for
    2-D with its probabilities and ranges: turns of 180 degrees, scale 0.7 to 1.4, noise, blur, contrast, resolution,
    gamma (inverted too), mirroring of both axes.
    """
    import monai.transforms

    t: Any = monai.transforms  # its names are not exported as typing asks

    both, image = ("image", "target"), ("image",)
    fit = t.ResizeWithPadOrCropd(both, patch, mode="constant")
    if kind == "none":
        return t.Compose([fit])
    if kind == "light":
        affine = t.RandAffined(
            both,
            patch,
            0.5,
            rotate_range=pi / 12,
            scale_range=(-0.15, 0.2),
            mode=("bilinear", "nearest"),
            padding_mode="zeros",
        )
        return t.Compose(
            [
                affine,
                fit,
                t.RandScaleIntensityd(image, 0.25, prob=0.3),
                t.RandShiftIntensityd(image, 0.2, prob=0.3),
                t.RandAdjustContrastd(image, prob=0.3, gamma=(0.7, 1.5), retain_stats=True),
                t.RandGaussianNoised(image, prob=0.15, std=0.1),
            ]
        )
    turn = t.RandRotated(both, pi, prob=0.2, mode=("bilinear", "nearest"), padding_mode="zeros", keep_size=True)
    zoom = t.RandZoomd(both, 0.2, 0.7, 1.4, mode=("bilinear", "nearest"), padding_mode="constant", keep_size=True)
    return t.Compose(
        [
            turn,
            zoom,
            fit,
            t.RandGaussianNoised(image, prob=0.1, std=0.3),
            t.RandGaussianSmoothd(image, (0.5, 1.0), (0.5, 1.0), prob=0.2),
            t.RandScaleIntensityd(image, 0.25, prob=0.15),
            t.RandAdjustContrastd(image, prob=0.15, gamma=(0.75, 1.25), retain_stats=True),
            t.RandSimulateLowResolutiond(
                image, prob=0.25, downsample_mode="nearest", upsample_mode="bicubic", zoom_range=(0.5, 1.0)
            ),
            t.RandAdjustContrastd(image, prob=0.1, gamma=(0.7, 1.5), invert_image=True, retain_stats=True),
            t.RandAdjustContrastd(image, prob=0.3, gamma=(0.7, 1.5), retain_stats=True),
            t.RandFlipd(both, 0.5, 0),
            t.RandFlipd(both, 0.5, 1),
        ]
    )
