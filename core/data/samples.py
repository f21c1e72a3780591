"""Small sets in exactly a data set's published layout, of pictures that scikit-image ships, or made where none fits.

They show that a command runs and what it reads. They are not the data set, and nothing measured on them says anything
about it.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from core.data import _histology_sets, _nuclei, _phantom, _photographs, _ultrasound_sets, cifar
from core.data.cards import Card
from core.data.verify import MARK, matches
from core.errors import InputError, MissingExtraError

PICTURES = ("astronaut", "chelsea", "coffee", "hubble_deep_field", "retina", "rocket")
PARTS = {"train": (0.0, 0.7), "val": (0.7, 1.0)}  # of each picture's width: crops of two splits share no pixel


def sample(card: Card, folder: Path) -> int:
    """Write the sample set of a card into a new or empty folder; returns the number of files.

    Beside the published layout lies SAMPLE.toml, which says what the pictures are and lists every file.
    """
    if card.name not in SAMPLERS:
        known = ", ".join(sorted(SAMPLERS))
        raise InputError(f"there is no sample of {card.name} (samples: {known})")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder}: exists and is not an empty folder; name a new one")
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = folder.with_name(folder.name + ".part")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    try:
        SAMPLERS[card.name](aside)
        paths = sorted(p for p in aside.rglob("*") if p.is_file())
        (aside / MARK).write_text(_mark(card, aside, paths), encoding="utf-8")
        if folder.exists():
            folder.rmdir()
        aside.replace(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return len(paths)


def _mark(card: Card, folder: Path, paths: list[Path]) -> str:
    names = [p.relative_to(folder).as_posix() for p in paths]
    inner = {p.relative_to(folder).as_posix() + "/" for p in folder.rglob("*") if p.is_dir()}
    lines = [f"name = {_quoted(card.name)}", f"made = {_quoted(card.made)}", "", "[counts]"]
    for part in card.layout:
        among = inner if part.pattern.endswith("/") else names
        lines.append(f"{_quoted(part.pattern)} = {sum(matches(n, part.pattern) for n in among)}")
    for name, path in zip(names, paths, strict=True):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        lines += ["", "[[files]]", f"path = {_quoted(name)}", f"bytes = {path.stat().st_size}", f'sha256 = "{digest}"']
    for picture in card.attribution:
        lines += ["", "[[attribution]]"]
        lines += [f"{key} = {_quoted(getattr(picture, key))}" for key in ("picture", "author", "licence", "source")]
    return "\n".join(lines) + "\n"


def _quoted(value: str) -> str:
    import json

    return json.dumps(value, ensure_ascii=False)  # a JSON string is a TOML string


def _picture(name: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """(H, W, 3) bytes."""
    try:
        import skimage.data
    except ImportError:
        raise MissingExtraError("scikit-image", "dense") from None
    return np.asarray(getattr(skimage.data, name)(), dtype=np.uint8)


def crops(
    picture: np.ndarray[Any, np.dtype[np.uint8]], part: str, count: int
) -> Iterator[np.ndarray[Any, np.dtype[np.uint8]]]:
    """`count` square crops of one split's part of a picture (H, W, 3), evenly spread from its top left corner down."""
    H, W, _ = picture.shape
    left, right = (round(W * x) for x in PARTS[part])
    side = min(H // 2, right - left)
    for i in range(count):
        step = i / max(count - 1, 1)
        top, start = round(step * (H - side)), left + round((i % 2) * (right - left - side))
        yield picture[top : top + side, start : start + side]


def _image_folder(folder: Path) -> None:
    """train/<id>/<id>_<n>.JPEG and val/<id>/ILSVRC2012_val_<n>.JPEG; ids that WordNet does not use."""
    from PIL import Image

    number = 0
    for k, name in enumerate(PICTURES):
        picture = _picture(name)
        identity = f"n9999{k:04d}"
        for part, count in (("train", 8), ("val", 4)):
            inside = folder / part / identity
            inside.mkdir(parents=True)
            for i, crop in enumerate(crops(picture, part, count)):
                number += part == "val"
                file = f"{identity}_{i}.JPEG" if part == "train" else f"ILSVRC2012_val_{number:08d}.JPEG"
                Image.fromarray(crop).save(inside / file, format="JPEG", quality=90)


def _cifar(folder: Path) -> None:
    """cifar-100-python/{train,test,meta}: crops of 32 x 32 pixels, a class for each source picture."""
    from PIL import Image

    inside = folder / "cifar-100-python"
    inside.mkdir(parents=True)
    for file, part, count in (("train", "train", 20), ("test", "val", 5)):
        data, labels, names = [], [], []
        for k, name in enumerate(PICTURES):
            for i, crop in enumerate(crops(_picture(name), part, count)):
                small = np.asarray(Image.fromarray(crop).resize((32, 32), Image.Resampling.BOX))
                data.append(small.transpose(2, 0, 1).reshape(-1))  # all red, then all green, then all blue
                labels.append(k)
                names.append(f"{name}_{part}_{i:02d}.png")
        batch = {"filenames": names, "batch_label": f"made, {file}",
                 "fine_labels": labels, "coarse_labels": [k // 3 for k in labels], "data": np.stack(data)}  # fmt: skip
        cifar.write(inside / file, batch)
    cifar.write(inside / "meta", {"fine_label_names": list(PICTURES), "coarse_label_names": ["first", "second"]})


SAMPLERS: dict[str, Callable[[Path], None]] = {
    "imagenet-1k": _image_folder,
    "cifar-100-lt": _cifar,
    "abdomen-mr": _phantom.write,
    "breakhis": _histology_sets.write_breakhis,
    "busi": _ultrasound_sets.write_busi,
    "ihc-nuclei": _nuclei.write,
    "motion-blur": _photographs.write_blurred,
    "patchgastric-adc22": _histology_sets.write_gastric,
    "photographs": _photographs.write,
    "us-liver": _ultrasound_sets.write_liver,
}
SHOWN: dict[str, tuple[str, ...]] = {  # pictures that a sample is cut from; the card says whose they are
    "imagenet-1k": PICTURES,
    "cifar-100-lt": PICTURES,
    "abdomen-mr": (),
    "breakhis": ("immunohistochemistry",),
    "busi": (),
    "ihc-nuclei": ("immunohistochemistry",),
    "motion-blur": (*_photographs.TRAIN, *_photographs.TEST),
    "patchgastric-adc22": ("immunohistochemistry",),
    "photographs": (*_photographs.TRAIN, *_photographs.TEST),
    "us-liver": (),
}
