"""MAFormer, of which no code was published: its mixers against loops, the card's properties, sizes, counts."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from parity import fill_
from torch import Tensor

from core import measure, registry
from core.backbones import maformer
from core.errors import SettingError, WeightsError
from core.mixers.attention import SelfAttention
from core.mixers.scale_fusion import GlobalTokens, ScaleFusion
from core.mixers.window import WindowAttention
from core.weights import load_published, save

COUNTS = {  # parameters and MACs at 224, 1000 classes
    "small": (23_747_748, 4_339_632_128),
    "base": (50_361_818, 10_284_690_432),
    "large": (106_029_328, 21_908_066_304),
}
# What the depths were chosen by: a recollection of the paper's table that the card marks as unverified, in M and G.
AIMED = {"small": (23, 4.5), "base": (53, 9.8), "large": (104, 22.6)}
DEVIATIONS = {"small": (0.033, -0.036), "base": (-0.050, 0.049), "large": (0.019, -0.031)}


def little(**more: Any) -> Any:
    """Two fused and two plain stages of a block each, in narrow layers, built for images of 64."""
    settings = {
        "dims": (16, 32, 32, 48), "depths": (1, 1, 1, 1), "head_dim": 8, "window": 3, "built_size": 64,
        "drop_path": 0.0,
    } | more  # fmt: skip
    return registry.create("maformer/small", **settings)


@pytest.mark.parametrize("name", COUNTS)
def test_counts(name: str) -> None:
    model = measure.on_meta(lambda: registry.create(f"maformer/{name}", classes=1000))
    assert (measure.parameters(model), measure.macs(model, (1, 3, 224, 224))) == COUNTS[name]
    share = [have / (want * unit) - 1 for have, want, unit in zip(COUNTS[name], AIMED[name], (1e6, 1e9), strict=True)]
    assert share == pytest.approx(DEVIATIONS[name], abs=0.0006)
    assert set(COUNTS) == set(maformer.VARIANTS)


def test_no_neighbouring_depth_comes_nearer() -> None:
    """One block more or fewer in the third stage is further off in the worse of parameters and MACs."""

    def worse(name: str, more: int) -> float:
        a, b, c, d = maformer.VARIANTS[name].depths
        model = measure.on_meta(lambda: registry.create(f"maformer/{name}", classes=1000, depths=(a, b, c + more, d)))
        have = measure.parameters(model) / 1e6, measure.macs(model, (1, 3, 224, 224)) / 1e9
        return max(abs(x / want - 1) for x, want in zip(have, AIMED[name], strict=True))

    for name in COUNTS:
        assert worse(name, 0) < min(worse(name, -1), worse(name, 1))


def test_parameters_follow_the_card_s_formula() -> None:
    """Most of a small model's are the linear maps over tokens, M x M / 2 each."""
    for dim, side in ((64, 56), (128, 28)):
        positions, tokens = side**2, side**2 // 2
        layer = measure.on_meta(lambda dim=dim, side=side: GlobalTokens(dim, (side, side), 0.5))  # type: ignore[misc]
        assert measure.parameters(layer) == positions * tokens + tokens + tokens * dim
    block: Any = measure.on_meta(lambda: registry.create("maformer/small")).stages[0].blocks[0]
    c, heads, table = 64, 2, 13 * 13
    windows = 4 * c * c + 4 * c + table * heads
    mlp, fusion, norms = 8 * c * c + 5 * c, 4 * c * c + 4 * c, 8 * c
    assert measure.parameters(block) == windows + mlp + fusion + norms + measure.parameters(block.tokens)


def test_early_stages_cost_linearly_in_the_area() -> None:
    """Twice the area adds the same again and again: the number of global tokens stays."""
    model: Any = measure.on_meta(lambda: registry.create("maformer/small"))
    first, second = (
        [measure.macs(stage, (1, *(side * n for side, n in zip(base, times, strict=True)), channels))
         for times in ((1, 1), (2, 1), (2, 2), (4, 2))]
        for stage, base, channels in ((model.stages[0], (224, 224), 3), (model.stages[1], (56, 56), 64))
    )  # fmt: skip
    for one, two, four, eight in (first, second):
        assert two - one > 0
        assert (four - two, eight - four) == (2 * (two - one), 4 * (two - one))


