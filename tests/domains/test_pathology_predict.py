"""Tiles, pictures and slides through a network whose right answers are known."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from numpy.typing import NDArray
from PIL import Image
from test_medical_privacy import everything
from test_slides import APERIO, halved, made
from torch import Tensor, nn

from apps.__main__ import main
from apps.medical import slides
from apps.medical.pathology_classify import heat, inputs, member, pooling
from apps.medical.pathology_classify.look import Look
from apps.medical.pathology_classify.options import TASK
from apps.medical.pathology_classify.pipeline import Pipeline
from apps.medical.pathology_classify.results import Classification, SlideClassification
from core import bundle
from core.data.sample import Meta
from core.errors import FileError, InputError, SettingError, UnknownNameError

GLASS, PINK, PURPLE = (243, 242, 244), (225, 130, 175), (95, 55, 140)
CLASSES = {"stroma": 0, "tumour": 1}
SIZE = 64


class Purple(nn.Module):
    """Calls purple tissue tumour, by the mean of its red alone; `slow` waits at each call, for runs that are killed."""

    def __init__(self, slow: float = 0.0, calls: str = "") -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(-6.0))
        self.slow, self.calls = slow, calls
        self.seen = 0

    def forward(self, image: Tensor) -> Tensor:
        time.sleep(self.slow)
        self.seen += len(image)
        if self.calls:
            with Path(self.calls).open("a") as file:
                file.write(f"{len(image)}\n")
        red = image[:, 0].mean((1, 2)) * 58.395 / 255 + 123.675 / 255  # to 0..1
        score = self.weight * (red - 0.62)
        return torch.stack([-score, score], 1)


@pytest.fixture(autouse=True)
def network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(member.model, "create", lambda name, **config: Purple(**config))


def bundled(
    folder: Path, *, um: float | None = 0.5, stain: str = "", weight: float = -6.0, output: Any = None, **config: Any
) -> Path:
    model = Purple()
    model.weight.data.fill_(weight)
    settings = bundle.Settings(
        TASK, bundle.Network("purple", config), inputs.contract(SIZE, um=um, stain=stain),
        output or bundle.Output(CLASSES), bundle.Tile((SIZE, SIZE), 0.0),
    )  # fmt: skip
    bundle.save(folder, model, settings, {"validation": None})
    return folder


def scene(rows: int = 1024, columns: int = 768) -> NDArray[np.uint8]:
    """Glass with a pink piece of tissue, whose lower right part is purple, at 0.25 um to a pixel."""
    picture = np.full((rows, columns, 3), GLASS, np.uint8)
    picture[128:896, 128:640] = PINK
    picture[512:896, 384:640] = PURPLE
    grain = np.random.default_rng(0).integers(-3, 4, picture.shape)
    return (picture.astype(int) + grain).clip(0, 255).astype(np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return bundled(tmp_path / "b")


@pytest.fixture
def slide(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir(exist_ok=True)
    return made(tmp_path / "in" / "s.tif", scene())


def classify(*words: object) -> int:
    return main(["medical", "pathology", "classify", *map(str, words)])


def answer(folder: Path, given: Any, **look: Any) -> SlideClassification:
    found = Pipeline.load(folder, device="cpu")(given, look=Look(**look))
    assert isinstance(found, SlideClassification)
    return found


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_slide_tile_by_tile(folder: Path, slide: Path) -> None:
    found = answer(folder, slide)
    assert found.plan.source.um == pytest.approx((0.5, 0.5))
    assert found.scores.shape == (2, 8, 6)  # 512 x 384 pixels at 0.5 um, tiles of 64
    want = np.full((8, 6), -1)
    want[1:7, 1:5] = 0
    want[4:7, 3:5] = 1
    got = np.where(np.isfinite(found.scores[0]), np.nan_to_num(found.scores).argmax(0), -1)
    assert got.tolist() == want.tolist()
    assert found.label == "stroma"  # 18 of 24 tiles
    there = found.scores[:, want >= 0]
    assert found.probabilities == pytest.approx(tuple(there.mean(1)), abs=1e-6)
    assert sum(found.probabilities) == pytest.approx(1)
    assert "24 of 48 tiles show tissue" in found.meta.applied


def test_tiles_are_what_the_slide_shows_there(folder: Path, slide: Path) -> None:
    """Each tile's answer is the network's for the pixels that its outline encloses on level 0."""
    pipeline = Pipeline.load(folder, device="cpu")
    found = answer(folder, slide, tissue=0.0)
    picture = np.full((1024 + 200, 768 + 200, 3), 255, np.uint8)
    picture[:1024, :768] = scene()
    assert len(found.tiles) == 48
    for t in found.tiles:
        assert (t.width, t.height) == (128, 128)
        cut = halved(picture[t.y : t.y + t.height, t.x : t.x + t.width], 1)
        assert t.probabilities == pytest.approx(tuple(pipeline.probabilities(cut[None])[0]), abs=1e-6)
    assert [t.rank for t in found.tiles] == list(range(1, 49))
    assert sum(t.share for t in found.tiles) == pytest.approx(1)
    assert found.tiles[0].share >= found.tiles[-1].share


def test_tiles_beyond_the_end_are_set_on_white(folder: Path, tmp_path: Path) -> None:
    picture = np.full((300, 420, 3), PURPLE, np.uint8)
    found = answer(folder, made(tmp_path / "a.tif", picture), tissue=0.0)
    assert found.scores.shape == (2, 3, 4)  # 150 x 210 pixels
    last = found.plan.read(2, 3)
    assert (last[:22, :18] == PURPLE).all()
    assert (last[22:] == 255).all()
    assert (last[:, 18:] == 255).all()
    few = answer(folder, made(tmp_path / "b.tif", picture), tissue=0.5)
    assert np.isfinite(few.scores[0]).sum() == 6  # 22 of 64 rows, 18 of 64 columns: too little tissue on them


def test_outlines_are_in_pixels_of_level_0(folder: Path, slide: Path, tmp_path: Path) -> None:
    found = answer(folder, slide)
    found.save(tmp_path / "s.geojson")
    document = json.loads((tmp_path / "s.geojson").read_text())
    assert document["type"] == "FeatureCollection"
    assert len(document["features"]) == 24
    assert len({f["id"] for f in document["features"]}) == 24
    picture = scene().astype(float)
    for feature in document["features"]:
        (ring,) = feature["geometry"]["coordinates"]
        assert ring[0] == ring[-1]
        assert len(ring) == 5
        (x0, y0), (x1, y1) = np.min(ring, 0), np.max(ring, 0)
        assert (x1 - x0, y1 - y0) == (128, 128)
        mean = picture[int(y0) : int(y1), int(x0) : int(x1)].reshape(-1, 3).mean(0)
        name = feature["properties"]["classification"]["name"]
        assert name == ("tumour" if mean[0] < 0.62 * 255 else "stroma")
        measured = feature["properties"]["measurements"]
        assert measured["probability tumour"] + measured["probability stroma"] == pytest.approx(1, abs=1e-4)
        assert feature["properties"]["objectType"] == "tile"
        assert len(feature["properties"]["classification"]["color"]) == 3


def test_outlines_end_with_the_slide(folder: Path, tmp_path: Path) -> None:
    found = answer(folder, made(tmp_path / "a.tif", np.full((300, 420, 3), PURPLE, np.uint8)), tissue=0.0)
    found.save(tmp_path / "a.geojson")
    points = [p for f in json.loads((tmp_path / "a.geojson").read_text())["features"]
              for p in f["geometry"]["coordinates"][0]]  # fmt: skip
    assert np.max(points, 0).tolist() == [420, 300]


def test_the_heat_map_lies_on_the_slide(folder: Path, slide: Path, tmp_path: Path) -> None:
    found = answer(folder, slide)
    found.save(tmp_path / "s.ome.tif")
    with tifffile.TiffFile(tmp_path / "s.ome.tif") as file:
        series = file.series[0]
        page = file.pages[0].aspage()
        um = 10_000 / (page.tags[282].value[0] / page.tags[282].value[1])
        values = series.levels[0].asarray()
        about = file.ome_metadata or ""
    assert um == pytest.approx(8, rel=1e-6)
    assert 'PhysicalSizeX="8.0"' in about
    assert 'Name="tumour"' in about
    assert 'Name="classified"' in about
    assert values.shape == (3, 32, 24)  # 256 x 192 um
    for r in range(values.shape[1]):
        for c in range(values.shape[2]):
            y, x = (r + 0.5) * um / 32, (c + 0.5) * um / 32  # tiles of 32 um
            score = found.scores[:, int(y), int(x)]
            want = [*np.nan_to_num(score * 255).round(), 255 * np.isfinite(score[0])]
            assert values[:, r, c].tolist() == want


def test_a_large_map_is_a_pyramid(folder: Path, tmp_path: Path) -> None:
    found = answer(folder, made(tmp_path / "a.tif", np.tile(scene(), (1, 4, 1)), um=4.0), um=4.0, tissue=0.0)
    found.save(tmp_path / "a.ome.tif")
    with tifffile.TiffFile(tmp_path / "a.ome.tif") as file:
        levels = [level.asarray() for level in file.series[0].levels]
    assert [level.shape[1:] for level in levels] == [(512, 1536), (256, 768), (128, 384), (64, 192)]
    whole = answer(folder, tmp_path / "a.tif", um=4.0, tissue=0.0)
    assert levels[0][:2].mean((1, 2)) / 255 == pytest.approx(np.array(whole.probabilities), abs=3e-3)
    assert levels[3].mean() == pytest.approx(levels[0].mean(), rel=0.02)


def test_overlapping_tiles_are_averaged_on_the_map(folder: Path, slide: Path) -> None:
    found = answer(folder, slide, overlap=0.5)
    assert found.scores.shape == (2, 15, 11)
    cells = found.cells
    assert cells.size == (64, 64)
    assert cells.values.shape == (2, 16, 12)
    for r in range(16):
        for c in range(12):
            over = [
                found.scores[:, i, j]
                for i in (r - 1, r)
                for j in (c - 1, c)
                if 0 <= i < 15 and 0 <= j < 11 and np.isfinite(found.scores[0, i, j])
            ]
            if over:
                assert cells.values[:, r, c] == pytest.approx(np.mean(over, 0), abs=1e-6)
            else:
                assert np.isnan(cells.values[:, r, c]).all()
    with pytest.raises(SettingError, match=r"overlap is 0, 0\.5 or 0\.75"):
        answer(folder, slide, overlap=0.3)


def test_ways_of_pooling() -> None:
    tiles = np.random.default_rng(0).dirichlet((1, 1, 1), 50)
    assert pooling.pooled(tiles, "mean") == pytest.approx(tiles.mean(0))
    votes = np.array([(tiles.argmax(1) == k).mean() for k in range(3)])
    assert pooling.pooled(tiles, "vote") == pytest.approx(votes)
    top = np.array([np.mean(sorted(tiles[:, k])[-5:]) for k in range(3)])
    assert pooling.pooled(tiles, "top") == pytest.approx(top / top.sum())
    for how in pooling.POOLS:
        shares = pooling.shares(tiles, how, 1)
        assert shares.sum() == pytest.approx(1)
        assert (np.argsort(shares)[-1] == tiles[:, 1].argmax()) or how == "vote"
    assert (pooling.shares(tiles, "top", 2) > 0).sum() == 5
    with pytest.raises(UnknownNameError, match="did you mean mean"):
        pooling.pooled(tiles, "maen")


def test_a_few_sure_tiles_can_decide(folder: Path, slide: Path) -> None:
    assert answer(folder, slide, pool="mean").label == "stroma"
    found = answer(folder, slide, pool="top")
    assert abs(found.probabilities[0] - found.probabilities[1]) < 0.1
    assert all(t.label == found.label for t in found.tiles if t.share > 0)


def test_a_threshold_of_the_bundle_decides_on_tiles(tmp_path: Path, slide: Path) -> None:
    output = bundle.Output(CLASSES, positive="tumour", threshold=0.15)
    folder = bundled(tmp_path / "c", output=output)
    middle = np.full((SIZE, SIZE, 3), (170, 90, 150), np.uint8)
    found = Pipeline.load(folder, device="cpu")(middle)
    assert 0.15 < found.probabilities[1] < 0.5
    assert found.label == "tumour"
    assert Pipeline.load(bundled(tmp_path / "d"), device="cpu")(middle).label == "stroma"
    assert answer(folder, slide).label == "stroma"  # it was not chosen on slides


def test_all_results_of_a_slide(folder: Path, slide: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert classify("predict", folder, slide, "--out", out) == 0
    names = {str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()}
    assert names == {
        "s.heatmap.ome.tif", "s.geojson", "s.tiles.csv", "overlays/s.png", "strips/s.png", "predictions.csv",
        "applied.csv", "settings.toml", ".done/s.json",
    }  # fmt: skip
    rows = table(out / "s.tiles.csv")
    assert len(rows) == 24
    assert [int(r["rank"]) for r in rows] == list(range(1, 25))
    assert rows[0]["label"] == "stroma"
    assert float(rows[0]["share"]) == pytest.approx(max(float(r["share"]) for r in rows))
    (row,) = table(out / "predictions.csv")
    assert (row["item"], row["kind"], row["label"], row["tiles"]) == ("s", "slide", "stroma", "24")
    for name in ("overlays/s.png", "strips/s.png"):
        with Image.open(out / name) as picture:
            assert picture.size[0] > 200
    before = (out / "s.geojson").stat().st_mtime_ns
    assert classify("predict", folder, slide, "--out", out) == 0  # done already
    assert (out / "s.geojson").stat().st_mtime_ns == before


def test_the_picture_shows_classes_where_they_are(folder: Path, slide: Path) -> None:
    found = answer(folder, slide)
    shown = found.draw()
    assert shown.ndim == 3
    strip = found.strip(6)
    purple = np.abs(strip.astype(int) - PURPLE).max(-1) < 12
    pink = np.abs(strip.astype(int) - PINK).max(-1) < 12
    assert pink.sum() > 5 * 112 * 112  # the label is stroma: its tiles decided
    assert not purple.any()


class StopError(Exception):
    pass


def test_a_stopped_slide_goes_on_at_its_row(folder: Path, slide: Path, tmp_path: Path) -> None:
    pipeline = Pipeline.load(folder, device="cpu", batch=3)
    want = pipeline(slide)
    assert isinstance(want, SlideClassification)
    model = pipeline.members[0].network
    assert isinstance(model, Purple)
    journal = tmp_path / "s.map"

    def stop(done: int, total: int) -> None:
        assert total == 24
        if done >= 14:
            raise StopError

    with pytest.raises(StopError):
        pipeline(slide, journal=journal, progress=stop)
    assert (tmp_path / "s.map.part").is_dir()
    model.seen = 0
    heard: list[int] = []
    found = pipeline(slide, journal=journal, progress=lambda done, _: heard.append(done))
    assert isinstance(found, SlideClassification)
    assert model.seen == 24 - 12  # three rows of four tiles were there
    assert heard[0] == 15
    assert heard[-1] == 24
    assert np.array_equal(found.scores, want.scores, equal_nan=True)
    model.seen = 0
    again = pipeline(slide, journal=journal)
    assert model.seen == 0
    assert isinstance(again, SlideClassification)
    assert np.array_equal(again.scores, want.scores, equal_nan=True)
    with pytest.warns(UserWarning, match="another .*; starting again"):
        other = pipeline(slide, journal=journal, look=Look(tissue=0.0))
    assert isinstance(other, SlideClassification)
    assert model.seen == 48


SCRIPT = """
import sys
from apps.__main__ import main
from apps.medical.pathology_classify import member
from test_pathology_predict import Purple
member.model.create = lambda name, **config: Purple(**config)
sys.exit(main(sys.argv[1:]))
"""


def test_kill_9_and_on(tmp_path: Path, slide: Path) -> None:
    calls = tmp_path / "calls.txt"
    folder = bundled(tmp_path / "b", slow=0.15, calls=str(calls))
    out = tmp_path / "out"
    root = Path(__file__).resolve().parents[2]
    paths = os.pathsep.join(map(str, (root, root / "tests", root / "tests" / "domains")))
    words = ["predict", folder, slide, "--out", out, "--batch", 2, "--device", "cpu"]
    command = [sys.executable, "-c", SCRIPT, "medical", "pathology", "classify", *map(str, words)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    run = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": paths}, **quiet)
    part = out / "s.heatmap.ome.tif.part" / "rows.txt"
    end = time.monotonic() + 120
    while not (part.is_file() and part.read_bytes().count(b"\n") >= 2):
        assert run.poll() is None, (run.stderr.read() if run.stderr else b"").decode()
        assert time.monotonic() < end
        time.sleep(0.02)
    run.send_signal(signal.SIGKILL)
    run.wait()
    if run.stderr:
        run.stderr.close()
    assert not (out / "s.geojson").exists()
    before = sum(map(int, calls.read_text().split()))
    assert 0 < before < 24
    rows = part.read_bytes().count(b"\n")
    calls.unlink()
    assert classify(*words) == 0
    after = sum(map(int, calls.read_text().split()))
    assert after <= 24 - 4 * rows  # finished rows were not asked again
    assert not part.parent.exists()
    want = answer(bundled(tmp_path / "c"), slide)
    rows_of = {(int(r["x"]), int(r["y"])): float(r["probability tumour"]) for r in table(out / "s.tiles.csv")}
    assert rows_of == {(t.x, t.y): pytest.approx(t.probabilities[1], abs=2e-6) for t in want.tiles}


def tile(path: Path, colour: tuple[int, int, int], size: tuple[int, int] = (SIZE, SIZE)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), colour, np.uint8)).save(path)
    return path


def test_tiles_pictures_and_slides_in_one_command(
    folder: Path, slide: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = slide.parent
    tile(given / "tiles" / "a.png", PINK)
    tile(given / "tiles" / "b.png", PURPLE)
    tile(given / "more" / "a.png", PURPLE, (96, 200))
    (given / "tiles" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (given / "notes.txt").write_text("not a picture")
    tifffile.imwrite(given / "deep.tif", np.zeros((64, 64, 3), np.uint16), photometric="rgb")
    bare = made(given / "bare.tif", scene(), um=None)
    short = made(given / "short.tif", scene())
    short.write_bytes(short.read_bytes()[:-2000])
    coarse = made(given / "coarse.tif", scene(), um=1.0)
    out = tmp_path / "out"
    assert classify("predict", folder, given, "--out", out) == 1
    rows = {r["item"]: r for r in table(out / "predictions.csv")}
    assert {i: (r["kind"], r["label"]) for i, r in rows.items()} == {
        "a": ("picture", "tumour"), "s": ("slide", "stroma"), "a-2": ("picture", "stroma"), "b": ("picture", "tumour"),
    }  # fmt: skip
    failed = {r["item"]: r["error"] for r in table(out / "failures.csv")}
    assert set(failed) == {str(given / n) for n in ("bare.tif", "short.tif", "coarse.tif", "deep.tif")} | {
        str(given / "tiles" / "broken.png")
    }
    assert "--um-per-px" in failed[str(bare)]
    assert "cut off" in failed[str(short)]
    assert "finest pixels are 1 um, and 0.5 um are needed" in failed[str(coarse)]
    assert "tiles are RGB of 8 bits" in failed[str(given / "deep.tif")]
    told = capsys.readouterr()
    assert "Traceback" not in told.err
    assert not list(out.glob("*.part"))
    done = {r["item"]: r["applied"] for r in table(out / "applied.csv") if "resampled" in r["applied"]}
    assert done == {"a": "resampled from 96 x 200 to 64 x 133 pixels (its micrometres to a pixel are not known)"}


def test_a_flag_for_slides_that_do_not_say(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = made(tmp_path / "bare.tif", scene(), um=None)
    assert classify("predict", folder, path, "--out", tmp_path / "out") == 2
    told = capsys.readouterr().err.strip()
    assert told.count("\n") == 0
    assert "bare.tif: does not say how large its pixels are" in told
    assert not (tmp_path / "out" / "bare.geojson").exists()
    assert classify("predict", folder, path, "--out", tmp_path / "out", "--um-per-px", 0.25) == 0
    (row,) = table(tmp_path / "out" / "predictions.csv")
    assert row["tiles"] == "24"
    for flag, words in (("--um-per-px", "--um-per-px is a positive"), ("--um", "--um is a positive")):
        assert classify("predict", folder, path, "--out", tmp_path / "o", flag, 0) == 2
        assert words in capsys.readouterr().err


def test_a_bundle_that_does_not_say_its_micrometres(tmp_path: Path, slide: Path) -> None:
    folder = bundled(tmp_path / "c", um=None)
    with pytest.raises(InputError, match="which slides need; give them by --um"):
        answer(folder, slide)
    assert answer(folder, slide, um=0.5).scores.shape == (2, 8, 6)


def test_glass_alone_is_no_answer(folder: Path, tmp_path: Path) -> None:
    path = made(tmp_path / "empty.tif", np.full((600, 600, 3), GLASS, np.uint8))
    with pytest.raises(FileError, match=r"empty\.tif: no tile of 32 um shows tissue on 25% of it; lower --tissue"):
        answer(folder, path)


def test_a_tile_that_breaks_in_the_middle(folder: Path, slide: Path, tmp_path: Path) -> None:
    with tifffile.TiffFile(slide) as file:
        page = file.pages[1].aspage()  # the level that is read
        place = page.dataoffsets[2]
    content = bytearray(slide.read_bytes())
    content[place + 30 : place + 90] = bytes(60)
    slide.write_bytes(content)
    with pytest.raises(FileError, match=r"s\.tif: strip or tile 3 is damaged"):
        answer(folder, slide)
    assert classify("predict", folder, slide, "--out", tmp_path / "out") == 2
    left = {p.name for p in (tmp_path / "out").iterdir()}
    assert left <= {"settings.toml", "predictions.csv", "applied.csv", "s.heatmap.ome.tif.part"}
    assert table(tmp_path / "out" / "predictions.csv") == []


def test_pictures_are_the_mean_of_their_squares(folder: Path, tmp_path: Path) -> None:
    picture = np.full((64, 200, 3), PINK, np.uint8)
    picture[:, 100:] = PURPLE
    Image.fromarray(picture).save(tmp_path / "p.png")
    pipeline = Pipeline.load(folder, device="cpu")
    found = pipeline(tmp_path / "p.png")
    assert isinstance(found, Classification)
    cuts = np.stack([picture[:, x : x + 64] for x in (0, 45, 91, 136)])
    assert found.cuts == 4
    assert found.probabilities == pytest.approx(tuple(pipeline.probabilities(cuts).mean(0)))
    assert found.heat is not None
    assert found.heat.values[:, 0].mean() > found.heat.values[:, -1].mean() if found.label == "stroma" else True
    same = pipeline(picture, meta=Meta(id="x"))
    assert same.probabilities == found.probabilities
    assert same.meta.id == "x"
    assert found.draw().shape[2] == 3


def test_squares_cover_the_whole_picture() -> None:
    for rows, columns in ((64, 64), (65, 64), (64, 200), (130, 700), (1, 1)):
        image = inputs.fitted(np.zeros((rows, columns, 3), np.uint8), 64)
        assert min(image.shape[:2]) == 64
        for n in image.shape[:2]:
            seen = np.zeros(n, int)
            for start in inputs.places(n, 64):
                assert 0 <= start <= n - 64
                seen[start : start + 64] += 1
            assert (seen > 0).mean() > 0.97


def test_known_micrometres_set_the_scale(folder: Path, tmp_path: Path) -> None:
    """A picture at 0.25 um for a network at 0.5 um is shrunk by two, whatever its size."""
    picture = scene(300, 400)
    resolution = {"resolution": (40_000, 40_000), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(tmp_path / "p.tif", picture, photometric="rgb", metadata=None, **resolution)
    pipeline = Pipeline.load(folder, device="cpu")
    found = pipeline(tmp_path / "p.tif")
    assert isinstance(found, Classification)
    assert found.image is not None
    assert found.image.shape == (150, 200, 3)
    assert found.cuts == 3 * 4
    assert any("to the network's micrometres" in words for words in found.meta.applied)
    given = pipeline(picture, look=Look(um_per_px=0.25))
    assert given.probabilities == pytest.approx(found.probabilities)
    with pytest.raises(FileError, match=r"its pixels are 1 um, and the network needs 0\.5 um"):
        pipeline(picture, look=Look(um_per_px=1.0))
    small = pipeline(picture[:60, :60], look=Look(um_per_px=0.5))
    assert isinstance(small, Classification)
    assert small.image is not None
    assert small.image.shape == (64, 64, 3)
    assert (small.image[0] == 255).all()


def test_pictures_that_would_take_all_memory(folder: Path) -> None:
    thin = np.zeros((1, 70_000, 3), np.uint8)
    with pytest.raises(FileError, match="70,000 tiles large"):
        Pipeline.load(folder, device="cpu")(thin)


@pytest.mark.parametrize("array", [np.zeros((64, 64), np.uint8), np.zeros((64, 64, 3)), np.zeros((0, 4, 3), np.uint8)])
def test_arrays_of_another_form(folder: Path, array: Any) -> None:
    with pytest.raises(SettingError, match="a uint8 array"):
        Pipeline.load(folder, device="cpu")(array)


def test_many_files_give_what_each_gives(folder: Path, slide: Path, tmp_path: Path) -> None:
    pipeline = Pipeline.load(folder, device="cpu", batch=4)
    shades = [(200 - 9 * i, 90, 150) for i in range(10)]
    paths = [tile(tmp_path / f"{i}.png", shade) for i, shade in enumerate(shades)]
    (tmp_path / "bad.png").write_text("no")
    mixed: list[Path] = [*paths[:3], tmp_path / "bad.png", slide, *paths[3:]]
    found = list(pipeline.many(mixed))
    assert [f.item for f in found] == [str(p) for p in mixed]
    for path, one in zip(mixed, found, strict=True):
        if path.name == "bad.png":
            assert not hasattr(one, "result")
            continue
        result = one.result  # type: ignore[union-attr]
        assert result.probabilities == pytest.approx(pipeline(path).probabilities, abs=1e-6)
    answers = [f.result.probabilities[1] for f in pipeline.tiles(paths)]  # type: ignore[union-attr]
    assert answers == sorted(answers)


def test_what_a_tile_needs(folder: Path) -> None:
    """Only the corner is purple: hiding it costs the label most."""
    picture = np.full((SIZE, SIZE, 3), PINK, np.uint8)
    picture[:36, :36] = (0, 0, 60)
    pipeline = Pipeline.load(folder, device="cpu")
    found = heat.hidden(picture, pipeline.probabilities, 1)
    assert found.values.shape == (7, 7)
    assert found.values[:3, :3].min() > found.values[5:, 5:].max()
    explained = pipeline(picture, look=Look(explain=True))
    assert isinstance(explained, Classification)
    assert explained.heat is not None
    assert pipeline(picture).heat is None  # type: ignore[union-attr]


def test_two_bundles_are_averaged(tmp_path: Path, slide: Path) -> None:
    one, other = bundled(tmp_path / "x"), bundled(tmp_path / "y", weight=-1.0)
    both = Pipeline.load(one, other, device="cpu")(slide)
    parts = [Pipeline.load(b, device="cpu")(slide).probabilities for b in (one, other)]
    assert both.probabilities == pytest.approx(tuple(np.mean(parts, 0)), abs=1e-6)
    with pytest.raises(InputError, match="other micrometres to a pixel"):
        Pipeline.load(one, bundled(tmp_path / "z", um=1.0))
    with pytest.raises(InputError, match="other classes"):
        Pipeline.load(one, bundled(tmp_path / "w", output=bundle.Output({"a": 0, "b": 1})))


def test_stains_are_told_once_for_a_slide(tmp_path: Path) -> None:
    """Two laboratories' slides of the same tissue are answered alike, where plain ones are not."""
    from test_slides import stained

    generator = np.random.default_rng(0)
    amounts = generator.gamma(2.0, 0.4, (512, 512, 2))
    amounts[:, :200, 0] *= 0.05
    amounts[:, 300:, 1] *= 0.05
    one = np.array([[0.65, 0.07], [0.70, 0.99], [0.29, 0.11]])
    other = np.array([[0.55, 0.20], [0.75, 0.90], [0.36, 0.38]])
    paths = [
        made(tmp_path / f"{i}.tif", stained(amounts * s, m / np.linalg.norm(m, axis=0)), um=0.5)
        for i, (m, s) in enumerate(((one, 0.6), (other, 1.3)))
    ]
    plain = [answer(bundled(tmp_path / "p"), p, tissue=0.0) for p in paths]
    normal = [answer(bundled(tmp_path / "n", stain="macenko"), p, tissue=0.0) for p in paths]
    apart = [np.abs(a.scores - b.scores).mean() for a, b in (plain, normal)]
    assert apart[1] < apart[0] / 3
    assert any("Macenko" in words for words in normal[0].meta.applied)
    asked = answer(bundled(tmp_path / "p"), paths[0], tissue=0.0, stain="macenko")
    assert np.array_equal(asked.scores, normal[0].scores)
    kept = answer(bundled(tmp_path / "n", stain="macenko"), paths[0], tissue=0.0, stain="none")
    assert np.array_equal(kept.scores, plain[0].scores)


