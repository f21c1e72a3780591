"""NAT and DiNAT: neighborhood attention against a loop, its memory, sizes, training, published files."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from parity import Fixture, made_input
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from core import registry, weights
from core.backbones import dinat
from core.backbones.dinat import DinatConfig
from core.errors import SettingError, ShapeError, WeightsError
from core.mixers import _neighborhood_cut as geometry
from core.mixers import _neighborhood_kernels as kernels
from core.mixers.neighborhood import NeighborhoodAttention, neighborhood_attention

VECTORS = Path(__file__).parent / "parity"
SMALL = DinatConfig(
    dim=16, depths=(2, 1, 2, 1), heads=(2, 2, 4, 4), kernel=3, dilations=((1, 5), (3,), (1, 2), (1,)), layer_scale=0.5
)
PARAMETERS = {  # of the card, with 1000 classes
    "nat_mini": 19_984_174, "nat_tiny": 27_901_582, "nat_small": 50_743_297, "nat_base": 89_769_652,
    "dinat_mini": 19_984_174, "dinat_tiny": 27_901_582, "dinat_small": 50_719_681, "dinat_base": 89_769_652,
    "dinat_large": 200_943_514, "dinat_large_384": 200_943_514, "dinat_large_384_k11": 201_144_250,
    "dinat_s_tiny": 28_288_354, "dinat_s_small": 49_606_258, "dinat_s_base": 87_768_224, "dinat_s_large": 196_532_476,
    "dinat_s_large_384": 196_532_476,
}  # fmt: skip
ROUNDED = {"nat_iso_small": 22, "dinat_iso_small": 22, "nat_iso_base": 86, "dinat_iso_base": 86}  # millions
GFLOPS = {"dinat_mini": 2.7, "dinat_tiny": 4.3, "dinat_s_tiny": 4.5, "dinat_base": 13.7}


def neighbours(i: int, length: int, kernel: int, dilation: int) -> list[tuple[int, int]]:
    """Positions that position i sees, and the entries of their biases, word for word as the card has them."""
    group, place = i % dilation, i // dilation
    members = range(group, length, dilation)
    start = min(max(place - (kernel - 1) // 2, 0), len(members) - kernel)
    return [(members[t], t - place + kernel - 1) for t in range(start, start + kernel)]


def by_loop(qkv: Tensor, table: Tensor | None, kernel: int, dilation: int) -> Tensor:
    """(B, H, W, 3, h, d) -> (B, H, W, h, d), one position at a time."""
    H, W = qkv.shape[1:3]
    q, k, v = qkv.unbind(3)
    rows = [neighbours(i, H, kernel, dilation) for i in range(H)]
    columns = [neighbours(i, W, kernel, dilation) for i in range(W)]
    out = []
    for y in range(H):
        for x in range(W):
            at = [[n[i] for n in seen] for seen in (rows[y], columns[x]) for i in (0, 1)]
            ys, biases_y, xs, biases_x = (torch.tensor(a) for a in at)
            keys, values = (t[:, ys[:, None], xs[None, :]].flatten(1, 2) for t in (k, v))  # (B, k * k, h, d)
            logits = torch.einsum("bhd,bkhd->bhk", q[:, y, x] * q.shape[-1] ** -0.5, keys)
            if table is not None:
                logits = logits + table[:, biases_y[:, None], biases_x[None, :]].flatten(1)
            out.append(torch.einsum("bhk,bkhd->bhd", logits.softmax(-1), values))
    return torch.stack(out, 1).unflatten(1, (H, W))


def inputs(size: tuple[int, int], kernel: int, heads: int = 2) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    side = 2 * kernel - 1
    qkv = torch.randn(2, *size, 3, heads, 4, dtype=torch.float64, requires_grad=True)
    return qkv, torch.randn(heads, side, side, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize(("bias", "chunk"), [(True, None), (True, 1), (False, None)], ids=["", "chunks", "no bias"])
@pytest.mark.parametrize(
    ("size", "kernel", "dilation"),
    [
        ((7, 7), 7, 1), ((8, 13), 7, 1), ((14, 15), 7, 2), ((25, 18), 7, 1), ((23, 31), 7, 3),  # ragged groups
        ((27, 30), 3, 8), ((24, 17), 5, 2), ((11, 12), 3, 1), ((12, 26), 11, 1),
    ],
)  # fmt: skip
def test_operator_is_the_loop(
    size: tuple[int, int], kernel: int, dilation: int, bias: bool, chunk: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if chunk:
        monkeypatch.setattr(kernels, "LEAST_CHUNK", chunk)
        monkeypatch.setattr(kernels, "CPU_CHUNK", chunk)
    qkv, table = inputs(size, kernel)
    arguments = (qkv, table) if bias else (qkv,)
    ours = neighborhood_attention(*arguments, kernel=kernel, dilation=dilation)
    wanted = by_loop(qkv, table if bias else None, kernel, dilation)
    torch.testing.assert_close(ours, wanted, rtol=1e-10, atol=1e-12)
    seed = torch.randn_like(wanted)
    found, looped = (torch.autograd.grad(out, arguments, seed) for out in (ours, wanted))
    for a, b in zip(found, looped, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    with torch.no_grad():  # goes past the operator
        torch.testing.assert_close(neighborhood_attention(*arguments, kernel=kernel, dilation=dilation), ours)


@pytest.mark.parametrize("kernel", [3, 5, 7, 11])
def test_every_cut_holds_every_window(kernel: int) -> None:
    """Whatever cut the plan may take for a side, block for block: each query finds its own neighbours at their keys."""
    for length in range(kernel, 70):
        for axis in geometry.axes(length, kernel):
            index = axis.index(kernel)
            for query in range(length):
                block = query // axis.block
                kind = next(n for n, (a, b) in enumerate(axis.kinds) if a <= block < b)
                row = index[kind, query % axis.block]
                first = block * axis.step - axis.before
                found = [(first + at, int(entry)) for at, entry in enumerate(row) if entry >= 0]
                assert found == neighbours(query, length, kernel, 1), (length, axis, query)


def test_operator_passes_torch_checks() -> None:
    qkv, table = inputs((9, 8), 3)
    with torch.no_grad():
        qkv, table = qkv.clone().requires_grad_(), table.clone().requires_grad_()
    torch.library.opcheck(torch.ops.glocal.neighborhood_attention.default, (qkv, table, 3, 2, 0.5))
    torch.library.opcheck(torch.ops.glocal.neighborhood_attention.default, (qkv, None, 3, 1, 0.5))
    backward = torch.ops.glocal.neighborhood_attention_backward.default
    torch.library.opcheck(
        backward, (torch.randn(2, 9, 8, 2, 4), qkv.detach().float(), table.detach().float(), 3, 2, 0.5)
    )


def test_a_window_reaches_its_cells_only() -> None:
    qkv, table = inputs((20, 23), 5)
    at = (13, 1)
    out = neighborhood_attention(qkv, table, kernel=5, dilation=3)
    (grad,) = torch.autograd.grad(out[0, at[0], at[1]].sum(), qkv)
    reached = grad.abs().amax((3, 4, 5)) > 0
    wanted = torch.zeros(2, 20, 23, dtype=torch.bool)
    ys, xs = ([n for n, _ in neighbours(i, length, 5, 3)] for i, length in zip(at, (20, 23), strict=True))
    wanted[0][torch.tensor(ys)[:, None], torch.tensor(xs)[None, :]] = True
    assert torch.equal(reached, wanted)


def peak(call: object) -> int:
    """Most bytes held at a time by what one call allocates, from the allocator's own events."""
    assert callable(call)
    call()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        kept = call()
    del kept
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    return max(accumulate(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())))


