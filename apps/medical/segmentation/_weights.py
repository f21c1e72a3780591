"""Weights of others: whole networks in nnU-Net's or our form, and encoders trained on ImageNet."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from apps.medical.segmentation._unet import UNetConfig
from core.backbones import vmamba
from core.checkpoints import read_checkpoint
from core.errors import WeightsError
from core.heads.classify import Classifier
from core.weights import convert, filled_network, load_published

_VMAMBA = re.compile(r"^layers\.0\.blocks\.0\.(ln_1|self_attention)\.")
# The authors' list of what to skip names one entry twice: the embedding's norm.bias is loaded, its norm.weight is not.
_PASSED_OVER = ("patch_embed.proj.weight", "patch_embed.proj.bias", "patch_embed.norm.weight")


@dataclass(frozen=True)
class Imported:
    """What an import took.

    Attributes:
        network: its name.
        part: "network" or "encoder".
        config: of the network built.
        taken: parameters and statistics that the file gave, as tensors.
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
    """See model.import_weights."""
    state = read(path)
    try:
        if _is_whole(module, state, network):
            model = filled_network(module, network, state, config)
            return model.eval(), Imported(network, "network", model.config, len(model.state_dict()))
        model = module.build(config)
        taken, left = _encoder(model, Path(path), state)
    except WeightsError as error:
        raise WeightsError(_named(path, error)) from None
    return model.eval(), Imported(network, "encoder", config, taken, left)


def initialise(module: Any, model: Any, path: str | Path, network: str, classes: Mapping[str, int] | None) -> str:
    """See model.initialise."""
    path, same = Path(path), True
    file = path
    if path.is_dir():
        from core import bundle

        found = bundle.load(path)
        if found.settings.network.name != network:
            raise WeightsError(f"{path}: holds {found.settings.network.name}, {network} was asked for")
        file, same = found.weights, classes is None or dict(found.settings.output.classes) == dict(classes)
    state = read(file)
    try:
        if not _is_whole(module, state, network):
            taken, left = _encoder(model, file, state)
            return Imported(network, "encoder", model.config, taken, left).sentence(path)
        given = filled_network(module, network, state, model.config).state_dict()
    except WeightsError as error:
        raise WeightsError(_named(file, error)) from None
    ours, fresh = model.state_dict(), []
    for name in sorted(ours.keys() | given.keys()):
        if re.search(module.HEADS, name) and (not same or name not in given or given[name].shape != ours[name].shape):
            fresh.append(name)
        elif name not in given or name not in ours or given[name].shape != ours[name].shape:
            has, wants = (tuple(s[name].shape) if name in s else None for s in (given, ours))
            raise WeightsError(f"{file}: {name} is {has} there and {wants} in the network to train")
    model.load_state_dict(ours | {n: v for n, v in given.items() if n not in fresh})
    taken = len(given) - sum(n in given for n in fresh)
    return Imported(network, "network", model.config, taken, tuple(fresh)).sentence(path)


def read(path: str | Path) -> dict[str, Tensor]:
    """Names and tensors of a file; nnU-Net's plans, curves and arguments beside them may be NumPy's.

    Raises:
        WeightsError: as core.checkpoints.read_checkpoint; where code would run, with the way to a plain file.
    """
    try:
        return read_checkpoint(path)
    except WeightsError as error:
        if "would run code" not in str(error):
            raise
        raise WeightsError(
            f"{error}, or, if you trust it, write one where it was made: s = torch.load(FILE, weights_only=False); "
            "torch.save({'network_weights': s['network_weights']}, NEW)"
        ) from None


def _is_whole(module: Any, state: Mapping[str, Tensor], network: str) -> bool:
    """Whether the names are of a whole network, ours or published; WeightsError for those of another network."""
    published = next((name for name, keymap in module.KEYMAPS.items() if keymap.fits(state)), None)
    if published not in (None, network):
        raise WeightsError(f"holds a {published}, {network} was asked for")
    return published is not None or any(re.search(module.HEADS, n) for n in state)


def _encoder(model: Any, path: Path, state: Mapping[str, Tensor]) -> tuple[int, tuple[str, ...]]:
    """Fill the encoder of a network; how many tensors were taken, and our names of those left at their start."""
    encoder = getattr(model, "encoder", None)
    if encoder is None:
        raise WeightsError("not a file of this network, which has no encoder that could take other weights")
    if isinstance(model.config, UNetConfig):
        return _backbone(encoder, model.config, path, state)
    if not any(_VMAMBA.search(n) for n in state):
        raise WeightsError("neither a whole network nor VMamba of the first generation (no layers.0.blocks.0.ln_1)")
    state = {n: v for n, v in state.items() if not n.startswith(("norm.", "head."))}
    passed: set[str] = set()
    if hasattr(model, "stem"):
        passed = set(_PASSED_OVER)
    elif state["patch_embed.proj.weight"].shape[1] != model.config.in_channels:
        passed = {n for n in state if "patch_embed" in n}
    keymap, own = vmamba.PUBLISHED[0], encoder.state_dict()
    ours = {n: str(keymap.name(n)).removeprefix("backbone.") for n in passed}
    given = dict(state) | {n: own[name] for n, name in ours.items()}
    encoder.load_state_dict(convert(given, keymap, encoder, part="backbone."))
    return len(own) - len(ours), tuple(sorted(f"encoder.{name}" for name in ours.values()))


def _backbone(
    encoder: nn.Module, config: UNetConfig, path: Path, state: Mapping[str, Tensor]
) -> tuple[int, tuple[str, ...]]:
    """Published weights of a backbone of core, or our own; what reads the image may have other channels."""
    own = encoder.state_dict()
    if state.keys() == own.keys():
        given = dict(state)
    else:
        loaded = load_published(config.backbone, path, **config.overrides)
        given = (loaded.backbone if isinstance(loaded, Classifier) else loaded).state_dict()
    left = []
    for name in sorted(own.keys() | given.keys()):
        has, wants = (tuple(s[name].shape) if name in s else None for s in (given, own))
        if has is None or wants is None or (has != wants and (len(has) != 4 or has[2:] != wants[2:])):
            raise WeightsError(f"{name} is {has} in the file and {wants} in the encoder")
        if has != wants:
            left.append(name)
    first = next(n for n, m in encoder.named_modules() if isinstance(m, nn.Conv2d)) + ".weight"
    if left and left != [first]:
        raise WeightsError(f"{', '.join(left)}: not of the shape that the encoder has")
    encoder.load_state_dict(own | {n: v for n, v in given.items() if n not in left})
    return len(own) - len(left), tuple(f"encoder.{n}" for n in left)


def _named(path: object, error: WeightsError) -> str:
    """The message, with the file before it where it is not there yet."""
    return str(error) if str(error).startswith(str(path)) else f"{path}: {error}"
