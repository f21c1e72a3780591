"""What is wrong with a data set of bags, all of it at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from apps.medical.pathology_caption import inputs
from apps.medical.pathology_caption.data import Bag, Found, find
from core.commands import Checked
from core.data import duplicates, splits
from core.errors import InputError

_SIDE = 96  # pixels that patches are compared at
_ALIKE = 2000  # patches at most that are compared with one another
_AGREE = 0.5  # of two patches' details, from which on they are one picture


class _Look(NamedTuple):
    bag: str
    hash: duplicates.Hash
    detail: NDArray[np.int8]


def check(folder: Path, *, groups: Path | None = None, progress: Callable[[str], None] = lambda _: None) -> Checked:
    """Open every patch: unreadable ones, patches that occur in two bags, captions, classes, patients in two parts.

    Raises FileError where there is no bag of a known layout.
    """
    found = find(folder, groups=groups)
    problems, remarks = [], list(found.notes)
    looks: list[_Look] = []
    for bag in found.bags:
        progress(bag.id)
        for path in bag.patches:
            try:
                picture = inputs.square(path, _SIDE)
            except InputError as error:
                problems.append(str(error))
                continue
            if len(looks) < _ALIKE and picture.std() > 1:  # empty patches are all alike
                planes = picture.transpose(2, 0, 1)
                looks.append(_Look(bag.id, duplicates.perceptual(planes), duplicates.detail(planes)))
    remarks += _alike(looks)
    problems += _leaks(found)
    facts = {
        "layout": found.layout,
        "bags": str(len(found.bags)),
        "patients": str(len({b.group for b in found.bags})),
        "patches": _spread([len(b.patches) for b in found.bags]),
        **_captions(found.bags),
        **_classes(found),
    }
    if len(found.classes) == 1:
        problems.append(f"{found.folder}: has one class only ({found.classes[0]}); two are needed to tell apart")
    if not any(b.caption for b in found.bags) and not found.classes:
        problems.append(f"{found.folder}: no bag has a caption or a class, so nothing can be learned from it")
    return Checked(facts, problems, remarks)


def _spread(counts: list[int]) -> str:
    return f"{sum(counts)}, {min(counts)} to {max(counts)} in a bag (median {np.median(counts):g})"


def _captions(bags: tuple[Bag, ...]) -> dict[str, str]:
    held = [b.caption for b in bags if b.caption]
    if not held:
        return {}
    words = [len(c.split()) for c in held]
    (common, times), *_ = Counter(held).most_common(1)
    told = {
        "captions": f"{len(held)} of {len(bags)} bags, {len(set(held))} different",
        "words": f"{min(words)} to {max(words)} in a caption (median {np.median(words):g})",
        "commonest": f"{times} times: {common}",
    }
    return told


def _classes(found: Found) -> dict[str, str]:
    if not found.classes:
        return {}
    counts = Counter(b.label for b in found.bags if b.label)
    return {"classes": ", ".join(f"{counts[c]} {c}" for c in found.classes)}


def _leaks(found: Found) -> list[str]:
    parts: dict[str, list[int]] = {}
    for i, bag in enumerate(found.bags):
        if bag.part:
            parts.setdefault(bag.part, []).append(i)
    cut = splits.leaks(parts, [b.group for b in found.bags])
    return [f"patient {group} is in the parts {a} and {b}" for group, a, b in cut]


def _alike(looks: Sequence[_Look]) -> list[str]:
    """Patches of two bags that hashes suspect and details confirm."""
    pairs = [
        (looks[i].bag, looks[j].bag)
        for i, j, _ in duplicates.near_duplicates([look.hash for look in looks])
        if looks[i].bag != looks[j].bag and duplicates.agreement(looks[i].detail, looks[j].detail) >= _AGREE
    ]
    if not pairs:
        return []
    shown = ", ".join(f"{a} and {b}" for a, b in pairs[:3]) + (" ..." if len(pairs) > 3 else "")
    limited = f" among the first {_ALIKE}" if len(looks) == _ALIKE else ""
    return [f"{len(pairs)} pairs of patches{limited} that lie in two bags look alike ({shown})"]
