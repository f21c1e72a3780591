"""Networks of deblurring, by name; all take a picture (B, 3, H, W), 0..1, and answer Restored.

H and W are multiples of `multiple` (128 for the published one). Importing this file makes them known to core.registry,
as "deblurring/lmd_vit".
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from apps.deblurring import _published
from apps.deblurring._lmd_vit import Dense, LMDViT, LMDViTConfig, Restored
from apps.deblurring._published import Imported
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
    "Dense",
    "Imported",
    "LMDViT",
    "Restored",
    "build",
    "configured",
    "create",
    "from_published",
    "import_weights",
    "initialise",
]

Config = LMDViTConfig

NETWORKS: dict[str, Config] = {"lmd_vit": LMDViTConfig()}
FACTS: dict[str, Facts] = {
    "lmd_vit": Facts(title="LMD-ViT", paper="arXiv 2306.14268", licence="none stated", size={"lmd_vit": 512})
}
SCORES: dict[str, dict[str, float]] = {}  # the authors' tables were not at hand

# How published names become ours; the last is for our own files.
KEYMAPS = {"lmd_vit": _published.PUBLISHED}
PUBLISHED = (*KEYMAPS.values(), KeyMap())
HEADS = r"^out\."  # our names of what depends on the answer


def build(config: Config) -> LMDViT:
    """The network of a configuration. Raises SettingError for settings that do not fit one another."""
    return LMDViT(config)


def configured(name: str, settings: Mapping[str, Any]) -> Config:
    """The configuration of a network with settings laid over it.

    Raises:
        UnknownNameError: a network or a setting that does not exist.
        SettingError: a value of another type.
    """
    if name not in NETWORKS:
        raise UnknownNameError("deblurring network", name, NETWORKS)
    return merge(NETWORKS[name], settings, kind=f"{name} setting")


def create(name: str, **settings: Any) -> LMDViT:
    """The network `name` with settings laid over its configuration; errors as `configured`."""
    return build(configured(name, settings))


def import_weights(path: str | Path, network: str, config: Config | None = None) -> tuple[nn.Module, Imported]:
    """A network with the authors' weights (or our own), in evaluation mode, and what was taken.

    Args:
        path: the authors' file ({"state_dict": names and values}, perhaps behind "module."), or our safetensors.
        network: a name of NETWORKS; a file with other dims, depths or heads than `config` is refused.
        config: what the file leaves open (`nominal`, `drop_path`); by default the published one.

    Raises:
        WeightsError: a file that cannot be read without running code, of another network, or that does not fit one to
            one; it lists what is left over on both sides.
    """
    return _published.imported(sys.modules[__name__], path, network, config or configured(network, {}))


def initialise(model: nn.Module, network: str, path: str | Path) -> str:
    """Start a network of `NETWORKS` from weights in place, and say in a sentence what was taken.

    Args:
        model: as built.
        network: its name.
        path: as for `import_weights`, or a bundle's folder.

    Raises:
        WeightsError: as `import_weights`; other shapes than the model's.
    """
    return _published.initialise(sys.modules[__name__], model, path, network)


def from_published(build: Mapping[str, Any], names: Mapping[str, Sequence[int]], base: Config) -> Config:
    """The configuration behind authors' arguments, parameter names and shapes; names may also be our own.

    What neither says (`nominal` without `img_size`, `drop_path`) is `base`'s.

    Raises:
        KeyError: a parameter that this network must have.
    """
    return _published.from_published(build, names, base)


for _network in NETWORKS:
    registry.register(f"deblurring/{_network}", __name__)
