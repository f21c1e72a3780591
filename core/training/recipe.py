"""How to train, as one typed setting. Light: commands import it for their help, so no torch here."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

from core.errors import SettingError

Precision = Literal["32", "16-mixed", "bf16-mixed"]


@dataclass(frozen=True)
class Recipe:
    """How to train.

    Attributes:
        optimizer: adamw (weight decay apart from the gradient), adam (decay added to the gradient) or sgd.
        lr: learning rate at the peak.
        weight_decay: of the weights.
        decay_norms: whether weight decay also acts on norms, biases and position tables.
        betas: of Adam: the memory of the mean and of the square.
        eps: of Adam: added to the root.
        momentum: of SGD.
        nesterov: whether SGD looks ahead.
        schedule: how the learning rate falls: cosine, poly (1 - t)^0.9, onecycle or constant.
        interval: whether the learning rate changes with every step or with every epoch.
        warmup: linear rise at the start, in epochs, or below 1 as a fraction of the run; of onecycle the rising part.
        min_lr: where the cosine and the polynomial end.
        cycle_start: of onecycle: the first rate as part of the peak; the last is 1/10000 of the first.
        epochs: passes over the data, or blocks of steps_per_epoch.
        steps_per_epoch: batches that count as one epoch; by default one pass over the data.
        batch: items in a batch, on each device.
        accumulate: batches whose gradients are added up before a step.
        clip: largest norm of the gradient; 0 for no limit.
        ema: memory of the averaged weights, 0.999 say, which are then validated and kept; 0 for none.
        sharpness: radius rho of sharpness-aware steps, which take two passes; 0 for plain steps.
        sharpness_adaptive: scale the radius with the size of each weight (ASAM; rho about ten times larger).
        precision: 32, or half precision where it is safe: bf16-mixed or 16-mixed (GPU only).
        seed: of data order, augmentation and dropout.
        patience: stop after so many epochs without a better score; 0 never.
        freeze_epochs: keep the encoder as it is for the first epochs.
        minutes: end after so much time, the schedule included; by default no limit.
        save_every: minutes between checkpoints inside a long epoch; 0 saves at the end of epochs only.
        workers: processes that read data; 0 reads in this one.
        compile: whether torch.compile makes the network faster (its start takes a minute or more).
    """

    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    lr: float = 1e-3
    weight_decay: float = 0.05
    decay_norms: bool = False
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    momentum: float = 0.9
    nesterov: bool = False
    schedule: Literal["cosine", "poly", "constant", "onecycle"] = "cosine"
    interval: Literal["step", "epoch"] = "step"
    warmup: float = 0.0
    min_lr: float = 0.0
    cycle_start: float = 0.04
    epochs: int = 100
    steps_per_epoch: int | None = None
    batch: int = 8
    accumulate: int = 1
    clip: float = 0.0
    ema: float = 0.0
    sharpness: float = 0.0
    sharpness_adaptive: bool = False
    precision: Precision = "32"
    seed: int = 0
    patience: int = 0
    freeze_epochs: int = 0
    minutes: float | None = None
    save_every: float = 15.0
    workers: int = 0
    compile: bool = False

    def __post_init__(self) -> None:
        for name in ("epochs", "batch", "accumulate"):
            _need(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        for name in ("lr", "eps"):
            _need(getattr(self, name) > 0, name, "above 0", getattr(self, name))
        for name in (
            "weight_decay", "warmup", "min_lr", "clip", "sharpness", "seed", "patience", "freeze_epochs",
            "save_every", "workers",
        ):  # fmt: skip
            _need(getattr(self, name) >= 0, name, "0 or more", getattr(self, name))
        for name in ("ema", "momentum"):
            _need(0 <= getattr(self, name) < 1, name, "from 0 to below 1", getattr(self, name))
        _need(all(0 <= b < 1 for b in self.betas), "betas", "from 0 to below 1", self.betas)
        _need(self.steps_per_epoch is None or self.steps_per_epoch >= 1, "steps_per_epoch", "at least 1", 0)
        _need(self.minutes is None or self.minutes > 0, "minutes", "above 0", self.minutes)
        warmup_epochs = self.warmup if self.warmup >= 1 else self.warmup * self.epochs
        _need(warmup_epochs < self.epochs or self.warmup == 0, "warmup", "shorter than the run", self.warmup)
        _need(not self.nesterov or self.momentum > 0, "nesterov", "used with momentum", self.nesterov)
        _need(not self.sharpness_adaptive or self.sharpness > 0, "sharpness_adaptive", "used with sharpness", True)
        _need(self.min_lr <= self.lr, "min_lr", "at most lr", self.min_lr)
        _need(0 <= self.cycle_start <= 1, "cycle_start", "from 0 to 1", self.cycle_start)

    @property
    def warmup_fraction(self) -> float:
        """The rising part of the run, 0 to below 1."""
        return self.warmup / self.epochs if self.warmup >= 1 else self.warmup


# What may change between a run and its continuation: neither touches the answer.
FREE = ("save_every", "workers")


def differences(old: dict[str, object], new: Recipe) -> list[str]:
    """What a continued run would do otherwise: "lr 0.001, now 0.0003" for each field that differs."""
    found = []
    for field in fields(new):
        before, now = old.get(field.name, field.default), getattr(new, field.name)
        before = tuple(before) if isinstance(before, list) else before
        if field.name not in FREE and before != now:
            found.append(f"{field.name} {before}, now {now}")
    return found


def _need(holds: bool, name: str, what: str, got: object) -> None:
    if not holds:
        raise SettingError(f"recipe: {name} is {what}, got {got!r}")
