"""DICOM: stills, frames, volumes, series, and what must not leave a header."""

import copy
import io
import warnings

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom")
pytest.importorskip("nibabel")

from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import (
    CTImageStorage,
    EnhancedMRImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    MRImageStorage,
    UltrasoundMultiFrameImageStorage,
    generate_uid,
)  # fmt: skip

from apps.medical import readers
from core.errors import FileError

PLANTED = {
    "PatientName": "Quimby^Ada^Louise", "PatientID": "PX-77319", "PatientBirthDate": "19510407",
    "StudyDate": "20230518", "AccessionNumber": "ACC998877", "InstitutionName": "Saint Elmo Hospital",
    "ReferringPhysicianName": "Hartwig^Otto", "StudyInstanceUID": "1.2.3.4567.890", "StationName": "MRROOM4",
}  # fmt: skip
AXIAL = [1, 0, 0, 0, 1, 0]


def dataset(pixels, *, syntax=ExplicitVRLittleEndian, kind=MRImageStorage, **elements):
    """(Y, X), (N, Y, X) or with a last axis of 3 colours, as a pydicom data set with planted identity."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = syntax, kind
    meta.MediaStorageSOPInstanceUID = generate_uid()
    made = FileDataset(
        None, {}, file_meta=meta, preamble=b"\0" * 128, is_implicit_VR=syntax == ImplicitVRLittleEndian,
        is_little_endian=syntax != ExplicitVRBigEndian,
    )  # fmt: skip
    made.SOPClassUID, made.SOPInstanceUID, made.Modality = kind, meta.MediaStorageSOPInstanceUID, "MR"
    for key, value in PLANTED.items():
        setattr(made, key, value)
    colour = pixels.shape[-1] == 3
    plane = pixels.shape[:-1] if colour else pixels.shape
    made.Rows, made.Columns = plane[-2:]
    if len(plane) == 3:
        made.NumberOfFrames = plane[0]
    made.SamplesPerPixel = 3 if colour else 1
    made.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    made.BitsAllocated = made.BitsStored = 8 * pixels.dtype.itemsize
    made.HighBit = made.BitsStored - 1
    made.PixelRepresentation = int(pixels.dtype.kind == "i")
    if colour:
        made.PlanarConfiguration = 0
    data = pixels.astype(pixels.dtype.newbyteorder(">" if syntax == ExplicitVRBigEndian else "<")).tobytes()
    made.PixelData = data + b"\0" * (len(data) % 2)
    for key, value in elements.items():
        setattr(made, key, value)
    return made


def saved(path, pixels, **wishes):
    dataset(pixels, **wishes).save_as(path, enforce_file_format=True)
    return path


def ramp(dtype=np.int16, shape=(6, 8)):
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


def series(folder, positions, *, uid="1.2.3.9", each=lambda i: {}, **wishes):
    folder.mkdir(exist_ok=True)
    for i, place in enumerate(positions):
        elements = {
            "ImagePositionPatient": list(place), "ImageOrientationPatient": AXIAL, "PixelSpacing": [2.0, 1.5],
            "SeriesInstanceUID": uid, "InstanceNumber": i, **wishes, **each(i),
        }  # fmt: skip
        pixels = elements.pop("pixels", ramp() + 100 * i)
        saved(folder / f"{uid[-1]}-{(i * 7) % 11:03d}.dcm", pixels, **elements)
    return folder


def whole(scan):
    return scan.array()[0]


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16])
def test_a_still_in_every_plain_syntax(tmp_path, syntax, dtype):
    path = saved(tmp_path / "a.dcm", ramp(dtype), syntax=syntax, PixelSpacing=[0.5, 0.25])
    scan = readers.read(path)
    assert (scan.kind, scan.shape, scan.channels, scan.dtype) == ("picture", (6, 8), ("grey",), np.dtype(dtype))
    assert (whole(scan)[0] == ramp()).all()
    assert scan.meta.spacing == (0.5, 0.25)
    assert not scan.lossy


def test_slope_and_intercept(tmp_path):
    whole_numbers = readers.read(saved(tmp_path / "a.dcm", ramp(np.uint16), RescaleSlope=1, RescaleIntercept=-1024))
    assert whole_numbers.dtype == np.int16
    assert (whole(whole_numbers)[0] == ramp() - 1024).all()
    assert "rescaled by slope 1 and intercept -1024" in whole_numbers.meta.applied
    scan = readers.read(saved(tmp_path / "b.dcm", ramp(), RescaleSlope="0.5", RescaleIntercept="3"))
    np.testing.assert_allclose(whole(scan)[0], ramp() * 0.5 + 3)
    assert scan.dtype == np.float32


def test_white_is_zero_is_inverted(tmp_path):
    scan = readers.read(
        saved(tmp_path / "a.dcm", ramp(np.uint16), PhotometricInterpretation="MONOCHROME1", BitsStored=12, HighBit=11)
    )
    assert (whole(scan)[0] == 4095 - ramp()).all()
    assert "inverted (MONOCHROME1)" in scan.meta.applied


def test_padding_is_invalid(tmp_path):
    pixels = ramp()
    pixels[0, :3] = -2000
    made = dataset(pixels, RescaleIntercept=-1000, RescaleSlope=1)
    made.add_new("PixelPaddingValue", "SS", -2000)
    made.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    values, valid = readers.read(tmp_path / "a.dcm").array()
    assert (~valid).sum() == 3
    assert not valid[0, :3].any()
    assert (values[0, 0, :3] == 0).all()
    assert values[0, 5, 7] == 47 - 1000


def test_palette(tmp_path):
    made = dataset(np.array([[0, 1], [2, 3]], np.uint8), PhotometricInterpretation="PALETTE COLOR")
    tables = {"Red": [0, 255, 0, 9], "Green": [0, 0, 255, 8], "Blue": [1, 2, 3, 4]}
    for name, table in tables.items():
        setattr(made, f"{name}PaletteColorLookupTableDescriptor", [4, 0, 16])
        setattr(made, f"{name}PaletteColorLookupTableData", (np.array(table, "<u2") << 8).tobytes())
    made.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    scan = readers.read(tmp_path / "a.dcm")
    assert (scan.channels, scan.dtype) == (("red", "green", "blue"), np.uint8)
    assert (whole(scan).reshape(3, 4) == list(tables.values())).all()


def red_ybr():
    """A red picture as YBR_FULL bytes, by the standard's formula."""
    ybr = np.zeros((4, 6, 3), np.uint8)
    ybr[...] = (76, 85, 255)
    return ybr


