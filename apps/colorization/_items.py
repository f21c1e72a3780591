"""Which hints belong to which photograph."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from apps.colorization import hints
from apps.colorization.hints import Hint
from core.data import photos
from core.errors import FileError, SettingError


@dataclass(frozen=True)
class Item:
    """A photograph to colour.

    Attributes:
        path: of the photograph.
        given: its hints, where one file holds those of several photographs.
        file: of its hints, read when it is its turn, so that a bad one costs no other photograph.
    """

    path: Path
    given: tuple[Hint, ...] = ()
    file: Path | None = None

    @property
    def id(self) -> str:
        return self.path.stem

    @property
    def paths(self) -> Sequence[Path]:
        return (self.path,) if self.file is None else (self.path, self.file)

    @property
    def key(self) -> str:
        """Changes when the given hints do."""
        return hashlib.sha256(repr([(h.x, h.y, h.colour) for h in self.given]).encode()).hexdigest()[:16]

    def hints(self, photo: photos.Photo) -> tuple[Hint, ...]:
        """Of this photograph as read. FileError as `hints.read`."""
        if self.file is None:
            return self.given
        colour = photo.pixels if photo.pixels.shape[2] == 3 else None
        return _of(self.path, hints.read(self.file, truth=colour), self.file)


def items(paths: Sequence[Path], given: Path | None) -> tuple[list[Item], list[str]]:
    """The photographs in files and folders with their hints, and what a user should know of these.

    Args:
        paths: files and folders.
        given: hints of one photograph; a CSV or JSON with `file` for several; or a folder with NAME.csv, NAME.json or
            NAME.txt for photographs NAME.*. None for no hints.

    Raises FileError for what cannot be read, for a list for several photographs that does not say for which.
    """
    found = photos.find(paths)
    if given is None:
        return [Item(p) for p in found], []
    if given.is_dir():
        with_hints = [Item(p, file=_beside(given, p)) for p in found]
        without = [i.path.name for i in with_hints if i.file is None]
        if len(without) == len(found):
            raise FileError(given, f"has no hints for {found[0].name}", f"they are in {found[0].stem}.csv or .json")
        return with_hints, _without(without)
    if len(found) == 1:
        if not given.exists():
            raise FileError(given, "no such file of hints")
        return [Item(found[0], file=given)], []
    if given.suffix.lower() == ".txt":
        raise FileError(given, f"is of one photograph, and there are {len(found)}", "name the folder of such files")
    listed = hints.read(given)
    unnamed = next((h for h in listed if not h.file), None)
    if unnamed is not None:
        raise FileError(
            given,
            f"does not say to which of {len(found)} photographs {unnamed.source.rpartition(': ')[2]} belongs",
            f"write its name into the column '{hints.FILE}'",
        )
    sorted_ = [Item(p, tuple(h for h in listed if _named(h, p))) for p in found]
    said = _without([i.path.name for i in sorted_ if not i.given])
    strange = sorted({h.file for h in listed if not any(_named(h, p) for p in found)})
    if strange:
        said.append(f"{given}: names {_some(strange)}, which are not among the photographs")
    return sorted_, said


def _of(path: Path, listed: tuple[Hint, ...], file: Path) -> tuple[Hint, ...]:
    """Of a list with names the lines for this photograph."""
    if not any(h.file for h in listed):
        return listed
    ours = tuple(h for h in listed if not h.file or _named(h, path))
    if not ours:
        raise FileError(file, f"has no line for {path.name}", f"its column '{hints.FILE}' names other photographs")
    return ours


def _named(hint: Hint, path: Path) -> bool:
    return hint.file in (path.name, path.stem, str(path), path.as_posix())


def _beside(folder: Path, path: Path) -> Path | None:
    for name in (path.stem, path.name):
        for suffix in (".csv", ".json", ".hints.csv", ".txt"):
            if (folder / f"{name}{suffix}").is_file():
                return folder / f"{name}{suffix}"
    return None


def _without(names: Sequence[str]) -> list[str]:
    return [f"no hints for {_some(names)}: coloured without any"] if names else []


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def apart(out: Path, found: Sequence[Path]) -> None:
    """Raises SettingError where results would lie among the photographs, and a second run would take them for such."""
    for path in found:
        if path.is_dir() and out.resolve().is_relative_to(path.resolve()):
            raise SettingError(f"--out {out} lies in the photographs' own folder {path}; name one outside")
