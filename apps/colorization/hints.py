"""Coloured points on a photograph: reading and writing them, and the network's cells that they fill.

CSV with a header line holding `x,y,r,g,b` (in any order, further columns are passed over; `file` says to which
photograph a line belongs), JSON as a list of objects with these keys (or GeoJSON), and the published test format:
NAME.txt with "row column" lines in pixels of the 224 x 224 picture, whose colours are the true picture's.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from core.data import points
from core.errors import FileError, InputError, SettingError
from core.files import write_text

if TYPE_CHECKING:
    from torch import Tensor

COLUMNS = ("x", "y", "r", "g", "b")
FILE = "file"
SUFFIXES = (".csv", ".json", ".geojson", ".txt")
PUBLISHED = 224  # side in pixels of the pictures that the published test hints belong to
_MOST = 100_000  # hints in a file: more than a network has cells


@dataclass(frozen=True)
class Hint:
    """A colour at a pixel of the original photograph.

    Attributes:
        x, y: column and row, 0-based.
        r, g, b: sRGB, 0..255.
        file: of the photograph, where a list is for several.
        source: where it was read: file, line or item; for messages.
    """

    x: int
    y: int
    r: int
    g: int
    b: int
    file: str = field(default="", compare=False)
    source: str = field(default="", compare=False, repr=False)

    @property
    def colour(self) -> tuple[int, int, int]:
        return self.r, self.g, self.b


@dataclass(frozen=True, eq=False)
class Placed:
    """Hints on the network's grid of cells.

    Attributes:
        planes: (2, cells, cells) float32: a' and b' of the hints, 0 elsewhere.
        mask: (cells * cells,) bool, True where there is NO hint, as the network takes it.
        rows, columns: (N,) cell of each hint that counts.
        hints: those hints, in order.
        said: what a user should know: cells in which several hints lie.
    """

    planes: NDArray[np.float32]
    mask: NDArray[np.bool_]
    rows: NDArray[np.intp]
    columns: NDArray[np.intp]
    hints: tuple[Hint, ...]
    said: tuple[str, ...]


def read(path: str | Path, *, truth: NDArray[Any] | None = None) -> tuple[Hint, ...]:
    """The hints in a file: .csv, .json (.geojson), or .txt of the published tests.

    Args:
        path: of the file.
        truth: for .txt: the photograph in colour, (H, W, 3) uint8, uint16, or float from 0 to 1; the colours are taken
            from there, the positions brought to its size.

    Raises FileError with line and column for what is malformed, and for .txt without a truth.
    """
    path = Path(path)
    kind = path.suffix.lower()
    if path.is_dir():
        raise FileError(path, "is a folder", "name the file of hints of this photograph")
    if kind == ".txt":
        return tuple(_published(path, truth))
    if kind not in SUFFIXES:
        raise FileError(path, f"hints are not read from {kind or 'files without suffix'}", "use .csv, .json or .txt")
    found = points.read(path, names=COLUMNS[2:], label=FILE, further=True)
    if len(found) > _MOST:
        raise FileError(path, f"holds {len(found):,} hints", f"at most {_MOST:,} are taken")
    return tuple(_hint(path, found.place(i), point) for i, point in enumerate(found))


def _hint(path: Path, place: str, point: points.Point) -> Hint:
    """A point's nearest pixel and its colour. FileError for values that are no colour."""
    for name, value in zip(COLUMNS[2:], point.value, strict=True):
        if not 0 <= value <= 255 or value != int(value):
            raise FileError(path, f"{place}, column {name}: {value:g} is no colour", "whole numbers from 0 to 255 are")
    r, g, b = map(int, point.value)
    # Rounded to the nearest pixel; far outside stays outside.
    x, y = (int(np.floor(np.clip(v, -1e9, 1e9) + 0.5)) for v in (point.x, point.y))
    return Hint(x, y, r, g, b, file=point.label, source=f"{path}: {place}")


