"""Training of medical segmentation: patches, plans, learning, going on after a stop."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from test_medical_segment import NETWORK, dataset, segment

from apps.medical.segmentation import augment, data, inputs, prepare, train
from apps.medical.segmentation.labels import UNKNOWN
from apps.medical.segmentation.options import PUBLISHED, Options
from core import bundle
from core.errors import FileError, InputError, SettingError

SMALL = [f"{k}={json.dumps(v)}" for k, v in NETWORK.items() if k not in ("backbone", "overrides")]
QUICK = ["--network", "unet", "--backbone", "convnext/v2_atto", "--patch", "32", "32", "--recipe.batch", "4"]


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> tuple[data.Data, list[prepare.Prepared], prepare.Plan]:
    folder = dataset(tmp_path_factory.mktemp("sets") / "d", 3, ignore=True)
    found = data.find(folder)
    plan = prepare.plan(found, found.train)
    return found, prepare.prepare(found, found.train, plan.input, folder / "cache"), plan


def test_plan_follows_the_data(cases: tuple[data.Data, list[prepare.Prepared], prepare.Plan]) -> None:
    found, prepared, plan = cases
    assert found.classes == {"background": 0, "bright": 1, "dark": 2}
    assert found.ignore == 3
    assert plan.input.channels == ("MR",)
    assert plan.input.plane == "axial"  # across the four-millimetre slices
    assert plan.input.normalise == "item"
    assert plan.input.spacing == pytest.approx((1.22, 1.22), abs=0.01)
    assert plan.patch == (64, 64)  # 40 x 36, up to multiples of 32
    image, target = prepared[0].image, prepared[0].target
    assert image.shape == (4, 1, *target.shape[1:])
    assert abs(float(image.mean())) < 0.05
    assert float(image.std()) == pytest.approx(1, abs=0.05)
    assert set(np.unique(target)) == {0, 1, 2, UNKNOWN}
    for k, rows in enumerate(prepared[0].rows, 1):
        assert list(rows) == np.flatnonzero((target == k).any(axis=(1, 2))).tolist()
    with pytest.raises(SettingError, match="multiple of 32"):
        prepare.plan(found, found.train, patch=(30, 32))


def test_ct_and_colour_have_fixed_ranges(tmp_path: Path) -> None:
    folder = dataset(tmp_path / "ct")
    path = folder / "dataset.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "channel_names": {"0": "CT"}}))
    found = data.find(folder)
    plan = prepare.plan(found, found.train)
    assert plan.input.normalise == "fixed"
    assert plan.input.clip is not None
    low, high = plan.input.clip
    assert 10 < low < 60  # of dark and bright labelled voxels: around 40 and 180, noise 8
    assert 180 < high < 220
    assert low < plan.input.mean[0] < high


@pytest.mark.parametrize("kind", ["none", "light", "nnunet"])
def test_patches_hang_on_their_number_alone(
    kind: augment.Kind, cases: tuple[data.Data, list[prepare.Prepared], prepare.Plan]
) -> None:
    patches = augment.Patches(cases[1], (32, 64), kind, seed=3)
    again = augment.Patches(cases[1], (32, 64), kind, seed=3)
    images = []
    for i in range(16):  # enough for every transform to have its turn
        one, other = patches[i], again[i]
        assert torch.equal(one["image"], other["image"])
        assert torch.equal(one["target"], other["target"])
        assert one["image"].shape == (1, 32, 64)
        assert one["image"].isfinite().all()
        assert set(one["target"].unique().tolist()) <= {0, 1, 2, UNKNOWN}
        images.append(one["image"])
    assert not torch.equal(images[0], images[1])
    assert not torch.equal(augment.Patches(cases[1], (32, 64), kind, seed=4)[0]["image"], images[0])


def test_patches_carry_image_and_target_alike(cases: tuple[data.Data, list[prepare.Prepared], prepare.Plan]) -> None:
    """Bright squares stay under class 1 whatever was done to the patch; what lies outside the slice is unknown."""
    patches = augment.Patches(cases[1], (64, 64), "light", seed=0)
    bright, rest = [], []
    for i in range(12):
        item = patches[i]
        image, target = item["image"][0], item["target"]
        if (target == 1).sum() > 30:
            bright.append(float(image[target == 1].mean()))
            rest.append(float(image[target == 0].mean()))
        assert (target == UNKNOWN).any()  # slices are smaller than 64 x 64
    assert len(bright) > 6
    assert min(b - r for b, r in zip(bright, rest, strict=True)) > 1


def test_padding_is_mirrored_in_both() -> None:
    image = torch.arange(12.0).view(1, 1, 3, 4)
    padded = inputs.padded(image, 4)
    assert padded.shape == (1, 1, 4, 4)
    assert torch.equal(padded[..., 3, :], image[..., 1, :])
    assert inputs.padded(image, 1, 32).shape == (1, 1, 32, 32)
    piece, classes = augment._cut(image[0].numpy(), np.zeros((3, 4), np.uint8), (5, 4), None, np.random.default_rng(0))
    assert np.array_equal(piece[0, 1:4], image[0, 0].numpy())
    assert np.array_equal(piece[0, 0], image[0, 0, 1].numpy())
    assert classes[:, 0].tolist() == [UNKNOWN, 0, 0, 0, UNKNOWN]


def test_supervision_weights_are_the_cards() -> None:
    assert train.supervision(4) == (1.0, 0.5, 0.25, 0.0)
    assert train.supervision(1) == (1.0,)


def test_published_recipe_is_the_cards() -> None:
    r = PUBLISHED
    assert (r.optimizer, r.lr, r.weight_decay, r.eps, r.betas) == ("adamw", 1e-4, 0.05, 1e-8, (0.9, 0.999))
    assert (r.schedule, r.interval, r.min_lr, r.epochs, r.steps_per_epoch) == ("cosine", "epoch", 1e-6, 1000, 250)
    assert r.freeze_epochs == 10
    assert r.decay_norms


def test_folds_and_groups(tmp_path: Path) -> None:
    folder = dataset(tmp_path / "d", 5)
    table = tmp_path / "groups.csv"
    table.write_text("case,group\n" + "".join(f"Tr{i},p{i // 2}\n" for i in range(5)) + "Ts0,t\nTs1,t\n")
    found = data.find(folder, groups=table)
    for part in train.parts(found, Options(folds=3), 0, tmp_path / "run"):
        assert not {c.group for c in part.train} & {c.group for c in part.val}
    held = [c.id for part in train.parts(found, Options(folds=3), 0, tmp_path / "run") for c in part.val]
    assert sorted(held) == [f"Tr{i}" for i in range(5)]
    (one,) = train.parts(found, Options(validation=0.34), 0, tmp_path / "run")
    assert not {c.group for c in one.train} & {c.group for c in one.val}
    with pytest.raises(InputError, match="--folds is 2 to 3"):
        train.parts(found, Options(folds=4), 0, tmp_path / "run")
    table.write_text("case,group\nTr0,p\n")
    with pytest.raises(FileError, match="has no group for 6 cases"):
        data.find(folder, groups=table)


def test_it_learns_and_is_a_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = dataset(tmp_path / "d", 4), tmp_path / "run"
    words = [folder, "--out", out, *QUICK, "--recipe.epochs", "3", "--recipe.steps-per-epoch", "15", "--set", *SMALL]
    assert segment("train", *words) == 0
    report = json.loads((out / "report.json").read_text())
    assert report["epochs"] == 3
    assert not (out / "cache").exists()
    assert report["validation"]["mean"]["dice"]["mean"] > 0.6  # squares as bright as these are easy
    assert set(report["trained_on"]) | {c["id"] for c in report["validation"]["scores"]} == {f"Tr{i}" for i in range(4)}
    assert "dice: 2 |T and P|" in capsys.readouterr().out
    assert segment("evaluate", out, "--data", folder, "--out", tmp_path / "scores") == 0
    assert "mean" in capsys.readouterr().out
    rows = list(csv.DictReader((tmp_path / "scores" / "cases.csv").open()))
    assert {r["id"] for r in rows} == {"Ts0", "Ts1"}
    assert segment("compare", out, out, "--data", folder) == 0
    assert "+0.000" in capsys.readouterr().out
    # The same command again says that all is done; another recipe in the same folder is refused.
    assert segment("train", *words) == 0
    assert "already trained" in capsys.readouterr().out
    assert segment("train", *words, "--recipe.lr", "0.5") == 2
    assert "lr" in capsys.readouterr().err
    # A bundle is what another run may begin with.
    more = [folder, "--out", tmp_path / "run2", *QUICK, "--recipe.epochs", "1", "--recipe.steps-per-epoch", "1"]
    assert segment("train", *more, "--set", *SMALL, "--init", out) == 0


def test_folds_are_bundles_and_their_mean_predicts(tmp_path: Path) -> None:
    folder, out = dataset(tmp_path / "d", 3), tmp_path / "run"
    words = ["--recipe.epochs", "1", "--recipe.steps-per-epoch", "2", "--folds", "2", "--set", *SMALL]
    assert segment("train", folder, "--out", out, *QUICK, *words) == 0
    assert [p.name for p in sorted(out.iterdir())] == ["fold_0", "fold_1"]
    seen = [set(json.loads((out / f"fold_{k}" / "report.json").read_text())["trained_on"]) for k in (0, 1)]
    assert not set.intersection(*seen)
    assert segment("predict", out, folder / "imagesTs", "--out", tmp_path / "masks") == 0
    assert {p.name for p in (tmp_path / "masks").glob("*.nii.gz")} == {"Ts0.nii.gz", "Ts1.nii.gz"}
    steps = list(csv.DictReader((tmp_path / "masks" / "applied.csv").open()))
    assert any("axes reordered" in r["applied"] for r in steps)


def test_faults_before_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = dataset(tmp_path / "d", 3)
    assert segment("train", folder, "--out", tmp_path / "r", "--recipe", "publshed") == 2
    assert "did you mean published" in capsys.readouterr().err
    assert segment("train", folder, "--out", tmp_path / "r", "--network", "swin_umambo") == 2
    assert "did you mean swin_umamba" in capsys.readouterr().err
    settings = tmp_path / "run.toml"
    settings.write_text('[options]\nnetwork = "unet"\nbackbne = "swin/tiny"\n')
    assert segment("train", folder, "--out", tmp_path / "r", "--config", settings) == 2
    assert "did you mean backbone" in capsys.readouterr().err
    (folder / "labelsTr" / "Tr1.nii.gz").unlink()
    assert segment("train", folder, "--out", tmp_path / "r") == 2
    assert "Tr1.nii.gz: is missing" in capsys.readouterr().err


def _started(folder: Path, out: Path, until: str) -> subprocess.Popen[str]:
    """A training of many epochs in a process of its own, read until a line of it holds `until`."""
    words = [str(w) for w in (folder, "--out", out, *QUICK, "--recipe.epochs", "4", "--recipe.steps-per-epoch", "10")]
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "apps", "medical", "segment", "train", *words, "--set", *SMALL],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stdout is not None
    for line in process.stdout:
        if until in line:
            return process
    raise AssertionError(f"ended without {until!r}")


@pytest.mark.parametrize("kill", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_run_goes_on(kill: signal.Signals, tmp_path: Path) -> None:
    folder, out = dataset(tmp_path / "d", 3), tmp_path / "run"
    process = _started(folder, out, "epoch 1/4")
    time.sleep(0.2)
    process.send_signal(kill)
    told, _ = process.communicate(timeout=120)
    assert process.returncode == (130 if kill == signal.SIGINT else -9), told
    assert not (out / "report.json").exists()
    process = _started(folder, out, "going on")
    told, _ = process.communicate(timeout=180)
    assert process.returncode == 0, told
    assert "epoch 1/4" not in told
    assert "epoch 4/4" in told
    assert bundle.load(out).report["epochs"] == 4
