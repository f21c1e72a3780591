"""LITv2 beyond its vectors: the mixer and the merging against loops, sizes, forms, checkpoints in the authors' form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from parity import Fixture, fill_
from torch import Tensor
from torchvision.ops import deform_conv2d

from core import registry
from core.backbones import litv2_hilo
from core.errors import SettingError, ShapeError
from core.mixers.high_low import HiLoAttention, low_heads
from core.weights import load_published

COUNTS = {"small": 27_844_000, "medium": 48_830_368, "base": 86_520_704, "base_384": 86_520_704}  # the card's
PARITY = Path(__file__).parent / "parity"


def little(**more: Any) -> Any:
    """One or two blocks a stage, heads of 8 channels, windows of 3 and 2 and plain attention."""
    settings = {"dim": 8, "depths": (1, 1, 2, 1), "heads": (1, 2, 4, 8), "windows": (0, 3, 2, 1), "alpha": 0.5} | more
    return registry.create("litv2_hilo/small", **settings)


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts(name: str) -> None:
    assert set(COUNTS) == set(litv2_hilo.VARIANTS)
    with torch.device("meta"):
        model = registry.create(f"litv2_hilo/{name}", classes=1000)
    assert sum(p.numel() for p in model.parameters()) == COUNTS[name]


@pytest.mark.parametrize(("alpha", "count"), [(0.5, 27_647_392), (0.0, 28_089_760), (1.0, 28_089_760)])
def test_parameter_counts_of_the_alpha_sweep(alpha: float, count: int) -> None:
    with torch.device("meta"):
        model = registry.create("litv2_hilo/small", classes=1000, alpha=alpha)
    assert sum(p.numel() for p in model.parameters()) == count


def loop_hilo(layer: HiLoAttention, x: Tensor) -> Tensor:
    """One image, head and query at a time, from the card."""
    B, H, W, C = x.shape
    s, heads = layer.window, layer.high_heads + layer.low_heads
    d = C // heads
    padded = F.pad(x, (0, 0, 0, -W % s, 0, -H % s))
    out = torch.zeros(B, H, W, C, dtype=x.dtype)
    low_at = layer.high_heads * d
    means = F.avg_pool2d(padded.permute(0, 3, 1, 2), s, s).permute(0, 2, 3, 1)
    for b in range(B):
        for head in range(heads):
            high, n = head < layer.high_heads, head - layer.high_heads
            if high:
                q, k, v = (layer.high_qkv(padded[b]).unflatten(-1, (3, -1, d))[..., i, head, :] for i in range(3))
            else:
                q = layer.low_q(x[b]).unflatten(-1, (-1, d))[..., n, :]
                k, v = (layer.low_kv(means[b]).unflatten(-1, (2, -1, d))[..., i, n, :] for i in range(2))
            for i in range(H):
                for j in range(W):
                    cells = (slice(i - i % s, i - i % s + s), slice(j - j % s, j - j % s + s)) if high else ...
                    weights = (k[cells].reshape(-1, d) @ q[i, j] * d**-0.5).softmax(0)
                    out[b, i, j, head * d : head * d + d] = weights @ v[cells].reshape(-1, d)
    parts = []
    if layer.high_heads:
        parts.append(layer.high_proj(out[..., :low_at]))
    if layer.low_heads:
        parts.append(layer.low_proj(out[..., low_at:]))
    return torch.cat(parts, -1)


@pytest.mark.parametrize("size", [(4, 6), (5, 3), (1, 2)])
@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("window", [1, 2, 3])
@pytest.mark.parametrize("grad", [False, True])
def test_mixer_equals_a_loop(size: tuple[int, int], alpha: float, window: int, grad: bool) -> None:
    layer = fill_(HiLoAttention(12, 3, window=window, alpha=alpha, qkv_bias=True).double())
    x = torch.randn(2, *size, 12, dtype=torch.float64)
    with torch.set_grad_enabled(grad):
        torch.testing.assert_close(layer(x), loop_hilo(layer, x))


def test_heads_of_the_branches() -> None:
    """12 * 0.9 is cut to 10; windows of one cell give every head to the low branch, whatever alpha is."""
    assert [low_heads(h, 0.9, 2) for h in (3, 6, 12, 16)] == [2, 5, 10, 14]
    assert low_heads(12, 0.0, 1) == 12
    assert not hasattr(HiLoAttention(12, 3, alpha=1.0), "high_qkv")
    assert not hasattr(HiLoAttention(12, 3, alpha=0.0), "low_q")


def test_operations_of_one_layer() -> None:
    """The card's own counter: 83,467,776 for dim 384, 12 heads, windows of 2, alpha 0.5 on 14 x 14."""
    from torch.utils.flop_counter import FlopCounterMode

    layer = HiLoAttention(384, 12, window=2, alpha=0.5)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        layer.double()(torch.randn(1, 14, 14, 384, dtype=torch.float64))
    assert counter.get_total_flops() == 2 * 83_467_776


