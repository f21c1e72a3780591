"""What inference keeps is given again only for equal weights."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from core.layers import kept
from core.layers.kept import Kept
from core.mixers.gaussian_mask import GaussianMask
from core.mixers.window import WindowAttention


def counted(weight: torch.Tensor) -> tuple[Kept, list[int], object]:
    calls: list[int] = []
    held = Kept()

    def make() -> torch.Tensor:
        calls.append(1)
        return weight * 2

    return held, calls, lambda key=None: held(make, (weight,), key)


def test_one_call_for_equal_weights_and_key() -> None:
    weight = torch.randn(4)
    _, calls, ask = counted(weight)
    with torch.no_grad():
        first = ask()
        assert ask() is first
        assert len(calls) == 1
        ask("another")
        assert len(calls) == 2


def test_changed_weights_are_seen_however_they_were_changed() -> None:
    weight = torch.nn.Parameter(torch.randn(4))
    _, calls, ask = counted(weight)
    with torch.no_grad():
        ask()
        weight.data[2] = 7.0  # leaves no trace in the version that autograd counts
        torch.testing.assert_close(ask(), weight * 2)
        weight.copy_(torch.ones(4))
        torch.testing.assert_close(ask(), torch.full((4,), 2.0))
    assert len(calls) == 3


def test_gradients_and_large_answers_are_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.nn.Parameter(torch.randn(4))
    _, calls, ask = counted(weight)
    assert ask().requires_grad
    assert ask().requires_grad
    monkeypatch.setattr(kept, "LARGEST", 3)
    with torch.no_grad():
        ask()
        ask()
    assert len(calls) == 4


def test_copies_begin_empty() -> None:
    weight = torch.randn(4)
    held, _, ask = counted(weight)
    with torch.inference_mode():
        ask()
    assert held._held is not None
    for other in (copy.deepcopy(held), pickle.loads(pickle.dumps(held))):
        assert other._held is None


@pytest.mark.parametrize(
    ("layer", "name"), [(WindowAttention(8, 2, window=4), "bias_table"), (GaussianMask(2, (4, 4)), "alpha")]
)
def test_layers_follow_their_weights(layer: torch.nn.Module, name: str) -> None:
    def answer() -> torch.Tensor:
        return layer.bias() if isinstance(layer, WindowAttention) else layer()

    with torch.no_grad():
        before = answer().clone()
        getattr(layer, name).data.mul_(3)
        after = answer()
    torch.testing.assert_close(after, 3 * before)
    torch.testing.assert_close(answer().detach(), after)  # with gradients, made anew
    assert "_kept" not in layer.state_dict()
    twin = copy.deepcopy(layer)
    torch.testing.assert_close(twin.bias() if isinstance(twin, WindowAttention) else twin(), answer())
    with torch.no_grad():
        half = copy.deepcopy(layer).bfloat16()
        assert (half.bias() if isinstance(half, WindowAttention) else half()).dtype == torch.bfloat16
