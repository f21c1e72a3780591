"""Slides by the window at a stated number of micrometres to a pixel; tissue, stains, pyramids that are written."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from apps.medical import _slide_openslide, pyramids, slides, stain, tissue
from apps.medical._slide_shrink import shrink, span
from apps.medical._tiff_pages import Plane
from core.errors import FileError, InputError, SettingError

REAL = Path(os.environ.get("GLOCAL_REAL", Path(__file__).parents[2] / "shared" / "real")) / "medical"
SVS = REAL / "cmu_small_region.svs"
APERIO = "Aperio Image Library v11.2.1 \n{w}x{h} (256x256) JPEG/RGB Q=70|AppMag = 40|MPP = {um}"


def noise(rows: int, columns: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (rows, columns, 3)).astype(np.uint8)


def halved(picture: NDArray[np.uint8], times: int) -> NDArray[np.uint8]:
    """Each level the mean of 2 x 2 of the one before, as scanners make them."""
    for _ in range(times):
        rows, columns = picture.shape[0] // 2 * 2, picture.shape[1] // 2 * 2
        parts = picture[:rows, :columns].reshape(rows // 2, 2, columns // 2, 2, 3)
        picture = np.rint(parts.mean((1, 3))).astype(np.uint8)
    return picture


def made(path: Path, picture: NDArray[np.uint8], um: float | None = 0.25, **options: Any) -> Path:
    """A pyramid of a picture."""
    levels = [halved(picture, n) for n in range(8)]
    spacing = None if um is None else (um, um)

    def read(level: int, _: int, top: int, left: int, bottom: int, right: int) -> NDArray[np.uint8]:
        return levels[level][top:bottom, left:right]

    pyramids.write(path, (picture.shape[0], picture.shape[1]), read, spacing, **options)
    return path


def whole(source: slides.SlideSource) -> NDArray[np.uint8]:
    return np.moveaxis(source.read((0, 0), source.shape)[0], 0, -1)


@pytest.fixture
def slide(tmp_path: Path) -> Path:
    return made(tmp_path / "a.tif", noise(1056, 800))


def test_a_pyramid_at_its_own_pixels(slide: Path) -> None:
    opened = slides.open_slide(slide)
    assert opened.size == (1056, 800)
    assert [level.size for level in opened.levels] == [(1056, 800), (528, 400), (264, 200), (132, 100)]
    assert [level.factor for level in opened.levels] == [(1.0, 1.0), (2.0, 2.0), (4.0, 4.0), (8.0, 8.0)]
    assert opened.um == pytest.approx((0.25, 0.25))
    picture = noise(1056, 800)
    assert (whole(opened.at(0.25)) == picture).all()
    assert (whole(opened.level(2)) == halved(picture, 2)).all()


@pytest.mark.parametrize(
    ("um", "level", "shrunk"),
    [(0.25, 0, 1.0), (0.2507, 0, 1.0), (0.3, 0, 1.2), (0.5, 1, 1.0), (0.6, 1, 1.2), (1.0, 2, 1.0), (8.0, 3, 4.0)],
)
def test_the_coarsest_level_that_is_fine_enough_is_read(slide: Path, um: float, level: int, shrunk: float) -> None:
    source = slides.open_slide(slide).at(um)
    assert (source.number, source.shrunk) == (level, pytest.approx((shrunk, shrunk)))
    assert source.um == pytest.approx((um, um), rel=0.011)
    assert source.shape == (int(1056 / 2**level / shrunk + 1e-9), int(800 / 2**level / shrunk + 1e-9))
    assert source.meta.spacing == pytest.approx((um / 1000, um / 1000), rel=0.011)


def test_levels_of_uneven_steps(tmp_path: Path) -> None:
    picture = noise(512, 768)
    steps = [0, 1, 3]
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for n in steps:
            part = halved(picture, n)
            file.write(part, tile=(64, 64), photometric="rgb", subfiletype=int(n > 0), metadata=None)
    opened = slides.open_slide(tmp_path / "a.tif", um_per_px=0.25)
    assert [level.factor for level in opened.levels] == [(1.0, 1.0), (2.0, 2.0), (8.0, 8.0)]
    assert (whole(opened.level(2)) == halved(picture, 3)).all()


@pytest.mark.parametrize("um", [0.25, 0.37, 0.5, 0.75, 1.7])
def test_a_window_has_the_pixels_of_the_whole(slide: Path, um: float) -> None:
    source = slides.open_slide(slide).at(um)
    picture = whole(source)
    for start, stop in (((3, 7), (90, 61)), ((0, 0), (1, 1)), ((source.shape[0] - 5, 20), source.shape)):
        values, valid = source.read(start, stop)
        assert valid.all()
        want = picture[start[0] : stop[0], start[1] : stop[1]]
        assert (np.moveaxis(values, 0, -1) == want).all()


def test_what_lies_outside_is_not_valid(slide: Path) -> None:
    source = slides.open_slide(slide).at(0.5)
    values, valid = source.read((-3, 390), (4, 405))
    assert values.shape == (3, 7, 15)
    assert valid[3:, :10].all()
    assert not valid[:3].any()
    assert not valid[:, 10:].any()
    assert (values[:, ~valid] == 0).all()


def test_area_means_against_a_plain_loop() -> None:
    fine = noise(37, 53)
    factor = (2.6, 1.3)
    size = int(37 / factor[0]), int(53 / factor[1])
    want = np.zeros((*size, 3))
    for r in range(size[0]):
        for c in range(size[1]):
            for y in range(37):
                for x in range(53):
                    down = max(0.0, min(y + 1, (r + 1) * factor[0]) - max(y, r * factor[0]))
                    across = max(0.0, min(x + 1, (c + 1) * factor[1]) - max(x, c * factor[1]))
                    if down and across:
                        want[r, c] += fine[y, x] * down * across
    want /= factor[0] * factor[1]
    got = shrink(fine, (0, 0), size, factor, (0, 0))
    assert np.abs(got - want).max() <= 0.5 + 1e-9
    top, bottom = span(3, 9, factor[0], 37)
    left, right = span(5, 20, factor[1], 53)
    part = shrink(fine[top:bottom, left:right], (3, 5), (6, 15), factor, (top, left))
    assert (part == got[3:9, 5:20]).all()


def test_a_constant_stays_constant(tmp_path: Path) -> None:
    flat = np.full((500, 400, 3), (200, 100, 50), np.uint8)
    opened = slides.open_slide(made(tmp_path / "a.tif", flat))
    for um in (0.25, 0.33, 0.5, 0.9, 3.3):
        assert (whole(opened.at(um)) == flat[0, 0]).all()


def test_pixels_that_are_not_square(tmp_path: Path) -> None:
    picture = noise(300, 400)
    path = tmp_path / "a.tif"
    options = {"resolution": (10_000 / 0.5, 10_000 / 0.25), "resolutionunit": "CENTIMETER"}  # across, down
    tifffile.imwrite(path, picture, tile=(64, 64), photometric="rgb", metadata=None, **options)
    opened = slides.open_slide(path)
    assert opened.um == pytest.approx((0.25, 0.5))
    assert opened.at(0.5).shape == (150, 400)
    assert opened.at(1.0).shape == (75, 200)


def test_without_micrometres_a_flag_is_asked_for(tmp_path: Path) -> None:
    path = made(tmp_path / "a.tif", noise(300, 300), um=None)
    opened = slides.open_slide(path)
    assert opened.um is None
    with pytest.raises(FileError, match=r"a\.tif: does not say how large its pixels are; .* --um-per-px$") as told:
        opened.at(0.5)
    assert "\n" not in str(told.value)
    given = slides.open_slide(path, um_per_px=0.25)
    assert given.at(0.5).shape == (150, 150)
    assert "0.25 um to a pixel given by hand" in given.applied
    assert "not stated" in str(slides.inspect(path)["um per px"])
    for wrong in (0.0, -1.0, float("nan")):
        with pytest.raises(SettingError, match="positive"):
            slides.open_slide(path, um_per_px=wrong)


def test_an_objective_is_a_hint_and_no_more(tmp_path: Path) -> None:
    text = "Aperio Image Library v11\n300x300|AppMag = 40"
    path = made(tmp_path / "a.svs", noise(300, 300), um=None, description=text)
    with pytest.raises(FileError, match=r"objective of 40x, which is often 0\.25"):
        slides.open_slide(path).at(0.5)


def test_a_flag_wins_over_the_file_and_says_so(slide: Path) -> None:
    opened = slides.open_slide(slide, um_per_px=0.5)
    assert opened.at(1.0).number == 1
    assert any("its file says 0.25" in words for words in opened.applied)


def test_finer_than_the_finest_is_refused(slide: Path) -> None:
    with pytest.raises(FileError, match=r"finest pixels are 0.25 um, and 0.125 um are needed; finer ones cannot"):
        slides.open_slide(slide).at(0.125)
    with pytest.raises(SettingError, match="positive"):
        slides.open_slide(slide).at(0)


def test_a_level_that_is_not_there(slide: Path) -> None:
    with pytest.raises(SettingError, match="level 9 is missing; it has 4 levels, 0 to 3"):
        slides.open_slide(slide).level(9)


@pytest.mark.parametrize("subifds", [False, True])
@pytest.mark.parametrize("big", [False, True])
def test_a_level_whose_directory_is_cut_off(tmp_path: Path, subifds: bool, big: bool) -> None:
    picture, path = noise(600, 800), tmp_path / "a.tif"
    with tifffile.TiffWriter(path, bigtiff=big) as file:
        for n in range(3):
            more = {"subifds": 2} if subifds and not n else {}
            file.write(
                halved(picture, n), tile=(128, 128), photometric="rgb", compression="zlib", subfiletype=int(n > 0),
                metadata=None, **more,
            )  # fmt: skip
    assert len(slides.open_slide(path).levels) == 3
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * 0.85)])
    with pytest.raises(FileError, match="a level of its pyramid is missing") as told:
        slides.open_slide(path)
    assert "\n" not in str(told.value)


def cut(path: Path, level: int, index: int) -> None:
    """End the file inside a tile, whose directory comes first here."""
    with tifffile.TiffFile(path) as file:
        page = file.pages[level].aspage()
        end = page.dataoffsets[index] + page.databytecounts[index] // 2
    path.write_bytes(path.read_bytes()[:end])


def directory_first(path: Path, picture: NDArray[np.uint8]) -> Path:
    """One level, its tiles behind its directory, as a copy that broke off leaves it readable."""
    tifffile.imwrite(path, picture, tile=(64, 64), photometric="rgb", metadata=None, compression="zlib")
    return path


def test_a_tile_that_is_cut_off_is_found_before_the_work(tmp_path: Path) -> None:
    path = directory_first(tmp_path / "a.tif", noise(256, 256))
    cut(path, 0, 10)
    with pytest.raises(FileError, match=r"a\.tif: cut off: tile 11 of 16 of level 0 lies behind its end; copy it"):
        slides.open_slide(path)


def test_a_damaged_tile_is_one_sentence(tmp_path: Path) -> None:
    path = directory_first(tmp_path / "a.tif", noise(256, 256))
    with tifffile.TiffFile(path) as file:
        place = file.pages[0].aspage().dataoffsets[5]
    content = bytearray(path.read_bytes())
    content[place : place + 40] = bytes(40)
    path.write_bytes(content)
    source = slides.open_slide(path, um_per_px=0.5).at(0.5)
    assert source.read((0, 0), (64, 64))[1].all()
    with pytest.raises(FileError, match=r"tile 6 is damaged"):
        source.read((64, 64), (128, 128))


def test_tiles_that_were_never_written_are_glass(tmp_path: Path) -> None:
    """Scanners leave out empty glass: no bytes, and no black."""
    path = directory_first(tmp_path / "a.tif", np.full((256, 256, 3), 90, np.uint8))
    with tifffile.TiffFile(path, mode="r+b") as file:
        page = file.pages[0].aspage()
        counts = list(page.databytecounts)
        counts[5] = 0
        page.tags[325].overwrite(counts)
    opened = slides.open_slide(path, um_per_px=0.5)
    values, valid = opened.at(0.5).read((0, 0), (256, 256))
    assert not valid[64:128, 64:128].any()
    assert valid.sum() == 256 * 256 - 64 * 64
    assert (values[:, valid] == 90).all()
    coarse, known = opened.at(1.1).read((20, 20), (70, 70))
    assert 0 < (~known).sum() < known.size
    assert coarse[:, known].min() >= 90  # white shines in at the edge, black does not


@pytest.mark.parametrize(
    ("values", "options", "words"),
    [
        (np.zeros((300, 300), np.uint8), {}, "colours are minisblack"),
        (np.zeros((300, 300, 3), np.uint16), {"photometric": "rgb"}, "values of uint16"),
        (np.zeros((4, 300, 300, 3), np.uint8), {"photometric": "rgb", "metadata": {"axes": "ZYXS"}}, "planes of focus"),
    ],
)
def test_what_is_no_slide_in_colour(tmp_path: Path, values: Any, options: Any, words: str) -> None:
    tifffile.imwrite(tmp_path / "a.tif", values, tile=(64, 64), **options)
    with pytest.raises(FileError, match=words):
        slides.open_slide(tmp_path / "a.tif")


def test_what_is_no_slide_at_all(tmp_path: Path) -> None:
    (tmp_path / "a.svs").write_bytes(b"no slide")
    (tmp_path / "b.svs").write_bytes(b"II*\0" + bytes(200))
    assert slides.recognised(tmp_path / "a.svs")
    with pytest.raises(FileError, match=r"a\.svs: no slide that is read here"):
        slides.open_slide(tmp_path / "a.svs")
    with pytest.raises(FileError, match=r"b\.svs: a damaged or cut-off TIFF"):
        slides.open_slide(tmp_path / "b.svs")
    with pytest.raises(FileError, match="no such file"):
        slides.open_slide(tmp_path / "none.svs")
    with pytest.raises(FileError, match="is a folder"):
        slides.open_slide(tmp_path)
    with pytest.raises(SettingError, match="reader"):
        slides.open_slide(tmp_path / "a.svs", reader="pillow")  # type: ignore[arg-type]


def test_what_counts_as_a_slide(tmp_path: Path, slide: Path) -> None:
    Image.fromarray(noise(50, 50)).save(tmp_path / "p.png")
    tifffile.imwrite(tmp_path / "tile.tif", noise(224, 224), photometric="rgb")
    assert slides.recognised(slide)
    assert not slides.recognised(tmp_path / "p.png")
    assert not slides.recognised(tmp_path / "tile.tif")
    assert not slides.recognised(tmp_path / "none.tif")


def test_one_piece_of_a_huge_picture_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tifffile.imwrite(tmp_path / "a.tif", noise(600, 600), photometric="rgb", rowsperstrip=600)
    monkeypatch.setattr("apps.medical._slide_levels.MAX_BLOCK", 2**20)
    with pytest.raises(FileError, match="stored in pieces of 600 x 600 pixels; save it as a tiled pyramid"):
        slides.open_slide(tmp_path / "a.tif")


def test_ome_pyramids_by_planes(tmp_path: Path) -> None:
    """QuPath and Bio-Formats write red, green and blue as three pages."""
    picture, path = noise(600, 800), tmp_path / "a.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as file:
        about = {"axes": "CYX", "PhysicalSizeX": 500, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 0.5,
                 "PhysicalSizeYUnit": "µm"}  # fmt: skip
        file.write(np.moveaxis(picture, -1, 0), tile=(128, 128), subifds=1, metadata=about, photometric="minisblack")
        small = np.moveaxis(halved(picture, 1), -1, 0)
        file.write(small, tile=(128, 128), subfiletype=1, photometric="minisblack")
    opened = slides.open_slide(path)
    assert opened.um == pytest.approx((0.5, 0.5))
    assert (whole(opened.at(0.5)) == picture).all()
    assert (whole(opened.at(1.0)) == halved(picture, 1)).all()


@pytest.mark.parametrize("ycbcr", [False, True])
def test_jpeg_2000_as_aperio_stores_it(ycbcr: bool, tmp_path: Path) -> None:
    colour = np.zeros((64, 64, 3), np.uint8)
    colour[..., 0], colour[:32, :, 1], colour[..., 2] = 200, 90, np.arange(64) * 2
    picture = Image.fromarray(colour)
    stored = Image.merge("RGB", picture.convert("YCbCr").split()) if ycbcr else picture
    packed = io.BytesIO()
    stored.save(packed, "JPEG2000", no_jp2=True, mct=0, irreversible=False)
    tifffile.imwrite(tmp_path / "a.tif", colour, tile=(64, 64), photometric="rgb", metadata=None)
    content = bytearray((tmp_path / "a.tif").read_bytes())
    offset = len(content)
    (tmp_path / "a.tif").write_bytes(content + packed.getvalue())
    with tifffile.TiffFile(tmp_path / "a.tif", mode="r+b") as file:
        tags = file.pages[0].aspage().tags
        tags[324].overwrite([offset])
        tags[325].overwrite([len(packed.getvalue())])
        tags[259].overwrite(33003 if ycbcr else 33005)
    opened = slides.open_slide(tmp_path / "a.tif", um_per_px=0.5)
    assert np.abs(whole(opened.at(0.5)).astype(int) - colour).max() <= (4 if ycbcr else 0)  # rounded twice


def test_memory_is_that_of_a_window(slide: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No window of a level that is asked for is larger than what a few rows of tiles take."""
    asked: list[int] = []
    read = Plane.window

    def counted(self: Plane, top: int, left: int, bottom: int, right: int) -> NDArray[Any]:
        asked.append((bottom - top) * (right - left))
        return read(self, top, left, bottom, right)

    monkeypatch.setattr(Plane, "window", counted)
    monkeypatch.setattr("apps.medical.slides._CHUNK", 1 << 14)
    opened = slides.open_slide(slide)
    picture, _, scale = opened.thumbnail(50)
    assert max(picture.shape[:2]) <= 50
    assert scale == pytest.approx((1056 / 50, 1056 / 50))
    assert max(asked) < 132 * 100 // 2


