"""BiFormer beyond its vectors: both mixers against loops, ties, sizes, forms, checkpoints in the authors' form."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from parity import Fixture, fill_
from torch import Tensor

from core import registry
from core.backbones import biformer
from core.errors import SettingError, ShapeError
from core.mixers.routing import BiLevelRoutingAttention, PlainAttention
from core.weights import KeyMap, choose, convert, load_published

COUNTS = {  # the card's measured ones, 1000 classes
    "tiny": 13_142_760, "small": 25_536_232, "base": 56_804_968, "stl": 28_372_552, "stl_nchw": 28_372_552,
}  # fmt: skip
PARITY = Path(__file__).parent / "parity"


def little(**more: Any) -> Any:
    """One or two blocks a stage, heads of 8 channels, 3 x 3 regions."""
    settings = {
        "dims": (16, 24, 32, 40), "depths": (1, 1, 2, 1), "regions": 3, "topk": (1, 2, 4, 0), "head_dim": 8
    } | more  # fmt: skip
    return registry.create("biformer/tiny", **settings)


PATCHES = {"stem": "patches", "positions": False, "mlp_ratio": 4.0}
NCHW = PATCHES | {"cut": "size", "plain_lepe": "value"}


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts(name: str) -> None:
    assert set(COUNTS) == set(biformer.VARIANTS)
    with torch.device("meta"):
        model = registry.create(f"biformer/{name}", classes=1000)
    assert sum(p.numel() for p in model.parameters()) == COUNTS[name]


def loop_routing(layer: BiLevelRoutingAttention, x: Tensor) -> Tensor:
    """One image, region, head and query at a time, from the card; among equals the earlier region."""
    B, H, W, C = x.shape
    S, m = layer.regions, layer.heads
    if layer.cut == "count":
        x = F.pad(x, (0, 0, 0, -W % S, 0, -H % S))
        h, w = x.shape[1] // S, x.shape[2] // S
    else:
        h, w = max(1, H // S), max(1, W // S)
    q, k, v = layer.qkv(x).split([layer.qk_dim, layer.qk_dim, C], -1)
    near = F.conv2d(v.permute(0, 3, 1, 2), layer.lepe.weight, layer.lepe.bias, padding=2, groups=C).permute(0, 2, 3, 1)
    rows, columns = -(-x.shape[1] // h), -(-x.shape[2] // w)
    regions = [
        [(i, j) for i in range(r * h, r * h + h) for j in range(c * w, c * w + w)]
        for r in range(rows) for c in range(columns)
    ]  # fmt: skip
    true = [[(i, j) for i, j in cells if i < x.shape[1] and j < x.shape[2]] for cells in regions]
    out = torch.zeros(B, rows * h, columns * w, C, dtype=x.dtype)

    def at(t: Tensor, b: int, i: int, j: int) -> Tensor:
        return t[b, i, j] if i < t.shape[1] and j < t.shape[2] else torch.zeros_like(t[0, 0, 0])

    for b in range(B):
        means = [[torch.stack([t[b, i, j] for i, j in cells]).mean(0) for cells in true] for t in (q, k)]
        for r, cells in enumerate(regions):
            scores = [(means[0][r] @ other).item() for other in means[1]]
            best = sorted(range(len(scores)), key=lambda n: (-scores[n], n))[: layer.topk]
            seen = [cell for n in best for cell in regions[n]]
            keys, values = (torch.stack([at(t, b, *cell) for cell in seen]).unflatten(-1, (m, -1)) for t in (k, v))
            for i, j in cells:
                query = at(q, b, i, j).unflatten(-1, (m, -1))
                for n in range(m):
                    weights = (keys[:, n] @ query[n] * layer.scale).softmax(0)
                    d = C // m
                    out[b, i, j, n * d : n * d + d] = weights @ values[:, n]
    return layer.proj(out[:, :H, :W] + near[:, :H, :W])


# Whole regions; a last row, column or both that S does not divide; fewer cells than regions; many more regions than S.
@pytest.mark.parametrize("size", [(6, 3), (7, 6), (5, 8), (2, 4), (1, 1)])
@pytest.mark.parametrize("topk", [1, 4, 9, 30])  # 9 are all there are, 30 are more
@pytest.mark.parametrize("cut", ["count", "size"])
def test_routing_equals_a_loop(size: tuple[int, int], topk: int, cut: Any) -> None:
    torch.manual_seed(0)
    layer = fill_(BiLevelRoutingAttention(8, 2, regions=3, topk=topk, cut=cut).double())
    x = torch.randn(2, *size, 8, dtype=torch.float64)
    with torch.no_grad():
        want = loop_routing(layer, x)
        torch.testing.assert_close(layer(x), want)
    torch.testing.assert_close(layer(x), want)  # by another kernel


@pytest.mark.parametrize("cut", ["count", "size"])
def test_queries_of_another_width(cut: Any) -> None:
    layer = fill_(BiLevelRoutingAttention(8, 2, regions=2, topk=2, cut=cut, qk_dim=4).double())
    assert layer.scale == 4**-0.5
    x = torch.randn(2, 5, 6, 8, dtype=torch.float64)
    torch.testing.assert_close(layer(x), loop_routing(layer, x))


def test_logits_are_scaled_by_the_full_width() -> None:
    assert BiLevelRoutingAttention(64, 2).scale == 64**-0.5


@pytest.mark.parametrize("topk", [1, 3, 8])
@pytest.mark.parametrize("cut", ["count", "size"])
def test_ties_go_to_the_earlier_regions(topk: int, cut: Any) -> None:
    """Keys that are all the same tie exactly, while the values behind them differ."""
    layer = fill_(BiLevelRoutingAttention(8, 2, regions=3, topk=topk, cut=cut).double())
    with torch.no_grad():
        layer.qkv.weight[8:16] = 0
        layer.qkv.bias[8:16] = torch.tensor([0.0, 1, 0, 0, 0, 0, 0, 0])  # one product each: no rounding breaks the tie
    x = torch.randn(2, 6, 9, 8, dtype=torch.float64)
    want = loop_routing(layer, x)
    torch.testing.assert_close(layer(x), want)
    first = x.clone()
    first[:, 4:, 6:] = 0  # the last region is seen by none, not even itself
    changed = (layer(first) - want).abs().amax((0, 3)) > 1e-9
    assert not changed[:2].any()  # its neighbours by LePE, rows 2 and 3, do see it


def test_regions_of_padding_tie_and_change_nothing() -> None:
    """Of a 1 x 1 map eight regions are padding alone; whichever is taken holds the same biases."""
    layer = fill_(BiLevelRoutingAttention(8, 2, regions=3, topk=5).double())
    x = torch.randn(2, 1, 1, 8, dtype=torch.float64)
    torch.testing.assert_close(layer(x), loop_routing(layer, x))


def test_no_gradient_goes_through_the_choice() -> None:
    torch.manual_seed(0)
    layer = fill_(BiLevelRoutingAttention(8, 2, regions=3, topk=2).double())
    x = torch.randn(2, 5, 6, 8, dtype=torch.float64, requires_grad=True)
    given = (x, layer.qkv.weight, layer.lepe.weight)
    ours = torch.autograd.grad(layer(x).square().sum(), given)
    for a, b in zip(ours, torch.autograd.grad(loop_routing(layer, x).square().sum(), given), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("lepe_of", ["input", "value", "none"])
@pytest.mark.parametrize("grad", [False, True])
def test_plain_attention_equals_a_loop(lepe_of: Any, grad: bool) -> None:
    layer = fill_(PlainAttention(16, lepe_of=lepe_of).double())
    x = torch.randn(2, 3, 4, 16, dtype=torch.float64)
    assert layer.qkv.bias is None
    q, k, v = layer.qkv(x).split(16, -1)
    want = torch.zeros_like(x)
    for b in range(2):
        for n in range(0, 16, 2):  # eight heads of two channels
            keys, values = (t[b, ..., n : n + 2].reshape(-1, 2) for t in (k, v))
            for i in range(3):
                for j in range(4):
                    want[b, i, j, n : n + 2] = (keys @ q[b, i, j, n : n + 2] * 2**-0.5).softmax(0) @ values
    if lepe_of != "none":
        near = (x if lepe_of == "input" else v).permute(0, 3, 1, 2)
        near = F.conv2d(near, layer.lepe.weight, layer.lepe.bias, padding=2, groups=16)
        want = want + near.permute(0, 2, 3, 1)
    with torch.set_grad_enabled(grad):
        torch.testing.assert_close(layer(x), layer.proj(want))


def test_block_adds_to_the_map_with_its_positions() -> None:
    block = fill_(little().double()).stages[1].blocks[0]
    x = torch.randn(2, 5, 4, 24, dtype=torch.float64)
    conv, mlp = block.positions, block.channel_mixer
    y = x + F.conv2d(x.permute(0, 3, 1, 2), conv.weight, conv.bias, padding=1, groups=24).permute(0, 2, 3, 1)
    y = y + block.token_mixer(F.layer_norm(y, (24,), block.norm1.weight, block.norm1.bias, 1e-6))
    y = y + mlp.fc2(F.gelu(mlp.fc1(F.layer_norm(y, (24,), block.norm2.weight, block.norm2.bias, 1e-6))))
    torch.testing.assert_close(block(x), y)


@pytest.mark.parametrize("make", [biformer.ConvNorm, biformer.PatchMerging])
@pytest.mark.parametrize("size", [(4, 6), (5, 3)])
@pytest.mark.parametrize("training", [False, True])
def test_merging_is_convolution_and_norm(make: Any, size: tuple[int, int], training: bool) -> None:
    layer = fill_(make(6, 10).double()).train(training)
    x = torch.randn(2, *size, 6, dtype=torch.float64)
    conv, norm = layer.conv, layer.norm

    def normed(y: Tensor) -> Tensor:
        statistics = norm.running_mean.clone(), norm.running_var.clone()
        return F.batch_norm(y, *statistics, norm.weight, norm.bias, training, eps=1e-5)

    image = x.permute(0, 3, 1, 2)
    if make is biformer.ConvNorm:
        want = normed(F.conv2d(image, conv.weight, conv.bias, stride=2, padding=1))
    else:
        want = F.conv2d(normed(image), conv.weight, conv.bias, stride=2)
    torch.testing.assert_close(layer(x), want.permute(0, 2, 3, 1))


@pytest.mark.parametrize("more", [{}, PATCHES, NCHW])
@pytest.mark.parametrize("grad", [False, True])
def test_images_do_not_mix(more: dict[str, Any], grad: bool) -> None:
    torch.manual_seed(0)
    model = fill_(little(**more).double())
    images = torch.randn(2, 3, 70, 53, dtype=torch.float64)
    with torch.set_grad_enabled(grad):
        together = model(images)
        for i, image in enumerate(images):
            for joint, single in zip(together, model(image[None]), strict=True):
                torch.testing.assert_close(joint[i], single[0])


@pytest.mark.parametrize("size", [(101, 67), (33, 98), (3, 5)])
def test_any_size_rounds_up(size: tuple[int, int]) -> None:
    with torch.no_grad():
        pyramid = fill_(little())(torch.randn(1, 3, *size))
    for level, stride in zip(pyramid, (4, 8, 16, 32), strict=True):
        assert tuple(level.shape[2:]) == tuple(-(-n // stride) for n in size)
        assert torch.isfinite(level).all()


@pytest.mark.parametrize("more", [PATCHES, NCHW])
@pytest.mark.parametrize("size", [(101, 67), (32, 99)])
def test_any_size_rounds_down_with_patches(more: dict[str, Any], size: tuple[int, int]) -> None:
    model = fill_(little(**more).double())
    image = torch.randn(1, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        pyramid, whole = model(image), model(image[..., : size[0] // 32 * 32, : size[1] // 32 * 32])
    for level, stride in zip(pyramid, (4, 8, 16, 32), strict=True):
        assert tuple(level.shape[2:]) == tuple(n // stride for n in size)
    assert pyramid[3].shape == whole[3].shape
    with pytest.raises(ShapeError, match="an image of 31 x 40 pixels, sides start at 32"):
        model(torch.randn(1, 3, 31, 40, dtype=torch.float64))


def test_both_operators_are_one_where_regions_divide() -> None:
    count = fill_(BiLevelRoutingAttention(8, 2, regions=3, topk=2).double())
    size = fill_(BiLevelRoutingAttention(8, 2, regions=3, topk=2, cut="size").double())
    x = torch.randn(2, 6, 9, 8, dtype=torch.float64)
    torch.testing.assert_close(count(x), size(x))
    assert not torch.allclose(count(x[:, :5]), size(x[:, :5]))


def test_dense_form_norms_what_it_gives_out_only() -> None:
    plain, dense = fill_(little().double()), fill_(little(norms=(0, 1, 2, 3)).double())
    dense.load_state_dict(plain.state_dict(), strict=False)
    image = torch.randn(1, 3, 50, 41, dtype=torch.float64)
    with torch.no_grad():
        for raw, level, norm in zip(plain(image), dense(image), dense.norms, strict=True):
            want = F.layer_norm(raw.permute(0, 2, 3, 1), norm.weight.shape, norm.weight, norm.bias, 1e-6)
            torch.testing.assert_close(level, want.permute(0, 3, 1, 2))


def test_head_norms_the_map_before_pooling() -> None:
    model = fill_(registry.classifier(little(), 5).double())
    image, norm = torch.randn(2, 3, 70, 40, dtype=torch.float64), model.head.norm
    last = model.backbone(image)[-1]
    want = F.batch_norm(last, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=1e-5).mean((2, 3))
    torch.testing.assert_close(model(image), model.head.fc(want))


@pytest.mark.parametrize("more", [{}, {"layer_scale": 1e-4}, NCHW])
def test_one_training_step(more: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = registry.classifier(little(drop_path=0.1, **more), 5).train()
    F.cross_entropy(model(torch.randn(2, 3, 64, 65)), torch.tensor([1, 4])).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()] == []


def test_initialisation_and_drop_path() -> None:
    torch.manual_seed(0)
    model = registry.create("biformer/tiny", drop_path=0.26)
    assert [b.drop_path.p for s in model.stages for b in s.blocks] == pytest.approx([0.02 * i for i in range(14)])
    assert [b.token_mixer.heads for b in (s.blocks[0] for s in model.stages)] == [2, 4, 8, 8]
    mixer = model.stages[2].blocks[0].token_mixer
    assert mixer.qkv.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert not mixer.qkv.bias.any()


def test_settings_that_do_not_fit() -> None:
    with pytest.raises(SettingError, match="4 dims, 3 depths and 4 topk"):
        registry.create("biformer/tiny", depths=(1, 1, 1))
    with pytest.raises(SettingError, match="4 dims and 1 qk_dims"):
        registry.create("biformer/tiny", qk_dims=(64,))
    with pytest.raises(SettingError, match="5 heads do not divide 64"):
        BiLevelRoutingAttention(64, 5)
    with pytest.raises(SettingError, match="got 0 and 4"):
        BiLevelRoutingAttention(64, 2, regions=0)
    with pytest.raises(SettingError, match="kv_downsample_mode='ada_avgpool'"):
        biformer.from_published({"kv_downsample_mode": "ada_avgpool"}, {})
    with pytest.raises(SettingError, match="top-k 0"):
        biformer.from_published({"topks": [1, 0, 4, -2]}, {})


def test_published_checkpoint(tmp_path: Path) -> None:
    """A file as the trainer saves it."""
    fixture = Fixture.read(PARITY / "biformer--biformer-tiny.json")
    torch.save({"epoch": 299, "model": fixture.state_dict()}, tmp_path / "biformer_t.pth")
    model = load_published("biformer/tiny", tmp_path / "biformer_t.pth")
    assert model.backbone.config == biformer.VARIANTS["tiny"]
    with torch.no_grad():
        fixture.compare("logits", model(fixture.input()), 1e-3)


def test_nchw_file_changes_the_operator(tmp_path: Path) -> None:
    fixture = Fixture.read(PARITY / "biformer--biformer-stl-nchw.json")
    torch.save({"model": fixture.state_dict()}, tmp_path / "stl.pth")
    assert load_published("biformer/stl", tmp_path / "stl.pth").backbone.config == biformer.VARIANTS["stl_nchw"]


def test_dense_file_gives_the_backbone(tmp_path: Path) -> None:
    """Head and last norm are gone, a norm a level is there, regions are the detector's."""
    state = Fixture.read(PARITY / "biformer--biformer-tiny.json").state_dict()
    state = {f"backbone.{n}": v for n, v in state.items() if not n.startswith(("norm.", "head."))}
    for i, dim in enumerate((64, 128, 256, 512)):
        state |= {f"backbone.extra_norms.{i}.{n}": torch.rand(dim) for n in ("weight", "bias")}
    torch.save({"state_dict": state}, tmp_path / "dense.pth")
    model = load_published("biformer/tiny", tmp_path / "dense.pth", prefix="backbone.", regions=16)
    assert model.config.norms == (0, 1, 2, 3)
    assert torch.equal(model.norms[2].bias, state["backbone.extra_norms.2.bias"])
    assert model.stages[0].blocks[0].token_mixer.regions == 16


