"""Pairs of blurred and sharp photographs on disk, in the layouts that are published and in a plain one.

- ReLoBlur: `[dataset/]{train,test}/SCENE/NN/NN_blur.png`, `NN_sharp.png`; `masks/{train,test}/SCENE/NN/NN.png`.
- GoPro: `{train,test}/SCENE/{blur,sharp}/000001.png` (`blur_gamma/` beside them is not read, as is usual).
- HIDE: `train/*.png`, `test/{test-close-ups,test-long-shot}/*.png`, their sharp partners of the same name in `GT/`.
- RealBlur: `RealBlur-J_.../sceneNNN/{blur/blur_1.png,gt/gt_1.png}`, parts by `RealBlur_J_{train,test}_list.txt`.
- LMD-ViT's: `.npy` files, each a dict of `img_blur`, `img_gt` and `blur_mask`.
- plain: `blur/`, `sharp/` and, if there, `masks/` with equal names (`input/` and `target/` do as well).
- photographs alone: pictures in one folder, which have no sharp partner.

The last three lie at the top, or under `train/`, `val/` and `test/`. In masks every value but 0 means blurred; the
`.npy` files' masks are shares, 0..1. A pair's group is its scene, which no split may cut.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from apps.deblurring import _layouts
from core.errors import FileError, InputError, SettingError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PARTS = ("train", "val", "test")


@dataclass(frozen=True)
class Pair:
    """A blurred photograph and what belongs to it.

    Attributes:
        id: unique in the data set.
        blurred: the photograph; of LMD-ViT's form the .npy file, which holds all three.
        sharp: of the same size; None where nobody knows it.
        mask: where it is blurred; None where that is not known.
        group: the scene.
    """

    id: str
    blurred: Path
    sharp: Path | None
    mask: Path | None
    group: str


@dataclass(frozen=True)
class Data:
    """A data set's pairs.

    Attributes:
        layout: whose folders these are.
        train, val, test: as the folders say; `val` is empty where they name none.
        missing: a sentence for each picture that lacks its partner (only where `find` was asked to go on).
    """

    folder: Path
    layout: str
    train: tuple[Pair, ...]
    val: tuple[Pair, ...]
    test: tuple[Pair, ...]
    missing: tuple[str, ...] = ()


class Read(NamedTuple):
    """A pair as arrays.

    Attributes:
        blurred: (H, W, 3) float32, sRGB, 0..1.
        sharp: the same; None where there is none.
        mask: (H, W) float32, 0..1, 1 where blurred; None where there is none.
    """

    blurred: NDArray[np.float32]
    sharp: NDArray[np.float32] | None
    mask: NDArray[np.float32] | None


def find(folder: str | Path, *, groups: str | Path | None = None, strict: bool = True) -> Data:
    """The data set in a folder; no picture is opened.

    Args:
        folder: as described above.
        groups: CSV with the columns pair (its id) and group (the scene), in place of the layout's own.
        strict: refuse pictures without a partner; else they are listed in `missing`.

    Raises:
        FileError: no such folder, nothing of a known layout, a picture without its partner, lists that name files
            outside the folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileError(folder, "no such folder", "name one with blur/ and sharp/, or a published data set's")
    found = next(((n, p) for n, read in _layouts.LAYOUTS.items() if (p := read(folder)) is not None), None)
    if found is None:
        raise FileError(
            folder,
            "has no data set of a known layout",
            "the plain one has blur/ and sharp/ with equal names; ReLoBlur's, GoPro's, HIDE's and RealBlur's are known",
        )
    layout, parts = found
    pairs = {part: tuple(Pair(*entry) for entry in parts.found.get(part, ())) for part in PARTS}
    if strict and parts.missing:
        raise FileError(*parts.missing[0])
    if not any(pairs.values()) and not parts.missing:
        raise FileError(folder, "holds no pair of a blurred and a sharp photograph")
    missing = tuple(str(FileError(*entry)) for entry in parts.missing)
    data = Data(folder, parts.name or layout, pairs["train"], pairs["val"], pairs["test"], missing)
    return data if groups is None else _grouped(data, Path(groups))


def chosen(data: Data, part: str) -> tuple[Pair, ...]:
    """The pairs of "train", "val" or "test". Raises SettingError for another word, InputError where there are none."""
    if part not in PARTS:
        raise SettingError(f"a part is one of {', '.join(PARTS)}, got {part!r}")
    pairs: tuple[Pair, ...] = getattr(data, part)
    if not pairs:
        others = [p for p in PARTS if getattr(data, p)]
        raise InputError(f"{data.folder}: has no {part} pairs; --part {others[0]} scores others")
    return pairs


def read_pair(pair: Pair) -> Read:
    """The arrays of a pair.

    Raises FileError for what cannot be read, and, naming both files, where their sizes differ.
    """
    if pair.blurred.suffix.lower() == ".npy":
        from apps.deblurring._npy import read

        return Read(*read(pair.blurred))
    blurred = _colours(pair.blurred)
    sharp = None if pair.sharp is None else _colours(pair.sharp)
    mask = None if pair.mask is None else read_mask(pair.mask)
    for path, array in ((pair.sharp, sharp), (pair.mask, mask)):
        if array is not None and array.shape[:2] != blurred.shape[:2]:
            raise FileError(
                path,
                f"has {_size(array)} pixels, and {pair.blurred} has {_size(blurred)}",
                "a pair's pictures have one size",
            )
    return Read(blurred, sharp, mask)


def read_mask(path: Path) -> NDArray[np.float32]:
    """(H, W) float32: 1 where the mask's value is not 0. Raises FileError for what cannot be read."""
    import numpy as np

    from core.data import photos

    values = photos.read(path, colour=False).pixels
    mask: NDArray[np.float32] = np.any(values > 0, axis=2).astype(np.float32)
    return mask


def _colours(path: Path) -> NDArray[np.float32]:
    from core.data import photos

    return photos.as_float(photos.read(path))


def _size(array: NDArray[Any]) -> str:
    return f"{array.shape[1]} x {array.shape[0]}"


def _grouped(data: Data, path: Path) -> Data:
    """With the groups of a CSV."""
    if not path.is_file():
        raise FileError(path, "no such file", "groups are a CSV with the columns pair and group")
    with path.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.DictReader(stream)
        if not {"pair", "group"} <= set(reader.fieldnames or ()):
            raise FileError(path, f"has the columns {', '.join(reader.fieldnames or ())}", "pair and group are needed")
        groups: Mapping[str, str] = {row["pair"]: row["group"] for row in reader}
    lacking = [p.id for part in PARTS for p in getattr(data, part) if p.id not in groups]
    if lacking:
        raise FileError(path, f"has no group for {len(lacking)} pairs ({', '.join(lacking[:3])} ...)")

    def with_groups(pairs: tuple[Pair, ...]) -> tuple[Pair, ...]:
        return tuple(replace(p, group=groups[p.id]) for p in pairs)

    return replace(data, train=with_groups(data.train), val=with_groups(data.val), test=with_groups(data.test))
