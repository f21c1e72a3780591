"""The optimiser of a recipe and the groups of weights that it treats alike."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from core.errors import SettingError
from core.training.recipe import Recipe

# Tables and tokens that stand for places, by the last part of their name in core.
_PLACES = ("positions", "learned", "bias_table", "class_token", "distillation_token", "registers")


def optimizer(module: nn.Module, recipe: Recipe) -> Optimizer:
    """AdamW, Adam or SGD over the weights of `module` that ask for a gradient, and over no others.

    A module with `parameter_groups(recipe) -> list[dict]` names its groups itself (layer-wise rates: "lr", also
    "weight_decay", "rho"); each weight must be in exactly one.

    Raises:
        SettingError: no weights to train, a weight in no group or in two.
    """
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    if not trained:
        raise SettingError(f"{type(module).__name__} has no weights to train")
    own: Any = getattr(module, "parameter_groups", None)
    found: list[dict[str, Any]] = [dict(g) for g in (own(recipe) if callable(own) else groups(module, recipe))]
    for group in found:
        group["params"] = list(group["params"])
        group.setdefault("lr", recipe.lr)
        group["initial_lr"] = group["lr"]  # the peak, from which the schedule goes
    _covered(trained, found)
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(
            found, recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay, nesterov=recipe.nesterov
        )
    kind = torch.optim.AdamW if recipe.optimizer == "adamw" else torch.optim.Adam
    return kind(found, recipe.lr, recipe.betas, recipe.eps, recipe.weight_decay)


def groups(module: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """One group, or without `decay_norms` a second one that does not decay.

    That holds vectors and scalars (norms, biases, layer scales), position tables and tokens, and what a part of the
    network names in `no_weight_decay()` (as in timm).
    """
    trained = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    if recipe.decay_norms:
        return [{"params": [p for _, p in trained]}]
    spared: set[str] = set()
    for prefix, part in module.named_modules():
        names: Any = getattr(part, "no_weight_decay", None)
        if callable(names):
            spared |= {f"{prefix}.{name}" if prefix else name for name in names()}
    still = {n for n, p in trained if p.ndim <= 1 or n.rsplit(".", 1)[-1] in _PLACES or n in spared}
    both: list[dict[str, Any]] = [
        {"params": [p for n, p in trained if n not in still]},
        {"params": [p for n, p in trained if n in still], "weight_decay": 0.0},
    ]
    return [group for group in both if group["params"]]


def _covered(trained: dict[str, nn.Parameter], found: list[dict[str, Any]]) -> None:
    count: dict[int, int] = {}
    for group in found:
        for p in group["params"]:
            count[id(p)] = count.get(id(p), 0) + 1
    missing = [name for name, p in trained.items() if count.get(id(p), 0) == 0]
    double = [name for name, p in trained.items() if count.get(id(p), 0) > 1]
    if missing or double:
        what = f"{missing[0]} is in no group" if missing else f"{double[0]} is in two groups"
        raise SettingError(f"parameter_groups: {what} ({len(missing)} missing, {len(double)} double)")
