"""What is wrong with a set of labelled ultrasound pictures, all of it at once, and what was drawn into them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from apps.medical import labelled
from apps.medical.ultrasound import burned, inputs
from apps.medical.ultrasound.data import Found, find
from core.commands import Checked
from core.errors import InputError

_UNEVEN = 0.2  # difference in the share of marked pictures between classes that a network can learn from


def check(folder: Path, *, groups: Path | None = None, progress: Callable[[str], None] = lambda _: None) -> Checked:
    """Open every picture of a data set: files, duplicates, labels, patients, and burned-in marks by class.

    Raises FileError where there is none of a known layout.
    """
    found = find(folder, groups=groups)
    general = labelled.check(found)
    facts, problems, remarks = dict(general.facts), list(general.problems), list(general.remarks)
    facts, more, notes = _looked(found, facts, " ".join(problems), progress)
    return replace(general, facts=facts, problems=problems + more, remarks=remarks + notes)


def _looked(
    found: Found, facts: dict[str, str], known: str, progress: Callable[[str], None]
) -> tuple[dict[str, str], list[str], list[str]]:
    """Facts, problems (of pictures that could be read but are not taken) and remarks."""
    counts: Counter[str] = Counter(p.label for p in found.pictures)
    marked: Counter[tuple[str, str]] = Counter()
    seen: Counter[str] = Counter()
    loops, toned, sizes, problems = 0, 0, [], []
    for picture in found.pictures:
        progress(picture.id)
        try:
            clip = inputs.opened(picture.path)
            shown = clip.sampled(4)
        except InputError as error:
            if str(picture.path) not in known:
                problems.append(str(error))
            continue
        seen[picture.label] += 1
        loops += clip.cine
        sizes.append(clip.size)
        toned += bool(inputs.remarks(shown[:1]))
        if inputs.blank(shown).all():
            problems.append(f"{picture.path}: has one value all over, so there is nothing to see")
        marked.update((picture.label, kind) for kind in burned.find(shown).counts())
    if sizes:
        rows, columns = np.array(sizes).T
        facts["size"] = f"{columns.min()}-{columns.max()} x {rows.min()}-{rows.max()} pixels"
    if loops:
        facts["cine loops"] = str(loops)
    remarks = []
    for kind in burned.KINDS:
        shares = {c: marked[c, kind] / seen[c] for c in found.classes if seen[c]}
        if not any(shares.values()):
            continue
        told = ", ".join(f"{marked[c, kind]} of {counts[c]} {c}" for c in found.classes if seen[c])
        facts[f"burned-in {kind}"] = told
        if max(shares.values()) - min(shares.values()) >= _UNEVEN and len(shares) > 1:
            remarks.append(
                f"burned-in {kind} is more frequent in one class than in another ({told}), so a network can learn it "
                "instead of the disease; train with --mask"
            )
    if toned:
        remarks.append(f"{toned} pictures are coloured for the most part: Doppler, or no B-mode pictures")
    return facts, problems, remarks
