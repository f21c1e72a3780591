"""MS-MLP beyond its vector: the mixer against a loop, sizes, initialisation, checkpoints in the authors' names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from parity import Fixture, fill_
from torch import Tensor

from core import registry
from core.backbones import ms_mlp
from core.errors import SettingError, ShapeError, WeightsError
from core.mixers.mix_shift import Depthwise, MixShift, group_sizes
from core.weights import load_published

COUNTS = {"tiny": 28_656_232, "small": 50_303_752, "base": 88_696_792}  # the card's
PARITY = Path(__file__).parent / "parity"


def little(**more: Any) -> Any:
    return registry.create("ms_mlp/tiny", **{"dim": 14, "depths": (1, 1, 2, 1)} | more)


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts(name: str) -> None:
    assert set(COUNTS) == set(ms_mlp.VARIANTS)
    with torch.device("meta"):
        model = registry.create(f"ms_mlp/{name}", classes=1000)
    assert sum(p.numel() for p in model.parameters()) == COUNTS[name]


@pytest.mark.parametrize(
    ("dim", "sizes"),
    [(96, [20, 20, 20, 20, 16]), (192, [39] * 4 + [36]), (384, [77] * 4 + [76]), (768, [154] * 4 + [152]),
     (128, [26] * 4 + [24]), (256, [52] * 4 + [48]), (512, [103] * 4 + [100]), (1024, [205] * 4 + [204])],
)  # fmt: skip
def test_groups_of_the_card(dim: int, sizes: list[int]) -> None:
    assert group_sizes(dim, 5) == sizes == [len(c) for c in torch.arange(dim).chunk(5)]


def loop_mix(layer: MixShift, x: Tensor) -> Tensor:
    """One cell and one tap at a time: the roll goes round, and past the map's edge the kernel sees zeros."""
    B, H, W, C = x.shape
    out = torch.zeros(B, H, W, C, dtype=x.dtype)
    first = 0
    for g, (size, d) in enumerate(zip(layer.sizes, layer.distances)):
        part = x[..., first : first + size]
        for conv, axis in ((layer.horizontal[g], 1), (layer.vertical[g], 0)):
            k = conv.kernel_size[0]
            for i in range(H):
                for j in range(W):
                    total = conv.bias.expand(B, size).clone()
                    for di in range(k):
                        for dj in range(k):
                            at = [i + di - k // 2, j + dj - k // 2]
                            if 0 <= at[0] < H and 0 <= at[1] < W:
                                at[axis] = (at[axis] - d) % (H, W)[axis]
                                total = total + conv.weight[:, 0, di, dj] * part[:, at[0], at[1]]
                    out[:, i, j, first : first + size] += total
        first += size
    return out


@pytest.mark.parametrize("size", [(4, 6), (5, 3), (1, 2)])
@pytest.mark.parametrize(
    ("kernels", "distances"),
    [((1, 1, 3, 5, 7), (-2, -1, 0, 1, 2)), ((3, 1), (9, -7)), ((3,), (0,)), ((1, 5, 3), (1, 0, -4))],
)
@pytest.mark.parametrize("grad", [False, True])
def test_mixer_equals_a_loop(
    size: tuple[int, int], kernels: tuple[int, ...], distances: tuple[int, ...], grad: bool
) -> None:
    layer = fill_(MixShift(14, kernels, distances).double())
    x = torch.randn(2, *size, 14, dtype=torch.float64)
    with torch.set_grad_enabled(grad):
        torch.testing.assert_close(layer(x), loop_mix(layer, x))


def test_shifts_go_round_to_larger_indices() -> None:
    """A group at distance 2 whose kernels copy: the pixel wraps to the other side of its row, and of its column."""
    layer = MixShift(2, (1, 1), (0, 2))
    for conv in (*layer.horizontal, *layer.vertical):
        torch.nn.init.ones_(conv.weight)
        torch.nn.init.zeros_(conv.bias)
    x = torch.zeros(1, 4, 5, 2)
    x[0, 3, 4] = 1
    with torch.no_grad():
        y = layer(x)
    assert y[..., 0].nonzero().tolist() == [[0, 3, 4]]
    assert y[..., 1].nonzero().tolist() == [[0, 1, 4], [0, 3, 1]]


@pytest.mark.parametrize("kernel", [1, 3, 7])
def test_depthwise_is_torchs(kernel: int) -> None:
    layer = fill_(Depthwise(6, kernel).double())
    x = torch.randn(2, 5, 4, 6, dtype=torch.float64, requires_grad=True)
    want = F.conv2d(x.permute(0, 3, 1, 2), layer.weight, layer.bias, padding=kernel // 2, groups=6).permute(0, 2, 3, 1)
    torch.testing.assert_close(layer(x), want)
    given = (x, layer.weight, layer.bias)
    pairs = zip(*(torch.autograd.grad(y.square().sum(), given) for y in (layer(x), want)), strict=True)
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs)


def test_kernels_of_the_released_nets() -> None:
    """The first group, shifted by -2, has the 1x1 kernel; the unshifted one is in the middle."""
    for config in ms_mlp.VARIANTS.values():
        model = ms_mlp.build(ms_mlp.replace(config, depths=(1, 1, 1, 1)))
        mixers = [stage.blocks[0].token_mixer for stage in model.stages]
        for branch in ("horizontal", "vertical"):
            sides = [tuple(conv.kernel_size[0] for conv in getattr(m, branch)) for m in mixers]
            assert sides == [(1, 1, 3, 5, 7), (1, 3, 3, 5, 7), (1, 5, 5, 5, 7), (1, 7, 7, 7, 7)]
        assert {m.distances for m in mixers} == {(-2, -1, 0, 1, 2)}


def test_block_from_the_card() -> None:
    block = fill_(little().double()).stages[1].blocks[0]
    x = torch.randn(2, 5, 4, 28, dtype=torch.float64)
    y = F.layer_norm(loop_mix(block.token_mixer, x), (28,), block.norm.weight, block.norm.bias, 1e-6)
    mlp = block.channel_mixer
    want = x + block.scale.scale * mlp.fc2(F.gelu(mlp.fc1(y)))
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            torch.testing.assert_close(block(x), want)


def test_norms_stand_where_the_card_says() -> None:
    """After each reduction, and after the pooling; all with 1e-6. A constant map is what a small epsilon shows."""
    model = fill_(registry.classifier(little(), 4).double())
    image = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        levels = model.backbone(image)
        for i, before in enumerate([image, *levels[:-1]]):
            merge = model.backbone.stages[i].merge
            patch = 2 if i else 4
            x = F.conv2d(before, merge.conv.weight, merge.conv.bias, stride=patch).permute(0, 2, 3, 1)
            want = F.layer_norm(x, x.shape[-1:], merge.norm.weight, merge.norm.bias, 1e-6)
            torch.testing.assert_close(merge(before.permute(0, 2, 3, 1) if i else before), want)
        pooled = levels[-1].mean((2, 3))
        head = model.head
        want = head.fc(F.layer_norm(pooled, (112,), head.norm.weight, head.norm.bias, 1e-6))
    torch.testing.assert_close(model(image), want)


@pytest.mark.parametrize("grad", [False, True])
def test_images_do_not_mix(grad: bool) -> None:
    model = fill_(little().double())
    images = torch.randn(2, 3, 70, 53, dtype=torch.float64)
    with torch.set_grad_enabled(grad):
        together = model(images)
        for i, image in enumerate(images):
            for joint, single in zip(together, model(image[None]), strict=True):
                torch.testing.assert_close(joint[i], single[0])


@pytest.mark.parametrize("size", [(250, 101), (67, 98), (32, 63)])
def test_any_size(size: tuple[int, int]) -> None:
    """Each strided convolution leaves out the rows and columns past its last whole step: 250 gives 62, 31, 15, 7."""
    model = fill_(little().double())
    image = torch.randn(1, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        pyramid = model(image)
        cut = model(image[:, :, : size[0] // 4 * 4, : size[1] // 4 * 4])
    for i, (level, same) in enumerate(zip(pyramid, cut, strict=True)):
        assert tuple(level.shape[2:]) == tuple(n // 4 // 2**i for n in size)
        assert torch.equal(level, same)


def test_images_too_small() -> None:
    with pytest.raises(ShapeError, match="an image of 31 x 256 pixels is too small, sides start at 32"):
        little()(torch.randn(1, 3, 31, 256))


def test_initialisation_and_drop_path() -> None:
    torch.manual_seed(0)
    model = registry.create("ms_mlp/tiny", drop_path=0.17)
    blocks = [b for s in model.stages for b in s.blocks]
    assert [b.drop_path.p for b in blocks] == pytest.approx([0.01 * i for i in range(18)])
    assert all((b.scale.scale == 1e-6).all() for b in blocks)
    assert blocks[-1].channel_mixer.fc1.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert not blocks[-1].channel_mixer.fc1.bias.any()
    weight = blocks[-1].token_mixer.vertical[3].weight  # torch's own start: uniform, of 49 values of one channel
    assert weight.abs().max().item() == pytest.approx(1 / 7, rel=0.01)
    x = torch.randn(1, 7, 7, 768)
    torch.testing.assert_close(blocks[-1].eval()(x), x, atol=1e-4, rtol=0)
    rates = {n: c.drop_path for n, c in ms_mlp.VARIANTS.items()}
    assert rates == {"tiny": 0.1, "small": 0.4, "base": 0.5}


def test_one_training_step() -> None:
    torch.manual_seed(0)
    model = registry.classifier(little(dropout=0.1), 5).train()
    F.cross_entropy(model(torch.randn(2, 3, 64, 45)), torch.tensor([1, 4])).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()] == []
    merge = model.backbone.stages[0].merge
    image = torch.randn(1, 3, 64, 64)
    assert not torch.equal(merge(image), merge(image))


def test_settings_that_do_not_fit() -> None:
    with pytest.raises(SettingError, match="3 depths and kernels for 4 stages"):
        little(depths=(1, 1, 1))
    with pytest.raises(SettingError, match="5 kernels and 3 distances"):
        little(distances=(-1, 0, 1))
    with pytest.raises(SettingError, match="kernels have odd sides, got 4"):
        little(kernels=((1, 1, 3, 4, 5),) * 4)
    with pytest.raises(SettingError, match="8 channels make 4 groups of 2, not 5"):
        little(dim=8)


def test_published_checkpoint(tmp_path: Path) -> None:
    """A file as the trainer saves it, with its classifier, and without."""
    fixture = Fixture.read(PARITY / "ms-mlp--ms-mlp-tiny.json")
    state = fixture.state_dict()
    torch.save({"epoch": 299, "max_accuracy": 82.1, "model": state}, tmp_path / "tiny.pth")
    model = load_published("ms_mlp/tiny", tmp_path / "tiny.pth")
    assert model.backbone.config == ms_mlp.VARIANTS["tiny"]
    with torch.no_grad():
        fixture.compare("logits", model(fixture.input()), 1e-3)
    torch.save({n: v for n, v in state.items() if not n.startswith(("head.", "norm."))}, tmp_path / "dense.pth")
    backbone = load_published("ms_mlp/tiny", tmp_path / "dense.pth")
    with torch.no_grad():
        fixture.compare("stage4", backbone(fixture.input())[3], 1e-3)
    with pytest.raises(WeightsError, match=r"depths \(3, 3, 9, 3\), and ms_mlp/small has \(3, 3, 27, 3\)"):
        load_published("ms_mlp/small", tmp_path / "tiny.pth")


def published_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our names as the authors write them."""
    out = {}
    for name, value in state.items():
        for ours, theirs in (
            ("backbone.stages.0.merge.conv.", "patch_embed.proj."),
            ("backbone.stages.0.merge.norm.", "patch_embed.norm."),
            *((f"backbone.stages.{i}.merge.conv.", f"layers.{i - 1}.downsample.proj.") for i in range(1, 5)),
            *((f"backbone.stages.{i}.merge.norm.", f"layers.{i - 1}.downsample.norm.") for i in range(1, 5)),
            ("backbone.stages.", "layers."), ("token_mixer.horizontal.", "dwconv_lr."),
            ("token_mixer.vertical.", "dwconv_td."), ("channel_mixer.fc", "pwconv"), ("scale.scale", "gamma"),
            ("head.fc.", "head."), ("head.norm.", "norm."),
        ):  # fmt: skip
            name = name.replace(ours, theirs)
        out[name] = value
    return out


@pytest.mark.parametrize("scale", [None, 1e-6])
def test_names_and_shapes_give_the_settings(tmp_path: Path, scale: float | None) -> None:
    """Other groups, kernels, depths and widths from a file alone; only distances have to be told."""
    distances = (-1, 0, 3)
    config = ms_mlp.MSMLPConfig(
        in_channels=5, patch=2, dim=16, depths=(1, 2, 11), kernels=((1, 3, 5), (7, 1, 1), (3, 3, 9)),
        distances=distances, mlp_ratio=3.0, layer_scale=scale,
    )  # fmt: skip
    model = fill_(registry.classifier(ms_mlp.build(config), 4))
    state = published_names(model.state_dict())
    shapes = {n: tuple(v.shape) for n, v in state.items()}
    assert ms_mlp.from_published({"shift_dist": list(distances)}, shapes) == config
    assert ms_mlp.from_published({}, shapes, ms_mlp.replace(config, dim=8, layer_scale=None)).layer_scale == scale
    torch.save({"model": state}, tmp_path / "x.pth")
    same = {"dim": 16, "depths": (1, 2, 11), "mlp_ratio": 3.0, "patch": 2, "distances": distances}
    loaded = load_published("ms_mlp/tiny", tmp_path / "x.pth", **same)
    image = torch.randn(2, 5, 50, 35)
    with torch.no_grad():
        torch.testing.assert_close(loaded(image), model(image))


def test_arguments_alone() -> None:
    build = {
        "mix_size": [[1, 3], [3, 5]], "shift_size": 2, "shift_dist": [0, 1], "embed_dim": 64, "depths": [1, 2],
        "in_chans": 4, "drop_path_rate": 0, "mlp_ratio": 2, "img_size": [96, 64], "patch_size": 8,
    }  # fmt: skip
    config = ms_mlp.from_published(build, {})
    assert (config.kernels, config.distances, config.dim, config.depths) == (((1, 3), (3, 5)), (0, 1), 64, (1, 2))
    assert (config.in_channels, config.drop_path, config.mlp_ratio, config.patch) == (4, 0.0, 2.0, 8)
    assert ms_mlp.build(config).strides == (8, 16)


def test_bfloat16_is_finite() -> None:
    model = registry.classifier(little(), 5).eval().to(torch.bfloat16)
    with torch.no_grad():
        logits = model(torch.randn(2, 3, 75, 60, dtype=torch.bfloat16))
    assert logits.dtype == torch.bfloat16
    assert torch.isfinite(logits).all()


@pytest.mark.slow
def test_compiles_whole() -> None:
    torch._dynamo.reset()
    model = fill_(little())
    image = torch.randn(2, 3, 96, 70)
    with torch.no_grad():
        for a, b in zip(torch.compile(model, fullgraph=True)(image), model(image), strict=True):
            torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-3)
