"""What happens around the steps of every training: rates, seeds, a frozen encoder, averaged weights."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor

from core.errors import SettingError
from core.training.clock import Clock
from core.training.loading import mixed
from core.training.recipe import Recipe
from core.training.schedules import rate
from core.training.store import restore_generators, seed_all


class Rates(Callback):
    """Sets the learning rate before each step (or epoch) from how far the run is."""

    def __init__(self, recipe: Recipe, clock: Clock) -> None:
        self.recipe, self.clock = recipe, clock

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Set the rates of all groups."""
        if self.recipe.interval == "epoch" and batch_idx > 0:
            return
        progress = self.clock.progress(trainer)
        for group in trainer.optimizers[0].param_groups:
            group["lr"] = rate(self.recipe, progress, group["initial_lr"])


class Seeds(Callback):
    """Every epoch draws from generators seeded by run, epoch and device, so that it can be begun anew.

    Args:
        seed: of the run.
        epoch: at which this process begins.
        state: of the generators inside that epoch, None at its start.
    """

    def __init__(self, seed: int, epoch: int = 0, state: dict[str, Any] | None = None) -> None:
        self.seed, self.epoch, self.state = seed, epoch, state

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Before the first epoch's loader is opened, since that may draw."""
        seed_all(mixed(self.seed, self.epoch, trainer.global_rank))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Inside an epoch: where the generators were."""
        if self.state is None:
            return
        if trainer.global_rank == 0:
            restore_generators(self.state, pl_module.device)
        else:  # only the first device's states are kept
            seed_all(mixed(self.seed, self.epoch, trainer.global_rank, trainer.global_step))

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """At the start of every further epoch."""
        if trainer.current_epoch != self.epoch:
            seed_all(mixed(self.seed, trainer.current_epoch, trainer.global_rank))


class Freezing(Callback):
    """Holds the encoder for the first epochs by the module's `freeze_encoder(bool)`."""

    def __init__(self, module: LightningModule, epochs: int) -> None:
        self.epochs = epochs
        if not callable(getattr(module, "freeze_encoder", None)):
            raise SettingError(f"recipe: freeze_epochs {epochs}: {type(module).__name__} has no encoder to freeze")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A run that is gone on with inside an epoch."""
        self._set(pl_module, trainer.current_epoch)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Freeze or release."""
        self._set(pl_module, trainer.current_epoch)

    def _set(self, module: Any, epoch: int) -> None:
        module.freeze_encoder(epoch < self.epochs)


class Averaging(WeightAveraging):
    """Exponential average of weights and running statistics, validated and kept in place of the last ones.

    After n updates the memory is min(decay, (1 + n) / (10 + n)), so that short runs forget their start, too. Counters
    are copied.
    """

    def __init__(self, decay: float) -> None:
        def average(old: list[Tensor], new: list[Tensor], count: Tensor) -> None:
            if not old[0].is_floating_point():
                torch._foreach_copy_(old, new)
                return
            n = int(count)
            torch._foreach_lerp_(old, new, 1 - min(decay, (1 + n) / (10 + n)))

        super().__init__(multi_avg_fn=average)

    def weights(self) -> dict[str, Tensor] | None:
        """The averaged state of the module, by its own names."""
        if self._average_model is None:
            return None
        return dict(self._average_model.module.state_dict())
