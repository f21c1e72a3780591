"""What the commands train, import and export do, from folders to bundles."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from apps.medical.segmentation import data as sets
from apps.medical.segmentation import evaluate, model
from apps.medical.segmentation.options import TASK, Options
from apps.medical.segmentation.pipeline import Member, Pipeline
from apps.medical.segmentation.train import CACHE, Part, parts, train
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
    """Train one network, or one for each fold, and score each on the cases that it did not see."""
    data = sets.find(folder, groups=groups)
    out.mkdir(parents=True, exist_ok=True)
    made = []
    for part in parts(data, options, recipe.seed, out):
        part.out.mkdir(parents=True, exist_ok=True)
        settings, network, fitted = train(
            data, part, options, recipe, init=init, device=device, devices=devices, nodes=nodes
        )
        if not fitted.main:
            continue
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
    """Write the bundle, then its scores on the validation cases, as prediction gives them."""
    story: dict[str, Any] = {
        "data": data.folder.name,
        "trained_on": [c.id for c in part.train],
        "epochs": fitted.epochs,
        "seconds": round(fitted.seconds, 1),
        "best_epoch": fitted.best_epoch,
        "recipe": as_table(recipe),
        "validation": None,
    }
    made = bundle.save(part.out, network, settings, story)
    cases = tuple(c for c in part.val if c.label is not None)
    with batch.Log(len(cases), None, what="cases") as log:
        scored = evaluate.score(Pipeline.load(part.out, device=device), data, cases, log=log)
    if scored.cases:
        print("\n" + evaluate.table(scored.report))
        story["validation"] = {**scored.report.as_dict(), "scores": [c.as_dict() for c in scored.cases]}
        made = bundle.save(part.out, network, settings, story)
    shutil.rmtree(part.out / CACHE, ignore_errors=True)  # copies of scans do not belong into what is passed on
    print(f"\nbundle: {part.out}")
    return made


def import_(
    weights: Path,
    out: Path,
    network: str,
    classes: Sequence[str] | None,
    channels: Sequence[str] | None,
    spacing: tuple[float, float] | None,
    plane: str,
    patch: tuple[int, int],
    more: Mapping[str, Any],
) -> bundle.Bundle:
    """A bundle of published weights; what the file does not say is the user's."""
    counted = {k: len(v) for k, v in (("in_channels", channels), ("classes", classes)) if v}
    built, taken = model.import_weights(weights, network, model.configured(network, {**more, **counted}))
    config = taken.config
    names = list(classes or ["background", *(f"class {i}" for i in range(1, config.classes))])
    if len(names) != config.classes:
        raise SettingError(f"--classes names {len(names)}, the network answers {config.classes} (background included)")
    parts = tuple(channels or (f"channel {i}" for i in range(config.in_channels)))
    if len(parts) != config.in_channels:
        raise SettingError(f"--channels names {len(parts)}, the network takes {config.in_channels}")
    if any(c.lower() == "ct" for c in parts):
        raise SettingError(
            "a CT network needs the training set's clipping, mean and spread, which the weights do not hold; "
            "nnU-Net keeps them in dataset_fingerprint.json: train here with --init instead"
        )
    settings = bundle.Settings(
        TASK,
        bundle.Network(network, as_table(config)),
        bundle.Input(channels=parts, normalise="item", spacing=spacing, plane=plane),
        bundle.Output({name: i for i, name in enumerate(names)}),
        bundle.Tile(patch),
    )
    story: dict[str, Any] = {"imported": taken.sentence(weights.name), "validation": None}
    if taken.part != "network":
        story["untrained"] = f"all but its {taken.part}"
    made = bundle.save(out, built, settings, story)
    print(taken.sentence(weights.name))
    print(f"bundle: {out}")
    if taken.part != "network":
        print(f"all but its {taken.part} is untrained: begin with it, glocal medical segment train DATA --init {out}")
    return made


def export(folder: Path, file: Path) -> None:
    """ONNX of fixed size (one tile) with a side file; checked against torch."""
    from core import export as exports

    found = bundle.load(folder, task=TASK)
    exports.ready(file)
    member = Member(found, torch.device("cpu"), "32")
    rows, columns = (-(-s // member.multiple) * member.multiple for s in found.settings.tile.size)
    contract = asdict(found.settings.input) | {"classes": dict(found.settings.output.classes)}
    meaning = "logits (1, classes, rows, columns) of a slice at the stated spacing; the largest is the class"
    done = exports.export(
        member.network, file, (rows, columns), name=found.settings.network.name, contract=contract, meaning=meaning
    )
    print(f"written: {done.path} and {done.side} ({done.exporter} exporter)")
    print(f"onnxruntime answers as torch does, within {done.difference:.1e} of the spread")
