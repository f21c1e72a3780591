"""What a page's visitor leaves on this machine, and how it goes away again: one folder a server, one folder a visit."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import tempfile
import threading
import weakref
from pathlib import Path
from typing import Any

from core.errors import FileError, InputError

PREFIX = "glocal-page-"
_VARIABLE = "GRADIO_TEMP_DIR"


class _Shared:
    """The process's folder, there while a server is."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._folder: Path | None = None
        self._servers = 0
        self._before: str | None = None

    def enter(self) -> Path:
        """A folder for one more server."""
        with self._lock:
            _sweep(Path(tempfile.gettempdir()))
            if self._folder is None:
                self._folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-")).resolve()
                self._before = os.environ.get(_VARIABLE)
                os.environ[_VARIABLE] = str(self._folder)
            self._servers += 1
            return Path(tempfile.mkdtemp(dir=self._folder))

    def leave(self) -> None:
        with self._lock:
            self._servers -= 1
            if self._servers or self._folder is None:
                return
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None
            if self._before is None:
                os.environ.pop(_VARIABLE, None)
            else:
                os.environ[_VARIABLE] = self._before


_shared = _Shared()


class Root:
    """The folder that holds every file of one server; `end` removes it.

    It lies in a folder of this process, which Gradio is told of by the environment, and whose name carries the
    process's number: what a killed process left is removed by the next one.
    """

    def __init__(self) -> None:
        self.folder = _shared.enter()
        self.visits: weakref.WeakSet[Visit] = weakref.WeakSet()

    def new(self) -> Path:
        """A fresh folder whose name nobody can guess: who knows a file's address may read the file."""
        folder = self.folder / secrets.token_hex(16)
        folder.mkdir(mode=0o700)
        return folder

    def holds(self, path: str | Path) -> bool:
        """Whether a path lies in this folder, links and dots followed."""
        return Path(path).resolve().is_relative_to(self.folder)

    def drop(self, path: str | Path) -> None:
        """Delete a file with the folder that was made for it; another path is left alone."""
        found = Path(path).resolve()
        if self.holds(found) and found != self.folder:
            shutil.rmtree(self.folder / found.relative_to(self.folder).parts[0], ignore_errors=True)

    def named(self, text: str) -> str:
        """A message as a visitor may read it: files by their names, without this machine's folders."""
        return re.sub(re.escape(str(self.folder)) + r"(?:/[^/\s]+)*/", "", text)

    def end(self) -> None:
        for visit in list(self.visits):
            visit.end()
        shutil.rmtree(self.folder, ignore_errors=True)
        _shared.leave()


class Visit:
    """One visitor's state, for gr.State: `data` is the page's, `folder` holds files made for this visitor.

    Gradio copies the value of a gr.State for each session; a copy of a visit is a new one, without anything in it.
    """

    def __init__(self, root: Root) -> None:
        self._root = root
        self._folder: Path | None = None
        self._ended = False
        self.data: Any = None
        root.visits.add(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> Visit:
        return Visit(self._root)

    @property
    def folder(self) -> Path:
        """Made at the first use. Raises InputError after the visitor has left."""
        if self._ended:
            raise InputError("this visit has ended; load the page again")
        if self._folder is None:
            self._folder = self._root.new()
        return self._folder

    def clear(self) -> None:
        """Delete the visit's files and forget its data; the visit goes on."""
        self.data = None
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def end(self) -> None:
        self.clear()
        self._ended = True


def picture_size(path: Path, *, max_pixels: int) -> tuple[int, int]:
    """Width and height as the file's head states them; no pixel is decoded.

    Raises FileError for a file that is no picture, or one of more pixels than that.
    """
    import warnings

    from PIL import Image, UnidentifiedImageError

    wrong = "is not a picture that can be read"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the bound below is ours
            with Image.open(path) as picture:
                width, height = picture.size
    except Image.DecompressionBombError:
        raise FileError(path, f"has more than the {_millions(max_pixels)} taken here", "give a smaller one") from None
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError):
        raise FileError(path, wrong, "give a JPEG, PNG or TIFF file") from None
    if width * height > max_pixels:
        raise FileError(
            path, f"has {_millions(width * height)}, and at most {_millions(max_pixels)} are taken here",
            "give a smaller one",
        )  # fmt: skip
    return width, height


def _millions(pixels: int) -> str:
    return f"{pixels / 1e6:.3g} million pixels"


def _sweep(folder: Path) -> None:
    """Remove what servers left that were killed (where a process can be asked for without harm)."""
    for left in folder.glob(f"{PREFIX}*-*"):
        number = left.name[len(PREFIX) :].partition("-")[0]
        if number.isdigit() and not _alive(int(number)):
            shutil.rmtree(left, ignore_errors=True)


def _alive(process: int) -> bool:
    if os.name != "posix":
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
