"""A start for short runs on few photographs: the mechanism is the published one, only its first values differ."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from apps.colorization._icolorit import IColoriT

CODES = (2.0, 4.0, 4.0, 1.0)  # how strongly a patch's mean L', one hint's a' and b', and that there is one, are seen
SLOPES = (0.5, 1.5)  # what bias tables lose per patch of distance, in the first and in the last head
PULL = 6.0  # logits by which a patch with a hint draws attention in the first block
CARRY = 2.0  # how strongly that block adds what it attends to
QUIET = 0.1  # of the usual first values, in every branch but that one
SHOWN = 0.8  # of a hint's colour that the head answers with, about


@torch.no_grad()
def even(network: IColoriT, *, seed: int = 0) -> None:
    """Set the values before training so that minutes are enough: it begins as a mean over the near hints' colours.

    - A hint has the same code wherever it lies in its patch, and one is enough to be seen; so has the patch's mean
      luminance.
    - In the first block patches with a hint draw attention, near ones most (bias tables fall with the distance, in
      each head at another rate), and what they hold is carried over as it is. All other branches begin quietly.
    - The head reads the codes of a' and b'; all pixels of a patch start with the same colour.

    Args:
        network: in place.
        seed: of the codes.
    """
    config, draw = network.config, torch.Generator().manual_seed(seed)
    dim = config.dim
    embed: Any = network.backbone.stages[0].embed
    places = torch.linalg.svd(embed.table[0].double(), full_matrices=False).Vh[: dim // 4].T.float()
    mixed = torch.cat([places, torch.randn(dim, 4, generator=draw)], dim=1)
    unit = torch.linalg.qr(mixed).Q[:, -4:]  # at right angles to one another and to most of what positions say
    code = unit * torch.tensor(CODES) * math.sqrt(dim)
    conv = embed.patches.conv
    conv.bias.zero_()
    conv.weight[:, 0] += code[:, 0, None, None] / config.patch**2
    conv.weight[:, 1:] = code[:, 1:, None, None] / config.cell**2
    blocks: list[Any] = list(network.backbone.blocks)
    for block in blocks:
        block.token_mixer.proj.weight.mul_(QUIET)
        block.channel_mixer.fc2.weight.mul_(QUIET)
    _pull(blocks[0].token_mixer, unit[:, 3])
    if config.relative:
        side = torch.arange(1 - network.grid, network.grid, dtype=torch.float32)
        away = torch.hypot(side[:, None], side[None, :]).flatten()
        for block in blocks:
            block.token_mixer.bias_table.copy_(-away[:, None] * torch.linspace(*SLOPES, config.heads))
    head: Any = network.head
    out: Any = head.proj if config.head == "locattn" else head.out
    rows = (unit[:, 1:3].T * (SHOWN / math.sqrt(dim))).repeat(config.patch**2, 1)  # (row, column, a or b)
    out.weight.zero_()
    if isinstance(out, nn.Conv2d):
        out.weight[:, :, 1, 1] = rows
    else:
        out.weight.copy_(rows[:, : out.weight.shape[1]])
        if config.head == "locattn":
            head.qkv.weight[2 * out.weight.shape[1] :] = torch.eye(out.weight.shape[1], dim)
    out.bias.zero_()


def _pull(attention: Any, hint: Tensor) -> None:
    """Every query asks for the hint's direction, keys have it, values and projection hand tokens on as they are."""
    dim, inner = hint.shape[0], attention.heads * attention.head_dim
    asked = torch.ones(inner) / math.sqrt(attention.head_dim)  # of unit length in each head
    # After the norm a token with a hint holds about half of dim ** 0.5 along the hint's direction.
    attention.qkv.weight[inner : 2 * inner] += torch.outer(asked, hint) * (2 / math.sqrt(dim))
    attention.q_bias.copy_(asked * PULL / attention.scale)
    attention.qkv.weight[2 * inner :] = torch.eye(inner, dim)
    attention.proj.weight.copy_(CARRY * torch.eye(dim, inner))
