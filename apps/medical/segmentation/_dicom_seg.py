"""Masks as DICOM segmentation objects, through highdicom."""

from __future__ import annotations

import hashlib
import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apps.medical import _dicom, _dicom_geometry
from apps.medical._grid import Grid, spacing
from apps.medical.segmentation._anatomy import structure
from core import __version__
from core.errors import FileError, MissingExtraError
from core.files import aside

SCHEME = "99GLOCAL"  # private: code values are the first sixteen letters and digits of the class name
DUMMY_DATE, DUMMY_TIME = (
    "19000101",
    "000000",
)  # where the standard wants one, and one would say when the patient was here
_PLACES = {
    "PlanePositionSequence": ("ImagePositionPatient",),
    "PlaneOrientationSequence": ("ImageOrientationPatient",),
    "PixelMeasuresSequence": ("PixelSpacing", "SliceThickness", "SpacingBetweenSlices"),
}
_GEOMETRY = tuple(key for keys in _PLACES.values() for key in keys)
_KEPT = ("SOPClassUID", "Modality", "Rows", "Columns", "NumberOfFrames", "LossyImageCompression", *_GEOMETRY)
_HASHED = ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID")
_EMPTY = ("AccessionNumber", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID")


def write(
    path: Path, mask: NDArray[np.integer], classes: Mapping[str, int], grid: Grid | None, *, keep_identifiers: bool
) -> None:
    """Write a canonical mask as a binary DICOM-SEG of the series it was made from, one segment per class.

    Segments are numbered 1.. in the order of ids and labelled with the class names. Known organs get their SNOMED CT
    code (with the side as modifier), other names a code of the private scheme 99GLOCAL; the category is "Anatomical
    Structure". Frames lie where the source images lie and refer to them; empty ones are left out.

    Unless `keep_identifiers`, nothing is copied from the source but its geometry: the patient is called "Anonymous",
    the patient ID is a hash of the patient's and the study's, birth date, sex, accession number and study date are
    empty, content date and time are dummies. Study, series, instance and frame-of-reference UIDs, in the references
    too, become `pydicom.uid.generate_uid(entropy_srcs=[original])`: masks of one study still belong together and to
    sources that were renamed by the same rule, but a viewer will not lay them over the originals by itself. With
    `keep_identifiers` the patient, the study and all references are the source's own.

    Raises FileError for input that is not DICOM, for frames without a place, and where a source file is gone.
    """
    if grid is None or not grid.files:
        raise FileError(path, "DICOM-SEG needs a DICOM input to refer to", "save as .nii.gz, .png or .tif")
    try:
        import highdicom
    except ImportError:
        raise MissingExtraError("highdicom", "medical") from None
    ids = {name: i for name, i in sorted(classes.items(), key=lambda item: item[1]) if i}
    if not ids:
        raise FileError(path, "DICOM-SEG needs at least one class beside the background", "name the classes")
    sources = [_dicom.opened(Path(file), pixels=False) for file in grid.files]
    frames = grid.restore(mask)
    frames = frames[None] if frames.ndim == 2 else frames
    if int(sources[0].get("NumberOfFrames") or 1) > 1:
        frames = _as_stored(path, sources[0], frames)
    if any((s.get("Rows"), s.get("Columns")) != frames.shape[1:] for s in sources):
        raise FileError(path, "the DICOM files are not those that the mask was made from", "predict again")
    numbers = np.zeros(int(frames.max(initial=0)) + 1, np.uint16 if len(ids) > 255 else np.uint8)
    for number, i in enumerate(ids.values(), 1):
        if i < len(numbers):
            numbers[i] = number
    references = [_complete(s) if keep_identifiers else _nameless(s) for s in sources]
    for reference in references:
        if not reference.get("SliceThickness") and grid.affine is not None:
            reference.SliceThickness = round(spacing(grid.affine)[0], 6)  # what the header leaves out, the places tell
    new = highdicom.UID
    with _quiet():
        try:
            segmentation = highdicom.seg.Segmentation(
                source_images=references,
                pixel_array=numbers[frames],
                segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
                segment_descriptions=[_segment(n, name, i) for n, (name, i) in enumerate(ids.items(), 1)],
                series_instance_uid=new(),
                series_number=900,
                sop_instance_uid=new(),
                instance_number=1,
                manufacturer="Glocal",
                manufacturer_model_name="Glocal segmentation",
                software_versions=__version__,
                device_serial_number="0",
                content_label="SEGMENTATION",
                content_description="Research use, not a medical device",
                series_description="Segmentation, research use",
                specific_character_set="ISO_IR 192",  # class names in any script
            )
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            raise FileError(
                path,
                f"DICOM-SEG cannot refer to this image ({str(error).rstrip('.')})",
                "save as .nii.gz or .tif",
            ) from None
    if not keep_identifiers:
        _dateless(segmentation)
    with aside(path) as part:
        segmentation.save_as(part)


def _as_stored(path: Path, source: Any, frames: NDArray[Any]) -> NDArray[Any]:
    """Slices, which the reader sorted by place, in the order of the file's frames."""
    places = [_dicom.frame_place(source, i) for i in range(len(frames))]
    known = [place for place in places if place is not None]
    if len(known) < len(frames) or not source.get("FrameOfReferenceUID"):
        raise FileError(path, "its frames have no place in the patient, which DICOM-SEG needs", "save as .tif")
    order, _, _ = _dicom_geometry.stack(path, known)
    back = np.empty_like(frames)
    back[order] = frames
    return back


def _segment(number: int, name: str, i: int) -> Any:
    """The description of one segment."""
    import highdicom
    from pydicom.dataset import Dataset
    from pydicom.sr.codedict import codes

    known = structure(name)
    if known is not None:
        kind = getattr(codes.SCT, known.code)
    else:
        value = re.sub(r"[^A-Za-z0-9]", "", name)[:16].upper() or f"ID{i}"
        kind = highdicom.sr.CodedConcept(value, SCHEME, name[:64])
    description = highdicom.seg.SegmentDescription(
        segment_number=number,
        segment_label=name[:64],
        segmented_property_category=codes.SCT.AnatomicalStructure,
        segmented_property_type=kind,
        algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=highdicom.AlgorithmIdentificationSequence(
            name="Glocal", version=__version__, family=codes.DCM.ArtificialIntelligence
        ),
    )
    description.SegmentDescription = f"class {i}"
    if known is not None and known.side:
        side = codes.SCT.Left if known.side == "left" else codes.SCT.Right
        item = Dataset()
        item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = side.value, side.scheme_designator, side.meaning
        description.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = [item]
    return description


def _nameless(source: Any) -> Any:
    """A new header with the geometry of `source` and nothing else of it."""
    from pydicom.dataset import Dataset
    from pydicom.uid import generate_uid

    made = Dataset()
    for key in _KEPT:
        if key in source:
            setattr(made, key, source[key].value)
    for key in _HASHED:
        if source.get(key):
            setattr(made, key, generate_uid(entropy_srcs=[str(source[key].value)]))
    _framed(made, source)
    for key in _EMPTY:
        setattr(made, key, "")
    made.PatientName = "Anonymous"
    secret = f"{source.get('StudyInstanceUID', '')}/{source.get('PatientID', '')}"
    made.PatientID = "anon-" + hashlib.sha256(secret.encode()).hexdigest()[:16]
    made.PatientIdentityRemoved = "YES"
    made.DeidentificationMethod = "Glocal: only the geometry of the source is kept, UIDs are hashes"
    for key in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        if key in source:
            setattr(made, key, [_places(item) for item in source[key].value])
    return made


def _places(groups: Any) -> Any:
    """The functional groups that say where frames lie, of one item."""
    from pydicom.dataset import Dataset

    made = Dataset()
    for sequence, keys in _PLACES.items():
        if sequence in groups and groups[sequence].value:
            inner = Dataset()
            for key in keys:
                if key in groups[sequence].value[0]:
                    setattr(inner, key, groups[sequence].value[0][key].value)
            setattr(made, sequence, [inner])
    return made


def _complete(source: Any) -> Any:
    """`source` with the elements that highdicom expects of every image, empty where it lacks them."""
    for key in ("PatientID", "PatientName", *_EMPTY):
        if key not in source:
            setattr(source, key, "")
    _framed(source, source)
    return source


def _framed(made: Any, source: Any) -> None:
    """A frame of reference, which DICOM-SEG needs, for images that have a place but do not name it: their series."""
    from pydicom.uid import generate_uid

    if not made.get("FrameOfReferenceUID") and "ImagePositionPatient" in source:
        made.FrameOfReferenceUID = generate_uid(entropy_srcs=["frame", str(source.get("SeriesInstanceUID", ""))])


def _dateless(segmentation: Any) -> None:
    """Dates and times of making, which would say when the patient was here, become dummies or go."""
    for key in ("InstanceCreationDate", "InstanceCreationTime", "SeriesDate", "SeriesTime"):
        if key in segmentation:
            del segmentation[key]
    segmentation.ContentDate, segmentation.ContentTime = DUMMY_DATE, DUMMY_TIME


@contextmanager
def _quiet() -> Iterator[None]:
    """Warnings of pydicom and highdicom quote values of the header, so they are not shown."""
    loggers = [logging.getLogger(name) for name in ("highdicom", "pydicom")]
    before = [logger.disabled for logger in loggers]
    for logger in loggers:
        logger.disabled = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, state in zip(loggers, before, strict=True):
            logger.disabled = state
