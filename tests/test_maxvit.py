"""MaxViT beyond its vector: blocks against plain loops, sizes it refuses, tables, checkpoints in timm's names."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from parity import Fixture, fill_, filled
from safetensors.torch import save_file
from torch import Tensor, nn

from core import registry
from core.backbones import maxvit
from core.compression.fold import fold
from core.errors import SettingError, ShapeError, WeightsError
from core.layers.convs import MBConv, SqueezeExcitation, TanhGELU
from core.mixers.multi_axis import Axis, MultiAxisAttention
from core.weights import load, load_published, save

COUNTS = {  # the card's measured ones, 1000 classes; xlarge_512 by its formula: tables of 31 x 31 in place of 13 x 13
    "tiny": 30_916_528, "tiny_384": 30_977_008, "tiny_512": 31_049_584,
    "small": 68_927_956, "small_384": 69_018_676, "small_512": 69_127_540,
    "base": 119_467_708, "base_384": 119_653_468, "base_512": 119_876_380,
    "large": 211_785_560, "large_384": 212_033_240, "large_512": 212_330_456,
    "xlarge": 474_951_952, "xlarge_384": 475_323_472, "xlarge_512": 475_769_296,
}  # fmt: skip


def little(**more: Any) -> Any:
    """Two stages of two blocks, windows of 2: sides in multiples of 16 pixels."""
    settings = {"stem": 16, "dims": (16, 32), "depths": (2, 2), "head_dim": 8, "window": 2} | more
    return registry.create("maxvit/tiny", **settings)


def test_parameter_counts() -> None:
    assert set(COUNTS) == set(registry.family("maxvit").VARIANTS)
    for name, count in COUNTS.items():
        with torch.device("meta"):
            model = registry.create(f"maxvit/{name}", classes=1000)
        assert sum(p.numel() for p in model.parameters()) == count, name


def loop_attention(layer: MultiAxisAttention, x: Tensor) -> Tensor:
    """One query at a time, from the card; a window's cell (i, j) lies at `place`."""
    B, H, W, C = x.shape
    (P, Q), d = layer.window, C // layer.heads
    qkv = layer.qkv(x).reshape(B, H, W, 3, layer.heads, d)
    out = torch.zeros(B, H, W, layer.heads, d, dtype=x.dtype)

    def cell(y: int, z: int) -> tuple[int, int]:
        return (y % P, z % Q) if layer.axis == "block" else (y // (H // P), z // (W // Q))

    def place(y: int, z: int, i: int, j: int) -> tuple[int, int]:
        if layer.axis == "block":
            return y // P * P + i, z // Q * Q + j
        return i * (H // P) + y % (H // P), j * (W // Q) + z % (W // Q)

    for b in range(B):
        for y in range(H):
            for z in range(W):
                yi, xi = cell(y, z)
                for h in range(layer.heads):
                    scores, values = [], []
                    for yj in range(P):
                        for xj in range(Q):
                            k, v = qkv[b, *place(y, z, yj, xj), 1:, h]
                            bias = layer.bias_table[h, yj - yi + P - 1, xj - xi + Q - 1]
                            scores.append(qkv[b, y, z, 0, h] @ k * d**-0.5 + bias)
                            values.append(v)
                    out[b, y, z, h] = torch.stack(scores).softmax(0) @ torch.stack(values)
    return layer.proj(out.flatten(3))


@pytest.mark.parametrize("axis", ["block", "grid"])
@pytest.mark.parametrize(("size", "window"), [((4, 4), 2), ((4, 9), (2, 3)), ((6, 4), (3, 4))])
@pytest.mark.parametrize("grad", [False, True])
def test_multi_axis_attention_equals_a_loop(
    axis: Axis, size: tuple[int, int], window: int | tuple[int, int], grad: bool
) -> None:
    torch.manual_seed(0)
    layer = MultiAxisAttention(8, 2, window=window, axis=axis).double()
    nn.init.normal_(layer.bias_table)
    x = torch.randn(2, *size, 8, dtype=torch.float64)
    with torch.set_grad_enabled(grad):
        torch.testing.assert_close(layer(x), loop_attention(layer, x))


@pytest.mark.parametrize(("axis", "moved"), [("block", [(0, 0), (0, 1), (1, 0), (1, 1)]),
                                             ("grid", [(0, 0), (0, 3), (3, 0), (3, 3)])])  # fmt: skip
def test_reach(axis: Axis, moved: list[tuple[int, int]]) -> None:
    """A block is a corner of the map; a grid window spans it."""
    layer = fill_(MultiAxisAttention(8, 2, window=2, axis=axis).double())
    x = torch.randn(1, 6, 6, 8, dtype=torch.float64)
    y = x.clone()
    y[0, 0, 0] += 1
    with torch.no_grad():
        changed = (layer(x) - layer(y))[0].abs().amax(-1) > 1e-9
    assert [tuple(place) for place in changed.nonzero().tolist()] == moved


def test_maps_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ShapeError, match="grid attention of window 2 x 3 needs a map that it divides, got 4 x 5"):
        MultiAxisAttention(8, 2, window=(2, 3), axis="grid")(torch.randn(1, 4, 5, 8))


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tanh_gelu(dtype: torch.dtype, grad: bool) -> None:
    x = torch.cat([torch.linspace(-12, 12, 2001), torch.tensor([-1e4, 1e4, 0.0])]).to(dtype)
    want = 0.5 * x.double() * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x.double() + 0.044715 * x.double() ** 3)))
    kept = x.clone()
    with torch.set_grad_enabled(grad):
        torch.testing.assert_close(TanhGELU()(x), want.to(dtype), rtol=1e-5, atol=1e-6)
    assert torch.equal(x, kept)


