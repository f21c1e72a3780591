"""What the commands train, import and export do, from folders to bundles."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from apps.medical.pathology_caption import data as sets
from apps.medical.pathology_caption import evaluate, exporting, inputs, model
from apps.medical.pathology_caption.options import TASK, Options
from apps.medical.pathology_caption.pipeline import Pipeline
from apps.medical.pathology_caption.train import CACHE, Part, parts, train
from core import batch, bundle
from core.config import as_table
from core.errors import SettingError
from core.training.fit import Fitted
from core.training.recipe import Recipe


def run(
    folder: Path,
    out: Path,
    options: Options,
    recipe: Recipe,
    *,
    init: Path | None = None,
    groups: Path | None = None,
    device: str = "auto",
    devices: int = 1,
    nodes: int = 1,
) -> list[bundle.Bundle]:
    """Train one network, or one for each fold, and score each on the bags that it did not see.

    Args:
        folder: of bags, as `data.find` takes it.
        out: of the bundle (of several: in fold_0, fold_1, ...); the same call goes on with a run that was stopped.
        options: what is trained.
        recipe: how.
        init: weights or a bundle to begin with.
        groups: CSV of what stays on one side of a split.
        device: as core.device.pick takes it.
        devices: how many of them on each machine.
        nodes: machines.
    """
    data = sets.find(folder, groups=groups)
    out.mkdir(parents=True, exist_ok=True)
    made = []
    for part in parts(data, options, recipe.seed, out):
        part.out.mkdir(parents=True, exist_ok=True)
        settings, network, fitted = train(
            data, part, options, recipe, init=init, device=device, devices=devices, nodes=nodes
        )
        if fitted.main:
            made.append(finish(data, part, options, settings, network, fitted, recipe, device))
    return made


def finish(
    data: sets.Found,
    part: Part,
    options: Options,
    settings: bundle.Settings,
    network: torch.nn.Module,
    fitted: Fitted,
    recipe: Recipe,
    device: str,
) -> bundle.Bundle:
    """Write the bundle, then its scores on the validation bags, as prediction gives them."""
    story: dict[str, Any] = {
        "data": data.folder.name,
        "trained_on": [b.id for b in part.train],
        "epochs": fitted.epochs,
        "seconds": round(fitted.seconds, 1),
        "best_epoch": fitted.best_epoch,
        "recipe": as_table(recipe),
        "validation": None,
    }
    made = save(part.out, network, settings, story, options)
    # A class that no training bag has cannot be answered; what is left of such a bag may still have a caption.
    known = [b if b.label in settings.output.classes else replace(b, label="") for b in part.val]
    writes = settings.network.config.get("language") != "none"
    known = [b for b in known if b.label or (writes and b.caption)]
    if known:
        with batch.Log(len(known), None, what="bags") as log:
            scored = evaluate.score(Pipeline.load(part.out, device=device), data, known, log=log)
        if scored.cases:
            print("\n" + evaluate.table(scored))
            story["validation"] = scored.as_dict()
            made = save(part.out, network, settings, story, options)
    shutil.rmtree(part.out / CACHE, ignore_errors=True)  # copies of patients' pictures do not belong into a bundle
    print(f"\nbundle: {part.out}")
    return made


def save(
    out: Path, network: torch.nn.Module, settings: bundle.Settings, story: Mapping[str, Any], options: Options
) -> bundle.Bundle:
    """A bundle, with what makes a hosted language model and its tokenizer beside it."""
    if settings.network.config.get("language") == "hosted":
        from apps.medical.pathology_caption import hosted

        hosted.keep(options.language_model, out)
    return bundle.save(out, network, settings, story)


def import_(
    weights: Path, out: Path, network: str, classes: Sequence[str] | None, more: Mapping[str, Any]
) -> bundle.Bundle:
    """A bundle of weights from a file: our own of a whole network, or published ones of its patch encoder.

    Args:
        weights: the file.
        out: of the bundle.
        network: a name of model.NETWORKS.
        classes: names in order; by default "class 0", "class 1", ...
        more: settings of the network, with `words` for a file that has a decoder.

    Raises SettingError for names that are more or fewer than the network's, and as `model.import_weights`.
    """
    given = {**more, **({"classes": len(classes)} if classes else {})}
    built, taken = model.import_weights(weights, network, model.configured(network, given))
    config = taken.config
    names = list(classes or (f"class {i}" for i in range(config.classes)))
    if len(names) != config.classes:
        raise SettingError(f"--classes names {len(names)}, the network answers {config.classes}")
    settings = bundle.Settings(
        TASK,
        bundle.Network(network, as_table(config)),
        inputs.contract(),
        bundle.Output({name: i for i, name in enumerate(names)}),
        bundle.Tile((config.size, config.size), 0.0),
    )
    story: dict[str, Any] = {"imported": taken.sentence(weights.name), "validation": None}
    if taken.part != "network":
        story["untrained"] = f"all but its {taken.part}"
    made = bundle.save(out, built, settings, story)
    print(taken.sentence(weights.name))
    print(f"bundle: {out}")
    if taken.part != "network":
        print(f"all but its {taken.part} is untrained: glocal {TASK} train DATA --init {weights} begins with it")
    return made


def export(folder: Path, file: Path) -> None:
    """The patch encoder as ONNX of fixed size with a side file; checked against torch."""
    done = exporting.export(folder, file)
    print(f"written: {done.path} and {done.side} ({done.exporter} exporter)")
    print(f"onnxruntime answers as torch does, within {done.difference:.1e} of the spread")
