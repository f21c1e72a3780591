"""PNG files of 8 or 16 bits with colour profile, EXIF and resolution, written row by row (PNG, third edition, W3C)."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from core.errors import SettingError

_COLOUR = {1: 0, 2: 4, 3: 2, 4: 6}  # channels -> colour type: grey, grey and alpha, RGB, RGB and alpha
_ROWS = 64  # filtered at once


def write(
    path: str | Path,
    strips: Iterable[NDArray[Any]],
    size: tuple[int, int],
    *,
    icc: bytes | None = None,
    exif: bytes | None = None,
    dpi: tuple[float, float] | None = None,
) -> None:
    """Write a PNG from `strips` of (rows, columns, channels) that follow one another from the top.

    Args:
        path: the file to write; write aside and rename where a reader must not see half of it.
        strips: uint8 or uint16, 1 to 4 channels: grey, grey and alpha, RGB, RGB and alpha; all of one kind.
        size: rows and columns.
        icc: colour profile.
        exif: EXIF block, with or without the "Exif" mark of JPEG.
        dpi: pixels an inch, across and down.

    Raises SettingError for another type or number of channels.
    """
    rows, columns = size
    with Path(path).open("wb") as file:
        deflate = zlib.compressobj(1, zlib.DEFLATED, 15, 9, zlib.Z_RLE)  # as small for photographs, 4 times as fast
        above: NDArray[np.uint8] | None = None
        for strip in strips:
            if above is None:
                _head(file, strip, rows, columns, icc, exif, dpi)
                above = np.zeros(columns * strip.shape[2] * strip.dtype.itemsize, np.uint8)
            pixel = strip.shape[2] * strip.dtype.itemsize
            for start in range(0, len(strip), _ROWS):
                part = np.ascontiguousarray(strip[start : start + _ROWS], strip.dtype.newbyteorder(">"))
                lines = part.reshape(len(part), -1).view(np.uint8)
                _chunk(file, b"IDAT", deflate.compress(_filtered(lines, above, pixel).data))
                above = lines[-1]
        _chunk(file, b"IDAT", deflate.flush())
        file.write(_packed(b"IEND", b""))


def _head(
    file: IO[bytes], strip: NDArray[Any], rows: int, columns: int, icc: bytes | None, exif: bytes | None,
    dpi: tuple[float, float] | None,
) -> None:  # fmt: skip
    if strip.dtype not in (np.uint8, np.uint16) or strip.ndim != 3 or strip.shape[2] not in _COLOUR:
        raise SettingError(f"PNG does not hold {strip.dtype} of shape {strip.shape}; write a TIFF")
    file.write(b"\x89PNG\r\n\x1a\n")
    bits = 8 * strip.dtype.itemsize
    _chunk(file, b"IHDR", struct.pack(">IIBBBBB", columns, rows, bits, _COLOUR[strip.shape[2]], 0, 0, 0))
    if icc:
        _chunk(file, b"iCCP", b"ICC profile\0\0" + zlib.compress(icc))
    if dpi:
        _chunk(file, b"pHYs", struct.pack(">IIB", *(round(d / 0.0254) for d in dpi), 1))  # pixels a metre
    if exif:
        _chunk(file, b"eXIf", exif.removeprefix(b"Exif\0\0"))


def _chunk(file: IO[bytes], kind: bytes, data: bytes) -> None:
    if data:
        file.write(_packed(kind, data))


def _packed(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(data, zlib.crc32(kind)))


def _filtered(lines: NDArray[np.uint8], above: NDArray[np.uint8], pixel: int) -> NDArray[np.uint8]:
    """Lines (rows, bytes) led by their filter's number: of Sub, Up and Paeth the one with the smallest sum (12.7)."""
    up = np.concatenate([above[None], lines[:-1]])
    left, corner = np.zeros_like(lines), np.zeros_like(lines)
    left[:, pixel:], corner[:, pixel:] = lines[:, :-pixel], up[:, :-pixel]
    a, b, c = left.astype(np.int16), up.astype(np.int16), corner.astype(np.int16)
    to_left, to_up, to_corner = np.abs(b - c), np.abs(a - c), np.abs(a + b - 2 * c)
    paeth = np.where((to_left <= to_up) & (to_left <= to_corner), left, np.where(to_up <= to_corner, up, corner))
    out = np.empty((len(lines), lines.shape[1] + 1), np.uint8)
    least = np.full(len(lines), np.iinfo(np.int64).max)
    for number, guess in ((1, left), (2, up), (4, paeth)):
        rest = lines - guess  # modulo 256, as PNG wants it
        cost = np.abs(rest.view(np.int8).astype(np.int16)).sum(axis=1, dtype=np.int64)
        better = cost < least
        out[better, 0], out[better, 1:], least[better] = number, rest[better], cost[better]
    return out