def write(path: str | Path, hints: Sequence[Hint], more: Sequence[Mapping[str, Any]] = ()) -> None:
    """Write hints as .csv or .json by the suffix, whole or not at all, so that `read` gives them back.

    Args:
        path: of the file.
        hints: in order.
        more: for each hint further columns, name -> value; `read` passes over them.

    Raises FileError for another suffix, a full disk, a folder that cannot be written.
    """
    path = Path(path)
    rows = [{c: getattr(h, c) for c in COLUMNS} for h in hints]
    if any(h.file for h in hints):
        rows = [{FILE: h.file, **row} for h, row in zip(hints, rows, strict=True)]
    rows = [{**row, **extra} for row, extra in zip(rows, more or [{}] * len(rows), strict=True)]
    if path.suffix.lower() == ".json":
        write_text(path, json.dumps(rows, indent=1) + "\n")
    elif path.suffix.lower() == ".csv":
        names = list(rows[0]) if rows else list(COLUMNS)
        text = io.StringIO()
        table = csv.DictWriter(text, names, lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
        write_text(path, text.getvalue())
    else:
        raise FileError(path, f"hints are not written as {path.suffix or 'files without suffix'}", "use .csv or .json")


def cells(hints: Sequence[Hint], size: tuple[int, int], grid: int) -> Placed:
    """The cells that hints fill; of several in one cell the last one counts, which is said.

    Args:
        hints: on the original photograph.
        size: its rows and columns.
        grid: cells of the network along each side.

    Raises InputError for a hint outside the photograph or a colour outside 0..255, with its line and column.
    """
    rows, columns = size
    taken: dict[tuple[int, int], list[Hint]] = {}
    for hint in hints:
        _inside(hint, rows, columns)
        # The middle of the pixel decides; a pixel of a small picture covers many cells, and only one of them is filled.
        cell = ((2 * hint.y + 1) * grid // (2 * rows), (2 * hint.x + 1) * grid // (2 * columns))
        taken.setdefault(cell, []).append(hint)
    last = {cell: found[-1] for cell, found in taken.items()}
    said = tuple(
        f"{len(found)} hints lie in one cell ({', '.join(f'x {h.x} y {h.y}' for h in found)}), the last one counts"
        for found in taken.values()
        if len(found) > 1
    )
    planes, mask = np.zeros((2, grid, grid), np.float32), np.ones((grid, grid), bool)
    where = np.array(list(last), np.intp).reshape(-1, 2)
    if last:
        ab = lab_of([h.colour for h in last.values()])[1:]
        planes[:, where[:, 0], where[:, 1]] = ab.numpy()
        mask[where[:, 0], where[:, 1]] = False
    return Placed(planes, mask.reshape(-1), where[:, 0], where[:, 1], tuple(last.values()), said)


def lab_of(colours: Sequence[tuple[int, int, int]]) -> Tensor:
    """Colours in sRGB 0..255 -> (3, N) float32 of L', a', b'."""
    import torch

    from apps.colorization import lab

    values = torch.tensor(list(colours), dtype=torch.float32).reshape(-1, 3).T / 255
    return lab.to_lab(values[None, :, None])[0, :, 0]


def _inside(hint: Hint, rows: int, columns: int) -> None:
    where = f"{hint.source}, " if hint.source else ""
    for name, value, count in (("x", hint.x, columns), ("y", hint.y, rows)):
        if not 0 <= value < count:
            side = "wide" if name == "x" else "high"
            raise InputError(
                f"{where}column {name}: {value} lies outside the photograph, which is {count} pixels {side} "
                f"({name} goes from 0 to {count - 1})"
            )
    for name in ("r", "g", "b"):
        if not 0 <= getattr(hint, name) <= 255:
            raise InputError(f"{where}column {name}: {getattr(hint, name)} is no colour; r, g and b go from 0 to 255")


def positions(path: str | Path) -> NDArray[np.intp]:
    """(N, 2) row and column in pixels of the 224 x 224 picture: a file of the published tests. FileError as `read`."""
    path = Path(path)
    found = []
    for number, line in enumerate(points.text_of(path).splitlines(), 1):
        words = line.split()
        if not words:
            continue
        if len(words) != 2:
            raise FileError(path, f"line {number}: has {len(words)} words", "'row column' is expected")
        for name, word in zip(("1 (row)", "2 (column)"), words, strict=True):
            if not (word.isascii() and word.isdecimal()) or int(word) >= PUBLISHED:
                raise FileError(
                    path,
                    f"line {number}, column {name}: is {word[:20]!r}",
                    f"a pixel from 0 to {PUBLISHED - 1} is expected",
                )
        found.append([int(w) for w in words])
    return np.array(found, np.intp).reshape(-1, 2)


def _published(path: Path, truth: NDArray[Any] | None) -> list[Hint]:
    """Places with the true picture's colours, on the true picture's own pixels."""
    if truth is None:
        raise FileError(
            path,
            "holds places without colours (the published tests' format), and the photograph is grey",
            "give it with the photograph in colour, or write x,y,r,g,b",
        )
    if truth.ndim != 3 or truth.shape[2] != 3:
        raise SettingError(f"the truth is a picture (H, W, 3), got {truth.shape}")
    high, wide = truth.shape[:2]
    top = np.iinfo(truth.dtype).max if truth.dtype.kind == "u" else 1.0
    found = []
    for i, (row, column) in enumerate(positions(path), 1):
        y, x = int((row + 0.5) * high / PUBLISHED), int((column + 0.5) * wide / PUBLISHED)
        r, g, b = (int(v) for v in np.clip(np.round(np.asarray(truth[y, x], float) / top * 255), 0, 255))
        found.append(Hint(x, y, r, g, b, source=f"{path}: point {i}"))
    return found
