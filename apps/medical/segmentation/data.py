"""Segmentation data sets on disk: nnU-Net's raw layout, and plain `images/` + `masks/` folders.

nnU-Net: `dataset.json` with `channel_names`, `labels` (name -> value, background 0, optionally `ignore`) and
`file_ending`; `imagesTr/CASE_0000.ext` (a file per channel, or one colour picture), `labelsTr/CASE.ext`, and
`imagesTs/` (with `labelsTs/`) for test cases. Plain folders: `images/NAME.*` and `masks/NAME.*` (also `labels/`), at
the top or under `train/`, and test cases under `test/`; the values of the masks are the classes, unless a
`dataset.json` names them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from apps.medical import groups as groups_of
from core.errors import FileError, InputError

BACKGROUND, IGNORE = "background", "ignore"
LOSSLESS = (".nii.gz", ".nii", ".png", ".tif", ".tiff", ".bmp", ".dcm")
PICTURES = (*LOSSLESS, ".jpg", ".jpeg")


@dataclass(frozen=True)
class Case:
    """One image with its label.

    Attributes:
        id: unique in the data set.
        images: one file, or one for each channel; a folder for a DICOM series.
        label: None where nothing is known.
        group: what must stay on one side of a split (patient, slide); the id where nothing else is known.
    """

    id: str
    images: tuple[Path, ...]
    label: Path | None
    group: str


@dataclass(frozen=True)
class Data:
    """A data set's cases and what their values mean.

    Attributes:
        channels: names, in order; () where the images say them.
        classes: name -> value in the labels; background is 0.
        ignore: the value of pixels that nothing is learned from, or None.
        binary: masks hold 0 and 255 for background and the one class.
    """

    folder: Path
    layout: str
    channels: tuple[str, ...]
    classes: Mapping[str, int]
    ignore: int | None
    train: tuple[Case, ...]
    test: tuple[Case, ...]
    binary: bool = False

    @property
    def ids(self) -> dict[int, str]:
        return {v: k for k, v in self.classes.items()}


def find(folder: str | Path, *, groups: str | Path | None = None) -> Data:
    """The data set in a folder; no image is opened, but plain masks are where their values are the classes.

    Args:
        folder: as described above.
        groups: CSV with the columns case and group (patient, slide, centre).

    Raises:
        FileError: nothing of a known layout, a label without an image, `dataset.json` that is damaged, incomplete or
            names files outside its folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileError(folder, "no such folder", "name one with dataset.json or with images/ and masks/")
    if (folder / "imagesTr").is_dir():
        data = _nnunet(folder)
    elif (folder / "images").is_dir() or (folder / "train" / "images").is_dir():
        data = _plain(folder)
    else:
        raise FileError(
            folder,
            "has no data set of a known layout",
            "nnU-Net's has imagesTr/, labelsTr/ and dataset.json; the plain one has images/ and masks/",
        )
    if not data.train:
        raise FileError(folder, "holds no pair of image and label")
    return _grouped(data, Path(groups)) if groups is not None else data


# nnU-Net


def _nnunet(folder: Path) -> Data:
    path = folder / "dataset.json"
    table = _json(path)
    channels = table.get("channel_names", table.get("modality"))
    if not isinstance(channels, Mapping) or not channels:
        raise FileError(path, 'has no "channel_names"', 'write {"0": "MR"}, say')
    classes, ignore = _labels(path, table.get("labels"))
    ending = table.get("file_ending")
    if not isinstance(ending, str) or ending.lower() not in LOSSLESS:
        raise FileError(path, f'has "file_ending" {ending!r}', f"one of {', '.join(LOSSLESS)} is read")
    names = tuple(str(channels[k]) for k in sorted(channels, key=int))
    if isinstance(table.get("dataset"), Mapping):
        train = tuple(_listed(folder, path, str(k), v) for k, v in sorted(table["dataset"].items()))
    else:
        train = _cases(folder / "imagesTr", folder / "labelsTr", ending, len(names), required=True)
    test: tuple[Case, ...] = ()
    if (folder / "imagesTs").is_dir():
        test = _cases(folder / "imagesTs", folder / "labelsTs", ending, len(names), required=False)
    return Data(folder, "nnU-Net", names, classes, ignore, train, test)


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileError(path, "is missing", "it names channels and labels in nnU-Net's layout")
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise FileError(path, f"is not JSON ({error})") from None
    if not isinstance(table, dict):
        raise FileError(path, "holds no table of settings")
    return table


