"""ViT-CoMer beyond its vectors: deformable attention against loops, the exchange from the card, forms, checkpoints."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from parity import Fixture, fill_
from torch import Tensor, nn

from core import measure, registry
from core.backbones import _vit_comer_exchange as exchange
from core.backbones import _vit_comer_layers as layers
from core.backbones import vit_comer
from core.compression.fold import fold
from core.errors import SettingError, ShapeError, UnknownNameError, WeightsError
from core.mixers import deformable
from core.weights import load, load_published, save

COUNTS = {  # the card's measured ones
    "seg_tiny": 10_619_360, "seg_small": 31_280_480, "seg_base": 110_603_648, "det_small": 30_457_568,
    "det_base": 109_051_520,
}  # fmt: skip
MACS = {"seg_tiny": 36.1, "seg_small": 81.1}  # the card's at 512 x 512, 1e9
PARITY = Path(__file__).parent / "parity"
SEG, DET = PARITY / "vit-comer--seg-tiny-128x160.json", PARITY / "vit-comer--det-small-256x320.json"
SIZES = [(4, 6), (2, 3), (1, 2)]
BOTH = pytest.mark.parametrize("grad", [False, True])


def little(name: str = "seg_tiny", **more: Any) -> Any:
    """One block of 12 channels inside each exchange, numbers in place of starts that hide errors."""
    settings: dict[str, Any] = {
        "dim": 12, "heads": 3, "depths": (1, 1, 1, 1), "width": 4, "field_ratio": 1.0, "deform_heads": 2,
        "image_size": 64,
    } | more  # fmt: skip
    return fill_(registry.create(f"vit_comer/{name}", **settings))


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("name", COUNTS)
def test_parameters_and_macs(name: str) -> None:
    model = measure.on_meta(lambda: registry.create(f"vit_comer/{name}"))
    assert measure.parameters(model) == COUNTS[name]
    if name in MACS:
        assert measure.macs(model, (1, 3, 512, 512)) / 1e9 == pytest.approx(MACS[name], abs=0.05)


def test_large_networks() -> None:
    """The card has no counts of them. Around a published segmenter of theirs 62.6 M more lie than around ViT-Adapter's,
    whose exchanges have 17.3 M.
    """
    assert set(vit_comer.VARIANTS) - set(COUNTS) == {"seg_large", "det_large"}
    model: Any = measure.on_meta(lambda: registry.create("vit_comer/seg_large"))
    assert (len(model.blocks), model.config.depths, model.channels[0]) == (24, (6, 6, 6, 6), 1024)
    assert (measure.parameters(model.stages) - 17_269_632) / 1e6 == pytest.approx(62.6, abs=0.5)


# Deformable attention


def loop_points(value: Tensor, sizes: Any, places: Tensor, weights: Tensor) -> Tensor:
    """One point at a time."""
    B, _, heads, d = value.shape
    N, points = places.shape[1], places.shape[4]
    out = torch.zeros(B, N, heads, d, dtype=value.dtype)
    for b in range(B):
        for n in range(N):
            for head in range(heads):
                start = 0
                for level, (h, w) in enumerate(sizes):
                    cells = value[b, start : start + h * w, head].reshape(h, w, d)
                    start += h * w
                    for p in range(points):
                        x, y = (places[b, n, head, level, p] * torch.tensor([w, h]) - 0.5).tolist()
                        for row in (math.floor(y), math.floor(y) + 1):
                            for column in (math.floor(x), math.floor(x) + 1):
                                if 0 <= row < h and 0 <= column < w:
                                    share = (1 - abs(y - row)) * (1 - abs(x - column))
                                    out[b, n, head] += share * weights[b, n, head, level, p] * cells[row, column]
    return out.flatten(2)


def points(heads: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Values, places (a third of them outside or on an edge) and weights of 5 queries of 2 images."""
    value = rand(2, sum(h * w for h, w in SIZES), heads, 3)
    places = rand(2, 5, heads, 3, 4, 2, seed=1) * 0.6 + 0.5
    places[0, 0, 0, :, 0] = 0.0
    places[0, 1, 0, :, 1] = 1.0
    places[0, 2, 0, :, 2] = torch.tensor([0.5, 1.0], dtype=torch.float64)
    places[1, 0, 0, :, 0] = torch.tensor([-40.0, 1e9], dtype=torch.float64)
    return value, places, rand(2, 5, heads, 3, 4, seed=2)


@pytest.mark.parametrize("way", [deformable._by_grids, deformable._by_rows, deformable.gather_points])
def test_points_equal_a_loop(way: Any) -> None:
    value, places, weights = points()
    want = loop_points(value, SIZES, places, weights)
    given = (value, SIZES, *places.unbind(-1), weights)
    with torch.no_grad():
        torch.testing.assert_close(way(*given), want)
    torch.testing.assert_close(way(*given), want)


