"""Training: one LightningModule, one LightningDataModule, and the way from pairs to a network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from apps.deblurring import model
from apps.deblurring._crops import Crops, Looks, Shelf
from apps.deblurring._losses import Reconstruction, pruning
from apps.deblurring.data import Data, Pair
from apps.deblurring.options import TASK, Options
from core import bundle
from core.config import as_table
from core.data import splits
from core.errors import InputError, SettingError
from core.training.fit import Fitted, fit
from core.training.loading import loader
from core.training.optimizers import groups
from core.training.recipe import Recipe
from core.training.store import seed_all

CHANNELS = ("red", "green", "blue")


class Deblurrer(lightning.LightningModule):
    """A network with the losses of LMD-ViT; `val/score` is the photographs' mean gain in PSNR, in dB."""

    def __init__(self, network: nn.Module, options: Options) -> None:
        super().__init__()
        self.network = network
        self.loss = Reconstruction(ssim=options.ssim, fft=options.fft, shifted=options.shifted)
        self.prune, self.gate, self.last = options.prune, options.gate, options.last
        self._found: list[Tensor] = []  # of each crop: photograph, error, input's error, hits, found, marked

    def parameter_groups(self, recipe: Recipe) -> list[dict[str, Any]]:
        """As of any network, but the last layer's with its own rate.

        Adam moves each of its weights by the rate, all the same way where brightness is concerned, which SSIM does not
        see: at 1e-3 that is an error of 0.02 on places that were sharp.
        """
        chosen = {id(p) for p in self.network.get_submodule("out").parameters()} if self.last != 1 else set()
        found = []
        for group in groups(self, recipe):
            parts = [[p for p in group["params"] if (id(p) in chosen) is last] for last in (False, True)]
            found += [
                {**group, "params": p, "lr": r * recipe.lr} for p, r in zip(parts, (1, self.last), strict=True) if p
            ]
        return found

    def training_step(self, batch: Mapping[str, Tensor], _: int) -> Tensor:
        restored = self.network(batch["blurred"])
        loss: Tensor = self.loss(restored.image.float(), batch["sharp"])
        if self.prune and restored.scores:
            loss = loss + self.prune * pruning([s.float() for s in restored.scores], batch["mask"])
        if self.gate:
            loss = loss + self.gate * (restored.gate.float() - batch["mask"]).square().mean()
        return loss

    def on_validation_epoch_start(self) -> None:
        self._found = []

    def validation_step(self, batch: Mapping[str, Tensor], _: int) -> None:
        restored = self.network(batch["blurred"])
        marked, said = batch["mask"] > 0, restored.blur >= 0.5
        ours, before = (
            (x - batch["sharp"]).square().mean((1, 2, 3))
            for x in (restored.image.float().clamp(0, 1), batch["blurred"])
        )
        counts = [m.float().sum((1, 2, 3)) for m in (marked & said, said, marked)]
        self._found.append(torch.stack([batch["photograph"].float(), ours, before, *counts], 1))

    def on_validation_epoch_end(self) -> None:
        found = torch.cat(self._found)
        crops = [found[found[:, 0] == photograph] for photograph in found[:, 0].unique()]
        own, before = (torch.stack([_decibels(c[:, i].mean()) for c in crops]).mean() for i in (1, 2))
        both, said, marked = found[:, 3:].sum(0)
        self.log("val/psnr", own, sync_dist=True)
        self.log("val/precision", both / said.clamp(min=1), sync_dist=True)
        self.log("val/recall", both / marked.clamp(min=1), sync_dist=True)
        self.log("val/score", own - before, prog_bar=True, sync_dist=True)


def _decibels(error: Tensor) -> Tensor:
    """PSNR of a mean squared error; 60 at most, which is what rounding to 8 bits leaves."""
    return -10 * error.clamp(min=1e-6).log10()


