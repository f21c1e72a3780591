"""NIfTI, pictures, channels, labels, finding: `apps.medical.readers` without DICOM and TIFF."""

import gzip
import os
from pathlib import Path

import numpy as np
import pytest

nib = pytest.importorskip("nibabel")
from PIL import Image

from apps.medical import readers
from core.errors import FileError, InputError, ShapeError

HOME = Path(__file__).resolve().parent.parent
REAL = Path(os.environ.get("GLOCAL_REAL") or HOME.parent / "shared" / "real")
SHAPE = (5, 6, 7)  # i, j, k
LPS = np.array([[-2.0, 0, 0, 90], [0, -2.0, 0, 80], [0, 0, 3.0, -40], [0, 0, 0, 1]])


def cube(shape=SHAPE, dtype=np.int16):
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


def saved(path, array, affine=LPS, change=lambda header: None, big=False):
    header = nib.Nifti1Header(endianness=">" if big else "<")
    header.set_data_dtype(array.dtype)
    image = nib.Nifti1Image(array, affine, header)
    change(image.header)
    nib.save(image, path)
    return path


def whole(scan):
    return scan.array()[0]


def oblique(axes=(0, 1, 2), angle=0.2):
    c, s = np.cos(angle), np.sin(angle)
    turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = (turn @ np.diag([1.5, 2.0, 4.0]))[:, list(axes)]
    affine[:3, 3] = (-30, 20, 10)
    return affine


@pytest.mark.parametrize(
    "affine", [LPS, np.diag([1, 2, 3, 1.0]), oblique(), oblique((2, 0, 1)), -oblique((1, 2, 0), 0.3)]
)
def test_every_voxel_keeps_its_place_in_the_world(tmp_path, affine):
    affine = affine.copy()
    affine[3] = (0, 0, 0, 1)
    scan = readers.read(saved(tmp_path / "a.nii.gz", cube(), affine))
    values, place = whole(scan)[0], np.array(scan.meta.affine)
    stored = np.argwhere(cube() >= 0)
    canonical = np.argwhere(values >= 0)
    there = {int(cube()[tuple(i)]): affine @ [*i, 1] for i in stored}
    for index in canonical:
        np.testing.assert_allclose(place @ [*index, 1], there[int(values[tuple(index)])], atol=1e-4)
    axes = place[:3, :3] / np.linalg.norm(place[:3, :3], axis=0)
    for axis, (world, sign) in enumerate([(2, 1), (1, -1), (0, -1)]):  # superior, posterior, left
        assert axes[world, axis] * sign > 0.7
    np.testing.assert_allclose(scan.meta.spacing, np.linalg.norm(place[:3, :3], axis=0))
    assert (scan.grid.restore(values) == cube()).all()
    assert (scan.grid.canonical(cube()) == values).all()


def test_a_mask_lies_on_exactly_the_input_s_grid(tmp_path):
    def tagged(header):
        header["descrip"], header["db_name"], header["aux_file"] = b"QUIMBY ADA", b"PX-77319", b"px77319.txt"
        header.set_qform(oblique(), code=3)
        header.set_sform(oblique(), code=4)

    path = saved(tmp_path / "a.nii.gz", cube(), oblique(), tagged, big=True)
    scan = readers.read(path)
    mask = (whole(scan)[0] % 3).astype(np.uint8)
    nib.save(scan.grid.nifti(mask), tmp_path / "mask.nii.gz")
    given, written = nib.load(path), nib.load(tmp_path / "mask.nii.gz")
    assert (np.asarray(written.dataobj) == cube() % 3).all()
    assert written.get_data_dtype() == np.uint8
    for key in (
        "sform_code",
        "qform_code",
        "srow_x",
        "srow_y",
        "srow_z",
        "quatern_b",
        "qoffset_x",
        "pixdim",
        "xyzt_units",
    ):
        assert np.array_equal(given.header[key], written.header[key]), key
    raw = gzip.decompress((tmp_path / "mask.nii.gz").read_bytes()).upper()
    assert b"QUIMBY" not in raw
    assert b"77319" not in raw


