"""Networks of medical segmentation, by name; all take an image (B, C, H, W) and answer logits (B, classes, H, W).

In training with deep supervision they answer a list of logits, finest first. `multiple`: rows and columns must be
multiples of it; `smallest`: and at least this many. `encoder`, `freeze_encoder`: where there is a backbone inside.
Importing this file makes them known to core.registry, as "medical/swin_umamba" and so on.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from apps.medical.segmentation import _dynunet, _swin_umamba, _swin_umamba_published, _unet, _weights
from apps.medical.segmentation._dynunet import DynUNetConfig
from apps.medical.segmentation._swin_umamba import SwinUMambaConfig, SwinUMambaDConfig
from apps.medical.segmentation._unet import UNetConfig
from apps.medical.segmentation._weights import Imported
from core import registry
from core.config import merge
from core.errors import UnknownNameError
from core.facts import Facts
from core.weights import KeyMap

Config = SwinUMambaConfig | SwinUMambaDConfig | UNetConfig | DynUNetConfig

NETWORKS: dict[str, Config] = {
    "swin_umamba": SwinUMambaConfig(),
    "swin_umamba_d": SwinUMambaDConfig(),
    "unet": UNetConfig(),
    "dynunet": DynUNetConfig(),
}

_UMAMBA = partial(Facts, paper="arXiv 2402.03302", licence="Apache-2.0")
FACTS: dict[str, Facts] = {
    "swin_umamba": _UMAMBA(title="Swin-UMamba", size={"swin_umamba": 320}),
    "swin_umamba_d": _UMAMBA(title="Swin-UMamba-D", size={"swin_umamba_d": 320}),
    "unet": Facts(title="U-Net over any backbone", paper="this house", licence="Apache-2.0", size={"unet": 320}),
    "dynunet": Facts(title="DynUNet (nnU-Net)", paper="arXiv 1904.08128", licence="Apache-2.0", size={"dynunet": 320}),
}

# Of the authors' paper, encoder pre-trained on ImageNet; from scratch AbdomenMR DSC is 0.7054 and 0.6653.
SCORES: dict[str, dict[str, float]] = {
    "swin_umamba": {
        "AbdomenMR DSC": 0.7760, "AbdomenMR NSD": 0.8421, "Endoscopy DSC": 0.6767, "Endoscopy NSD": 0.6922,
        "Microscopy F1": 0.5806,
    },
    "swin_umamba_d": {
        "AbdomenMR DSC": 0.7705, "AbdomenMR NSD": 0.8376, "Endoscopy DSC": 0.6783, "Endoscopy NSD": 0.6933,
        "Microscopy F1": 0.5982,
    },
}  # fmt: skip

# How published names become ours; the last is for our own files.
KEYMAPS = {**_swin_umamba_published.PUBLISHED, "dynunet": _dynunet.PUBLISHED}
PUBLISHED = (*KEYMAPS.values(), KeyMap())
HEADS = r"^(heads\.\d+|output_block|deep_supervision_heads)\."  # our names of what depends on the classes

_BUILDERS: dict[type, Any] = {
    SwinUMambaConfig: _swin_umamba.SwinUMamba,
    SwinUMambaDConfig: _swin_umamba.SwinUMambaD,
    UNetConfig: _unet.BackboneUNet,
    DynUNetConfig: _dynunet.DynUNet,
}


def build(config: Config) -> nn.Module:
    """The network of a configuration."""
    network: nn.Module = _BUILDERS[type(config)](config)
    return network


def configured(name: str, settings: Mapping[str, Any]) -> Config:
    """The configuration of a network with settings laid over it.

    Raises:
        UnknownNameError: a network or a setting that does not exist.
        SettingError: a value of another type.
    """
    if name not in NETWORKS:
        raise UnknownNameError("medical segmentation network", name, NETWORKS)
    return merge(NETWORKS[name], settings, kind=f"{name} setting")


def create(name: str, **settings: Any) -> nn.Module:
    """The network `name` with settings laid over its configuration; errors as `configured`."""
    return build(configured(name, settings))


def import_weights(path: str | Path, network: str, config: Config | None = None) -> tuple[nn.Module, Imported]:
    """A network with weights of authors (or our own), in evaluation mode, and what was taken.

    Args:
        path: nnU-Net's checkpoint (`network_weights`), MONAI's DynUNet, our safetensors: the whole network, with
            channels and classes read from the file. VMamba's ImageNet release or, for `unet`, the published weights of
            its backbone: the encoder, all else at its start.
        network: a name of NETWORKS.
        config: what the file leaves open; by default the published one.

    Raises:
        WeightsError: a file that cannot be read without running code, of another network, or that does not fit one to
            one; it lists what is left over on both sides.
    """
    return _weights.imported(sys.modules[__name__], path, network, config or configured(network, {}))


def initialise(model: nn.Module, network: str, path: str | Path, *, classes: Mapping[str, int] | None = None) -> str:
    """Start a network of `NETWORKS` from weights in place, and say in a sentence what was taken.

    Args:
        model: as built; its channels stay.
        network: its name.
        path: as for `import_weights`, or a bundle's folder.
        classes: name -> id of what will be trained; heads are taken where a bundle has the same, or a file as many.

    Raises:
        WeightsError: as `import_weights`; channels other than the model's.
    """
    return _weights.initialise(sys.modules[__name__], model, path, network, classes)


def from_published(build: Mapping[str, Any], names: Mapping[str, Sequence[int]], base: Config) -> Config:
    """The configuration behind authors' arguments, parameter names and shapes; `base` says which network is expected.

    Names may also be our own; then channels and classes are read and the rest is taken from `base`.

    Raises:
        KeyError: a parameter that this network must have.
    """
    if "heads.0.weight" in names:
        return replace(base, in_channels=_channels(names, base), classes=names["heads.0.weight"][0])
    if isinstance(base, SwinUMambaConfig):
        return _swin_umamba_published.base(build, names, base)
    if isinstance(base, SwinUMambaDConfig):
        return _swin_umamba_published.small(build, names, base)
    if isinstance(base, DynUNetConfig):
        return _dynunet.from_published(build, names, base)
    raise KeyError("heads.0.weight")


def _channels(names: Mapping[str, Sequence[int]], base: Config) -> int:
    """Channels of the image, by the layers of ours that read it."""
    readers = ("details.0.conv1.weight", "stem.0.weight", "encoder.stages.0.merge.conv.weight")
    return next((names[r][1] for r in readers if r in names), base.in_channels)


for _network in NETWORKS:
    registry.register(f"medical/{_network}", __name__)
