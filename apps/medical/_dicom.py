"""One DICOM file: a still, a cine loop, or a volume of frames that have a place."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from apps.medical import _dicom_geometry as geometry
from apps.medical import _dicom_identity, _dicom_pixels, _grid
from apps.medical._nifti import stem
from apps.medical._scan import Kind, Scan, bounded, finite, held, quiet
from core.data.sample import Meta
from core.errors import FileError, MissingExtraError

_SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66."
_SLIDE = "1.2.840.10008.5.1.4.1.1.77.1.6"
_DIRECTORY = "1.2.840.10008.1.3.10"


def opened(path: Path, *, pixels: bool = True) -> Any:
    """The pydicom data set of a file, without its pixel data if so asked. Raises FileError for a damaged file."""
    try:
        import pydicom
    except ImportError:
        raise MissingExtraError("pydicom", "medical") from None
    try:
        with quiet():
            dataset = pydicom.dcmread(path, stop_before_pixels=not pixels, force=True)
            list(dataset.items())
    except FileNotFoundError:
        raise FileError(path, "no such file") from None
    except Exception as error:  # many kinds, with texts that may quote the header
        raise FileError(path, f"a damaged or cut-off DICOM file ({type(error).__name__})", "export it again") from None
    return dataset


def refuse(path: Path, dataset: Any, *, pixels: bool = True) -> None:
    """Raise FileError for what is DICOM but no picture, or no picture that is read here."""
    kind = str(dataset.get("SOPClassUID", ""))
    if kind == _DIRECTORY or str(getattr(dataset, "file_meta", {}).get("MediaStorageSOPClassUID", "")) == _DIRECTORY:
        raise FileError(path, "a DICOMDIR, which only lists other files", "name the folder of one series")
    if kind.startswith(_SEGMENTATION):
        raise FileError(path, "a DICOM segmentation or surface, not a scan", "name the scan that it was made of")
    if kind == _SLIDE:
        raise FileError(path, "a whole slide in tiles", "convert it to a tiled TIFF")
    without = pixels and not any(k in dataset for k in _dicom_pixels.PIXELS)
    if without or not dataset.get("Rows") or not dataset.get("Columns"):
        raise FileError(path, f"holds no picture ({modality(dataset)}), or is cut off before it", "name an image")


def modality(dataset: Any) -> str:
    """The modality's code ("MR"), which is two or more letters by the standard."""
    code = str(dataset.get("Modality", ""))
    return code if code.isalnum() and len(code) <= 16 else "DICOM"


@quiet()
def read(path: Path) -> Scan:
    """A still as picture, frames with a place as canonical volume, other frames as frames. Raises FileError."""
    dataset = opened(path)
    refuse(path, dataset)
    count = max(1, int(dataset.get("NumberOfFrames") or 1))
    bits, samples = int(dataset.get("BitsAllocated", 8) or 8), int(dataset.get("SamplesPerPixel", 1) or 1)
    kind_ = np.dtype(f"u{max(1, bits // 8)}") if bits in (1, 8, 16, 32, 64) else np.dtype(np.uint16)
    bounded(path, count * int(dataset.Rows) * int(dataset.Columns) * samples, kind_)
    stored = np.stack(list(_dicom_pixels.frames(path, dataset)))
    scales = [scale(dataset, i) for i in range(count)]
    values, valid, applied = _dicom_pixels.values(path, dataset, stored, scales)
    values, valid, words = finite(path, values, valid, "pixels")
    applied += words
    channels = _dicom_pixels.RGB if values.shape[0] == 3 else ("grey",)
    places = [frame_place(dataset, i) for i in range(count)] if count > 1 else []
    known = [p for p in places if p is not None]
    kind: Kind = "picture" if count == 1 else "frames"
    if count > 1 and len(known) == count and len({p.position for p in known}) > 1:
        kind = "volume"
        order, affine, words = geometry.stack(path, known)
        applied += words
        values, valid = values[:, order], None if valid is None else valid[order]
        grid = _grid.oriented(tuple(values.shape[1:]), affine, files=(str(path),))
    else:
        values, valid = (values[:, 0], None if valid is None else valid[0]) if count == 1 else (values, valid)
        grid = _grid.Grid(tuple(values.shape[1:]), files=(str(path),))
    return scan(path, dataset, values, valid, grid, kind, channels, applied)


