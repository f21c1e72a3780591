"""FMViT, of which no code was published: layers against loops, folding, Next-ViT as its special case, sizes, counts."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from parity import fill_
from torch import Tensor, nn

from core import measure, registry
from core.backbones import fmvit, next_vit
from core.compression.fold import fold
from core.errors import SettingError, WeightsError
from core.layers.branches import BranchedConv, GroupedLinear
from core.mixers.light_attention import LightAttention
from core.weights import load_published, save

COUNTS = {  # parameters in training, after folding, and MACs at 224, 1000 classes
    "tiny": (3_142_808, 2_006_152, 302_360_992),
    "small": (9_977_864, 6_315_728, 805_168_832),
    "medium": (20_540_136, 12_893_432, 1_981_294_272),
    "base": (39_020_456, 24_300_648, 4_192_118_656),
    "large": (56_517_800, 35_161_128, 7_048_274_560),
}
# The paper's table, in M and G; its rounding leaves the MACs of tiny open by 17 % either way, those of small by 6 %.
PAPER = {"tiny": (2.0, 0.3), "small": (6.4, 0.8), "medium": (12.8, 2.0), "base": (24.3, 4.2), "large": (35.3, 7.1)}
DEVIATIONS = {
    "tiny": (0.003, 0.008),
    "small": (-0.013, 0.006),
    "medium": (0.007, -0.009),
    "base": (0.000, -0.002),
    "large": (-0.004, -0.007),
}
BRANCHED = (GroupedLinear, BranchedConv)


def little(**more: Any) -> Any:
    """Every kind of block in a few narrow layers of 8 channels a head."""
    settings = {
        "stem": (8, 4, 8, 16), "depths": (1, 2, 3, 2), "dims": (16, 64, 64, 64), "conv_dims": (16, 24, 48, 48),
        "period": 2, "head_dim": 8, "drop_path": 0.0,
    } | more  # fmt: skip
    return registry.create("fmvit/base", **settings)


def written_out(model: Any) -> Any:
    """The model with every branch computed, each norm by its running statistics."""
    for module in model.modules():
        if isinstance(module, BRANCHED):
            module.training = True  # of this module alone, not of the norms inside
    return model


@pytest.mark.parametrize("name", COUNTS)
def test_counts(name: str) -> None:
    model = measure.on_meta(lambda: registry.create(f"fmvit/{name}", classes=1000))
    macs = measure.macs(model, (1, 3, 224, 224))
    with torch.device("meta"):
        folded = fold(model)
    assert (measure.parameters(model), measure.parameters(folded), macs) == COUNTS[name]
    assert measure.macs(folded, (1, 3, 224, 224)) == macs  # the branches cost nothing in evaluation


def layer_costs(dim: int, out: int, cells: int, kernel: int = 1, groups: int = 1) -> tuple[int, int]:
    """Parameters with a bias and MACs of one convolution or linear layer with `cells` positions after it."""
    weights = dim // groups * out * kernel**2
    return weights + out, weights * cells


def costs(c: Any) -> tuple[int, int]:
    """Folded parameters and MACs at 224 with a classifier of 1000 classes, layer by layer from the settings."""
    layers = []

    def group_convolution(dim: int, cells: int) -> None:
        layers.append(layer_costs(dim, dim, cells, 3, dim // c.head_dim))
        layers.append((dim**2, dim**2 * cells))  # has no bias

    def mlp(dim: int, ratio: float, cells: int) -> None:
        layers.extend((layer_costs(dim, int(dim * ratio), cells), layer_costs(int(dim * ratio), dim, cells)))

    dim = c.in_channels
    for i, out in enumerate(c.stem):
        layers.append(layer_costs(dim, out, (112 if i < 3 else 56) ** 2, 3))
        dim = out
    for i, depth in enumerate(c.depths):
        cells, keys = (56 >> i) ** 2, (56 >> i) ** 2 // c.reductions[i] ** 2
        for j in range(1, depth + 1):
            mixes = i > 0 and (j == depth or (i == 2 and j % c.period == 0))
            out = c.dims[i] if mixes else c.conv_dims[i]
            low = round(c.low * out / c.head_dim) * c.head_dim if mixes else out
            if dim != low or (i > 0 and j == 1):
                layers.append(layer_costs(dim, low, cells))
            if mixes:
                narrow, high = low // c.head_dim * int(c.narrowing * c.head_dim), (out - low) // c.high_paths
                layers += [
                    layer_costs(low, n, m) for n, m in ((narrow, cells), (narrow, keys), (low, keys), (low, cells))
                ]
                layers.append((0, cells * keys * (narrow + low)))
                for _ in range(c.high_paths):
                    layers.append(layer_costs(low, high, cells))
                    group_convolution(high, cells)
            else:
                group_convolution(out, cells)
            mlp(out, c.mlp_ratio if mixes else c.conv_ratio, cells)
            dim = out
    layers.append(layer_costs(dim, 1000, 1))
    return sum(p for p, _ in layers), sum(m for _, m in layers)


def deviations(name: str, parameters: int, macs: int) -> tuple[float, float]:
    return parameters / 1e6 / PAPER[name][0] - 1, macs / 1e9 / PAPER[name][1] - 1


@pytest.mark.parametrize("name", COUNTS)
def test_counts_follow_from_the_settings_and_meet_the_table(name: str) -> None:
    assert set(COUNTS) == set(PAPER) == set(fmvit.VARIANTS)
    assert costs(fmvit.VARIANTS[name]) == COUNTS[name][1:]
    assert deviations(name, *COUNTS[name][1:]) == pytest.approx(DEVIATIONS[name], abs=0.0006)


@pytest.mark.parametrize("name", COUNTS)
def test_no_neighbouring_depth_comes_nearer(name: str) -> None:
    """One block more or fewer in any stage is further off in the worse of parameters and MACs."""
    c = fmvit.VARIANTS[name]

    def worse(depths: tuple[int, ...]) -> float:
        return max(abs(d) for d in deviations(name, *costs(replace(c, depths=depths))))

    for i, more in product(range(4), (-1, 1)):
        neighbour = tuple(d + more * (i == j) for j, d in enumerate(c.depths))
        assert min(neighbour) == 0 or worse(neighbour) > worse(c.depths)


@pytest.mark.parametrize(
    ("name", "kinds"),
    [("tiny", "cc cM ccccMcccM ccM"), ("small", "c cM ccccMccccMM cccM"), ("medium", "c cM ccccMccccMccM ccM"),
     ("base", "cc cccM ccccM ccM"), ("large", "cccc cM ccccMccccMccccMcM cM")],
)  # fmt: skip
def test_kinds_of_blocks(name: str, kinds: str) -> None:
    """Convolutions, and mixing at the ends of stages 2 to 4 and at every fifth block of the third."""
    c = fmvit.VARIANTS[name]
    with torch.device("meta"):
        model: Any = registry.create(f"fmvit/{name}")
    for stage, have, dim, conv_dim, reduction in zip(
        model.stages, kinds.split(), c.dims, c.conv_dims, c.reductions, strict=True
    ):
        blocks = [m for m in stage if isinstance(m, fmvit.ConvolutionBlock | fmvit.MixingBlock)]
        assert "".join("M" if isinstance(b, fmvit.MixingBlock) else "c" for b in blocks) == have
        assert [b.channel_mixer.norm.num_features for b in blocks] == [dim if k == "M" else conv_dim for k in have]
        assert {b.attention.reduction for b in blocks if isinstance(b, fmvit.MixingBlock)} <= {reduction}


def normed(norm: Any, x: Tensor) -> Tensor:
    """Evaluation's batch norm over the last dimension, from its definition."""
    return (x - norm.running_mean) / (norm.running_var + 1e-5).sqrt() * norm.weight + norm.bias


