"""Language models that write captions behind a prefix: the contract, and a small decoder trained from scratch.

The decoder is GPT-2's in form (learned positions, norm before each branch, tanh GELU, output words tied to the input's;
Radford et al. 2019), with the words of `vocabulary`. Shapes: tokens (B, T) numbers, inputs and hidden states (B, T, d).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from apps.medical.pathology_caption.vocabulary import BEGIN, PADDING, UNKNOWN, Vocabulary
from core.errors import SettingError, ShapeError
from core.layers.attend import attend, merge_heads
from core.layers.linear import Linear, linear
from core.layers.mlp import MLP

NOTHING = -1  # in place of a token behind a caption's end: no word, no loss


class Words(Protocol):
    """Captions as numbers, and back."""

    begin: int
    end: int

    def __len__(self) -> int: ...
    def encode(self, caption: str) -> list[int]: ...
    def text(self, numbers: Iterable[int]) -> str: ...


class Language(Protocol):
    """What writes captions: a causal language model over its own words.

    Attributes:
        dim: of its input space.
        vocabulary: its words.
        banned: numbers that it must not write.
        room: most tokens and prefix positions together.
    """

    dim: int
    banned: tuple[int, ...]
    room: int

    @property
    def vocabulary(self) -> Words: ...
    def embed(self, tokens: Tensor) -> Tensor: ...
    def __call__(self, inputs: Tensor, cache: Any = None) -> tuple[Tensor, Any]: ...
    def reorder(self, cache: Any, rows: Tensor) -> Any: ...


@dataclass(frozen=True)
class DecoderConfig:
    dim: int = 256
    depth: int = 4
    heads: int = 4
    dropout: float = 0.1


Cache = list[tuple[Tensor, Tensor]]  # keys and values of each block, (B, heads, T, d / heads)


class CausalAttention(nn.Module):
    """Each position to itself and those before it: (B, T, d) behind a cache of S positions -> (B, T, d)."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = Linear(dim, 3 * dim), Linear(dim, dim)

    def forward(self, x: Tensor, mask: Tensor, past: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Any]:
        """`mask` is added to the logits, (T, S + T)."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        if past is not None:
            k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
        return self.proj(merge_heads(attend(q, k, v, mask))), (k, v)


class DecoderBlock(nn.Module):
    """Attention, then an MLP, each behind a norm and added."""

    def __init__(self, c: DecoderConfig) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(c.dim), CausalAttention(c.dim, c.heads)
        self.norm2, self.mlp = nn.LayerNorm(c.dim), MLP(c.dim, activation="gelu_tanh", dropout=c.dropout)
        self.dropout = nn.Dropout(c.dropout)

    def forward(self, x: Tensor, mask: Tensor, past: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Any]:
        mixed, kept = self.attention(self.norm1(x), mask, past)
        x = x + self.dropout(mixed)
        return x + self.mlp(self.norm2(x)), kept


class Decoder(nn.Module):
    """Input embeddings (B, T, d), behind a cache -> logits (B, T, words) of the next token, and the longer cache.

    Args:
        config: its size.
        words: of the vocabulary, without the special ones.
        room: positions: prefix, begin and the longest caption.

    Raises SettingError for heads that do not divide the width, ShapeError for more positions than there are.
    """

    banned = (PADDING, BEGIN, UNKNOWN)

    def __init__(self, config: DecoderConfig, words: tuple[str, ...], room: int) -> None:
        super().__init__()
        c = self.config = config
        if c.heads < 1 or c.dim % c.heads:
            raise SettingError(f"{c.heads} heads of the decoder do not divide its width {c.dim}")
        self.dim, self.room = c.dim, room
        self._vocabulary = Vocabulary(words)
        self.words = nn.Embedding(len(self._vocabulary), c.dim)
        self.positions = nn.Parameter(torch.empty(room, c.dim))
        self.dropout = nn.Dropout(c.dropout)
        self.blocks = nn.ModuleList(DecoderBlock(c) for _ in range(c.depth))
        self.norm = nn.LayerNorm(c.dim)
        self.apply(_initialise)
        nn.init.normal_(self.positions, std=0.02)
        for block in self.blocks:  # GPT-2's: branches start small by their number, two a block
            for layer in (block.attention.proj, block.mlp.fc2):  # type: ignore[union-attr]
                nn.init.normal_(layer.weight, std=0.02 * (2 * max(c.depth, 1)) ** -0.5)  # type: ignore[arg-type,union-attr]

    @property
    def vocabulary(self) -> Vocabulary:
        return self._vocabulary

    def embed(self, tokens: Tensor) -> Tensor:
        """Tokens (B, T) -> inputs (B, T, d), without positions; what is below 0 (no token) is embedded as padding."""
        embedded: Tensor = self.words(tokens.clamp(min=PADDING))
        return embedded

    def forward(self, inputs: Tensor, cache: Cache | None = None) -> tuple[Tensor, Cache]:
        before = 0 if cache is None or not cache else cache[0][0].shape[2]
        length = inputs.shape[1]
        if before + length > self.room:
            raise ShapeError(f"{before + length} positions, the decoder has {self.room}")
        x = self.dropout(inputs + self.positions[before : before + length])
        mask = torch.full((length, before + length), -torch.inf, dtype=x.dtype, device=x.device).triu(before + 1)
        kept = []
        for i, block in enumerate(self.blocks):
            x, both = block(x, mask, None if cache is None else cache[i])
            kept.append(both)
        return linear(self.norm(x), self.words.weight, None), kept

    def reorder(self, cache: Cache, rows: Tensor) -> Cache:
        """The cache of other rows of the batch, (R,) numbers."""
        return [(k.index_select(0, rows), v.index_select(0, rows)) for k, v in cache]


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
