"""S2AFormer, of which no code was published: its mixer against a loop, the card's properties, sizes, counts."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from parity import fill_
from torch import Tensor, nn

from core import measure, registry
from core.backbones import s2aformer
from core.compression.fold import fold
from core.errors import SettingError, WeightsError
from core.layers.attend import PLAIN
from core.mixers.attention import SelfAttention
from core.mixers.strip_attention import StripAttention
from core.weights import load_published, save

COUNTS = {  # parameters and MACs at 224 and 256, 1000 classes
    "mini": (4_953_240, 425_349_724, 560_402_944),
    "tiny": (5_763_136, 648_457_112, 857_764_352),
    "xs": (6_479_326, 779_772_212, 1_031_178_752),
    "small": (10_649_928, 1_379_599_936, 1_817_168_896),
    "medium": (24_696_620, 4_086_317_416, 5_368_754_176),
}
# The paper's table, in M and G. MACs at 256 took no part in the choice of depths.
PAPER = {
    "mini": (5.02, 0.43, 0.56),
    "tiny": (5.8, 0.655, 0.855),
    "xs": (6.54, 0.786, 1.03),
    "small": (10.69, 1.38, 1.8),
    "medium": (24.87, 4.12, 5.38),
}
DEVIATIONS = {
    "mini": (-0.013, -0.011, 0.001),
    "tiny": (-0.006, -0.010, 0.003),
    "xs": (-0.009, -0.008, 0.001),
    "small": (-0.004, 0.000, 0.010),
    "medium": (-0.007, -0.008, -0.002),
}


def little(**more: Any) -> Any:
    """One block a stage in narrow layers, some of two heads."""
    settings = {
        "stem": 4, "dims": (8, 16, 16, 24), "depths": (1, 1, 1, 1), "head_dim": 8, "drop_path": 0.0,
    } | more  # fmt: skip
    return registry.create("s2aformer/mini", **settings)


def counted(name: str, size: int = 224, **more: Any) -> tuple[int, int]:
    model = measure.on_meta(lambda: registry.create(f"s2aformer/{name}", classes=1000, **more))
    return measure.parameters(model), measure.macs(model, (1, 3, size, size))


@pytest.mark.parametrize("name", COUNTS)
def test_counts(name: str) -> None:
    have = (*counted(name), counted(name, 256)[1])
    assert have == COUNTS[name]
    share = [x / (want * unit) - 1 for x, want, unit in zip(have, PAPER[name], (1e6, 1e9, 1e9), strict=True)]
    assert share == pytest.approx(DEVIATIONS[name], abs=0.0006)
    assert set(COUNTS) == set(s2aformer.VARIANTS)


@pytest.mark.parametrize("name", COUNTS)
def test_no_neighbouring_depth_comes_nearer(name: str) -> None:
    """One block more or fewer in any stage is further off in the worse of parameters and MACs."""
    model: Any = measure.on_meta(lambda: registry.create(f"s2aformer/{name}"))

    def worse(parameters: int, macs: int) -> float:
        return max(abs(parameters / 1e6 / PAPER[name][0] - 1), abs(macs / 1e9 / PAPER[name][1] - 1))

    parameters, macs, _ = COUNTS[name]
    for i, (stage, dim) in enumerate(zip(model.stages, model.channels, strict=True)):
        block = stage.blocks[0]
        one = measure.parameters(block), measure.macs(block, (1, 56 >> i, 56 >> i, dim))
        for more in (-1, 1):
            assert worse(parameters, macs) < worse(parameters + more * one[0], macs + more * one[1])


@pytest.mark.parametrize(("reduction", "qk_dim"), [(1, 1), (2, 1), (4, 3)])
def test_attention_costs_what_the_card_says(reduction: int, qk_dim: int) -> None:
    """Queries C h each, keys C h and values C C on the smaller map; logits N N' h, sums N N' C."""
    dim, heads, side = 32, 4, 16
    layer = measure.on_meta(lambda: StripAttention(dim, heads, reduction=reduction, qk_dim=qk_dim))
    n, m = side**2, (side // reduction) ** 2
    strips = heads * qk_dim
    reduce = n * dim if reduction > 1 else 0
    want = n * dim * strips + reduce + m * dim * (strips + dim) + n * m * (strips + dim) + n * dim * dim
    assert measure.macs(layer, (1, side, side, dim)) == want
    assert layer.q.weight.shape == (strips, dim)


def normed(layer: Any, x: Tensor) -> Tensor:
    """LayerNorm over the last dimension, from its definition."""
    x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-6).sqrt()
    return x * layer.weight + layer.bias


def loop(layer: StripAttention, x: Tensor) -> Tensor:
    """One square, head and query at a time."""
    B, H, W, C = x.shape
    r, h, d = layer.reduction, layer.heads, layer.qk_dim
    out, width = torch.zeros_like(x), C // h
    for b in range(B):
        cells = []
        for i, j in product(range(0, H, r), range(0, W, r)):
            if r == 1:
                cells.append(x[b, i, j])
                continue
            cell = layer.reduce.bias.clone()
            for di, dj in product(range(min(r, H - i)), range(min(r, W - j))):
                cell += layer.reduce.weight[:, 0, di, dj] * x[b, i + di, j + dj]
            cells.append(normed(layer.norm, cell))
        k, v = (torch.stack(cells) @ layer.kv.weight.T + layer.kv.bias).split([h * d, C], -1)
        q = x[b] @ layer.q.weight.T + layer.q.bias
        for n, i, j in product(range(h), range(H), range(W)):
            logits = sum(k[:, n * d + e] * q[i, j, n * d + e] for e in range(d)) / d**0.5
            out[b, i, j, n * width : (n + 1) * width] = logits.softmax(0) @ v[:, n * width : (n + 1) * width]
    return out @ layer.proj.weight.T + layer.proj.bias


@pytest.mark.parametrize(("size", "reduction"), [((4, 4), 2), ((3, 7), 2), ((1, 2), 4), ((9, 6), 4), ((3, 2), 1)])
@pytest.mark.parametrize("qk_dim", [1, 3])
@pytest.mark.parametrize("grad", [False, True])
def test_attention_equals_a_loop(size: tuple[int, int], reduction: int, qk_dim: int, grad: bool) -> None:
    layer = fill_(StripAttention(8, 2, reduction=reduction, qk_dim=qk_dim).double())
    x = torch.randn(2, *size, 8, dtype=torch.float64)
    with torch.set_grad_enabled(grad):
        torch.testing.assert_close(layer(x), loop(layer, x))


@pytest.mark.parametrize("qk_dim", [1, 6])
def test_large_maps_answer_the_same(qk_dim: int) -> None:
    """Past PLAIN logits queries and keys are as wide as values; wider ones than these stay as they are."""
    layer = fill_(StripAttention(8, 2, reduction=2, qk_dim=qk_dim).double())
    x = torch.randn(1, 48, 50, 8, dtype=torch.float64)
    cells = layer.kv(layer._reduced(x)).flatten(1, 2)
    assert 48 * 50 * cells.shape[1] > PLAIN
    k, v = cells.split([2 * qk_dim, 8], -1)
    q = layer.q(x).flatten(1, 2)
    parts = []
    for n in range(2):
        at = slice(n * qk_dim, (n + 1) * qk_dim)
        weights = (q[..., at] @ k[..., at].transpose(1, 2) / qk_dim**0.5).softmax(-1)
        parts.append(weights @ v[..., 4 * n : 4 * n + 4])
    want = layer.proj(torch.cat(parts, -1)).view_as(x)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), want)
    torch.testing.assert_close(layer(x), want)


@torch.no_grad()
def test_whole_heads_unreduced_are_plain_attention() -> None:
    plain = SelfAttention(12, 3).double()
    layer = fill_(StripAttention(12, 3, qk_dim=4).double())
    plain.qkv.weight.copy_(torch.cat([layer.q.weight, layer.kv.weight]))
    plain.qkv.bias.copy_(torch.cat([layer.q.bias, layer.kv.bias]))
    plain.proj.load_state_dict(layer.proj.state_dict())
    x = torch.randn(2, 5, 4, 12, dtype=torch.float64)
    torch.testing.assert_close(layer(x), plain(x))


def test_block_from_its_steps() -> None:
    """In the card's order: convolution, attention, local interaction, MLP, each but the first after its LayerNorm."""
    model = fill_(little().double())
    block = model.stages[1].blocks[0]
    x = torch.randn(2, 6, 7, 16, dtype=torch.float64)

    def first(y: Tensor) -> Tensor:
        return y.permute(0, 3, 1, 2)

    a = x + F.conv2d(first(x), block.position.weight, block.position.bias, padding=1, groups=16).permute(0, 2, 3, 1)
    b = a + loop(block.token_mixer, normed(block.norm1, a))
    lim = block.local
    y = F.conv2d(first(normed(block.norm2, b)), lim.conv.weight, padding=1, groups=16)
    y = F.gelu(F.batch_norm(y, lim.norm1.running_mean, lim.norm1.running_var, lim.norm1.weight, lim.norm1.bias))
    y = F.conv2d(y, lim.proj.weight[:, :, None, None])
    y = F.batch_norm(y, lim.norm2.running_mean, lim.norm2.running_var, lim.norm2.weight, lim.norm2.bias)
    c = b + y.permute(0, 2, 3, 1)
    mlp = block.channel_mixer
    want = c + mlp.fc2(F.gelu(mlp.fc1(normed(block.norm3, c))))
    torch.testing.assert_close(block(x), want)
    with torch.no_grad():
        torch.testing.assert_close(block(x), want)


