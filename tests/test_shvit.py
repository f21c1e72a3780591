"""SHViT beyond its vector: the mixer against a loop, traps, sizes, forms, checkpoints of the authors and timm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from parity import Fixture, fill_
from torch import Tensor, nn

from core import registry
from core.backbones import shvit
from core.compression.fold import fold
from core.errors import SettingError
from core.mixers.partial_attention import SingleHeadPartialAttention, conv_norm
from core.weights import load, load_published, save

COUNTS = {"s1": 6_330_808, "s2": 11_483_072, "s3": 14_245_273, "s4": 16_588_484}  # the card's, 1000 classes
PARITY = Path(__file__).parent / "parity"


def little(**more: Any) -> Any:
    """One or two blocks a stage; widths that neither eights nor heads divide but for the stem's."""
    settings = {"dims": (16, 21, 30), "depths": (1, 2, 1), "partial": (5, 7, 9), "qk_dim": 4} | more
    return registry.create("shvit/s1", **settings)


def test_parameter_counts() -> None:
    assert set(COUNTS) == set(shvit.VARIANTS)
    for name, count in COUNTS.items():
        with torch.device("meta"):
            model = registry.create(f"shvit/{name}", classes=1000)
        assert sum(p.numel() for p in model.parameters()) == count, name


def batch_normed(norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    """Evaluation's batch norm over the last dimension, from its definition."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return (x - norm.running_mean) / (norm.running_var + 1e-5).sqrt() * norm.weight + norm.bias


def loop_attention(layer: SingleHeadPartialAttention, x: Tensor) -> Tensor:
    """One query at a time, from the card."""
    B, H, W, _ = x.shape
    p, d = layer.partial, layer.qk_dim
    out = torch.zeros_like(x)
    for b in range(B):
        first = x[b, ..., :p]
        normed = (first - first.mean()) / (first.var(unbiased=False) + 1e-5).sqrt()
        normed = normed * layer.norm.weight + layer.norm.bias
        qkv = batch_normed(layer.qkv[1], normed.reshape(H * W, p) @ layer.qkv[0].weight.flatten(1).T)
        q, k, v = qkv[:, :d], qkv[:, d : 2 * d], qkv[:, 2 * d :]
        for n in range(H * W):
            weights = torch.stack([d**-0.5 * (q[n] @ k[m]) for m in range(H * W)]).softmax(0)
            mixed = torch.cat([sum(w * v[m] for m, w in enumerate(weights)), x[b, n // W, n % W, p:]])
            projected = layer.proj[0].weight.flatten(1) @ mixed.clamp(min=0)
            out[b, n // W, n % W] = batch_normed(layer.proj[1], projected)
    return out


@pytest.mark.parametrize("size", [(1, 1), (3, 4), (2, 5)])
@pytest.mark.parametrize("partial", [3, 8])
@pytest.mark.parametrize("grad", [False, True])
def test_attention_equals_a_loop(size: tuple[int, int], partial: int, grad: bool) -> None:
    torch.manual_seed(0)
    layer = fill_(SingleHeadPartialAttention(8, partial, qk_dim=2).double())
    x = torch.randn(2, *size, 8, dtype=torch.float64)
    with torch.set_grad_enabled(grad):
        torch.testing.assert_close(layer(x), loop_attention(layer, x))


def test_untouched_channels_stay_local() -> None:
    """A far cell's passing channels change nothing here; its attending ones do, through norm and attention."""
    layer = fill_(SingleHeadPartialAttention(8, 3, qk_dim=2).double())
    x = torch.randn(1, 4, 4, 8, dtype=torch.float64)
    passing, attending = x.clone(), x.clone()
    passing[0, 3, 3, 3:] += 1
    attending[0, 3, 3, :3] += torch.tensor([1.0, -2.0, 3.0])
    with torch.no_grad():
        assert torch.equal(layer(passing)[0, 0, 0], layer(x)[0, 0, 0])
        assert (layer(attending)[0, 0, 0] - layer(x)[0, 0, 0]).abs().max() > 1e-4


def test_merging_squeezes_after_its_second_activation() -> None:
    layer = fill_(shvit.Merging(6, 10).double())
    x = torch.randn(2, 6, 5, 4, dtype=torch.float64)
    y = layer.widen(x).relu()
    y = layer.depthwise(y).relu()
    s = F.linear(F.linear(y.mean((2, 3)), layer.se.fc1.weight, layer.se.fc1.bias).relu(), layer.se.fc2.weight)
    y = y * (s + layer.se.fc2.bias).sigmoid()[:, :, None, None]
    torch.testing.assert_close(layer(x), layer.narrow(y))
    assert layer(x).shape == (2, 10, 3, 2)


@pytest.mark.parametrize(("dim", "hidden"), [(308, 312), (3, 8), (128, 128), (21, 24), (19, 16), (20, 24)])
def test_squeeze_width_is_in_whole_eights(dim: int, hidden: int) -> None:
    assert shvit.Merging(dim, 8).se.fc1.weight.shape == (hidden, 4 * dim)


@pytest.mark.parametrize("grad", [False, True])
def test_images_do_not_mix(grad: bool) -> None:
    model = fill_(little().double())
    images = torch.randn(2, 3, 70, 113, dtype=torch.float64)
    with torch.set_grad_enabled(grad):
        together = model(images)
        for i, image in enumerate(images):
            for joint, single in zip(together, model(image[None]), strict=True):
                torch.testing.assert_close(joint[i], single[0])


@pytest.mark.parametrize("size", [(224, 224), (101, 67), (33, 97), (1, 5)])
def test_any_size_rounds_up(size: tuple[int, int]) -> None:
    model = fill_(little())
    h, w = (-(-n // 16) for n in size)
    with torch.no_grad():
        for level, channels in zip(model(torch.randn(1, 3, *size)), model.channels, strict=True):
            assert level.shape == (1, channels, h, w)
            h, w = -(-h // 2), -(-w // 2)


def test_stages_make_the_levels() -> None:
    """Item i makes level i from level i - 1; nothing follows them, so the dense form is the backbone itself."""
    model = fill_(little())
    image = torch.randn(1, 3, 80, 64)
    with torch.no_grad():
        x = image
        for stage, level in zip(model.stages, model(image), strict=True):
            x = stage(x)
            torch.testing.assert_close(x, level)


def test_head_pools_and_then_norms() -> None:
    model = fill_(registry.classifier(little(), 5).double())
    image = torch.randn(2, 3, 100, 70, dtype=torch.float64)
    x = batch_normed(model.head.norm, model.backbone(image)[-1].mean((2, 3)))
    torch.testing.assert_close(model(image), model.head.fc(x))


def test_distilled_head_is_the_mean_of_two() -> None:
    model = fill_(registry.classifier(little(distilled=True), 5).double())
    image = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    pooled = model.backbone(image)[-1].mean((2, 3))
    first = model.head.fc(batch_normed(model.head.norm, pooled))
    second = model.head.fc_distilled(batch_normed(model.head.norm_distilled, pooled))
    assert (first - second).abs().max() > 0.1
    for got, want in zip(model.head.both(model.backbone(image)), (first, second), strict=True):
        torch.testing.assert_close(got, want)
    torch.testing.assert_close(model(image), (first + second) / 2)


@pytest.mark.parametrize("distilled", [False, True])
def test_one_training_step(distilled: bool) -> None:
    torch.manual_seed(0)
    model = registry.classifier(little(distilled=distilled), 5).train()
    F.cross_entropy(model(torch.randn(2, 3, 64, 77)), torch.tensor([1, 4])).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()] == []


def test_initialisation() -> None:
    """Residual branches start at zero, but for the depthwise convolutions around a merging."""
    model = little().eval()
    block = model.stages[1].blocks[1]
    x = torch.randn(2, 21, 4, 4)
    with torch.no_grad():
        assert torch.equal(block(x), x)
    assert not block.token_mixer.proj[1].weight.any()
    for pair in (model.stages[1].merge.before, model.stages[1].merge.after):
        assert (pair[0].branch[1].weight == 1).all()
        assert not pair[1].branch[2][1].weight.any()
    fc = registry.create("shvit/s1", classes=1000).head.fc
    assert fc.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert not fc.bias.any()


@pytest.mark.parametrize("distilled", [False, True])
def test_all_norms_fold_exactly(distilled: bool) -> None:
    model = fill_(registry.classifier(little(distilled=distilled), 5).double())
    folded = fold(model)
    assert [n for n, m in folded.named_modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)] == []
    assert isinstance(folded.backbone.stages[1].blocks[0].depthwise, nn.Conv2d)  # its shortcut is in it
    image = torch.randn(2, 3, 75, 58, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(folded(image), model(image), rtol=1e-9, atol=1e-9)
    assert any(isinstance(m, nn.BatchNorm2d) for m in model.modules())  # the network itself stays as it is


def test_folded_parameter_counts() -> None:
    for name, count in {"s1": 6_308_660, "s2": 11_453_508, "s3": 14_210_010, "s4": 16_546_248}.items():  # the card's
        folded = fold(registry.create(f"shvit/{name}", classes=1000))
        assert sum(p.numel() for p in folded.parameters()) == count, name


def test_pair_is_convolution_then_norm() -> None:
    pair = fill_(conv_norm(3, 6, 3, stride=2).double())
    x = torch.randn(1, 3, 7, 6, dtype=torch.float64)
    want = batch_normed(pair[1], F.conv2d(x, pair[0].weight, stride=2, padding=1).permute(0, 2, 3, 1))
    torch.testing.assert_close(pair(x), want.permute(0, 3, 1, 2))


def test_state_round_trip(tmp_path: Path) -> None:
    model, fresh = fill_(little()), little().eval()
    save(model, tmp_path / "w.safetensors")
    load(fresh, tmp_path / "w.safetensors")
    image = torch.randn(1, 3, 50, 41)
    with torch.no_grad():
        for a, b in zip(model(image), fresh(image), strict=True):
            assert torch.equal(a, b)


def test_settings_that_do_not_fit() -> None:
    with pytest.raises(SettingError, match="3 dims, 2 depths"):
        registry.create("shvit/s1", depths=(1, 1))
    with pytest.raises(SettingError, match="more channels would attend than there are: 321 of 320"):
        registry.create("shvit/s1", partial=(1000, 48, 321))
    with pytest.raises(SettingError, match="whole eights, got 100"):
        registry.create("shvit/s1", dims=(100, 224, 320))


def test_published_checkpoint(tmp_path: Path) -> None:
    """A file as the trainer saves it, for the classifier and for the backbone of a detector."""
    fixture = Fixture.read(PARITY / "shvit--shvit-s1.json")
    state = fixture.state_dict()
    counters = {n.replace("running_var", "num_batches_tracked"): torch.tensor(7) for n in state if "running_var" in n}
    torch.save({"model": state | counters, "epoch": 299}, tmp_path / "shvit_s1.pth")
    model = load_published("shvit/s1", tmp_path / "shvit_s1.pth")
    with torch.no_grad():
        fixture.compare("logits", model(fixture.input()), 1e-3)
    dense = {f"backbone.{n}": v for n, v in state.items() if not n.startswith("head")}
    torch.save({"state_dict": dense}, tmp_path / "dense.pth")
    model = load_published("shvit/s1", tmp_path / "dense.pth", prefix="backbone.")
    with torch.no_grad():
        fixture.compare("stage3", model(fixture.input())[2], 1e-3)


def published_names(model: nn.Module) -> dict[str, Tensor]:
    """Our state as the authors write it."""
    out = {}
    for name, value in model.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        name = name.removeprefix("backbone.")
        for ours, theirs in (
            ("stages.0.merge.", "patch_embed."), ("stages.0.", "blocks1."), ("stages.1.", "blocks2."),
            ("stages.2.", "blocks3."), ("merge.before.", "0."), ("merge.merging.", "1."), ("merge.after.", "2."),
            ("head.norm.", "head.bn."), ("head.fc.", "head.l."),
            ("head.norm_distilled.", "head_dist.bn."), ("head.fc_distilled.", "head_dist.l."),
        ):  # fmt: skip
            name = name.replace(ours, theirs)
        parts = name.split(".")
        if parts[0] in ("blocks2", "blocks3") and "blocks" in parts:
            parts[2] = str(int(parts[2]) + 3)
        name = ".".join(p for p in parts if p != "blocks")
        for ours, theirs in (
            ("token_mixer.norm.", "mixer.m.pre_norm."), ("token_mixer.proj.", "mixer.m.proj.1."),
            ("token_mixer.", "mixer.m."), ("channel_mixer.branch.", "ffn.m."), ("depthwise.branch.", "conv.m."),
            ("widen.", "conv1."), ("depthwise.", "conv2."), ("narrow.", "conv3."), ("branch.", "m."),
        ):  # fmt: skip
            name = name.replace(ours, theirs)
        for ours, theirs in (("m.0.0.", "m.pw1.0."), ("m.0.1.", "m.pw1.1."), ("m.2.", "m.pw2.")):
            name = name.replace(ours, theirs)
        parts = name.split(".")
        parts[-2] = {"0": "c", "1": "bn"}.get(parts[-2], parts[-2])  # of a pair
        name = ".".join(parts)
        out[name] = value[:, :, None, None] if ".se." in name and name.endswith("weight") else value
    return out


@pytest.mark.parametrize("distilled", [False, True])
def test_names_and_shapes_give_the_settings(tmp_path: Path, distilled: bool) -> None:
    """Other widths, depths and stage types than the published, and the distilled classifier, from a file alone."""
    config = shvit.SHViTConfig(
        in_channels=5, dims=(24, 20, 36), depths=(1, 12, 2), partial=(7, 5, 48), attention=(True, True, False),
        qk_dim=6, distilled=distilled,
    )  # fmt: skip
    model = fill_(registry.classifier(shvit.build(config), 4))
    theirs = published_names(model)
    shapes = {n: tuple(v.shape) for n, v in theirs.items()}
    base = shvit.SHViTConfig(partial=(1, 2, 48))
    assert shvit.from_published({"fn": "shvit_x"}, shapes, base) == config
    torch.save({"model": theirs}, tmp_path / "x.pth")
    loaded = load_published("shvit/s1", tmp_path / "x.pth", dims=config.dims, depths=config.depths)
    image = torch.randn(2, 5, 90, 65)
    with torch.no_grad():
        torch.testing.assert_close(loaded(image), model(image))


def test_arguments_alone_name_the_variant() -> None:
    for name, config in shvit.VARIANTS.items():
        assert shvit.from_published({"fn": f"shvit_{name}"}, {}) == config
    assert shvit.from_published({}, {}, shvit.VARIANTS["s3"]) == shvit.VARIANTS["s3"]


@pytest.mark.parametrize("variant", ["s2", "s3"])
def test_timm_file(tmp_path: Path, variant: str) -> None:
    timm = pytest.importorskip("timm")
    theirs = fill_(timm.create_model(f"shvit_{variant}", num_classes=7))
    torch.save(theirs.state_dict(), tmp_path / "timm.pth")
    model = load_published(f"shvit/{variant}", tmp_path / "timm.pth").double()
    image = torch.randn(2, 3, 101, 150, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(model(image), theirs.double()(image))


@pytest.mark.slow
def test_compiles_whole() -> None:
    torch._dynamo.reset()
    model = fill_(little())
    image = torch.randn(2, 3, 96, 70)
    with torch.no_grad():
        for a, b in zip(torch.compile(model, fullgraph=True)(image), model(image), strict=True):
            torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-3)
