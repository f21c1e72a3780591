"""DualToken-ViT beyond its vector: tokens and gates against loops, sizes, what the paper says of its cost."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core import measure, registry, weights
from core.backbones import dualtoken_vit
from core.backbones.dualtoken_vit import Merging, Stem
from core.compression.fold import fold
from core.config import merge
from core.errors import SettingError, ShapeError, WeightsError
from core.mixers.dual_token import BidirectionalGate, PositionAwareAttention, Reduction, TokenMixing

COUNTS = {"t": 6_303_016, "s": 11_805_120, "s_norm": 12_272_964}  # of our reading


def little(**more: Any) -> Any:
    settings = {"dims": (8, 16, 24), "depths": (1, 2, 2), "heads": (1, 2, 3), "side": 3, "steps": (2, 1, 0)} | more
    return lively(registry.create("dualtoken_vit/t", **settings))


def lively(model: nn.Module) -> Any:
    """With numbers in place of starts that hide errors: biases of 0, norms that do nothing, shares of one half."""
    torch.manual_seed(0)
    for p in model.parameters():
        p.data += torch.randn_like(p) * 0.2
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.normal_(m.running_mean, std=0.1)
            nn.init.uniform_(m.running_var, 0.5, 2)
    return model.eval()


def counted(**more: Any) -> tuple[int, int]:
    """Parameters and MACs of s at 224 pixels."""
    model: Any = measure.on_meta(lambda: registry.create("dualtoken_vit/s", classes=1000, **more))
    return measure.parameters(model), measure.macs(model, (1, 3, 224, 224))


@pytest.mark.parametrize(("name", "published"), [("t", 0.5), ("s", 1.0), ("s_norm", 1.0)])
def test_parameters_and_published_macs(name: str, published: float) -> None:
    assert set(COUNTS) == set(dualtoken_vit.VARIANTS)
    model: Any = measure.on_meta(lambda: registry.create(f"dualtoken_vit/{name}", classes=1000))
    assert measure.parameters(model) == COUNTS[name]
    assert round(measure.macs(model, (1, 3, 224, 224)) / 1e9, 1) == published


def test_cost_of_parts_as_the_ablations_say() -> None:
    """Halving step by step: 0.03 G and 0.1 M; the tokens' MLP over channels alone: slightly more of both."""
    (parameters, macs), (flat, flat_macs), (norm, norm_macs) = counted(), counted(steps=(0, 0, 0)), counted(
        token_mlp="norm"
    )  # fmt: skip
    assert (macs - flat_macs) / 1e9 == pytest.approx(0.03, abs=0.005)
    assert (parameters - flat) / 1e6 == pytest.approx(0.1, abs=0.05)
    assert 1 < norm / parameters < 1.05
    assert 1 < norm_macs / macs < 1.05


def test_cost_is_linear_in_the_area() -> None:
    model: Any = measure.on_meta(lambda: registry.create("dualtoken_vit/t"))
    small, middle, large = (measure.macs(model, (1, 3, side, side)) for side in (224, 448, 896))
    assert (large - middle) / (middle - small) == pytest.approx(4, rel=1e-3)


