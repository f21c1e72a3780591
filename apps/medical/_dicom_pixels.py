"""DICOM pixel data to values: decoded, colours as RGB, padding marked, inverted and rescaled as the header says."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apps.medical import _values
from apps.medical._scan import quiet
from core.errors import FileError, MissingExtraError

PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
RGB = ("red", "green", "blue")
_LOSSY = ("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51", "1.2.840.10008.1.2.4.81", "1.2.840.10008.1.2.4.91",
          "1.2.840.10008.1.2.4.203")  # fmt: skip


def lossy(dataset: Any) -> bool:
    return syntax(dataset) in _LOSSY or str(dataset.get("LossyImageCompression", "")) == "01"


def syntax(dataset: Any) -> str:
    """UID of the transfer syntax; the standard's default where the file has no header."""
    meta = getattr(dataset, "file_meta", None)
    return str(meta.get("TransferSyntaxUID", "") or "1.2.840.10008.1.2") if meta is not None else "1.2.840.10008.1.2"


def frames(path: Path, dataset: Any) -> Iterator[NDArray[Any]]:
    """Every stored frame as (Y, X), or (Y, X, 3) in RGB whatever the stored colour model. Raises FileError."""
    try:
        from pydicom.pixels.decoders.base import get_decoder
        from pydicom.pixels.processing import convert_color_space
        from pydicom.uid import UID
    except ImportError:
        raise MissingExtraError("pydicom", "medical") from None
    uid = UID(syntax(dataset))
    try:
        decoder = get_decoder(uid)
    except NotImplementedError:
        raise FileError(
            path, f"its pixels are stored as {uid.name}, which is not read here", "export it uncompressed"
        ) from None
    if not decoder.is_available:
        raise FileError(
            path, f"no decoder for {uid.name} is installed", "pip install pylibjpeg[all], or export it uncompressed"
        )
    if not hasattr(dataset, "file_meta") or not dataset.file_meta.get("TransferSyntaxUID"):
        dataset.file_meta = dataset.file_meta if hasattr(dataset, "file_meta") else _meta()
        dataset.file_meta.TransferSyntaxUID = uid
    count, seen = max(1, int(dataset.get("NumberOfFrames") or 1)), 0
    try:
        with quiet():
            for frame, about in _decoded(decoder, dataset, uid, count):
                model = str(about["photometric_interpretation"])  # after decoding, which converts most of them
                if model.startswith("YBR"):
                    frame = convert_color_space(frame, model, "RGB")
                seen += 1
                yield frame
                if seen == count:
                    break
    except FileError:
        raise
    except Exception as error:  # decoders raise many kinds; their texts may quote the header
        short = re.search(r"(\d+) vs\.? (\d+) bytes", str(error))
        how = f"{int(short[1]):,} bytes, {int(short[2]):,} expected" if short else f"frame {seen + 1} of {count}"
        raise FileError(path, f"its pixel data are cut off or damaged ({how})", "export it again") from None
    if seen < count:
        raise FileError(path, f"its pixel data are cut off ({seen} of {count} frames)", "export it again")


def _decoded(decoder: Any, dataset: Any, uid: Any, count: int) -> Iterator[tuple[NDArray[Any], dict[str, Any]]]:
    """Frames and what is known of each.

    Uncompressed YBR_FULL_422 goes frame by frame: pydicom's iterator (3.0) takes the frames after the first for RGB,
    which is half as long again, and gives wrong pixels.
    """
    if uid.is_encapsulated or _photometric(dataset) != "YBR_FULL_422":
        yield from decoder.iter_array(dataset, raw=False)
        return
    for index in range(count):
        yield decoder.as_array(dataset, raw=False, index=index)


def _meta() -> Any:
    from pydicom.dataset import FileMetaDataset

    return FileMetaDataset()


def coloured(dataset: Any) -> bool:
    return int(dataset.get("SamplesPerPixel", 1) or 1) > 1 or _photometric(dataset) == "PALETTE COLOR"


