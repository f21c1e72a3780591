"""Says how training goes: a bar with the remaining time on a terminal, else one line an epoch."""

from __future__ import annotations

import sys
import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar

from core.training.clock import Clock, spoken
from core.training.keeper import Keeper

_EVERY = 0.2  # seconds between two pictures of the bar


class Progress(ProgressBar):
    """One bar over the whole run, its remaining time by steps or by the time limit, whichever comes first."""

    def __init__(self, clock: Clock, keeper: Keeper) -> None:
        super().__init__()
        self.clock, self.keeper = clock, keeper
        self._bar: Any = None
        self._on = True
        self._shown = 0.0

    def disable(self) -> None:
        """Lightning silences all devices but the first."""
        self._on = False

    def enable(self) -> None:
        """The first device speaks."""
        self._on = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the bar where there is a terminal."""
        if self._on and sys.stdout.isatty():
            from tqdm import tqdm

            shape = "{percentage:3.0f}%|{bar}| {desc}"
            self._bar = tqdm(total=100.0, file=sys.stdout, dynamic_ncols=True, bar_format=shape)
        self._show(trainer, now=True)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the bar."""
        self._show(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say that scores are being made."""
        self._show(trainer, now=True, doing=" validating")

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the bar."""
        self._show(trainer, now=True)
        self.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Close the bar, so that what is said next has its own line."""
        self.close()

    def said(self, trainer: Trainer) -> None:
        """An epoch was noted: its line, where there is no bar."""
        if self._on and self._bar is None:
            left = None if self.keeper.finished else self.clock.left(trainer)
            sys.stdout.write(line(self.keeper, left) + "\n")
            sys.stdout.flush()

    def _show(self, trainer: Trainer, *, now: bool = False, doing: str = "") -> None:
        time_now = time.monotonic()
        if self._bar is None or not (now or time_now - self._shown > _EVERY):
            return
        self._shown = time_now
        recipe, clock, keeper = self.clock.recipe, self.clock, self.keeper
        done = max(clock.steps_done(trainer), clock.elapsed / clock.budget)
        parts = [f"epoch {min(trainer.current_epoch + 1, recipe.epochs)}/{recipe.epochs}{doing}"]
        parts.append(f"{spoken(clock.elapsed)} gone, {spoken(clock.left(trainer))} left")
        if keeper.history:
            parts.append(f"loss {keeper.history[-1]['loss']:.4g}")
        if keeper.score is not None:
            parts.append(f"best {keeper.monitor} {keeper.score:.4g} (epoch {keeper.best_epoch})")
        self._bar.n = round(100 * min(done, 1.0), 2)
        self._bar.set_description_str(", ".join(parts))


def line(keeper: Keeper, left: float | None) -> str:
    """What the latest epoch gave: "epoch 3/50  loss 0.52  val/score 0.71 (best)  12 s, 9 min 2 s left"."""
    row = keeper.history[-1]
    own = ("epoch", "step", "lr", "loss", "seconds")
    parts = [f"epoch {row['epoch']}/{keeper.recipe.epochs}", f"loss {row['loss']:.4g}"]
    for name, value in row.items():
        if name not in own:
            best = " (best)" if name == keeper.monitor and keeper.best_epoch == row["epoch"] else ""
            parts.append(f"{name} {value:.4g}{best}")
    rest = "" if left is None else f", {spoken(left)} left"
    return "  ".join([*parts, f"{spoken(row['seconds'])}{rest}"])