def test_squeeze_excitation() -> None:
    layer = fill_(SqueezeExcitation(6, 2, activation="silu").double())
    x = torch.randn(2, 3, 5, 6, dtype=torch.float64)
    hidden = F.silu(x.mean((1, 2)) @ layer.fc1.weight.T + layer.fc1.bias)
    gate = (hidden @ layer.fc2.weight.T + layer.fc2.bias).sigmoid()
    torch.testing.assert_close(layer(x), x * gate[:, None, None])
    assert SqueezeExcitation(6, 2, bias=False).fc2.bias is None


def plain_mbconv(layer: MBConv, x: Tensor) -> Tensor:
    """The published order of layers in evaluation, (B, C, H, W), padding written out."""

    def norm(bn: nn.BatchNorm2d, y: Tensor) -> Tensor:
        assert bn.running_mean is not None
        assert bn.running_var is not None
        mean, std = bn.running_mean[:, None, None], (bn.running_var + 1e-3).sqrt()[:, None, None]
        return (y - mean) / std * bn.weight[:, None, None] + bn.bias[:, None, None]

    inner = layer.widen.out_features
    y = F.conv2d(norm(layer.norm0, x), layer.widen.weight[:, :, None, None])
    y = F.gelu(norm(layer.norm1, y), approximate="tanh")
    y = F.pad(y, (1, 1, 1, 1) if layer.stride == 1 else (0, 1, 0, 1))
    y = F.conv2d(y, layer.depthwise.weight, stride=layer.stride, groups=inner)
    y = F.gelu(norm(layer.norm2, y), approximate="tanh")
    y = layer.se(y.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    y = F.conv2d(y, layer.narrow.weight[:, :, None, None], layer.narrow.bias)
    if layer.stride == 2:
        x = F.avg_pool2d(x, 2)
    if isinstance(layer.shortcut, nn.Linear):
        x = F.conv2d(x, layer.shortcut.weight[:, :, None, None], layer.shortcut.bias)
    return x + y


@pytest.mark.parametrize(("dim", "out", "stride"), [(8, 8, 1), (8, 8, 2), (8, 12, 2)])
@pytest.mark.parametrize("grad", [False, True])
def test_mbconv_folds_its_norms_exactly(dim: int, out: int, stride: int, grad: bool) -> None:
    layer = fill_(MBConv(dim, out, stride=stride).double())
    x = torch.randn(2, 6, 10, dim, dtype=torch.float64)
    with torch.set_grad_enabled(grad):
        got = layer(x)
    torch.testing.assert_close(got, plain_mbconv(layer, x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
    assert layer.se.fc1.out_features == out // 4


def test_mbconv_trains_with_batch_statistics() -> None:
    """In training the norms use, and keep, the batch's own statistics, at TensorFlow's momentum."""
    torch.manual_seed(0)
    layer = MBConv(4, 8, stride=2).double().train()
    x = 3 + torch.randn(4, 6, 6, 4, dtype=torch.float64)
    y = layer(x)
    torch.testing.assert_close(layer.norm0.running_mean, 0.01 * x.mean((0, 1, 2)))
    same = MBConv(4, 8, stride=2).double()
    same.load_state_dict(layer.state_dict())
    for norm, values in zip((same.norm0, same.norm1, same.norm2), inner_maps(layer, x), strict=True):
        norm.running_mean, norm.running_var = values.mean((0, 2, 3)), values.var((0, 2, 3), unbiased=False)
    torch.testing.assert_close(same.eval()(x), y)


def inner_maps(layer: MBConv, x: Tensor) -> list[Tensor]:
    """What enters each of the three norms, (B, C, H, W)."""
    seen: list[Tensor] = []
    hooks = [
        norm.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach()))
        for norm in (layer.norm0, layer.norm1, layer.norm2)
    ]
    layer(x)
    for hook in hooks:
        hook.remove()
    return seen


def test_sizes() -> None:
    model = fill_(little())
    with torch.no_grad():
        assert [tuple(p.shape) for p in model(torch.randn(1, 3, 32, 48))] == [(1, 16, 8, 12), (1, 32, 4, 6)]
        flat = fill_(little(window=(1, 3)))
        assert [tuple(p.shape[2:]) for p in flat(torch.randn(1, 3, 8, 48))] == [(2, 12), (1, 6)]
    with pytest.raises(ShapeError, match=r"window 2 x 2 takes multiples of 16 x 16 pixels, got 40 x 32: resize or pad"):
        model(torch.randn(1, 3, 40, 32))
    with pytest.raises(ShapeError, match=r"takes multiples of 224 x 224 pixels, got 256 x 256.*`window` to a divisor"):
        four_stages(7)(torch.randn(1, 3, 256, 256))
    with torch.no_grad():  # the way out that it names
        assert four_stages(8)(torch.randn(1, 3, 256, 256))[3].shape == (1, 16, 8, 8)


def four_stages(window: int) -> Any:
    return little(stem=8, dims=(8, 8, 8, 16), depths=(1, 1, 1, 1), window=window).eval()


def test_settings_that_do_not_fit() -> None:
    with pytest.raises(SettingError, match="2 depths but 4 widths"):
        registry.create("maxvit/tiny", depths=(1, 1))
    with pytest.raises(SettingError, match="heads of 32 channels do not divide"):
        registry.create("maxvit/tiny", dims=(48, 128, 256, 512))


@pytest.mark.parametrize("grad", [False, True])
def test_images_do_not_mix(grad: bool) -> None:
    model = fill_(little().double())
    images = torch.randn(3, 3, 32, 48, dtype=torch.float64)
    with torch.set_grad_enabled(grad):
        together = model(images)
        for i, image in enumerate(images):
            for joint, single in zip(together, model(image[None]), strict=True):
                torch.testing.assert_close(joint[i], single[0])


def test_one_training_step() -> None:
    torch.manual_seed(0)
    model = registry.classifier(little(drop_path=0.1), 5).train()
    F.cross_entropy(model(torch.randn(4, 3, 32, 48)), torch.tensor([1, 4, 0, 0])).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()] == []


