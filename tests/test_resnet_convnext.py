"""The convolutional baselines equal the libraries that they come from, whatever names their weights have."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from timm.models.convnext import ConvNeXt as TimmConvNeXt
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from core import registry
from core.errors import SettingError, ShapeError, WeightsError
from core.weights import load_published

LIBRARY: dict[str, Callable[[], nn.Module]] = {
    "resnet/18": torchvision.models.resnet18,
    "resnet/34": torchvision.models.resnet34,
    "resnet/50": torchvision.models.resnet50,
    "resnet/101": torchvision.models.resnet101,
    "resnet/152": torchvision.models.resnet152,
    "resnet/next50_32x4": torchvision.models.resnext50_32x4d,
    "resnet/next101_32x8": torchvision.models.resnext101_32x8d,
    "resnet/next101_64x4": torchvision.models.resnext101_64x4d,
    "resnet/wide50": torchvision.models.wide_resnet50_2,
    "resnet/wide101": torchvision.models.wide_resnet101_2,
    **{f"convnext/{n}": (lambda n=n: timm.create_model(f"convnext_{n}")) for n in ("tiny", "small", "base", "large")},
    "convnext/xlarge": lambda: timm.create_model("convnext_xlarge"),
    **{
        f"convnext/v2_{n}": (lambda n=n: timm.create_model(f"convnextv2_{n}"))
        for n in ("atto", "femto", "pico", "nano", "tiny", "base", "large", "huge")
    },
}


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_parameter_counts_are_the_libraries() -> None:
    assert set(LIBRARY) == {f"{f}/{v}" for f in ("resnet", "convnext") for v in registry.family(f).VARIANTS}
    for name, make in LIBRARY.items():
        with torch.device("meta"):
            assert count(registry.create(name, classes=1000)) == count(make()), name
    with torch.device("meta"):
        assert count(registry.create("resnet/50")) == 23_508_032  # DuoFormer's card
        assert count(registry.create("resnet/50", classes=1000)) == 25_557_032


def stirred(model: nn.Module) -> nn.Module:
    """Every parameter and statistic away from its start, so that each one shows in the output."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                noise = torch.randn(value.shape, generator=generator, dtype=value.dtype)
                value.add_(noise.abs() * 0.3 if name.endswith("running_var") else noise * 0.05)
    return model.eval()


def resnet_features(net: Any, image: Tensor) -> list[Tensor]:
    x, levels = net.maxpool(net.relu(net.bn1(net.conv1(image)))), []
    for layer in (net.layer1, net.layer2, net.layer3, net.layer4):
        x = layer(x)
        levels.append(x)
    return levels


def convnext_features(net: Any, image: Tensor) -> list[Tensor]:
    x, levels = net.stem(image), []
    for stage in net.stages:
        x = stage(x)
        levels.append(x)
    return levels


RESNETS: dict[str, Callable[[int], nn.Module]] = {  # in_channels -> a small network of the library
    "18": lambda c: with_channels(ResNet(BasicBlock, [1, 2, 1, 1], num_classes=7), c),
    "50": lambda c: with_channels(ResNet(Bottleneck, [2, 1, 1, 1], num_classes=7), c),
    "next50_32x4": lambda c: with_channels(ResNet(Bottleneck, [1, 1, 1, 1], 7, groups=32, width_per_group=4), c),
    "wide50": lambda c: with_channels(ResNet(Bottleneck, [1, 1, 1, 2], 7, width_per_group=128), c),
}
SHAPE = {"depths": (1, 2, 1, 1), "dims": (8, 16, 24, 40)}
SMALL = SHAPE | {"num_classes": 7}
CONVNEXTS: dict[str, Callable[[int], nn.Module]] = {
    "tiny": lambda c: TimmConvNeXt(in_chans=c, **SMALL),
    "v2_atto": lambda c: TimmConvNeXt(in_chans=c, use_grn=True, ls_init_value=None, conv_mlp=True, **SMALL),
    "v2_tiny": lambda c: TimmConvNeXt(in_chans=c, use_grn=True, ls_init_value=None, **SMALL),
}