def test_points_equal_mmcv() -> None:
    """Its own plain form, and where there is a GPU its operator."""
    theirs = pytest.importorskip("mmcv.ops.multi_scale_deform_attn")
    value, places, weights = points()
    shapes, found = torch.tensor(SIZES), deformable.gather_points(value, SIZES, *places.unbind(-1), weights)
    torch.testing.assert_close(found, theirs.multi_scale_deformable_attn_pytorch(value, shapes, places, weights))
    if torch.cuda.is_available():
        starts = torch.tensor([0, 24, 30])
        given = [t.cuda() for t in (value.float(), shapes, starts, places.float(), weights.float())]
        operator = theirs.MultiScaleDeformableAttnFunction.apply(*given, 2)
        torch.testing.assert_close(found.float(), operator.cpu(), atol=1e-4, rtol=1e-4)


def test_which_way_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    for name in ("_by_grids", "_by_rows"):
        monkeypatch.setattr(deformable, name, lambda *a, name=name: taken.append(name))
    given: Any = (points()[0], SIZES, *[points()[2]] * 3)
    deformable.gather_points(*given)
    with torch.no_grad():
        deformable.gather_points(*given)
        monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)
        deformable.gather_points(*given)
    assert taken == ["_by_grids", "_by_rows", "_by_grids"]


def test_gradient_of_points() -> None:
    value, places, weights = points()
    given = [t.clone().requires_grad_() for t in (value[:1], *places[:1, 3:].unbind(-1), weights[:1, 3:])]
    assert torch.autograd.gradcheck(
        lambda v, *rest: deformable.gather_points(v, SIZES, *rest), given, eps=1e-7, atol=1e-5
    )


@pytest.mark.parametrize("heads", [2, 3])  # the address of no number overflows, with some heads to a valid one
def test_a_place_that_is_no_number_spoils_its_own_query_only(heads: int) -> None:
    value, places, weights = points(heads)
    with torch.no_grad():
        want = deformable.gather_points(value, SIZES, *places.unbind(-1), weights)
        places[0, 3, 1, 2, 1, 0] = float("nan")
        places[1, 1, 0, 0, 3, 1] = float("inf")
        out = deformable.gather_points(value, SIZES, *places.unbind(-1), weights)
    assert out[0, 3, 3:6].isnan().all()
    out[0, 3, 3:6], out[1, 1, :3] = want[0, 3, 3:6], want[1, 1, :3]
    torch.testing.assert_close(out, want)


def test_centres() -> None:
    found = deformable.centres([(2, 3), (1, 1)], dtype=torch.float64)
    want = [((x + 0.5) / 3, (y + 0.5) / 2) for y in range(2) for x in range(3)]
    torch.testing.assert_close(found, torch.tensor([*want, (0.5, 0.5)], dtype=torch.float64))


@BOTH
@pytest.mark.parametrize("ratio", [1.0, 0.5, 2.0])
def test_deformable_attention_equals_a_loop(ratio: float, grad: bool) -> None:
    layer: Any = fill_(deformable.DeformableAttention(8, 2, points=2, ratio=ratio)).double()
    query, cells, reference = rand(2, 3, 8), rand(2, 32, 8, seed=1), torch.rand(3, 2).double()
    value = layer.value(cells).unflatten(-1, (2, -1))
    chosen = F.linear(query, layer.sampling.weight, layer.sampling.bias).reshape(2, 3, 3, 2, 3, 2)
    places = torch.empty(2, 3, 2, 3, 2, 2, dtype=torch.float64)
    for level, size in enumerate(SIZES):
        for axis, cells_across in enumerate((size[1], size[0])):  # x, y
            offset = chosen[:, :, axis, :, level] / cells_across
            places[..., level, :, axis] = reference[:, None, None, axis] + offset
    logits = chosen[:, :, 2].flatten(-2)
    want = layer.proj(loop_points(value, SIZES, places, logits.softmax(-1).reshape(2, 3, 2, 3, 2)))
    with torch.set_grad_enabled(grad):
        torch.testing.assert_close(layer(query, reference, cells, SIZES), want)
        each = reference.expand(2, 3, 2)
        torch.testing.assert_close(layer(query, each, cells, SIZES), want)


def test_deformable_attention_starts_as_rings() -> None:
    layer = deformable.DeformableAttention(8, 8, points=2)
    x, y, logits = layer.sampling.bias.detach().reshape(3, 8, 3, 2)
    rings = torch.stack([x, y], -1)
    directions = [(1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1)]
    for head, direction in enumerate(directions):
        for level in range(3):
            want = torch.tensor([1.0, 2.0])[:, None] * torch.tensor(direction)
            torch.testing.assert_close(rings[head, level], want, atol=1e-6, rtol=0)
    assert not logits.any()
    assert not layer.sampling.weight.any()
    with pytest.raises(SettingError, match="3 heads of 4 points do not share 8 channels"):
        deformable.DeformableAttention(8, 3)


def test_half_precision_keeps_places_in_float32() -> None:
    """Near the end of a long map bfloat16 knows places to several cells only."""
    torch.manual_seed(0)
    layer = deformable.DeformableAttention(8, 2, maps=1, points=1)
    nn.init.zeros_(layer.sampling.bias)
    sizes = [(1, 400)]
    reference, cells = deformable.centres(sizes), torch.randn(1, 400, 8).bfloat16().float()
    with torch.no_grad():
        want = layer(torch.zeros(1, 400, 8), reference, cells, sizes)
        got = layer.bfloat16()(torch.zeros(1, 400, 8).bfloat16(), reference, cells.bfloat16(), sizes)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.float(), want, atol=0.05, rtol=0.05)