def _labels(path: Path, labels: Any) -> tuple[dict[str, int], int | None]:
    """Classes and the ignore value out of "labels" (name -> value; of nnU-Net's first version also value -> name)."""
    if not isinstance(labels, Mapping) or len(labels) < 2:
        raise FileError(
            path, 'has no "labels" with background and one class', 'write {"background": 0, "liver": 1}, say'
        )
    if all(isinstance(v, str) for v in labels.values()):
        labels = {v: k for k, v in labels.items()}
    found: dict[str, int] = {}
    for name, value in labels.items():
        if isinstance(value, list | tuple):
            raise FileError(path, f"label {name!r} is a region of several values", "only one value a class is learned")
        try:
            found[str(name)] = int(value)
        except (TypeError, ValueError):
            raise FileError(path, f"label {name!r} has the value {value!r}", "values are whole numbers") from None
    ignore = found.pop(IGNORE, None)
    values = sorted(found.values())
    if values != list(range(len(values))):
        raise FileError(
            path, f"labels have the values {values}", f"they count from 0 (background) to {len(values) - 1}"
        )
    if len(values) > 255:
        raise FileError(path, f"has {len(values)} labels", "at most 255 are learned, background included")
    if ignore is not None and ignore != len(values):
        raise FileError(path, f"the ignore label is {ignore}", f"it comes after the last class, so {len(values)}")
    return dict(sorted(found.items(), key=lambda item: item[1])), ignore


def _cases(images: Path, labels: Path, ending: str, channels: int, *, required: bool) -> tuple[Case, ...]:
    """Cases of a folder by name; `CASE_0000.ext`, or `CASE.ext` as some writers leave it."""
    pattern = re.compile(rf"(?P<case>.+)_(?P<channel>\d{{4}}){re.escape(ending)}\Z")
    found: dict[str, dict[int, Path]] = {}
    for path in sorted(images.iterdir()):
        match = pattern.match(path.name)
        if match:
            found.setdefault(match["case"], {})[int(match["channel"])] = path
    if not found:
        raise FileError(images, f"has no image named CASE_0000{ending}")
    cases = []
    for name, files in found.items():
        # One colour picture may hold all channels; else every channel is a file.
        if sorted(files) != list(range(len(files))) or len(files) not in (1, channels):
            missing = sorted(set(range(channels)) - set(files))
            lacking = ", ".join(f"{name}_{i:04d}{ending}" for i in missing)
            raise FileError(images, f"case {name} lacks {lacking or 'no channel but has too many'}")
        label = labels / f"{name}{ending}"
        if label.is_file():
            cases.append(Case(name, tuple(files[i] for i in sorted(files)), label, name))
        elif not required:
            cases.append(Case(name, tuple(files[i] for i in sorted(files)), None, name))
        else:
            raise FileError(label, "is missing", f"every image of {images.name}/ has a label of the same name")
    return tuple(cases)


def _listed(folder: Path, path: Path, name: str, entry: Any) -> Case:
    """A case that `dataset.json` lists with its own paths."""
    try:
        images = tuple(inside(folder, p, path) for p in entry["images"])
        return Case(name, images, inside(folder, entry["label"], path), name)
    except (TypeError, KeyError):
        raise FileError(path, f"case {name!r} has no list of images and a label") from None


def inside(folder: Path, name: Any, where: Path) -> Path:
    """A path that a file names, which may not lead out of the folder."""
    pure = PurePosixPath(str(name))
    full = folder / pure
    if pure.is_absolute() or ".." in pure.parts or not full.resolve().is_relative_to(folder.resolve()):
        raise FileError(where, f"names {str(name)!r}", "paths in it stay inside its own folder")
    if not full.is_file():
        raise FileError(where, f"names {str(name)!r}, which does not exist")
    return full


