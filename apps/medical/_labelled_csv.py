"""Lists of pictures in CSV files: a plain one, US-Liver's beside its folders, BUS-BRA's."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from pathlib import Path

from apps.medical import tables
from apps.medical.labelled import Labelled, Picture
from core.errors import FileError

_PARTS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_US_LIVER = ("benign", "malignant")  # labels 0 and 1
_BUS_BRA = "bus_data.csv"


def listed(folder: Path) -> list[Path]:
    """The CSV files of a folder that list pictures with labels; those named by parts, else the only one.

    Raises FileError where several could be the list.
    """
    found = []
    for path in sorted(folder.glob("*.csv")):
        if path.name.lower() == "groups.csv":
            continue
        names = set(tables.header(path))
        if names & set(tables.IMAGE) and names & set(tables.LABEL):
            found.append(path)
    parts = [p for p in found if p.stem.lower() in _PARTS]
    if parts and len({_PARTS[p.stem.lower()] for p in parts}) == len(parts):
        return parts
    if len(found) > 1:
        raise FileError(folder, f"has several lists ({', '.join(p.name for p in found)})", "name the one to read")
    return found


def read(folder: Path, paths: list[Path], wanted: tuple[str, ...] | None) -> Labelled:
    """Pictures of one list, or of train.csv, val.csv and test.csv."""
    from apps.medical._labelled_layouts import named, unique

    pictures: list[Picture] = []
    conflicts: list[str] = []
    seen: dict[tuple[Path, str], tuple[str, int]] = {}
    for path in paths:
        optional = {"group": tables.GROUP, "part": tables.PART}
        for row in tables.rows(path, {"image": tables.IMAGE, "label": tables.LABEL}, optional):
            file = tables.inside(folder, row.values["image"], path, row.line)
            label = _label(path, row.line, row.values["label"], wanted)
            part = _part(path, row, several=len(paths) > 1)
            if (file, part) in seen:
                other, line = seen[file, part]
                if other != label:
                    name = row.values["image"]
                    conflicts.append(f"{path.name}: {name} is {other} in line {line} and {label} in line {row.line}")
                continue
            seen[file, part] = (label, row.line)
            name = file.relative_to(folder).as_posix().removesuffix(file.suffix)
            pictures.append(Picture(file, name, label, row.values.get("group", ""), part))
    from apps.medical._labelled_layouts import of_headers

    pictures, classes, notes = named(folder, of_headers(pictures), wanted)
    if any(p.group for p in pictures):
        notes.append("patients are those of the list")
    return Labelled(folder, tuple(unique(pictures)), classes, "CSV", tuple(notes), tuple(conflicts))


def _label(path: Path, line: int, text: str, wanted: tuple[str, ...] | None) -> str:
    if not text:
        raise FileError(path, f"line {line} has no label", "every picture has one")
    number = text.removesuffix(".0")  # as tables are written where a column has empty cells
    if wanted is None:
        return number if number.isdigit() else text
    known = {c.casefold(): c for c in wanted}
    if text.casefold() in known:
        return known[text.casefold()]
    if number.isdigit() and int(number) < len(wanted) and not any(c.isdigit() for c in wanted):
        return wanted[int(number)]
    raise FileError(path, f"line {line} has the label {text!r}", f"the classes are {', '.join(wanted)}")


def _part(path: Path, row: tables.Row, *, several: bool) -> str:
    if row.values.get("part"):
        text = row.values["part"].lower()
        if text not in _PARTS:
            raise FileError(path, f"line {row.line} has the part {text!r}", "train, val and test are known")
        return _PARTS[text]
    return _PARTS.get(path.stem.lower(), "") if several else ""


# US-Liver


def is_us_liver(folder: Path) -> bool:
    """Folders Benign and Malignant; whose CSV then only repeats them."""
    names = {p.name.lower() for p in folder.iterdir() if p.is_dir()}
    return names == set(_US_LIVER)


def us_liver(found: Labelled, path: Path) -> Labelled:
    """Class folders compared with the CSV beside them (images, labels: 0 benign, 1 malignant).

    The folders decide. Raises FileError for rows whose picture is not there or whose label is neither.
    """
    by_name: dict[str, list[Picture]] = defaultdict(list)
    for picture in found.pictures:
        inner = picture.path.relative_to(found.folder).as_posix()
        for name in {inner, picture.path.name}:
            by_name[name].append(picture)
    conflicts, told = [], set()
    for row in tables.rows(path, {"image": tables.IMAGE, "label": tables.LABEL}):
        text = row.values["image"].replace("\\", "/")
        label = _label(path, row.line, row.values["label"], _US_LIVER)
        # Lists that were made elsewhere carry paths of that machine: the last two names are enough.
        tails = ("/".join(text.split("/")[-2:]), text.split("/")[-1])
        same = next((by_name[t] for t in tails if t in by_name), [])
        if not same:
            tables.inside(found.folder, text, path, row.line)  # says what is wrong with it
            raise FileError(path, f"line {row.line} names {text!r}, which is in neither folder")
        fitting = [p for p in same if p.label.lower() == label]
        told |= {p.id for p in fitting or same}
        if not fitting:
            conflicts.append(f"{path.name}: {text} is {label} in line {row.line} and lies in {same[0].label}/")
    notes = list(found.notes)
    if silent := len(found.pictures) - len(told):
        notes.append(f"{silent} pictures are in the folders but not in {path.name}")
    return replace(found, layout="US-Liver", notes=tuple(notes), conflicts=(*found.conflicts, *conflicts))


# BUS-BRA


def is_bus_bra(folder: Path) -> bool:
    """Images/ and bus_data.csv."""
    return (folder / "Images").is_dir() and (folder / _BUS_BRA).is_file()


def bus_bra(folder: Path, wanted: tuple[str, ...] | None) -> Labelled:
    """Images/ID.png with Masks/mask_....png; Pathology is the class, Case the patient."""
    from apps.medical._labelled_layouts import named

    path = folder / _BUS_BRA
    pictures = []
    for row in tables.rows(path, {"id": ("id",), "case": ("case",), "pathology": ("pathology",)}):
        name = row.values["id"].removesuffix(".png")
        file = tables.inside(folder, f"Images/{name}.png", path, row.line)
        mask = folder / "Masks" / f"mask_{name.removeprefix('bus_')}.png"
        label = row.values["pathology"]
        if not label:
            raise FileError(path, f"line {row.line} has no pathology", "benign or malignant")
        pictures.append(Picture(file, name, label, row.values["case"], "", (mask,) if mask.is_file() else ()))
    left, classes, notes = named(folder, pictures, wanted)
    return Labelled(folder, tuple(left), classes, "BUS-BRA", (*notes, f"patients are the cases of {_BUS_BRA}"))
