"""Steps of training against the same steps written out by hand."""

from __future__ import annotations

import copy
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.errors import SettingError
from core.training.recipe import Recipe
from core.training.schedules import rate
from core.training.sharpness import SharpnessAware, statistics_kept

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
import training_toy as toy


def net(norm: bool = True) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8) if norm else nn.Tanh(), nn.Linear(8, 2)).double()


@pytest.mark.parametrize(("adaptive", "uphill"), [(False, 2.5), (True, 3.0)])
def test_a_sharpness_step_by_hand(adaptive: bool, uphill: float) -> None:
    # L = a w^2 / 2, a = 3: g = 6; e = rho g / |g| = 0.5, adaptive rho w^2 g / |w g| = 1; then w - lr a (w + e)
    w = nn.Parameter(torch.tensor([2.0], dtype=torch.float64))
    sharp = SharpnessAware(torch.optim.SGD([w], lr=0.1), rho=0.5, adaptive=adaptive)
    (1.5 * w.square()).sum().backward()
    places = []

    def again() -> None:
        places.append(float(w.detach()))
        (1.5 * w.square()).sum().backward()

    sharp.step(again)
    assert places == pytest.approx([uphill])
    assert float(w.detach()) == pytest.approx(2.0 - 0.1 * 3 * uphill)


def test_climbing_and_back_is_exact() -> None:
    model = net()
    sharp = SharpnessAware(torch.optim.SGD(model.parameters(), lr=0.1), rho=0.7, adaptive=True)
    before = copy.deepcopy(model.state_dict())
    model(torch.randn(4, 2).double()).square().sum().backward()
    model[0].bias.grad = None
    sharp.climb()
    assert not torch.equal(model[0].weight, before["0.weight"])
    assert torch.equal(model[0].bias, before["0.bias"])
    sharp.restore()
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


def test_statistics_move_in_the_first_pass_only() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2, momentum=None), nn.InstanceNorm1d(2, track_running_stats=True))
    x = torch.randn(4, 2, 6)
    before = copy.deepcopy(model.state_dict())
    with statistics_kept(model):
        inside = model(x)
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
    assert torch.equal(inside, model(x))  # normalised by the batch all the same
    assert not torch.equal(model[0].running_mean, before["0.running_mean"])
    assert not torch.equal(model[1].running_mean, before["1.running_mean"])


PLAIN = Recipe(optimizer="sgd", lr=0.1, momentum=0.9, weight_decay=0.0, schedule="constant", epochs=2, batch=8)


class Quiet(toy.Toy):  # type: ignore[name-defined,misc]
    """Without dropout; notes its weights before every step."""

    def __init__(self) -> None:
        torch.manual_seed(4)
        super().__init__(norm=True)
        self.rest[2] = nn.Identity()
        self.batches: list[Any] = []
        self.logged = 0

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.batches.append(batch)
        return super().training_step(batch, batch_idx)


def by_hand(batches: list[Any], recipe: Recipe, keep: list[dict[str, Tensor]] | None = None) -> nn.Module:
    """Steps of SGD over groups of `accumulate` batches, written out."""
    model = Quiet().train()
    optimizer = torch.optim.SGD(model.parameters(), recipe.lr, recipe.momentum)
    rho, k = recipe.sharpness, recipe.accumulate
    for start in range(0, len(batches), k):
        group = batches[start : start + k]

        def passes() -> None:
            for x, y in group:  # noqa: B023
                (F.cross_entropy(model(x), y) / k).backward()

        optimizer.zero_grad()
        passes()
        if rho:
            size = torch.stack([p.grad.norm() for p in model.parameters()]).norm()
            old = [p.detach().clone() for p in model.parameters()]
            with torch.no_grad():
                for p in model.parameters():
                    p.add_(p.grad, alpha=float(rho / size))
            optimizer.zero_grad()
            with statistics_kept(model):
                passes()
            with torch.no_grad():
                for p, w in zip(model.parameters(), old, strict=True):
                    p.copy_(w)
        if recipe.clip:
            nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        optimizer.step()
        if keep is not None:
            keep.append({n: v.clone() for n, v in model.state_dict().items()})
    return model


@pytest.mark.parametrize(
    "recipe",
    [
        PLAIN,
        replace(PLAIN, clip=0.05),
        replace(PLAIN, accumulate=3),
        replace(PLAIN, sharpness=0.1, clip=0.05),
        replace(PLAIN, sharpness=0.1, accumulate=2),
    ],
)
def test_steps_are_those_written_out(tmp_path: Path, recipe: Recipe) -> None:
    fitted, module = toy.train(tmp_path, recipe, module=Quiet(), monitor=None)
    assert [r["loss"] for r in fitted.history] == pytest.approx([r["train/loss"] for r in fitted.history])
    seen = module.batches
    if recipe.sharpness:  # every group of batches comes twice
        k = recipe.accumulate
        groups = [seen[i : i + k] for i in range(0, len(seen), k)]
        for first, second in zip(groups[::2], groups[1::2], strict=True):
            assert all(torch.equal(a[0], b[0]) for a, b in zip(first, second, strict=True))
        seen = [batch for group in groups[::2] for batch in group]
    assert len(seen) == 12
    wanted = by_hand(seen, recipe).state_dict()
    for name, value in module.state_dict().items():
        assert torch.allclose(value.double(), wanted[name].double(), atol=1e-6), name


