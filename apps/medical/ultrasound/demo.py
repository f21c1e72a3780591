"""The demonstration: a reduced HSQformer trained for a short time on made ultrasound, scored on patients left out."""

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
from apps.medical.ultrasound import baselines, evaluate, inputs, training
from apps.medical.ultrasound import data as sets
from apps.medical.ultrasound.data import Found, Picture
from apps.medical.ultrasound.options import SHORT, Options
from apps.medical.ultrasound.pipeline import Pipeline
from apps.medical.ultrasound.train import parts, train
from core import page
from core.data import _ultrasound_sets, cards
from core.training.fit import Fitted
from core.training.recipe import Recipe

CARD = "us-liver"
SHARES = {"train": 0.5, "val": 0.15, "test": 0.35}  # of the patients
LIST = "split.csv"
NETWORK, SIMPLE, PLAIN = "HSQformer, reduced", "logistic regression", "one backbone, as long"


@dataclass(frozen=True)
class Show:
    """What is trained, and on how much.

    Attributes:
        options: of a reduced network, so that minutes on two cores are enough.
        rival: of a plain backbone that trains as long in `demo --full`.
        recipe: its time is set by `minutes`.
        minutes: of training of each network: in `demo`, in `demo --full`.
        patients: made ones, with two pictures each: likewise.
    """

    options: Options
    rival: Options
    recipe: Recipe
    minutes: tuple[float, float]
    patients: tuple[int, int]


SHOW = Show(
    Options(
        settings={
            "dim": 96, "queries": 20, "heads": [1, 2, 4, 8], "depths": [1, 1, 1], "dropout": 0.1, "drop_path": 0.0,
            "start": "scaled",
            "swin_settings": {"dim": 24, "depths": [1, 1, 2, 1], "heads": [1, 2, 4, 8]},
            "convnext_settings": {"dims": [24, 48, 96, 192], "depths": [1, 1, 2, 1], "layer_scale": 1.0},
        },
        size=96, augment="light", mix=0.0, rates=(1.0, 1.0, 1.0),
    ),
    Options(network="backbone", backbone="convnext/v2_atto", size=96, augment="light", mix=0.0, rates=(1.0, 1.0, 1.0)),
    replace(SHORT, lr=1e-3, weight_decay=0.05, warmup=0.2, ema=0.98, epochs=400, steps_per_epoch=40, batch=16),
    (0.35, 3.0),
    (120, 300),
)  # fmt: skip


def run(out: Path, *, full: bool = False, show: Show = SHOW) -> Path:
    """Train, score, draw: a section of the page. Returns the page's path."""
    started = time.perf_counter()
    index = page.add(out, _section(show, out / "work" / CARD, full=full))
    print(f"{CARD}: {time.perf_counter() - started:.0f} s")
    print(f"look at {index}")
    return index


