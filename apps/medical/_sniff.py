"""What a file is, from its first bytes: suffixes lie."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

from core.errors import FileError

KINDS = "NIfTI (.nii, .nii.gz), DICOM, PNG, JPEG, BMP and TIFF are"
SUFFIXES = (".nii", ".nii.gz", ".dcm", ".dicom", ".ima", ".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".svs")
_STARTS = (
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"\xff\xd8\xff", "jpeg"),
    (b"BM", "bmp"),
    (b"II*\0", "tiff"),
    (b"MM\0*", "tiff"),
    (b"II+\0", "tiff"),
    (b"MM\0+", "tiff"),
)


def sniffed(path: Path) -> str:
    """One of "nifti", "dicom", "png", "jpeg", "bmp", "tiff"; "" for anything else and for what cannot be opened."""
    try:
        return _kind(path)
    except FileError:
        return ""


def sniff(path: Path) -> str:
    """As `sniffed`. Raises FileError for a missing, empty or unknown file; it names the kinds that are read."""
    kind = _kind(path)
    if not kind:
        raise FileError(path, "not a kind of file that is read here", KINDS)
    return kind


def _kind(path: Path) -> str:
    try:
        with path.open("rb") as file:
            head = file.read(352)
    except FileNotFoundError:
        raise FileError(path, "no such file") from None
    except OSError as error:
        raise FileError(path, f"cannot be opened ({error.strerror})") from None
    if not head:
        raise FileError(path, "an empty file", KINDS)
    if head[128:132] == b"DICM":
        return "dicom"
    if head[:2] == b"\x1f\x8b":
        return _packed(path)
    if kind := _nifti(path, head):
        return kind
    for start, kind in _STARTS:
        if head.startswith(start):
            return kind
    # DICOM of old writers has no preamble: group 2 or 8 first, then a value representation or a short length
    bare = head[:2] in (b"\x02\0", b"\x08\0") and head[3:4] == b"\0" and len(head) > 132
    if bare and (head[4:6] in (b"UL", b"UI", b"CS", b"DA", b"SH") or head[6:8] == b"\0\0"):
        return "dicom"
    return ""


def _packed(path: Path) -> str:
    try:
        with gzip.open(path) as file:
            head = file.read(352)
    except (OSError, EOFError, zlib.error):
        raise FileError(path, "a damaged or cut-off gzip file", "copy it again") from None
    return _nifti(path, head)


def _nifti(path: Path, head: bytes) -> str:
    size = {int.from_bytes(head[:4], "little"), int.from_bytes(head[:4], "big")}
    magic = head[344:348] if 348 in size else head[4:8] if 540 in size else b""
    if magic in (b"ni1\0", b"ni2\0"):
        raise FileError(path, "the header of a NIfTI pair (.hdr, .img)", "save it as one .nii file")
    return "nifti" if magic in (b"n+1\0", b"n+2\0") else ""
