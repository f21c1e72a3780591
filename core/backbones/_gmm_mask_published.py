"""How the authors of the Gaussian mask name the parameters of their five hosts."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from core.layers.positions import sincos_1d
from core.mixers.gaussian_mask import pairs
from core.weights import KeyMap

_FIRST = "backbone.stages.0."


def linear_patches(value: Tensor) -> Tensor:
    """Patches flattened (row, column, channel) before a Linear (D, p * p * C) -> convolution (D, C, p, p). Channels are
    3 where that leaves a square, else the least number that does.
    """
    inside = value.shape[1]
    channels = next(n for n in (3, *range(1, inside + 1)) if math.isqrt(inside // n) ** 2 * n == inside)
    side = math.isqrt(inside // channels)
    return value.reshape(-1, side, side, channels).permute(0, 3, 1, 2).contiguous()


def _is_base(value: Tensor) -> bool:
    """Whether a stored matrix is the function of distance that masks are made of."""
    cells = math.isqrt(value.numel())
    side = math.isqrt(cells)
    if cells * cells != value.numel() or side * side != cells:
        return False
    return torch.allclose(value.reshape(cells, cells).float(), pairs((side, side)), atol=1e-6)


def _is_table(value: Tensor) -> bool:
    """Whether stored positions are the sinusoids of as many tokens."""
    return value.ndim == 3 and torch.allclose(value[0].double(), sincos_1d(*value.shape[1:]), atol=1e-5)


_TOKENS = [  # blocks of ViT, CaiT and PiT, (attention, MLP) pairs in wrappers
    (r"(blocks\.\d+)\.([01])\.scale$", r"\1.scale_\2.scale"),
    (r"(blocks\.\d+)\.([01])\.(?:fn\.)?norm\.", r"\1.norm_\2."),
    (r"(blocks\.\d+)\.0\.(?:fn\.)?fn\.to_qkv\.", r"\1.token_mixer.qkv."),
    (r"(blocks\.\d+)\.0\.fn\.fn\.to_(q|kv)\.", r"\1.token_mixer.\2."),
    (r"(blocks\.\d+)\.0\.fn\.fn\.mix_heads_pre_attn$", r"\1.token_mixer.mix_scores"),
    (r"(blocks\.\d+)\.0\.fn\.fn\.mix_heads_post_attn$", r"\1.token_mixer.mix_weights"),
    (r"(blocks\.\d+)\.0\.(?:fn\.)?fn\.to_out\.0\.", r"\1.token_mixer.proj."),
    (r"(blocks\.\d+)\.0\.(?:fn\.)?fn\.mask\b", r"\1.token_mixer.mask"),
    (r"(blocks\.\d+)\.1\.(?:fn\.)?fn\.net\.0\.", r"\1.channel_mixer.fc1."),
    (r"(blocks\.\d+)\.1\.(?:fn\.)?fn\.net\.3\.", r"\1.channel_mixer.fc2."),
    (r"\.(norm|scale)_0\.", r".\g<1>1."),
    (r"\.(norm|scale)_1\.", r".\g<1>2."),
    (r"^mlp_head\.0\.", "head.norm."),
    (r"^mlp_head\.1\.", "head.fc."),
    (r"^pos_embedding$", _FIRST + "merge.positions"),
    (r"^to_patch_embedding\.[01]\.", _FIRST + "merge.patches.conv."),
]
_RENAME = {
    "vit": (
        r"^transformer\.layers\.",
        [
            (r"^transformer\.layers\.(\d+)\.", _FIRST + r"blocks.\1."),
            (r"^cls_token$", _FIRST + "merge.class_token"),
            *_TOKENS,
        ],
    ),
    "cait": (
        r"^patch_transformer\.layers\.",
        [
            (r"^patch_transformer\.layers\.(\d+)\.", _FIRST + r"blocks.\1."),
            (r"^cls_transformer\.layers\.(\d+)\.", r"backbone.class_blocks.\1."),
            (r"^cls_token$", "backbone.class_token"),
            *_TOKENS,
            (r"(class_blocks\.\d+\.)token_mixer\.", r"\1attention."),
        ],
    ),
    "pit": (
        r"^layers\.\d+\.layers\.",
        [
            *((rf"^layers\.{2 * i}\.layers\.(\d+)\.", rf"backbone.stages.{i}.blocks.\1.") for i in range(8)),
            *((rf"^layers\.{2 * i + 1}\.", f"backbone.stages.{i + 1}.merge.") for i in range(8)),
            (r"merge\.downsample\.net\.0\.", "merge.depthwise."),
            (r"merge\.downsample\.net\.1\.", "merge.pointwise."),
            (r"merge\.cls_ff\.", "merge.class_token."),
            (r"^cls_token$", _FIRST + "merge.class_token"),
            *_TOKENS,
        ],
    ),
    "t2t": (
        r"^tokens_to_token\.",
        [
            (r"^cls_token$", _FIRST + "merge.unused_token"),
            (r"^tokens_to_token\.norm\.", _FIRST + "merge.unused_norm."),
            *((rf"^tokens_to_token\.attention{i + 1}\.", f"{_FIRST}merge.mixers.{i}.") for i in range(4)),
            (r"^tokens_to_token\.project\.", _FIRST + "merge.project."),
            (r"^blocks\.(\d+)\.attn\.", _FIRST + r"blocks.\1.token_mixer.attention."),
            (r"^blocks\.(\d+)\.", _FIRST + r"blocks.\1."),
            (r"\.attn\.", ".token_mixer."),
            (r"\.mlp\.", ".channel_mixer."),
            (r"^norm\.", "head.norm."),
            (r"^head\.(weight|bias)$", r"head.fc.\1"),
        ],
    ),
    "swin": (
        r"^layers\.\d+\.blocks\.",
        [
            *((rf"^layers\.{i}\.downsample\.", f"backbone.stages.{i + 1}.merge.") for i in range(8)),
            (r"^layers\.(\d+)\.blocks\.(\d+)\.", r"backbone.stages.\1.blocks.\2."),
            (r"\.attn\.relative_position_bias_table$", ".token_mixer.bias_table"),
            (r"\.attn\.", ".token_mixer."),
            (r"\.mlp\.", ".channel_mixer."),
            (r"^absolute_pos_embed$", _FIRST + "merge.positions"),
            (r"^patch_embed\.proj\.", _FIRST + "merge.patches.conv."),
            (r"^patch_embed\.norm\.", _FIRST + "merge.patches.norm."),
            (r"^norm\.", "head.norm."),
            (r"^head\.(weight|bias)$", r"head.fc.\1"),
        ],
    ),
}
_ELEMENTS = [(r"(token_mixer|attention)\.mask(\.\w+)*$", r"\1.mask.weight")]
_DROP = [r"\.relative_position_index$", r"\.attn_mask$"]
_LAYOUT: dict[str, Callable[[Tensor], Tensor]] = {
    r"^to_patch_embedding\.1\.weight$": linear_patches,
    r"\.\d+\.scale$": torch.flatten,
}


def _map(when: str, rename: list[tuple[str, str]], gaussian: bool) -> KeyMap:
    if gaussian:  # the function of distance is stored beside the network and in every layer
        constants = {r"(^|\.)mask$": _is_base, r"^pos_embed$": _is_table}
        return KeyMap(rename, _DROP, _LAYOUT, constants=constants, when=when + r".*\.mask\.sigma$")
    square: dict[str, Callable[[Tensor], Tensor]] = {
        r"\.(fn|attn)\.mask(\.\w+)*$": lambda v: v.reshape(v.shape[-2:]),
    }
    constants = {r"^mask$": _is_base, r"^pos_embed$": _is_table}
    return KeyMap([*rename, *_ELEMENTS], _DROP, _LAYOUT | square, constants=constants, when=when)


GAUSSIAN = {host: _map(when, rename, True) for host, (when, rename) in _RENAME.items()}
OTHERS = {host: _map(when, rename, False) for host, (when, rename) in _RENAME.items()}
PUBLISHED = (*GAUSSIAN.values(), *OTHERS.values())