@pytest.mark.parametrize("decay", [0.2, 0.95])
def test_the_average_of_weights(tmp_path: Path, decay: float) -> None:
    recipe = replace(PLAIN, ema=decay)
    fitted, module = toy.train(tmp_path, recipe, module=Quiet(), monitor=None)
    kept: list[dict[str, Tensor]] = []
    by_hand(module.batches, recipe, kept)
    average = {n: v.double() for n, v in kept[0].items()}
    for count, state in enumerate(kept[1:], 1):
        memory = min(decay, (1 + count) / (10 + count))
        average = {n: memory * average[n] + (1 - memory) * v.double() for n, v in state.items()}
    for name, value in module.state_dict().items():
        if name.endswith("tracked"):
            assert int(value) == 12
        else:
            assert torch.allclose(value.double(), average[name], atol=1e-6), name
    document = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert torch.allclose(document["current_model_state"]["encoder.weight"], kept[-1]["encoder.weight"], atol=1e-6)
    assert torch.equal(document["state_dict"]["encoder.weight"], module.encoder.weight)
    data = toy.Points(32, 0.0)  # what was validated is the average
    score = float((module.eval()(data.x).argmax(1) == data.y).float().mean())
    assert fitted.history[-1]["val/score"] == pytest.approx(score)


def test_the_first_epochs_hold_the_encoder(tmp_path: Path) -> None:
    places: list[Tensor] = []

    class Watched(Quiet):
        def on_train_epoch_end(self) -> None:
            places.append(self.encoder.weight.detach().clone())

    module = Watched()
    start = module.encoder.weight.detach().clone()
    toy.train(tmp_path, replace(PLAIN, epochs=3, freeze_epochs=2), module=module)
    assert torch.equal(places[0], start)
    assert torch.equal(places[1], start)
    assert not torch.equal(places[2], start)
    Quiet.freeze_encoder, kept = None, Quiet.freeze_encoder  # type: ignore[assignment]
    try:
        with pytest.raises(SettingError, match="has no encoder to freeze"):
            toy.train(tmp_path / "b", replace(PLAIN, freeze_epochs=1), module=Quiet())
    finally:
        del Quiet.freeze_encoder
        assert Quiet.freeze_encoder is kept


def test_rates_by_epoch_or_by_step(tmp_path: Path) -> None:
    recipe = replace(PLAIN, schedule="cosine", epochs=4, min_lr=0.001)
    by_epoch, _ = toy.train(tmp_path / "a", replace(recipe, interval="epoch"), module=Quiet())
    assert [row["lr"] for row in by_epoch.history] == pytest.approx([rate(recipe, e / 4) for e in range(4)])
    by_step, _ = toy.train(tmp_path / "b", recipe, module=Quiet())
    assert [row["lr"] for row in by_step.history] == pytest.approx([rate(recipe, (6 * e + 5) / 24) for e in range(4)])


def test_mixed_precision(tmp_path: Path) -> None:
    kinds = []

    class Half(Quiet):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            kinds.append(self(batch[0]).dtype)
            return super().training_step(batch, batch_idx)

    toy.train(tmp_path / "a", PLAIN, module=Half(), precision="bf16")
    toy.train(tmp_path / "b", replace(PLAIN, sharpness=0.05, precision="bf16-mixed"), module=Half())
    assert set(kinds) == {torch.bfloat16}
    with pytest.raises(SettingError, match="needs a GPU"):
        toy.train(tmp_path / "c", PLAIN, module=Half(), precision="16")


def test_sharpness_with_a_gradient_scaler() -> None:
    from lightning.pytorch import Trainer

    from core.training.fit import _dressed, _quiet
    from core.training.passes import Remember, TwoPassMixed

    recipe = replace(PLAIN, sharpness=0.1, epochs=1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    plugin = TwoPassMixed("16-mixed", "cpu", scaler, rho=recipe.sharpness)
    module = Quiet()
    order: list[float] = []

    class Blown(Quiet):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            order.append(float(scaler.get_scale()))
            loss = super().training_step(batch, batch_idx)
            return loss * float("inf") if len(order) in (3, 7) else loss  # a first pass, then a second one

    for kind in (Quiet, Blown):
        module = kind()
        trainer = Trainer(
            accelerator="cpu", plugins=[plugin], callbacks=[Remember(plugin)], max_epochs=1, logger=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
            limit_val_batches=0,
        )  # fmt: skip
        with _quiet(), _dressed(module, recipe):
            trainer.fit(module, datamodule=toy.Data(recipe))
        if kind is Quiet:
            wanted = by_hand(module.batches[::2], recipe).state_dict()
            error = max(float((v.float() - wanted[n].float()).abs().max()) for n, v in module.state_dict().items())
            assert error < 5e-3  # float16 in the forward pass
    # passes 1 2 | 3 infinite | 4 5 | 6 7 infinite | 8 9 | 10 11: the scale falls at once and the step is left out
    assert all(bool(torch.isfinite(v).all()) for v in module.state_dict().values())
    assert (order[3] / order[2], order[6] / order[5], order[7] / order[6]) == (0.5, 1.0, 0.5)
    assert len(order) == 11


def test_compilation_reaches_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []
    monkeypatch.setattr(nn.Module, "compile", lambda self: compiled.append(type(self).__name__))
    toy.train(tmp_path, replace(PLAIN, epochs=1, compile=True), module=Quiet())
    assert compiled == ["Linear", "Sequential"]


def test_a_module_leaves_the_optimiser_to_the_recipe(tmp_path: Path) -> None:
    class Own(Quiet):
        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.1)

    with pytest.raises(SettingError, match="Own configures its own optimiser"):
        toy.train(tmp_path, PLAIN, module=Own())
    recipe = replace(PLAIN, steps_per_epoch=9)
    data = toy.Data(PLAIN)
    with pytest.raises(SettingError, match="steps_per_epoch is 9, but the loader gives 6"):
        toy.fit(Quiet(), data, recipe, tmp_path / "b", device="cpu")
