"""TIFF: pictures, stacks of grey pages, ImageJ and OME axes, pyramids (the finest level), read by the window."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apps.medical import _grid, _values
from apps.medical._dicom_pixels import RGB
from apps.medical._nifti import stem
from apps.medical._scan import Kind, Scan, Window, bounded, finite, held, quiet
from apps.medical._tiff_measures import measures
from apps.medical._tiff_pages import JPEG, Plane
from core.data.sample import Meta
from core.errors import FileError, MissingExtraError

EAGER = 256 * 2**20  # bytes up to which a file is decoded at once, which finds damage and counts NaN
_LOSSY = (6, JPEG, 33003, 33005, 34712)


@dataclass(frozen=True)
class _Plan:
    """How pages make up a scan: planes[i][c] is slice or frame i of channel c."""

    path: Path
    planes: tuple[tuple[Plane, ...], ...]
    kind: Kind
    photometric: int
    alpha: bool  # whether the last sample is one
    channels: tuple[str, ...]
    dtype: np.dtype[Any]
    labels: bool
    palette: NDArray[Any] | None  # (3, 2**bits) of 8 bits

    @property
    def shape(self) -> tuple[int, ...]:
        inner = self.planes[0][0].shape[:2]
        return inner if self.kind == "picture" else (len(self.planes), *inner)

    def window(self, start: tuple[int, ...], stop: tuple[int, ...]) -> Window:
        """Values (C, *size) and valid (*size) or None, for core.protocols.Source."""
        (top, left), (bottom, right) = start[-2:], stop[-2:]
        span = range(1) if self.kind == "picture" else range(start[0], stop[0])
        slices = [np.concatenate([p.window(top, left, bottom, right) for p in self.planes[i]], -1) for i in span]
        stored = np.moveaxis(np.stack(slices), -1, 0)  # (S, N, Y, X)
        valid = None
        if self.alpha:
            stored, valid = stored[:-1], stored[-1] > 0
            stored = np.where(valid, stored, stored.dtype.type(0))
        if self.palette is not None:
            stored = self.palette[:, stored[0]]
        elif self.photometric == 0 and not self.labels and stored.dtype.kind in "ub":
            stored = ~stored  # white is zero
        if stored.dtype.kind == "b":
            stored = stored.astype(np.uint8) * np.uint8(1 if self.labels else 255)
        if self.kind == "picture":
            stored, valid = stored[:, 0], None if valid is None else valid[0]
        with np.errstate(over="ignore"):
            values = stored.astype(self.dtype, copy=False)
        if values.dtype.kind == "f":
            good = np.isfinite(values)
            if not good.all():
                values = np.where(good, values, values.dtype.type(0))
                valid = good.all(axis=0) if valid is None else valid & good.all(axis=0)
        return values, valid


def _opened(path: Path) -> Any:
    try:
        import tifffile
    except ImportError:
        raise MissingExtraError("tifffile", "medical") from None
    try:
        with quiet():
            file = tifffile.TiffFile(path)
            if not file.series:
                raise ValueError("no pictures")
            return file
    except FileNotFoundError:
        raise FileError(path, "no such file") from None
    except Exception as error:  # many kinds for a damaged directory
        raise FileError(path, f"a damaged or cut-off TIFF ({type(error).__name__})", "export it again") from None


def read(path: Path, *, labels: bool = False) -> Scan:
    """The first picture or stack of the file; above 256 MiB nothing is decoded before `Scan.read`. Raises FileError.

    With `labels` the numbers as stored: a palette's indices, no inversion of white-is-zero.
    """
    with _opened(path) as file, quiet():
        plan, applied = _plan(path, file, labels)
        try:
            spacing, rate, words = measures(file, plan.kind)
        except (ValueError, TypeError, KeyError, ZeroDivisionError):
            spacing, rate, words = None, None, ["resolution in the file cannot be read"]
    applied += words
    count = int(np.prod([int(n) for n in plan.shape], dtype=object)) * max(1, len(plan.channels))
    window: Callable[[tuple[int, ...], tuple[int, ...]], Window] = plan.window
    dtype = plan.dtype
    if count * plan.planes[0][0].page.dtype.itemsize <= EAGER:
        dtype = plan.planes[0][0].page.dtype if plan.dtype == np.float32 else plan.dtype
        values, valid = _plain(path, replace(plan, dtype=dtype.newbyteorder("=")))
        values = _values.native(values)
        values, valid, words = finite(path, values, valid, "pixels")
        applied += words
        if valid is not None and plan.alpha:
            applied.append(f"alpha dropped; {int((~valid).sum()):,} pixels marked invalid")
        dtype, window = values.dtype, held(values, valid)
    elif plan.kind != "picture":
        bounded(path, count, plan.dtype)
    lossy = int(plan.planes[0][0].page.compression) in _LOSSY
    applied += ["stored with lossy compression"] if lossy else []
    meta = Meta(
        path=str(path),
        id=stem(path),
        spacing=spacing,
        rate=rate,
        orientation="down right" if plan.kind != "volume" else "",
        channels=plan.channels,
        applied=tuple(applied),
    )
    grid = _grid.Grid(plan.shape)
    return Scan(plan.shape, plan.channels, dtype, meta, grid, plan.kind, "tiff", window, lossy)


def _plain(path: Path, plan: _Plan) -> Window:
    """Everything, with NaN and Inf still in it, so that they can be counted."""
    kinds = {p.page.dtype.kind for row in plan.planes for p in row}
    if kinds == {"f"} and not plan.alpha:
        stored = np.stack([np.concatenate([p.window(0, 0, *p.shape[:2]) for p in row], -1) for row in plan.planes])
        values = np.moveaxis(stored, -1, 0)
        return (values[:, 0] if plan.kind == "picture" else values), None
    return plan.window((0,) * len(plan.shape), plan.shape)


def _plan(path: Path, file: Any, labels: bool) -> tuple[_Plan, list[str]]:
    series = file.series[0]
    page, words = series.keyframe, []
    if len(series.levels) > 1:
        words.append(f"the finest of {len(series.levels)} levels")
    if len(file.series) > 1:
        words.append(f"the first of {len(file.series)} pictures in the file")
    photometric, samples = int(page.photometric), page.samplesperpixel
    if page.dtype is None or page.dtype.kind not in "biuf" or page.tiledepth > 1 or page.imagedepth > 1:
        raise FileError(path, "its values are complex, of an odd number of bits, or in tiles of volumes", "convert it")
    if photometric not in (0, 1, 2, 3, 6) or (photometric == 6 and int(page.compression) not in _LOSSY):
        name = getattr(page.photometric, "name", str(photometric))
        raise FileError(path, f"its colours are {name}", "save it as grey or RGB")
    lead = [(a, n) for a, n in zip(series.axes, series.shape, strict=True) if a not in "YXS" and n > 1]
    names = "".join(a for a, _ in lead)
    inner = "".join(a for a, _ in lead if a != "C")
    if len(inner) > 1 or names.count("C") > 1:
        raise FileError(path, f"holds {len(lead) + 2} axes ({series.axes})", "split it into volumes or frames")
    if lead and samples > 1:
        raise FileError(path, f"holds {len(series.pages)} colour pages", "save each as a file of its own")
    kind: Kind = "picture" if not inner else "frames" if inner == "T" else "volume"
    size = int(np.prod([n for _, n in lead], dtype=int))
    pages = [p for p in series.pages if p is not None]
    if len(pages) != size:
        raise FileError(path, f"{len(pages)} pages of {size} can be read", "save it as one page a slice")
    numbers = np.arange(size).reshape([n for _, n in lead] or [1])
    if "C" in names:
        numbers = np.moveaxis(numbers, names.index("C"), -1)
    numbers = numbers.reshape(-1, numbers.shape[-1] if "C" in names else 1)
    full = [p if hasattr(p, "samplesperpixel") and hasattr(p, "decode") else p.aspage() for p in pages]
    planes = tuple(tuple(Plane(path, full[i]) for i in row) for row in numbers)
    alpha = samples in (2, 4) and int((page.extrasamples or (0,))[-1]) in (1, 2)
    channels = _names(file, photometric, samples - alpha, len(planes[0]), labels)
    if photometric == 3 and not labels:
        words.append("palette colours converted to RGB")
    if photometric == 0 and not labels:
        words.append("inverted (white is zero)")
    if kind == "volume" and inner != "Z":
        words.append(f"{size} grey pages taken as slices")
    palette = _palette(page) if photometric == 3 and not labels else None
    dtype = _static(page.dtype) if palette is None else palette.dtype
    return _Plan(path, planes, kind, photometric, alpha, channels, dtype, labels, palette), words


def _palette(page: Any) -> NDArray[np.uint8]:
    """(3, 2**bits), from the file's 16 bits; some writers store 8."""
    table = np.asarray(page.colormap)
    return (table >> 8 if table.max(initial=0) > 255 else table).astype(np.uint8)


