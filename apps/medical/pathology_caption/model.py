"""Networks of histopathology captioning, by name; all take the patches of bags and answer a `Slide` (_gnn_vitcap).

`forward(patches (P, 3, S, S), mask (B, N))`: patches of all bags, one bag after the other; without a mask one bag.
`embed` and `slide` are its two halves, for patches that do not fit into memory at once. Importing this file makes them
known to core.registry, as "medical/gnn_vitcap" and so on.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from apps.medical.pathology_caption import _gnn_vitcap, _gnn_vitcap_weights
from apps.medical.pathology_caption._gnn_vitcap import GNNViTCap, GNNViTCapConfig, Slide
from apps.medical.pathology_caption._gnn_vitcap_weights import Imported
from apps.medical.pathology_caption.decoder import DecoderConfig
from core import bundle, registry
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
    "GNNViTCap",
    "Imported",
    "Slide",
    "build",
    "configured",
    "create",
    "from_bundle",
    "from_published",
    "import_weights",
    "initialise",
]

Config = GNNViTCapConfig

_SMALL = GNNViTCapConfig()
NETWORKS: dict[str, Config] = {
    "gnn_vitcap": _SMALL,
    "gnn_vitcap_base": replace(_SMALL, backbone="vit/base", decoder=DecoderConfig(dim=768, depth=12, heads=12)),
}

_FACTS = partial(Facts, paper="arXiv 2507.07006", licence="no weights published", reading=True)
FACTS: dict[str, Facts] = {
    "gnn_vitcap": _FACTS(title="GNN-ViTCap", size={"gnn_vitcap": 224}),
    "gnn_vitcap_base": _FACTS(title="GNN-ViTCap, ViT-B and GPT-2's size", size={"gnn_vitcap_base": 224}),
}
# Of the authors, whose sizes and splits are not known.
SCORES: dict[str, dict[str, float]] = {
    "gnn_vitcap": {
        "BreakHis F1": 0.934, "BreakHis AUC": 0.963, "PatchGastric BLEU-4": 0.811, "PatchGastric METEOR": 0.569,
    }
}  # fmt: skip

KEYMAPS: dict[str, KeyMap] = {}
PUBLISHED = (KeyMap(),)  # nothing was published: files are our own
HEADS = r"^head\."  # our names of what depends on the classes


def build(config: Config) -> GNNViTCap:
    """The network of a configuration. Raises SettingError for settings that do not fit together."""
    return _gnn_vitcap.build(config)


def configured(name: str, settings: Mapping[str, Any]) -> Config:
    """The configuration of a network with settings laid over it.

    Raises:
        UnknownNameError: a network or a setting that does not exist.
        SettingError: a value of another type.
    """
    if name not in NETWORKS:
        raise UnknownNameError("captioning network", name, NETWORKS)
    return merge(NETWORKS[name], settings, kind=f"{name} setting")


def create(name: str, **settings: Any) -> GNNViTCap:
    """The network `name` with settings laid over its configuration; errors as `configured`."""
    return build(configured(name, settings))


def from_bundle(found: bundle.Bundle) -> GNNViTCap:
    """The trained network of a bundle, in evaluation mode; its hosted language model is checked and read from it.

    Raises as `configured`, WeightsError for files of the language model that are missing or altered.
    """
    network = found.settings.network
    config = configured(network.name, network.config)
    folder = None
    if config.language == "hosted":
        from apps.medical.pathology_caption import hosted

        folder = found.folder / hosted.LANGUAGE
        hosted.same(folder, config.hosted)
    made = _gnn_vitcap.build(config, folder=folder, weights=False)
    bundle.fill(made, found)
    return made


def import_weights(path: str | Path, network: str, config: Config | None = None) -> tuple[nn.Module, Imported]:
    """A network with weights from a file, in evaluation mode, and what was taken.

    Args:
        path: our own safetensors of the whole network, or a published file of the backbone (`config.backbone`), which
            fills the patch encoder and leaves the rest at its start.
        network: a name of NETWORKS.
        config: what the file leaves open; by default the network's own.

    Raises:
        WeightsError: a file that cannot be read without running code, or that does not fit one to one; it lists what
            is left over on both sides.
    """
    return _gnn_vitcap_weights.imported(sys.modules[__name__], path, network, config or configured(network, {}))


def initialise(model: nn.Module, network: str, path: str | Path, *, classes: Sequence[str] | None = None) -> str:
    """Start a network of `NETWORKS` from weights in place, and say in a sentence what was taken.

    Args:
        model: as built; its head, language model, clusters and projection stay where the file's are others.
        network: its name.
        path: as for `import_weights`, or a bundle's folder.
        classes: names of what will be trained, in order; a bundle's head is taken where it has the same.

    Raises:
        WeightsError: as `import_weights`; a patch encoder of another shape.
    """
    return _gnn_vitcap_weights.initialise(sys.modules[__name__], model, path, network, classes)


def from_published(build: Mapping[str, Any], names: Mapping[str, Sequence[int]], base: Config) -> Config:
    """The configuration behind our own names and shapes; what they do not say is `base`'s.

    Raises:
        KeyError: a parameter that this network must have.
    """
    clusters, width = names["clusters.centres"]
    classes = names["head.weight"][0] if "head.weight" in names else 0
    found = replace(base, classes=classes, clusters=clusters, width=width)
    if not any(re.match(r"language\.", n) for n in names):
        found = replace(found, language="none", words=())
    return found


for _network in NETWORKS:
    registry.register(f"medical/{_network}", __name__)
