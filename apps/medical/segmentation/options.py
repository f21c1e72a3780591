"""What a user can choose for training; light, because the commands read it for their help."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from core.training.recipe import Recipe

TASK = "medical segment"

# The card's: AdamW 1e-4, cosine to 1e-6 by epochs, 1000 epochs of 250 steps, encoder frozen for ten if pre-trained.
PUBLISHED = Recipe(
    optimizer="adamw",
    lr=1e-4,
    weight_decay=0.05,
    decay_norms=True,
    eps=1e-8,
    schedule="cosine",
    interval="epoch",
    min_lr=1e-6,
    epochs=1000,
    steps_per_epoch=250,
    batch=8,
    freeze_epochs=10,
)
SHORT = Recipe(
    optimizer="adamw",
    lr=1e-3,
    weight_decay=0.05,
    schedule="onecycle",
    warmup=0.1,
    epochs=40,
    steps_per_epoch=100,
    batch=8,
    clip=12.0,
)
RECIPES: dict[str, Recipe] = {"short": SHORT, "published": PUBLISHED}


@dataclass(frozen=True)
class Options:
    """What is trained, on which part of the data and in which form.

    Attributes:
        network: swin_umamba, swin_umamba_d, unet (over any backbone) or dynunet (MONAI's, the usual baseline).
        backbone: of unet: family/variant as in `glocal models list`.
        settings: further settings of the network, name -> value.
        patch: rows and columns that it trains on; by default the median slice, at most 512.
        spacing: millimetres along rows and columns that it works at; by default the median of the data.
        plane: axial, coronal or sagittal; by default across the coarsest axis.
        augment: random changes: none, light, or nnunet (nnU-Net's list for 2-D).
        validation: part of the groups that is kept for validation.
        folds: train so many networks, each validated on another part; 0 for one network.
        overlap: of tiles in prediction, as part of one.
        batch_dice: Dice over the whole batch instead of one an image.
    """

    network: str = "swin_umamba"
    backbone: str = "swin/tiny"
    settings: Mapping[str, Any] = field(default_factory=dict)
    patch: tuple[int, int] | None = None
    spacing: tuple[float, float] | None = None
    plane: Literal["", "axial", "coronal", "sagittal"] = ""
    augment: Literal["none", "light", "nnunet"] = "light"
    validation: float = 0.2
    folds: int = 0
    overlap: float = 0.25
    batch_dice: bool = True


DEFAULT = Options()
