"""Points in original pixels with a label and values (hints, prompts, counts, keypoints), and their CSV.

x is the column, y the row, both from 0 at the middle of the first pixel, so (W - 1, H - 1) is the last one.
`core.data.geojson` reads and writes GeoJSON.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from core.errors import FileError, SettingError
from core.files import write_text

MAX_BYTES = 64 << 20  # of a file of points
MAX_POINTS = 1_000_000


@dataclass(frozen=True)
class Point:
    """One point.

    Attributes:
        x, y: column and row in original pixels.
        label: what it is of, "" for none.
        value: numbers that go with it (a colour, a visibility); their names are those of the file's columns.
    """

    x: float
    y: float
    label: str = ""
    value: tuple[float, ...] = ()


@dataclass(frozen=True)
class Points:
    """Points in the order of their file.

    Attributes:
        items: the points; all have as many values as there are names.
        names: of the values.
        places: where each stood, for messages ("line 3"); empty for points that were not read.
    """

    items: tuple[Point, ...] = ()
    names: tuple[str, ...] = ()
    places: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Point]:
        return iter(self.items)

    def place(self, index: int) -> str:
        """Where point `index` stands in its file, else its number from 1."""
        return self.places[index] if self.places else f"point {index + 1}"

    def outside(self, height: int, width: int) -> list[int]:
        """Indices of the points whose nearest pixel is not one of a picture's."""
        return [i for i, p in enumerate(self.items) if not (-0.5 <= p.x < width - 0.5 and -0.5 <= p.y < height - 0.5)]


def read(path: str | Path, *, names: Sequence[str] = (), label: str = "label", further: bool = False) -> Points:
    """`core.data.geojson.read` for .geojson and .json, else `read_csv`."""
    if Path(path).suffix.lower() in (".geojson", ".json"):
        from core.data import geojson

        return geojson.read(path, names=names, label=label, further=further)
    return read_csv(path, names=names, label=label, further=further)


def read_csv(path: str | Path, *, names: Sequence[str] = (), label: str = "label", further: bool = False) -> Points:
    """Points of a CSV with the header x,y, then optionally label and columns of numbers, in any order.

    Commas separate, decimals have a dot; a byte order mark and empty lines are passed over; names of columns may be
    written in capitals.

    Args:
        path: the file.
        names: columns of numbers that must be there; in this order they become `value`. () for every other column.
        label: the column that becomes the label.
        further: with `names`, pass over other columns; else they are refused, as they may be misspelt.

    Raises FileError that names line and column (counted from 1) for: no such file, not UTF-8, more than MAX_BYTES or
    MAX_POINTS, semicolons or tabs, no header, a column missing, unknown or twice, another number of fields, a field
    that is not a finite number.
    """
    path = Path(path)
    content = text_of(path)
    first = next((line for line in content.splitlines() if line.strip()), "")
    for mark, word in ((";", "semicolons"), ("\t", "tabs")):
        if mark in first and "," not in first:
            raise FileError(path, f"line 1: the columns are separated by {word}", "separate them by commas")
    rows = csv.reader(io.StringIO(content, newline=""), strict=True)
    places: list[str] = []
    items: list[Point] = []
    columns: dict[str, int] = {}
    try:
        for row in rows:
            if not any(field.strip() for field in row):
                continue
            line = f"line {rows.line_num}"
            if not columns:
                width = len(row)
                columns = _header(path, line, row, names, label.lower(), further)
                own = [n for n in columns if n not in ("x", "y", label.lower())]
                order = [n.lower() for n in names] or own
                continue
            if len(row) != width:
                raise FileError(path, f"{line}: {len(row)} fields, but the header has {width}", _fields(row))
            if len(items) == MAX_POINTS:
                raise FileError(path, f"{line}: more than {MAX_POINTS:,} points", "split the file")
            numbers = {n: _number(path, line, columns[n], n, row) for n in ("x", "y", *order)}
            text = row[columns[label.lower()]].strip() if label.lower() in columns else ""
            items.append(Point(numbers["x"], numbers["y"], text, tuple(numbers[n] for n in order)))
            places.append(line)
    except csv.Error as error:
        raise FileError(path, f"line {rows.line_num}: is not CSV ({error})", "check the quotation marks") from None
    if not columns:
        raise FileError(path, "is empty", f"begin with the header {','.join(('x', 'y', *names))}")
    return Points(tuple(items), tuple(order), tuple(places))


def write_csv(path: str | Path, points: Points) -> None:
    """Write what `read_csv` reads, whole or not at all; the label's column only where a point has one."""
    labelled = any(p.label for p in points)
    buffer = io.StringIO()
    out = csv.writer(buffer, lineterminator="\n")
    out.writerow(["x", "y", *(["label"] if labelled else []), *points.names])
    for i, p in enumerate(points):
        fits(path, points, i)
        out.writerow([_plain(p.x), _plain(p.y), *([p.label] if labelled else []), *map(_plain, p.value)])
    write_text(path, buffer.getvalue())


def text_of(path: Path) -> str:
    """A file of points, bounded; FileError where it cannot be read or is not UTF-8."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise FileError(path, f"has more than {MAX_BYTES >> 20} MiB", "split the file")
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise FileError(path, "no such file", "give a file of points") from None
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise FileError(path, f"line {line}: is not text in UTF-8", "save it in UTF-8") from None
    except OSError as error:
        raise FileError(path, f"cannot be read ({(error.strerror or 'input error').lower()})", "check it") from None


def _header(
    path: Path, line: str, row: Sequence[str], names: Sequence[str], label: str, further: bool
) -> dict[str, int]:
    """Name of each column -> its index."""
    wanted = tuple(n.lower() for n in names)
    found: dict[str, int] = {}
    for i, field in enumerate(row):
        name = field.strip().lower()
        if not name and further:
            continue
        if not name or name in found:
            wrong = f"column {name!r} is there twice" if name else "a column has no name"
            raise FileError(path, f"{line}, column {i + 1}: {wrong}", expected(wanted))
        if names and not further and name not in ("x", "y", label, *wanted):
            raise FileError(path, f"{line}, column {i + 1}: no column is called {field.strip()!r}", expected(wanted))
        found[name] = i
    for name in ("x", "y", *wanted):
        if name not in found:
            raise FileError(path, f"{line}: the header has no column {name}", expected(wanted))
    return found


def expected(names: Sequence[str]) -> str:
    """The way out for a wrong header."""
    return f"the header is {','.join(('x', 'y', *names))}, with label if you like"


def _fields(row: Sequence[str]) -> str:
    return "a decimal has a dot, not a comma" if len(row) > 2 else "fill in every column"


def _number(path: Path, line: str, column: int, name: str, row: Sequence[str]) -> float:
    text = row[column].strip()
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or "_" in text:
        raise FileError(path, f"{line}, column {column + 1} ({name}): {text[:40]!r} is not a number")
    return value


def fits(path: str | Path, points: Points, index: int) -> None:
    """Raise SettingError for a point that cannot be written."""
    p = points.items[index]
    if len(p.value) != len(points.names) or not all(map(math.isfinite, (p.x, p.y, *p.value))):
        raise SettingError(f"{Path(path).name}: point {index + 1} has not {len(points.names)} finite values")


def short(value: float) -> float | int:
    """Without a fraction where there is none."""
    return int(value) if value == int(value) else value


def _plain(value: float) -> str:
    return repr(short(value))
