"""Weights for GNN-ViTCap: our own files of the whole network, and published files of its patch encoder."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from core.checkpoints import read_checkpoint
from core.errors import WeightsError
from core.heads.classify import Classifier
from core.weights import filled_network, load_published

# What may be left at its start where a bundle of another task (other classes, other words) is gone on from.
_OPEN = re.compile(r"^(head|language|to_prefix|clusters|projection)\.")


@dataclass(frozen=True)
class Imported:
    """What an import took.

    Attributes:
        network: its name.
        part: "network" or "patch encoder".
        config: of the network built.
        taken: parameters that the file gave, as tensors.
        left: our names of those at their start although they belong to the part.
    """

    network: str
    part: str
    config: Any
    taken: int
    left: tuple[str, ...] = ()

    def sentence(self, path: object) -> str:
        parts = sorted({name.split(".")[0] for name in self.left})
        left = f"; at its start: {', '.join(parts)}" if parts else ""
        return f"{self.part} of {self.network} from {path}: {self.taken} tensors{left}"


def imported(module: Any, path: str | Path, network: str, config: Any) -> tuple[nn.Module, Imported]:
    """See model.import_weights."""
    state = read_checkpoint(path)
    try:
        if _whole(state):
            model = filled_network(module, network, state, config)
            return model.eval(), Imported(network, "network", model.config, len(model.state_dict()))
        model = module.build(config)
        taken = _encoder(model, Path(path), state)
    except WeightsError as error:
        raise WeightsError(_named(path, error)) from None
    return model.eval(), Imported(network, "patch encoder", config, taken)


def initialise(module: Any, model: Any, path: str | Path, network: str, classes: Sequence[str] | None) -> str:
    """See model.initialise."""
    path = Path(path)
    file, other = path, []
    if path.is_dir():
        from core import bundle

        found = bundle.load(path)
        settings = found.settings
        if settings.network.name not in module.NETWORKS:
            raise WeightsError(f"{path}: holds {settings.network.name}, {network} was asked for")
        file = found.weights
        if classes is not None and list(settings.output.classes) != list(classes):
            other.append("head.")
        if tuple(settings.network.config.get("words", ())) != model.config.words:
            other.append("language.words.")
    state = read_checkpoint(file)
    if not _whole(state):
        try:
            taken = _encoder(model, file, state)
        except WeightsError as error:
            raise WeightsError(_named(file, error)) from None
        return Imported(network, "patch encoder", model.config, taken).sentence(path)
    ours = model.state_dict()
    fresh = []
    for name, value in ours.items():
        has = tuple(state[name].shape) if name in state else None
        if name.startswith(tuple(other)) or (_OPEN.match(name) and has != tuple(value.shape)):
            fresh.append(name)
        elif has != tuple(value.shape):
            raise WeightsError(f"{file}: {name} is {has} there and {tuple(value.shape)} in the network to train")
    given = {n: state[n] for n in ours if n not in fresh}
    model.load_state_dict(ours | given)
    return Imported(network, "network", model.config, len(given), tuple(fresh)).sentence(path)


def _whole(state: Mapping[str, Tensor]) -> bool:
    return "clusters.centres" in state


def _encoder(model: Any, path: Path, state: Mapping[str, Tensor]) -> int:
    """Fill the patch encoder from a published file of its backbone, or from our own; how many tensors were taken."""
    backbone, config = model.encoder.backbone, model.config
    own = backbone.state_dict()
    if state.keys() == own.keys():
        given: Mapping[str, Tensor] = state
    else:
        sized = {"image_size": config.size} if hasattr(backbone.config, "image_size") else {}
        loaded = load_published(
            config.backbone, path, **{"in_channels": config.in_channels, **sized, **config.overrides}
        )
        given = (loaded.backbone if isinstance(loaded, Classifier) else loaded).state_dict()
    for name in sorted(own.keys() | given.keys()):
        has, wants = (tuple(s[name].shape) if name in s else None for s in (given, own))
        if has != wants:
            raise WeightsError(f"{name} is {has} in the file and {wants} in the patch encoder")
    backbone.load_state_dict(given)
    return len(own)


def _named(path: object, error: WeightsError) -> str:
    """The message, with the file before it where it is not there yet."""
    return str(error) if str(error).startswith(str(path)) else f"{path}: {error}"