def loop_grouped(layer: GroupedLinear, x: Tensor) -> Tensor:
    """One branch and group at a time over the last dimension."""
    out = torch.zeros(*x.shape[:-1], layer.norms[0].num_features, dtype=x.dtype)  # type: ignore[arg-type]
    for conv, norm in zip(layer.convs, layer.norms, strict=True):
        weight, g = conv.weight[:, :, 0, 0], conv.groups  # type: ignore[index]
        pairs = zip(x.chunk(g, -1), weight.chunk(g), strict=True)  # type: ignore[arg-type, operator]
        parts = [part @ w.T for part, w in pairs]
        out += normed(norm, torch.cat(parts, -1))
    return out if layer.identity is None else out + normed(layer.identity, x)


@pytest.mark.parametrize(("dim", "out"), [(8, 8), (8, 12), (12, 4)])
@pytest.mark.parametrize("groups", [(1,), (1, 2, 4), (4, 2)])
def test_grouped_layer_equals_a_loop(dim: int, out: int, groups: tuple[int, ...]) -> None:
    layer = fill_(GroupedLinear(dim, out, groups).double())
    x = torch.randn(2, 3, 5, dim, dtype=torch.float64)
    want = loop_grouped(layer, x)
    torch.testing.assert_close(layer(x), want)
    torch.testing.assert_close(layer.branches(x), want)
    torch.testing.assert_close(layer.merged()(x), want)
    before = fill_(nn.BatchNorm2d(dim).double())
    torch.testing.assert_close(layer.merged(before)(x), loop_grouped(layer, normed(before, x)))


