"""PNG, JPEG, BMP and TIFF for `apps.medical.readers`."""

import io

import numpy as np
import pytest

tifffile = pytest.importorskip("tifffile")
pytest.importorskip("nibabel")
from PIL import Image

from apps.medical import _tiff, _tiff_pages, readers
from core.errors import FileError

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (9, 13, 3), dtype=np.uint8)


def whole(scan):
    return scan.array()[0]


def last(values):
    return np.moveaxis(values, 0, -1)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif"])
@pytest.mark.parametrize("mode", ["L", "RGB", "1"])
def test_plain_pictures(tmp_path, suffix, mode):
    picture = Image.fromarray(COLOUR).convert(mode)
    picture.save(tmp_path / f"a.{suffix}")
    scan = readers.read(tmp_path / f"a.{suffix}")
    assert (scan.kind, scan.shape, scan.dtype) == ("picture", (9, 13), np.uint8)
    assert scan.channels == (("red", "green", "blue") if mode == "RGB" else ("grey",))
    expected = np.asarray(picture.convert("L") if mode == "1" else picture)
    np.testing.assert_array_equal(last(whole(scan)).squeeze(), expected)


def test_sixteen_bits_stay(tmp_path):
    grey = RNG.integers(0, 65536, (9, 13), dtype=np.uint16)
    Image.fromarray(grey).save(tmp_path / "a.png")
    scan = readers.read(tmp_path / "a.png")
    assert scan.dtype == np.uint16
    np.testing.assert_array_equal(whole(scan)[0], grey)
    colour = RNG.integers(0, 65536, (9, 13, 3), dtype=np.uint16)
    (tmp_path / "b.png").write_bytes(png16(colour))
    scan = readers.read(tmp_path / "b.png")
    assert (scan.dtype, scan.channels) == (np.uint16, ("red", "green", "blue"))
    np.testing.assert_array_equal(last(whole(scan)), colour)
    assert readers.inspect(tmp_path / "b.png")["bits"] == 16


def png16(colour):
    """A PNG of 16 bits per colour, which Pillow cannot write."""
    import struct
    import zlib

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, _ = colour.shape
    lines = b"".join(b"\0" + row.astype(">u2").tobytes() for row in colour)
    head = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


def test_palette_is_colour_for_a_picture_and_index_for_labels(tmp_path):
    index = RNG.integers(0, 4, (9, 13), dtype=np.uint8)
    table = np.array([[0, 0, 0], [128, 0, 0], [0, 128, 0], [9, 8, 7]], np.uint8)
    for suffix in ("png", "tif"):
        picture = Image.frombytes("P", (13, 9), index.tobytes())
        picture.putpalette(table.tobytes())
        path = tmp_path / f"a.{suffix}"
        picture.save(path)
        scan = readers.read(path)
        np.testing.assert_array_equal(last(whole(scan)), table[index])
        assert "palette colours converted to RGB" in scan.meta.applied
        np.testing.assert_array_equal(readers.read_labels(path, scan), index)


def test_alpha_becomes_validity(tmp_path):
    alpha = np.full((9, 13), 255, np.uint8)
    alpha[:2, :3] = 0
    Image.fromarray(np.dstack([COLOUR, alpha])).save(tmp_path / "a.png")
    tifffile.imwrite(tmp_path / "a.tif", np.dstack([COLOUR, alpha]), photometric="rgb", extrasamples=["unassalpha"])
    for name in ("a.png", "a.tif"):
        scan = readers.read(tmp_path / name)
        values, valid = scan.array()
        assert scan.channels == ("red", "green", "blue")
        np.testing.assert_array_equal(valid, alpha > 0)
        assert (values[:, :2, :3] == 0).all()
        assert any("alpha dropped; 6 " in w for w in scan.meta.applied)
    Image.fromarray(np.dstack([COLOUR, alpha * 0])).save(tmp_path / "b.png")
    with pytest.raises(FileError, match="every pixel is transparent"):
        readers.read(tmp_path / "b.png")


