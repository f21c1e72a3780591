"""Compares a folder with the published layout that a data set's card states."""

from __future__ import annotations

import hashlib
import os
import tomllib
import zlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from core.data.cards import Card, File
from core.errors import InputError, MissingExtraError

MARK = "SAMPLE.toml"  # what `sample` leaves in its folder


@dataclass
class Report:
    """What `verify` found.

    Attributes:
        files: number of files seen.
        counts: pattern of the layout -> number of matches.
        missing, unreadable, unexpected: one sentence each.
        made: what a folder written by `sample` says of itself, "" for the real data set.
    """

    files: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    made: str = ""

    @property
    def good(self) -> bool:
        return not (self.missing or self.unreadable or self.unexpected)


def verify(card: Card, folder: Path) -> Report:
    """Compare `folder` with the card: expected files and their number, checksums, whether each file can be read.

    A folder that `sample` wrote is compared with what it says it holds; its patterns are those of the card.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    paths, folders = _walk(folder)
    mark = _mark(card, folder)
    report = Report(made=mark.get("made", ""))
    paths.discard(MARK)
    report.files = len(paths)
    known: set[str] = set()
    opened: dict[str, Callable[[Path], None]] = {}
    for part in card.layout:
        found = {p for p in (folders if part.pattern.endswith("/") else paths) if matches(p, part.pattern)}
        known |= found
        report.counts[part.pattern] = len(found)
        wanted = mark["counts"].get(part.pattern, 0) if report.made else part.count
        if (not found and wanted != 0) or (wanted is not None and len(found) != wanted):
            least = "at least one" if wanted is None else f"{wanted:,}"
            report.missing.append(f"{part.pattern}: {least} expected, {len(found):,} found")
        if part.format:
            opened |= dict.fromkeys(found, FORMATS[part.format])
    files = [File(**f) for f in mark["files"]] if report.made else card.files
    known |= {f.path for f in files}
    report.unexpected = sorted(paths - known)
    report.unreadable, absent = _damaged(folder, paths, opened, files)
    report.missing += absent
    return report


def _damaged(
    folder: Path, paths: set[str], opened: dict[str, Callable[[Path], None]], files: Iterable[File]
) -> tuple[list[str], list[str]]:
    """Files that cannot be read or differ from their checksum, and files that are listed but not there."""
    wrong, absent = [], []
    for file in files:
        if file.path not in paths:
            absent += [] if file.optional else [f"{file.path}: not there"]
        elif problem := _differs(folder / file.path, file):
            wrong.append(f"{file.path}: {problem}")
            opened.pop(file.path, None)  # said once
    with ThreadPoolExecutor() as pool:  # decoders run without Python's lock
        names = sorted(opened)
        for name, problem in zip(names, pool.map(lambda n: _problem(folder / n, opened[n]), names), strict=True):
            if problem:
                wrong.append(f"{name}: {problem}")
    return wrong, absent


def matches(path: str, pattern: str) -> bool:
    """Whether a path fits a pattern name by name; a star stays within one name.

    >>> matches("train/n01440764/n01440764_18.JPEG", "train/n*/*.JPEG"), matches("train/a/b/c.JPEG", "train/*.JPEG")
    (True, False)
    """
    names, wanted = path.rstrip("/").split("/"), pattern.rstrip("/").split("/")
    return len(names) == len(wanted) and all(map(fnmatchcase, names, wanted))


def _walk(folder: Path) -> tuple[set[str], set[str]]:
    """Relative paths of files, and of folders with "/" at their end."""
    paths: set[str] = set()
    folders: set[str] = set()
    for root, inner, files in os.walk(folder):
        base = Path(root).relative_to(folder)
        paths |= {(base / f).as_posix() for f in files}
        folders |= {(base / d).as_posix() + "/" for d in inner}
    return paths, folders


def _mark(card: Card, folder: Path) -> dict[str, Any]:
    path = folder / MARK
    if not path.exists():
        return {}
    try:
        mark = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: damaged, it does not say what the sample holds ({error})") from None
    if mark.get("name") != card.name:
        raise InputError(f"{folder}: a sample of {mark.get('name')!r}, not of {card.name!r}")
    return mark


def _differs(path: Path, file: File) -> str:
    size = path.stat().st_size
    if file.bytes is not None and size != file.bytes:
        return f"{size:,} bytes, {file.bytes:,} expected"
    for kind in ("sha256", "md5"):
        wanted = getattr(file, kind)
        if wanted:
            with path.open("rb") as content:
                got = hashlib.file_digest(content, kind).hexdigest()
            if got != wanted:
                return f"{kind} is {got[:12]}..., {wanted[:12]}... expected"
    return ""


def _problem(path: Path, opening: Callable[[Path], None]) -> str:
    try:
        opening(path)
    except MissingExtraError:
        raise
    except (InputError, OSError, ValueError, SyntaxError) as error:
        return str(error).removeprefix(f"{path}: ")
    return ""


def _picture(path: Path) -> None:
    """Decode at the smallest scale that the format has: finds cut-off files at a fraction of the time."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise MissingExtraError("Pillow", "dense") from None
    try:
        with Image.open(path) as picture:
            picture.draft("RGB", (32, 32))
            picture.load()
    except (UnidentifiedImageError, Image.DecompressionBombError):
        raise InputError("not a picture that can be read") from None


def _cifar(path: Path) -> None:
    from core.data import cifar

    cifar.check(path)


def _nifti(path: Path) -> None:
    """Read slice by slice to the end."""
    try:
        import nibabel as nib
    except ImportError:
        raise MissingExtraError("nibabel", "medical") from None
    try:
        image: Any = nib.load(path)
        volume = image.dataobj
        for k in range(volume.shape[-1]):
            _ = volume[..., k]
    except (nib.filebasedimages.ImageFileError, EOFError, OSError, ValueError, zlib.error):
        raise InputError("not a NIfTI file that can be read to its end") from None


FORMATS: dict[str, Callable[[Path], None]] = {"picture": _picture, "cifar": _cifar, "nifti": _nifti}
