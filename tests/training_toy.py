"""A tiny training for tests, also run as a process: python training_toy.py OUT [field=value ...] [slow=SECONDS]."""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.utils.data import Dataset

from core.training.fit import fit
from core.training.loading import loader
from core.training.recipe import Recipe
from core.training.store import read, seed_all


class Points(Dataset[Any]):
    """Two classes in the plane, with noise drawn from the global generator (as augmentation does)."""

    def __init__(self, count: int = 48, noise: float = 0.05) -> None:
        g = torch.Generator().manual_seed(5)
        self.x = torch.randn(count, 2, generator=g)
        self.y = (self.x[:, 0] + self.x[:, 1].square() > 0.6).long()
        self.noise = noise

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.x[index] + self.noise * torch.randn(2), self.y[index]


class Data(LightningDataModule):
    def __init__(self, recipe: Recipe, count: int = 48) -> None:
        super().__init__()
        self.recipe, self.count = recipe, count

    def train_dataloader(self) -> Any:
        return loader(Points(self.count), self.recipe)

    def val_dataloader(self) -> Any:
        return loader(Points(32, 0.0), self.recipe, train=False)


class Toy(LightningModule):
    def __init__(self, slow: float = 0.0, norm: bool = True) -> None:
        super().__init__()
        self.encoder = nn.Linear(2, 16)
        self.rest = nn.Sequential(
            nn.BatchNorm1d(16) if norm else nn.Identity(), nn.Tanh(), nn.Dropout(0.1), nn.Linear(16, 2)
        )
        self.slow = slow
        self.seen: list[list[float]] = []

    def forward(self, x: Tensor) -> Tensor:
        return self.rest(self.encoder(x))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if self.slow:
            time.sleep(self.slow)
        x, y = batch
        self.seen.append(x.detach().flatten().tolist())
        loss = nn.functional.cross_entropy(self(x), y)
        self.log("train/loss", loss, on_epoch=True, on_step=False)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("val/score", (self(x).argmax(1) == y).float().mean(), batch_size=len(y))

    def freeze_encoder(self, frozen: bool) -> None:
        self.encoder.requires_grad_(not frozen)


RECIPE = Recipe(lr=0.02, epochs=4, batch=8, weight_decay=0.01, seed=3)


def build(slow: float = 0.0, norm: bool = True) -> Toy:
    seed_all(11)
    return Toy(slow, norm)


def train(out: Path, recipe: Recipe = RECIPE, *, module: Toy | None = None, count: int = 48, **options: Any) -> Any:
    module = module or build()
    options = {"device": "cpu", "fingerprint": {"cases": 3}} | options
    return fit(module, Data(recipe, count), recipe, out, **options), module


FULL = replace(RECIPE, ema=0.9, clip=1.0, warmup=0.3, epochs=3)
TIMES = ("seconds", "elapsed", "validation", "epoch_seconds")


def same(a: Any, b: Any, where: str = "") -> list[str]:
    """Where two checkpoints differ, times apart."""
    if isinstance(a, torch.Tensor):
        return [] if isinstance(b, torch.Tensor) and torch.equal(a, b) else [where]
    if isinstance(a, dict):
        if not isinstance(b, dict) or a.keys() != b.keys():
            return [where]
        return [d for k in a if k not in TIMES for d in same(a[k], b[k], f"{where}.{k}")]
    if isinstance(a, list | tuple):
        if len(a) != len(b):
            return [where]
        return [d for i, (x, y) in enumerate(zip(a, b, strict=True)) for d in same(x, y, f"{where}[{i}]")]
    return [] if a == b or (a != a and b != b) else [f"{where}: {a} and {b}"]


def last(out: Path) -> dict[str, Any]:
    return read(out / "checkpoints" / "last.ckpt")


def interrupted(after: int, number: int = signal.SIGINT) -> Any:
    """The toy, which gets a signal in the step `after`."""
    module = build()
    step = module.training_step

    def training_step(batch: Any, batch_idx: int) -> Any:
        if len(module.seen) == after:
            os.kill(os.getpid(), number)
        return step(batch, batch_idx)

    object.__setattr__(module, "training_step", training_step)
    return module


def main(arguments: list[str]) -> int:
    torch.set_num_threads(1)
    out, *settings = arguments
    pairs = dict(s.split("=") for s in settings)
    slow = float(pairs.pop("slow", 0))
    devices = int(pairs.pop("devices", 1))
    values = {k: type(getattr(RECIPE, k))(v) if getattr(RECIPE, k) is not None else float(v) for k, v in pairs.items()}
    try:
        fitted, _ = train(Path(out), replace(RECIPE, **values), module=build(slow), devices=devices)
    except KeyboardInterrupt:
        return 130
    print(f"score {fitted.score:.3f} after {fitted.epochs} epochs")
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    sys.exit(main(sys.argv[1:]))
