"""Next-ViT beyond its vectors: attention against a loop, traps, sizes, forms, checkpoints of the authors and timm."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from parity import Fixture, fill_
from torch import Tensor, nn

from core import registry
from core.backbones import next_vit
from core.backbones._next_vit_layers import ReducedAttention, divisible, embedding
from core.compression.fold import fold
from core.errors import SettingError, ShapeError
from core.weights import choose, convert, load, load_published, save

COUNTS = {"small": 31_763_368, "base": 44_818_856, "large": 57_874_344}  # the card's, 1000 classes
PARITY = Path(__file__).parent / "parity"


def little(**more: Any) -> Any:
    """Every kind of stage in a few narrow blocks of 8 channels a head."""
    settings = {
        "stem": (8, 4, 8, 16), "depths": (1, 2, 3, 2), "dims": (16, 32, 64, 64), "conv_dims": (16, 24, 48, 48),
        "period": 2, "head_dim": 8, "drop_path": 0.0,
    } | more  # fmt: skip
    return registry.create("next_vit/small", **settings)


def test_parameter_counts() -> None:
    assert set(COUNTS) == set(next_vit.VARIANTS)
    for name, count in COUNTS.items():
        with torch.device("meta"):
            model = registry.create(f"next_vit/{name}", classes=1000)
        assert sum(p.numel() for p in model.parameters()) == count, name


def test_make_up_of_the_variants() -> None:
    """The third stage is a row of fives, each of four convolution blocks and a transformer block."""
    for name, fives in (("small", 2), ("base", 4), ("large", 6)):
        with torch.device("meta"):
            model = registry.create(f"next_vit/{name}")
        kinds = ["T" if isinstance(block, next_vit.TransformerBlock) else "c" for block in model.blocks]
        assert "".join(kinds) == "ccc" + "cccT" + fives * "ccccT" + "ccT"
        widths = [block.channel_mixer.norm.num_features for block in model.blocks]
        assert widths == 3 * [96] + 3 * [192] + [256] + fives * [384, 384, 384, 384, 512] + [768, 768, 1024]
    ends = [[j for j, transformer in enumerate(s) if transformer] for s in little(depths=(2, 1, 7, 1)).kinds]
    assert ends == [[], [0], [1, 3, 5, 6], [0]]


def normed(norm: Any, x: Tensor) -> Tensor:
    """Evaluation's batch norm over the last dimension, from its definition."""
    return (x - norm.running_mean) / (norm.running_var + 1e-5).sqrt() * norm.weight + norm.bias


def loop_attention(layer: ReducedAttention, x: Tensor, reduction: int) -> Tensor:
    """One head and query at a time, from the card."""
    B, C, H, W = x.shape
    d, run = C // layer.heads, reduction**2
    out = torch.zeros(B, H * W, C, dtype=x.dtype)
    for b in range(B):
        scan = normed(layer.norm, torch.stack([x[b, :, i, j] for i in range(H) for j in range(W)]))
        sources = scan
        if reduction > 1:
            runs = [scan[s : s + run].mean(0) for s in range(0, H * W, run) if s + run <= H * W]
            sources = normed(layer.norm_means, torch.stack(runs))
        q = scan @ layer.q.weight.T + layer.q.bias
        k, v = (sources @ layer.kv.weight.T + layer.kv.bias).split(C, -1)
        for h in range(0, C, d):
            for n in range(H * W):
                weights = (k[:, h : h + d] @ q[n, h : h + d] * d**-0.5).softmax(0)
                out[b, n, h : h + d] = weights @ v[:, h : h + d]
    out = out @ layer.proj.weight.T + layer.proj.bias
    return out.transpose(1, 2).reshape(B, C, H, W)


@pytest.mark.parametrize(("size", "reduction"), [((4, 4), 2), ((3, 7), 2), ((2, 2), 2), ((5, 8), 4), ((3, 2), 1)])
@pytest.mark.parametrize("grad", [False, True])
def test_attention_equals_a_loop(size: tuple[int, int], reduction: int, grad: bool) -> None:
    """Runs wrap over the ends of rows (3 x 7), and the remainder falls away (21 = 5 * 4 + 1)."""
    torch.manual_seed(0)
    layer = fill_(ReducedAttention(8, 4, reduction).double())
    x = torch.randn(2, 8, *size, dtype=torch.float64)
    with torch.set_grad_enabled(grad):
        torch.testing.assert_close(layer(x), loop_attention(layer, x, reduction))