def test_names_of_people_are_not_repeated(tmp_path: Path) -> None:
    text = APERIO.format(w=300, h=300, um=0.5) + "|Patient Name = Quimby, Louise|Accession = S12-4711|Date = 12/29/09"
    path = made(tmp_path / "S12-4711_HE.svs", noise(300, 300), description=text)
    assert {"quimby", "louise", "s12 4711", "12 29 09"} <= set(slides.identifiers(path))
    opened = slides.open_slide(path)
    assert opened.id.startswith("slide-")
    assert "4711" not in opened.id
    told = str(slides.inspect(path)).replace(str(path), "")
    for word in ("Quimby", "Louise", "4711", "12/29"):
        assert word not in told
    plain = made(tmp_path / "plain_HE.svs", noise(300, 300), description=text)
    assert slides.open_slide(plain).id == "plain_HE"


needs_openslide = pytest.mark.skipif(not _slide_openslide.installed(), reason="OpenSlide is not installed here")


@needs_openslide
@pytest.mark.parametrize("um", [0.25, 0.5, 0.8, 1.0, 1.5])
def test_both_readers_give_the_same_pixels(slide: Path, um: float) -> None:
    one, other = (slides.open_slide(slide, reader=r).at(um) for r in ("tifffile", "openslide"))
    assert (one.shape, one.number) == (other.shape, other.number)
    assert (whole(one) == whole(other)).all()
    for a, b in zip(one.read((-5, 3), (60, 71)), other.read((-5, 3), (60, 71)), strict=True):
        assert (a == b).all()


