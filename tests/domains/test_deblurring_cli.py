"""The other commands of deblurring: make, inspect, evaluate, compare, export, and what they refuse."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from numpy.typing import NDArray
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from test_deblurring_predict import TINY, made, put, real, run

from apps.deblurring import _look, _making, data, evaluate, scoring
from apps.deblurring.pipeline import Pipeline
from core.data import photos
from core.errors import ShapeError, UnknownNameError

Floats = NDArray[np.float32]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("bundles") / "a")


@pytest.fixture(scope="module")
def sharp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four photographs."""
    place = tmp_path_factory.mktemp("sharp")
    for name in ("chelsea", "coffee", "rocket", "astronaut"):
        put(place / f"{name}.png", np.asarray(getattr(skimage.data, name)())[:200, :240])
    return place


@pytest.fixture(scope="module")
def pairs(sharp: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pairs") / "set"
    assert run("make", sharp, "--out", out, "--count", 2, "--size", 96, "--length", 6, 12, "--test", 0.5) == 0
    return out


def local(seed: int = 0, size: tuple[int, int] = (40, 50)) -> tuple[Floats, Floats, Floats]:
    """A sharp picture, one that is wrong inside a mask, and the mask."""
    rng = np.random.default_rng(seed)
    truth = rng.random((*size, 3)).astype(np.float32)
    mask = np.zeros(size, np.float32)
    mask[10:25, 10:30] = 1
    return (
        truth,
        np.clip(truth + 0.2 * mask[..., None] * rng.standard_normal(truth.shape), 0, 1).astype(np.float32),
        mask,
    )


# make


def test_make_writes_reloblurs_layout(pairs: Path, sharp: Path) -> None:
    found = data.find(pairs)
    assert found.layout == "ReLoBlur"
    assert len(found.train) == len(found.test) == 4
    scenes = {p.group.split("/")[1] for p in found.train}, {p.group.split("/")[1] for p in found.test}
    assert not scenes[0] & scenes[1]  # a photograph is on one side
    assert scenes[0] | scenes[1] == {p.stem for p in sharp.iterdir()}
    for pair in (*found.train, *found.test):
        read = data.read_pair(pair)
        assert read.sharp is not None
        assert read.mask is not None
        assert max(read.blurred.shape) == 96
        gap = np.abs(read.blurred - read.sharp).max(axis=2)
        assert 0 < read.mask.mean() < 0.9
        assert not gap[read.mask == 0].any()
        assert gap[read.mask > 0].mean() > 0.005
    assert run("check", pairs) == 0


def test_make_is_repeatable_and_goes_on(
    sharp: Path, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["make", sharp, "--out", tmp_path / "set", "--count", 2, "--size", 96, "--length", 6, 12, "--test", 0.5]
    assert run(*words) == 0
    names = sorted(p.relative_to(pairs) for p in pairs.rglob("*.png"))
    assert names == sorted(p.relative_to(tmp_path / "set") for p in (tmp_path / "set").rglob("*.png"))
    assert all((pairs / n).read_bytes() == (tmp_path / "set" / n).read_bytes() for n in names)
    assert len({(pairs / n).read_bytes() for n in names if n.name.endswith("_blur.png")}) == 8  # all are different
    (tmp_path / "set" / names[0]).unlink()
    capsys.readouterr()
    assert run(*words) == 0
    assert "3 of 4 are done already" in capsys.readouterr().out
    assert (tmp_path / "set" / names[0]).is_file()


def test_a_photographs_pairs_do_not_depend_on_the_others() -> None:
    assert _making.seed_of(0, "a", 1) == _making.seed_of(0, "a", 1)
    seeds = [_making.seed_of(s, n, k) for s in (0, 1) for n in ("a", "b") for k in (0, 1)]
    assert len(set(seeds)) == 8


def test_make_keeps_16_bits_and_no_persons_data(tmp_path: Path) -> None:
    photos.save(tmp_path / "in" / "deep.png", (real(60, 90).astype(np.uint16) * 257))
    exif = Image.Exif()
    exif[0x013B] = "Someone"
    put(tmp_path / "in" / "a.jpg", real(60, 90), exif=exif)
    assert run("make", tmp_path / "in", "--out", tmp_path / "out", "--count", 1, "--test", 0) == 0
    made_of = {p.parent.parent.name: photos.read(p).pixels.dtype for p in tmp_path.rglob("*_blur.png")}
    assert made_of == {"deep": np.uint16, "a": np.uint8}
    assert not any(b"Someone" in p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--count", "0"], "--count is at least 1"),
        (["--test", "1"], "--test is a part"),
        (["--length", "9", "3"], "--length is the least and the most"),
        ([], "one photograph cannot be shared out"),
    ],
)
def test_make_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str) -> None:
    path = put(tmp_path / "a.png", real(60, 90))
    assert run("make", path, "--out", tmp_path / "o", *words) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_make_does_not_mix_data_sets(
    sharp: Path, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("make", sharp, "--out", pairs, "--count", 3) == 2
    assert "made of other photographs or with other settings" in capsys.readouterr().err
    (tmp_path / "masks").mkdir()
    assert run("make", sharp, "--out", tmp_path) == 2
    assert "holds another data set" in capsys.readouterr().err


def test_make_goes_on_after_a_bad_photograph(tmp_path: Path) -> None:
    put(tmp_path / "in" / "good.png", real(60, 90))
    put(tmp_path / "in" / "small.png", real(10, 10))
    (tmp_path / "in" / "bad.png").write_bytes(b"\x89PNG")
    assert run("make", tmp_path / "in", "--out", tmp_path / "out", "--count", 1, "--test", 0) == 1
    rows = {Path(r["item"]).name: r["error"] for r in csv.DictReader((tmp_path / "out" / "failures.csv").open())}
    assert set(rows) == {"small.png", "bad.png"}
    assert len(list((tmp_path / "out").rglob("*_blur.png"))) == 1


# inspect


def test_inspect_says_what_a_photograph_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x013B] = 6, "Someone"
    clear, soft = real(), np.asarray(Image.fromarray(real()).reduce(6).resize((451, 300)))
    assert run("inspect", put(tmp_path / "a.jpg", clear, exif=exif), put(tmp_path / "b.png", soft)) == 0
    told = capsys.readouterr().out
    assert "exif orientation  6" in told
    assert "Someone" not in told
    measures = [float(line.split()[2]) for line in told.splitlines() if "blur effect" in line]
    assert measures[0] + 0.1 < measures[1]