@torch.no_grad()
def test_step_whose_branch_is_zero_is_the_identity() -> None:
    block = fill_(little().double()).stages[2].blocks[0]
    x = torch.randn(1, 5, 6, 16, dtype=torch.float64)
    assert (block(x) - x).abs().max() > 0.01
    for layer in (block.token_mixer.proj, block.local.norm2, block.channel_mixer.fc2):
        layer.weight.zero_()
        layer.bias.zero_()
    near = F.conv2d(x.permute(0, 3, 1, 2), block.position.weight, block.position.bias, padding=1, groups=16)
    torch.testing.assert_close(block(x), x + near.permute(0, 2, 3, 1))  # only the first step is left
    block.position.weight.zero_()
    block.position.bias.zero_()
    assert torch.equal(block(x), x)


@torch.no_grad()
def test_shift_by_the_total_stride_shifts_the_levels() -> None:
    """In front of a constant background, whose ends are far away; attention sees the same keys in another order."""
    model = fill_(little().double())
    image = torch.full((1, 3, 32, 832), 0.3, dtype=torch.float64)
    image[..., 400:432] = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    moved = model(image.roll(32, -1))
    for level, other, stride in zip(model(image), moved, model.strides, strict=True):
        lo, hi, by = 200 // stride, 600 // stride, 32 // stride
        here = level[..., lo:hi]
        torch.testing.assert_close(other[..., lo + by : hi + by], here, rtol=1e-9, atol=1e-9)
        assert here.std(-1).max() > 0.01
        assert not torch.allclose(other[..., lo:hi], here, rtol=1e-3)


