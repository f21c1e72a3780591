"""Photographs to learn and to score colours on: any folder of them, class folders, the published validation set.

Published: `imgs/NAME.jpg`, with the hints of each count in `h{cell}-n{count}/NAME.txt`, beside imgs/ or in a folder
there. Parts: `train/`, `val/` and `test/`, each of photographs or of class folders (ImageFolder; the classes do not
matter). Else every photograph below the folder is one to train on.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from core.data.photos import SUFFIXES
from core.errors import FileError, InputError

PARTS = {"train": ("train",), "val": ("val", "validation"), "test": ("test",)}
_HINTS = re.compile(r"h(\d+)-n(\d+)\Z")


@dataclass(frozen=True)
class Photograph:
    """One photograph.

    Attributes:
        id: its path in the part's folder without the ending.
        path: of the file.
        group: what stays on one side of a split; the id where nothing else is known.
        hints: count -> file of published hints, lines of row and column in pixels at 224.
    """

    id: str
    path: Path
    group: str
    hints: Mapping[int, Path] = field(default_factory=dict)


@dataclass(frozen=True)
class Data:
    """A folder's photographs.

    Attributes:
        folder: of them.
        layout: "published", "parts" or "photographs".
        train, val, test: photographs, sorted by id.
        cell: side of the published hints' cells in pixels.
    """

    folder: Path
    layout: str
    train: tuple[Photograph, ...]
    val: tuple[Photograph, ...] = ()
    test: tuple[Photograph, ...] = ()
    cell: int = 2


def find(folder: str | Path, *, groups: str | Path | None = None, exclude: str | Path | None = None) -> Data:
    """The photographs in a folder; none is opened.

    Args:
        folder: as described above.
        groups: CSV with the columns case (id of a photograph) and group (scene, camera). A `groups.csv` in the folder
            is read without asking.
        exclude: text file with a name or id on each line that is left out (grey photographs, say).

    Raises:
        FileError: no such folder, no photograph, two with the same id, a groups file that lacks some, a name to leave
            out that does not exist.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileError(folder, "no such folder", "name one with photographs")
    if (folder / "imgs").is_dir():
        data = _published(folder)
    elif any((folder / n).is_dir() for names in PARTS.values() for n in names):
        places = [next((folder / n for n in names if (folder / n).is_dir()), None) for names in PARTS.values()]
        train, val, test = (() if place is None else _photographs(place) for place in places)
        data = Data(folder, "parts", train, val, test)
    else:
        data = Data(folder, "photographs", _photographs(folder))
    if not (data.train or data.val or data.test):
        raise FileError(folder, "holds no photograph", f"endings are {', '.join(SUFFIXES)}")
    if exclude is not None:
        data = _without(data, Path(exclude))
    table = Path(groups) if groups is not None else folder / "groups.csv"
    return _grouped(data, table) if groups is not None or table.is_file() else data


def chosen(data: Data, part: str) -> tuple[Photograph, ...]:
    """The photographs of "train", "val" or "test". Raises InputError where there are none."""
    found: tuple[Photograph, ...] = {"train": data.train, "val": data.val, "test": data.test}[part]
    if not found:
        other = next(p for p in PARTS if getattr(data, p))
        raise InputError(f"{data.folder}: has no {part} photographs; --part {other} scores those there")
    return found


def _photographs(folder: Path) -> tuple[Photograph, ...]:
    found: dict[str, Photograph] = {}
    for path in sorted(folder.rglob("*")):
        inner = path.relative_to(folder)
        if path.suffix.lower() not in SUFFIXES or any(p.startswith(".") for p in inner.parts) or not path.is_file():
            continue
        name = inner.with_suffix("").as_posix()
        if name in found:
            raise FileError(path, f"has the name of {found[name].path.name}", "give each photograph its own")
        found[name] = Photograph(name, path, name)
    return tuple(found[n] for n in sorted(found))


def _published(folder: Path) -> Data:
    photographs = _photographs(folder / "imgs")
    places: dict[int, dict[int, Path]] = {}
    for place in sorted(p for pattern in ("*", "*/*") for p in folder.glob(pattern) if p.is_dir()):
        if match := _HINTS.match(place.name):
            places.setdefault(int(match[1]), {})[int(match[2])] = place
    cell = 2 if 2 in places or not places else min(places)

    def hints(name: str) -> dict[int, Path]:
        known = {n: place / f"{Path(name).name}.txt" for n, place in sorted(places.get(cell, {}).items())}
        return {n: file for n, file in known.items() if file.is_file()}

    return Data(folder, "published", (), (), tuple(replace(p, hints=hints(p.id)) for p in photographs), cell)


def _without(data: Data, path: Path) -> Data:
    """The data without what a list names, by id or by the file's name."""
    try:
        named = {line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()}
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(path, f"cannot be read ({error})", "a text file with a name on each line") from None
    every = (*data.train, *data.val, *data.test)
    missing = sorted(named - {k for p in every for k in _names(p)})
    if missing:
        raise FileError(path, f"names {missing[0]!r}, which is not in {data.folder}", "names or ids of photographs")
    kept = (tuple(p for p in part if not named & _names(p)) for part in (data.train, data.val, data.test))
    train, val, test = kept
    return replace(data, train=train, val=val, test=test)


def _names(photograph: Photograph) -> set[str]:
    return {photograph.id, photograph.path.name, photograph.path.stem}


def _grouped(data: Data, path: Path) -> Data:
    if not path.is_file():
        raise FileError(path, "no such file", "groups are a CSV with the columns case and group")
    with path.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.DictReader(stream)
        if not {"case", "group"} <= set(reader.fieldnames or ()):
            raise FileError(path, f"has the columns {', '.join(reader.fieldnames or ())}", "case and group are needed")
        groups = {row["case"]: row["group"] for row in reader}
    missing = sorted({p.id for p in (*data.train, *data.val, *data.test)} - set(groups))
    if missing:
        raise FileError(path, f"has no group for {len(missing)} photographs ({', '.join(missing[:3])} ...)")
    train, val, test = (
        tuple(replace(p, group=groups[p.id]) for p in part) for part in (data.train, data.val, data.test)
    )
    return replace(data, train=train, val=val, test=test)