def depths(net: nn.Module) -> tuple[int, ...]:
    return tuple(len(getattr(net, f"layer{i}")) for i in (1, 2, 3, 4))


def with_channels(net: ResNet, channels: int) -> ResNet:
    net.conv1 = nn.Conv2d(channels, 64, 7, 2, 3, bias=False)
    return net


@pytest.mark.parametrize(("variant", "channels"), [("18", 3), ("50", 5), ("next50_32x4", 3), ("wide50", 3)])
def test_resnet_is_torchvisions(tmp_path: Path, variant: str, channels: int) -> None:
    """Blocks, groups, widths and channels are read from the file; features and logits are equal."""
    net = stirred(RESNETS[variant](channels))
    torch.save({"state_dict": {f"module.{n}": v for n, v in net.state_dict().items()}}, tmp_path / "r.pth")
    model = load_published(f"resnet/{variant}", tmp_path / "r.pth", depths=depths(net))
    image = torch.randn(1, channels, 75, 101)
    with torch.no_grad():
        levels = model.backbone(image)
        assert [tuple(v.shape[2:]) for v in levels] == [(19, 26), (10, 13), (5, 7), (3, 4)]  # rounded up
        assert tuple(v.shape[1] for v in levels) == model.backbone.channels
        for ours, theirs in zip(levels, resnet_features(net, image), strict=True):
            torch.testing.assert_close(ours, theirs)
        torch.testing.assert_close(model(image), net(image))


def test_resnet_children_by_place(tmp_path: Path) -> None:
    net = stirred(RESNETS["50"](3))
    torch.save(nn.Sequential(*list(net.children())[:-2]).state_dict(), tmp_path / "r.pth")
    model = load_published("resnet/50", tmp_path / "r.pth", depths=depths(net))
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model(image)[-1], resnet_features(net, image)[-1])


