"""Pictures with a class: folders, published trees or a CSV, as one list of pictures with label, patient and part.

Layouts that are told by themselves:

- class folders: `CLASS/*.png`, also under `train/`, `val/`, `test/`; a folder between class and pictures is a patient;
- US-Liver: `Benign/`, `Malignant/` and a CSV with the columns images and labels (0, 1);
- BUSI: `CLASS/CLASS (n).png` with `CLASS (n)_mask.png`, `_mask_1.png`, ..., which are one mask together;
- BUS-BRA: `Images/`, `Masks/` and `bus_data.csv`, whose column Case is the patient;
- BreakHis: `benign/SOB/SUBTYPE/SLIDE/40X/*.png`; the slide's name in the file's is the patient;
- a CSV with the columns image and label, optionally patient and part, or one each as train.csv, val.csv, test.csv.

A `groups.csv` in the folder says which patient a picture is of, as `groups` does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from apps.medical import groups as tables_of_groups
from core.commands import Checked
from core.errors import FileError, InputError

__all__ = ["Labelled", "Picture", "check", "find"]


@dataclass(frozen=True)
class Picture:
    """A picture (still, cine loop, tile) with its class.

    Attributes:
        path: PNG, JPEG, BMP, TIFF or DICOM.
        id: unique in the data set: the path inside it without ending, or without what a DICOM header names.
        label: name of the class.
        group: what stays on one side of a split (patient, slide); the id where nothing is known.
        part: "train", "val", "test", or "" where the data set does not say.
        masks: files that are one mask together.
    """

    path: Path
    id: str
    label: str
    group: str
    part: str = ""
    masks: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Labelled:
    """A data set of pictures with classes.

    Attributes:
        classes: names in the order of their numbers.
        layout: what it was read as.
        notes: what was taken for granted, a sentence each.
        conflicts: what its own files say differently of one picture, a sentence each; `check` calls them problems.
    """

    folder: Path
    pictures: tuple[Picture, ...]
    classes: tuple[str, ...]
    layout: str
    notes: tuple[str, ...]
    conflicts: tuple[str, ...] = ()

    def part(self, name: str) -> tuple[Picture, ...]:
        """The pictures of "train", "val", "test" or ""."""
        return tuple(p for p in self.pictures if p.part == name)


def find(data: str | Path, *, groups: str | Path | None = None, classes: Sequence[str] | None = None) -> Labelled:
    """The data set in a folder or behind a CSV; no picture is opened, of DICOM files the header is.

    Args:
        data: as described above.
        groups: CSV with the columns image (or case) and group (or patient). Without one, and without `groups.csv`,
            the patients are those that the data set names itself, else each picture stands alone; `notes` say which.
        classes: names in their order (of a trained network, say). Upper and lower case are one; numbers in a CSV are
            places in this list; in folders, pictures of other classes are left out with a note, in a CSV they are an
            error. Names of BreakHis's subtypes choose subtypes instead of benign and malignant.

    Raises:
        FileError: nothing of a known layout, no picture, a CSV with a missing file, an unknown or empty label, a path
            out of its folder; a groups file that lacks a picture.
        InputError: a wanted class that no picture has where folders are the classes.
    """
    from apps.medical import _labelled_layouts as layouts

    data = Path(data)
    wanted = tuple(classes) if classes is not None else None
    if wanted is not None and len({c.casefold() for c in wanted}) != len(wanted):
        raise InputError(f"classes {', '.join(wanted)}: a name occurs twice")
    found = layouts.read(data, wanted)
    if not found.pictures:
        raise FileError(data, "holds no picture with a class")
    return _grouped(found, Path(groups) if groups is not None else None)


def _grouped(found: Labelled, path: Path | None) -> Labelled:
    """Patients from a CSV, from the data set itself, or nothing."""
    own = found.folder / "groups.csv"
    if path is None and own.is_file():
        path = own
    if path is not None:
        table = tables_of_groups.read(path)
        names = [_names(found.folder, p) for p in found.pictures]
        given = tables_of_groups.of(path, table, names)
        pictures = tuple(replace(p, group=g) for p, g in zip(found.pictures, given, strict=True))
        return replace(found, pictures=pictures, notes=(*found.notes, f"patients are those of {path.name}"))
    alone = sum(not p.group for p in found.pictures)
    note: tuple[str, ...] = ()
    if alone == len(found.pictures):
        note = ("no patients are named, so each picture stands alone; --groups CSV says which belong together",)
    elif alone:
        note = (f"{alone} pictures name no patient and stand alone",)
    pictures = tuple(p if p.group else replace(p, group=p.id) for p in found.pictures)
    return replace(found, pictures=pictures, notes=(*found.notes, *note))


def _names(folder: Path, picture: Picture) -> tuple[str, ...]:
    """What a groups CSV may call a picture."""
    path = picture.path
    try:
        inner = path.relative_to(folder).as_posix()
    except ValueError:
        inner = path.name
    return (picture.id, inner, inner.removesuffix(path.suffix), path.name, path.stem)


def check(found: Labelled) -> Checked:
    """Open every picture: unreadable ones, near-duplicates, two labels, patients in two parts, counts of classes."""
    from apps.medical import _labelled_check

    return _labelled_check.check(found)
