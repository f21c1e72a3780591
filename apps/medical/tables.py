"""CSV files that people write by hand: columns under their usual names, and paths that stay in their folder."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from core.errors import FileError

LARGEST = 256 * 2**20  # bytes; a million rows take about 60 MB
IMAGE = ("image", "images", "file", "filename", "file_name", "path", "case", "id")
LABEL = ("label", "labels", "class", "pathology", "diagnosis")
GROUP = ("group", "patient", "patient_id", "patientid", "slide", "case")
PART = ("part", "split", "set", "fold_part")


@dataclass(frozen=True)
class Row:
    """One row: name of a column -> its text without spaces around it, and the line of the file that it ends on."""

    line: int
    values: Mapping[str, str]


def header(path: Path) -> tuple[str, ...]:
    """The names of a CSV's columns, in lower case; () where it has none. Raises FileError as `rows`."""
    return tuple(_reader(path)[0])


def rows(
    path: Path, needed: Mapping[str, Sequence[str]], other: Mapping[str, Sequence[str]] | None = None
) -> list[Row]:
    """The rows of a CSV, with the columns renamed to the keys of `needed` and `other`.

    Args:
        path: UTF-8 (a byte order mark is passed over), separated by comma, semicolon or tab.
        needed: key -> names that its column may have, in the order of preference; upper and lower case are one. A
            column serves one key only.
        other: likewise, for columns that may be missing.

    Empty lines are passed over. Raises FileError for a missing file, one that is no text, too large or without a
    needed column, a row of another length than the header, and a table without rows.
    """
    names, lines = _reader(path)
    places = _places(path, names, needed, other or {})
    found = []
    for line, cells in lines:
        if not any(c.strip() for c in cells):
            continue
        if len(cells) != len(names):
            raise FileError(path, f"line {line} has {len(cells)} cells, the header {len(names)}")
        found.append(Row(line, {key: cells[i].strip() for key, i in places.items()}))
    if not found:
        raise FileError(path, "has a header but no rows")
    return found


def _places(
    path: Path, names: Sequence[str], needed: Mapping[str, Sequence[str]], other: Mapping[str, Sequence[str]]
) -> dict[str, int]:
    twice = sorted({n for n in names if n and names.count(n) > 1})
    if twice:
        raise FileError(path, f"has two columns named {twice[0]}")
    places: dict[str, int] = {}
    for key, known in {**needed, **other}.items():
        free = [n for n in known if n in names and names.index(n) not in places.values()]
        if free:
            places[key] = names.index(free[0])
        elif key in needed:
            wanted = " and ".join(needed)
            raise FileError(path, f"has the columns {', '.join(names) or '(none)'}", f"{wanted} are needed")
    return places


def _reader(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    try:
        size = path.stat().st_size
        if path.is_dir():
            raise FileError(path, "is a folder, not a CSV")
        if size > LARGEST:
            raise FileError(path, f"is {size / 2**20:,.0f} MB", f"tables up to {LARGEST // 2**20} MB are read")
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise FileError(path, "no such file") from None
    except OSError as error:
        raise FileError(path, f"cannot be opened ({error.strerror})") from None
    except UnicodeDecodeError:
        raise FileError(path, "not a text in UTF-8", "save it as CSV in UTF-8") from None
    if not text.strip():
        raise FileError(path, "an empty file")
    first = text.lstrip().partition("\n")[0]
    comma = max(",;\t", key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=comma, strict=True)
    lines = []
    try:
        for cells in reader:
            lines.append((reader.line_num, cells))  # noqa: PERF401 - line_num changes with each row
    except csv.Error as error:
        raise FileError(path, f"not a CSV that can be read: line {reader.line_num}, {error}") from None
    while lines and not any(c.strip() for c in lines[0][1]):
        del lines[0]
    return [c.strip().lower() for c in lines[0][1]], lines[1:]


def inside(folder: Path, name: str, where: Path, line: int | None = None) -> Path:
    """The file that a table names, relative to `folder`; both kinds of slashes separate.

    Raises FileError that names the table for a path that leads out of the folder (absolute, .., a link), and for a
    file that is not there.
    """
    at = f"line {line} names" if line else "names"
    pure = PurePosixPath(name.replace("\\", "/"))
    full = folder / pure
    away = not name or pure.is_absolute() or ".." in pure.parts or PureWindowsPath(name).drive
    if away or "\0" in name or not full.resolve().is_relative_to(folder.resolve()):
        raise FileError(where, f"{at} {name!r}", "paths in it stay inside its own folder")
    if not full.exists():
        raise FileError(where, f"{at} {name!r}, which does not exist")
    return full


def written(rows: Iterable[Mapping[str, Any]], columns: Iterable[str] | None = None) -> str:
    """Rows as CSV; numbers with six digits, None as nothing. Columns are those of the first row unless given."""
    listed = list(rows)
    names = list(columns) if columns is not None else list(listed[0]) if listed else []
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    for row in listed:
        writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})
    return text.getvalue()
