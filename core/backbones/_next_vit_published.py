"""Next-ViT's published parameter names and shapes: the authors' and timm's."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from core.weights import KeyMap


def settings(ours: Mapping[str, tuple[int, ...]], conv_dims: Sequence[int]) -> dict[str, Any]:
    """Settings that parameter names (ours) and shapes show.

    Args:
        ours: our name -> shape.
        conv_dims: usual widths of convolution blocks, for stages that have none.
    """
    indices = {int(m[1]) for n in ours if (m := re.match(r"backbone\.blocks\.(\d+)\.", n))}
    blocks = [f"backbone.blocks.{i}." for i in sorted(indices)]
    widths = [ours[f"{block}channel_mixer.norm.weight"][0] for block in blocks]
    transformers = [f"{block}attention.q.weight" in ours for block in blocks]
    # Convolution blocks keep one width in a stage. A transformer block ends a stage, but for the third one's earlier
    # ones; alone in a stage it comes after another of its kind and width, or is the first of all.
    stages: list[list[int]] = []
    conv = 0
    for i, (width, transformer) in enumerate(zip(widths, transformers, strict=True)):
        if transformer:
            begins = len(stages) == 1 or (transformers[i - 1] and widths[i - 1] != width)
        else:
            begins, conv = width != conv, width
        if begins:
            stages.append([])
        stages[-1].append(i)
    first, ratios = blocks[0], {}
    if True in transformers:
        i = transformers.index(True)
        ratios = {
            "mix": ours[f"{blocks[i]}attention.q.weight"][0] / widths[i],
            "mlp_ratio": ours[f"{blocks[i]}channel_mixer.fc1.weight"][0] / widths[i],
        }
    stem = [ours[f"backbone.stem.{i}.0.0.weight"] for i in range(4)]
    usual = dict(enumerate(conv_dims))
    return {
        "in_channels": stem[0][1],
        "stem": tuple(shape[0] for shape in stem),
        "depths": tuple(map(len, stages)),
        "dims": tuple(widths[stage[-1]] for stage in stages),
        "conv_dims": tuple(
            next((widths[i] for i in stage if not transformers[i]), usual.get(s, widths[stage[0]]))
            for s, stage in enumerate(stages)
        ),
        "head_dim": ours[f"{first}token_mixer.conv.0.weight"][1],
        "conv_ratio": ours[f"{first}channel_mixer.fc1.weight"][0] / widths[0],
        **ratios,
    }


def _matrix(value: Tensor) -> Tensor:
    """(out, in, 1, 1) -> (out, in)."""
    return value.flatten(1)


_PIECES = [  # what both name alike
    (r"^stem\.(\d)\.conv\.", r"backbone.stem.\1.0.0."),
    (r"^stem\.(\d)\.norm\.", r"backbone.stem.\1.0.1."),
    (r"\.patch_embed\.conv\.", ".embedding.1.0."),
    (r"\.patch_embed\.norm\.", ".embedding.1.1."),
    (r"\.projection\.conv\.", ".narrow.1.0."),
    (r"\.projection\.norm\.", ".narrow.1.1."),
    (r"\.mhca\.group_conv3x3\.", ".token_mixer.conv.0."),
    (r"\.mhca\.norm\.", ".token_mixer.conv.1."),
    (r"\.mhca\.projection\.", ".token_mixer.proj."),
    (r"\.mlp\.(?:conv|fc)([12])\.", r".channel_mixer.fc\1."),
    (r"\.e_mhsa\.k\.(weight|bias)$", r".attention.kv.\1[0]"),
    (r"\.e_mhsa\.v\.(weight|bias)$", r".attention.kv.\1[1]"),
    (r"\.e_mhsa\.norm\.", ".attention.norm_means."),
    (r"\.e_mhsa\.", ".attention."),
    (r"^(backbone\.blocks\.\d+)\.(norm|norm2)\.", r"\1.channel_mixer.norm."),
    (r"^(backbone\.blocks\.\d+)\.norm1\.", r"\1.attention.norm."),
    (r"^norm\.", "head.norm."),
    (r"^proj_head\.0\.", "head.fc."),
]
_MATRICES = {r"\.(mhca\.projection|mlp\.(conv|fc)\d)\.weight$": _matrix}


def _staged(third: int) -> KeyMap:
    """Names of timm, which counts the blocks of each stage, for a third stage of so many."""
    stages = [(0, 3), (3, 4), (7, third), (7 + third, 3)]  # first block and depth
    blocks = [
        (rf"^stages\.{i}\.blocks\.{j}\.", f"backbone.blocks.{start + j}.")
        for i, (start, depth) in enumerate(stages)
        for j in range(depth)
    ]
    return KeyMap(rename=[*blocks, *_PIECES], transform=_MATRICES, when=rf"^stages\.2\.blocks\.{third - 1}\.")


PUBLISHED = (
    *(_staged(third) for third in (30, 20, 10)),  # timm
    KeyMap(rename=[(r"^features\.", "backbone.blocks."), *_PIECES], transform=_MATRICES),
)
