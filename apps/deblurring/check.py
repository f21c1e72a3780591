"""What is wrong with a data set, all of it at once: partners, files, sizes, masks, duplicates, splits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from apps.deblurring.data import PARTS, Data, Pair, find, read_pair
from core import batch
from core.commands import Checked
from core.data import duplicates

_SHOWN = 5  # of a remark's items
_FAR = 2.0  # times the difference inside a mask, from which on a mask seems to lie elsewhere


@dataclass(frozen=True)
class _Seen:
    part: str
    pair: Pair
    size: tuple[int, int]
    difference: float | None  # mean absolute one of blurred and sharp, 0..1
    elsewhere: bool  # whether they differ far more outside the mask than inside
    masked: float | None  # share of the pixels
    hash: duplicates.Hash


def check(folder: Path, *, groups: Path | None = None, progress: Callable[[str], None] = lambda _: None) -> Checked:
    """Open every picture of a data set. Raises FileError where there is none of a known layout."""
    data = find(folder, groups=groups, strict=False)
    seen: list[_Seen] = []
    problems = list(data.missing)
    for part in PARTS:
        for pair in getattr(data, part):
            progress(pair.id)
            try:
                seen.append(_look(part, pair))
            except Exception as error:  # every file's fault is listed, whatever it is
                problems.append(batch.sentence(error))
    return _summed(data, seen, problems)


def _look(part: str, pair: Pair) -> _Seen:
    read = read_pair(pair)
    gap = None if read.sharp is None else np.abs(read.blurred - read.sharp).mean(axis=2)
    mask = read.mask
    elsewhere = False
    if gap is not None and mask is not None and 0 < np.count_nonzero(mask) < mask.size:
        elsewhere = bool(gap[mask == 0].mean() > _FAR * gap[mask > 0].mean())
    return _Seen(
        part,
        pair,
        (read.blurred.shape[0], read.blurred.shape[1]),
        None if gap is None else float(gap.mean()),
        elsewhere,
        None if mask is None else float((mask > 0).mean()),
        duplicates.perceptual(np.moveaxis(read.blurred, -1, 0)),
    )


def _summed(data: Data, seen: list[_Seen], problems: list[str]) -> Checked:
    facts = {"layout": data.layout}
    for part in PARTS:
        pairs = getattr(data, part)
        if pairs:
            facts[part] = f"{len(pairs)} photographs of {len({p.group for p in pairs})} scenes"
    sizes = Counter(s.size for s in seen)
    facts["size"] = ", ".join(f"{w} x {h} ({n})" for (h, w), n in sizes.most_common(_SHOWN))
    masked = [s.masked for s in seen if s.masked is not None]
    if masked:
        facts["masks"] = f"{len(masked)}; {100 * float(np.mean(masked)):.1f} % of the pixels are blurred"
    gaps = [s.difference for s in seen if s.difference is not None]
    if gaps:
        facts["difference"] = f"{255 * float(np.mean(gaps)):.2f} of 255 between blurred and sharp, on average"
    return Checked(facts, problems + _faults(data, seen), _remarks(data, seen))


def _faults(data: Data, seen: list[_Seen]) -> list[str]:
    found = []
    for s in seen:
        if s.difference == 0:
            found.append(f"{s.pair.blurred}: is equal to its sharp partner; a pair differs")
        if s.masked == 0:
            found.append(f"{s.pair.mask}: is empty, nothing is marked as blurred; leave it out or draw it again")
    pairs = [(part, p) for part in PARTS for p in getattr(data, part)]
    by_group: dict[str, set[str]] = {}
    for part, pair in pairs:
        by_group.setdefault(pair.group, set()).add(part)
    found += [
        f"{data.folder}: scene {group} is in {' and '.join(p for p in PARTS if p in parts)}"
        for group, parts in by_group.items()
        if len(parts) > 1
    ]
    if not trainable(data):
        found.append(f"{data.folder}: has no pair to train on; put blurred and sharp ones into train/")
    near = {part: [i for i, s in enumerate(seen) if s.part == part] for part in PARTS}
    for i, j, _ in duplicates.near_duplicates([s.hash for s in seen], parts=near):
        a, b = seen[i], seen[j]
        found.append(
            f"{data.folder}: {a.pair.id} ({a.part}) and {b.pair.id} ({b.part}) look alike, so a test would be of what "
            "was learned"
        )
    return found


def trainable(data: Data) -> bool:
    """Whether there is a pair that a network can learn from."""
    return any(pair.sharp is not None for pair in data.train)


def _remarks(data: Data, seen: list[_Seen]) -> list[str]:
    found = []
    odd = [s.pair.id for s in seen if s.elsewhere]
    if odd:
        found.append(
            f"{len(odd)} masks do not lie where blurred and sharp differ most ({', '.join(odd[:_SHOWN])}); they may "
            "belong to other pictures"
        )
    full = [s.pair.id for s in seen if s.masked == 1]
    if full:
        found.append(f"{len(full)} masks mark the whole picture ({', '.join(full[:_SHOWN])})")
    without = sum(s.masked is None for s in seen)
    if without and without < len(seen):
        found.append(f"{without} of {len(seen)} photographs have no mask")
    elif without:
        found.append("no photograph has a mask, so which windows to work on is learned from the pictures alone")
    inside = [
        (seen[i].pair.id, seen[j].pair.id)
        for i, j, _ in duplicates.near_duplicates([s.hash for s in seen])
        if seen[i].part == seen[j].part and seen[i].pair.group != seen[j].pair.group
    ]
    if inside:
        shown = ", ".join(f"{a} and {b}" for a, b in inside[:_SHOWN])
        found.append(f"{len(inside)} pairs look alike ({shown}); if they are of one scene, say so with --groups")
    if data.layout == "RealBlur-J":
        found.append("the lists of RealBlur-J are read; move them away to read RealBlur-R's")
    return found
