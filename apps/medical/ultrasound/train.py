"""Training: one LightningModule, one LightningDataModule, and the way from labelled pictures to a network."""

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
from apps.medical.ultrasound import inputs, model
from apps.medical.ultrasound._augmented import Pictures, Shelf
from apps.medical.ultrasound.data import Found, Picture, positive
from apps.medical.ultrasound.options import TASK, Options
from core import bundle
from core.config import as_table
from core.errors import SettingError
from core.training.fit import Fitted, fit
from core.training.loading import loader
from core.training.recipe import Recipe
from core.training.store import seed_all

_MARKED = ("size", "positive", "mask", "augment", "balance", "mix", "smoothing", "rates")


class Screener(Learner):
    """A Learner with the mixing, the smoothing and the three rates of the options: Swin, ConvNeXt, all the rest."""

    def __init__(self, network: nn.Module, classes: int, options: Options, looked_for: int | None) -> None:
        first, second, rest = options.rates
        super().__init__(
            network, classes, looked_for, smoothing=options.smoothing, mix=options.mix, rest=rest,
            rates=((("network.swin.", "network.encoder."), first), (("network.convnext.",), second)),
        )  # fmt: skip


class Screenings(lightning.LightningDataModule):
    """Training pictures changed at random and drawn by class, validation pictures as they are."""

    def __init__(
        self, train: Sequence[Picture], val: Sequence[Picture], classes: Sequence[str], options: Options, recipe: Recipe
    ) -> None:
        super().__init__()
        self.recipe, self.balance = recipe, options.balance
        shelf = Shelf(mask=options.mask)
        self.train = Pictures(train, classes, options, shelf, train=True)
        self.val = Pictures(val, classes, options, shelf, train=False)

    def train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        drawn = weights(self.train.targets) if self.balance else None
        return loader(self.train, self.recipe, weights=drawn)

    def val_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        return loader(self.val, self.recipe, train=False)


def parts(found: Found, options: Options, seed: int, out: Path) -> list[Part]:
    """Training and validation pictures by patient, one part or one a fold; errors as of `_class_learning.parts`."""
    return _class_learning.parts(found, out, seed=seed, validation=options.validation, folds=options.folds)


def network(options: Options, classes: int) -> model.Config:
    """The configuration of the network that the options ask for."""
    given: dict[str, Any] = dict(options.settings)
    if options.network == "backbone":
        given.setdefault("backbone", options.backbone)
    for key, value in given.items():
        if isinstance(value, Mapping) and None in value.values():
            raise SettingError(f"{key}: a setting of None cannot be kept in a bundle; leave it out, or give a number")
    config = model.configured(options.network, {**given, "classes": classes, "size": options.size})
    if config.in_channels != 3:
        raise SettingError(f"pictures have 3 channels here, got in_channels={config.in_channels}")
    return config


def settings(name: str, config: model.Config, classes: Sequence[str], options: Options) -> bundle.Settings:
    """What a bundle says of a network; its threshold comes with the validation part."""
    steps = (inputs.MASK,) if options.mask else ()
    contract = inputs.contract(
        classes, positive=positive(classes, options.positive), size=config.size, steps=steps
    )  # fmt: skip
    return bundle.Settings(TASK, bundle.Network(name, as_table(config)), *contract)


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

    Raises InputError for pictures that cannot be read, and as `model.configured`, `model.initialise` and `fit`.
    """
    _checked(options, recipe)
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
    if recipe.steps_per_epoch is None:
        batch = recipe.batch * devices * nodes
        recipe = replace(recipe, steps_per_epoch=max(1, round(options.draws * len(part.train) / batch)))
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
    module = Screener(net, len(classes), options, None if looked_for is None else list(classes).index(looked_for))
    pictures = Screenings(part.train, part.val, classes, options, recipe)
    fitted = fit(
        module, pictures, recipe, part.out, device=device, devices=devices, nodes=nodes, fingerprint=fingerprint
    )
    return made, net.eval(), fitted


def _checked(options: Options, recipe: Recipe) -> None:
    if not 0 <= options.mix <= 1 or not 0 <= options.smoothing < 1 or options.draws <= 0:
        raise SettingError(
            "--mix is 0 to 1, --smoothing from 0 to below 1, --draws above 0, "
            f"got {options.mix}, {options.smoothing}, {options.draws}"
        )
    if min(options.rates) <= 0:
        raise SettingError(f"--rates are three numbers above 0, got {options.rates}")
    if options.mix and recipe.batch % 2:
        raise SettingError(f"mixing pairs the pictures of a batch: --recipe.batch is even, got {recipe.batch}")