@pytest.mark.parametrize("size", [(6, 8), (7, 5), (2, 3)])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("reach", [0.5, 6.0])  # cells; the larger leaves the map
def test_merging_is_a_deformable_convolution(size: tuple[int, int], training: bool, reach: float) -> None:
    torch.manual_seed(0)
    layer = fill_(litv2_hilo.DeformableMerging(6, 10).double()).train(training)
    with torch.no_grad():
        layer.offsets.weight.mul_(reach)
    x = torch.randn(2, *size, 6, dtype=torch.float64)
    image = x.permute(0, 3, 1, 2)
    want = deform_conv2d(image, layer.offsets(image), layer.conv.weight, layer.conv.bias, stride=2)
    norm = layer.norm
    want = F.batch_norm(
        want, norm.running_mean.clone(), norm.running_var.clone(), norm.weight, norm.bias, training, eps=1e-5
    )
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            torch.testing.assert_close(layer(x), F.gelu(want).permute(0, 2, 3, 1))


def test_merging_has_the_deformable_convolutions_gradients() -> None:
    torch.manual_seed(0)
    layer = fill_(litv2_hilo.DeformableMerging(4, 8).double())
    x = torch.randn(2, 5, 6, 4, dtype=torch.float64, requires_grad=True)
    image = x.permute(0, 3, 1, 2)
    want = deform_conv2d(image, layer.offsets(image), layer.conv.weight, layer.conv.bias, stride=2)
    want = F.gelu(layer.norm(want)).square().sum()
    given = (x, layer.offsets.weight, layer.conv.weight)
    for a, b in zip(torch.autograd.grad(layer(x).square().sum(), given), torch.autograd.grad(want, given), strict=True):
        torch.testing.assert_close(a, b)


def test_offsets_keep_their_places_in_bfloat16() -> None:
    """Cells past 256 have no neighbour in bfloat16: places are kept in float32."""
    x = torch.zeros(1, 2, 600, 1, dtype=torch.bfloat16)
    x[0, 0, 501] = 1
    layer = litv2_hilo.DeformableMerging(1, 1).to(torch.bfloat16).eval()
    offsets = torch.zeros(1, 1, 300, 4, 2, dtype=torch.bfloat16)
    taps = litv2_hilo.sample(x, *litv2_hilo._places(offsets))
    assert taps.nonzero().tolist() == [[0, 0, 250, 1, 0]]
    assert torch.isfinite(layer(x)).all()


def test_blocks_without_attention() -> None:
    model = fill_(little().double())
    block = model.stages[0].blocks[0]
    x = torch.randn(2, 5, 4, 8, dtype=torch.float64)
    mlp, norm = block.channel_mixer, block.norm2
    y = mlp.fc1(F.layer_norm(x, (8,), norm.weight, norm.bias, 1e-5)).permute(0, 3, 1, 2)
    y = F.gelu(F.conv2d(y, mlp.conv.weight, mlp.conv.bias, padding=1, groups=32))
    want = x + mlp.fc2(y.permute(0, 2, 3, 1))
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            torch.testing.assert_close(block(x), want)


@pytest.mark.parametrize("grad", [False, True])
def test_images_do_not_mix(grad: bool) -> None:
    model = fill_(little().double())
    images = torch.randn(2, 3, 70, 53, dtype=torch.float64)
    with torch.set_grad_enabled(grad):
        together = model(images)
        for i, image in enumerate(images):
            for joint, single in zip(together, model(image[None]), strict=True):
                torch.testing.assert_close(joint[i], single[0])