def test_evaluation_can_be_trained_through() -> None:
    """With frozen statistics (fine-tuning) gradients reach the norms, too."""
    model = fill_(little())
    sum(level.square().mean() for level in model(torch.randn(2, 3, 32, 32))).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


def test_state_round_trip(tmp_path: Path) -> None:
    model, fresh = fill_(little()), little().eval()
    save(model, tmp_path / "w.safetensors")
    load(fresh, tmp_path / "w.safetensors")
    image = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        for a, b in zip(model(image), fresh(image), strict=True):
            assert torch.equal(a, b)
    assert not [n for n in model.state_dict() if "index" in n]


def test_half_precision_stays_near() -> None:
    model = registry.classifier(fill_(little()), 3).eval()
    image = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        want = model.backbone(image)
        half = model.to(torch.bfloat16)(image.bfloat16())
        levels = model.backbone(image.bfloat16())
    assert half.dtype == torch.bfloat16
    assert torch.isfinite(half).all()
    for a, b in zip(levels, want, strict=True):
        assert (a.float() - b).abs().mean() < 0.05 * b.std()


def test_initialisation() -> None:
    torch.manual_seed(0)
    model = registry.create("maxvit/tiny", classes=10, depths=(1, 1, 2, 1))
    block = model.backbone.stages[3].blocks[0]
    kernels = [block.conv.depthwise, block.conv.widen, block.block.token_mixer.qkv, block.grid.channel_mixer.fc1]
    for kernel in [*kernels, model.head.hidden[0]]:
        assert kernel.weight.std().item() == pytest.approx(0.02, rel=0.03)
        assert kernel.weight.abs().max() > 0.06  # normal, not cut off at two or three deviations
        assert kernel.bias is None or not kernel.bias.any()
    assert block.grid.token_mixer.bias_table.std().item() == pytest.approx(0.02, rel=0.1)
    assert (block.conv.norm1.eps, block.conv.norm1.momentum) == (1e-3, 0.01)
    rates = [
        {m.drop_path.p for m in (b.conv, b.block, b.grid)} for s in model.backbone.stages for b in s.blocks
    ]  # never the full rate: 0.2 * b / 5
    assert [pytest.approx(r.pop()) for r in rates] == [0.0, 0.04, 0.08, 0.12, 0.16]
    assert rates == [set()] * 5


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Fixture]:
    """A file as timm's hub keeps it: plain safetensors."""
    fixture = Fixture.read(Path(__file__).parent / "parity" / "maxvit--tiny.json")
    path = tmp_path_factory.mktemp("maxvit") / "model.safetensors"
    save_file(fixture.state_dict(), path)
    return path, fixture