# Layers, from the card


def normed(x: Tensor, layer: nn.Module) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], layer.weight, layer.bias, 1e-6)  # type: ignore[arg-type]


def batch_normed(x: Tensor, layer: Any) -> Tensor:
    """By the batch's own statistics in training, which leaves the layer's running ones alone."""
    running = (layer.running_mean.clone(), layer.running_var.clone())
    return F.batch_norm(x, *running, layer.weight, layer.bias, training=layer.training, eps=1e-5)


def planes(tokens: Tensor, sizes: Any = SIZES) -> list[Tensor]:
    """(B, N, C) -> (B, C, h, w) per map."""
    parts = tokens.split([h * w for h, w in sizes], 1)
    return [p.transpose(1, 2).reshape(len(p), -1, *size) for p, size in zip(parts, sizes, strict=True)]


def row(maps: list[Tensor]) -> Tensor:
    return torch.cat([m.flatten(2).transpose(1, 2) for m in maps], 1)


def mlp(tokens: Tensor, layer: Any) -> Tensor:
    inside = planes(F.linear(tokens, layer.fc1.weight, layer.fc1.bias))
    conv = layer.depthwise
    inside = [F.conv2d(m, conv.weight, conv.bias, padding=1, groups=m.shape[1]) for m in inside]
    return F.linear(F.gelu(row(inside)), layer.fc2.weight, layer.fc2.bias)


def attended(layer: Any, query: Tensor, cells: Tensor) -> Tensor:
    return layer(query, deformable.centres(SIZES, dtype=torch.float64), cells, SIZES)


def extracted(tokens: Tensor, layer: Any) -> Tensor:
    stream = normed(tokens, layer.outer_query)
    cells = normed(normed(tokens, layer.outer_cells), layer.norm_cells)
    stream = stream + attended(layer.attention, normed(stream, layer.norm_query), cells)
    return stream + mlp(normed(stream, layer.refine.norm), layer.refine.mlp)


def with_middle(tokens: Tensor, x: Tensor) -> Tensor:
    fine, middle, coarse = planes(tokens)
    return row([fine, middle + x.permute(0, 3, 1, 2), coarse])


def fields(tokens: Tensor, layer: Any) -> Tensor:
    wide = planes(F.linear(tokens, layer.fc1.weight, layer.fc1.bias))
    found = []
    for m, kernels in zip(wide, layer.kernels, strict=True):
        a, b = m.chunk(2, 1)
        a = F.conv2d(a, kernels.conv3.weight, kernels.conv3.bias, padding=1, groups=a.shape[1])
        b = F.conv2d(b, kernels.conv5.weight, kernels.conv5.bias, padding=2, groups=b.shape[1])
        found.append(F.gelu(batch_normed(torch.cat([a, b], 1), kernels.norm)))
    return F.linear(F.gelu(row(found)), layer.fc2.weight, layer.fc2.bias)


def test_fields_and_companion_in_training() -> None:
    """There batch norms are not part of the weights beside them, nor are the hidden channels two halves."""
    model = little().double().train()
    layer, tokens = model.stages[1].fields, rand(2, 32, 12)
    maps = [m.permute(0, 2, 3, 1) for m in planes(tokens)]
    want = fields(tokens, layer)
    before = layer.kernels[0].norm.running_mean.clone()
    torch.testing.assert_close(row([m.permute(0, 3, 1, 2) for m in layer(maps)]), want)
    assert not torch.equal(layer.kernels[0].norm.running_mean, before)
    for norm in (k.norm for k in layer.kernels):  # frozen statistics in a network that trains
        norm.eval()
    torch.testing.assert_close(row([m.permute(0, 3, 1, 2) for m in layer(maps)]), fields(tokens, layer))
    step, x = model.companion.steps[0], rand(2, 4, 6, 6)
    want = F.relu(batch_normed(F.conv2d(x, step.conv.weight, stride=2, padding=1), step.norm))
    torch.testing.assert_close(step(x), want)


@BOTH
@pytest.mark.parametrize("form", ["segmentation", "detection"])
def test_exchange_is_the_card_s(form: str, grad: bool) -> None:
    model = little(form=form).double()
    stage = model.stages[3]
    x, tokens = rand(2, 2, 3, 12), rand(2, 32, 12, seed=1)
    with torch.no_grad():
        c = with_middle(fields(tokens, stage.fields), x)
        a = attended(stage.offer.attention, normed(c, stage.offer.norm_query), normed(c, stage.offer.norm_cells))
        a = a + mlp(normed(a, stage.offer.refine.norm), stage.offer.refine.mlp)
        fine, middle, coarse = planes(a)
        fine = F.interpolate(fine, scale_factor=0.5, mode="bilinear", align_corners=False)
        coarse = F.interpolate(coarse, size=(2, 3), mode="bilinear", align_corners=False)
        y = x + stage.offer.scale * (fine + middle + coarse).permute(0, 2, 3, 1)
        y = model.blocks[3](y)
        c = extracted(with_middle(c, y), stage.extract)
        for extra in stage.extra:
            c = with_middle(c, y)
            c = c + mlp(normed(c, extra.refine.norm), extra.refine.mlp)
            c = extracted(c, extra.extract)
    centres = deformable.centres(SIZES, dtype=torch.float64)
    with torch.set_grad_enabled(grad):
        got = stage(x, tokens, [model.blocks[3]], centres, SIZES)
    torch.testing.assert_close(got[0], y)
    torch.testing.assert_close(got[1], c)