def is_red(values):
    red, green, blue = values.reshape(3, -1).astype(int)
    return (red > 245).all() and (green < 12).all() and (blue < 12).all()


def test_ybr_becomes_rgb_once(tmp_path):
    scan = readers.read(saved(tmp_path / "a.dcm", red_ybr(), PhotometricInterpretation="YBR_FULL"))
    assert is_red(whole(scan))
    assert "YBR_FULL converted to RGB" in scan.meta.applied


def test_ybr_422_in_jpeg_becomes_rgb_once(tmp_path):
    from PIL import Image

    frame = io.BytesIO()
    Image.fromarray(np.full((16, 24, 3), (254, 0, 0), np.uint8)).save(frame, "JPEG", quality=95, subsampling="4:2:2")
    made = dataset(
        np.zeros((16, 24, 3), np.uint8), syntax=JPEGBaseline8Bit, PhotometricInterpretation="YBR_FULL_422",
        LossyImageCompression="01",
    )  # fmt: skip
    made.PixelData = encapsulate([frame.getvalue()])
    made["PixelData"].is_undefined_length = True
    made.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    scan = readers.read(tmp_path / "a.dcm")
    assert is_red(whole(scan))
    assert scan.lossy
    assert "stored with lossy compression" in scan.meta.applied
    cut = (tmp_path / "a.dcm").read_bytes()[:-200]
    (tmp_path / "b.dcm").write_bytes(cut)
    with pytest.raises(
        FileError, match=r"b\.dcm: (its pixel data are cut off|holds no picture .* or is cut off before it)"
    ):
        readers.read(tmp_path / "b.dcm")


def test_a_missing_decoder_is_said(tmp_path):
    made = dataset(ramp(np.uint8), syntax=JPEGLSLossless)
    made.PixelData = encapsulate([b"\xff\xd8\xff\xf7 nothing"])
    made["PixelData"].is_undefined_length = True
    made.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    decoder = pydicom.pixels.get_decoder(JPEGLSLossless)
    wanted = "damaged" if decoder.is_available else "no decoder for JPEG-LS .* is installed; pip install"
    with pytest.raises(FileError, match=wanted):
        readers.read(tmp_path / "a.dcm")