def test_attention_is_global() -> None:
    """A pixel of one corner changes the opposite one, and not where no key may carry it."""
    model = fill_(little().double())
    image = torch.randn(1, 3, 256, 256, dtype=torch.float64)
    other = image.clone()
    other[..., 0, 0] += 5
    with torch.no_grad():
        assert (model(image)[0] - model(other)[0])[..., -1, -1].abs().max() > 0
        for stage in model.stages:
            for block in stage.blocks:
                block.token_mixer.proj.weight.zero_()
        assert not (model(image)[0] - model(other)[0])[..., -1, -1].any()


@pytest.mark.parametrize("size", [(64, 64), (101, 67), (33, 130), (5, 1)])
def test_any_size_rounds_up(size: tuple[int, int]) -> None:
    model = fill_(little())
    h, w = (-(-n // 4) for n in size)
    with torch.no_grad():
        for level, channels in zip(model(torch.randn(1, 3, *size)), model.channels, strict=True):
            assert level.shape == (1, channels, h, w)
            assert torch.isfinite(level).all()
            h, w = -(-h // 2), -(-w // 2)
    assert model.strides == (4, 8, 16, 32)


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
    x = image = torch.randn(1, 3, 80, 64, dtype=torch.float64)
    with torch.no_grad():
        for stage, level in zip(model.stages, model(image), strict=True):
            x = stage(x)
            torch.testing.assert_close(x.permute(0, 3, 1, 2), level)


@pytest.mark.parametrize(("dtype", "within"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_folded_network_answers_the_same(dtype: torch.dtype, within: float) -> None:
    """As the network in evaluation and as its layers one by one, which training would call."""
    torch.manual_seed(0)
    model = registry.classifier(little(in_channels=4), 5).to(dtype).train()
    images = torch.randn(6, 4, 65, 90, dtype=dtype)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None  # the mean of what was seen
                module.weight.uniform_(0.5, 1.5)
                module.bias.uniform_(-0.5, 0.5)
        model(images)
        model.eval()
        folded = fold(model)
        assert not [n for n, m in folded.named_modules() if isinstance(m, nn.BatchNorm2d)]
        want = folded(images)
        torch.testing.assert_close(model(images), want, rtol=within, atol=within)
        for module in model.modules():
            if isinstance(module, s2aformer.LocalInteraction):
                module.training = True  # of this module alone, not of the norms inside
        torch.testing.assert_close(model(images), want, rtol=within, atol=within)
        assert want.std() > 0.01


def test_training_start_and_drop_path() -> None:
    """Attention starts almost uniform, and its queries and keys still learn."""
    torch.manual_seed(0)
    model = registry.classifier(little(depths=(2, 2, 5, 2), drop_path=0.1), 5).train()
    F.cross_entropy(model(torch.randn(4, 3, 64, 77)), torch.tensor([1, 4, 0, 2])).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()] == []
    blocks = [block for stage in model.backbone.stages for block in stage.blocks]
    assert [b.drop_path.p for b in blocks] == pytest.approx([0.01 * i for i in range(11)])
    for block in blocks[2:4]:  # of 2 heads
        layer = block.token_mixer
        assert layer.q.weight.grad.abs().max() > 0
        assert layer.kv.weight.grad[:2].abs().max() > 0
        x = torch.randn(1, 8, 8, 16)
        products = layer.q(x).flatten(1, 2).transpose(1, 2)[..., None] * layer.kv(layer._reduced(x))[..., :2].flatten(
            1, 2
        ).transpose(1, 2)[..., None, :]  # fmt: skip
        weights = products.softmax(-1) * products.shape[-1]
        assert 0 < (weights - 1).abs().max() < 0.2
    wide = registry.create("s2aformer/mini")
    block = wide.stages[3].blocks[0]
    for weight in (block.token_mixer.kv.weight, block.local.proj.weight, wide.stages[3].merge.conv.weight):
        assert weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert not block.token_mixer.q.bias.any()
    assert {m.eps for m in wide.modules() if isinstance(m, nn.LayerNorm)} == {1e-6}


def test_drop_path_drops_whole_steps() -> None:
    """All but the first, which has no branch to drop: it is one convolution."""
    block = fill_(little().double()).stages[3].blocks[0].train()
    x = torch.randn(2, 3, 4, 24, dtype=torch.float64)
    near = F.conv2d(x.permute(0, 3, 1, 2), block.position.weight, block.position.bias, padding=1, groups=24)
    block.drop_path.p = 1 - 1e-12
    torch.testing.assert_close(block(x), x + near.permute(0, 2, 3, 1))


def test_settings_that_do_not_fit() -> None:
    for wrong, message in (
        ({"depths": (1, 1, 1)}, "one entry a stage, got 4, 3, 4"),
        ({"dims": (32, 64, 100, 320)}, "heads of 32 channels do not divide 100"),
        ({"qk_dim": 0}, "at least 1 were expected, got 8 and 0"),
        ({"reductions": (8, 4, 2, 0)}, "at least 1 were expected, got 0 and 1"),
    ):
        with pytest.raises(SettingError, match=message):
            registry.create("s2aformer/mini", **wrong)
    with pytest.raises(SettingError, match="8 channels do not divide into 3 heads"):
        StripAttention(8, 3)


def test_file_of_ours_and_of_others(tmp_path: Path) -> None:
    """No authors' file exists; one of ours comes back with its channels, another network's is refused."""
    torch.manual_seed(0)
    model = fill_(registry.classifier(registry.create("s2aformer/mini", in_channels=5), 7))
    save(model, tmp_path / "ours.safetensors")
    again = load_published("s2aformer/mini", tmp_path / "ours.safetensors")
    image = torch.randn(1, 5, 64, 64)
    with torch.no_grad():
        assert torch.equal(again(image), model(image))
    with pytest.raises(WeightsError):
        load_published("s2aformer/tiny", tmp_path / "ours.safetensors")
    torch.save({"conv1.weight": torch.zeros(8, 3, 7, 7)}, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match=r"other\.pth"):
        load_published("s2aformer/mini", tmp_path / "other.pth")


def test_facts_say_that_it_is_a_reading() -> None:
    assert s2aformer.FACTS.reading
    assert s2aformer.FACTS.top1.keys() == s2aformer.VARIANTS.keys()
    assert "Our reading:" in str(s2aformer.__doc__)
