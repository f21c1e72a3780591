"""Ctrl-C and a polite kill end training after the batch, with everything saved; a second one ends it at once."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class Stopped(Exception):  # noqa: N818 - no fault: it carries the user's wish through the trainer
    """Training was asked to stop and has saved itself."""


class Stops:
    """Which signal asked for an end, 0 none."""

    def __init__(self) -> None:
        self.asked = 0


@contextmanager
def listening() -> Iterator[Stops]:
    """SIGINT and SIGTERM are noted inside; a second SIGINT raises KeyboardInterrupt. Handlers are put back after.

    Outside the main thread (a page's worker) signals are left alone.
    """
    stops = Stops()
    if threading.current_thread() is not threading.main_thread():
        yield stops
        return
    old: dict[int, Any] = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, frame: FrameType | None) -> None:
        if stops.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        stops.asked = number
        sys.stderr.write("\nstopping: saving after this batch; Ctrl-C again stops at once\n")

    try:
        for number in old:
            signal.signal(number, note)
        yield stops
    finally:
        for number, handler in old.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
