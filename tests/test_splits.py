"""Splits that keep groups together, and the search for near-duplicates."""

import numpy as np
import pytest

from core.data import duplicates, splits
from core.errors import InputError, SettingError, ShapeError

GROUPS = [f"patient-{i // 3}" for i in range(90)]  # 30 groups of three
THREE = {"train": 0.7, "val": 0.1, "test": 0.2}


def parts_of(parts, groups):
    return {groups[i]: name for name, items in parts.items() for i in items}


def test_a_group_lies_in_one_part_and_every_item_in_one():
    parts = splits.split(GROUPS, THREE, seed=3)
    assert sorted(i for items in parts.values() for i in items) == list(range(90))
    assert splits.leaks(parts, GROUPS) == []
    assert {n: len({GROUPS[i] for i in items}) for n, items in parts.items()} == {"train": 21, "val": 3, "test": 6}
    assert splits.split(GROUPS, THREE, seed=3) == parts
    assert splits.split(GROUPS, THREE, seed=4) != parts


def test_the_order_of_items_does_not_matter():
    turned = GROUPS[::-1]
    assert parts_of(splits.split(turned, THREE), turned) == parts_of(splits.split(GROUPS, THREE), GROUPS)


def test_what_is_new_moves_little():
    before = parts_of(splits.split(GROUPS, THREE), GROUPS)
    more = [*GROUPS, "patient-4", "patient-4"]
    assert parts_of(splits.split(more, THREE), more) == before  # another item of a known group moves none
    for new in ("x", "y", "z"):
        after = parts_of(splits.split([*GROUPS, new], THREE), [*GROUPS, new])
        assert sum(after[g] != part for g, part in before.items()) <= 2  # at most one over each border


def test_items_without_a_group_stand_alone():
    parts = splits.split([""] * 10, {"train": 0.5, "test": 0.5})
    assert {len(items) for items in parts.values()} == {5}


def test_strata_are_shared_out_each():
    groups = [str(i) for i in range(100)]
    labels = ["rare" if i < 10 else "usual" for i in range(100)]
    for seed in range(5):
        parts = splits.split(groups, {"train": 0.8, "test": 0.2}, seed, strata=labels)
        assert sum(labels[i] == "rare" for i in parts["test"]) == 2
        assert len(parts["test"]) == 20
        for fold in splits.folds(groups, 5, seed, strata=labels):
            assert sum(labels[i] == "rare" for i in fold) == 2


def test_no_part_stays_empty():
    parts = splits.split(["a", "b", "c"], {"train": 0.98, "val": 0.01, "test": 0.01})
    assert all(parts.values())


def test_folds_share_no_group():
    folds = splits.folds(GROUPS, 4, seed=1)
    assert sorted(i for f in folds for i in f) == list(range(90))
    assert sorted(len({GROUPS[i] for i in f}) for f in folds) == [7, 7, 8, 8]
    assert splits.leaks({str(k): f for k, f in enumerate(folds)}, GROUPS) == []


def test_wrong_wishes():
    with pytest.raises(SettingError, match=r"add up to 1, got \{'train': 0.8\}"):
        splits.split(GROUPS, {"train": 0.8})
    with pytest.raises(SettingError, match="above 0"):
        splits.split(GROUPS, {"train": 1.0, "test": 0.0})
    with pytest.raises(InputError, match="1 groups cannot be split into 2 parts"):
        splits.split(["a", "a"], {"train": 0.5, "test": 0.5})
    with pytest.raises(SettingError, match="at least 2 folds, got 1"):
        splits.folds(GROUPS, 1)
    with pytest.raises(InputError, match="2 groups cannot make 3 folds"):
        splits.folds(["a", "b"], 3)
    with pytest.raises(InputError, match="90 groups, but 1 labels"):
        splits.split(GROUPS, THREE, strata=["a"])


def test_a_published_split():
    parts = splits.named(["a", "b", "c", "d"], {"train": ["d", "a"], "test": ["b"]})
    assert parts == {"train": [0, 3], "test": [1]}
    with pytest.raises(InputError, match="2 items of the split are not there: x, y"):
        splits.named(["a"], {"train": ["a", "y"], "test": ["x"]})
    with pytest.raises(InputError, match="a in both train and test"):
        splits.named(["a"], {"train": ["a"], "test": ["a"]})


def test_leaks_are_named():
    assert splits.leaks({"train": [0, 1, 5], "test": [2], "val": [5]}, ["p", "q", "q", "", "", ""]) == [
        ("item 5", "train", "val"),
        ("q", "train", "test"),
    ]


