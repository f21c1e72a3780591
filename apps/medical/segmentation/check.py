"""What is wrong with a data set, all of it at once: files, grids, values, duplicates, classes, splits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from apps.medical.segmentation import labels
from apps.medical.segmentation.data import Case, Data, find
from apps.medical.segmentation.prepare import scan
from core import batch
from core.commands import Checked
from core.data import duplicates


@dataclass(frozen=True)
class _Case:
    part: str
    case: Case
    kind: str
    shape: tuple[int, ...]
    spacing: tuple[float, ...] | None
    voxels: Counter[int]
    hash: duplicates.Hash
    invalid: int


def check(folder: Path, *, groups: Path | None = None, progress: Callable[[str], None] = lambda _: None) -> Checked:
    """Open every image and label of a data set. Raises FileError where there is none of a known layout."""
    data = find(folder, groups=groups)
    seen: list[_Case] = []
    problems: list[str] = []
    for part, cases in (("train", data.train), ("test", data.test)):
        for case in cases:
            progress(case.id)
            try:
                seen.append(_look(data, part, case))
            except Exception as error:  # every file's fault is listed, whatever it is
                problems.append(batch.sentence(error))
    return _summed(data, seen, problems)


def _look(data: Data, part: str, case: Case) -> _Case:
    found = scan(case, data.channels)
    values, valid = found.array()
    voxels: Counter[int] = Counter()
    if case.label is not None:
        target = labels.classes(case.label, found, data)
        ids, counts = np.unique(target, return_counts=True)
        voxels.update({int(i): int(n) for i, n in zip(ids, counts, strict=True)})
    middle = values[0] if len(found.shape) == 2 else values[0, found.shape[0] // 2]
    return _Case(
        part,
        case,
        found.kind,
        found.shape,
        found.meta.spacing,
        voxels,
        duplicates.perceptual(middle),
        int((~valid).sum()),
    )


def _summed(data: Data, seen: list[_Case], problems: list[str]) -> Checked:
    remarks: list[str] = []
    facts = {
        "layout": data.layout,
        "cases": f"{len(data.train)} to train on" + (f", {len(data.test)} to test on" if data.test else ""),
        "groups": f"{len({c.group for c in data.train})} in training",
        "channels": ", ".join(data.channels) or "as the images have",
    }
    kinds = Counter(c.kind for c in seen)
    if len(kinds) > 1:
        problems.append(
            f"{data.folder}: mixes {' and '.join(f'{n} {k}s' for k, n in kinds.items())}; train on one kind"
        )
    if seen:
        shapes = np.array([c.shape for c in seen if c.kind == seen[0].kind])
        facts["size"] = " x ".join(_span(shapes[:, i]) for i in range(shapes.shape[1]))
        spacings = [c.spacing for c in seen if c.spacing is not None and len(c.spacing) == shapes.shape[1]]
        if spacings:
            facts["spacing"] = " x ".join(_span(np.array(spacings)[:, i]) for i in range(shapes.shape[1])) + " mm"
    for name, value in data.classes.items():
        held = [c.voxels[value] for c in seen if c.part == "train" and c.voxels[value]]
        facts[f"class {value} {name}"] = f"{sum(held):,} voxels in {len(held)} training cases"
        if value and not held and seen:
            remarks.append(f"class {name} is in no training label, so it cannot be learned")
    invalid = [c for c in seen if c.invalid]
    if invalid:
        remarks.append(f"{len(invalid)} images have values that are no numbers or padding ({invalid[0].case.id} ...)")
    both = {c.group for c in data.train} & {c.group for c in data.test}
    problems += [f"{data.folder}: group {g} is in training and test" for g in sorted(both)]
    twins = duplicates.near_duplicates([c.hash for c in seen])
    for i, j, _ in twins:
        a, b = seen[i], seen[j]
        words = f"{a.case.id} ({a.part}) and {b.case.id} ({b.part}) look alike"
        if a.part != b.part:
            problems.append(f"{data.folder}: {words}, so a test would be of what was learned")
        elif a.case.group != b.case.group:
            remarks.append(f"{words}; if they are of one patient, say so with --groups")
    return Checked(facts, problems, remarks)


def _span(values: np.ndarray[tuple[int], np.dtype[np.generic]]) -> str:
    low, high = float(values.min()), float(values.max())
    return f"{low:.4g}" if low == high else f"{low:.4g}-{high:.4g}"
