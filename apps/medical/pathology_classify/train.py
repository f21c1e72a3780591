"""Training: one LightningDataModule, and the way from labelled tiles to a network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning
from torch import Tensor, nn
from torch.utils.data import DataLoader

from apps.medical import _class_learning
from apps.medical._class_learning import Learner, Part, told, weights
from apps.medical.pathology_classify import inputs, model
from apps.medical.pathology_classify.augment import Shelf, Tiles
from apps.medical.pathology_classify.data import Found, Picture, positive
from apps.medical.pathology_classify.options import TASK, Options
from core import bundle
from core.config import as_table
from core.errors import SettingError
from core.training.fit import Fitted, fit
from core.training.loading import loader
from core.training.recipe import Recipe
from core.training.store import seed_all

_MARKED = ("size", "um", "stain", "positive", "magnification", "augment", "balance", "smoothing")


class Sections(lightning.LightningDataModule):
    """Training tiles changed at random and drawn by class, validation tiles as they are."""

    def __init__(
        self, train: Sequence[Picture], val: Sequence[Picture], settings: bundle.Settings, options: Options,
        recipe: Recipe,
    ) -> None:  # fmt: skip
        super().__init__()
        self.recipe, self.balance = recipe, options.balance
        names, shelf = list(settings.output.classes), Shelf(options)
        self.train = Tiles(train, names, options, settings.input, shelf, train=True)
        self.val = Tiles(val, names, options, settings.input, shelf, train=False)

    def train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        drawn = weights(self.train.targets) if self.balance else None
        return loader(self.train, self.recipe, weights=drawn)

    def val_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        return loader(self.val, self.recipe, train=False)


def parts(found: Found, options: Options, seed: int, out: Path) -> list[Part]:
    """Training and validation tiles by patient, one part or one a fold; errors as of `_class_learning.parts`."""
    return _class_learning.parts(found, out, seed=seed, validation=options.validation, folds=options.folds)


def network(options: Options, classes: int) -> model.Config:
    """The configuration of the network that the options ask for."""
    given: dict[str, Any] = {"backbone": options.backbone, **options.settings, "classes": classes}
    for key, value in given.items():
        if isinstance(value, Mapping) and None in value.values():
            raise SettingError(f"{key}: a setting of None cannot be kept in a bundle; leave it out, or give a number")
    if options.network == "backbone":
        given["size"] = options.size
    elif options.network == "duoformer" and options.size != model.SIZE:
        raise SettingError(f"duoformer takes tiles of {model.SIZE} pixels, got --size {options.size}")
    config = model.configured(options.network, given)
    if config.in_channels != 3:
        raise SettingError(f"tiles have 3 channels here, got in_channels={config.in_channels}")
    return config


def contract(
    names: Sequence[str], looked_for: str | None, size: int, *, um: float | None = None, stain: str = ""
) -> tuple[bundle.Input, bundle.Output, bundle.Tile]:
    """What a bundle says of tiles and of its answer; a threshold comes with the validation part."""
    output = bundle.Output({name: i for i, name in enumerate(names)}, positive=looked_for)
    return inputs.contract(size, um=um, stain=stain), output, bundle.Tile((size, size), 0.0)


def settings(name: str, config: model.Config, classes: Sequence[str], options: Options) -> bundle.Settings:
    """What a bundle says of a network."""
    asked = contract(
        classes, positive(classes, options.positive), options.size, um=options.um, stain=options.stain
    )  # fmt: skip
    return bundle.Settings(TASK, bundle.Network(name, as_table(config)), *asked)


def train(
    found: Found,
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

    Raises InputError for tiles that cannot be read, and as `model.configured`, `model.initialise` and `fit`.
    """
    if not 0 <= options.smoothing < 1:
        raise SettingError(f"--smoothing is from 0 to below 1, got {options.smoothing}")
    if options.um is not None and not 0 < options.um < float("inf"):
        raise SettingError(f"--um is a positive number, got {options.um:g}")
    classes, name = found.classes, options.network
    config = network(options, len(classes))
    made = settings(name, config, classes, options)
    say(told(found, part))
    seed_all(recipe.seed)
    net = model.build(config)
    if init is not None:
        say(model.initialise(net, name, init, classes={c: i for i, c in enumerate(classes)}))
    else:
        recipe = replace(recipe, freeze_epochs=0)
    fingerprint: dict[str, Any] = {
        "network": name,
        "config": as_table(config),
        "classes": list(classes),
        **{key: getattr(options, key) for key in _MARKED},
        "train": [p.id for p in part.train],
        "val": [p.id for p in part.val],
        "init": str(init or ""),
    }
    looked_for = made.output.positive
    place = None if looked_for is None else list(classes).index(looked_for)
    module = Learner(net, len(classes), place, smoothing=options.smoothing)
    tiles = Sections(part.train, part.val, made, options, recipe)
    fitted = fit(module, tiles, recipe, part.out, device=device, devices=devices, nodes=nodes, fingerprint=fingerprint)
    return made, net.eval(), fitted
