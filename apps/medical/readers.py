"""Readers of medical files: NIfTI, DICOM (stills, cine, volumes, series), PNG, JPEG, BMP and TIFF.

Every reader gives a `Scan`, which core's streaming reads by the window. Volumes whose place is known come in canonical
order (slices upwards, rows to the back, columns to the left; axes permuted and flipped, never resampled), and
`Scan.grid.restore` puts a mask back on exactly the grid of the file. What a reader did is in `Scan.meta.applied`.
Nothing that names a person gets into `Meta.id` or `Meta.group`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apps.medical import _dicom, _dicom_identity, _dicom_series, _grid, _nifti, _picture, _tiff, _values
from apps.medical._find import Item, find
from apps.medical._grid import Grid
from apps.medical._scan import Kind, Scan, Window
from apps.medical._sniff import KINDS, sniff, sniffed
from core.errors import FileError, InputError

__all__ = [
    "Grid", "Item", "Kind", "Scan", "find", "identifiers", "inspect", "read", "read_channels", "read_item",
    "read_labels", "sniff",
]  # fmt: skip


def read(path: str | Path) -> Scan:
    """The scan or picture in a file, or in a folder that holds one DICOM series.

    The kind is told by content. Raises FileError, one sentence, for what is missing, damaged or not read here, and
    MissingExtraError where the package for its format is not installed.
    """
    path = Path(path)
    if path.is_dir():
        return _dicom_series.read(path, _series(path))
    kind = sniff(path)
    if kind == "nifti":
        return _nifti.read(path)
    if kind == "dicom":
        return _dicom.read(path)
    return _tiff.read(path) if kind == "tiff" else _picture.read(path, format=kind)


def _series(folder: Path) -> list[Path]:
    """The DICOM files directly in a folder. Raises FileError for a folder of other or several kinds."""
    files = sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))
    kinds = {p: sniffed(p) for p in files}
    counts = Counter(k for k in kinds.values() if k)
    if not counts:
        raise FileError(folder, "holds no file that is read here" if files else "an empty folder", KINDS)
    if len(counts) > 1:
        listed = " and ".join(f"{n} {k}" for k, n in counts.most_common())
        raise FileError(folder, f"holds files of several kinds ({listed})", "name the files, or one kind in a folder")
    if "dicom" not in counts:
        (kind,) = counts
        raise FileError(folder, f"holds {counts[kind]} {kind} files, not a DICOM series", "name the files")
    return [p for p in files if kinds[p]]


def read_channels(paths: Sequence[str | Path]) -> Scan:
    """Files of one scan's channels (CASE_0000, CASE_0001, ...) as one Scan, channels in the given order.

    Valid is where every channel is. Raises FileError naming two files that lie on different grids.
    """
    if not paths:
        raise InputError("no files were named")
    scans = [read(p) for p in paths]
    first = scans[0]
    if len(scans) == 1:
        return first
    for scan in scans[1:]:
        if scan.kind != first.kind or (problem := _grid.differs(first.grid, scan.grid)):
            problem = f"{scan.kind} against {first.kind}" if scan.kind != first.kind else problem
            raise FileError(scan.meta.path, f"another grid than {first.meta.path} ({problem})", "channels share a grid")
    common = reduce(np.promote_types, [s.dtype for s in scans])
    dtype = common if common.name in _values.KEPT else np.dtype(np.float32)

    def window(start: tuple[int, ...], stop: tuple[int, ...]) -> Window:
        parts = [s.read(start, stop) for s in scans]
        valid = np.logical_and.reduce([v for _, v in parts])
        return np.concatenate([v.astype(dtype, copy=False) for v, _ in parts]), valid

    names = [n for s in scans for n in s.channels]
    channels = tuple(names) if len(set(names)) == len(names) else tuple(str(i) for i in range(len(names)))
    meta = replace(
        first.meta,
        id=re.sub(r"_\d{4}$", "", first.meta.id),
        channels=channels,
        applied=tuple(dict.fromkeys(w for s in scans for w in s.meta.applied)),
    )
    lossy = any(s.lossy for s in scans)
    return replace(first, channels=channels, dtype=dtype, meta=meta, window=window, lossy=lossy)


def read_item(item: Item) -> Scan:
    """The scan of an item of `find`, under the item's id."""
    scan = _dicom_series.read(item.path.parent, item.paths) if item.series else read_channels(item.paths)
    return replace(scan, meta=replace(scan.meta, id=item.id))


def read_labels(path: str | Path, scan: Scan) -> NDArray[Any]:
    """The class numbers of a label file that lies on the grid of `scan`: whole numbers (*scan.shape), canonical.

    A palette picture gives its indices; no alpha is read. Raises FileError for a label file on another grid (shape,
    affine beyond 1e-3 mm in position or 1e-4 mm a sample in direction), naming both; for values that are not whole
    numbers; for colour; and for JPEG, which changes numbers.
    """
    path = Path(path)
    kind = "dicom" if path.is_dir() else sniff(path)
    if kind == "jpeg":
        raise FileError(path, "labels in JPEG, which changes their numbers", "save them as PNG, TIFF or NIfTI")
    if kind == "tiff":
        found = _tiff.read(path, labels=True)
    else:
        found = _picture.read(path, format=kind, labels=True) if kind in ("png", "bmp") else read(path)
    problem = _grid.differs(scan.grid, found.grid)
    if problem:
        raise FileError(
            path, f"lies on another grid than {scan.meta.path or 'its scan'} ({problem})", "labels share it"
        )
    values, valid = found.array()
    if len(values) > 1 and not (values == values[:1]).all():
        raise FileError(path, f"{len(values)} channels, where one class number a pixel is expected", "save it as grey")
    if not valid.all() or (values.dtype.kind == "f" and not (values == np.rint(values)).all()):
        raise FileError(path, "holds values that are not whole numbers", "labels are class numbers")
    return values[0] if values.dtype.kind in "iu" else values[0].astype(np.int32)


def inspect(path: str | Path) -> dict[str, Any]:
    """What a file or series is: format, size, channels, type, spacing, orientation, range, compression, notes.

    Only headers and a bounded part of the values are read where the format allows; nothing of the patient is in it.
    """
    path = Path(path)
    if path.is_dir():
        return _dicom_series.inspect(path, _series(path))
    kind = sniff(path)
    if kind == "nifti":
        return _nifti.inspect(path)
    if kind == "dicom":
        return _dicom_series.inspect(path)
    return _tiff.inspect(path) if kind == "tiff" else _picture.inspect(path, format=kind)


def identifiers(dataset: Any) -> list[str]:
    """Strings of a pydicom data set that must not leave; see `_dicom_identity.identifiers`."""
    return _dicom_identity.identifiers(dataset)
