"""LMD-ViT's network: what is skipped, what is masked, what a batch and a caller's maps change."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from apps.deblurring import model
from apps.deblurring._lmd_vit import LMDViT, LMDViTConfig, Restored, Stage
from apps.deblurring._lmd_vit_block import Block
from apps.deblurring._losses import Reconstruction, pruning
from apps.deblurring._windows import kept
from core import measure
from core.errors import SettingError, ShapeError
from core.layers.positions import relative_index

SMALL: dict[str, Any] = {
    "dims": [8, 16], "depths": [3, 2, 3], "heads": [1, 2, 2], "window": 4, "nominal": 64,
}  # fmt: skip


def small(seed: int = 0, dtype: torch.dtype = torch.float64, **settings: Any) -> LMDViT:
    """A reduced network with noise on every parameter, whose predictors are undecided."""
    torch.manual_seed(seed)
    network = model.create("lmd_vit", **{**SMALL, **settings})
    with torch.no_grad():
        for p in network.parameters():
            p += 0.3 * torch.randn_like(p)
    return undecided(network.to(dtype).eval())


def undecided(network: LMDViT) -> LMDViT:
    """Each predictor keeps about half of the windows: its bias takes away the median of a random image."""
    with torch.no_grad():
        for block in (b for stage in network.stages() for b in stage.decisions):
            assert block.predictor is not None
            seen: list[Tensor] = []
            handle = block.register_forward_hook(lambda _m, given, _y, s=seen: s.append(given[0]))
            network(picture(1, 32, network.out.weight.dtype), keep=0.5)
            handle.remove()
            scores, _ = block.decide(seen[0])
            difference = (scores[:, 0] - scores[:, 1]).mean()
            block.predictor.out3.bias += torch.stack([-difference / 2, difference / 2])
    return network


def picture(batch: int = 2, side: int = 32, dtype: torch.dtype = torch.float64, seed: int = 3) -> Tensor:
    return torch.rand(batch, 3, side, side, generator=torch.Generator().manual_seed(seed)).to(dtype)


# ---- the block against a plain version, window by window


def plain(block: Block, x: Tensor, keep: Tensor) -> Tensor:
    """The card's block with loops: images, windows, heads, cells of the 3 x 3."""
    n, s = block.window, block.shift
    out = x.clone()
    for b in range(x.shape[0]):
        rolled = x[b].roll((-s, -s), (0, 1))
        ids = labels(x.shape[1], x.shape[2], n, s)
        for i in range(x.shape[1] // n):
            for j in range(x.shape[2] // n):
                if not keep[b, 0, i, j]:
                    continue
                place = (slice(i * n, i * n + n), slice(j * n, j * n + n))
                old = rolled[place].reshape(n * n, -1)
                z = block.norm1(old)
                if block.modulator is not None:
                    z = z + block.modulator
                y = old + loop_attention(block, z, ids[place].reshape(-1))
                y = y + loop_ffn(block, block.norm2(y))
                rolled[place] = y.reshape(n, n, -1)
        out[b] = rolled.roll((s, s), (0, 1))
    return out


def labels(height: int, width: int, n: int, s: int) -> Tensor:
    """Cells of the rolled map that were neighbours before have one number (Swin's nine regions)."""
    ids, count = torch.zeros(height, width), 0
    cuts = (slice(0, -n), slice(-n, -s), slice(-s, None)) if s else (slice(0, None),)
    for rows in cuts:
        for columns in cuts:
            ids[rows, columns] = count
            count += 1
    return ids


def loop_attention(block: Block, z: Tensor, ids: Tensor) -> Tensor:
    part = block.attention
    q, k, v = part.qkv(z).chunk(3, -1)
    d, bias = z.shape[1] // part.heads, part.bias_table[relative_index((block.window, block.window))]
    mask = torch.where(ids[:, None] == ids[None, :], 0.0, -100.0)
    heads = []
    for h in range(part.heads):
        cut = slice(h * d, h * d + d)
        heads.append(((q[:, cut] @ k[:, cut].T) * d**-0.5 + bias[..., h] + mask).softmax(-1) @ v[:, cut])
    return part.proj(torch.cat(heads, 1))


def loop_ffn(block: Block, x: Tensor) -> Tensor:
    n, ffn = block.window, block.ffn
    hidden = F.gelu(ffn.fc1(x)).reshape(n, n, -1)
    weight, mirror = ffn.depthwise.weight, lambda p: -p if p < 0 else 2 * n - 2 - p if p >= n else p
    out = torch.zeros_like(hidden)
    for y in range(n):
        for x_ in range(n):
            for dy in range(3):
                for dx in range(3):
                    out[y, x_] += weight[:, 0, dy, dx] * hidden[mirror(y + dy - 1), mirror(x_ + dx - 1)]
    return ffn.fc2(F.gelu(out + ffn.depthwise.bias).reshape(n * n, -1))


@pytest.mark.parametrize("grad", [False, True])  # two ways of attention
@pytest.mark.parametrize("shift", [0, 2])
def test_a_block_equals_the_plain_version(shift: int, grad: bool) -> None:
    torch.manual_seed(1)
    block = Block(8, 2, window=4, shift=shift, modulator=True).double()
    for p in block.parameters():
        torch.nn.init.normal_(p, std=0.5)
    x = torch.randn(2, 12, 16, 8, dtype=torch.float64)
    keep = (torch.rand(2, 1, 3, 4) < 0.6).double()
    keep[0, 0, -1, -1] = keep[1, 0, -1, 0] = keep[1, 0, 0, -1] = 1  # windows of every kind that the shift cuts
    with torch.no_grad():
        want = plain(block, x, keep)
    with torch.set_grad_enabled(grad):
        torch.testing.assert_close(block(x, kept(keep, 4, shift)), want)
        torch.testing.assert_close(block.dense(x, keep), want)


def test_float32_takes_the_fused_way_and_agrees() -> None:
    torch.manual_seed(1)
    block = Block(32, 1, window=8, shift=4)
    x, keep = torch.randn(3, 24, 24, 32), (torch.rand(3, 1, 3, 3) < 0.7).float()
    with torch.no_grad():
        fused = block(x, kept(keep, 8, 4))
        torch.testing.assert_close(fused, plain(block, x, keep), rtol=1e-4, atol=1e-5)


def test_groups_of_windows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    block = Block(8, 1, window=4, shift=2).double()
    x, plan = torch.randn(2, 16, 16, 8, dtype=torch.float64), kept(torch.ones(2, 1, 4, 4), 4, 2)
    with torch.no_grad():
        whole = block(x, plan)
        for step in (1, 5):
            monkeypatch.setattr("apps.deblurring._lmd_vit_block.GROUP", step * 16 * 32 * 8)
            torch.testing.assert_close(block(x, plan), whole)


# ---- what is skipped


def blocks(network: LMDViT) -> Iterator[Block]:
    for stage in network.stages():
        yield from (b for b in stage.blocks if isinstance(b, Block))


def test_pruned_windows_are_untouched_bit_for_bit() -> None:
    network = small(dtype=torch.float32)
    image = picture(dtype=torch.float32)
    seen: list[tuple[Block, Tensor, Any, Tensor]] = []
    for block in blocks(network):
        block.register_forward_hook(lambda m, given, y: seen.append((m, given[0].clone(), given[1], y)))
    with torch.no_grad():
        network(image)
    assert len(seen) == 8
    for _, x, plan, y in seen:
        assert 0 < plan.count < plan.total
        same = (x == y).all(-1).reshape(-1)
        touched = torch.zeros_like(same)
        touched[plan.cells.reshape(-1)] = True
        assert torch.equal(same, ~touched)


def test_pruned_windows_are_not_computed() -> None:
    """Cells that reach the FFN are those of kept windows and no others."""
    network, image = small(), picture()
    worked: list[int] = []
    for block in blocks(network):
        block.ffn.register_forward_hook(lambda _m, given, _y: worked.append(given[0].shape[0] * given[0].shape[1]))
    with torch.no_grad():
        restored = network(image, keep=0.25)
    count = [int(k.sum()) * 16 for k in restored.keeps]
    assert worked == [count[i] for i in (0, 1, 0, 2, 3, 4, 5, 4)]


def test_nothing_kept_leaves_every_stage_as_it_was() -> None:
    network, image = small(), picture()
    stages: list[tuple[Tensor, Tensor]] = []
    for stage in network.stages():
        stage.register_forward_hook(lambda _m, given, y: stages.append((given[0], y[0])))
    for dense in (False, True):
        stages.clear()
        with torch.no_grad():
            restored = network(image, keep=0.0, dense=dense)
        assert all(torch.equal(x, y) for x, y in stages)
        assert restored.worked.max() == 0
    assert torch.isfinite(restored.image).all()


def test_the_dense_form_gives_the_same_numbers() -> None:
    network, image = small(), picture()
    with torch.no_grad():
        sparse, dense = network(image), network(image, dense=True)
    for a, b in zip(sparse[:2], dense[:2], strict=True):
        torch.testing.assert_close(a, b)
    assert all(torch.equal(a, b) for a, b in zip(sparse.keeps, dense.keeps, strict=True))
    assert any(0 < float(k.mean()) < 1 for k in sparse.keeps)


# ---- traps


def test_images_of_a_batch_are_as_if_alone() -> None:
    network, image = small(), picture(3)
    with torch.no_grad():
        together = network(image)
        for i in range(3):
            alone = network(image[i : i + 1])
            torch.testing.assert_close(together.image[i : i + 1], alone.image)
            assert all(torch.equal(k[i : i + 1], a) for k, a in zip(together.keeps, alone.keeps, strict=True))
    assert any(not torch.equal(k[0], k[1]) for k in together.keeps)


def test_later_blocks_follow_the_first_of_their_parity() -> None:
    network = small()
    plans: list[Any] = []
    for block in network.encoder[0].blocks:
        block.register_forward_hook(lambda _m, given, _y: plans.append(given[1]))
    with torch.no_grad():
        network(picture())
    assert [len(s.decisions) for s in network.stages()] == [2, 2, 2]
    assert torch.equal(plans[0].cells, plans[2].cells)
    assert plans[0].cells.shape != plans[1].cells.shape or not torch.equal(plans[0].cells, plans[1].cells)


def test_published_network_has_16_predictors() -> None:
    network = measure.on_meta(lambda: model.create("lmd_vit"))
    assert measure.parameters(network) == 54_549_163
    assert [len(s.decisions) for s in network.stages()] == [1, 2, 2, 2, 2, 2, 2, 2, 1]
    assert network.multiple == 128
    rates = [block.drop_path.p for block in blocks(network)]
    assert rates[0] == 0
    assert rates[18:22] == pytest.approx([0.1, 0.1, 0.1, 0.1])
    assert rates[:19] == pytest.approx(rates[:20:-1])
    assert all(b.attention.qkv.in_features // b.attention.heads == 32 for b in blocks(network))


def test_decisions_change_with_zero_padding() -> None:
    """The predictor's mean goes over the whole map: why padding must be the published one."""
    network, image = small(), picture(1)
    with torch.no_grad():
        inside = network(F.pad(image, (8, 8, 8, 8))).scores[0][..., 8:-8, 8:-8]
        assert not torch.allclose(inside, network(image).scores[0])


def test_the_predictor_is_the_plain_one() -> None:
    torch.manual_seed(2)
    block = Block(8, 1, window=4, shift=2, predictor=True).double().eval()
    x = torch.randn(2, 8, 12, 8, dtype=torch.float64)
    p = block.predictor
    assert p is not None
    y = p.local2(p.norm(F.gelu(p.local1(x))))
    y = torch.cat([y[..., :4], y[..., 4:].mean((1, 2), keepdim=True).expand(-1, 8, 12, -1)], -1)
    want = p.out3(F.gelu(p.out2(F.gelu(p.out1(y)))))
    scores, keep = block.decide(x)
    torch.testing.assert_close(scores, want.permute(0, 3, 1, 2))
    rolled = want.roll((-2, -2), (1, 2))
    for i in range(2):
        for j in range(3):
            mean = rolled[:, i * 4 : i * 4 + 4, j * 4 : j * 4 + 4].mean((1, 2))
            assert torch.equal(keep[:, 0, i, j] > 0, mean.softmax(-1)[:, 0] > 0.5)


def test_maps_of_shifted_blocks_are_drawn_where_they_worked() -> None:
    network = small()
    keeps = [torch.zeros(1, 1, h, w) for h, w in network.grids(32, 32)]
    keeps[1][0, 0, 7, 3] = 1  # the last row of windows of the first shifted block: cells 30 to 33, so also row 0 and 1
    with torch.no_grad():
        drawn = network(picture(1), keep=keeps).drawn()[1]
    rows, columns = drawn[0, 0].nonzero().unbind(1)
    assert sorted(set(rows.tolist())) == [0, 1, 30, 31]
    assert sorted(set(columns.tolist())) == [14, 15, 16, 17]


def test_a_small_nominal_size_changes_window_and_shift() -> None:
    network = small(nominal=8)
    assert [(s.blocks[0].window, s.blocks[1].shift) for s in network.stages()] == [(4, 2), (4, 0), (4, 2)]
    network = small(nominal=4)
    assert [(s.blocks[0].window, s.blocks[1].shift) for s in network.stages()] == [(4, 0), (2, 0), (4, 0)]
    assert network.multiple == 4
    with torch.no_grad():
        assert network(picture(1, 12)).image.shape == (1, 3, 12, 12)
    with pytest.raises(SettingError, match="2 cells"):
        small(nominal=2)


@pytest.mark.parametrize("side", [30, 4, 0])
def test_other_sides_are_refused(side: int) -> None:
    with pytest.raises(ShapeError, match=r"multiples of 8.*pad the image"):
        small()(torch.zeros(1, 3, side, 32, dtype=torch.float64))


def test_settings_that_do_not_fit_are_refused() -> None:
    with pytest.raises(SettingError, match="takes 3 depths, got 2"):
        model.create("lmd_vit", **{**SMALL, "depths": [1, 2]})
    with pytest.raises(SettingError, match="3 heads do not divide"):
        model.create("lmd_vit", **{**SMALL, "heads": [1, 3, 2]})


# ---- maps by hand


def test_keep_takes_shares_and_maps() -> None:
    network, image = small(), picture()
    with torch.no_grad():
        half = network(image, keep=0.5)
        assert [float(k.mean()) for k in half.keeps] == [0.5] * 6
        assert half.scores == []
        again = network(image, keep=[k[:1] for k in half.keeps])
        assert torch.equal(half.image, again.image)
        own = network(image)
        torch.testing.assert_close(network(image, keep=own.keeps).image, own.image)
        assert torch.equal(network(image, keep=1.0).worked, torch.ones(2, 1, 32, 32, dtype=torch.float64))
    with pytest.raises(SettingError, match=r"0\.\.1, got 1\.5"):
        network(image, keep=1.5)
    with pytest.raises(SettingError, match="names 2 maps, the network decides 6 times"):
        network(image, keep=half.keeps[:2])
    with pytest.raises(ShapeError, match="map 2 of keep"):
        network(image, keep=[*half.keeps[:2], half.keeps[0], *half.keeps[3:]])


def test_a_stage_without_predictors_works_on_all() -> None:
    network = small(prune=[True, False, True])
    with torch.no_grad():
        restored = network(picture(), keep=0.0)
    assert len(restored.keeps) == 4
    none = small(prune=[False] * 3)
    with torch.no_grad():
        restored = none(picture())
    assert restored.keeps == [] == restored.scores
    assert torch.equal(restored.blur, torch.ones_like(restored.gate))


def test_blur_is_a_map_of_the_image() -> None:
    with torch.no_grad():
        restored = small()(picture())
    assert restored.blur.shape == (2, 1, 32, 32)
    assert 0 <= restored.blur.min() < restored.blur.max() <= 1
    assert isinstance(restored, Restored)
    assert 0.1 <= restored.gate.min() <= restored.gate.max() <= 1


# ---- training


def test_every_parameter_gets_a_gradient() -> None:
    torch.manual_seed(0)
    network = small().train()
    image = picture()
    restored = network(image)
    loss = Reconstruction()(restored.image, picture(seed=9)) + pruning(restored.scores, image[:, :1])
    loss.backward()
    for name, p in network.named_parameters():
        assert p.grad is not None, name
        assert torch.isfinite(p.grad).all(), name
        assert p.grad.abs().sum() > 0, name


def test_reconstruction_alone_reaches_the_predictors() -> None:
    torch.manual_seed(0)
    network = small().train()
    Reconstruction(shifted=False)(network(picture()).image, picture(seed=9)).backward()
    for stage in network.stages():
        for block in stage.decisions:
            assert block.predictor is not None
            assert block.predictor.out3.weight.grad is not None
            assert block.predictor.out3.weight.grad.abs().sum() > 0


def test_training_draws_and_agrees_with_evaluation() -> None:
    network, image = small(drop_path=0.0).train(), picture()
    torch.manual_seed(0)
    first = network(image)
    assert any(not torch.equal(a, b) for a, b in zip(first.keeps, network(image).keeps, strict=True))
    assert all(bool(((k == 0) | (k == 1)).all()) for k in first.keeps)
    with torch.no_grad():
        torch.testing.assert_close(network.eval()(image, keep=[k.detach() for k in first.keeps]).image, first.image)


def test_decisions_that_are_not_drawn_are_those_of_evaluation() -> None:
    network, image = small(drop_path=0.0, drawn=False, still=True), picture()
    with torch.no_grad():
        want = network(image)
    found = network.train()(image)
    torch.testing.assert_close(found.image, want.image)
    assert all(torch.equal(a.detach(), b) for a, b in zip(found.keeps, want.keeps, strict=True))
    found.image.square().mean().backward()
    for block in (b for stage in network.stages() for b in stage.decisions):
        assert block.predictor is not None
        assert block.predictor.out3.weight.grad is not None
        assert block.predictor.out3.weight.grad.abs().sum() > 0


def test_a_still_start_leaves_the_picture_as_it_is() -> None:
    network, image = model.create("lmd_vit", **SMALL, still=True).eval(), torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        restored = network(image)
    assert torch.equal(restored.image, image)
    assert restored.worked.min() == 1


def test_drop_path_drops_whole_images() -> None:
    torch.manual_seed(0)
    block = Block(8, 1, window=4, shift=2, drop_path=0.5).train()
    x = torch.randn(16, 8, 8, 8)
    y = block.dense(x, torch.ones(16, 1, 2, 2))
    moved = (x != y).reshape(16, -1).float().mean(1)
    assert set(moved.round(decimals=2).tolist()) == {0.0, 1.0}


# ---- other types, other tools


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_types_stay_finite(dtype: torch.dtype) -> None:
    network, image = small(dtype=dtype), picture(dtype=dtype)
    with torch.no_grad():
        assert torch.isfinite(network(image).image).all()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.isfinite(small(dtype=torch.float32)(picture(dtype=torch.float32)).image).all()


def test_compiles() -> None:
    """One graph for training; evaluation, whose shapes hang on values, breaks it and still agrees."""
    import torch._dynamo

    network, image = small(drop_path=0.0, depths=[2, 1, 1]), picture(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch._dynamo.reset()
        with torch.no_grad():
            torch.testing.assert_close(torch.compile(network, backend="aot_eager")(image).image, network(image).image)
        torch._dynamo.reset()
        network.train()
        torch.compile(network, fullgraph=True, backend="aot_eager")(image).image.mean().backward()
        assert network.embed.weight.grad is not None
    torch._dynamo.reset()


def test_counts_on_the_meta_device() -> None:
    config = LMDViTConfig(**{k: tuple(v) if isinstance(v, list) else v for k, v in SMALL.items()})
    network = measure.on_meta(lambda: model.build(config))
    assert measure.macs(network, (1, 3, 32, 32)) > 0
    assert isinstance(network.bottleneck, Stage)