def test_slope_intercept_and_types(tmp_path):
    path = saved(tmp_path / "a.nii", cube(dtype=np.uint8))
    scan = readers.read(patched(path, (112, [0.5, 10], "<f4")))  # scl_slope, scl_inter
    np.testing.assert_allclose(np.sort(whole(scan).ravel()), np.arange(210) * 0.5 + 10)
    assert "rescaled by slope 0.5 and intercept 10" in scan.meta.applied
    assert readers.read(patched(path, (112, [0, 3], "<f4"))).dtype == np.uint8  # slope 0 means none
    wide = readers.read(saved(tmp_path / "b.nii", cube(dtype=np.float64) / 4))
    assert wide.dtype == np.float32
    assert readers.read(saved(tmp_path / "c.nii", cube(dtype=np.uint32) + 70000)).dtype == np.int32
    assert readers.read(saved(tmp_path / "d.nii", cube(), big=True)).dtype == np.dtype("=i2")


def test_channels_in_the_last_axis(tmp_path):
    array = cube((5, 6, 7, 3))
    scan = readers.read(saved(tmp_path / "a.nii", array))
    assert (scan.shape, scan.channels) == ((7, 6, 5), ("0", "1", "2"))
    np.testing.assert_array_equal(scan.grid.restore(whole(scan)), np.moveaxis(array, -1, 0))
    one = readers.read(saved(tmp_path / "b.nii", cube((5, 6, 7, 1))))
    assert one.channels == ("grey",)
    flat = readers.read(saved(tmp_path / "c.nii", cube((5, 6))))
    assert flat.shape == (1, 6, 5)
    assert flat.grid.nifti(np.zeros(flat.shape, np.uint8)).shape in ((5, 6), (5, 6, 1))
    with pytest.raises(FileError, match="split it into volumes"):
        readers.read(saved(tmp_path / "d.nii", cube((3, 3, 3, 2, 2))))
    with pytest.raises(FileError, match="complex64 values"):
        readers.read(saved(tmp_path / "e.nii", cube().astype(np.complex64)))


def patched(path, *changes):
    """Bytes of the header (nibabel would put them right again): (offset, numbers, type)."""
    raw = bytearray(path.read_bytes())
    for offset, numbers, kind in changes:
        part = np.array(numbers, kind).tobytes()
        raw[offset : offset + len(part)] = part
    path.write_bytes(raw)
    return path


def test_a_missing_place_is_said(tmp_path):
    path = saved(tmp_path / "a.nii", cube())
    scan = readers.read(patched(path, (252, [0, 0], "<i2"), (80, [2, 3, 4], "<f4")))  # both codes; pixdim
    assert scan.meta.affine is None
    assert (scan.meta.spacing, scan.meta.orientation, scan.shape) == ((4, 3, 2), "", (7, 6, 5))
    assert any("orientation unknown" in w for w in scan.meta.applied)
    assert (scan.grid.restore(whole(scan)[0]) == cube()).all()
    assert (np.asarray(scan.grid.nifti(whole(scan)[0]).dataobj) == cube()).all()


def test_the_form_that_can_be_used_is(tmp_path):
    path = saved(tmp_path / "b.nii", cube(), change=lambda h: h.set_qform(LPS, code=1))
    scan = readers.read(patched(path, (254, [1], "<i2"), (280, [0] * 12, "<f4")))  # an sform of zeros
    np.testing.assert_allclose(scan.meta.spacing, (3, 2, 2))
    assert any("sform cannot be used" in w for w in scan.meta.applied)
    micron = readers.read(saved(tmp_path / "c.nii", cube(), LPS * 1000, lambda h: h.set_xyzt_units("micron")))
    np.testing.assert_allclose(micron.meta.spacing, (3, 2, 2))


