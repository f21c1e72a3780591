"""The authors' names and arguments of LMD-ViT, and their files."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import isqrt
from pathlib import Path
from typing import Any

from torch import nn

from apps.deblurring._lmd_vit import LMDViTConfig
from core.checkpoints import read_checkpoint
from core.errors import WeightsError
from core.weights import KeyMap, choose, convert, filled_network

Shapes = Mapping[str, Sequence[int]]
_STAGE = re.compile(r"^(?:module\.)?(encoderlayer_(\d+)|conv|decoderlayer_(\d+))\.blocks\.(\d+)\.(.+)$")
_OURS = re.compile(r"^(encoder\.(\d+)|bottleneck|decoder\.(\d+))\.blocks\.(\d+)\.(.+)$")

PUBLISHED = KeyMap(
    when=r"^(module\.)?input_proj\.",
    drop=[r"\.relative_position_index$"],
    rename=[
        (r"^module\.", ""),
        (r"^input_proj\.proj\.0\.", "embed."),
        (r"^output_proj\.proj\.0\.", "out."),
        (r"^encoderlayer_(\d+)\.", r"encoder.\1."),
        (r"^conv\.blocks\.", "bottleneck.blocks."),
        (r"^decoderlayer_(\d+)\.", r"decoder.\1."),
        (r"^dowsample_(\d+)\.conv\.0\.", r"downs.\1."),
        (r"^upsample_(\d+)\.deconv\.0\.", r"ups.\1."),
        (r"\.attn\.relative_position_bias_table$", ".attention.bias_table"),
        (r"\.attn\.qkv\.to_q\.(weight|bias)$", r".attention.qkv.\1[0]"),
        (r"\.attn\.qkv\.to_kv\.(weight|bias)$", r".attention.qkv.\1[1]"),
        (r"\.attn\.proj\.", ".attention.proj."),
        (r"\.mlp\.linear1\.0\.", ".ffn.fc1."),
        (r"\.mlp\.dwconv\.0\.", ".ffn.depthwise."),
        (r"\.mlp\.linear2\.0\.", ".ffn.fc2."),
        (r"\.modulator\.weight$", ".modulator"),
        (r"\.score_predictor\.in_conv\.0\.", ".predictor.local1."),
        (r"\.score_predictor\.in_conv\.2\.", ".predictor.norm."),
        (r"\.score_predictor\.in_conv\.3\.", ".predictor.local2."),
        (r"\.score_predictor\.out_conv\.0\.", ".predictor.out1."),
        (r"\.score_predictor\.out_conv\.2\.", ".predictor.out2."),
        (r"\.score_predictor\.out_conv\.4\.", ".predictor.out3."),
    ],
)


@dataclass(frozen=True)
class Imported:
    """What an import took.

    Attributes:
        network: its name.
        config: of the network built.
        taken: parameters that the file gave, as tensors.
    """

    network: str
    config: LMDViTConfig
    taken: int

    def sentence(self, path: object) -> str:
        return f"network of {self.network} from {path}: {self.taken} tensors"


def from_published(build: Mapping[str, Any], names: Shapes, base: LMDViTConfig) -> LMDViTConfig:
    """See model.from_published."""
    if "embed.weight" in names:
        pattern, first, table, fc1 = _OURS, "embed.weight", "attention.bias_table", "ffn.fc1.weight"
        predictor = "predictor."
    else:
        plain = {n.removeprefix("module."): s for n, s in names.items()}
        names, pattern, first, predictor = plain, _STAGE, "input_proj.proj.0.weight", "score_predictor."
        table, fc1 = "attn.relative_position_bias_table", "mlp.linear1.0.weight"
    found: dict[tuple[int, int], dict[int, dict[str, Sequence[int]]]] = {}  # (side, stage) -> block -> name -> shape
    for name, shape in names.items():
        if match := pattern.match(name):
            _, encoder, decoder, block, rest = match.groups()
            key = (0, int(encoder)) if encoder else (2, int(decoder)) if decoder else (1, 0)
            found.setdefault(key, {}).setdefault(int(block), {})[rest] = shape
    if not found or (1, 0) not in found:
        raise KeyError("conv.blocks.0.norm1.weight")
    stages = [found[key] for key in sorted(found)]
    firsts = [stage[0] for stage in stages]
    levels = sum(key[0] == 0 for key in found)
    prune = tuple(any(name.startswith(predictor) for name in f) for f in firsts)
    sides = [(isqrt(f[table][0]) + 1) // 2 for f in firsts]
    return replace(
        base,
        in_channels=names[first][1],
        dims=tuple(f["norm1.weight"][0] for f in firsts[: levels + 1]),
        depths=tuple(len(stage) for stage in stages),
        heads=tuple(f[table][1] for f in firsts),
        window=build.get("win_size", max(sides)),
        nominal=build.get("img_size", base.nominal),
        ratio=firsts[0][fc1][0] / firsts[0]["norm1.weight"][0],
        modulator=any("modulator" in name for name in names),
        prune=() if all(prune) else prune,
        drop_path=build.get("drop_path_rate", base.drop_path),
    )


def imported(module: Any, path: str | Path, network: str, config: LMDViTConfig) -> tuple[nn.Module, Imported]:
    """See model.import_weights."""
    state = read_checkpoint(path)
    try:
        model: Any = filled_network(module, network, state, config)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from None
    return model.eval(), Imported(network, model.config, len(model.state_dict()))


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
        model.load_state_dict(convert(state, choose(module.PUBLISHED, state), model))
    except WeightsError as error:
        raise WeightsError(f"{file}: {error}") from None
    return Imported(network, model.config, len(model.state_dict())).sentence(path)