@pytest.mark.parametrize("size", [(101, 67), (97, 98), (29, 60)])
def test_any_size(size: tuple[int, int]) -> None:
    """Zeros at the bottom and right of the image to whole patches; sides are then halved and rounded down."""
    model = fill_(little().double())
    image = torch.randn(1, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        pyramid = model(image)
        drawn = model(F.pad(image, (0, -size[1] % 4, 0, -size[0] % 4)))
    for i, (level, same) in enumerate(zip(pyramid, drawn, strict=True)):
        assert tuple(level.shape[2:]) == tuple(-(-n // 4) // 2**i for n in size)
        assert torch.equal(level, same)


def test_images_too_small_for_the_last_merging() -> None:
    with pytest.raises(ShapeError, match="an image of 28 x 256 pixels is too small, sides start at 29"):
        little().eval()(torch.randn(1, 3, 28, 256))


@pytest.mark.parametrize("norms", [(1, 2, 3), (0, 1, 2, 3)])
def test_dense_forms_norm_what_they_give_out_only(norms: tuple[int, ...]) -> None:
    plain, dense = fill_(little().double()), fill_(little(norms=norms).double())
    dense.load_state_dict(plain.state_dict(), strict=False)
    image = torch.randn(1, 3, 50, 41, dtype=torch.float64)
    with torch.no_grad():
        pairs = list(zip(plain(image), dense(image), dense.norms, strict=True))
    for i, (raw, level, norm) in enumerate(pairs):
        torch.testing.assert_close(level, norm(raw.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))
        assert torch.equal(raw, level) == (i not in norms)


def test_initialisation_and_drop_path() -> None:
    torch.manual_seed(0)
    model = registry.create("litv2_hilo/small", drop_path=0.22)
    assert [b.drop_path.p for s in model.stages for b in s.blocks] == pytest.approx([0.02 * i for i in range(12)])
    block, merge = model.stages[3].blocks[0], model.stages[3].merge
    assert block.channel_mixer.fc1.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert block.channel_mixer.conv.weight.std().item() == pytest.approx((2 / 9) ** 0.5, rel=0.02)
    assert not block.channel_mixer.conv.bias.any()
    assert not merge.offsets.weight.any()
    assert not merge.offsets.bias.any()
    assert merge.conv.weight.std().item() == pytest.approx((3 * 4 * 384) ** -0.5, rel=0.02)


def test_one_training_step() -> None:
    torch.manual_seed(0)
    model = registry.classifier(little(drop_path=0.1, dropout=0.1), 5).train()
    F.cross_entropy(model(torch.randn(2, 3, 64, 45)), torch.tensor([1, 4])).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()] == []
    assert model.backbone.stages[1].merge.offsets.weight.grad.any()


def test_settings_that_do_not_fit() -> None:
    with pytest.raises(SettingError, match="3 depths, 4 heads and 4 windows"):
        registry.create("litv2_hilo/small", depths=(1, 1, 1))
    with pytest.raises(SettingError, match="10 heads do not divide 384"):
        registry.create("litv2_hilo/small", heads=(3, 6, 10, 24))
    with pytest.raises(SettingError, match=r"alpha from 0 to 1 were expected, got 2 and 1\.5"):
        registry.create("litv2_hilo/small", alpha=1.5)
    with pytest.raises(SettingError, match="patches of 4 pixels, got 2"):
        litv2_hilo.from_published({"patch_size": 2}, {})


def test_published_checkpoint(tmp_path: Path) -> None:
    """A file as the trainer saves it; a detector's window of 4 takes the same weights."""
    fixture = Fixture.read(PARITY / "litv2-hilo--litv2-s.json")
    torch.save({"epoch": 299, "model": fixture.state_dict()}, tmp_path / "litv2_s.pth")
    model = load_published("litv2_hilo/small", tmp_path / "litv2_s.pth")
    assert model.backbone.config == litv2_hilo.VARIANTS["small"]
    with torch.no_grad():
        fixture.compare("logits", model(fixture.input()), 1e-3)
    wide = load_published("litv2_hilo/small", tmp_path / "litv2_s.pth", windows=(0, 0, 4, 1))
    assert wide.backbone.stages[2].blocks[0].token_mixer.window == 4


def test_detection_file_gives_the_backbone(tmp_path: Path) -> None:
    fixture = Fixture.read(PARITY / "litv2-hilo--litv2-s-det-150x202.json")
    torch.save({"state_dict": {f"backbone.{n}": v for n, v in fixture.state_dict().items()}}, tmp_path / "dense.pth")
    model = load_published("litv2_hilo/small", tmp_path / "dense.pth", prefix="backbone.", depths=(1, 1, 2, 1))
    assert model.config.norms == (1, 2, 3)
    with torch.no_grad():
        fixture.compare("feat4", model(fixture.input())[3], 1e-3)


@pytest.mark.parametrize("alpha", [0.0, 0.2, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("norms", [(), (0, 1, 2, 3)])
def test_names_and_shapes_give_the_settings(alpha: float, norms: tuple[int, ...]) -> None:
    """Heads and windows come from the variant: no shape shows them."""
    config = litv2_hilo.LITv2Config(
        in_channels=5, dim=16, depths=(1, 2, 1, 1), heads=(1, 2, 4, 8), windows=(0, 0, 2, 1), alpha=alpha,
        mlp_ratio=3.0, qkv_bias=False, norms=norms,
    )  # fmt: skip
    backbone = litv2_hilo.build(config)
    ours = (backbone if norms else registry.classifier(backbone, 4)).state_dict()
    names = published_names(ours if not norms else {f"backbone.{n}": v for n, v in ours.items()})
    base = litv2_hilo.LITv2Config(dim=16, heads=(1, 2, 4, 8))
    seen = litv2_hilo.from_published({}, {n: tuple(v.shape) for n, v in names.items()}, base)
    assert [low_heads(4, c.alpha, 2) for c in (seen, config)] == [int(4 * alpha)] * 2
    assert (seen.in_channels, seen.dim, seen.depths, seen.windows) == (5, 16, (1, 2, 1, 1), (0, 0, 2, 1))
    assert (seen.mlp_ratio, seen.qkv_bias, seen.norms) == (3.0, False, norms)
    stated = litv2_hilo.from_published({"num_heads": [1, 2, 4, 8], "alpha": alpha, "local_ws": [0, 0, 4, 1]}, {})
    assert (stated.heads, stated.alpha, stated.windows) == ((1, 2, 4, 8), alpha, (0, 0, 4, 1))


def published_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our names as the authors write them."""
    out = {}
    for name, value in state.items():
        for ours, theirs in (
            ("backbone.stages.0.merge.conv.", "patch_embed.proj."),
            ("backbone.stages.0.merge.norm.", "patch_embed.norm."),
            *((f"backbone.stages.{i}.merge.", f"layers.{i - 1}.downsample.") for i in (1, 2, 3)),
            ("downsample.conv.", "downsample.dconv."), ("downsample.offsets.", "downsample.dconv.conv_offset."),
            ("downsample.norm.", "downsample.norm_layer."), ("backbone.stages.", "layers."),
            ("token_mixer.low_", "attn.l_"), ("token_mixer.high_", "attn.h_"), ("backbone.norms.", "norm"),
            ("channel_mixer.conv.", "mlp.dwconv.dwconv."), ("channel_mixer.", "mlp."), ("head.fc.", "head."),
            ("head.norm.", "norm."),
        ):  # fmt: skip
            name = name.replace(ours, theirs)
        out[name] = value
    return out


def test_bfloat16_is_finite() -> None:
    model = registry.classifier(little(), 5).eval().to(torch.bfloat16)
    with torch.no_grad():
        logits = model(torch.randn(2, 3, 75, 60, dtype=torch.bfloat16))
    assert logits.dtype == torch.bfloat16
    assert torch.isfinite(logits).all()


@pytest.mark.slow
def test_compiles_whole() -> None:
    torch._dynamo.reset()
    model = fill_(little(norms=(1, 2, 3)))
    image = torch.randn(2, 3, 96, 70)
    with torch.no_grad():
        for a, b in zip(torch.compile(model, fullgraph=True)(image), model(image), strict=True):
            torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-3)
