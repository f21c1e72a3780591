"""T2T-ViT's published names, and its positions as they are stored."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from core.errors import WeightsError
from core.layers.positions import resize_grid, sincos_1d
from core.weights import KeyMap

EMBED = "backbone.stages.0.embed."
_CLOSE = 4e-3  # half precision's steps below 1


def resized(table: Tensor, size: tuple[int, int]) -> Tensor:
    """Positions (1, 1 + side**2, C) of a square grid for another grid, bicubically; the class token's row stays."""
    side = math.isqrt(table.shape[1] - 1)
    cells = resize_grid(table[:, 1:].unflatten(1, (side, side)), size, "exact")
    return torch.cat([table[:, :1], cells.flatten(1, 2)], 1)


def _made(value: Tensor) -> bool:
    """Whether stored positions are those of 14 x 14 tokens, or those resized to another square, as released."""
    if value.ndim != 3 or value.shape[1] < 2:
        return False
    rows, dim = value.shape[1:]
    side = math.isqrt(rows - 1)
    table = sincos_1d(rows, dim)[None]
    if rows != 197 and torch.allclose(value.double(), table, atol=_CLOSE):
        raise WeightsError(
            f"pos_embed: made for {side} x {side} tokens, not for 14 x 14; take it out of the file and pass "
            f"table_size={16 * side}"
        )
    if side * side != rows - 1:
        return False
    wanted = resized(sincos_1d(197, dim)[None], (side, side)) if rows != 197 else table
    return torch.allclose(value.double(), wanted, atol=_CLOSE)


_COPY = r"\.(attn\.\w+_[qkv]|mlp\.(?!fc)\w+[23])\.weight$"
_EXPLORATIONS = (  # squeeze-and-excitation and Ghost, of which no weights were released
    (r"(blocks\.\d+)\.attn\.(\w+\.)*fc\.0\.", r"\1.token_mixer.excite.fc1."),
    (r"(blocks\.\d+)\.attn\.(\w+\.)*fc\.2\.", r"\1.token_mixer.excite.fc2."),
    *((rf"\.attn\.{n}\.(weight|bias)$", rf".token_mixer.qkv.\1[{i}]") for i, n in enumerate("qkv")),
    *((rf"\.attn\.\w+_{n}\.weight$", f".token_mixer.copies[{i}]") for i, n in enumerate("qkv")),
    *((rf"\.mlp\.(?!fc)\w+{i + 2}\.weight$", f".channel_mixer.copies[{i}]") for i in range(2)),
)
PUBLISHED = (
    KeyMap(
        rename=[
            (r"^cls_token$", EMBED + "class_token"),
            (r"^tokens_to_token\.attention(\d)\.", EMBED + r"tokens_to_token.mix\1."),
            (r"^tokens_to_token\.project\.", EMBED + "tokens_to_token.project."),
            (r"\.w$", ".token_mixer.features"),
            (r"(mix\d)\.(?:attn\.)?(kqv|qkv|proj)\.", r"\1.token_mixer.\2."),
            (r"(mix\d\.)mlp\.(?:0|fc1)\.", r"\1channel_mixer.fc1."),
            (r"(mix\d\.)mlp\.(?:2|fc2)\.", r"\1channel_mixer.fc2."),
            (r"^blocks\.(\d+)\.", r"backbone.stages.0.blocks.\1."),
            *_EXPLORATIONS,
            (r"(blocks\.\d+)\.attn\.", r"\1.token_mixer."),
            (r"(blocks\.\d+)\.mlp\.", r"\1.channel_mixer."),
            (r"^norm\.", "backbone.norm."),
            (r"^head\.", "head.fc."),
        ],
        transform={_COPY: lambda v: v.reshape(1, -1)},
        constants={r"^pos_embed$": _made},
    ),
)
