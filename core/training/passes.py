"""Sharpness-aware steps under Lightning's automatic optimisation: the precision plugin makes the second pass.

The module's `training_step` knows nothing of it; it runs once more for each batch of the step, without logging.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from torch.optim import Optimizer

from core.training.sharpness import SharpnessAware, statistics_kept


class _TwoPass(Precision):
    """Gradients of a first pass, climb, gradients of a second pass on the same batches, back, clip, step.

    With gradient accumulation the climb is taken once for all batches of a step, and each of them is repeated. On
    several devices each climbs by its own batches, and only the second gradients are averaged (as published). With a
    gradient scaler the first gradients are unscaled before the climb, and either pass may find them infinite.
    """

    rho: float
    adaptive: bool

    def __init__(self, *args: Any, rho: float, adaptive: bool = False) -> None:
        super().__init__(*args)
        self.rho, self.adaptive = rho, adaptive
        self.batches: list[tuple[Any, int]] = []
        self._sharp: SharpnessAware | None = None

    def optimizer_step(  # type: ignore[override]
        self, optimizer: Any, model: LightningModule, closure: Callable[[], Any], **kwargs: Any
    ) -> Any:
        """The whole step; `closure` is the first pass over the step's last batch."""
        batches, self.batches = self.batches, []
        with _apart(model.trainer):
            loss = closure()
        if loss is None:  # training_step left the batch out
            return None
        if self._sharp is None or self._sharp.optimizer is not optimizer:
            self._sharp = SharpnessAware(optimizer, self.rho, adaptive=self.adaptive)
        sharp, scaler = self._sharp, getattr(self, "scaler", None)
        if scaler is not None:
            scaler.unscale_(sharp)  # noted under another name than the second pass's
            if not torch.isfinite(sharp.norm()):
                scaler.update()
                return loss
        sharp.climb()
        try:
            with torch.enable_grad(), statistics_kept(model), _unlogged(model):
                self._again(model, optimizer, batches)
        finally:
            sharp.restore()
        if scaler is None:
            self._after_closure(model, optimizer)
            optimizer.step()
            return loss
        scaler.unscale_(optimizer)
        self._after_closure(model, optimizer)
        scaler.step(optimizer)
        scaler.update()
        return loss

    def _again(self, model: LightningModule, optimizer: Optimizer, batches: list[tuple[Any, int]]) -> None:
        trainer = model.trainer
        numbered = "batch_idx" in inspect.signature(model.training_step).parameters
        for count, (batch, number) in enumerate(batches, 1):
            with _apart(trainer) if count < len(batches) else nullcontext():
                answer: Any = trainer.strategy.training_step(batch, *([number] if numbered else []))
                loss = answer["loss"] if isinstance(answer, Mapping) else answer
                if loss is not None:
                    trainer.strategy.backward(loss / trainer.accumulate_grad_batches, optimizer)


class TwoPass(_TwoPass):
    """In float32."""


class TwoPassMixed(_TwoPass, MixedPrecision):
    """Under autocast, with a gradient scaler for float16."""


class Remember(Callback):
    """Keeps the batches of a step for its second pass."""

    def __init__(self, plugin: TwoPass | TwoPassMixed) -> None:
        self.plugin = plugin

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Note the batch."""
        self.plugin.batches.append((batch, batch_idx))


def _apart(trainer: Trainer) -> AbstractContextManager[Any]:
    """Gradients are not averaged over the devices inside."""
    block = getattr(trainer.strategy, "block_backward_sync", None)
    return block() if block is not None and trainer.world_size > 1 else nullcontext()


@contextmanager
def _unlogged(module: LightningModule) -> Iterator[None]:
    """What the module logs inside is dropped: the curves show the weights themselves, not those uphill."""
    object.__setattr__(module, "log", lambda *_, **__: None)
    object.__setattr__(module, "log_dict", lambda *_, **__: None)
    try:
        yield
    finally:
        del module.log
        del module.log_dict
