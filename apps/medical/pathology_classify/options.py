"""What a user can choose for training; light, because the commands read it for their help."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from core.training.recipe import Recipe

TASK = "medical pathology classify"

# The card's: Adam (its decay is added to the gradient), one-cycle by steps with the learning rate as its peak. For two
# scales; the authors take batches of 64 for three and of 16 for four.
PUBLISHED = Recipe(
    optimizer="adam",
    lr=5e-5,
    weight_decay=1e-4,
    decay_norms=True,
    schedule="onecycle",
    epochs=50,
    batch=128,
)
SHORT = Recipe(
    optimizer="adamw",
    lr=3e-4,
    weight_decay=0.05,
    schedule="onecycle",
    warmup=0.2,
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
        network: duoformer, or backbone (any of core's under a linear head, to compare with).
        backbone: family/variant that either stands on, as in `glocal models list`; of DuoFormer a CNN of four stages.
        settings: further settings of the network, name -> value.
        size: side of a tile in pixels; DuoFormer takes 224 only.
        um: micrometres to a pixel that tiles are brought to where their files say their own, and that slides are read
            at; without it a tile's shorter side becomes `size`.
        stain: normalise stains in training and in prediction: macenko, or nothing.
        positive: of two classes the one that is looked for; by default malignant or the like, else the second.
        aim: how its threshold is chosen on the validation part: youden, sensitivity=0.9, specificity=0.9, ...
        classes: names in their order, others are left out; BreakHis's subtypes take the place of benign and malignant.
        magnification: of BreakHis's tiles: 40, 100, 200 or 400 times; all where not given.
        augment: random changes: none, light (cut, quarter turns, mirrored) or stain (also brightness, contrast,
            saturation and hue, as laboratories differ).
        balance: draw every class equally often.
        smoothing: of the labels.
        validation: part of the groups (patients, slides) that is kept for validation, where the data name none.
        folds: train so many networks, each validated on another part; 0 for one network.
    """

    network: str = "duoformer"
    backbone: str = "resnet/50"
    settings: Mapping[str, Any] = field(default_factory=dict)
    size: int = 224
    um: float | None = None
    stain: Literal["", "macenko"] = ""
    positive: str = ""
    aim: str = "youden"
    classes: tuple[str, ...] = ()
    magnification: int | None = None
    augment: Literal["none", "light", "stain"] = "stain"
    balance: bool = True
    smoothing: float = 0.0
    validation: float = 0.2
    folds: int = 0


DEFAULT = Options()