def test_nan_and_inf_are_invalid(tmp_path):
    array = cube(dtype=np.float32)
    array[0, 0, 0], array[1, 2, 3] = np.nan, np.inf
    scan = readers.read(saved(tmp_path / "a.nii.gz", array))
    values, valid = scan.array()
    assert (~scan.grid.restore(valid))[[0, 1], [0, 2], [0, 3]].all()
    assert (~valid).sum() == 2
    assert (values[0][~valid] == 0).all()
    assert "2 voxels with NaN or Inf set to 0 and marked invalid" in scan.meta.applied
    with pytest.raises(FileError, match=r"b\.nii: every one of its voxels is NaN or Inf; export"):
        readers.read(saved(tmp_path / "b.nii", np.full(SHAPE, np.nan, np.float32)))


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.97])
def test_a_cut_file_is_refused(tmp_path, name, share):
    rng = np.random.default_rng(0)
    path = saved(tmp_path / name, rng.integers(0, 30000, (20, 20, 20)).astype(np.int16))
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(FileError) as caught:
        readers.read(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_a_wrong_checksum_is_found(tmp_path):
    path = saved(tmp_path / "a.nii.gz", cube())
    raw = bytearray(path.read_bytes())
    raw[-8:-4] = bytes(4)  # gzip's CRC of the content
    path.write_bytes(raw)
    with pytest.raises(FileError, match="its gzip stream does not end well"):
        readers.read(path)


def test_a_huge_header_takes_no_memory(tmp_path):
    path = saved(tmp_path / "a.nii", cube())
    patched(path, (40, [3, 30000, 30000, 30000, 1], "<i2"))
    with pytest.raises(FileError, match=r"27,000,000,000,000 values would take .* GiB of memory"):
        readers.read(path)


def test_windows_reach_outside(tmp_path):
    scan = readers.read(saved(tmp_path / "a.nii", cube() + 1))
    values, valid = scan.read((-2, 1, 0), (3, 9, 5))
    assert values.shape == (1, 5, 8, 5)
    np.testing.assert_array_equal(values[0, 2:, :5], whole(scan)[0, :3, 1:])
    assert valid[2:, :5].all()
    assert valid.sum() == 3 * 5 * 5
    assert (values[0][~valid] == 0).all()
    far, known = scan.read((90, 0, 0), (92, 2, 2))
    assert not far.any()
    assert not known.any()
    values[:] = 7  # the caller's own
    assert whole(scan).max() == 210
    with pytest.raises(ShapeError, match="a window of 3 axes"):
        scan.read((0, 0), (1, 1))


def test_content_decides_not_the_suffix(tmp_path):
    saved(tmp_path / "a.nii.gz", cube())
    (tmp_path / "scan.png").write_bytes((tmp_path / "a.nii.gz").read_bytes())
    assert readers.read(tmp_path / "scan.png").format == "nifti"
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "x.bmp")
    (tmp_path / "x.dcm").write_bytes((tmp_path / "x.bmp").read_bytes())
    assert readers.read(tmp_path / "x.dcm").format == "bmp"
    (tmp_path / "notes.nii").write_text("hello")
    with pytest.raises(FileError, match=r"notes\.nii: not a kind of file that is read here; NIfTI .* DICOM, PNG"):
        readers.read(tmp_path / "notes.nii")
    (tmp_path / "none.nii").touch()
    with pytest.raises(FileError, match="an empty file"):
        readers.read(tmp_path / "none.nii")
    with pytest.raises(FileError, match=r"gone\.nii: no such file"):
        readers.read(tmp_path / "gone.nii")
    (tmp_path / "void").mkdir()
    with pytest.raises(FileError, match="void: an empty folder"):
        readers.read(tmp_path / "void")
    with pytest.raises(FileError, match=r"holds files of several kinds \(2 nifti and 2 bmp\)"):
        readers.read(tmp_path)


