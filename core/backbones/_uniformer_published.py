"""UniFormer in its authors' names and arguments: image classification, token labelling, dense tasks, pose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from core.weights import KeyMap

ARGUMENTS = {  # the authors' constructor arguments and our settings
    "in_chans": "in_channels", "embed_dim": "dims", "depth": "depths", "layers": "depths", "head_dim": "head_dim",
    "mlp_ratio": "mlp_ratio", "qkv_bias": "qkv_bias", "qk_scale": "scale", "window_size": "window",
    "drop_path_rate": "drop_path",
}  # fmt: skip

_STAGE = "backbone.stages."


def _matrix(value: Tensor) -> Tensor:
    return value.flatten(1)


def _vector(value: Tensor) -> Tensor:
    return value.flatten()


PUBLISHED = (
    KeyMap(
        rename=[
            (r"^backbone\.", ""),  # whole dense and pose networks
            *(
                pair
                for i in range(4)
                for pair in (
                    (rf"^patch_embed{i + 1}\.proj\.(\d)\.", rf"{_STAGE}{i}.merge.layers.\1."),
                    (rf"^patch_embed{i + 1}\.proj\.", f"{_STAGE}{i}.merge.conv."),
                    (rf"^patch_embed{i + 1}\.norm\.", f"{_STAGE}{i}.merge.norm."),
                    (rf"^blocks{i + 1}\.", f"{_STAGE}{i}.blocks."),
                    (rf"^norm{i + 1}\.", f"backbone.norms.{i}."),
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
            (r"^cls_token$", f"{_STAGE}2.class_token"),
            (r"^cls_upsample\.", f"{_STAGE}3.carry."),
            (r"^norm\.", "head.norm."),
            (r"^head\.(weight|bias)$", r"head.fc.\1"),
            (r"^aux_head\.", "head.fc_dense."),
            (r"^norm_cls\.", "head.norm_class."),
            (r"^head_cls\.", "head.fc_class."),
            (r"^keypoint_head\.deconv_layers\.", "head.layers."),
            (r"^keypoint_head\.final_layer\.", "head.last."),
        ],
        transform={
            r"blocks\d\.\d+\.(conv[12]|mlp\.fc[12])\.weight$": _matrix,  # 1x1 convolutions
            r"\.gamma_[12]$": _vector,
        },
    ),
)


def shapes(names: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """Settings that published parameter names and shapes show."""
    ours = {new: tuple(shape) for name, shape in names.items() if (new := PUBLISHED[0].name(name))}
    stem = next((n for n in ("conv", "layers.0") if f"{_STAGE}0.merge.{n}.weight" in ours), None)
    if stem is None:
        return {}
    local, deep = f"{_STAGE}0.blocks.0.", f"{_STAGE}2.blocks.0."
    dims = tuple(ours[f"{_STAGE}{i}.blocks.0.position.conv.weight"][0] for i in range(4))
    later = f"{_STAGE}1.merge.layers.0.weight" in ours
    norms = tuple(i for i in range(4) if f"backbone.norms.{i}.weight" in ours)
    return {
        "in_channels": ours[f"{_STAGE}0.merge.{stem}.weight"][1],
        "dims": dims,
        "depths": tuple(len({n.split(".")[4] for n in ours if n.startswith(f"{_STAGE}{i}.blocks.")}) for i in range(4)),
        "mlp_ratio": ours[local + "channel_mixer.fc1.weight"][0] / dims[0],
        "overlap": "none" if stem == "conv" else "all" if later else "stem",
        "light": f"{_STAGE}2.class_token" in ours,
        "qkv_bias": deep + "token_mixer.qkv.bias" in ours,
        "scaled": [n for n, block in (("all", local), ("global", deep)) if block + "scale1.scale" in ours],
        "token_labels": "head.fc_dense.weight" in ours,
        "norms": norms,
    }
