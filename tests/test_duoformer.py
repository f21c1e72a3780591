"""DuoFormer's network: its scales, tokens and blocks by hand, its options, files of its authors."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apps.medical.pathology_classify import model
from apps.medical.pathology_classify._duoformer import DuoFormerConfig, inside_patches
from core import measure
from core.errors import SettingError, ShapeError, UnknownNameError, WeightsError
from core.training.optimizers import groups
from core.training.recipe import Recipe
from core.weights import convert, load_published, save

PARITY = Path(__file__).resolve().parent / "parity"
SMALL: dict[str, Any] = {
    "backbone": "convnext/v2_atto", "dim": 24, "heads": 2, "depth": 2,
    "backbone_settings": {"dims": (8, 12, 16, 24), "depths": (1, 1, 1, 1)},
}  # fmt: skip
RESNET: dict[str, Any] = {
    "backbone": "resnet/18", "dim": 24, "heads": 2, "depth": 2, "backbone_settings": {"depths": (1, 1, 1, 1)},
}  # fmt: skip


def small(**settings: Any) -> Any:
    torch.manual_seed(0)
    network: Any = model.create("duoformer", **{**SMALL, **settings})
    with torch.no_grad():  # biases and norms that are not at their start show where they act
        for name, p in network.named_parameters():
            if name.startswith("unused_norm"):
                p.fill_(1e6)
            elif p.ndim == 1 and not name.startswith("encoder"):
                p.add_(torch.randn_like(p) * 0.1)
            elif name.startswith(("scale_blocks", "patch_blocks", "head")):
                p.mul_(10)
    return network.eval()


@pytest.mark.parametrize(
    ("settings", "count"),
    [
        ({"scale_token": "random"}, 139_320_900),
        ({}, 185_336_644),
        ({"scales": 3}, 185_742_916),
        ({"scales": 4}, 185_989_444),
        ({"depth": 2}, 90_834_244),
        ({"scales": 3, "scale_token": "random", "dim": 384, "heads": 6, "depth": 4, "classes": 5}, 34_379_845),
    ],
    ids=str,
)  # fmt: skip
def test_published_counts(settings: dict[str, Any], count: int) -> None:
    network = measure.on_meta(lambda: model.create("duoformer", **{"classes": 4, **settings}))
    assert measure.parameters(network) == count


def test_parts_of_the_counts() -> None:
    network: Any = measure.on_meta(lambda: model.create("duoformer", classes=4))
    assert measure.parameters(network.encoder) == 23_508_032
    assert measure.parameters(network.channel_token) == 46_016_512
    rest = 185_336_644 - 23_508_032 - 46_016_512 - measure.parameters(network.projections)
    assert rest == 113_451_268  # the transformer


@pytest.mark.parametrize("token", ["random", "channel"])
@pytest.mark.parametrize("scales", [2, 3, 4])
def test_resnet_18_with_any_number_of_scales(scales: int, token: str) -> None:
    """The coarse stages are read, as with ResNet-50."""
    network: Any = model.create("duoformer", **RESNET, scales=scales, scale_token=token).eval()
    assert [p.in_channels for p in network.projections] == [512, 256, 128, 64][:scales]
    image = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        maps = network.scales(image)
        tokens = network.gather(maps)
        assert tokens.shape == (2, 49, {2: 6, 3: 22, 4: 86}[scales], 24)
        assert network(image).shape == (2, 2)
        mixed = network.attend_scales(tokens)
    assert mixed.shape == tokens.shape
    assert [tuple(m.shape[1:]) for m in maps] == [(64, 56, 56), (128, 28, 28), (256, 14, 14), (512, 7, 7)]


# --- tokens -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("k", "by_columns"), [(1, False), (2, True), (4, False), (8, False), (2, False)])
def test_places_inside_patches(k: int, by_columns: bool) -> None:
    level = torch.arange(49.0 * k * k).view(1, 1, 7 * k, 7 * k)
    found = inside_patches(level, by_columns=by_columns)
    assert found.shape == (1, 49, k * k, 1)
    for r in range(7):
        for c in range(7):
            cell = level[0, 0, r * k : (r + 1) * k, c * k : (c + 1) * k]
            want = (cell.T if by_columns else cell).reshape(-1)
            assert torch.equal(found[0, 7 * r + c, :, 0], want)


def test_tokens_go_coarse_to_fine_and_by_columns_in_the_2_x_2_alone() -> None:
    network = small(scales=4, scale_token="random")
    maps = [torch.randn(2, n, 7 * k, 7 * k) for n, k in zip((8, 12, 16, 24), (8, 4, 2, 1), strict=True)]
    with torch.no_grad():
        tokens = network.gather(maps)
        assert torch.equal(tokens[:, :, 0], network.scale_token[:, :, 0].expand(2, 49, -1))
        start = 1
        for conv, level, k in zip(network.projections, reversed(maps), (1, 2, 4, 8), strict=True):
            for place in range(k * k):
                row, column = (place % k, place // k) if k == 2 else (place // k, place % k)
                pixel = level[:, :, 3 * k + row, 5 * k + column]  # of patch (3, 5)
                want = F.linear(pixel, conv.weight[:, :, 0, 0], conv.bias)
                assert torch.allclose(tokens[:, 3 * 7 + 5, start + place], want, atol=1e-5)
            start += k * k


def test_the_channel_token_by_hand() -> None:
    network = small()
    for m in network.channel_token.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.normal_(m.running_mean)
            nn.init.uniform_(m.running_var, 0.5, 2)
    maps = [torch.randn(2, n, 7 * k, 7 * k) for n, k in zip((8, 12, 16, 24), (8, 4, 2, 1), strict=True)]
    own = dict(network.channel_token.state_dict())

    def conv(x: Tensor, name: str, stride: int = 1) -> Tensor:
        return F.conv2d(x, own[f"{name}.weight"], own[f"{name}.bias"], stride=stride, padding=1)

    fine = F.max_pool2d(conv(conv(maps[0], "fine.0", 2), "fine.1", 2), 2)
    middle = F.max_pool2d(conv(maps[1], "middle", 2), 2)
    x = torch.cat([fine, middle, F.max_pool2d(maps[2], 2), maps[3]], 1)
    for i in range(4):
        norm = [own[f"mix.{i}.1.{n}"] for n in ("running_mean", "running_var", "weight", "bias")]
        x = F.batch_norm(conv(x, f"mix.{i}.0"), *norm).relu()
    with torch.no_grad():
        got = network.channel_token(maps)
        assert torch.allclose(got, x.flatten(2).transpose(1, 2), atol=1e-5)
        assert torch.allclose(network.gather(maps)[:, :, 0], got)
    assert [m.shape for m in (fine, middle)] == [(2, 8, 7, 7), (2, 12, 7, 7)]


# --- blocks -----------------------------------------------------------------------------------------------------------


def attention(x: Tensor, part: Any, heads: int) -> Tensor:
    """Over the last but one dimension."""
    *lead, N, C = x.shape
    qkv = F.linear(x, part.qkv.weight, part.qkv.bias).reshape(*lead, N, 3, heads, C // heads)
    q, k, v = (qkv[..., i, :, :].transpose(-2, -3) for i in range(3))
    weights = (q @ k.transpose(-1, -2) * (C // heads) ** -0.5).softmax(-1)
    return F.linear((weights @ v).transpose(-2, -3).reshape(*lead, N, C), part.proj.weight, part.proj.bias)


def test_both_kinds_of_blocks_by_hand() -> None:
    network = small(scales=3)
    tokens = torch.randn(2, 49, 22, 24)
    with torch.no_grad():
        x = tokens + network.scale_positions
        for block in network.scale_blocks:
            x = x + attention(
                F.layer_norm(x, (24,), block.norm1.weight, block.norm1.bias, 1e-6), block.token_mixer, 2
            )  # fmt: skip
            hidden = F.layer_norm(x, (24,), block.norm2.weight, block.norm2.bias, 1e-6)
            mlp = block.channel_mixer
            hidden = F.gelu(F.linear(hidden, mlp.fc1.weight, mlp.fc1.bias))
            x = x + F.linear(hidden, mlp.fc2.weight, mlp.fc2.bias)
        assert torch.allclose(network.attend_scales(tokens), x, atol=2e-4)
        y = torch.cat([network.class_token.expand(2, -1, -1), x[:, :, 0]], 1) + network.positions
        for part in network.patch_blocks:  # bare: neither norm, nor residual, nor MLP
            y = attention(y, part, 2)
        assert torch.allclose(network.attend_patches(x), y, atol=2e-4)
        logits = F.linear(y[:, 0], network.head.weight, network.head.bias)
        assert torch.allclose(network.answer(y), logits, atol=1e-5)
        image = torch.randn(2, 3, 224, 224)
        steps = network.gather(network.scales(image))
        want = network.answer(network.attend_patches(network.attend_scales(steps)))
        assert torch.equal(network(image), want)
    assert mlp.fc1.weight.shape == (96, 24)


def test_patches_see_each_other_and_pictures_do_not() -> None:
    network = small()
    image = torch.randn(2, 3, 224, 224)
    changed = image.clone()
    changed[1, :, :32, :32] = 5.0
    with torch.no_grad():
        one, other = network(image), network(changed)
        assert torch.allclose(one[0], other[0], atol=1e-5)
        assert not torch.allclose(one[1], other[1], atol=1e-3)
        assert torch.allclose(network(image[:1]), one[:1], atol=1e-4)


def test_how_it_starts() -> None:
    torch.manual_seed(0)
    network: Any = model.create("duoformer", **RESNET | {"dim": 192, "heads": 3, "scales": 4, "scale_token": "random"})
    assert float(network.scale_positions.detach().std()) == pytest.approx(0.036, rel=0.05)
    assert float(network.positions.detach().std()) == pytest.approx(0.036, rel=0.05)
    assert float(network.scale_token.detach().std()) == pytest.approx(0.036, rel=0.2)
    assert float(network.class_token.detach().std()) == pytest.approx(0.036, rel=0.2)
    conv = network.projections[0]
    assert float(conv.weight.detach().std()) == pytest.approx((2 / 512) ** 0.5, rel=0.05)
    assert 0 < float(conv.bias.detach().abs().max()) < 1e-5
    for part in (network.scale_blocks[0].channel_mixer.fc1, network.patch_blocks[1].qkv, network.head):
        assert float(part.weight.detach().std()) == pytest.approx(0.02, rel=0.2)
        assert float(part.bias.detach().abs().max()) == 0


def test_weight_decay_spares_tokens_and_positions() -> None:
    network = small(scale_token="random")
    decays, spared = groups(network, Recipe())
    held = {id(p) for p in spared["params"]}
    for name in ("positions", "scale_positions", "class_token", "scale_token"):
        assert id(getattr(network, name)) in held
    assert id(network.head.weight) in {id(p) for p in decays["params"]}


def test_a_frozen_backbone_still_counts_its_batches() -> None:
    network: Any = model.create("duoformer", **RESNET, frozen=True).train()
    before = network.encoder.stages[0].norm.running_mean.clone()
    network(torch.randn(2, 3, 224, 224)).sum().backward()
    assert all(p.grad is None for p in network.encoder.parameters())
    assert network.head.weight.grad is not None
    assert not torch.equal(before, network.encoder.stages[0].norm.running_mean)
    network.freeze_encoder(False)
    assert not any(p.requires_grad for p in network.encoder.parameters())
    free: Any = model.create("duoformer", **RESNET)
    for frozen in (True, False):
        free.freeze_encoder(frozen)
        assert all(p.requires_grad is not frozen for p in free.encoder.parameters())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"scales": 1}, "scales is 2, 3 or 4"), ({"scales": 5}, "scales is 2, 3 or 4"), ({"heads": 5}, "heads divide"),
        ({"depth": 0}, "depth is at least 1"), ({"scale_token": "both"}, "scale_token"),
        ({"backbone": "shvit/s1", "backbone_settings": {}}, "strides 4, 8, 16, 32"),
        ({"backbone": "vit/tiny", "backbone_settings": {}}, "strides 4, 8, 16, 32"),
    ],
    ids=str,
)  # fmt: skip
def test_settings_that_do_not_fit(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingError, match=words):
        small(**settings)


def test_names_and_sizes_that_are_not_known() -> None:
    with pytest.raises(UnknownNameError, match="duoformer"):
        model.create("duofomer")
    with pytest.raises(UnknownNameError, match="scales"):
        model.create("duoformer", scale=3)
    network = small()
    for size in (256, 192):
        with pytest.raises(ShapeError, match=f"224 x 224 pixels.* got {size} x {size}"):
            network(torch.zeros(1, 3, size, size))
    with pytest.raises(ShapeError):
        network(torch.zeros(1, 1, 224, 224))


@pytest.mark.parametrize("token", ["random", "channel"])
def test_one_graph(token: str) -> None:
    network, image = small(scales=3, scale_token=token), torch.randn(2, 3, 224, 224)
    torch.compiler.reset()
    with torch.no_grad():
        compiled = torch.compile(network, fullgraph=True, backend="eager")
        assert torch.allclose(compiled(image), network(image), atol=1e-4)


# --- weights of the authors -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vector", ["r50-2scale-channel-depth2", "r50-2scale-random"])
def test_every_published_name_has_its_place(vector: str) -> None:
    document = json.loads((PARITY / f"duoformer--{vector}.json").read_text())
    names = {n: tuple(s["shape"] if isinstance(s, dict) else s) for n, s in document["state"].items()}
    found: Any = model.from_published({}, names, DuoFormerConfig())
    token = "random" if vector.endswith("random") else "channel"
    depth, classes = (12, 10) if token == "random" else (2, names["vision_transformer.head.weight"][0])
    assert found == DuoFormerConfig(classes=classes, scale_token=token, depth=depth)
    network = measure.on_meta(lambda: model.build(found))
    state = {n: torch.empty(s, device="meta") for n, s in names.items()}
    filled = convert(state, model.KEYMAPS["duoformer"], network)
    assert len(filled) == len(network.state_dict())


_AUTHORS = [  # our names as the authors write them
    (r"^encoder\.stages\.0\.conv\.", "resnet_projector.0."),
    (r"^encoder\.stages\.0\.norm\.", "resnet_projector.1."),
    *((rf"^encoder\.stages\.{i}\.blocks\.", f"resnet_projector.{i + 4}.") for i in range(4)),
    *((rf"^projections\.{i}\.", f"projection.proj_heads{3 - i}.") for i in range(4)),
    (r"^scale_token$", "channel_token"),
    (r"^channel_token\.fine\.0\.", "chann_proj1.conv1."),
    (r"^channel_token\.fine\.1\.", "chann_proj1.conv2."),
    (r"^channel_token\.middle\.", "chann_proj2.conv1."),
    (r"^channel_token\.mix\.(\d)\.0\.", r"chann_proj_all.nConvs.\1.conv."),
    (r"^channel_token\.mix\.(\d)\.1\.", r"chann_proj_all.nConvs.\1.norm."),
    (r"^scale_positions$", "vision_transformer.pos_embed_for_scale"),
    (r"^positions$", "vision_transformer.pos_embed"),
    (r"^class_token$", "vision_transformer.cls_token"),
    (r"^unused_norm\.", "vision_transformer.fc_norm."),
    (r"^head\.", "vision_transformer.head."),
    (r"^scale_blocks\.(\d+)\.token_mixer\.", r"vision_transformer.scaleBlocks.\1.attn."),
    (r"^scale_blocks\.(\d+)\.channel_mixer\.", r"vision_transformer.scaleBlocks.\1.mlp."),
    (r"^scale_blocks\.", "vision_transformer.scaleBlocks."),
    (r"^patch_blocks\.(\d+)\.", r"vision_transformer.blocks.\1.attn."),
]


def authors(network: nn.Module) -> dict[str, Tensor]:
    found = {}
    for name, value in network.state_dict().items():
        for pattern, theirs in _AUTHORS:
            changed = re.sub(pattern, theirs, name)
            if changed != name:
                found[changed] = value
                break
        else:
            raise AssertionError(name)
    return found


@pytest.mark.parametrize(
    "settings", [{"scales": 4}, {"scales": 3, "scale_token": "random", "classes": 5}, {"depth": 3, "mlp_ratio": 2.0}],
    ids=str,
)  # fmt: skip
def test_an_authors_file(settings: dict[str, Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    given = {"backbone": "resnet/18", "dim": 24, "heads": 2, "depth": 2, **settings}
    network: Any = model.create("duoformer", **given).eval()
    path = tmp_path / "best.pth"
    torch.save({"epoch": 3, "state_dict": {f"module.{n}": v for n, v in authors(network).items()}}, path)
    found, taken = model.import_weights(path, "duoformer", model.configured("duoformer", {"heads": 2}))
    assert found.config == network.config  # ResNet, scales, token, width, depth, classes are read
    image = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        assert torch.equal(found(image), network(image))
    assert taken.part == "network"
    assert taken.taken == len(network.state_dict())


def test_files_that_do_not_fit(tmp_path: Path) -> None:
    network = model.create("duoformer", **RESNET)
    base, state, path = model.configured("duoformer", RESNET), authors(network), tmp_path / "a.pth"

    def refused(given: Any, words: str, name: str = "duoformer") -> None:
        torch.save(given, path)
        with pytest.raises(WeightsError, match=words):
            model.import_weights(path, name, base if name == "duoformer" else None)

    cut = {n: v for n, v in state.items() if n != "vision_transformer.head.bias"}
    refused(cut, r"a\.pth: 1 names do not fit.*head\.bias: in the network, not in the file")
    refused(state | {"vision_transformer.extra": torch.zeros(1)}, r"vision_transformer\.extra: in the file, not in")
    cut = {n: v for n, v in state.items() if n != "vision_transformer.head.weight"}
    refused(cut, "it has no 'vision_transformer.head.weight'")
    tokens = {"vision_transformer.pos_embed_for_scale": torch.zeros(1, 1, 21, 24)}  # as released
    refused(state | tokens, "positions for 21 tokens a patch")
    refused({"a": torch.zeros(2)}, r"a\.pth: neither the whole network nor a backbone")
    refused(state, "holds a duoformer, backbone was asked for", "backbone")
    torch.save({"model": network, "epoch": 1}, path)  # a whole object, as published
    with pytest.raises(WeightsError, match=r"would run code.*s\['model'\]\.state_dict\(\)"):
        model.import_weights(path, "duoformer", base)


def test_beginning_with_a_resnet(tmp_path: Path) -> None:
    from torchvision.models import resnet18

    torch.manual_seed(3)
    theirs = resnet18(num_classes=7).eval()
    torch.save(theirs.state_dict(), tmp_path / "resnet18.pth")
    bare = nn.Sequential(*list(theirs.children())[:-2])
    torch.save(bare.state_dict(), tmp_path / "histology.pth")
    image = torch.randn(1, 3, 224, 224)
    for file in ("resnet18.pth", "histology.pth"):
        torch.manual_seed(1)
        network: Any = model.create("duoformer", backbone="resnet/18", dim=24, heads=2, depth=1).eval()
        kept = network.head.weight.clone()
        said = model.initialise(network, "duoformer", tmp_path / file)
        assert said.startswith("backbone of duoformer from ")
        assert torch.equal(kept, network.head.weight)
        with torch.no_grad():
            assert torch.equal(network.scales(image)[3], bare(image))
    part, taken = model.import_weights(
        tmp_path / "resnet18.pth", "duoformer", model.configured("duoformer", {"backbone": "resnet/18", "depth": 1})
    )
    assert taken.part == "backbone"
    wrong: Any = model.create("duoformer", backbone="resnet/34", dim=24, heads=2, depth=1)
    with pytest.raises(WeightsError, match="neither the whole network"):
        model.initialise(wrong, "duoformer", tmp_path / "resnet18.pth")
    plain: Any = model.create("backbone", backbone="resnet/18", classes=3).eval()
    assert model.initialise(plain, "backbone", tmp_path / "resnet18.pth").startswith("backbone of backbone")
    with torch.no_grad():
        assert torch.equal(plain.encoder(image)[3], bare(image))
    assert part.config.backbone == "resnet/18"


def test_beginning_with_a_backbone_that_was_trained_here(tmp_path: Path) -> None:
    """As the paper's networks begin: a CNN that knows the tissue, and DuoFormer on it."""
    from core import bundle

    torch.manual_seed(3)
    overrides = SMALL["backbone_settings"]
    plain: Any = model.create("backbone", backbone=SMALL["backbone"], overrides=overrides, classes=2)
    given = bundle.Settings("medical pathology classify", bundle.Network("backbone", {}))
    bundle.save(tmp_path / "plain", plain, given, {})
    for path in (tmp_path / "plain", tmp_path / "plain" / bundle.WEIGHTS):
        network: Any = model.create("duoformer", **SMALL)
        kept = network.head.weight.clone()
        said = model.initialise(network, "duoformer", path, classes={"a": 0, "b": 1})
        assert said.startswith("backbone of duoformer from ")
        assert all(torch.equal(v, network.encoder.state_dict()[n]) for n, v in plain.encoder.state_dict().items())
        assert torch.equal(kept, network.head.weight)
    whole = bundle.Settings("medical pathology classify", bundle.Network("duoformer", {}))
    bundle.save(tmp_path / "whole", model.create("duoformer", **SMALL), whole, {})
    with pytest.raises(WeightsError, match="holds duoformer, backbone was asked for"):
        model.initialise(plain, "backbone", tmp_path / "whole")


