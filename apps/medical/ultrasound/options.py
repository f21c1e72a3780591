"""What a user can choose for training; light, because the commands read it for their help."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from core.training.recipe import Recipe

TASK = "medical ultrasound"

# The card's: AdamW, 1e-4 for the backbones and 1.5e-4 for the rest (Options.rates), one-cycle by steps from 0 to 0 with
# 5 % rising, 10 epochs of batches of 20 over twice the training set. The authors' average of the weights moves only
# when the validation AUROC improves, six times at most, which at 0.9998 leaves it where it began: here it moves with
# every step.
PUBLISHED = Recipe(
    optimizer="adamw",
    lr=1e-4,
    weight_decay=1e-4,
    decay_norms=True,
    schedule="onecycle",
    warmup=0.05,
    cycle_start=0.0,
    epochs=10,
    batch=20,
    ema=0.9998,
    seed=42,
)
SHORT = Recipe(
    optimizer="adamw",
    lr=3e-4,
    weight_decay=0.01,
    schedule="onecycle",
    warmup=0.1,
    epochs=10,
    batch=16,
    clip=1.0,
    ema=0.99,
)
RECIPES: dict[str, Recipe] = {"short": SHORT, "published": PUBLISHED}


@dataclass(frozen=True)
class Options:
    """What is trained, on which part of the data and in which form.

    Attributes:
        network: hsqformer, or backbone (any of core's under a linear head, to compare with).
        backbone: of the network backbone: family/variant as in `glocal models list`.
        settings: further settings of the network, name -> value.
        size: side in pixels that pictures are brought to, a multiple of 32; published: 224.
        positive: of two classes the one that is looked for; by default malignant or the like, else the second.
        aim: how its threshold is chosen on the validation part: youden, sensitivity=0.9, specificity=0.9, ...
        mask: mask burned-in text and calipers, in training and in prediction.
        augment: random changes: none, light (crop, mirror, brightness), or published (also AutoAugment and erasing).
        balance: draw every class equally often.
        draws: pictures of an epoch as a multiple of the training part, where the recipe names no steps.
        mix: part of the batches that are mixed (Mixup 0.8 or CutMix 1.0, half each), 0 to 1; published: 1.
        smoothing: of the labels; as published it is applied twice where batches are mixed.
        rates: learning rates of Swin, ConvNeXt and all the rest, as multiples of the recipe's.
        validation: part of the groups (patients) that is kept for validation, where the data name none.
        folds: train so many networks, each validated on another part; 0 for one network. Published: 5.
    """

    network: str = "hsqformer"
    backbone: str = "swin/tiny"
    settings: Mapping[str, Any] = field(default_factory=dict)
    size: int = 224
    positive: str = ""
    aim: str = "youden"
    mask: bool = False
    augment: Literal["none", "light", "published"] = "published"
    balance: bool = True
    draws: float = 2.0
    mix: float = 1.0
    smoothing: float = 0.1
    rates: tuple[float, float, float] = (1.0, 1.0, 1.5)
    validation: float = 0.2
    folds: int = 0


DEFAULT = Options()