@pytest.mark.parametrize(
    ("elements", "spacing", "said"),
    [
        ({"PixelSpacing": [1, 2], "ImagerPixelSpacing": [3, 4]}, (1, 2), ""),
        ({"ImagerPixelSpacing": [3, 4]}, (3, 4), "at the detector"),
        ({"ImagerPixelSpacing": [3, 4], "EstimatedRadiographicMagnificationFactor": "2"}, (1.5, 2), "magnification 2"),
        ({"NominalScannedPixelSpacing": [0.1, 0.1]}, (0.1, 0.1), "NominalScannedPixelSpacing"),
        ({"PixelSpacing": [0, 0]}, None, ""),
        ({}, None, ""),
    ],
)
def test_where_spacing_comes_from(tmp_path, elements, spacing, said):
    meta = readers.read(saved(tmp_path / "a.dcm", ramp(), **elements)).meta
    assert meta.spacing == spacing
    assert said in " ".join(meta.applied)


def test_a_cine_loop_is_frames(tmp_path):
    region = Dataset()
    region.PhysicalUnitsXDirection = region.PhysicalUnitsYDirection = 3
    region.PhysicalDeltaX, region.PhysicalDeltaY = 0.02, 0.03
    path = saved(
        tmp_path / "a.dcm", ramp(np.uint8, (5, 6, 8)), kind=UltrasoundMultiFrameImageStorage, FrameTime="40",
        SequenceOfUltrasoundRegions=Sequence([region]),
    )  # fmt: skip
    scan = readers.read(path)
    assert (scan.kind, scan.shape, scan.meta.rate) == ("frames", (5, 6, 8), 25.0)
    np.testing.assert_allclose(scan.meta.spacing, (0.04, 0.3, 0.2))
    assert (whole(scan)[0] == ramp(np.uint8, (5, 6, 8))).all()


def enhanced(positions, **wishes):
    made = dataset(ramp(shape=(len(positions), 6, 8)), kind=EnhancedMRImageStorage, **wishes)
    shared, measures, orientation = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, orientation.ImageOrientationPatient = [2, 1.5], AXIAL
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = Sequence([measures]), Sequence([orientation])
    made.SharedFunctionalGroupsSequence = Sequence([shared])
    frames = []
    for i, at in enumerate(positions):
        group, place, change = Dataset(), Dataset(), Dataset()
        place.ImagePositionPatient = at
        change.RescaleSlope, change.RescaleIntercept, change.RescaleType = "2", str(i), "US"
        group.PlanePositionSequence, group.PixelValueTransformationSequence = Sequence([place]), Sequence([change])
        frames.append(group)
    made.PerFrameFunctionalGroupsSequence = Sequence(frames)
    return made


def test_frames_with_a_place_are_a_volume(tmp_path):
    made = enhanced([[0, 0, z] for z in (9, 3, 6)])
    made.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    scan = readers.read(tmp_path / "a.dcm")
    assert (scan.kind, scan.shape, scan.meta.orientation) == ("volume", (3, 6, 8), "SPL")
    assert scan.meta.spacing == (3, 2, 1.5)
    frames = ramp(shape=(3, 6, 8)) * 2.0 + np.arange(3)[:, None, None]
    np.testing.assert_allclose(whole(scan)[0], frames[[1, 2, 0]])
    twice = enhanced([[0, 0, 0], [0, 0, 3], [0, 0, 0], [0, 0, 3]])
    twice.save_as(tmp_path / "b.dcm", enforce_file_format=True)
    with pytest.raises(FileError, match="lie at a place that another one has"):
        readers.read(tmp_path / "b.dcm")


def test_a_series_is_sorted_along_its_normal(tmp_path):
    folder = series(tmp_path / "s", [(-10, -20, z) for z in (12, 0, 4, 8)])
    scan = readers.read(folder)
    assert (scan.kind, scan.shape, scan.meta.spacing) == ("volume", (4, 6, 8), (4.0, 2.0, 1.5))
    assert [int(v) for v in whole(scan)[0, :, 0, 0]] == [100, 200, 300, 0]
    np.testing.assert_allclose(np.array(scan.meta.affine) @ [0, 0, 0, 1], [10, 20, 0, 1])  # left to right is turned
    np.testing.assert_allclose(np.array(scan.meta.affine) @ [3, 5, 7, 1], [10 - 7 * 1.5, 20 - 5 * 2, 12, 1])
    assert len(scan.grid.files) == 4
    assert [pydicom.dcmread(f).InstanceNumber for f in scan.grid.files] == [1, 2, 3, 0]


