"""What a user can choose for training; light, because the commands read it for their help."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from core.training.recipe import Recipe

TASK = "colorization"

# The card's: AdamW 5e-4 (not scaled by the batch of 256), 3 epochs of warm-up, cosine by steps; 25 epochs are those of
# the tiny network (small 100, base 1000: --recipe.epochs).
PUBLISHED = Recipe(
    optimizer="adamw",
    lr=5e-4,
    weight_decay=0.05,
    betas=(0.9, 0.95),
    eps=1e-8,
    schedule="cosine",
    interval="step",
    warmup=3,
    min_lr=1e-5,
    epochs=25,
    batch=256,
    precision="16-mixed",
    seed=4885,
)
SHORT = Recipe(
    optimizer="adamw",
    lr=1e-3,
    weight_decay=0.05,
    betas=(0.9, 0.95),
    schedule="onecycle",
    warmup=0.1,
    epochs=40,
    steps_per_epoch=50,
    batch=8,
    clip=1.0,
)
RECIPES: dict[str, Recipe] = {"short": SHORT, "published": PUBLISHED}


@dataclass(frozen=True)
class Options:
    """What is trained, on which part of the data and in which form.

    Attributes:
        network: icolorit_tiny, icolorit_tiny_p8, icolorit_tiny_p32, icolorit_small or icolorit.
        settings: further settings of the network, name -> value.
        hints: most hints that a training picture gets; their number is drawn from 0 to this, all equally likely.
        crop: area of the random crops, smallest and largest part of the picture.
        augment: of training pictures: crop (random crops, as published), or colours (also mirrors, turns by quarters,
            turns the hues and changes the contrast, so that few photographs are enough and hints must be used).
        start: of the weights: published, or even (attention begins as a mean over near hints; learns in minutes).
        validation: part of the photographs (or groups) that is kept for validation.
        folds: train so many networks, each validated on another part; 0 for one network.
    """

    network: str = "icolorit_tiny"
    settings: Mapping[str, Any] = field(default_factory=dict)
    hints: int = 128
    crop: tuple[float, float] = (0.08, 1.0)
    augment: Literal["crop", "colours"] = "crop"
    start: Literal["published", "even"] = "published"
    validation: float = 0.2
    folds: int = 0


DEFAULT = Options()
