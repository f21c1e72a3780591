"""Sharpness-aware minimisation: the gradient for a step is taken where the loss nearby is worst.

Foret et al., arXiv 2010.01412; adaptive (ASAM): Kwon et al., arXiv 2102.11600; for vision transformers Chen et al.,
arXiv 2106.01548. Numbers agree with the optimiser that is used with PyTorch (davda54/sam).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.optim import Optimizer


class SharpnessAware:
    """Takes the weights of an optimiser uphill and back, around a second pass.

    One step: `climb()` with the gradients g of the first pass moves each weight by rho * g / |g| (|g| over all weights
    of all groups); the second pass gives the gradients there; `restore()` puts the weights back exactly; then the
    optimiser steps with those gradients. Momentum and weight decay stay the optimiser's own.

    Args:
        optimizer: whose weights are moved; a group may hold its own "rho".
        rho: how far, in the 2-norm.
        adaptive: move each weight in proportion to its own square, and measure |w| * g (ASAM).

    Shapes play no role. Weights without a gradient stay where they are.
    """

    def __init__(self, optimizer: Optimizer, rho: float = 0.05, *, adaptive: bool = False) -> None:
        self.optimizer, self.rho, self.adaptive = optimizer, rho, adaptive
        self._left: list[tuple[Tensor, Tensor]] = []

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Those of the optimiser."""
        return self.optimizer.param_groups

    @torch.no_grad()
    def norm(self) -> Tensor:
        """The 2-norm of all gradients; adaptive: of |w| * g. A scalar, 0 where there are no gradients."""
        parts = [
            torch.linalg.vector_norm(p.grad * p.abs() if self.adaptive else p.grad)
            for group in self.param_groups
            for p in group["params"]
            if p.grad is not None
        ]
        if not parts:
            return torch.zeros(())
        return torch.linalg.vector_norm(torch.stack([part.to(parts[0].device) for part in parts]))

    @torch.no_grad()
    def climb(self) -> Tensor:
        """Move the weights uphill and clear the gradients; returns the norm by which the gradients were divided."""
        assert not self._left, "climbed twice without restore()"
        norm = self.norm()
        for group in self.param_groups:
            scale = group.get("rho", self.rho) / (norm + 1e-12)
            for p in group["params"]:
                if p.grad is None:
                    continue
                self._left.append((p, p.detach().clone()))
                step = p.grad * scale.to(p.device)
                p.add_(step * p.square() if self.adaptive else step)
                p.grad = None
        return norm

    @torch.no_grad()
    def restore(self) -> None:
        """Put the weights back to where `climb` found them, bit for bit."""
        for p, old in self._left:
            p.copy_(old)
        self._left.clear()

    def step(self, again: Callable[[], Any]) -> Any:
        """A whole step after the first backward; `again` does the second forward and backward. Returns its answer."""
        self.climb()
        try:
            with torch.enable_grad():
                answer = again()
        finally:
            self.restore()
        self.optimizer.step()
        return answer


@contextmanager
def statistics_kept(module: nn.Module) -> Iterator[None]:
    """Running statistics of norms do not move inside: they belong to the weights of the first pass.

    Batches are still normalised by their own statistics, as in training.
    """
    batch = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.training and m.track_running_stats]
    single = [m for m in module.modules() if isinstance(m, _InstanceNorm) and m.training and m.track_running_stats]
    momenta = [m.momentum for m in single]
    try:
        for m in batch:
            m.track_running_stats = False  # momentum 0 would still count the batch
        for norm in single:
            norm.momentum = 0.0
        yield
    finally:
        for m in batch:
            m.track_running_stats = True
        for norm, momentum in zip(single, momenta, strict=True):
            norm.momentum = momentum
