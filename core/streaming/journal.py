"""Finished strips on disk, so that a run that was killed goes on where it stopped."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Protocol, runtime_checkable

from core.errors import FileError

_FORMAT = 1


@runtime_checkable
class Resumable(Protocol):
    """A sink that keeps rows from one run to the next, and so must know whether the next is the same."""

    def agree(self, **settings: Any) -> None:
        """What the rows depend on, told before `written` is asked."""
        ...

    def release(self) -> None:
        """Let go of the files after a failure; what is written stays."""
        ...


class Journal:
    """Rows finished so far and their encoded blocks, in the folder `NAME.part` beside the file NAME.

    `blocks.bin` holds the blocks one behind the other, `rows.txt` a line for each finished strip: the row behind it,
    the end of its blocks and their sizes. Blocks reach the disk before their line does: what has a line is whole.
    `settings.json` holds a hash of each setting, so that no name or path stands in it.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.folder = _folder(path)
        self.rows = 0
        self.sizes: list[list[int]] = []  # of the blocks of every strip
        self._path = path
        mine = _hashed(settings)
        try:
            self.folder.mkdir(exist_ok=True)
            self._lock = _lock(self.folder, path)
            other = _differs(self.folder, mine)
            if other != "":
                if other and _entries(self.folder):
                    said = f"{path}: the unfinished result beside it was made with another {other}; starting again"
                    warnings.warn(said, stacklevel=4)
                for name in ("rows.txt", "blocks.bin"):
                    (self.folder / name).unlink(missing_ok=True)
                replace(self.folder / "settings.json", json.dumps(mine, indent=1).encode())
            self._blocks: IO[bytes] = (self.folder / "blocks.bin").open("ab")
            self._lines: IO[bytes] = (self.folder / "rows.txt").open("ab")
            self._recover()
        except OSError as error:
            raise FileError(path, f"cannot be written ({_reason(error)})", "choose a folder that can") from None

    def append(self, row: int, blocks: Sequence[bytes | memoryview]) -> None:
        """Keep the blocks of the rows before `row`. Raises FileError where the disk does not take them."""
        try:
            for block in blocks:
                self._blocks.write(block)
            _sync(self._blocks)
            sizes = [len(block) for block in blocks]
            self._lines.write(f"{row} {self._blocks.tell()} {' '.join(map(str, sizes))}\n".encode())
            _sync(self._lines)
        except OSError as error:
            raise self.full(error) from None
        self.rows = row
        self.sizes.append(sizes)

    def read(self) -> Iterator[list[bytes]]:
        """The blocks of one strip after the other."""
        with (self.folder / "blocks.bin").open("rb") as file:
            for sizes in self.sizes:
                yield [file.read(size) for size in sizes]

    def full(self, error: OSError) -> FileError:
        """The one sentence for a disk that fails."""
        return FileError(
            self._path,
            f"could not be written behind row {self.rows} ({_reason(error)})",
            "make room and run the same command again: it goes on from there",
        )

    def remove(self) -> None:
        self.release()
        shutil.rmtree(self.folder, ignore_errors=True)

    def release(self) -> None:
        for file in (self._blocks, self._lines, self._lock):
            with contextlib.suppress(OSError):
                file.close()

    def _recover(self) -> None:
        """Take the whole lines whose blocks are there; cut off what a kill left behind them."""
        entries = _entries(self.folder)
        self.rows = entries[-1][0] if entries else 0
        self.sizes = [sizes for _, _, sizes, _ in entries]
        self._blocks.truncate(entries[-1][1] if entries else 0)
        self._lines.truncate(sum(len(line) for _, _, _, line in entries))


def rows_of(path: Path, settings: Mapping[str, Any]) -> int:
    """Rows that a journal of the file holds, made with these settings and any others; nothing is changed."""
    folder = _folder(path)
    entries = [] if _differs(folder, _hashed(settings)) else _entries(folder)
    return entries[-1][0] if entries else 0


def publish(aside: Path, path: Path) -> None:
    """Bring a finished file to the disk, then under its name."""
    with aside.open("rb+") as file:
        os.fsync(file.fileno())
    os.replace(aside, path)  # noqa: PTH105 - the word that says that it is atomic
    if os.name == "posix":
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def replace(path: Path, content: bytes) -> None:
    """Write a small file at once or not at all."""
    aside = path.with_name(path.name + ".new")
    aside.write_bytes(content)
    publish(aside, path)


def _folder(path: Path) -> Path:
    return path.with_name(path.name + ".part")


def _hashed(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {"format": _FORMAT, **{name: _hash(value) for name, value in sorted(settings.items())}}


def _differs(folder: Path, mine: Mapping[str, Any]) -> str | None:
    """Names of the settings that differ, "" for none, None without a journal."""
    try:
        theirs = json.loads((folder / "settings.json").read_bytes())
    except (OSError, ValueError):
        return None
    if not isinstance(theirs, dict):
        return None
    return ", ".join(name for name in sorted(mine) if mine[name] != theirs.get(name))


def _entries(folder: Path) -> list[tuple[int, int, list[int], bytes]]:
    """Row behind a strip, end and sizes of its blocks, and its line; as far as the blocks are there."""
    entries: list[tuple[int, int, list[int], bytes]] = []
    try:
        there = (folder / "blocks.bin").stat().st_size
        lines = (folder / "rows.txt").read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        return entries
    before = end = 0
    for line in lines:
        fields = line.split()
        if not line.endswith(b"\n") or len(fields) < 2 or not all(f.isdigit() for f in fields):
            break
        row, stop, *sizes = map(int, fields)
        if stop > there or stop != end + sum(sizes) or row <= before:
            break
        entries.append((row, stop, sizes, line))
        before, end = row, stop
    return entries


def _lock(folder: Path, path: Path) -> IO[bytes]:
    """Hold the folder for this process; the system lets go of it when the process ends, however it ends."""
    file = (folder / "lock").open("ab")
    try:
        import fcntl
    except ImportError:  # not on Windows
        return file
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise FileError(path, "is being written by another process", "wait for it or choose another name") from None
    return file


def _sync(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=repr).encode()).hexdigest()[:16]


def _reason(error: OSError) -> str:
    return (os.strerror(error.errno) if error.errno else str(error)).lower()
