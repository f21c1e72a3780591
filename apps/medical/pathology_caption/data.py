"""Bags of patches with their captions and classes: which patches belong to one slide, and what is said of it.

Layouts that are told by themselves:

- PatchGastricADC22: `captions.csv` with the columns id, subtype and text, and `patches_captions/ID_HASH.jpg`;
- BreakHis: the published tree; a bag is all pictures of a slide, its class is benign or malignant;
- a folder for each bag, alone (`BAG/*.png`) or below its class (`CLASS/BAG/*.png`), with, where there is one, a CSV in
  the folder with the columns bag (or id) and caption (or text), label, patient, part;
- a CSV with the columns image and bag, and caption, label, patient, part where they are known.

A `groups.csv` in the folder says which patient a bag is of, as `groups` does.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from apps.medical import groups as tables_of_groups
from apps.medical import labelled, tables
from core.errors import FileError, InputError

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
PATCHES = "patches_captions"  # PatchGastricADC22's folder
_BAG = ("bag", "id", "slide", "slide_id", "case", "name")
_CAPTION = ("caption", "text", "report", "description")
_LABEL = ("subtype", *tables.LABEL)
_GROUP = ("group", "patient", "patient_id", "patientid")
_IMAGE = ("image", "images", "file", "filename", "file_name", "path", "patch")
_PARTS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test", "testing": "test"}  # fmt: skip  # noqa: E501
_KNOWN = (
    "PatchGastricADC22 (captions.csv beside patches_captions/), BreakHis's tree, a folder for each bag, or a CSV with "
    "the columns image and bag are read"
)


@dataclass(frozen=True)
class Bag:
    """The patches of one slide, or of all slides of a patient.

    Attributes:
        id: unique in the data set.
        group: what stays on one side of a split (patient); the id where nothing is known.
        patches: files, in a fixed order, which means nothing.
        caption: "" where none is known.
        label: name of the class, "" where none is known.
        part: "train", "val", "test", or "" where the data set does not say.
    """

    id: str
    group: str
    patches: tuple[Path, ...]
    caption: str = ""
    label: str = ""
    part: str = ""

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files of an item, as core.jobs asks for them."""
        return self.patches


@dataclass(frozen=True)
class Found:
    """A data set of bags.

    Attributes:
        classes: names in the order of their numbers; () without classes.
        layout: what it was read as.
        notes: what was taken for granted, a sentence each.
    """

    folder: Path
    bags: tuple[Bag, ...]
    classes: tuple[str, ...] = ()
    layout: str = ""
    notes: tuple[str, ...] = ()


def find(folder: str | Path, *, groups: str | Path | None = None) -> Found:
    """The bags of a folder or CSV; no patch is opened.

    Args:
        folder: as described above.
        groups: CSV with the columns case (the bag's id) and group (or patient).

    Raises:
        FileError: no known layout, a table that names what is not there or leads out of its folder, a bag without
            patches, a bag that is listed twice with different words.
    """
    folder = Path(folder)
    if folder.is_file():
        found = _listed(folder.parent, folder)
    elif not folder.is_dir():
        raise FileError(folder, "no such folder", _KNOWN)
    elif (folder / PATCHES).is_dir():
        found = _gastric(folder)
    elif any(
        (folder / p).is_dir() for p in ("histology_slides", "BreaKHis_v1", "breast", "benign/SOB", "malignant/SOB")
    ):
        found = _breakhis(folder)
    elif (table := _of_patches(folder)) is not None:
        found = _listed(folder, table)
    else:
        found = _folders(folder)
    if not found.bags:
        raise FileError(folder, "holds no bag of patches", _KNOWN)
    return _grouped(found, None if groups is None else Path(groups))


def chosen(found: Found, part: str) -> tuple[Bag, ...]:
    """The bags of "train" (with those of no part), "val", "test" or "all"."""
    if part == "all":
        return found.bags
    return tuple(b for b in found.bags if b.part == part or (part == "train" and not b.part))


