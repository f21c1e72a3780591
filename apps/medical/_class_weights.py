"""Published weights for networks that classify pictures: a whole network, or the backbones that it is built on."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from apps.medical._backbone import BackboneConfig
from core import registry
from core.checkpoints import read_checkpoint
from core.errors import WeightsError
from core.heads.classify import Classifier
from core.weights import KeyMap, filled_network, load_published

# Part of a network that is a backbone of core -> its attribute, its registered name, its settings.
Parts = Mapping[str, tuple[str, str, Mapping[str, Any]]]


@dataclass(frozen=True)
class WithFamilies(KeyMap):
    """A KeyMap that leaves the names behind a prefix to the family they come from.

    Attributes:
        families: (published prefix, our prefix, the family's own map).
    """

    families: Sequence[tuple[str, str, KeyMap]] = ()

    def name(self, published: str) -> str | None:
        for theirs, ours, keymap in self.families:
            if published.startswith(theirs):
                found = keymap.name(published.removeprefix(theirs))
                return None if found is None else ours + found.removeprefix("backbone.")
        return super().name(published)


@dataclass(frozen=True)
class System:
    """What an app says of its own network; beside it, it has the `backbone` under a linear head.

    Attributes:
        name: of the network.
        keymap: of the authors' names.
        own: a name that only our own files have.
        heads: regex of our names of what depends on the classes.
        parts: configuration -> the backbones of core in it.
        plain: Python that writes a file without code from the authors', given its content `s`.
    """

    name: str
    keymap: KeyMap
    own: str
    heads: str
    parts: Callable[[Any], Parts]
    plain: str


@dataclass(frozen=True)
class Imported:
    """What an import took.

    Attributes:
        network: its name.
        part: "network", or what of it, as the system's `parts` name them ("swin and convnext"), or "backbone".
        config: of the network built.
        taken: tensors that the file gave.
        left: our names of those at their start although they belong to the part.
    """

    network: str
    part: str
    config: Any
    taken: int
    left: tuple[str, ...] = ()

    def sentence(self, path: object) -> str:
        left = f"; not taken: {', '.join(self.left)}" if self.left else ""
        return f"{self.part} of {self.network} from {path}: {self.taken} tensors{left}"


def imported(module: Any, path: str | Path, network: str, config: Any) -> tuple[nn.Module, Imported]:
    """A network with weights of authors (or our own), in evaluation mode, and what was taken.

    Args:
        module: the app's model.py, with SYSTEM, `build` and what core.weights.filled_network reads.
        path: a file of the whole network or of a backbone in it (published, or trained here under a linear head), or a
            folder with one file for each backbone.
        network: the system's name or "backbone".
        config: what the file leaves open.

    Raises WeightsError for a file that cannot be read without running code, of another network, or that does not fit.
    """
    path = Path(path)
    if not path.is_dir():
        state = read(path, module.SYSTEM)
        if _is_whole(state, network, path, module.SYSTEM):
            model = _filled(module, path, network, state, config)
            return model.eval(), Imported(network, "network", model.config, len(model.state_dict()))
    model = module.build(config)
    part, taken, left = _backbones(model, path, module.SYSTEM)
    return model.eval(), Imported(network, part, config, taken, left)


def initialise(module: Any, model: Any, path: str | Path, network: str, classes: Mapping[str, int] | None) -> str:
    """Start a network from weights in place, and say in a sentence what was taken.

    Args:
        module: as for `imported`.
        model: as built; its channels stay.
        path: as for `imported`, or a bundle's folder.
        network: its name.
        classes: name -> id of what will be trained; the head is taken where a bundle has the same, or a file as many.

    Raises WeightsError as `imported`; other shapes than the model's.
    """
    path, same = Path(path), True
    file = path
    if (path / "settings.toml").is_file():
        from core import bundle

        found = bundle.load(path)
        if found.settings.network.name not in (network, "backbone"):
            raise WeightsError(f"{path}: holds {found.settings.network.name}, {network} was asked for")
        file, same = found.weights, classes is None or dict(found.settings.output.classes) == dict(classes)
    if not file.is_dir():
        state = read(file, module.SYSTEM)
        if _is_whole(state, network, file, module.SYSTEM):
            given = _filled(module, file, network, state, model.config).state_dict()
            return _taken(module, model, given, file, path, network, same)
    part, taken, left = _backbones(model, file, module.SYSTEM)
    return Imported(network, part, model.config, taken, left).sentence(path)


def read(path: Path, system: System) -> dict[str, Tensor]:
    """Names and tensors of a file, also where the authors keep the optimiser and more beside them.

    Raises WeightsError as core.checkpoints.read_checkpoint; where code would run, with the way to a plain file.
    """
    try:
        return read_checkpoint(path)
    except WeightsError as error:
        if "would run code" not in str(error):
            raise
        raise WeightsError(
            f"{error}, or, if you trust it, write one where it was made: s = torch.load(FILE, weights_only=False); "
            f"{system.plain}"
        ) from None


def _taken(
    module: Any, model: Any, given: Mapping[str, Tensor], file: Path, path: Path, network: str, same: bool
) -> str:
    """Fill `model` with a whole network; heads for other classes stay at their start."""
    ours, fresh = model.state_dict(), []
    for name in sorted(ours.keys() | given.keys()):
        has, wants = (tuple(s[name].shape) if name in s else None for s in (given, ours))
        if re.search(module.HEADS, name) and (not same or has != wants):
            fresh.append(name)
        elif has != wants:
            raise WeightsError(f"{file}: {name} is {has} there and {wants} in the network to train")
    model.load_state_dict(ours | {n: v for n, v in given.items() if n not in fresh})
    left = tuple(n for n in fresh if n in ours)
    return Imported(network, "network", model.config, len(given) - sum(n in given for n in fresh), left).sentence(path)


def _filled(module: Any, path: Path, network: str, state: Mapping[str, Tensor], config: Any) -> Any:
    """The whole network, in the size and form that the file's shapes say."""
    shapes = {n: tuple(v.shape) for n, v in state.items()}
    try:
        return filled_network(module, network, state, module.from_published({}, shapes, config))
    except KeyError as error:
        raise WeightsError(f"{path}: not a {network} file, it has no {error.args[0]!r}") from None
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from None


def _is_whole(state: Mapping[str, Tensor], network: str, path: Path, system: System) -> bool:
    """Whether these are a whole network's names, ours or published; WeightsError for the system in a backbone's place.

    A backbone that was trained under a linear head is no whole system, but may be a part of one.
    """
    if system.keymap.fits(state) or system.own in state:
        if network != system.name:
            raise WeightsError(f"{path}: holds a {system.name}, {network} was asked for")
        return True
    return _under_head(state) and network != system.name


def _under_head(state: Mapping[str, Tensor]) -> bool:
    return "head.fc.weight" in state and any(n.startswith("encoder.") for n in state)


def _backbones(model: Any, path: Path, system: System) -> tuple[str, int, tuple[str, ...]]:
    """Fill backbones with weights of their families: which, how many tensors, and our names of those left out.

    A folder holds one file for each. Raises WeightsError where a file belongs to none.
    """
    parts = _plain(model.config) if isinstance(model.config, BackboneConfig) else system.parts(model.config)
    files = sorted(p for p in path.iterdir() if p.is_file() and not p.name.startswith(".")) if path.is_dir() else [path]
    if not files:
        raise WeightsError(f"{path}: holds no weights")
    filled: dict[str, tuple[int, tuple[str, ...]]] = {}
    for file in files:
        state, reasons = read(file, system), []
        if _under_head(state):
            state = {n.removeprefix("encoder."): v for n, v in state.items() if n.startswith("encoder.")}
        for part, (attribute, name, settings) in parts.items():
            if part in filled:
                continue
            try:
                filled[part] = _backbone(getattr(model, attribute), name, settings, file, state, attribute)
                break
            except WeightsError as error:
                reasons.append(f"{part}: {str(error).removeprefix(f'{file}: ')}")
        else:
            said = "; ".join(reasons) or f"{' and '.join(filled)} came from the files before it"
            raise WeightsError(f"{file}: neither the whole network nor a backbone of it ({said})")
    left = tuple(name for _, names in filled.values() for name in names)
    return " and ".join(filled), sum(count for count, _ in filled.values()), left


def _plain(config: BackboneConfig) -> Parts:
    return {"backbone": ("encoder", config.backbone, sized(config.backbone, config.size, config.overrides))}


def sized(name: str, size: int, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a registered backbone, with the image's size for one that is built for a size."""
    own = {"image_size": size} if hasattr(registry.lookup(name)[1], "image_size") else {}
    return {**own, **settings}


def _backbone(
    encoder: nn.Module, name: str, settings: Mapping[str, Any], file: Path, state: Mapping[str, Tensor], prefix: str
) -> tuple[int, tuple[str, ...]]:
    """Published weights of a backbone of core, or our own; what reads the image may have other channels."""
    own = encoder.state_dict()
    if state.keys() == own.keys():
        given = dict(state)
    else:
        changed = {k: v for k, v in settings.items() if k not in ("in_channels", "drop_path")}
        loaded = load_published(name, file, **changed)
        given = (loaded.backbone if isinstance(loaded, Classifier) else loaded).state_dict()
    left = []
    for key in sorted(own.keys() | given.keys()):
        has, wants = (tuple(s[key].shape) if key in s else None for s in (given, own))
        if has is None or wants is None or (has != wants and (len(has) != 4 or has[2:] != wants[2:])):
            raise WeightsError(f"{key} is {has} in the file and {wants} in the network")
        if has != wants:
            left.append(key)
    first = next(n for n, m in encoder.named_modules() if isinstance(m, nn.Conv2d)) + ".weight"
    if left and left != [first]:
        raise WeightsError(f"{', '.join(left)}: not of the shape that the network has")
    encoder.load_state_dict(own | {n: v for n, v in given.items() if n not in left})
    return len(own) - len(left), tuple(f"{prefix}.{n}" for n in left)