def scan(
    path: Path, dataset: Any, values: Any, valid: Any, grid: _grid.Grid, kind: Kind, channels: tuple[str, ...],
    applied: list[str],
) -> Scan:  # fmt: skip
    """A Scan of stored arrays (C, *stored), put into canonical order where the grid has one."""
    affine, rate = grid.canonical_affine, None
    if affine is not None:
        spacing: tuple[float, ...] | None = _grid.spacing(affine)
        if grid.order != (0, 1, 2) or any(grid.flips):
            applied.append(f"axes reordered from {_grid.letters(np.array(grid.affine))} to {_grid.CANONICAL}")
    else:
        spacing, words = pixel_spacing(dataset)
        applied += words
        if kind == "frames":
            rate = frame_rate(dataset)
            spacing = None if spacing is None else (1 / rate if rate else 1.0, *spacing)
    if _dicom_pixels.lossy(dataset):
        applied.append("stored with lossy compression")
    values = np.ascontiguousarray(grid.canonical(values))
    valid = None if valid is None else np.ascontiguousarray(grid.canonical(valid))
    meta = Meta(
        path=str(path),
        id=_dicom_identity.safe_id(dataset, stem(path)),
        group=_dicom_identity.group(dataset),
        spacing=spacing,
        affine=affine,
        rate=rate,
        orientation=_grid.CANONICAL if affine is not None else "",
        channels=channels,
        applied=tuple(applied),
    )
    shape = tuple(values.shape[1:])
    lossy = _dicom_pixels.lossy(dataset)
    return Scan(shape, channels, values.dtype, meta, grid, kind, "dicom", held(values, valid), lossy)


def _macro(dataset: Any, frame: int, sequence: str) -> Any:
    """The first item of a functional group's sequence: the frame's own, else the shared one, else None."""
    own = dataset.get("PerFrameFunctionalGroupsSequence") or []
    shared = dataset.get("SharedFunctionalGroupsSequence") or []
    for groups in ([own[frame]] if frame < len(own) else [], shared[:1]):
        for item in groups:
            if item.get(sequence):
                return item.get(sequence)[0]
    return None


def frame_place(dataset: Any, frame: int) -> geometry.Place | None:
    """Where a frame lies, from its functional groups or else the file's own elements."""
    found = []
    for sequence, key in (
        ("PlanePositionSequence", "ImagePositionPatient"),
        ("PlaneOrientationSequence", "ImageOrientationPatient"),
        ("PixelMeasuresSequence", "PixelSpacing"),
    ):
        item = _macro(dataset, frame, sequence)
        found.append(item.get(key) if item is not None else dataset.get(key))
    return geometry.place(*found)


def scale(dataset: Any, frame: int = 0) -> tuple[float, float]:
    """Slope and intercept of a frame; (1, 0) where the header has none or an unusable one."""
    item = _macro(dataset, frame, "PixelValueTransformationSequence") or dataset
    try:
        slope, intercept = float(item.get("RescaleSlope", 1)), float(item.get("RescaleIntercept", 0))
    except (TypeError, ValueError):
        return 1.0, 0.0
    return (slope, intercept) if math.isfinite(slope * intercept) and slope != 0 else (1.0, 0.0)


def pixel_spacing(dataset: Any) -> tuple[tuple[float, float] | None, list[str]]:
    """Millimetres between rows and columns of a picture, and where they come from if not from PixelSpacing."""
    measures = _macro(dataset, 0, "PixelMeasuresSequence") or dataset
    for key in ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing"):
        try:
            row, column = (float(v) for v in (measures.get(key) or dataset.get(key)))
        except (TypeError, ValueError):
            continue
        if not (math.isfinite(row * column) and min(row, column) > 0):
            continue
        if key != "ImagerPixelSpacing":
            return (row, column), [] if key == "PixelSpacing" else [f"pixel spacing from {key}"]
        try:
            factor = float(dataset.get("EstimatedRadiographicMagnificationFactor", 1) or 1)
        except (TypeError, ValueError):
            factor = 1.0
        factor = factor if factor > 0 else 1.0
        return (row / factor, column / factor), [
            "pixel spacing at the detector" + (f", divided by the magnification {factor:g}" if factor != 1 else "")
        ]
    regions = dataset.get("SequenceOfUltrasoundRegions") or []
    try:
        steps = {
            (abs(float(r.PhysicalDeltaY)) * 10, abs(float(r.PhysicalDeltaX)) * 10)
            for r in regions
            if r.get("PhysicalUnitsXDirection") == 3 == r.get("PhysicalUnitsYDirection")
        }
    except (AttributeError, TypeError, ValueError):
        steps = set()
    if len(steps) == 1 and min(next(iter(steps))) > 0:
        return next(iter(steps)), ["pixel spacing from the ultrasound region"]
    return None, []


def frame_rate(dataset: Any) -> float | None:
    """Frames a second, or None."""
    for key, milliseconds in (("FrameTime", True), ("CineRate", False), ("RecommendedDisplayFrameRate", False)):
        try:
            value = float(dataset.get(key))
        except (TypeError, ValueError):
            continue
        if value > 0:
            return 1000 / value if milliseconds else value
    return None