def loop(layer: PositionAwareAttention, image: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """One image (H, W, C), its tokens (N, C), one head, cell and token at a time; from the card's list of choices."""
    H, W, C = image.shape
    n, d = layer.side, C // layer.heads
    small = image
    for step in layer.reduce:
        small = step(small[None])[0]
    if small.shape[:2] != (n, n):
        small = F.interpolate(small.permute(2, 0, 1)[None], size=(n, n), mode="bilinear")[0].permute(1, 2, 0)
    cells = small.reshape(n * n, C)
    q, k, v = layer.gather.qkv(layer.norm1(cells)).view(-1, 3, layer.heads, d).unbind(1)
    seen = torch.stack([_attended(q[i], k, v) for i in range(n * n)])
    gathered = cells + layer.gather.proj(seen)
    mixed = torch.stack([layer.share * tokens[i] + (1 - layer.share) * gathered[i] for i in range(n * n)])
    new = mixed + layer.mlp(layer.norm2(mixed)[None])[0]
    k, v = layer.kv(layer.norm4(new)).view(-1, 2, layer.heads, d).unbind(1)
    q = layer.q(layer.norm3(image.reshape(-1, C))).view(-1, layer.heads, d)
    return torch.stack([_attended(row, k, v) for row in q]).view(H, W, C), new


def _attended(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """One query (heads, d) over keys (N, heads, d) -> (heads * d,)."""
    heads, d = q.shape
    return torch.cat([(k[:, h] @ q[h] * d**-0.5).softmax(0) @ v[:, h] for h in range(heads)])


@pytest.mark.parametrize(("size", "steps"), [((12, 12), 2), ((5, 6), 1), ((7, 3), 1), ((2, 9), 0), ((1, 1), 2)])
@pytest.mark.parametrize("kind", ["norm", "mix"])
def test_mixer_equals_a_loop(size: tuple[int, int], steps: int, kind: Any) -> None:
    layer = lively(PositionAwareAttention(12, 3, side=3, steps=steps, kind=kind)).double()
    x, tokens = torch.randn(2, *size, 12, dtype=torch.float64), torch.randn(2, 9, 12, dtype=torch.float64)
    with torch.no_grad():
        pairs = [loop(layer, a, b) for a, b in zip(x, tokens, strict=True)]
        for got, want in zip(layer(x, tokens), zip(*pairs, strict=True), strict=True):
            torch.testing.assert_close(got, torch.stack(want))
    torch.testing.assert_close(layer(x, tokens)[0], torch.stack([told for told, _ in pairs]))


def test_mixer_refuses_other_tokens() -> None:
    with pytest.raises(ShapeError, match=r"\(2, 49, 8\), got \(2, 9, 8\)"):
        PositionAwareAttention(8, 2)(torch.zeros(2, 7, 7, 8), torch.zeros(2, 9, 8))
    with pytest.raises(SettingError, match="8 channels do not divide into 3 heads"):
        PositionAwareAttention(8, 3)


@pytest.mark.parametrize("size", [(6, 8), (5, 7), (1, 2)])
def test_reduction_is_its_parts(size: tuple[int, int]) -> None:
    layer = lively(Reduction(6))
    x = torch.randn(2, *size, 6)
    y = F.layer_norm(x, (6,), layer.norm.weight, layer.norm.bias, 1e-6).permute(0, 3, 1, 2)
    y = F.gelu(F.conv2d(y, layer.depthwise.weight, layer.depthwise.bias, padding=1, groups=6))
    y = x.permute(0, 3, 1, 2) + F.conv2d(y, layer.pointwise.weight[:, :, None, None], layer.pointwise.bias)
    y = F.conv2d(y, layer.down.weight, layer.down.bias, stride=2, padding=1, groups=6)
    torch.testing.assert_close(layer(x), y.permute(0, 2, 3, 1))
    assert y.shape[2:] == tuple(-(-n // 2) for n in size)


def test_mixing_over_tokens() -> None:
    """The plain MLP keeps tokens apart; the mixed one is for one number of tokens, and is smaller."""
    plain, mixed = lively(TokenMixing(64, 49, "norm")), lively(TokenMixing(64, 49, "mix"))
    x = torch.randn(1, 49, 64)
    other = x.clone()
    other[:, 7] += 1
    with torch.no_grad():
        changed = [(layer(x) - layer(other)).abs().amax(2)[0] > 1e-6 for layer in (plain, mixed)]
        assert changed[0].nonzero().flatten().tolist() == [7]
        assert changed[1].sum() > 40
        assert plain(x[:, :9]).shape == (1, 9, 64)
        with pytest.raises(RuntimeError):
            mixed(x[:, :9])
    assert measure.parameters(mixed) < measure.parameters(plain)


def test_gates_equal_a_loop() -> None:
    layer = lively(BidirectionalGate(8))
    x = torch.randn(2, 3, 4, 8)
    with torch.no_grad():
        for image, got in zip(x, layer(x), strict=True):
            n = F.layer_norm(image, (8,), layer.norm.weight, layer.norm.bias)
            g = F.gelu(layer.whole(n.view(-1, 8).mean(0)))
            channels = layer.channels(g).sigmoid()
            for i in range(3):
                for j in range(4):
                    place = layer.positions(torch.cat([F.gelu(layer.local(n[i, j])), g])).sigmoid()
                    torch.testing.assert_close(got[i, j], image[i, j] * (channels * place))


def test_zeros_of_an_odd_border_are_among_the_largest() -> None:
    layer = lively(Merging(4, 6))
    x = -torch.rand(1, 3, 5, 4) - 1
    largest = torch.zeros(1, 2, 3, 4)
    largest[:, :1, :2] = F.max_pool2d(x[:, :2, :4].permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)
    padded = F.pad(x, (0, 0, 0, 1, 0, 1))
    cells = torch.cat([padded[:, i::2, j::2] for i, j in ((0, 0), (1, 0), (0, 1), (1, 1))], -1)
    want = F.linear(F.layer_norm(cells, (16,), layer.norm.weight, layer.norm.bias), layer.reduction.weight)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), want + F.linear(largest, layer.shortcut.weight))


def test_tokens_pass_through_all_stages() -> None:
    """What the first block hands on reaches the last level, and so does the table that they start from."""
    model = little()
    image = torch.randn(1, 3, 96, 96)
    with torch.no_grad():
        want = model(image)
        kept = model.global_tokens.clone()
        model.global_tokens.add_(torch.randn(8))  # not a constant, which norms would take away
        assert all((a - b).abs().max() > 1e-5 for a, b in zip(model(image), want, strict=True))
        model.global_tokens.copy_(kept)
        model.stages[2].merge.token_proj.weight.zero_()
        changed = [float((a - b).abs().max()) for a, b in zip(model(image), want, strict=True)]
    assert changed[:2] == [0, 0]
    assert changed[2] > 1e-5


@pytest.mark.parametrize("size", [(75, 43), (9, 200), (224, 160)])
def test_any_size(size: tuple[int, int]) -> None:
    model = little()
    with torch.no_grad():
        a, b = torch.randn(2, 1, 3, *size)
        both = model(torch.cat([a, b]))
        for stride, level, alone in zip((8, 16, 32), both, model(b), strict=True):
            assert level.shape[2:] == tuple(-(-n // stride) for n in size)
            torch.testing.assert_close(level[1:], alone, rtol=1e-4, atol=1e-4)


def test_map_of_the_tokens_size_is_not_interpolated(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the published size, as the ablation asks for; elsewhere it is."""
    calls: list[Any] = []
    resize = F.interpolate
    monkeypatch.setattr(F, "interpolate", lambda *a, **k: calls.append(k["size"]) or resize(*a, **k))
    model = registry.create("dualtoken_vit/t", depths=(1, 1, 1)).eval()
    with torch.no_grad():
        model(torch.randn(1, 3, 224, 224))
        assert calls == []
        model(torch.randn(1, 3, 256, 224))
    assert calls == [(7, 7)] * 3


def test_folded_network_answers_the_same() -> None:
    model = registry.classifier(little(), 5).double().eval()
    image = torch.randn(2, 3, 50, 71, dtype=torch.float64)
    with torch.no_grad():
        folded = fold(model)
        torch.testing.assert_close(folded(image), model(image))
    assert not [n for n, m in folded.named_modules() if isinstance(m, nn.BatchNorm2d)]


def test_own_weights_tell_their_settings(tmp_path: Path) -> None:
    model = lively(registry.create("dualtoken_vit/s", classes=7, depths=(1, 2, 1), steps=(2, 1, 1), in_channels=4))
    weights.save(model, tmp_path / "own.safetensors")
    shapes = {n: tuple(v.shape) for n, v in model.state_dict().items()}
    assert dualtoken_vit.from_published({}, shapes, dualtoken_vit.S) == model.backbone.config
    assert dualtoken_vit.from_published({"token_mlp": "norm"}, {}) == merge(dualtoken_vit.S, {"token_mlp": "norm"})
    again = weights.load_published("dualtoken_vit/s", tmp_path / "own.safetensors", depths=(1, 2, 1))
    image = torch.randn(1, 4, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(again(image), model(image))
    with pytest.raises(WeightsError, match="dualtoken_vit/t"):
        weights.load_published("dualtoken_vit/t", tmp_path / "own.safetensors")


def test_facts_say_that_this_is_a_reading() -> None:
    assert dualtoken_vit.FACTS.reading
    assert dualtoken_vit.__doc__ is not None
    assert "Our reading:" in dualtoken_vit.__doc__
    assert dualtoken_vit.VARIANTS["s_norm"] == dataclasses.replace(dualtoken_vit.S, token_mlp="norm")


def test_start_and_rates() -> None:
    model = registry.create("dualtoken_vit/s", drop_path=0.13)
    rates = [b.drop_path.p for stage in model.stages for b in stage.blocks]
    assert rates == pytest.approx([0.01 * i for i in range(14)])
    assert model.stages[1].blocks[0].token_mixer.share.item() == 0.5
    for m in model.modules():
        if isinstance(m, nn.LayerNorm):
            assert m.eps in (1e-5, 1e-6)
    assert {m.norm.eps for m in model.modules() if isinstance(m, BidirectionalGate | Stem | Merging)} == {1e-5}
    assert {b.norm.eps for stage in model.stages for b in stage.blocks} == {1e-6}


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(SettingError, match="one entry a stage, got 3, 2, 3, 3, 3"):
        little(depths=(1, 1))
    with pytest.raises(SettingError, match="5 heads"):
        little(heads=(1, 5, 3))
