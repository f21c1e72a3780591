"""Sources and sinks of files against the libraries that they use."""

import gzip
import struct
import warnings
import zlib

import numpy as np
import pytest

from core.data.sample import Meta
from core.errors import FileError, SettingError
from core.streaming.arrays import ArraySource
from core.streaming.blend import image
from core.streaming.files import open_sink, open_source
from core.streaming.run import run

tifffile = pytest.importorskip("tifffile")
Image = pytest.importorskip("PIL.Image")
CRS = 'LOCAL_CS["here",UNIT["metre",1]]'
RNG = np.random.default_rng(0)


def all_of(source):
    return source.read([0] * len(source.shape), source.shape)


def noise(shape, dtype):
    dtype = np.dtype(dtype)
    return RNG.integers(0, 250, shape).astype(dtype) if dtype.kind in "iu" else RNG.normal(size=shape).astype(dtype)


def through(array, sink, *, valid=None, invalid=0, tile=64, overlap=0.25):
    run(ArraySource(array, valid), lambda t, v: t, sink, tile=tile, overlap=overlap,
        finish=image(array.dtype, invalid))  # fmt: skip


def windows_agree(source, whole, valid=None):
    """Windows across blocks and outside equal the whole."""
    size = source.shape
    rng = np.random.default_rng(1)
    for _ in range(8):
        start = [int(rng.integers(-5, n)) for n in size]
        stop = [int(rng.integers(max(0, s) + 1, n + 6)) for s, n in zip(start, size, strict=True)]
        got, ok = source.read(start, stop)
        assert got.shape == (len(source.channels), *(b - a for a, b in zip(start, stop, strict=True)))
        inside = tuple(slice(max(0, a), min(b, n)) for a, b, n in zip(start, stop, size, strict=True))
        here = tuple(slice(s.start - a, s.stop - a) for s, a in zip(inside, start, strict=True))
        assert np.array_equal(got[(slice(None), *here)], whole[(slice(None), *inside)])
        assert ok.sum() == (np.ones(size, np.bool_) if valid is None else valid)[inside].sum()


# --- TIFF -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "float16", "float32", "float64"])
@pytest.mark.parametrize("options", [{}, {"tile": (32, 48)}, {"rowsperstrip": 7}, {"planarconfig": "separate"},
                                     {"planarconfig": "separate", "tile": (16, 16)}])  # fmt: skip
@pytest.mark.parametrize(("compression", "order"), [(None, "<"), ("zlib", "<"), ("zlib", ">"), (None, ">")])
def test_tiff_windows(tmp_path, dtype, options, compression, order):
    values = noise((3, 61, 83), dtype)
    apart = "planarconfig" in options
    tifffile.imwrite(tmp_path / "a.tif", values if apart else np.moveaxis(values, 0, -1), photometric="rgb",
                     compression=compression, byteorder=order, **options)  # fmt: skip
    source = open_source(tmp_path / "a.tif")
    assert (source.shape, source.channels, source.dtype) == ((61, 83), ("red", "green", "blue"), np.dtype(dtype))
    windows_agree(source, values)


def test_tiff_stack_and_pages(tmp_path):
    values = noise((5, 20, 30), "uint16")
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="minisblack", compression="zlib", metadata=None)
    stack = open_source(tmp_path / "a.tif", stack=True)
    assert stack.shape == (5, 20, 30)
    windows_agree(stack, values[None])
    first = open_source(tmp_path / "a.tif")
    assert first.shape == (20, 30)
    assert first.meta.applied == ("first of 5 pages read",)
    assert np.array_equal(all_of(first)[0][0], values[0])
    tifffile.imwrite(tmp_path / "c.ome.tif", values, photometric="minisblack", metadata={"axes": "CYX"})
    channels = open_source(tmp_path / "c.ome.tif")
    assert channels.channels == ("0", "1", "2", "3", "4")
    windows_agree(channels, values)
    with tifffile.TiffWriter(tmp_path / "mixed.tif") as file:
        file.write(values[0], metadata=None)
        file.write(values[0, :9], metadata=None)
    with pytest.raises(FileError, match="pages of different size"):
        open_source(tmp_path / "mixed.tif", stack=True)


