"""Scores of bundles on photographs in colour, beside what needs no training."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from apps.colorization import _beside, _canvas, hints, lab, metrics, simulate
from apps.colorization.baselines import BASELINES
from apps.colorization.data import Data, Photograph
from apps.colorization.metrics import CaseScore, Comparison, Report
from apps.colorization.pipeline import Pipeline
from apps.colorization.session import Session
from core import batch
from core.data import photos
from core.errors import FileError, SettingError
from core.files import aside, write_text
from core.score_tables import compared

__all__ = ["COUNTS", "Scored", "compared", "save", "score", "table"]

COUNTS = (1, 5, 10, 20, 50, 100)
NETWORK = "network"  # of rows in cases.csv, beside the baselines' names
Colours = Callable[[Tensor, Tensor], Tensor]
Perceptual = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Scored:
    """A bundle's scores over photographs, those of the baselines, and what could not be scored."""

    cases: tuple[CaseScore, ...]
    baselines: Mapping[str, tuple[CaseScore, ...]]
    failures: tuple[batch.Failure, ...]

    @property
    def report(self) -> Report:
        return metrics.report(self.cases)

    @property
    def beside(self) -> dict[str, Report]:
        return {name: metrics.report(cases) for name, cases in self.baselines.items()}

    @property
    def against(self) -> dict[str, Comparison]:
        """The network and each baseline on the same photographs, paired; in the metrics that both have."""
        return {name: metrics.paired(_without_range(self.cases), cases) for name, cases in self.baselines.items()}


def score(
    pipeline: Pipeline,
    data: Data,
    photographs: Sequence[Photograph],
    *,
    counts: Sequence[int] = COUNTS,
    by: str = "published",
    seed: int = simulate.SEED,
    lpips: str | Path | None = None,
    log: batch.Log | None = None,
) -> Scored:
    """Colour every photograph with hints of its own colours, and compare; one that fails is listed.

    Hints are the published ones where the data has them for a count, else drawn by `simulate.test_cells`.

    Args:
        pipeline: the networks.
        data: that the photographs are of.
        photographs: to score, in colour.
        counts: of hints; all of them in every photograph.
        by: "published" (as computed) or "saved" (rounded to 8 bits first).
        seed: of hints that are drawn.
        lpips: weights of VGG-16, for the metric LPIPS.
        log: says how far it is.

    Raises SettingError for no count or one that does not suit, and as `metrics.lpips`.
    """
    if not counts or min(counts) < 0 or max(counts) > pipeline.cells**2:
        raise SettingError(f"counts of hints are 0 to {pipeline.cells**2}, got {list(counts)}")
    rule = metrics.with_metrics(metrics.protocol(by), "delta_e")
    perceptual = None if lpips is None else metrics.lpips(lpips)
    if perceptual is not None:
        rule = metrics.with_metrics(rule, "lpips")
    work = partial(_one, pipeline, data, sorted(set(counts)), rule, seed, perceptual)
    good: list[dict[str, CaseScore]] = []
    bad: list[batch.Failure] = []
    for answer in batch.each(list(photographs), lambda: work, name=lambda p: p.id):
        if isinstance(answer, batch.Done):
            good.append(answer.result)
        else:
            bad.append(answer)
        if log is not None:
            log.add(answer, _line(answer.result) if isinstance(answer, batch.Done) else "")
    each = {name: tuple(g[name] for g in good) for name in BASELINES}
    return Scored(tuple(g[NETWORK] for g in good), each, tuple(bad))


def _one(
    pipeline: Pipeline,
    data: Data,
    counts: Sequence[int],
    rule: metrics.Protocol,
    seed: int,
    perceptual: Perceptual | None,
    item: Photograph,
) -> dict[str, CaseScore]:
    """One photograph's scores by the network and by every baseline."""
    session = Session(pipeline, photos.read(item.path, colour=False))
    if session.grey:
        raise FileError(item.path, "is grey, so there is no colour to compare with", "leave it out with --exclude")
    grid = pipeline.cells if not item.hints else pipeline.size // data.cell
    places = {n: _places(item, n, grid, seed) for n in counts}
    masks = torch.stack([simulate.as_mask(p, grid) for p in places.values()])
    truth = session.lab.expand(len(counts), -1, -1, -1)
    side = pipeline.size
    picture = torch.from_numpy(_canvas.reduced(session.photo.pixels, side, side)).permute(2, 0, 1).expand(3, -1, -1)
    found = {}
    for name, colours in {NETWORK: pipeline.colour, **BASELINES}.items():
        answers = torch.cat([truth[:, :1], colours(truth, masks)], dim=1)
        more = {
            n: {"delta_e": _at_hints(a, session.lab, places[n], grid)} for n, a in zip(counts, answers, strict=True)
        }
        asked = rule
        if name == NETWORK:
            asked = metrics.with_metrics(rule, "range")
            for n, reach in _ranges(pipeline, session.lab, answers, places, grid).items():
                more[n]["range"] = reach
        pictures = dict(zip(counts, lab.to_rgb(answers), strict=True))
        found[name] = metrics.score(
            picture,
            pictures,
            by=asked,
            id=item.id,
            group=item.group,
            unit=f"{side} px",
            perceptual=perceptual,
            more=more,
        )
    return found