def test_inspect_measures_a_large_photograph_by_tiles() -> None:
    values = np.tile(real(256, 256), (3, 3, 1))
    values[:512, :512] = np.asarray(Image.fromarray(values[:512, :512]).reduce(8).resize((512, 512)))
    found = _look.blur(values)
    assert len(found) == 4
    assert max(found) == found[0]
    assert found[0] > min(found) + 0.1
    assert _look.blur(np.zeros((40, 40, 3), np.uint8)) == []
    assert _look.blur(np.zeros((3, 2000, 1), np.uint8)) == []


# scores


def test_scores_are_those_of_scikit_image() -> None:
    truth, got, mask = local()
    case = scoring.score(got, truth, mask, by="lmd_vit")
    assert case.row["psnr"] == pytest.approx(peak_signal_noise_ratio(truth, got, data_range=1), abs=1e-4)
    whole = structural_similarity(truth, got, channel_axis=2, gaussian_weights=True, sigma=1.5,
                                  use_sample_covariance=False, data_range=1)  # fmt: skip
    assert case.row["ssim"] == pytest.approx(whole, abs=1e-4)
    share = mask.sum() / mask.size
    assert case.row["weighted_psnr"] == pytest.approx(case.row["psnr"] + 10 * np.log10(share), abs=1e-3)
    assert case.left_out["photographs"]["precision"] == "nothing is found by it"


def test_protocols_round_or_not() -> None:
    truth, got, mask = local()
    got = np.clip(truth + 0.001, 0, 1)  # less than half a level of 8 bits, mostly
    fine, coarse = (scoring.score(got, truth, mask, by=by).row["psnr"] for by in ("lmd_vit", "gopro"))
    assert fine == pytest.approx(60, abs=0.1)
    eight = [np.rint(np.clip(v, 0, 1) * 255) / 255 for v in (truth, got)]
    assert coarse == pytest.approx(peak_signal_noise_ratio(*eight, data_range=1), abs=1e-3)
    assert abs(coarse - fine) > 0.5
    assert set(scoring.score(got, truth, mask, by="gopro").row) == {"psnr", "ssim"}
    assert "aligned_psnr" in scoring.score(got, truth, mask, by="lbag").row
    with pytest.raises(UnknownNameError, match="did you mean gopro"):
        scoring.score(got, truth, by="gpro")