def _photometric(dataset: Any) -> str:
    return str(dataset.get("PhotometricInterpretation", "MONOCHROME2")).strip()


def values(
    path: Path, dataset: Any, stored: NDArray[Any], scales: Sequence[tuple[float, float]]
) -> tuple[NDArray[Any], NDArray[np.bool_] | None, list[str]]:
    """Stored frames (N, Y, X) or (N, Y, X, 3) to values (C, N, Y, X), valid (N, Y, X) or None, and what was done.

    `scales` gives (slope, intercept) of each frame. Grey: padding is marked, MONOCHROME1 inverted, the modality's table
    or slope applied; no display window is. Palette colours come as 8-bit RGB.
    """
    photometric, words = _photometric(dataset), []
    if stored.ndim == 4:
        if photometric.startswith("YBR"):
            words.append(f"{photometric} converted to RGB")
        return np.ascontiguousarray(np.moveaxis(_values.native(stored), -1, 0)), None, words
    if photometric == "PALETTE COLOR":
        return _palette(path, dataset, stored), None, ["palette colours converted to RGB"]
    if photometric not in ("MONOCHROME1", "MONOCHROME2"):
        raise FileError(path, f"its photometric interpretation is {photometric[:16]!r}", "grey or colour is expected")
    valid = _unpadded(dataset, stored)
    if valid is not None:
        words.append(f"{int((~valid).sum()):,} pixels of padding marked invalid")
    if photometric == "MONOCHROME1":
        bits, signed = int(dataset.BitsStored), int(dataset.get("PixelRepresentation", 0) or 0)
        total = -1 if signed else 2**bits - 1  # lowest and highest stored value together
        stored = total - stored.astype(np.int64)
        words.append("inverted (MONOCHROME1)")
    if dataset.get("ModalityLUTSequence"):
        from pydicom.pixels.processing import apply_modality_lut

        with quiet():
            result = _values.native(np.asarray(apply_modality_lut(stored, dataset)))
        words.append("modality table applied")
    elif len(set(scales)) == 1:
        result = _values.rescaled(stored, *scales[0])
        if scales[0] != (1, 0):
            slope, intercept = map(_values.number, scales[0])
            words.append(f"rescaled by slope {slope} and intercept {intercept}")
    else:
        factors, offsets = (np.array(s, np.float64)[:, None, None] for s in zip(*scales, strict=True))
        result = (stored * factors + offsets).astype(np.float32)
        words.append("rescaled by a slope and intercept of each slice")
    if valid is not None:
        result = np.where(valid, result, result.dtype.type(0))
    return result[None], valid, words


def _palette(path: Path, dataset: Any, stored: NDArray[Any]) -> NDArray[np.uint8]:
    from pydicom.pixels.processing import apply_color_lut

    try:
        with quiet():
            colours = np.asarray(apply_color_lut(stored, dataset))[..., :3]
            bits = int(dataset.RedPaletteColorLookupTableDescriptor[2])
    except Exception:
        raise FileError(path, "its palette is missing or damaged", "export it as RGB") from None
    if bits == 16 and colours.max(initial=0) > 255:  # some writers state 16 bits and store 8
        colours = colours >> 8
    return np.ascontiguousarray(np.moveaxis(colours.astype(np.uint8), -1, 0))


def _unpadded(dataset: Any, stored: NDArray[Any]) -> NDArray[np.bool_] | None:
    value, limit = dataset.get("PixelPaddingValue"), dataset.get("PixelPaddingRangeLimit")
    if value is None or stored.dtype.kind not in "iu":
        return None
    bits = 8 * stored.dtype.itemsize
    ends = [int(v) for v in (value, value if limit is None else limit)]
    if stored.dtype.kind == "i":  # writers give the value with the wrong sign type
        ends = [v - 2**bits if v >= 2 ** (bits - 1) else v for v in ends]
    else:
        ends = [v + 2**bits if v < 0 else v for v in ends]
    padded = (stored >= min(ends)) & (stored <= max(ends))
    return ~padded if padded.any() else None