def _places(item: Photograph, count: int, grid: int, seed: int) -> NDArray[np.int64]:
    """Rows and columns (N, 2) of hint cells: the published ones, or drawn."""
    if count not in item.hints:
        return simulate.test_cells(count, grid, Path(item.id).name, seed)
    return np.asarray(hints.positions(item.hints[count]) * grid // hints.PUBLISHED, np.int64)


def _at_hints(answer: Tensor, truth: Tensor, places: NDArray[np.int64], grid: int) -> float:
    """Mean CIEDE2000 at the hinted cells; NaN without hints."""
    if not len(places):
        return float("nan")
    got, asked = (torch.nn.functional.adaptive_avg_pool2d(x[None], grid)[0] for x in (answer, truth))
    row, column = torch.from_numpy(places).T
    return float(metrics.hint_delta_e(got[:, row, column].T, asked[:, row, column].T).mean())


def _ranges(
    pipeline: Pipeline, truth: Tensor, answers: Tensor, places: Mapping[int, NDArray[np.int64]], grid: int
) -> dict[int, float]:
    """Count -> how far its last hint reaches, against the answer without that one; NaN for no hints."""
    found = dict.fromkeys(places, float("nan"))
    hinted = [(n, a) for (n, p), a in zip(places.items(), answers, strict=True) if len(p)]
    if not hinted:
        return found
    image = truth.expand(len(hinted), -1, -1, -1)
    masks = torch.stack([simulate.as_mask(places[n][:-1], grid) for n, _ in hinted])
    before = torch.cat([image[:, :1], pipeline.colour(image, masks)], dim=1)
    cell = pipeline.size / grid
    last = torch.tensor(np.array([places[n][-1] for n, _ in hinted])) * cell + (cell - 1) / 2
    means, _ = metrics.propagation_range(before, torch.stack([a for _, a in hinted]), last)
    return found | {n: float(m) for (n, _), m in zip(hinted, means, strict=True)}


def _without_range(cases: Sequence[CaseScore]) -> list[CaseScore]:
    """The network's scores in the baselines' metrics, so that they can be paired."""
    return [
        replace(
            c,
            protocol=replace(c.protocol, metrics=tuple(m for m in c.protocol.metrics if m != "range")),
            values={n: {m: v for m, v in row.items() if m != "range"} for n, row in c.values.items()},
        )
        for c in cases
    ]


def _line(found: Mapping[str, CaseScore]) -> str:
    ours = found[NETWORK]
    return f"{ours.id}: PSNR " + ", ".join(f"{row['psnr']:.1f} at {name}" for name, row in ours.values.items())


def table(scored: Scored) -> str:
    """The network's scores with intervals and definitions, and the baselines' beside them."""
    return _beside.table(NETWORK, scored.report, scored.beside, scored.against)


def save(scored: Scored, out: Path, extra: Mapping[str, Any]) -> None:
    """report.json with everything, cases.csv with a row for each photograph, method, count of hints and metric."""
    document = {
        **extra,
        **scored.report.as_dict(),
        "baselines": {name: found.as_dict() for name, found in scored.beside.items()},
        "against": {name: found.as_dict() for name, found in scored.against.items()},
        "scores": [c.as_dict() for c in scored.cases],
    }
    write_text(out / "report.json", json.dumps(document, indent=1, default=str) + "\n")
    with aside(out / "cases.csv") as part:
        part.write_text("\n".join(["id,group,method,hints,metric,value", *_rows(scored)]) + "\n", encoding="utf-8")
    if scored.failures:
        batch.write_failures(out / batch.FAILURES, scored.failures)


def _rows(scored: Scored) -> Iterator[str]:
    for method, cases in {NETWORK: scored.cases, **scored.baselines}.items():
        for case in cases:
            for name, row in case.values.items():
                for metric, value in row.items():
                    shown = "" if np.isnan(value) else f"{value:.6f}"
                    yield f"{case.id},{case.group},{method},{name.split()[0]},{metric},{shown}"