def test_tiff_colours(tmp_path):
    grey = noise((12, 14), "uint8")
    table = RNG.integers(0, 65536, (3, 256)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "p.tif", grey, photometric="palette", colormap=table)
    source = open_source(tmp_path / "p.tif")
    assert np.array_equal(all_of(source)[0], (table >> 8)[:, grey])
    assert source.meta.applied == ("palette applied",)
    assert np.array_equal(all_of(open_source(tmp_path / "p.tif", indices=True))[0][0], grey)
    tifffile.imwrite(tmp_path / "w.tif", grey, photometric="miniswhite")
    source = open_source(tmp_path / "w.tif")
    assert np.array_equal(all_of(source)[0][0], 255 - grey)
    assert "white-is-zero inverted" in source.meta.applied
    rgba = noise((12, 14, 4), "uint8")
    rgba[:5, :, 3] = 0
    tifffile.imwrite(tmp_path / "a.tif", rgba, photometric="rgb", extrasamples=["unassalpha"])
    source = open_source(tmp_path / "a.tif")
    values, valid = all_of(source)
    assert source.channels == ("red", "green", "blue")
    assert np.array_equal(valid, rgba[..., 3] > 0)
    assert np.array_equal(values, np.moveaxis(rgba[..., :3], -1, 0) * valid)
    tifffile.imwrite(tmp_path / "k.tif", rgba, photometric="separated")
    with pytest.raises(FileError, match="SEPARATED colours; convert it to RGB"):
        open_source(tmp_path / "k.tif")


def test_tiff_not_finite(tmp_path):
    values = noise((9, 9), "float32")
    values[2, 3], values[4, 4] = np.nan, np.inf
    tifffile.imwrite(tmp_path / "n.tif", values)
    got, valid = all_of(open_source(tmp_path / "n.tif"))
    assert np.isfinite(got).all()
    assert np.argwhere(~valid).tolist() == [[2, 3], [4, 4]]


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.9])
def test_tiff_cut_short(tmp_path, compression, share):
    tifffile.imwrite(tmp_path / "a.tif", noise((80, 80), "uint16"), compression=compression, rowsperstrip=8)
    content = (tmp_path / "a.tif").read_bytes()
    (tmp_path / "a.tif").write_bytes(content[: int(len(content) * share)])
    with pytest.raises(FileError, match=r"cut short|damaged"):
        open_source(tmp_path / "a.tif")


@pytest.mark.parametrize("compress", ["lzw", "zstd", "packbits"])
def test_tiff_compressions_that_rasterio_decodes(tmp_path, compress):
    rasterio = pytest.importorskip("rasterio")
    values = noise((3, 50, 60), "uint16")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with rasterio.open(tmp_path / "a.tif", "w", driver="GTiff", count=3, height=50, width=60, dtype="uint16",
                           photometric="RGB", compress=compress) as data:  # fmt: skip
            data.write(values)
    windows_agree(open_source(tmp_path / "a.tif"), values)


