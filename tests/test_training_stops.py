"""Runs that end early, by a signal, a kill or a crash, and are gone on with."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("lightning")
HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
import training_toy as toy
from training_toy import FULL, interrupted, last, same

from core.training.store import read


@pytest.fixture(autouse=True)
def interrupts() -> Iterator[None]:
    """Python's own handler: a shell that started the tests in the background has them ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    ("recipe", "after"),
    [
        (FULL, 8),  # inside the second epoch
        (FULL, 6),  # in its first step
        (replace(FULL, accumulate=2, steps_per_epoch=9), 11),  # in the first half of a step, of an uneven epoch
        (replace(FULL, sharpness=0.05, freeze_epochs=2, optimizer="sgd"), 15),
        (FULL, 11),  # in the last step of an epoch: it is completed first
    ],
)
def test_going_on_equals_never_stopping(tmp_path: Path, recipe: Any, after: int) -> None:
    _, module = toy.train(tmp_path / "a", recipe)
    stopped = interrupted(after)
    with pytest.raises(KeyboardInterrupt):
        toy.train(tmp_path / "b", recipe, module=stopped)
    assert len(stopped.seen) < len(module.seen)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    other = toy.build()
    rest, _ = toy.train(tmp_path / "b", recipe, module=other)
    assert stopped.seen + other.seen == module.seen  # data order and augmentation
    a, b = last(tmp_path / "a"), last(tmp_path / "b")
    logged = ("train/loss",)  # Lightning's own mean knows only the steps of this process
    for document in (a, b):
        for row in document["glocal"]["history"]:
            for name in logged:
                row.pop(name)
    assert same(a, b) == []
    assert "optimizer_states" in a
    assert not same(dict(module.state_dict()), dict(other.state_dict()))
    assert rest.resumed_from == (2 if after == 11 and recipe.accumulate == 1 else 1)


def start(out: Path, *settings: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(HERE / "training_toy.py"), str(out), *settings]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_ended_processes(tmp_path: Path) -> None:
    killed, asked = start(tmp_path / "k", "slow=0.2"), start(tmp_path / "c", "slow=0.2")
    try:
        waiting = {"k": (killed, signal.SIGKILL), "c": (asked, signal.SIGINT)}
        end = time.monotonic() + 120
        while waiting:
            assert time.monotonic() < end
            time.sleep(0.02)
            for out, (process, number) in list(waiting.items()):
                if (tmp_path / out / "checkpoints" / "last.ckpt").exists():
                    process.send_signal(number)
                    del waiting[out]
        killed.communicate(timeout=30)
        _, complaint = asked.communicate(timeout=30)
    finally:
        killed.kill()
        asked.kill()
    assert killed.returncode == -signal.SIGKILL
    assert asked.returncode == 130, complaint
    assert "same command goes on" in complaint
    assert "Traceback" not in complaint
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as there
    _, module = toy.train(tmp_path / "a")
    (tmp_path / "k" / "checkpoints" / ".99999.part.last.ckpt").write_bytes(b"half")
    for out in ("k", "c"):
        kept = last(tmp_path / out)["glocal"]
        assert len(kept["history"]) >= 1
        fitted, other = toy.train(tmp_path / out)
        assert fitted.epochs == 4
        assert not same(dict(module.state_dict()), dict(other.state_dict()))
        assert not list((tmp_path / out / "checkpoints").glob(".*"))
    torch.set_num_threads(threads)


def test_an_interrupt_reaches_the_workers_too(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    recipe = replace(toy.RECIPE, workers=1, accumulate=5)  # the step needs more batches than lie ready
    module = toy.build(slow=0.05)
    step = module.training_step

    def training_step(batch: Any, batch_idx: int) -> Any:
        if len(module.seen) == 7:
            for process in (*multiprocessing.active_children(), multiprocessing.current_process()):
                assert process.pid is not None
                os.kill(process.pid, signal.SIGINT)  # as a terminal does
            time.sleep(0.2)
        return step(batch, batch_idx)

    object.__setattr__(module, "training_step", training_step)
    with pytest.raises(KeyboardInterrupt):
        toy.train(tmp_path, recipe, module=module)
    assert len(module.seen) == 11
    assert last(tmp_path)["glocal"]["inside"]
    assert capfd.readouterr().err.count("stopping") == 1


def test_a_second_interrupt_does_not_wait(tmp_path: Path) -> None:
    module = toy.build()
    step = module.training_step

    def training_step(batch: Any, batch_idx: int) -> Any:
        if len(module.seen) == 8:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        return step(batch, batch_idx)

    object.__setattr__(module, "training_step", training_step)
    with pytest.raises(KeyboardInterrupt):
        toy.train(tmp_path, module=module)
    assert len(module.seen) == 8
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert last(tmp_path)["glocal"]["epoch"] == 1  # of the first epoch's end


def test_a_polite_kill(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        toy.train(tmp_path, module=interrupted(8, signal.SIGTERM))
    assert ended.value.code == 143
    assert last(tmp_path)["glocal"]["inside"]


def test_saving_inside_a_long_epoch(tmp_path: Path) -> None:
    recipe = replace(toy.RECIPE, save_every=1e-6, epochs=2)
    module = toy.build()
    step = module.training_step

    def training_step(batch: Any, batch_idx: int) -> Any:
        if len(module.seen) == 4:
            raise RuntimeError("the machine broke")
        return step(batch, batch_idx)

    object.__setattr__(module, "training_step", training_step)
    with pytest.raises(RuntimeError, match="machine broke"):
        toy.train(tmp_path, recipe, module=module)
    other = toy.build()
    toy.train(tmp_path, recipe, module=other)
    _, whole = toy.train(tmp_path / "a", recipe)
    assert module.seen + other.seen == whole.seen


@pytest.mark.slow
def test_two_devices(tmp_path: Path) -> None:
    process = start(tmp_path, "devices=2", "epochs=2")
    said, complaint = process.communicate(timeout=300)
    assert process.returncode == 0, complaint
    assert "after 2 epochs" in said
    assert read(tmp_path / "checkpoints" / "last.ckpt")["global_step"] == 2 * 3
