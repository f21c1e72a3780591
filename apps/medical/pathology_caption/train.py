"""Training: the LightningDataModule of bags, and the way from a folder to a bundle's settings and network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from apps.medical.pathology_caption import _gnn_vitcap, inputs, model
from apps.medical.pathology_caption._bags import Bags, Source, collate
from apps.medical.pathology_caption._gnn_vitcap import GNNViTCap
from apps.medical.pathology_caption._start import clusters, prepared
from apps.medical.pathology_caption._work import Captioner as Captioner
from apps.medical.pathology_caption.data import Bag, Found
from apps.medical.pathology_caption.decoder import NOTHING, Words
from apps.medical.pathology_caption.options import TASK, Options
from apps.medical.pathology_caption.vocabulary import Vocabulary, tokens
from core import bundle
from core.config import as_table
from core.data import splits
from core.device import pick
from core.errors import InputError
from core.training.fit import Fitted, fit
from core.training.loading import loader
from core.training.recipe import Recipe
from core.training.store import seed_all

CACHE = "cache"  # folder of the prepared bags, inside the run's
FEW = 8  # validation bags, below which their score is too chancy to choose an epoch by


class Slides(lightning.LightningDataModule):
    """Random parts of the training bags, whole validation bags."""

    def __init__(self, train: Bags, val: Bags, recipe: Recipe) -> None:
        super().__init__()
        self.train, self.val, self.recipe = train, val, recipe

    def train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        return loader(self.train, self.recipe, collate=collate)

    def val_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        return loader(self.val, self.recipe, train=False, collate=collate)


@dataclass(frozen=True)
class Part:
    """One network to train: on which bags, and where its bundle goes."""

    train: tuple[Bag, ...]
    val: tuple[Bag, ...]
    out: Path


def parts(data: Found, options: Options, seed: int, out: Path) -> list[Part]:
    """Training and validation bags, no patient on both sides; one part, or one for each fold in out/fold_N.

    A data set's own validation part is taken where there are no folds. Raises InputError for nothing to train on.
    """
    train = tuple(b for b in data.bags if b.part in ("train", ""))
    val = tuple(b for b in data.bags if b.part == "val")
    if not train:
        raise InputError(f"{data.folder}: has no bags to train on")
    if val and not options.folds:
        return [Part(train, val, out)]
    known = (*train, *val)
    found = splits.rounds(
        [b.group for b in known],
        validation=options.validation,
        folds=options.folds,
        seed=seed,
        where=str(data.folder),
    )
    places = [out / f"fold_{k}" for k in range(len(found))] if options.folds else [out]
    return [
        Part(tuple(known[i] for i in sorted(seen)), tuple(known[i] for i in sorted(held)), place)
        for (seen, held), place in zip(found, places, strict=True)
    ]


@dataclass(frozen=True)
class Aim:
    """What a network learns: classes (() for none), and whether captions."""

    classes: tuple[str, ...]
    captions: bool


def aim(part: Part, goal: str, where: Path) -> Aim:
    """What the options ask for, if the training bags have it. Raises InputError where they do not.

    "auto" takes what they have: captions, and classes where there are two.
    """
    labels = tuple(dict.fromkeys(b.label for b in part.train if b.label))
    captions = any(tokens(b.caption) for b in part.train)
    wants = {"class": (True, False), "caption": (False, True), "both": (True, True)}
    classes, writes = wants.get(goal, (len(labels) > 1, captions))
    if classes and len(labels) < 2:
        held = f"one class only ({labels[0]})" if labels else "no classes"
        raise InputError(f"{where}: its training part has {held}; two are needed to learn classes")
    if writes and not captions:
        raise InputError(f"{where}: its training part has no captions; give them, or ask for --goal class")
    if not classes and not writes:
        raise InputError(f"{where}: its training part has neither captions nor two classes; there is nothing to learn")
    return Aim(labels if classes else (), writes)


def network(options: Options, asked: Aim, captions: Sequence[str]) -> GNNViTCap:
    """The network that the options ask for, its vocabulary made from the training captions.

    Raises as model.configured, hosted.read and _gnn_vitcap.build.
    """
    given: dict[str, Any] = {**options.settings, "classes": len(asked.classes), "language": "none", "words": []}
    folder = None
    if asked.captions:
        given |= {"language": "decoder", "longest": options.longest}
        if options.language_model:
            from apps.medical.pathology_caption import hosted

            folder = Path(options.language_model)
            given |= {"language": "hosted", "hosted": hosted.files(folder)}
        else:
            words = Vocabulary.build(captions, least=options.rare).words
            longest = max(len(tokens(c)) for c in captions)
            given |= {"words": list(words), "longest": min(options.longest, longest)}
    return _gnn_vitcap.build(model.configured(options.network, given), folder=folder)


def train(
    data: Found,
    part: Part,
    options: Options,
    recipe: Recipe,
    *,
    init: str | Path | None = None,
    device: str = "auto",
    devices: int = 1,
    nodes: int = 1,
    say: Callable[[str], None] = print,
) -> tuple[bundle.Settings, GNNViTCap, Fitted]:
    """Prepare the bags, start the clusters and fit one network; what was done in `part.out` before is gone on with.

    Raises InputError for bags without what is asked for or with pictures that cannot be read, and as `network`,
    `model.initialise` and `fit`.
    """
    asked = aim(part, options.goal, data.folder)
    order = tuple(c for c in data.classes if c in asked.classes)
    asked = Aim(order, asked.captions)
    count = sum(len(b.patches) for b in part.train)
    say(f"{len(part.train)} bags of {count} patches to train on, {len(part.val)} to validate")
    seed_all(recipe.seed)
    net = network(options, asked, [b.caption for b in part.train if tokens(b.caption)])
    fresh = [p.detach().clone() for p in (net.projection.weight, net.clusters.centres)]
    if init is not None:
        say(model.initialise(net, options.network, init, classes=asked.classes))
    warm = init is not None
    frozen = options.encoder == "frozen" or (options.encoder == "auto" and warm)
    if frozen and not warm:
        say("the patch encoder is frozen with random weights; --init gives it trained ones")
    if frozen or not warm:
        recipe = replace(recipe, freeze_epochs=0)
    where = pick(device)
    seen, unseen = (prepared(net, bags, part.out / CACHE, frozen, where) for bags in (part.train, part.val))
    # What is begun with may bring projection and centres; one without the other fits nothing.
    kept = not any(torch.equal(a, b) for a, b in zip(fresh, (net.projection.weight, net.clusters.centres), strict=True))
    begun = clusters(net, seen, options, recipe.seed, where, frozen=frozen, warm=warm, kept=kept)
    words = None if net.language is None else net.writer.vocabulary
    slides = Slides(
        _items(seen, asked.classes, words, net.config.longest, options.patches, options.augment != "none"),
        _items(unseen, asked.classes, words, net.config.longest),
        recipe,
    )
    fingerprint: dict[str, Any] = {
        "network": options.network,
        "config": as_table(net.config),
        "frozen": frozen,
        "clustering": options.clustering,
        "target": options.target,
        "projection": options.projection,
        "patches": options.patches,
        "augment": options.augment,
        "train": [b.id for b in part.train],
        "val": [b.id for b in part.val],
        "init": str(init or ""),
    }
    monitor = "val/score" if len(part.val) >= FEW or recipe.patience else None
    if monitor is None:
        say(f"the last epoch is taken: {len(part.val)} bags are too few to choose another by (at least {FEW})")
    fitted = fit(
        Captioner(net, options, begun, frozen=frozen), slides, recipe, part.out, device=device, devices=devices,
        nodes=nodes, monitor=monitor, fingerprint=fingerprint,
    )  # fmt: skip
    settings = bundle.Settings(
        TASK,
        bundle.Network(options.network, as_table(net.config)),
        inputs.contract(),
        bundle.Output({name: i for i, name in enumerate(asked.classes)}),
        bundle.Tile((net.size, net.size), 0.0),
    )
    return settings, net.requires_grad_(True).eval(), fitted


def _items(
    sources: Sequence[Source], classes: Sequence[str], words: Words | None, longest: int, most: int = 0,
    augment: bool = False,
) -> Bags:  # fmt: skip
    labels = [classes.index(s.bag.label) if s.bag.label in classes else NOTHING for s in sources]
    captions = [[] if words is None else numbers(s.bag.caption, words, longest) for s in sources]
    return Bags(sources, labels, captions, most=most, augment=augment)


def numbers(caption: str, words: Words, longest: int) -> list[int]:
    """begin, words, end; a caption that is too long is cut, without an end that it does not have there. [] for none."""
    found = words.encode(caption)
    if not found:
        return []
    return [words.begin, *found[:longest], *([words.end] if len(found) <= longest else [])]
