"""Splits that keep a group (patient, slide, scene block, recording, video) in one part.

Groups stand in the order of a hash of their names and the seed, and the parts are stretches of that order. So new
items of a known group join it, the order of the items does not matter, and a new group moves at most one other group
over each border between parts.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from itertools import combinations

from core.errors import InputError, SettingError

Parts = dict[str, list[int]]


def split(
    groups: Sequence[str],
    fractions: Mapping[str, float],
    seed: int = 0,
    *,
    strata: Sequence[Hashable] | None = None,
) -> Parts:
    """Indices of the items of each part: {"train": 0.8, "test": 0.2} over `groups`, one name an item.

    Items with the same group go together; an item whose group is "" is a group of its own, named by its place in the
    list. With `strata` (one label an item) the groups of each label are shared out on their own; a group counts to its
    commonest label. Fractions are of the groups, met to within one group for each label; every part has at least one
    group.

    Raises SettingError for fractions that are not above 0 or do not add up to 1, InputError for too few groups.

    >>> split(["a", "a", "b", "c", "d"], {"train": 0.5, "test": 0.5})
    {'train': [3, 4], 'test': [0, 1, 2]}
    """
    if not fractions or min(fractions.values()) <= 0 or abs(sum(fractions.values()) - 1) > 1e-6:
        raise SettingError(f"fractions of a split are above 0 and add up to 1, got {dict(fractions)}")
    members, label = _members(groups, strata)
    if len(members) < len(fractions):
        raise InputError(f"{len(members)} groups cannot be split into {len(fractions)} parts")
    chosen: dict[str, str] = {}
    names = list(fractions)
    carried = dict.fromkeys(names, 0.0)  # what rounding left over, passed on from label to label
    for stratum in sorted({label[g] for g in members}, key=str):
        line = _shuffled([g for g in members if label[g] == stratum], seed)
        sizes = _shares(len(line), fractions, carried)
        start = 0
        for name in names:
            chosen |= dict.fromkeys(line[start : start + sizes[name]], name)
            start += sizes[name]
    counts = Counter(chosen.values())
    for name in names:  # no part stays empty
        if not counts[name]:
            rich = max(names, key=lambda n: counts[n])
            taken = _shuffled([g for g, n in chosen.items() if n == rich], seed)[-1]
            chosen[taken] = name
            counts = Counter(chosen.values())
    return {n: sorted(i for g, part in chosen.items() if part == n for i in members[g]) for n in names}


def folds(groups: Sequence[str], k: int, seed: int = 0, *, strata: Sequence[Hashable] | None = None) -> list[list[int]]:
    """Indices of the items of k test folds that share no group; their groups differ in number by at most one a label.

    Groups and `strata` as in `split`. Raises SettingError for k under 2, InputError for fewer groups than folds.

    >>> folds(["a", "a", "b", "c", "d"], 2)
    [[3, 4], [0, 1, 2]]
    """
    if k < 2:
        raise SettingError(f"at least 2 folds, got {k}")
    if (count := len(_members(groups, None)[0])) < k:
        raise InputError(f"{count} groups cannot make {k} folds")
    return list(split(groups, {str(i): 1 / k for i in range(k)}, seed, strata=strata).values())


def rounds(
    groups: Sequence[str], *, validation: float, folds: int = 0, seed: int = 0, where: str = "the data"
) -> list[tuple[list[int], list[int]]]:
    """Indices to train on and to validate on: one pair, or one for each of so many folds.

    Groups as in `split`; `where` names the data in messages. Raises InputError for fewer than two groups or than folds.

    >>> rounds(["a", "a", "b", "c", "d"], validation=0.5)
    [([3, 4], [0, 1, 2])]
    """
    count = len(_members(groups, None)[0])
    if count < 2:
        raise InputError(f"{where}: has one case or group only; two are needed, one of them for validation")
    if not folds:
        train, val = split(groups, {"train": 1 - validation, "val": validation}, seed).values()
        return [(train, val)]
    if folds < 2 or folds > count:
        raise InputError(f"--folds is 2 to {count} for this data, got {folds}")
    held = list(split(groups, {str(i): 1 / folds for i in range(folds)}, seed).values())
    return [(sorted(i for j, other in enumerate(held) if j != k for i in other), held[k]) for k in range(folds)]


def named(ids: Sequence[str], lists: Mapping[str, Iterable[str]]) -> Parts:
    """A published split: indices of the items whose id a part lists. Items in no list are left out.

    Raises InputError for a listed id that is not there, and for one that two parts list.

    >>> named(["a", "b", "c"], {"train": ["a"], "test": ["c"]})
    {'train': [0], 'test': [2]}
    """
    wanted = {name: set(listed) for name, listed in lists.items()}
    for (one, first), (other, second) in combinations(wanted.items(), 2):
        if both := first & second:
            raise InputError(f"{_some(both)} in both {one} and {other}; a split lists each item once")
    if missing := set().union(*wanted.values()) - set(ids):
        raise InputError(f"{len(missing)} items of the split are not there: {_some(missing)}")
    return {name: [i for i, item in enumerate(ids) if item in listed] for name, listed in wanted.items()}


def leaks(parts: Mapping[str, Iterable[int]], groups: Sequence[str]) -> list[tuple[str, str, str]]:
    """(group, part, other part) wherever a group lies in two parts; an item that two parts hold counts as well.

    Items without a group ("") only count as such twice-used items, named "item 7".

    >>> leaks({"train": [0, 1], "test": [2]}, ["p1", "p2", "p2"])
    [('p2', 'train', 'test')]
    """
    seen: dict[str, set[str]] = defaultdict(set)
    for part, items in parts.items():
        for i in items:
            seen[groups[i] or f"item {i}"].add(part)
    order = list(parts)
    return [
        (group, one, other)
        for group, held in sorted(seen.items())
        for one, other in combinations(sorted(held, key=order.index), 2)
    ]


def _members(
    groups: Sequence[str], strata: Sequence[Hashable] | None
) -> tuple[dict[str, list[int]], dict[str, Hashable]]:
    if strata is not None and len(strata) != len(groups):
        raise InputError(f"{len(groups)} groups, but {len(strata)} labels to stratify by")
    members: dict[str, list[int]] = defaultdict(list)
    for i, group in enumerate(groups):
        members[group or f"\0{i}"].append(i)  # no name of a group starts with this character
    if strata is None:
        return dict(members), dict.fromkeys(members, "")
    label = {
        g: max(sorted({strata[i] for i in m}, key=str), key=[strata[i] for i in m].count) for g, m in members.items()
    }
    return dict(members), label


def _shuffled(groups: Iterable[str], seed: int) -> list[str]:
    return sorted(groups, key=lambda g: hashlib.sha256(f"{seed}\0{g}".encode()).digest())


def _shares(count: int, fractions: Mapping[str, float], carried: dict[str, float]) -> dict[str, int]:
    """Whole numbers that add up to `count`; `carried` keeps what each part is still owed."""
    owed = {n: carried[n] + f * count for n, f in fractions.items()}
    sizes = {n: max(0, int(o)) for n, o in owed.items()}
    while sum(sizes.values()) > count:
        sizes[max(sizes, key=lambda n: sizes[n] - owed[n])] -= 1
    while sum(sizes.values()) < count:
        sizes[max(sizes, key=lambda n: owed[n] - sizes[n])] += 1
    carried.update({n: owed[n] - sizes[n] for n in fractions})
    return sizes


def _some(names: Iterable[str]) -> str:
    found = sorted(names)
    return ", ".join(found[:3]) + (", ..." if len(found) > 3 else "")