@pytest.mark.parametrize(("variant", "channels"), [("tiny", 3), ("v2_atto", 5), ("v2_tiny", 3)])
def test_convnext_is_timms(tmp_path: Path, variant: str, channels: int) -> None:
    net = stirred(CONVNEXTS[variant](channels))
    torch.save(net.state_dict(), tmp_path / "c.pth")
    model = load_published(f"convnext/{variant}", tmp_path / "c.pth", **SHAPE)
    image = torch.randn(2, channels, 75, 101)
    with torch.no_grad():
        levels = model.backbone(image)
        assert [tuple(v.shape[2:]) for v in levels] == [(18, 25), (9, 12), (4, 6), (2, 3)]  # rounded down
        assert tuple(v.shape[1] for v in levels) == model.backbone.channels
        for ours, theirs in zip(levels, convnext_features(net, image), strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(model(image), net(image), atol=1e-4, rtol=1e-4)


FACEBOOK = [
    ("stem.", "downsample_layers.0."), (r"stages.(\d+).downsample.", r"downsample_layers.\1."),
    (r"stages.(\d+).blocks.(\d+).", r"stages.\1.\2."), ("conv_dw.", "dwconv."), (r"mlp.fc(\d).", r"pwconv\1."),
    ("mlp.grn.weight", "grn.gamma"), ("mlp.grn.bias", "grn.beta"), ("head.norm.", "norm."), ("head.fc.", "head."),
]  # fmt: skip
HUGGING_FACE = [
    ("stem.0.", "convnextv2.embeddings.patch_embeddings."), ("stem.1.", "convnextv2.embeddings.layernorm."),
    (r"stages.(\d+).downsample.", r"convnextv2.encoder.stages.\1.downsampling_layer."),
    (r"^stages.(\d+).blocks.(\d+).", r"convnextv2.encoder.stages.\1.layers.\2."),
    (r"(layers.\d+).norm", r"\1.layernorm"),
    ("conv_dw.", "dwconv."), (r"mlp.fc(\d).", r"pwconv\1."), ("gamma", "layer_scale_parameter"), ("mlp.grn", "grn"),
    ("head.norm.", "convnextv2.layernorm."), ("head.fc.", "classifier."),
]  # fmt: skip


@pytest.mark.parametrize("variant", ["tiny", "v2_tiny"])
@pytest.mark.parametrize("names", [FACEBOOK, HUGGING_FACE], ids=["facebook", "hugging_face"])
def test_convnext_under_other_names(tmp_path: Path, variant: str, names: list[tuple[str, str]]) -> None:
    net = stirred(CONVNEXTS[variant](3))
    state = {}
    for name, value in net.state_dict().items():
        flat = ".grn." in name
        for pattern, replacement in names:
            name = re.sub(pattern, replacement, name)
        state[name] = value.reshape(1, 1, 1, -1) if flat else value
    torch.save({"model": state}, tmp_path / "c.pth")
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        ours = load_published(f"convnext/{variant}", tmp_path / "c.pth", **SHAPE)(image)
        torch.testing.assert_close(ours, net(image), atol=1e-4, rtol=1e-4)


def test_convnext_from_torchvision(tmp_path: Path) -> None:
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    stages = [CNBlockConfig(8, 16, 1), CNBlockConfig(16, 24, 2), CNBlockConfig(24, 40, 1), CNBlockConfig(40, None, 1)]
    net = stirred(ConvNeXt(stages, num_classes=5))
    torch.save(net.state_dict(), tmp_path / "c.pth")
    image = torch.randn(1, 3, 70, 64)
    with torch.no_grad():
        ours = load_published("convnext/tiny", tmp_path / "c.pth", **SHAPE)(image)
        torch.testing.assert_close(ours, net(image), atol=1e-4, rtol=1e-4)


def test_a_file_that_does_not_fit(tmp_path: Path) -> None:
    state = RESNETS["18"](3).state_dict()
    state["layer5.0.conv1.weight"] = torch.zeros(1)
    torch.save(state, tmp_path / "r.pth")
    with pytest.raises(WeightsError, match=r"layer5.0.conv1.weight: in the file, not in the network"):
        load_published("resnet/18", tmp_path / "r.pth", depths=(1, 2, 1, 1))


@pytest.mark.parametrize(("name", "settings"), [
    ("resnet/18", {"depths": (1, 1, 1, 1)}), ("resnet/50", {"depths": (1, 1, 1, 1)}),
    ("convnext/tiny", {"depths": (1, 1, 1, 2), "dims": (8, 16, 24, 40)}),
    ("convnext/v2_tiny", {"depths": (1, 1, 1, 2), "dims": (8, 16, 24, 40)}),
])  # fmt: skip
def test_one_step_reaches_every_parameter(name: str, settings: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = registry.create(name, classes=3, in_channels=2, **settings)
    nn.functional.cross_entropy(model(torch.randn(4, 2, 64, 64)), torch.tensor([0, 1, 2, 0])).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
    # GRN starts at zero and layer scale near it: what they gate still gets a gradient.
    assert [n for n, p in model.named_parameters() if p.grad is not None and not p.grad.any()] == []


def test_drop_path_is_linear() -> None:
    model = registry.create("convnext/tiny", depths=(1, 2, 1, 1), dims=(8, 8, 8, 8), drop_path=0.4)
    rates = [b.drop_path.p for s in model.stages for b in s.body.blocks]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])


def test_wrong_settings_and_sizes() -> None:
    with pytest.raises(SettingError, match="four stages, got 3 depths"):
        registry.create("resnet/50", depths=(1, 1, 1))
    with pytest.raises(SettingError, match="groups and their width are settings of bottleneck blocks"):
        registry.create("resnet/18", groups=32)
    with pytest.raises(SettingError, match="3 depths but 4 dims"):
        registry.create("convnext/tiny", depths=(1, 1, 1))
    model = registry.create("convnext/tiny", depths=(1, 1, 1, 1), dims=(8, 8, 8, 8))
    with pytest.raises(ShapeError, match=r"at least 32 pixels a side, got \(32, 31\)"):
        model(torch.zeros(1, 3, 32, 31))