@pytest.mark.parametrize(("images", "heads", "dilation"), [(1, 1, 1), (1, 2, 1), (2, 4, 1), (1, 2, 4), (1, 2, 9)])
def test_memory_is_bounded(images: int, heads: int, dilation: int) -> None:
    """At 64 x 64, kernel 7: at most four times q, k and v, output included; six with the gradients."""
    qkv, table = torch.randn(images, 64, 64, 3, heads, 32), torch.randn(heads, 13, 13)
    size = qkv.numel() * qkv.element_size()
    assert peak(lambda: torch.empty(1 << 20)) == 4 << 20, "the profiler reports no allocations"
    with torch.no_grad():
        assert peak(lambda: neighborhood_attention(qkv, table, kernel=7, dilation=dilation)) <= 4 * size
    leaves = [t.requires_grad_() for t in (qkv, table)]
    used = peak(
        lambda: torch.autograd.grad(neighborhood_attention(qkv, table, kernel=7, dilation=dilation).sum(), leaves)
    )
    assert used <= 6 * size


def test_small_maps_are_padded_with_ordinary_cells() -> None:
    """A side that is too short gets zeros before the projection: their keys and values are its biases."""
    torch.manual_seed(0)
    mixer = NeighborhoodAttention(8, 2, kernel=3, dilation=4).double()
    nn.init.normal_(mixer.qkv.bias)
    x = torch.randn(2, 5, 15, 8, dtype=torch.float64)
    padded = F.pad(x, (0, 0, 0, 0, 0, 7))
    qkv = F.linear(padded, mixer.qkv.weight, mixer.qkv.bias).unflatten(-1, (3, 2, 4))
    wanted = mixer.proj(by_loop(qkv, mixer.bias_table, 3, 4)[:, :5].flatten(-2))
    torch.testing.assert_close(mixer(x), wanted, rtol=1e-10, atol=1e-12)


