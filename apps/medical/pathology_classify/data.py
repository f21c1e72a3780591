"""Labelled tiles on disk: class folders, BreakHis's tree, or a CSV of images and labels (tiles or slides).

What the layouts are and how they are told apart is in `apps.medical.labelled`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from apps.medical import breakhis, labelled
from apps.medical._class_parts import PARTS, chosen, positive
from apps.medical.labelled import Labelled as Found
from apps.medical.labelled import Picture
from core.errors import InputError, SettingError

__all__ = ["PARTS", "Found", "Picture", "chosen", "find", "positive"]


def find(
    folder: str | Path,
    *,
    groups: str | Path | None = None,
    classes: Sequence[str] | None = None,
    magnification: int | None = None,
) -> Found:
    """The data set in a folder or CSV; no picture is opened.

    Args:
        folder: in one of the layouts.
        groups: CSV with the columns image and patient (or slide).
        classes: in the order of a network's answers; by default those of the data set. Names of BreakHis's subtypes
            choose these.
        magnification: of pictures named as BreakHis's: 40, 100, 200 or 400; all of them where None.

    Raises core.errors.FileError as `labelled.find`, SettingError for another magnification, InputError where no picture
    is named so or none has it.
    """
    if magnification is not None and magnification not in breakhis.MAGNIFICATIONS:
        known = ", ".join(map(str, breakhis.MAGNIFICATIONS))
        raise SettingError(f"--magnification is one of {known}, got {magnification}")
    found = labelled.find(Path(folder), groups=None if groups is None else Path(groups), classes=classes)
    return found if magnification is None else _magnified(found, magnification)


def _magnified(found: Found, wanted: int) -> Found:
    """The pictures of one magnification, which BreakHis's names say."""
    named = [(p, breakhis.parse(p.path.name).magnification) for p in found.pictures if breakhis.is_name(p.path.name)]
    if not named:
        raise InputError(f"{found.folder}: --magnification is for pictures named as BreakHis's, and none here is")
    kept = tuple(p for p, own in named if own == wanted)
    if not kept:
        there = ", ".join(map(str, sorted({own for _, own in named})))
        raise InputError(f"{found.folder}: has no picture at {wanted} times, but at {there}")
    note = f"{len(kept)} of {len(found.pictures)} pictures are taken: those at {wanted} times"
    return replace(found, pictures=kept, notes=(*found.notes, note))
