"""How authors name a plain ViT's parameters, and what those names and shapes tell about it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from core.layers.positions import Resizing, resize_bias_table, resize_grid
from core.weights import KeyMap, choose

_EMBED, _BLOCK = "backbone.stages.0.embed.", r"backbone.stages.0.blocks.\1."


def _as_token(value: Tensor) -> Tensor:
    """(D,), (R, D) or (1, R, D) -> (1, R, D)."""
    return value.reshape(1, -1, value.shape[-1])


def _resize_positions(value: Tensor, ours: Tensor, model: nn.Module) -> Tensor:
    """Stored positions of another image size, by the network's own rule; rows of class tokens are kept."""
    vit: Any = getattr(model, "backbone", model)
    embed = vit.stages[0].embed
    side = math.isqrt(value.shape[1] - embed.placed)
    if side * side != value.shape[1] - embed.placed or value.shape[2] != ours.shape[2]:
        return value  # not a square grid: the shapes that differ are the message
    cells = value[:, embed.placed :].unflatten(1, (side, side))
    how: Resizing = "exact" if embed.how == "refuse" else embed.how
    return torch.cat([value[:, : embed.placed], resize_grid(cells, embed.grid, how).flatten(1, 2)], dim=1)


def _resize_table(value: Tensor, ours: Tensor, model: nn.Module) -> Tensor:
    """A relative bias table of another grid; the prefix's three rows, if there, are kept."""
    extra = 3 if math.isqrt(ours.shape[0]) ** 2 != ours.shape[0] else 0
    if value.shape[1] != ours.shape[1] or math.isqrt(value.shape[0] - extra) ** 2 != value.shape[0] - extra:
        return value
    cells = value.shape[0] - extra
    return torch.cat([resize_bias_table(value[:cells], ours.shape[0] - extra), value[cells:]])


_RESIZE = {r"embed\.learned$": _resize_positions, r"bias_table$": _resize_table}
_MLP = [(r"\.mlp\.", ".channel_mixer.")]
_UNUSED = [r"(^|\.)mask_token$", r"(^|\.)relative_position_index$"]  # learned or derived, no part of inference

TIMM = KeyMap(  # also DeiT, DINO, DINOv2, MAE, BEiT, GMML, ASiT, iColoriT
    rename=[
        (r"^cls_token$", _EMBED + "class_token"),
        (r"^dist_token$", _EMBED + "distillation_token"),
        (r"^(reg_token|register_tokens)$", _EMBED + "registers"),
        (r"^pos_embed$", _EMBED + "learned"),
        (r"^patch_embed\.proj\.", _EMBED + "patches.conv."),
        (r"^norm_pre\.", _EMBED + "norm."),
        (r"^blocks\.(\d+)\.", _BLOCK),
        (r"\.attn\.(rpb_table|relative_position_bias_table)$", ".token_mixer.bias_table"),
        (r"\.attn\.", ".token_mixer."),
        *_MLP,
        (r"\.(?:ls(\d)\.gamma|gamma_(\d))$", r".scale\1\2.scale"),
        (r"^norm\.", "backbone.norm."),
        (r"^head\.(weight|bias)$", r"head.fc.\1"),
        (r"^head_dist\.", "head.fc_distilled."),
    ],
    drop=_UNUSED,
    resize=_RESIZE,
)

