"""What depends on weights alone, made once in inference and kept."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

LARGEST = 1 << 20  # values that are kept


class Kept:
    """The last answer of a function of some weights, with a copy of them: they are compared before it is given again.

    For inference on the CPU, where many small operations cost more than that comparison; with gradients, elsewhere and
    under the compiler the function is called each time. Copies and pickles begin empty.
    """

    def __init__(self) -> None:
        self._held: tuple[Hashable, list[Tensor], Tensor] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"_held": None}

    def __call__(self, make: Callable[[], Tensor], weights: Sequence[Tensor], key: Hashable = None) -> Tensor:
        """`make()`, or what it gave for equal weights and an equal key; nobody may write into it."""
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or weights[0].device.type != "cpu":
            return make()
        if self._held is not None:
            known, made_by, answer = self._held
            same = (a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(made_by, weights, strict=True))
            if known == key and all(same):
                return answer
        answer = make()
        if answer.numel() <= LARGEST:
            self._held = key, [w.detach().clone() for w in weights], answer
        return answer
