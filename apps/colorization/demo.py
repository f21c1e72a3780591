"""The demonstration: a small network trained for a short time on a few photographs, scored on photographs left out."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from apps.colorization import data as sets
from apps.colorization import evaluate
from apps.colorization._crops import Squares
from apps.colorization.baselines import BASELINES
from apps.colorization.data import Photograph
from apps.colorization.evaluate import Scored
from apps.colorization.lab import to_rgb
from apps.colorization.metrics import CaseScore, hinted
from apps.colorization.options import SHORT, Options
from apps.colorization.pipeline import Pipeline
from apps.colorization.train import parts, train
from core import bundle, page, pictures
from core.data import cards, samples
from core.training.fit import Fitted
from core.training.recipe import Recipe

CARD = "photographs"
COUNTS = (5, 20, 50)
SHOWN = 20  # hints in the pictures
NAMES = {
    "grey": "no colour",
    "nearest": "nearest hint",
    "weighted": "weighted hints",
    evaluate.NETWORK: "network",
}


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
        settings={"dim": 128, "depth": 4, "heads": 4},
        augment="colours",
        start="even",
    ),
    replace(SHORT, lr=2e-3, epochs=400, steps_per_epoch=50, batch=8),
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
    data = sets.find(work / "data")
    test = sets.chosen(data, "test")
    minutes = show.minutes[int(full)]
    recipe = replace(show.recipe, minutes=minutes)
    (part,) = parts(data, show.options, recipe.seed, work / "run")
    settings, network, fitted = train(part, show.options, recipe)
    bundle.save(work / "run", network, settings, {"data": CARD, "minutes": minutes, "validation": None})
    pipeline = Pipeline.load(work / "run")
    scored = evaluate.score(pipeline, data, test, counts=COUNTS)
    for name, cases in methods(scored).items():
        print(f"  {name}: PSNR {', '.join(f'{mean(cases, n):.2f} at {n}' for n in COUNTS)} hints")
    return page.Section(
        "colorization",
        "Colorization: hints spread over photographs that the network has not seen",
        [
            f"A reduced iColoriT ({sum(p.numel() for p in network.parameters()) / 1e6:.1f} million weights), trained "
            f"for {fitted.seconds:.0f} seconds on {len({p.group for p in part.train})} photographs with their colours "
            "turned at random: it learns how far a hint reaches, not what colour things have. The same hints are given "
            "to three rules that need no training.",
            card.made,
        ],
        [*drawn(pipeline, test), _curve(fitted), table(scored)],
        _commands(show, minutes),
    )


def methods(scored: Scored) -> dict[str, tuple[CaseScore, ...]]:
    """What is compared, by the name that it has on the page."""
    found = {**scored.baselines, evaluate.NETWORK: scored.cases}
    return {words: found[name] for name, words in NAMES.items()}


def mean(cases: Sequence[CaseScore], count: int) -> float:
    """PSNR in dB with so many hints, over photographs."""
    return float(np.mean([c.values[hinted(count)]["psnr"] for c in cases]))


def table(scored: Scored) -> page.Table:
    """Every method's PSNR: the mean, and each photograph's."""
    rows: list[list[str | float | None]] = [["photograph", "colours", *(f"PSNR@{n}" for n in COUNTS)]]
    rows += [["mean", name, *(mean(cases, n) for n in COUNTS)] for name, cases in methods(scored).items()]
    for i, case in enumerate(scored.cases):
        for name, cases in methods(scored).items():
            rows.append([Path(case.id).name, name, *(cases[i].values[hinted(n)]["psnr"] for n in COUNTS)])
    report = scored.report
    low_high = ", ".join(
        f"{s.low:.2f} to {s.high:.2f} at {n}"
        for n in COUNTS
        if (s := report.classes[hinted(n)]["psnr"]).low is not None and s.high is not None
    )
    words = (
        f"{report.cases} photographs, whole, none of which was trained on. PSNR@N with N hints: "
        f"{report.definitions['psnr']} {report.definitions['pictures']}"
    )
    return page.Table(rows, words + (f" Network, 95 % over photographs: {low_high}." if low_high else ""))


def drawn(pipeline: Pipeline, photographs: Sequence[Photograph]) -> list[page.Figure]:
    """A row of pictures for each photograph: itself, the hints, and what each method makes of them."""
    items = Squares(photographs, pipeline.size, pipeline.cells, (SHOWN,))
    figures = []
    for i, photograph in enumerate(photographs):
        lab, mask = items[i]["lab"][None], items[i]["masks"]
        answers = {**BASELINES, evaluate.NETWORK: pipeline.colour}
        row = [("photograph", _picture(items[i]["rgb"])), (f"{SHOWN} hints", dotted(lab, mask, pipeline.cells))]
        for name in ("nearest", "weighted", evaluate.NETWORK):
            ab = answers[name](lab, mask)
            row.append((NAMES[name], _picture(to_rgb(torch.cat([lab[:, :1], ab], dim=1))[0])))
        name = photograph.path.stem
        figures.append(page.Figure(pictures.panel(row, columns=5), f"{name}, left out of training, {SHOWN} hints"))
    return figures


def dotted(lab: Tensor, mask: Tensor, cells: int) -> NDArray[np.uint8]:
    """The grey picture with a white square around each hint's colour: lab (1, 3, S, S), mask (1, cells^2)."""
    picture = _picture(to_rgb(torch.cat([lab[:, :1], torch.zeros_like(lab[:, 1:])], dim=1))[0]).copy()
    true = _picture(to_rgb(lab)[0])
    side = picture.shape[0] // cells
    for place in (~mask[0]).nonzero().flatten().tolist():
        y, x = (place // cells) * side, (place % cells) * side
        picture[max(0, y - 3) : y + side + 3, max(0, x - 3) : x + side + 3] = 255
        colour = true[y : y + side, x : x + side].mean((0, 1)).round().astype(np.uint8)
        picture[max(0, y - 2) : y + side + 2, max(0, x - 2) : x + side + 2] = colour
    return picture


def _picture(rgb: Tensor) -> NDArray[np.uint8]:
    """(3, H, W) in 0..1 -> (H, W, 3), cut off at 1."""
    return np.asarray((rgb.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy(), np.uint8)


def _curve(fitted: Fitted) -> page.Figure:
    seconds = np.cumsum([float(row["seconds"]) for row in fitted.history]).tolist()
    lines = {f"{n} hints": (seconds, [float(row[f"val/psnr {n}"]) for row in fitted.history]) for n in COUNTS}
    chart = pictures.curve(lines, "PSNR on the validation photograph", "seconds of training", "dB")
    return page.Figure(chart, "Learning, by wall time.")


def _commands(show: Show, minutes: float) -> list[str]:
    o, r = show.options, show.recipe
    reduced = "".join(f" '{k}={v}'" for k, v in o.settings.items())
    how = {"minutes": minutes, "lr": r.lr, "batch": r.batch, "epochs": r.epochs, "steps-per-epoch": r.steps_per_epoch}
    changed = "".join(f" --recipe.{k} {v:g}" for k, v in how.items() if v is not None)
    crop = "" if o.crop == Options().crop else f" --crop {o.crop[0]:g} {o.crop[1]:g}"
    return [
        f"glocal datasets sample {CARD} data",
        f"glocal colorization train data --out run --network {o.network} --set{reduced} --augment {o.augment} "
        f"--start {o.start} --hints {o.hints}{crop}{changed}",
        "glocal colorization evaluate run --data data --counts 5 20 50",
    ]
