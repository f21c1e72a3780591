"""How the authors' files name iColoriT's parameters, and what their names and shapes say of the network."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from apps.colorization._icolorit import IColoriTConfig
from core.checkpoints import read_checkpoint
from core.errors import WeightsError
from core.layers.positions import relative_index
from core.weights import KeyMap, filled_network

_HEADS = {192: 3, 384: 6, 768: 12}  # width -> heads of the published networks, where no table says
_EMBED = "backbone.stages.0.embed.patches.conv."


def _is_index(value: Tensor) -> bool:
    """Whether a stored relative position index is the one that the network computes."""
    side = math.isqrt(value.shape[-1])
    if value.ndim != 2 or value.shape[0] != value.shape[1] or side * side != value.shape[1]:
        return False
    return bool(torch.equal(value.long(), relative_index((side, side))))


PUBLISHED = KeyMap(
    rename=[
        (r"^patch_embed\.proj\.", _EMBED),
        (r"^blocks\.(\d+)\.", r"backbone.stages.0.blocks.\1."),
        (r"\.attn\.(rpb_table|relative_position_bias_table)$", ".token_mixer.bias_table"),
        (r"\.attn\.", ".token_mixer."),
        (r"\.mlp\.", ".channel_mixer."),
        (r"^norm\.", "backbone.norm."),
        (r"^head\.(?:head\.)?(weight|bias)$", r"head.out.\1"),  # a convolution, or a bare linear layer
    ],
    constants={r"\.relative_position_index$": _is_index},
    when=r"^patch_embed\.proj\.",
)


def from_published(
    build: Mapping[str, Any], names: Mapping[str, Sequence[int]], base: IColoriTConfig
) -> IColoriTConfig:
    """See model.from_published."""
    own = not PUBLISHED.fits(names)
    conv = names[_EMBED + "weight" if own else "patch_embed.proj.weight"]
    block = "backbone.stages.0.blocks." if own else "blocks."
    table = names.get(f"{block}0.token_mixer.bias_table" if own else f"{block}0.attn.rpb_table")
    hidden = names[f"{block}0.channel_mixer.fc1.weight" if own else f"{block}0.mlp.fc1.weight"][0]
    dim, patch = conv[0], conv[2]
    if conv[1] != 4:
        raise WeightsError(f"its patches have {conv[1]} channels, iColoriT's have 4 (L, a, b, hint)")
    found: dict[str, Any] = {
        "dim": dim,
        "patch": patch,
        "depth": 1 + max(int(n.removeprefix(block).split(".")[0]) for n in names if n.startswith(block)),
        "mlp_ratio": hidden / dim,
        "relative": table is not None,
        "head": _head(build, names),
    }
    if table is not None:
        found |= {"heads": table[1], "size": (math.isqrt(table[0]) + 1) // 2 * patch}
    else:
        heads = base.heads if base.dim == dim else _HEADS.get(dim, base.heads)
        found |= {"heads": int(build.get("num_heads", heads)), "size": _size(build, base)}
    for theirs, ours in (("hint_size", "cell"), ("avg_hint", "average"), ("mask_cent", "centred")):
        if theirs in build:
            found[ours] = type(getattr(base, ours))(build[theirs])
    return replace(base, **found)


def _head(build: Mapping[str, Any], names: Mapping[str, Sequence[int]]) -> str:
    if any(re.match(r"head\.(head\.)?qkv\.", n) for n in names):
        return "locattn"
    weight = next((names[n] for n in ("head.head.weight", "head.weight", "head.out.weight") if n in names), None)
    if weight is None:
        raise KeyError("head.head.weight")
    return "cnn" if len(weight) == 4 else "linear"


def _size(build: Mapping[str, Any], base: IColoriTConfig) -> int:
    """Side of the image, where no table says: the argument, else what the constructor's name ends in."""
    given = build.get("img_size")
    if given is not None:
        return int(given[0] if isinstance(given, list | tuple) else given)
    named = re.search(r"_(\d+)$", str(build.get("constructor", "")))
    return int(named[1]) if named else base.size


@dataclass(frozen=True)
class Imported:
    """What an import took.

    Attributes:
        network: its name.
        config: of the network built.
        taken: tensors that the file gave.
        left: our names of those at their start.
    """

    network: str
    config: IColoriTConfig
    taken: int
    left: tuple[str, ...] = ()

    def sentence(self, path: object) -> str:
        left = f"; not taken: {', '.join(self.left)}" if self.left else ""
        return f"{self.network} from {path}: {self.taken} tensors{left}"


def imported(module: Any, path: str | Path, network: str, config: IColoriTConfig) -> tuple[nn.Module, Imported]:
    """See model.import_weights."""
    state = read_checkpoint(path)
    try:
        model = filled_network(module, network, state, config)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from None
    return model.eval(), Imported(network, model.config, len(model.state_dict()))  # type: ignore[arg-type]


def initialise(module: Any, model: Any, path: str | Path, network: str) -> str:
    """See model.initialise."""
    path = Path(path)
    file = path
    if path.is_dir():
        from core import bundle

        found = bundle.load(path)
        if found.settings.network.name != network:
            raise WeightsError(f"{path}: holds {found.settings.network.name}, {network} was asked for")
        file = found.weights
    state = read_checkpoint(file)
    try:
        given = filled_network(module, network, state, model.config).state_dict()
    except WeightsError as error:
        raise WeightsError(f"{file}: {error}") from None
    ours = model.state_dict()
    other = set(ours.keys() ^ given.keys()) | {n for n in ours.keys() & given.keys()
                                                       if ours[n].shape != given[n].shape}  # fmt: skip
    body = sorted(n for n in other if not n.startswith("head."))
    if body:
        has, wants = (tuple(s[body[0]].shape) if body[0] in s else None for s in (given, ours))
        raise WeightsError(f"{file}: {body[0]} is {has} there and {wants} in the network to train")
    heads = {n for n in ours if n.startswith("head.")} if other else set()
    taken = {n: v for n, v in given.items() if n in ours and n not in heads}
    model.load_state_dict(ours | taken)
    return Imported(network, model.config, len(taken), tuple(sorted(heads))).sentence(path)
