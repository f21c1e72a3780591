"""How networks learn classes of pictures: what is trained on which patients, the loss, and the score to keep the best.

An app adds its pictures (a LightningDataModule) and its options.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import torch
import torch.nn.functional as F
from timm.data.mixup import Mixup
from torch import Tensor, nn
from torchmetrics.functional.classification import binary_auroc, multiclass_auroc

from apps.medical.labelled import Labelled, Picture
from core.data import splits
from core.errors import InputError, SettingError
from core.training.optimizers import groups
from core.training.recipe import Recipe

_MIXUP, _CUTMIX = 0.8, 1.0  # HSQformer's, the usual ones of Transformers


class Learner(lightning.LightningModule):
    """A network with cross-entropy; `val/score` is the AUROC on the validation pictures.

    Of two classes the AUROC is that of `looked_for`, of more the mean over each one against the rest.

    Args:
        network: image (B, C, H, W) -> logits (B, classes); `mixes` says whether an answer depends on its batch.
        classes: how many.
        looked_for: number of the positive class of two.
        smoothing: of the labels; where batches are mixed it is applied twice, as HSQformer's authors have it.
        mix: part of the batches that are mixed, Mixup or CutMix.
        rates: (prefixes of names, learning rate as a multiple of the recipe's); what has none of them takes `rest`.
        rest: see `rates`.
    """

    def __init__(
        self, network: nn.Module, classes: int, looked_for: int | None, *, smoothing: float = 0.0, mix: float = 0.0,
        rates: Sequence[tuple[tuple[str, ...], float]] = (), rest: float = 1.0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.network, self.classes, self.looked_for = network, classes, looked_for
        self.smoothing, self.rates, self.rest = smoothing, tuple(rates), rest
        self.mix = None
        if mix:
            self.mix = Mixup(
                _MIXUP, _CUTMIX, prob=mix, switch_prob=0.5, label_smoothing=smoothing, num_classes=classes
            )  # fmt: skip
        self._found: list[tuple[Tensor, Tensor]] = []

    def parameter_groups(self, recipe: Recipe) -> list[dict[str, Any]]:
        """The recipe's groups, each once for every learning rate."""
        shares = [*(share for _, share in self.rates), self.rest]
        places: dict[int, int] = {}
        for name, p in self.named_parameters():
            places[id(p)] = next((i for i, (heads, _) in enumerate(self.rates) if name.startswith(heads)), -1)
        found = []
        for group in groups(self, recipe):
            for place, share in enumerate(shares):
                if params := [p for p in group["params"] if places[id(p)] % len(shares) == place]:
                    found.append({**group, "params": params, "lr": share * recipe.lr})
        return found

    def freeze_encoder(self, frozen: bool = True) -> None:
        self.network.freeze_encoder(frozen)  # type: ignore[operator]

    def training_step(self, batch: Mapping[str, Tensor], _: int) -> Tensor:
        image, target = batch["image"], batch["target"]
        if self.mix is not None and len(image) > 1:
            even = len(image) // 2 * 2  # timm pairs the first with the last
            image, target = self.mix(image[:even].clone(), target[:even])
        logits = self.network(image).float()
        return F.cross_entropy(logits, target, label_smoothing=self.smoothing)

    def on_validation_epoch_start(self) -> None:
        self._found = []

    def validation_step(self, batch: Mapping[str, Tensor], _: int) -> None:
        image = batch["image"]
        # Where an answer depends on its batch, each picture is answered alone, as in prediction.
        alone = bool(getattr(self.network, "mixes", False))
        logits = torch.cat([self.network(part) for part in image.split(1 if alone else len(image))])
        self._found.append((logits.float().softmax(1), batch["target"]))

    def on_validation_epoch_end(self) -> None:
        shares, target = (torch.cat(parts) for parts in zip(*self._found, strict=True))
        if self.looked_for is not None:
            score = binary_auroc(shares[:, self.looked_for], (target == self.looked_for).long())
        else:
            score = multiclass_auroc(shares, target, self.classes, average="macro")
        loss = F.nll_loss(shares.clamp(min=1e-12).log(), target)
        self.log("val/loss", loss, sync_dist=True)
        self.log("val/accuracy", (shares.argmax(1) == target).float().mean(), sync_dist=True)
        self.log("val/score", score, prog_bar=True, sync_dist=True)


@dataclass(frozen=True)
class Part:
    """One network to train: on which pictures, and where its bundle goes."""

    train: tuple[Picture, ...]
    val: tuple[Picture, ...]
    out: Path


def parts(found: Labelled, out: Path, *, seed: int, validation: float = 0.2, folds: int = 0) -> list[Part]:
    """Training and validation pictures, no patient on both sides, classes shared out alike; one part, or one a fold.

    A data set's own parts are taken: its test pictures are left alone, its validation pictures validate (with folds
    they join the rest).

    Args:
        found: the data.
        out: of the bundle, or of folders fold_0, fold_1, ...
        seed: of the split.
        validation: part of the patients that validates, where the data name none.
        folds: so many networks, each validated on another part; 0 for one.

    Raises InputError for nothing to train on, a class that one side lacks, too few patients.
    """
    if len(found.classes) < 2:
        raise InputError(
            f"{found.folder}: has pictures of one class only ({', '.join(found.classes)}); two or more are needed"
        )
    seen = tuple(p for p in found.pictures if p.part in ("", "train"))
    held = tuple(p for p in found.pictures if p.part == "val")
    if held and not folds:
        return [_whole(Part(seen, held, out), found)]
    known = (*seen, *held)
    count = len({p.group for p in known})
    if count < 2:
        raise InputError(f"{found.folder}: has {count} patients to train on; two are needed, one of them to validate")
    names, labels = [p.group for p in known], [p.label for p in known]
    if not folds:
        if not 0 < validation < 1:
            raise SettingError(f"--validation is a part, above 0 and below 1, got {validation}")
        shares = {"train": 1 - validation, "val": validation}
        away = [splits.split(names, shares, seed, strata=labels)["val"]]
    else:
        if not 2 <= folds <= count:
            raise InputError(f"--folds is 2 to {count} for this data, got {folds}")
        away = splits.folds(names, folds, seed, strata=labels)
    places = [out / f"fold_{k}" for k in range(len(away))] if folds else [out]
    made = []
    for kept, place in zip(away, places, strict=True):
        inside = set(kept)
        left = tuple(p for i, p in enumerate(known) if i not in inside)
        made.append(_whole(Part(left, tuple(known[i] for i in kept), place), found))
    return made


def _whole(part: Part, found: Labelled) -> Part:
    """The part, if every class is on both sides."""
    for side, pictures in (("to train on", part.train), ("to validate", part.val)):
        if lacking := [c for c in found.classes if all(p.label != c for p in pictures)]:
            raise InputError(
                f"{found.folder}: has no picture of {', '.join(lacking)} {side}; every class needs two patients at "
                "least, one on each side"
            )
    return part


def told(found: Labelled, part: Part) -> str:
    """How many pictures of how many patients are on both sides, in words."""
    counts = ", ".join(f"{sum(p.label == c for p in part.train)} {c}" for c in found.classes)
    patients = len({p.group for p in part.train}), len({p.group for p in part.val})
    return (
        f"{len(part.train)} pictures of {patients[0]} patients to train on ({counts}), "
        f"{len(part.val)} of {patients[1]} to validate"
    )


def weights(targets: Sequence[int]) -> list[float]:
    """One over the number of pictures of its class, for each picture: all classes are drawn equally often.

    >>> weights([0, 1, 1])
    [1.0, 0.5, 0.5]
    """
    return [1 / list(targets).count(target) for target in targets]