def test_labels_share_the_grid(tmp_path):
    scan = readers.read(saved(tmp_path / "a.nii.gz", cube()))
    label = (cube() % 4).astype(np.uint8)
    flipped = LPS @ np.array([[-1, 0, 0, 4], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    for name, array, affine in (("b", label, LPS), ("c", label[::-1], flipped), ("d", label.astype(np.float32), LPS)):
        found = readers.read_labels(saved(tmp_path / f"{name}.nii.gz", array, affine), scan)
        assert found.dtype.kind in "iu"
        np.testing.assert_array_equal(found, whole(scan)[0] % 4)
    moved = LPS.copy()
    moved[0, 3] += 0.01
    with pytest.raises(FileError, match=r"e\.nii: lies on another grid than .*a\.nii\.gz \(origins lie 0\.01 mm apart"):
        readers.read_labels(saved(tmp_path / "e.nii", label, moved), scan)
    close = LPS.copy()
    close[0, 3] += 5e-4
    readers.read_labels(saved(tmp_path / "f.nii", label, close), scan)
    with pytest.raises(FileError, match=r"7 x 6 x 4 samples against 7 x 6 x 5"):
        readers.read_labels(saved(tmp_path / "g.nii", label[1:], LPS), scan)
    with pytest.raises(FileError, match="spacing or direction differ"):
        readers.read_labels(saved(tmp_path / "h.nii", label, LPS @ np.diag([1.01, 1, 1, 1])), scan)
    with pytest.raises(FileError, match="not whole numbers"):
        readers.read_labels(saved(tmp_path / "i.nii", label + 0.5, LPS), scan)


def test_channel_files_are_joined(tmp_path):
    saved(tmp_path / "MR_7_0000.nii.gz", cube())
    saved(tmp_path / "MR_7_0001.nii.gz", cube(dtype=np.float32) * 2)
    paths = [tmp_path / f"MR_7_000{i}.nii.gz" for i in range(2)]
    scan = readers.read_channels(paths)
    assert (scan.meta.id, scan.channels, scan.dtype) == ("MR_7", ("0", "1"), np.float32)
    np.testing.assert_array_equal(whole(scan)[1], whole(scan)[0] * 2)
    saved(tmp_path / "MR_7_0002.nii.gz", cube((5, 6, 8)))
    with pytest.raises(FileError, match=r"_0002\.nii\.gz: another grid than .*_0000\.nii\.gz"):
        readers.read_channels([*paths, tmp_path / "MR_7_0002.nii.gz"])
    assert [i.id for i in readers.find(paths[:1])] == ["MR_7"]  # one channel: nnU-Net's name of the case
    (item,) = readers.find([tmp_path], channels=3)
    assert [p.name[-8] for p in item.paths] == ["0", "1", "2"]
    assert readers.read_item(readers.find(paths, channels=2)[0]).meta.id == "MR_7"


def test_finding_goes_through_folders(tmp_path):
    for where in ("p1", "p2/deep"):
        (tmp_path / where).mkdir(parents=True)
        saved(tmp_path / where / "t1.nii.gz", cube())
    (tmp_path / "p1" / "notes.txt").write_text("x")
    (tmp_path / "p1" / ".hidden.nii").write_text("x")
    (tmp_path / "p2" / "broken.nii").write_text("x")
    items = readers.find([tmp_path])
    assert [i.id for i in items] == ["t1", "broken", "t1-2"]
    assert all(len(i.paths) == 1 for i in items)
    with pytest.raises(FileError, match="no such file or folder"):
        readers.find([tmp_path / "nowhere"])
    (tmp_path / "void").mkdir()
    with pytest.raises(InputError, match=r"void: no file of a kind that is read here \(NIfTI, DICOM"):
        readers.find([tmp_path / "void"])


def test_inspect_says_what_a_header_says(tmp_path):
    about = readers.inspect(saved(tmp_path / "a.nii.gz", cube(), big=True))
    assert (about["size"], about["byte order"], about["orientation stored"]) == ([5, 6, 7], "big", "LPS")
    assert (about["spacing mm"], about["range"], about["lossy"]) == ([2, 2, 3], [0, 209], False)


REFUSED = {
    "medical/MR_truncated.dcm": "8,130 bytes, 8,192 expected",
    "general/multipage_rgb.tif": "2 colour pages",
    "general/truncated.jpg": "cut-off picture",
}
REAL_FILES = [p for d in ("medical", "general") for p in sorted((REAL / d).glob("*"))] if REAL.is_dir() else []


@pytest.mark.parametrize("path", REAL_FILES, ids=lambda p: p.name)
def test_real_files_are_read_or_refused(path):
    refused = REFUSED.get(f"{path.parent.name}/{path.name}")
    if refused:
        with pytest.raises(FileError, match=refused):
            readers.read(path)
        return
    scan = readers.read(path)
    values, valid = scan.read((0,) * len(scan.shape), tuple(min(n, 300) for n in scan.shape))
    assert values.shape[1:] == valid.shape
    assert valid.all()
    assert np.ptp(values) > 0
    about = readers.inspect(path)
    assert about["format"] in (scan.format, "bigtiff")
    if path.suffix == ".svs":
        assert (scan.shape, scan.meta.spacing) == ((2967, 2220), (0.000499, 0.000499))
    if path.name == "examples_ybr_color.dcm":
        assert np.abs(values[0].astype(int) - values[2]).mean() < 3  # a grey sector: wrong colours if YBR stayed
