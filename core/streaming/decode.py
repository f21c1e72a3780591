"""Decoding of pictures that Pillow knows, and of 16-bit colour PNG, which it would cut to 8 bits."""

from __future__ import annotations

import struct
import warnings
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from core.errors import FileError, InputError, MissingExtraError

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_PIXELS = 178_956_970  # from here Pillow itself suspects a decompression bomb
_ALPHA = ("LA", "La", "PA", "RGBA", "RGBa")


@dataclass(frozen=True)
class Decoded:
    """A picture as its file has it, upright.

    Attributes:
        values: (rows, columns, C), C = 1 or 3: uint8, uint16, int32 or float32.
        alpha: (rows, columns) of the same type (a bool for one bit), or None.
        applied: what was done, in words.
        format: "PNG", "JPEG" ...
        mode: Pillow's name of how the pixels are stored.
        bits: of one value as stored.
        turn: EXIF orientation as stored; values are turned already.
        frames: pictures in the file; the first is read.
        icc, exif: these blocks as stored, or None.
        dpi: pixels an inch, across and down, or None.
    """

    values: NDArray[Any]
    alpha: NDArray[Any] | None
    applied: tuple[str, ...]
    format: str
    mode: str
    bits: int
    turn: int = 1
    frames: int = 1
    icc: bytes | None = None
    exif: bytes | None = None
    dpi: tuple[float, float] | None = None


def decode(
    path: Path, *, indices: bool = False, max_pixels: int = MAX_PIXELS, formats: tuple[str, ...] | None = None
) -> Decoded:
    """Decode a file that Pillow knows; `formats` are the only ones tried. Sizes are looked at before decoding.

    Raises FileError for a file that is missing, empty, damaged, cut short or of more than `max_pixels`.
    """
    import_pillow()
    from PIL import Image, UnidentifiedImageError

    if not path.is_file():
        raise FileError(path, "no such file", "give the path of a picture")
    if not path.stat().st_size:
        raise FileError(path, "is empty", "get the file again")
    applied: list[str] = []
    try:
        with _opened(path, formats) as picture:
            if picture.width * picture.height > max_pixels:
                raise Image.DecompressionBombError
            frames = getattr(picture, "n_frames", 1)
            if frames > 1:
                applied.append(f"first of {frames} frames read")
            turn = _orientation(picture)
            deep = _deep_colour(path, picture)
            values, alpha = _deep(path, picture) if deep else _plain(picture, indices, applied)
            info = picture.info
            found = Decoded(
                values,
                alpha,
                (),
                {"MPO": "JPEG"}.get(picture.format or "", picture.format or ""),
                picture.mode,
                16 if deep else _bits(picture.mode),
                turn,
                frames,
                _block(info.get("icc_profile")),
                _block(info.get("exif")),
                _resolution(info.get("dpi")),
            )
    except Image.DecompressionBombError:
        raise FileError(path, f"has more than {max_pixels:,} pixels", "convert it to a tiled TIFF") from None
    except UnidentifiedImageError:
        raise FileError(path, "is not a picture that can be read", "give PNG, JPEG or TIFF") from None
    except (OSError, SyntaxError, ValueError, EOFError, RuntimeError, struct.error, zlib.error) as error:
        if isinstance(error, InputError):
            raise
        raise FileError(path, "is damaged or cut short", "get the file again") from None
    if turn in range(2, 9):
        applied.append(f"turned as EXIF orientation {turn} says")
        values = turned(values, turn)
        alpha = None if alpha is None else turned(alpha, turn)
    return replace(found, values=values, alpha=alpha, applied=tuple(applied))


def _opened(path: Path, formats: tuple[str, ...] | None) -> Image:
    """Pillow's warnings are left out: of large pictures, whose limit is ours, and of EXIF that is damaged."""
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        warnings.simplefilter("ignore", UserWarning)
        return Image.open(path, formats=formats)