def test_our_own_files_and_heads_for_other_classes(tmp_path: Path) -> None:
    network = small().eval()
    save(network, tmp_path / "ours.safetensors")
    base = model.configured("duoformer", SMALL)
    built, taken = model.import_weights(tmp_path / "ours.safetensors", "duoformer", base)
    assert taken.part == "network"
    assert all(torch.equal(v, built.state_dict()[n]) for n, v in network.state_dict().items())
    torch.manual_seed(4)
    fresh: Any = model.create("duoformer", **SMALL, classes=3)
    kept = fresh.head.weight.clone()
    said = model.initialise(fresh, "duoformer", tmp_path / "ours.safetensors")
    assert "not taken: head.bias, head.weight" in said
    assert torch.equal(fresh.head.weight, kept)
    assert torch.equal(fresh.positions, network.positions)
    other: Any = model.create("duoformer", **SMALL | {"scales": 3})
    with pytest.raises(WeightsError, match=r"projections\.2\.bias is None there and \(24,\) in the network"):
        model.initialise(other, "duoformer", tmp_path / "ours.safetensors")
    loaded = load_published("medical/duoformer", tmp_path / "ours.safetensors", **SMALL)
    assert all(torch.equal(v, loaded.state_dict()[n]) for n, v in network.state_dict().items())


def test_authors_arguments() -> None:
    names = {n: tuple(v.shape) for n, v in authors(model.create("duoformer", **RESNET)).items()}
    found: Any = model.from_published({"num_heads": 6, "freeze_backbone": True}, names, DuoFormerConfig())
    assert (found.heads, found.frozen, found.dim, found.depth) == (6, True, 24, 2)
    own = {n: tuple(v.shape) for n, v in model.create("duoformer", **RESNET | {"scales": 4}).state_dict().items()}
    assert replace(found, scales=4, heads=12, frozen=False) == model.from_published({}, own, DuoFormerConfig())