def test_transformer_block_joins_attention_first() -> None:
    model = fill_(little().double())
    block = model.blocks[-1]
    assert isinstance(block.attention.norm_means, nn.Identity)  # no reduction in the last stage
    x = torch.randn(2, 48, 3, 2, dtype=torch.float64)

    def last(y: Tensor) -> Tensor:
        return y.permute(0, 2, 3, 1)

    y = x + loop_attention(block.attention, x, 1)
    conv, norm = block.narrow[1]
    z = normed(norm, last(F.conv2d(y, conv.weight))).permute(0, 3, 1, 2)
    conv, norm = block.token_mixer.conv
    w = normed(norm, last(F.conv2d(z, conv.weight, padding=1, groups=2))).relu()
    z = z + (w @ block.token_mixer.proj.weight.T).permute(0, 3, 1, 2)
    y = torch.cat([y, z], 1)
    mlp = block.channel_mixer
    want = y + mlp.fc2(mlp.fc1(normed(mlp.norm, last(y))).relu()).permute(0, 3, 1, 2)
    torch.testing.assert_close(block(x), want)


def test_halving_averages_what_is_there() -> None:
    """Odd sides round up; the last cell is the mean of its own pixels alone, then comes the 1x1 layer."""
    layer = fill_(embedding(2, 3, halve=True).double())
    x = torch.randn(1, 2, 3, 5, dtype=torch.float64)
    means = torch.zeros(2, 3, 2, dtype=torch.float64)
    for i in range(2):
        for j in range(3):
            means[i, j] = x[0, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean((1, 2))
    conv, norm = layer[1]
    torch.testing.assert_close(layer(x)[0].permute(1, 2, 0), normed(norm, means @ conv.weight[:, :, 0, 0].T))


@pytest.mark.parametrize(
    ("value", "by", "want"),
    [(192, 32, 192), (48, 32, 64), (47, 32, 64), (71, 32, 64), (5, 32, 32), (35, 32, 32), (36, 32, 64), (79, 32, 96)],
)
def test_divisible(value: float, by: int, want: int) -> None:
    assert divisible(value, by) == want


@pytest.mark.parametrize("grad", [False, True])
def test_images_do_not_mix(grad: bool) -> None:
    model = fill_(little().double())
    images = torch.randn(2, 3, 70, 53, dtype=torch.float64)
    with torch.set_grad_enabled(grad):
        together = model(images)
        for i, image in enumerate(images):
            for joint, single in zip(together, model(image[None]), strict=True):
                torch.testing.assert_close(joint[i], single[0])


@pytest.mark.parametrize("size", [(64, 64), (101, 67), (97, 130), (25, 26)])
def test_any_size_rounds_up(size: tuple[int, int]) -> None:
    model = fill_(little())
    h, w = (-(-n // 4) for n in size)
    with torch.no_grad():
        for level, channels in zip(model(torch.randn(1, 3, *size)), model.channels, strict=True):
            assert level.shape == (1, channels, h, w)
            h, w = -(-h // 2), -(-w // 2)


def test_too_small_for_keys() -> None:
    """Stage 2 needs 16 positions and stage 3 four, in whatever form."""
    model = fill_(little())
    with torch.no_grad():
        assert model(torch.randn(1, 3, 25, 25))[3].shape == (1, 64, 1, 1)
        assert model(torch.randn(1, 3, 8, 128))[1].shape == (1, 32, 1, 16)
        with pytest.raises(ShapeError, match=r"24 x 24 .* stride 8 fewer than 16 positions.* 25 x 25 or more"):
            model(torch.randn(1, 3, 24, 24))
        with pytest.raises(ShapeError, match=r"stride 16 fewer than 4 positions.* 17 x 17 or more"):
            fill_(little(reductions=(8, 1, 2, 1)))(torch.randn(1, 3, 16, 48))


def test_stages_make_the_levels() -> None:
    """Item i of `stages` makes level i from level i - 1, holds the network's own parameters and is what runs."""
    model = fill_(little())
    image = torch.randn(1, 3, 80, 64)
    seen: list[int] = []
    handles = [s.register_forward_hook(lambda *_, i=i: seen.append(i)) for i, s in enumerate(model.stages)]
    with torch.no_grad():
        x, pyramid = image, model(image)
        for handle in handles:
            handle.remove()
        for stage, level in zip(model.stages, pyramid, strict=True):
            x = stage(x)
            torch.testing.assert_close(x, level)
    assert seen == [0, 1, 2, 3]
    assert {id(p) for s in model.stages for p in s.parameters()} == {id(p) for p in model.parameters()}
    assert len(list(model.parameters())) == sum(len(list(s.parameters())) for s in model.stages)
    assert not any(n.startswith(("stages", "_levels")) for n in model.state_dict())


def test_a_copy_stands_alone() -> None:
    model = fill_(little())
    image = torch.randn(1, 3, 48, 48)
    with torch.no_grad():
        other, before = copy.deepcopy(model), model(image)
        for parameter in other.parameters():
            parameter.zero_()
        assert all(not level.any() for level in other(image))
        for a, b in zip(model(image), before, strict=True):
            assert torch.equal(a, b)


def test_head_norms_and_then_pools() -> None:
    model = fill_(registry.classifier(little(), 5).double())
    image = torch.randn(2, 3, 100, 70, dtype=torch.float64)
    x = normed(model.head.norm, model.backbone(image)[-1].permute(0, 2, 3, 1)).mean((1, 2))
    torch.testing.assert_close(model(image), model.head.fc(x))


def test_one_training_step() -> None:
    torch.manual_seed(0)
    model = registry.classifier(little(drop_path=0.1), 5).train()
    F.cross_entropy(model(torch.randn(2, 3, 64, 77)), torch.tensor([1, 4])).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()] == []


def test_initialisation_and_drop_path() -> None:
    torch.manual_seed(0)
    model = registry.create("next_vit/small", drop_path=0.19)
    rates = [block.drop_path.p for block in model.blocks]
    assert rates == pytest.approx([0.01 * i for i in range(20)])
    block = model.blocks[-1]
    assert (block.drop_attention.p, block.drop_convolution.p) == pytest.approx((0.75 * 0.19, 0.25 * 0.19))
    for weight in (block.attention.kv.weight, block.token_mixer.conv[0].weight, block.token_mixer.proj.weight):
        assert weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert not block.channel_mixer.fc1.bias.any()


def test_all_norms_but_the_head_s_fold_exactly() -> None:
    model = fill_(registry.classifier(little(), 5).double())
    folded = fold(model)
    norms = [n for n, m in folded.backbone.named_modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    assert norms == []
    image = torch.randn(2, 3, 75, 58, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(folded(image), model(image), rtol=1e-9, atol=1e-9)
    assert any(isinstance(m, nn.BatchNorm1d) for m in model.modules())  # the network itself stays as it is


def test_state_round_trip(tmp_path: Path) -> None:
    model, fresh = fill_(little()), little().eval()
    save(model, tmp_path / "w.safetensors")
    load(fresh, tmp_path / "w.safetensors")
    image = torch.randn(1, 3, 50, 41)
    with torch.no_grad():
        for a, b in zip(model(image), fresh(image), strict=True):
            assert torch.equal(a, b)


def test_settings_that_do_not_fit() -> None:
    with pytest.raises(SettingError, match="3 depths, 4 dims"):
        registry.create("next_vit/small", depths=(1, 1, 1))
    with pytest.raises(SettingError, match="heads of 32 channels do not divide 250"):
        registry.create("next_vit/small", dims=(96, 250, 512, 1024))
    with pytest.raises(SettingError, match="no transformer block, so 96 channels"):
        registry.create("next_vit/small", dims=(64, 256, 512, 1024))
    with pytest.raises(SettingError, match="256 of 256 channels would attend"):
        registry.create("next_vit/small", mix=0.97)
    with pytest.raises(SettingError, match="extra norms"):
        next_vit.from_published({"class": "nextvit_small", "with_extra_norm": True}, {})


def test_published_checkpoint(tmp_path: Path) -> None:
    """A file as the trainer saves it."""
    fixture = Fixture.read(PARITY / "next-vit--small-224.json")
    state = fixture.state_dict()
    counters = {n.replace("running_var", "num_batches_tracked"): torch.tensor(7) for n in state if "running_var" in n}
    torch.save({"model": state | counters, "optimizer": {"step": 3}}, tmp_path / "nextvit_small.pth")
    model = load_published("next_vit/small", tmp_path / "nextvit_small.pth")
    with torch.no_grad():
        fixture.compare("logits", model(fixture.input()), 1e-3)


def test_dense_file_gives_the_backbone(tmp_path: Path) -> None:
    fixture = Fixture.read(PARITY / "next-vit--dense-small-232x296.json")
    torch.save({"state_dict": {f"backbone.{n}": v for n, v in fixture.state_dict().items()}}, tmp_path / "dense.pth")
    model = load_published("next_vit/small", tmp_path / "dense.pth", prefix="backbone.")
    with torch.no_grad():
        fixture.compare("stage4", model(fixture.input())[3], 1e-3)


def test_timm_file(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    theirs = fill_(timm.create_model("nextvit_base", num_classes=7))
    torch.save(theirs.state_dict(), tmp_path / "timm.pth")
    model = load_published("next_vit/base", tmp_path / "timm.pth").double()
    image = torch.randn(2, 3, 90, 69, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(model(image), theirs.double()(image))


def published_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our names and values as the authors write them."""
    out = {}
    for name, value in state.items():
        if name.endswith("num_batches_tracked"):
            continue
        name = name.removeprefix("backbone.")
        transformer = f"backbone.{'.'.join(name.split('.')[:2])}.attention.q.weight" in state
        name = name.replace("attention.norm.", "norm1.").replace("attention.norm_means.", "attention.norm.")
        name = re.sub(r"^stem\.(\d)\.0\.0\.", r"stem.\1.conv.", name)
        name = re.sub(r"^stem\.(\d)\.0\.1\.", r"stem.\1.norm.", name)
        name = name.replace("channel_mixer.norm.", "norm2." if transformer else "norm.")
        matrix = re.search(r"(channel_mixer\.fc\d|token_mixer\.proj)\.weight", name)
        for ours, theirs in (
            ("blocks.", "features."), ("embedding.1.0.", "patch_embed.conv."), ("embedding.1.1.", "patch_embed.norm."),
            ("narrow.1.0.", "projection.conv."), ("narrow.1.1.", "projection.norm."), ("attention.", "e_mhsa."),
            ("token_mixer.conv.0.", "mhca.group_conv3x3."), ("token_mixer.conv.1.", "mhca.norm."),
            ("token_mixer.proj.", "mhca.projection."), ("channel_mixer.fc", "mlp.conv"),
            ("head.norm.", "norm."), ("head.fc.", "proj_head.0."),
        ):  # fmt: skip
            name = name.replace(ours, theirs)
        if ".kv." in name:
            for part, half in zip("kv", value.chunk(2), strict=True):
                out[name.replace(".kv.", f".{part}.")] = half
        else:
            out[name] = value[:, :, None, None] if matrix else value
    return out


@pytest.mark.parametrize("depths", [(1, 2, 4, 2), (3, 1, 6, 1), (2, 3, 5, 1)])
def test_names_and_shapes_give_the_settings(depths: tuple[int, ...]) -> None:
    """Other widths, depths and ratios, from a file and the arguments that shapes cannot show."""
    config = next_vit.NextViTConfig(
        in_channels=5, stem=(8, 4, 8, 16), depths=depths, dims=(32, 64, 96, 128), conv_dims=(32, 48, 80, 112),
        period=2, head_dim=16, mix=0.5, reductions=(8, 2, 2, 1), conv_ratio=2.0, mlp_ratio=3.0, drop_path=0.3,
    )  # fmt: skip
    model = fill_(registry.classifier(next_vit.build(config), 4))
    theirs = published_names(model.state_dict())
    shapes = {n: tuple(v.shape) for n, v in theirs.items()}
    base = next_vit.NextViTConfig(period=2, conv_dims=config.conv_dims)
    build = {"path_dropout": 0.3, "sr_ratios": [8, 2, 2, 1], "mix_block_ratio": 0.5}
    assert next_vit.from_published(build, shapes, base) == config
    fresh = registry.classifier(next_vit.build(config), 4).eval()
    fresh.load_state_dict(convert(theirs, choose(next_vit.PUBLISHED, theirs), fresh))
    image = torch.randn(2, 5, 64, 40)
    with torch.no_grad():
        assert torch.equal(fresh(image), model(image))


def test_arguments_alone_name_the_variant() -> None:
    for name, config in next_vit.VARIANTS.items():
        assert next_vit.from_published({"factory": f"nextvit_{name}"}, {}) == config
        assert next_vit.from_published({"class": f"nextvit_{name}", "with_extra_norm": False}, {}) == config
    assert next_vit.from_published({}, {}, next_vit.VARIANTS["large"]) == next_vit.VARIANTS["large"]


@pytest.mark.slow
def test_compiles_whole() -> None:
    torch._dynamo.reset()
    model = fill_(little())
    image = torch.randn(2, 3, 96, 70)
    with torch.no_grad():
        for a, b in zip(torch.compile(model, fullgraph=True)(image), model(image), strict=True):
            torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-3)
