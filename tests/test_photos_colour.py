"""ICC profiles and EXIF blocks of photographs: applied, kept and put back."""

import io
import struct

import numpy as np
import pytest

pytest.importorskip("PIL")
from PIL import Image, ImageCms

from core.data import _exif, _icc, _profiles, photos

RNG = np.random.default_rng(0)
ADOBE = ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457))  # XYZ (D50) of r, g, b
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def fixed(*values):
    return struct.pack(f">{len(values)}i", *(round(v * 65_536) for v in values))


def profile(space, tags, name="made"):
    """An ICC profile of version 2 with these tags."""
    words = name.encode() + b"\0"
    tags = {b"desc": b"desc\0\0\0\0" + struct.pack(">I", len(words)) + words + bytes(78), **tags}
    tags.setdefault(b"wtpt", b"XYZ \0\0\0\0" + fixed(0.9642, 1, 0.8249))
    tags.setdefault(b"cprt", b"text\0\0\0\0none\0")
    table, body = struct.pack(">I", len(tags)), b""
    for tag, data in tags.items():
        data += bytes(-len(data) % 4)
        table += struct.pack(">4sII", tag, 132 + 12 * len(tags) + len(body), len(data))
        body += data
    head = bytearray(128)
    struct.pack_into(">I", head, 0, 128 + len(table) + len(body))
    head[8:12], head[12:16], head[16:20], head[20:24] = b"\2\x20\0\0", b"mntr", space, b"XYZ "
    head[36:40], head[68:80] = b"acsp", fixed(0.9642, 1, 0.8249)
    return bytes(head) + table + body


def curve(gamma):
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256))


def rgb_profile(gamma=2.2, columns=ADOBE):
    tags = {c + b"XYZ": b"XYZ \0\0\0\0" + fixed(*xyz) for c, xyz in zip((b"r", b"g", b"b"), columns, strict=True)}
    return profile(b"RGB ", {**tags, **{c + b"TRC": curve(gamma) for c in (b"r", b"g", b"b")}}, "wide")


@pytest.mark.parametrize(
    ("kind", "numbers", "formula"),
    [
        (0, (1.8,), lambda x: x**1.8),
        (1, (2.0, 1.25, -0.25), lambda x: np.where(x >= 0.2, (1.25 * x - 0.25) ** 2, 0)),
        (2, (2.0, 0.75, 0.0, 0.25), lambda x: (0.75 * x) ** 2 + 0.25),
        (3, (2.0, 1.0, 0.0, 0.25, 0.25), lambda x: np.where(x >= 0.25, x**2, 0.25 * x)),
        (4, (2.0, 0.875, 0.0, 0.25, 0.25, 0.125, 0.0), lambda x: np.where(x >= 0.25, (0.875 * x) ** 2 + 0.125, x / 4)),
    ],
)
def test_parametric_curves(kind, numbers, formula):
    found = _icc._curve(b"para\0\0\0\0" + struct.pack(">HH", kind, 0) + fixed(*numbers))
    np.testing.assert_allclose(found, np.clip(formula(np.linspace(0, 1, 65_536)), 0, 1), atol=2e-6)


def test_curves_that_cannot_be_gone_back():
    for tag in (b"curv\0\0\0\0" + struct.pack(">I3H", 3, 0, 60_000, 100), b"mft2" + bytes(40), b"curv\0\0\0\0\0\0\0\7"):
        with pytest.raises(ValueError, match=r"curve|buffer"):
            _icc._curve(tag)


def colours(count, kind):
    top = np.iinfo(kind).max
    return RNG.integers(0, top + 1, (count, 7, 3)).astype(kind)


def by_littlecms(pixels, data, back=False):
    pair = (ImageCms.ImageCmsProfile(io.BytesIO(data)), ImageCms.createProfile("sRGB"))
    pair = pair[::-1] if back else pair
    flags = ImageCms.Flags.BLACKPOINTCOMPENSATION
    return np.asarray(
        ImageCms.profileToProfile(Image.fromarray(pixels), *pair, ImageCms.Intent.RELATIVE_COLORIMETRIC, flags=flags)
    )