def test_an_exchange_can_be_off() -> None:
    """Without a way to the ViT the companion's maps stay, too; without interaction only the sum is left, no norm."""
    flags: dict[str, Any] = {"to_vit": (False,) * 4, "interaction": (False,) * 4, "extra": False}
    x, tokens = rand(2, 2, 3, 12), rand(2, 32, 12, seed=1)
    centres = deformable.centres(SIZES, dtype=torch.float64)
    model = little(**flags).double()
    with torch.no_grad():
        y, c = model.stages[3](x, tokens, [model.blocks[3]], centres, SIZES)
        torch.testing.assert_close(y, model.blocks[3](x))
        torch.testing.assert_close(c, with_middle(tokens, y))
        silent = little(**flags, to_companion=(True, False, True, True)).double()
        assert torch.equal(silent.stages[1](x, tokens, [], centres, SIZES)[1], tokens)


def test_forms_have_other_layers_where_exchanges_are_off() -> None:
    """The segmentation copy has the unused fields, both have unused outer norms; none of these is trained."""
    some: dict[str, Any] = {"to_vit": (False, True, True, True), "interaction": (True, False, True, True)}
    names = {form: dict(little(form=form, **some).named_parameters()) for form in ("segmentation", "detection")}
    only = names["segmentation"].keys() - names["detection"].keys()
    assert {".".join(n.split(".")[:4]) for n in only} == {f"stages.0.fields.{n}" for n in ("fc1", "fc2", "kernels")}
    for parameters in names.values():
        frozen = {n for n, p in parameters.items() if not p.requires_grad}
        assert frozen == {n for n in parameters if n.startswith(("stages.0.fields.", "stages.1.extract.outer"))}
    assert not isinstance(little(**some).stages[1].extract, exchange.Extract)
    assert len(little(extra=False).stages[3].extra) == 0


@pytest.mark.parametrize("name", ["seg_tiny", "det_small"])
def test_network_is_the_card_s(name: str) -> None:
    """Companion, embedding and outputs of both forms around the exchanges, at an odd number of patches."""
    model = little(name, windows=()).double()
    image, kept = rand(2, 3, 96, 160), []
    for stage in model.stages:
        stage.register_forward_hook(lambda _, given, out: kept.append((given, out)))
    with torch.no_grad():
        levels = model(image)
        m = image
        for layer, stride in zip(model.companion.stem[:3], (2, 1, 1), strict=True):
            m = F.relu(batch_normed(F.conv2d(m, layer.conv.weight, stride=stride, padding=1), layer.norm))
        maps = [F.max_pool2d(m, 3, 2, 1)]
        for layer in model.companion.steps:
            maps.append(F.relu(batch_normed(F.conv2d(maps[-1], layer.conv.weight, stride=2, padding=1), layer.norm)))
        projections = model.companion.projections
        maps = [F.conv2d(m, p.weight[..., None, None], p.bias) for m, p in zip(maps, projections, strict=True)]
        given = [m + e[:, None, None] for m, e in zip(maps[1:], model.level_embedding, strict=True)]
        torch.testing.assert_close(kept[0][0][1], row(given))
        table = model.positions[:, 1:].transpose(1, 2).reshape(1, 12, 4, 4)
        patches = F.conv2d(image, model.patches.conv.weight, model.patches.conv.bias, stride=16)
        patches = patches + F.interpolate(table, size=(6, 10), mode="bicubic", align_corners=False)
        torch.testing.assert_close(kept[0][0][0], patches.permute(0, 2, 3, 1))
        sizes = [(12, 20), (6, 10), (3, 5)]
        fine, middle, coarse = planes(kept[3][1][1], sizes)
        first = F.conv_transpose2d(fine, model.up.weight, model.up.bias, stride=2) + maps[0]
        vit = [out[0].permute(0, 3, 1, 2) for _, out in kept]
        vit = vit if name.startswith("seg") else [vit[3]] * 4
        for i, (level, scale) in enumerate(zip((first, fine, middle, coarse), (4, 2, 1, 0.5), strict=True)):
            added = F.interpolate(vit[i], scale_factor=scale, mode="bilinear", align_corners=False)
            torch.testing.assert_close(levels[i], batch_normed(level + added, model.norms[i]))


