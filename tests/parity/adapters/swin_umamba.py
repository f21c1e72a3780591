"""Swin-UMamba: the medical app's two networks, core's SS2D layer, core's selective scan."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from run import Fixture
from torch import Tensor, nn

from apps.medical.segmentation.model import NETWORKS, PUBLISHED, build, from_published
from core.mixers.scan import selective_scan
from core.mixers.ss2d import SS2D
from core.weights import KeyMap, choose, convert

LAYER = KeyMap(
    rename=[
        ("^conv2d", "conv"), ("_weight$", ""), ("^dt_projs_bias", "dt_bias"), ("projs$", "proj"), ("^A_logs", "A_log"),
        ("^Ds$", "skip"),
    ]
)  # fmt: skip
DIRECTIONS = ("scan_rows", "scan_columns", "scan_rows_reversed", "scan_columns_reversed")


def model(fixture: Fixture, dtype: torch.dtype) -> nn.Module | None:
    state = fixture.state_dict()
    if not state:
        return None
    if "d_model" in fixture.build:
        layer = SS2D(fixture.build["d_model"], state=fixture.build.get("d_state", 16))
        layer.load_state_dict(convert(state, LAYER, layer))
        return layer.to(dtype).eval()
    name = "swin_umamba" if "stem.0.weight" in state else "swin_umamba_d"
    config = from_published(fixture.build, fixture.state, NETWORKS[name])
    if name == "swin_umamba_d":
        config = replace(config, drop_remainder=True)  # as published
    network = build(config)
    network.load_state_dict(convert(state, choose(PUBLISHED, state), network))
    return network.to(dtype).eval()


def answers(model: Any, fixture: Fixture, dtype: torch.dtype) -> dict[str, Tensor]:
    if model is None:
        return operator({name: fixture.input(name).to(dtype) for name in fixture.inputs})
    image = fixture.input().to(dtype)
    if isinstance(model, SS2D):
        inner, _ = model.in_proj(image).chunk(2, dim=-1)
        act, scans = model.directions(inner)
        return {"conv_act": act, "out": model(image), **dict(zip(DIRECTIONS, scans, strict=True))}
    seen: list[list[Tensor]] = []
    handle = model.encoder.register_forward_hook(lambda module, given, pyramid: seen.append(pyramid))
    scales = model.scales(image)
    handle.remove()
    found = {f"stage{i}": level for i, level in enumerate(seen[0], 1)}
    found |= {f"logits_scale{i}" if i else "logits": logits for i, logits in enumerate(scales)}
    if not model.deep_supervision:
        found["logits"] = model(image)
    return {name: value for name, value in found.items() if name in fixture.outputs}


def operator(given: dict[str, Tensor]) -> dict[str, Tensor]:
    A = -torch.exp(given["A_log"])
    u, delta, B, C = (given[n] for n in ("u", "delta", "B", "C"))
    options: dict[str, Any] = {"D": given["D"], "delta_bias": given["delta_bias"], "delta_softplus": True}
    y, last = selective_scan(u, delta, A, B, C, **options, return_last_state=True)
    return {
        "y": y, "last_state": last, "y_z": selective_scan(u, delta, A, B, C, z=given["z"], **options),
        "y_plain": selective_scan(u, 0.1 * delta.abs(), A, B, C),
    }  # fmt: skip
