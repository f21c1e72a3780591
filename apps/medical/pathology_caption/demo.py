"""The demonstration: a small network trained for a short time on made slides, scored on other patients' slides."""

from __future__ import annotations

import csv
import io
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from apps.medical.pathology_caption import baselines, evaluate, metrics
from apps.medical.pathology_caption import data as sets
from apps.medical.pathology_caption.data import Bag, Found
from apps.medical.pathology_caption.metrics import Captions
from apps.medical.pathology_caption.options import SHORT, Options
from apps.medical.pathology_caption.pipeline import Pipeline
from apps.medical.pathology_caption.train import CACHE, parts, train
from core import bundle, page
from core.data import cards, samples, splits
from core.files import write_text
from core.pictures import curve
from core.training.fit import Fitted
from core.training.recipe import Recipe

CARD = "patchgastric-adc22"
NETWORK, EMBEDDED = "network", "nearest by the network's mean embedding"
PARTS = {"train": 0.6, "val": 0.15, "test": 0.25}  # of the patients
SHOWN = ("bleu4", "meteor", "rouge_l", "cider")


@dataclass(frozen=True)
class Show:
    """What is trained.

    Attributes:
        options: of a reduced network, so that minutes on two cores are enough.
        recipe: its time is set by `minutes`.
        minutes: of training: in `demo`, in `demo --full`.
    """

    options: Options
    recipe: Recipe
    minutes: tuple[float, float]


SHOW = Show(
    Options(
        settings={
            "size": 96,
            "backbone": "uniformer/small",
            "overrides": {"dims": [16, 32, 64, 96], "depths": [1, 1, 1, 1], "head_dim": 16},
            "clusters": 8,
            "dropout": 0.1,
            "decoder": {"dim": 96, "depth": 2, "heads": 4},
        },
        goal="both",
        encoder="trained",
        patches=4,
    ),
    replace(SHORT, epochs=400, batch=8),
    (0.4, 4.0),
)


def run(out: Path, *, full: bool = False, show: Show = SHOW) -> Path:
    """Train, score, draw: a section of the page. Returns the page's path."""
    started = time.perf_counter()
    index = page.add(out, _section(show, out / "work" / CARD, full=full))
    print(f"{CARD}: {time.perf_counter() - started:.0f} s")
    print(f"look at {index}")
    return index


def _section(show: Show, work: Path, *, full: bool) -> page.Section:
    shutil.rmtree(work, ignore_errors=True)
    card = cards.find(CARD)
    samples.sample(card, work / "data")
    data = divided(work / "data")
    minutes = show.minutes[int(full)]
    (part,) = parts(data, show.options, show.recipe.seed, work / "run")
    settings, network, fitted = train(data, part, show.options, replace(show.recipe, minutes=minutes))
    shutil.rmtree(work / "run" / CACHE)
    bundle.save(work / "run", network, settings, {"data": CARD, "minutes": minutes, "validation": None})
    pipeline = Pipeline.load(work / "run")
    test = sets.chosen(data, "test")
    scored = evaluate.score(pipeline, data, test)
    assert scored.captions is not None
    by_network = baselines.nearest(part.train, test, baselines.embedding(pipeline.networks[0]))
    others = {**scored.baselines, EMBEDDED: metrics.score(by_network, test)}
    for name, captions in {NETWORK: scored.captions, **others}.items():
        print(f"  {name}: CIDEr {metrics.report(captions).value('cider'):.1f}")
    return page.Section(
        "medical-pathology-caption",
        "Histopathology captions: made slides of patients that the network has not seen",
        [
            f"A reduced GNN-ViTCap ({sum(p.numel() for p in network.parameters()) / 1e6:.1f} million weights, none of "
            f"them pre-trained), trained for {fitted.seconds:.0f} seconds on {len(part.train)} slides. It embeds the "
            "patches of a slide, clusters them, joins one representative of each cluster to its neighbours, and writes "
            "the caption. Captions repeat between slides, so captions copied from a training slide stand beside.",
            card.made,
        ],
        [*_drawn(scored, test), _curve(fitted), table(scored.captions, others)],
        _commands(show, minutes),
    )


def divided(folder: Path) -> Found:
    """The sample with a part for each patient; where its captions name none, they are written into captions.csv."""
    data = sets.find(folder)
    if any(b.part for b in data.bags):
        return data
    chosen = splits.split([b.group for b in data.bags], PARTS)
    part = {data.bags[i].id: name for name, places in chosen.items() for i in places}
    table = folder / "captions.csv"
    with table.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, [*rows[0], "part"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(row | {"part": part[row["id"]]} for row in rows)
    write_text(table, text.getvalue())
    return sets.find(folder)


def table(network: Captions, others: dict[str, Captions]) -> page.Table:
    """Every method's scores, and how far the network is ahead of it in CIDEr, with the interval over patients."""
    rows: list[list[str | float | None]] = [["", *SHOWN, "CIDEr: network minus it", "95 %"]]
    for name, captions in {NETWORK: network, **others}.items():
        report = metrics.report(captions)
        row: list[str | float | None] = [name, *(round(report.value(m), 1) for m in SHOWN)]
        ahead: list[str | float | None] = [None, ""]
        if name != NETWORK:
            (gain,) = (r for r in metrics.paired(network, captions) if r["metric"] == "cider")
            ahead = [round(gain["difference"], 1), f"{gain['low']:.1f} to {gain['high']:.1f}"]
        rows.append([*row, *ahead])
    report = metrics.report(network)
    words = " ".join(report.definitions[key] for key in (*SHOWN[1:], "words", "scale", "interval"))
    return page.Table(rows, f"{report.bags} test slides of {report.groups} patients. {words}")


def _drawn(scored: evaluate.Scored, test: tuple[Bag, ...]) -> list[page.Figure]:
    """The best and the worst test slide, so that neither is picked by hand."""
    assert scored.captions is not None
    order = np.argsort(scored.captions.each["cider"], kind="stable")
    known = {b.id: b.caption for b in test}
    cases = {c.meta.id: c for c in scored.cases}
    figures = []
    for word, place in (("best", order[-1]), ("worst", order[0])):
        case = cases[scored.captions.ids[int(place)]]
        text = f'{word} test slide: written "{case.caption}", known "{known[case.meta.id]}"'
        figures.append(page.Figure(case.draw(), text))
    return figures


def _curve(fitted: Fitted) -> page.Figure:
    seconds = np.cumsum([float(row["seconds"]) for row in fitted.history]).tolist()
    lines = {NETWORK: (seconds, [float(row["val/words"]) for row in fitted.history])}
    chart = curve(lines, "Probability of a validation caption's words", "seconds of training", "geometric mean")
    return page.Figure(
        chart, "Learning, by wall time: the probability of each right word behind the right ones before."
    )


def _commands(show: Show, minutes: float) -> list[str]:
    o, r = show.options, show.recipe
    reduced = "".join(f" '{key}={_toml(value)}'" for key, value in o.settings.items())
    how = {"minutes": minutes, "lr": r.lr, "batch": r.batch, "epochs": r.epochs}
    changed = "".join(f" --recipe.{k} {v:g}" for k, v in how.items())
    return [
        f"glocal datasets sample {CARD} data",
        f"glocal medical pathology caption train data --out run --network {o.network} --set{reduced} --goal {o.goal} "
        f"--encoder {o.encoder} --patches {o.patches}{changed}",
        "glocal medical pathology caption evaluate run --data data",
    ]


def _toml(value: Any) -> str:
    """A setting as `--set` reads it."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k} = {_toml(v)}" for k, v in value.items()) + "}"
    return str(value)