@pytest.mark.parametrize("ratio", [0.5, 0.2, 1.0])
def test_global_tokens_equal_a_loop(ratio: float) -> None:
    layer = fill_(GlobalTokens(3, (4, 6), ratio).double())
    x = torch.randn(2, 4, 6, 3, dtype=torch.float64)
    tokens = int(24 * ratio)
    want = torch.zeros(2, tokens, 3, dtype=torch.float64)
    for b, t in product(range(2), range(tokens)):
        want[b, t] = layer.bias[t] + layer.positions[t]
        for i, j in product(range(4), range(6)):
            want[b, t] += layer.weight[t, 6 * i + j] * x[b, i, j]
    torch.testing.assert_close(layer(x), want)


def test_other_maps_are_resized_first() -> None:
    layer = fill_(GlobalTokens(3, (4, 6), 0.5).double())
    x = torch.randn(1, 4, 6, 3, dtype=torch.float64)
    doubled = x.repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert torch.equal(layer(doubled), layer(x))  # bilinear at half the size: the means of 2 x 2 cells
    for size in ((7, 5), (1, 1), (4, 7)):
        y = torch.randn(1, *size, 3, dtype=torch.float64)
        small = F.interpolate(y.permute(0, 3, 1, 2), (4, 6), mode="bilinear").permute(0, 2, 3, 1)
        torch.testing.assert_close(layer(y), layer(small))


def loop_fusion(layer: ScaleFusion, local: Tensor, tokens: Tensor) -> Tensor:
    """One head and query at a time."""
    B, H, W, C = local.shape
    out, d = torch.zeros_like(local), C // layer.heads
    for b in range(B):
        q = local[b] @ layer.q.weight.T + layer.q.bias
        k, v = (tokens[b] @ layer.kv.weight.T + layer.kv.bias).split(C, -1)
        for h, i, j in product(range(0, C, d), range(H), range(W)):
            weights = (k[:, h : h + d] @ q[i, j, h : h + d] / d**0.5).softmax(0)
            out[b, i, j, h : h + d] = weights @ v[:, h : h + d]
    return out @ layer.proj.weight.T + layer.proj.bias


@pytest.mark.parametrize("heads", [1, 2, 4])
@pytest.mark.parametrize("grad", [False, True])
def test_fusion_equals_a_loop(heads: int, grad: bool) -> None:
    layer = fill_(ScaleFusion(8, heads).double())
    local, tokens = torch.randn(2, 3, 5, 8, dtype=torch.float64), torch.randn(2, 6, 8, dtype=torch.float64)
    with torch.set_grad_enabled(grad):
        torch.testing.assert_close(layer(local, tokens), loop_fusion(layer, local, tokens))


def test_one_global_token_says_the_same_to_all() -> None:
    layer = fill_(ScaleFusion(8, 2).double())
    out = layer(torch.randn(1, 4, 5, 8, dtype=torch.float64), torch.randn(1, 1, 8, dtype=torch.float64))
    torch.testing.assert_close(out, out[:, :1, :1].expand_as(out))


@torch.no_grad()
def test_all_tokens_unmixed_are_plain_attention() -> None:
    """With as many tokens as positions, the identity as their map and no positions, fusion is self-attention."""
    tokens, fusion = GlobalTokens(8, (4, 5), 1.0).double(), fill_(ScaleFusion(8, 2).double())
    tokens.weight.copy_(torch.eye(20))
    tokens.positions.zero_()
    plain = SelfAttention(8, 2).double()
    plain.qkv.weight.copy_(torch.cat([fusion.q.weight, fusion.kv.weight]))
    plain.qkv.bias.copy_(torch.cat([fusion.q.bias, fusion.kv.bias]))
    plain.proj.load_state_dict(fusion.proj.state_dict())
    x = torch.randn(2, 4, 5, 8, dtype=torch.float64)
    torch.testing.assert_close(fusion(x, tokens(x)), plain(x))


def test_fusion_block_from_its_parts() -> None:
    """Local: attention in windows without a shift, MLP; global: of the block's input; local queries."""
    model = fill_(little().double())
    block = model.stages[0].blocks[0]
    local = block.local
    assert isinstance(local.token_mixer, WindowAttention)
    assert (local.token_mixer.shift, local.token_mixer.window) == (0, (3, 3))

    def norm(layer: Any, y: Tensor) -> Tensor:
        y = (y - y.mean(-1, keepdim=True)) / (y.var(-1, correction=0, keepdim=True) + 1e-6).sqrt()
        return y * layer.weight + layer.bias

    x = torch.randn(2, 6, 7, 16, dtype=torch.float64)
    fine = x + local.token_mixer(norm(local.norm1, x))
    mlp = local.channel_mixer
    fine = fine + mlp.fc2(F.gelu(mlp.fc1(norm(local.norm2, fine))))
    fused = loop_fusion(block.fusion, norm(block.norm_local, fine), norm(block.norm_tokens, block.tokens(x)))
    torch.testing.assert_close(block(x), fine + fused)


