"""Bags through the pipeline and the commands: answers, batches with bad bags, resuming, what is refused."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_caption_data import patch
from test_caption_training import SMALL, slides

from apps.__main__ import main
from apps.medical.pathology_caption import evaluate, inputs, model
from apps.medical.pathology_caption import predict as predictions
from apps.medical.pathology_caption.options import TASK
from apps.medical.pathology_caption.pipeline import Pipeline
from core import bundle
from core.config import as_table
from core.errors import FileError, InputError

CLASSES = ("checked", "smooth")
TALKS = 4  # a seed whose random network writes words; most write none
WORDS = ("tissue", "plain", "striped", "checks", "with", "without")
CAPTION = ["medical", "pathology", "caption"]


def bundled(
    folder: Path, *, seed: int = TALKS, classes: tuple[str, ...] = CLASSES, writes: bool = True, **report: Any
) -> Path:
    """A small network with random weights, which answers something all the same."""
    torch.manual_seed(seed)
    settings = {**SMALL, "classes": len(classes), "longest": 8}
    settings |= {"words": WORDS} if writes else {"language": "none"}
    config = model.configured("gnn_vitcap", settings)
    network = model.build(config).eval()
    told = bundle.Settings(
        TASK, bundle.Network("gnn_vitcap", as_table(config)), inputs.contract(),
        bundle.Output({name: i for i, name in enumerate(classes)}), bundle.Tile((32, 32), 0.0),
    )  # fmt: skip
    bundle.save(folder, network, told, report)
    return folder


def bag(folder: Path, count: int = 5, seed: int = 0) -> Path:
    for i in range(count):
        patch(folder / f"{i}.png", seed + i)
    return folder


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def run(*words: object) -> int:
    return main([*CAPTION, *map(str, words)])


def test_a_folder_is_described(tmp_path: Path) -> None:
    answer = Pipeline.load(bundled(tmp_path / "b"), device="cpu")(bag(tmp_path / "slide"))
    assert answer.caption
    assert set(answer.caption.lower().replace(".", "").split()) <= set(WORDS)
    assert sum(answer.described.probabilities) == pytest.approx(1)
    assert answer.label in CLASSES
    assert sum(r["weight"] for r in answer.patch_rows()) == pytest.approx(1, abs=1e-5)
    assert sum(r["weight"] for r in answer.representative_rows()) == pytest.approx(1, abs=1e-5)
    assert answer.draw().ndim == 3
    document = answer.as_dict()
    assert json.loads(json.dumps(document)) == document
    assert document["notice"] == "research use, not a medical device"


def test_the_order_of_patches_does_not_matter(tmp_path: Path) -> None:
    pipeline = Pipeline.load(bundled(tmp_path / "b"), device="cpu")
    paths = sorted(bag(tmp_path / "slide").iterdir())
    one, other = pipeline(paths), pipeline(paths[::-1])
    assert one.caption == other.caption
    np.testing.assert_allclose(one.described.probabilities, other.described.probabilities, atol=1e-6)
    weights = {r["patch"]: r["weight"] for r in one.patch_rows()}
    for row in other.patch_rows():
        assert row["weight"] == pytest.approx(weights[row["patch"]], abs=1e-6)


def test_arrays_and_one_patch(tmp_path: Path) -> None:
    pipeline = Pipeline.load(bundled(tmp_path / "b"), device="cpu")
    noise = np.random.default_rng(0).integers(0, 255, (40, 50, 3), np.uint8)
    answer = pipeline([noise])
    assert answer.names == ("patch 1",)
    assert len(answer.shown) == 1
    with pytest.raises(InputError, match="without patches"):
        pipeline([])
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileError, match="holds no patch"):
        pipeline(tmp_path / "empty")


def test_results_are_saved_in_four_forms(tmp_path: Path) -> None:
    answer = Pipeline.load(bundled(tmp_path / "b"), device="cpu")(bag(tmp_path / "slide"))
    for name in ("a.json", "a.csv", "a.txt", "a.png"):
        answer.save(tmp_path / name)
        assert (tmp_path / name).stat().st_size
    assert (tmp_path / "a.txt").read_text().strip() == answer.caption
    with pytest.raises(FileError, match=r"use \.json"):
        answer.save(tmp_path / "a.doc")
    wordless = Pipeline.load(bundled(tmp_path / "w", seed=0), device="cpu")(bag(tmp_path / "slide"))
    wordless.save(tmp_path / "w.txt")  # it could write, and wrote nothing
    assert (tmp_path / "w.txt").read_text() == "\n"
    silent = Pipeline.load(bundled(tmp_path / "c", writes=False), device="cpu")(bag(tmp_path / "slide"))
    assert silent.caption == ""
    with pytest.raises(FileError, match="writes no caption"):
        silent.save(tmp_path / "b.txt")


def test_predict_finishes_the_good_and_lists_the_bad(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = tmp_path / "slides"
    bag(home / "a")
    bag(home / "b", seed=20)
    (home / "b" / "broken.png").write_bytes(b"no picture")
    bag(home / "c", seed=40)
    out = tmp_path / "out"
    given = ("predict", bundled(tmp_path / "b"), home, "--out", out, "--device", "cpu")
    assert run(*given) == 1
    assert [r["bag"] for r in rows(out / "predictions.csv")] == ["a", "c"]
    assert "broken.png" in rows(out / "failures.csv")[0]["error"]
    assert {r["bag"] for r in rows(out / "patches.csv")} == {"a", "c"}
    assert {p.name for p in (out / "overlays").iterdir()} == {"a.png", "c.png"}
    capsys.readouterr()
    (home / "b" / "broken.png").unlink()
    before = (out / "bags" / "a.json").stat().st_mtime_ns
    assert run(*given) == 0  # goes on: only what was bad is worked on
    assert (out / "bags" / "a.json").stat().st_mtime_ns == before
    assert [r["bag"] for r in rows(out / "predictions.csv")] == ["a", "b", "c"]
    assert not (out / "failures.csv").exists()


def test_two_networks_answer_together(tmp_path: Path) -> None:
    folders = [bundled(tmp_path / n, seed=i) for n, i in (("a", TALKS), ("b", 6))]
    given = bag(tmp_path / "slide")
    one, two, both = (Pipeline.load(*f, device="cpu")(given) for f in ([folders[0]], [folders[1]], folders))
    mean = np.mean([one.described.probabilities, two.described.probabilities], 0)
    np.testing.assert_allclose(both.described.probabilities, mean, atol=1e-6)
    with pytest.raises(InputError, match="other classes"):
        Pipeline.load(folders[0], bundled(tmp_path / "c", classes=("x", "y")), device="cpu")


def test_a_bundle_that_cannot_answer_is_refused(tmp_path: Path) -> None:
    folder = bundled(tmp_path / "b", untrained="all but its patch encoder")
    with pytest.raises(InputError, match="begin a training"):
        Pipeline.load(folder, device="cpu")


def test_bags_are_found_in_folders_tables_and_files(tmp_path: Path) -> None:
    bag(tmp_path / "a")
    bag(tmp_path / "set" / "a")
    (tmp_path / "list.csv").write_text("image,bag\na/0.png,x\n")
    found = predictions.find([tmp_path / "a", tmp_path / "set", tmp_path / "list.csv", tmp_path / "a" / "1.png"])
    assert [b.id for b in found] == ["a", "a-2", "x", "patches"]
    with pytest.raises(FileError, match="no such file"):
        predictions.find([tmp_path / "none"])
    with pytest.raises(InputError, match="name folders"):
        predictions.find([])


def test_scores_stand_beside_simple_captions(tmp_path: Path) -> None:
    data = slides(tmp_path / "data", 12, parts=("train", "train", "test"))
    pipeline = Pipeline.load(bundled(tmp_path / "b"), device="cpu")
    bags = [b for b in data.bags if b.part == "test"]
    scored = evaluate.score(pipeline, data, bags)
    assert set(scored.baselines) == {evaluate.MAJORITY, evaluate.NEAREST}
    assert len(scored.answers) == len(bags)
    told = evaluate.table(scored)
    assert "nearest-neighbour caption (B)" in told
    assert "auroc" in told
    evaluate.save(scored, tmp_path / "scores", {})
    assert len(rows(tmp_path / "scores" / "cases.csv")) == len(bags)
    report = json.loads((tmp_path / "scores" / "report.json").read_text())
    assert {s["metric"] for s in report["captions"]["scores"]} >= {"bleu4", "meteor", "cider"}
    assert report["baselines"][evaluate.MAJORITY]["network_minus_it"]
    assert evaluate.paired(scored, scored)[0]["difference"] == 0


def test_what_cannot_be_compared(tmp_path: Path) -> None:
    data = slides(tmp_path / "data", 4)
    pipeline = Pipeline.load(bundled(tmp_path / "b", classes=("x", "y")), device="cpu")
    with pytest.raises(InputError, match="has the classes checked, smooth, the bundle answers x, y"):
        evaluate.score(pipeline, data, data.bags)
    silent = Pipeline.load(bundled(tmp_path / "c", writes=False), device="cpu")
    unknown = [replace(b, label="") for b in data.bags]
    with pytest.raises(InputError, match="answers classes, and no bag has a known one"):
        evaluate.score(silent, data, unknown)


def test_commands_say_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = bundled(tmp_path / "b")
    (tmp_path / "empty").mkdir()
    for words, said in (
        (("predict", folder, tmp_path / "empty", "--out", tmp_path / "o"), "holds no bag of patches"),
        (("evaluate", folder, "--data", tmp_path / "none"), "no such folder"),
        (("predict", folder, bag(tmp_path / "a"), "--out", tmp_path / "o", "--beams", 0), "at least 1"),
        (("inspect", tmp_path / "empty"), "holds no"),
    ):
        assert run(*words) == 2
        told = capsys.readouterr().err.strip()
        assert said in told
        assert "\n" not in told


def test_inspect_counts_patches(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("inspect", bag(tmp_path / "a")) == 0
    assert "5" in capsys.readouterr().out
