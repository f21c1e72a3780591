"""Keeps the last and the best state of a run, its history, and decides when it ends."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from core.errors import SettingError
from core.files import write_text
from core.training.clock import Clock
from core.training.hooks import Averaging
from core.training.recipe import Recipe
from core.training.stops import Stopped, Stops
from core.training.store import BEST, FOLDER, LAST, OURS, generators


class DivergedError(RuntimeError):
    """The loss is no number any more; the checkpoints before it stand."""


class Keeper(Checkpoint):
    """Writes `checkpoints/last.ckpt` and `checkpoints/best.ckpt` under `out`, and `logs/metrics.csv`.

    `last` is the whole state at the end of an epoch, every `save_every` minutes inside one, and where training was
    stopped. `best` is the weights (the averaged ones where there are) of the best epoch by `monitor`, or without one
    of the latest epoch.

    Args:
        out: the run's folder.
        recipe: of the run.
        fingerprint: of data and settings; kept with the state.
        clock: of the run.
        stops: which signal came.
        monitor: name of the score that the module logs, None for none.
        mode: "max" or "min": which score is better.
        averaging: the averaged weights, None where there are none.
        state: what an earlier process of the run kept.
    """

    def __init__(
        self, out: Path, recipe: Recipe, fingerprint: dict[str, Any], clock: Clock, stops: Stops, *,
        monitor: str | None, mode: str, averaging: Averaging | None = None, state: dict[str, Any] | None = None,
    ) -> None:  # fmt: skip
        self.out, self.recipe, self.fingerprint, self.clock, self.stops = out, recipe, fingerprint, clock, stops
        self.monitor, self.mode, self.averaging = monitor, mode, averaging
        old = state or {}
        self.history: list[dict[str, Any]] = list(old.get("history", []))
        self.score: float | None = old.get("score")
        self.best_epoch: int = old.get("best_epoch", 0)
        self._sum, self._count = old.get("loss_sum", 0.0), old.get("loss_count", 0)
        self._epoch_seconds: float = old.get("epoch_seconds", 0.0)
        self._inside, self.finished = False, False
        self.told: Callable[[Trainer], None] | None = None  # hears of every epoch that was noted
        self._saved = self._mark = time.monotonic()
        self._validating = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Time runs from here."""
        wanted, there = self.recipe.steps_per_epoch, trainer.num_training_batches
        if wanted is not None and there < wanted:
            raise SettingError(f"recipe: steps_per_epoch is {wanted}, but the loader gives {there} batches an epoch")
        self._saved = time.monotonic()
        self._mark = self._saved - self._epoch_seconds
        self.clock.start(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add up the loss; stop or save where a step is complete."""
        if isinstance(outputs, dict) and outputs.get("loss") is not None:
            loss = outputs["loss"].detach() * self.recipe.accumulate  # Lightning has divided it
            self._sum = self._sum + (loss.float() if loss.device.type == "mps" else loss.double())
            self._count += 1
        if _agreed(trainer, self.clock.over):
            trainer.should_stop = True  # validation and the end of the epoch follow
            return
        whole = (batch_idx + 1) % self.recipe.accumulate == 0
        if not whole or batch_idx + 1 >= trainer.num_training_batches:
            return
        late = self.recipe.save_every > 0 and time.monotonic() - self._saved >= self.recipe.save_every * 60
        stop = _agreed(trainer, bool(self.stops.asked))
        if stop or _agreed(trainer, late):
            self._need_number(trainer)
            self._inside = True
            self._save_last(trainer)
            self._inside = False
        if stop:
            raise Stopped

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start to time it."""
        self._validating = time.monotonic()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The longest validation is what a time limit leaves room for."""
        self.clock.validation = max(self.clock.validation, time.monotonic() - self._validating)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the scores, keep the best and the last, and see whether this was the end."""
        loss = float(self._sum) / self._count if self._count else math.nan
        self._need_number(trainer)
        now = time.monotonic()
        seconds, self._mark = now - self._mark, now
        logged = {name: float(value) for name, value in sorted(trainer.callback_metrics.items())}
        lr = float(trainer.optimizers[0].param_groups[0]["lr"])
        row = {"epoch": trainer.current_epoch + 1, "step": trainer.global_step, "lr": lr, "loss": loss, **logged}
        row["seconds"] = round(seconds, 3)
        self.history.append(row)
        self._sum, self._count = 0.0, 0
        better = self._better(trainer, logged)
        if better:
            self._save_best(trainer)
        stale = trainer.current_epoch + 1 - self.best_epoch
        if self.recipe.patience and stale >= self.recipe.patience:
            trainer.should_stop = True
        self.finished = trainer.should_stop or trainer.current_epoch + 1 >= self.recipe.epochs
        self._epoch_seconds = 0.0
        self._save_last(trainer)
        if trainer.is_global_zero:
            write_text(self.out / "logs" / "metrics.csv", table(self.history))
            for logger in trainer.loggers:
                logger.log_metrics({"loss": loss, "lr": lr}, trainer.global_step)
        if self.told is not None:
            self.told(trainer)
        if not self.finished and _agreed(trainer, bool(self.stops.asked)):
            raise Stopped

    def _need_number(self, trainer: Trainer) -> None:
        if self._count and not math.isfinite(float(self._sum)):
            raise DivergedError(
                f"the loss is no number in epoch {trainer.current_epoch + 1}; the checkpoints before it stand; begin "
                "anew with a lower --recipe.lr, --recipe.clip 1, a --recipe.warmup, or --recipe.precision 32"
            )

    def _better(self, trainer: Trainer, logged: dict[str, float]) -> bool:
        epoch = trainer.current_epoch + 1
        if self.monitor is None:
            self.best_epoch = epoch
            return True
        if self.monitor not in logged:
            raise SettingError(f"the score {self.monitor!r} was not logged; logged were: {', '.join(logged) or 'none'}")
        score = float(trainer.strategy.broadcast(logged[self.monitor]))
        old = self.score
        if old is not None and not math.isnan(old) and not (score > old if self.mode == "max" else score < old):
            return False
        if old is not None and math.isnan(old) and math.isnan(score):
            return False
        self.score, self.best_epoch = score, epoch
        return True

    def _save_best(self, trainer: Trainer) -> None:
        state = self.averaging.weights() if self.averaging else None
        content = {
            "state_dict": state if state is not None else trainer.strategy.lightning_module_state_dict(),
            "epoch": trainer.current_epoch + 1,
            "score": self.score,
            "monitor": self.monitor,
            "recipe": asdict(self.recipe),
            "fingerprint": self.fingerprint,
        }
        trainer.strategy.save_checkpoint(content, self.out / FOLDER / BEST)
        trainer.strategy.barrier()

    def _save_last(self, trainer: Trainer) -> None:
        trainer.save_checkpoint(self.out / FOLDER / LAST)
        self._saved = time.monotonic()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add what a later process needs to go on."""
        checkpoint[OURS] = {
            "recipe": asdict(self.recipe),
            "fingerprint": self.fingerprint,
            "history": self.history,
            "score": self.score,
            "best_epoch": self.best_epoch,
            "finished": self.finished,
            "elapsed": self.clock.elapsed,
            "validation": self.clock.validation,
            "epoch": trainer.current_epoch + (not self._inside),  # the next to run, or to go on with
            "inside": self._inside,
            "epoch_seconds": time.monotonic() - self._mark if self._inside else 0.0,
            "loss_sum": float(self._sum),
            "loss_count": self._count,
            "generators": generators(pl_module.device) if self._inside else None,
        }


def _agreed(trainer: Trainer, wish: bool) -> bool:
    """Whether any device wishes it: they must leave together."""
    if trainer.world_size == 1:
        return wish
    return bool(trainer.strategy.reduce_boolean_decision(wish, all=False))


def table(history: list[dict[str, Any]]) -> str:
    """The history as CSV, one row an epoch; a score that an epoch lacks is left empty."""
    names = list(dict.fromkeys(name for row in history for name in row))
    lines = [",".join(names)]
    lines += [",".join("" if row.get(n) is None else f"{row[n]:.9g}" for n in names) for row in history]
    return "\n".join(lines) + "\n"
