"""The state of a set of labelled pictures: everything that is wrong, at once."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from apps.medical import readers
from apps.medical.labelled import Labelled, Picture
from core import batch
from core.commands import Checked
from core.data import duplicates
from core.errors import FileError

ALIKE = 0.5  # agreement of detail: copies that were rescaled, recompressed or brightened have 0.8 and more
MOST = 50  # lines of one kind; the rest is counted


@dataclass(frozen=True)
class _Seen:
    picture: Picture
    kind: str
    shape: tuple[int, ...]
    hash: duplicates.Hash
    detail: NDArray[np.int8]


def check(found: Labelled) -> Checked:
    """Open every picture; see `labelled.check`."""
    seen: list[_Seen] = []
    unreadable: list[str] = []
    for picture in found.pictures:
        try:
            seen.append(_look(picture))
        except Exception as error:  # every file's fault is listed, whatever it is
            unreadable.append(batch.sentence(error))
    problems = [*_most(unreadable, "files"), *(f"{found.folder}: {c}" for c in found.conflicts)]
    remarks = list(found.notes)
    problems += _patients(found)
    twins, alike = _twins(found, seen)
    problems += _most(twins, "pairs")
    remarks += _most(alike, "pairs")
    problems += _classes(found, remarks)
    return Checked(_facts(found, seen), problems, remarks)


def _look(picture: Picture) -> _Seen:
    scan = readers.read(picture.path)
    values, _ = scan.array()
    if values.ndim == 4:  # a cine loop, by its middle frame
        values = values[:, values.shape[1] // 2]
    for mask in picture.masks:
        held = readers.read(mask)
        if held.shape != scan.shape:
            raise FileError(mask, f"is {_size(held.shape)}, its picture {_size(scan.shape)}", "masks share its size")
    return _Seen(picture, scan.kind, scan.shape, duplicates.perceptual(values), duplicates.detail(values))


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _facts(found: Labelled, seen: list[_Seen]) -> dict[str, str]:
    facts = {
        "layout": found.layout,
        "pictures": str(len(found.pictures)),
        "patients": str(len({p.group for p in found.pictures})),
    }
    parts = Counter(p.part for p in found.pictures if p.part)
    if parts:
        facts["parts"] = ", ".join(f"{n} {part}" for part, n in parts.items())
    for name in found.classes:
        held = [p for p in found.pictures if p.label == name]
        facts[f"class {name}"] = f"{len(held)} pictures of {len({p.group for p in held})} patients"
    if masks := sum(bool(p.masks) for p in found.pictures):
        facts["masks"] = f"of {masks} pictures"
    for kind, count in Counter(s.kind for s in seen).items():
        sizes = {s.shape for s in seen if s.kind == kind}
        told = _size(next(iter(sizes))) if len(sizes) == 1 else f"{len(sizes)} sizes"
        facts[f"{kind}s" if kind != "frames" else "cine loops"] = f"{count}, {told}"
    return facts


def _patients(found: Labelled) -> list[str]:
    """Patients in two parts; patients under two labels are common (two lesions) and no fault."""
    parts: dict[str, set[str]] = defaultdict(set)
    for picture in found.pictures:
        if picture.part:
            parts[picture.group].add(picture.part)
    lines = []
    for group, held in sorted(parts.items()):
        lines += [f"{found.folder}: patient {group} is in {a} and {b}" for a, b in combinations(sorted(held), 2)]
    return _most(lines, "patients")


def _twins(found: Labelled, seen: list[_Seen]) -> tuple[list[str], list[str]]:
    """Pairs that look alike: those that must be mended, and those worth knowing."""
    bad, good = [], []
    for i, j, _ in duplicates.near_duplicates([s.hash for s in seen]):
        if duplicates.agreement(seen[i].detail, seen[j].detail) < ALIKE:
            continue
        a, b = seen[i].picture, seen[j].picture
        words = f"{a.id} ({a.label}) and {b.id} ({b.label}) look alike"
        if a.label != b.label:
            bad.append(f"{found.folder}: {words}: one picture under two labels")
        elif a.part != b.part:
            bad.append(f"{found.folder}: {words} and are in {a.part or 'no part'} and {b.part or 'no part'}")
        elif a.group != b.group:
            good.append(f"{words}; if they are of one patient, say so with --groups")
    return bad, good


def _classes(found: Labelled, remarks: list[str]) -> list[str]:
    counts = Counter(p.label for p in found.pictures)
    held = [c for c in found.classes if counts[c]]
    if len(held) < 2:
        return [f"{found.folder}: has one class only ({', '.join(held)}); two are needed to tell apart"]
    few = [c for c in held if len({p.group for p in found.pictures if p.label == c}) < 3]
    remarks += [f"class {c} has fewer than three patients: too few to train, validate and test on" for c in few]
    return []


def _most(lines: list[str], what: str) -> list[str]:
    rest = len(lines) - MOST
    return lines if rest <= 0 else [*lines[:MOST], f"and {rest} more such {what}"]
