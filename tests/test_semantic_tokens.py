"""Semantic tokens on networks that exist: pooling against loops, weights taken over, what they save."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from core import registry
from core.compression.semantic_tokens import (
    SemanticViT,
    WeightedPooling,
    plain_semantic_swin,
    semantic_swin,
    semantic_vit,
)
from core.errors import SettingError, ShapeError
from core.layers.positions import resize_bias_table
from core.measure import macs, on_meta
from core.mixers.semantic_tokens import key_mask, pooled


def vit(name: str = "vit/tiny", classes: int | None = 5, **more: Any) -> Any:
    torch.manual_seed(0)
    return registry.create(name, classes=classes, **({"dim": 16, "depth": 6, "heads": 2} | more)).eval()


def swin(classes: int | None = 5, **more: Any) -> Any:
    torch.manual_seed(0)
    settings = {"dim": 8, "depths": (1, 1, 6, 1), "heads": (1, 2, 4, 4)} | more
    return registry.create("swin/tiny", classes=classes, **settings).eval()


@pytest.mark.parametrize(("size", "side"), [((14, 14), 4), ((7, 12), 3), ((4, 8), 4)])
def test_pooling_equals_a_loop(size: tuple[int, int], side: int) -> None:
    torch.manual_seed(0)
    pool = WeightedPooling(6, side).double()
    torch.nn.init.normal_(pool.fc.weight)
    x = torch.randn(2, *size, 6, dtype=torch.float64)
    down, right = -size[0] % side, -size[1] % side
    top, left = down // 2, right // 2
    h, w = (size[0] + down) // side, (size[1] + right) // side
    with torch.no_grad():
        got = pool(x)
        assert got.shape == (2, side * side, 6)
        for b in range(2):
            near = F.conv2d(x[b].permute(2, 0, 1)[None], pool.conv.weight, pool.conv.bias, padding=1, groups=6)[0]
            logit = {}
            for i in range(size[0]):
                for j in range(size[1]):
                    logit[i + top, j + left] = pool.fc(F.gelu(pool.norm(near[:, i, j])))[0]
            for p in range(side):
                for q in range(side):
                    cells = [(i, j) for i in range(p * h, p * h + h) for j in range(q * w, q * w + w)]
                    logits = torch.stack([logit.get(c, torch.tensor(-100.0).double()) for c in cells])
                    weights = logits.softmax(0)
                    want = sum(
                        weights[n] * x[b, i - top, j - left] for n, (i, j) in enumerate(cells) if (i, j) in logit
                    )
                    torch.testing.assert_close(got[b, p * side + q], want)


def test_pooling_starts_as_means_and_refuses_small_maps() -> None:
    x = torch.randn(1, 14, 14, 6)
    with torch.no_grad():
        torch.testing.assert_close(WeightedPooling(6)(x)[0, 5], x[0, 3:7, 3:7].mean((0, 1)))
    with pytest.raises(ShapeError, match="5 x 14 cells is too small for 4 x 4"):
        WeightedPooling(6)(x[:, :5])


def block_by_hand(block: Any, x: Tensor, keys: Tensor) -> Tensor:
    """A block of the given network with other keys: its own projections of q, k, v, residuals, MLP."""
    mixer = block.token_mixer
    q = mixer.project(block.norm1(x))[0]
    _, k, v = mixer.project(block.norm1(keys))
    out = (q @ k.mT * mixer.scale).softmax(-1) @ v
    x = x + block.scale1(mixer.proj(out.transpose(1, 2).flatten(2)))
    return x + block.scale2(block.channel_mixer(block.norm2(x)))


@pytest.mark.parametrize("name", ["vit/tiny", "vit/tiny_distilled", "vit/siglip_base", "vit/dinov2_small_registers"])
def test_vit_equals_its_blocks_by_hand(name: str) -> None:
    """Dense blocks, S1 = attention(pool, X), S2 = attention(S1 + G, [S1, X]), the rest on tokens; every head."""
    model = vit(name, patch=16, image_size=96)
    backbone, blocks = model.backbone, list(model.backbone.blocks)
    sparse = semantic_vit(model, side=3, after=2)
    image = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        x, size = backbone.embed(image)
        for block in blocks[:2]:
            x = block(x)
        pool = sparse.pool(x[:, backbone.prefix :].unflatten(1, size))
        s = block_by_hand(blocks[2], pool, x)
        s = block_by_hand(blocks[3], s + sparse.centres, torch.cat([s, x], 1))
        for block in blocks[4:]:
            s = block(s)
        s = backbone.norm(s)
        torch.testing.assert_close(sparse.tokens(image), s, atol=1e-4, rtol=1e-4)
        mean = model.head.norm(s.mean(1))
        want = model.head.fc(mean)
        if name.endswith("distilled"):
            want = (want + model.head.fc_distilled(mean)) / 2
        torch.testing.assert_close(sparse(image), want, atol=1e-4, rtol=1e-4)


def test_biases_of_queries_and_values_alone() -> None:
    model = vit(classes=None, qkv_bias="qv", image_size=96)
    for block in model.blocks:
        torch.nn.init.normal_(block.token_mixer.q_bias)
        torch.nn.init.normal_(block.token_mixer.v_bias)
    sparse = SemanticViT(model, side=3, after=2)
    x = torch.randn(1, 20, 16)
    with torch.no_grad():
        want = block_by_hand(model.blocks[2], x, x)
        torch.testing.assert_close(sparse.generate(x, x), want, atol=1e-4, rtol=1e-4)


def test_every_parameter_of_a_sparse_vit_learns() -> None:
    sparse = semantic_vit(vit().train(), after=0)
    assert sparse.training
    assert sparse.generate.token_mixer.q.training
    F.cross_entropy(sparse(torch.randn(2, 3, 224, 224)), torch.tensor([0, 3])).backward()
    torch.nn.init.ones_(sparse.pool.fc.weight)  # zeros there keep what lies before it without a gradient
    sparse.zero_grad()
    F.cross_entropy(sparse(torch.randn(2, 3, 224, 224)), torch.tensor([0, 3])).backward()
    missing = [n for n, p in sparse.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert missing == []


def test_the_given_network_stays_as_it_was() -> None:
    model = vit()
    before = {n: v.clone() for n, v in model.state_dict().items()}
    sparse = semantic_vit(model)
    with torch.no_grad():
        for parameter in sparse.parameters():
            parameter.add_(1)
    assert len(model.backbone.blocks) == 6
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


@pytest.mark.parametrize(("name", "low", "high"), [("tiny", 0.57, 0.60), ("small", 0.57, 0.60), ("base", 0.57, 0.60)])
def test_saving_on_deit(name: str, low: float, high: float) -> None:
    """The paper: DeiT with 16 tokens about 60 per cent fewer FLOPs."""
    dense = on_meta(lambda: registry.create(f"vit/{name}", classes=1000))
    sparse = on_meta(lambda: semantic_vit(dense))
    assert low < 1 - macs(sparse, (1, 3, 224, 224)) / macs(dense, (1, 3, 224, 224)) < high


def test_saving_on_swin() -> None:
    """The card: 5.83 G where Swin-S has 8.7 G; ours projects no key twice."""
    sparse = on_meta(lambda: semantic_swin(registry.create("swin/small", classes=1000)))
    published = on_meta(lambda: registry.create("stvit/r_swin_small", classes=1000))
    a, b = (macs(m.backbone.stages[2], (1, 28, 28, 192)) for m in (sparse, published))
    assert a == b
    assert 5.5e9 < macs(published, (1, 3, 224, 224)) < 5.83e9


def test_swin_keeps_its_parts() -> None:
    """First blocks of rounds stay; the others' projections are those of the blocks before; layer scale is new."""
    model = swin(depths=(1, 1, 12, 1))
    sparse = semantic_swin(model, layer_scale=0.5)
    old, new = model.backbone.stages[2].blocks, sparse.backbone.stages[2].blocks
    for i, (a, b) in enumerate(zip(old, new, strict=True)):
        kept = a.state_dict() if i % 6 == 0 else {n: v for n, v in a.state_dict().items() if ".qkv." not in n}
        for name, value in kept.items():
            if i % 6 and name.endswith("bias_table"):
                continue
            torch.testing.assert_close(b.state_dict()[name], value, rtol=0, atol=0)
        if i % 6:
            joined = torch.cat([b.token_mixer.q.weight, b.token_mixer.kv.weight])
            torch.testing.assert_close(joined, a.token_mixer.qkv.weight, rtol=0, atol=0)
            assert set(b.scale1.scale.tolist()) == {0.5}
    image = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        x = model.backbone.stages[1](model.backbone.stages[0](image))
        torch.testing.assert_close(
            new[0](sparse.backbone.stages[2].merge(x)), old[0](model.backbone.stages[2].merge(x))
        )
        assert sparse(image).shape == (2, 5)
        assert not torch.allclose(sparse(image), model(image))


