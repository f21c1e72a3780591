"""From a trained or imported network of picture classes to its bundle, with a threshold and scores of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from apps.medical import classes as scores
from apps.medical._class_learning import Part
from apps.medical._class_parts import positive as looked_for
from apps.medical._class_weights import imported
from apps.medical.labelled import Labelled
from core import bundle
from core.config import as_table
from core.errors import SettingError
from core.training.fit import Fitted
from core.training.recipe import Recipe

# Names of the classes, the one that is looked for, the network's configuration -> what a bundle says of its input.
Contract = Callable[[Sequence[str], str | None, Any], tuple[bundle.Input, bundle.Output, bundle.Tile]]


def aims(aim: str) -> None:
    """Raises SettingError for a way of choosing a threshold that does not exist."""
    scores.choose_threshold([scores.Answer(str(k), "", k, (1.0 - k, float(k))) for k in (0, 1)], 1, aim=aim)


def finish(
    found: Labelled,
    part: Part,
    settings: bundle.Settings,
    network: torch.nn.Module,
    fitted: Fitted,
    recipe: Recipe,
    *,
    aim: str,
    score: Callable[[Path], Sequence[scores.Answer]],
    more: Mapping[str, Any] | None = None,
    say: Callable[[str], None] = print,
) -> bundle.Bundle:
    """Write the bundle, choose its threshold on the validation pictures, and write it again with their scores.

    Args:
        found: the data.
        part: what was trained on and validated with.
        settings: of the bundle.
        network: trained.
        fitted: how.
        recipe: by which.
        aim: of the threshold.
        score: bundle's folder -> answers on the validation pictures.
        more: of its story.
        say: what to tell.
    """
    story: dict[str, Any] = {
        "data": found.folder.name,
        **(more or {}),
        "trained_on": [p.id for p in part.train],
        "epochs": fitted.epochs,
        "seconds": round(fitted.seconds, 1),
        "best_epoch": fitted.best_epoch,
        "recipe": as_table(recipe),
        "validation": None,
    }
    made = bundle.save(part.out, network, settings, story)
    answers = score(part.out)
    if answers:
        names = list(settings.output.classes)
        threshold = chosen(answers, names, settings.output.positive, aim)
        if threshold is not None:
            settings = replace(settings, output=replace(settings.output, threshold=threshold))
            story["threshold"] = {"value": threshold, "aim": aim, "chosen_on": "validation"}
        report = scores.report(answers, names, positive=settings.output.positive, threshold=threshold)
        say("\n" + report.text())
        story["validation"] = report.as_dict()
        made = bundle.save(part.out, network, settings, story)
    say(f"\nbundle: {part.out}")
    return made


def chosen(answers: Sequence[scores.Answer], names: Sequence[str], positive: str | None, aim: str) -> float | None:
    """The threshold by which of two classes the positive one is called, from answers to the validation pictures.

    None for more than two classes, and where the answers hold one class only.
    """
    if positive is None or len({a.target for a in answers}) < 2:
        return None
    found = scores.choose_threshold(answers, list(names).index(positive), aim=aim)
    return min(found, 1.0)  # just above the largest score, where calling nothing is best


def import_(
    module: Any,
    weights: Path,
    out: Path,
    network: str,
    classes: Sequence[str] | None,
    positive: str,
    more: Mapping[str, Any],
    *,
    task: str,
    contract: Contract,
    say: Callable[[str], None] = print,
) -> bundle.Bundle:
    """A bundle of published weights; what the file does not say is the user's.

    Args:
        module: the app's model.py.
        weights: as _class_weights.imported takes them.
        out: of the bundle.
        network: a name of the module's NETWORKS.
        classes: names in the order of the network's answers; of two benign and malignant, else numbered.
        positive: of two classes the one that is looked for, "" for malignant or the like.
        more: settings that differ from the published network's, or that the file cannot say.
        task: of the bundle; `glocal TASK train` begins with it.
        contract: what the bundle says of its input and output.
        say: what to tell.

    Raises WeightsError for a file that does not fit one to one, SettingError for other numbers of classes or channels.
    """
    if classes is not None and len(set(classes)) != len(classes):
        raise SettingError(f"--classes names one twice: {', '.join(classes)}")
    counted = {"classes": len(classes)} if classes else {}
    built, taken = imported(module, weights, network, module.configured(network, {**more, **counted}))
    config = taken.config
    usual = ["benign", "malignant"] if config.classes == 2 else [f"class {i}" for i in range(config.classes)]
    names = list(classes or usual)
    if len(names) != config.classes:
        raise SettingError(f"--classes names {len(names)}, the network answers {config.classes}")
    if config.classes < 2 or config.in_channels != 3:
        raise SettingError(
            f"the network answers {config.classes} classes of pictures with {config.in_channels} channels; two classes "
            "or more and 3 channels are taken here"
        )
    asked = contract(names, looked_for(names, positive), config)
    settings = bundle.Settings(task, bundle.Network(network, as_table(config)), *asked)
    story: dict[str, Any] = {"imported": taken.sentence(weights.name), "validation": None}
    if taken.part != "network":
        story["untrained"] = f"all but its {taken.part}"
    made = bundle.save(out, built, settings, story)
    say(taken.sentence(weights.name))
    say(f"bundle: {out}")
    if taken.part != "network":
        say(f"all but its {taken.part} is untrained: begin with it, glocal {task} train DATA --init {out}")
    return made