def _section(show: Show, work: Path, *, full: bool) -> page.Section:
    shutil.rmtree(work, ignore_errors=True)
    found = made(work / "data", show.patients[int(full)])
    test = sets.chosen(found, "test")
    minutes = show.minutes[int(full)]
    answers: dict[str, tuple[Sequence[Answer], float | None]] = {}
    answers[NETWORK], fitted = _trained(found, test, show.options, replace(show.recipe, minutes=minutes), work / "run")
    if full:
        answers[PLAIN], _ = _trained(found, test, show.rival, replace(show.recipe, minutes=minutes), work / "rival")
    answers[SIMPLE] = _simple(found, test)
    classes, positive = found.classes, sets.positive(found.classes)
    reports = {
        name: scores.report(given, classes, positive=positive, threshold=threshold)
        for name, (given, threshold) in answers.items()
    }
    gains = {
        name: scores.paired(answers[NETWORK][0], given, classes, positive=positive,
                            thresholds=(answers[NETWORK][1], threshold))
        for name, (given, threshold) in answers.items() if name != NETWORK
    }  # fmt: skip
    for name, report in reports.items():
        print(f"  {name}: AUROC {report.value('auroc'):.3f}")
    said = [shown.gain(name, rows) for name, rows in gains.items()]
    print("\n".join(f"  {words}" for words in said))
    pipeline = Pipeline.load(work / "run")
    patients = {part: len({p.group for p in found.pictures if p.part == part}) for part in SHARES}
    millions = sum(p.numel() for p in pipeline.members[0].network.parameters()) / 1e6
    return page.Section(
        "medical-ultrasound",
        "Ultrasound screening: malignant or benign lesions of the liver (made)",
        [
            f"A reduced HSQformer ({millions:.1f} million weights, pictures of {show.options.size} pixels, from "
            f"scratch) learned {fitted.seconds:.0f} seconds from {patients['train']} patients; which of its states is "
            f"kept and the threshold were chosen on {patients['val']} others, and the numbers are of "
            f"{patients['test']} further ones. No setting was chosen on these.",
            cards.find(CARD).made,
            *(f"{words}." for words in said),
        ],
        [
            *_drawn(pipeline, test, answers[NETWORK][0]),
            shown.calibration(work / "calibration.png", *answers[NETWORK], classes, positive),
            shown.curve(fitted),
            shown.table(reports),
        ],
        _commands(show, minutes),
    )  # fmt: skip


def made(folder: Path, patients: int) -> Found:
    """Made pictures with their parts by patient, written into a list that is a data set by itself."""
    folder.mkdir(parents=True)
    _ultrasound_sets.write_liver(folder, patients=patients, pictures=2)
    found = sets.find(folder)
    shown.write_parts(found, SHARES, folder / LIST)
    return sets.find(folder / LIST)


def _trained(
    found: Found, test: Sequence[Picture], options: Options, recipe: Recipe, out: Path
) -> tuple[tuple[Sequence[Answer], float | None], Fitted]:
    """Answers of a trained network to the test pictures, its threshold, and how it was trained."""
    (part,) = parts(found, options, recipe.seed, out)
    settings, network, fitted = train(found, part, options, recipe)
    training.finish(found, part, settings, network, fitted, options, recipe, "auto")
    scored = evaluate.score(Pipeline.load(out), found, test)
    return (scored.answers, scored.threshold), fitted


def _simple(found: Found, test: Sequence[Picture]) -> tuple[Sequence[Answer], float | None]:
    """The same for logistic regression on intensity and texture; its threshold is chosen on the same pictures."""
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
    positive = sets.positive(found.classes)
    threshold = _class_bundles.chosen(answers[: len(val)], found.classes, positive, "youden")
    return answers[len(val) :], threshold


def _drawn(pipeline: Pipeline, test: Sequence[Picture], answers: Sequence[Answer]) -> list[page.Figure]:
    by_id = {p.id: p for p in test}
    return [
        page.Figure(pipeline(by_id[answer.id].path).draw(), f"{words}; what the queries looked at")
        for answer, _, words in shown.extremes(answers, pipeline.names)
    ]


def _commands(show: Show, minutes: float) -> list[str]:
    o, r = show.options, show.recipe
    reduced = "".join(f" '{k}={shown.toml(v)}'" for k, v in o.settings.items())
    how = {
        "minutes": minutes, "lr": r.lr, "weight-decay": r.weight_decay, "warmup": r.warmup, "ema": r.ema,
        "epochs": r.epochs, "steps-per-epoch": r.steps_per_epoch, "batch": r.batch,
    }  # fmt: skip
    changed = "".join(f" --recipe.{k} {v:g}" for k, v in how.items() if v is not None)
    chosen = f"--size {o.size} --augment {o.augment} --mix {o.mix:g} --rates {' '.join(f'{x:g}' for x in o.rates)}"
    where = f"demo/work/{CARD}/data/{LIST}"
    return [
        f"glocal medical ultrasound train {where} --out run --set{reduced} {chosen}{changed}",
        f"glocal medical ultrasound evaluate run --data {where}",
    ]