@torch.no_grad()
def test_order_of_global_tokens_does_not_matter() -> None:
    block = fill_(little().double()).stages[0].blocks[0]
    x = torch.randn(1, 9, 8, 16, dtype=torch.float64)
    before, order = block(x), torch.randperm(len(block.tokens.bias))
    for parameter in (block.tokens.weight, block.tokens.bias, block.tokens.positions):
        parameter.copy_(parameter[order].clone())
    torch.testing.assert_close(block(x), before)


@pytest.mark.parametrize("size", [(64, 64), (101, 67), (33, 130), (5, 1)])
def test_any_size_rounds_up(size: tuple[int, int]) -> None:
    model = fill_(little())
    h, w = (-(-n // 4) for n in size)
    with torch.no_grad():
        for level, channels in zip(model(torch.randn(1, 3, *size)), model.channels, strict=True):
            assert level.shape == (1, channels, h, w)
            assert torch.isfinite(level).all()
            h, w = -(-h // 2), -(-w // 2)


@pytest.mark.parametrize("grad", [False, True])
def test_images_do_not_mix(grad: bool) -> None:
    model = fill_(little().double())
    images = torch.randn(3, 3, 70, 53, dtype=torch.float64)
    with torch.set_grad_enabled(grad):
        together, turned = model(images), model(images[[2, 0, 1]])
        alone = model(images[:1])
    for joint, permuted, single in zip(together, turned, alone, strict=True):
        torch.testing.assert_close(joint[[2, 0, 1]], permuted)
        torch.testing.assert_close(joint[:1], single)


def test_stages_make_the_levels() -> None:
    model = fill_(little().double())
    image = torch.randn(1, 3, 80, 64, dtype=torch.float64)
    x = image.permute(0, 2, 3, 1)
    with torch.no_grad():
        for stage, level in zip(model.stages, model(image), strict=True):
            x = stage(x)
            torch.testing.assert_close(x.permute(0, 3, 1, 2), level)


def test_training_start_and_drop_path() -> None:
    torch.manual_seed(0)
    model = registry.classifier(little(depths=(2, 2, 5, 2), drop_path=0.1), 5).train()
    F.cross_entropy(model(torch.randn(2, 3, 64, 77)), torch.tensor([1, 4])).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()] == []
    blocks = [block for stage in model.backbone.stages for block in stage.blocks]
    assert [b.drop_path.p for b in blocks] == pytest.approx([0.01 * i for i in range(11)])
    assert [b.local.drop_path.p for b in blocks[:4]] == pytest.approx([0.0, 0.01, 0.02, 0.03])
    wide = registry.create("maformer/small", depths=(1, 1, 1, 1))
    block = wide.stages[0].blocks[0]
    for weight in (block.tokens.weight, block.fusion.kv.weight, wide.stages[1].merge.conv.weight):
        assert weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert not block.fusion.q.bias.any()


def test_settings_that_do_not_fit() -> None:
    for wrong, message in (
        ({"depths": (1, 1, 1)}, "one entry a stage, got 4, 3, 4"),
        ({"dims": (64, 100, 256, 512)}, "heads of 32 channels do not divide 100"),
        ({"token_ratio": 0.0001}, "leave no global token"),
    ):
        with pytest.raises(SettingError, match=message):
            registry.create("maformer/small", **wrong)
    with pytest.raises(SettingError, match="8 channels do not divide into 3 heads"):
        ScaleFusion(8, 3)


def test_file_of_ours_and_of_others(tmp_path: Path) -> None:
    """No authors' file exists; one of ours comes back with its channels, another network's is refused."""
    torch.manual_seed(0)
    shape = {"depths": (1, 1, 1, 1), "built_size": 64}
    model = fill_(registry.classifier(registry.create("maformer/small", in_channels=5, **shape), 7))
    save(model, tmp_path / "ours.safetensors")
    again = load_published("maformer/small", tmp_path / "ours.safetensors", **shape)
    image = torch.randn(1, 5, 64, 64)
    with torch.no_grad():
        assert torch.equal(again(image), model(image))
    with pytest.raises(WeightsError):
        load_published("maformer/base", tmp_path / "ours.safetensors", **shape)
    torch.save({"conv1.weight": torch.zeros(8, 3, 7, 7)}, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match=r"other\.pth"):
        load_published("maformer/small", tmp_path / "other.pth")


def test_facts_say_that_it_is_a_reading() -> None:
    assert maformer.FACTS.reading
    assert maformer.FACTS.top1 == {"large": 85.9}  # the one figure of the abstract
