"""Many files: the good ones are finished, the bad ones listed, and what a killed run left off is gone on with."""

from __future__ import annotations

import csv
import io
import multiprocessing
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from core.errors import InputError
from core.files import DiskFullError, write_text

T = TypeVar("T")
R = TypeVar("R")
FAILURES = "failures.csv"


@dataclass(frozen=True)
class Failure:
    """An item that could not be worked on, and why, in one sentence."""

    item: str
    error: str


@dataclass(frozen=True)
class Done(Generic[R]):
    """One item's answer."""

    item: str
    result: R
    seconds: float


def each(
    items: Sequence[T],
    setup: Callable[[], Callable[[T], R]],
    *,
    name: Callable[[T], str] = str,
    workers: int = 1,
) -> Iterator[Done[R] | Failure]:
    """Work on every item, in order; an error of one item is its Failure, and the next is begun.

    A full disk ends it, since nothing after it could be written, and so does Ctrl-C.

    Args:
        items: what to work on.
        setup: makes the function that works on one item; called once in every worker (it loads the network there).
            With several workers it and the items are pickled.
        name: of an item, for messages.
        workers: processes; 1 works here.
    """
    if workers <= 1 or len(items) <= 1:
        work = setup()
        for item in items:
            yield _guarded(work, item, name(item))
        return
    yield from _spread(items, setup, name, min(workers, len(items)))


def _guarded(work: Callable[[T], R], item: T, name: str) -> Done[R] | Failure:
    start = time.perf_counter()
    try:
        return Done(name, work(item), time.perf_counter() - start)
    except DiskFullError:
        raise
    except Exception as error:  # whatever one file provokes must not cost the others
        return Failure(name, sentence(error))


def sentence(error: BaseException) -> str:
    """What to say of an error on one line; faults of ours and of packages below carry their kind."""
    words = " ".join(str(error).split())
    if isinstance(error, InputError):
        return words
    return f"{type(error).__name__}: {words}" if words else type(error).__name__


_work: Callable[[Any], Any] | None = None  # of this worker process


def _start(setup: Callable[[], Callable[[Any], Any]], threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
    global _work
    _work = setup()


def _call(item: Any, name: str) -> Any:
    assert _work is not None
    return _guarded(_work, item, name)


def _spread(
    items: Sequence[T], setup: Callable[[], Callable[[T], R]], name: Callable[[T], str], workers: int
) -> Iterator[Done[R] | Failure]:
    """`each` over processes. Where one is killed (out of memory, say), the items in flight fail, the rest goes on."""
    threads = max(1, (os.cpu_count() or 1) // workers)
    context = multiprocessing.get_context("spawn")  # a forked torch may hang
    left = deque(items)
    while left:
        flying: deque[tuple[T, Future[Done[R] | Failure]]] = deque()
        with ProcessPoolExecutor(workers, context, _start, (setup, threads)) as pool:
            try:
                while left or flying:
                    while left and len(flying) < 2 * workers:
                        flying.append((left[0], pool.submit(_call, left[0], name(left[0]))))
                        left.popleft()
                    answer = flying[0][1].result()
                    flying.popleft()
                    yield answer
            except BrokenProcessPool:
                for item, _ in flying:
                    yield Failure(name(item), "a worker was ended while it worked on this file or a neighbour of it")


class Log:
    """Says how far a batch is: a bar on a terminal, else a line for each item; failures are listed at the end.

    Use as a context; its `code` is the exit code then: 0, or 1 if an item failed.
    """

    def __init__(self, total: int, out: Path | None, *, what: str = "files") -> None:
        self.total, self.out, self.what = total, out, what
        self.failures: list[Failure] = []
        self.done = 0
        self._bar: Any = None

    def __enter__(self) -> Log:
        if sys.stderr.isatty() and self.total > 1:
            from tqdm import tqdm

            self._bar = tqdm(total=self.total, unit=f" {self.what}", dynamic_ncols=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
        if kind is None or self.failures:
            self._list()

    def add(self, answer: Done[Any] | Failure, said: str = "") -> None:
        """Note an answer; `said` is what to print of a good one."""
        self.done += 1
        if isinstance(answer, Failure):
            self.failures.append(answer)
            self._print(f"failed: {answer.error}", sys.stderr)
        elif said:
            self._print(said, sys.stdout)
        if self._bar is not None:
            self._bar.update()

    def _print(self, line: str, stream: Any) -> None:
        if self._bar is not None:
            self._bar.write(line, file=stream)
        else:
            count = f"[{self.done}/{self.total}] " if self.total > 1 else ""
            print(count + line, file=stream, flush=True)

    def _list(self) -> None:
        if self.out is not None and self.out.is_dir():
            path = self.out / FAILURES
            if self.failures:
                write_failures(path, self.failures)
            else:
                path.unlink(missing_ok=True)  # of an earlier run whose bad files are mended
        if self.failures and self.total > 1:
            where = f", listed in {self.out / FAILURES}" if self.out is not None and self.out.is_dir() else ""
            print(f"{len(self.failures)} of {self.total} {self.what} failed{where}:", file=sys.stderr)
            for failure in self.failures[:20]:
                print(f"  {failure.error}", file=sys.stderr)
            if len(self.failures) > 20:
                print(f"  and {len(self.failures) - 20} more", file=sys.stderr)

    @property
    def code(self) -> int:
        return 1 if self.failures else 0


def write_failures(path: Path, failures: Sequence[Failure]) -> None:
    """A CSV with the columns item and error."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("item", "error"))
    writer.writerows((f.item, f.error) for f in failures)
    write_text(path, text.getvalue())
