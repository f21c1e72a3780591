"""Runs of training from outside: learning, ending, going on, refusing. The toy is tests/training_toy.py."""

from __future__ import annotations

import csv
import io
import pickletools
import signal
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("lightning")
HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
import training_toy as toy
from training_toy import FULL, interrupted, last, same

from core.errors import FileError, SettingError
from core.training.keeper import DivergedError
from core.training.store import read


def test_it_learns_and_loads_the_best(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    recipe = replace(toy.RECIPE, epochs=12, lr=0.05)
    fitted, module = toy.train(tmp_path, recipe)
    scores = [row["val/score"] for row in fitted.history]
    assert max(scores) > 0.85
    assert fitted.score == max(scores)
    assert fitted.best_epoch == scores.index(max(scores)) + 1
    assert fitted.resumed_from is None
    best = read(fitted.best)
    assert not same(best["state_dict"], dict(module.state_dict()))
    data = toy.Points(32, 0.0)
    assert (module.eval()(data.x).argmax(1) == data.y).float().mean() == pytest.approx(fitted.score)
    said = capfd.readouterr()
    assert said.err == ""  # nothing of Lightning's
    lines = said.out.splitlines()
    assert len(lines) == 12
    assert lines[2].startswith("epoch 3/12  loss ")
    assert "left" in lines[2]
    with (tmp_path / "logs" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(r["val/score"]) for r in rows] == pytest.approx(scores)
    assert list((tmp_path / "logs").glob("events*"))


def test_a_bar_on_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    toy.train(tmp_path)
    pictures = screen.getvalue().split("\r")
    assert "100%" in pictures[-1]
    assert "epoch 4/4" in pictures[-1]
    assert "best val/score" in pictures[-1]
    assert any("left" in p and "validating" in p for p in pictures)
    assert screen.getvalue().count("\n") == 1  # no lines beside it


def test_a_finished_run_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, trained = toy.train(tmp_path)
    capsys.readouterr()
    module = toy.build()
    again, _ = toy.train(tmp_path, module=module)
    assert "already trained" in capsys.readouterr().out
    assert module.seen == []
    assert again.history == first.history
    assert not same(dict(module.state_dict()), dict(trained.state_dict()))


def test_another_recipe_or_other_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        toy.train(tmp_path, module=interrupted(8))
    with pytest.raises(SettingError, match=r"another recipe \(lr 0\.02, now 0\.01; .*--out"):
        toy.train(tmp_path, replace(toy.RECIPE, lr=0.01, ema=0.9))
    with pytest.raises(SettingError, match=r"precision 32, now bf16-mixed"):
        toy.train(tmp_path, precision="bf16")
    with pytest.raises(SettingError, match=r"other data or settings \(cases 3, now 4\)"):
        toy.train(tmp_path, fingerprint={"cases": 4})
    toy.train(tmp_path, replace(toy.RECIPE, save_every=3.0))  # of no weight for the answer
    with pytest.raises(SettingError, match="epochs 4, now 5"):
        toy.train(tmp_path, replace(toy.RECIPE, epochs=5))


def test_checkpoints_hold_no_classes(tmp_path: Path) -> None:
    toy.train(tmp_path, replace(FULL, epochs=1))
    for name in ("last.ckpt", "best.ckpt"):
        with zipfile.ZipFile(tmp_path / "checkpoints" / name) as archive:
            inner = next(n for n in archive.namelist() if n.endswith("data.pkl"))
            asked = {str(arg) for op, arg, _ in pickletools.genops(archive.read(inner)) if op.name == "GLOBAL"}
        assert {
            a for a in asked if not a.startswith(("torch ", "torch._utils _rebuild", "collections OrderedDict"))
        } == set()
        torch.load(tmp_path / "checkpoints" / name, weights_only=True)


def test_going_on_never_runs_a_pickle(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        toy.train(tmp_path, module=interrupted(8))
    path = tmp_path / "checkpoints" / "last.ckpt"
    content = torch.load(path, weights_only=True)
    content["evil"] = toy.Points(2)
    torch.save(content, path)
    with pytest.raises(FileError, match=r"last\.ckpt"):
        toy.train(tmp_path)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(FileError, match="cut off"):
        toy.train(tmp_path)


def test_a_state_that_is_no_plain_value_is_named(tmp_path: Path) -> None:
    module = toy.build()
    module.on_save_checkpoint = lambda checkpoint: checkpoint.update(extra=[1, toy.Points(2)])
    with pytest.raises(TypeError, match=r"checkpoint\.extra\[1\] holds a training_toy\.Points"):
        toy.train(tmp_path, module=module)
    assert not list((tmp_path / "checkpoints").glob("*last*"))


def test_a_full_disk(tmp_path: Path) -> None:
    import resource

    old, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, old[1]))
        with pytest.raises(FileError, match="disk is full"):
            toy.train(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)
    assert not list((tmp_path / "checkpoints").glob("*.ckpt"))


def test_a_time_limit(tmp_path: Path) -> None:
    recipe = replace(toy.RECIPE, epochs=1000, minutes=1.5 / 60, min_lr=1e-4)
    begin = time.monotonic()
    fitted, _ = toy.train(tmp_path, recipe, module=toy.build(slow=0.02))
    assert time.monotonic() - begin < 6
    assert 1 < fitted.epochs < 1000
    assert "val/score" in fitted.history[-1]  # validated after the last step, wherever it was
    assert fitted.best.is_file()
    rates = [row["lr"] for row in fitted.history]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < 0.1 * recipe.lr  # the schedule follows the clock
    again, module = toy.train(tmp_path, recipe)
    assert module.seen == []
    assert again.epochs == fitted.epochs


def test_no_number_any_more(tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match="epoch 1"):
        toy.train(
            tmp_path,
            replace(toy.RECIPE, lr=1e30, optimizer="sgd", momentum=0.99, epochs=2),
            module=toy.build(norm=False),
        )


def test_patience(tmp_path: Path) -> None:
    recipe = replace(toy.RECIPE, lr=1e-12, epochs=50, patience=3, weight_decay=0.0)
    module = toy.Toy(norm=False)
    fitted, _ = toy.train(tmp_path, recipe, module=module)
    assert (fitted.best_epoch, fitted.epochs) == (1, 4)


def test_without_a_score_the_last_epoch_is_kept(tmp_path: Path) -> None:
    fitted, module = toy.train(tmp_path, monitor=None)
    assert fitted.best_epoch == 4
    assert not same(dict(module.state_dict()), last(tmp_path)["state_dict"])
    with pytest.raises(SettingError, match=r"'val/dice' was not logged; logged were: train/loss, val/score"):
        toy.train(tmp_path / "b", monitor="val/dice")
    with pytest.raises(SettingError, match="patience needs a score"):
        toy.train(tmp_path / "c", replace(toy.RECIPE, patience=2), monitor=None)


def test_lower_is_better(tmp_path: Path) -> None:
    fitted, _ = toy.train(tmp_path, monitor="train/loss", mode="min")
    assert fitted.score == min(row["train/loss"] for row in fitted.history)


def test_workers_give_the_same_batches(tmp_path: Path) -> None:
    orders = []
    for workers in (0, 2):
        recipe = replace(toy.RECIPE, workers=workers)
        batches = list(toy.loader(toy.Points(20, 0.0), recipe))
        orders.append(torch.cat([x for x, _ in batches]))
    assert torch.equal(*orders)
    assert len(orders[0]) == 16  # the incomplete batch is left out
