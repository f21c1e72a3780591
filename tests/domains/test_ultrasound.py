"""Ultrasound screening as a user meets it: commands on pictures and cine loops, good ones and bad ones."""

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
import torch
from numpy.typing import NDArray
from PIL import Image
from test_ultrasound_burned import speckle, written
from torchvision.transforms import v2

from apps.__main__ import main
from apps.medical.ultrasound import Pipeline, burned, data, evaluate, inputs, metrics, model
from apps.medical.ultrasound.options import TASK
from apps.medical.ultrasound.results import Screening, write_csv
from core import batch, bundle
from core.bundle import BundleError, Network, Settings
from core.config import as_table
from core.data import _ultrasound as made_up
from core.data import _ultrasound_dicom as dicom
from core.data.sample import Meta
from core.errors import FileError, InputError, SettingError, ShapeError, UnknownNameError

SMALL: dict[str, Any] = {
    "size": 64, "dim": 24, "queries": 5, "heads": (1, 2, 3, 3), "drop_path": 0.1,
    "swin_settings": {"dim": 12, "depths": (1, 1, 2, 1), "heads": (1, 2, 3, 3)},
    "convnext_settings": {"dims": (12, 24, 48, 96), "depths": (1, 1, 2, 1)},
}  # fmt: skip
CLASSES = ("benign", "malignant")


def made(
    folder: Path, *, seed: int = 0, classes: tuple[str, ...] = CLASSES, network: str = "hsqformer", **given: Any
) -> Path:
    """A bundle with fresh weights whose answers differ from picture to picture."""
    torch.manual_seed(seed)
    small = (
        SMALL
        if network == "hsqformer"
        else {"size": 64, "backbone": "convnext/v2_atto", "overrides": {"depths": [1] * 4}}
    )
    config = model.configured(network, {**small, **given.pop("settings", {}), "classes": len(classes)})
    built = model.build(config)
    for name, weight in built.named_parameters():  # fresh heads answer 0.5 to everything
        if "head" in name:
            torch.nn.init.normal_(weight, std=0.5)
    positive = classes[1] if len(classes) == 2 else None
    contract = inputs.contract(classes, **{"positive": positive, "size": 64, **given})
    bundle.save(folder, built, Settings(TASK, Network(network, as_table(config)), *contract), {"validation": None})
    return folder


@pytest.fixture(scope="module")
def screen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("bundles") / "b", threshold=0.5)


@pytest.fixture(scope="module")
def pipeline(screen: Path) -> Pipeline:
    return Pipeline.load(screen, device="cpu")


