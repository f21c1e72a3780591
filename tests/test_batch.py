"""Batches of files, outputs that are whole or absent, and flags of settings."""

from __future__ import annotations

import csv
import errno
import os
import signal
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import pytest

from core import batch, files, flags, jobs
from core.batch import Done, Failure
from core.errors import FileError, InputError, SettingError, UnknownNameError
from core.files import DiskFullError


def _work(offset: int, item: int) -> int:
    if item == 3:
        raise InputError("3.txt: is bad")
    if item == 4:
        raise ZeroDivisionError("inside\n a package")
    if item == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return item + offset


def _setup(offset: int) -> partial[int]:
    return partial(_work, offset)


def test_good_items_are_finished_and_bad_ones_told() -> None:
    answers = list(batch.each([1, 3, 4, 2], lambda: _setup(10)))
    assert [a.result if isinstance(a, Done) else a.error for a in answers] == [
        11, "3.txt: is bad", "ZeroDivisionError: inside a package", 12,
    ]  # fmt: skip


def test_workers_give_the_same_in_order() -> None:
    items = [2, 3, 1, 7, 4, 6]
    alone = [(type(a), a.item) for a in batch.each(items, partial(_setup, 1))]
    spread = list(batch.each(items, partial(_setup, 1), workers=2))
    assert [(type(a), a.item) for a in spread] == alone
    assert [a.result for a in spread if isinstance(a, Done)] == [3, 2, 8, 7]


def test_a_killed_worker_costs_its_neighbours_only() -> None:
    items = [1, 2, 5, *range(10, 20)]
    answers = list(batch.each(items, partial(_setup, 0), workers=2))
    assert len(answers) == len(items)
    lost = [a for a in answers if isinstance(a, Failure)]
    assert "5" in {a.item for a in lost}
    assert all("worker was ended" in a.error for a in lost)
    assert len(lost) < 6
    assert isinstance(answers[-1], Done)


def test_a_full_disk_ends_the_batch() -> None:
    def work(item: int) -> int:
        raise DiskFullError("out.png", "the disk is full, nothing was written")

    with pytest.raises(DiskFullError):
        list(batch.each([1, 2], lambda: work))


def test_log_writes_failures_and_forgets_mended_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with batch.Log(3, tmp_path) as log:
        log.add(Done("a", 1, 0.1), "a is fine")
        log.add(Failure("b.nii", "b.nii: is cut off, badly"))
        log.add(Failure("c.nii", "c.nii: is missing"))
    assert log.code == 1
    rows = list(csv.DictReader((tmp_path / batch.FAILURES).open()))
    assert rows == [
        {"item": "b.nii", "error": "b.nii: is cut off, badly"},
        {"item": "c.nii", "error": "c.nii: is missing"},
    ]
    told = capsys.readouterr()
    assert "[1/3] a is fine" in told.out
    assert "2 of 3 files failed" in told.err
    with batch.Log(1, tmp_path) as log:
        log.add(Done("b", 1, 0.1))
    assert log.code == 0
    assert not (tmp_path / batch.FAILURES).exists()


def _fail(path: Path, error: Exception) -> None:
    with files.aside(path) as part:
        part.write_text("half")
        raise error


