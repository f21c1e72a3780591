"""Prediction over files into one folder: a killed run is gone on with, good files are finished, bad ones listed.

For every finished item a note is left in OUT/.done; it says with which settings, of which state of its files, and
which results were written. An item is worked on again where one of these has changed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from core import batch
from core.files import write_text

NOTES = ".done"


class Item(Protocol):
    """What is worked on as one."""

    @property
    def id(self) -> str: ...  # of its results, without a person's data
    @property
    def paths(self) -> Sequence[Path]: ...  # that it is read from: files, or folders of files


I = TypeVar("I", bound=Item)  # noqa: E741


@dataclass(frozen=True)
class Jobs:
    """The notes of a folder.

    Attributes:
        out: folder of the results.
        key: of the settings (see `key_of`); results made with others are made again.
    """

    out: Path
    key: str

    def done(self, item: Item) -> bool:
        """Whether an earlier run with the same settings finished this very item, and its results are still there."""
        note = self.note(item)
        if note is None or note.get("key") != self.key or note.get("stamp") != stamp(item.paths):
            return False
        return all((self.out / str(name)).is_file() for name in note.get("files", ()))

    def finish(self, item: Item, files: Sequence[Path], **more: Any) -> None:
        """Leave the note, after all results were written: `files` inside `out`, and what tables are made of."""
        names = [f.relative_to(self.out).as_posix() for f in files]
        note = {"key": self.key, "stamp": stamp(item.paths), "files": names, **more}
        write_text(self.out / NOTES / f"{item.id}.json", json.dumps(note))

    def note(self, item: Item) -> dict[str, Any] | None:
        """What `finish` left of an item, None where there is nothing that can be read."""
        try:
            note = json.loads((self.out / NOTES / f"{item.id}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return note if isinstance(note, dict) else None

    def notes(self, items: Sequence[Item]) -> Iterator[tuple[str, dict[str, Any]]]:
        """Id and note of those items that are finished, in order."""
        for item in items:
            note = self.note(item)
            if note is not None and note.get("key") == self.key:
                yield item.id, note


def key_of(settings: Mapping[str, Any]) -> str:
    """A number for everything that results depend on: weights' checksums, choices."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()


def stamp(paths: Sequence[Path]) -> list[list[Any]]:
    """What changes when an item's files do: name (hashed, for it may be a person's), size and time of each."""
    files = [p for path in paths for p in (sorted(path.iterdir()) if path.is_dir() else [path]) if p.is_file()]
    names = [hashlib.sha256(p.name.encode(errors="surrogateescape")).hexdigest()[:16] for p in files]
    return [[name, p.stat().st_size, p.stat().st_mtime_ns] for name, p in zip(names, files, strict=True)]


def run(
    items: Sequence[I],
    setup: Callable[[], Callable[[I], str]],
    jobs: Jobs,
    *,
    overwrite: bool = False,
    workers: int = 1,
    what: str = "files",
) -> int:
    """Work on every item that is not done; returns the exit code: 1 where one failed.

    Args:
        items: what to work on. The error of a single one is raised, as the user's whole answer.
        setup: loads the networks and makes the function that works on one item, writes its results, calls
            `jobs.finish`, and returns what to say; called once in every worker (so picklable with several).
        jobs: where the results go.
        overwrite: work again on what is done.
        workers: processes.
        what: items are called in messages.
    """
    left = [i for i in items if overwrite or not jobs.done(i)]
    if len(left) < len(items):
        print(f"{len(items) - len(left)} of {len(items)} are done already", flush=True)
    if len(items) == 1 and left:
        print(setup()(left[0]))
        return 0
    with batch.Log(len(left), jobs.out, what=what) as log:
        for answer in batch.each(left, setup, name=_name, workers=workers):
            log.add(answer, answer.result if isinstance(answer, batch.Done) else "")
    return log.code


def _name(item: Item) -> str:
    return str(item.paths[0]) if item.paths else item.id