def test_grouped_layer_s_ends() -> None:
    """In one group it is a convolution with its norm; in as many groups as channels a scale per channel."""
    x = torch.randn(2, 3, 3, 6, dtype=torch.float64)
    one = fill_(GroupedLinear(6, 4, (1,)).double())
    torch.testing.assert_close(one(x), normed(one.norms[0], x @ one.convs[0].weight[:, :, 0, 0].T))
    each = fill_(GroupedLinear(6, 6, (6,)).double())
    weight, _ = each.weights()
    assert torch.equal(weight, weight.diag().diag())
    with pytest.raises(SettingError, match=r"6 and 4 channels do not divide into groups of counts \(1, 4\)"):
        GroupedLinear(6, 4, (1, 4))


def test_norms_of_branches_learn_apart() -> None:
    """In training each branch has its own statistics, which no single layer has."""
    torch.manual_seed(0)
    layer = GroupedLinear(8, 8, (1, 2)).train()
    layer(3 * torch.randn(4, 6, 6, 8) + 1)
    means = [norm.running_mean for norm in (*layer.norms, layer.identity)]
    assert not any(torch.allclose(a, b) for a, b in ((means[0], means[1]), (means[1], means[2])))  # type: ignore[arg-type]


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_branched_convolution_equals_a_loop(groups: int) -> None:
    layer = fill_(BranchedConv(6, groups).double())
    x = torch.randn(2, 6, 3, 4, dtype=torch.float64)
    inside = 6 // groups
    want = torch.zeros(2, 3, 4, 6, dtype=torch.float64)
    for b, i, j in product(range(2), range(3), range(4)):
        wide, point = torch.zeros(6, dtype=torch.float64), torch.zeros(6, dtype=torch.float64)
        for c in range(6):
            mine = slice(c // inside * inside, (c // inside + 1) * inside)
            point[c] = layer.point.weight[c, :, 0, 0] @ x[b, mine, i, j]
            for di, dj in product((-1, 0, 1), (-1, 0, 1)):
                if 0 <= i + di < 3 and 0 <= j + dj < 4:
                    wide[c] += layer.conv.weight[c, :, di + 1, dj + 1] @ x[b, mine, i + di, j + dj]
        here = normed(layer.identity, x[b, :, i, j])
        want[b, i, j] = normed(layer.norm, wide) + normed(layer.norm_point, point) + here
    want = want.permute(0, 3, 1, 2)
    for got in (layer(x), layer.branches(x), layer.merged()(x)):
        torch.testing.assert_close(got, want)


def loop_attention(layer: LightAttention, x: Tensor) -> Tensor:
    """One square, head and query at a time."""
    B, C, H, W = x.shape
    out, r, d = torch.zeros(B, H, W, C, dtype=x.dtype), layer.reduction, C // layer.heads
    for b in range(B):
        scan = normed(layer.norm, x[b].permute(1, 2, 0))
        squares = [scan[i : i + r, j : j + r].mean((0, 1)) for i in range(0, H, r) for j in range(0, W, r)]
        means = torch.stack(squares)
        q, k, v = loop_grouped(layer.q, scan), loop_grouped(layer.k, means), loop_grouped(layer.v, means)
        n = q.shape[-1] // layer.heads
        for h, i, j in product(range(layer.heads), range(H), range(W)):
            logits = k[:, h * n : (h + 1) * n] @ q[i, j, h * n : (h + 1) * n] * n**-0.5
            out[b, i, j, h * d : (h + 1) * d] = logits.softmax(0) @ v[:, h * d : (h + 1) * d]
    return loop_grouped(layer.proj, out).permute(0, 3, 1, 2)


@pytest.mark.parametrize(("size", "reduction"), [((4, 4), 2), ((3, 7), 2), ((1, 2), 4), ((9, 6), 4), ((3, 2), 1)])
@pytest.mark.parametrize("grad", [False, True])
def test_attention_equals_a_loop(size: tuple[int, int], reduction: int, grad: bool) -> None:
    """Squares at the end of odd maps are means of what is there; queries are half as wide as values."""
    layer = LightAttention(16, 2, reduction=reduction, narrowing=0.5, groups=(1, 2, 4))
    assert layer.q(torch.zeros(1, 2, 2, 16)).shape[-1] == 8
    layer = fill_(layer.double())
    x = torch.randn(2, 16, *size, dtype=torch.float64)
    want = loop_attention(layer, x)
    with torch.set_grad_enabled(grad):
        torch.testing.assert_close(layer(x), want)
        merged = layer.merged()
        torch.testing.assert_close(merged(x), want)
        assert merged.merged() is merged
    assert isinstance(layer.norm, nn.BatchNorm2d)  # the layer itself stays as it was


def as_one_layer(layer: GroupedLinear, weight: Tensor, bias: Tensor) -> None:
    """Make a layer of one group the plain linear layer, its identity branch silent."""
    norm: Any = layer.norms[0]
    layer.convs[0].weight.copy_(weight[:, :, None, None])  # type: ignore[operator]
    for n, w, b in ((norm, 1.0, bias), (layer.identity, 0.0, torch.zeros_like(bias))):
        if n is not None:
            n.running_mean.zero_()
            n.running_var.fill_(1 - n.eps)
            n.weight.fill_(w)
            n.bias.copy_(b)


@torch.no_grad()
def test_one_high_path_is_next_vit_s_block() -> None:
    """Two frequencies, one group, queries as wide as values and no pooling: Next-ViT's transformer block."""
    shape = {"head_dim": 8, "mlp_ratio": 2.0}
    theirs: Any = next_vit.TransformerBlock(
        16, 32, halve=True, reduction=1, drop_path=0.0, c=next_vit.NextViTConfig(mix=0.75, **shape)  # type: ignore[arg-type]
    )  # fmt: skip
    c = fmvit.FMViTConfig(high_paths=1, narrowing=1.0, groups=(1,), **shape)  # type: ignore[arg-type]
    ours: Any = fmvit.MixingBlock(16, 32, halve=True, reduction=1, drop_path=0.0, c=c)
    fill_(theirs.double())
    fill_(ours.double())
    ours.embedding.load_state_dict(theirs.embedding.state_dict())
    ours.high[0].narrow.load_state_dict(theirs.narrow.state_dict())
    high, mixer = ours.high[0].token_mixer, theirs.token_mixer
    high.conv.conv.weight.copy_(mixer.conv[0].weight)
    high.conv.norm.load_state_dict(mixer.conv[1].state_dict())
    for silent in (high.conv.norm_point, high.conv.identity):
        silent.weight.zero_()
        silent.bias.zero_()
    high.proj.load_state_dict(mixer.proj.state_dict())
    ours.attention.norm.load_state_dict(theirs.attention.norm.state_dict())
    ours.channel_mixer.norm.load_state_dict(theirs.channel_mixer.norm.state_dict())
    k, v = theirs.attention.kv.weight.chunk(2)
    k_bias, v_bias = theirs.attention.kv.bias.chunk(2)
    as_one_layer(ours.attention.k, k, k_bias)
    as_one_layer(ours.attention.v, v, v_bias)
    for layer, plain in (
        (ours.attention.q, theirs.attention.q), (ours.attention.proj, theirs.attention.proj),
        (ours.channel_mixer.fc1, theirs.channel_mixer.fc1), (ours.channel_mixer.fc2, theirs.channel_mixer.fc2),
    ):  # fmt: skip
        as_one_layer(layer, plain.weight, plain.bias)
    x = torch.randn(2, 16, 7, 5, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x))


