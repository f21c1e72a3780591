"""What needs no training: no colour, the nearest hint, and hints weighted by place and luminance.

All have the network's own form: Lab (B, 3, S, S) and mask (B, L), True where there is no hint -> a'b' (B, 2, S, S).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

REACH = 0.07  # of a difference in L' that makes a hint count less by the factor e
POWER = 2.5  # with which a hint fades with its distance
_PIXELS = 1 << 22  # distances held at once


def grey(lab: Tensor, mask: Tensor) -> Tensor:
    """No colour at all."""
    return torch.zeros_like(lab[:, 1:])


def nearest(lab: Tensor, mask: Tensor) -> Tensor:
    """Each pixel has the colour of the nearest hint; grey without hints."""
    return _each(lab, mask, _nearest)


def weighted(lab: Tensor, mask: Tensor) -> Tensor:
    """Each pixel has the mean of the hints' colours, those near it and of its luminance counting most.

    The weight is exp(-|difference of L'| / REACH) / distance^POWER. Grey without hints.
    """
    return _each(lab, mask, _weighted)


BASELINES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"grey": grey, "nearest": nearest, "weighted": weighted}


def _each(lab: Tensor, mask: Tensor, rule: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
    """`rule(distances (pixels, hints), differences of L', colours (hints, 2))` for every picture, row by row."""
    size, cells = lab.shape[-1], math.isqrt(mask.shape[1])
    side = size // cells
    mean = F.interpolate(lab, size=(cells, cells), mode="bilinear", align_corners=False)  # as the network sees hints
    out = torch.zeros_like(lab[:, 1:])
    columns = torch.arange(size, dtype=lab.dtype, device=lab.device)
    for one, hidden, small, answer in zip(lab, mask, mean, out, strict=True):
        places = (~hidden).nonzero().flatten()
        if not len(places):
            continue
        colours = small.flatten(1)[:, places]
        y, x = (((p * side).to(lab.dtype) + (side - 1) / 2) for p in (places // cells, places % cells))
        rows = max(1, _PIXELS // (size * len(places)))
        for top in range(0, size, rows):
            part = columns[top : top + rows]
            away = (part[:, None, None] - y).square() + (columns[None, :, None] - x).square()
            light = (one[0, top : top + rows, :, None] - colours[0]).abs()
            answer[:, top : top + rows] = rule(away, light, colours[1:].T).permute(2, 0, 1)
    return out


def _nearest(away: Tensor, light: Tensor, colours: Tensor) -> Tensor:
    return colours[away.argmin(-1)]


def _weighted(away: Tensor, light: Tensor, colours: Tensor) -> Tensor:
    weights = torch.softmax(-light / REACH - 0.5 * POWER * (away + 1).log(), dim=-1)
    return weights @ colours
