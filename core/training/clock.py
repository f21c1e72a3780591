"""How long a run has gone, how far it is, and how much is left."""

from __future__ import annotations

import math
import time

from lightning.pytorch import Trainer

from core.training.recipe import Recipe


class Clock:
    """Elapsed time over all processes of a run, and progress as the larger of steps done and time used.

    Attributes:
        before: seconds of earlier processes of the run.
        validation: seconds of the longest validation so far; a time limit leaves room for one.
    """

    def __init__(self, recipe: Recipe, before: float = 0.0, validation: float = 0.0) -> None:
        self.recipe, self.before, self.validation = recipe, before, validation
        self._start = time.monotonic()
        self._begun = 0.0  # progress when this process began

    def start(self, trainer: Trainer) -> None:
        """This process begins to train."""
        self._start = time.monotonic()
        self._begun = self.progress(trainer)

    @property
    def elapsed(self) -> float:
        """Seconds of training."""
        return self.before + time.monotonic() - self._start

    @property
    def budget(self) -> float:
        """Seconds for training steps; infinite without a limit."""
        if self.recipe.minutes is None:
            return math.inf
        limit = self.recipe.minutes * 60
        return max(limit - self.validation, limit / 2)

    @property
    def over(self) -> bool:
        """Whether the time for training steps is used up."""
        return self.elapsed >= self.budget

    def progress(self, trainer: Trainer) -> float:
        """The part of the run that lies behind, 0 to 1."""
        if self.recipe.interval == "epoch":
            done = trainer.current_epoch / self.recipe.epochs
        else:
            done = self.steps_done(trainer)
        return min(max(done, self.elapsed / self.budget), 1.0)

    def steps_done(self, trainer: Trainer) -> float:
        """The part of the steps that is done, whatever the time."""
        batches = float(trainer.num_training_batches)
        steps = math.ceil(batches / self.recipe.accumulate) if math.isfinite(batches) else math.inf
        return trainer.global_step / (steps * self.recipe.epochs) if steps else 0.0

    def left(self, trainer: Trainer) -> float | None:
        """Seconds until the end, by the pace of this process; None before there is one."""
        here, done = time.monotonic() - self._start, self.steps_done(trainer)
        pace = done - self._begun
        by_steps = here / pace * (1 - done) if pace > 0 else math.inf
        left = min(by_steps, self.budget - self.elapsed)
        return max(left, 0.0) if math.isfinite(left) else None


def spoken(seconds: float | None) -> str:
    """A duration in two units at most.

    >>> spoken(75), spoken(3.2), spoken(7300)
    ('1 min 15 s', '3 s', '2 h 1 min')
    """
    if seconds is None:
        return "?"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