class Photographs(lightning.LightningDataModule):
    """Random crops of the training pairs, fixed ones of the validation pairs."""

    def __init__(self, train: Sequence[Pair], val: Sequence[Pair], side: int, options: Options, recipe: Recipe) -> None:
        super().__init__()
        self.recipe = recipe
        shelf = Shelf()
        self.crops = Crops(train, side, options, recipe.seed, shelf)
        self.looks = Looks(val, 2 * side, shelf)

    def train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        return loader(self.crops, self.recipe)

    def val_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        return loader(self.looks, self.recipe, train=False)


@dataclass(frozen=True)
class Part:
    """One network to train: on which pairs, and where its bundle goes."""

    train: tuple[Pair, ...]
    val: tuple[Pair, ...]
    out: Path


def parts(data: Data, options: Options, seed: int, out: Path) -> list[Part]:
    """Training and validation pairs, no scene on both sides; one part, or one for each fold in out/fold_N.

    A data set's own validation part is taken where there are no folds. Raises InputError for nothing to train on.
    """
    seen, held = (tuple(p for p in pairs if p.sharp is not None) for pairs in (data.train, data.val))
    if not seen:
        raise InputError(f"{data.folder}: has no pair of a blurred and a sharp photograph to train on")
    if held and not options.folds:
        return [Part(seen, held, out)]
    known = (*seen, *held)
    chosen = splits.rounds(
        [p.group for p in known],
        validation=options.validation,
        folds=options.folds,
        seed=seed,
        where=str(data.folder),
    )
    places = [out / f"fold_{k}" for k in range(len(chosen))] if options.folds else [out]
    return [
        Part(tuple(known[i] for i in sorted(left)), tuple(known[i] for i in sorted(away)), place)
        for (left, away), place in zip(chosen, places, strict=True)
    ]


def settings(name: str, config: model.Config, options: Options) -> bundle.Settings:
    """What a bundle says of a network. Raises SettingError for one that takes no photographs."""
    if config.in_channels != len(CHANNELS):
        raise SettingError(f"{name} is built for {config.in_channels} channels, a photograph has 3")
    return bundle.Settings(
        TASK,
        bundle.Network(name, as_table(config)),
        bundle.Input(channels=CHANNELS, range=(0.0, 1.0)),
        bundle.Output(),
        bundle.Tile((options.tile, options.tile), options.overlap),
    )


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
    say(f"{len(part.train)} pairs to train on, {len(part.val)} to validate")
    weights = {k: getattr(options, k) for k in ("prune", "gate", "ssim", "fft", "last")}
    if not 0 <= options.blurred <= 1 or min(weights.values()) < 0 or options.patch < 1:
        raise SettingError(
            "--blurred is a part, 0..1, --patch at least 1, --prune, --gate, --ssim, --fft, --last not negative, "
            f"got {options.blurred}, {options.patch}, {', '.join(map(str, weights.values()))}"
        )
    name = options.network
    config = model.configured(name, options.settings)
    made = settings(name, config, options)
    seed_all(recipe.seed)
    net = model.build(config)
    side = -(-options.patch // net.multiple) * net.multiple
    if side != options.patch:
        say(f"crops of {side} x {side} pixels, because the network takes multiples of {net.multiple}")
    if init is not None:
        say(model.initialise(net, name, init))
    if recipe.steps_per_epoch is None:
        recipe = replace(recipe, steps_per_epoch=max(1, len(part.train) // (recipe.batch * devices * nodes)))
    fingerprint: dict[str, Any] = {
        "network": name,
        "config": as_table(config),
        "patch": side,
        "blurred": options.blurred,
        "flip": options.flip,
        "colours": options.colours,
        "shifted": options.shifted,
        **weights,
        "train": [p.id for p in part.train],
        "val": [p.id for p in part.val],
        "init": str(init or ""),
    }
    photographs = Photographs(part.train, part.val, side, options, recipe)
    module = Deblurrer(net, options)
    fitted = fit(
        module, photographs, recipe, part.out, device=device, devices=devices, nodes=nodes, fingerprint=fingerprint
    )
    return made, net.eval(), fitted