def test_what_cannot_be_scored_is_left_out_with_its_reason() -> None:
    truth, got, mask = local()
    case = scoring.score(got, None)
    assert {m for m, v in case.row.items() if not np.isnan(v)} == {"blur_effect"}
    assert case.left_out["photographs"]["psnr"] == "no sharp picture"
    same = scoring.score(truth, truth, np.zeros_like(mask), mask)
    assert same.left_out["photographs"]["psnr"] == "equal to the sharp picture"
    assert same.left_out["photographs"]["weighted_psnr"] == "nothing is blurred"
    assert same.row["accuracy"] == pytest.approx(1 - mask.mean())
    json.dumps(same.as_dict(), allow_nan=False)
    with pytest.raises(ShapeError, match="the mask has"):
        scoring.score(got, truth, mask[1:])


def test_a_report_resamples_scenes() -> None:
    cases = []
    for i in range(6):
        truth, got, mask = local(i)
        cases.append(scoring.score(got, truth, mask, mask, by="lmd_vit", id=str(i), group=f"scene {i // 3}"))
    found = scoring.report(cases)
    assert (found.cases, found.groups) == (6, 2)
    psnr = found.mean["psnr"]
    assert psnr.low is not None
    assert psnr.high is not None
    means = [np.mean([c.row["psnr"] for c in cases[k : k + 3]]) for k in (0, 3)]
    assert psnr.low == pytest.approx(min(means))
    assert psnr.high == pytest.approx(max(means))
    assert found.mean["precision"].mean == 1


# evaluate, compare


