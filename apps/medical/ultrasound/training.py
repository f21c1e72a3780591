"""What the commands train, import and export do, from folders to bundles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from apps.medical import _class_bundles
from apps.medical._class_learning import Part
from apps.medical.classes import Answer
from apps.medical.ultrasound import data as sets
from apps.medical.ultrasound import evaluate, exporting, inputs, model
from apps.medical.ultrasound.options import TASK, Options
from apps.medical.ultrasound.pipeline import Pipeline
from apps.medical.ultrasound.train import parts, train
from core import batch, bundle
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
    """Train one network, or one for each fold, and score each on the pictures that it did not see.

    Args:
        folder: pictures with classes, as `data.find` takes them.
        out: of the bundle (of several: in fold_0, fold_1, ...); the same call goes on with a run that was stopped.
        options: what is trained.
        recipe: how.
        init: weights or a bundle to begin with (see model.initialise).
        groups: CSV of the patients that stay on one side of a split.
        device: as core.device.pick takes it.
        devices: how many, on each of `nodes` machines.
        nodes: machines.
    """
    _class_bundles.aims(options.aim)  # a wrong one is told now, not when the network is trained
    found = sets.find(folder, groups=groups)
    for note in found.notes:
        print(note)
    made = []
    for part in parts(found, options, recipe.seed, out):
        part.out.mkdir(parents=True, exist_ok=True)
        settings, network, fitted = train(
            found, part, options, recipe, init=init, device=device, devices=devices, nodes=nodes
        )
        if fitted.main:
            made.append(finish(found, part, settings, network, fitted, options, recipe, device))
    return made


def finish(
    found: sets.Found,
    part: Part,
    settings: bundle.Settings,
    network: torch.nn.Module,
    fitted: Fitted,
    options: Options,
    recipe: Recipe,
    device: str,
) -> bundle.Bundle:
    """Write the bundle, choose its threshold on the validation pictures, and write it again with their scores."""

    def score(folder: Path) -> Sequence[Answer]:
        with batch.Log(len(part.val), None, what="pictures") as log:
            return evaluate.score(Pipeline.load(folder, device=device), found, part.val, log=log).answers

    return _class_bundles.finish(found, part, settings, network, fitted, recipe, aim=options.aim, score=score)


def import_(
    weights: Path,
    out: Path,
    network: str,
    classes: Sequence[str] | None,
    positive: str,
    more: Mapping[str, Any],
) -> bundle.Bundle:
    """A bundle of published weights; of HSQformer's files `order` and `experts` say what the names cannot.

    Arguments and errors as of `_class_bundles.import_`.
    """

    def contract(names: Sequence[str], looked_for: str | None, config: Any) -> Any:
        return inputs.contract(names, positive=looked_for, size=config.size)

    return _class_bundles.import_(
        model, weights, out, network, classes, positive, more, task=TASK, contract=contract
    )  # fmt: skip


def export(folder: Path, file: Path) -> None:
    """ONNX of the network's size with a side file; checked against torch."""
    done = exporting.export(folder, file)
    print(f"written: {done.path} and {done.side} ({done.exporter} exporter)")
    print(f"onnxruntime answers as torch does, within {done.difference:.1e} of the spread")