def test_levels_without_the_vit() -> None:
    with_vit, without = little(), little(joined=False)
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        assert all(not torch.allclose(a, b) for a, b in zip(with_vit(image), without(image), strict=True))
        without.norms[3] = nn.Identity()
        kept = []
        without.stages[3].register_forward_hook(lambda _, __, out: kept.append(out[1]))
        last = without(image)[3]
        torch.testing.assert_close(last, planes(kept[0], [(8, 12), (4, 6), (2, 3)])[2])


# The ViT


@BOTH
@pytest.mark.parametrize("size", [(3, 3), (4, 7), (1, 2)])
def test_padded_keys_are_zero_and_seen(size: tuple[int, int], grad: bool) -> None:
    model = little(windows=(3,)).double()
    layer = model.blocks[0].token_mixer
    assert isinstance(layer, layers.PaddedWindows)
    x = rand(2, *size, 12)
    with torch.no_grad():
        qkv = F.linear(x, layer.qkv.weight, layer.qkv.bias)
        padded = F.pad(qkv, (0, 0, 0, -size[1] % 3, 0, -size[0] % 3))
        out = torch.zeros(2, *padded.shape[1:3], 12, dtype=torch.float64)
        for b in range(2):
            for top in range(0, padded.shape[1], 3):
                for left in range(0, padded.shape[2], 3):
                    q, k, v = padded[b, top : top + 3, left : left + 3].reshape(9, 3, 3, 4).unbind(1)
                    for head in range(3):
                        attention = (q[:, head] @ k[:, head].T / 2).softmax(-1)
                        done = (attention @ v[:, head]).reshape(3, 3, 4)
                        out[b, top : top + 3, left : left + 3, 4 * head : 4 * head + 4] = done
        want = F.linear(out[:, : size[0], : size[1]], layer.proj.weight, layer.proj.bias)
    with torch.set_grad_enabled(grad):
        torch.testing.assert_close(layer(x), want)


def test_dropout_of_the_vit_stays() -> None:
    vit = fill_(
        registry.create("vit/tiny", dim=12, heads=3, depth=4, image_size=64, attention_dropout=0.5, dropout=0.5)
    )
    model = vit_comer.adapt(vit, windows=(2, 0), deform_heads=2).train()
    x = torch.randn(1, 4, 4, 12)
    for block in model.blocks[:2]:
        mixer = copy.deepcopy(block.token_mixer)
        mixer.proj_dropout.p = 0.0
        assert not torch.equal(mixer(x), mixer(x))
        assert torch.equal(mixer.eval()(x), mixer(x))
    assert float((model.embed(torch.randn(1, 3, 64, 64)) == 0).float().mean()) == pytest.approx(0.5, abs=0.15)


def test_windows_go_on_blocks_in_turn() -> None:
    model = little(windows=(5, 0), depths=(2, 1, 0, 2))
    sides = [getattr(b.token_mixer, "window", (0, 0))[0] for b in model.blocks]
    assert sides == [5, 0, 5, 0, 5]
    whole = little(windows=(8,)).double()
    plain = little().double()
    plain.load_state_dict(whole.state_dict())
    image = rand(1, 3, 128, 128)
    with torch.no_grad():
        for a, b in zip(whole(image), plain(image), strict=True):  # one window is the whole map
            torch.testing.assert_close(a, b)


def test_a_vit_with_weights_is_adapted() -> None:
    vit: Any = fill_(registry.create("vit/tiny", dim=24, heads=3, depth=8, image_size=64, layer_scale=0.1)).double()
    image = rand(1, 3, 64, 96)
    with torch.no_grad():
        want, _ = vit.embed(image)
    model = vit_comer.adapt(copy.deepcopy(vit), windows=(2, 0), form="detection", deform_heads=2).double().eval()
    assert (model.config.depths, model.config.heads, model.config.layer_scale) == ((2, 2, 2, 2), 3, 0.1)
    theirs = vit.state_dict()
    for name, value in model.blocks.state_dict().items():
        assert torch.equal(value, theirs[f"stages.0.blocks.{name}"])
    with torch.no_grad():
        # DeiT's own resizing of positions differs by its offset; the patches are the same where there is none.
        square = rand(1, 3, 64, 64)
        want = vit.stages[0].embed.patches(square) + vit.stages[0].embed.learned[:, 1:].reshape(1, 4, 4, 24)
        torch.testing.assert_close(model.embed(square), want)
        assert [tuple(m.shape) for m in model(image)] == [(1, 24, 16, 24), (1, 24, 8, 12), (1, 24, 4, 6), (1, 24, 2, 3)]
    plain = registry.create("vit/tiny", dim=24, heads=3, depth=4, class_token=False, registers=2, norm=False)
    assert vit_comer.adapt(plain, deform_heads=2)(torch.randn(2, 3, 32, 64))[0].shape == (2, 24, 8, 16)


