"""NIfTI files (.nii, .nii.gz): 3-D, 2-D, and 4-D with one volume or channels in the last axis."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
from numpy.typing import NDArray

from apps.medical import _grid, _values
from apps.medical._scan import Scan, bounded, finite, held
from core.data.sample import Meta
from core.errors import FileError, MissingExtraError

AGAIN = "copy or export it again"
_MM = {"meter": 1000.0, "micron": 1e-3}
_TEXTS = ("descrip", "aux_file", "db_name", "data_type", "intent_name")  # free texts, in which names were found


@dataclass(frozen=True)
class _World:
    """Where the header puts the array: millimetres RAS+, which form says so, and what was odd about it."""

    affine: NDArray[np.floating[Any]] | None
    spacing: tuple[float, ...] | None
    form: str
    words: tuple[str, ...]


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, IO[bytes]]]:
    """The nibabel image whose data still lie in the file, and its stream. Raises FileError for a damaged file."""
    try:
        import nibabel as nib
        from nibabel.filebasedimages import ImageFileError
        from nibabel.imageglobals import LoggingOutputSuppressor
        from nibabel.spatialimages import HeaderDataError
    except ImportError:
        raise MissingExtraError("nibabel", "medical") from None
    with path.open("rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        stream = cast(IO[bytes], gzip.GzipFile(fileobj=raw) if packed else raw)
        try:
            start = stream.read(4)
            stream.seek(0)
            two = int.from_bytes(start, "little") == 540 or int.from_bytes(start, "big") == 540
            with LoggingOutputSuppressor():
                image = (nib.Nifti2Image if two else nib.Nifti1Image).from_stream(cast(Any, stream))
            _whole(path, image, None if packed else path.stat().st_size)
            yield image, stream
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise FileError(path, f"damaged or cut off: its gzip stream does not end well ({error})", AGAIN) from None
        except (ImageFileError, HeaderDataError, ValueError, OSError, OverflowError) as error:
            if isinstance(error, FileError):
                raise
            raise FileError(path, f"not a NIfTI file that can be read ({_first(error)})", AGAIN) from None


def _first(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:120]


def _whole(path: Path, image: Any, size: int | None) -> None:
    shape, dtype = image.shape, image.get_data_dtype()
    if not shape or min(shape) < 1:
        raise FileError(path, f"its header states the size {_grid.sizes(shape)}", AGAIN)
    count = int(np.prod([int(n) for n in shape], dtype=object))
    bounded(path, count, np.dtype(np.float64 if dtype.names else dtype))
    wanted = int(image.dataobj.offset) + count * dtype.itemsize
    if size is not None and size < wanted:
        raise FileError(path, f"cut off: {size:,} bytes, {wanted:,} expected", AGAIN)


def read(path: Path) -> Scan:
    """The file as a volume in canonical order; NaN and Inf become invalid. Raises FileError."""
    with _opened(path) as (image, stream):
        stored = np.asanyarray(image.dataobj.get_unscaled())
        for _ in range(64):  # to the end, where gzip keeps its checksum; what follows the image is not used
            if not stream.read(1 << 20):
                break
        header, slope, inter = image.header, image.dataobj.slope, image.dataobj.inter
        world = _world(image)
    values, channels = _channels(path, stored)
    applied = list(world.words)
    if (slope, inter) != (1, 0):
        applied.append(f"rescaled by slope {_values.number(slope)} and intercept {_values.number(inter)}")
    values = _values.rescaled(values, float(slope), float(inter))
    values, valid, words = finite(path, values, None)
    applied += words
    clean = header.copy()
    for text in _TEXTS:
        if text in clean.keys():  # NIfTI-2 has fewer  # noqa: SIM118 - a header's `in` looks at values
            clean[text] = b""
    clean.extensions.clear()
    grid = _placed(values.shape[1:], world, clean.binaryblock)
    if grid.order != (0, 1, 2) or any(grid.flips):
        runs = f"from {_grid.letters(world.affine)}" if world.affine is not None else "slice, row, column for i, j, k"
        applied.append(f"axes reordered {runs}" + (f" to {_grid.CANONICAL}" if world.affine is not None else ""))
    values = np.ascontiguousarray(grid.canonical(values))
    valid = None if valid is None else np.ascontiguousarray(grid.canonical(valid))
    affine = grid.canonical_affine
    spacing = world.spacing and tuple(world.spacing[a] for a in grid.order)
    meta = Meta(
        path=str(path),
        id=stem(path),
        spacing=_grid.spacing(affine) if affine is not None else spacing,
        affine=affine,
        orientation=_grid.CANONICAL if affine is not None else "",
        channels=channels,
        applied=tuple(applied),
    )
    shape = tuple(values.shape[1:])
    return Scan(shape, channels, values.dtype, meta, grid, "volume", "nifti", held(values, valid))


def _placed(shape: tuple[int, ...], world: _World, header: bytes) -> _grid.Grid:
    if world.affine is not None:
        return _grid.oriented(shape, world.affine, header=header)
    return _grid.Grid(shape, None, (2, 1, 0), (False, False, False), header)


def _channels(path: Path, stored: NDArray[Any]) -> tuple[NDArray[Any], tuple[str, ...]]:
    """(C, i, j, k) and the channels' names."""
    if stored.dtype.names:  # RGB24 and RGBA32
        stored = np.stack([stored[n] for n in stored.dtype.names[:3]], -1)
        names: tuple[str, ...] = ("red", "green", "blue")
        if stored.ndim != 4:
            raise FileError(path, "holds a series of colour volumes", "split it into single volumes")
        return np.moveaxis(stored, -1, 0), names
    if stored.dtype.kind not in "iuf":
        raise FileError(path, f"holds {stored.dtype.name} values", "convert them to magnitude")
    if stored.ndim < 2:
        raise FileError(path, "holds one row of numbers", "a picture or a volume is expected")
    while stored.ndim > 3 and stored.shape[-1] == 1:
        stored = stored[..., 0]
    if stored.ndim == 5 and stored.shape[3] == 1:
        stored = stored[:, :, :, 0]
    if stored.ndim > 4:
        raise FileError(path, f"holds {stored.ndim} axes ({_grid.sizes(stored.shape)})", "split it into volumes")
    stored = stored[:, :, None] if stored.ndim == 2 else stored
    if stored.ndim == 3:
        return stored[None], ("grey",)
    return np.moveaxis(stored, -1, 0), tuple(str(i) for i in range(stored.shape[-1]))


