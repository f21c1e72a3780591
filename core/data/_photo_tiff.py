"""TIFF photographs: read with their alpha, profile, EXIF and resolution, and written with them."""

from __future__ import annotations

import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.errors import FileError
from core.streaming.decode import Decoded, decode, turned
from core.streaming.tiffs import CodecError, TiffSource, import_tifffile, quiet

_TEXTS = (270, 271, 272, 305, 306, 315, 33432)  # description, make, model, software, date, artist, copyright
_EXIF, _GPS = 0x8769, 0x8825
_ORIENTATION, _PROFILE, _PREMULTIPLIED = 274, 34675, 1
_INCHES = {2: 1.0, 3: 2.54}  # resolution unit -> how many of it an inch has


def read(path: Path, max_pixels: int) -> Decoded:
    """The first page, upright; bits that do not fill their bytes are stretched. FileError as `core.data.photos.read`.

    What tifffile has no decoder for here, and CMYK, is read by Pillow where that keeps every bit, else by rasterio.
    """
    tifffile = import_tifffile()
    try:
        with quiet(), tifffile.TiffFile(path) as file:
            page, frames = file.pages.first, len(file.pages)
            height, width = page.imagelength, page.imagewidth
            tags = {tag.code: tag.value for tag in page.tags if tag.code in (_ORIENTATION, 282, 283, 296, _PROFILE)}
            bits, photometric = page.bitspersample, int(page.photometric)
            premultiplied = bool(page.extrasamples) and int(page.extrasamples[0]) == _PREMULTIPLIED
            page_kind = page.dtype
    except (OSError, ValueError, KeyError, IndexError, TypeError, struct.error):
        raise FileError(path, "is damaged or cut short", "get the file again") from None
    if height * width > max_pixels:
        raise FileError(path, f"has more than {max_pixels:,} pixels", "make it smaller or cut it into parts")
    bits = int(max(bits) if isinstance(bits, tuple) else bits)
    if photometric == 5 and bits == 8:
        return decode(path, max_pixels=max_pixels, formats=("TIFF",))
    try:
        with_source = TiffSource(path)
    except CodecError as error:
        if bits <= 8:
            return decode(path, max_pixels=max_pixels, formats=("TIFF",))
        return _by_rasterio(path, error, bits, frames)
    try:
        planes, alpha = with_source.whole()
    finally:
        with_source.close()
    values = np.moveaxis(planes, 0, -1)
    applied = [words for words in with_source.meta.applied if not words.startswith("alpha")]
    full = np.iinfo(values.dtype).bits if values.dtype.kind == "u" else bits
    if bits < full and photometric != 3 and page_kind is not None:
        top, most = np.iinfo(values.dtype).max, (1 << bits) - 1
        values = np.rint(values * (top / most)).astype(values.dtype)
        alpha = None if alpha is None else np.rint(alpha * (top / most)).astype(values.dtype)
        applied.append(f"{bits} bits stretched to {full}")
    if alpha is not None and premultiplied and values.dtype.kind == "u":
        share = np.maximum(alpha, 1)[..., None] / np.iinfo(values.dtype).max
        values = np.rint(np.minimum(values / share, np.iinfo(values.dtype).max)).astype(values.dtype)
        applied.append("colours divided by alpha, with which they were multiplied")
    turn = _number(tags.get(_ORIENTATION))
    if turn in range(2, 9):
        applied.append(f"turned as TIFF orientation {turn} says")
        values, alpha = turned(values, turn), None if alpha is None else turned(alpha, turn)
    mode = "palette" if photometric == 3 else ("RGB" if values.shape[2] == 3 else "grey")
    profile = tags.get(_PROFILE)
    return Decoded(
        values, alpha, tuple(applied), "TIFF", mode, bits, turn, frames,
        bytes(profile) if isinstance(profile, bytes) and profile else None, _exif(path), _resolution(tags),
    )  # fmt: skip


def write(
    path: Path, pixels: NDArray[Any], alpha: NDArray[Any] | None, icc: bytes | None, exif: bytes | None,
    dpi: tuple[float, float] | None,
) -> None:  # fmt: skip
    """Pixels (H, W, C) of any type, deflated with a predictor; of EXIF the texts of its first directory."""
    tifffile = import_tifffile()
    whole = pixels if alpha is None else np.concatenate([pixels, alpha[..., None]], axis=2)
    place: dict[str, Any] = {"resolution": dpi, "resolutionunit": "INCH"} if dpi else {}
    texts = [(code, "s", 0, text.encode("latin-1", "replace"), True) for code, text in _texts(exif).items()]
    tifffile.imwrite(
        path,
        whole[..., 0] if whole.shape[2] == 1 else whole,
        photometric="rgb" if pixels.shape[2] == 3 else "minisblack",
        planarconfig="contig" if whole.shape[2] > 1 else None,
        extrasamples=None if alpha is None else ["unassalpha"],
        compression="zlib",
        predictor=pixels.dtype.kind == "u",
        iccprofile=icc,
        extratags=texts,
        software=False,
        metadata=None,
        bigtiff=whole.nbytes > 3_900_000_000,
        **place,
    )


def _by_rasterio(path: Path, error: CodecError, bits: int, frames: int) -> Decoded:
    try:
        from core.streaming.rasters import RasterSource

        source = RasterSource(path)
    except ImportError:
        raise error from None
    try:
        planes, _ = source.read((0, 0), source.shape)
    finally:
        source.close()
    said = tuple(source.meta.applied)
    return Decoded(np.moveaxis(planes, 0, -1), None, said, "TIFF", "", bits, 1, frames)


def _exif(path: Path) -> bytes | None:
    """The texts, the Exif and the GPS directory of a TIFF as a block of their own."""
    from PIL import Image

    block = Image.Exif()
    try:
        with warnings.catch_warnings(), Image.open(path, formats=("TIFF",)) as picture:
            warnings.simplefilter("ignore", UserWarning)
            stored = picture.getexif()
            for code in _TEXTS:
                if isinstance(text := stored.get(code), str):
                    block[code] = text
            for code in (_EXIF, _GPS):
                if inner := stored.get_ifd(code):
                    block[code] = dict(inner)
        return block.tobytes() if len(block) else None
    except (OSError, SyntaxError, ValueError, TypeError, KeyError, EOFError, struct.error):
        return None


def _texts(exif: bytes | None) -> dict[int, str]:
    """Tag -> text, a character for each byte, as Pillow reads them."""
    from PIL import Image

    if not exif:
        return {}
    block = Image.Exif()
    try:
        block.load(exif)
        found = {code: block.get(code) for code in _TEXTS}
    except (OSError, SyntaxError, ValueError, TypeError, KeyError, struct.error):
        return {}
    return {code: text.strip("\0 ") for code, text in found.items() if isinstance(text, str) and text.strip("\0 ")}


def _resolution(tags: dict[int, Any]) -> tuple[float, float] | None:
    unit = _INCHES.get(_number(tags.get(296, 2)))
    pair = []
    for code in (282, 283):
        value = tags.get(code)
        if unit is None or not isinstance(value, tuple) or len(value) != 2 or not value[1]:
            return None
        pair.append(value[0] / value[1] * unit)
    return (pair[0], pair[1]) if all(1 <= d <= 1e5 for d in pair) else None


def _number(value: Any) -> int:
    try:
        return int(value)
    except (TypeError, ValueError):
        return 1
