"""Training: one LightningModule, one LightningDataModule, and the way from a folder to a bundle."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import lightning
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from apps.medical.segmentation import inputs, labels, model
from apps.medical.segmentation.augment import Kind, Patches
from apps.medical.segmentation.data import Case, Data
from apps.medical.segmentation.options import TASK, Options
from apps.medical.segmentation.prepare import Plan, Prepared, plan, prepare
from core import bundle
from core.config import as_table
from core.data import splits
from core.training.fit import Fitted, fit
from core.training.loading import Order, loader
from core.training.losses import DeepSupervision, DiceCE
from core.training.recipe import Recipe
from core.training.store import seed_all

CACHE = "cache"  # folder of the prepared cases, inside the run's
_FINE = 32  # patches are multiples of it at least: every backbone divides them without a rest
_LOOKED = 96  # slices that an epoch's validation looks at


class Segmenter(lightning.LightningModule):
    """A network with Dice + cross-entropy and deep supervision; `val/score` is the Dice over all validation slices."""

    def __init__(self, network: nn.Module, classes: Sequence[str], *, batch_dice: bool) -> None:
        super().__init__()
        self.network = network
        self.classes = tuple(classes)
        self.loss = DiceCE(len(classes), ignore=labels.UNKNOWN, batch_dice=batch_dice)
        self.sides = int(getattr(network, "multiple", 1)), int(getattr(network, "smallest", 1))
        self._sums = torch.zeros(2, len(classes), dtype=torch.float64)  # of this epoch: hits; truth + answer

    def freeze_encoder(self, frozen: bool = True) -> None:
        freeze = getattr(self.network, "freeze_encoder", None)
        if freeze is not None:
            freeze(frozen)

    def training_step(self, batch: Mapping[str, Tensor], _: int) -> Tensor:
        levels = self.network(batch["image"])
        levels = [levels] if isinstance(levels, Tensor) else levels
        return cast(Tensor, DeepSupervision(self.loss, supervision(len(levels)))(levels, batch["target"]))

    def on_validation_epoch_start(self) -> None:
        self._sums = torch.zeros_like(self._sums, device="cpu")

    def validation_step(self, batch: Mapping[str, Tensor], _: int) -> None:
        image, target = batch["image"], batch["target"]
        logits = self.network(inputs.padded(image, *self.sides))[..., : image.shape[-2], : image.shape[-1]]
        answer, known = logits.argmax(1), target != labels.UNKNOWN
        for k in range(1, len(self.classes)):
            hit, there = (answer == k) & known, (target == k) & known
            self._sums[0, k] += (hit & there).sum().cpu()
            self._sums[1, k] += hit.sum().cpu() + there.sum().cpu()

    def on_validation_epoch_end(self) -> None:
        sums = self.trainer.strategy.reduce(self._sums.to(self.device, torch.float32), reduce_op="sum").cpu()
        found = sums[1, 1:] > 0
        dice = 2 * sums[0, 1:] / sums[1, 1:].clamp(min=1)
        self.log("val/score", float(dice[found].mean()) if found.any() else 0.0, prog_bar=True)
        for name, value, there in zip(self.classes[1:], dice.tolist(), found.tolist(), strict=True):
            if there:
                self.log(f"val/dice {name}", value)


def supervision(levels: int) -> tuple[float, ...]:
    """Weights of the levels, finest first: each half of the one before, the coarsest none (nnU-Net's, the card's)."""
    return (1.0,) if levels == 1 else (*(0.5**i for i in range(levels - 1)), 0.0)


class WholeSlices(Dataset[dict[str, Tensor]]):
    """Stacks of whole slices of one case, at most `limit` slices in all, spread evenly over what is labelled."""

    def __init__(self, cases: Sequence[Prepared], batch: int, limit: int = _LOOKED) -> None:
        self.stacks: list[tuple[Prepared, list[int]]] = []
        each = max(1, limit // max(1, len(cases)))
        for case in cases:
            held = sorted({row for rows in case.rows for row in rows}) or list(range(len(case.target)))
            picked = np.unique(np.linspace(0, len(held) - 1, min(each, len(held))).round().astype(int))
            rows = [held[i] for i in picked]
            self.stacks += [(case, rows[i : i + batch]) for i in range(0, len(rows), batch)]

    def __len__(self) -> int:
        return len(self.stacks)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        case, rows = self.stacks[index]
        target = torch.from_numpy(np.array(case.target[rows])).long()
        return {"image": torch.from_numpy(np.array(case.image[rows])), "target": target}


class Slices(lightning.LightningDataModule):
    """Patches of the training cases, whole slices of the validation cases."""

    def __init__(
        self, train: Sequence[Prepared], val: Sequence[Prepared], patch: tuple[int, int], kind: Kind, recipe: Recipe
    ) -> None:
        super().__init__()
        self.recipe = recipe
        self.patches = Patches(train, patch, kind, recipe.seed)
        self.whole = WholeSlices(val, recipe.batch)

    def train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        return loader(self.patches, self.recipe)

    def val_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        return DataLoader(self.whole, None, sampler=Order(len(self.whole), shuffle=False, shared=False))


@dataclass(frozen=True)
class Part:
    """One network to train: on which cases, and where its bundle goes."""

    train: tuple[Case, ...]
    val: tuple[Case, ...]
    out: Path


def parts(data: Data, options: Options, seed: int, out: Path) -> list[Part]:
    """Training and validation cases, no group on both sides; one part, or one for each fold in out/fold_N."""
    cases = data.train
    chosen = splits.rounds(
        [c.group for c in cases],
        validation=options.validation,
        folds=options.folds,
        seed=seed,
        where=str(data.folder),
    )
    places = [out / f"fold_{k}" for k in range(len(chosen))] if options.folds else [out]
    return [Part(_of(cases, seen), _of(cases, held), place) for (seen, held), place in zip(chosen, places, strict=True)]


def _of(cases: Sequence[Case], indices: Sequence[int]) -> tuple[Case, ...]:
    return tuple(cases[i] for i in sorted(indices))


def network(options: Options, channels: int, classes: int, patch: tuple[int, int]) -> model.Config:
    """The configuration of the network that the options ask for."""
    given: dict[str, Any] = dict(options.settings)
    if options.network == "unet":
        given.setdefault("backbone", options.backbone)
    if options.network == "dynunet":
        given.setdefault("patch_size", patch)
    return model.configured(options.network, {**given, "in_channels": channels, "classes": classes})


def train(
    data: Data,
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
    """Plan, prepare and fit one network; what was done of it in `part.out` before is not done again."""
    say(f"{len(part.train)} cases to train on, {len(part.val)} to validate")
    made = plan(data, part.train, spacing=options.spacing, plane=options.plane, patch=options.patch, multiple=_FINE)
    name, channels = options.network, len(made.input.channels)
    config = network(options, channels, len(data.classes), made.patch)
    seed_all(recipe.seed)
    net = model.build(config)
    multiple = int(getattr(net, "multiple", 1))
    if any(p % multiple for p in made.patch):
        rows, columns = (-(-p // multiple) * multiple for p in made.patch)
        made = replace(made, patch=(rows, columns))
    say(_told(made))
    cache = part.out / CACHE
    seen, unseen = (prepare(data, cases, made.input, cache) for cases in (part.train, part.val))
    if init is not None:
        say(model.initialise(net, name, init, classes=data.classes))
    if init is None:
        recipe = replace(recipe, freeze_epochs=0)
    if recipe.steps_per_epoch is None:  # as many patches as there are slices
        count = sum(len(c.target) for c in seen)
        recipe = replace(recipe, steps_per_epoch=max(1, count // recipe.batch))
    settings = bundle.Settings(
        TASK,
        bundle.Network(name, as_table(config)),
        made.input,
        bundle.Output(dict(data.classes), data.ignore),
        bundle.Tile(made.patch, options.overlap),
    )
    module = Segmenter(net, list(data.classes), batch_dice=options.batch_dice)
    slices = Slices(seen, unseen, made.patch, options.augment, recipe)
    fingerprint = {
        "network": name,
        "config": as_table(config),
        "input": as_table(made.input),
        "patch": list(made.patch),
        "augment": options.augment,
        "train": [c.id for c in part.train],
        "val": [c.id for c in part.val],
        "init": str(init or ""),
    }
    fitted = fit(module, slices, recipe, part.out, device=device, devices=devices, nodes=nodes, fingerprint=fingerprint)
    return settings, net.eval(), fitted


def _told(made: Plan) -> str:
    p = made.input
    lines = f"{p.plane} slices" if p.plane else "slices as they are"
    at = f" at {p.spacing[0]:.4g} x {p.spacing[1]:.4g} {p.unit}" if p.spacing else ""
    how = "each case by its own mean and spread" if p.normalise == "item" else "fixed mean and spread"
    return f"{lines}{at}, patches of {made.patch[0]} x {made.patch[1]} pixels, normalised: {how}"
