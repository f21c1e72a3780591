"""Pairs to train on, made of sharp photographs: what `glocal deblurring make` writes, in ReLoBlur's layout."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core import jobs
from core.data import motion_blur, photos, splits
from core.errors import FileError, InputError, SettingError
from core.files import write_text

MADE = "made.json"  # the settings of a made data set


@dataclass(frozen=True)
class Choices:
    """What to make.

    Attributes:
        count: pairs for each photograph.
        length: least and most pixels that a segment moves.
        test: part of the photographs that are kept for testing; 0 for none.
        size: longest side that photographs are made smaller to; 0 leaves them.
        seed: of everything drawn.
    """

    count: int = 4
    length: tuple[float, float] = (8.0, 36.0)
    test: float = 0.2
    size: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.count < 1 or self.size < 0 or self.seed < 0:
            raise SettingError(
                f"--count is at least 1, --size and --seed are not negative, got {self.count}, {self.size}, {self.seed}"
            )
        if not 0 <= self.test < 1:
            raise SettingError(f"--test is a part of the photographs, 0 to below 1, got {self.test}")
        if not 0 < self.length[0] <= self.length[1]:
            raise SettingError(f"--length is the least and the most pixels of a movement, got {self.length}")


@dataclass(frozen=True)
class Item:
    """A photograph and the part of the split that its pairs go to."""

    path: Path
    part: str

    @property
    def id(self) -> str:
        return self.path.stem

    @property
    def paths(self) -> tuple[Path, ...]:
        return (self.path,)


def make(sharp: Sequence[Path], out: Path, choices: Choices) -> int:
    """Write the data set; the same command goes on where it was stopped. Returns the exit code.

    Raises:
        InputError: no photograph, or one alone where some are to be kept for testing.
        FileError: a folder that holds pairs made otherwise, whose split could mix with this one's.
    """
    items = parted(photos.find(sharp), choices)
    settings = {**asdict(choices), "photographs": jobs.key_of({i.id: i.part for i in items})}
    out.mkdir(parents=True, exist_ok=True)
    _agree(out, json.loads(json.dumps(settings)))
    key = jobs.key_of(settings)
    return jobs.run(items, partial(_setup, out, choices, key), jobs.Jobs(out, key), what="photographs")


def parted(paths: Sequence[Path], choices: Choices) -> list[Item]:
    """The photographs with their part of the split; which one a photograph gets depends on its name and the seed."""
    if not choices.test:
        return [Item(p, "train") for p in paths]
    if len(paths) < 2:
        raise InputError(f"{paths[0]}: one photograph cannot be shared out; give more, or --test 0")
    shares = {"train": 1 - choices.test, "test": choices.test}
    where = splits.split([p.stem for p in paths], shares, choices.seed)
    return [Item(p, "test" if i in where["test"] else "train") for i, p in enumerate(paths)]


def _agree(out: Path, settings: dict[str, Any]) -> None:
    path = out / MADE
    if path.is_file():
        if json.loads(path.read_text(encoding="utf-8")) != settings:
            raise FileError(out, "holds pairs that were made of other photographs or with other settings",
                            "name another folder, or empty it")  # fmt: skip
    elif (out / "dataset").exists() or (out / "masks").exists():
        raise FileError(out, "holds another data set", "name an empty folder")
    else:
        write_text(path, json.dumps(settings, indent=1) + "\n")


def _setup(out: Path, choices: Choices, key: str) -> Callable[[Item], str]:
    return partial(_one, out, choices, key)


def _one(out: Path, choices: Choices, key: str, item: Item) -> str:
    photo = photos.read(item.path)
    sharp = smaller(photos.as_float(photo), choices.size)
    kind = np.uint16 if photo.pixels.dtype.itemsize > 1 else np.uint8
    files = []
    for number in range(choices.count):
        made = motion_blur.local_blur(sharp, seed_of(choices.seed, item.id, number), length=choices.length)
        name = f"{number + 1:02d}"
        pair = Path(item.part) / item.id / name
        pictures = {
            out / "dataset" / pair / f"{name}_blur.png": photos.as_stored(made.blurred, kind),
            out / "dataset" / pair / f"{name}_sharp.png": photos.as_stored(made.sharp, kind),
            out / "masks" / pair / f"{name}.png": np.where(made.mask > 0, np.uint8(255), np.uint8(0)),
        }
        for path, values in pictures.items():
            photos.save(path, values)
        files += list(pictures)
    jobs.Jobs(out, key).finish(item, files)
    return f"{item.id}: {choices.count} pairs of {sharp.shape[1]} x {sharp.shape[0]}, {item.part}"


def seed_of(seed: int, name: str, number: int) -> int:
    """One seed for each pair, which does not depend on the other photographs."""
    return int(np.random.SeedSequence([seed, zlib.crc32(name.encode()), number]).generate_state(1)[0])


def smaller(picture: NDArray[np.float32], longest: int) -> NDArray[np.float32]:
    """(H, W, 3), 0..1, made smaller so that its longest side has `longest` pixels; 0, or a smaller one: as it is."""
    from PIL import Image

    height, width = picture.shape[:2]
    if not longest or max(height, width) <= longest:
        return picture
    factor = longest / max(height, width)
    size = max(1, round(width * factor)), max(1, round(height * factor))
    planes = [
        np.asarray(Image.fromarray(np.ascontiguousarray(picture[..., c])).resize(size, Image.Resampling.LANCZOS))
        for c in range(3)
    ]
    return np.clip(np.stack(planes, axis=-1), 0, 1).astype(np.float32)