def _static(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The kept type for every value that `dtype` can have."""
    if dtype.name in _values.KEPT:
        return dtype.newbyteorder("=")
    return np.dtype({"bool": "uint8", "int8": "int16"}.get(dtype.name, "float32"))


def _names(file: Any, photometric: int, samples: int, planes: int, labels: bool) -> tuple[str, ...]:
    if photometric in (2, 6) and samples >= 3:
        return RGB + tuple(str(i) for i in range(3, samples))
    if photometric == 3 and not labels:
        return RGB
    count = samples * planes
    if file.is_ome:
        named = re.findall(r"<Channel\b[^>]*?\bName=\"([^\"]+)\"", file.ome_metadata or "")
        if len(named) == count and len(set(named)) == count:
            return tuple(named)
    return ("grey",) if count == 1 else tuple(str(i) for i in range(count))


def inspect(path: Path) -> dict[str, Any]:
    """What the first page's tags say, and the range of values of its upper left part."""
    scan = read(path)
    with _opened(path) as file, quiet():
        page = file.series[0].keyframe
        values, _ = scan.read((0,) * len(scan.shape), tuple(min(n, 1024) for n in scan.shape))
        return {
            "format": "bigtiff" if file.is_bigtiff else "tiff",
            "written by": next((k for k in ("svs", "ome", "imagej") if getattr(file, f"is_{k}")), "other"),
            "kind": scan.kind,
            "size": list(scan.shape),
            "frames": len(file.series[0].pages),
            "levels": len(file.series[0].levels),
            "channels": len(scan.channels),
            "dtype": page.dtype.name,
            "bits": int(np.max(page.bitspersample)),
            "compression": page.compression.name.lower(),
            "blocks": [page.tilelength, page.tilewidth] if page.is_tiled else [page.rowsperstrip, page.imagewidth],
            "photometric interpretation": page.photometric.name.lower(),
            "spacing mm": list(scan.meta.spacing) if scan.meta.spacing else None,
            "orientation stored": "down right",
            "orientation": "down right",
            "range": [float(values.min()), float(values.max())],
            "lossy": scan.lossy,
            "notes": list(scan.meta.applied),
        }