def scenes(count, rng):
    """Smooth pictures that have nothing to do with one another."""
    y, x = np.mgrid[:90, :120] / 60
    out = []
    for _ in range(count):
        waves = rng.normal(0, 4, (12, 2))
        out.append(sum(np.sin(a * y + b * x + p) for (a, b), p in zip(waves, rng.uniform(0, 6, 12), strict=True)))
    return out


def test_changed_copies_are_found_and_others_are_not():
    rng = np.random.default_rng(0)
    pictures = scenes(60, rng)
    copies = [
        pictures[0][::2, ::2],  # smaller
        pictures[1] * 30 + 100,  # brighter
        pictures[2] + rng.normal(0, 0.3, pictures[2].shape),  # noisier
        np.stack([pictures[3]] * 3),  # colour
        pictures[4][None, None].repeat(5, axis=1),  # the middle slice of a volume
    ]
    hashes = [duplicates.perceptual(p) for p in [*pictures, *copies]]
    found = duplicates.near_duplicates(hashes)
    assert [(i, j) for i, j, _ in found] == [(k, 60 + k) for k in range(5)]
    assert all(bits <= duplicates.NEAR for *_, bits in found)
    split = {"train": range(60), "test": [60, 61], "val": [62]}
    assert [(i, j) for i, j, _ in duplicates.near_duplicates(hashes, parts=split)] == [(0, 60), (1, 61), (2, 62)]
    inside = {"train": range(65)}
    assert duplicates.near_duplicates(hashes, parts=inside) == []


@pytest.mark.parametrize("change", [np.rot90, np.flipud, np.fliplr, np.transpose, lambda p: np.rot90(p, 3)])
def test_turned_copies_are_found_when_asked_for(change):
    square = [p[:90, :90] for p in scenes(8, np.random.default_rng(1))]
    pictures = [*square, change(square[2])]
    plain = [duplicates.perceptual(p) for p in pictures]
    turned = [duplicates.perceptual(p, turns=True) for p in pictures]
    assert duplicates.near_duplicates(plain) == []
    assert [(i, j) for i, j, _ in duplicates.near_duplicates(turned)] == [(2, 8)]


def test_empty_pictures_are_no_duplicates():
    blank = [np.zeros((20, 20)), np.full((30, 30), 7), np.full((9, 9), np.nan)]
    hashes = [duplicates.perceptual(p) for p in blank]
    assert duplicates.near_duplicates(hashes, 64) == []
    assert duplicates.near_duplicates([]) == []
    with pytest.raises(ShapeError, match="is expected, got"):
        duplicates.perceptual(np.zeros(5))


def test_invalid_pixels_do_not_change_what_is_alike():
    (picture,) = scenes(1, np.random.default_rng(2))
    holed = picture.copy()
    holed[:3, :3] = np.nan
    (pair,) = duplicates.near_duplicates([duplicates.perceptual(p) for p in (picture, holed)])
    assert pair[:2] == (0, 1)


def test_a_large_set_equals_the_plain_comparison():
    rng = np.random.default_rng(3)
    hashes = rng.integers(1, 2**63, 3000, dtype=np.uint64)
    hashes[2999] = hashes[5] ^ np.uint64(0b1011)
    assert duplicates.near_duplicates(hashes, 4) == [(5, 2999, 3)]
    few = hashes[:120]
    plain = [(i, j, (int(a) ^ int(b)).bit_count()) for i, a in enumerate(few) for j, b in enumerate(few) if i < j]
    assert duplicates.near_duplicates(few, 24) == [p for p in plain if p[2] <= 24]


def test_rounds_validate_every_group_once():
    pairs = splits.rounds(GROUPS, validation=0.2, folds=4, seed=1)
    assert sorted(i for _, held in pairs for i in held) == list(range(90))
    for train, held in pairs:
        assert sorted(train + held) == list(range(90))
        assert not {GROUPS[i] for i in train} & {GROUPS[i] for i in held}
    ((train, held),) = splits.rounds(GROUPS, validation=0.2)
    assert len({GROUPS[i] for i in held}) == 6
    assert sorted(train + held) == list(range(90))
    with pytest.raises(InputError, match="folder: has one case or group only"):
        splits.rounds(["a", "a"], validation=0.2, where="folder")
    with pytest.raises(InputError, match="--folds is 2 to 30"):
        splits.rounds(GROUPS, validation=0.2, folds=31)
