"""L2ViT beyond its vector: linear attention against a loop, padding, dense form, checkpoints in the authors' form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from parity import Fixture
from torch import Tensor

from core import registry
from core.backbones import l2vit
from core.errors import SettingError, WeightsError
from core.mixers.linear_attention import LinearAttention
from core.weights import load_published

COUNTS = {"tiny": 28_596_781, "small": 50_199_157, "base": 88_577_188, "base_384": 88_577_188}  # the card's
PARITY = Path(__file__).parent / "parity"


def little(**more: Any) -> Any:
    return registry.create(
        "l2vit/tiny", **{"dims": (16, 24, 32, 40), "depths": (2, 2, 3, 1), "heads": (2, 3, 4, 5)} | more
    )


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts(name: str) -> None:
    assert set(COUNTS) == set(l2vit.VARIANTS)
    with torch.device("meta"):
        model = registry.create(f"l2vit/{name}", classes=1000)
    assert sum(p.numel() for p in model.parameters()) == COUNTS[name]


@pytest.mark.parametrize("floor", [100.0, 0.5])
@pytest.mark.parametrize("size", [(5, 7), (1, 1)])
def test_linear_attention_equals_a_loop(floor: float, size: tuple[int, int]) -> None:
    """Query by query, with weights relu(q) . relu(k) that are never laid out in the mixer."""
    torch.manual_seed(0)
    layer = LinearAttention(12, 3, floor=floor).double()
    layer.temperature.data.normal_()
    x = torch.randn(2, *size, 12, dtype=torch.float64)
    want = torch.zeros(2, size[0] * size[1], 12, dtype=torch.float64)
    with torch.no_grad():
        rows = layer.qkv(x).view(2, -1, 3, 3, 4)
        for b in range(2):
            for head in range(3):
                q, k, v = (rows[b, :, i, head] for i in range(3))
                for i in range(len(q)):
                    weights = torch.stack([q[i].relu() @ key.relu() for key in k])
                    mixed = sum(w * value for w, value in zip(weights, v, strict=True)) * layer.temperature[head, 0, 0]
                    want[b, i, 4 * head : 4 * head + 4] = mixed / max(float(weights.sum()), floor)
        torch.testing.assert_close(layer(x), layer.proj(want).view(x.shape))


def test_the_floor_of_100_is_felt() -> None:
    """With few tokens the denominator lies below 100, so doubling the map doubles the answer (before projection)."""
    torch.manual_seed(0)
    layer = LinearAttention(8, 2).double()
    layer.proj = torch.nn.Identity()
    x = torch.randn(1, 2, 2, 8, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(layer(torch.cat([x, x], 1))[:, :2], 2 * layer(x))
        layer.floor = 1e-6
        torch.testing.assert_close(layer(torch.cat([x, x], 1))[:, :2], layer(x))


@pytest.mark.parametrize("size", [(75, 43), (9, 200)])
def test_odd_sizes_round_up(size: tuple[int, int]) -> None:
    with torch.no_grad():
        pyramid = little().eval()(torch.randn(1, 3, *size))
    for stride, level in zip((4, 8, 16, 32), pyramid, strict=True):
        assert level.shape[2:] == tuple(-(-n // stride) for n in size)


def test_windows_larger_than_the_map_change_the_answer() -> None:
    torch.manual_seed(0)
    small, large = little(window=7), little(window=12)
    large.load_state_dict(small.state_dict())
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        one, other = small.eval()(image)[-1], large.eval()(image)[-1]
    assert (one - other).abs().max() > 1e-4  # padded cells are seen, as published


def test_blocks_alternate() -> None:
    kinds = [[type(b).__name__ for b in stage.blocks] for stage in little().stages]
    assert kinds[2] == ["LocalBlock", "GlobalBlock", "LocalBlock"]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("l2vit") / "l2vit_tiny.pth"
    torch.save({"model": Fixture.read(PARITY / "l2vit--l2vit-tiny.json").state_dict()}, path)
    return path


def test_published_checkpoint(published: Path) -> None:
    fixture = Fixture.read(PARITY / "l2vit--l2vit-tiny.json")
    with torch.no_grad():
        fixture.compare("logits", load_published("l2vit/tiny", published)(fixture.input()), 1e-3)
    with pytest.raises(WeightsError, match="l2vit/small"):
        load_published("l2vit/small", published)


def test_dense_checkpoint(tmp_path: Path) -> None:
    """Dense code norms every level and has no classifier; the un-normed map goes on."""
    fixture = Fixture.read(PARITY / "l2vit--l2vit-tiny.json")
    state = {n: v for n, v in fixture.state_dict().items() if not n.startswith(("head.", "norm."))}
    for i, dim in enumerate((96, 192, 384, 768)):
        state |= {f"norm{i}.weight": torch.full((dim,), 2.0), f"norm{i}.bias": torch.ones(dim)}
    torch.save({"state_dict": state}, tmp_path / "dense.pth")
    model = load_published("l2vit/tiny", tmp_path / "dense.pth")
    assert model.config.norms == (0, 1, 2, 3)
    plain = load_published("l2vit/tiny", _without_norms(state, tmp_path))
    image = torch.randn(1, 3, 70, 52)
    with torch.no_grad():
        for level, normed in zip(plain(image), model(image), strict=True):
            want = F.layer_norm(level.permute(0, 2, 3, 1), level.shape[1:2]) * 2 + 1
            torch.testing.assert_close(normed.permute(0, 2, 3, 1), want, rtol=1e-4, atol=1e-4)


def _without_norms(state: dict[str, Tensor], folder: Path) -> Path:
    kept = {n: v for n, v in state.items() if not n.startswith("norm")}
    torch.save({"state_dict": kept}, folder / "plain.pth")
    return folder / "plain.pth"


def test_window_of_dense_forms_is_seven() -> None:
    names = Fixture.read(PARITY / "l2vit--l2vit-tiny.json").state
    dense = names | {f"norm{i}.weight": [d] for i, d in enumerate((96, 192, 384, 768))}
    assert l2vit.from_published({"window_size": 12}, names).window == 12
    assert l2vit.from_published({"window_size": 12}, dense).window == 7


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(SettingError, match="24 by 5"):
        little(heads=(2, 5, 4, 5))
    with pytest.raises(SettingError, match="3 depths"):
        little(depths=(1, 1, 1))