_HF_BLOCK = [
    (r"^(?:.*\.)?encoder\.layer\.(\d+)\.", _BLOCK),
    (r"\.attention\.attention\.query\.(weight|bias)$", r".token_mixer.qkv.\1[0]"),
    (r"\.attention\.attention\.key\.(weight|bias)$", r".token_mixer.qkv.\1[1]"),
    (r"\.attention\.attention\.value\.(weight|bias)$", r".token_mixer.qkv.\1[2]"),
    (r"\.attention\.output\.dense\.", ".token_mixer.proj."),
    (r"\.layer_scale(\d)\.lambda1$", r".scale\1.scale"),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.intermediate\.dense\.", ".channel_mixer.fc1."),
    (r"(blocks\.\d+)\.output\.dense\.", r"\1.channel_mixer.fc2."),
]
HUGGING_FACE = KeyMap(  # ViT, DeiT and DINOv2 of transformers; PH-Reg's and LGViT's files
    rename=[
        (r"^(?:.*\.)?embed(?:dings)?\.cls_token$", _EMBED + "class_token"),
        (r"^(?:.*\.)?embed(?:dings)?\.distillation_token$", _EMBED + "distillation_token"),
        (r"^(?:.*\.)?(?:embed(?:dings)?\.)?register(?:_token)?s$", _EMBED + "registers"),
        (r"^(?:.*\.)?embed(?:dings)?\.position_embeddings$", _EMBED + "learned"),
        (r"^(?:.*\.)?embed(?:dings)?\.patch_embeddings\.projection\.", _EMBED + "patches.conv."),
        *_HF_BLOCK,
        *_MLP,
        (r"^(?:.*\.)?layernorm\.", "backbone.norm."),
        (r"^(?:cls_)?classifier\.", "head.fc."),
        (r"^distillation_classifier\.", "head.fc_distilled."),
    ],
    drop=[*_UNUSED, r"(^|\.)pooler\."],
    resize=_RESIZE,
    when=r"(^|\.)encoder\.layer\.\d+\.",
)

GLSIM = KeyMap(
    rename=[
        (r"^class_token$", _EMBED + "class_token"),
        (r"^positional_embedding\.pos_embedding$", _EMBED + "learned"),
        (r"^patch_embedding\.", _EMBED + "patches.conv."),
        (r"^encoder\.blocks\.(\d+)\.", _BLOCK),
        (r"\.attn\.proj_q\.(weight|bias)$", r".token_mixer.qkv.\1[0]"),
        (r"\.attn\.proj_k\.(weight|bias)$", r".token_mixer.qkv.\1[1]"),
        (r"\.attn\.proj_v\.(weight|bias)$", r".token_mixer.qkv.\1[2]"),
        (r"(blocks\.\d+)\.proj\.", r"\1.token_mixer.proj."),
        (r"\.pwff\.", ".channel_mixer."),
        (r"^encoder_norm\.", "backbone.norm."),
        (r"^head\.(weight|bias)$", r"head.fc.\1"),
    ],
    drop=[r"^anchor_class_token$"],  # never used by the published network
    resize=_RESIZE,
    when=r"^positional_embedding\.pos_embedding$",
)

CLIP = KeyMap(  # OpenAI's visual tower; its projection is no part of the backbone
    rename=[
        (r"^class_embedding$", _EMBED + "class_token"),
        (r"^positional_embedding$", _EMBED + "learned"),
        (r"^conv1\.", _EMBED + "patches.conv."),
        (r"^ln_pre\.", _EMBED + "norm."),
        (r"^transformer\.resblocks\.(\d+)\.", _BLOCK),
        (r"\.attn\.in_proj_(weight|bias)$", r".token_mixer.qkv.\1"),
        (r"\.attn\.out_proj\.", ".token_mixer.proj."),
        (r"\.ln_(\d)\.", r".norm\1."),
        (r"\.mlp\.c_fc\.", ".channel_mixer.fc1."),
        (r"\.mlp\.c_proj\.", ".channel_mixer.fc2."),
        (r"^ln_post\.", "backbone.norm."),
        (r"^proj$", "head.projection"),
    ],
    transform={r"^(class|positional)_embedding$": _as_token},
    resize=_RESIZE,
    when=r"^transformer\.resblocks\.",
)


def _flax_heads(value: Tensor) -> Tensor:
    """Query, key or value kernel (D, heads, d) -> (heads * d, D); bias (heads, d) -> (heads * d,)."""
    return value.flatten(1).T.contiguous() if value.ndim == 3 else value.flatten()


