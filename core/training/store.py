"""Checkpoints of a run: written whole, of tensors and plain types only, read without running anything they hold."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from torch import Tensor

from core.errors import FileError, SettingError
from core.files import PART, aside, full
from core.training.recipe import Recipe, differences

FOLDER = "checkpoints"
LAST, BEST = "last.ckpt", "best.ckpt"
OURS = "glocal"  # our part of a checkpoint


class PlainCheckpoints(TorchCheckpointIO):
    """Lightning's reader and writer of checkpoints: atomic, synced to the disk, `weights_only=True` always."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write aside and rename."""
        write(checkpoint, Path(path))

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = True) -> Any:
        """Read tensors and plain types, whatever the caller asks for."""
        return read(Path(path))


def write(checkpoint: dict[str, Any], path: Path) -> None:
    """Save `checkpoint` whole or not at all. Raises TypeError for what is not plain, FileError on a full disk."""
    content = plain(checkpoint)
    with aside(path) as part:
        # Through a stream of ours: torch's own writer does not say why it failed.
        stream = _Stream(part)
        try:
            torch.save(content, stream)
        except (RuntimeError, OSError) as error:
            if stream.error is None:
                raise
            raise full(path, stream.error) from error
        finally:
            stream.close()


class _Stream(io.FileIO):
    """A file that remembers why a write failed."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "wb")
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        rest = memoryview(data).cast("B")
        total = len(rest)
        try:
            while rest:  # a disk that fills takes a part first
                rest = rest[super().write(rest) or 0 :]
        except OSError as error:
            self.error = error
            raise
        return total


def read(path: Path, *, peek: bool = False) -> dict[str, Any]:
    """A checkpoint of ours; `peek` leaves the tensors in the file until they are used.

    Raises FileError where it is missing, damaged or holds more than tensors and plain types.
    """
    if not path.is_file():
        raise FileError(path, "no such checkpoint")
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=peek)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise FileError(path, "cut off, or not a checkpoint of this program", "remove it to start anew") from error


def plain(value: Any, where: str = "checkpoint") -> Any:
    """`value` in tensors and plain types; arrays become lists, paths text. TypeError names what is neither."""
    if isinstance(value, Tensor):
        return value.detach()
    if value is None or type(value) in (bool, int, float, str, bytes, torch.Size, torch.dtype, torch.device):
        return value
    if isinstance(value, Mapping):
        return {plain(k, where): plain(v, f"{where}.{k}") for k, v in value.items()}
    if isinstance(value, list | tuple):
        items = [plain(v, f"{where}[{i}]") for i, v in enumerate(value)]
        return items if isinstance(value, list) else tuple(items)
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, bool | int | float | str):  # a subclass: an enum's value, say
        return next(kind(value) for kind in (bool, int, float, str) if isinstance(value, kind))
    raise TypeError(
        f"{where} holds a {type(value).__module__}.{type(value).__qualname__}; only tensors and plain types"
    )


def generators(device: torch.device) -> dict[str, Any]:
    """The states of every random generator that training draws from."""
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": np.random.get_state(legacy=False),  # noqa: NPY002 - what transforms draw from
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore_generators(state: Mapping[str, Any], device: torch.device) -> None:
    """Put the generators where `generators` found them."""
    torch.set_rng_state(state["torch"].clone())
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    found = dict(state["numpy"])
    found["state"] = found["state"] | {"key": np.asarray(found["state"]["key"], np.uint32)}
    np.random.set_state(found)  # noqa: NPY002
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"].clone(), device)


def seed_all(seed: int) -> None:
    """Seed torch, numpy and Python; before a network is built, too, if its weights should repeat."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    random.seed(seed)


def refuse_changes(out: Path, stored: Mapping[str, Any], recipe: Recipe, fingerprint: Mapping[str, Any]) -> None:
    """Raise SettingError where the run in `out` was begun with another recipe or on other data."""
    way = "give the same again to go on, or another --out to start anew"
    if changed := differences(dict(stored["recipe"]), recipe):
        raise SettingError(f"{out}: holds a run with another recipe ({'; '.join(changed[:4])}); {way}")
    old, new = plain(stored["fingerprint"]), json.loads(json.dumps(plain(fingerprint)))
    old = json.loads(json.dumps(old))
    if changed := [
        f"{k} {_short(old.get(k))}, now {_short(new.get(k))}" for k in sorted({*old, *new}) if old.get(k) != new.get(k)
    ]:
        raise SettingError(f"{out}: holds a run on other data or settings ({'; '.join(changed[:4])}); {way}")


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:37] + "..."


def clear(folder: Path) -> None:
    """Remove what a killed process left half-written."""
    for part in folder.glob(f".*{PART}.*"):
        part.unlink(missing_ok=True)
