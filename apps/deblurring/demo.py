"""The demonstration: a reduced network trained for a short time on made motion blur, scored on photographs left out."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Dataset

from apps.deblurring import data as sets
from apps.deblurring import evaluate, model, scoring
from apps.deblurring._crops import Crops, Shelf
from apps.deblurring._losses import Reconstruction, pruning
from apps.deblurring.baselines import BASELINES
from apps.deblurring.data import Pair
from apps.deblurring.evaluate import Scored
from apps.deblurring.options import SHORT, Options
from apps.deblurring.pipeline import Pipeline
from apps.deblurring.scoring import CLASS, CaseScore
from apps.deblurring.train import parts, train
from core import bundle, page, pictures
from core.data import cards, samples
from core.training.fit import Fitted
from core.training.recipe import Recipe

CARD = "motion-blur"
METRICS = ("psnr", "weighted_psnr", "ssim", "weighted_ssim", "blur_effect")
NETWORK = "network"
FIXED = 4  # crops that must be learned by heart


@dataclass(frozen=True)
class Show:
    """What is trained.

    Attributes:
        options: of a reduced network, so that minutes on two cores are enough.
        recipe: its time is set by `minutes`.
        minutes: of training: in `demo`, in `demo --full`.
        steps: at most, on four fixed crops in `demo --full`; 0 leaves that out.
    """

    options: Options
    recipe: Recipe
    minutes: tuple[float, float]
    steps: int


SHOW = Show(
    Options(
        settings={
            "dims": [8, 24, 48, 96], "depths": [1, 1, 1, 2, 1, 1, 1], "heads": [1, 1, 2, 3, 2, 1, 1],
            "ratio": 2.0, "drop_path": 0.0, "still": True, "drawn": False,
            "prune": [False, False, False, False, False, False, True],
        },
        patch=64, blurred=0.9, prune=0.02, shifted=False, ssim=0.05, fft=0.03, last=0.1, validation=0.25,
    ),
    replace(SHORT, lr=2e-3, epochs=400, steps_per_epoch=25, batch=4, schedule="onecycle", warmup=0.1, ema=0.98),
    (0.3, 3.0),
    300,
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
    card = cards.find(CARD)
    samples.sample(card, work / "data")
    data = sets.find(work / "data")
    test = sets.chosen(data, "test")
    text = []
    if full and show.steps:
        gain, steps = overfitted(data.train, show)
        text.append(
            f"The same network learns {FIXED} fixed crops by heart: {gain:+.2f} dB over the blurred crops after "
            f"{steps} steps. Leaving a picture as it is would be a strong answer: training gets past it."
        )
        print(f"  {FIXED} fixed crops: {gain:+.2f} dB after {steps} steps")
    minutes = show.minutes[int(full)]
    (part,) = parts(data, show.options, show.recipe.seed, work / "run")
    settings, network, fitted = train(part, show.options, replace(show.recipe, minutes=minutes))
    bundle.save(work / "run", network, settings, {"data": CARD, "minutes": minutes, "validation": None})
    pipeline = Pipeline.load(work / "run")
    scored = evaluate.score(pipeline, data, test)
    methods = {**_simple(test), NETWORK: scored.cases}
    for name, cases in methods.items():
        print(f"  {name}: PSNR {_mean(cases, 'psnr'):.2f}, of what is blurred {_mean(cases, 'weighted_psnr'):.2f}")
    print(f"  {_gain(scored)}")
    size = sum(p.numel() for p in network.parameters()) / 1e6
    return page.Section(
        "deblurring",
        "Deblurring: moving things in photographs that the network has not seen",
        [
            f"A reduced LMD-ViT ({size:.1f} million weights), trained for {fitted.seconds:.0f} seconds on "
            f"{len(part.train)} pairs of {len({p.group for p in part.train})} photographs. Windows in which its "
            "predictors see no blur are skipped.",
            *text,
            card.made,
        ],
        [*_drawn(pipeline, test, scored), _curve(fitted), _table(methods, scored), _each(test, scored)],
        _commands(show, minutes),
    )


def overfitted(pairs: Sequence[Pair], show: Show = SHOW, *, enough: float = 1.5) -> tuple[float, int]:
    """Train a fresh network on four fixed crops; the mean gain in PSNR over them in dB, and the steps it took.

    Args:
        pairs: to cut the crops from.
        show: whose network, pruning loss and learning rate (with the published reconstruction losses, unshifted).
        enough: dB at which it ends.
    """
    torch.manual_seed(show.recipe.seed)
    crops = _fixed(Crops(pairs, show.options.patch, show.options, 1, Shelf()))
    network = model.create(show.options.network, **show.options.settings)
    optimizer = torch.optim.AdamW(network.parameters(), show.recipe.lr, weight_decay=0.0)
    loss_of, gain, step = Reconstruction(shifted=False), -float("inf"), 0
    for step in range(1, show.steps + 1):
        restored = network.train()(crops["blurred"])
        loss = loss_of(restored.image, crops["sharp"]) + show.options.prune * pruning(restored.scores, crops["mask"])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), show.recipe.clip or 1.0)
        optimizer.step()
        if step % 25 == 0 or step == show.steps:
            gain = _gained(network, crops)
            if gain >= enough:
                break
    return gain, step


def _fixed(crops: Dataset[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The first crops in which something is blurred, as a batch."""
    found: list[dict[str, Tensor]] = []
    for i in range(50):
        crop = crops[i]
        if (crop["blurred"] - crop["sharp"]).square().mean() > 1e-4:
            found.append(crop)
        if len(found) == FIXED:
            break
    return {name: torch.stack([crop[name] for crop in found]) for name in found[0]}