def test_openslide_is_asked_for_in_one_sentence(slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_slide_openslide, "installed", lambda: False)
    with pytest.raises(InputError, match="only OpenSlide reads here, which is not installed; it comes with: pip"):
        slides.open_slide(slide, reader="openslide")
    (tmp_path / "x.mrxs").write_bytes(b"x")
    with pytest.raises(InputError, match="OpenSlide"):
        slides.open_slide(tmp_path / "x.mrxs")


def test_makers_forms_go_to_openslide(slide: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tifffile.TiffFile, "is_ndpi", True, raising=False)
    with pytest.raises(FileError, match=r"a\.tif: a slide in NDPI's form; OpenSlide reads it \(--reader openslide\)"):
        slides.open_slide(slide, reader="tifffile")
    if _slide_openslide.installed():
        assert slides.open_slide(slide).applied == ("read by OpenSlide",)


@needs_openslide
def test_openslide_on_what_is_no_slide(tmp_path: Path) -> None:
    (tmp_path / "x.mrxs").write_bytes(b"x")
    with pytest.raises(FileError, match=r"x\.mrxs: no slide that OpenSlide reads"):
        slides.open_slide(tmp_path / "x.mrxs")


@pytest.mark.skipif(not SVS.is_file(), reason="no real slides here (GLOCAL_REAL)")
class TestRealSlide:
    def test_what_it_is(self) -> None:
        facts = slides.inspect(SVS)
        assert facts["size"] == [2967, 2220]
        assert facts["um per px"] == [0.499, 0.499]
        assert facts["objective"] == "20x"
        assert "b414003d" not in str(facts)  # the scanner's user
        assert slides.open_slide(SVS).at(0.5).shape == (2967, 2220)  # 0.499 is meant

    @needs_openslide
    def test_pixels_are_those_of_openslide(self) -> None:
        for um in (0.5, 1.0, 1.3):
            one, other = (slides.open_slide(SVS, reader=r).at(um) for r in ("tifffile", "openslide"))
            assert (whole(one) == whole(other)).all()

    def test_tissue(self) -> None:
        picture, valid, _ = slides.open_slide(SVS).thumbnail(512)
        found = tissue.mask(picture, valid)
        assert 0.25 < found.mean() < 0.45
        assert not found[:100, :100].any()  # glass
        assert found[300:400, 170:260].mean() > 0.95  # epithelium and dermis

    def test_stains_are_those_of_monai(self) -> None:
        from monai.apps.pathology.transforms.stain.array import NormalizeHEStains

        values, _ = slides.open_slide(SVS).at(1.0).read((600, 400), (856, 656))
        tile = np.ascontiguousarray(np.moveaxis(values, 0, -1))
        want = NormalizeHEStains()(tile).astype(int)
        assert np.abs(stain.normalised(tile) - want).max() <= 1

    def test_a_jpeg_tile_that_ends_early(self, tmp_path: Path) -> None:
        path = tmp_path / "a.svs"
        path.write_bytes(SVS.read_bytes())
        with tifffile.TiffFile(path, mode="r+b") as file:
            page = file.pages[0].aspage()
            counts = list(page.databytecounts)
            counts[7] //= 2
            page.tags[325].overwrite(counts)
        source = slides.open_slide(path).at(0.5)
        assert source.read((0, 0), (240, 240))[1].all()
        with pytest.raises(FileError, match=r"a\.svs: strip or tile 8 is damaged .*; export it again"):
            source.read((0, 1680), (240, 1920))

    def test_a_copy_that_broke_off(self, tmp_path: Path) -> None:
        content = SVS.read_bytes()
        path = tmp_path / "a.svs"
        for part in (0.3, 0.9, 0.99):
            path.write_bytes(content[: int(len(content) * part)])
            with pytest.raises(FileError) as told:
                slides.open_slide(path).at(0.5)
            assert str(told.value).startswith(str(path))
            assert "\n" not in str(told.value)