def test_legacy_stl_names() -> None:
    """Swin-T's layout with the first operator: no vector has it, its names follow from the two that there are."""
    ours = registry.create("biformer/stl", classes=4).state_dict()
    theirs = {published_name(n, inner="blocks.", second="2"): v for n, v in ours.items()}
    shapes = {n: tuple(v.shape) for n, v in theirs.items()}
    config = biformer.from_published({"fn": "biformer_stl"}, shapes)
    assert config == biformer.VARIANTS["stl"]
    model = registry.classifier(biformer.build(config), 4)
    model.load_state_dict(convert(theirs, choose(biformer.PUBLISHED, shapes), model))


def published_name(name: str, *, inner: str, second: str) -> str:
    """Our name as the authors write it, Swin-T's layout."""
    merges = [
        *((f"backbone.stages.{i}.merge.{part}.", f"downsample_layers.{i}.{k}.") for i in (1, 2, 3)
          for k, part in enumerate(("norm", "conv"))),
        ("backbone.stages.0.merge.conv.", "downsample_layers.0.0."),
        ("backbone.stages.0.merge.norm.", "downsample_layers.0.1."),
    ]  # fmt: skip
    routed = "stages.3" not in name
    rename = [
        (r"backbone\.stages\.(\d+)\.blocks\.", rf"stages.\1.{inner}"),
        (r"token_mixer\.qkv\.", "attn.qkv.qkv." if routed else "attn.qkv."),
        (r"token_mixer\.proj\.", "attn.wo." if routed else "attn.proj."),
        (r"token_mixer\.", "attn."),
        (r"channel_mixer\.fc1\.", "mlp.0."),
        (r"channel_mixer\.fc2\.", f"mlp.{second}."),
        (r"^head\.norm\.", "norm."),
        (r"^head\.fc\.", "head."),
    ]
    found = KeyMap(rename=[*((a.replace(".", r"\."), b) for a, b in merges), *rename]).name(name)
    assert found is not None
    return found