def test_mixing_block_joins_low_and_two_highs() -> None:
    """High of the low after attention, then high of what attention read."""
    model = fill_(little().double())
    block = model.stages[1][-1]
    assert (len(block.high), [p.token_mixer.proj.out_features for p in block.high]) == (2, [8, 8])
    x = torch.randn(2, 24, 6, 5, dtype=torch.float64)
    y = block.embedding(x)
    low = y + loop_attention(block.attention, y)
    both = torch.cat([low, block.high[0](low), block.high[1](y)], 1)
    mlp = block.channel_mixer
    hidden = loop_grouped(mlp.fc1, normed(mlp.norm, both.permute(0, 2, 3, 1))).relu()
    torch.testing.assert_close(block(x), both + loop_grouped(mlp.fc2, hidden).permute(0, 3, 1, 2))


def test_attention_is_low_and_convolution_high() -> None:
    """Of a checkerboard the pooled attention leaves nothing that varies, the convolution a lot."""
    i, j = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
    board = (((i + j) % 2) * 2.0 - 1).expand(1, 16, 8, 8).double()
    attention = fill_(LightAttention(16, 2, reduction=2, narrowing=0.5, groups=(1, 2)).double())
    convolution = fill_(fmvit.GroupConvolution(16, 8).double())
    with torch.no_grad():
        low, high = (layer(board)[..., 1:-1, 1:-1].std((2, 3)).mean() for layer in (attention, convolution))
    assert low < 1e-9 * high


