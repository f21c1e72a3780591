"""Networks of histology classification, by name; all take tiles (B, C, size, size) and answer logits (B, classes).

`size`: the side they are built for. Importing this file makes DuoFormer known to core.registry, as "medical/duoformer".
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from apps.medical import _class_weights
from apps.medical._backbone import BackboneClassifier, BackboneConfig
from apps.medical._class_weights import Imported
from apps.medical.pathology_classify import _duoformer_published
from apps.medical.pathology_classify._duoformer import SIZE, DuoFormer, DuoFormerConfig
from core import registry
from core.config import merge
from core.errors import UnknownNameError
from core.facts import Facts
from core.weights import KeyMap

__all__ = [
    "CHOICES",
    "FACTS",
    "HEADS",
    "KEYMAPS",
    "NETWORKS",
    "PUBLISHED",
    "SCORES",
    "SIZE",
    "SYSTEM",
    "Imported",
    "build",
    "configured",
    "create",
    "from_published",
    "import_weights",
    "initialise",
]

Config = DuoFormerConfig | BackboneConfig

NETWORKS: dict[str, Config] = {"duoformer": DuoFormerConfig()}
# What may be trained: any backbone of core, too, which all of the domain have (medical/backbone, listed once).
CHOICES: dict[str, Config] = {**NETWORKS, "backbone": BackboneConfig(backbone="resnet/50")}
FACTS: dict[str, Facts] = {
    "duoformer": Facts(title="DuoFormer", paper="arXiv 2506.12982", licence="none stated", size={"duoformer": SIZE}),
}

# Of the paper's tables nothing was at hand.
SCORES: dict[str, dict[str, float]] = {"duoformer": {}}

# How published names become ours; the last is for our own files.
KEYMAPS: dict[str, KeyMap] = {"duoformer": _duoformer_published.PUBLISHED}
PUBLISHED = (*KEYMAPS.values(), KeyMap())
SYSTEM, HEADS = _duoformer_published.SYSTEM, _duoformer_published.HEADS

_BUILDERS: dict[type, Any] = {DuoFormerConfig: DuoFormer, BackboneConfig: BackboneClassifier}


def build(config: Config) -> nn.Module:
    """The network of a configuration. Raises SettingError for settings that do not fit one another."""
    network: nn.Module = _BUILDERS[type(config)](config)
    return network


def configured(name: str, settings: Mapping[str, Any]) -> Config:
    """The configuration of a network with settings laid over it.

    Raises:
        UnknownNameError: a network or a setting that does not exist.
        SettingError: a value of another type.
    """
    if name not in CHOICES:
        raise UnknownNameError("medical pathology classify network", name, CHOICES)
    return merge(CHOICES[name], settings, kind=f"{name} setting")


def create(name: str, **settings: Any) -> nn.Module:
    """The network `name` with settings laid over its configuration; errors as `configured`."""
    return build(configured(name, settings))


def import_weights(path: str | Path, network: str, config: Config | None = None) -> tuple[nn.Module, Imported]:
    """A network with weights of authors (or our own), in evaluation mode, and what was taken.

    Args:
        path: the authors' checkpoint of DuoFormer or our safetensors: the whole network, with its ResNet, scales, scale
            token, width, depth and classes read from the file. Or published weights of the backbone (torchvision's
            ResNet, or one trained on histology alone): that part, all else at its start.
        network: a name of CHOICES.
        config: what the file leaves open: the number of heads.

    Raises:
        WeightsError: a file that cannot be read without running code, of another network, or that does not fit one to
            one; it lists what is left over on both sides.
    """
    return _class_weights.imported(sys.modules[__name__], path, network, config or configured(network, {}))


def initialise(model: nn.Module, network: str, path: str | Path, *, classes: Mapping[str, int] | None = None) -> str:
    """Start a network of `CHOICES` from weights in place, and say in a sentence what was taken.

    Args:
        model: as built; its channels stay.
        network: its name.
        path: as for `import_weights`, or the folder of a bundle, of this network or of its backbone.
        classes: name -> id of what will be trained; the head is taken where a bundle has the same, or a file as many.

    Raises:
        WeightsError: as `import_weights`; other shapes than the model's.
    """
    return _class_weights.initialise(sys.modules[__name__], model, path, network, classes)


def from_published(build: Mapping[str, Any], names: Mapping[str, Sequence[int]], base: Config) -> Config:
    """The configuration behind authors' arguments, parameter names and shapes; names may also be our own.

    The number of heads cannot be read from shapes: it is `build`'s or `base`'s.

    Raises:
        KeyError: a parameter that this network must have.
        WeightsError: a number of tokens that no number of scales has.
    """
    found: Config = _duoformer_published.from_published(build, names, base)
    return found


registry.register("medical/duoformer", __name__)