def wanted(found: Found, part: str) -> tuple[Bag, ...]:
    """`chosen`, or, for the test part of a data set that names no parts, InputError with the way out."""
    bags = chosen(found, part)
    if not bags:
        parts = ", ".join(sorted({b.part or "train" for b in found.bags}))
        raise InputError(f"{found.folder}: has no bag of the part {part}, only of {parts}; name another by --part")
    return bags


def holds_patches(folder: Path) -> bool:
    """Whether pictures lie in the folder itself."""
    return any(_patches(folder))


def one(path: Path) -> Bag:
    """A folder of patches as a bag that nothing is known of. Raises FileError for one without patches."""
    patches = tuple(_patches(path))
    if not patches:
        raise FileError(path, "holds no patch", f"a bag is a folder with pictures ({', '.join(ENDINGS)})")
    return Bag(path.name, path.name, patches)


def _gastric(folder: Path) -> Found:
    table = folder / "captions.csv"
    rows = tables.rows(
        table, {"id": _BAG, "caption": _CAPTION}, {"label": _LABEL, "group": _GROUP, "part": tables.PART}
    )
    held: dict[str, list[Path]] = {}
    for path in _patches(folder / PATCHES):
        held.setdefault(path.stem.rpartition("_")[0], []).append(path)
    bags: dict[str, Bag] = {}
    for row in rows:
        bag = _bag(table, row, tuple(held.get(row.values["id"], ())))
        if not bag.patches:
            raise FileError(
                table,
                f"line {row.line} names {bag.id!r}, of which {PATCHES}/ has no patch",
                "they are named ID_HASH.jpg",
            )
        _add(table, row.line, bags, bag)
    unnamed = sorted(held.keys() - bags.keys())
    notes = [f"{len(unnamed)} slides have patches and no caption; they are left out"] if unnamed else []
    return _found(folder, list(bags.values()), "PatchGastricADC22", notes)


def _breakhis(folder: Path) -> Found:
    tree = labelled.find(folder)
    held: dict[str, list[labelled.Picture]] = {}
    for picture in tree.pictures:
        held.setdefault(picture.path.parent.parent.name, []).append(picture)
    bags = [
        Bag(name, pictures[0].group, tuple(sorted(p.path for p in pictures)), label=pictures[0].label)
        for name, pictures in sorted(held.items())
    ]
    return Found(tree.folder, tuple(bags), tree.classes, "BreakHis", (*tree.notes, "a bag is all pictures of a slide"))


def _of_patches(folder: Path) -> Path | None:
    """The CSV of a folder that lists patches with their bags."""
    for path in sorted(folder.glob("*.csv")):
        if path.name != "groups.csv":
            names = tables.header(path)
            if any(n in names for n in _IMAGE) and any(n in names for n in _BAG):
                return path
    return None


def _listed(folder: Path, table: Path) -> Found:
    other = {"caption": _CAPTION, "label": _LABEL, "group": _GROUP, "part": tables.PART}
    bags: dict[str, Bag] = {}
    for row in tables.rows(table, {"image": _IMAGE, "id": _BAG}, other):
        path = tables.inside(folder, row.values["image"], table, row.line)
        if path.suffix.lower() not in ENDINGS:
            raise FileError(table, f"line {row.line} names {path.name}", f"patches end in {', '.join(ENDINGS)}")
        bag = _bag(table, row, (path,))
        held = bags.get(bag.id)
        if held is None:
            bags[bag.id] = bag
            continue
        if path in held.patches:
            raise FileError(table, f"line {row.line} names {row.values['image']!r} a second time for {bag.id}")
        merged = {}
        for key in ("caption", "label", "group", "part"):
            a, b = getattr(held, key), getattr(bag, key)
            if a and b and a != b:
                raise FileError(table, f"line {row.line} says another {key} of {bag.id} than a line before")
            merged[key] = a or b
        bags[bag.id] = replace(held, patches=(*held.patches, path), **merged)
    return _found(folder, list(bags.values()), "CSV of patches", [])


