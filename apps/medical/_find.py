"""From what the user names, files and folders, to single items."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from apps.medical import _dicom, _dicom_identity
from apps.medical._nifti import stem
from apps.medical._scan import quiet
from apps.medical._sniff import SUFFIXES, sniffed
from core.errors import FileError, InputError

_CHANNEL = re.compile(r"(.+)_(\d{4})")


@dataclass(frozen=True)
class Item:
    """One scan or picture to be read: a file, the folder of a DICOM series, or files of one channel each.

    With `series` the paths are the DICOM files of one series that shares its folder with other files. `id` names its
    results: unique among the items found together, and without what a DICOM header says of the patient.
    """

    paths: tuple[Path, ...]
    id: str
    series: bool = False

    @property
    def path(self) -> Path:
        return self.paths[0]


def find(paths: Iterable[str | Path], *, channels: int = 1) -> list[Item]:
    """The items under files and folders, folders searched to the bottom, in order of their names.

    A folder with a DICOM series is one item, every other readable file one each; with `channels` above 1 the files
    CASE_0000, CASE_0001, ... of a folder are one item. A file that is named, or has the suffix of a kind that is read,
    is an item even if it is damaged: reading it says what is wrong. Raises FileError for a path that is not there and
    InputError where nothing is found.
    """
    given = [Path(p) for p in paths]
    found: list[Item] = []
    for path in given:
        if path.is_dir():
            found += _folder(path, channels)
        elif path.exists():
            found.append(Item((path,), _name(path)))
        else:
            raise FileError(path, "no such file or folder")
    if not found:
        where = ", ".join(map(str, given[:3])) or "nothing was named"
        raise InputError(f"{where}: no file of a kind that is read here (NIfTI, DICOM, PNG, JPEG, BMP, TIFF)")
    return _unique(_joined(found, channels))


def _folder(folder: Path, channels: int) -> list[Item]:
    items: list[Item] = []
    for root, inner, files in os.walk(folder):
        inner[:] = sorted(d for d in inner if not d.startswith("."))
        here = [Path(root) / f for f in sorted(files) if not f.startswith(".")]
        kinds = {p: sniffed(p) for p in here}
        alone = {k for k in kinds.values() if k} == {"dicom"}
        single, series = _dicom_items(Path(root), [p for p in here if kinds[p] == "dicom"], alone)
        items += series
        for path in here:
            if path in single or kinds[path] not in ("", "dicom") or (not kinds[path] and _suffixed(path)):
                items.append(Item((path,), _name(path)))
    return items


def _suffixed(path: Path) -> bool:
    return path.name.lower().endswith(SUFFIXES)


@quiet()
def _dicom_items(folder: Path, files: list[Path], alone: bool) -> tuple[set[Path], list[Item]]:
    """Files that are items of their own, and the series: the folder where DICOM is `alone` in it, else its files."""
    headers: dict[Path, Any] = {}
    for path in files:
        try:
            headers[path] = _dicom.opened(path, pixels=False)
        except FileError:
            headers[path] = None
    groups: dict[str, dict[Path, tuple[str, ...]]] = defaultdict(dict)
    for path, header in headers.items():
        where = None if header is None else header.get("ImagePositionPatient")
        if where and int(header.get("NumberOfFrames") or 1) == 1:
            groups[str(header.get("SeriesInstanceUID", ""))][path] = tuple(map(str, where))
    placed = [p for g in groups.values() for p in g]
    if alone and len(placed) > 1:
        many = {p for p in files if headers[p] is None or int(headers[p].get("NumberOfFrames") or 1) > 1}
        return many, [Item((folder,), _dicom_identity.safe_id(headers[placed[0]], folder.resolve().name))]
    series = []
    for group in groups.values():
        if len(group) > 1 and len(set(group.values())) == len(group):
            paths = tuple(group)
            name = _dicom_identity.safe_id(headers[paths[0]], folder.resolve().name)
            series.append(Item(paths, name, series=True))
    taken = {p for i in series for p in i.paths}
    pictures = {p for p in files if headers[p] is None or headers[p].get("Rows") or not _secondary(headers[p])}
    return pictures - taken, series


def _secondary(dataset: Any) -> bool:
    """A DICOM object that is no picture at all (report, plan, directory): not an item of a folder."""
    return bool(dataset.get("SOPClassUID")) or "DirectoryRecordSequence" in dataset


def _name(path: Path) -> str:
    name = stem(path)
    if sniffed(path) == "dicom":
        try:
            return _dicom_identity.safe_id(_dicom.opened(path, pixels=False), name)
        except FileError:
            return name
    return name


def _joined(items: list[Item], channels: int) -> list[Item]:
    """CASE_0000 and its channels as one item; with one channel a folder's CASE_0000 files are called CASE."""
    cases: dict[tuple[Path, str, str], list[Item]] = defaultdict(list)
    for item in items:
        if match := _CHANNEL.fullmatch(item.id):
            cases[item.path.parent, match[1], "".join(item.path.suffixes[-2:])].append(item)
    lone = bool(cases) and all(len(c) == 1 and c[0].id.endswith("_0000") for c in cases.values())
    if channels == 1 and not lone:
        return items
    out, done = [], set()
    for item in items:
        match = _CHANNEL.fullmatch(item.id)
        if match is None:
            out.append(item)
            continue
        key = (item.path.parent, match[1], "".join(item.path.suffixes[-2:]))
        if key not in done:
            done.add(key)
            together = sorted(cases[key], key=lambda i: i.id)
            out.append(Item(tuple(p for i in together for p in i.paths), match[1]))
    return out


def _unique(items: list[Item]) -> list[Item]:
    seen: dict[str, int] = defaultdict(int)
    taken = {i.id for i in items}
    out = []
    for item in items:
        seen[item.id] += 1
        name = item.id
        while seen[item.id] > 1 and name in taken:
            name = f"{item.id}-{seen[item.id]}"
            if name in taken:
                seen[item.id] += 1
        taken.add(name)
        out.append(item if name == item.id else replace(item, id=name))
    return out