@pytest.mark.parametrize("turn", range(1, 9))
def test_exif_orientation(tmp_path, turn):
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = turn
    Image.fromarray(COLOUR).save(tmp_path / "a.png", exif=exif)
    scan = readers.read(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as picture:
        upright = np.asarray(ImageOps.exif_transpose(picture))
    np.testing.assert_array_equal(last(whole(scan)), upright)
    assert any("EXIF" in w for w in scan.meta.applied) == (turn > 1)


def test_jpeg_is_lossy_and_no_label(tmp_path):
    Image.fromarray(COLOUR).save(tmp_path / "a.jpg")
    scan = readers.read(tmp_path / "a.jpg")
    assert scan.lossy
    assert "stored with lossy compression (JPEG)" in scan.meta.applied
    with pytest.raises(FileError, match=r"labels in JPEG, which changes their numbers; save them as PNG"):
        readers.read_labels(tmp_path / "a.jpg", scan)
    Image.fromarray(COLOUR).convert("CMYK").save(tmp_path / "b.jpg")
    converted = readers.read(tmp_path / "b.jpg")
    assert "CMYK converted to RGB without a colour profile" in converted.meta.applied
    raw = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "c.jpg").write_bytes(raw[:-60])
    with pytest.raises(FileError, match="cut-off or damaged picture"):
        readers.read(tmp_path / "c.jpg")


def test_labels_of_another_size_or_in_colour(tmp_path):
    Image.fromarray(COLOUR).save(tmp_path / "a.png")
    scan = readers.read(tmp_path / "a.png")
    Image.fromarray(COLOUR[1:, :, 0]).save(tmp_path / "b.png")
    with pytest.raises(FileError, match=r"b\.png: lies on another grid than .*a\.png \(8 x 13 samples against 9 x 13"):
        readers.read_labels(tmp_path / "b.png", scan)
    with pytest.raises(FileError, match="3 channels, where one class number a pixel is expected"):
        readers.read_labels(tmp_path / "a.png", scan)
    Image.fromarray(np.dstack([COLOUR[..., 0]] * 3)).save(tmp_path / "c.png")
    np.testing.assert_array_equal(readers.read_labels(tmp_path / "c.png", scan), COLOUR[..., 0])
    ids = RNG.integers(0, 3000, (9, 13), dtype=np.uint16)
    tifffile.imwrite(tmp_path / "d.tif", ids)
    np.testing.assert_array_equal(readers.read_labels(tmp_path / "d.tif", scan), ids)


BLOCKS = [{}, {"tile": (16, 32)}, {"rowsperstrip": 7}]


@pytest.mark.parametrize("blocks", BLOCKS, ids=["whole", "tiles", "strips"])
@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float32])
def test_tiff_windows(tmp_path, blocks, compression, dtype):
    array = (RNG.random((50, 70, 3)) * 200).astype(dtype)
    for order in "<>":
        tifffile.imwrite(
            tmp_path / "a.tif", array, photometric="rgb", compression=compression, byteorder=order, **blocks
        )
        plane = _tiff_pages.Plane(tmp_path / "a.tif", tifffile.TiffFile(tmp_path / "a.tif").pages[0])
        np.testing.assert_array_equal(plane.window(13, 30, 41, 69), array[13:41, 30:69])
        assert plane.window(0, 0, 50, 70).dtype == np.dtype(dtype)
    scan = readers.read(tmp_path / "a.tif")
    np.testing.assert_array_equal(last(whole(scan)), array)


@pytest.mark.parametrize("predictor", [1, 2])
def test_lzw_without_imagecodecs(tmp_path, predictor):
    for array in (COLOUR, COLOUR[..., 0].astype(np.uint16) * 200):
        tags = {317: predictor, 278: 4}
        Image.fromarray(array).save(tmp_path / "a.tif", compression="tiff_lzw", tiffinfo=tags)
        assert readers.inspect(tmp_path / "a.tif")["compression"] == "lzw"
        np.testing.assert_array_equal(last(whole(readers.read(tmp_path / "a.tif"))).squeeze(), array)


