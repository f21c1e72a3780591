"""Photographs of every format: read right or refused, and written with what they carry."""

import struct
import warnings
import zlib

import numpy as np
import pytest

pytest.importorskip("PIL")
tifffile = pytest.importorskip("tifffile")
from PIL import Image

from core.data import photos
from core.errors import FileError, InputError, SettingError, ShapeError
from core.streaming import png
from core.streaming.pictures import PictureSink

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (20, 30, 3), dtype=np.uint8)
DEEP = RNG.integers(0, 65_536, (20, 30, 3), dtype=np.uint16)


def written(folder, ending, pixels=RGB, **options):
    path = folder / f"a.{ending}"
    Image.fromarray(pixels).save(path, **options)
    return path


@pytest.mark.parametrize("ending", ["png", "tif", "bmp", "webp", "gif", "jpg"])
@pytest.mark.parametrize("colour", [True, False])
def test_formats(tmp_path, ending, colour):
    """Grey and colour as Pillow decodes them; the content decides, not the suffix."""
    options = {"webp": {"lossless": True}}.get(ending, {})
    for pixels in (RGB, RGB[..., 0]):
        path = written(tmp_path, ending, pixels, **options).rename(tmp_path / "a.dat")
        photo = photos.read(path, colour=colour)
        with Image.open(path) as picture:
            grey = pixels.ndim == 2 and ending != "webp"
            want = np.asarray(picture.convert("L" if grey and ending != "gif" else "RGB"))
        want = want if want.ndim == 3 else want[..., None]
        if colour:
            assert photo.pixels.shape == (20, 30, 3)
            want = np.broadcast_to(want, (20, 30, 3))
        assert np.array_equal(photo.pixels, want if photo.pixels.shape[2] == want.shape[2] else want[..., :1])
        assert photo.format == {"tif": "TIFF", "jpg": "JPEG"}.get(ending, ending.upper())
        assert photo.alpha is None
        assert photo.meta.id == "a"
        assert len(photo.meta.channels) == photo.pixels.shape[2]


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_png_of_any_channels_is_written_and_read(tmp_path, channels, kind):
    size = (70, 31)  # more rows than are filtered at once
    smooth = np.add.outer(np.arange(size[0]) ** 2, np.arange(size[1]) * 31)[..., None] * [1, 3, 5, 7][:channels]
    values = (smooth + RNG.integers(0, 9, (*size, channels))).astype(kind)
    png.write(tmp_path / "a.png", [values[:3], values[3:69], values[69:]], size)
    photo = photos.read(tmp_path / "a.png", colour=False)
    colours = channels - (channels % 2 == 0)
    assert photo.pixels.dtype == kind
    assert np.array_equal(photo.pixels, values[..., :colours])
    assert (photo.alpha is None) == (channels % 2 == 1)
    if channels % 2 == 0:
        assert np.array_equal(photo.alpha, values[..., -1])
    plain = sum(len(zlib.compress(b"\0" + row.tobytes())) for row in values)
    assert (tmp_path / "a.png").stat().st_size < plain
    with Image.open(tmp_path / "a.png") as other:
        other.load()  # another decoder finds sums and sizes right
    with pytest.raises(SettingError, match="PNG does not hold"):
        png.write(tmp_path / "b.png", [values.astype(np.float32)], size)


def test_png_s_oddities(tmp_path):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    def file(colour, rows, *more):
        head = struct.pack(">IIBBBBB", 30, 20, 16, colour, 0, 0, 0)
        lines = b"".join(b"\0" + row.astype(">u2").tobytes() for row in rows)
        body = b"".join(more) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
        (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + body)
        return photos.read(tmp_path / "a.png", colour=False)

    key = DEEP[4, 5].astype(">u2").tobytes()
    photo = file(2, DEEP, chunk(b"tRNS", key))
    assert np.array_equal(photo.pixels, DEEP)
    assert np.argwhere(photo.alpha == 0).tolist() == [[4, 5]]
    grey = DEEP[..., 0]
    photo = file(0, grey, chunk(b"tRNS", struct.pack(">H", grey[7, 8])))
    assert np.array_equal(photo.pixels[..., 0], grey)
    assert not photo.alpha[7, 8]
    assert photo.alpha.dtype == np.uint16
    bits = Image.fromarray(RGB[..., 0]).convert("1")
    bits.save(tmp_path / "1.png")
    assert np.array_equal(
        photos.read(tmp_path / "1.png", colour=False).pixels[..., 0], np.asarray(bits) * np.uint8(255)
    )
    clear = Image.fromarray(RGB).quantize(8)
    clear.save(tmp_path / "p.png", transparency=3)
    photo = photos.read(tmp_path / "p.png")
    assert np.array_equal(photo.alpha == 0, np.asarray(clear) == 3)
    assert np.array_equal(photo.pixels, np.asarray(clear.convert("RGB")))
    assert "palette applied" in photo.meta.applied


