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

_GREY = {"1": "uint8", "L": "uint8", "LA": "uint8", "I;16": "uint16", "I;16B": "uint16", "I": "int32", "F": "float32"}
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
        values, valid, applied = _decoded(path, picture, format, labels)
        turn = int(picture.getexif().get(_EXIF_ORIENTATION, 1) or 1)  # after decoding: a PNG is read to its end for it
        many = getattr(picture, "n_frames", 1)
    if many > 1:
        applied.append(f"the first of {many} pictures in the file")
    if turn in _TURNED:
        values = _upright(values, turn)
        valid = None if valid is None else _upright(valid, turn)
        applied.append(f"{_TURNED[turn]} as EXIF orientation {turn} says")
    lossy = format == "jpeg"
    if lossy:
        applied.append("stored with lossy compression (JPEG)")
    channels = RGB if len(values) == 3 else ("grey",)
    grid = _grid.Grid(tuple(values.shape[1:]))
    meta = Meta(path=str(path), id=stem(path), orientation="down right", channels=channels, applied=tuple(applied))
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


def _decoded(
    path: Path, picture: Any, format: str, labels: bool
) -> tuple[NDArray[Any], NDArray[np.bool_] | None, list[str]]:
    """(C, Y, X) as stored, valid (Y, X) or None, and what was done."""
    mode, words = picture.mode, []
    try:
        if format == "png" and mode in ("RGB", "RGBA") and _png_bits(path) == 16:
            values = _png16(path)
            words.append("16 bits per colour")
        elif mode == "P" and labels:
            values = np.asarray(picture)[None]
        elif mode in ("P", "PA"):
            alpha = mode == "PA" or "transparency" in picture.info
            values = np.moveaxis(np.asarray(picture.convert("RGBA" if alpha else "RGB")), -1, 0)
            words.append("palette colours converted to RGB")
        elif mode == "CMYK":
            values = np.moveaxis(np.asarray(picture.convert("RGB")), -1, 0)
            words.append("CMYK converted to RGB without a colour profile")
        elif mode in ("RGB", "RGBA", "LA"):
            see_through = mode == "RGB" and "transparency" in picture.info
            values = np.moveaxis(np.asarray(picture.convert("RGBA") if see_through else picture), -1, 0)
        elif mode in _GREY:
            values = np.asarray(picture)[None].astype(_GREY[mode])
            values = values * 255 if mode == "1" and not labels else values
        else:
            raise FileError(path, f"its colours are {mode}", "save it as grey or RGB")
    except FileError:
        raise
    except (OSError, SyntaxError, ValueError, RuntimeError):
        raise FileError(path, "a cut-off or damaged picture", "export it again") from None
    valid = None
    if len(values) in (2, 4):
        values, alpha_values = values[:-1], values[-1]
        if not labels:
            valid = alpha_values > 0
            words.append(f"alpha dropped; {int((~valid).sum()):,} transparent pixels marked invalid")
            if not valid.any():
                raise FileError(path, "every pixel is transparent", "save it without alpha")
            values = np.where(valid, values, values.dtype.type(0))
            valid = None if valid.all() else valid
    return values, valid, words


def _upright(values: NDArray[Any], turn: int) -> NDArray[Any]:
    """(..., Y, X) as EXIF orientation `turn` (2 to 8) wants it shown."""
    if turn >= 5:
        values = values.swapaxes(-1, -2)
    down = turn in (3, 4, 7, 8)
    right = turn in (2, 3, 6, 7)
    return values[..., :: -1 if down else 1, :: -1 if right else 1]


def _png_bits(path: Path) -> int:
    with path.open("rb") as file:
        return file.read(25)[24]  # IHDR comes first; its ninth byte is the bit depth


def _png16(path: Path) -> NDArray[np.uint16]:
    """(C, Y, X) of a 16-bit colour PNG, which Pillow would cut to 8 bits."""
    from torchvision.io import ImageReadMode, decode_image, read_file

    return np.asarray(decode_image(read_file(str(path)), ImageReadMode.UNCHANGED).numpy()).astype(np.uint16)


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