def test_tiff_damaged_inside(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", noise((80, 80), "uint8"), compression="zlib", rowsperstrip=8)
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        at = file.pages[0].dataoffsets[5]
    content = bytearray((tmp_path / "a.tif").read_bytes())
    content[at : at + 8] = b"\xff" * 8
    (tmp_path / "a.tif").write_bytes(content)
    with pytest.raises(FileError, match="a part cannot be decoded"):
        all_of(open_source(tmp_path / "a.tif"))


@pytest.mark.parametrize(("bands", "dtype"), [(1, "uint8"), (1, "int16"), (3, "uint8"), (4, "uint16"), (2, "float32")])
def test_tiff_sink(tmp_path, bands, dtype):
    values = noise((bands, 600, 530), dtype)
    through(values, open_sink(tmp_path / "o.tif", (600, 530), dtype, bands=bands, meta=Meta(spacing=(0.5, 0.25))))
    with tifffile.TiffFile(tmp_path / "o.tif") as file:
        page = file.pages[0]
        assert page.is_tiled
        assert len(file.pages) == 1
        assert [int(page.tags[t].value[0] / page.tags[t].value[1]) for t in ("XResolution", "YResolution")] == [40, 20]
        got = page.asarray()
    got = np.moveaxis(got, -1, 0) if bands > 1 else got[None]
    np.testing.assert_allclose(got, values, atol=1e-6 if dtype == "float32" else 0)
    assert not (tmp_path / "o.tif.part").exists()


def test_tiff_sink_stack(tmp_path):
    values = noise((1, 9, 40, 50), "uint8")
    through(values, open_sink(tmp_path / "o.tif", (9, 40, 50), "uint8"), tile=(4, 16, 16))
    assert np.array_equal(tifffile.imread(tmp_path / "o.tif"), values[0])


# --- pictures -------------------------------------------------------------------------------------------------------


def test_picture_modes(tmp_path):
    rgb = noise((20, 30, 3), "uint8")
    clear = RNG.integers(0, 2, (20, 30)).astype(np.uint8) * 255
    grey16 = RNG.integers(0, 65536, (20, 30)).astype(np.uint16)
    Image.fromarray(grey16).save(tmp_path / "16.png")
    source = open_source(tmp_path / "16.png")
    assert source.dtype == np.uint16
    assert np.array_equal(all_of(source)[0][0], grey16)
    Image.fromarray(np.dstack([rgb, clear])).save(tmp_path / "rgba.png")
    source = open_source(tmp_path / "rgba.png")
    values, valid = all_of(source)
    assert np.array_equal(valid, clear > 0)
    assert np.array_equal(values, np.moveaxis(rgb, -1, 0) * valid)
    assert source.meta.applied == ("alpha read as validity",)
    Image.fromarray(np.dstack([rgb[..., 0], clear])).save(tmp_path / "la.png")
    values, valid = all_of(open_source(tmp_path / "la.png"))
    assert np.array_equal(values[0], rgb[..., 0] * valid)
    palette = Image.fromarray(rgb).quantize(16)
    palette.save(tmp_path / "p.png")
    source = open_source(tmp_path / "p.png")
    assert np.array_equal(all_of(source)[0], np.moveaxis(np.asarray(palette.convert("RGB")), -1, 0))
    assert source.meta.applied == ("palette applied",)
    assert np.array_equal(all_of(open_source(tmp_path / "p.png", indices=True))[0][0], np.asarray(palette))
    Image.fromarray(np.dstack([rgb, rgb[..., 0]]), "CMYK").save(tmp_path / "k.jpg")
    source = open_source(tmp_path / "k.jpg")
    assert source.channels == ("red", "green", "blue")
    assert source.meta.applied == ("CMYK converted to RGB",)
    Image.fromarray(clear).convert("1").save(tmp_path / "1.png")
    assert np.array_equal(all_of(open_source(tmp_path / "1.png"))[0][0], clear // 255)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, orientation):
    from PIL import ImageOps

    picture = Image.fromarray(noise((20, 30, 3), "uint8"))
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture.save(tmp_path / "e.png", exif=exif)
    source = open_source(tmp_path / "e.png")
    want = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "e.png")))
    assert np.array_equal(all_of(source)[0], np.moveaxis(want, -1, 0))
    assert len(source.meta.applied) == (orientation != 1)


