"""Exact GELU that saves a wide map's allocation in inference."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class GELU(nn.GELU):
    """x Phi(x), exact; in inference on the CPU written over its input, a fresh output of the layer before.

    There the page faults of another map, four times as wide as the block's, cost more than the function itself
    (measured on DaViT-T: 15 against 26 ms of 480). A hook that keeps the layer's output for later sees the new values.
    """

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling() or torch.is_grad_enabled() or x.device.type != "cpu":
            return super().forward(x)
        return torch.ops.aten.gelu_(x)
