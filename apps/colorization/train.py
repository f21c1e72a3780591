"""Training: one LightningModule, one LightningDataModule, and the way from a folder to a bundle."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from apps.colorization import _contract, model
from apps.colorization._crops import Crops, Squares
from apps.colorization._losses import huber
from apps.colorization._start import even
from apps.colorization.data import Data, Photograph
from apps.colorization.lab import to_rgb
from apps.colorization.metrics import psnr
from apps.colorization.options import Options
from core import bundle
from core.config import as_table
from core.data import splits
from core.errors import InputError
from core.training.fit import Fitted, fit
from core.training.loading import loader
from core.training.recipe import Recipe
from core.training.store import seed_all

COUNTS = (5, 20, 50)  # hints at which an epoch is looked at
FEW = 8  # validation photographs, below which their score is too chancy to choose an epoch by


class Colorizer(lightning.LightningModule):
    """A network with the Huber loss; `val/score` is the mean PSNR in dB at 5, 20 and 50 hints of the test's kind."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self._found: dict[int, list[Tensor]] = {}

    def parameter_groups(self, recipe: Recipe) -> list[dict[str, Any]]:
        """As published: what has one dimension does not decay, matrices and the bias tables do."""
        trained = [p for p in self.parameters() if p.requires_grad]
        if recipe.decay_norms:
            return [{"params": trained}]
        return [
            {"params": [p for p in trained if p.ndim > 1]},
            {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
        ]

    def training_step(self, batch: Mapping[str, Tensor], _: int) -> Tensor:
        lab = batch["lab"]
        return huber(self.network(lab, batch["mask"]), lab[:, 1:])

    def on_validation_epoch_start(self) -> None:
        self._found = {count: [] for count in COUNTS}

    def validation_step(self, batch: Mapping[str, Tensor], _: int) -> None:
        lab, rgb = batch["lab"], batch["rgb"]
        for i, count in enumerate(COUNTS):
            ab = self.network(lab, batch["masks"][:, i]).float()
            self._found[count].append(psnr(to_rgb(torch.cat([lab[:, :1], ab], dim=1)), rgb))

    def on_validation_epoch_end(self) -> None:
        means = {count: torch.cat(found).mean() for count, found in self._found.items()}
        for count, value in means.items():
            self.log(f"val/psnr {count}", value, sync_dist=True)
        self.log("val/score", torch.stack([*means.values()]).mean(), prog_bar=True, sync_dist=True)


class Photographs(lightning.LightningDataModule):
    """Random crops of the training photographs with random hints, whole validation photographs with fixed ones."""

    def __init__(
        self, train: Sequence[Photograph], val: Sequence[Photograph], options: Options, size: int, cells: int,
        recipe: Recipe,
    ) -> None:  # fmt: skip
        super().__init__()
        self.recipe = recipe
        self.crops = Crops(train, size, cells, options)
        self.squares = Squares(val, size, cells, COUNTS)

    def train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        return loader(self.crops, self.recipe)

    def val_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        return loader(self.squares, replace(self.recipe, batch=min(self.recipe.batch, 16)), train=False)


@dataclass(frozen=True)
class Part:
    """One network to train: on which photographs, and where its bundle goes."""

    train: tuple[Photograph, ...]
    val: tuple[Photograph, ...]
    out: Path


def parts(data: Data, options: Options, seed: int, out: Path) -> list[Part]:
    """Training and validation photographs, no group on both sides; one part, or one for each fold in out/fold_N.

    A data set's own validation part is taken where there are no folds. Raises InputError for nothing to train on.
    """
    if not data.train:
        raise InputError(f"{data.folder}: has no photographs to train on; put them into train/ or straight into it")
    if data.val and not options.folds:
        return [Part(data.train, data.val, out)]
    known = (*data.train, *data.val)
    chosen = splits.rounds(
        [p.group for p in known],
        validation=options.validation,
        folds=options.folds,
        seed=seed,
        where=str(data.folder),
    )
    places = [out / f"fold_{k}" for k in range(len(chosen))] if options.folds else [out]
    return [
        Part(tuple(known[i] for i in sorted(seen)), tuple(known[i] for i in sorted(held)), place)
        for (seen, held), place in zip(chosen, places, strict=True)
    ]


def train(
    part: Part,
    options: Options,
    recipe: Recipe,
    *,
    init: str | Path | None = None,
    device: str = "auto",
    devices: int = 1,
    nodes: int = 1,
    say: Callable[[str], None] = print,
) -> tuple[bundle.Settings, nn.Module, Fitted]:
    """Fit one network; what was done of it in `part.out` before is gone on with.

    Raises InputError for photographs that cannot be read, and as `model.configured`, `model.initialise` and `fit`.
    """
    say(f"{len(part.train)} photographs to train on, {len(part.val)} to validate")
    name = options.network
    config = model.configured(name, options.settings)
    seed_all(recipe.seed)
    net = model.build(config)
    if options.start == "even":
        even(net, seed=recipe.seed)
    if init is not None:
        say(model.initialise(net, name, init))
    if recipe.steps_per_epoch is None:
        recipe = replace(recipe, steps_per_epoch=max(1, len(part.train) // (recipe.batch * devices * nodes)))
    photographs = Photographs(part.train, part.val, options, net.size, net.cells, recipe)
    fingerprint: dict[str, Any] = {
        "network": name,
        "config": as_table(config),
        "hints": options.hints,
        "crop": list(options.crop),
        "augment": options.augment,
        "start": options.start,
        "train": [p.id for p in part.train],
        "val": [p.id for p in part.val],
        "init": str(init or ""),
    }
    module = Colorizer(net)
    monitor = "val/score" if len(part.val) >= FEW or recipe.patience else None
    if monitor is None:
        say(f"the last epoch is taken: {len(part.val)} photographs are too few to choose another by (at least {FEW})")
    fitted = fit(
        module, photographs, recipe, part.out, device=device, devices=devices, nodes=nodes, monitor=monitor,
        fingerprint=fingerprint,
    )  # fmt: skip
    settings = _contract.settings(name, as_table(config), net.size)
    return settings, net.eval(), fitted
