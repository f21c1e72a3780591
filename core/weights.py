"""Published checkpoints under our names, all or nothing; our own weights as safetensors."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from core.checkpoints import read_checkpoint
from core.config import merge
from core.errors import WeightsError

Resize = Callable[[Tensor, Tensor, nn.Module], Tensor]  # (published value, our value, our model) -> a value that fits
_SLICE = re.compile(r"\[(\d+)\]$")


@dataclass(frozen=True)
class KeyMap:
    """How the authors' parameter names become ours, `backbone.*` and `head.*`.

    Attributes:
        rename: (regex, replacement), each applied once, in order. A result that ends in `[i]` is the i-th part of one
            of our tensors, whose parts are joined along the first dimension (separate q, k and v into one).
        drop: regexes of published entries that are derived, never learned.
        transform: regex of a published name -> change of layout (a 1x1 convolution to a matrix), always applied.
        resize: regex of our name -> new value where the shapes differ (tables that depend on the image or the window).
        constants: regex of a published name -> whether the stored value is the constant that it must be.
        when: the map is for states in which this regex matches some name.
    """

    rename: Sequence[tuple[str, str]] = ()
    drop: Sequence[str] = ()
    transform: Mapping[str, Callable[[Tensor], Tensor]] = field(default_factory=dict)
    resize: Mapping[str, Resize] = field(default_factory=dict)
    constants: Mapping[str, Callable[[Tensor], bool]] = field(default_factory=dict)
    when: str = ""

    def name(self, published: str) -> str | None:
        """Our name for a published one, None for what is dropped."""
        if any(re.search(p, published) for p in (*self.drop, *self.constants)):
            return None
        for pattern, replacement in self.rename:
            published = re.sub(pattern, replacement, published)
        return published

    def fits(self, names: Mapping[str, Any]) -> bool:
        return not self.when or any(re.search(self.when, n) for n in names)


def choose(maps: Sequence[KeyMap], names: Mapping[str, Any]) -> KeyMap:
    """The first map that is for these names."""
    return next((m for m in maps if m.fits(names)), maps[-1])


def convert(
    published: Mapping[str, Tensor],
    keymap: KeyMap,
    model: nn.Module,
    *,
    part: str = "",
    resize: bool = True,
    resized: list[str] | None = None,
) -> dict[str, Tensor]:
    """A state dict for `model` out of published names and values: one to one, or an error.

    Args:
        published: authors' names and values.
        keymap: the renaming.
        model: the network to fill; only its names, shapes and the values of what is resized are looked at.
        part: take only our names that start so, and cut it off ("backbone." fills a bare backbone).
        resize: allow the keymap's resizing of tables.
        resized: filled with our names of the tables that were resized.

    Raises:
        WeightsError: lists every leftover in both directions and every shape that differs.
    """
    ours = model.state_dict()
    pieces: dict[str, dict[int, Tensor]] = {}
    problems: list[str] = []
    for key, value in published.items():
        for pattern, check in keymap.constants.items():
            if re.search(pattern, key) and not check(value):
                problems.append(f"{key}: stored as a parameter, but not the constant that this network uses")
        name = keymap.name(key)
        if name is None or not name.startswith(part):
            continue
        for pattern, change in keymap.transform.items():
            if re.search(pattern, key):
                value = change(value)
        found = _SLICE.search(name)
        name, index = (name[: found.start()], int(found[1])) if found else (name, 0)
        name = name.removeprefix(part)
        if index in pieces.setdefault(name, {}):
            problems.append(f"{key}: a second value for {name}")
        pieces[name][index] = value
    out: dict[str, Tensor] = {}
    for name, parts in pieces.items():
        value = parts[0] if len(parts) == 1 else torch.cat([parts[i] for i in sorted(parts)])
        if name not in ours:
            problems.append(f"{name}: in the file, not in the network")
            continue
        want = ours[name]
        if value.shape != want.shape and resize:
            for pattern, fit in keymap.resize.items():
                if re.search(pattern, name):
                    value = fit(value, want, model)
                    if resized is not None:
                        resized.append(name)
        if value.shape != want.shape:
            problems.append(f"{name}: {tuple(value.shape)} in the file, {tuple(want.shape)} in the network")
        out[name] = value
    out |= {n: v for n, v in ours.items() if n.endswith("num_batches_tracked") and n not in out}
    problems += [f"{name}: in the network, not in the file" for name in ours.keys() - out.keys()]
    if problems:
        shown = sorted(problems)
        more = f"; and {len(shown) - 12} more" if len(shown) > 12 else ""
        raise WeightsError(f"{len(problems)} names do not fit {type(model).__name__}: {'; '.join(shown[:12])}{more}")
    return out


def load_published(
    name: str,
    path: str | Path,
    *,
    classes: int | None = None,
    new_head: bool = False,
    resize: bool = True,
    wrapper: str | None = None,
    prefix: str = "",
    **config: Any,
) -> nn.Module:
    """The network `name` with the weights of an authors' file, in evaluation mode.

    A file with a classifier gives the classifier (`.backbone`, `.head`), one without gives the backbone; a network of
    an app comes whole, and its file may also be one of ours. Tables that depend on the image or the window are resized
    as the system's card says, with a warning that names them.

    Args:
        name: "family/variant" or a registered "domain/network"; the file may change what the variant leaves open (dense
            or classification, tokens, classes).
        path: `.safetensors`, `.npz` or a PyTorch file, which is read without running code.
        classes: number of classes wanted; by default the file's own.
        new_head: where `classes` differs from the file's, start a head of zeros instead of refusing.
        resize: allow resizing of tables.
        wrapper: key of the state inside the file, where it holds several ("model_ema").
        prefix: take only published names that start so ("backbone.", "teacher."), and cut it off.
        config: overrides of the variant's settings.

    Raises:
        WeightsError: one sentence that names the file and what does not fit, in both directions.
    """
    from core import registry  # the one look upwards: this is the entry point that joins both

    path = Path(path)
    whole = read_checkpoint(path, wrapper=wrapper)
    state = {n.removeprefix(prefix): v for n, v in whole.items() if n.startswith(prefix)}
    if not state:
        raise WeightsError(f"{path}: no name starts with {prefix!r}")
    if registry.is_network(name):
        try:
            module, base = registry.lookup(name)
            base = registry.changed(base, config, name)
            return filled_network(module, name, state, base, classes=classes, new_head=new_head, **config).eval()
        except WeightsError as error:
            raise WeightsError(f"{path}: {error}") from None
    module, base = registry.lookup(name)
    shapes = {n: tuple(v.shape) for n, v in state.items()}
    keymap = choose(module.PUBLISHED, shapes)
    try:
        found = module.from_published({}, shapes, base)
        _same_network(found, base, config, name)
        backbone = registry.build(module, registry.changed(found, config, name))
    except KeyError as error:
        raise WeightsError(f"{path}: not a {name} file, it has no {error.args[0]!r}") from None
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from None
    have = head_classes(state, keymap)
    resized: list[str] = []
    try:
        if have is None:
            if classes is not None and not new_head:
                raise WeightsError(f"has no classifier, and {classes} classes were asked for: pass new_head=True")
            backbone.load_state_dict(convert(state, keymap, backbone, part="backbone.", resize=resize, resized=resized))
            model: nn.Module = backbone if classes is None else registry.classifier(backbone, classes, zero=True)
        elif classes in (None, have):
            model = registry.classifier(backbone, have)
            model.load_state_dict(convert(state, keymap, model, resize=resize, resized=resized))
        elif new_head:
            assert classes is not None
            model = registry.classifier(backbone, have)
            model.load_state_dict(convert(state, keymap, model, resize=resize, resized=resized))
            model = registry.with_classes(model, classes)
        else:
            raise WeightsError(
                f"has a head for {have} classes, {classes} were asked for: leave `classes` out, or pass new_head=True "
                "for a head of zeros"
            )
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from None
    if resized:
        more = f" and {len(resized) - 1} more" if len(resized) > 1 else ""
        warnings.warn(f"{path}: {resized[0]}{more} resized to the size that {name} asks for", stacklevel=2)
    return model.eval()


def filled_network(
    module: Any, name: str, state: Mapping[str, Tensor], base: Any, *, classes: int | None = None,
    new_head: bool = False, **config: Any,
) -> nn.Module:  # fmt: skip
    """A network of an app out of published (or our own) names and values.

    Args:
        module: has `build`, `from_published`, PUBLISHED and HEADS (see registry.register).
        name: of the network, for messages.
        state: names and values.
        base: configuration, which the state changes where its shapes say otherwise (channels, classes).
        classes: number of classes wanted; by default the state's own.
        new_head: where `classes` differs, start heads of zeros instead of refusing.
        config: settings that the state must not change.

    Raises:
        WeightsError: what does not fit, in both directions.
    """
    shapes = {n: tuple(v.shape) for n, v in state.items()}
    try:
        found = module.from_published({}, shapes, base)
    except KeyError as error:
        raise WeightsError(f"not a {name} file, it has no {error.args[0]!r}") from None
    _same_network(found, base, {}, name)
    model: nn.Module = module.build(merge(found, config))
    model.load_state_dict(convert(state, choose(module.PUBLISHED, shapes), model))
    if classes in (None, found.classes):
        return model
    if not new_head:
        raise WeightsError(
            f"has heads for {found.classes} classes, {classes} were asked for: leave `classes` out, or pass "
            "new_head=True for heads of zeros"
        )
    fresh: nn.Module = module.build(merge(found, config | {"classes": classes}))
    kept = model.state_dict()
    for key, value in fresh.state_dict().items():
        value.copy_(torch.zeros_like(value) if re.search(module.HEADS, key) else kept[key])
    return fresh


# Settings that make a variant what it is; a file may decide others (dense form, tokens, biases, norms).
_IDENTITY = (
    "dim", "dims", "depth", "depths", "heads", "mlp_ratio", "patch",
    "bottleneck", "groups", "group_width", "response_norm",
)  # fmt: skip


def _same_network(found: Any, base: Any, config: Mapping[str, Any], name: str) -> None:
    """Refuse a file whose shapes say that it holds another variant."""
    for key in _IDENTITY:
        has, wants = getattr(found, key, None), getattr(base, key, None)
        if key not in config and has != wants:
            raise WeightsError(f"holds a network with {key} {has}, and {name} has {wants}")


def head_classes(state: Mapping[str, Tensor], keymap: KeyMap) -> int | None:
    """Number of classes of the head in a published state, None without one."""
    for key, value in state.items():
        if keymap.name(key) in ("head.fc.weight", "head.fc.bias"):
            for pattern, change in keymap.transform.items():
                if re.search(pattern, key):
                    value = change(value)
            return int(value.shape[0])
    return None


def save(model: nn.Module, path: str | Path) -> None:
    """Write a network's state as safetensors: aside first, then renamed."""
    from safetensors.torch import save_file

    path = Path(path)
    aside = path.with_name(path.name + ".part")
    save_file({n: v.detach().cpu().contiguous() for n, v in model.state_dict().items()}, aside)
    aside.replace(path)


def load(model: nn.Module, path: str | Path, *, mapped: bool = False) -> None:
    """Fill `model` from `save`'s file; every name must be there and nothing else.

    `mapped` lets the network use the file's pages in place of its own memory (on the CPU): half of what a copy needs
    while it is made. Parameters that were one tensor are two then, so networks that tie weights are not for it.
    """
    state = read_checkpoint(path)
    try:
        model.load_state_dict(convert(state, KeyMap(), model), assign=mapped)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from None
