"""The fused linear layer is the plain one."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from core.layers.linear import Linear, fuses, linear
from core.layers.mlp import MLP


@pytest.mark.parametrize("activation", ["none", "gelu", "gelu_tanh"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("rows", [7, 5000])  # small products take another way
def test_equals_the_definition(activation: str, bias: bool, dtype: torch.dtype, rows: int) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(2, 5, rows, 24, dtype=dtype), torch.randn(40, 24, dtype=dtype)
    offset = torch.randn(40, dtype=dtype) if bias else None
    with torch.no_grad():
        got = linear(x, weight, offset, activation)  # type: ignore[arg-type]
        strided = linear(x.transpose(1, 2), weight, offset, activation)  # type: ignore[arg-type]
    want = F.linear(x.double(), weight.double(), None if offset is None else offset.double())
    if activation != "none":
        want = F.gelu(want, approximate="tanh" if activation == "gelu_tanh" else "none")
    bound = {torch.float32: 2e-6, torch.bfloat16: 4e-2, torch.float64: 1e-12}[dtype]
    assert got.dtype == dtype
    assert (got - want).abs().max() / want.std() < bound
    assert (strided - want.transpose(1, 2)).abs().max() / want.std() < bound


def test_the_fused_way_is_taken_only_in_inference() -> None:
    x = torch.randn(3, 8)
    assert not fuses(x)
    with torch.no_grad():
        assert fuses(x) == torch.backends.mkldnn.is_available()
        assert not fuses(x.double())
        with torch.autocast("cpu", torch.bfloat16):
            assert not fuses(x)
            assert Linear(8, 4)(x).dtype == torch.bfloat16
    layer = Linear(8, 4)
    layer(x).sum().backward()
    assert layer.weight.grad is not None


def test_empty_input() -> None:
    with torch.no_grad():
        assert Linear(8, 4)(torch.randn(0, 8)).shape == (0, 4)


def test_a_hook_on_the_first_layer_still_sees_it() -> None:
    mlp, x, seen = MLP(8).eval(), torch.randn(2, 8), []
    with torch.no_grad():
        fused = mlp(x)
        mlp.fc1.register_forward_hook(lambda module, given, out: seen.append(out.clone()))
        torch.testing.assert_close(mlp(x), fused)
    torch.testing.assert_close(seen[0], F.linear(x, mlp.fc1.weight, mlp.fc1.bias))


def test_a_replaced_layer_is_used() -> None:
    mlp, x = MLP(8).eval(), torch.randn(2, 8)
    mlp.fc1 = nn.Sequential(nn.Linear(8, 32), nn.Dropout(0.0))
    with torch.no_grad():
        torch.testing.assert_close(mlp(x), mlp.fc2(F.gelu(mlp.fc1(x))))