def test_a_series_from_the_side_comes_in_the_same_order(tmp_path):
    """Sagittal slices, rows to the back, columns downwards: axes and flips differ, the world does not."""
    folder = series(tmp_path / "s", [(x, -20, 50) for x in (0, 5, 10, 15)], ImageOrientationPatient=[0, 1, 0, 0, 0, -1])
    scan = readers.read(folder)
    assert scan.shape == (6, 8, 4)  # upwards, to the back, to the left
    assert scan.meta.spacing == (2.0, 1.5, 5.0)
    values = whole(scan)[0]
    assert values[0, 0, 0] == 5 * 8  # the lowest row of the rightmost slice
    np.testing.assert_allclose(np.array(scan.meta.affine) @ [0, 0, 0, 1], [0, 20, 40, 1])
    np.testing.assert_allclose(scan.grid.restore(values).shape, (4, 6, 8))
    assert (scan.grid.restore(values)[3] == ramp()).all()  # stored slices run along the normal, to the right
    image = scan.grid.nifti(values.astype(np.int16))
    assert image.get_fdata()[0, 5, 3] == values[0, 0, 0]
    np.testing.assert_allclose(image.affine @ [0, 5, 3, 1], [0, 20, 40, 1], atol=1e-5)


def test_a_tilted_stack_keeps_its_lean(tmp_path):
    scan = readers.read(series(tmp_path / "s", [(0, z * 0.3, z) for z in (0, 5, 10)]))
    assert any("tilted by 16.7 degrees" in w for w in scan.meta.applied)
    np.testing.assert_allclose(np.array(scan.meta.affine) @ [2, 0, 0, 1], [0, -3, 10, 1], atol=1e-9)


def test_localisers_and_reports_are_left_out(tmp_path):
    folder = series(tmp_path / "s", [(0, 0, z) for z in (0, 4, 8)])
    saved(
        folder / "scout.dcm", ramp(shape=(9, 9)), ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"], SeriesInstanceUID="9"
    )
    report = dataset(ramp())
    for key in ("Rows", "Columns", "PixelData"):
        delattr(report, key)
    report.save_as(folder / "report.dcm", enforce_file_format=True)
    scan = readers.read(folder)
    assert scan.shape == (3, 6, 8)
    assert {"1 localisers left out", "1 files without a picture left out"} <= set(scan.meta.applied)
    with pytest.raises(FileError, match="holds no picture"):
        readers.read(folder / "report.dcm")


Z = [(0, 0, z) for z in (0, 4, 8, 12)]


@pytest.mark.parametrize(
    ("positions", "each", "message"),
    [
        ([*Z, (0, 0, 20)], lambda i: {}, "a slice is missing: 8 mm between slices 4 and 5 of 5, 4 mm elsewhere"),
        ([*Z, (0, 0, 17)], lambda i: {}, "uneven slices: 5 mm"),
        ([*Z, (0, 0, 8)], lambda i: {}, "2 of its images lie at a place that another one has"),
        (Z, lambda i: {"PixelSpacing": [2, 1.5 + (i == 2)]}, "mixed spacing: .* 2 x 1.5 mm and 2 x 2.5 mm"),
        (Z, lambda i: {"ImageOrientationPatient": [1, 0, 0, 0, 0, 1]} if i else {}, "mixed orientation: 3 of its 4"),
        (Z, lambda i: {"pixels": ramp(shape=(6 + (i == 1), 8))}, r"mixed size: Rows is 6 \(3 images\) and 7 \(1"),
        (Z, lambda i: {"SeriesInstanceUID": f"1.{i // 3}"}, r"holds 2 DICOM series \(of 3 and 1 images\)"),
        (Z, lambda i: {"ImagePositionPatient": None} if i else {}, "3 of its 4 images do not say where they lie"),
        ([*Z[:3], (9, 0, 12)], lambda i: {}, "its slices do not lie on one line"),
    ],
)
def test_what_is_not_one_series_is_named(tmp_path, positions, each, message):
    folder = series(tmp_path / "s", positions, each=each)
    with pytest.raises(FileError, match=message) as caught:
        readers.read(folder)
    assert "\n" not in str(caught.value)


def test_a_damaged_slice_is_named(tmp_path):
    folder = series(tmp_path / "s", Z)
    victim = sorted(folder.iterdir())[2]
    victim.write_bytes(victim.read_bytes()[:-40])
    with pytest.raises(
        FileError, match=rf"{victim.name}: its pixel data are cut off or damaged \(56 bytes, 96 expected"
    ):
        readers.read(folder)


