"""Work before and after the model, in threads of its own."""

from __future__ import annotations

import contextlib
import ctypes
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch

T = TypeVar("T")
_WAITING = 2  # items between two threads, beside those that they work on


@contextlib.contextmanager
def ahead(items: Iterator[T]) -> Iterator[Iterator[T]]:
    """The items, made in another thread; an error there is raised here."""
    waiting: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(_WAITING)
    stop = threading.Event()

    def work() -> None:
        error: BaseException | None = None
        try:
            _share_cores()
            for item in items:
                if not _put(waiting, (item, None), stop):
                    return
        except BaseException as caught:  # whatever it is belongs to the caller
            error = caught
        _put(waiting, (None, error), stop)

    def taken() -> Iterator[T]:
        while True:
            item, error = waiting.get()
            if error is not None:
                raise error
            if item is None:
                return
            yield item

    thread = threading.Thread(target=work, name="reading", daemon=True)
    thread.start()
    try:
        yield taken()
    finally:
        stop.set()
        thread.join()


@contextlib.contextmanager
def behind(take: Callable[[T], None]) -> Iterator[Callable[[T], None]]:
    """A function that hands items to `take` in another thread; at the end all are taken, an error there is raised."""
    waiting: queue.Queue[T | None] = queue.Queue(_WAITING)
    stop = threading.Event()
    errors: list[BaseException] = []

    def work() -> None:
        try:
            while (item := waiting.get()) is not None:
                take(item)
        except BaseException as caught:  # whatever it is belongs to the caller
            errors.append(caught)
            stop.set()

    def put(item: T) -> None:
        if not _put(waiting, item, stop) and errors:
            raise errors[0]

    thread = threading.Thread(target=work, name="writing", daemon=True)
    thread.start()
    try:
        yield put
    finally:  # what has been predicted is written, even where the caller fails
        _put(waiting, None, stop)
        thread.join()
    if errors:
        raise errors[0]


def _share_cores() -> None:
    """Start torch's threads for this thread, too, and leave them idle.

    The OpenMP runtime (libgomp) then knows of more threads than cores and lets those that wait sleep at once. Otherwise
    those of the model spin on the cores that reading and writing need (measured on two cores: a pixelwise model took
    more than twice the time).
    """
    if torch.get_num_threads() > 1:
        torch.zeros(1 << 18).add_(1)  # large enough to be shared out


def give_back() -> None:
    """Free memory goes back to the system; glibc keeps strips' worth of it for every thread otherwise."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _put(waiting: queue.Queue[Any], item: Any, stop: threading.Event) -> bool:
    """Whether the item found room before `stop`."""
    while not stop.is_set():
        with contextlib.suppress(queue.Full):
            waiting.put(item, timeout=0.1)
            return True
    return False
