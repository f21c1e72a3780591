"""Colorization as a user meets it: commands on files, good ones and bad ones."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms
from test_colorization_predict import luminance, made, scene

from apps.__main__ import main
from apps.colorization import data as sets
from apps.colorization import evaluate, hints, predict
from apps.colorization._fidelity import span
from apps.colorization.hints import Hint
from core.data import photos

HINTS = [Hint(10, 20, 220, 40, 40), Hint(70, 40, 30, 60, 210)]


def colorization(*words: object) -> int:
    return main(["colorization", *map(str, words)])


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("bundles") / "a")


def photo(path: Path, seed: int = 0, **given: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    photos.save(path, scene(seed=seed, **given))
    return path


def listed(path: Path, *items: Hint) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    hints.write(path, items or HINTS)
    return path


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


# one photograph


def test_one_photograph_and_its_hints(net: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given, out = photo(tmp_path / "a.png"), tmp_path / "new" / "coloured.png"
    assert colorization("predict", net, given, "--hints", listed(tmp_path / "h.csv"), "--out", out) == 0
    assert "Delta E at 2 hints: CIE76" in capsys.readouterr().out
    picture = np.asarray(Image.open(out))
    assert picture.shape == (60, 90, 3)
    assert np.abs(luminance(picture) - luminance(scene())).max() < 0.7
    table = rows(out.parent / "coloured.hints.csv")
    assert [(r["x"], r["y"], r["r"]) for r in table] == [("10", "20", "220"), ("70", "40", "30")]
    assert all(float(r["delta_e2000"]) > 0 and float(r["delta_e76"]) > 0 for r in table)
    (top, bottom), (left, right) = span(10, 60, 32), span(3, 90, 32)  # the cell of x 10, y 20
    shown = picture[top:bottom, left:right].reshape(-1, 3).mean(0)
    assert np.abs(np.array([int(table[0][f"got_{c}"]) for c in "rgb"]) - shown).max() < 12
    assert (out.parent / "drawings" / "coloured.png").is_file()
    assert hints.read(out.parent / "coloured.hints.csv") == tuple(HINTS)


def test_hints_change_the_picture(net: Path, tmp_path: Path) -> None:
    given = photo(tmp_path / "a.png")
    for name, words in {"no": [], "with": ["--hints", listed(tmp_path / "h.json")]}.items():
        assert colorization("predict", net, given, *words, "--out", tmp_path / f"{name}.png", "--no-drawings") == 0
    a, b = (np.asarray(Image.open(tmp_path / f"{n}.png")).astype(int) for n in ("no", "with"))
    assert np.abs(a - b).max() > 3
    assert not (tmp_path / "drawings").exists()
    assert not (tmp_path / "no.hints.csv").exists()


def test_hints_of_a_reference_can_be_edited_and_given_again(net: Path, tmp_path: Path) -> None:
    Image.fromarray(scene()[..., 0]).save(tmp_path / "grey.png")
    reference = photo(tmp_path / "reference.jpg", rows=40, columns=50)
    words = ["--auto", 7, "--seed", 3, "--reference", reference, "--out"]
    assert colorization("predict", net, tmp_path / "grey.png", *words, tmp_path / "a.png") == 0
    again = ["--hints", tmp_path / "a.hints.csv", "--out", tmp_path / "b.png"]
    assert len(rows(tmp_path / "a.hints.csv")) == 7
    assert colorization("predict", net, tmp_path / "grey.png", *again) == 0
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert (tmp_path / "a.hints.csv").read_text() == (tmp_path / "b.hints.csv").read_text()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--auto", "3"], "is grey, so hints cannot take its colours"),
        (["--auto", "3", "--hints", "h.csv"], "give one of the two"),
        (["--reference", "a.png"], "say how many with --auto N"),
        (["--hints", "out.csv"], "out.csv: line 3, column x: 90 lies outside the photograph"),
        (["--hints", "bad.csv"], "bad.csv: line 2, column 4 (g): 'green' is not a number"),
        (["--hints", "none.csv"], "no such file of hints"),
        (["--format", "jpg"], "says the format already"),
        (["--quality", "100"], "--quality is 1 to 95"),
        (["--workers", "0"], "--workers is at least 1"),
        (["--device", "tpu"], "device is auto, cpu"),
    ],
)
def test_mistakes_are_one_sentence(
    net: Path, tmp_path: Path, words: list[str], told: str, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Image.fromarray(scene()[..., 0]).save("a.png")
    listed(Path("h.csv"))
    listed(Path("out.csv"), Hint(1, 1, 1, 1, 1), Hint(90, 1, 1, 1, 1))
    Path("bad.csv").write_text("x,y,r,g,b\n1,2,3,green,5\n")
    assert colorization("predict", net, "a.png", *words, "--out", "new.png") == 2
    error = capsys.readouterr().err.strip()
    assert told in error
    assert "\n" not in error
    assert not Path("new.png").exists()


def test_the_photograph_itself_is_never_overwritten(net: Path, tmp_path: Path) -> None:
    given = photo(tmp_path / "a" / "a.png")
    before = given.read_bytes()
    assert colorization("predict", net, given, "--out", given) == 2
    assert colorization("predict", net, given, "--out", given.parent) == 2
    other = photo(tmp_path / "o" / "a.png").parent
    assert colorization("predict", net, other, "--out", other / "out") == 2
    assert not (other / "out").exists()
    assert colorization("predict", net, given, photo(tmp_path / "b.png"), "--out", tmp_path / "c.png") == 2
    assert given.read_bytes() == before


# what files carry


def test_sixteen_bits_profile_exif_and_turn_are_kept(net: Path, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(scene()).save(tmp_path / "turned.jpg", exif=exif, icc_profile=srgb, dpi=(300, 300))
    deep = (scene().astype(np.uint16)[..., 0] * 257 + 7).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    out = tmp_path / "out"
    assert colorization("predict", net, tmp_path / "turned.jpg", tmp_path / "deep.png", "--out", out) == 0
    with Image.open(out / "turned.jpg") as picture:
        assert picture.size == (60, 90)  # upright
        assert picture.getexif().get(0x0112, 1) == 1
        assert picture.getexif()[0x010E] == "a description"
        assert picture.info["icc_profile"] == srgb
        assert picture.info["dpi"][0] == pytest.approx(300, abs=1)
    result = photos.read(out / "deep.png")
    assert result.pixels.dtype == np.uint16
    assert np.abs(luminance(result.pixels) - luminance(deep[..., None])).max() < 0.5
    assert "turned as EXIF orientation 6 says" in (out / "applied.csv").read_text()
    corner = listed(tmp_path / "h.csv", Hint(59, 89, 1, 2, 3))  # hints are on the upright picture
    words = ["--hints", corner, "--out", tmp_path / "t.png"]
    assert colorization("predict", net, tmp_path / "turned.jpg", *words) == 0


def test_transparency_palette_and_cmyk(net: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    picture = Image.fromarray(scene())
    alpha = Image.fromarray(np.tile(np.arange(90, dtype=np.uint8), (60, 1)))
    Image.merge("LA", (picture.convert("L"), alpha)).save(folder / "clear.png")
    picture.convert("P").save(folder / "palette.gif")
    picture.convert("CMYK").save(folder / "cmyk.jpg")
    out = tmp_path / "out"
    assert colorization("predict", net, folder, "--out", out) == 0
    assert np.array_equal(np.asarray(Image.open(out / "clear.png"))[..., 3], np.asarray(alpha))
    assert Image.open(out / "palette.png").mode == "RGB"
    assert Image.open(out / "cmyk.jpg").mode == "RGB"
    assert colorization("predict", net, folder / "clear.png", "--out", tmp_path / "clear.jpg") == 0
    assert "transparency left out" in capsys.readouterr().out


# many photographs


def test_good_ones_are_finished_and_bad_ones_listed(net: Path, tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    for i, name in enumerate(("a.png", "b.jpg", "c.tif")):
        photo(folder / name, seed=i)
    (folder / "cut.jpg").write_bytes((folder / "b.jpg").read_bytes()[:700])
    (folder / "empty.png").write_bytes(b"")
    listed(tmp_path / "hints" / "a.csv")
    (tmp_path / "hints" / "b.csv").write_text("x,y,r,g,b\n1,2,3\n")
    assert colorization("predict", net, folder, "--hints", tmp_path / "hints", "--out", out) == 1
    bad = {Path(r["item"]).name: r["error"] for r in rows(out / "failures.csv")}
    assert set(bad) == {"b.jpg", "cut.jpg", "empty.png"}
    assert "b.csv: line 2: 3 fields" in bad["b.jpg"]
    assert {p.name for p in out.iterdir() if p.is_file()} == {
        "a.png", "c.tif", "hints.csv", "applied.csv", "failures.csv", "settings.toml",
    }  # fmt: skip
    assert [r["file"] for r in rows(out / "hints.csv")] == ["a.png", "a.png"]
    assert (out / "hints" / "a.csv").is_file()


def test_a_run_goes_on_and_sees_what_changed(
    net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    for name in ("a.png", "b.png", "c.png"):
        photo(folder / name)
    table = listed(
        tmp_path / "h.csv", Hint(1, 2, 250, 0, 0, file="a.png"), Hint(1, 2, 0, 250, 0, file="b"),
        Hint(5, 5, 0, 0, 250, file="c.png"),
    )  # fmt: skip
    words = ["predict", net, folder, "--hints", table, "--out", out, "--no-drawings"]
    real = predict._coloured
    worked: list[str] = []

    def dying(*given: object) -> object:
        item = given[-1]
        if len(worked) == 2:
            raise KeyboardInterrupt
        worked.append(item.id)  # type: ignore[attr-defined]
        return real(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(predict, "_coloured", dying)
    assert colorization(*words) == 130  # Ctrl-C after two
    worked.clear()
    assert colorization(*words) == 0
    assert worked == ["c"]
    assert "2 of 3 are done already" in capsys.readouterr().out
    assert {r["file"] for r in rows(out / "hints.csv")} == {"a.png", "b.png", "c.png"}
    worked.clear()
    listed(
        table, Hint(1, 2, 250, 0, 0, file="a.png"), Hint(1, 2, 0, 0, 9, file="b"), Hint(5, 5, 0, 0, 250, file="c.png")
    )
    assert colorization(*words) == 0
    assert worked == ["b"]  # its line alone has changed
    worked.clear()
    (out / "c.png").unlink()
    assert colorization(*words) == 0
    assert worked == ["c"]
    worked.clear()
    assert colorization(*words, "--format", "tif") == 130
    assert worked == ["a", "b"]  # other settings: again


def test_the_table_of_hints_is_read_back(net: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    for i in range(2):
        photo(folder / f"{i}.png", seed=i)
    assert colorization("predict", net, folder, "--auto", 4, "--out", tmp_path / "a") == 0
    assert colorization("predict", net, folder, "--hints", tmp_path / "a" / "hints.csv", "--out", tmp_path / "b") == 0
    assert (tmp_path / "a" / "hints.csv").read_text() == (tmp_path / "b" / "hints.csv").read_text()
    assert colorization("predict", net, folder, "--hints", tmp_path / "a" / "hints", "--out", tmp_path / "c") == 0
    assert (tmp_path / "a" / "1.png").read_bytes() == (tmp_path / "c" / "1.png").read_bytes()


# data sets


def published(folder: Path, *, counts: tuple[int, ...] = (1, 5), names: tuple[str, ...] = ("a", "b", "c")) -> Path:
    draw = np.random.default_rng(0)
    for i, name in enumerate(names):
        halves = np.full((60, 90, 3), (200, 60, 50), np.uint8)
        halves[:, 30 + 10 * i :] = (40, 90, 200)
        (folder / "imgs").mkdir(parents=True, exist_ok=True)
        photos.save(folder / "imgs" / f"{name}.jpg", (halves * (0.6 + scene(seed=i)[..., :1] / 640)).astype(np.uint8))
        for n in counts:
            path = folder / f"h2-n{n}" / f"{name}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(f"{r} {c}\n" for r, c in draw.integers(0, 224, (n, 2))))
    return folder


def test_evaluate_prints_the_baselines_beside(net: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = published(tmp_path / "d"), tmp_path / "scores"
    assert colorization("evaluate", net, "--data", data, "--counts", 0, 1, 5, 10, "--out", out) == 0
    told = capsys.readouterr().out
    for words in (
        "b_psnr",
        "pev",
        "delta_e",
        "range",
        "psnr beside what needs no training",
        "network - nearest [95 %]",
    ):
        assert words in told
    report = json.loads((out / "report.json").read_text())
    assert set(report["classes"]) == {"0 hints", "1 hint", "5 hints", "10 hints"}
    psnr = report["classes"]["5 hints"]["psnr"]
    assert psnr["n"] == 3
    assert psnr["low"] <= psnr["mean"] <= psnr["high"]
    near = {n: report["baselines"]["nearest"]["classes"][n]["psnr"]["mean"] for n in ("0 hints", "10 hints")}
    assert near["10 hints"] > near["0 hints"]
    assert near["0 hints"] == pytest.approx(report["baselines"]["grey"]["classes"]["0 hints"]["psnr"]["mean"])
    assert report["baselines"]["nearest"]["classes"]["5 hints"]["delta_e"]["mean"] < 3
    assert "p" in report["against"]["grey"]["definitions"]
    table = rows(out / "cases.csv")
    assert {r["method"] for r in table} == {"network", "grey", "nearest", "weighted"}
    assert {r["id"] for r in table} == {"a", "b", "c"}
    mean = np.mean(
        [float(r["value"]) for r in table if (r["method"], r["hints"], r["metric"]) == ("network", "5", "psnr")]
    )
    assert mean == pytest.approx(psnr["mean"], abs=1e-4)


def test_published_hints_are_used(net: Path, tmp_path: Path) -> None:
    data = published(tmp_path / "d", counts=(1,), names=("a", "b"))
    (data / "h2-n1" / "a.txt").write_text("17 203\n")
    first = sets.find(data).test[0]
    assert evaluate._places(first, 1, 112, 0).tolist() == [[8, 101]]
    assert evaluate._places(first, 1, 32, 0).tolist() == [[2, 29]]
    scores = []
    for name in ("one", "two"):
        assert colorization("evaluate", net, "--data", data, "--counts", 1, 2, "--out", tmp_path / name) == 0
        report = json.loads((tmp_path / name / "report.json").read_text())
        scores.append([report["baselines"]["nearest"]["classes"][k]["psnr"]["mean"] for k in ("1 hint", "2 hints")])
        for path in (data / "h2-n1").iterdir():
            path.write_text("17 203\n")
    assert scores[0][0] != scores[1][0]
    assert scores[0][1] == scores[1][1]  # drawn: the same every time


def test_evaluate_says_what_it_cannot_score(net: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = published(tmp_path / "d")
    Image.fromarray(scene()[..., 0]).save(data / "imgs" / "grey.jpg")
    words = ["evaluate", net, "--data", data, "--counts", 1, "--out", tmp_path / "o"]
    assert colorization(*words) == 1
    assert "there is no colour to compare with" in rows(tmp_path / "o" / "failures.csv")[0]["error"]
    (tmp_path / "leave.txt").write_text("grey.jpg\n")
    assert colorization(*words, "--exclude", tmp_path / "leave.txt") == 0
    capsys.readouterr()
    assert colorization(*words, "--lpips-weights", tmp_path / "vgg.pth") == 2
    assert "vgg16-397923af.pth" in capsys.readouterr().err
    assert colorization(*words[:-4], "--counts", 5000) == 2
    assert "counts of hints are 0 to 1024" in capsys.readouterr().err
    assert colorization("evaluate", "--data", data) == 2


def test_compare_pairs_two_networks(net: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = made(tmp_path / "b", seed=4)
    data = published(tmp_path / "d")
    assert colorization("compare", net, other, "--data", data, "--counts", 1, 5) == 0
    told = capsys.readouterr().out
    assert "A - B [95 %]" in told
    assert "5 hints  psnr" in told
    capsys.readouterr()
    assert colorization("compare", net, net, "--data", data, "--counts", 5, "--protocol", "saved") == 0
    assert "+0.000 [+0.000, +0.000]" in capsys.readouterr().out


def test_check_lists_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "d"
    photo(data / "train" / "a.png", rows=300, columns=240)
    photo(data / "train" / "b.png", seed=1, rows=300, columns=240)
    photo(data / "test" / "c.png", seed=2, rows=300, columns=240)
    assert colorization("check", data) == 0
    assert "ready to train" in capsys.readouterr().out
    photo(data / "train" / "small.png", seed=3)
    shutil.copy(data / "train" / "a.png", data / "test" / "copy.png")
    Image.fromarray(scene(seed=5)[..., 0]).save(data / "train" / "grey.png")
    (data / "train" / "cut.jpg").write_bytes(_jpeg(scene())[:600])
    assert colorization("check", data) == 1
    told = capsys.readouterr().out
    assert "grey.png: is grey, there is nothing to learn from it" in told
    assert "2 photographs have fewer than 224 pixels along a side" in told
    assert "a (train) and copy (test) look alike" in told
    assert "cut.jpg: is damaged or cut short" in told
    assert "3 problems" in told
    (tmp_path / "leave.txt").write_text("grey\ncut\ncopy.png\n")
    assert colorization("check", data, "--exclude", tmp_path / "leave.txt") == 0


def _jpeg(pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def test_inspect_names_nothing_private(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exif = Image.Exif()
    exif[0x013B], exif[0x0112] = "Jane Doe", 8
    Image.fromarray(scene()).save(tmp_path / "a.jpg", exif=exif)
    assert colorization("inspect", tmp_path / "a.jpg") == 0
    told = capsys.readouterr().out
    assert "exif orientation" in told
    assert "Jane" not in told


def test_export_and_serve_refuse_plainly(net: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert colorization("export", net, tmp_path / "n.txt") == 2
    assert "must end in .onnx" in capsys.readouterr().err
    assert colorization("serve") == 2
    assert "name a bundle to serve" in capsys.readouterr().err
    assert colorization("predict", tmp_path, "--out", tmp_path / "o") == 2
    assert "is no bundle" in capsys.readouterr().err


def test_train_then_predict_and_import(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(4):
        photo(tmp_path / "d" / f"{i}.png", seed=i)
    Image.fromarray(scene()[..., 0]).save(tmp_path / "d" / "grey.png")
    (tmp_path / "leave.txt").write_text("grey\n")
    small = ["size=64", "dim=24", "depth=1", "heads=2"]
    words = ["--set", *small, "--validation", 0.25, "--recipe.epochs", 1, "--recipe.steps-per-epoch", 2]
    words += ["--recipe.batch", 2, "--device", "cpu", "--exclude", tmp_path / "leave.txt"]
    assert colorization("train", tmp_path / "d", "--out", tmp_path / "run", *words) == 0
    assert "psnr beside what needs no training" in capsys.readouterr().out
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert len(report["trained_on"]) == 3
    assert "grey" not in report["trained_on"]
    auto = ["--auto", 5, "--out"]
    assert colorization("predict", tmp_path / "run", tmp_path / "d" / "0.png", *auto, tmp_path / "a.png") == 0
    again = ["import", tmp_path / "run" / "weights.safetensors", "--out", tmp_path / "copy", "--set", *small]
    assert colorization(*again) == 0
    assert colorization("predict", tmp_path / "copy", tmp_path / "d" / "0.png", *auto, tmp_path / "b.png") == 0
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert colorization("train", tmp_path / "d", "--out", tmp_path / "x", "--recipe", "long") == 2
    assert "no recipe named 'long'" in capsys.readouterr().err