def test_files_that_are_no_scan(tmp_path):
    seg = saved(tmp_path / "seg.dcm", ramp(), kind="1.2.840.10008.5.1.4.1.1.66.4")
    with pytest.raises(FileError, match="a DICOM segmentation"):
        readers.read(seg)
    slide = saved(tmp_path / "slide.dcm", ramp(), kind="1.2.840.10008.5.1.4.1.1.77.1.6")
    with pytest.raises(FileError, match="a whole slide in tiles; convert it to a tiled TIFF"):
        readers.read(slide)
    cut = tmp_path / "cut.dcm"
    cut.write_bytes(seg.read_bytes()[:200])
    with pytest.raises(FileError, match=r"cut\.dcm: "):
        readers.read(cut)


def test_no_identity_in_anything_said(tmp_path, capfd):
    """Ids, groups, notes, inspection, errors and warnings hold none of the planted strings."""
    planted = readers.identifiers(dataset(ramp()))
    for text in ("Quimby", "Ada", "PX-77319", "1951-04-07", "20230518", "ACC998877", "Saint Elmo Hospital",
                 "Otto", "1.2.3.4567.890", "MRROOM4"):  # fmt: skip
        assert text in planted
    assert "1.2.840.10008.5.1.4.1.1.4" not in planted  # the standard's own UIDs name nobody
    said = []
    for name in ("QUIMBY_ADA_mr.dcm", "px 77319.dcm", "scan-19510407.dcm", "plain.dcm"):
        path = saved(tmp_path / name, ramp())
        scan = readers.read(path)
        said += [
            scan.meta.id,
            scan.meta.group,
            *scan.meta.applied,
            str(readers.inspect(path)),
            readers.find([path])[0].id,
        ]
        assert name == "plain.dcm" or scan.meta.id.startswith("scan-"), name
    assert scan.meta.id == "plain"
    folder = series(tmp_path / "Quimby Ada", Z)
    scan = readers.read(folder)
    said += [scan.meta.id, *scan.meta.applied, str(readers.inspect(folder)), readers.find([folder])[0].id]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a value that pydicom complains about, and quotes
        odd = series(tmp_path / "odd", Z, StudyInstanceUID="1.2.Quimby")
        bad = series(tmp_path / "bad", [*Z, (0, 0, 30)], StudyInstanceUID="1.2.Quimby")
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")  # a warning would quote the value
        assert readers.read_item(readers.find([odd])[0]).shape == (4, 6, 8)
        readers.inspect(odd)
        readers.read(next(odd.iterdir()))
        with pytest.raises(FileError, match="a slice is missing") as caught:
            readers.read(bad)
    out = capfd.readouterr()
    said += [str(caught.value), out.out, out.err, *(str(w.message) for w in warned)]
    low = " ".join(said).casefold()
    assert [t for t in planted if t.casefold() in low] == []


def test_names_are_the_same_every_time_and_groups_follow_the_patient(tmp_path):
    one = saved(tmp_path / "PX-77319-a.dcm", ramp())
    other = saved(tmp_path / "PX-77319-b.dcm", ramp())
    third = saved(tmp_path / "c.dcm", ramp(), PatientID="Q-1")
    ids = [readers.read(p).meta.id for p in (one, one, other)]
    assert ids[0] == ids[1] != ids[2]
    groups = [readers.read(p).meta.group for p in (one, other, third)]
    assert groups[0] == groups[1] != groups[2]
    assert "" not in groups


def test_a_file_without_preamble(tmp_path):
    made = dataset(ramp(), syntax=ImplicitVRLittleEndian)
    bare = copy.deepcopy(made)
    del bare.file_meta
    bare.preamble = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pydicom.dcmwrite(tmp_path / "bare", bare, implicit_vr=True, little_endian=True, enforce_file_format=False)
    scan = readers.read(tmp_path / "bare")
    assert (whole(scan)[0] == ramp()).all()


def test_ct_kind_is_inspected(tmp_path):
    path = saved(
        tmp_path / "a.dcm", ramp(np.uint16), kind=CTImageStorage, Modality="CT", RescaleIntercept=-5, RescaleSlope=1
    )
    about = readers.inspect(path)
    assert (about["format"], about["modality"], about["kind"]) == ("dicom", "CT", "CT Image Storage")
    assert (about["intercept"], about["range"], about["bits"]) == (-5, [0, 47], 16)
    assert about["transfer syntax"] == "Explicit VR Little Endian"