def _world(image: Any) -> _World:
    header = image.header
    unit = header.get_xyzt_units()[0]
    scale = _MM.get(unit, 1.0)
    words = [f"{unit} converted to millimetres"] if scale != 1 else []
    zooms = np.array([float(z) for z in header["pixdim"][1:4]]) * scale
    if header["dim"][0] == 2 and not zooms[2] > 0:
        zooms[2] = 1.0
    spacing = tuple(zooms.tolist()) if np.isfinite(zooms).all() and (zooms > 0).all() else None
    forms: dict[str, NDArray[np.floating[Any]]] = {}
    for name, code in (("sform", header["sform_code"]), ("qform", header["qform_code"])):
        try:
            affine: NDArray[np.floating[Any]] = np.array(getattr(header, f"get_{name}")(), np.float64)
        except (ValueError, np.linalg.LinAlgError):
            affine = np.full((4, 4), np.nan)
        if code <= 0:
            continue
        if np.isfinite(affine).all() and abs(np.linalg.det(affine[:3, :3])) > 1e-12:
            affine[:3] *= scale
            forms[name] = affine
        else:
            words.append(f"{name} cannot be used (not invertible)")
    if not forms:
        words.append("no usable sform or qform: orientation unknown, spacing from pixdim")
        return _World(None, spacing, "none", tuple(words))
    form = next(iter(forms))
    if len(forms) == 2 and np.abs(forms["sform"] - forms["qform"]).max() > 0.01:
        words.append("sform and qform differ; sform used")
    affine = forms[form]
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    if np.abs(axes.T @ axes - np.eye(3)).max() > 1e-2:
        words.append("axes are not at right angles to one another")
    return _World(affine, spacing, form, tuple(words))


def stem(path: Path) -> str:
    """The name without .nii.gz, .ome.tif or another suffix."""
    name = path.name
    for end in (".nii.gz", ".ome.tif", ".ome.tiff", ".tar.gz"):
        if name.lower().endswith(end):
            return name[: -len(end)]
    return path.stem


def inspect(path: Path) -> dict[str, Any]:
    """What the header says and the range of a few slices' values."""
    with _opened(path) as (image, _):
        header, world = image.header, _world(image)
        shape, dtype = image.shape, image.get_data_dtype()
        slope, inter = image.dataobj.slope, image.dataobj.inter
        part = np.asanyarray(image.dataobj[..., : max(1, 2**22 // max(1, int(np.prod(shape[:-1]))))])
        endian = "big" if header.endianness == ">" else "little"
    return {
        "format": "nifti",
        "version": 2 if header.sizeof_hdr == 540 else 1,
        "size": list(shape),
        "channels": 3 if dtype.names else shape[3] if len(shape) > 3 else 1,
        "dtype": "rgb" if dtype.names else dtype.name,
        "byte order": endian,
        "spacing mm": list(_grid.spacing(_grid.rows(world.affine)) if world.affine is not None else world.spacing or [])
        or None,
        "orientation stored": _grid.letters(world.affine) if world.affine is not None else "unknown",
        "orientation": _grid.CANONICAL if world.affine is not None else "as stored",
        "affine from": world.form,
        "slope": float(slope),
        "intercept": float(inter),
        "range": _range(part),
        "lossy": False,
        "notes": list(world.words),
    }


def _range(part: NDArray[Any]) -> list[float] | None:
    if part.dtype.names or part.dtype.kind not in "iufb":
        return None
    good = part[np.isfinite(part)] if part.dtype.kind == "f" else part
    return [float(good.min()), float(good.max())] if good.size else None
