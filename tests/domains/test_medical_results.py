"""Masks in every format, read back by the format's own library; nothing of the patient in any byte."""

import csv
import errno
import gzip
import json

import highdicom
import nibabel as nib
import numpy as np
import pydicom
import pytest
import tifffile
from PIL import Image
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, UltrasoundImageStorage, generate_uid

from apps.medical import readers
from apps.medical._dicom_identity import identifiers
from apps.medical.segmentation import _writing
from apps.medical.segmentation.results import Segmentation, write_csv
from core.data.sample import Meta
from core.errors import FileError, InputError, SettingError, ShapeError

ORGANS = {"background": 0, "liver": 1, "kidney_right": 2, "grasper": 5}
PLANTED = (
    "Zweistein",
    "Ottokar",
    "PID-4711",
    "19630412",
    "20260317",
    "ACC-99881",
    "Sankt Florian",
    "Dr^Brinkmann",
    "093155",
)


def marked(shape, ids=(1, 2, 5)):
    """A mask that no flip or transposition leaves alone."""
    mask = np.zeros(shape, np.uint8)
    draw = np.random.default_rng(1)
    for i in ids:
        corner = [int(draw.integers(0, n - n // 2)) for n in shape]
        mask[tuple(slice(c, c + max(1, n // 3)) for c, n in zip(corner, shape, strict=True))] = i
    assert set(np.unique(mask)) == {0, *ids}
    return mask


def turned():
    """An oblique affine with anisotropic spacing and a flip, in millimetres."""
    a, b = np.deg2rad(12), np.deg2rad(-7)
    turn = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]]) @ np.array(
        [[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]]
    )
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([-1.3, 0.9, 4.0])
    affine[:3, 3] = 31.5, -20.25, 7
    return affine


def scan_file(path, shape=(9, 11, 6), kind=nib.Nifti1Image, **codes):
    image = kind(np.random.default_rng(0).normal(0, 1, shape).astype(np.float32), turned())
    image.header["descrip"], image.header["aux_file"] = b"Zweistein Ottokar 19630412", b"PID-4711"
    image.set_sform(turned(), codes.get("sform", 2))
    image.set_qform(turned(), codes.get("qform", 1))
    image.header.set_xyzt_units("mm", "sec")
    nib.save(image, path)
    return readers.read(path)


def result(scan, mask=None, classes=ORGANS, **more):
    mask = marked(scan.shape) if mask is None else mask
    return Segmentation(mask, classes, scan.meta, scan.grid, scan=scan, **more)


@pytest.mark.parametrize(("kind", "suffix"), [(nib.Nifti1Image, ".nii.gz"), (nib.Nifti2Image, ".nii")])
def test_nifti_lies_exactly_on_the_grid_of_the_input(tmp_path, kind, suffix):
    scan = scan_file(tmp_path / f"in{suffix}", kind=kind)
    answer = result(scan)
    answer.save(tmp_path / f"mask{suffix}")
    given, written = nib.load(tmp_path / f"in{suffix}"), nib.load(tmp_path / f"mask{suffix}")
    assert type(written) is type(given)
    assert written.shape == given.shape
    assert written.get_data_dtype() == np.uint8
    for form in ("sform", "qform"):
        ours, theirs = getattr(written, f"get_{form}")(coded=True), getattr(given, f"get_{form}")(coded=True)
        assert np.array_equal(ours[0], theirs[0])
        assert ours[1] == theirs[1]
    assert written.header.get_xyzt_units() == given.header.get_xyzt_units()
    # The same place in the world for each voxel, told by the affines alone.
    here = np.argwhere(answer.mask == 2)
    world = np.c_[here, np.ones(len(here))] @ np.array(scan.meta.affine).T
    index = (world @ np.linalg.inv(written.affine).T)[:, :3].round().astype(int)
    assert (np.asanyarray(written.dataobj)[tuple(index.T)] == 2).all()
    assert (np.asanyarray(written.dataobj) == 2).sum() == len(here)
    assert np.array_equal(readers.read(tmp_path / f"mask{suffix}").array()[0][0], answer.mask)


def test_nifti_holds_neither_texts_nor_names(tmp_path):
    scan = scan_file(tmp_path / "Zweistein_Ottokar.nii.gz")
    result(scan).save(tmp_path / "mask.nii.gz")
    raw = (tmp_path / "mask.nii.gz").read_bytes()
    assert not any(text.encode() in part for text in PLANTED for part in (raw, gzip.decompress(raw)))
    assert not raw[3] & 8  # gzip's own field for a file name
    again = tmp_path / "again.nii.gz"
    result(scan).save(again)
    assert again.read_bytes() == raw


def test_large_ids_and_two_dimensional_nifti(tmp_path):
    flat = nib.Nifti1Image(np.ones((7, 5), np.int16), np.diag([2.0, 3.0, 1.0, 1.0]))
    nib.save(flat, tmp_path / "flat.nii")
    scan = readers.read(tmp_path / "flat.nii")
    mask = marked(scan.shape, (1,)).astype(np.uint16) * 300
    result(scan, mask, {"x": 300}).save(tmp_path / "mask.nii")
    written = nib.load(tmp_path / "mask.nii")
    assert written.shape == (7, 5)
    assert written.get_data_dtype() == np.uint16
    assert np.array_equal(readers.read(tmp_path / "mask.nii").array()[0][0], mask)


def test_probabilities(tmp_path):
    scan = scan_file(tmp_path / "in.nii.gz")
    mask = marked(scan.shape)
    values = np.stack([(mask == i) * 0.5 + 0.125 for i in ORGANS.values()]).astype(np.float16)
    answer = result(scan, mask, probabilities=values)
    answer.save_probabilities(tmp_path / "p.nii.gz")
    written = nib.load(tmp_path / "p.nii.gz")
    assert written.get_data_dtype() == np.float32
    assert np.array_equal(written.affine, nib.load(tmp_path / "in.nii.gz").affine)
    for k in range(4):
        assert np.array_equal(scan.grid.canonical(np.asanyarray(written.dataobj)[..., k]), values[k])
    answer.save_probabilities(tmp_path / "p.npz")
    with np.load(tmp_path / "p.npz", allow_pickle=False) as kept:
        assert np.array_equal(kept["probabilities"], values)
        assert list(kept["classes"]) == list(ORGANS)
    answer.save_probabilities(tmp_path / "p.tif")
    pages = tifffile.imread(tmp_path / "p.tif")
    assert pages.dtype == np.float32
    assert np.array_equal(pages, values.swapaxes(0, 1))  # ImageJ orders slices before channels
    with pytest.raises(InputError, match="--probabilities"):
        result(scan).save_probabilities(tmp_path / "p.npz")


def test_png_holds_the_ids(tmp_path):
    mask = marked((20, 30))
    answer = Segmentation(mask, ORGANS, Meta(id="a"))
    answer.save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.mode == "P"
        assert np.array_equal(np.asarray(picture), mask)
        colours = np.asarray(picture.convert("RGB"))
    assert len({tuple(c) for c in colours.reshape(-1, 3)}) == 4
    wide = mask.astype(np.uint16) * 200
    Segmentation(wide, {k: v * 200 for k, v in ORGANS.items()}, Meta()).save(tmp_path / "b.png")
    with Image.open(tmp_path / "b.png") as picture:
        assert np.array_equal(np.asarray(picture), wide)
    with pytest.raises(FileError, match=r"6 slices; save volumes as \.nii\.gz"):
        Segmentation(marked((6, 8, 9)), ORGANS, Meta()).save(tmp_path / "c.png")
    with pytest.raises(FileError, match=r"save them as \.png"):
        answer.save(tmp_path / "a.nii.gz")
    with pytest.raises(FileError, match="needs a DICOM input"):
        answer.save(tmp_path / "a.dcm")
    with pytest.raises(FileError, match=r"\.nii\.gz, \.png, \.tif or \.dcm"):
        answer.save(tmp_path / "a.jpg")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png", "b.png"]


def test_tiff_holds_the_ids_and_the_spacing(tmp_path):
    stack = marked((4, 12, 15))
    Segmentation(stack, ORGANS, Meta(spacing=(5.0, 0.5, 0.25))).save(tmp_path / "stack.tif")
    with tifffile.TiffFile(tmp_path / "stack.tif") as file:
        assert len(file.pages) == 4
        assert np.array_equal(file.asarray(), stack)
        assert file.imagej_metadata["spacing"] == 5
        assert file.imagej_metadata["slices"] == 4
        across, down = (file.pages[0].tags[t].value for t in ("XResolution", "YResolution"))
        assert (across[0] / across[1], down[0] / down[1]) == (40, 20)  # pixels a centimetre
    again = readers.read(tmp_path / "stack.tif")
    assert np.array_equal(again.array()[0][0], stack)
    flat = marked((12, 15)).astype(np.uint16)
    Segmentation(flat, ORGANS, Meta(spacing=(0.5, 0.25))).save(tmp_path / "flat.tif")
    assert np.array_equal(tifffile.imread(tmp_path / "flat.tif"), flat)


def dicom_file(path, number, series, shape=(10, 8), storage=CTImageStorage, **elements):
    """One image with planted names; slices lie 2.5 mm apart."""
    path.parent.mkdir(exist_ok=True)
    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, storage
    item = pydicom.Dataset()
    item.file_meta = meta
    item.SOPClassUID, item.SOPInstanceUID = storage, generate_uid()
    meta.MediaStorageSOPInstanceUID = item.SOPInstanceUID
    item.StudyInstanceUID, item.SeriesInstanceUID, item.FrameOfReferenceUID = series
    item.PatientName, item.PatientID, item.PatientBirthDate = "Zweistein^Ottokar", "PID-4711", "19630412"
    item.StudyDate = item.SeriesDate = item.AcquisitionDate = item.ContentDate = "20260317"
    item.StudyTime, item.AccessionNumber, item.StudyID = "093155", "ACC-99881", "ACC-99881"
    item.InstitutionName, item.ReferringPhysicianName = "Sankt Florian", "Dr^Brinkmann"
    item.PatientSex, item.Modality, item.InstanceNumber = "M", "CT", number
    item.ContributingEquipmentSequence = [pydicom.Dataset()]
    item.ContributingEquipmentSequence[0].InstitutionName = "Sankt Florian"
    # Columns run to the right and slices down, so both are turned round in canonical order.
    item.ImageOrientationPatient, item.PixelSpacing, item.SliceThickness = [-1, 0, 0, 0, 1, 0], [0.8, 0.6], 2.5
    item.ImagePositionPatient = [3.0, 4.0, 20 - 2.5 * number]
    item.Rows, item.Columns, item.SamplesPerPixel = *shape, 1
    item.PhotometricInterpretation, item.BitsAllocated, item.BitsStored, item.HighBit = "MONOCHROME2", 16, 12, 11
    item.PixelRepresentation = 0
    for key, value in elements.items():
        if value is None:
            delattr(item, key)
        else:
            setattr(item, key, value)
    draw = np.random.default_rng(number)
    item.PixelData = draw.integers(0, 4000, (int(item.get("NumberOfFrames", 1)), *shape), dtype=np.uint16).tobytes()
    item.save_as(path, enforce_file_format=True)
    return item


@pytest.fixture
def series(tmp_path):
    folder = tmp_path / "Zweistein"
    uids = [generate_uid() for _ in range(3)]
    items = [dicom_file(folder / f"{n}.dcm", n, uids) for n in (3, 1, 5, 2, 4)]
    return readers.read(folder), items


def test_dicom_seg_lies_on_the_images_and_names_nobody(tmp_path, series):
    scan, items = series
    answer = result(scan)
    answer.save(tmp_path / "seg.dcm")
    raw = (tmp_path / "seg.dcm").read_bytes()
    assert [t for t in PLANTED if t.encode() in raw] == []
    written = highdicom.seg.segread(tmp_path / "seg.dcm")
    secret = {text for item in items for text in identifiers(item)}
    assert len(secret) > 15
    assert [t for t in secret if t.encode() in raw] == []
    assert (written.PatientName, written.PatientBirthDate, written.StudyDate) == ("Anonymous", "", "")
    assert written.PatientID.startswith("anon-")
    assert written.PatientIdentityRemoved == "YES"
    assert written.ContentDate == "19000101"
    assert [s.SegmentLabel for s in written.SegmentSequence] == ["liver", "kidney_right", "grasper"]
    codes = [s.SegmentedPropertyTypeCodeSequence[0] for s in written.SegmentSequence]
    assert [(c.CodeValue, c.CodingSchemeDesignator) for c in codes] == [
        ("10200004", "SCT"),
        ("64033007", "SCT"),
        ("GRASPER", "99GLOCAL"),
    ]
    assert codes[1].SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning == "Right"
    # Each frame says where it lies: find the mask there through the scan's own affine.
    found = np.zeros_like(answer.mask)
    pixels = written.pixel_array
    for frame, groups in zip(pixels, written.PerFrameFunctionalGroupsSequence, strict=True):
        position = np.array(groups.PlanePositionSequence[0].ImagePositionPatient, float)
        rows, columns = np.nonzero(frame)
        patient = position + np.outer(columns, [-0.6, 0, 0]) + np.outer(rows, [0, 0.8, 0])
        world = np.c_[patient * [-1, -1, 1], np.ones(len(rows))]  # left, posterior to right, anterior
        index = (world @ np.linalg.inv(np.array(scan.meta.affine)).T)[:, :3].round().astype(int)
        segment = groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        found[tuple(index.T)] = [1, 2, 5][segment - 1]
    assert np.array_equal(found, answer.mask)
    referred = {str(r.ReferencedSOPInstanceUID) for r in written.ReferencedSeriesSequence[0].ReferencedInstanceSequence}
    assert referred == {generate_uid(entropy_srcs=[str(item.SOPInstanceUID)]) for item in items}


def test_dicom_seg_keeps_identifiers_on_request(tmp_path, series):
    scan, items = series
    result(scan).save(tmp_path / "seg.dcm", keep_identifiers=True)
    written = pydicom.dcmread(tmp_path / "seg.dcm")
    assert (written.PatientName, written.PatientID, written.StudyDate) == ("Zweistein^Ottokar", "PID-4711", "20260317")
    assert written.StudyInstanceUID == items[0].StudyInstanceUID
    assert written.FrameOfReferenceUID == items[0].FrameOfReferenceUID
    referred = {r.ReferencedSOPInstanceUID for r in written.ReferencedSeriesSequence[0].ReferencedInstanceSequence}
    assert referred == {item.SOPInstanceUID for item in items}


def test_dicom_seg_of_nothing_found_and_of_names_in_any_script(tmp_path):
    uids = [generate_uid() for _ in range(3)]
    for n in (1, 2):
        dicom_file(tmp_path / "in" / f"{n}.dcm", n, uids, SpecificCharacterSet="ISO_IR 100", PatientName="Müller^Jörg")
    scan = readers.read(tmp_path / "in")
    empty = np.zeros(scan.shape, np.uint8)
    for keep in (False, True):
        path = tmp_path / f"{keep}.dcm"
        result(scan, empty, {"Läsion β": 1, "Печень": 2}).save(path, keep_identifiers=keep)
        written = highdicom.seg.segread(path)
        assert [str(s.SegmentLabel) for s in written.SegmentSequence] == ["Läsion β", "Печень"]
        assert not written.pixel_array.any()
        assert str(written.PatientName) == ("Müller^Jörg" if keep else "Anonymous")
    assert all("Müller".encode(code) not in (tmp_path / "False.dcm").read_bytes() for code in ("latin1", "utf8"))


def test_dicom_volume_as_nifti_lies_where_the_images_lie(tmp_path, series):
    scan, _ = series
    answer = result(scan)
    answer.save(tmp_path / "mask.nii.gz")
    written = nib.load(tmp_path / "mask.nii.gz")
    here = np.argwhere(answer.mask == 5)
    world = np.c_[here, np.ones(len(here))] @ np.array(scan.meta.affine).T
    index = (world @ np.linalg.inv(written.affine).T)[:, :3].round().astype(int)
    assert (np.asanyarray(written.dataobj)[tuple(index.T)] == 5).all()
    assert np.asanyarray(written.dataobj).shape == (8, 10, 5)
    assert not any(t.encode() in gzip.decompress((tmp_path / "mask.nii.gz").read_bytes()) for t in PLANTED)


def test_dicom_stills_and_frames(tmp_path):
    uids = [generate_uid() for _ in range(3)]
    plain = {"ImagePositionPatient": None, "ImageOrientationPatient": None, "FrameOfReferenceUID": None}
    dicom_file(tmp_path / "still.dcm", 1, uids, storage=UltrasoundImageStorage, Modality="US", **plain)
    scan = readers.read(tmp_path / "still.dcm")
    result(scan).save(tmp_path / "seg.dcm")
    written = highdicom.seg.segread(tmp_path / "seg.dcm")
    assert np.array_equal(written.pixel_array[0] * 1, (marked(scan.shape) == 1) * 1)
    assert [t for t in PLANTED if t.encode() in (tmp_path / "seg.dcm").read_bytes()] == []
    dicom_file(
        tmp_path / "cine.dcm", 1, uids, storage="1.2.840.10008.5.1.4.1.1.3.1", Modality="US", NumberOfFrames=3, **plain
    )
    cine = result(readers.read(tmp_path / "cine.dcm"))
    with pytest.raises(FileError, match="no place in the patient"):
        cine.save(tmp_path / "cine-seg.dcm")
    assert not (tmp_path / "cine-seg.dcm").exists()
    cine.save(tmp_path / "cine.tif")
    assert np.array_equal(tifffile.imread(tmp_path / "cine.tif"), cine.mask)
    assert {(r["mm3"], r["mm2"]) for r in cine.volumes()} == {(None, None)}  # frames in time make no volume


def enhanced(path):
    """A multi-frame CT whose frames are stored out of order, with planted names."""
    uids = [generate_uid() for _ in range(3)]
    shared, frames = pydicom.Dataset(), []
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [pydicom.Dataset()], [pydicom.Dataset()]
    shared.PlaneOrientationSequence[0].ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    shared.PixelMeasuresSequence[0].PixelSpacing, shared.PixelMeasuresSequence[0].SliceThickness = [0.8, 0.6], 2.5
    for z in (5.0, 0.0, 2.5, 7.5):
        place = pydicom.Dataset()
        place.PlanePositionSequence = [pydicom.Dataset()]
        place.PlanePositionSequence[0].ImagePositionPatient = [0, 0, z]
        place.FrameContentSequence = [pydicom.Dataset()]
        place.FrameContentSequence[0].FrameAcquisitionDateTime = "20260317093155"
        frames.append(place)
    top = dict.fromkeys(("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness"))
    return dicom_file(
        path, 1, uids, storage="1.2.840.10008.5.1.4.1.1.2.1", NumberOfFrames=4,
        SharedFunctionalGroupsSequence=[shared], PerFrameFunctionalGroupsSequence=frames, **top,
    )  # fmt: skip


def test_dicom_seg_of_frames_that_are_stored_out_of_order(tmp_path):
    enhanced(tmp_path / "multi.dcm")
    scan = readers.read(tmp_path / "multi.dcm")
    answer = result(scan)
    answer.save(tmp_path / "seg.dcm")
    assert [t for t in PLANTED if t.encode() in (tmp_path / "seg.dcm").read_bytes()] == []
    written = highdicom.seg.segread(tmp_path / "seg.dcm")
    found = np.zeros_like(answer.mask)
    for frame, groups in zip(written.pixel_array, written.PerFrameFunctionalGroupsSequence, strict=True):
        z = round(float(groups.PlanePositionSequence[0].ImagePositionPatient[2]) / 2.5)
        found[z][frame > 0] = [1, 2, 5][groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber - 1]
    assert np.array_equal(found, answer.mask)


def test_volumes(tmp_path):
    scan = scan_file(tmp_path / "in.nii.gz")
    mask = np.zeros(scan.shape, np.uint8)
    mask[0, :2, :5], mask[1, 0, 0] = 1, 5
    valid = np.ones(scan.shape, bool)
    valid[0, 0, 0] = False
    rows = result(scan, mask, valid=valid).volumes()
    size = abs(np.linalg.det(turned()[:3, :3]))
    assert [(r["class"], r["id"], r["samples"]) for r in rows] == [
        ("liver", 1, 9),
        ("kidney_right", 2, 0),
        ("grasper", 5, 1),
    ]
    assert rows[0]["mm3"] == pytest.approx(9 * size)
    assert rows[0]["ml"] == pytest.approx(9 * size / 1000)
    flat = Segmentation(mask[0], ORGANS, Meta(id="b", spacing=(0.5, 0.25)))
    assert flat.volumes()[0] == {"class": "liver", "id": 1, "samples": 10, "mm3": None, "ml": None, "mm2": 1.25}
    write_csv([result(scan, mask, valid=valid), flat], tmp_path / "volumes.csv")
    with (tmp_path / "volumes.csv").open(newline="") as stream:
        table = list(csv.DictReader(stream))
    assert [r["item"] for r in table] == ["in"] * 3 + ["b"] * 3
    assert float(table[0]["ml"]) == pytest.approx(9 * size / 1000, rel=1e-5)
    assert (table[3]["mm2"], table[3]["ml"]) == ("1.25", "")


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch, series):
    scan = scan_file(tmp_path / "in.nii.gz")
    before = {p.name for p in tmp_path.iterdir()}

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(nib.Nifti1Image, "to_stream", full)
    monkeypatch.setattr(Image.Image, "save", full)
    monkeypatch.setattr(tifffile, "imwrite", full)
    monkeypatch.setattr(pydicom.Dataset, "save_as", full)
    flat = Segmentation(marked((20, 30)), ORGANS, Meta())
    for answer, name in (
        (result(scan), "a.nii.gz"),
        (flat, "a.png"),
        (flat, "a.tif"),
        (result(series[0]), "a.dcm"),
    ):
        with pytest.raises(FileError, match="disk is full"):
            answer.save(tmp_path / name)
    assert {p.name for p in tmp_path.iterdir()} == before


def test_an_old_result_stays_until_the_new_one_is_whole(tmp_path, monkeypatch):
    scan = scan_file(tmp_path / "in.nii")
    result(scan).save(tmp_path / "mask.nii")
    old = (tmp_path / "mask.nii").read_bytes()

    def half(self, stream):
        stream.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(nib.Nifti1Image, "to_stream", half)
    with pytest.raises(FileError):
        result(scan, np.zeros(scan.shape, np.uint8)).save(tmp_path / "mask.nii")
    assert (tmp_path / "mask.nii").read_bytes() == old
    assert _writing.nifti  # the writer under test


def test_drawing_shows_physical_proportions_and_the_classes():
    mask = np.zeros((9, 20, 40), np.uint8)
    mask[5, 5:15, 10:30] = 1
    mask[2, 5:9, 10:20] = 2
    image = np.random.default_rng(0).normal(0, 1, mask.shape)
    answer = Segmentation(mask, {"liver": 1, "spleen": 2}, Meta(spacing=(5.0, 2.0, 1.0)), image=image)
    picture = answer.draw(slice=5)
    assert picture.dtype == np.uint8
    assert picture.shape[2] == 3
    orange, blue = (230, 159, 0), (86, 180, 233)
    edge = np.argwhere((picture == orange).all(-1))
    edge = edge[(edge[:, 0] < 460)]
    height, width = np.ptp(edge, axis=0) + 1
    assert height / width == pytest.approx(1.0, abs=0.05)  # 10 rows of 2 mm by 20 columns of 1 mm
    assert not (picture == blue).all(-1).any()  # the legend names what is shown
    everything = answer.draw(truth=mask[::-1])
    assert (everything == blue).all(-1).any()
    assert everything.shape[0] > 2.5 * answer.draw().shape[0] / 2
    assert np.array_equal(answer.draw(), answer.draw())
    with pytest.raises(SettingError, match="0 to 8"):
        answer.draw(slice=9)
    with pytest.raises(ShapeError):
        answer.draw(truth=mask[0])


@pytest.mark.parametrize("shape", [(1, 1), (1, 7, 300), (30, 3, 3)])
def test_any_shape_can_be_drawn(shape):
    mask = np.zeros(shape, np.uint8)
    for image in (None, np.full(shape, np.nan), np.zeros((3, *shape), np.uint8), np.zeros((2, *shape), np.int16)):
        assert Segmentation(mask, ORGANS, Meta(), image=image).draw().ndim == 3


def test_as_dict_names_neither_path_nor_person(tmp_path, series):
    text = json.dumps(result(series[0]).as_dict())
    assert "not a medical device" in text
    assert not any(t in text for t in PLANTED)
    assert str(tmp_path) not in text


def test_parts_that_do_not_fit():
    mask = marked((6, 8, 9))
    for options in (
        {"mask": mask.astype(np.int32)},
        {"valid": np.ones((6, 8, 8), bool)},
        {"image": np.ones((6, 8, 8))},
        {"probabilities": np.ones((2, 6, 8, 9), np.float16)},
        {"grid": readers.Grid((6, 8, 8))},
    ):
        with pytest.raises(ShapeError):
            Segmentation(**{"mask": mask, "classes": ORGANS, "meta": Meta(), **options})
    with pytest.raises(InputError, match="5"):
        Segmentation(mask, {"liver": 1, "spleen": 2}, Meta())
    assert Segmentation(mask, {"liver": 1, "spleen": 2}, Meta(), ignore=5).volumes()[-1]["class"] == "spleen"
