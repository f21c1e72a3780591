"""Counts of a network: parameters and multiply-accumulates, on the meta device where the network runs there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

CLASSES = 1000  # of the classifier that the tables count


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def macs(model: nn.Module, shape: Sequence[int], *, train: bool = False) -> int:
    """Multiply-accumulates of one pass over an image of `shape` (B, C, H, W), with `train` of the gradients, too.

    Matrix products and convolutions as torch's FlopCounterMode sees them, halved. It does not know the selective
    scan, for which 9 B D L N are added (twice that for its gradients).
    """
    device = next(model.parameters()).device
    image = torch.empty(shape, device=device) if device.type == "meta" else torch.zeros(shape, device=device)
    with FlopCounterMode(display=False, custom_mapping=_scans()) as counter, torch.set_grad_enabled(train):
        out = model(image.to(next(model.parameters()).dtype))
        if train:
            total(out).backward()
    if train:
        model.zero_grad(set_to_none=True)
    return counter.get_total_flops() // 2


def total(out: Any) -> Tensor:
    """Sum of everything that a network answers: a loss that reaches every output."""
    tensors = list(out) if isinstance(out, list | tuple) else [out]
    return sum((t.float().sum() for t in tensors[1:]), tensors[0].float().sum())


def on_meta(make: Callable[[], nn.Module]) -> nn.Module:
    """The network that `make` builds, in evaluation mode and without memory for its weights."""
    with torch.device("meta"):
        return make().eval()


def _scans() -> dict[Any, Callable[..., int]]:
    """FLOPs of the scan operators, where a family brought them in: u is (..., D, L), A is (..., D, N)."""
    operators = torch.ops.glocal
    found: dict[Any, Callable[..., int]] = {}
    if hasattr(operators, "selective_scan"):
        found[operators.selective_scan] = lambda u, delta, A, *_, **__: 2 * 9 * prod(u) * A[-1]
    if hasattr(operators, "selective_scan_backward"):
        found[operators.selective_scan_backward] = lambda y, last, kept, u, delta, A, *_, **__: 4 * 9 * prod(u) * A[-1]
    return found
