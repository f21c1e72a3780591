"""Networks of medical segmentation: their contract, their refusals, weights of others."""

import argparse
import json
import re
from pathlib import Path

import numpy as np
import parity
import pytest
import torch
from torch import nn

from apps import __main__ as glocal
from apps import table as networks
from apps.medical.segmentation import inputs
from apps.medical.segmentation import model as models
from core import facts_table, measure, registry, table, weights
from core.errors import InputError, SettingError, ShapeError, UnknownNameError, WeightsError

FIXTURES = Path(__file__).resolve().parent.parent / "parity"
DIMS = {"dims": (8, 16, 32, 64), "depths": (1, 1, 2, 1)}
SWIN = {"dim": 8, "depths": (1, 1, 1, 1), "heads": (1, 1, 2, 2), "window": 4}
SMALL = {
    "swin_umamba": {**DIMS, "widths": (4, 8, 12, 16, 20)},
    "swin_umamba_d": DIMS,
    "unet": {"backbone": "swin/tiny", "overrides": SWIN, "width": 4},
    "dynunet": {"patch_size": (32, 32), "width": 4},
}
SCALES = {"swin_umamba": (1, 2, 4, 8), "swin_umamba_d": (1, 4, 8, 16), "unet": (1, 2, 4, 8), "dynunet": (1, 2, 4)}
BACKBONES = {
    "swin/tiny": SWIN,
    "cswin/tiny": {"dim": 8, "depths": (1, 1, 1, 1), "heads": (2, 2, 2, 4)},
    "vmamba/tiny": {"dims": (8, 16, 32, 64), "depths": (1, 1, 1, 1)},
    "resnet/18": {"depths": (1, 1, 1, 1)},
    "convnext/v2_atto": {"dims": (8, 16, 32, 64), "depths": (1, 1, 1, 1)},
    "vit/tiny": {"dim": 16, "depth": 1, "heads": 2},  # one level at 1/16
}


def make(name, **settings):
    torch.manual_seed(0)
    return models.create(name, **{"in_channels": 2, "classes": 3, **SMALL[name], **settings})


@pytest.fixture(params=SMALL)
def name(request):
    return request.param


