"""DualToken-ViT: only LightViT's parts of it have published code; stem, merging and gated MLP, one after another."""

from __future__ import annotations

from typing import Any

import torch
from run import Fixture
from torch import Tensor, nn

from core.backbones.dualtoken_vit import GatedMLP, Merging, Stem
from core.weights import KeyMap, convert

LIGHTVIT = KeyMap(
    rename=[
        (r"^stem\.stem\.", "stem.convs."),
        (r"^stem\.proj\.", "stem.convs.12."),
        (r"^merge\.norm2\.", "merge.token_norm."),
        (r"^merge\.proj\.", "merge.token_proj."),
        (r"^merge\.res_proj\.", "merge.shortcut."),
        (r"^mlp\.fc", "mlp.mlp.fc"),
        (r"^mlp\.attn\.global_reduce\.", "mlp.gate.whole."),
        (r"^mlp\.attn\.local_reduce\.", "mlp.gate.local."),
        (r"^mlp\.attn\.channel_select\.", "mlp.gate.channels."),
        (r"^mlp\.attn\.spatial_select\.", "mlp.gate.positions."),
        (r"^mlp\.attn\.", "mlp.gate."),
    ]
)


def model(fixture: Fixture, dtype: torch.dtype) -> nn.Module:
    state = fixture.state_dict()
    inner, in_channels = state["stem.stem.0.weight"].shape[:2]
    out, dim = state["merge.res_proj.weight"].shape
    assert dim == 2 * inner
    ratio = state["mlp.fc1.weight"].shape[0] / out
    parts = nn.ModuleDict({"stem": Stem(in_channels, dim), "merge": Merging(dim, out), "mlp": GatedMLP(out, ratio)})
    parts.load_state_dict(convert(state, LIGHTVIT, parts))
    return parts.to(dtype).eval()


def answers(model: Any, fixture: Fixture, dtype: torch.dtype) -> dict[str, Tensor]:
    x, found = fixture.input().to(dtype), {}
    for name, part in model.items():
        x = part(x)
        found[name] = x.flatten(1, 2)
    return found