@torch.no_grad()
def _gained(network: nn.Module, crops: dict[str, Tensor]) -> float:
    errors = [
        (x - crops["sharp"]).square().mean((1, 2, 3))
        for x in (crops["blurred"], network.eval()(crops["blurred"]).image)
    ]
    return float((10 * (errors[0] / errors[1]).log10()).mean())


def _simple(test: Sequence[Pair]) -> dict[str, tuple[CaseScore, ...]]:
    """The scores of what needs no training."""
    found: dict[str, list[CaseScore]] = {name: [] for name in BASELINES}
    for pair in test:
        read = sets.read_pair(pair)
        for name, answer in BASELINES.items():
            found[name].append(scoring.score(answer(read.blurred), read.sharp, read.mask, id=pair.id, group=pair.group))
    return {name: tuple(cases) for name, cases in found.items()}


def _mean(cases: Sequence[CaseScore], metric: str) -> float:
    return float(np.nanmean([case.row[metric] for case in cases]))


def _gain(scored: Scored) -> str:
    """The gains in PSNR over the blurred photographs, whole and where they are blurred, with their intervals."""
    words = []
    for metric, what in (("psnr", "whole photographs"), ("weighted_psnr", "what is blurred")):
        row = next(r for r in scored.gain.rows if r["class"] == CLASS and r["metric"] == metric)
        spread = "" if row["low"] is None else f" (95 % {row['low']:+.3f} to {row['high']:+.3f})"
        words.append(f"{row['difference']:+.3f} dB{spread} of {what}")
    groups = len({case.group for case in scored.cases})
    return f"gain {', '.join(words)}; {len(scored.cases)} pairs of {groups} photographs left out"


def _table(methods: dict[str, tuple[CaseScore, ...]], scored: Scored) -> page.Table:
    rows: list[list[str | float | None]] = [["mean over photographs", *METRICS]]
    rows += [[name, *(_mean(cases, metric) for metric in METRICS)] for name, cases in methods.items()]
    words = scored.report.definitions
    return page.Table(rows, f"{_gain(scored)}. " + " ".join(f"{m}: {words[m]}" for m in METRICS))


def _each(test: Sequence[Pair], scored: Scored) -> page.Table:
    """Every photograph's own numbers."""
    names = {pair.id: pair.group.rsplit("/", 1)[-1] for pair in test}
    rows: list[list[str | float | None]] = [
        ["photograph", "PSNR blurred", "PSNR restored", "gain", "of what is blurred", "precision", "recall"]
    ]
    for case, own in zip(scored.cases, scored.inputs, strict=True):
        values = [own.row["psnr"], case.row["psnr"], case.row["psnr"] - own.row["psnr"]]
        values += [case.row["weighted_psnr"] - own.row["weighted_psnr"], case.row["precision"], case.row["recall"]]
        rows.append([f"{names[case.id]} {case.id.rsplit('/', 1)[-1]}", *(None if np.isnan(v) else v for v in values)])
    return page.Table(rows, "Photographs left out of training; precision and recall of the blur that was found.")


def _drawn(pipeline: Pipeline, test: Sequence[Pair], scored: Scored) -> list[page.Figure]:
    """The photographs with the largest and the smallest gain, so that neither is picked by hand."""
    gains = {a.id: a.row["psnr"] - b.row["psnr"] for a, b in zip(scored.cases, scored.inputs, strict=True)}
    order = sorted((pair for pair in test if pair.id in gains), key=lambda pair: -gains[pair.id])
    figures = []
    for pair in [order[0], order[-1]] if len(order) > 1 else order:
        read = sets.read_pair(pair)
        assert read.sharp is not None
        result = pipeline(read.blurred)
        row = [
            ("blurred", _bytes(read.blurred)),
            ("restored", _bytes(result.image)),
            ("sharp", _bytes(read.sharp)),
            ("blur that was found", result.mask),
        ]
        if read.mask is not None:
            row.append(("true blur", _bytes(read.mask)))
        words = f"{pair.group.rsplit('/', 1)[-1]}, left out of training: {gains[pair.id]:+.2f} dB"
        figures.append(page.Figure(pictures.panel(row, columns=3), words))
    return figures


def _bytes(values: NDArray[np.floating]) -> NDArray[np.uint8]:
    return np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)


def _curve(fitted: Fitted) -> page.Figure:
    seconds = np.cumsum([float(row["seconds"]) for row in fitted.history]).tolist()
    lines = {"gain": (seconds, [float(row["val/score"]) for row in fitted.history])}
    chart = pictures.curve(lines, "Gain in PSNR on the validation photograph", "seconds of training", "dB")
    return page.Figure(chart, "Learning, by wall time.")


def _commands(show: Show, minutes: float) -> list[str]:
    o, r = show.options, show.recipe
    reduced = "".join(f" '{k}={json.dumps(v)}'" for k, v in o.settings.items())
    how = {
        "minutes": minutes, "lr": r.lr, "batch": r.batch, "epochs": r.epochs, "steps-per-epoch": r.steps_per_epoch,
        "warmup": r.warmup, "ema": r.ema,
    }  # fmt: skip
    changed = "".join(f" --recipe.{k} {v:g}" for k, v in how.items() if v is not None)
    chosen = f"--patch {o.patch} --blurred {o.blurred:g} --prune {o.prune:g} --gate {o.gate:g}"
    chosen += f" --ssim {o.ssim:g} --fft {o.fft:g} --last {o.last:g} --no-shifted{' --colours' * o.colours}"
    chosen += f" --validation {o.validation:g} --recipe.schedule {r.schedule}"
    return [
        f"glocal datasets sample {CARD} data",
        f"glocal deblurring train data --out run --set{reduced} {chosen}{changed}",
        "glocal deblurring evaluate run --data data",
    ]
