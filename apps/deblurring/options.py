"""What a user can choose for training; light, because the commands read it for their help."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from core.training.recipe import Recipe

TASK = "deblurring"

# The training code was never released. The card's reading of the paper: AdamW, 2e-4 by cosine to 1e-6, decay 0.02,
# batches of 12 crops of 512 x 512; the number of steps is the one that LBAG's configuration states.
PUBLISHED = Recipe(
    optimizer="adamw",
    lr=2e-4,
    weight_decay=0.02,
    schedule="cosine",
    min_lr=1e-6,
    epochs=1000,
    steps_per_epoch=1000,
    batch=12,
)
SHORT = Recipe(
    optimizer="adamw",
    lr=3e-4,
    weight_decay=0.02,
    schedule="cosine",
    warmup=0.05,
    min_lr=1e-6,
    epochs=40,
    steps_per_epoch=100,
    batch=4,
    clip=1.0,
)
RECIPES: dict[str, Recipe] = {"short": SHORT, "published": PUBLISHED}


@dataclass(frozen=True)
class Options:
    """What is trained, on which part of the data and in which form.

    Attributes:
        network: lmd_vit.
        settings: further settings of the network, name -> value.
        patch: rows and columns of the crops that it trains on, a multiple of 16 windows (128); published: 512.
        blurred: part of the crops that hold a blurred pixel of the mask, where there are masks.
        flip: mirror half of the crops.
        colours: also turn crops by quarters, shuffle their channels, change brightness and contrast, and make negatives
            of half: for few photographs, whose brightness a network would learn instead of their blur.
        prune: weight of the loss that teaches which windows to work on, by the masks; 0 without.
        gate: weight of the gate's squared distance from the masks (LBAG's is 0.1); 0 without.
        shifted: take the smallest loss over nine shifts of one pixel, as the beam splitter's pairs need.
        ssim: weight of the structural part of the loss beside the absolute error's 1; 0 without.
        fft: weight of the spectra's part; 0 without.
        last: learning rate of the last layer, as part of the others': a small one keeps the brightness steady.
        validation: part of the groups (scenes) that is kept for validation, where the data name none.
        folds: train so many networks, each validated on another part; 0 for one network.
        tile: rows and columns of a tile in prediction.
        overlap: of tiles in prediction, as part of one.
    """

    network: str = "lmd_vit"
    settings: Mapping[str, Any] = field(default_factory=dict)
    patch: int = 256
    blurred: float = 0.5
    flip: bool = True
    colours: bool = False
    prune: float = 0.01
    gate: float = 0.0
    shifted: bool = True
    ssim: float = 1.0
    fft: float = 0.1
    last: float = 1.0
    validation: float = 0.2
    folds: int = 0
    tile: int = 256
    overlap: float = 0.25


DEFAULT = Options()
