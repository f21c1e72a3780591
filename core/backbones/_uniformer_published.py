"""UniFormer in its authors' names and arguments: image classification, token labelling, dense tasks, pose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from core.layers import local_global_names as shared
from core.weights import KeyMap

ARGUMENTS = {  # the authors' constructor arguments and our settings
    "in_chans": "in_channels", "embed_dim": "dims", "depth": "depths", "layers": "depths", "head_dim": "head_dim",
    "mlp_ratio": "mlp_ratio", "qkv_bias": "qkv_bias", "qk_scale": "scale", "window_size": "window",
    "drop_path_rate": "drop_path",
}  # fmt: skip

PUBLISHED = (
    KeyMap(
        rename=[
            (r"^backbone\.", ""),  # whole dense and pose networks
            *((rf"^norm{i + 1}\.", f"backbone.norms.{i}.") for i in range(4)),
            *shared.RENAME,
            (r"^aux_head\.", "head.fc_dense."),
            (r"^keypoint_head\.deconv_layers\.", "head.layers."),
            (r"^keypoint_head\.final_layer\.", "head.last."),
        ],
        transform=shared.TRANSFORM,
    ),
)


def shapes(names: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """Settings that published parameter names and shapes show."""
    ours = {new: tuple(shape) for name, shape in names.items() if (new := PUBLISHED[0].name(name))}
    found = shared.shapes(ours)
    return found and found | {
        "token_labels": "head.fc_dense.weight" in ours,
        "norms": tuple(i for i in range(4) if f"backbone.norms.{i}.weight" in ours),
    }
