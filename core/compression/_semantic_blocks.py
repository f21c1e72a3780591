"""Blocks of a trained network as blocks of semantic tokens, with the same weights."""

from __future__ import annotations

from typing import Any

import torch

from core.errors import SettingError
from core.layers.positions import resize_bias_table
from core.mixers.semantic_tokens import CrossAttention, TokenBlock
from core.mixers.window import WindowAttention


def in_windows(mixer: Any, side: int) -> WindowAttention:
    """The same attention in windows of another side, shifted by half of it where it was shifted."""
    bias = mixer.qkv.bias is not None
    new = WindowAttention(
        mixer.qkv.weight.shape[1], mixer.heads, window=side, shift=side // 2 if mixer.shift else 0,
        shift_single=mixer.shift_single, qkv_bias=bias, scale=mixer.scale, dropout=mixer.dropout,
    )  # fmt: skip
    new = new.to(mixer.qkv.weight)
    new.qkv, new.proj, new.proj_dropout = mixer.qkv, mixer.proj, mixer.proj_dropout
    table = mixer.bias_table
    with torch.no_grad():
        resized = resize_bias_table(table.float(), new.bias_table.shape[0])
        new.bias_table.copy_(resized)
    return new


def window_stage(backbone: Any, stage: int) -> tuple[Any, list[Any]]:
    """A stage and its blocks, which all have attention in square windows, or SettingError."""
    stages = getattr(backbone, "stages", ())
    found: Any = stages[stage] if 0 <= stage < len(stages) else None
    blocks: list[Any] = list(getattr(found, "blocks", ()))
    mixers = [getattr(block, "token_mixer", None) for block in blocks]
    if not mixers or not all(isinstance(m, WindowAttention) and m.window[0] == m.window[1] for m in mixers):
        raise SettingError(f"{type(backbone).__name__} has no stage {stage} of window-attention blocks")
    return found, blocks


def token_block(block: Any) -> TokenBlock:
    """A block of self-attention as one of cross-attention, with the same weights and layer scale."""
    new = TokenBlock(block.norm1.weight.shape[0], cross_attention(block.token_mixer), block.channel_mixer)
    take(new, block)
    new.scale1, new.scale2 = block.scale1, block.scale2
    return new


def take(new: TokenBlock, block: Any) -> None:
    """Give a semantic block the parts of the block that it replaces, layer scale excepted."""
    new.norm1, new.norm2, new.drop_path = block.norm1, block.norm2, block.drop_path
    new.channel_mixer = block.channel_mixer
    new.token_mixer = cross_attention(block.token_mixer)


def cross_attention(mixer: Any) -> CrossAttention:
    """The projections of a self-attention, its queries' apart from its keys' and values'."""
    inner, dim = mixer.qkv.weight.shape[0] // 3, mixer.qkv.weight.shape[1]
    if inner != dim:
        raise SettingError(f"semantic tokens need attention as wide as its input, got {inner} of {dim} channels")
    bias = mixer.qkv.bias
    if getattr(mixer, "q_bias", None) is not None:
        bias = torch.cat([mixer.q_bias, torch.zeros_like(mixer.q_bias), mixer.v_bias])
    with torch.device(mixer.qkv.weight.device):
        new = CrossAttention(dim, mixer.heads, qkv_bias=bias is not None, scale=mixer.scale, dropout=mixer.dropout)
    new = new.to(mixer.qkv.weight)
    with torch.no_grad():
        for layer, rows in ((new.q, slice(None, dim)), (new.kv, slice(dim, None))):
            layer.weight.copy_(mixer.qkv.weight[rows])
            if bias is not None:
                layer.bias.copy_(bias[rows])
    new.proj, new.proj_dropout = mixer.proj, mixer.proj_dropout
    return new
