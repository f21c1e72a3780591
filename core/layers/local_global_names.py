"""The names that UniFormer's authors give the parts of core.layers.local_global, of images and of clips alike.

What a family has besides (other heads, output norms, divided attention) it adds to these.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

STAGE = "backbone.stages."

RENAME = (
    *(
        pair
        for i in range(4)
        for pair in (
            (rf"^patch_embed{i + 1}\.proj\.(\d)\.", rf"{STAGE}{i}.merge.layers.\1."),
            (rf"^patch_embed{i + 1}\.proj\.", f"{STAGE}{i}.merge.conv."),
            (rf"^patch_embed{i + 1}\.norm\.", f"{STAGE}{i}.merge.norm."),
            (rf"^blocks{i + 1}\.", f"{STAGE}{i}.blocks."),
        )
    ),
    (r"\.pos_embed\.", ".position.conv."),
    (r"^(backbone\.stages\.[01]\.blocks\.\d+)\.norm1\.", r"\1.token_mixer.norm."),
    (r"^(backbone\.stages\.[01]\.blocks\.\d+)\.norm2\.", r"\1.channel_mixer.norm."),
    (r"\.conv([12])\.", r".token_mixer.pointwise\1."),
    (r"\.attn\.(weight|bias)$", r".token_mixer.depthwise.\1"),
    (r"\.attn\.", ".token_mixer."),
    (r"\.mlp\.", ".channel_mixer."),
    (r"\.gamma_([12])$", r".scale\1.scale"),
    (r"^cls_token$", f"{STAGE}2.class_token"),
    (r"^cls_upsample\.", f"{STAGE}3.carry."),
    (r"^norm\.", "head.norm."),
    (r"^head\.(weight|bias)$", r"head.fc.\1"),
    (r"^norm_cls\.", "head.norm_class."),
    (r"^head_cls\.", "head.fc_class."),
)


def _matrix(value: Tensor) -> Tensor:
    return value.flatten(1)


def _vector(value: Tensor) -> Tensor:
    return value.flatten()


TRANSFORM: Mapping[str, Callable[[Tensor], Tensor]] = {
    r"blocks\d\.\d+\.(conv[12]|mlp\.fc[12])\.weight$": _matrix,  # convolutions over one cell
    r"\.gamma_[12]$": _vector,
}


def shapes(ours: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Settings that a state's names and shapes show, by our names; {} where it has no stem.

    in_channels, dims, depths, mlp_ratio and qkv_bias as in a family's settings; `overlap` "none", "stem" or "all";
    `light` for a class token; `scaled` the kinds of blocks with layer scale, of "all" (shallow ones) and "global".
    """
    stem = next((n for n in ("conv", "layers.0") if f"{STAGE}0.merge.{n}.weight" in ours), None)
    if stem is None:
        return {}
    local, deep = f"{STAGE}0.blocks.0.", f"{STAGE}2.blocks.0."
    dims = tuple(ours[f"{STAGE}{i}.blocks.0.position.conv.weight"][0] for i in range(4))
    later = f"{STAGE}1.merge.layers.0.weight" in ours
    return {
        "in_channels": ours[f"{STAGE}0.merge.{stem}.weight"][1],
        "dims": dims,
        "depths": tuple(len({n.split(".")[4] for n in ours if n.startswith(f"{STAGE}{i}.blocks.")}) for i in range(4)),
        "mlp_ratio": ours[local + "channel_mixer.fc1.weight"][0] / dims[0],
        "overlap": "none" if stem == "conv" else "all" if later else "stem",
        "light": f"{STAGE}2.class_token" in ours,
        "qkv_bias": deep + "token_mixer.qkv.bias" in ours,
        "scaled": [n for n, block in (("all", local), ("global", deep)) if block + "scale1.scale" in ours],
    }