def test_published_checkpoint(published: tuple[Path, Fixture]) -> None:
    path, fixture = published
    model = load_published("maxvit/tiny", path)
    with torch.no_grad():
        fixture.compare("logits", model(fixture.input()), 1e-3)
    model = load_published("maxvit/tiny", path, classes=4, new_head=True)
    assert torch.equal(model.head.hidden[0].weight, filled("head.pre_logits.fc.weight", (512, 512)))
    assert not model.head.fc.weight.any()


def test_other_window_resizes_the_tables(published: tuple[Path, Fixture]) -> None:
    path, _ = published
    with pytest.warns(UserWarning, match=r"bias_table and 21 more resized to the size that maxvit/tiny asks for"):
        model = load_published("maxvit/tiny", path, window=(8, 10))
    table = filled("stages.1.blocks.0.attn_grid.attn.rel_pos.relative_position_bias_table", (4, 13, 13))
    want = F.interpolate(table[None], (15, 19), mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(model.backbone.stages[1].blocks[0].grid.token_mixer.bias_table, want)
    with pytest.raises(WeightsError, match=r"bias_table: \(2, 13, 13\) in the file, \(2, 23, 23\) in the network"):
        load_published("maxvit/tiny_384", path, resize=False)


def test_arguments_and_shapes_give_the_settings(published: tuple[Path, Fixture]) -> None:
    shapes = {n: tuple(s) for n, s in published[1].state.items()}
    assert maxvit.from_published({"name": "maxvit_tiny_tf_224"}, shapes, maxvit.LARGE) == registry.changed(
        maxvit.TINY, {"drop_path": 0.6}, "maxvit"
    )
    for name in shapes:
        if name.endswith("bias_table"):
            shapes[name] = (shapes[name][0], 13, 27)
    assert maxvit.from_published({"name": "maxvit_tiny_tf_224", "img_size": [224, 448]}, shapes).window == (7, 14)
    assert maxvit.from_published({"drop_path_rate": 0}, shapes).drop_path == 0.0
    assert maxvit.from_published({}, shapes, maxvit.LARGE) == maxvit.LARGE


@pytest.mark.slow
def test_compiles_whole() -> None:
    torch._dynamo.reset()
    model = fill_(little())
    image = torch.randn(2, 3, 32, 48)
    with torch.no_grad():
        for a, b in zip(torch.compile(model, fullgraph=True)(image), model(image), strict=True):
            torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-3)


def test_every_norm_folds_into_the_weights() -> None:
    torch.manual_seed(0)
    model = registry.create("maxvit/tiny", depths=(1, 2, 1, 1), classes=5).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.5)
            module.running_var.uniform_(0.5, 2)
    image = torch.randn(1, 3, 224, 224)
    folded = fold(model)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in folded.modules())
    with torch.inference_mode():
        want = model(image)
        assert (folded(image) - want).abs().max() < 1e-4 * want.std()
