"""Scores of coloured photographs, each defined in one place and printed with its definition (the iColoriT card).

`score` gives the numbers of one photograph at several counts of hints, `report` the means over photographs with
intervals and the definitions, `paired` compares two models on the same photographs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from apps.colorization._definitions import definitions
from apps.colorization._lpips import lpips
from apps.colorization._measures import FLOOR, JND, b_psnr, hint_delta_e, pev, propagation_range, psnr
from core import scores
from core.errors import InputError, SettingError, ShapeError, UnknownNameError
from core.scores import REPEATS, Comparison, Report, Summary

__all__ = [
    "FLOOR",
    "JND",
    "PROTOCOLS",
    "CaseScore",
    "Comparison",
    "Protocol",
    "Report",
    "Summary",
    "b_psnr",
    "hint_delta_e",
    "lpips",
    "paired",
    "pev",
    "propagation_range",
    "protocol",
    "psnr",
    "report",
    "score",
    "with_metrics",
]


@dataclass(frozen=True)
class Protocol:
    """How photographs are scored.

    Attributes:
        name: of the protocol.
        metrics: of "psnr", "b_psnr", "pev", "lpips", "delta_e", "range".
        saved: pictures are rounded to 8 bits and cut off at 0 and 1 first, as a file holds them.
        patch: of B-PSNR and PEV, in pixels.
        average: "classes" means over photographs first, then over counts of hints.
    """

    name: str
    metrics: tuple[str, ...] = ("psnr", "b_psnr", "pev")
    saved: bool = False
    patch: int = 16
    average: str = "classes"


PROTOCOLS = {"published": Protocol("published"), "saved": Protocol("saved", saved=True)}


@dataclass(frozen=True)
class CaseScore:
    """What one photograph scored.

    Attributes:
        id, group: of the photograph; the group is what the intervals resample.
        protocol: that scored it.
        unit: of the sides that were scored, "224 px" or "px".
        values: count of hints -> metric -> value; NaN where left out.
        left_out: count of hints -> metric -> why.
    """

    id: str
    group: str
    protocol: Protocol
    unit: str
    values: Mapping[str, Mapping[str, float]]
    left_out: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def mean(self, metric: str) -> float:
        """Over the counts of hints that have a value; NaN where none has."""
        known = [row[metric] for row in self.values.values() if not np.isnan(row[metric])]
        return float(np.mean(known)) if known else float("nan")

    def as_dict(self) -> dict[str, Any]:
        """For JSON: null where a value is left out."""
        rows = {c: {m: None if np.isnan(v) else v for m, v in row.items()} for c, row in self.values.items()}
        return {"id": self.id, "group": self.group, "protocol": self.protocol.name, "unit": self.unit} | (
            {"values": rows, "left_out": {c: dict(w) for c, w in self.left_out.items()}}
        )


def protocol(name: str | Protocol) -> Protocol:
    """The protocol of that name. Raises UnknownNameError."""
    if isinstance(name, Protocol):
        return name
    if name not in PROTOCOLS:
        raise UnknownNameError("scoring protocol", name, PROTOCOLS)
    return PROTOCOLS[name]


def with_metrics(rule: Protocol, *metrics: str) -> Protocol:
    """The same protocol with further metrics."""
    return Protocol(rule.name, (*rule.metrics, *metrics), rule.saved, rule.patch, rule.average)


def score(
    truth: Tensor,
    answers: Mapping[int, Tensor],
    *,
    by: str | Protocol = "published",
    id: str = "",
    group: str = "",
    unit: str = "px",
    perceptual: Callable[[Tensor, Tensor], Tensor] | None = None,
    more: Mapping[int, Mapping[str, float]] | None = None,
) -> CaseScore:
    """Score one photograph.

    Args:
        truth: sRGB (3, H, W) in 0..1.
        answers: count of hints -> sRGB (3, H, W) as `lab.to_rgb` gives it.
        by: name of a protocol, or one of your own.
        id: of the photograph.
        group: what stays on one side of a split; "" makes it its own.
        unit: of the report: at which size it was scored.
        perceptual: what `lpips(path)` gave, for the metric "lpips".
        more: count -> metric -> value of what was measured elsewhere ("delta_e", "range"); NaN where there is none.

    Raises ShapeError for pictures that do not fit, SettingError for a metric that was not given, InputError for no
    answer.
    """
    rule = protocol(by)
    if not answers:
        raise InputError(f"{id or 'photograph'}: no answer to score")
    values: dict[str, dict[str, float]] = {}
    why: dict[str, dict[str, str]] = {}
    for count, answer in sorted(answers.items()):
        got, want = answer[None].double(), truth[None].double()
        if rule.saved:
            got, want = ((x.clamp(0, 1) * 255).round() / 255 for x in (got, want))
        row, lost = {}, {}
        for metric in rule.metrics:
            if metric in ("psnr", "b_psnr", "pev"):
                try:
                    row[metric] = float(psnr(got, want) if metric == "psnr" else
                                        (b_psnr if metric == "b_psnr" else pev)(got, want, rule.patch))  # fmt: skip
                except ShapeError:
                    if got.shape != want.shape:
                        raise
                    row[metric], lost[metric] = float("nan"), f"smaller than two patches of {rule.patch}"
            elif metric == "lpips" and perceptual is not None:
                row[metric] = float(perceptual(got.float(), want.float()))
            elif more is not None and metric in more.get(count, {}):
                row[metric] = float(more[count][metric])
                if np.isnan(row[metric]):
                    lost[metric] = "no hints" if not count else "no pixel changed"
            else:
                raise SettingError(f"metric {metric!r} was asked for, and nothing that measures it was given")
        name = hinted(count)
        values[name] = row
        if lost:
            why[name] = lost
    return CaseScore(id, group, rule, unit, values, why)


def hinted(count: int) -> str:
    """How a count of hints is named in tables. `hinted(5)` is "5 hints"."""
    return f"{count} hint" + ("" if count == 1 else "s")


def report(cases: Sequence[CaseScore], *, repeats: int = REPEATS, seed: int = 0) -> Report:
    """The means over photographs that one protocol scored, with the definitions; errors as of core.scores.report."""
    return scores.report(cases, definitions, repeats=repeats, seed=seed)


def paired(a: Sequence[CaseScore], b: Sequence[CaseScore], *, repeats: int = REPEATS, seed: int = 0) -> Comparison:
    """Two models on the same photographs; errors as of core.scores.paired."""
    return scores.paired(a, b, definitions, repeats=repeats, seed=seed)
