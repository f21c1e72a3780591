"""How much memory a call needs at its peak."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


def growth(call: Callable[[], Any], device: str) -> int | None:
    """Bytes by which the peak during `call` passes what was held before; None where the system does not tell.

    On the GPU what torch allocated; on the CPU the resident set (Linux), after the allocator gave back what it kept.
    """
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return int(torch.cuda.max_memory_allocated() - before)
    _trim()
    try:
        _CLEAR.write_text("5")  # the peak restarts at what is resident now
        before = _resident("VmRSS")
        call()
        return max(0, _resident("VmHWM") - before)
    except (OSError, KeyError):
        return None


def _resident(key: str) -> int:
    fields = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines())
    return int(fields[key].split()[0]) * 1024


def _trim() -> None:
    """Hand memory that the C library keeps for reuse back to the system (glibc only)."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