def test_wrong_use_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"13 x 20 is smaller than 7 cells 2 apart: pad it to 14"):
        neighborhood_attention(torch.zeros(1, 13, 20, 3, 1, 4), kernel=7, dilation=2)
    with pytest.raises(ShapeError, match="rows=13"):
        neighborhood_attention(torch.zeros(1, 9, 9, 3, 1, 4), torch.zeros(1, 7, 7), kernel=7)
    with pytest.raises(SettingError, match="odd kernel"):
        NeighborhoodAttention(8, 2, kernel=4)
    with pytest.raises(SettingError, match="dilations for 2 stages"):
        dinat.build(replace(SMALL, dilations=((1,), (1,))))


@pytest.mark.parametrize("variant", dinat.VARIANTS)
def test_parameters(variant: str) -> None:
    with torch.device("meta"):
        model = registry.create(f"dinat/{variant}", classes=1000)
    count = sum(p.numel() for p in model.parameters())
    if variant in ROUNDED:
        assert round(count / 1e6) == ROUNDED[variant]
    else:
        assert count == PARAMETERS[variant]


@pytest.mark.parametrize("variant", GFLOPS)
def test_operations_are_the_papers(variant: str) -> None:
    with torch.device("meta"):
        model = registry.create(f"dinat/{variant}", classes=1000)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.empty(1, 3, 224, 224, device="meta"))
    assert counter.get_total_flops() / 2e9 == pytest.approx(GFLOPS[variant], abs=0.05)


def test_dilations() -> None:
    """The card's lists, by block."""
    model = registry.create("dinat/dinat_mini", dim=16)
    found = [[b.token_mixer.dilation for b in stage.blocks] for stage in model.stages]
    assert found == [[1, 8, 1], [1, 4, 1, 4], [1, 2, 1, 2, 1, 2], [1] * 5]
    coco = [[1, 28, 1], [1, 7, 1, 14], [1, 3, 1, 5, 1, 7], [1, 3, 1, 3, 1]]
    config = dinat.from_published({"name": "dinat_mini", "dilations": coco}, {})
    assert [list(d) for d in config.dilations] == coco
    assert set(dinat.from_published({"name": "nat_tiny"}, {}).dilations) == {(1,)}