def test_aside_is_whole_or_absent(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"
    with files.aside(path) as part:
        assert part.suffix == ".txt"
        part.write_text("one")
        assert not path.exists()
    assert path.read_text() == "one"
    with pytest.raises(ValueError, match="stop"):
        _fail(path, ValueError("stop"))
    assert path.read_text() == "one"
    assert [p.name for p in path.parent.iterdir()] == ["a.txt"]


def test_aside_replaces_folders(tmp_path: Path) -> None:
    for content in ("one", "two"):
        with files.aside(tmp_path / "d") as part:
            part.mkdir()
            (part / "a").write_text(content)
    assert (tmp_path / "d" / "a").read_text() == "two"
    assert [p.name for p in tmp_path.iterdir()] == ["d"]


def test_a_full_disk_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with pytest.raises(DiskFullError, match=r"a.txt: the disk is full, nothing was written; free"):
        _fail(path, OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(FileError, match="cannot be written; name another"):
        _fail(path, OSError(errno.EACCES, "Permission denied"))
    with pytest.raises(FileNotFoundError):
        _fail(path, FileNotFoundError(errno.ENOENT, "other"))
    assert not list(tmp_path.iterdir())


@dataclass(frozen=True)
class Knobs:
    """Settings.

    Attributes:
        rate: how fast.
        sizes: two of them.
        deep: whether deep.
        kind: which.
    """

    rate: float = 1.0
    sizes: tuple[int, int] = (1, 2)
    deep: bool = True
    kind: Literal["a", "b"] = "a"


KnobFlags = flags.optional(Knobs, "knobs")
_NONE = KnobFlags()


def test_flags_win_over_file_and_preset() -> None:
    table = {"kind": "b", "rate": 3}
    given = KnobFlags(sizes=(5, 6), deep=False)
    assert flags.settle(Knobs(rate=2.0), table, given) == Knobs(3.0, (5, 6), False, "b")
    assert flags.settle(Knobs(rate=2.0), {}, _NONE) == Knobs(2.0)
    with pytest.raises(UnknownNameError, match=r"'rat'; did you mean rate"):
        flags.settle(Knobs(), {"rat": 1}, _NONE)
    with pytest.raises(SettingError):
        flags.settle(Knobs(), {"kind": "c"}, _NONE)


def test_tables_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text("[recipe]\nlr = 0.1\n")
    assert flags.table(path, "recipe", "options") == {"recipe": {"lr": 0.1}, "options": {}}
    assert flags.table(None, "recipe") == {"recipe": {}}
    with pytest.raises(FileError, match=r"run.toml: has the entry 'recipe'; it holds the tables \[options\]"):
        flags.table(path, "options")
    with pytest.raises(FileError, match="no such settings file"):
        flags.table(tmp_path / "none.toml", "recipe")
    path.write_text("[recipe\n")
    with pytest.raises(FileError, match="is not a TOML file"):
        flags.table(path, "recipe")


def test_pairs() -> None:
    assert flags.pairs(["a=1", "b=[1, 2]", "c = true", "d=swin/tiny", 'e="x=y"']) == {
        "a": 1, "b": [1, 2], "c": True, "d": "swin/tiny", "e": "x=y",
    }  # fmt: skip
    with pytest.raises(SettingError, match="NAME=VALUE"):
        flags.pairs(["depth"])
    assert "deep" not in flags.optional(Knobs, without=["deep"]).__annotations__


class _Item:
    def __init__(self, path: Path) -> None:
        self.id, self.paths = path.stem, (path,)


def _copied(job: jobs.Jobs, seen: list[str], item: _Item) -> str:
    (path,) = item.paths
    text = path.read_text()
    if text == "bad":
        raise FileError(path, "is bad", "give a good one")
    seen.append(item.id)
    out = job.out / f"{item.id}.txt"
    out.write_text(text)
    job.finish(item, [out], length=len(text))
    return item.id


def test_jobs_go_on_and_see_what_changed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inputs = [tmp_path / f"{n}.in" for n in "abc"]
    for file in inputs:
        file.write_text(file.stem * 3)
    inputs[1].write_text("bad")
    items = [_Item(f) for f in inputs]
    out = tmp_path / "out"
    out.mkdir()
    job, seen = jobs.Jobs(out, jobs.key_of({"tile": 3})), []
    assert jobs.run(items, lambda: partial(_copied, job, seen), job) == 1
    assert seen == ["a", "c"]
    assert "b.in: is bad" in (out / batch.FAILURES).read_text()
    assert [(id, note["length"]) for id, note in job.notes(items)] == [("a", 3), ("c", 3)]
    inputs[1].write_text("good")
    assert jobs.run(items, lambda: partial(_copied, job, seen), job) == 0
    assert seen == ["a", "c", "b"]  # the finished ones were not done again
    assert not (out / batch.FAILURES).exists()
    assert "2 of 3 are done already" in capsys.readouterr().out
    (out / "a.txt").unlink()  # a result that is gone, a file that changed, other settings: again
    inputs[2].write_text("changed")
    assert jobs.run(items, lambda: partial(_copied, job, seen), job) == 0
    assert seen[3:] == ["a", "c"]
    other = jobs.Jobs(out, jobs.key_of({"tile": 4}))
    assert not any(other.done(i) for i in items)
    assert list(other.notes(items)) == []


def test_the_error_of_a_single_item_is_the_answer(tmp_path: Path) -> None:
    file = tmp_path / "b.in"
    file.write_text("bad")
    job = jobs.Jobs(tmp_path, "k")
    with pytest.raises(FileError, match=r"b\.in: is bad"):
        jobs.run([_Item(file)], lambda: partial(_copied, job, []), job)
    assert not job.done(_Item(file))
