"""The demonstration: a reduced DuoFormer trained for a short time on made histology, scored on patients left out."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from apps.medical import _class_bundles
from apps.medical import _class_page as shown
from apps.medical import classes as scores
from apps.medical.classes import Answer
from apps.medical.pathology_classify import baselines, evaluate, inputs, training
from apps.medical.pathology_classify import data as sets
from apps.medical.pathology_classify.data import Found, Picture
from apps.medical.pathology_classify.options import SHORT, Options
from apps.medical.pathology_classify.pipeline import Pipeline
from apps.medical.pathology_classify.train import parts, train
from core import page
from core.data import _histology_sets, cards
from core.training.fit import Fitted
from core.training.recipe import Recipe

CARD = "breakhis"
MAGNIFICATION = 200
SHARES = {"train": 0.5, "val": 0.15, "test": 0.35}  # of the patients
LIST = "split.csv"
NETWORK, SIMPLE, PLAIN = "DuoFormer, reduced", "colour histogram and logistic regression", "its backbone alone"


@dataclass(frozen=True)
class Show:
    """What is trained, and on how much.

    Attributes:
        options: of a reduced network, so that minutes on two cores are enough.
        rival: of a plain backbone that trains as long in `demo --full`.
        recipe: its time is set by `minutes`.
        minutes: of training of each network: in `demo`, in `demo --full`.
        patients: made ones, with two tiles each: likewise.
    """

    options: Options
    rival: Options
    recipe: Recipe
    minutes: tuple[float, float]
    patients: tuple[int, int]


_CNN = {"depths": [1, 1, 1, 1]}  # blocks of each stage
SHOW = Show(
    Options(
        backbone="resnet/18",
        settings={"scales": 3, "dim": 96, "heads": 4, "depth": 1, "backbone_settings": _CNN},
    ),
    Options(network="backbone", backbone="resnet/18", settings={"overrides": _CNN}),
    replace(SHORT, lr=1e-3, weight_decay=0.05, warmup=0.2, ema=0.95, epochs=400, steps_per_epoch=20, batch=16),
    (0.35, 1.8),
    (64, 240),
)


def run(out: Path, *, full: bool = False, show: Show = SHOW) -> Path:
    """Train, score, draw: a section of the page. Returns the page's path."""
    started = time.perf_counter()
    index = page.add(out, _section(show, out, full=full))
    print(f"{CARD}: {time.perf_counter() - started:.0f} s")
    print(f"look at {index}")
    return index


def _section(show: Show, out: Path, *, full: bool) -> page.Section:
    work = out / "work" / CARD
    shutil.rmtree(work, ignore_errors=True)
    found = made(work / "data", show.patients[int(full)])
    test = sets.chosen(found, "test")
    minutes = show.minutes[int(full)]
    recipe = replace(show.recipe, minutes=minutes)
    answers: dict[str, tuple[Sequence[Answer], float | None]] = {}
    answers[NETWORK], fitted = _trained(found, test, show.options, recipe, work / "run")
    if full:
        answers[PLAIN], _ = _trained(found, test, show.rival, recipe, work / "rival")
    answers[SIMPLE] = _simple(found, test)
    classes, positive = found.classes, sets.positive(found.classes)
    reports = {
        name: scores.report(given, classes, positive=positive, threshold=threshold)
        for name, (given, threshold) in answers.items()
    }
    own, at = answers[NETWORK]
    gains = {
        name: scores.paired(own, given, classes, positive=positive, thresholds=(at, threshold))
        for name, (given, threshold) in answers.items()
        if name != NETWORK
    }
    for name, report in reports.items():
        print(f"  {name}: AUROC {report.value('auroc'):.3f}")
    said = [shown.gain(name, rows) for name, rows in gains.items()]
    print("\n".join(f"  {words}" for words in said))
    pipeline = Pipeline.load(work / "run")
    patients = {part: len({p.group for p in found.pictures if p.part == part}) for part in SHARES}
    millions = sum(p.numel() for p in pipeline.members[0].network.parameters()) / 1e6
    by_id = {p.id: p for p in test}
    drawn = [
        page.Figure(pipeline(by_id[answer.id].path).draw(), words)
        for answer, _, words in shown.extremes(own, pipeline.classes)
    ]
    return page.Section(
        "medical-pathology-classify",
        "Histopathology: benign or malignant tissue of the breast (made)",
        [
            f"A reduced DuoFormer ({millions:.1f} million weights in place of 185, three scales, one block of each "
            f"kind, on a ResNet with one block a stage, from scratch) learned {fitted.seconds:.0f} seconds from "
            f"{patients['train']} patients; which of its states is kept and the threshold were chosen on "
            f"{patients['val']} others, and the numbers are of {patients['test']} further ones. No setting was chosen "
            "on these.",
            cards.find(CARD).made,
            *(f"{words}." for words in said),
        ],
        [
            *drawn,
            shown.calibration(work / "calibration.png", own, at, classes, positive),
            shown.curve(fitted),
            shown.table(reports),
        ],
        _commands(show, minutes, (found.folder / LIST).relative_to(out)),
    )


