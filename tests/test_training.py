"""Parts of training one by one: recipe, schedules, groups of weights, loaders, devices."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from core.device import autocast, pick
from core.errors import SettingError
from core.training.recipe import Recipe
from core.training.schedules import rate

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
import training_toy as toy

# --- recipe ---------------------------------------------------------------------------------------------------------


def test_the_recipe_is_light() -> None:
    code = "import sys, core.training.recipe, core.device; print({'torch', 'lightning', 'numpy'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"


def test_every_field_has_a_meaning_in_the_help() -> None:
    text = Recipe.__doc__ or ""
    assert [f for f in Recipe.__dataclass_fields__ if f"\n        {f}: " not in text] == []


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epochs": 0}, "epochs is at least 1, got 0"),
        ({"lr": 0.0}, "lr is above 0"),
        ({"ema": 1.0}, "ema is from 0 to below 1"),
        ({"warmup": 200.0}, "warmup is shorter than the run"),
        ({"betas": (0.9, 1.0)}, "betas"),
        ({"minutes": 0.0}, "minutes"),
        ({"steps_per_epoch": 0}, "steps_per_epoch is at least 1"),
        ({"min_lr": 1.0}, "min_lr is at most lr"),
        ({"clip": -1.0}, "clip is 0 or more"),
    ],
)
def test_a_recipe_that_cannot_be(values: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        Recipe(**values)


# --- schedules ------------------------------------------------------------------------------------------------------


def torch_rates(make: Any, steps: int, lr: float) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(()))], lr)
    schedule = make(optimizer)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


S = torch.optim.lr_scheduler


@pytest.mark.parametrize(
    ("recipe", "make", "span"),
    [
        (Recipe(lr=1e-4, min_lr=1e-6), lambda o: S.CosineAnnealingLR(o, 100, 1e-6), 100),
        (Recipe(lr=1e-2, schedule="poly"), lambda o: S.LambdaLR(o, lambda t: (1 - t / 100) ** 0.9), 100),
        (Recipe(lr=0.3, schedule="constant"), lambda o: S.ConstantLR(o, 1.0), 100),
        # torch ends on the last step, so its span is one shorter
        (Recipe(lr=0.1, schedule="onecycle"), lambda o: S.OneCycleLR(o, 0.1, 101, cycle_momentum=False), 100),
        (Recipe(lr=1.0, warmup=20.0), lambda o: S.SequentialLR(
            o, [S.LambdaLR(o, lambda t: t / 20), S.CosineAnnealingLR(o, 80)], [20]), 100),
    ],
)  # fmt: skip
def test_published_schedules(recipe: Recipe, make: Any, span: int) -> None:
    wanted = torch_rates(make, 100, recipe.lr)
    if recipe.schedule == "onecycle":  # torch counts its turn as 0.3 * 101 - 1 steps
        ours = [rate(replace(recipe, warmup=0.293), t / span) for t in range(100)]
    else:
        ours = [rate(recipe, t / span) for t in range(100)]
    assert ours == pytest.approx(wanted, rel=1e-6, abs=1e-12)


def test_groups_keep_their_own_peak() -> None:
    recipe = Recipe(lr=1.0, min_lr=0.01)
    assert rate(recipe, 0.0, 0.5) == 0.5
    assert rate(recipe, 1.0, 0.5) == pytest.approx(0.01)
    assert rate(recipe, 7.0) == pytest.approx(0.01)


def net(norm: bool = True) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8) if norm else nn.Tanh(), nn.Linear(8, 2)).double()


# --- groups of weights, loaders, devices ------------------------------------------------------------------------------


def test_what_decays() -> None:
    from core.training.optimizers import groups, optimizer

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.norm, self.frozen = nn.Linear(2, 3), nn.LayerNorm(3), nn.Linear(2, 2)
            self.positions, self.other = nn.Parameter(torch.zeros(1, 4, 3)), nn.Parameter(torch.zeros(2, 2))
            self.frozen.requires_grad_(False)

        def no_weight_decay(self) -> set[str]:
            return {"other"}

    model = Net()
    still, all_ = groups(model, Recipe()), groups(model, Recipe(decay_norms=True))
    assert [p is model.layer.weight for p in still[0]["params"]] == [True]
    assert (len(still[1]["params"]), still[1]["weight_decay"]) == (5, 0.0)
    assert [len(g["params"]) for g in all_] == [6]
    built = optimizer(model, Recipe(optimizer="sgd", momentum=0.8, nesterov=True, lr=0.3))
    assert [(g["lr"], g["initial_lr"], g["momentum"], g["weight_decay"]) for g in built.param_groups] == [
        (0.3, 0.3, 0.8, 0.05), (0.3, 0.3, 0.8, 0.0)
    ]  # fmt: skip
    adam = optimizer(model, Recipe(betas=(0.8, 0.9), eps=1e-5))
    assert (type(adam), adam.defaults["betas"], adam.defaults["eps"]) == (torch.optim.AdamW, (0.8, 0.9), 1e-5)
    assert type(optimizer(model, Recipe(optimizer="adam"))) is torch.optim.Adam


def test_a_module_names_its_own_groups() -> None:
    from core.training.optimizers import optimizer

    model: Any = net(False)
    model.parameter_groups = lambda recipe: [
        {"params": model[0].parameters(), "lr": recipe.lr / 10}, {"params": model[2].parameters()}
    ]  # fmt: skip
    assert [g["initial_lr"] for g in optimizer(model, Recipe(lr=0.1)).param_groups] == pytest.approx([0.01, 0.1])
    model.parameter_groups = lambda recipe: [{"params": model[0].parameters()}]
    with pytest.raises(SettingError, match=r"2\.weight is in no group"):
        optimizer(model, Recipe())


def test_the_order_of_batches() -> None:
    from core.training.loading import Order, loader, mixed

    order = Order(10, seed=1)
    first, again = list(order), list(order)
    order.set_epoch(1)
    assert first == again
    assert sorted(first) == sorted(order) == list(range(10))
    assert first != list(order)
    cycled = list(Order(4, length=10))
    assert sorted(cycled[:4]) == sorted(cycled[4:8]) == [0, 1, 2, 3]
    assert len(cycled) == 10
    recipe = Recipe(batch=4, steps_per_epoch=6)
    assert [len(x) for x, _ in loader(toy.Points(9), recipe)] == [4] * 6
    assert [len(x) for x, _ in loader(toy.Points(9), recipe, train=False)] == [4, 4, 1]
    assert [len(x) for x, _ in loader(toy.Points(3), Recipe(batch=4))] == [3]
    with pytest.raises(SettingError, match="no items to train"):
        loader(toy.Points(0), recipe)
    assert len({mixed(a, b) for a in range(30) for b in range(30)}) == 900


def test_devices_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick("cpu") == torch.device("cpu")
    assert pick("auto").type in ("cpu", "mps")
    for word in ("cuda", "cuda:1"):
        with pytest.raises(SettingError, match=f"device {word}: .* no CUDA device; use --device cpu"):
            pick(word)
    with pytest.raises(SettingError, match="device is auto, cpu"):
        pick("gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(SettingError, match="cuda:0 to cuda:1"):
        pick("cuda:2")


def test_precision_by_name() -> None:
    cpu, x = torch.device("cpu"), torch.ones(2, 2)
    for word, wanted in (("32", torch.float32), ("bf16", torch.bfloat16), ("bf16-mixed", torch.bfloat16)):
        with autocast(cpu, word):
            assert (x @ x).dtype == wanted
    with pytest.raises(SettingError, match="needs a GPU"):
        autocast(cpu, "16")
    with pytest.raises(SettingError, match="32, bf16 or 16"):
        autocast(cpu, "64")