@pytest.mark.parametrize("transform", [0, 2])
def test_cmyk_of_adobe(tmp_path, transform):
    """Adobe stores CMYK inverted, and as YCCK where its mark says 2."""
    inks = np.zeros((16, 16, 4), np.uint8)
    inks[..., 0] = 255  # cyan alone
    path = tmp_path / "a.jpg"
    Image.fromarray(inks, "CMYK").save(path, quality=100)
    content = bytearray(path.read_bytes())
    content[content.index(b"Adobe") + 11] = transform
    path.write_bytes(content)
    photo = photos.read(path)
    assert photo.pixels.shape == (16, 16, 3)
    assert photo.meta.applied == ("CMYK converted to RGB",)
    if transform == 0:
        assert np.abs(photo.pixels.astype(int) - (0, 255, 255)).max() <= 3
    assert photos.inspect(path)["mode"] == "CMYK"


def test_tiffs(tmp_path):
    path = tmp_path / "a.tif"
    alpha = RNG.integers(0, 65_536, (20, 30, 1), dtype=np.uint16)
    deep = np.concatenate([DEEP, alpha], axis=2)
    tifffile.imwrite(path, deep, photometric="rgb", extrasamples=["unassalpha"])
    photo = photos.read(path)
    assert np.array_equal(photo.pixels, DEEP)
    assert np.array_equal(photo.alpha, alpha[..., 0])
    share = alpha[..., 0] / 65_535
    tifffile.imwrite(
        path, np.dstack([np.rint(DEEP * share[..., None]).astype(np.uint16), alpha]), photometric="rgb",
        extrasamples=["assocalpha"],
    )  # fmt: skip
    photo = photos.read(path)
    assert "divided by alpha" in photo.meta.applied[-1]
    seen = alpha[..., 0] > 2000
    assert np.abs(photo.pixels.astype(int) - DEEP)[seen].max() <= 20
    tifffile.imwrite(path, RGB / np.float32(255), photometric="rgb")
    assert photos.read(path).pixels.dtype == np.float32
    Image.fromarray(RGB).save(path, compression="tiff_lzw")
    assert np.array_equal(photos.read(path).pixels, RGB)
    Image.fromarray(np.dstack([RGB, RGB[..., 0]]), "CMYK").save(path)
    assert photos.read(path).meta.applied == ("CMYK converted to RGB",)
    twelve = (DEEP >> 4).astype(np.uint16)
    tifffile.imwrite(path, twelve, photometric="rgb", extratags=[])
    content = path.read_bytes()
    with tifffile.TiffFile(path) as file:
        at = file.pages[0].tags["BitsPerSample"].valueoffset
    path.write_bytes(content[:at] + struct.pack("<3H", 16, 16, 16) + content[at + 6 :])
    assert np.array_equal(photos.read(path).pixels, twelve)
    tifffile.imwrite(path, RGB, photometric="rgb", extratags=[(274, "H", 1, 8, True)])
    photo = photos.read(path)
    assert np.array_equal(photo.pixels, np.rot90(RGB))
    tifffile.imwrite(path, np.stack([RGB, RGB // 2]), photometric="rgb")
    assert photos.read(path).meta.applied == ("first of 2 pages read",)
    for values, says in (
        (RGB.astype(np.int16), "holds int16 values"),
        (RGB.astype(np.float32), "floats that are not all from 0 to 1"),
        (np.full((9, 9), np.nan, np.float32), "floats that are not all from 0 to 1"),
    ):
        tifffile.imwrite(path, values, photometric="rgb" if values.ndim == 3 else "minisblack")
        with pytest.raises(FileError, match=says):
            photos.read(path)
    tifffile.imwrite(
        path, RNG.integers(0, 9, (20, 30, 5), dtype=np.uint8), photometric="minisblack", planarconfig="contig"
    )
    with pytest.raises(FileError, match=r"has [145] channels|is damaged|has more"):
        photos.read(path)


@pytest.mark.parametrize("ending", ["png", "tif", "bmp", "webp", "gif", "jpg"])
def test_cut_off_files(tmp_path, ending):
    path = written(tmp_path, ending, RNG.integers(0, 256, (80, 90, 3), dtype=np.uint8))
    content = path.read_bytes()
    for share in (0.002, 0.3, 0.6, 0.9):
        path.write_bytes(content[: int(len(content) * share)])
        with pytest.raises(FileError) as refused:
            photos.read(path)
        assert str(refused.value).startswith(f"{path}: ")
        assert "\n" not in str(refused.value)
    deep = tmp_path / "deep.png"
    png.write(deep, [DEEP], DEEP.shape[:2])
    deep.write_bytes(deep.read_bytes()[:1500])
    with pytest.raises(FileError, match="damaged or cut short"):
        photos.read(deep)


def test_a_damaged_exif_block_costs_the_block_alone(tmp_path):
    for ending in ("jpg", "png"):
        photos.save(tmp_path / f"a.{ending}", RGB, photos.Photo(RGB, exif=b"II*\0\x08\0\0\0\x05\0\x12\x01"))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            photo = photos.read(tmp_path / f"a.{ending}")
        assert photo.exif is None
        assert photo.pixels.shape == (20, 30, 3)


def test_what_is_no_photograph(tmp_path):
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("a text of some length, no picture")
    for name, says in [("empty.jpg", "is empty"), ("text.jpg", "is none of JPEG, PNG"), ("none.jpg", "no such file"),
                       (".", "is a folder")]:  # fmt: skip
        for ask in (photos.read, photos.inspect):
            with pytest.raises(FileError, match=says):
                ask(tmp_path / name)


@pytest.mark.parametrize("ending", ["png", "tif", "bmp", "jpg", "webp"])
def test_a_bomb_is_refused_before_it_is_decoded(tmp_path, ending, monkeypatch):
    path = written(tmp_path, ending)
    photos.read(path, max_pixels=600)
    with monkeypatch.context() as patched:
        patched.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("decoded"))
        patched.setattr("core.streaming.tiffs.TiffSource.__init__", lambda *a, **k: pytest.fail("decoded"))
        with pytest.raises(FileError, match="has more than 599 pixels"):
            photos.read(path, max_pixels=599)
    content = written(tmp_path, "png").read_bytes()
    head = content[12:16] + struct.pack(">II", 60_000, 60_000) + content[24:29]
    (tmp_path / "huge.png").write_bytes(content[:12] + head + struct.pack(">I", zlib.crc32(head)) + content[33:])
    with pytest.raises(FileError, match="has more than 178,956,970 pixels"):
        photos.read(tmp_path / "huge.png")


@pytest.mark.parametrize("shape", [(1, 1), (3, 20_000), (20_000, 1)])
@pytest.mark.parametrize("ending", ["png", "tif", "jpg"])
def test_odd_sizes(tmp_path, shape, ending):
    pixels = np.full((*shape, 3), (200, 100, 50), np.uint8)
    photos.save(tmp_path / f"a.{ending}", pixels)
    assert np.abs(photos.read(tmp_path / f"a.{ending}").pixels.astype(int) - pixels).max() <= 3


def test_float_and_back():
    for kind in (np.uint8, np.uint16):
        every = np.arange(np.iinfo(kind).max + 1).astype(kind).reshape(-1, 16, 1)
        photo = photos.Photo(every)
        values = photos.as_float(photo)
        assert (values.dtype, values.min(), values.max()) == (np.float32, 0, 1)
        assert np.array_equal(photos.as_stored(values, photo), every)
    assert photos.as_stored(np.array([[-1, 0.5, 7]]), np.uint16).tolist() == [[0, 32_768, 65_535]]
    assert photos.as_stored(np.array([2.0]), np.float32).tolist() == [1.0]
    tall = RNG.uniform(0, 1, (3000, 500)).astype(np.float32)  # more than is converted at once
    assert np.array_equal(photos.as_stored(tall, np.uint8), np.rint(tall * np.float32(255)))


@pytest.mark.parametrize("ending", ["png", "tif"])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_alpha_resolution_and_bits_are_saved(tmp_path, ending, kind):
    pixels, alpha = (RGB, RGB[..., 1]) if kind == np.uint8 else (DEEP, DEEP[..., 1])
    like = photos.Photo(pixels, alpha=alpha, dpi=(300.0, 150.0))
    path = tmp_path / "new" / f"a.{ending}"
    photos.save(path, pixels, like)
    photo = photos.read(path)
    assert np.array_equal(photo.pixels, pixels)
    assert np.array_equal(photo.alpha, alpha)
    assert photo.dpi == pytest.approx((300, 150), abs=0.02)
    photos.save(path, photos.as_float(photo), photo)
    assert np.array_equal(photos.read(path).pixels, pixels)
    photos.save(path, RGB[..., 0], like)  # another type than the alpha's
    found = photos.read(path, colour=False)
    assert np.array_equal(found.pixels[..., 0], RGB[..., 0])
    assert np.array_equal(found.alpha, photos.as_stored(alpha / np.iinfo(kind).max, np.uint8))
    with pytest.raises(ShapeError, match=r"\(10, 30\) pixels, but an alpha of \(20, 30\)"):
        photos.save(path, pixels[:10], like)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_jpeg_and_what_formats_do_not_hold(tmp_path):
    stripes = np.zeros((32, 32, 3), np.uint8)
    stripes[:, ::2] = (255, 0, 0)
    stripes[:, 1::2] = (0, 0, 255)
    photos.save(tmp_path / "a.jpg", stripes)
    assert np.abs(photos.read(tmp_path / "a.jpg").pixels.astype(int) - stripes).max() < 20  # colour at full size
    photos.save(tmp_path / "b.jpg", RGB, quality=30)
    assert (tmp_path / "b.jpg").stat().st_size < 0.5 * written(tmp_path, "png").stat().st_size
    before = (tmp_path / "a.jpg").read_bytes()
    for pixels, like, options, says in [
        (DEEP, None, {}, "JPEG does not hold 16 bits"),
        (RGB, photos.Photo(RGB, alpha=RGB[..., 0]), {}, "JPEG does not hold an alpha channel"),
        (np.zeros((2, 65_501), np.uint8), None, {}, "too many for JPEG"),
        (RGB, photos.Photo(RGB, exif=bytes(70_000)), {}, "EXIF block is too large"),
        (RGB, None, {"quality": 96}, "quality of JPEG is 1 to 95"),
        (RGB.astype(np.int32), None, {}, "does not hold int32"),
    ]:
        with pytest.raises(SettingError, match=says):
            photos.save(tmp_path / "a.jpg", pixels, like, **options)
    assert (tmp_path / "a.jpg").read_bytes() == before
    with pytest.raises(SettingError, match=r"\.png, \.jpg or \.tif, got 'a\.webp'"):
        photos.save(tmp_path / "a.webp", RGB)
    with pytest.raises(ShapeError, match=r"got \(20, 30, 2\)"):
        photos.save(tmp_path / "a.png", RGB[..., :2])
    floats = photos.Photo(RGB / np.float32(255))
    photos.save(tmp_path / "f.tif", floats.pixels, floats)
    assert np.array_equal(photos.read(tmp_path / "f.tif").pixels, floats.pixels)
    with pytest.raises(SettingError, match="PNG does not hold float32"):
        photos.save(tmp_path / "f.png", floats.pixels, floats)


def test_nothing_half_written_stands(tmp_path, monkeypatch):
    photos.save(tmp_path / "a.png", RGB)
    before = (tmp_path / "a.png").read_bytes()
    monkeypatch.setattr(png, "_chunk", lambda *a: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(FileError, match="disk is full"):
        photos.save(tmp_path / "a.png", RGB // 2)
    assert (tmp_path / "a.png").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_find(tmp_path):
    for name in ("b.JPG", "in/a.png", "in/deep/c.tiff", "in/.hidden.png", ".cache/d.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert [p.relative_to(tmp_path).as_posix() for p in photos.find([tmp_path])] == [
        "b.JPG",
        "in/a.png",
        "in/deep/c.tiff",
    ]
    assert photos.find([tmp_path / "notes.txt", str(tmp_path / "b.JPG")]) == [
        tmp_path / "notes.txt",
        tmp_path / "b.JPG",
    ]
    (tmp_path / "in" / "B.png").touch()
    with pytest.raises(FileError, match=r"in.B\.png: has the same name as .*b\.JPG; rename one"):
        photos.find([tmp_path])
    with pytest.raises(FileError, match=r"none\.png: no such file or folder"):
        photos.find([tmp_path / "none.png"])
    (tmp_path / "new").mkdir()
    with pytest.raises(FileError, match="holds no photograph"):
        photos.find([tmp_path / "new"])
    with pytest.raises(InputError, match="no photograph was named"):
        photos.find([])


@pytest.mark.parametrize("bands", [1, 3])
def test_a_sink_keeps_bits_and_blocks(tmp_path, bands):
    values, block = DEEP[..., :bands], b"II*\0\x08\0\0\0" + bytes(6)
    sink = PictureSink(tmp_path / "a.png", (20, 30), np.uint16, bands=bands, dpi=(200.0, 100.0), exif=block)
    for row in range(0, 20, 6):
        sink.write(row, np.moveaxis(values[row : row + 6], -1, 0))
    sink.close()
    photo = photos.read(tmp_path / "a.png", colour=False)
    assert np.array_equal(photo.pixels, values)
    assert photo.dpi == pytest.approx((200, 100), abs=0.02)
    assert photo.exif == block
    with pytest.raises(SettingError, match="JPEG does not hold"):
        PictureSink(tmp_path / "a.jpg", (20, 30), np.uint16, bands=bands)
    sink = PictureSink(tmp_path / "b.jpg", (20, 30), bands=3, dpi=(200.0, 200.0))
    sink.write(0, np.moveaxis(RGB, -1, 0))
    sink.close()
    assert photos.read(tmp_path / "b.jpg").dpi == (200, 200)
