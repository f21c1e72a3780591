"""Swin-UMamba: its encoder is core's VMamba, its layer core's SS2D, its operator core's selective scan.

The base network's encoder reads a stem (convolution and instance norm), which is put together here from the vector's
own weights; decoders and heads come with the medical app.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from run import Fixture, filled
from torch import Tensor, nn

from core.mixers.scan import selective_scan
from core.mixers.ss2d import SS2D
from core.weights import KeyMap, convert

LATER = {r"logits.*": "the decoders come with the medical app"}
LAYER = KeyMap(
    rename=[
        ("^conv2d", "conv"), ("_weight$", ""), ("^dt_projs_bias", "dt_bias"), ("projs$", "proj"), ("^A_logs", "A_log"),
        ("^Ds$", "skip"),
    ]
)  # fmt: skip
DIRECTIONS = ("scan_rows", "scan_columns", "scan_rows_reversed", "scan_columns_reversed")


def model(fixture: Fixture, dtype: torch.dtype) -> nn.Module | None:
    if "d_model" in fixture.build:
        layer = SS2D(fixture.build["d_model"], state=fixture.build.get("d_state", 16))
        layer.load_state_dict(convert(fixture.state_dict(), LAYER, layer))
        return layer.to(dtype).eval()
    if not fixture.state:
        return None
    return filled("vmamba", fixture, dtype, prefix="vssm_encoder.")


def answers(model: Any, fixture: Fixture, dtype: torch.dtype) -> dict[str, Tensor]:
    if model is None:
        return operator({name: fixture.input(name).to(dtype) for name in fixture.inputs})
    image = fixture.input().to(dtype)
    if isinstance(model, SS2D):
        inner, _ = model.in_proj(image).chunk(2, dim=-1)
        act, scans = model.directions(inner)
        return {"conv_act": act, "out": model(image), **dict(zip(DIRECTIONS, scans, strict=True))}
    state = {name: value.to(dtype) for name, value in fixture.state_dict().items()}
    if "stem.0.weight" in state:
        image = F.conv2d(image, state["stem.0.weight"], state["stem.0.bias"], stride=2, padding=3)
        image = F.instance_norm(image, weight=state["stem.1.weight"], bias=state["stem.1.bias"])
    return {f"stage{i}": level for i, level in enumerate(model(image), 1)}


def operator(given: dict[str, Tensor]) -> dict[str, Tensor]:
    A = -torch.exp(given["A_log"])
    u, delta, B, C = (given[n] for n in ("u", "delta", "B", "C"))
    options: dict[str, Any] = {"D": given["D"], "delta_bias": given["delta_bias"], "delta_softplus": True}
    y, last = selective_scan(u, delta, A, B, C, **options, return_last_state=True)
    return {
        "y": y, "last_state": last, "y_z": selective_scan(u, delta, A, B, C, z=given["z"], **options),
        "y_plain": selective_scan(u, 0.1 * delta.abs(), A, B, C),
    }  # fmt: skip
