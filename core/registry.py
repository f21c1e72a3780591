"""Networks by name. A file in core/backbones is a family; its VARIANTS are the names: "swin/tiny".

Networks that only make sense for one task live in apps, which core does not import: whoever starts a program makes them
known with `register("medical/swin_umamba", "apps.medical.segmentation.model")`, by names alone.
"""

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

_networks: dict[str, str] = {}  # "domain/network" -> the module whose NETWORKS have it


def register(name: str, module: str) -> None:
    """Make the network "domain/network" known, which `NETWORKS` of a module hold; nothing is imported before its use.

    The module has, as a family, `build(config)`, `from_published(build, names, base)` and `PUBLISHED`; its networks
    have the number of classes among their settings, as `classes`, and their last layers under names that `HEADS` match.
    """
    _networks[name] = module


def is_network(name: str) -> bool:
    """Whether a name belongs to a registered network, which answers its task's output, and not to a backbone."""
    return name in _networks


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
    """The module and the configuration of "family/variant" or of a registered "domain/network"."""
    head, slash, variant = name.partition("/")
    if name in _networks:
        module = import_module(_networks[name])
        return module, module.NETWORKS[variant]
    if any(n.startswith(f"{head}/") for n in _networks):
        raise UnknownNameError(f"{head} network", name, [n for n in _networks if n.startswith(f"{head}/")])
    module = family(head)
    if not slash or variant not in module.VARIANTS:
        known = [f"{head}/{v}" for v in module.VARIANTS]
        raise UnknownNameError(f"{head} variant", name if slash else f"{head}/", known)
    return module, module.VARIANTS[variant]


def changed(config: Any, values: dict[str, Any], name: str) -> Any:
    """`config` with settings replaced; a wrong name or type is one clear error."""
    head, _, rest = name.partition("/")
    return merge(config, values, kind=f"{rest if is_network(name) else head} setting")


def create(name: str, *, classes: int | None = None, **config: Any) -> Any:
    """Build a network.

    Args:
        name: "family/variant", or "domain/network" of an app.
        classes: with it, the published classifier around the backbone: (B, C, H, W) -> (B, classes). For a network of
            an app, its number of classes.
        config: overrides of the variant's settings (`in_channels=12`, `drop_path=0.1`).

    Returns:
        The backbone, (B, C, H, W) -> list of (B, C_i, H_i, W_i); with `classes`, a Classifier. A network of an app
        answers as its module says.

    >>> create("swin/tiny", depths=(1, 1, 1, 1)).channels
    (96, 192, 384, 768)
    """
    module, settings = lookup(name)
    if is_network(name):
        return module.build(changed(settings, config if classes is None else config | {"classes": classes}, name))
    backbone = build(module, changed(settings, config, name))
    return backbone if classes is None else classifier(backbone, classes)


def build(module: Any, config: Any) -> Any:
    """A family's backbone. One that adapts another family's network names that family in HOST and is handed it."""
    return module.build(config, family(module.HOST)) if hasattr(module, "HOST") else module.build(config)


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