def test_what_cannot_be_adapted_is_refused() -> None:
    def vit(**more: Any) -> Any:
        return registry.create("vit/tiny", **{"dim": 12, "heads": 3, "depth": 4, "image_size": 64} | more)

    with pytest.raises(SettingError, match=r"patches of 16 pixels, got 8"):
        vit_comer.adapt(vit(patch=8))
    with pytest.raises(SettingError, match="learned positions"):
        vit_comer.adapt(vit(positions="sincos_2d"))
    with pytest.raises(SettingError, match="learned positions"):
        vit_comer.adapt(vit(relative=True))
    with pytest.raises(SettingError, match="whose depth four divides"):
        vit_comer.adapt(vit(depth=6))
    with pytest.raises(SettingError, match=r"plain ViT.*not Swin"):
        vit_comer.adapt(registry.create("swin/tiny", depths=(1, 1, 1, 1)))
    with pytest.raises(SettingError, match="the ViT has dim 12, the settings say 192"):
        vit_comer.ViTCoMer(vit_comer.VARIANTS["seg_tiny"], vit(depth=12))
    with pytest.raises(SettingError, match="adapts a plain ViT, not Swin"):
        vit_comer.ViTCoMer(vit_comer.VARIANTS["seg_tiny"], registry.create("swin/tiny", depths=(1, 1, 1, 1)))
    with pytest.raises(SettingError, match="windows are for attention with one bias"):
        vit_comer.adapt(vit(qkv_bias="qv"), windows=(2,), deform_heads=2)
    with pytest.raises(UnknownNameError, match=r"vit_comer setting.*'window'"):
        vit_comer.adapt(vit(), window=3)


# The whole


@pytest.mark.parametrize("name", ["seg_tiny", "det_small"])
def test_sizes_channels_and_batches(name: str) -> None:
    model = little(name, in_channels=5, windows=(2, 0)).double()
    assert (model.channels, model.strides, len(model.stages)) == ((12,) * 4, (4, 8, 16, 32), 4)
    images = rand(2, 5, 96, 32)
    with torch.no_grad():
        together = model(images)
        assert [tuple(level.shape[1:]) for level in together] == [(12, 24, 8), (12, 12, 4), (12, 6, 2), (12, 3, 1)]
        for i, image in enumerate(images):
            for joint, single in zip(together, model(image[None]), strict=True):
                torch.testing.assert_close(joint[i], single[0])
    for size in ((144, 160), (32, 33), (31, 31), (0, 32)):
        with pytest.raises(ShapeError, match=f"sides that 32 divides, got {size[0]} x {size[1]}"):
            model(rand(1, 5, *size))
    with pytest.raises(ShapeError, match="C=5"):
        model(rand(1, 3, 32, 32))


