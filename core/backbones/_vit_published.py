"""How authors name a plain ViT's parameters."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from core.layers.positions import Resizing, resize_bias_table, resize_grid
from core.weights import KeyMap

EMBED, _BLOCK = "backbone.stages.0.embed.", r"backbone.stages.0.blocks.\1."


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
        (r"^cls_token$", EMBED + "class_token"),
        (r"^dist_token$", EMBED + "distillation_token"),
        (r"^(reg_token|register_tokens)$", EMBED + "registers"),
        (r"^pos_embed$", EMBED + "learned"),
        (r"^patch_embed\.proj\.", EMBED + "patches.conv."),
        (r"^norm_pre\.", EMBED + "norm."),
        (r"^blocks\.(\d+)\.", _BLOCK),
        (r"\.attn\.(rpb_table|relative_position_bias_table)$", ".token_mixer.bias_table"),
        (r"\.attn\.", ".token_mixer."),
        *_MLP,
        (r"\.(?:ls(\d)\.gamma|gamma_(\d))$", r".scale\1\2.scale"),
        (r"^norm\.", "backbone.norm."),
        (r"^fc_norm\.", "head.norm."),
        (r"^head\.(weight|bias)$", r"head.fc.\1"),
        (r"^head_dist\.", "head.fc_distilled."),
        (r"^attn_pool\.", "head.attention_pool."),  # SigLIP's; no part of the backbone
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
        (r"^(?:.*\.)?embed(?:dings)?\.cls_token$", EMBED + "class_token"),
        (r"^(?:.*\.)?embed(?:dings)?\.distillation_token$", EMBED + "distillation_token"),
        (r"^(?:.*\.)?(?:embed(?:dings)?\.)?register(?:_token)?s$", EMBED + "registers"),
        (r"^(?:.*\.)?embed(?:dings)?\.position_embeddings$", EMBED + "learned"),
        (r"^(?:.*\.)?embed(?:dings)?\.patch_embeddings\.projection\.", EMBED + "patches.conv."),
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
        (r"^class_token$", EMBED + "class_token"),
        (r"^positional_embedding\.pos_embedding$", EMBED + "learned"),
        (r"^patch_embedding\.", EMBED + "patches.conv."),
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
        (r"^class_embedding$", EMBED + "class_token"),
        (r"^positional_embedding$", EMBED + "learned"),
        (r"^conv1\.", EMBED + "patches.conv."),
        (r"^ln_pre\.", EMBED + "norm."),
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
        (r"^cls$", EMBED + "class_token"),
        (r"^Transformer/posembed_input/pos_embedding$", EMBED + "learned"),
        (r"^embedding/", EMBED + "patches.conv."),
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


def _linear_patches(value: Tensor) -> Tensor:
    """Patches flattened (row, column, channel) before a Linear (D, p * p * C) -> convolution (D, C, p, p). Channels are
    3 where that leaves a square, else 1 or 4.
    """
    inside = value.shape[1]
    for channels in (3, 1, 4):
        side = math.isqrt(inside // channels)
        if side * side * channels == inside:
            return value.reshape(-1, side, side, channels).permute(0, 3, 1, 2).contiguous()
    return value


GMM_MASK = KeyMap(  # the plain host of Gaussian mixture masks
    rename=[
        (r"^cls_token$", EMBED + "class_token"),
        (r"^pos_embedding$", EMBED + "learned"),
        (r"^to_patch_embedding\.1\.", EMBED + "patches.conv."),
        (r"^transformer\.layers\.(\d+)\.", _BLOCK),
        (r"(blocks\.\d+)\.0\.norm\.", r"\1.norm1."),
        (r"(blocks\.\d+)\.1\.norm\.", r"\1.norm2."),
        (r"(blocks\.\d+)\.0\.fn\.to_qkv\.", r"\1.token_mixer.qkv."),
        (r"(blocks\.\d+)\.0\.fn\.to_out\.0\.", r"\1.token_mixer.proj."),
        (r"(blocks\.\d+)\.1\.fn\.net\.0\.", r"\1.channel_mixer.fc1."),
        (r"(blocks\.\d+)\.1\.fn\.net\.3\.", r"\1.channel_mixer.fc2."),
        (r"^mlp_head\.0\.", "backbone.norm."),
        (r"^mlp_head\.1\.", "head.fc."),
    ],
    transform={r"^to_patch_embedding\.1\.weight$": _linear_patches},
    when=r"^to_patch_embedding\.1\.",
)

PUBLISHED = (FLAX, CLIP, GLSIM, GMM_MASK, HUGGING_FACE, TIMM)
