"""The CIFAR files of the "python version": pickles of plain containers, read without running code."""

from __future__ import annotations

import io
import pickle
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy._core.multiarray import _reconstruct  # the name that numpy's own pickles ask for

from core.errors import InputError

_ALLOWED = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
}


class _Reader(pickle.Unpickler):
    """Knows arrays and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ALLOWED:
            return _ALLOWED[module, name]
        raise pickle.UnpicklingError(f"asks for {module}.{name}")


def read(path: Path) -> dict[str, Any]:
    """What one file holds, by name. Raises InputError for a damaged file or one that would run code."""
    try:
        values = _Reader(io.BytesIO(path.read_bytes()), encoding="latin1").load()
    except OSError:
        raise
    except Exception as error:  # a damaged pickle raises nearly anything
        raise InputError(f"{path}: cut off, or not a CIFAR file ({error})") from None
    if not isinstance(values, dict):
        raise InputError(f"{path}: not a CIFAR file (it holds a {type(values).__name__}, not names)")
    return values


def check(path: Path) -> None:
    """Raise InputError unless `path` is a batch (pictures with as many labels) or a list of class names."""
    values = read(path)
    if "data" not in values:
        if any(isinstance(v, list) for v in values.values()):
            return
        raise InputError(f"{path}: neither pictures ('data') nor class names in it")
    data = values["data"]
    labels = values.get("fine_labels", values.get("labels"))
    if not isinstance(data, np.ndarray) or data.ndim != 2 or data.shape[1] != 3072 or data.dtype != np.uint8:
        raise InputError(f"{path}: 'data' is not an array of 3072 bytes a picture")
    if not isinstance(labels, list) or len(labels) != len(data):
        count = len(labels) if isinstance(labels, list) else "no"
        raise InputError(f"{path}: {len(data)} pictures, but {count} labels")


_Python: Any = pickle._Pickler  # the one in Python, whose opcodes can be chosen


class _Writer(_Python):
    """Writes `str` as the byte strings of Python 2, as in the published files, so that every reader takes both."""

    dispatch: ClassVar[dict[type, Callable[..., None]]] = dict(_Python.dispatch)

    def _bytes(self, value: bytes) -> None:
        if len(value) < 256:
            self.write(pickle.SHORT_BINSTRING + bytes([len(value)]) + value)
        else:
            self.write(pickle.BINSTRING + struct.pack("<i", len(value)) + value)

    def _text(self, value: str) -> None:
        self._bytes(value.encode("latin1"))

    dispatch[bytes] = _bytes
    dispatch[str] = _text

    def save_global(self, value: Any, name: str | None = None) -> None:
        if getattr(value, "__module__", "").startswith("numpy") and value.__name__ == "_reconstruct":
            self.write(pickle.GLOBAL + b"numpy.core.multiarray\n_reconstruct\n")  # its name before NumPy 2
            self.memoize(value)
        else:
            super().save_global(value, name)

    dispatch[type(np.empty)] = save_global  # a builtin function


def write(path: Path, values: Mapping[str, Any]) -> None:
    """Write lists, numbers, texts and uint8 arrays as the published files hold them."""
    with path.open("wb") as file:
        _Writer(file, protocol=2).dump(dict(values))