def test_swin_near_its_start_is_the_blocks_that_stay() -> None:
    """With layer scale at nothing the dense form adds nothing to the map but what the first blocks of rounds do."""
    model = swin(classes=None, dense=True).double()
    sparse = semantic_swin(model, dense=True, layer_scale=0.0)
    image = torch.randn(1, 3, 150, 211, dtype=torch.float64)
    with torch.no_grad():
        x = model.stages[1](model.stages[0](image))
        want = model.stages[2].blocks[0](model.stages[2].merge(x))
        torch.testing.assert_close(sparse.stages[2](x), want)
        levels = sparse(image)
    assert [tuple(level.shape[2:]) for level in levels] == [(38, 53), (19, 27), (10, 14), (5, 7)]


@pytest.mark.parametrize("make", [lambda m: semantic_swin(m, layer_scale=0.1), plain_semantic_swin])
def test_sparse_swin_learns(make: Any) -> None:
    sparse = make(swin().train())
    F.cross_entropy(sparse(torch.randn(2, 3, 224, 224)), torch.tensor([0, 3])).backward()
    missing = [n for n, p in sparse.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
    assert missing == []


@pytest.mark.parametrize("size", [(224, 224), (150, 211)])
def test_plain_swin_equals_its_blocks_by_hand(size: tuple[int, int]) -> None:
    """Blocks on the map, pooled 4x4 per window, two blocks around windows, the rest in windows of 4x4 tokens."""
    model = swin(classes=None).double()
    sparse: Any = plain_semantic_swin(model, after=2)
    image = torch.randn(2, 3, *size, dtype=torch.float64)
    old, new = model.stages[2], sparse.stages[2]
    with torch.no_grad():
        x = old.merge(model.stages[1](model.stages[0](image)))
        for block in old.blocks[:2]:
            x = block(x)
        down, right = -x.shape[1] % 7, -x.shape[2] % 7
        x = F.pad(x, (0, 0, 0, right, 0, down))
        B, H, W, C = x.shape
        s = pooled(x, 7, 4)
        for block, reach in ((old.blocks[2], 14), (old.blocks[3], 21)):
            mask, low = key_mask((H, W), (down, right), reach, 7, published=False).double(), (reach - 7) // 2
            high = reach - 7 - low
            big, made = F.pad(x, (0, 0, low, high, low, high)), s.clone()
            for i in range(H // 7):
                for j in range(W // 7):
                    tokens = s[:, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4].reshape(B, 16, C)
                    keys = big[:, 7 * i : 7 * i + reach, 7 * j : 7 * j + reach].reshape(B, -1, C)
                    keys = keys[:, mask[i * (W // 7) + j].flatten() == 0]
                    qkv = [t.qkv(block.norm1(v)) for t in [block.token_mixer] for v in (tokens, keys)]
                    q = qkv[0][..., :C].unflatten(-1, (4, -1)).transpose(1, 2)
                    k, v = (t.unflatten(-1, (4, -1)).transpose(1, 2) for t in qkv[1][..., C:].chunk(2, -1))
                    out = (q @ k.mT * (C // 4) ** -0.5).softmax(-1) @ v
                    y = tokens + block.token_mixer.proj(out.transpose(1, 2).flatten(2))
                    y = y + block.channel_mixer(block.norm2(y))
                    made[:, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4] = y.view(B, 4, 4, C)
            s = made
        for block in new.late:
            s = block(s)
        levels = sparse(image)
        torch.testing.assert_close(levels[2], s.permute(0, 3, 1, 2))
        torch.testing.assert_close(levels[3], sparse.stages[3](s).permute(0, 3, 1, 2))
    last, first = new.late[1].token_mixer, old.blocks[5].token_mixer
    assert (last.window, last.shift, first.shift) == ((4, 4), 2, 3)
    torch.testing.assert_close(last.qkv.weight, first.qkv.weight, rtol=0, atol=0)
    torch.testing.assert_close(last.bias_table.float(), resize_bias_table(first.bias_table.float(), 49))


@pytest.mark.parametrize(
    "make",
    [
        lambda: semantic_vit(vit().bfloat16()),
        lambda: semantic_swin(swin().bfloat16()),
        lambda: plain_semantic_swin(swin().bfloat16()),
    ],
)
def test_precision_follows_the_network(make: Any) -> None:
    model = make()
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    with torch.no_grad():
        assert torch.isfinite(model(torch.randn(1, 3, 224, 224).bfloat16())).all()


def test_networks_that_do_not_fit_are_refused() -> None:
    with pytest.raises(SettingError, match="not on Swin"):
        semantic_vit(swin())
    with pytest.raises(SettingError, match="5 blocks and two that make semantic tokens do not fit in 6"):
        semantic_vit(vit(), after=5)
    with pytest.raises(SettingError, match="relative position biases"):
        semantic_vit(vit(relative=True))
    with pytest.raises(SettingError, match="as wide as its input, got 8 of 16"):
        semantic_vit(vit(head_dim=4))
    with pytest.raises(SettingError, match="stage 2 has 4 blocks, which are no rounds of 6"):
        semantic_swin(swin(depths=(1, 1, 4, 1)))
    with pytest.raises(SettingError, match="no stage 2"):
        semantic_swin(vit())
    with pytest.raises(SettingError, match="do not fit in 6"):
        plain_semantic_swin(swin(), after=5)
    with pytest.raises(SettingError, match="no stage 2"):
        semantic_swin(swin(mixer="mlp"))


@pytest.mark.slow
@pytest.mark.parametrize("given", [(semantic_vit, vit), (semantic_swin, swin), (plain_semantic_swin, swin)])
def test_compiles_whole(given: Any) -> None:
    torch._dynamo.reset()
    make, network = given
    model, image = make(network()), torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(model, fullgraph=True)(image), model(image), atol=1e-3, rtol=1e-3)
