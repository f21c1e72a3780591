"""Photographs: read with what a photograph carries, written back with it.

A photograph is a JPEG, PNG, TIFF, WebP, BMP or GIF. Its colours are handed on as sRGB; its ICC profile, its EXIF block,
its resolution and its alpha stay beside them and are written again. EXIF is the owner's: position, serial number and
name stay in a photograph that is saved, and `inspect` prints none of them. Two entries would be wrong afterwards and
are changed: the orientation is 1, and the thumbnail, which shows the old picture, goes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from core.data import _photo_read, _profiles
from core.data.sample import Meta
from core.errors import FileError, InputError, SettingError, ShapeError
from core.files import aside
from core.streaming.decode import MAX_PIXELS

__all__ = ["MAX_PIXELS", "Photo", "as_float", "as_stored", "find", "in_profile", "inspect", "read", "save"]

SUFFIXES = (".jpg", ".jpeg", ".jpe", ".png", ".tif", ".tiff", ".webp", ".bmp", ".gif")
_FORMATS = {".jpg": "JPEG", ".jpeg": "JPEG", ".jpe": "JPEG", ".png": "PNG", ".tif": "TIFF", ".tiff": "TIFF"}
_NAMES = {1: ("grey",), 3: ("red", "green", "blue")}
_JPEG_SIDE, _JPEG_BLOCK = 65_500, 65_527  # what libjpeg takes; what a JPEG segment holds
_PIXELS = 1 << 20  # converted at once


@dataclass(frozen=True)
class Photo:
    """One photograph, upright.

    Attributes:
        pixels: (H, W, C), C = 1 or 3, uint8, uint16 or float32 (0..1); sRGB where a profile could be applied.
        alpha: (H, W) of the same type, 0 is clear, or None.
        icc: the profile as stored, to which `save` converts back; None for none and for one that pixels no longer fit.
        exif: the block with orientation 1 and without a thumbnail, or None.
        dpi: pixels an inch, across and down, or None.
        format: of the file: "JPEG", "PNG", "TIFF", "WEBP", "BMP" or "GIF"; "" for an array.
        meta: `applied` says what was done to the file's values, step by step.
    """

    pixels: NDArray[Any]
    alpha: NDArray[Any] | None = None
    icc: bytes | None = None
    exif: bytes | None = None
    dpi: tuple[float, float] | None = None
    format: str = ""
    meta: Meta = field(default_factory=Meta)


def read(path: str | Path, *, max_pixels: int = MAX_PIXELS, colour: bool = True) -> Photo:
    """Read a photograph; with `colour` a grey one has its values three times (C = 3), without it C = 1.

    The size is looked at before anything is decoded. Palettes and CMYK become RGB, one bit and odd numbers of bits are
    stretched, of several frames the first is read. An ICC profile is applied: to 8 bits by LittleCMS, to
    more bits in float where it is curves and a matrix, else by interpolation between LittleCMS's answers for 8 bits.

    Raises:
        FileError: no such file, empty, none of the formats, damaged, cut short, more than `max_pixels`, other than 1 or
            3 channels beside alpha, values that are not 8 or 16 bits or floats from 0 to 1.
    """
    path = Path(path)
    found = _photo_read.converted(path, _photo_read.stored(path, max_pixels), colour=colour)
    meta = Meta(
        path=str(path),
        id=path.stem,
        orientation="down right",
        channels=_NAMES[found.values.shape[2]],
        applied=found.applied,
    )
    return Photo(found.values, found.alpha, found.icc, found.exif, found.dpi, found.format, meta)


def as_float(photo: Photo) -> NDArray[np.float32]:
    """Pixels (H, W, C) as float32 in 0..1, a new array."""
    if photo.pixels.dtype.kind == "f":
        return photo.pixels.astype(np.float32)
    top = np.float32(np.iinfo(photo.pixels.dtype).max)
    return np.divide(photo.pixels, top, dtype=np.float32)


def as_stored(values: NDArray[np.floating], like: Photo | DTypeLike) -> NDArray[Any]:
    """Float values 0..1 of any shape as a photo's type: clipped, scaled, rounded.

    >>> as_stored(np.array([-0.1, 0.5, 1.0]), np.uint8).tolist()
    [0, 128, 255]
    """
    kind = like.pixels.dtype if isinstance(like, Photo) else np.dtype(like)
    if kind.kind == "f":
        return np.clip(values, 0, 1).astype(kind)
    top = np.float32(np.iinfo(kind).max)
    out = np.empty(values.shape, kind)
    rows = max(1, _PIXELS // max(1, int(np.prod(values.shape[1:], dtype=np.int64))))
    for start in range(0, len(values), rows):
        part = np.clip(values[start : start + rows], 0, 1) * top
        out[start : start + rows] = np.rint(part, out=part)
    return out


def in_profile(pixels: NDArray[Any], like: Photo) -> tuple[NDArray[Any], bytes | None]:
    """Pixels (H, W, C) in sRGB as the file of `like` would hold them, and the profile to write beside them.

    For results that a sink writes strip by strip; `save` does it by itself. The profile is None where `like` has none
    or one for another number of channels (a grey photograph that got colours): then pixels stay sRGB.
    """
    if like.icc is None:
        return pixels, None
    profile = _profiles.profile(like.icc, pixels.shape[2])
    if not profile.fits:
        return pixels, None
    return (profile.from_srgb(pixels) if profile.usable and not profile.same else pixels), like.icc


def save(path: str | Path, pixels: NDArray[Any], like: Photo | None = None, quality: int = 95) -> None:
    """Write a photograph as PNG (8 or 16 bits), JPEG or TIFF, by the suffix; whole or not at all.

    Args:
        path: where to; the folder is made.
        pixels: (H, W), (H, W, 1) or (H, W, 3) in sRGB: uint8, uint16, or floats 0..1, which become the type of `like`
            (uint8 without it).
        like: the photograph that they come from; its profile (colours are converted back to it), EXIF, resolution and
            alpha are written. A TIFF keeps the texts of EXIF alone (description, camera, date, artist, copyright).
        quality: of JPEG, 1 to 95; from 90 colours are kept at full size (4:4:4).

    Raises:
        SettingError: another suffix, or what the format does not hold (16 bits or alpha in JPEG, floats but in TIFF).
        ShapeError: pixels of another shape, or not of the size of the alpha.
        FileError: the folder cannot be written, or the disk is full.
    """
    path = Path(path)
    form = _FORMATS.get(path.suffix.lower())
    if form is None:
        raise SettingError(f"a photograph is written as .png, .jpg or .tif, got {path.name!r}")
    if form == "JPEG" and not 1 <= quality <= 95:
        raise SettingError(f"the quality of JPEG is 1 to 95, got {quality}")
    like = like or Photo(np.empty((0, 0, 3), np.uint8))
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    if pixels.ndim != 3 or pixels.shape[2] not in _NAMES or not pixels.size:
        raise ShapeError(f"{path.name}: expected pixels of shape (H, W), (H, W, 1) or (H, W, 3), got {pixels.shape}")
    if pixels.dtype.kind == "f":
        pixels = as_stored(pixels, like)
    alpha = None if like.alpha is None else _alpha_for(path, pixels, like.alpha)
    _holds(path, form, pixels, alpha, like)
    pixels, icc = in_profile(pixels, like)
    with aside(path) as part:
        if form == "TIFF":
            from core.data import _photo_tiff

            _photo_tiff.write(part, pixels, alpha, icc, like.exif, like.dpi)
        elif form == "PNG":
            from core.streaming import png

            whole = pixels if alpha is None else np.concatenate([pixels, alpha[..., None]], axis=2)
            png.write(part, [whole], (pixels.shape[0], pixels.shape[1]), icc=icc, exif=like.exif, dpi=like.dpi)
        else:
            from PIL import Image

            from core.streaming.pictures import pillow_blocks

            picture = Image.fromarray(np.ascontiguousarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels))
            blocks = pillow_blocks(icc, like.exif, like.dpi)
            picture.save(part, format="JPEG", quality=quality, subsampling=0 if quality >= 90 else 2, **blocks)


def inspect(path: str | Path) -> dict[str, object]:
    """What a photograph is, without anything that names its owner, its camera or its place. FileError as `read`."""
    path = Path(path)
    found = _photo_read.stored(path, MAX_PIXELS)
    now = _photo_read.converted(path, found, colour=False)
    return {
        "format": found.format,
        "size": [*now.values.shape[:2]],
        "channels": now.values.shape[2],
        "alpha": now.alpha is not None,
        "bits": found.bits,
        "mode": found.mode,
        "frames": found.frames,
        "dots per inch": None if now.dpi is None else [round(d, 1) for d in now.dpi],
        "exif": now.exif is not None,
        "exif orientation": found.turn,
        "profile": _profiles.described(found.icc)[0] if found.icc else "",
        "range": [float(now.values.min()), float(now.values.max())],
        "lossy": found.format == "JPEG",
        "notes": list(now.applied),
    }


def find(paths: Sequence[str | Path]) -> list[Path]:
    """The photographs among files and in folders, searched to the bottom, in order of their names; hidden ones are not.

    A file that is named is taken whatever its suffix. Raises FileError for a path that is not there, for a folder
    without a photograph, and for two files of one name (results are named after them).
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = _inside(path)
            if not inside:
                raise FileError(path, "holds no photograph", f"give files of {', '.join(SUFFIXES)}")
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise FileError(path, "no such file or folder")
    if not found:
        raise InputError("no photograph was named; give files or folders")
    named: dict[str, Path] = {}
    for path in found:
        other = named.setdefault(path.stem.casefold(), path)
        if other is not path:
            raise FileError(path, f"has the same name as {other}", "rename one: results are named after their files")
    return found