def _folders(folder: Path) -> Found:
    table = next((p for p in sorted(folder.glob("*.csv")) if p.name != "groups.csv"), None)
    places: dict[str, tuple[Path, str]] = {}
    for inner in _inner(folder):
        if any(_patches(inner)):
            places[inner.name] = (inner, "")
        else:
            places |= {f"{inner.name}/{deep.name}": (deep, inner.name) for deep in _inner(inner) if any(_patches(deep))}
    bags = {
        name: Bag(name, "", tuple(_patches(place)), label="" if table else label)
        for name, (place, label) in places.items()
    }
    if table is None:
        return _found(folder, list(bags.values()), "a folder for each bag", [])
    said: dict[str, Bag] = {}
    other = {"caption": _CAPTION, "label": _LABEL, "group": _GROUP, "part": tables.PART}
    for row in tables.rows(table, {"id": _BAG}, other):
        name = row.values["id"].replace("\\", "/").strip("/")
        match = [key for key in bags if key == name or key.rpartition("/")[2] == name]
        if len(match) != 1:
            wrong = "which does not exist" if not match else "of which there are several"
            raise FileError(table, f"line {row.line} names the bag {name!r}, {wrong}", "a bag is a folder with patches")
        _add(table, row.line, said, replace(_bag(table, row, bags[match[0]].patches), id=match[0]))
    left = sorted(bags.keys() - said.keys())
    notes = [f"{len(left)} folders are not in {table.name}; nothing is known of them"] if left else []
    return _found(folder, [said.get(name, bag) for name, bag in bags.items()], "a folder for each bag", notes)


def _bag(table: Path, row: tables.Row, patches: tuple[Path, ...]) -> Bag:
    values = row.values
    if not values["id"]:
        raise FileError(table, f"line {row.line} names no bag")
    pure = PurePosixPath(values["id"].replace("\\", "/"))
    if pure.is_absolute() or ".." in pure.parts or ":" in values["id"] or not values["id"].isprintable():
        raise FileError(
            table, f"line {row.line} names the bag {values['id']!r}", "a name is no path that leads elsewhere"
        )
    part = values.get("part", "").casefold()
    if part and part not in _PARTS:
        raise FileError(table, f"line {row.line} has the part {values['part']!r}", "parts are train, val and test")
    caption = " ".join(values.get("caption", "").split())
    return Bag(
        values["id"], values.get("group", ""), patches, caption, values.get("label", ""), _PARTS.get(part, "")
    )  # fmt: skip


def _add(table: Path, line: int, bags: dict[str, Bag], bag: Bag) -> None:
    if bag.id in bags:
        raise FileError(table, f"line {line} names {bag.id!r} a second time")
    bags[bag.id] = bag


def _found(folder: Path, bags: list[Bag], layout: str, notes: list[str]) -> Found:
    classes = tuple(sorted({b.label for b in bags if b.label}, key=str.casefold))
    return Found(folder, tuple(bags), classes, layout, tuple(notes))


def _grouped(found: Found, path: Path | None) -> Found:
    own = found.folder / "groups.csv"
    if path is None and own.is_file():
        path = own
    if path is not None:
        table = tables_of_groups.read(path)
        given = tables_of_groups.of(path, table, [(b.id, b.id.rpartition("/")[2]) for b in found.bags])
        bags = tuple(replace(b, group=g) for b, g in zip(found.bags, given, strict=True))
        return replace(found, bags=bags, notes=(*found.notes, f"patients are those of {path.name}"))
    note: tuple[str, ...] = ()
    if not any(b.group for b in found.bags):
        note = ("no patients are named, so each bag stands alone; --groups CSV says which belong together",)
    bags = tuple(b if b.group else replace(b, group=b.id) for b in found.bags)
    return replace(found, bags=bags, notes=(*found.notes, *note))


def _inner(folder: Path) -> list[Path]:
    return [p for p in sorted(folder.iterdir()) if p.is_dir() and not p.name.startswith(".")]


def _patches(folder: Path) -> list[Path]:
    return [
        p
        for p in sorted(folder.iterdir())
        if p.suffix.lower() in ENDINGS and not p.name.startswith(".") and p.is_file()
    ]
