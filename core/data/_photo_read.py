"""What a photograph's file holds, brought to the few kinds of values that a photograph may have."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.data import _exif, _profiles
from core.errors import FileError
from core.streaming.decode import Decoded, decode

_HEADS = {b"\xff\xd8\xff": "JPEG", b"\x89PNG": "PNG", b"BM": "BMP", b"GIF8": "GIF"}
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def stored(path: Path, max_pixels: int) -> Decoded:
    """A file of one of the formats, decoded and upright. FileError as `core.data.photos.read`."""
    if path.is_dir():
        raise FileError(path, "is a folder", "give a file")
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except FileNotFoundError:
        raise FileError(path, "no such file", "give the path of a photograph") from None
    except OSError as error:
        raise FileError(path, f"cannot be read ({(error.strerror or 'input error').lower()})", "check it") from None
    if not head:
        raise FileError(path, "is empty", "get the file again")
    kind = next((name for mark, name in _HEADS.items() if head.startswith(mark)), "")
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        kind = "WEBP"
    if head[:4] in _TIFF:
        from core.data import _photo_tiff

        return _photo_tiff.read(path, max_pixels)
    if not kind:
        raise FileError(path, "is none of JPEG, PNG, TIFF, WebP, BMP and GIF", "convert it to one of these")
    return decode(path, max_pixels=max_pixels, formats=(kind, "MPO") if kind == "JPEG" else (kind,))


def converted(path: Path, found: Decoded, *, colour: bool) -> Decoded:
    """The same as 8 or 16 bits or float32, in sRGB, of 1 or 3 channels, with the EXIF block as it is to be written."""
    values, applied = found.values, list(found.applied)
    if values.shape[2] not in (1, 3):
        raise FileError(path, f"has {values.shape[2]} channels", "give grey or RGB")
    values = _kind(path, values, applied)
    alpha = None if found.alpha is None else _kind(path, found.alpha, [])
    icc = None if found.mode == "CMYK" else found.icc  # pixels are RGB now
    if icc:
        profile = _profiles.profile(icc, values.shape[2])
        if not profile.fits:
            applied.append(f"profile ({profile.name}) left out: it is for other channels or cannot be read")
            icc = None
        elif not profile.usable:
            applied.append(f"profile ({profile.name}) kept but not applied: it goes one way only")
        elif not profile.same:
            values = profile.to_srgb(values)
            how = "" if profile.exact or values.dtype == np.uint8 else ", interpolated between 8-bit values"
            applied.append(f"converted from its profile ({profile.name}) to sRGB{how}")
    if colour and values.shape[2] == 1:
        values = np.repeat(values, 3, axis=2)
        applied.append("grey values repeated as red, green and blue")
    exif = _exif.upright(found.exif, swapped=found.turn in range(5, 9)) if found.exif else None
    values = np.ascontiguousarray(values)
    return replace(found, values=values, alpha=alpha, applied=tuple(applied), icc=icc, exif=exif)


def _kind(path: Path, values: NDArray[Any], applied: list[str]) -> NDArray[Any]:
    """8 or 16 bits or float32."""
    kind = values.dtype
    if kind.kind == "b" or (values.dtype == np.uint8 and "one bit a pixel: 0 and 1" in applied):
        return values.astype(np.uint8) * np.uint8(255)
    if kind in (np.uint8, np.uint16):
        return values.astype(kind.newbyteorder("="), copy=False)
    if kind.kind != "f":
        raise FileError(path, f"holds {kind} values", "save it with 8 or 16 bits")
    if not (values.min() >= 0 and values.max() <= 1):  # false for NaN, too
        raise FileError(path, "holds floats that are not all from 0 to 1", "scale it, or save it with 8 or 16 bits")
    return values.astype(np.float32, copy=False)