@pytest.mark.parametrize("gamma", [1.0, 1.8, 2.2])
def test_float_is_what_littlecms_computes(gamma):
    data = rgb_profile(gamma)
    eight = colours(300, np.uint8)
    found = _profiles.profile(data, 3)
    assert (found.name, found.usable, found.exact, found.same) == ("wide", True, True, False)
    assert np.array_equal(found.to_srgb(eight), by_littlecms(eight, data))
    sixteen = found.to_srgb(eight.astype(np.uint16) * 257)
    assert np.abs(sixteen / 257 - by_littlecms(eight, data)).max() < (0.8 if gamma > 1 else 2)  # LittleCMS rounds, too
    floats = found.to_srgb(eight / np.float32(255))
    np.testing.assert_allclose(floats * 65_535, sixteen, atol=1)


def test_sixteen_bits_come_back():
    found = _profiles.profile(rgb_profile(), 3)
    srgb = colours(2000, np.uint16)  # every sRGB colour is one of the wide profile
    there = found.from_srgb(srgb)
    assert len(np.unique(there & 255)) == 256  # not 8 bits blown up
    apart = np.abs(found.to_srgb(there).astype(int) - srgb)
    assert apart.max() <= 20  # where sRGB is steep in the dark
    assert apart[(srgb > 20_000).all(-1)].max() <= 4