def test_results_that_are_not_written(folder: Path, slide: Path, tmp_path: Path) -> None:
    for found in (answer(folder, slide), Pipeline.load(folder, device="cpu")(np.zeros((64, 64, 3), np.uint8))):
        with pytest.raises(FileError, match=r"is not written as \.docx"):
            found.save(tmp_path / "a.docx")
        found.save(tmp_path / "a.json")
        told = json.loads((tmp_path / "a.json").read_text())
        assert told["notice"] == "research use, not a medical device"
        assert sum(told["probabilities"].values()) == pytest.approx(1)
        found.save(tmp_path / "a.csv")
        found.save(tmp_path / "a.png")
    assert {p.name for p in tmp_path.iterdir()} >= {"a.json", "a.csv", "a.png"}
    assert not [p for p in tmp_path.iterdir() if ".part" in p.name]


NAMES = ("Quimby", "Louise", "S12-4711", "1969-07-16")


def planted(path: Path) -> Path:
    """As Aperio writes: level, thumbnail, label and glass, the last two with what names a patient."""
    picture = scene()
    text = (
        APERIO.format(w=768, h=1024, um=0.25) + "|Patient Name = Quimby, Louise|Accession = S12-4711|DOB = 1969-07-16"
    )
    label = np.full((200, 200, 3), (1, 254, 3), np.uint8)
    with tifffile.TiffWriter(path) as file:
        options: dict[str, Any] = {"photometric": "rgb", "metadata": None}
        file.write(picture, tile=(128, 128), description=text, **options)
        file.write(halved(picture, 3), description=text + " thumbnail", **options)
        file.write(halved(picture, 2), tile=(128, 128), description=text, **options)
        file.write(label, description="Aperio\nlabel 200x200 Louise Quimby", subfiletype=1, **options)
        file.write(label, description="Aperio\nmacro 200x200 Louise Quimby", subfiletype=9, **options)
    return path