def test_answers(name):
    """One tensor in evaluation, all scales in training with deep supervision, one without; rows and columns differ."""
    net, image = make(name), torch.randn(2, 2, 64, 96)
    scales = net.train()(image)
    assert [tuple(s.shape) for s in scales] == [(2, 3, 64 // s, 96 // s) for s in SCALES[name]]
    with torch.no_grad():
        logits = net.eval()(image)
        torch.testing.assert_close(logits, net.scales(image)[0])
        assert logits.shape == (2, 3, 64, 96)
        assert make(name, deep_supervision=False).train()(image).shape == (2, 3, 64, 96)
    assert net.multiple == (1 if name == "unet" else 8 if name == "dynunet" else 32)


def test_images_of_a_batch_do_not_mix(name):
    net, images = make(name).double().eval(), torch.randn(2, 2, 64, 32).double()
    with torch.no_grad():
        both = net(images)
        torch.testing.assert_close(both, torch.cat([net(images[:1]), net(images[1:])]), rtol=1e-9, atol=1e-9)
    assert not torch.allclose(both[0], both[1])


def test_every_parameter_learns(name):
    net = make(name).train()
    loss = sum((s * torch.randn_like(s)).mean() for s in net(torch.randn(2, 2, 64, 64)))
    loss.backward()
    for key, parameter in net.named_parameters():
        assert parameter.grad is not None, key
        assert torch.isfinite(parameter.grad).all(), key
        assert parameter.grad.abs().max() > 0, key
    before = {k: v.clone() for k, v in net.named_parameters()}
    torch.optim.SGD(net.parameters(), 0.1).step()
    assert any(not torch.equal(before[k], v) for k, v in net.named_parameters())
    assert all(torch.isfinite(v).all() for v in net.parameters())


def test_state_goes_out_and_in(name, tmp_path):
    net, image = make(name).eval(), torch.randn(1, 2, 64, 64)
    weights.save(net, tmp_path / "weights.safetensors")
    other = make(name)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1)
        weights.load(other, tmp_path / "weights.safetensors")
        assert torch.equal(net(image), other.eval()(image))
    again, what = models.import_weights(tmp_path / "weights.safetensors", name, models.configured(name, SMALL[name]))
    assert (what.config.in_channels, what.config.classes, what.part) == (2, 3, "network")
    with torch.no_grad():
        assert torch.equal(net(image), again(image))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_finite(name, dtype):
    net, image = make(name).eval(), torch.randn(1, 2, 64, 64)
    with torch.no_grad():
        want, got = net(image), net.to(dtype)(image.to(dtype)).float()
    assert torch.isfinite(got).all()
    assert (got - want).abs().max() < 0.2 * want.abs().max()


@pytest.mark.parametrize(
    ("name", "shape", "said"),
    [
        ("swin_umamba", (64, 48), "swin_umamba takes sides that are multiples of 32, got 64 x 48; pad the image"),
        ("swin_umamba", (0, 32), "swin_umamba takes sides that are multiples of 32, got 0 x 32"),
        ("swin_umamba_d", (64, 66), "swin_umamba_d takes sides that are multiples of 32, got 64 x 66; pad the image"),
        ("swin_umamba_d", (16, 64), "swin_umamba_d takes sides that are multiples of 32, got 16 x 64"),
        ("dynunet", (64, 20), "rows in multiples of 8 and columns of 8, and more than one of each, got 64 x 20"),
        ("dynunet", (8, 8), "more than one of each, got 8 x 8"),
        ("unet", (8, 2), "this U-Net needs at least 32 pixels a side, got 8 x 2"),
        ("unet", (1, 1), "this U-Net needs at least 32 pixels a side, got 1 x 1"),
    ],
)
def test_sizes_that_do_not_fit(name, shape, said):
    with pytest.raises(ShapeError, match=re.escape(said)):
        make(name)(torch.randn(1, 2, *shape))


def test_channels_that_do_not_fit(name):
    with pytest.raises(ShapeError, match=r"\(B C=2 H W\), got \(1, 3, 64, 64\)"):
        make(name)(torch.randn(1, 3, 64, 64))


def test_settings_that_do_not_fit():
    with pytest.raises(UnknownNameError, match="no medical segmentation network named 'swin_unet'"):
        models.create("swin_unet")
    with pytest.raises(UnknownNameError, match="no swin_umamba setting named 'depth'; did you mean depths"):
        models.create("swin_umamba", depth=(1,))
    with pytest.raises(SettingError, match="four stages, got 3 dims"):
        make("swin_umamba", dims=(8, 16, 32))
    with pytest.raises(SettingError, match="five skip widths, full size to 1/16, got 4"):
        make("swin_umamba", widths=(4, 8, 12, 16))
    with pytest.raises(SettingError, match="halved twice, 16 pixels or more"):
        make("dynunet", patch_size=(8, 8))


def test_smallest_images():
    for name in ("swin_umamba", "swin_umamba_d", "dynunet"):
        net = make(name)
        assert net.train()(torch.randn(1, 2, net.smallest, net.smallest))[0].shape[2:] == (net.smallest,) * 2


def test_pixels_over_a_multiple_as_published():
    """Swin-UMamba-D drops them and answers smaller, where it is asked to behave as published."""
    net = make("swin_umamba_d", drop_remainder=True).eval()
    image = torch.randn(1, 2, 67, 33)
    with torch.no_grad():
        got = net(image)
        assert got.shape == (1, 3, 64, 32)
        torch.testing.assert_close(got, net(image[..., :64, :32]))
    with pytest.raises(ShapeError, match="multiples of 32, got 68 x 32"):
        net(torch.randn(1, 2, 68, 32))


@pytest.mark.parametrize("backbone", BACKBONES)
def test_unet_over_backbones(backbone):
    """Any size that the backbone takes, one and several levels; every parameter of the decoder learns."""
    net = make("unet", backbone=backbone, overrides=BACKBONES[backbone])
    for size in ((64, 64), (75, 101)):
        scales = net.train()(torch.randn(2, 2, *size))
        assert len(scales) == 4
        assert scales[0].shape == (2, 3, *size)
        assert scales[1].shape == (2, 3, -(-size[0] // 2), -(-size[1] // 2))
    sum(s.square().mean() for s in scales).backward()
    for key, parameter in net.named_parameters():
        if not key.startswith("encoder."):
            assert parameter.grad.abs().max() > 0, key
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in net.encoder.parameters())
    with torch.no_grad():
        assert net.eval()(torch.randn(1, 2, 75, 101)).shape == (1, 3, 75, 101)


def test_unet_sees_the_image_at_full_size():
    """A single pixel moves the answer most at its own place: the skip at full size reaches the head."""
    net, image = make("unet").double().eval(), torch.randn(1, 2, 64, 64).double()
    moved = image.clone()
    moved[..., 20, 41] += 10
    with torch.no_grad():
        change = (net(moved) - net(image)).abs().sum(1)[0]
    row, column = divmod(int(change.argmax()), 64)
    assert abs(row - 20) <= 4
    assert abs(column - 41) <= 4


def test_freezing_leaves_the_patch_embedding():
    for name in ("swin_umamba", "swin_umamba_d", "unet"):
        net = make(name)
        net.freeze_encoder(True)
        free = {n for n, p in net.encoder.named_parameters() if p.requires_grad}
        assert free
        assert len(free) <= 4
        assert all(n.startswith("stages.0.merge.") for n in free)
        assert all(p.requires_grad for n, p in net.named_parameters() if not n.startswith("encoder."))
        net.freeze_encoder(False)
        assert all(p.requires_grad for p in net.parameters())


def test_initialisation():
    """Every convolution, the encoder's too, is Kaiming-normal with slope 0.01 and zero bias."""
    for name in ("swin_umamba", "swin_umamba_d"):
        net = make(name, widths=(16, 32, 64, 64, 64)) if name == "swin_umamba" else make(name)
        convs = [m for m in net.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
        assert all(m.bias is None or not m.bias.any() for m in convs)
        large = [m for m in convs if m.weight.numel() > 700]
        assert any(m.groups > 1 for m in large)
        assert {type(m) for m in large} == ({nn.Conv2d, nn.ConvTranspose2d} if name == "swin_umamba" else {nn.Conv2d})
        for m in large:
            fan = m.weight[0].numel()
            assert float(m.weight.detach().std()) == pytest.approx((2 / (1 + 0.01**2) / fan) ** 0.5, rel=0.12)


def test_drop_path_as_published():
    net = models.create("swin_umamba_d", **DIMS | {"depths": (2, 2, 9, 2)})
    rates = [b.drop_path.p for stage in net.encoder.stages for b in stage.blocks]
    assert rates == pytest.approx([0.2 * i / 14 for i in range(15)])
    assert [b.drop_path.p for level in net.blocks for b in level] == pytest.approx([0.2, 0.16, 0.12, 0.08, 0.04, 0.0])


def test_published_sizes():
    for name, count in (("swin_umamba", 59_889_368), ("swin_umamba_d", 27_497_720)):
        net = measure.on_meta(lambda name=name: models.create(name))
        assert measure.parameters(net) == count


# Weights of others


def published(variant, tmp_path, *, form="nnunet"):
    """A checkpoint in the authors' names, by a fixture's recipe."""
    fixture = parity.Fixture.read(FIXTURES / f"swin-umamba--{variant}.json")
    state = fixture.state_dict()
    path = tmp_path / f"{variant}_{form}.pth"
    if form == "nnunet":  # as nnU-Net's trainer writes it from a compiled, distributed network
        extra = {
            "init_args": {"plans": {"spacing": np.array([1.0, 0.5])}, "fold": 0, "device": torch.device("cpu")},
            "logging": {"mean_fg_dice": [np.float64(0.5), np.float32(0.25)]},
            "_best_ema": np.float64(0.7), "current_epoch": 99, "trainer_name": "nnUNetTrainerSwinUMamba",
            "args": argparse.Namespace(c="2d"), "optimizer_state": {"state": {}, "param_groups": []},
        }  # fmt: skip
        torch.save({"network_weights": {f"module._orig_mod.{n}": v for n, v in state.items()}, **extra}, path)
    else:
        torch.save(state, path)
    return fixture, path


@pytest.mark.parametrize(("variant", "name"), [("base", "swin_umamba"), ("d", "swin_umamba_d")])
@pytest.mark.parametrize("form", ["nnunet", "plain"])
def test_published_networks_come_in(variant, name, form, tmp_path):
    fixture, path = published(variant, tmp_path, form=form)
    net, what = models.import_weights(path, name)
    assert what.part == "network"
    assert what.taken == len(fixture.state)
    assert what.config.classes == fixture.outputs["logits"]["shape"][1]
    assert what.config.in_channels == fixture.inputs["image"]["shape"][1]
    with torch.no_grad():
        fixture.compare("logits", net(fixture.input()), 1e-3)
    other = "swin_umamba_d" if name == "swin_umamba" else "swin_umamba"
    with pytest.raises(WeightsError, match=f"{path.name}: holds a {name}, {other} was asked for"):
        models.import_weights(path, other)


def test_load_published_knows_networks(tmp_path):
    _, path = published("d", tmp_path, form="plain")
    name = "medical/swin_umamba_d"
    with pytest.raises(
        WeightsError, match=r"d_plain\.pth: 1 names do not fit SwinUMambaD: encoder\.stages\.0\.merge\.conv\.weight"
    ):
        weights.load_published(name, path, in_channels=1)
    with pytest.raises(WeightsError, match="has heads for 8 classes, 5 were asked for"):
        weights.load_published(name, path, classes=5)
    net = weights.load_published(name, path, classes=5, new_head=True)
    assert not net.heads[0].weight.any()
    assert net.heads[0].weight.shape[0] == 5
    whole = weights.load_published(name, path)
    assert torch.equal(net.joins[1].weight, whole.joins[1].weight)
    assert whole.heads[0].weight.any()
    with pytest.raises(WeightsError, match=r"d_plain\.pth: not a medical/swin_umamba file, it has no 'encoder1\."):
        weights.load_published("medical/swin_umamba", path)


def shrunken(name):
    """Ours, small, and the same values under the authors' names."""
    net = make(name)
    state, keymap = net.state_dict(), models.KEYMAPS[name]
    fixture = parity.Fixture.read(FIXTURES / f"swin-umamba--{'base' if name == 'swin_umamba' else 'd'}.json")
    names = {keymap.name(n): n for n in fixture.state if keymap.name(n) in state}
    assert len(names) > 0.9 * len(state) - 20
    return net, {theirs: state[ours] for ours, theirs in names.items()}


def test_leftovers_are_listed(tmp_path):
    net, state = shrunken("swin_umamba")
    state = {n: v for n, v in state.items() if not n.startswith("decoder1.")} | {"extra.weight": torch.zeros(1)}
    torch.save({"network_weights": state}, tmp_path / "part.pth")
    with pytest.raises(WeightsError) as caught:
        models.import_weights(tmp_path / "part.pth", "swin_umamba", net.config)
    for said in ("part.pth: ", "extra.weight: in the file, not in the network", "last.conv1.weight: in the network"):
        assert said in str(caught.value)
    with pytest.raises(
        WeightsError, match=r"part\.pth: holds a network with dims \(8, 16, 32, 64\), and swin_umamba has"
    ):
        models.import_weights(tmp_path / "part.pth", "swin_umamba")


def release(channels, patch=4, dims=DIMS["dims"]):
    """VMamba's ImageNet release, small: merging inside the layer before it, final norm and head beside."""
    torch.manual_seed(1)
    encoder = registry.create("vmamba/tiny", in_channels=channels, patch=patch, dims=dims, depths=DIMS["depths"])
    back = [
        (r"^stages\.0\.merge\.conv", "patch_embed.proj"), (r"^stages\.0\.merge\.norm", "patch_embed.norm"),
        *((rf"^stages\.{i + 1}\.merge", f"layers.{i}.downsample") for i in range(3)),
        (r"^stages\.(\d)\.blocks", r"layers.\1.blocks"), (r"(blocks\.\d+)\.norm", r"\1.ln_1"),
        ("token_mixer", "self_attention"), (r"\.conv\.", ".conv2d."), (r"\.x_proj$", ".x_proj_weight"),
        (r"\.dt_proj$", ".dt_projs_weight"), (r"\.dt_bias$", ".dt_projs_bias"), (r"\.A_log$", ".A_logs"),
        (r"\.skip$", ".Ds"),
    ]  # fmt: skip
    state = {}
    for n, v in encoder.state_dict().items():
        for pattern, new in back:
            n = re.sub(pattern, new, n)
        state[n] = torch.randn_like(v)
    dim = dims[-1]
    return state | {"norm.weight": torch.ones(dim), "norm.bias": torch.ones(dim), "head.weight": torch.ones(9, dim)}


@pytest.mark.parametrize(
    ("name", "channels", "left"),
    [
        ("swin_umamba", 1, {"conv.weight", "conv.bias", "norm.weight"}),  # norm.bias is loaded: the authors' loader
        ("swin_umamba_d", 3, set()),
        ("swin_umamba_d", 1, {"conv.weight", "conv.bias", "norm.weight", "norm.bias"}),
    ],
)
def test_imagenet_encoder(name, channels, left, tmp_path):
    state = release(3)
    torch.save({"model": state}, tmp_path / "vssmtiny.pth")
    config = models.configured(name, {**SMALL[name], "in_channels": channels})
    torch.manual_seed(5)
    start = models.build(config).state_dict()
    torch.manual_seed(5)
    net, what = models.import_weights(tmp_path / "vssmtiny.pth", name, config)
    assert what.part == "encoder"
    assert {n.removeprefix("encoder.stages.0.merge.") for n in what.left} == left
    changed = {n for n, v in net.state_dict().items() if not torch.equal(v, start[n])}
    assert {n for n in start if n.startswith("encoder.")} - changed == set(what.left)
    assert all(n.startswith("encoder.") for n in changed)
    got = net.state_dict()
    assert torch.equal(got["encoder.stages.2.merge.reduction.weight"], state["layers.1.downsample.reduction.weight"])
    if name == "swin_umamba":
        assert torch.equal(got["encoder.stages.0.merge.norm.bias"], state["patch_embed.norm.bias"])
    torch.manual_seed(5)
    net = models.build(config)
    said = models.initialise(net, name, tmp_path / "vssmtiny.pth")
    assert said.startswith(f"encoder of {name} from ")
    assert all(torch.equal(v, got[n]) for n, v in net.state_dict().items())


def test_other_releases_of_vmamba_are_refused(tmp_path):
    state = release(3) | {"layers.0.blocks.0.mlp.fc1.weight": torch.ones(4, 4)}
    torch.save({"model": state}, tmp_path / "v05.pth")
    config = models.configured("swin_umamba", SMALL["swin_umamba"])
    with pytest.raises(WeightsError, match=r"v05\.pth: .*mlp\.fc1\.weight: in the file, not in the network"):
        models.import_weights(tmp_path / "v05.pth", "swin_umamba", config)
    torch.save({"fc.weight": torch.ones(2, 2)}, tmp_path / "fc.pth")
    with pytest.raises(WeightsError, match=r"fc\.pth: neither a whole network nor VMamba"):
        models.import_weights(tmp_path / "fc.pth", "swin_umamba", config)
    with pytest.raises(WeightsError, match=r"fc\.pth: not a file of this network, which has no encoder"):
        models.import_weights(tmp_path / "fc.pth", "dynunet")


@pytest.mark.parametrize("channels", [3, 1])
def test_backbone_weights_of_a_unet(channels, tmp_path):
    """ResNet-18 in torchvision's names; what reads the image stays at its start where the channels differ."""
    from torchvision.models import resnet18

    torch.manual_seed(2)
    theirs = resnet18()
    torch.save(theirs.state_dict(), tmp_path / "resnet18.pth")
    config = models.configured("unet", {"backbone": "resnet/18", "in_channels": channels, "width": 4, "classes": 2})
    net, what = models.import_weights(tmp_path / "resnet18.pth", "unet", config)
    assert what.left == (() if channels == 3 else ("encoder.stages.0.conv.weight",))
    assert torch.equal(net.encoder.stages[3].blocks[1].conv2.weight, theirs.layer4[1].conv2.weight)
    assert torch.equal(net.encoder.stages[0].conv.weight, theirs.conv1.weight) is (channels == 3)
    with pytest.raises(WeightsError, match=r"resnet18\.pth: "):
        models.import_weights(tmp_path / "resnet18.pth", "unet", models.configured("unet", {"backbone": "resnet/34"}))


@pytest.mark.parametrize("residual", [False, True])
def test_dynunet_is_monais(residual, tmp_path):
    """The same answers as MONAI's own class, whose checkpoint comes in with the second names of its tensors."""
    from monai.networks.nets import DynUNet

    strides = [(1, 1), (2, 2), (2, 2), (2, 1)]
    theirs = DynUNet(2, 2, 5, [3] * 4, strides, strides[1:], filters=[4, 8, 12, 12], deep_supervision=True,
                     deep_supr_num=2, res_block=residual)  # fmt: skip
    torch.save({"state_dict": theirs.state_dict()}, tmp_path / "monai.pt")
    ours, what = models.import_weights(tmp_path / "monai.pt", "dynunet")
    assert (what.config.residual, what.config.widest, ours.steps) == (residual, 12, (8, 4))
    image = torch.randn(1, 2, 32, 24)
    with torch.no_grad():
        assert torch.equal(theirs.eval()(image), ours(image))
        stacked, scales = theirs.train()(image), ours.train()(image)
    assert torch.equal(stacked[:, 0], scales[0])
    torch.testing.assert_close(stacked[:, 2], nn.functional.interpolate(scales[2], size=(32, 24)))


class Planted:
    def __reduce__(self):
        return (print, ("ran",))


def test_a_file_that_would_run_code_says_how_to_convert(tmp_path, capsys):
    _, state = shrunken("swin_umamba_d")
    torch.save({"network_weights": state, "init_args": Planted()}, tmp_path / "bad.pth")
    with pytest.raises(
        WeightsError, match=r"bad\.pth: refused, because reading it would run code .*weights_only=False"
    ):
        models.import_weights(tmp_path / "bad.pth", "swin_umamba_d")
    assert capsys.readouterr().out == ""
    (tmp_path / "cut.pth").write_bytes((tmp_path / "bad.pth").read_bytes()[:2000])
    with pytest.raises(WeightsError, match=r"cut\.pth: cut off"):
        models.import_weights(tmp_path / "cut.pth", "swin_umamba_d")


def test_training_starts_from_a_bundle(tmp_path):
    """Heads only where the classes are the same; another network or other channels are refused."""
    from core import bundle

    net = make("swin_umamba_d")
    settings = bundle.Settings(
        "medical segment", bundle.Network("swin_umamba_d", {}), output=bundle.Output({"none": 0, "a": 1, "b": 2})
    )
    bundle.save(tmp_path / "run", net, settings, {})
    for classes, kept in (({"none": 0, "a": 1, "b": 2}, True), ({"none": 0, "b": 1, "a": 2}, False)):
        fresh = make("swin_umamba_d")
        with torch.no_grad():
            for parameter in fresh.parameters():
                parameter.add_(1)
        said = models.initialise(fresh, "swin_umamba_d", tmp_path / "run", classes=classes)
        assert ("not taken: heads.0.bias" in said) is not kept
        assert torch.equal(fresh.heads[0].weight, net.heads[0].weight) is kept
        assert torch.equal(fresh.joins[0].weight, net.joins[0].weight)
    with pytest.raises(WeightsError, match="holds swin_umamba_d, swin_umamba was asked for"):
        models.initialise(make("swin_umamba"), "swin_umamba", tmp_path / "run")
    with pytest.raises(WeightsError, match=r"encoder\.stages\.0\.merge\.conv\.weight is .* there and"):
        models.initialise(make("swin_umamba_d", in_channels=1), "swin_umamba_d", tmp_path / "run")


# Facts and commands


def test_the_facts_file_is_what_the_code_says():
    assert networks.check(networks.measured()) == [], "regenerate with: .venv/bin/python -m apps.table --write"


def test_a_difference_is_told(tmp_path, monkeypatch):
    facts = json.loads(networks.FILE.read_text())["networks"]
    changed = json.loads(json.dumps(facts))
    changed["medical/unet"]["macs"] += 1
    changed["medical/other"] = changed.pop("medical/dynunet")
    monkeypatch.setattr(networks, "FILE", tmp_path / "models.json")
    networks.FILE.write_text(networks.as_json(facts))
    assert networks.check(facts, tmp_path / "none") == []
    assert networks.check(changed, tmp_path / "none") == [
        "medical/other: not in models.json",
        "medical/dynunet: in models.json, but no such network",
        f"medical/unet: macs is {changed['medical/unet']['macs']}, the file says {facts['medical/unet']['macs']}",
    ]


def test_facts_of_a_network():
    row = table.find("swin_umamba", table.load_networks(networks.FILE))
    assert (row.parameters, row.classes, row.strides) == (59_889_368, 14, (1, 2, 4, 8))
    assert row.macs == pytest.approx(68.0e9, rel=0.01)  # published
    assert table.find("medical/swin_umamba_d", table.load_networks(networks.FILE)).macs == pytest.approx(
        18.9e9, rel=0.02
    )
    assert facts_table.network(models, "swin_umamba")["parameters"] == row.parameters


def call(capsys, *tokens):
    code = glocal.run(glocal.build(), list(tokens))
    out = capsys.readouterr()
    return code, out.out, out.err


def test_commands_know_networks(capsys):
    code, out, _ = call(capsys, "models", "list")
    assert code == 0
    assert max(map(len, out.splitlines())) <= 120
    assert re.search(r"^network .* published +licence$", out, re.M)
    assert re.search(
        r"^medical/swin_umamba +59\.9 M +67\.6 G +320 +1 2 4 8 +arXiv 2402\.03302 +AbdomenMR DSC 0", out, re.M
    )
    assert call(capsys, "models", "list", "umamba")[1].count("medical/") == 2
    for given in ("swin_umamba", "medical/swin_umamba"):
        code, out, _ = call(capsys, "models", "info", given)
        assert code == 0
        for said in ("59,889,368 with 14 classes", "AbdomenMR NSD", "0.8421 (published)", "1 channel\n"):
            assert said in out
        assert "top-1" not in out
    code, _, err = call(capsys, "models", "info", "medical/swin_umambo")
    assert code == 2
    assert err.startswith(
        "glocal: no medical network named 'medical/swin_umambo'; did you mean medical/swin_umamba or "
    )


def test_registered_networks():
    assert registry.is_network("medical/unet")
    assert not registry.is_network("swin/tiny")
    net = registry.create("medical/dynunet", classes=4, **SMALL["dynunet"])
    assert net.config.classes == 4
    with pytest.raises(InputError, match="no medical network named 'medical/unot'; did you mean medical/unet"):
        registry.lookup("medical/unot")
    with pytest.raises(InputError, match="no unet setting named 'widht'; did you mean width"):
        registry.create("medical/unet", widht=3)


@pytest.mark.slow
def test_compiled(name):
    """One graph, of one size: with open sizes Inductor's layout pass fails on SS2D (see core.mixers.ss2d)."""
    smaller = {"depths": (1, 1, 1, 1)} if "umamba" in name else {}
    net, image = make(name, **smaller).eval(), torch.randn(1, 2, 64, 64)
    with torch.no_grad():
        got = torch.compile(net, fullgraph=True, dynamic=False)(image)
        torch.testing.assert_close(got, net(image), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("backbone", ["maxvit/tiny", "favit/b0", "cswin/tiny"])
def test_unet_says_what_its_backbone_takes(backbone: str) -> None:
    """Padded to `multiple` and `smallest`, any picture goes through."""
    network = models.create(
        "unet", backbone=backbone, overrides={"depths": [1, 1, 1, 1]}, in_channels=1, classes=2
    ).eval()
    image = inputs.padded(torch.randn(1, 1, 40, 70), network.multiple, network.smallest)
    with torch.inference_mode():
        assert network(image).shape == (1, 2, *image.shape[-2:])
