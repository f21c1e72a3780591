"""What a user can choose for training; light, because the commands read it for their help."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from core.training.recipe import Recipe

TASK = "medical pathology caption"

# The card's reading, since the authors' is not known: Adam 1e-4, weight decay 1e-4, 8 bags, 50 epochs.
PUBLISHED = Recipe(
    optimizer="adam",
    lr=1e-4,
    weight_decay=1e-4,
    decay_norms=True,
    schedule="constant",
    epochs=50,
    batch=8,
)
SHORT = Recipe(
    optimizer="adamw",
    lr=1e-3,
    weight_decay=0.05,
    schedule="onecycle",
    warmup=0.1,
    epochs=60,
    batch=8,
    clip=1.0,
)
RECIPES: dict[str, Recipe] = {"short": SHORT, "published": PUBLISHED}

# Parts of a recipe's rate for a language model that was trained before: the card's 2e-5 beside 1e-4.
LANGUAGE_RATE = 0.2


@dataclass(frozen=True)
class Options:
    """What is trained, on which part of the data and in which form.

    Attributes:
        network: gnn_vitcap or gnn_vitcap_base.
        settings: further settings of the network, name -> value: backbone, size, clusters, graph, ...
        goal: what it learns: class, caption or both; auto takes what the training bags have.
        encoder: whether the patch encoder is frozen (embeddings are then computed once) or trained; auto freezes it
            where --init gives it weights.
        language_model: folder of a causal language model of transformers, in place of the small decoder.
        longest: words of a caption at most; longer ones are cut for training.
        rare: words that occur fewer times in the training captions are unknown.
        clustering: lambda, the weight of the clustering's loss.
        target: over what the clustering's target counts its clusters: the epoch before (the first: the start), or each
            batch of bags.
        projection: where the clustering's space starts: pca of the training embeddings, or random.
        patches: of a bag in a training step, at most, drawn anew each time; 0 for all. Bags are scored whole.
        augment: random turns, flips and stain-like changes of colour of the patches of a trained encoder.
        validation: part of the groups that is kept for validation, where the data set names none.
        folds: train so many networks, each validated on another part; 0 for one network.
    """

    network: str = "gnn_vitcap"
    settings: Mapping[str, Any] = field(default_factory=dict)
    goal: Literal["auto", "class", "caption", "both"] = "auto"
    encoder: Literal["auto", "frozen", "trained"] = "auto"
    language_model: str = ""
    longest: int = 60
    rare: int = 1
    clustering: float = 0.1
    target: Literal["epoch", "batch"] = "epoch"
    projection: Literal["pca", "random"] = "pca"
    patches: int = 0
    augment: Literal["none", "light"] = "light"
    validation: float = 0.2
    folds: int = 0


DEFAULT = Options()
