"""Errors that say what was given, what was expected and what to do.

Every class here is a user's mistake: commands print its one sentence and exit with 2, without a traceback.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


class InputError(ValueError):
    """What the user gave cannot be used; the message is one sentence that names it and the way out."""


class UnknownNameError(InputError, LookupError):
    """A name that is not in a known set; near ones are offered."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        names = sorted(known)
        near = get_close_matches(name, names, n=3, cutoff=0.5)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        shown = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
        super().__init__(f"no {kind} named {name!r}{hint} ({len(names)} known: {shown})")


class FileError(InputError):
    """A file that cannot be used: names it, says what is wrong and, where there is one, the way out."""

    def __init__(self, path: object, wrong: str, right: str = "") -> None:
        self.path = str(path)
        super().__init__(f"{path}: {wrong}" + (f"; {right}" if right else ""))


class ShapeError(InputError):
    """A tensor whose shape does not fit."""


class SettingError(InputError):
    """A setting whose value does not fit the rest of the configuration."""


class WeightsError(InputError):
    """A weights file that cannot be read, or that belongs to another network."""


class MissingExtraError(InputError, ImportError):
    """An optional package is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed; it comes with: pip install 'glocal[{extra}]'")


def expect_shape(x: Tensor, spec: str, **sizes: int) -> dict[str, int]:
    """Bind the dimensions of `x` to the names in `spec` and return them.

    Raises ShapeError when the number of dimensions, or a size given by name, differs.

    >>> import torch
    >>> expect_shape(torch.zeros(2, 3, 8, 6), "B C H W", C=3)["W"]
    6
    """
    names = spec.split()
    shape = tuple(x.shape)
    bound = dict(zip(names, shape, strict=False))
    if len(names) != len(shape) or any(bound[n] != v for n, v in sizes.items()):
        want = " ".join(f"{n}={sizes[n]}" if n in sizes else n for n in names)
        raise ShapeError(f"expected a tensor of shape ({want}), got {shape}")
    return bound
