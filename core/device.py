"""Which device, and which precision on it: the same words for every command."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Literal

from core.errors import SettingError

if TYPE_CHECKING:
    import torch

HalfPrecision = Literal["32", "bf16", "16"]
"""Of prediction: float32, or the network's products in bfloat16 or float16."""


def pick(device: str = "auto") -> torch.device:
    """The device that a word names.

    Args:
        device: "auto" (CUDA where there is one, else Apple's GPU, else the CPU), "cpu", "cuda", "cuda:1" or "mps".

    Raises:
        SettingError: an unknown word, or a device that this machine or this build of torch lacks.

    >>> pick("cpu")
    device(type='cpu')
    """
    import torch

    if device == "auto":
        kind = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        return torch.device(kind)
    kind, colon, number = device.partition(":")
    if kind not in ("cpu", "cuda", "mps") or (colon and not (kind == "cuda" and number.isdecimal())):
        raise SettingError(f"device is auto, cpu, cuda, cuda:N or mps, got {device!r}")
    if kind == "cuda" and not torch.cuda.is_available():
        raise SettingError(
            f"device {device}: this machine, or this build of torch, has no CUDA device; use --device cpu"
        )
    if kind == "cuda" and number and int(number) >= torch.cuda.device_count():
        last = torch.cuda.device_count() - 1
        raise SettingError(f"device {device}: the CUDA devices of this machine are cuda:0 to cuda:{last}")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise SettingError("device mps: this machine, or this build of torch, has no Apple GPU; use --device cpu")
    return torch.device(device)


def autocast(device: torch.device, precision: str = "32") -> AbstractContextManager[object]:
    """A context in which the network runs in `precision`; weights and results of losses stay float32.

    Args:
        device: where the network is.
        precision: "32", "bf16" or "16" (the recipe's "bf16-mixed" and "16-mixed" mean the same).

    Raises:
        SettingError: another word, or float16 on the CPU, which has no fast float16 and its small range.
    """
    import torch

    word = precision.removesuffix("-mixed")
    if word not in ("32", "bf16", "16"):
        raise SettingError(f"precision is 32, bf16 or 16, got {precision!r}")
    check_precision(device, precision)
    if word == "32":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16 if word == "bf16" else torch.float16)


def check_precision(device: torch.device, precision: str) -> None:
    """Raises SettingError for float16 on the CPU."""
    if device.type == "cpu" and precision.removesuffix("-mixed") == "16":
        raise SettingError("precision 16 needs a GPU; on the CPU use bf16 or 32")