def test_training_and_inference_are_one_function() -> None:
    model = little("det_small", windows=(3, 0)).double()
    image = rand(2, 3, 64, 96)
    with torch.no_grad():
        without = model(image)
    for a, b in zip(model(image), without, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", ["seg_tiny", "det_small"])
def test_one_training_step(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = little(name, windows=(2, 0), drop_path=0.2).train()
    image, before = torch.randn(3, 3, 64, 96), copy.deepcopy(model.state_dict())
    sum(level.square().mean() for level in model(image)).backward()
    wrong = [
        n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all() or not p.grad.any()
    ]
    assert wrong == []
    torch.optim.SGD(model.parameters(), 1e-3).step()
    moved = {n for n, v in model.state_dict().items() if not torch.equal(v, before[n])}
    assert {n for n in before if n.endswith("running_mean")} <= moved
    save(model, tmp_path / "ours.safetensors")
    fresh = little(name, windows=(2, 0))
    load(fresh, tmp_path / "ours.safetensors")
    with torch.no_grad():
        for a, b in zip(fresh(image), model.eval()(image), strict=True):
            assert torch.equal(a, b)


def test_only_training_uses_the_batch_s_statistics() -> None:
    model = little().double()
    image = rand(2, 3, 64, 64)
    with torch.no_grad():
        first = model(image)[0]
        assert not torch.allclose(model.train()(image)[0], first)
        torch.testing.assert_close(model.eval()(image)[0].mean(), model(image)[0].mean())


def test_half_precision_stays_finite() -> None:
    model, image = little("det_small", windows=(2, 0)), torch.randn(1, 3, 96, 64)
    with torch.no_grad():
        want = model(image)
        with torch.autocast("cpu", torch.bfloat16):
            mixed = model(image)
        half = model.to(torch.bfloat16)(image.bfloat16())
    for a, b, c in zip(want, mixed, half, strict=True):
        assert c.dtype == torch.bfloat16
        for other in (b, c):
            assert other.isfinite().all()
            assert (other.float() - a).abs().mean() < 0.2 * a.std()


def test_folded_network_answers_the_same() -> None:
    model, image = little("det_small", windows=(2, 0)).double(), rand(2, 3, 64, 96)
    folded = fold(model)
    with torch.no_grad():
        for a, b in zip(folded(image), model(image), strict=True):
            torch.testing.assert_close(a, b)
    left = [n for n, m in folded.named_modules() if isinstance(m, nn.BatchNorm2d)]
    assert left == [f"norms.{i}" for i in range(4)]  # behind a sum
    assert sum(isinstance(m, nn.BatchNorm2d) for m in model.modules()) == 6 + 12 + 4


def test_drop_paths() -> None:
    """The ViT's rise from 0; every added branch has the full rate, and drops whole images."""
    model = registry.create("vit_comer/seg_small")
    assert [round(b.drop_path.p, 4) for b in model.blocks] == [round(0.2 * i / 11, 4) for i in range(12)]
    refinements = [m for m in model.stages.modules() if isinstance(m, exchange.Refine)]
    assert [m.drop_path.p for m in refinements] == [0.2] * (4 + 4 + 2 * 4)
    refine = exchange.Refine(4, 8, 0.5).train()
    x = torch.randn(64, 32, 4)
    y = refine(x, SIZES)
    kept = (y != x).flatten(1).any(1)
    assert 10 < int(kept.sum()) < 54


def test_start() -> None:
    torch.manual_seed(0)
    model = registry.create("vit_comer/seg_tiny")
    assert float(model.level_embedding.detach().std()) == pytest.approx(1, rel=0.1)
    for stage in model.stages:
        assert not stage.offer.scale.any()
        assert float(stage.fields.fc1.weight.detach().std()) == pytest.approx(0.02, rel=0.05)
        kernels = stage.fields.kernels[0]
        assert float(kernels.conv5.weight.detach().std()) == pytest.approx((2 / 25) ** 0.5, rel=0.1)
        assert not stage.extract.attention.sampling.weight.any()
        assert stage.extract.attention.sampling.bias.any()
    assert float(model.companion.steps[0].conv.weight.detach().std()) == pytest.approx((2 / (9 * 128)) ** 0.5, rel=0.05)
    assert float(model.companion.projections[2].weight.detach().std()) == pytest.approx((2 / 192) ** 0.5, rel=0.05)
    assert float(model.up.weight.detach().std()) == pytest.approx((2 / (4 * 192)) ** 0.5, rel=0.05)
    assert torch.equal(model.blocks[3].scale1.scale, torch.ones(192))
    value = model.stages[0].offer.attention.value.weight.detach()
    assert float(value.abs().max()) == pytest.approx((6 / (192 + 192)) ** 0.5, rel=0.01)  # xavier, uniform


def test_epsilons_that_no_vector_can_tell() -> None:
    for name, module in little().named_modules():
        if isinstance(module, nn.LayerNorm):
            assert module.eps == 1e-6, name
        if isinstance(module, nn.BatchNorm2d):
            assert (module.eps, module.momentum) == (1e-5, 0.1), name


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(SettingError, match="four exchanges, got 3 entries in depths"):
        little(depths=(1, 1, 1))
    with pytest.raises(SettingError, match="four exchanges, got 1 entries in to_vit"):
        little(to_vit=(True,))
    with pytest.raises(SettingError, match="16 pixels and more, got 8"):
        little(image_size=8)
    with pytest.raises(SettingError, match="windows are sides"):
        little(windows=(-1,))
    with pytest.raises(SettingError, match="5 heads of 4 points"):
        little(deform_heads=5)
    with pytest.raises(SettingError, match="half of the 3 hidden channels"):
        little(field_ratio=0.25)
    with pytest.raises(SettingError, match="is one of 'segmentation', 'detection'"):
        little(form="pose")


# Published files


def written(path: Path, fixture: Fixture) -> Path:
    """As published: under "state_dict", the backbone's names after a prefix, beside those of a head."""
    state = {
        "decode_head.encoder.attn.attention_weights.weight": torch.zeros(7, 4),
        "decode_head.encoder.ffn.fc1.weight": torch.zeros(7, 4),
        "auxiliary_head.norm1.weight": torch.zeros(4),
    }
    state |= {f"backbone.{n}": v for n, v in fixture.state_dict().items()}
    torch.save({"meta": {"epoch": 1}, "state_dict": state}, path)
    return path


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("vit_comer") / "comer.pth", Fixture.read(SEG))


def test_published_segmentation(published: Path) -> None:
    fixture, model = Fixture.read(SEG), load_published("vit_comer/seg_tiny", published)
    assert not model.training
    with torch.no_grad():
        for i, level in enumerate(model(fixture.input()), 1):
            fixture.compare(f"stage{i}", level, 1e-3)
    for other in ("seg_small", "det_small"):
        with pytest.raises(WeightsError, match=r"comer\.pth: holds"):
            load_published(f"vit_comer/{other}", published)


def test_published_detection(tmp_path: Path) -> None:
    fixture = Fixture.read(DET)
    path = written(tmp_path / "comer.pth", fixture)
    model = load_published("vit_comer/det_small", path)
    with torch.no_grad():
        for i, level in enumerate(model(fixture.input()), 1):
            fixture.compare(f"stage{i}", level, 1e-3)
    with pytest.raises(WeightsError, match=r"comer\.pth: holds the detection form, and this is the segmentation form"):
        load_published("vit_comer/seg_small", path)


def test_published_checkpoint_for_another_table(published: Path) -> None:
    with pytest.warns(UserWarning, match="positions resized"):
        model: Any = load_published("vit_comer/seg_tiny", published, image_size=(128, 160))
    same: Any = load_published("vit_comer/seg_tiny", published)
    image = torch.randn(1, 3, 128, 160)
    with torch.no_grad():
        torch.testing.assert_close(model.embed(image), same.embed(image))
    with pytest.raises(WeightsError, match=r"positions: \(1, 197, 192\) in the file, \(1, 81, 192\)"):
        load_published("vit_comer/seg_tiny", published, image_size=(128, 160), resize=False)


def test_incomplete_checkpoints_are_refused(tmp_path: Path) -> None:
    state = Fixture.read(SEG).state_dict()
    path = tmp_path / "comer.pth"
    torch.save({n: v for n, v in state.items() if n != "interactions.2.cti_tov.attn.value_proj.bias"}, path)
    with pytest.raises(
        WeightsError, match=r"stages\.2\.offer\.attention\.value\.bias: in the network, not in the file"
    ):
        load_published("vit_comer/seg_tiny", path)
    torch.save({f"student.encoder.{n}": v for n, v in state.items()}, path)
    with pytest.raises(WeightsError, match="not a vit_comer/seg_tiny file"):
        load_published("vit_comer/seg_tiny", path)
    assert load_published("vit_comer/seg_tiny", path, prefix="student.encoder.")


def test_arguments_and_shapes() -> None:
    seg, det = Fixture.read(SEG), Fixture.read(DET)
    assert vit_comer.from_published(seg.build, seg.state) == replace(vit_comer.VARIANTS["seg_tiny"])
    found = vit_comer.from_published(det.build, det.state)
    assert found == replace(vit_comer.VARIANTS["det_small"], drop_path=0.1)
    assert found.windows == (14, 14, 0)
    base = vit_comer.VARIANTS["det_small"]
    names: Any = {f"backbone.{n}": s for n, s in det.state.items()}
    assert vit_comer.from_published({}, names, base) == base
    some = {
        n: s for n, s in names.items() if ".0.cti_tov." not in n and ".0.mrfp." not in n and ".1.cti_toc.cf" not in n
    }
    changed = vit_comer.from_published({}, some, base)
    assert (changed.to_vit, changed.interaction) == ((False, True, True, True), (True, False, True, True))
    assert not vit_comer.from_published({}, {n: s for n, s in names.items() if "extra_CTIs" not in n}, base).extra
    unused = {n: s for n, s in names.items() if ".0.cti_tov." not in n}  # only the segmentation copy builds such
    with pytest.raises(WeightsError, match="holds the segmentation form"):
        vit_comer.from_published({}, unused, base)
    plain = vit_comer.from_published({}, {n: s for n, s in names.items() if "gamma" not in n or "cti" in n}, base)
    assert plain.layer_scale is None
    narrow = {"dim_ratio": 0.5, "embed_dim": 384}  # only the segmentation copy has the argument
    assert vit_comer.from_published(narrow, det.state).form == "segmentation"


def test_vit_without_layer_scale() -> None:
    names = {n for n, _ in little(layer_scale=None).named_parameters() if n.startswith("blocks.")}
    assert len(names) == 4 * 12
    assert little(layer_scale=None)(torch.randn(1, 3, 32, 32))[3].shape == (1, 12, 1, 1)


def test_arguments_alone() -> None:
    build = {
        "embed_dim": 1024, "num_heads": 16, "interaction_indexes": [[0, 5], [6, 11], [12, 17], [18, 23]],
        "deform_num_heads": 16, "deform_ratio": 0.5, "dim_ratio": 1.0, "drop_path_rate": 0.3, "use_CTI_toV": False,
        "cnn_feature_interaction": [True, False, True, True], "use_extra_CTI": False, "add_vit_feature": False,
        "window_attn": [True] * 24, "window_size": 7, "pretrain_size": 256, "layer_scale": False,
    }  # fmt: skip
    found = vit_comer.from_published(build, {})
    assert found == replace(
        vit_comer.VARIANTS["seg_large"], field_ratio=1.0, windows=(7,), image_size=256, to_vit=(False,) * 4,
        interaction=(True, False, True, True), extra=False, joined=False, layer_scale=None,
    )  # fmt: skip
    for wrong in ([[0, 2], [4, 5], [6, 8], [9, 11]], [[1, 2], [3, 5], [6, 8], [9, 11]]):
        with pytest.raises(SettingError, match="follow one another from 0"):
            vit_comer.from_published({"interaction_indexes": wrong}, {})


@pytest.mark.slow
@pytest.mark.parametrize("name", ["seg_tiny", "det_small"])
def test_compiles_and_exports(name: str, tmp_path: Path) -> None:
    from core.export import export

    torch._dynamo.reset()
    torch.manual_seed(0)
    model = little(name, windows=(2, 0))
    image = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        for a, b in zip(torch.compile(model, fullgraph=True)(image), model(image), strict=True):
            torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-3)
    assert export(model, tmp_path / "comer.onnx", (64, 96), name=f"vit_comer/{name}").difference < 1e-3
    levels = torch.compile(model.train(), fullgraph=True)(image)
    sum(level.square().mean() for level in levels).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