def test_nothing_of_the_patient_leaves(folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    given = tmp_path / "in"
    given.mkdir()
    paths = [planted(given / "Quimby_S12-4711.svs"), planted(given / "plain.svs")]
    broken = planted(given / "louise.svs")
    broken.write_bytes(broken.read_bytes()[:-300_000])
    out = tmp_path / "out"
    assert classify("predict", folder, given, "--out", out) == 1
    content = everything(out)
    assert b"stroma" in content
    told = capfd.readouterr()
    words = told.out + told.err
    for path in (*paths, broken):  # what the user typed may be said
        words, content = words.replace(str(path), ""), content.replace(str(path).encode(), b"")
    for name in NAMES:
        assert name.lower().encode() not in content.lower(), name
        assert name.lower() not in words.lower(), name
    assert {len(slides.open_slide(p).levels) for p in paths} == {2}
    for picture in [*(out / "overlays").iterdir(), *(out / "strips").iterdir()]:
        with Image.open(picture) as shown:
            assert (np.abs(np.asarray(shown).astype(int) - (1, 254, 3)).max(-1) > 20).all()
    items = {r["item"] for r in table(out / "predictions.csv")}
    assert "plain" in items
    assert sum(i.startswith("slide-") for i in items) == 1


def test_inspect(slide: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tile(tmp_path / "t.png", PINK)
    assert classify("inspect", slide, tmp_path / "t.png") == 0
    told = capsys.readouterr().out
    assert "1024 x 768 (1 : 1)" in told
    assert "0.25" in told
    assert "png" in told


def test_bundles_that_cannot_answer(tmp_path: Path, slide: Path, folder: Path) -> None:
    found = bundle.load(folder)
    bundle.save(tmp_path / "u", Purple(), found.settings, {"untrained": "all but its backbone"})
    with pytest.raises(InputError, match="is untrained, so it cannot classify yet"):
        Pipeline.load(tmp_path / "u")
    with pytest.raises(InputError, match="name a bundle"):
        Pipeline.load()


@pytest.mark.parametrize(
    ("look", "words"),
    [
        ({"pool": "median"}, "way of pooling"),
        ({"stain": "reinhard"}, "stain normalisation"),
        ({"tissue": 2.0}, "0 to 1"),
        ({"overlap": 1.0}, "part of a tile"),
        ({"um": -1.0}, "--um is a positive"),
    ],
)
def test_looks_that_are_none(look: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        Look(**look)


def test_batches_do_not_change_the_answer(folder: Path, slide: Path) -> None:
    one, five = (Pipeline.load(folder, device="cpu", batch=n)(slide) for n in (1, 5))
    assert one.probabilities == pytest.approx(five.probabilities, abs=1e-6)