def _orientation(picture: Image) -> int:
    """As EXIF says; 1 where it is damaged, which is no reason to refuse the picture."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            return int(picture.getexif().get(0x0112, 1) or 1)
    except (OSError, SyntaxError, ValueError, TypeError, KeyError, EOFError, struct.error):
        return 1  # decoding says whether it is more than EXIF


def _plain(picture: Image, indices: bool, applied: list[str]) -> tuple[NDArray[Any], NDArray[Any] | None]:
    mode, key = picture.mode, picture.info.get("transparency")
    if mode == "P" and indices:
        applied.append("palette numbers read")
        return np.asarray(picture)[..., None], None
    if mode in ("P", "PA"):
        applied.append("palette applied")
    elif mode == "CMYK":
        picture, words = _from_cmyk(picture)
        applied.append(words)
    elif mode in ("YCbCr", "LAB", "HSV"):
        applied.append(f"{mode} converted to RGB")
    if mode in ("1", "I", "I;16", "I;16B", "F") and key is not None:  # one value, which Pillow would convert to 8 bits
        array = _grey(picture)
        return array[..., None], np.where(array == key, 0, _top(array.dtype)).astype(array.dtype)
    if mode in _ALPHA or key is not None:
        both = np.asarray(picture.convert("LA" if mode in ("L", "LA", "La") else "RGBA"))
        return both[..., :-1], both[..., -1]
    if mode in ("P", "YCbCr", "LAB", "HSV", "RGBX"):
        picture = picture.convert("RGB")
    if mode == "1":
        applied.append("one bit a pixel: 0 and 1")
    array = _grey(picture) if len(picture.getbands()) == 1 else np.asarray(picture)
    return array if array.ndim == 3 else array[..., None], None


def _grey(picture: Image) -> NDArray[Any]:
    array = np.asarray(picture)
    return array.astype(np.uint16) if picture.mode == "I" and picture.format == "PNG" else array  # PNG has no more


def _top(kind: np.dtype[Any]) -> int:
    return int(np.iinfo(kind).max) if kind.kind in "ui" else 1


def _bits(mode: str) -> int:
    return {"1": 1, "I": 32, "F": 32}.get(mode, 16 if mode.startswith("I;16") else 8)


def _from_cmyk(picture: Image) -> tuple[Image, str]:
    """Adobe's inverted values are put right by Pillow."""
    from core.data import _profiles

    data = _block(picture.info.get("icc_profile"))
    converted = _profiles.cmyk_to_srgb(picture, data) if data else None
    if converted is None or data is None:
        return picture.convert("RGB"), "CMYK converted to RGB"
    return converted, f"CMYK converted to sRGB by its profile ({_profiles.described(data)[0]})"


def _block(data: object) -> bytes | None:
    return data if isinstance(data, bytes) and data else None


def _resolution(dpi: object) -> tuple[float, float] | None:
    """Pixels an inch where a file states something that can be."""
    try:
        across, down = (float(d) for d in dpi)  # type: ignore[attr-defined]
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    return (across, down) if 1 <= across <= 1e5 and 1 <= down <= 1e5 else None


def _deep_colour(path: Path, picture: Image) -> bool:
    """Whether a PNG has 16 bits and more than one channel, which Pillow cuts to 8."""
    if picture.format != "PNG":
        return False
    with path.open("rb") as file:
        head = file.read(26)
    return head[24] == 16 and head[25] in (2, 4, 6)


def _deep(path: Path, picture: Image) -> tuple[NDArray[np.uint16], NDArray[np.uint16] | None]:
    from torchvision.io import ImageReadMode, decode_image, read_file

    planes = decode_image(read_file(str(path)), ImageReadMode.UNCHANGED).numpy()
    values = np.moveaxis(planes, 0, -1)
    if values.shape[2] in (2, 4):
        return values[..., :-1], values[..., -1]
    key = picture.info.get("transparency")
    if key is None:
        return values, None
    return values, np.where((values == np.array(key, np.uint16)).all(-1), 0, 65_535).astype(np.uint16)


def turned(plane: NDArray[Any], orientation: int) -> NDArray[Any]:
    """A plane (rows, columns, ...) as it is to be seen (EXIF 2.32, tag 0x0112)."""
    if orientation in (5, 6, 7, 8):
        plane = plane.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        plane = plane[::-1]
    if orientation in (2, 3, 6, 7):
        plane = plane[:, ::-1]
    return plane


def import_pillow() -> None:
    try:
        import PIL  # noqa: F401
    except ImportError:
        raise MissingExtraError("pillow", "dense") from None
