"""The Flax networks trained with sharpness-aware minimisation under timm's names, and the optimiser itself."""

from __future__ import annotations

import re
from typing import Any

import torch
import torch.nn.functional as F
from run import Fixture, filled
from torch import Tensor, nn

from core.training.sharpness import SharpnessAware, statistics_kept

LATER = {r".*": "the Mixer and the curvature analyses come with sharpness-aware minimisation's own issue"}


def model(fixture: Fixture, dtype: torch.dtype) -> nn.Module | None:
    if "cases" in fixture.build:
        return _net(fixture, dtype)
    if "patch_embed.proj.weight" not in fixture.state:
        return None
    return filled("vit", fixture, dtype, classes=fixture.build["num_classes"])


def answers(model: Any, fixture: Fixture, dtype: torch.dtype) -> dict[str, Tensor]:
    if "cases" in fixture.build:
        cases = fixture.build["cases"].items()
        return {k: v for name, case in cases for k, v in _steps(name, case, fixture, dtype).items()}
    if model is None:
        return {}
    tokens = model.backbone.tokens(fixture.input().to(dtype))
    return {"tokens": tokens, "logits": model.head(tokens)}


def _net(fixture: Fixture, dtype: torch.dtype) -> nn.Module:
    """The small net that the vector spells out: Sequential(Linear(12,16), GELU exact, LayerNorm(16, eps 1e-5), ...)."""
    inside = fixture.build["net"].removeprefix("Sequential(").removesuffix(")")
    parts = []
    for word in re.split(r",\s*(?![^()]*\))", inside):
        found = re.match(r"(\w+)(?:\(([^()]*)\))?", word.strip())
        assert found is not None
        sizes = [int(n) for n in re.findall(r"(?<![\w.-])\d+(?![\w.])", found[2] or "")]
        parts.append(getattr(nn, found[1])(*sizes))
    net = nn.Sequential(*parts)
    missing, unknown = net.load_state_dict(fixture.state_dict(), strict=False)
    assert not unknown
    assert all(name.endswith("num_batches_tracked") for name in missing)
    return net.to(dtype).train()


def _steps(name: str, case: dict[str, Any], fixture: Fixture, dtype: torch.dtype) -> dict[str, Tensor]:
    """Three steps on the same batch; what the first one goes through is looked at from inside its second pass."""
    net = _net(fixture, dtype)
    settings = {k: case[k] for k in ("momentum", "betas", "eps") if k in case}
    base = getattr(torch.optim, case["base"])(
        net.parameters(), lr=case["lr"], weight_decay=case["weight_decay"], **settings
    )
    sharp = SharpnessAware(base, case["rho"], adaptive=case["adaptive"])
    x, y = fixture.input("x").to(dtype), fixture.input("y")
    found: dict[str, Tensor] = {}

    def alone(value: Tensor) -> Tensor:
        return torch.stack([value.detach(), torch.zeros_like(value)])

    def again() -> None:
        with statistics_kept(net):
            loss = F.cross_entropy(net(x), y)
        loss.backward()
        if "perturbed_loss" not in found:
            found["perturbed_loss"] = alone(loss)
            for n, p in net.named_parameters():
                found[f"perturbed.{n}"] = p.detach().clone()
                found[f"sam_grad.{n}"] = p.grad.clone()

    with torch.enable_grad():
        for step in (1, 2, 3):
            base.zero_grad()
            loss = F.cross_entropy(net(x), y)
            loss.backward()
            if step == 1:
                found["loss"], found["grad_norm"] = alone(loss), alone(sharp.norm())
            sharp.step(again)
            if step != 2:
                found |= {f"step{step}.{n}": value.clone() for n, value in net.state_dict().items()}
    return {f"{name}.{key}": value for key, value in found.items()}