# images/ + masks/


def _plain(folder: Path) -> Data:
    train = _pairs(folder if (folder / "images").is_dir() else folder / "train", required=True)
    test = _pairs(folder / "test", required=False) if (folder / "test" / "images").is_dir() else ()
    channels: tuple[str, ...] = ()
    if (folder / "dataset.json").is_file():
        path = folder / "dataset.json"
        table = _json(path)
        classes, ignore = _labels(path, table.get("labels"))
        named = table.get("channel_names") or {}
        channels = tuple(str(named[k]) for k in sorted(named, key=int))
        return Data(folder, "images + masks", channels, classes, ignore, train, test)
    values = _values(train)
    if values <= {0, 255} and 255 in values:
        return Data(
            folder, "images + masks", channels, {BACKGROUND: 0, "foreground": 1}, None, train, test, binary=True
        )
    if len(values | {0}) < 2:
        raise FileError(folder / "masks", "every mask is empty")
    count = max(values)
    if count > 1000:
        raise FileError(
            folder / "masks",
            f"values go up to {count}, which looks like one number for each object",
            "masks hold classes; name them in dataset.json",
        )
    return Data(folder, "images + masks", channels, _numbered(count), None, train, test)


def _numbered(count: int) -> dict[str, int]:
    return {BACKGROUND: 0, **{f"class {i}": i for i in range(1, count + 1)}}


def _values(cases: Iterable[Case]) -> set[int]:
    from apps.medical.segmentation.labels import values

    found: set[int] = set()
    for case in cases:
        assert case.label is not None
        found |= values(case.label, case.images[0])
    return found


def _pairs(folder: Path, *, required: bool) -> tuple[Case, ...]:
    masks = next((folder / n for n in ("masks", "labels") if (folder / n).is_dir()), None)
    if masks is None:
        if required:
            raise FileError(folder, "has images/ but no masks/", "put a mask of the same name there for every image")
        masks = folder / "masks"
    known = {stem(p): p for p in sorted(masks.iterdir()) if _is(p, LOSSLESS)} if masks.is_dir() else {}
    cases = []
    for image in sorted((folder / "images").iterdir()):
        if not (_is(image, PICTURES) or image.is_dir()):
            continue
        name = stem(image)
        label = known.get(name) or known.get(f"{name}_mask")
        if label is None and required:
            raise FileError(image, f"has no mask in {masks.name}/", f"{name}.png, say")
        # Equal names of training and test pictures say nothing; those of nnU-Net's cases do.
        cases.append(Case(name, (image,), label, name if required else f"test/{name}"))
    return tuple(cases)


def _is(path: Path, endings: tuple[str, ...]) -> bool:
    return path.is_file() and not path.name.startswith(".") and path.name.lower().endswith(endings)


def stem(path: Path) -> str:
    """A file's name without its ending, `.nii.gz` taken as one."""
    return re.sub(r"(\.nii)?\.[^.]+\Z", "", path.name) if path.is_file() or path.suffix else path.name


# groups


def _grouped(data: Data, path: Path) -> Data:
    cases = (*data.train, *data.test)
    found = groups_of.of(path, groups_of.read(path), [(c.id,) for c in cases])
    given = [replace(c, group=g) for c, g in zip(cases, found, strict=True)]
    return replace(data, train=tuple(given[: len(data.train)]), test=tuple(given[len(data.train) :]))


def chosen(data: Data, part: str) -> tuple[Case, ...]:
    """The labelled cases of "train" or "test". Raises InputError where there are none."""
    cases = tuple(c for c in (data.test if part == "test" else data.train) if c.label is not None)
    if not cases:
        other = "train" if part == "test" else "test"
        raise InputError(f"{data.folder}: has no labelled {part} cases; --part {other} scores the others")
    return cases
