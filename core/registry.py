"""Networks by name. A file in core/backbones is a family; its VARIANTS are the names: "swin/tiny"."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from torch import nn

from core import backbones
from core.config import merge
from core.errors import UnknownNameError
from core.heads.classify import Classifier


@cache
def families() -> tuple[str, ...]:
    return tuple(sorted(m.name for m in iter_modules(backbones.__path__) if not m.name.startswith("_")))


def family(name: str) -> Any:
    """The module of a family (see protocols.Family); only that file is imported."""
    if name not in families():
        raise UnknownNameError("backbone family", name, families())
    return import_module(f"core.backbones.{name}")


def names() -> list[str]:
    """Every "family/variant". Imports every family: for listings and tests, not for `create`."""
    return [f"{f}/{v}" for f in families() for v in family(f).VARIANTS]


def lookup(name: str) -> tuple[Any, Any]:
    """The family module and the configuration of "family/variant"."""
    head, slash, variant = name.partition("/")
    module = family(head)
    if not slash or variant not in module.VARIANTS:
        known = [f"{head}/{v}" for v in module.VARIANTS]
        raise UnknownNameError(f"{head} variant", name if slash else f"{head}/", known)
    return module, module.VARIANTS[variant]


def changed(config: Any, values: dict[str, Any], name: str) -> Any:
    """`config` with settings replaced; a wrong name or type is one clear error."""
    return merge(config, values, kind=f"{name.partition('/')[0]} setting")


def create(name: str, *, classes: int | None = None, **config: Any) -> Any:
    """Build a network.

    Args:
        name: "family/variant".
        classes: with it, the published classifier around the backbone: (B, C, H, W) -> (B, classes).
        config: overrides of the variant's settings (`in_channels=12`, `drop_path=0.1`).

    Returns:
        The backbone, (B, C, H, W) -> list of (B, C_i, H_i, W_i); with `classes`, a Classifier.

    >>> create("swin/tiny", depths=(1, 1, 1, 1)).channels
    (96, 192, 384, 768)
    """
    module, settings = lookup(name)
    backbone = module.build(changed(settings, config, name))
    return backbone if classes is None else classifier(backbone, classes)


def classifier(backbone: Any, classes: int, *, zero: bool = False) -> Classifier:
    """The family's own classifier around a backbone; with `zero`, its last layer answers nothing yet."""
    model = Classifier(backbone, classes)
    if zero:
        _zero(model)
    return model


def with_classes(model: Any, classes: int) -> Classifier:
    """The same backbone and head norms with a last layer of zeros for another number of classes."""
    fresh = Classifier(model.backbone, classes)
    kept = {n: v for n, v in model.head.state_dict().items() if not n.startswith("fc")}
    fresh.head.load_state_dict(kept | {n: v for n, v in fresh.head.state_dict().items() if n not in kept})
    _zero(fresh)
    return fresh


def _zero(model: Classifier) -> None:
    for name, layer in model.head.named_modules():
        if name.startswith("fc") and isinstance(layer, nn.Linear):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