@pytest.mark.parametrize("stem", ["convolutions", "patches"])
@pytest.mark.parametrize("size", [(70, 39), (33, 121), (5, 3)], ids=lambda s: f"{s[0]}x{s[1]}")
def test_any_size(stem: str, size: tuple[int, int]) -> None:
    """Sides round up, two images do not mix, and bfloat16 stays finite."""
    torch.manual_seed(0)
    model = dinat.build(replace(SMALL, stem=stem, in_channels=5)).eval()
    image = torch.randn(2, 5, *size)
    with torch.no_grad():
        pyramid, alone = model(image), model(image[1:])
        rough = model.to(torch.bfloat16)(image.to(torch.bfloat16))
    for i, (level, single, half) in enumerate(zip(pyramid, alone, rough, strict=True)):
        sides = tuple(-(-n // (4 << i)) for n in size)
        assert level.shape == (2, 16 << i, *sides)
        torch.testing.assert_close(level[1:], single, rtol=1e-4, atol=1e-5)
        assert half.dtype == torch.bfloat16
        assert half.isfinite().all()
    assert not torch.allclose(pyramid[0][0], pyramid[0][1], atol=1e-2)


@pytest.mark.parametrize("dense", [False, True], ids=["classifier", "dense"])
def test_training_step(dense: bool) -> None:
    """Every parameter gets a finite gradient, and weights round-trip."""
    torch.manual_seed(0)
    config = replace(SMALL, drop_path=0.2, dropout=0.1, dense=dense)
    backbone = dinat.build(config)
    model = backbone if dense else registry.classifier(backbone, 3)
    image = torch.randn(4, 3, 64, 50)
    out = model(image)
    loss = sum(level.pow(3).sum() for level in out) if dense else F.cross_entropy(out, torch.arange(4) % 3)
    loss.backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
    assert [n for n, p in model.named_parameters() if not p.grad.any() and not n.endswith("qkv.bias")] == []
    fresh = dinat.build(config) if dense else registry.classifier(dinat.build(config), 3)
    fresh.load_state_dict(model.state_dict())
    with torch.no_grad():
        for a, b in zip(fresh.eval()(image), model.eval()(image), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_autocast() -> None:
    """Under autocast the table is float32 beside bfloat16 projections; both forms give the projections' type."""
    mixer = NeighborhoodAttention(8, 2, kernel=3)
    x = torch.randn(1, 6, 7, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        trained = mixer(x)
        with torch.no_grad():
            inferred = mixer(x)
    assert trained.dtype == inferred.dtype == torch.bfloat16
    torch.testing.assert_close(trained, inferred, rtol=0, atol=0)
    trained.float().sum().backward()
    assert mixer.bias_table.grad.dtype == torch.float32


def test_initialisation() -> None:
    torch.manual_seed(0)
    model = registry.create("dinat/nat_small", depths=(1, 1, 1, 1), dim=64, heads=(2, 4, 8, 16))
    block = model.stages[2].blocks[0]
    for value in (block.token_mixer.qkv.weight, block.channel_mixer.fc1.weight, block.token_mixer.bias_table):
        assert value.std().item() == pytest.approx(0.02, rel=0.1)
    assert not block.token_mixer.qkv.bias.any()
    assert torch.equal(block.scale1.scale, torch.full((256,), 1e-5))
    convolution = model.stages[1].merge.reduction
    bound = (9 * 64) ** -0.5
    assert convolution.bias is None
    assert 0.9 * bound < convolution.weight.abs().max() <= bound  # framework default: uniform


# Published files


@pytest.mark.parametrize(
    ("vector", "variant"),
    [("mini", "dinat_mini"), ("nat-mini", "nat_mini"), ("s-tiny", "dinat_s_tiny")],
)
def test_published_file(vector: str, variant: str, tmp_path: Path) -> None:
    """A file in the authors' names and wrapper gives what the vector's own network gives."""
    from run import filled

    fixture = Fixture.read(VECTORS / f"dinat--{vector}.json")
    path = tmp_path / "published.pth"
    torch.save({"state_dict": {f"module.{n}": v for n, v in fixture.state_dict().items()}, "epoch": 300}, path)
    loaded = weights.load_published(f"dinat/{variant}", path)
    assert loaded.backbone.config.dilations == dinat.VARIANTS[variant].dilations
    image = made_input((1, 3, 72, 64), seed=1)
    with torch.no_grad():
        torch.testing.assert_close(loaded(image), filled("dinat", fixture, torch.float32)(image), rtol=0, atol=0)


def published_state(config: DinatConfig, classes: int | None) -> dict[str, Tensor]:
    """Random weights of a configuration under the authors' names."""
    torch.manual_seed(1)
    backbone = dinat.build(config)
    model = backbone if classes is None else registry.classifier(backbone, classes)
    root = "levels" if config.stem == "convolutions" else "layers"
    stem = "proj.0" if config.stem == "convolutions" else "proj"
    back = [
        (r"^backbone\.", ""), (r"^stages\.0\.merge\.0\.conv2", "patch_embed.proj.1"),
        (r"^stages\.0\.merge\.0\.conv1?", f"patch_embed.{stem}"), (r"^stages\.0\.merge\.0\.norm", "patch_embed.norm"),
        *((rf"^stages\.{i}\.merge", f"{root}.{i - 1}.downsample") for i in (1, 2, 3)),
        (r"^stages", root), (r"token_mixer\.bias_table", "attn.rpb"), (r"token_mixer", "attn"),
        (r"channel_mixer", "mlp"), (r"scale(\d)\.scale", r"gamma\1"), (r"^norms\.(\d)", r"norm\1"),
        (r"^head\.norm", "norm"), (r"^head\.fc", "head"),
    ]  # fmt: skip
    state = {}
    for name, value in model.state_dict().items():
        for pattern, replacement in back:
            name = re.sub(pattern, replacement, name)
        state[name] = torch.randn_like(value) * 0.2
    return state


@pytest.mark.parametrize(
    "config",
    [
        replace(SMALL, dense=True),
        replace(SMALL, dense=True, norms=(1, 3), qkv_bias=False),
        replace(SMALL, stem="patches", layer_scale=None, mlp_ratio=2.5, dense=True, kernel=5),
        replace(SMALL, depths=(1, 1), heads=(1, 2), dilations=((1, 5), (3,))),
    ],
    ids=["dense", "some norms", "patches", "two levels"],
)
def test_form_is_read_from_the_names(config: DinatConfig, tmp_path: Path) -> None:
    """Everything but dilations, drop path and the start of layer scale is in names and shapes."""
    state = published_state(config, None if config.dense else 4)
    read = dinat.from_published({}, {n: tuple(v.shape) for n, v in state.items()})
    unread = {"dilations": config.dilations, "layer_scale": config.layer_scale, "drop_path": 0.0}
    assert replace(read, **unread) == config
    asked = {k: getattr(config, k) for k in ("dim", "depths", "heads", "kernel", "dilations", "stem", "mlp_ratio")}
    path = tmp_path / "a.pth"
    torch.save(state, path)
    model = weights.load_published("dinat/dinat_mini", path, **asked)
    backbone = model if config.dense else model.backbone
    assert isinstance(backbone, dinat.Dinat)
    root = "levels" if config.stem == "convolutions" else "layers"
    torch.testing.assert_close(
        backbone.stages[1].merge.reduction.weight, state[f"{root}.0.downsample.reduction.weight"]
    )
    torch.save({n: v for n, v in state.items() if not n.endswith("1.blocks.0.attn.proj.bias")}, path)
    with pytest.raises(WeightsError, match="not in the file"):
        weights.load_published("dinat/dinat_mini", path, **asked)


@pytest.mark.slow
@pytest.mark.parametrize("training", [False, True])
def test_compiles_whole(training: bool) -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = dinat.build(replace(SMALL, drop_path=0.0)).train(training)
    image = torch.randn(2, 3, 90, 75)
    compiled = torch.compile(model, fullgraph=True)
    with torch.set_grad_enabled(training):
        pyramids = compiled(image), model(image)
    for a, b in zip(*pyramids, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    if training:
        found, wanted = (torch.autograd.grad(p[-1].sum(), list(model.stages.parameters())) for p in pyramids)
        for a, b in zip(found, wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3 * float(b.abs().max()))


@pytest.mark.slow
def test_export_writes_the_operator_out(tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    model = dinat.build(SMALL).eval()
    image = torch.randn(1, 3, 90, 75)
    path = tmp_path / "dinat.onnx"
    torch.onnx.export(model, (image,), path, dynamo=True)
    session = runtime.InferenceSession(path)
    with torch.no_grad():
        for a, b in zip(session.run(None, {session.get_inputs()[0].name: image.numpy()}), model(image), strict=True):
            torch.testing.assert_close(torch.from_numpy(a), b, rtol=1e-4, atol=1e-4)