def png(path: Path, seed: int = 0, text: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = speckle(seed, shape=(90, 110), fan=bool(text))
    Image.fromarray(written(picture, text, (2, 2))[0] if text else picture).save(path)
    return path


def loop(frames: int = 5, seed: int = 0) -> NDArray[np.uint8]:
    return made_up.cine(made_up.patient(seed, "malignant", breast=False), frames)


def ultrasound(*words: object) -> int:
    return main(["medical", "ultrasound", *map(str, words)])


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def folder_of(path: Path, patients: int = 6) -> Path:
    """Class folders of two made pictures a patient, and who they are of."""
    listed = ["image,patient"]
    for n in range(patients):
        label = CLASSES[n % 2]
        for k in range(2):
            png(path / label / f"p{n}-{k}.png", 10 * n + k)
            listed.append(f"{label}/p{n}-{k}.png,P{n}")
    (path / "groups.csv").write_text("\n".join(listed) + "\n")
    return path


# what goes in


def test_the_input_is_the_cards_evaluation_transform() -> None:
    """RGB, exactly to the size without keeping the aspect, bilinear, 0..1, ImageNet's mean and spread."""
    picture = np.random.default_rng(0).integers(0, 256, (97, 143, 3)).astype(np.uint8)
    card = v2.Compose(
        [
            v2.Resize((224, 224), v2.InterpolationMode.BILINEAR),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    want = card(Image.fromarray(picture))
    got = inputs.prepared(picture[None])[0]
    assert got.shape == (3, 224, 224)
    assert (got - want).abs().max() < 1.01 / 255 / 0.224  # Pillow rounds between its two passes
    grey = inputs.frames(inputs.from_array(picture[..., 0]))
    assert (grey == picture[..., :1]).all()


def test_values_of_other_kinds(tmp_path: Path) -> None:
    grey = speckle(0, shape=(40, 50))
    same = inputs.frames(inputs.from_array(grey))
    assert np.array_equal(inputs.frames(inputs.from_array(grey / np.float32(255))), same)
    assert np.array_equal(inputs.frames(inputs.from_array(grey.astype(np.uint16))), same)
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "a.png")
    clip = inputs.opened(tmp_path / "a.png")
    assert np.array_equal(clip.read(), same)
    assert "16 bits scaled to 8" in clip.meta.applied
    hole = grey / np.float32(255)
    hole[3, 4] = np.nan
    assert not inputs.frames(inputs.from_array(hole))[0, 3, 4].any()
    for wrong, words in (
        (grey.astype(np.int16) - 5, "no grey levels"),
        (grey.astype(np.float32), "no grey levels"),
        (grey.astype(np.uint16) * 10, "its range of grey is not known"),
        (grey[:12], "only 50 x 12 pixels"),
    ):
        with pytest.raises(FileError, match=words):
            inputs.opened(inputs.from_array(wrong))
    for shape in ((4,), (2, 3, 20, 20, 3), (20, 20, 2), (20, 0)):
        with pytest.raises((SettingError, FileError)):
            inputs.opened(inputs.from_array(np.zeros(shape, np.uint8)))


def test_a_contract_that_is_not_ours_is_refused(tmp_path: Path, screen: Path) -> None:
    from dataclasses import replace

    found = bundle.load(screen)
    s = found.settings
    for wrong, words in (
        (replace(s, input=replace(s.input, channels=("grey",))), "no mean and spread"),
        (replace(s, tile=bundle.Tile((64,))), "states the size"),
        (replace(s, input=replace(s.input, steps=("equalise",))), "equalise"),
        (replace(s, output=replace(s.output, classes={"a": 1, "b": 2})), "numbered from 0"),
        (replace(s, output=replace(s.output, positive="hcc")), "looks for 'hcc'"),
        (replace(s, output=replace(s.output, threshold=1.5)), "is no probability"),
    ):
        with pytest.raises(BundleError, match=words):
            inputs.checked(replace(found, settings=wrong))
    with pytest.raises(BundleError, match="its network takes 64 x 64"):
        Pipeline([replace(found, settings=replace(s, tile=bundle.Tile((96, 96))))])


# what comes out


def test_an_answer_is_the_networks_own(pipeline: Pipeline) -> None:
    picture = speckle(1, shape=(80, 100))
    with torch.inference_mode():
        image = inputs.prepared(inputs.frames(inputs.from_array(picture)), (64, 64))
        want = pipeline.members[0].network(image).softmax(-1)[0].numpy()
    result = pipeline(picture)
    assert np.abs(result.probabilities - want).max() < 1e-6
    assert result.probability() == pytest.approx(float(want[1]), abs=1e-6)
    assert result.looked is not None
    assert result.looked.shape == (56, 56)
    assert result.looked.sum() == pytest.approx(1, abs=1e-4)
    assert result.looked.min() >= 0
    assert np.ptp(result.looked) > 0
    again = pipeline(picture)
    assert np.array_equal(again.frames, result.frames)  # the router draws no noise


def test_frames_of_a_loop_and_their_pools(pipeline: Pipeline, screen: Path) -> None:
    frames = loop(7)
    result = pipeline(frames)
    each = np.concatenate([pipeline(f, marks=False, looked=False).frames for f in frames])
    assert np.abs(result.frames - each).max() < 1e-5
    assert np.abs(result.probabilities - each.mean(0)).max() < 1e-6
    assert result.cine
    assert len(result.frame_rows()) == 7
    small = Pipeline.load(screen, device="cpu", batch=2)
    assert np.abs(small(frames).frames - result.frames).max() < 1e-5
    strongest = pipeline(frames, pool="strongest")
    assert strongest.probability("malignant") == pytest.approx(float(each[:, 1].max()), abs=1e-5)
    median = pipeline(frames, pool="median")
    assert median.probabilities.sum() == pytest.approx(1)
    with pytest.raises(UnknownNameError, match="did you mean median"):
        pipeline(frames, pool="medan")


def test_blank_frames_have_no_say(pipeline: Pipeline) -> None:
    frames = loop(4)
    frames = np.concatenate([np.zeros_like(frames[:2]), frames])
    result = pipeline(frames)
    assert np.isnan(result.frames[:2]).all()
    assert np.abs(result.probabilities - result.frames[2:].mean(0)).max() < 1e-9
    assert result.row()["blank_frames"] == 2
    assert result.shown >= 2
    assert "2 of 6 frames show nothing and were left out" in result.meta.applied
    with pytest.raises(FileError, match="one value all over"):
        pipeline(np.zeros((40, 40), np.uint8))


def test_pooling() -> None:
    frames = np.array([[0.9, 0.1], [np.nan, np.nan], [0.2, 0.8], [0.6, 0.4]])
    assert metrics.pooled(frames) == pytest.approx([1.7 / 3, 1.3 / 3])
    assert metrics.pooled(frames, "median") == pytest.approx([0.6, 0.4])
    assert metrics.pooled(frames, "strongest", 1) == pytest.approx([0.2, 0.8])
    assert metrics.pooled(frames, "strongest") == pytest.approx([0.9, 0.1])
    assert metrics.strongest(frames, 1) == 2
    with pytest.raises(ShapeError, match="no frame"):
        metrics.pooled(frames[1:2])
    numbers = {"benign": 0, "malignant": 1}
    assert metrics.called(np.array([0.7, 0.3]), numbers, "malignant", 0.3) == "malignant"
    assert metrics.called(np.array([0.7, 0.3]), numbers, "malignant", 0.31) == "benign"
    assert metrics.called(np.array([0.7, 0.3]), numbers, "malignant") == "benign"
    assert metrics.called(np.array([0.2, 0.3, 0.5]), {"a": 0, "b": 1, "c": 2}) == "c"


def test_masking_is_the_networks_or_the_users(tmp_path: Path, pipeline: Pipeline) -> None:
    picture, _ = written(speckle(3, fan=True), "DOE JANE", (3, 3))
    trained = Pipeline.load(made(tmp_path / "m", steps=(inputs.MASK,)), device="cpu")
    assert trained.masks
    found = burned.find(picture)
    clean = burned.masked(inputs.frames(inputs.from_array(picture)), found)
    want = trained(clean[0], mask=False).probabilities
    result = trained(picture)
    assert result.masked
    assert np.abs(result.probabilities - want).max() < 1e-6
    left = trained(picture, mask=False)
    assert not left.masked
    assert np.abs(left.probabilities - want).max() > 1e-6
    assert any("trained on pictures without them" in w for w in left.meta.applied)
    asked = pipeline(picture, mask=True)
    assert asked.masked
    assert any("trained on pictures with them" in w for w in asked.meta.applied)
    assert not pipeline(picture).masked


def test_several_bundles_are_averaged(tmp_path: Path) -> None:
    a, b = made(tmp_path / "run" / "fold_0", threshold=0.2), made(tmp_path / "run" / "fold_1", seed=1, threshold=0.6)
    picture = speckle(2, shape=(70, 70))
    one, two, both, folder = (Pipeline.load(*f, device="cpu") for f in ([a], [b], [a, b], [tmp_path / "run"]))
    mean = (one(picture).probabilities + two(picture).probabilities) / 2
    assert np.abs(both(picture).probabilities - mean).max() < 1e-9
    assert np.array_equal(folder(picture).probabilities, both(picture).probabilities)
    assert both.threshold == pytest.approx(0.4)
    assert np.abs(one(picture).probabilities - two(picture).probabilities).max() > 1e-3
    for other, words in (
        (made(tmp_path / "three", classes=("benign", "malignant", "normal")), "other classes"),
        (made(tmp_path / "masked", steps=(inputs.MASK,)), "other steps"),
    ):
        with pytest.raises(InputError, match=words):
            Pipeline.load(a, other, device="cpu")


def test_a_network_that_chooses_by_batch_answers_each_picture_alone(tmp_path: Path) -> None:
    folder = made(tmp_path / "b", settings={"experts": "sparse_expert", "choice": "batch"})
    frames = loop(4)
    one, many = (Pipeline.load(folder, device="cpu", batch=n)(frames).frames for n in (1, 4))
    assert np.array_equal(one, many)


def test_a_backbone_and_three_classes(tmp_path: Path) -> None:
    folder = made(tmp_path / "b", network="backbone", classes=("benign", "malignant", "normal"))
    result = Pipeline.load(folder, device="cpu")(speckle(0, shape=(60, 60)))
    assert result.positive is None
    assert result.probabilities.sum() == pytest.approx(1)
    assert result.called == CLASSES[result.probabilities.argmax()] if result.probabilities.argmax() < 2 else "normal"
    assert result.probability() == result.probabilities.max()


def test_result(pipeline: Pipeline, tmp_path: Path) -> None:
    frames = np.stack([written(f, "DOE JANE 19610312", (2, 2))[0] for f in loop(3)])
    result = pipeline(frames, meta=Meta(id="case7"))
    for name in ("a.csv", "a.json", "a.png"):
        result.save(tmp_path / name)
    (row,) = rows(tmp_path / "a.csv")
    assert row["item"] == "case7"
    assert float(row["p_malignant"]) == pytest.approx(result.probability("malignant"), abs=1e-5)
    told = json.loads((tmp_path / "a.json").read_text())
    assert told["called"] == result.called
    assert [len(told["frames"]), told["shown_frame"]] == [3, result.shown]
    assert np.sum(told["looked"]) == pytest.approx(1, abs=1e-3)
    with pytest.raises(FileError, match=r"use \.csv, \.json or \.png"):
        result.save(tmp_path / "a.nii")
    drawn = result.draw()
    assert drawn.ndim == 3
    open_, hidden = (result.draw(keep_identifiers=k)[:, :400].astype(int) for k in (True, False))
    assert np.abs(open_ - hidden).max() > 100  # the text stands on one of them only
    write_csv([result, result], tmp_path / "b.csv")
    assert len(rows(tmp_path / "b.csv")) == 2
    for change in (
        {"frames": np.zeros((3, 3))}, {"probabilities": np.zeros(3)}, {"picture": np.zeros((5, 5), np.uint8)},
        {"shown": 3},
    ):  # fmt: skip
        with pytest.raises(ShapeError):
            Screening(**{**vars(result), **change})


# predict


def test_files_of_every_kind(screen: Path, tmp_path: Path) -> None:
    files = tmp_path / "in"
    png(files / "still.png", 1)
    png(files / "text.png", 2, "DOE J")
    Image.fromarray(speckle(3, shape=(60, 70))).save(files / "still.jpg", quality=90)
    for form in ("grey", "rgb", "palette", "ybr", "jpeg"):
        dicom.write(files / f"{form}.dcm", loop(4), form=form)
    dicom.write(files / "single.dcm", loop(1), form="ybr")
    assert ultrasound("predict", screen, files, "--out", tmp_path / "out") == 0
    found = {r["item"]: r for r in rows(tmp_path / "out" / "predictions.csv")}
    assert set(found) >= {"text", "grey", "rgb", "palette", "ybr", "jpeg", "single"}
    assert found["single"]["frames"] == "1"
    forms = [float(found[f]["p_malignant"]) for f in ("grey", "rgb", "palette", "ybr")]
    assert np.ptp(forms) < 0.02  # the same loop, in colour models that keep its values
    assert [found[f]["frames"] for f in ("grey", "ybr", "jpeg")] == ["4"] * 3
    assert found["text"]["text"] == "1"
    frames = rows(tmp_path / "out" / "frames.csv")
    assert [r["frame"] for r in frames if r["item"] == "grey"] == ["0", "1", "2", "3"]
    mean = np.mean([float(r["p_malignant"]) for r in frames if r["item"] == "ybr"])
    assert mean == pytest.approx(float(found["ybr"]["p_malignant"]), abs=1e-5)
    (mark,) = [r for r in rows(tmp_path / "out" / "marks.csv") if r["item"] == "text"]
    assert mark["kind"] == "text"
    assert abs(int(mark["x"]) - 2) <= 2
    assert len(list((tmp_path / "out" / "overlays").glob("*.png"))) == len(found)


def test_good_files_are_finished_and_bad_ones_listed(
    screen: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = tmp_path / "in"
    for n in range(6):
        png(files / f"p{n}.png", n)
    whole = (files / "p0.png").read_bytes()
    (files / "x1.png").write_bytes(whole[: len(whole) // 2])
    (files / "x2.png").write_bytes(b"no picture")
    Image.fromarray(np.zeros((50, 50), np.uint8)).save(files / "x3.png")
    Image.fromarray(np.full((5, 5), 9, np.uint8)).save(files / "x4.png")
    words = ["predict", screen, files, "--out", tmp_path / "out", "--no-overlays"]
    assert ultrasound(*words) == 1
    told = capsys.readouterr()
    assert "4 of 10 items failed" in told.err
    bad = {Path(r["item"]).name: r["error"] for r in rows(tmp_path / "out" / "failures.csv")}
    assert list(bad) == ["x1.png", "x2.png", "x3.png", "x4.png"]
    assert "one value all over" in bad["x3.png"]
    assert "only 5 x 5 pixels" in bad["x4.png"]
    assert len(rows(tmp_path / "out" / "predictions.csv")) == 6
    # Mended, the same command does only what is left.
    for n in range(1, 5):
        png(files / f"x{n}.png", 20 + n)
    assert ultrasound(*words) == 0
    assert "6 of 10 are done already" in capsys.readouterr().out
    assert len(rows(tmp_path / "out" / "predictions.csv")) == 10
    assert not (tmp_path / "out" / "failures.csv").exists()
    # Another pool is another answer: all is done again.
    assert ultrasound(*words, "--pool", "strongest") == 0
    assert "done already" not in capsys.readouterr().out


def test_a_killed_run_goes_on(screen: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for n in range(16):
        png(tmp_path / "in" / f"p{n:02d}.png", n)
    words = ["medical", "ultrasound", "predict", screen, tmp_path / "in", "--out", tmp_path / "out"]
    run = subprocess.Popen(
        [sys.executable, "-m", "apps", *map(str, words)], stdout=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    notes = tmp_path / "out" / ".done"
    end = time.monotonic() + 120
    while not (notes.is_dir() and len(list(notes.glob("p*.json"))) >= 2):
        assert time.monotonic() < end
        assert run.poll() is None
        time.sleep(0.02)
    run.send_signal(signal.SIGKILL)
    run.wait()
    done = len(list(notes.glob("p*.json")))
    assert done < 16
    assert main([*map(str, words)]) == 0
    assert f"{done} of 16 are done already" in capsys.readouterr().out
    assert len(rows(tmp_path / "out" / "predictions.csv")) == 16


def test_masks_beside_pictures_are_no_pictures(
    screen: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("benign (1)", "benign (1)_mask", "benign (1)_mask_1", "liver_mask"):
        png(tmp_path / "in" / f"{name}.png", len(name))
    assert ultrasound("predict", screen, tmp_path / "in", "--out", tmp_path / "out", "--no-overlays") == 0
    assert {r["item"] for r in rows(tmp_path / "out" / "predictions.csv")} == {"benign (1)", "liver_mask"}
    assert "2 masks beside their pictures" in capsys.readouterr().out


# evaluate, compare, check, inspect


def test_evaluate_and_compare(tmp_path: Path, screen: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = folder_of(tmp_path / "data")
    assert ultrasound("evaluate", screen, "--data", folder, "--part", "all", "--out", tmp_path / "out") == 0
    told = capsys.readouterr().out
    for word in ("auroc", "auprc", "sensitivity", "specificity", "ece", "12 pictures of 6 patients"):
        assert word in told
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["threshold"] == 0.5
    cases = rows(tmp_path / "out" / "cases.csv")
    assert len(cases) == 12
    assert {c["patient"] for c in cases} == {str(n) for n in range(1, 7)}
    assert (tmp_path / "out" / "calibration.png").is_file()
    # The numbers are scikit-learn's and are counted by hand.
    from sklearn.metrics import average_precision_score, roc_auc_score

    truth, said = [c["class"] == "malignant" for c in cases], [float(c["p_malignant"]) for c in cases]
    values = {(s["class"], s["metric"]): s["value"] for s in report["scores"]}
    assert values["all", "auroc"] == pytest.approx(roc_auc_score(truth, said), abs=1e-5)
    assert values["all", "auprc"] == pytest.approx(average_precision_score(truth, said), abs=1e-5)
    positive = [c["called"] == "malignant" for c in cases]
    assert values["all", "sensitivity"] == pytest.approx(np.mean([p for p, t in zip(positive, truth) if t]))
    assert values["all", "specificity"] == pytest.approx(1 - np.mean([p for p, t in zip(positive, truth) if not t]))
    other = made(tmp_path / "other", seed=1, threshold=0.3)
    assert ultrasound("compare", screen, other, "--data", folder, "--part", "all") == 0
    assert "A - B" in capsys.readouterr().out
    assert ultrasound("compare", screen, screen, "--data", folder, "--part", "all") == 0
    assert "+0.000 [+0.000, +0.000]" in capsys.readouterr().out


def test_the_threshold_decides_what_is_called(tmp_path: Path, pipeline: Pipeline) -> None:
    found = data.find(folder_of(tmp_path / "data"), classes=pipeline.names)
    chosen = data.chosen(found, "all")
    before = evaluate.score(pipeline, found, chosen)
    said = sorted(a.probabilities[1] for a in before.answers)
    at = (said[3] + said[4]) / 2
    strict = Pipeline.load(made(tmp_path / "b", threshold=at), device="cpu")
    after = evaluate.score(strict, found, chosen)
    assert [a.probabilities for a in after.answers] == [a.probabilities for a in before.answers]
    assert sum(c == "malignant" for c in after.called.values()) == 8
    assert after.report.threshold == pytest.approx(at)


def test_parts_and_classes_that_are_not_there(tmp_path: Path, screen: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = folder_of(tmp_path / "data", 4)
    assert ultrasound("evaluate", screen, "--data", folder) == 2
    assert "has no test part (its layout states no parts); --part all" in capsys.readouterr().err
    table = tmp_path / "list.csv"
    for text, words in (
        ("image,label\ndata/benign/p0-0.png,benign\ndata/none.png,malignant\n", "none.png"),
        ("image,label\ndata/benign/p0-0.png,angry\ndata/benign/p0-1.png,benign\n", "angry"),
        ("picture,label\n", "image"),
    ):
        table.write_text(text)
        assert ultrasound("evaluate", screen, "--data", table, "--part", "all") == 2
        told = capsys.readouterr().err.strip()
        assert words in told
        assert "\n" not in told
    table.write_text("image,label\ndata/benign/p0-0.png,benign\ndata/benign/p0-1.png,benign\n")
    assert ultrasound("evaluate", screen, "--data", table, "--part", "all") == 0
    told = capsys.readouterr().out
    assert "auroc: left out" in told
    assert " nan" not in told.lower()


def test_which_class_is_looked_for() -> None:
    assert data.positive(("benign", "malignant")) == "malignant"
    assert data.positive(("HCC", "other")) == "HCC"
    assert data.positive(("a", "b")) == "b"
    assert data.positive(("a", "b"), "a") == "a"
    assert data.positive(("a", "b", "c")) is None
    with pytest.raises(InputError, match="one of two"):
        data.positive(("a", "b", "c"), "a")
    with pytest.raises(UnknownNameError):
        data.positive(("benign", "malignant"), "malignent")


def test_check_names_duplicates_labels_and_marks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = folder_of(tmp_path / "data")
    assert ultrasound("check", folder) == 0
    assert "ready to train" in capsys.readouterr().out
    twin = folder / "malignant" / "p1-0.png"
    twin.write_bytes((folder / "benign" / "p0-0.png").read_bytes())  # one picture under both labels
    for n in (1, 3, 5):
        png(folder / "malignant" / f"p{n}-1.png", 50 + n, "D1 5 mm")
    (folder / "benign" / "p2-0.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    Image.fromarray(np.zeros((40, 40), np.uint8)).save(folder / "benign" / "p4-0.png")
    assert ultrasound("check", folder) == 1
    told = capsys.readouterr().out
    assert "p0-0" in told
    assert "p1-0" in told
    assert "p2-0.png" in told
    assert "p4-0.png: has one value all over" in told
    assert "burned-in text is more frequent in one class than in another (0 of 6 benign, 3 of 6 malignant)" in told
    assert told.count("p2-0.png") == 1  # said once


def test_inspect_shows_marks_and_frames(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = png(tmp_path / "a.png", 2, "DOE J")
    assert ultrasound("inspect", path) == 0
    told = capsys.readouterr().out
    assert "burned in" in told
    assert "text at 2, " in told or "text at 3, " in told
    dicom.write(tmp_path / "c.dcm", loop(3), form="ybr", name="Quimby^Ada", number="PX-7")
    assert ultrasound("inspect", tmp_path / "c.dcm") == 0
    told = capsys.readouterr().out
    assert "Quimby" not in told
    assert "3" in told


def test_many_lists_what_fails(pipeline: Pipeline, tmp_path: Path) -> None:
    good = png(tmp_path / "a.png")
    first, second = pipeline.many([good, tmp_path / "none.png"])
    assert isinstance(first, batch.Done)
    assert isinstance(second, batch.Failure)


def test_a_dicom_without_pixels_and_a_volume(screen: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import nibabel as nib
    import pydicom

    dicom.write(tmp_path / "a.dcm", loop(2), form="grey")
    header = pydicom.dcmread(tmp_path / "a.dcm")
    del header.PixelData
    header.save_as(tmp_path / "b.dcm")
    assert ultrasound("predict", screen, tmp_path / "b.dcm", "--out", tmp_path / "out") == 2
    assert "holds no picture (US)" in capsys.readouterr().err
    nib.save(nib.Nifti1Image(np.ones((20, 20, 4), np.int16), np.eye(4)), tmp_path / "v.nii.gz")
    assert ultrasound("predict", screen, tmp_path / "v.nii.gz", "--out", tmp_path / "out") == 2
    assert "a volume of 4 slices, not an ultrasound picture or cine loop" in capsys.readouterr().err
    assert ultrasound("predict", tmp_path / "a.dcm", "--out", tmp_path / "out") == 2
    assert "is no bundle" in capsys.readouterr().err
    assert ultrasound("predict", screen, "--out", tmp_path / "out") == 2
    assert ultrasound("evaluate", "--data", tmp_path) == 2
    assert ultrasound("predict", screen, tmp_path / "a.dcm", "--out", tmp_path / "out", "--batch", "0") == 2
