"""What the sinks that write files share: strips are kept in a journal, the file is made at the end."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from core.errors import FileError, SettingError
from core.streaming.journal import Journal, publish, rows_of


class JournalSink:
    """A sink that keeps its strips in a Journal and makes the file of them at `close`.

    A subclass states `_encode(strip) -> blocks` and `_assemble(path)`, which writes the whole file. Strips are joined
    to blocks of `rows` rows before they are encoded (0: each as it comes); a strip has the shape (bands, rows, *rest).
    """

    def __init__(
        self,
        path: str | Path,
        shape: Sequence[int],
        dtype: DTypeLike,
        *,
        bands: int = 1,
        rows: int = 0,
        settings: Mapping[str, Any] | None = None,
        key: object = None,
    ) -> None:
        self.path = Path(path)
        self.shape, self.dtype, self.bands = tuple(int(n) for n in shape), np.dtype(dtype), bands
        if not self.shape or any(n < 1 for n in self.shape) or bands < 1:
            raise SettingError(f"{self.path.name}: nothing to write in {bands} bands of {self.shape}")
        if not self.path.parent.is_dir():
            raise FileError(self.path, "its folder does not exist", "make the folder first")
        if self.path.is_dir():
            raise FileError(self.path, "is a folder", "name a file")
        self._rows = rows
        self._settings: dict[str, Any] = {
            "kind": type(self).__name__,
            "shape": (bands, *self.shape),
            "dtype": self.dtype.str,
            "rows": rows,
            "key": key,
            **(settings or {}),
        }
        self._journal: Journal | None = None
        self._closed = self._agreed = False
        self._pending: NDArray[Any] | None = None  # rows short of a block
        self._taken = 0  # rows taken, the pending ones included

    def agree(self, **settings: Any) -> None:
        """State what else the rows depend on and take the journal; it warns where it must start again."""
        assert self._journal is None
        assert not settings.keys() & self._settings.keys() or self._agreed
        self._agreed = True
        self._settings.update(settings)
        self._open()

    @property
    def written(self) -> int:
        """Rows along axis 0 that survive a kill. To ask changes nothing."""
        if self._closed:
            return self.shape[0]
        return rows_of(self.path, self._settings) if self._journal is None else self._journal.rows

    def write(self, start: int, strip: NDArray[Any]) -> None:
        """Take rows `start` and on, (rows, *rest) or (bands, rows, *rest); they follow those taken before.

        Raises SettingError for a strip of another shape or at another place, FileError where the disk does not take it.
        """
        journal = self._open()
        if strip.ndim == len(self.shape):
            strip = strip[None]
        stop = start + strip.shape[1] if strip.ndim > 1 else -1
        if start != self._taken or stop > self.shape[0] or strip.shape[::2][:1] != (self.bands,):
            raise SettingError(f"{self.path.name}: a strip {strip.shape} at {start} where row {self._taken} comes next")
        if strip.shape[2:] != self.shape[1:]:
            raise SettingError(f"{self.path.name}: a strip {strip.shape} for a result of {self.bands} x {self.shape}")
        self._taken = stop
        strip = strip.astype(self.dtype, copy=False)
        if self._pending is not None:
            strip = np.concatenate([self._pending, strip], axis=1)
            self._pending = None
        rows = self._rows or strip.shape[1]
        ready = strip.shape[1] if stop == self.shape[0] else strip.shape[1] // rows * rows
        for r in range(0, ready, rows):
            part = strip[:, r : min(r + rows, ready)]
            journal.append(journal.rows + part.shape[1], self._encode(part))
        if ready < strip.shape[1]:
            self._pending = strip[:, ready:].copy()  # the caller uses its array again

    def release(self) -> None:
        """Let go of the files; the rows that are written stay for the next run, those that wait for a block do not."""
        if self._journal is not None and not self._closed:
            self._journal.release()
            self._journal, self._pending = None, None

    def close(self) -> None:
        """Write the whole file aside, bring it to the disk and under its name; the journal goes.

        Raises SettingError where rows are missing, FileError where the disk does not take it.
        """
        if self._closed:
            return
        journal = self._open()
        if journal.rows != self.shape[0]:
            raise SettingError(f"{self.path.name}: {journal.rows} of {self.shape[0]} rows were written")
        aside = journal.folder / ("result" + "".join(self.path.suffixes[-2:]).lower())
        try:
            aside.unlink(missing_ok=True)
            self._assemble(aside)
            publish(aside, self.path)
        except OSError as error:
            with contextlib.suppress(OSError):
                aside.unlink(missing_ok=True)
            raise journal.full(error) from None
        journal.remove()
        self._closed = True

    def _open(self) -> Journal:
        if self._journal is None:
            self._journal = Journal(self.path, self._settings)
            self._taken = self._journal.rows
        return self._journal

    def _encode(self, strip: NDArray[Any]) -> Sequence[bytes | memoryview]:
        raise NotImplementedError

    def _assemble(self, path: Path) -> None:
        raise NotImplementedError


class StripSink(JournalSink):
    """A JournalSink whose file is made from the strips themselves; they are deflated in the journal."""

    def _encode(self, strip: NDArray[Any]) -> list[bytes]:
        return [zlib.compress(np.ascontiguousarray(strip).data, 1)]

    def _strips(self) -> Iterator[tuple[int, NDArray[Any]]]:
        """First row and values (bands, rows, *rest) of each strip."""
        assert self._journal is not None
        row = 0
        for (block,) in self._journal.read():
            strip = np.frombuffer(zlib.decompress(block), self.dtype)
            strip = strip.reshape(self.bands, -1, *self.shape[1:])
            yield row, strip
            row += strip.shape[1]
