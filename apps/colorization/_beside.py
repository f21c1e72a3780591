"""A network's scores as a text, with those of what needs no training beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from core import score_tables
from core.scores import MEAN, Comparison, Report

SHOWN = ("psnr", "b_psnr", "lpips")  # of the tables beside


def table(name: str, ours: Report, beside: Mapping[str, Report], against: Mapping[str, Comparison]) -> str:
    """Scores with intervals and definitions, then for each of SHOWN the baselines' means and the differences.

    Args:
        name: of the method that `ours` is of.
        ours: its scores.
        beside: the same of each baseline.
        against: ours and each baseline's, paired.
    """
    parts = [score_tables.table(ours)]
    for metric in [m for m in ours.mean if m in SHOWN]:
        rows = [["class", name, *beside, *(f"{name} - {other} [95 %]" for other in beside)]]
        for label, row in [*ours.classes.items(), (MEAN, ours.mean)]:
            others = [(r.mean if label == MEAN else r.classes[label])[metric].mean for r in beside.values()]
            gaps = [_gap(found, label, metric) for found in against.values()]
            rows.append([label, _number(row[metric].mean), *map(_number, others), *gaps])
        parts.append(f"{metric} beside what needs no training\n{_aligned(rows)}")
    return "\n\n".join(parts)


def _gap(found: Comparison, label: str, metric: str) -> str:
    row = next((r for r in found.rows if r["class"] == label and r["metric"] == metric), None)
    if row is None or row["difference"] is None:
        return "-"
    spread = "" if row["low"] is None else f" [{row['low']:+.2f}, {row['high']:+.2f}]"
    return f"{row['difference']:+.2f}{spread}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(r[i]) for r in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in rows)
