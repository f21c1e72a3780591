"""Channel mixers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from core.layers.linear import Fused, Linear, fuses, linear

Activation = Literal["gelu", "gelu_tanh", "quick_gelu", "relu", "silu"]


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x), the approximation in OpenAI's CLIP."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[Activation, Callable[[], nn.Module]] = {
    "gelu": nn.GELU,
    "gelu_tanh": lambda: nn.GELU(approximate="tanh"),
    "quick_gelu": QuickGELU,
    "relu": nn.ReLU,
    "silu": nn.SiLU,
}


class MLP(nn.Module):
    """Linear, activation, Linear over the last dimension: (..., C) -> (..., C)."""

    def __init__(self, dim: int, *, ratio: float = 4.0, activation: Activation = "gelu", dropout: float = 0.0) -> None:
        super().__init__()
        self.fc1 = Linear(dim, int(dim * ratio))
        self.act = ACTIVATIONS[activation]()
        self.fc2 = Linear(int(dim * ratio), dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        if fuses(x) and self._fusible():
            kind: Fused = "gelu_tanh" if self.act.approximate == "tanh" else "gelu"
            hidden = linear(x, self.fc1.weight, self.fc1.bias, kind)
        else:
            hidden = self.act(self.fc1(x))
        return self.dropout(self.fc2(self.dropout(hidden)))

    def _fusible(self) -> bool:
        """Whether the first layer and its activation are what they were built as, and nobody listens to them."""
        first, act = self.fc1, self.act
        watched = first._forward_hooks or first._forward_pre_hooks or act._forward_hooks or act._forward_pre_hooks
        return type(first) is Linear and isinstance(act, nn.GELU) and not watched
