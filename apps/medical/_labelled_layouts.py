"""The layouts of `labelled.find`, each read into pictures with class, patient and part."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from apps.medical import _labelled_csv as csvs
from apps.medical import breakhis
from apps.medical.labelled import Labelled, Picture
from core.errors import FileError, InputError

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".dcm", ".dicom", ".ima")
DICOM = (".dcm", ".dicom", ".ima")
OTHER = (".nii", ".nii.gz", ".svs")  # read by other tasks
PARTS = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test",
    "testing": "test",
}  # fmt: skip
_MASK = re.compile(r"(?P<name>.+)_mask(_\d+)?", re.IGNORECASE)
_MASKS = ("mask", "masks")
_BUSI = re.compile(r"(?P<label>[A-Za-z]+) \(\d+\)")
_KNOWN = (
    "class folders (CLASS/*.png, also below train/, val/, test/), a CSV with the columns image and label, and the "
    "trees of US-Liver, BUSI, BUS-BRA and BreakHis are read"
)


def read(data: Path, wanted: tuple[str, ...] | None) -> Labelled:
    """The pictures of a folder or CSV; groups are "" where the layout names none."""
    if data.is_file():
        if data.suffix.lower() not in (".csv", ".tsv", ".txt"):
            raise FileError(data, "is one file, not a data set", _KNOWN)
        return csvs.read(data.parent, [data], wanted)
    if not data.is_dir():
        raise FileError(data, "no such folder", _KNOWN)
    folder = _unpacked(data)
    if (tree := _breakhis_root(folder)) is not None:
        return _breakhis(folder, tree, wanted)
    if csvs.is_bus_bra(folder):
        return csvs.bus_bra(folder, wanted)
    listed = csvs.listed(folder)
    if listed and not (csvs.is_us_liver(folder) and len(listed) == 1):
        return csvs.read(folder, listed, wanted)
    found = _folders(folder, wanted)
    return csvs.us_liver(found, listed[0]) if listed else found


def _unpacked(folder: Path) -> Path:
    """The folder itself, or the only folder in it where an archive was unpacked one level too deep (BUSI's is)."""
    while True:
        inner = [p for p in folder.iterdir() if not p.name.startswith(".") and p.name != "SAMPLE.toml"]
        if len(inner) != 1 or not inner[0].is_dir() or any(_is_picture(p) for p in inner[0].iterdir()):
            return folder
        if inner[0].name.lower() in PARTS or inner[0].name == "histology_slides":
            return folder
        folder = inner[0]


def _is_picture(path: Path) -> bool:
    """By its ending, or, where it has none, as DICOM files of scanners are, by its first bytes."""
    if path.name.startswith(".") or not path.is_file():
        return False
    if path.suffix.lower() in ENDINGS:
        return True
    bare = not path.suffix or path.suffix[1:].isdigit()
    if not bare or path.name == "DICOMDIR":
        return False
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def _pictures(folder: Path) -> Iterator[tuple[Path, tuple[Path, ...]]]:
    """Every picture below a folder with its masks, in order; folders of masks are passed over."""
    paths = [p for p in sorted(folder.iterdir()) if _is_picture(p)]
    stems = {p.stem for p in paths}
    masks: dict[str, list[Path]] = {}
    for path in paths:
        match = _MASK.fullmatch(path.stem)
        if match and match["name"] in stems:
            masks.setdefault(match["name"], []).append(path)
    taken = {p for held in masks.values() for p in held}
    for path in paths:
        if path not in taken:
            yield path, tuple(masks.get(path.stem, ()))
    for inner in sorted(folder.iterdir()):
        if inner.is_dir() and not inner.name.startswith(".") and inner.name.lower() not in _MASKS:
            yield from _pictures(inner)


# class folders


def _folders(folder: Path, wanted: tuple[str, ...] | None) -> Labelled:
    parts = [p for p in _inner(folder) if p.name.lower() in PARTS]
    homes = [(PARTS[p.name.lower()], p) for p in parts] or [("", folder)]
    pictures: list[Picture] = []
    nested, busi = 0, 0
    for part, home in homes:
        for inside in _inner(home):
            if inside.name.lower() in _MASKS:
                continue
            for path, masks in _pictures(inside):
                deeper = path.parent.relative_to(inside)
                nested += deeper != Path()
                match = _BUSI.fullmatch(path.stem)
                busi += bool(match) and match is not None and match["label"].lower() == inside.name.lower()
                group = f"{inside.name}/{deeper.as_posix()}" if deeper != Path() else ""
                pictures.append(Picture(path, _id(folder, path), inside.name, group, part, masks))
    if not pictures:
        loose = any(_is_picture(p) for p in folder.iterdir())
        wrong = "holds pictures, but nothing says their classes" if loose else "has no pictures of a known layout"
        raise FileError(folder, wrong, _KNOWN)
    pictures = of_headers(pictures)
    left, classes, notes = named(folder, pictures, wanted)
    if nested:
        notes.append("pictures in one folder below their class are taken for one patient")
    if parts and (beside := [p.name for p in _inner(folder) if p not in parts and any(_pictures(p))]):
        notes.append(f"the folders {', '.join(beside)} beside {parts[0].name}/ are not read")
    if other := [p.name for p in sorted(folder.rglob("*")) if p.name.lower().endswith(OTHER)]:
        notes.append(f"{len(other)} scans or slides are passed over ({other[0]} ...): only pictures are read here")
    layout = "BUSI" if busi == len(pictures) and any(p.masks for p in pictures) else "class folders"
    return Labelled(folder, tuple(unique(left)), classes, layout, tuple(notes))


def _inner(folder: Path) -> list[Path]:
    return [p for p in sorted(folder.iterdir()) if p.is_dir() and not p.name.startswith(".")]


def _id(folder: Path, path: Path) -> str:
    return path.relative_to(folder).as_posix().removesuffix(path.suffix)


def named(
    folder: Path, pictures: Iterable[Picture], wanted: tuple[str, ...] | None
) -> tuple[list[Picture], tuple[str, ...], list[str]]:
    """Pictures under one spelling of each class, the classes in order, and what was left out.

    Raises InputError for a wanted class that no picture has.
    """
    pictures = list(pictures)
    spelt: dict[str, str] = {c.casefold(): c for c in wanted or ()}
    if wanted is None:
        for picture in pictures:
            spelt.setdefault(picture.label.casefold(), picture.label)
    held = {p.label.casefold() for p in pictures}
    lacking = [c for key, c in spelt.items() if key not in held]
    if len(lacking) == len(spelt):
        there = ", ".join(sorted({p.label for p in pictures}))
        raise InputError(f"{folder}: has the classes {there}, none of {', '.join(wanted or ())}")
    kept = [replace(p, label=spelt[p.label.casefold()]) for p in pictures if p.label.casefold() in spelt]
    notes = [f"no picture is of class {c}" for c in lacking]
    if other := sorted({p.label for p in pictures if p.label.casefold() not in spelt}):
        notes.append(f"{len(pictures) - len(kept)} pictures of {', '.join(other)} are left out: no class asked for")
    order = tuple(spelt.values()) if wanted is not None else tuple(sorted(spelt.values(), key=str.casefold))
    return kept, order, notes


def unique(pictures: Iterable[Picture]) -> list[Picture]:
    """Pictures whose ids differ: a.png and a.jpg of one folder keep their endings."""
    pictures = list(pictures)
    counts: dict[str, int] = {}
    for picture in pictures:
        counts[picture.id] = counts.get(picture.id, 0) + 1
    out: list[Picture] = []
    for number, picture in enumerate(pictures):
        name = picture.id if counts[picture.id] == 1 else f"{picture.id}{picture.path.suffix}"
        clash = counts[picture.id] > 1 and any(p.id == name for p in out)
        out.append(replace(picture, id=f"{name}-{number}" if clash else name))
    return out


def of_headers(pictures: list[Picture]) -> list[Picture]:
    """Ids without what a DICOM header names, and patients by the hash of their ID."""
    return [_of_header(p) if p.path.suffix.lower() in (*DICOM, "") else p for p in pictures]


def _of_header(picture: Picture) -> Picture:
    from apps.medical import _dicom as files
    from apps.medical import _dicom_identity as identity

    try:
        header = files.opened(picture.path, pixels=False)
    except FileError:  # a damaged file stays in the list: reading it says what is wrong
        return picture
    *above, last = picture.id.split("/")
    safe = [identity.safe_id(header, name) for name in above]
    kept = [a if a == b else "patient" for a, b in zip(above, safe, strict=True)]
    group = identity.group(header) or picture.group
    return replace(picture, id="/".join([*kept, identity.safe_id(header, last)]), group=group)


# BreakHis


def _breakhis_root(folder: Path) -> Path | None:
    """The folder that holds benign/SOB and malignant/SOB."""
    for inner in ("", "breast", "histology_slides/breast", "BreaKHis_v1/histology_slides/breast"):
        place = folder / inner
        if any((place / kind / "SOB").is_dir() for kind in breakhis.KINDS.values()):
            return place
    return None


def _breakhis(folder: Path, root: Path, wanted: tuple[str, ...] | None) -> Labelled:
    fine = wanted is not None and any(w.casefold() in breakhis.SUBTYPES.values() for w in wanted)
    pictures, strange = [], []
    for path, _ in _pictures(root):
        if not breakhis.is_name(path.name):
            strange.append(path.name)
            continue
        name = breakhis.parse(path.name)
        label = breakhis.SUBTYPES[name.subtype] if fine else breakhis.KINDS[name.kind]
        pictures.append(Picture(path, path.stem, label, name.patient))
    if not pictures:
        raise FileError(root, "holds no picture of BreakHis", "names look like SOB_B_A-14-22549AB-40-001.png")
    left, classes, notes = named(folder, pictures, wanted)
    sizes = sorted({breakhis.parse(p.path.name).magnification for p in left})
    notes.append(f"patients are the slides that the file names say; magnifications {', '.join(map(str, sizes))}")
    if strange:
        notes.append(f"{len(strange)} files whose names are not BreakHis's are left out ({strange[0]} ...)")
    return Labelled(folder, tuple(unique(left)), classes, "BreakHis", tuple(notes))
