"""Outputs that stand whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from core.errors import FileError

PART = ".part"


class DiskFullError(FileError):
    """No space is left: what comes after would fail as well."""


@contextmanager
def aside(path: str | Path) -> Iterator[Path]:
    """A path beside `path` to write to; what was written is renamed to `path` when the block ends well.

    After an error nothing of it is left, and `path` is as it was. The name keeps `path`'s suffix, by which libraries
    choose a format. Raises FileError where the folder cannot be written or the disk is full.
    """
    path = Path(path)
    part = path.with_name(f".{os.getpid()}{PART}.{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        if part.is_dir():
            for inner in part.rglob("*"):
                if inner.is_file():
                    sync(inner)
            _replace_folder(part, path)
        else:
            sync(part)
            part.replace(path)
    except OSError as error:
        raise full(path, error) from error
    finally:
        if part.is_dir():
            shutil.rmtree(part, ignore_errors=True)
        else:
            part.unlink(missing_ok=True)


def _replace_folder(part: Path, path: Path) -> None:
    """A folder cannot be renamed over another: the old one steps aside for the moment of the change."""
    if not path.exists():
        part.replace(path)
        return
    old = path.with_name(f".{os.getpid()}.old.{path.name}")
    path.replace(old)
    part.replace(path)
    shutil.rmtree(old, ignore_errors=True)


def sync(path: Path) -> None:
    """Have the file's content on the disk before its name says that it is there."""
    with path.open("rb+") as stream:
        os.fsync(stream.fileno())


def full(path: Path, error: OSError) -> OSError | FileError:
    """A full disk or a folder that cannot be written as one sentence; other errors as they are."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return DiskFullError(path, "the disk is full, nothing was written", "free some space or name another folder")
    if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
        return FileError(path, "the folder cannot be written", "name another with --out")
    return error


def write_text(path: str | Path, text: str) -> None:
    """Write a text whole or not at all."""
    with aside(path) as part:
        part.write_text(text, encoding="utf-8")
