"""Networks of ultrasound screening, by name; all take pictures (B, C, size, size) and answer logits (B, classes).

`size`: the side they are built for; `mixes`: whether an answer depends on the others of its batch; `explained(image)`:
logits and maps of what was looked at. Importing this file makes them known to core.registry, as "medical/hsqformer" and
"medical/backbone".
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from apps.medical import _class_weights
from apps.medical._backbone import BackboneClassifier, BackboneConfig
from apps.medical._class_weights import Imported
from apps.medical.ultrasound import _published
from apps.medical.ultrasound._hsqformer import HSQformer, HSQformerConfig
from core import registry
from core.config import merge
from core.errors import UnknownNameError
from core.facts import Facts
from core.weights import KeyMap

__all__ = [
    "FACTS",
    "HEADS",
    "KEYMAPS",
    "NETWORKS",
    "PUBLISHED",
    "SCORES",
    "SYSTEM",
    "Imported",
    "attention",
    "build",
    "configured",
    "create",
    "explained",
    "from_published",
    "import_weights",
    "initialise",
]

Config = HSQformerConfig | BackboneConfig

NETWORKS: dict[str, Config] = {"hsqformer": HSQformerConfig(), "backbone": BackboneConfig()}
FACTS: dict[str, Facts] = {
    "hsqformer": Facts(title="HSQformer", paper="arXiv 2502.03772", licence="Apache-2.0", size={"hsqformer": 224}),
    "backbone": Facts(
        title="Any backbone under a linear head", paper="this house", licence="Apache-2.0", size={"backbone": 224}
    ),
}
# Multi-centre, of the abstract; nothing else of the tables was at hand.
SCORES: dict[str, dict[str, float]] = {"hsqformer": {"AUROC": 0.9538}}

# How published names become ours; the last is for our own files.
KEYMAPS: dict[str, KeyMap] = {"hsqformer": _published.PUBLISHED}
PUBLISHED = (*KEYMAPS.values(), KeyMap())
SYSTEM, HEADS = _published.SYSTEM, _published.HEADS

_BUILDERS: dict[type, Any] = {HSQformerConfig: HSQformer, BackboneConfig: BackboneClassifier}


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
    if name not in NETWORKS:
        raise UnknownNameError("medical ultrasound network", name, NETWORKS)
    return merge(NETWORKS[name], settings, kind=f"{name} setting")


def create(name: str, **settings: Any) -> nn.Module:
    """The network `name` with settings laid over its configuration; errors as `configured`."""
    return build(configured(name, settings))


@torch.no_grad()
def explained(network: Any, image: Tensor) -> tuple[Tensor, list[Tensor] | None]:
    """Logits (B, classes) of an image (B, C, S, S), and what the network looked at, in one pass.

    Of HSQformer a map (B, h, w) for each level, fine to coarse: the softmax weights of the queries' cross attention,
    mean over queries, heads and blocks. Of a backbone one class activation map, or None where its head has none. Each
    map adds up to 1.
    """
    logits, maps = network.explained(image)
    return logits, maps


def attention(network: Any, image: Tensor) -> list[Tensor] | None:
    """The maps of `explained` alone."""
    return explained(network, image)[1]


def import_weights(path: str | Path, network: str, config: Config | None = None) -> tuple[nn.Module, Imported]:
    """A network with weights of authors (or our own), in evaluation mode, and what was taken.

    Args:
        path: the authors' checkpoint of HSQformer or our safetensors: the whole network, with size, depths, queries,
            width, head and classes read from the file. Or published weights of a backbone (Swin-S and ConvNeXt-S of
            ImageNet-22k are what HSQformer began with), or a folder with a file for each of the two: those parts, all
            else at its start.
        network: a name of NETWORKS.
        config: what the file leaves open: the order of the attentions, which kind of routed experts.

    Raises:
        WeightsError: a file that cannot be read without running code, of another network, or that does not fit one to
            one; it lists what is left over on both sides.
    """
    return _class_weights.imported(sys.modules[__name__], path, network, config or configured(network, {}))


def initialise(model: nn.Module, network: str, path: str | Path, *, classes: Mapping[str, int] | None = None) -> str:
    """Start a network of `NETWORKS` from weights in place, and say in a sentence what was taken.

    Args:
        model: as built; its channels stay.
        network: its name.
        path: as for `import_weights`, or a bundle's folder.
        classes: name -> id of what will be trained; the head is taken where a bundle has the same, or a file as many.

    Raises:
        WeightsError: as `import_weights`; other shapes than the model's.
    """
    return _class_weights.initialise(sys.modules[__name__], model, path, network, classes)


def from_published(build: Mapping[str, Any], names: Mapping[str, Sequence[int]], base: Config) -> Config:
    """The configuration behind authors' arguments, parameter names and shapes; names may also be our own.

    What neither says (the order of the attentions, which of the four kinds of routed experts, heads) is `base`'s.

    Raises:
        KeyError: a parameter that this network must have.
        WeightsError: an argument that is not known, experts that are not `base`'s.
    """
    found: Config = _published.from_published(build, names, base)
    return found


for _network in NETWORKS:
    registry.register(f"medical/{_network}", __name__)
