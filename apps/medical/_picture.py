"""PNG, JPEG and BMP pictures: 8 and 16 bits, grey, colour, palette, alpha, EXIF orientation."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apps.medical import _grid
from apps.medical._dicom_pixels import RGB
from apps.medical._nifti import stem
from apps.medical._scan import Scan, bounded, held
from core.data.sample import Meta
from core.errors import FileError, MissingExtraError
from core.streaming.decode import Decoded, decode

_OTHER = ("YCbCr", "LAB", "HSV", "La", "RGBa", "RGBX")
_TURNED = {2: "mirrored", 3: "turned by 180 degrees", 4: "mirrored and turned by 180 degrees", 5: "mirrored and turned",
           6: "turned by 90 degrees", 7: "mirrored and turned", 8: "turned by 270 degrees"}  # fmt: skip
_EXIF_ORIENTATION = 0x0112


def _opened(path: Path) -> Any:
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise MissingExtraError("Pillow", "medical") from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return Image.open(path)
    except Image.DecompressionBombError:
        raise FileError(path, "has too many pixels to be read whole", "save it as tiled TIFF") from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError):
        raise FileError(path, "a damaged or cut-off picture: its header cannot be read", "export it again") from None


def read(path: Path, *, format: str, labels: bool = False) -> Scan:
    """The picture upright, colours as red, green, blue; alpha 0 is invalid. Raises FileError.

    With `labels` the numbers as stored: a palette's indices, no alpha.
    """
    with _opened(path) as picture:
        bounded(path, picture.width * picture.height * max(3, len(picture.getbands())), np.dtype(np.uint8))
        if picture.mode in _OTHER:
            raise FileError(path, f"its colours are {picture.mode}", "save it as grey or RGB")
        pixels = picture.width * picture.height
    try:
        found = decode(path, indices=labels, max_pixels=pixels)
    except FileError:
        raise FileError(path, "a cut-off or damaged picture", "export it again") from None
    values, valid, words = _values(path, found, labels)
    lossy = format == "jpeg"
    if lossy:
        words.append("stored with lossy compression (JPEG)")
    channels = RGB if len(values) == 3 else ("grey",)
    grid = _grid.Grid(tuple(values.shape[1:]))
    meta = Meta(path=str(path), id=stem(path), orientation="down right", channels=channels, applied=tuple(words))
    return Scan(
        grid.shape,
        channels,
        values.dtype,
        meta,
        grid,
        "picture",
        format,
        held(np.ascontiguousarray(values), valid),
        lossy,
    )


def _values(path: Path, found: Decoded, labels: bool) -> tuple[NDArray[Any], NDArray[np.bool_] | None, list[str]]:
    """(C, Y, X), valid (Y, X) or None, and what was done."""
    values, words = np.moveaxis(found.values, -1, 0), []
    if found.mode in ("P", "PA") and not labels:
        words.append("palette colours converted to RGB")
    elif found.mode == "CMYK":
        how = "by its" if any("profile" in w for w in found.applied) else "without a"
        words.append(f"CMYK converted to RGB {how} colour profile")
    elif found.mode == "1":
        values = values.astype(np.uint8) * np.uint8(1 if labels else 255)
    elif found.bits == 16 and len(values) == 3:
        words.append("16 bits per colour")
    valid = None
    if found.alpha is not None and not labels:
        valid = found.alpha > 0
        words.append(f"alpha dropped; {int((~valid).sum()):,} transparent pixels marked invalid")
        if not valid.any():
            raise FileError(path, "every pixel is transparent", "save it without alpha")
        values = np.where(valid, values, values.dtype.type(0))
        valid = None if valid.all() else valid
    if found.frames > 1:
        words.append(f"the first of {found.frames} pictures in the file")
    if found.turn in _TURNED:
        words.append(f"{_TURNED[found.turn]} as EXIF orientation {found.turn} says")
    return values, valid, words


def inspect(path: Path, *, format: str) -> dict[str, Any]:
    """What the header says, and the range of values."""
    with _opened(path) as picture:
        mode, size, dpi = picture.mode, [picture.height, picture.width], picture.info.get("dpi")
        turn = int(picture.getexif().get(_EXIF_ORIENTATION, 1) or 1)
    scan = read(path, format=format)
    values, _ = scan.array()
    return {
        "format": format,
        "size": size,
        "frames": 1,
        "channels": len(scan.channels),
        "dtype": scan.dtype.name,
        "bits": 8 * scan.dtype.itemsize,
        "mode": mode,
        "spacing mm": None,
        "dots per inch": [float(d) for d in dpi] if dpi else None,
        "exif orientation": turn,
        "orientation stored": "as EXIF says" if turn in _TURNED else "down right",
        "orientation": "down right",
        "range": [float(values.min()), float(values.max())],
        "lossy": scan.lossy,
        "notes": list(scan.meta.applied),
    }
