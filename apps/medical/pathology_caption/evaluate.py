"""Scores of bundles on bags whose caption or class is known, beside captions that need no network."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from apps.medical import classes as class_scores
from apps.medical import tables
from apps.medical.classes import Answer
from apps.medical.pathology_caption import baselines, metrics
from apps.medical.pathology_caption.data import Bag, Found, chosen
from apps.medical.pathology_caption.metrics import Captions
from apps.medical.pathology_caption.pipeline import Pipeline
from apps.medical.pathology_caption.results import Captioned
from core import batch
from core.errors import InputError
from core.files import write_text

CASES, PATCHES = "cases.csv", "patches.csv"
MAJORITY, NEAREST = "majority caption", "nearest-neighbour caption"


@dataclass(frozen=True)
class Scored:
    """A bundle's answers on bags.

    Attributes:
        cases: what was answered, in order.
        failures: bags that could not be.
        captions: compared with the known ones; None where nothing was written or no caption is known.
        baselines: name -> captions of the same bags without a network.
        answers: of the class head; () without one or without a known class.
        classes: in the order of their numbers.
    """

    cases: tuple[Captioned, ...]
    failures: tuple[batch.Failure, ...]
    captions: Captions | None
    baselines: Mapping[str, Captions] = field(default_factory=dict)
    answers: tuple[Answer, ...] = ()
    classes: tuple[str, ...] = ()

    @property
    def caption_report(self) -> metrics.Report | None:
        return None if self.captions is None else metrics.report(self.captions)

    @property
    def class_report(self) -> class_scores.Report | None:
        return class_scores.report(self.answers, self.classes) if self.answers else None

    def as_dict(self) -> dict[str, Any]:
        """For report.json."""
        words, kinds = self.caption_report, self.class_report
        return {
            "captions": None if words is None else words.as_dict(),
            "baselines": {
                name: {"scores": metrics.report(c).as_dict()["scores"], "network_minus_it": self._against(c)}
                for name, c in self.baselines.items()
            },
            "classes": None if kinds is None else kinds.as_dict(),
            "failed": len(self.failures),
        }

    def _against(self, other: Captions) -> list[dict[str, Any]]:
        assert self.captions is not None
        return metrics.paired(self.captions, other)


def score(
    pipeline: Pipeline,
    data: Found,
    bags: Sequence[Bag],
    *,
    log: batch.Log | None = None,
    java: bool = False,
    simple: bool = True,
) -> Scored:
    """Describe every bag and compare; one that fails is listed.

    Args:
        pipeline: whose answers are scored.
        data: the data set; its training bags are what the simple captions come from.
        bags: of it.
        log: says how far it is.
        java: words and METEOR by Java's programs.
        simple: score the simple captions, too, where training bags have captions and are not the ones scored.

    Raises InputError for classes that the bundle does not know, and for bags of which neither caption nor class is
    known.
    """
    if pipeline.classes and (strange := sorted({b.label for b in bags if b.label} - set(pipeline.classes))):
        raise InputError(
            f"{data.folder}: has the classes {', '.join(strange)}, the bundle answers {', '.join(pipeline.names)}; "
            "score it on its own task"
        )
    speaks = pipeline.writes and any(b.caption for b in bags)
    if not speaks and not (pipeline.classes and any(b.label for b in bags)):
        has = "captions" if pipeline.writes else "classes"
        raise InputError(f"{data.folder}: the bundle answers {has}, and no bag has a known one to compare with")
    good: list[Captioned] = []
    answered: list[Bag] = []
    bad: list[batch.Failure] = []
    for bag, answer in zip(bags, batch.each(list(bags), lambda: pipeline, name=lambda b: b.id), strict=True):
        if isinstance(answer, batch.Done):
            good.append(answer.result)
            answered.append(bag)
        else:
            bad.append(answer)
        if log is not None:
            log.add(answer, line(answer.result) if isinstance(answer, batch.Done) else "")
    captions, others = None, {}
    known = [b for b in answered if b.caption]
    if speaks and known:
        written = {b.id: c.caption for b, c in zip(answered, good, strict=True)}
        captions = metrics.score(written, known, java=java)
        if simple:
            others = _simple(data, known, java)
    answers = tuple(
        Answer(b.id, b.group, pipeline.classes[b.label], c.described.probabilities)
        for b, c in zip(answered, good, strict=True)
        if pipeline.classes and b.label
    )
    return Scored(tuple(good), tuple(bad), captions, others, answers, pipeline.names)


def _simple(data: Found, bags: Sequence[Bag], java: bool) -> dict[str, Captions]:
    asked = {b.id for b in bags}
    train = [b for b in chosen(data, "train") if b.caption and b.id not in asked]
    if not train:
        return {}
    common = baselines.majority(train)
    score_of = partial(metrics.score, bags=bags, java=java)
    return {MAJORITY: score_of({b.id: common for b in bags}), NEAREST: score_of(baselines.nearest(train, bags))}


def line(result: Captioned) -> str:
    """Bag, class and caption in a line."""
    parts = [f"{result.label} {result.probability(result.label):.2f}"] if result.classes else []
    parts += [result.caption] if result.caption else []
    return f"{result.meta.id}: {'; '.join(parts)}"


def table(scored: Scored) -> str:
    """Scores with their intervals, the simple captions beside them, and what each number means."""
    parts = []
    words = scored.caption_report
    if words is not None:
        if scored.baselines:
            simple = {name: metrics.report(c) for name, c in scored.baselines.items()}
            rows = [["captions", *metrics.METRICS], ["network", *(f"{words.value(m):.1f}" for m in metrics.METRICS)]]
            rows += [[name, *(f"{r.value(m):.1f}" for m in metrics.METRICS)] for name, r in simple.items()]
            parts.append("\n".join(class_scores.aligned(rows)))
        parts.append(words.text())
        for name, other in scored.baselines.items():
            assert scored.captions is not None
            parts.append(f"network (A) and {name} (B)\n" + compared(metrics.paired(scored.captions, other)))
    kinds = scored.class_report
    if kinds is not None:
        parts.append(kinds.text())
    return "\n\n".join(parts)


def save(scored: Scored, out: Path, extra: Mapping[str, Any]) -> None:
    """report.json with everything, cases.csv with a row for each bag, patches.csv with clusters and weights."""
    write_text(out / "report.json", json.dumps({**extra, **scored.as_dict()}, indent=1, default=str) + "\n")
    known = {row["id"]: row for row in (scored.captions.cases() if scored.captions is not None else ())}
    classes = {a.id: "" if a.target is None else scored.classes[a.target] for a in scored.answers}
    rows = []
    for case in scored.cases:
        row = case.row()
        if classes:
            row["known_class"] = classes.get(case.meta.id, "")
        if known:
            found = known.get(case.meta.id, {})
            row |= {"known_caption": found.get("known", "")} | {m: found.get(m) for m in metrics.METRICS}
        rows.append(row)
    write_text(out / CASES, tables.written(rows))
    write_text(out / PATCHES, tables.written([row for case in scored.cases for row in case.patch_rows()]))
    if scored.failures:
        batch.write_failures(out / batch.FAILURES, scored.failures)


def paired(a: Scored, b: Scored) -> list[dict[str, Any]]:
    """Two bundles on the bags that both answered.

    Raises InputError where nothing of both can be compared.
    """
    rows: list[dict[str, Any]] = []
    if a.captions is not None and b.captions is not None:
        rows += metrics.paired(a.captions, b.captions)
    if a.answers and b.answers:
        if a.classes != b.classes:
            raise InputError(
                f"the two bundles answer {', '.join(a.classes)} and {', '.join(b.classes)}; compare bundles of one task"
            )
        rows += class_scores.paired(a.answers, b.answers, a.classes)
    if not rows:
        raise InputError(
            "the two bundles have nothing in common to compare: one writes captions, the other answers classes"
        )
    return rows


def compared(rows: Sequence[dict[str, Any]]) -> str:
    """Rows of `paired` as a table, A minus B."""
    return class_scores.compared(rows)
