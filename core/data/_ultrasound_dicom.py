"""Made ultrasound stills and cine loops as DICOM files, in the forms that scanners write."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.errors import MissingExtraError, SettingError

FORMS = ("grey", "rgb", "palette", "ybr", "jpeg")
_STILL, _CINE = "1.2.840.10008.5.1.4.1.1.6.1", "1.2.840.10008.5.1.4.1.1.3.1"


def write(
    path: Path, frames: NDArray[np.uint8], *, form: str = "grey", name: str = "", number: str = "", birth: str = "",
    seed: int = 0, rate: float = 25.0, spacing: float = 0.5,
) -> None:  # fmt: skip
    """Write a still (rows, columns[, 3]) or a loop (frames, rows, columns[, 3]) with what a header says of a person.

    Args:
        path: of the file.
        frames: 8-bit values; three axes are a colour still where the last is 3.
        form: "grey"; "rgb"; "palette" (indices into a grey table); "ybr" (YBR_FULL_422, uncompressed: an even number
            of columns); "jpeg" (YBR_FULL_422 in baseline JPEG).
        name: of the patient; "" leaves it empty.
        number: the patient's ID.
        birth: YYYYMMDD.
        seed: of the made UIDs.
        rate: frames each second, of a loop.
        spacing: mm between pixels, in the ultrasound region.

    Raises SettingError for another form.
    """
    try:
        import pydicom
        from pydicom.dataset import FileDataset, FileMetaDataset
        from pydicom.uid import UID, ExplicitVRLittleEndian, JPEGBaseline8Bit, generate_uid
    except ImportError:
        raise MissingExtraError("pydicom", "medical") from None
    if form not in FORMS:
        raise SettingError(f"a made DICOM file is one of {', '.join(FORMS)}, got {form!r}")
    stills = frames if frames.ndim == 4 or (frames.ndim == 3 and frames.shape[-1] != 3) else frames[None]
    loop = len(stills) > 1
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = UID(_CINE if loop else _STILL)
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=["made ultrasound", str(seed)])
    meta.TransferSyntaxUID = JPEGBaseline8Bit if form == "jpeg" else ExplicitVRLittleEndian
    data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID = meta.MediaStorageSOPClassUID
    data.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    data.StudyInstanceUID = generate_uid(entropy_srcs=["made study", str(seed)])
    data.SeriesInstanceUID = generate_uid(entropy_srcs=["made series", str(seed)])
    data.Modality, data.Manufacturer = "US", "made"
    data.PatientName, data.PatientID, data.PatientBirthDate = name, number, birth
    data.StudyDate, data.StudyTime, data.PatientSex = "", "", ""
    data.ImageType = ["ORIGINAL", "PRIMARY"]
    data.Rows, data.Columns = stills.shape[1:3]
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 8, 8, 7, 0
    if loop:
        data.NumberOfFrames, data.FrameTime = len(stills), f"{1000 / rate:.4g}"
        data.FrameIncrementPointer = pydicom.tag.Tag(0x0018, 0x1063)
    _region(data, spacing)
    _pixels(data, stills, form)
    data.save_as(path, enforce_file_format=True)


def _region(data: Any, spacing: float) -> None:
    """The whole picture as one region of tissue, in centimetres a pixel."""
    from pydicom.dataset import Dataset

    region = Dataset()
    region.RegionSpatialFormat, region.RegionDataType, region.RegionFlags = 1, 1, 0
    region.RegionLocationMinX0 = region.RegionLocationMinY0 = 0
    region.RegionLocationMaxX1, region.RegionLocationMaxY1 = data.Columns - 1, data.Rows - 1
    region.PhysicalUnitsXDirection = region.PhysicalUnitsYDirection = 3
    region.PhysicalDeltaX = region.PhysicalDeltaY = spacing / 10
    data.SequenceOfUltrasoundRegions = [region]


def _pixels(data: Any, stills: NDArray[np.uint8], form: str) -> None:
    grey = stills if stills.ndim == 3 else stills[..., 0]
    colour = stills if stills.ndim == 4 else np.repeat(stills[..., None], 3, axis=3)
    data.SamplesPerPixel = 1 if form in ("grey", "palette") else 3
    if data.SamplesPerPixel == 3:
        data.PlanarConfiguration = 0
    if form == "grey":
        data.PhotometricInterpretation = "MONOCHROME2"
        data.PixelData = _even(grey.tobytes())
    elif form == "palette":
        _palette(data)
        data.PixelData = _even((255 - grey).tobytes())  # the table turns it back: indices are not brightness
    elif form == "rgb":
        data.PhotometricInterpretation = "RGB"
        data.PixelData = _even(colour.tobytes())
    elif form == "ybr":
        data.PhotometricInterpretation = "YBR_FULL_422"
        data.PixelData = _even(_ybr(colour))
    else:
        _jpeg(data, colour)
    data["PixelData"].VR = "OB"


def _even(content: bytes) -> bytes:
    return content + b"\0" * (len(content) % 2)


def _palette(data: Any) -> None:
    data.PhotometricInterpretation = "PALETTE COLOR"
    table = (np.arange(255, -1, -1) * 257).astype("<u2").tobytes()
    for colour in ("Red", "Green", "Blue"):
        setattr(data, f"{colour}PaletteColorLookupTableDescriptor", [256, 0, 16])
        setattr(data, f"{colour}PaletteColorLookupTableData", table)


def _ybr(colour: NDArray[np.uint8]) -> bytes:
    """Two pixels as Y Y Cb Cr, by the standard's full-range matrix."""
    if colour.shape[2] % 2:
        raise SettingError(f"YBR_FULL_422 takes an even number of columns, got {colour.shape[2]}")
    matrix = np.array([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])
    ybr = colour @ matrix.T + np.array([0, 128, 128])
    both = ybr[:, :, 0::2, 1:] + ybr[:, :, 1::2, 1:]
    packed = np.stack([ybr[:, :, 0::2, 0], ybr[:, :, 1::2, 0], both[..., 0] / 2, both[..., 1] / 2], axis=-1)
    return np.clip(np.rint(packed), 0, 255).astype(np.uint8).tobytes()


def _jpeg(data: Any, colour: NDArray[np.uint8]) -> None:
    from PIL import Image
    from pydicom.encaps import encapsulate

    data.PhotometricInterpretation = "YBR_FULL_422"
    data.LossyImageCompression, data.LossyImageCompressionMethod = "01", "ISO_10918_1"
    packed = []
    for frame in colour:
        stream = io.BytesIO()
        Image.fromarray(frame).save(stream, format="JPEG", quality=92, subsampling="4:2:2")
        packed.append(stream.getvalue())
    data.PixelData = encapsulate(packed)
