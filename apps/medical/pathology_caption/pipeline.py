"""From the patches of a slide to a caption and the probability of each class, by one or several networks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from apps.medical.pathology_caption import data as sets
from apps.medical.pathology_caption import inputs, model
from apps.medical.pathology_caption.data import Bag
from apps.medical.pathology_caption.describing import BEAMS, describe
from apps.medical.pathology_caption.options import DEFAULT, SHORT, TASK, Options
from apps.medical.pathology_caption.results import SIDE, Captioned
from core import batch as batches
from core import bundle
from core.data.sample import Meta
from core.device import check_precision, pick
from core.errors import InputError, SettingError

if TYPE_CHECKING:
    from apps.medical.pathology_caption.evaluate import Scored
    from core.training.recipe import Recipe

Given = str | Path | Bag | Sequence[str | Path | NDArray[np.uint8]]


class Pipeline:
    """Bag (folder, Bag, or its patches as files or arrays) -> Captioned, by one or several networks.

    Networks agree in classes and words. With several, probabilities of classes and of next words are averaged.
    """

    def __init__(
        self, bundles: Sequence[bundle.Bundle], *, device: str = "auto", precision: str = "32", batch: int = 32
    ) -> None:
        if not bundles:
            raise InputError("name a bundle, then bags of patches")
        if batch < 1:
            raise SettingError(f"a batch is at least 1, got {batch}")
        for other in bundles[1:]:
            _agree(bundles[0], other)
        self.device, self.precision, self.batch = pick(device), precision, batch
        check_precision(self.device, precision)
        self.bundles = tuple(bundles)
        self.networks = [model.from_bundle(b).to(self.device).eval() for b in bundles]
        self.settings = bundles[0].settings

    @classmethod
    def load(cls, *folders: str | Path, device: str = "auto", precision: str = "32", batch: int = 32) -> Pipeline:
        """Of bundles, or of a folder of folds (all of them are taken).

        Args:
            folders: that `train`, `import` or `fit` wrote.
            device: "auto", "cpu", "cuda", "cuda:1", "mps".
            precision: "32", "bf16" or "16", of the patch encoder.
            batch: patches at once.

        Raises:
            core.bundle.BundleError: missing, altered, of a later format, of another task.
            InputError: bundles that do not fit together, or of a network that cannot answer yet.
        """
        found = [bundle.load(f, task=TASK) for given in folders for f in bundle.members(Path(given))]
        for one in found:
            trained(one)
        return cls(found, device=device, precision=precision, batch=batch)

    @classmethod
    def fit(
        cls, data: str | Path, out: str | Path, options: Options = DEFAULT, recipe: Recipe = SHORT, **how: Any
    ) -> Pipeline:
        """Train on a folder and load what came out; the same call goes on with a run that was stopped.

        Args:
            data: PatchGastricADC22, BreakHis's tree, folders of patches, or a CSV of patches with their bags.
            out: folder of the bundle (or of one for each fold).
            options: what is trained.
            recipe: how.
            how: `init`, `groups`, `device`, `devices`, `nodes` as of `glocal medical pathology caption train`.
        """
        from apps.medical.pathology_caption import training

        made = training.run(Path(data), Path(out), options, recipe, **how)
        return cls(made, device=how.get("device", "auto"))

    def evaluate(self, data: str | Path, part: str = "test", *, groups: str | Path | None = None) -> Scored:
        """Scores on a part ("train", "val", "test", "all") of a data set; errors as of `evaluate.score`."""
        from apps.medical.pathology_caption import evaluate

        found = sets.find(data, groups=groups)
        return evaluate.score(self, found, sets.wanted(found, part))

    def export(self, file: str | Path) -> None:
        """The (first) network's patch encoder as ONNX with its side file, checked against torch."""
        from apps.medical.pathology_caption import training

        training.export(self.bundles[0].folder, Path(file))

    @property
    def classes(self) -> Mapping[str, int]:
        """Name -> number; empty without a class head."""
        return self.settings.output.classes

    @property
    def names(self) -> tuple[str, ...]:
        """The classes in the order of their numbers."""
        return tuple(sorted(self.classes, key=lambda name: self.classes[name]))

    @property
    def writes(self) -> bool:
        """Whether the networks write captions."""
        return self.networks[0].language is not None

    def __call__(self, bag: Given, *, meta: Meta | None = None, beams: int = BEAMS) -> Captioned:
        """Describe one bag.

        Args:
            bag: a folder of patches, a Bag, or patches as files or arrays (H, W, 3) of bytes, in any order.
            meta: of arrays.
            beams: of the search for the caption; 1 is greedy.

        Raises:
            core.errors.FileError: a patch that cannot be read, a folder without patches.
            InputError: no patch.
        """
        patches, names, told = _patches(bag, meta)
        embeddings: list[torch.Tensor] = [
            inputs.embed(network, patches, device=self.device, precision=self.precision, batch=self.batch)
            for network in self.networks
        ]
        found = describe(self.networks, embeddings, beams=beams)
        sides = sorted({network.size for network in self.networks})
        did = f"patches brought to {' and '.join(f'{s} x {s}' for s in sides)} pixels: shorter side, then the middle"
        shown = tuple(inputs.square(patches[r.patch], SIDE) for r in found.representatives)
        return Captioned(dict(self.classes), found, names, shown, told.did(did))

    def many(self, bags: Sequence[Given]) -> Iterator[batches.Done[Captioned] | batches.Failure]:
        """Describe bags one after the other; the error of one is its Failure."""
        return batches.each(list(bags), lambda: self, name=_name)


def trained(found: bundle.Bundle) -> None:
    """Raises InputError for a bundle whose network cannot answer yet (imported encoders)."""
    if "untrained" in found.report:
        raise InputError(
            f"{found.folder}: {found.report['untrained']} is untrained, so it cannot answer yet; begin a training with "
            f"it: glocal {TASK} train DATA --init {found.folder}"
        )


def _agree(one: bundle.Bundle, other: bundle.Bundle) -> None:
    a, b = one.settings, other.settings
    words = [tuple(s.network.config.get("words", ())) for s in (a, b)]
    kinds = [s.network.config.get("language", "none") for s in (a, b)]
    for what, left, right in (
        ("classes", dict(a.output.classes), dict(b.output.classes)),
        ("kind of language model", *kinds),
        ("words", *words),
    ):
        if left != right:
            shown = "" if what == "words" else f" ({right or 'none'} against {left or 'none'})"
            raise InputError(
                f"{other.folder}: has other {what} than {one.folder}{shown}; name bundles of one task and training set"
            )


def _patches(bag: Given, meta: Meta | None) -> tuple[Sequence[Path | NDArray[np.uint8]], tuple[str, ...], Meta]:
    if isinstance(bag, str | Path):
        bag = sets.one(Path(bag))
    if isinstance(bag, Bag):
        return bag.patches, tuple(p.name for p in bag.patches), Meta(path="", id=bag.id, group=bag.group)
    patches = [p if isinstance(p, np.ndarray) else Path(p) for p in bag]
    if not patches:
        raise InputError("a bag without patches; give at least one picture")
    names = tuple(f"patch {i}" if isinstance(p, np.ndarray) else p.name for i, p in enumerate(patches, 1))
    return patches, names, meta or Meta(path="", id="bag", group="")


def _name(bag: Given) -> str:
    return bag.id if isinstance(bag, Bag) else str(bag) if isinstance(bag, str | Path) else "patches"