def test_srgb_under_any_name_is_left_alone(tmp_path):
    found = _profiles.profile(SRGB, 3)
    assert found.same
    pixels = colours(9, np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png", icc_profile=SRGB)
    photo = photos.read(tmp_path / "a.png")
    assert np.array_equal(photo.pixels, pixels)
    assert (photo.icc, photo.meta.applied) == (SRGB, ())


def test_a_profile_of_tables_is_interpolated(tmp_path):
    highdicom = pytest.importorskip("highdicom")
    from pathlib import Path

    data = (Path(highdicom.__file__).parent / "_icc_profiles" / "sRGB_v4_ICC_preference.icc").read_bytes()
    found = _profiles.profile(data, 3)
    assert (found.usable, found.exact) == (True, False)
    eight = colours(400, np.uint8)
    want = by_littlecms(eight, data).astype(float)
    got = found.to_srgb(eight.astype(np.uint16) * 257) / 257
    assert np.abs(got - want).mean() < 0.4
    assert np.abs(got - want).max() < 3
    smooth = np.linspace(20_000, 40_000, 900).astype(np.uint16)[:, None, None].repeat(3, 2)
    steps = np.diff(found.to_srgb(smooth)[:, 0].astype(int), axis=0)
    assert steps.min() >= 0
    assert steps.max() < 60  # a level of 8 bits is 257
    from core.streaming import png

    png.write(tmp_path / "a.png", [smooth], (900, 1), icc=data)
    if not found.same:
        assert "interpolated between 8-bit values" in photos.read(tmp_path / "a.png").meta.applied[0]


@pytest.mark.parametrize(
    ("kind", "ending"),
    [(np.uint8, "png"), (np.uint16, "png"), (np.uint8, "tif"), (np.uint16, "tif"), (np.uint8, "jpg")],
)
def test_a_wide_photograph_goes_through_srgb_and_back(tmp_path, kind, ending):
    data = rgb_profile()
    flat = np.full((40, 50, 3), (200, 120, 60), kind) * kind(1 if kind == np.uint8 else 257)
    like = photos.Photo(flat, icc=data)
    photos.save(tmp_path / f"a.{ending}", _profiles.profile(data, 3).to_srgb(flat), like)
    photo = photos.read(tmp_path / f"a.{ending}")
    assert photo.icc == data
    assert photo.meta.applied == ("converted from its profile (wide) to sRGB",)
    level = 1 if kind == np.uint8 else 257
    assert photo.pixels[0, 0, 0] > flat[0, 0, 0] + 5 * level  # redder in sRGB
    photos.save(tmp_path / f"b.{ending}", photo.pixels, photo)
    if ending == "tif":
        tifffile = pytest.importorskip("tifffile")
        stored = tifffile.imread(tmp_path / f"b.{ending}")
    else:
        from core.streaming.decode import decode

        stored = decode(tmp_path / f"b.{ending}").values
    assert np.abs(stored.astype(int) - flat).max() <= (3 if ending == "jpg" else 2)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_a_grey_profile(tmp_path, kind):
    from core.streaming import png

    data = profile(b"GRAY", {b"kTRC": curve(1.0)}, "linear grey")
    top = np.iinfo(kind).max
    grey = np.linspace(0, top, 60).astype(kind)[:, None, None]
    png.write(tmp_path / "a.png", [grey], (60, 1), icc=data)
    photo = photos.read(tmp_path / "a.png", colour=False)
    want = np.where(grey / top <= 0.0031308, grey / top * 12.92, 1.055 * (grey / top) ** (1 / 2.4) - 0.055)
    assert np.abs(photo.pixels / top - want).max() < 1 / top
    assert photos.read(tmp_path / "a.png").pixels.shape == (60, 1, 3)
    photos.save(tmp_path / "b.png", photo.pixels, photo)
    again = photos.read(tmp_path / "b.png", colour=False)
    assert again.icc == data
    assert np.abs(again.pixels.astype(int) - photo.pixels).max() <= 13  # steep in the dark
    photos.save(tmp_path / "c.png", photo.pixels.repeat(3, 2), photo)  # a grey photograph that got colours
    coloured = photos.read(tmp_path / "c.png")
    assert coloured.icc is None
    assert np.array_equal(coloured.pixels, photo.pixels.repeat(3, 2))


def test_cmyk_by_its_profile(tmp_path):
    """A made press on which any ink is black: with the profile cyan is black, and without it would be cyan."""
    even = bytes(range(256))
    corners = bytes([255, 128, 128]) + bytes([0, 128, 128]) * 15  # Lab: paper white, all else black
    table = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + fixed(1, 0, 0, 0, 1, 0, 0, 0, 1) + even * 4 + corners + even * 3
    data = bytearray(profile(b"CMYK", {b"A2B0": table}, "press"))
    data[12:16], data[20:24] = b"prtr", b"Lab "
    inks = np.zeros((16, 32, 4), np.uint8)
    inks[:, 16:, 0] = 255
    path = tmp_path / "a.jpg"
    Image.fromarray(inks, "CMYK").save(path, quality=100, icc_profile=bytes(data))
    photo = photos.read(path)
    assert photo.meta.applied == ("CMYK converted to sRGB by its profile (press)",)
    assert photo.pixels[:, :8].min() > 250
    assert photo.pixels[:, 24:].max() < 5
    assert photo.icc is None
    assert photos.inspect(path)["profile"] == "press"


def test_profiles_that_do_not_fit(tmp_path):
    pixels = colours(5, np.uint8)
    grey = profile(b"GRAY", {b"kTRC": curve(1.0)}, "linear grey")
    for data, says in (
        (grey, "profile (linear grey) left out"),
        (b"no profile at all", "profile (unreadable) left out"),
    ):
        Image.fromarray(pixels).save(tmp_path / "a.png", icc_profile=data)
        photo = photos.read(tmp_path / "a.png")
        assert photo.icc is None
        assert photo.meta.applied[0].startswith(says)
        assert np.array_equal(photo.pixels, pixels)


def exif(order, orientation, secret=b"", thumbnail=b"\xff\xd8small picture\xff\xd9"):
    """A block with two directories, a private tag, the size in pixels and a thumbnail, after that nothing."""
    secret = secret.ljust(5, b"\0")
    first = [(0x010F, 2, len(secret), None), (0x0112, 3, 1, orientation), (0x8769, 4, 1, "inner")]
    inner = [(0xA002, 4, 1, 640), (0xA003, 4, 1, 480)]
    at = 8 + 2 + 12 * len(first) + 4
    place = {"secret": at, "inner": at + len(secret)}
    second_at = place["inner"] + 2 + 12 * len(inner) + 4
    second = [(0x0201, 4, 1, second_at + 2 + 24 + 4), (0x0202, 4, 1, len(thumbnail))]

    def directory(entries, following):
        out = struct.pack(order + "H", len(entries))
        for tag, kind, count, value in entries:
            out += struct.pack(order + "HHI", tag, kind, count)
            value = place["secret"] if value is None else place.get(value, value)
            out += struct.pack(order + ("Hxx" if kind == 3 else "I"), value)
        return out + struct.pack(order + "I", following)

    start = {"<": b"II", ">": b"MM"}[order] + struct.pack(order + "HI", 42, 8)
    return start + directory(first, second_at) + secret + directory(inner, 0) + directory(second, 0) + thumbnail


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("turn", [1, 3, 6])
def test_exif_is_kept_but_for_orientation_and_thumbnail(order, turn):
    block = exif(order, turn, b"Maker 7")
    kept = _exif.upright(b"Exif\0\0" + block, swapped=turn == 6)
    read = Image.Exif()
    read.load(kept)
    assert read[0x0112] == 1
    assert read[0x010F] == "Maker 7"
    inner = read.get_ifd(0x8769)
    assert (inner[0xA002], inner[0xA003]) == ((480, 640) if turn == 6 else (640, 480))
    assert b"small picture" not in kept
    assert not read.get_ifd(Image.ExifTags.IFD.IFD1)
    same = sum(a == b for a, b in zip(kept, block, strict=False))
    assert same > len(kept) - 16  # edited where it stands


def test_exif_that_is_not_sound():
    block = exif("<", 6)
    for wrong in (
        b"",
        b"Exif\0\0",
        b"II*\0",
        b"XX" + block[2:],
        block[:20],
        b"II\0\0" + block[4:],
        b"II*\0\xff\xff\xff\x7f",
    ):
        assert _exif.upright(wrong, swapped=False) is None
    inside = bytearray(block)
    at = block.index(struct.pack("<HHI", 0x0201, 4, 1)) + 8
    struct.pack_into("<I", inside, at, 10)  # a thumbnail that would be the directory itself
    kept = _exif.upright(bytes(inside), swapped=False)
    assert kept[10:60] == _exif.upright(block, swapped=False)[10:60]


@pytest.mark.parametrize("ending", ["png", "jpg", "tif", "webp"])
def test_a_turned_photograph_is_saved_upright(tmp_path, ending):
    pixels = np.zeros((30, 40, 3), np.uint8)
    pixels[:10] = 255  # bright on top as stored: to be seen on the right (orientation 6 turns by 90 degrees)
    options = {} if ending == "tif" else {"exif": b"Exif\0\0" + exif("<", 6, b"ACME-12345")}
    if ending == "tif":
        tags = Image.Exif()
        tags[0x0112], tags[0x010F] = 6, "ACME-12345"
        options = {"exif": tags}
    Image.fromarray(pixels).save(tmp_path / f"a.{ending}", **options)
    photo = photos.read(tmp_path / f"a.{ending}")
    assert photo.pixels.shape == (40, 30, 3)
    assert photo.pixels[:, -8:].min() > 200
    assert photo.pixels[:, :15].max() < 50
    assert "orientation 6 says" in photo.meta.applied[0]
    for again in ("png", "jpg", "tif"):
        photos.save(tmp_path / f"b.{again}", photo.pixels, photo)
        found = photos.read(tmp_path / f"b.{again}")
        assert found.pixels.shape == (40, 30, 3)
        read = Image.Exif()
        read.load(found.exif)
        assert read[0x010F] == "ACME-12345"
        told = photos.inspect(tmp_path / f"b.{again}")
        assert told["exif"]
        assert "ACME" not in str(told)
        assert told["exif orientation"] == 1
    assert photos.inspect(tmp_path / f"a.{ending}")["exif orientation"] == 6


def test_texts_of_a_tiff(tmp_path):
    """All seven, the date, too; letters beyond ASCII byte by byte."""
    tifffile = pytest.importorskip("tifffile")
    texts = {
        270: "a view",
        271: "ACME",
        272: "One",
        305: "made",
        306: "2020:01:02 03:04:05",
        315: "Ann",
        33432: "all",
    }
    block = Image.Exif()
    for code, text in texts.items():
        block[code] = text
    block.get_ifd(0x8825)[1] = "N"  # a position
    like = photos.Photo(colours(4, np.uint16), exif=block.tobytes())
    photos.save(tmp_path / "a.tif", like.pixels, like)
    found = Image.Exif()
    found.load(photos.read(tmp_path / "a.tif").exif)
    assert {code: found[code] for code in texts} == texts
    told = str(photos.inspect(tmp_path / "a.tif"))
    assert not any(text in told for text in ("ACME", "2020", "Ann", "view"))
    like = photos.Photo(like.pixels, exif=exif("<", 1, "J\u00f6rg".encode()))
    photos.save(tmp_path / "b.tif", like.pixels, like)
    with tifffile.TiffFile(tmp_path / "b.tif") as file:
        assert file.pages[0].tags[271].value == "J\u00f6rg"
