"""Networks of colorization, by name; all take Lab (B, 3, S, S) and a mask of hint cells, and answer a'b' (B, 2, S, S).

Values are L' = (L - 50) / 100, a' = a / 110, b' = b / 110; the mask (B, cells^2) is True where there is NO hint.
`size`: the only side S that a network takes; `patch`; `cells`: hint cells along a side. Importing this file makes them
known to core.registry, as "colorization/icolorit_tiny" and so on.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from apps.colorization import _published
from apps.colorization._icolorit import FromPlanes, IColoriT, IColoriTConfig
from apps.colorization._published import Imported
from core import registry
from core.config import merge
from core.errors import UnknownNameError
from core.facts import Facts
from core.weights import KeyMap

__all__ = [
    "FACTS",
    "KEYMAPS",
    "NETWORKS",
    "PUBLISHED",
    "SCORES",
    "FromPlanes",
    "Imported",
    "build",
    "configured",
    "create",
    "from_published",
    "import_weights",
    "initialise",
]

Config = IColoriTConfig

_TINY = IColoriTConfig()
NETWORKS: dict[str, Config] = {
    "icolorit_tiny": _TINY,
    "icolorit_tiny_p8": replace(_TINY, patch=8),
    "icolorit_tiny_p32": replace(_TINY, patch=32),
    "icolorit_small": replace(_TINY, dim=384, heads=6),
    "icolorit": replace(_TINY, dim=768, heads=12),
}

_FACTS = partial(Facts, paper="arXiv 2207.06831", licence="MIT")
FACTS: dict[str, Facts] = {
    name: _FACTS(title=title, size={name: 224})
    for name, title in {
        "icolorit_tiny": "iColoriT-T",
        "icolorit_tiny_p8": "iColoriT-T, patch 8",
        "icolorit_tiny_p32": "iColoriT-T, patch 32",
        "icolorit_small": "iColoriT-S",
        "icolorit": "iColoriT",
    }.items()
}
SCORES: dict[str, dict[str, float]] = {}  # the authors' tables were not at hand

# How published names become ours; the last is for our own files.
KEYMAPS = {"icolorit": _published.PUBLISHED}
PUBLISHED = (*KEYMAPS.values(), KeyMap())
HEADS = r"^head\."  # our names of what a file with another head lacks


def build(config: Config) -> IColoriT:
    """The network of a configuration. Raises SettingError for sides that do not divide one another."""
    return IColoriT(config)


def configured(name: str, settings: Mapping[str, Any]) -> Config:
    """The configuration of a network with settings laid over it.

    Raises:
        UnknownNameError: a network or a setting that does not exist.
        SettingError: a value of another type.
    """
    if name not in NETWORKS:
        raise UnknownNameError("colorization network", name, NETWORKS)
    return merge(NETWORKS[name], settings, kind=f"{name} setting")


def create(name: str, **settings: Any) -> IColoriT:
    """The network `name` with settings laid over its configuration; errors as `configured`."""
    return build(configured(name, settings))


def import_weights(path: str | Path, network: str, config: Config | None = None) -> tuple[nn.Module, Imported]:
    """A network with the authors' weights (or our own), in evaluation mode, and what was taken.

    Args:
        path: the authors' file ({"model": names and values}), or our safetensors. Width, depth, patch, head, tables
            and with these the side are read from it.
        network: a name of NETWORKS; a file of another one is refused.
        config: what the file leaves open (`cell`, `average`, `centred`; without tables also `heads` and `size`).

    Raises:
        WeightsError: a file that cannot be read without running code, of another network, or that does not fit one to
            one; it lists what is left over on both sides.
    """
    return _published.imported(sys.modules[__name__], path, network, config or configured(network, {}))


def initialise(model: nn.Module, network: str, path: str | Path) -> str:
    """Start a network of `NETWORKS` from weights in place, and say in a sentence what was taken.

    Args:
        model: as built; a head other than the file's stays at its start.
        network: its name.
        path: as for `import_weights`, or a bundle's folder.

    Raises:
        WeightsError: as `import_weights`; a body of other shapes (size, patch, width, depth).
    """
    return _published.initialise(sys.modules[__name__], model, path, network)


def from_published(build: Mapping[str, Any], names: Mapping[str, Sequence[int]], base: Config) -> Config:
    """The configuration behind authors' arguments, parameter names and shapes; names may also be our own.

    What neither says (heads and size without bias tables; cell, averaging, centring without arguments) is `base`'s.

    Raises:
        KeyError: a parameter that this network must have.
        WeightsError: patches of other than four channels.
    """
    return _published.from_published(build, names, base)


for _network in NETWORKS:
    registry.register(f"colorization/{_network}", __name__)
