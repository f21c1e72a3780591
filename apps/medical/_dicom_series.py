"""A folder that holds one DICOM series, and what `inspect` says of DICOM."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from apps.medical import _dicom, _dicom_pixels, _grid
from apps.medical import _dicom_geometry as geometry
from apps.medical._scan import Scan, bounded, finite, quiet
from core.errors import FileError

_ALIKE = ("Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated", "PixelRepresentation")


@quiet()
def read(folder: Path, files: Sequence[Path]) -> Scan:
    """The volume of one series, slices sorted along their normal, in canonical order.

    Localisers and files without a picture are left out and said. Raises FileError, which names what does not fit.
    """
    kept, applied = _images(folder, files)
    _one_series(folder, [d for _, d in kept])
    if len(kept) == 1:
        one = _dicom.read(kept[0][0])
        return _renamed(one, folder, applied)
    if any(int(d.get("NumberOfFrames") or 1) > 1 for _, d in kept):
        raise FileError(folder, f"{len(kept)} files of which some hold many frames", "name the files one by one")
    first = kept[0][1]
    for key in _ALIKE:
        counts = Counter(str(d.get(key)) for _, d in kept)
        if len(counts) > 1:
            what = "size" if key in ("Rows", "Columns") else key
            seen = " and ".join(f"{v} ({n} images)" for v, n in counts.most_common(2))
            raise FileError(folder, f"mixed {what}: {key} is {seen}", "keep one series in a folder")
    found = [_dicom.frame_place(d, 0) for _, d in kept]
    places = [p for p in found if p is not None]
    if len(places) < len(kept):
        raise FileError(
            folder,
            f"{len(kept) - len(places)} of its {len(kept)} images do not say where they lie "
            "(ImagePositionPatient, ImageOrientationPatient, PixelSpacing)",
            "name single images one by one",
        )
    order, affine, words = geometry.stack(folder, places)
    applied += words
    kept = [kept[i] for i in order]
    kind = np.dtype(f"u{max(1, int(first.get('BitsAllocated', 16)) // 8)}")
    samples = int(first.get("SamplesPerPixel", 1) or 1)
    bounded(folder, len(kept) * int(first.Rows) * int(first.Columns) * samples, kind)
    stored: Any = None
    for i, (path, _) in enumerate(kept):
        dataset = _dicom.opened(path)
        _dicom.refuse(path, dataset)
        frame = next(_dicom_pixels.frames(path, dataset))
        if stored is None:
            stored = np.empty((len(kept), *frame.shape), frame.dtype)
        stored[i] = frame
    values, valid, words = _dicom_pixels.values(folder, kept[0][1], stored, [_dicom.scale(d) for _, d in kept])
    applied += words
    values, valid, words = finite(folder, values, valid)
    applied += words
    channels = _dicom_pixels.RGB if values.shape[0] == 3 else ("grey",)
    grid = _grid.oriented(tuple(values.shape[1:]), affine, files=tuple(str(p) for p, _ in kept))
    return _dicom.scan(folder, first, values, valid, grid, "volume", channels, applied)


def _renamed(one: Scan, folder: Path, applied: list[str]) -> Scan:
    from dataclasses import replace

    return replace(one, meta=replace(one.meta, path=str(folder), applied=(*applied, *one.meta.applied)))


def _images(folder: Path, files: Sequence[Path]) -> tuple[list[tuple[Path, Any]], list[str]]:
    """Files with a picture and their headers, localisers left out, and sentences about what was left out."""
    headers = [(p, _dicom.opened(p, pixels=False)) for p in files]
    for path, dataset in headers:
        if len(headers) == 1:
            _dicom.refuse(path, dataset, pixels=False)
    pictures = [(p, d) for p, d in headers if d.get("Rows") and d.get("Columns")]
    if not pictures:
        raise FileError(folder, f"none of its {len(files)} DICOM files holds a picture", "name a folder of images")
    words = []
    if len(pictures) < len(headers):
        words.append(f"{len(headers) - len(pictures)} files without a picture left out")
    scout = [(p, d) for p, d in pictures if "LOCALIZER" in [str(t).upper() for t in d.get("ImageType") or []]]
    if scout and len(scout) < len(pictures):
        words.append(f"{len(scout)} localisers left out")
        names = {p for p, _ in scout}
        pictures = [(p, d) for p, d in pictures if p not in names]
    return pictures, words


def _one_series(folder: Path, datasets: Sequence[Any]) -> None:
    counts = Counter(str(d.get("SeriesInstanceUID", "")) for d in datasets)
    if len(counts) > 1:
        sizes = " and ".join(str(n) for n in sorted(counts.values(), reverse=True)[:4])
        raise FileError(
            folder, f"holds {len(counts)} DICOM series (of {sizes} images)", "put each series into a folder of its own"
        )


@quiet()
def inspect(path: Path, files: Sequence[Path] = ()) -> dict[str, Any]:
    """What the header says of the picture, nothing of the patient; of a folder the first image and their number."""
    from pydicom.uid import UID

    skipped: list[str] = []
    if files:
        kept, skipped = _images(path, files)
        first = kept[0][0]
    else:
        first = path
    dataset = _dicom.opened(first)
    _dicom.refuse(first, dataset)
    spacing, words = _dicom.pixel_spacing(dataset)
    place = _dicom.frame_place(dataset, 0)
    stored = next(_dicom_pixels.frames(first, dataset))
    slope, intercept = _dicom.scale(dataset)
    about = {
        "format": "dicom",
        "modality": _dicom.modality(dataset),
        "kind": UID(str(dataset.get("SOPClassUID", ""))).name if dataset.get("SOPClassUID") else "unknown",
        "size": [int(dataset.Rows), int(dataset.Columns)],
        "frames": int(dataset.get("NumberOfFrames") or 1),
        "channels": 3 if _dicom_pixels.coloured(dataset) else 1,
        "dtype": stored.dtype.name,
        "bits": int(dataset.get("BitsStored", 0) or 0),
        "spacing mm": list(spacing) if spacing else None,
        "orientation stored": _side(place),
        "orientation": _grid.CANONICAL if files and place else "as stored",
        "range": [float(stored.min()), float(stored.max())],
        "photometric interpretation": str(dataset.get("PhotometricInterpretation", "")),
        "transfer syntax": UID(_dicom_pixels.syntax(dataset)).name,
        "slope": slope,
        "intercept": intercept,
        "rate": _dicom.frame_rate(dataset),
        "lossy": _dicom_pixels.lossy(dataset),
        "notes": [*skipped, *words],
    }
    return about | ({"files": len(files)} if files else {})


def _side(place: Any) -> str:
    if place is None:
        return "unknown"
    _, affine, _ = geometry.stack(Path(), [place], 1.0)
    return _grid.letters(affine)