def stained(amounts: NDArray[np.floating], colours: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Beer-Lambert: amounts (..., 2) of stains of these colours (3, 2)."""
    return np.clip(stain.LIGHT * np.exp(-amounts @ colours.T), 0, 255).astype(np.uint8)


def test_stains_of_two_laboratories_become_one() -> None:
    """The same tissue with weaker, bluer and with stronger, redder stains comes out alike."""
    generator = np.random.default_rng(0)
    amounts = generator.gamma(2.0, 0.45, (120, 120, 2)) * (generator.random((120, 120, 1)) > 0.2)
    amounts[:60, :40, 0], amounts[60:, :40, 1] = 0.02, 0.02  # pure ones, by which colours are told
    one = np.array([[0.65, 0.07], [0.70, 0.99], [0.29, 0.11]])
    other = np.array([[0.55, 0.20], [0.75, 0.90], [0.36, 0.38]])
    one, other = (m / np.linalg.norm(m, axis=0) for m in (one, other))
    a, b = stained(amounts * 0.8, one), stained(amounts * (1.2, 0.9), other)
    before = np.abs(a.astype(int) - b).mean()
    after = np.abs(stain.normalised(a).astype(int) - stain.normalised(b)).mean()
    assert before > 15
    assert after < before / 4


def test_what_has_no_stain_stays() -> None:
    white = np.full((64, 64, 3), 245, np.uint8)
    assert stain.fit(white) is None
    assert (stain.normalised(white) == white).all()
    grey = np.full((64, 64, 3), 120, np.uint8)
    assert (stain.normalised(grey) == grey).all()


def test_tissue_of_nothing_and_of_everything() -> None:
    glass = np.random.default_rng(0).integers(232, 246, (200, 200, 3)).astype(np.uint8)
    assert not tissue.mask(glass).any()
    pink = np.random.default_rng(0).integers(-9, 10, (200, 200, 3)) + np.array([200, 130, 170])
    assert tissue.mask(pink.astype(np.uint8)).all()
    both = glass.copy()
    both[50:120, 60:160] = pink[50:120, 60:160]
    found = tissue.mask(both)
    truth = np.zeros((200, 200), bool)
    truth[50:120, 60:160] = True
    assert (found != truth).mean() < 0.01
    both[10:13, 10:13] = (200, 40, 120)  # dust
    both[150:170, 20:50] = 5  # a pen
    assert (tissue.mask(both) != truth).mean() < 0.01
    assert not tissue.mask(both, np.zeros((200, 200), bool)).any()


def test_covered_against_counting() -> None:
    found = np.random.default_rng(1).random((40, 50)) > 0.5
    rows, columns = np.array([0.0, 8, 36, 72]), np.array([0.0, 12, 92])
    got = tissue.covered(found, (2.0, 2.0), rows, columns, (16, 20))
    padded = np.zeros((100, 100))
    padded[:80, :100] = found.repeat(2, 0).repeat(2, 1)
    for i, r in enumerate(rows.astype(int)):
        for j, c in enumerate(columns.astype(int)):
            assert got[i, j] == pytest.approx(padded[r : r + 16, c : c + 20].sum() / 320, abs=1e-6)
    odd = tissue.covered(np.ones((10, 10), bool), (3.0, 3.0), np.array([0.0, 24]), np.array([0.0]), (12.0, 5.0))
    assert odd[:, 0] == pytest.approx([1.0, 0.5])


def test_a_map_with_channels(tmp_path: Path) -> None:
    picture, path = noise(700, 500), tmp_path / "m.ome.tif"
    pyramids.write(
        path, (700, 500), lambda n, c, t, l, b, r: picture[:: 2**n, :: 2**n, c : c + 1][t:b, l:r], (8.0, 4.0),  # noqa: E741
        channels=["benign & calm", "malignant"],
    )  # fmt: skip
    with tifffile.TiffFile(path) as file:
        levels = file.series[0].levels
        assert [level.shape for level in levels] == [(2, 700, 500), (2, 350, 250), (2, 175, 125)]
        assert (levels[0].asarray() == np.moveaxis(picture[..., :2], -1, 0)).all()
        about = file.ome_metadata or ""
        assert 'PhysicalSizeX="4.0"' in about
        assert 'PhysicalSizeY="8.0"' in about
        assert "benign &amp; calm" in about
        assert file.pages[0].aspage().tags[282].value == (2500, 1)  # pixels across a centimetre
    assert [p.name for p in tmp_path.iterdir()] == ["m.ome.tif"]