@pytest.mark.parametrize(("dtype", "within"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("high_paths", [1, 2])
def test_folded_form_equals_the_training_form(dtype: torch.dtype, within: float, high_paths: int) -> None:
    torch.manual_seed(0)
    model = registry.classifier(little(high_paths=high_paths), 5).to(dtype).train()
    image = torch.randn(8, 3, 131, 122, dtype=dtype)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None  # the mean of what was seen
                module.weight.uniform_(0.5, 1.5)
                module.bias.uniform_(-0.5, 0.5)
        model(image)
    model.eval()
    folded = fold(model)
    left = [n for n, m in folded.backbone.named_modules() if isinstance(m, (*BRANCHED, nn.BatchNorm2d))]
    assert left == []
    with torch.no_grad():
        want = written_out(model)(image)
        assert want.std() > 0.1
        for same in (folded, model.eval(), fold(folded)):
            torch.testing.assert_close(same(image), want, rtol=within, atol=within)


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
    images = torch.randn(2, 3, 70, 53, dtype=torch.float64)
    with torch.set_grad_enabled(grad):
        together = model(images)
        for i, image in enumerate(images):
            for joint, single in zip(together, model(image[None]), strict=True):
                torch.testing.assert_close(joint[i], single[0])


def test_stages_make_the_levels() -> None:
    model = fill_(little().double())
    x = image = torch.randn(1, 3, 80, 64, dtype=torch.float64)
    with torch.no_grad():
        for stage, level in zip(model.stages, model(image), strict=True):
            x = stage(x)
            torch.testing.assert_close(x, level)


def test_training_start_and_drop_path() -> None:
    torch.manual_seed(0)
    model = registry.classifier(registry.create("fmvit/tiny", drop_path=0.15), 5).train()
    F.cross_entropy(model(torch.randn(2, 3, 64, 77)), torch.tensor([1, 4])).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()] == []
    blocks = [m for m in model.modules() if isinstance(m, fmvit.ConvolutionBlock | fmvit.MixingBlock)]
    assert [b.drop_path.p for b in blocks] == pytest.approx([0.01 * i for i in range(16)])
    last = blocks[-1]
    assert isinstance(last, fmvit.MixingBlock)
    assert last.drop_attention.p == pytest.approx(0.75 * 0.15)
    assert [path.drop_path.p for path in last.high] == pytest.approx(2 * [0.25 * 0.15])  # type: ignore[union-attr]
    for layer in (last.attention.v.convs[1], last.channel_mixer.fc1.convs[0]):
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.05)  # type: ignore[operator]


def test_settings_that_do_not_fit() -> None:
    for wrong, message in (
        ({"depths": (1, 1, 1)}, "3 depths, 4 dims"),
        ({"dims": (96, 250, 512, 1024)}, "heads of 32 channels do not divide 250"),
        ({"dims": (64, 256, 512, 1024)}, "no mixing block, so 96 channels"),
        ({"dims": (96, 128, 512, 1024)}, "of 128 channels 96 would attend, and 32 do not divide into 2 paths"),
        ({"high_paths": 3}, "one or two paths"),
        ({"groups": (1, 5)}, "do not divide into groups"),
        ({"groups": ()}, "do not divide into groups"),
        ({"narrowing": 0.01}, "queries of 0.01"),
    ):
        with pytest.raises(SettingError, match=message):
            registry.create("fmvit/base", **wrong)


def test_file_of_ours_and_of_others(tmp_path: Path) -> None:
    """No authors' file exists; one of ours comes back with its channels, another network's is refused."""
    torch.manual_seed(0)
    model = fill_(registry.classifier(registry.create("fmvit/tiny", in_channels=5), 7))
    save(model, tmp_path / "ours.safetensors")
    again = load_published("fmvit/tiny", tmp_path / "ours.safetensors")
    image = torch.randn(1, 5, 64, 64)
    with torch.no_grad():
        assert torch.equal(again(image), model(image))
    with pytest.raises(WeightsError):
        load_published("fmvit/small", tmp_path / "ours.safetensors")
    torch.save({"conv1.weight": torch.zeros(8, 3, 7, 7)}, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match=r"other\.pth"):
        load_published("fmvit/tiny", tmp_path / "other.pth")


def test_facts_say_that_it_is_a_reading() -> None:
    assert fmvit.FACTS.reading
    assert set(fmvit.FACTS.top1) == set(fmvit.VARIANTS)
    assert (fmvit.FACTS.top1["small"], fmvit.FACTS.top1["large"]) == (78.5, 83.3)  # the abstract's two figures
