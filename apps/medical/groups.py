"""Who an image is of: a CSV that says which patient (slide, centre) each belongs to, so that a split cuts none."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from apps.medical import tables
from core.errors import FileError

_ITEM = ("case", "image", "images", "file", "filename", "file_name", "path", "id")
_GROUP = ("group", "patient", "patient_id", "patientid", "slide")


def read(path: Path) -> dict[str, str]:
    """Image -> group, from a CSV with the columns case (or image, file, id) and group (or patient, slide).

    Raises FileError for what `tables.rows` refuses and for an image that is listed under two groups.
    """
    if not Path(path).is_file():
        raise FileError(
            path, "no such file", "groups are a CSV with the columns case (or image) and group (or patient)"
        )
    found: dict[str, str] = {}
    for row in tables.rows(Path(path), {"case": _ITEM, "group": _GROUP}):
        name, group = row.values["case"], row.values["group"]
        if found.setdefault(name, group) != group:
            raise FileError(path, f"line {row.line} puts {name!r} into another group than a line before")
    return found


def of(path: Path, table: dict[str, str], items: Sequence[Sequence[str]]) -> list[str]:
    """The group of each item, which may be listed under any of its names (id, path, file name), the first first.

    Raises FileError where items are not listed, and says how many.
    """
    found = [next((table[name] for name in names if name in table), None) for names in items]
    missing = sorted(names[0] for names, group in zip(items, found, strict=True) if group is None)
    if missing:
        shown = ", ".join(missing[:3]) + (" ..." if len(missing) > 3 else "")
        raise FileError(path, f"has no group for {len(missing)} cases ({shown})")
    return [group or names[0] for names, group in zip(items, found, strict=True)]
