"""Reads a weights file into names and tensors without running anything that it holds."""

from __future__ import annotations

import argparse
import codecs
import pickle
import pickletools
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from core.errors import WeightsError

# In this order: where a file holds both the trained and the averaged weights, the first is what the authors evaluate.
WRAPPERS = (
    "model",
    "state_dict",
    "state_dict_ema",
    "network_weights",
    "model_state",
    "model_state_dict",
    "SiT_model",
    "net",
    "weights",
)
PREFIXES = ("module.", "_orig_mod.", "model.")


def read_checkpoint(path: str | Path, *, wrapper: str | None = None) -> dict[str, Tensor]:
    """Names and tensors of a `.safetensors`, `.npz` or PyTorch file, wrappers and common prefixes taken off.

    Args:
        path: the file.
        wrapper: the key of the state inside the file ("model_ema", say); by default the first of WRAPPERS found.

    Raises:
        WeightsError: missing, damaged or cut-off file, a pickle that would run code, no tensors inside.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path}: no such weights file")
    if path.suffix == ".safetensors":
        state: Any = _read_safetensors(path)
    elif path.suffix == ".npz":
        state = _read_npz(path)
    else:
        state = _read_torch(path)
    return strip(_unwrapped(state, wrapper, path))


def strip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take off prefixes that every name carries at its start."""
    names = dict(state)
    while prefix := next((p for p in PREFIXES if names and all(n.startswith(p) for n in names)), None):
        names = {n.removeprefix(prefix): v for n, v in names.items()}
    return names


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, ValueError) as error:
        raise WeightsError(f"{path}: cut off or not a safetensors file ({error})") from None


def _read_npz(path: Path) -> dict[str, Tensor]:
    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise WeightsError(f"{path}: cut off, or not an .npz of plain arrays ({_first_line(error)})") from None


def _read_torch(path: Path) -> Any:
    with torch.serialization.safe_globals(_plain_classes()):
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings(
                    "ignore", message="Detected pickle protocol"
                )  # the load itself says if it fails
                return torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            asked = _unsafe_global(str(error)) or _imports(path)
            if asked:
                raise WeightsError(
                    f"{path}: refused, because reading it would run code ({asked}); ask for a plain state dict or a "
                    ".safetensors file"
                ) from None
            raise WeightsError(f"{path}: cut off, or not a PyTorch weights file") from None
        except (RuntimeError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise WeightsError(f"{path}: cut off, or not a PyTorch weights file ({_first_line(error)})") from None


def _plain_classes() -> list[Any]:
    """Classes that hold values and no code, which authors keep beside the weights.

    Their command line (argparse.Namespace), and NumPy's numbers and arrays (nnU-Net's logs and plans). The latter are
    looked up by name: they are private to NumPy, and its first version had them in another module.
    """
    import numpy as np

    parts: list[Any] = [argparse.Namespace, np.ndarray, np.dtype, codecs.encode]
    parts += [t for t in vars(np.dtypes).values() if isinstance(t, type) and t is not np.dtypes.ObjectDType]
    multiarray = np._core.multiarray  # type: ignore[attr-defined]
    for name in ("scalar", "_reconstruct"):
        parts += [(getattr(multiarray, name), f"numpy.{core}.multiarray.{name}") for core in ("core", "_core")]
    return parts


def _unsafe_global(message: str) -> str:
    """The name that the file asks to import or call, from torch's own refusal; empty where it asks for none."""
    found = re.search(r"GLOBAL ([\w.]+)|unrecognized function <?([\w. ]+)|Unsupported class (\S+)", message)
    return next((name for name in found.groups() if name), "") if found else ""


def _imports(path: Path) -> str:
    """The first name that a bare pickle would import, found by reading its instructions without following them."""
    strings: list[str] = []
    try:
        with path.open("rb") as file:
            for instruction, argument, _ in pickletools.genops(file):
                if instruction.name == "GLOBAL":
                    return str(argument).replace(" ", ".")
                if instruction.name == "STACK_GLOBAL":
                    return ".".join(strings[-2:])
                if isinstance(argument, str):
                    strings.append(argument)
    except (ValueError, OSError):  # no pickle, or it ends early
        pass
    return ""


def _first_line(error: object) -> str:
    text = str(error).strip()
    return text.splitlines()[0].rstrip(".") if text else type(error).__name__


def _unwrapped(state: Any, wrapper: str | None, path: Path) -> dict[str, Tensor]:
    if wrapper is not None:
        if not isinstance(state, Mapping) or wrapper not in state:
            has = ", ".join(map(str, state)) if isinstance(state, Mapping) else type(state).__name__
            raise WeightsError(f"{path}: has no {wrapper!r} (it has: {has[:200]})")
        state = state[wrapper]
    while isinstance(state, Mapping):
        inner = next((state[k] for k in WRAPPERS if isinstance(state.get(k), Mapping)), None)
        if inner is None:
            break
        state = inner
    tensors = {str(k): v for k, v in state.items() if isinstance(v, Tensor)} if isinstance(state, Mapping) else {}
    if not tensors:
        raise WeightsError(f"{path}: holds no named tensors (wrappers looked for: {', '.join(WRAPPERS)})")
    return tensors