def test_jpeg_tiles_of_both_colour_models(tmp_path):
    """The same RGB bytes twice: in JPEG as YCbCr, which its header lets one guess, and as RGB, which only TIFF says."""
    smooth = np.zeros((32, 32, 3), np.uint8)
    smooth[..., 0], smooth[..., 2] = np.linspace(0, 255, 32)[:, None], 40
    for keep in (False, True):
        file = io.BytesIO()
        Image.fromarray(smooth).save(file, "JPEG", quality=98, subsampling=0, keep_rgb=keep)
        data = file.getvalue()
        while keep and b"Adobe" in data:  # a tile in a slide carries no such mark
            at = data.index(b"Adobe") - 4
            data = data[:at] + data[at + 2 + int.from_bytes(data[at + 2 : at + 4], "big") :]
        if keep:  # nor components named R, G, B
            for marker, first in ((b"\xff\xc0", 10), (b"\xff\xda", 5)):
                at = data.index(marker) + first
                step = 3 if first == 10 else 2
                named = bytearray(data)
                for i in range(3):
                    named[at + i * step] = i + 1
                data = bytes(named)
        back = _tiff_pages._jpeg(data, None, rgb=keep)
        assert np.abs(back.astype(int) - smooth).max() < 9


def test_a_large_tiff_is_read_by_the_window(tmp_path, monkeypatch):
    array = RNG.integers(0, 255, (300, 400), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", array, tile=(64, 64), compression="zlib")
    monkeypatch.setattr(_tiff, "EAGER", 1000)
    decoded = []
    real = _tiff_pages.Plane._segment
    monkeypatch.setattr(_tiff_pages.Plane, "_segment", lambda s, f, i: (decoded.append(i), real(s, f, i))[1])
    scan = readers.read(tmp_path / "a.tif")
    assert decoded == []
    values, valid = scan.read((60, 390), (70, 410))
    np.testing.assert_array_equal(values[0, :, :10], array[60:70, 390:])
    assert valid[:, :10].all()
    assert not valid[:, 10:].any()
    assert sorted(decoded) == [6, 13]
    scan.read((60, 390), (70, 400))
    assert len(decoded) == 2  # kept


@pytest.mark.parametrize("eager", [True, False])
def test_nan_in_a_float_tiff(tmp_path, monkeypatch, eager):
    array = RNG.random((20, 30)).astype(np.float32)
    array[3, 4] = np.nan
    tifffile.imwrite(tmp_path / "a.tif", array)
    monkeypatch.setattr(_tiff, "EAGER", 10**9 if eager else 10)
    scan = readers.read(tmp_path / "a.tif")
    values, valid = scan.array()
    assert (~valid).sum() == 1
    assert values[0, 3, 4] == 0
    assert any("1 pixels with NaN or Inf" in w for w in scan.meta.applied) == eager
    tifffile.imwrite(tmp_path / "b.tif", np.full((4, 4), np.nan, np.float32))
    if eager:
        with pytest.raises(FileError, match="every one of its pixels is NaN or Inf"):
            readers.read(tmp_path / "b.tif")


def test_pages_and_axes(tmp_path):
    stack = RNG.integers(0, 255, (4, 9, 13), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "plain.tif", stack, photometric="minisblack")
    with tifffile.TiffWriter(tmp_path / "pages.tif") as file:
        for page in stack:
            file.write(page, photometric="minisblack", metadata=None)
    for name in ("plain", "pages"):
        scan = readers.read(tmp_path / f"{name}.tif")
        assert (scan.kind, scan.shape) == ("volume", (4, 9, 13))
        assert "4 grey pages taken as slices" in scan.meta.applied
        np.testing.assert_array_equal(whole(scan)[0], stack)
    metadata = {"axes": "ZYX", "unit": "um", "spacing": 2.0}
    tifffile.imwrite(tmp_path / "ij.tif", stack, imagej=True, resolution=(4, 2), metadata=metadata)
    np.testing.assert_allclose(readers.read(tmp_path / "ij.tif").meta.spacing, (0.002, 0.0005, 0.00025))
    tifffile.imwrite(tmp_path / "t.tif", stack, imagej=True, metadata={"axes": "TYX", "finterval": 0.5})
    times = readers.read(tmp_path / "t.tif")
    assert (times.kind, times.meta.rate) == ("frames", 2.0)
    about = {
        "axes": "CYX", "PhysicalSizeX": 0.5, "PhysicalSizeXUnit": "µm", "PhysicalSizeY": 250, "PhysicalSizeYUnit": "nm",
        "Channel": {"Name": ["DAPI", "GFP", "RFP", "Cy5"]},
    }  # fmt: skip
    tifffile.imwrite(tmp_path / "c.ome.tif", stack, metadata=about)
    channels = readers.read(tmp_path / "c.ome.tif")
    assert (channels.kind, channels.channels, channels.meta.id) == ("picture", ("DAPI", "GFP", "RFP", "Cy5"), "c")
    np.testing.assert_allclose(channels.meta.spacing, (0.00025, 0.0005))
    np.testing.assert_array_equal(whole(channels), stack)
    both = RNG.integers(0, 255, (2, 3, 9, 13), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "zc.tif", both, imagej=True, metadata={"axes": "ZCYX"})
    mixed = readers.read(tmp_path / "zc.tif")
    assert (mixed.kind, mixed.shape, len(mixed.channels)) == ("volume", (2, 9, 13), 3)
    np.testing.assert_array_equal(whole(mixed), both.swapaxes(0, 1))
    tifffile.imwrite(tmp_path / "tz.tif", both, imagej=True, metadata={"axes": "TZYX"})
    with pytest.raises(FileError, match="holds 4 axes"):
        readers.read(tmp_path / "tz.tif")


@pytest.mark.parametrize(
    ("resolution", "unit", "spacing"),
    [((20000, 10000), "CENTIMETER", (0.001, 0.0005)), ((25400, 25400), "INCH", (0.001, 0.001)),
     ((300, 300), "INCH", None), ((72, 72), "NONE", None)],
)  # fmt: skip
def test_resolution_tags_count_where_they_can_be_a_microscope_s(tmp_path, resolution, unit, spacing):
    tifffile.imwrite(tmp_path / "a.tif", COLOUR, photometric="rgb", resolution=resolution, resolutionunit=unit)
    found = readers.read(tmp_path / "a.tif").meta.spacing
    assert found == (None if spacing is None else pytest.approx(spacing))


def test_white_is_zero(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", COLOUR[..., 0], photometric="miniswhite")
    scan = readers.read(tmp_path / "a.tif")
    np.testing.assert_array_equal(whole(scan)[0], 255 - COLOUR[..., 0])
    np.testing.assert_array_equal(readers.read_labels(tmp_path / "a.tif", scan), COLOUR[..., 0])


def test_pyramids_give_their_finest_level(tmp_path):
    fine = RNG.integers(0, 255, (128, 128, 3), dtype=np.uint8)
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(fine, subifds=1, tile=(32, 32), photometric="rgb")
        file.write(fine[::2, ::2], subfiletype=1, tile=(32, 32), photometric="rgb")
    scan = readers.read(tmp_path / "a.tif")
    assert scan.shape == (128, 128)
    assert "the finest of 2 levels" in scan.meta.applied


@pytest.mark.parametrize("share", [0.05, 0.5, 0.9])
def test_a_cut_tiff_is_refused(tmp_path, share):
    tifffile.imwrite(
        tmp_path / "a.tif", RNG.integers(0, 255, (60, 60), dtype=np.uint8), compression="zlib", rowsperstrip=8
    )
    raw = (tmp_path / "a.tif").read_bytes()
    (tmp_path / "b.tif").write_bytes(raw[: int(len(raw) * share)])
    with pytest.raises(FileError, match=r"b\.tif: .*(cut off|cut-off|damaged)"):
        readers.read(tmp_path / "b.tif")