def test_evaluate_sets_the_input_beside_the_answer(
    folder: Path, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("evaluate", folder, "--data", pairs, "--out", tmp_path / "scores") == 0
    told = capsys.readouterr().out
    assert "gain [95 %]" in told
    assert "SSIM (Wang 2004)" in told
    document = json.loads((tmp_path / "scores" / "report.json").read_text())
    assert (document["protocol"], document["part"], document["cases"], document["groups"]) == ("house", "test", 4, 2)
    assert (document["data"], document["layout"]) == ("set", "ReLoBlur")
    found = data.find(pairs)
    own = [data.read_pair(p) for p in found.test]
    want = [peak_signal_noise_ratio(r.sharp, r.blurred, data_range=1) for r in own]
    assert document["input"]["psnr"]["mean"] == pytest.approx(np.mean(want), abs=1e-3)
    restored = Pipeline.load(folder, device="cpu")
    got = [np.rint(restored(r.blurred).image * 255) / 255 for r in own]
    now = [peak_signal_noise_ratio(r.sharp, g.astype(np.float32), data_range=1) for r, g in zip(own, got, strict=True)]
    assert document["classes"]["photographs"]["psnr"]["mean"] == pytest.approx(np.mean(now), abs=1e-3)
    (gain,) = [r for r in document["gain"] if r["metric"] == "psnr"]
    assert gain["difference"] == pytest.approx(np.mean(now) - np.mean(want), abs=1e-3)
    rows = list(csv.DictReader((tmp_path / "scores" / "cases.csv").open()))
    assert {r["id"] for r in rows} == {p.id for p in found.test}
    assert all(r["input"] for r in rows if r["metric"] == "psnr")
    assert not any(r["input"] for r in rows if r["metric"] == "precision")


def test_published_protocols_see_the_whole_photograph(
    folder: Path, pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline, found = Pipeline.load(folder, device="cpu"), data.find(pairs)
    seen: list[tuple[int, ...]] = []
    own = pipeline.members[0].network.forward
    monkeypatch.setattr(pipeline.members[0].network, "forward", lambda x: (seen.append(tuple(x.shape[-2:])), own(x))[1])
    evaluate.score(pipeline, found, found.test[:1], by="lmd_vit")
    evaluate.score(pipeline, found, found.test[:1], by="house")
    assert len(seen) > 2
    assert seen[0][1] == 96
    assert set(seen[1:]) == {(64, 64)}


def test_evaluate_of_photographs_alone(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(tmp_path / "in" / "a.jpg", real(60, 90))
    assert run("evaluate", folder, "--data", tmp_path / "in") == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert lines["psnr"].split()[1] == "-"
    assert float(lines["blur_effect"].split()[1]) > 0


def test_evaluate_goes_on_after_a_bad_pair(folder: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        put(tmp_path / "test" / "sharp" / f"{name}.png", real(40, 50))
        put(tmp_path / "test" / "blur" / f"{name}.png", real(40, 50)[:, ::-1])
    put(tmp_path / "test" / "blur" / "a.png", real(40, 40))
    assert run("evaluate", folder, "--data", tmp_path, "--out", tmp_path / "scores") == 1
    (row,) = csv.DictReader((tmp_path / "scores" / "failures.csv").open())
    assert row["item"] == "test/a"
    assert "has 50 x 40 pixels" in row["error"]


def test_compare_is_paired(folder: Path, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = made(tmp_path / "b", seed=2)
    assert run("compare", folder, other, "--data", pairs, "--protocol", "gopro") == 0
    told = capsys.readouterr().out
    assert "A - B [95 %]" in told
    rows = [line.split() for line in told.splitlines() if line.startswith("photographs")]
    assert [r[1] for r in rows] == ["psnr", "ssim"]
    a, b, gap = (float(v) for v in rows[0][2:5])
    assert gap == pytest.approx(a - b, abs=2e-3)
    capsys.readouterr()
    assert run("compare", folder, folder, "--data", pairs, "--protocol", "gopro") == 0
    assert "+0.000" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["evaluate", "--data", "set"], "name a bundle"),
        (["evaluate", "B", "--data", "set", "--protocol", "gopr"], "did you mean gopro"),
        (["evaluate", "B", "--data", "set", "--part", "val"], "has no val pairs"),
        (["evaluate", "B", "--data", "none"], "no such folder"),
        (["train", "set", "--out", "o", "--recipe", "shrt"], "did you mean short"),
        (["train", "set", "--out", "o", "--set", "dims"], "NAME=VALUE"),
        (["inspect"], "name a file"),
        (["serve"], "name a bundle"),
        (["export", "B", "a.txt"], "must end in .onnx"),
        (["export", "B", "a.onnx", "--size", "60", "64"], "multiples of 32"),
    ],
)
def test_mistakes_are_one_sentence(
    folder: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    words: list[str], said: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    names = {"B": folder, "set": pairs}
    assert run(*(names.get(w, w) for w in words)) == 2
    told = capsys.readouterr().err.strip()
    assert said in told
    assert "\n" not in told


# train


def test_train_then_predict_then_go_on(pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    size = ["dims=[8, 8]", "depths=[1, 1, 1]", "heads=[1, 1, 1]", "prune=[true, true, true]"]
    words = ["train", pairs, "--out", tmp_path / "run", "--set", *size, "--patch", 32, "--tile", 64,
             "--validation", 0.5, "--recipe.epochs", 2, "--recipe.steps-per-epoch", 2,
             "--recipe.batch", 2, "--device", "cpu"]  # fmt: skip
    assert run(*words) == 0
    assert "gain [95 %]" in capsys.readouterr().out
    settings = (tmp_path / "run" / "settings.toml").read_text()
    assert 'name = "deblurring"' in settings
    told = json.loads((tmp_path / "run" / "report.json").read_text())
    assert told["validation"]["cases"] == 2  # one photograph of two
    scene = {i.split("/")[1] for i in told["trained_on"]}
    assert not scene & {s["id"].split("/")[1] for s in told["validation"]["scores"]}
    path = put(tmp_path / "a.png", real(60, 90))
    assert run("predict", tmp_path / "run", path, "--out", tmp_path / "sharp.png") == 0
    assert (tmp_path / "sharp.png").is_file()


# export


def test_export_answers_as_the_network_does(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    folder = made(tmp_path / "b", tile=32, settings=TINY)  # exporters take their time
    assert run("export", folder, tmp_path / "net.onnx") == 0
    side = json.loads((tmp_path / "net.json").read_text())
    assert side["input"]["shape"] == [1, 3, 32, 32]
    assert side["input"]["channels"] == ["red", "green", "blue"]
    assert "sharp picture" in side["output"][0]["meaning"]
    values = real(32, 32).astype(np.float32) / 255
    session = onnxruntime.InferenceSession(str(tmp_path / "net.onnx"), providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {"image": np.moveaxis(values, -1, 0)[None]})
    want = Pipeline.load(folder, device="cpu")(values)
    assert np.abs(np.moveaxis(got[0, :3], 0, -1).clip(0, 1) - want.image).max() < 1e-4
    assert np.abs(np.rint(got[0, 3] * 255) - want.mask).max() <= 1