def _inside(folder: Path) -> list[Path]:
    found = []
    for root, inner, files in os.walk(folder):
        inner[:] = sorted(d for d in inner if not d.startswith("."))
        found += [Path(root) / f for f in sorted(files) if not f.startswith(".") and f.lower().endswith(SUFFIXES)]
    return found


def _alpha_for(path: Path, pixels: NDArray[Any], alpha: NDArray[Any]) -> NDArray[Any]:
    """Alpha in the type of the pixels."""
    if alpha.shape != pixels.shape[:2]:
        raise ShapeError(f"{path.name}: {pixels.shape[:2]} pixels, but an alpha of {alpha.shape}")
    if alpha.dtype == pixels.dtype:
        return alpha
    plain = Photo(alpha[..., None])
    return as_stored(as_float(plain)[..., 0], pixels.dtype)


def _holds(path: Path, form: str, pixels: NDArray[Any], alpha: NDArray[Any] | None, like: Photo) -> None:
    """Raise SettingError for what a format does not hold."""
    kind, size = pixels.dtype, pixels.shape[:2]
    if kind not in (np.uint8, np.uint16) and not (kind == np.float32 and form == "TIFF"):
        raise SettingError(f"{path.name}: {form} does not hold {kind}; give 8 or 16 bits, or write a TIFF")
    if form != "JPEG":
        return
    if kind != np.uint8 or alpha is not None:
        what = "an alpha channel" if kind == np.uint8 else "16 bits"
        raise SettingError(f"{path.name}: JPEG does not hold {what}; write .png or .tif")
    if max(size) > _JPEG_SIDE:
        raise SettingError(f"{path.name}: {size[0]} x {size[1]} pixels are too many for JPEG; write .png or .tif")
    if like.exif and len(like.exif) > _JPEG_BLOCK - 6:
        raise SettingError(f"{path.name}: the EXIF block is too large for JPEG; write .png or .tif")