def made(folder: Path, patients: int) -> Found:
    """Made tiles with their parts by patient, written into a list that is a data set by itself."""
    folder.mkdir(parents=True)
    _histology_sets.write_breakhis(folder, patients=patients, pictures=2)
    found = sets.find(folder, magnification=MAGNIFICATION)
    shown.write_parts(found, SHARES, found.folder / LIST)
    return sets.find(found.folder / LIST)


def _trained(
    found: Found, test: Sequence[Picture], options: Options, recipe: Recipe, out: Path
) -> tuple[tuple[Sequence[Answer], float | None], Fitted]:
    """Answers of a trained network to the test tiles, its threshold, and how it was trained."""
    (part,) = parts(found, options, recipe.seed, out)
    settings, network, fitted = train(found, part, options, recipe)
    training.finish(found, part, settings, network, fitted, options, recipe, "auto")
    scored = evaluate.score(Pipeline.load(out), found, test)
    return (scored.answers, scored.threshold), fitted


def _simple(found: Found, test: Sequence[Picture]) -> tuple[Sequence[Answer], float | None]:
    """The same for logistic regression on colours; its threshold is chosen on the same tiles."""
    numbers = {name: i for i, name in enumerate(found.classes)}
    seen, val = sets.chosen(found, "train"), sets.chosen(found, "val")
    features = {p.id: baselines.features(inputs.picture(p.path)) for p in (*seen, *val, *test)}
    asked = [*val, *test]
    shares = baselines.logistic_baseline(
        np.stack([features[p.id] for p in seen]),
        [numbers[p.label] for p in seen],
        [p.group for p in seen],
        np.stack([features[p.id] for p in asked]),
    )
    answers = [
        Answer(p.id, p.group, numbers[p.label], tuple(map(float, row))) for p, row in zip(asked, shares, strict=True)
    ]
    threshold = _class_bundles.chosen(answers[: len(val)], found.classes, sets.positive(found.classes), "youden")
    return answers[len(val) :], threshold


def _commands(show: Show, minutes: float, data: Path) -> list[str]:
    o, r = show.options, show.recipe
    reduced = "".join(f" '{k}={shown.toml(v)}'" for k, v in o.settings.items())
    how = {
        "minutes": minutes, "lr": r.lr, "weight-decay": r.weight_decay, "warmup": r.warmup, "ema": r.ema,
        "epochs": r.epochs, "steps-per-epoch": r.steps_per_epoch, "batch": r.batch,
    }  # fmt: skip
    changed = "".join(f" --recipe.{k} {v:g}" for k, v in how.items() if v is not None)
    where = f"demo/{data.as_posix()}"
    return [
        f"glocal medical pathology classify train {where} --out run --backbone {o.backbone} --set{reduced}{changed}",
        f"glocal medical pathology classify evaluate run --data {where}",
    ]
