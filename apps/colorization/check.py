"""What is wrong with a folder of photographs, all of it at once: files, grey ones, small ones, duplicates, splits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from apps.colorization import _canvas
from apps.colorization.data import Data, Photograph, find
from apps.colorization.session import GREY
from core import batch
from core.commands import Checked
from core.data import duplicates, photos

SMALL = 224  # shorter side: what the networks see
_LOOKED = 128  # side at which a photograph is looked at for colour


@dataclass(frozen=True)
class _Seen:
    part: str
    photograph: Photograph
    size: tuple[int, int]
    grey: bool
    hash: duplicates.Hash


def check(
    folder: Path,
    *,
    groups: Path | None = None,
    exclude: Path | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Checked:
    """Open every photograph of a data set. Raises FileError where there is none; arguments as of `data.find`."""
    data = find(folder, groups=groups, exclude=exclude)
    seen: list[_Seen] = []
    problems: list[str] = []
    for part, found in (("train", data.train), ("val", data.val), ("test", data.test)):
        for photograph in found:
            progress(photograph.id)
            try:
                seen.append(_look(part, photograph))
            except Exception as error:  # every file's fault is listed, whatever it is
                problems.append(batch.sentence(error))
    return _summed(data, seen, problems)


def _look(part: str, photograph: Photograph) -> _Seen:
    photo = photos.read(photograph.path, colour=False)
    small = _canvas.reduced(photo.pixels, _LOOKED, _LOOKED)
    grey = bool(_canvas.lab_of(small)[1:].abs().max() * 110 <= GREY)
    size = (photo.pixels.shape[0], photo.pixels.shape[1])
    return _Seen(part, photograph, size, grey, duplicates.perceptual(np.moveaxis(small, 2, 0)))


def _summed(data: Data, seen: list[_Seen], problems: list[str]) -> Checked:
    remarks: list[str] = []
    counts = {part: len(found) for part, found in (("train", data.train), ("val", data.val), ("test", data.test))}
    facts = {
        "layout": data.layout,
        "photographs": ", ".join(f"{n} {part}" for part, n in counts.items() if n),
        "groups": str(len({p.group for p in (*data.train, *data.val, *data.test)})),
    }
    if seen:
        for name, k in (("columns", 1), ("rows", 0)):
            low, high = min(s.size[k] for s in seen), max(s.size[k] for s in seen)
            facts[name] = f"{low}" if low == high else f"{low} to {high}"
    hinted = sorted({n for p in data.test for n in p.hints})
    if hinted:
        facts["published hints"] = f"of {', '.join(map(str, hinted))} points, cells of {data.cell} pixels"
        for n in hinted:
            lacking = [p.id for p in data.test if n not in p.hints]
            if lacking:
                problems.append(
                    f"{data.folder}: {len(lacking)} photographs have no hints of {n} points ({lacking[0]} ...)"
                )
    for s in seen:
        if s.grey:
            where = "there is nothing to learn from it" if s.part == "train" else "there is no colour to compare with"
            problems.append(f"{s.photograph.path}: is grey, {where}; leave it out")
    small = [s for s in seen if min(s.size) < SMALL]
    if small:
        remarks.append(
            f"{len(small)} photographs have fewer than {SMALL} pixels along a side and are enlarged for the network "
            f"({small[0].photograph.id}: {small[0].size[1]} x {small[0].size[0]} ...)"
        )
    owners: dict[str, set[str]] = {}
    for part, found in (("train", data.train), ("val", data.val), ("test", data.test)):
        for p in found:
            owners.setdefault(p.group, set()).add(part)
    problems += [
        f"{data.folder}: group {g} is in {' and '.join(sorted(p))}" for g, p in sorted(owners.items()) if len(p) > 1
    ]
    for i, j, _ in duplicates.near_duplicates([s.hash for s in seen]):
        a, b = seen[i], seen[j]
        words = f"{a.photograph.id} ({a.part}) and {b.photograph.id} ({b.part}) look alike"
        if a.part != b.part:
            problems.append(f"{data.folder}: {words}, so a test would be of what was learned")
        elif a.photograph.group != b.photograph.group:
            remarks.append(f"{words}; if they show one scene, say so with --groups")
    return Checked(facts, problems, remarks)
