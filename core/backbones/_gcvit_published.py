"""GC ViT's published parameter names and shapes: the authors' and timm's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from core.layers.positions import resize_bias_table
from core.weights import KeyMap


def shapes(names: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """Settings that the authors' parameter names and shapes show; none for other names."""
    if "patch_embed.proj.weight" not in names:
        return {}
    depths: list[int] = []
    while any(n.startswith(f"levels.{len(depths)}.") for n in names):
        level = f"levels.{len(depths)}.blocks."
        depths.append(1 + max(int(n.removeprefix(level).split(".")[0]) for n in names if n.startswith(level)))
    tables = [names[f"levels.{i}.blocks.0.attn.relative_position_bias_table"] for i in range(len(depths))]
    dim, channels = names["patch_embed.proj.weight"][:2]
    return {
        "in_channels": channels,
        "dim": dim,
        "depths": tuple(depths),
        "heads": tuple(table[1] for table in tables),
        "window": tuple((math.isqrt(table[0]) + 1) // 2 for table in tables),
        "mlp_ratio": names["levels.0.blocks.0.mlp.fc1.weight"][0] / dim,
        "layer_scale": 1e-5 if "levels.0.blocks.0.gamma1" in names else None,
        "qkv_bias": "levels.0.blocks.0.attn.qkv.bias" in names,
    }


def _matrix(value: Tensor) -> Tensor:
    return value.flatten(1)


def _table(value: Tensor, ours: Tensor, model: nn.Module) -> Tensor:
    return resize_bias_table(value, ours.shape[0]) if value.shape[1] == ours.shape[1] else value


_INSIDE = [  # what both name alike inside a block
    (r"\.(\d*[13579])\.attn\.qkv\.", r".\1.token_mixer.kv."),
    (r"\.attn\.(rel_pos\.)?relative_position_bias_table$", ".token_mixer.bias_table"),
    (r"\.attn\.", ".token_mixer."),
    (r"\.mlp\.", ".channel_mixer."),
]
_DERIVED = [r"relative_position_index$"]

PUBLISHED = (
    KeyMap(  # timm: downsampling lies with the level that it makes, units are convolutions throughout
        rename=[
            (r"^stem\.conv1\.", "backbone.stages.0.merge.conv."),
            (r"^stem\.down\.", "backbone.stages.0.merge.reduce."),
            (r"^stages\.3\.norm\.", "head.norm."),
            (r"^stages\.(\d+)\.downsample\.", r"backbone.stages.\1.merge."),
            *(
                (rf"^stages\.(\d+)\.global_block\.blocks\.conv{i + 1}\.", rf"backbone.stages.\1.query.units.{i}.")
                for i in range(3)
            ),
            (r"^stages\.(\d+)\.blocks\.", r"backbone.stages.\1.blocks."),
            (r"\.conv_block\.", ".unit."),
            (r"\.conv_dw\.", ".depthwise."),
            (r"\.conv_pw\.", ".pointwise."),
            *_INSIDE,
            (r"\.ls([12])\.gamma$", r".scale\1.scale"),
        ],
        drop=_DERIVED,
        transform={r"\.(conv_pw|se\.fc1|se\.fc2)\.weight$": _matrix},
        resize={r"bias_table$": _table},
        when=r"^stem\.conv1\.",
    ),
    KeyMap(
        rename=[
            (r"^patch_embed\.proj\.", "backbone.stages.0.merge.conv."),
            (r"^patch_embed\.conv_down\.", "backbone.stages.0.merge.reduce."),
            *((rf"^levels\.{i}\.downsample\.", f"backbone.stages.{i + 1}.merge.") for i in range(8)),
            (r"^levels\.(\d+)\.q_global_gen\.to_q_global\.(\d+)\.conv\.", r"backbone.stages.\1.query.units.\2."),
            (r"(merge|reduce)\.conv\.(?=\d)", r"\1.unit."),
            (r"(unit|units\.\d+)\.0\.", r"\1.depthwise."),
            (r"(unit|units\.\d+)\.2\.fc\.0\.", r"\1.se.fc1."),
            (r"(unit|units\.\d+)\.2\.fc\.2\.", r"\1.se.fc2."),
            (r"(unit|units\.\d+)\.3\.", r"\1.pointwise."),
            (r"^levels\.(\d+)\.blocks\.", r"backbone.stages.\1.blocks."),
            *_INSIDE,
            (r"\.gamma([12])$", r".scale\1.scale"),
            (r"^norm(\d)\.", r"backbone.norms.\1."),
            (r"^norm\.", "head.norm."),
            (r"^head\.(weight|bias)$", r"head.fc.\1"),
        ],
        drop=_DERIVED,
        transform={r"\.conv\.3\.weight$": _matrix},
        resize={r"bias_table$": _table},
    ),
)
