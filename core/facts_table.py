"""Measures a family or an app's network for core.table: counts, levels, settings and what their comments say."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
from typing import Any

import torch

from core import measure, registry
from core.errors import SettingError
from core.facts import Facts


def family(name: str, *, quick: bool = False) -> dict[str, Any]:
    """Facts, settings and variants of one family, of plain JSON types.

    Args:
        name: a file of core/backbones.
        quick: build the first variant only; None stands for the counts of the others.
    """
    module = registry.family(name)
    facts = module.FACTS
    for key in (*facts.top1, *facts.size, *facts.scores):
        if key not in module.VARIANTS:
            raise SettingError(f"{name}: FACTS name a variant {key!r} that VARIANTS lack")
    first = next(iter(module.VARIANTS.values()))
    kind = type(first)
    meaning = comments(kind)
    defaults = {f.name: _plain(_default(f)) for f in dataclasses.fields(kind)}
    variants = {}
    for i, (variant, config) in enumerate(module.VARIANTS.items()):
        entry = _variant(name, variant, facts, build=i == 0 or not quick)
        values = {f.name: _plain(getattr(config, f.name)) for f in dataclasses.fields(kind)}
        variants[variant] = {
            **entry,
            "top1": facts.top1.get(variant),
            **({"scores": dict(facts.scores[variant])} if variant in facts.scores else {}),
            "settings": {k: v for k, v in values.items() if v != defaults[k]},
        }
    return {
        "title": facts.title,
        "paper": facts.paper,
        "licence": facts.licence,
        "reading": facts.reading,
        **{k: getattr(facts, k) for k in ("data", "classes") if getattr(facts, k) != getattr(Facts, k)},
        "settings": {k: [v, meaning.get(k, "")] for k, v in defaults.items()},
        "variants": variants,
    }


def network(module: Any, name: str) -> dict[str, Any]:
    """Facts, counts and settings of one network of an app, of plain JSON types.

    Args:
        module: has NETWORKS, FACTS (by network; `size` names the side of its image), SCORES, `build`.
        name: of the network.
    """
    config, facts = module.NETWORKS[name], module.FACTS[name]
    size = facts.axes(name)[0]
    shape = (1, config.in_channels, size, size)
    model: Any = measure.on_meta(lambda: module.build(config))
    with torch.no_grad():
        levels = model.scales(torch.empty(shape, device="meta"))
    meaning = comments(type(config))
    return {
        "title": facts.title,
        "paper": facts.paper,
        "licence": facts.licence,
        "reading": facts.reading,
        "module": module.__name__,
        "parameters": measure.parameters(model),
        "macs": measure.macs(model, shape),
        "size": size,
        "in_channels": config.in_channels,
        "classes": config.classes,
        "channels": [level.shape[1] for level in levels],
        "strides": [size // level.shape[2] for level in levels],
        "top1": None,
        "scores": dict(module.SCORES.get(name, {})),
        "settings": {
            f.name: [_plain(getattr(config, f.name)), meaning.get(f.name, "")] for f in dataclasses.fields(config)
        },
    }


def _variant(family: str, variant: str, facts: Facts, *, build: bool) -> dict[str, Any]:
    name = f"{family}/{variant}"
    _, config = registry.lookup(name)
    channels = getattr(config, "in_channels", 3)
    entry: dict[str, Any] = dict.fromkeys(("parameters", "macs"))
    size = _plain(facts.size.get(variant, 224))
    entry |= {"size": size, "in_channels": channels, "channels": None, "strides": None}
    if build:
        model: Any = measure.on_meta(lambda: registry.create(name, classes=facts.classes))
        entry["parameters"] = measure.parameters(model)
        entry["macs"] = _macs(name, model, (1, channels, *facts.axes(variant)), facts.classes)
        entry["channels"] = _plain(model.backbone.channels)
        entry["strides"] = _plain(model.backbone.strides)
    return entry


def _macs(name: str, model: Any, shape: tuple[int, ...], classes: int) -> int:
    try:
        return measure.macs(model, shape)
    except (NotImplementedError, RuntimeError):  # an operator without a meta form: real numbers
        return measure.macs(registry.create(name, classes=classes).eval(), shape)


def comments(kind: type) -> dict[str, str]:
    """Field -> the comment on its line and on the comment lines right below it."""
    source = textwrap.dedent(inspect.getsource(kind))
    lines = source.splitlines()
    body = ast.parse(source).body[0]
    assert isinstance(body, ast.ClassDef)
    found = {}
    for node in body.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.end_lineno is not None:
            after = lines[node.end_lineno - 1].encode()[node.end_col_offset :].decode().strip()
            parts = [after] if after.startswith("#") else []
            for line in lines[node.end_lineno :] if parts else ():
                if not line.strip().startswith("#"):
                    break
                parts.append(line.strip())
            found[node.target.id] = " ".join(p.lstrip("# ") for p in parts)
    return found


def _default(entry: dataclasses.Field[Any]) -> Any:
    if entry.default is not dataclasses.MISSING:
        return entry.default
    return entry.default_factory() if entry.default_factory is not dataclasses.MISSING else None


def _plain(value: Any) -> Any:
    """Tuples as lists, nested settings as tables, anything else that JSON lacks by its name."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return getattr(value, "__name__", str(value))
