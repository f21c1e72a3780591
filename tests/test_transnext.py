"""TransNeXt beyond its vectors: aggregated attention and its position bias against loops, sizes, checkpoints."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from parity import Fixture
from torch import Tensor

from core import registry
from core.backbones import transnext
from core.errors import SettingError, WeightsError
from core.mixers.aggregated import AggregatedAttention, CosineAttention, LogBias
from core.weights import load_published

COUNTS = {  # the card's
    "micro": 12_809_304, "tiny": 28_258_960, "small": 49_741_564, "base": 89_721_496, "micro_aaaa": 13_114_008,
    "small_384": 49_741_564, "base_384": 89_721_496,
}  # fmt: skip
PARITY = Path(__file__).parent / "parity"


def little(**more: Any) -> Any:
    settings = {"dims": (12, 16, 24, 32), "depths": (1, 1, 2, 1), "heads": (1, 2, 3, 4)} | more
    return registry.create("transnext/micro", **settings)


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts(name: str) -> None:
    assert set(COUNTS) == set(transnext.VARIANTS)
    with torch.device("meta"):
        model = registry.create(f"transnext/{name}", classes=1000)
    assert sum(p.numel() for p in model.parameters()) == COUNTS[name]


def mean_coordinate(size: int, keys: int, k: int) -> float:
    """Of the cells that adaptive average pooling joins to key k."""
    cells = range(k * size // keys, -(-(k + 1) * size // keys))
    return sum(cells) / len(cells)


def loop_bias(bias: LogBias, size: tuple[int, int]) -> Tensor:
    """One query and key at a time, (heads, queries, keys)."""
    (H, W), (h, w) = size, bias.keys(size)
    out = torch.zeros(bias.heads, H * W, h * w, dtype=torch.float64)
    for i in range(H * W):
        for j in range(h * w):
            away = (i // W - mean_coordinate(H, h, j // w), i % W - mean_coordinate(W, w, j % w))
            t = [a / (bias.pretrained - 1) * 8 for a in away]
            t = [math.copysign(math.log2(abs(v) + 1) / math.log2(8), v) for v in t]
            out[:, i, j] = bias.fc2(bias.fc1(torch.tensor(t, dtype=torch.float64)).relu())
    return out


@pytest.mark.parametrize("size", [(8, 8), (7, 10), (5, 3), (2, 9)])
@pytest.mark.parametrize("pool", [1, 2, 4])
def test_bias_for_the_map_itself_equals_a_loop(size: tuple[int, int], pool: int) -> None:
    torch.manual_seed(0)
    bias = LogBias(3, built=6, pool=pool, pretrained=7, fixed=0, positions="extrapolate").double()
    with torch.no_grad():
        torch.testing.assert_close(bias(size), loop_bias(bias, size))
    torch.testing.assert_close(bias(size), loop_bias(bias, size).detach(), check_stride=False)


def test_bias_is_resized_over_keys_then_queries() -> None:
    torch.manual_seed(0)
    bias = LogBias(2, built=6, pool=2, pretrained=7, fixed=0, positions="interpolate").double()
    with torch.no_grad():
        torch.testing.assert_close(bias((6, 6)), loop_bias(bias, (6, 6)))
        square = loop_bias(bias, (6, 6)).view(2 * 36, 1, 3, 3)
        keys = F.interpolate(square, size=(4, 5), mode="bilinear").view(2, 6, 6, 20).permute(0, 3, 1, 2)
        want = F.interpolate(keys, size=(9, 11), mode="bilinear").flatten(2).transpose(1, 2)
        torch.testing.assert_close(bias((9, 11)), want)


def test_bias_in_pieces_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    bias = LogBias(2, built=6, pool=2, pretrained=7, fixed=0, positions="extrapolate")
    with torch.no_grad():
        whole = bias((9, 11))
        monkeypatch.setattr("core.mixers.aggregated._ROWS", 7)
        torch.testing.assert_close(bias((9, 11)), whole)


def loop_aggregated(layer: AggregatedAttention, x: Tensor) -> Tensor:
    """One image (H, W, C), head and query at a time, from the card."""
    H, W, C = x.shape
    heads, d, n = layer.heads, C // layer.heads, layer.window
    h, w = layer.bias.keys((H, W))
    q = F.normalize(layer.q(x).view(H, W, heads, d), dim=-1)
    k, v = layer.kv(x).view(H, W, 2, heads, d).unbind(2)
    k = F.normalize(k, dim=-1)
    means = F.adaptive_avg_pool2d(F.gelu(layer.reduce(x)).permute(2, 0, 1), (h, w)).permute(1, 2, 0)
    pk, pv = layer.kv(layer.norm(means)).view(h * w, 2, heads, d).unbind(1)
    pk = F.normalize(pk, dim=-1)
    bias = loop_bias(layer.bias, (H, W))
    out = torch.zeros(H, W, heads, d, dtype=x.dtype)
    for y in range(H):
        for z in range(W):
            offsets = [(i, j) for i in range(-(n // 2), n // 2 + 1) for j in range(-(n // 2), n // 2 + 1)]
            there = [s for s, (i, j) in enumerate(offsets) if 0 <= y + i < H and 0 <= z + j < W]
            for a in range(heads):
                scale = math.log(len(there) + h * w) * F.softplus(layer.temperature[a, 0, 0])
                asked = (q[y, z, a] + layer.query_embedding[a, 0]) * scale
                near = [asked @ k[y + offsets[s][0], z + offsets[s][1], a] + layer.local_bias[a, s] for s in there]
                logits = torch.cat([torch.stack(near), pk[:, a] @ asked + bias[a, y * W + z]])
                weights = logits.softmax(0)
                total = weights[len(there) :] @ pv[:, a]
                for m, s in enumerate(there):
                    more = q[y, z, a] @ layer.learnable_tokens[a, :, s] + layer.learnable_bias[a, 0, s]
                    total = total + (weights[m] + more) * v[y + offsets[s][0], z + offsets[s][1], a]
                out[y, z, a] = total
    return layer.proj(out.view(H, W, C))


@pytest.mark.parametrize("size", [(4, 6), (5, 3), (1, 2)])
@pytest.mark.parametrize("window", [3, 5])
@pytest.mark.parametrize("fixed", [0, 2])
def test_aggregated_attention_equals_a_loop(size: tuple[int, int], window: int, fixed: int) -> None:
    torch.manual_seed(0)
    bias = LogBias(2, built=4, pool=2, pretrained=5, fixed=fixed, positions="extrapolate")
    layer = AggregatedAttention(6, 2, bias, window=window).double()
    for p in layer.parameters():
        p.data.normal_(std=0.5)
    x = torch.randn(2, *size, 6, dtype=torch.float64)
    with torch.no_grad():
        want = torch.stack([loop_aggregated(layer, image) for image in x])
        torch.testing.assert_close(layer(x), want)
    torch.testing.assert_close(layer(x), want)


def test_cosine_attention_equals_a_loop() -> None:
    torch.manual_seed(0)
    bias = LogBias(2, built=3, pool=1, pretrained=5, fixed=0, positions="extrapolate")
    layer = CosineAttention(6, 2, bias).double()
    x = torch.randn(1, 3, 4, 6, dtype=torch.float64)
    with torch.no_grad():
        q, k, v = layer.qkv(x).view(12, 3, 2, 3).permute(1, 2, 0, 3)
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        asked = (q + layer.query_embedding) * F.softplus(layer.temperature) * math.log(12)
        y = (asked @ k.mT + loop_bias(bias, (3, 4))).softmax(-1) @ v
        torch.testing.assert_close(layer(x), layer.proj(y.transpose(0, 1).reshape(1, 3, 4, 6)))


@pytest.mark.parametrize("positions", ["interpolate", "extrapolate"])
@pytest.mark.parametrize("size", [(75, 43), (32, 200)])
def test_any_size(size: tuple[int, int], positions: str) -> None:
    with torch.no_grad():
        pyramid = little(positions=positions).eval()(torch.randn(1, 3, *size))
    for stride, level in zip((4, 8, 16, 32), pyramid, strict=True):
        assert level.shape[2:] == tuple(-(-n // stride) for n in size)


def test_a_size_without_relative_positions_is_refused() -> None:
    with pytest.raises(SettingError, match="pretrain_size"):
        little(image_size=32)
    little(image_size=32, pretrain_size=224)


def test_published_checkpoint(tmp_path: Path) -> None:
    """In the authors' names, with the buffers of tables and masks that a training script may have saved."""
    fixture = Fixture.read(PARITY / "transnext--transnext-micro.json")
    extra = {"relative_coords_table1": torch.zeros(4, 2), "block1.0.attn.padding_mask": torch.zeros(9)}
    torch.save({"model": fixture.state_dict() | {k: v for k, v in extra.items() if "block" in k}}, tmp_path / "m.pth")
    with torch.no_grad():
        fixture.compare("logits", load_published("transnext/micro", tmp_path / "m.pth")(fixture.input()), 1e-3)
    with pytest.raises(WeightsError, match="transnext/tiny"):
        load_published("transnext/tiny", tmp_path / "m.pth")


def test_arguments_and_shapes() -> None:
    dense = Fixture.read(PARITY / "transnext--transnext-micro-dense-extrap-200x264.json")
    config = transnext.from_published(dense.build | {"fixed_pool_size": 7}, dense.state)
    assert (config.positions, config.image_size, config.pretrain_size, config.pool_size) == ("extrapolate", 256, 224, 7)
    assert config.mlp_ratios == (8, 8, 4, 4)
    assert config.depths == (1, 1, 2, 1)
    assert transnext.from_published({"fn": "transnext_base"}, {}).dims == (96, 192, 384, 768)
    for dim, ratio in ((40, 8), (72, 4), (50, 3)):
        found = transnext._ratio(dim, int(2 * int(dim * ratio) / 3))
        assert int(2 * int(dim * found) / 3) == int(2 * int(dim * ratio) / 3)
