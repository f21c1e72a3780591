"""The demonstration: two sample sets, a network trained for a short time on each, honest baselines beside it."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apps.medical.segmentation import baselines, evaluate, labels, metrics
from apps.medical.segmentation import data as sets
from apps.medical.segmentation.metrics import CaseScore
from apps.medical.segmentation.options import SHORT, Options
from apps.medical.segmentation.pipeline import Pipeline
from apps.medical.segmentation.prepare import scan
from apps.medical.segmentation.train import CACHE, parts, train
from core import bundle, page
from core.data import cards, samples
from core.pictures import curve
from core.training.fit import Fitted
from core.training.recipe import Recipe


@dataclass(frozen=True)
class Show:
    """One sample set and what is trained on it.

    Attributes:
        card: of the sample set.
        title, about: for the page.
        options: of the network: a reduced one, so that minutes on two cores are enough.
        name: of the network in tables.
        recipe: its time is set by `minutes`.
        minutes: of training: in `demo`, in `demo --full`.
        quick: what `demo` changes in the options, so that its half minute is enough to learn something.
        by: protocol of the scores.
    """

    card: str
    title: str
    about: str
    options: Options
    name: str
    recipe: Recipe
    minutes: tuple[float, float]
    quick: Mapping[str, Any] = field(default_factory=dict)
    by: str = "house"


_RECIPE = replace(SHORT, epochs=400, steps_per_epoch=25, batch=4, lr=2e-3)
SMALL = {"widths": [12, 24, 48, 96, 128], "dims": [24, 48, 96, 128], "depths": [1, 1, 1, 1], "state": 4}
TINY = {"widths": [8, 16, 32, 64, 96], "dims": [16, 32, 64, 96], "depths": [1, 1, 1, 1], "state": 4}
SHOWS = (
    Show(
        "abdomen-mr",
        "Medical segmentation: organs in abdominal MR (made)",
        "Five organs in a made abdominal MR set: oblique grids, thick slices, a bias field, Rician noise. Position, "
        "scale and contrast of the test cases lie beyond the training range on purpose.",
        Options(network="swin_umamba", settings=SMALL, patch=(96, 96), validation=0.2),
        "swin_umamba, reduced",
        _RECIPE,
        (0.5, 4.0),
        {"settings": TINY, "spacing": (5.0, 5.0), "patch": (64, 64)},
    ),
    Show(
        "ihc-nuclei",
        "Medical segmentation: nuclei in immunohistochemistry (real picture, weak labels)",
        "Disjoint blocks of one real photograph; the labels come from a colour rule, so a network can at best learn "
        "that rule: this shows that colour pictures go through, not how well nuclei are found.",
        Options(network="unet", backbone="convnext/v2_atto", validation=0.2),
        "unet over convnext/v2_atto",
        _RECIPE,
        (0.15, 1.0),
    ),
)


def run(out: Path, *, full: bool = False, shows: Sequence[Show] = SHOWS) -> Path:
    """Train, score, draw; a section of the page for each sample set. Returns the page's path."""
    index = out / "index.html"
    for show in shows:
        started = time.perf_counter()
        section = _section(show, out / "work" / show.card, full=full)
        index = page.add(out, section)
        print(f"{show.card}: {time.perf_counter() - started:.0f} s")
    print(f"look at {index}")
    return index


def _section(show: Show, work: Path, *, full: bool) -> page.Section:
    shutil.rmtree(work, ignore_errors=True)
    samples.sample(cards.find(show.card), work / "data")
    data = sets.find(work / "data")
    test = sets.chosen(data, "test")
    if not full:
        show = replace(show, options=replace(show.options, **show.quick))
    minutes = show.minutes[int(full)]
    recipe = replace(show.recipe, minutes=minutes)
    scored: dict[str, tuple[CaseScore, ...]] = {}
    runs: dict[str, Fitted] = {}
    rivals = {show.name: show.options}
    if full:
        rivals["dynunet (MONAI), the same time"] = replace(show.options, network="dynunet", settings={})
    for name, options in rivals.items():
        folder = work / options.network
        (part,) = parts(data, options, recipe.seed, folder)
        settings, network, runs[name] = train(data, part, options, recipe)
        shutil.rmtree(folder / CACHE)
        bundle.save(folder, network, settings, {"data": show.card, "minutes": minutes, "validation": None})
        scored[name] = evaluate.score(Pipeline.load(folder), data, test, by=show.by).cases
    for name, answer in (("k-means on grey values", _kmeans), ("mean training mask", baselines.atlas_baseline)):
        scored[name] = _simple(data, test, answer, show.by)
    for name, cases in scored.items():
        print(f"  {name}: Dice {metrics.report(cases).mean['dice'].mean:.3f}")
    reports = {name: metrics.report(cases) for name, cases in scored.items()}
    commands = _commands(show, minutes)
    figures: list[page.Figure | page.Table] = [
        page.Figure(_drawn(Pipeline.load(work / show.options.network), data, case), f"test case {case.id}: {words}")
        for case, words in zip(_extremes(test, scored[show.name]), ("best", "worst"), strict=False)
    ]
    lines = {
        name: ([float(row["seconds"]) for row in f.history], [float(row["val/score"]) for row in f.history])
        for name, f in runs.items()
    }
    figures.append(
        page.Figure(
            curve(_summed(lines), "Dice on validation slices", "seconds of training", "Dice"), "Learning, by wall time."
        )
    )
    figures.append(_table(reports))
    return page.Section(
        f"medical-segment-{show.card}", show.title, [show.about, cards.find(show.card).made], figures, commands
    )


