"""STViT-R: beside levels and logits, the grids of semantic tokens after blocks of the third stage."""

from __future__ import annotations

import re
from typing import Any

import torch
from run import Fixture, pyramid_answers
from torch import Tensor


def answers(model: Any, fixture: Fixture, dtype: torch.dtype) -> dict[str, Tensor]:
    """semanticI is what block I of the third stage gives, as (B, C, rows, columns)."""
    blocks = getattr(model, "backbone", model).stages[2].blocks
    wanted = {int(m[1]): name for name in fixture.outputs if (m := re.fullmatch(r"semantic(\d+)", name))}
    kept: dict[int, Tensor] = {}
    grids: list[torch.Size] = []  # of the tokens, which the block over all of them takes as one list

    def keep(index: int) -> Any:
        def hook(_: Any, __: Any, out: Tensor) -> None:
            if out.ndim == 4:
                grids.append(out.shape[1:3])
            kept[index] = out.reshape(out.shape[0], *grids[-1], out.shape[-1]).permute(0, 3, 1, 2)

        return hook

    local = {i // 6 * 6 + k for i in wanted for k in (1, 3)}
    hooks = [blocks[i].register_forward_hook(keep(i)) for i in local | set(wanted)]
    found = pyramid_answers(model, fixture, dtype)
    for hook in hooks:
        hook.remove()
    return found | {name: kept[i] for i, name in wanted.items()}