FLAX = KeyMap(  # Google's .npz: slash-joined paths, kernels input first
    rename=[
        (r"^cls$", _EMBED + "class_token"),
        (r"^Transformer/posembed_input/pos_embedding$", _EMBED + "learned"),
        (r"^embedding/", _EMBED + "patches.conv."),
        (r"^Transformer/encoderblock_(\d+)/", _BLOCK),
        (r"MultiHeadDotProductAttention_1/query/kernel$", "token_mixer.qkv.weight[0]"),
        (r"MultiHeadDotProductAttention_1/key/kernel$", "token_mixer.qkv.weight[1]"),
        (r"MultiHeadDotProductAttention_1/value/kernel$", "token_mixer.qkv.weight[2]"),
        (r"MultiHeadDotProductAttention_1/query/bias$", "token_mixer.qkv.bias[0]"),
        (r"MultiHeadDotProductAttention_1/key/bias$", "token_mixer.qkv.bias[1]"),
        (r"MultiHeadDotProductAttention_1/value/bias$", "token_mixer.qkv.bias[2]"),
        (r"MultiHeadDotProductAttention_1/out/", "token_mixer.proj."),
        (r"LayerNorm_0/", "norm1."),
        (r"LayerNorm_2/", "norm2."),
        (r"MlpBlock_3/Dense_0/", "channel_mixer.fc1."),
        (r"MlpBlock_3/Dense_1/", "channel_mixer.fc2."),
        (r"^Transformer/encoder_norm/", "backbone.norm."),
        (r"^head/", "head.fc."),
        (r"(kernel|scale)$", "weight"),
    ],
    transform={
        r"/(query|key|value)/(kernel|bias)$": _flax_heads,
        r"/out/kernel$": lambda v: v.flatten(0, 1).T.contiguous(),
        r"(Dense_\d|head)/kernel$": lambda v: v.T.contiguous(),
        r"^embedding/kernel$": lambda v: v.permute(3, 2, 0, 1).contiguous(),
    },
    resize=_RESIZE,
    when=r"^Transformer/encoderblock_0/",
)

PUBLISHED = (FLAX, CLIP, GLSIM, HUGGING_FACE, TIMM)


def structure(names: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """What published names and shapes say of a plain ViT, as settings; `position_rows` of the table, if learned."""
    keymap = choose(PUBLISHED, names)
    ours: dict[str, Sequence[int]] = {}
    for name, shape in names.items():
        value = torch.empty(tuple(shape), device="meta")
        for pattern, change in keymap.transform.items():
            if re.search(pattern, name):
                value = change(value)
        if (renamed := keymap.name(name)) is not None:
            ours[renamed] = tuple(value.shape)
    conv = ours.get(_EMBED + "patches.conv.weight")
    if conv is None:
        return {}
    block = "backbone.stages.0.blocks."
    first = block + "0."
    found: dict[str, Any] = {
        "in_channels": conv[1],
        "dim": conv[0],
        "patch": conv[2] if conv[2] == conv[3] else (conv[2], conv[3]),
        "depth": 1 + max((int(n.split(".")[4]) for n in ours if n.startswith(block)), default=-1),
        "mlp_ratio": ours[first + "channel_mixer.fc1.weight"][0] / conv[0],
        "class_token": _EMBED + "class_token" in ours,
        "distillation_token": _EMBED + "distillation_token" in ours,
        "registers": ours.get(_EMBED + "registers", (1, 0, 0))[1],
        "relative": first + "token_mixer.bias_table" in ours,
        "patch_bias": _EMBED + "patches.conv.bias" in ours,
        "norm_pre": _EMBED + "norm.weight" in ours,
        "norm": "backbone.norm.weight" in ours,
        "layer_scale": 1.0 if first + "scale1.scale" in ours else None,
    }
    joint = any(n.startswith(first + "token_mixer.qkv.bias") for n in ours)
    found["qkv_bias"] = "full" if joint else "qv" if first + "token_mixer.q_bias" in ours else "none"
    if _EMBED + "learned" in ours:
        found["position_rows"] = ours[_EMBED + "learned"][1]
        found["positions"] = "learned"
    return found
