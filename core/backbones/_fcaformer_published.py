"""Authors' arguments, parameter names and shapes of FcaFormer."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from core.weights import KeyMap

_ARGUMENTS = {  # the authors' constructor arguments and our settings
    "in_chans": "in_channels", "dims": "dims", "depths": "depths", "num_heads": "heads", "cab_max_d": "remembered",
    "seg_head_dims": "outputs", "drop_path_rate": "drop_path",
}  # fmt: skip
_SIZES = ("img_size", "image_size", "input_size", "input_resolution", "resolution")
_DENSE = (0, 0, 14, 7)


def settings(
    build: Mapping[str, Any], names: Mapping[str, Sequence[int]], size: tuple[int, int], remembered: int
) -> dict[str, Any]:
    """Settings that differ from those of a variant.

    Args:
        build: the authors' arguments.
        names: their parameter names and shapes, or nothing.
        size: sides of the image that the variant is built for.
        remembered: blocks that the variant sees.
    """
    given = {ours: build[theirs] for theirs, ours in _ARGUMENTS.items() if build.get(theirs) is not None}
    for key in _SIZES:
        if build.get(key) is not None:
            size = given["image_size"] = _pair(build[key])
    found = (re.match(r"layer_(\d+)\.blocks\.(\d+)\.", n) for n in names)
    blocks = sorted({(int(m[1]), int(m[2])) for m in found if m})
    if blocks:
        depths = tuple(Counter(stage for stage, _ in blocks).values())
        at = [f"layer_{i}.blocks.0." for i in range(len(depths))]
        tables = [names.get(f"{a}attention_biases", (0, 0)) for a in at]  # (heads, offsets)
        dims = tuple((names.get(f"{a}norm1.weight") or names[f"{a}norm.weight"])[0] for a in at)
        inner = names.get(f"{at[0]}pwconv1.weight") or names[f"{at[0]}mlp.fc1.weight"]
        given |= {
            "in_channels": names["patch_embed.seq.0.c.weight"][1],
            "dims": dims,
            "depths": depths,
            "heads": tuple(t[0] for t in tables),
            "mlp_ratio": inner[0] / inner[1],
            "remembered": _remembered(names, depths, given.get("remembered", remembered)),
            "outputs": tuple(names[f"head{i}.weight"][0] for i in range(len(depths)) if f"head{i}.weight" in names),
        }
        if given["outputs"]:
            given |= {"windows": tuple(math.isqrt(t[1]) for t in tables), "layer_scale": 1.0}
        elif "image_size" not in given:
            given |= _square(tables, size)
    elif "outputs" in given:
        given |= {"windows": _DENSE, "layer_scale": 1.0}
    return {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}


def _pair(size: Any) -> tuple[int, int]:
    sides = (size,) if isinstance(size, int) else tuple(size)
    return sides[0], sides[-1]


def _square(tables: Sequence[Sequence[int]], size: tuple[int, int]) -> dict[str, Any]:
    """The image's size, where the first table with heads is of another than `size` and of a square one."""
    for stage, (heads, offsets) in enumerate(tables):
        stride = 4 * 2**stage
        if heads and offsets != (size[0] // stride) * (size[1] // stride) and math.isqrt(offsets) ** 2 == offsets:
            return {"image_size": math.isqrt(offsets) * stride}
    return {}


def _remembered(names: Mapping[str, Sequence[int]], depths: tuple[int, ...], told: int) -> int:
    """Earlier blocks that the deepest blocks see; `told`, or more, where none is short of all."""
    most = 0
    for stage, depth in enumerate(depths):
        tokens = [names.get(f"layer_{stage}.blocks.{i}.s_scale_factors", (1, 0))[1] for i in (1, depth - 1)]
        if depth > 1 and tokens[0]:
            seen = tokens[1] // tokens[0]
            if seen < depth - 1:
                return seen
            most = max(most, seen)
    return max(told, most)


PUBLISHED = (
    KeyMap(
        rename=[
            (r"^patch_embed\.seq\.0\.c\.", "backbone.stages.0.merge.0."),
            (r"^patch_embed\.seq\.0\.bn\.", "backbone.stages.0.merge.1."),
            (r"^patch_embed\.seq\.2\.c\.", "backbone.stages.0.merge.3."),
            (r"^patch_embed\.seq\.2\.bn\.", "backbone.stages.0.merge.4."),
            *((rf"^layer_{i}\.downsample\.", f"backbone.stages.{i + 1}.merge.") for i in range(8)),
            *((rf"\.merge\.conv{i + 1}\.c\.", f".merge.{3 * i}.") for i in range(3)),
            *((rf"\.merge\.conv{i + 1}\.bn\.", f".merge.{3 * i + 1}.") for i in range(3)),
            (r"^layer_(\d+)\.", r"backbone.stages.\1."),
            (r"\.gamma$", ".scale.scale"),
            (r"\.dwconv\.", ".depthwise."),
            (r"\.pwconv(\d)\.", r".channel_mixer.fc\1."),
            (r"\.gamma_(\d)$", r".scale\1.scale"),
            (r"\.dw_conv\.", ".compact."),
            (r"\.local_conv\.c\.", ".local.0."),
            (r"\.local_conv\.bn\.", ".local.1."),
            (r"\.s_token_bias$", ".token_mixer.cross_bias"),
            (r"\.s_scale_factors$", ".token_mixer.cross_scale"),
            (r"\.s_norm\.", ".token_mixer.cross_norm."),
            (r"\.attention_biases$", ".token_mixer.bias_table"),
            (r"\.(qkv|proj)\.", r".token_mixer.\1."),
            (r"\.mlp\.norm\.", ".norm3."),
            (r"\.mlp\.", ".channel_mixer."),
            (r"^head(\d+)\.", r"backbone.outputs.\1.proj."),
            (r"^norm(\d+)\.", r"backbone.outputs.\1.norm."),
            (r"^norm_head\.", "head.norm."),
            (r"^head\.(weight|bias)$", r"head.fc.\1"),
        ],
        drop=[r"\.attention_bias_idxs$"],
        transform={r"^head\d+\.weight$": lambda value: value.flatten(1)},
    ),
)