def test_arguments_give_the_settings() -> None:
    build = {"depth": [1, 1], "embed_dim": [64, 96], "n_win": 5, "topks": [3, -1], "qk_dims": [32, 96], "head_dim": 16}
    found = biformer.from_published(build | {"drop_path_rate": 0.3, "layer_scale_init_value": 0.1}, {})
    assert (found.depths, found.dims, found.regions, found.topk) == ((1, 1), (64, 96), 5, (3, 0))
    assert (found.qk_dims, found.head_dim, found.drop_path, found.layer_scale) == ((32, 96), 16, 0.3, 0.1)
    assert biformer.from_published({"fn": "biformer_base"}, {}) == biformer.VARIANTS["base"]


def test_bfloat16_is_finite() -> None:
    model = registry.classifier(little(), 5).eval().to(torch.bfloat16)
    with torch.no_grad():
        logits = model(torch.randn(2, 3, 75, 60, dtype=torch.bfloat16))
    assert logits.dtype == torch.bfloat16
    assert torch.isfinite(logits).all()


LARGE = """
import resource, torch
from core import registry
torch.set_num_threads(1)
model = registry.create("biformer/tiny").eval()
with torch.no_grad():
    model(torch.randn(1, 3, 1024, 1024))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
"""


@pytest.mark.slow
def test_memory_of_a_large_image() -> None:
    """One image of 1024 x 1024 pixels in under 6 GB, everything that Python loads included."""
    done = subprocess.run([sys.executable, "-c", LARGE], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 6


@pytest.mark.slow
@pytest.mark.parametrize("more", [{}, NCHW])
def test_compiles_whole(more: dict[str, Any]) -> None:
    torch._dynamo.reset()
    model = fill_(little(**more))
    image = torch.randn(2, 3, 96, 70)
    with torch.no_grad():
        for a, b in zip(torch.compile(model, fullgraph=True)(image), model(image), strict=True):
            torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-3)
