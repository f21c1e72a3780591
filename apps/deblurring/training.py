"""What the commands train and import do, from folders to bundles."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from apps.deblurring import data as sets
from apps.deblurring import evaluate, model
from apps.deblurring.options import DEFAULT, Options
from apps.deblurring.pipeline import Pipeline
from apps.deblurring.train import Part, parts, settings, train
from core import batch, bundle
from core.config import as_table
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
    """Train one network, or one for each fold, and score each on the photographs that it did not see.

    Args:
        folder: pairs, as `data.find` takes them.
        out: of the bundle (of several: in fold_0, fold_1, ...); the same call goes on with a run that was stopped.
        options: what is trained.
        recipe: how.
        init: weights or a bundle to begin with.
        groups: CSV of the scenes that stay on one side of a split.
        device: as core.device.pick takes it.
        devices: how many, on each of `nodes` machines.
        nodes: machines.
    """
    data = sets.find(folder, groups=groups)
    out.mkdir(parents=True, exist_ok=True)
    made = []
    for part in parts(data, options, recipe.seed, out):
        part.out.mkdir(parents=True, exist_ok=True)
        how, network, fitted = train(part, options, recipe, init=init, device=device, devices=devices, nodes=nodes)
        if fitted.main:
            made.append(finish(data, part, how, network, fitted, recipe, device))
    return made


def finish(
    data: sets.Data,
    part: Part,
    how: bundle.Settings,
    network: torch.nn.Module,
    fitted: Fitted,
    recipe: Recipe,
    device: str,
) -> bundle.Bundle:
    """Write the bundle, then its scores on the validation photographs, as prediction gives them."""
    story: dict[str, Any] = {
        "data": data.folder.name,
        "trained_on": [p.id for p in part.train],
        "epochs": fitted.epochs,
        "seconds": round(fitted.seconds, 1),
        "best_epoch": fitted.best_epoch,
        "recipe": as_table(recipe),
        "validation": None,
    }
    made = bundle.save(part.out, network, how, story)
    if part.val:
        with batch.Log(len(part.val), None, what="photographs") as log:
            scored = evaluate.score(Pipeline.load(part.out, device=device), data, part.val, log=log)
        if scored.cases:
            print("\n" + evaluate.table(scored))
            story["validation"] = scored.as_dict()
            made = bundle.save(part.out, network, how, story)
    print(f"\nbundle: {part.out}")
    return made


def import_(weights: Path, out: Path, network: str, more: Mapping[str, Any]) -> bundle.Bundle:
    """A bundle of published weights.

    Args:
        weights: the authors' file, or our safetensors.
        out: of the bundle.
        network: a name of model.NETWORKS.
        more: settings that differ from the published network's.

    Raises WeightsError for a file that does not fit one to one.
    """
    built, taken = model.import_weights(weights, network, model.configured(network, more))
    how = settings(network, taken.config, DEFAULT)
    made = bundle.save(out, built, how, {"imported": taken.sentence(weights.name), "validation": None})
    print(taken.sentence(weights.name))
    print(f"bundle: {out}")
    return made
