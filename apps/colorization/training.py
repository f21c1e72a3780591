"""What the commands train and import do, from folders to bundles."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from apps.colorization import _contract, evaluate, model
from apps.colorization import data as sets
from apps.colorization.options import Options
from apps.colorization.pipeline import Pipeline
from apps.colorization.train import Part, parts, train
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
    exclude: Path | None = None,
    device: str = "auto",
    devices: int = 1,
    nodes: int = 1,
) -> list[bundle.Bundle]:
    """Train one network, or one for each fold, and score each on the photographs that it did not see.

    Args:
        folder: photographs, as `data.find` takes them.
        out: of the bundle (of several: in fold_0, fold_1, ...); the same call goes on with a run that was stopped.
        options: what is trained.
        recipe: how.
        init: weights or a bundle to begin with.
        groups: CSV of what stays on one side of a split.
        exclude: text file of photographs that are left out.
        device: as core.device.pick takes it.
        devices: how many of them on each machine.
        nodes: machines.
    """
    data = sets.find(folder, groups=groups, exclude=exclude)
    out.mkdir(parents=True, exist_ok=True)
    made = []
    for part in parts(data, options, recipe.seed, out):
        part.out.mkdir(parents=True, exist_ok=True)
        settings, network, fitted = train(
            part, options, recipe, init=init, device=device, devices=devices, nodes=nodes
        )  # fmt: skip
        if fitted.main:
            made.append(finish(data, part, settings, network, fitted, recipe, device))
    return made


def finish(
    data: sets.Data,
    part: Part,
    settings: bundle.Settings,
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
    made = bundle.save(part.out, network, settings, story)
    if part.val:
        with batch.Log(len(part.val), None, what="photographs") as log:
            scored = evaluate.score(Pipeline.load(part.out, device=device), data, part.val, log=log)
        if scored.cases:
            print("\n" + evaluate.table(scored))
            story["validation"] = {**scored.report.as_dict(), "scores": [c.as_dict() for c in scored.cases]}
            made = bundle.save(part.out, network, settings, story)
    print(f"\nbundle: {part.out}")
    return made


def import_(weights: Path, out: Path, network: str, more: Mapping[str, Any]) -> bundle.Bundle:
    """A bundle of published weights.

    Args:
        weights: the authors' file, or our safetensors.
        out: of the bundle.
        network: a name of model.NETWORKS.
        more: settings that the file leaves open (`cell`, `average`, `centred`; `heads` and `size` without tables).

    Raises WeightsError for a file that does not fit one to one.
    """
    built, taken = model.import_weights(weights, network, model.configured(network, more))
    settings = _contract.settings(network, as_table(taken.config), taken.config.size)
    made = bundle.save(out, built, settings, {"imported": taken.sentence(weights.name), "validation": None})
    print(taken.sentence(weights.name))
    print(f"bundle: {out}")
    return made
