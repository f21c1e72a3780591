"""Scores as texts for people: a table, and below it what each number means."""

from __future__ import annotations

from collections.abc import Sequence

from core.scores import Comparison, Report


def table(report: Report) -> str:
    """Class by metric, with intervals and n, and below it what each number means."""
    names = list(report.mean)
    rows = [["class", *(f"{m} [95 %]" for m in names), "n"]]
    for label, row in [*report.classes.items(), ("mean", report.mean)]:
        cells = []
        for m in names:
            s = row[m]
            spread = f" [{s.low:.3f}, {s.high:.3f}]" if s.low is not None and s.high is not None else ""
            cells.append("-" if s.mean is None else f"{s.mean:.3f}{spread}")
        rows.append([label, *cells, "/".join(dict.fromkeys(str(row[m].n) for m in names))])
    return _aligned(rows) + "\n\n" + _defined(report.definitions)


def compared(found: Comparison) -> str:
    """Rows of a comparison, A minus B."""
    rows = [["class", "metric", "A", "B", "A - B [95 %]", "p", "n"]]
    for row in found.rows:
        if not row["n"]:
            continue
        low, high = row["low"], row["high"]
        spread = "" if low is None else f" [{low:+.3f}, {high:+.3f}]"
        p = "-" if row["p"] is None else f"{row['p']:.3f}"
        means = [f"{row[k]:.3f}" for k in ("mean_a", "mean_b")]
        rows.append([row["class"], row["metric"], *means, f"{row['difference']:+.3f}{spread}", p, str(row["n"])])
    lost = [f"only {k} has {', '.join(v)}" for k, v in (("A", found.only_a), ("B", found.only_b)) if v]
    return "\n".join([_aligned(rows), *lost, "", _defined(found.definitions)])


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(r[i]) for r in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in rows)


def _defined(definitions: dict[str, str]) -> str:
    return "\n".join(f"{name}: {words}" for name, words in definitions.items())
