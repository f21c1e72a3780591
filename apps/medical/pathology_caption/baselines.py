"""Captions without learning to write, to compare a network with, because captions of such sets repeat."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apps.medical.pathology_caption import inputs
from apps.medical.pathology_caption.data import Bag
from core.errors import InputError

Features = Callable[[Bag], NDArray[np.floating[Any]]]
BINS = 8  # of a colour's histogram
SIDE = 64  # pixels that a patch's colours are looked at in


def majority(train: Sequence[Bag]) -> str:
    """The commonest training caption; among equally common ones the first by alphabet.

    Raises InputError where no bag has one.
    """
    count = Counter(bag.caption for bag in _captioned(train))
    return min(count, key=lambda caption: (-count[caption], caption))


def majority_class(train: Sequence[Bag]) -> str:
    """The commonest class; among equally common ones the first by alphabet. Raises InputError where no bag has one."""
    count = Counter(bag.label for bag in train if bag.label)
    if not count:
        raise InputError("a baseline needs training bags with classes, and none has one")
    return min(count, key=lambda label: (-count[label], label))


def colours(bag: Bag) -> NDArray[np.float64]:
    """What colours a bag has, in one row: of red, green and blue the mean, the spread inside patches, the spread of the
    patches' means, and a histogram of BINS equal steps; over all patches.

    Raises FileError for a picture that cannot be read, InputError for no patch.
    """
    means, spreads, counts = [], [], np.zeros((3, BINS))
    for patch in bag.patches:
        pixels = inputs.square(patch, SIDE).reshape(-1, 3)
        means.append(pixels.mean(0))
        spreads.append(pixels.std(0))
        counts += np.stack([np.bincount(pixels[:, c] // (256 // BINS), minlength=BINS) for c in range(3)])
    if not means:
        raise InputError(f"{bag.id}: a bag without patches")
    histogram = counts / counts.sum(1, keepdims=True)
    return np.concatenate([np.mean(means, 0), np.mean(spreads, 0), np.std(means, 0), histogram.ravel()])


def embedding(network: Any, *, device: str = "cpu", precision: str = "32", batch: int = 32) -> Features:
    """A bag's mean embedding by a network's patch encoder, as features for `nearest`."""

    def features(bag: Bag) -> NDArray[np.float64]:
        found = inputs.embed(network, bag.patches, device=device, precision=precision, batch=batch)
        return found.double().mean(0).cpu().numpy()

    return features


def nearest(train: Sequence[Bag], asked: Sequence[Bag], features: Features = colours) -> dict[str, str]:
    """For each bag (by id) the caption of the training bag whose features are nearest.

    Features are shifted and scaled to mean 0 and spread 1 over the training bags; those without spread are left out.
    Distance is Euclid's; among equally near ones the first is taken.

    Raises InputError where no training bag has a caption, and as `features`.
    """
    known = _captioned(train)
    rows = np.stack([features(bag) for bag in known])
    mean, spread = rows.mean(0), rows.std(0)
    kept = spread > 1e-9 * np.maximum(1, np.abs(mean))
    rows = (rows[:, kept] - mean[kept]) / spread[kept]
    answers = {}
    for bag in asked:
        row = (features(bag)[kept] - mean[kept]) / spread[kept]
        answers[bag.id] = known[int(np.square(rows - row).sum(1).argmin())].caption
    return answers


def _captioned(train: Sequence[Bag]) -> list[Bag]:
    known = [bag for bag in train if bag.caption.strip()]
    if not known:
        raise InputError("a baseline needs training bags with captions, and none has one")
    return known