def test_png_of_16_bit_colour(tmp_path):
    pytest.importorskip("rasterio")
    rgb = RNG.integers(0, 65536, (6, 5, 3)).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in rgb)
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 5, 6, 16, 2, 0, 0, 0)), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    packed = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks]
    (tmp_path / "c.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(packed))
    source = open_source(tmp_path / "c.png")
    assert source.dtype == np.uint16
    assert np.array_equal(all_of(source)[0], np.moveaxis(rgb, -1, 0))


def test_picture_bomb_and_cut(tmp_path):
    from core.streaming.pictures import PictureSource

    Image.fromarray(noise((40, 50, 3), "uint8")).save(tmp_path / "a.png")
    with pytest.raises(FileError, match="more than 1,999 pixels"):
        PictureSource(tmp_path / "a.png", max_pixels=1999)
    content = (tmp_path / "a.png").read_bytes()
    head = content[12:16] + struct.pack(">II", 60000, 60000) + content[24:29]
    (tmp_path / "huge.png").write_bytes(content[:12] + head + struct.pack(">I", zlib.crc32(head)) + content[33:])
    with pytest.raises(FileError, match="more than 178,956,970 pixels"):
        open_source(tmp_path / "huge.png")
    for share in (0.05, 0.5, 0.95):
        (tmp_path / "cut.png").write_bytes(content[: int(len(content) * share)])
        with pytest.raises(FileError, match="damaged or cut short"):
            open_source(tmp_path / "cut.png")


def test_picture_sinks(tmp_path):
    rgb = noise((3, 70, 90), "uint8")
    through(rgb, open_sink(tmp_path / "o.png", (70, 90), bands=3))
    assert np.array_equal(np.moveaxis(np.asarray(Image.open(tmp_path / "o.png")), -1, 0), rgb)
    grey = RNG.integers(0, 65536, (1, 70, 90)).astype(np.uint16)
    through(grey, open_sink(tmp_path / "g.png", (70, 90), "uint16"))
    assert np.array_equal(np.asarray(Image.open(tmp_path / "g.png")), grey[0])
    flat = np.full((3, 70, 90), 100, np.uint8)
    through(flat, open_sink(tmp_path / "o.jpg", (70, 90), bands=3))
    assert np.abs(np.asarray(Image.open(tmp_path / "o.jpg")).astype(int) - 100).max() <= 2
    for name, dtype, bands in [
        ("x.png", "float32", 1),
        ("x.jpg", "uint16", 1),
        ("x.png", "uint8", 5),
        ("x.txt", "uint8", 1),
    ]:
        with pytest.raises(SettingError):
            open_sink(tmp_path / name, (70, 90), dtype, bands=bands)
    with pytest.raises(FileError, match="its folder does not exist"):
        open_sink(tmp_path / "none" / "x.png", (70, 90))


# --- NIfTI ----------------------------------------------------------------------------------------------------------

AFFINE = np.array([[0, -2.0, 0.1, 5], [1.5, 0, 0, -7], [0, 0.1, 3.0, 9], [0, 0, 0, 1]])


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("shape", [(7, 8), (7, 8, 9), (7, 8, 9, 4)])
@pytest.mark.parametrize("order", ["<", ">"])
def test_nifti_source(tmp_path, suffix, shape, order):
    nibabel = pytest.importorskip("nibabel")
    values = noise(shape, "int16")
    picture = nibabel.Nifti1Image(values, AFFINE, nibabel.Nifti1Header(endianness=order))
    picture.header.set_data_dtype(np.int16)
    picture.header.set_xyzt_units("mm")
    nibabel.save(picture, tmp_path / f"a{suffix}")
    source = open_source(tmp_path / f"a{suffix}")
    assert source.shape == shape[:3]
    assert source.dtype == np.dtype("int16")
    assert source.dtype.isnative
    windows_agree(source, values[None] if len(shape) < 4 else np.moveaxis(values, -1, 0))
    np.testing.assert_allclose(source.meta.affine, AFFINE, atol=1e-5)
    np.testing.assert_allclose(source.meta.spacing, nibabel.affines.voxel_sizes(AFFINE)[: len(source.shape)], atol=1e-5)
    assert source.meta.orientation == "".join(nibabel.aff2axcodes(AFFINE))[: len(source.shape)]


def test_nifti_scaling_units_and_nan(tmp_path):
    nibabel = pytest.importorskip("nibabel")
    picture = nibabel.Nifti1Image(noise((5, 6, 7), "float32"), np.diag([1, 2, 3, 1]))
    picture.header.set_data_dtype(np.int16)
    picture.header.set_xyzt_units("micron")
    nibabel.save(picture, tmp_path / "s.nii")
    source = open_source(tmp_path / "s.nii")
    assert source.dtype == np.float32
    assert any("rescaled by slope" in a for a in source.meta.applied)
    np.testing.assert_allclose(all_of(source)[0][0], nibabel.load(tmp_path / "s.nii").get_fdata(), rtol=1e-6)
    assert source.meta.spacing == pytest.approx((0.001, 0.002, 0.003))
    assert source.meta.affine[1][1] == pytest.approx(0.002)
    values = noise((5, 6, 7), "float32")
    values[1, 2, 3] = np.nan
    nibabel.save(nibabel.Nifti1Image(values, AFFINE), tmp_path / "n.nii.gz")
    got, valid = all_of(open_source(tmp_path / "n.nii.gz"))
    assert got[0, 1, 2, 3] == 0
    assert np.argwhere(~valid).tolist() == [[1, 2, 3]]


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_nifti_cut_short(tmp_path, suffix):
    nibabel = pytest.importorskip("nibabel")
    path = tmp_path / f"a{suffix}"
    nibabel.save(nibabel.Nifti1Image(noise((20, 20, 20), "int16"), AFFINE), path)
    content = path.read_bytes()
    for share in (0.01, 0.5, 0.98):
        path.write_bytes(content[: int(len(content) * share)])
        with pytest.raises(FileError, match=r"cut short|none of"):
            open_source(path)
    header = nibabel.Nifti1Header()
    header.set_data_shape((30000, 30000, 3000))
    header.set_data_dtype(np.float64)
    header["vox_offset"], header["magic"] = 352, b"n+1"
    blown = header.binaryblock + bytes(4) + bytes(1000)
    path.write_bytes(gzip.compress(blown) if suffix == ".nii.gz" else blown)
    with pytest.raises(FileError, match="do not fit"):
        open_source(path)


@pytest.mark.parametrize(("shape", "bands", "dtype"), [((20, 30, 8), 1, "uint8"), ((20, 30, 8), 3, "float32"),
                                                       ((20, 30), 1, "int16"), ((20, 30), 2, "uint16")])  # fmt: skip
def test_nifti_sink(tmp_path, shape, bands, dtype):
    nibabel = pytest.importorskip("nibabel")
    values = noise((bands, *shape), dtype)
    nibabel.save(nibabel.Nifti1Image(values[0], AFFINE), tmp_path / "in.nii")
    source = open_source(tmp_path / "in.nii")
    through(values, open_sink(tmp_path / "o.nii.gz", shape, dtype, bands=bands, meta=source.meta), tile=16)
    got = nibabel.load(tmp_path / "o.nii.gz")
    assert got.get_data_dtype() == np.dtype(dtype)
    np.testing.assert_allclose(got.affine, AFFINE, atol=1e-5)
    data = np.asarray(got.dataobj)
    want = values[0] if bands == 1 else np.moveaxis(values, 0, -1).reshape(data.shape)
    np.testing.assert_allclose(data, want, atol=1e-6 if dtype == "float32" else 0)


# --- GeoTIFF --------------------------------------------------------------------------------------------------------


def scene(rasterio, path, values, **options):
    transform = rasterio.Affine(10, 0, 5e5, 0, -10, 4e6)
    profile = {"driver": "GTiff", "count": len(values), "height": values.shape[1], "width": values.shape[2],
               "dtype": values.dtype, "crs": "EPSG:32633", "transform": transform, **options}  # fmt: skip
    with rasterio.open(path, "w", **profile) as data:
        data.write(values)


@pytest.mark.parametrize(("bands", "dtype", "nodata", "size", "compress"), [
    (1, "uint8", 255, (700, 1100), "deflate"),
    (1, "uint8", None, (20, 30), "lzw"),
    (3, "uint16", 0, (530, 520), "deflate"),
    (6, "int16", -1, (1030, 600), "zstd"),
    (2, "float32", float("nan"), (70, 513), "none"),
])  # fmt: skip
def test_geotiff_sink_is_what_rasterio_writes(tmp_path, bands, dtype, nodata, size, compress):
    rasterio = pytest.importorskip("rasterio")
    from core.streaming.geotiff import GeoTiffSink

    values = noise((bands, *size), dtype)
    scene(rasterio, tmp_path / "in.tif", values)
    source = open_source(tmp_path / "in.tif")
    windows_agree(source, values)
    sink = GeoTiffSink(tmp_path / "o.tif", size, dtype, meta=source.meta, bands=bands, nodata=nodata, compress=compress,
                       tags={"model": "m"}, descriptions=[f"d{i}" for i in range(bands)])  # fmt: skip
    valid = np.ones(size, np.bool_)
    valid[5:9, 3:20] = nodata is None
    through(values, sink, valid=valid, invalid=nodata or 0, overlap=0, tile=128)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with rasterio.open(tmp_path / "o.tif") as got, rasterio.open(tmp_path / "in.tif") as given:
            assert got.crs == given.crs
            assert got.transform == given.transform
            assert got.block_shapes[0] == tuple(min(512, -(-n // 16) * 16) for n in size)
            assert got.compression is None if compress == "none" else got.compression.name == compress
            assert got.nodata == nodata or (nodata != nodata and np.isnan(got.nodata))
            assert got.tags()["model"] == "m"
            assert got.descriptions == tuple(f"d{i}" for i in range(bands))
            assert np.array_equal(got.read(), np.where(valid, values, np.asarray(nodata or 0, dtype)), equal_nan=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.tif", "o.tif"]
    if compress == "deflate":  # another reader than GDAL
        other = tifffile.imread(tmp_path / "o.tif")
        want = np.where(valid, values, np.asarray(nodata or 0, dtype))
        assert np.array_equal(other, want[0] if bands == 1 else np.moveaxis(want, 0, -1))


def test_geotiff_classes_colours_and_scale(tmp_path):
    rasterio = pytest.importorskip("rasterio")
    from core.streaming.geotiff import GeoTiffSink

    values = RNG.integers(0, 3, (1, 60, 80)).astype(np.uint8)
    scene(rasterio, tmp_path / "in.tif", values)
    meta = open_source(tmp_path / "in.tif").meta
    sink = GeoTiffSink(tmp_path / "o.tif", (120, 160), "uint8", meta=meta, scale=2, classes={0: "water", 2: "wood"},
                       colors={0: (0, 0, 255), 2: (0, 99, 0, 255)})  # fmt: skip
    run(ArraySource(values), lambda t, v: t.repeat_interleave(2, 2).repeat_interleave(2, 3), sink, tile=32, overlap=0.5,
        finish=image("uint8"), scale=2)  # fmt: skip
    with rasterio.open(tmp_path / "o.tif") as got:
        assert np.array_equal(got.read(1), values[0].repeat(2, 0).repeat(2, 1))
        assert got.transform == rasterio.Affine(5, 0, 5e5, 0, -5, 4e6)
        assert got.bounds == rasterio.open(tmp_path / "in.tif").bounds
        assert got.colormap(1)[0] == (0, 0, 255, 255)
        assert got.tags(1)["class_2"] == "wood"
    for wrong in ({"nodata": 300}, {"nodata": 0.5}, {"compress": "jpeg"}, {"bands": 2, "colors": {0: (0, 0, 0)}}):
        with pytest.raises(SettingError):
            GeoTiffSink(tmp_path / "x.tif", (9, 9), "uint8", **wrong)


def test_raster_validity(tmp_path):
    rasterio = pytest.importorskip("rasterio")
    values = noise((3, 40, 50), "uint8") + 1
    values[:, 5:9] = 0
    values[0, 20] = 0  # one band of three: measured
    scene(rasterio, tmp_path / "n.tif", values, nodata=0)
    got, valid = all_of(open_source(tmp_path / "n.tif"))
    assert np.array_equal(valid, (values != 0).any(0))
    floats = noise((2, 40, 50), "float32")
    floats[1, 3, 4] = np.nan
    scene(rasterio, tmp_path / "f.tif", floats, nodata=-9999)
    got, valid = all_of(open_source(tmp_path / "f.tif"))
    assert np.argwhere(~valid).tolist() == [[3, 4]]
    assert (got[:, 3, 4] == 0).all()
    clear = np.concatenate([values, noise((1, 40, 50), "uint8") // 128 * 255])
    scene(rasterio, tmp_path / "a.tif", clear, photometric="RGB", alpha="YES")
    source = open_source(tmp_path / "a.tif")
    got, valid = all_of(source)
    assert len(source.channels) == 3
    assert np.array_equal(valid, clear[3] > 0)
    scene(rasterio, tmp_path / "c.tif", noise((1, 9, 9), "float32").astype("complex64"))
    with pytest.raises(FileError, match="complex"):
        open_source(tmp_path / "c.tif")


def test_raster_cut_short(tmp_path):
    rasterio = pytest.importorskip("rasterio")
    scene(rasterio, tmp_path / "in.tif", noise((1, 300, 300), "uint8"), compress="deflate", tiled=True,
          blockxsize=64, blockysize=64)  # fmt: skip
    content = (tmp_path / "in.tif").read_bytes()
    for share in (0.01, 0.3, 0.9):
        (tmp_path / "in.tif").write_bytes(content[: int(len(content) * share)])
        with pytest.raises(FileError, match=r"cut short"):
            all_of(open_source(tmp_path / "in.tif"))


# --- choice ---------------------------------------------------------------------------------------------------------


def test_content_decides_not_the_suffix(tmp_path):
    values = noise((20, 30), "uint8")
    tifffile.imwrite(tmp_path / "a.png", values)
    assert np.array_equal(all_of(open_source(tmp_path / "a.png"))[0][0], values)
    Image.fromarray(values).save(tmp_path / "b.tif", format="PNG")
    assert np.array_equal(all_of(open_source(tmp_path / "b.tif"))[0][0], values)


def test_what_is_no_image(tmp_path):
    (tmp_path / "empty.tif").touch()
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "d.dcm").write_bytes(b"II*\0" + bytes(124) + b"DICM" + bytes(100))
    for name, match in [("none.tif", "no such file"), ("empty.tif", "is empty"), ("text.png", "is none of"),
                        ("", "is a folder"), ("d.dcm", "is a DICOM file")]:  # fmt: skip
        with pytest.raises(FileError, match=match):
            open_source(tmp_path / name)