def _summed(lines: dict[str, tuple[list[float], list[float]]]) -> dict[str, tuple[list[float], list[float]]]:
    """Seconds of each epoch as seconds since the start."""
    return {name: (np.cumsum(x).tolist(), y) for name, (x, y) in lines.items()}


def _commands(show: Show, minutes: float) -> list[str]:
    o = show.options
    network = f"--network {o.network}" + (f" --backbone {o.backbone}" if o.network == "unet" else "")
    reduced = "".join(f" '{k}={v}'" for k, v in o.settings.items())
    reduced = f" --set{reduced}" if reduced else ""
    if o.spacing is not None:
        reduced += f" --spacing {o.spacing[0]:g} {o.spacing[1]:g}"
    if o.patch is not None:
        reduced += f" --patch {o.patch[0]} {o.patch[1]}"
    r = show.recipe
    how = {"minutes": minutes, "lr": r.lr, "batch": r.batch, "epochs": r.epochs}
    how["steps-per-epoch"] = r.steps_per_epoch or 0
    changed = "".join(f" --recipe.{k} {v:g}" for k, v in how.items())
    return [
        f"glocal datasets sample {show.card} data",
        f"glocal medical segment train data --out run {network}{reduced}{changed}",
        "glocal medical segment evaluate run --data data",
    ]


def _kmeans(train: Any, test: Any) -> list[NDArray[np.uint16]]:
    return baselines.kmeans_baseline(train, test)


def _simple(
    data: sets.Data, test: Sequence[sets.Case], answer: Callable[..., list[NDArray[np.uint16]]], by: str
) -> tuple[CaseScore, ...]:
    """A baseline's scores; of colour the mean of the channels is taken."""
    known = [_arrays(data, c) for c in data.train]
    asked = [_arrays(data, c) for c in test]
    found = answer([(image, target) for image, target, _ in known], [image for image, _, _ in asked])
    return tuple(
        metrics.score(target, mask, data.classes, spacing=spacing, by=by, id=case.id, group=case.group)
        for case, mask, (_, target, spacing) in zip(test, found, asked, strict=True)
    )


def _arrays(
    data: sets.Data, case: sets.Case
) -> tuple[NDArray[np.float32], NDArray[np.uint8], tuple[float, ...] | None]:
    opened = scan(case, data.channels)
    assert case.label is not None
    target = labels.classes(case.label, opened, data)
    return (
        opened.array()[0].mean(0, dtype=np.float32),
        np.where(target == labels.UNKNOWN, 0, target),
        opened.meta.spacing,
    )


def _extremes(test: Sequence[sets.Case], scores: Sequence[CaseScore]) -> list[sets.Case]:
    """The best and the worst test case, so that neither is picked by hand."""
    order = sorted(range(len(scores)), key=lambda i: scores[i].mean("dice"))
    by_id = {c.id: c for c in test}
    return [by_id[scores[order[-1]].id], *([by_id[scores[order[0]].id]] if len(order) > 1 else [])]


def _drawn(pipeline: Pipeline, data: sets.Data, case: sets.Case) -> NDArray[np.uint8]:
    opened = scan(case, data.channels)
    assert case.label is not None
    target = labels.classes(case.label, opened, data)
    return pipeline(opened).draw(truth=np.where(target == labels.UNKNOWN, 0, target))


def _table(reports: dict[str, metrics.Report]) -> page.Table:
    first = next(iter(reports.values()))
    rows: list[list[str | float | None]] = [
        ["", *(f"Dice {c}" for c in first.classes), "mean Dice", "95 %", "mean NSD"]
    ]
    for name, found in reports.items():
        mean = found.mean["dice"]
        spread = "-" if mean.low is None else f"{mean.low:.3f} to {mean.high:.3f}"
        cells = [row["dice"].mean for row in found.classes.values()]
        rows.append([name, *cells, mean.mean, spread, found.mean["nsd"].mean])
    words = f"{first.cases} test cases. Dice: {first.definitions['dice']} NSD: {first.definitions['nsd']}"
    return page.Table(rows, words)
