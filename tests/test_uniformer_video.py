"""UniFormer on clips: blocks against loops, sizes, forms, published files, inflation, the commands that list it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from parity import Fixture, fill_
from torch import Tensor, nn

from core import bench, export, measure, reach, registry, table
from core.backbones import _uniformer_video_layers as divided
from core.backbones import uniformer_video
from core.compression.fold import fold
from core.data import clips
from core.data.contract import published
from core.errors import SettingError, ShapeError, WeightsError
from core.layers import local_global as layers
from core.mixers import token_pruning as light
from core.weights import convert, load, load_published, save

COUNTS = {  # the card's measured ones, 400 classes
    "small": 21_400_400, "base": 49_813_200, "xxs": 9_833_896, "xs": 16_099_552, "small_split": 27_847_504,
    "small_std": 23_104_336,
}  # fmt: skip
FLOPS = {  # the card's, in units of 10^9 for all views, which are counted as multiply-accumulates
    ("small_8", 4): 70, ("small", 4): 167, ("small_32", 4): 438, ("base_8", 4): 161, ("base", 4): 387,
    ("base_32", 4): 1036, ("small", 3): 125, ("small_32", 3): 329, ("base", 3): 290, ("base_32", 3): 777,
}  # fmt: skip
PARITY = Path(__file__).parent / "parity"
BOTH = pytest.mark.parametrize("grad", [False, True])
FORMS = ["small", "small_split", "small_std", "xxs"]


def little(name: str = "small", **more: Any) -> Any:
    """One or two blocks a stage, heads of 4 channels."""
    settings = {"dims": (8, 12, 16, 24), "depths": (1, 2, 2, 2), "head_dim": 4} | more
    return registry.create(f"uniformer_video/{name}", **settings)


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_parameter_counts() -> None:
    variants, seen = uniformer_video.VARIANTS, {}
    for name, config in variants.items():
        if config not in seen:  # those that differ in their input alone are one network
            with torch.device("meta"):
                seen[config] = measure.parameters(registry.create(f"uniformer_video/{name}", classes=400))
        plain = next(n for n in (name, name.rsplit("_", 1)[0]) if n in COUNTS)
        assert seen[config] == COUNTS[plain], name
    for classes, count in ((600, 21_503_000), (174, 21_284_462)):
        with torch.device("meta"):
            assert measure.parameters(registry.create("uniformer_video/small", classes=classes)) == count


def test_macs_are_the_card_s() -> None:
    for kind in ("small", "base"):
        model = measure.on_meta(lambda kind=kind: registry.create(f"uniformer_video/{kind}", classes=400))
        axes = {n: uniformer_video.FACTS.axes(n) for n, _ in FLOPS if n.startswith(kind)}
        macs = {n: measure.macs(model, (1, 3, *a)) for n, a in axes.items()}
        for name, views in [key for key in FLOPS if key[0] in macs]:
            assert views * macs[name] / 1e9 == pytest.approx(FLOPS[name, views], rel=5e-3), (name, views)


@BOTH
@pytest.mark.parametrize("training", [False, True])
def test_local_block_is_the_card_s(training: bool, grad: bool) -> None:
    block = layers.LocalBlock(6, mlp_ratio=2.0, drop_path=0.0, layer_scale=0.5, axes=3).double()
    block = fill_(block).train(training)
    state = {n: v.clone() for n, v in block.state_dict().items()}
    x = rand(2, 3, 5, 4, 6)

    def conv(y: Tensor, name: str, **how: int) -> Tensor:
        weight = state[f"{name}.weight"]
        return F.conv3d(y, weight if weight.ndim == 5 else weight[..., None, None, None], state[f"{name}.bias"], **how)

    def normed(y: Tensor, name: str) -> Tensor:
        held = [state[f"{name}.{n}"].clone() for n in ("running_mean", "running_var", "weight", "bias")]
        return F.batch_norm(y, *held, training=training, eps=1e-5)

    y = x.permute(0, 4, 1, 2, 3)
    y = y + conv(y, "position.conv", padding=1, groups=6)
    local = conv(normed(y, "token_mixer.norm"), "token_mixer.pointwise1")
    local = conv(conv(local, "token_mixer.depthwise", padding=2, groups=6), "token_mixer.pointwise2")
    y = y + state["scale1.scale"][:, None, None, None] * local
    wide = F.gelu(conv(normed(y, "channel_mixer.norm"), "channel_mixer.fc1"))
    y = y + state["scale2.scale"][:, None, None, None] * conv(wide, "channel_mixer.fc2")
    with torch.set_grad_enabled(grad):
        torch.testing.assert_close(block(x), y.permute(0, 2, 3, 4, 1))


def loop_attention(layer: Any, cells: Tensor) -> Tensor:
    """One query and head at a time over tokens (N, C), q, k, v side by side in the projection."""
    qkv = layer.qkv(cells).reshape(len(cells), 3, layer.heads, layer.head_dim)
    out = torch.zeros(len(cells), layer.heads, layer.head_dim, dtype=cells.dtype)
    for i in range(len(cells)):
        for h in range(layer.heads):
            logits = torch.stack([layer.scale * (qkv[i, 0, h] @ qkv[j, 1, h]) for j in range(len(cells))])
            out[i, h] = logits.softmax(0) @ qkv[:, 2, h]
    return layer.proj(out.flatten(1))


@BOTH
def test_global_block_looks_at_the_whole_clip(grad: bool) -> None:
    block = fill_(little().double()).stages[2].blocks[0]
    assert (block.norm1.eps, block.token_mixer.scale) == (1e-6, 0.5)
    x = rand(1, 2, 3, 2, 16)
    with torch.no_grad():
        y = x + F.conv3d(
            x.permute(0, 4, 1, 2, 3), block.position.conv.weight, block.position.conv.bias, padding=1, groups=16
        ).permute(0, 2, 3, 4, 1)
        y = y + loop_attention(block.token_mixer, block.norm1(y).reshape(12, 16)).reshape(1, 2, 3, 2, 16)
        want = y + block.channel_mixer(block.norm2(y))
    with torch.set_grad_enabled(grad):
        torch.testing.assert_close(block(x), want)


@BOTH
def test_split_block_equals_a_loop(grad: bool) -> None:
    """Time first; what it gives is read by attention over space and by nothing else."""
    block = fill_(little("small_split").double()).stages[2].blocks[0]
    assert isinstance(block, divided.SplitBlock)
    assert (block.norm_time.eps, block.norm1.eps, block.norm2.eps) == (1e-6, 1e-6, 1e-6)
    x = rand(2, 3, 2, 4, 16)
    with torch.no_grad():
        y = block.position(x)
        timed = y.clone()
        for b in range(2):
            for row in range(2):
                for column in range(4):
                    track = y[b, :, row, column]
                    timed[b, :, row, column] += loop_attention(block.time_mixer, block.norm_time(track))
        want = y.clone()
        for b in range(2):
            for t in range(3):
                frame = block.norm1(timed[b, t]).reshape(8, 16)
                want[b, t] += loop_attention(block.token_mixer, frame).reshape(2, 4, 16)
        want = want + block.channel_mixer(block.norm2(want))
    with torch.set_grad_enabled(grad):
        torch.testing.assert_close(block(x), want)


def loop_pruning(block: Any, x: Tensor, token: Tensor, scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One clip (T, H, W, C), token (C,), scores (N,), as the card says it, with a class's gammas."""
    patches = block.position(x[None])[0].flatten(0, 2)
    order = sorted(range(len(patches)), key=lambda i: -scores[i].item())
    count = int(len(patches) * block.keep)
    kept, rest = order[:count], order[count:]
    standin = sum(scores[i] * patches[i] for i in rest) / sum(scores[i] for i in rest)
    tokens = torch.stack([token, *(patches[i] for i in kept), standin])
    q, k, _ = block.token_mixer.qkv(block.norm1(tokens)).reshape(len(tokens), 3, block.token_mixer.heads, -1).unbind(1)
    row = torch.stack([
        (block.token_mixer.scale * k[:, h] @ q[0, h]).softmax(0) for h in range(q.shape[1])
    ]).mean(0)  # fmt: skip
    attended = block.scale1(loop_attention(block.token_mixer, block.norm1(tokens)))
    mixed = block.scale2(block.channel_mixer(block.norm2(tokens + attended)))
    out, new = patches.clone(), scores.clone()
    for place, i in enumerate(kept, 1):
        out[i] = (tokens + attended + mixed)[place]
        new[i] = 0.5 * scores[i] + 0.5 * row[place]
    for i in rest:
        out[i] = patches[i] + attended[-1] + mixed[-1]
    return out.reshape(x.shape), (tokens + attended + mixed)[0], new


@BOTH
@pytest.mark.parametrize("layer_scale", [None, 0.3])
@pytest.mark.parametrize("size", [(2, 2, 3), (1, 1, 3)])
def test_pruning_block_equals_a_loop(size: tuple[int, int, int], layer_scale: float | None, grad: bool) -> None:
    block = little("xxs", layer_scale=layer_scale, keep=((1, 0.4), (0.5, 0.5))).stages[2].blocks[1]
    block = fill_(block.double())
    assert (block.keep, block.token_mixer.wide) == (0.4, True)
    x, token = rand(2, *size, 16), rand(2, 1, 16, seed=1)
    scores = rand(2, size[0] * size[1] * size[2], seed=2).softmax(1)
    with torch.set_grad_enabled(grad):
        out = block(light.Carried(x, token, scores))
    for b in range(2):
        with torch.no_grad():
            want = loop_pruning(block, x[b], token[b, 0], scores[b])
        for ours, theirs in zip((out.map[b], out.token[b, 0], out.scores[b]), want, strict=True):
            torch.testing.assert_close(ours, theirs)


def test_a_block_that_keeps_all_sorts_nothing_and_updates_every_score() -> None:
    block = fill_(little("xxs", keep=((1, 1), (0.5, 0.5))).stages[2].blocks[1].double())
    x, token, scores = rand(1, 2, 1, 3, 16), rand(1, 1, 16, seed=1), rand(1, 6, seed=2).softmax(1)
    with torch.no_grad():
        first, later = block(light.Carried(x, token, None)), block(light.Carried(x, token, scores))
        normed = block.norm1(torch.cat([token[0], block.position(x).reshape(6, 16)]))
        q, k, _ = block.token_mixer.qkv(normed).reshape(7, 3, 4, 4).unbind(1)
        row = torch.stack([(k[:, h] @ q[0, h] * 0.5).softmax(0) for h in range(4)]).mean(0)[None, 1:]
    torch.testing.assert_close(first.scores, row)
    torch.testing.assert_close(later.scores, 0.5 * scores + 0.5 * row)
    assert torch.equal(first.map, later.map)


def test_scores_are_pooled_frame_by_frame() -> None:
    scores = rand(2, 3 * 5 * 4).abs()
    small = light.pooled_scores(scores, (3, 5, 4))
    means = scores.reshape(2, 3, 5, 4)[:, :, :4].reshape(2, 3, 2, 2, 2, 2).mean((3, 5)).reshape(2, 12)
    torch.testing.assert_close(small, means * (scores.sum(1) / means.sum(1))[:, None])


def test_scores_are_float32_in_less_precision() -> None:
    """Under autocast and in bfloat16; in float64 they stay float64."""
    block = fill_(little("xxs").stages[2].blocks[0])
    x, token = rand(1, 2, 3, 2, 16).float(), rand(1, 1, 16, seed=1).float()
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            auto = block(light.Carried(x, token, None))
        half = block.to(torch.bfloat16)(light.Carried(x.bfloat16(), token.bfloat16(), None))
        full = block.double()(light.Carried(x.double(), token.double(), None))
    assert (auto.scores.dtype, half.scores.dtype, full.scores.dtype) == (torch.float32, torch.float32, torch.float64)
    assert half.map.dtype == torch.bfloat16
    for other in (auto, half):  # as precise as bfloat16's products allow
        torch.testing.assert_close(other.scores.double(), full.scores, atol=0.02, rtol=0.02)


@BOTH
@pytest.mark.parametrize("name", FORMS)
def test_clips_do_not_mix(name: str, grad: bool) -> None:
    model = fill_(registry.classifier(little(name), 5).double())
    batch = rand(2, 3, 3, 70, 44)
    with torch.set_grad_enabled(grad):
        together = [model(batch), *model.backbone(batch)]
        for i, clip in enumerate(batch):
            for joint, single in zip(together, [model(clip[None]), *model.backbone(clip[None])], strict=True):
                torch.testing.assert_close(joint[i], single[0])


SIZES = {  # of 5 frames of 100 x 132
    "small": [(3, 25, 33), (3, 12, 16), (3, 6, 8), (3, 3, 4)],
    "small_std": [(3, 25, 33), (3, 12, 16), (3, 6, 8), (3, 3, 4)],
    "xxs": [(3, 25, 33), (3, 12, 16), (3, 6, 8), (3, 3, 4)],
}
ODD = {"small": (3, 24, 32), "small_std": (3, 24, 32), "xxs": (3, 25, 33)}  # level 1 of 6 frames of 97 x 129


@pytest.mark.parametrize("name", SIZES)
def test_sizes_are_rounded_as_published(name: str) -> None:
    model = fill_(little(name, in_channels=5))
    with torch.no_grad():
        pyramid = model(torch.randn(1, 5, 5, 100, 132))
        assert tuple(model(torch.randn(1, 5, 6, 97, 129))[0].shape[2:]) == ODD[name]
        least = 29 if name == "xxs" else 32
        assert model(torch.randn(1, 5, 1, least, least))[3].shape[2:] == (1, 1, 1)
        said = f"one frame and more of {least} pixels a side and more, got 2 of 40 x {least - 1}"
        with pytest.raises(ShapeError, match=said):
            model(torch.randn(1, 5, 2, 40, least - 1))
        with pytest.raises(ShapeError, match="got 0 of 64 x 64"):
            model(torch.randn(1, 5, 0, 64, 64))
        with pytest.raises(ShapeError, match=r"\(B C=5 T H W\), got \(1, 5, 64, 64\)"):
            model(torch.randn(1, 5, 64, 64))
    assert [tuple(level.shape[2:]) for level in pyramid] == SIZES[name]


@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize("size", [(4, 6), (5, 3)])
def test_merging_sees_one_frame_or_three(size: tuple[int, int], frames: int) -> None:
    layer = fill_(layers.Merging(6, 10, axes=3, frames=frames).double())
    x = rand(2, 3, *size, 6)
    want = F.conv3d(
        x.permute(0, 4, 1, 2, 3), layer.conv.weight, layer.conv.bias, stride=(1, 2, 2), padding=(frames // 2, 0, 0)
    ).permute(0, 2, 3, 4, 1)
    torch.testing.assert_close(layer(x), F.layer_norm(want, (10,), layer.norm.weight, layer.norm.bias, 1e-5))


@pytest.mark.parametrize("name", ["small", "xxs"])
def test_the_stem_halves_time_once(name: str) -> None:
    """Light models in the second of their two convolutions."""
    stem = fill_(little(name).stages[0].merge.double())
    x = clip = rand(1, 3, 5, 33, 41)
    if name == "small":
        x = F.conv3d(clip, stem.conv.weight, stem.conv.bias, stride=(2, 4, 4), padding=(1, 0, 0))
        want = F.layer_norm(x.permute(0, 2, 3, 4, 1), (8,), stem.norm.weight, stem.norm.bias, 1e-5)
    else:
        for conv, norm, stride, last in ((0, 1, (1, 2, 2), False), (3, 4, (2, 2, 2), True)):
            conv, norm = stem.layers[conv], stem.layers[norm]
            x = F.conv3d(x, conv.weight, conv.bias, stride=stride, padding=1)
            x = F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=1e-5)
            x = x if last else F.gelu(x)
        want = x.permute(0, 2, 3, 4, 1)
    torch.testing.assert_close(stem(clip), want)


def test_epsilons_that_no_vector_can_tell() -> None:
    """1e-5 in embeddings, batch norms and the light class head, 1e-6 in blocks."""
    for form in FORMS:
        for name, module in registry.classifier(little(form), 5).named_modules():
            if isinstance(module, nn.LayerNorm):
                embedding = ".merge." in name or name == "head.norm_class"
                assert module.eps == (1e-5 if embedding else 1e-6), name
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm3d):
                assert (module.eps, module.momentum) == (1e-5, 0.1)


@pytest.mark.parametrize("name", ["small", "xxs"])
def test_head_norms_every_position_and_pools(name: str) -> None:
    model: Any = fill_(registry.classifier(little(name), 5).double())
    clip, norm = rand(2, 3, 4, 64, 40), model.head.norm
    last = model.backbone(clip)[-1]
    want = F.batch_norm(last, norm.running_mean, norm.running_var, norm.weight, norm.bias).mean((2, 3, 4))
    torch.testing.assert_close(model(clip), model.head.fc(want))
    tokens = model.backbone.tokens(clip)
    torch.testing.assert_close(tokens[:, model.backbone.prefix :].mT, last.flatten(2))


def test_light_head_learns_on_both_tokens() -> None:
    model: Any = fill_(registry.classifier(little("xxs"), 5).double())
    tokens = model.backbone.tokens(rand(2, 3, 4, 64, 40))
    model.head.train()
    first, second = model.head.both(tokens)
    torch.testing.assert_close(second, model.head.fc_class(model.head.norm_class(tokens[:, 0])))
    torch.testing.assert_close(model.head(tokens), (first + second) / 2)


@pytest.mark.parametrize(("name", "settings"), [*((n, {}) for n in FORMS), ("xxs", {"layer_scale": 0.5})])
def test_one_training_step(name: str, settings: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = registry.classifier(little(name, drop_path=0.1, **settings), 5).train()
    F.cross_entropy(model(torch.randn(4, 3, 3, 64, 44)), torch.tensor([1, 4, 0, 2])).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()] == []


def test_initialisation_layer_scale_and_drop_path() -> None:
    torch.manual_seed(0)
    model = registry.create("uniformer_video/base", depths=(1, 2, 3, 1), drop_path=0.6)
    assert [b.drop_path.p for s in model.stages for b in s.blocks] == pytest.approx([0.1 * i for i in range(7)])
    deep, shallow = model.stages[2].blocks[0], model.stages[1].blocks[0]
    assert deep.channel_mixer.fc1.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert not deep.token_mixer.qkv.bias.any()
    uniform = (3 * 128) ** -0.5  # the framework's start of a convolution from 128 channels
    assert shallow.channel_mixer.fc1.weight.std().item() == pytest.approx(uniform, rel=0.02)
    scaled = little("xxs", layer_scale=0.25)
    gammas = [p for n, p in scaled.named_parameters() if n.endswith(".scale")]
    assert len(gammas) == 2 * sum(scaled.config.depths)
    assert all(torch.equal(p, torch.full_like(p, 0.25)) for p in gammas)
    assert not scaled.stages[2].class_token.any()


def test_attention_over_time_starts_by_adding_nothing_and_learns() -> None:
    torch.manual_seed(0)
    block = little("small_split").stages[2].blocks[0]
    time, x = block.time_mixer, torch.randn(1, 3, 2, 2, 16)
    assert not time.qkv.weight.any()
    assert not time.qkv.bias.any()
    assert not time.proj.bias.any()
    assert torch.equal(time.proj.weight, torch.ones(16, 16))
    assert not time(x).any()
    assert block.token_mixer.qkv.weight.any()
    block(x).square().mean().backward()
    assert time.qkv.weight.grad.any()


def test_drop_path_of_split_attention() -> None:
    """Of positions over time, of frames over space, of clips in the MLP."""
    torch.manual_seed(0)
    block: Any = fill_(little("small_split", drop_path=0.5)).stages[3].blocks[1].train()
    seen: list[tuple[int, ...]] = []
    block.drop_path.register_forward_hook(lambda m, given, out: seen.append(given[0].shape))
    assert block.drop_path.p == 0.5
    block(torch.randn(2, 3, 2, 4, 24))
    assert [s[0] for s in seen] == [2 * 2 * 4, 2 * 3, 2]


@pytest.mark.parametrize("name", ["small_split", "xxs"])
def test_state_round_trip(name: str, tmp_path: Path) -> None:
    model, fresh = fill_(registry.classifier(little(name), 5)), registry.classifier(little(name), 5).eval()
    save(model, tmp_path / "w.safetensors")
    load(fresh, tmp_path / "w.safetensors")
    clip = torch.randn(1, 3, 3, 64, 44)
    with torch.no_grad():
        assert torch.equal(model(clip), fresh(clip))


@pytest.mark.parametrize("name", FORMS)
def test_half_precision(name: str) -> None:
    model = registry.classifier(little(name), 5).eval()
    clip = torch.randn(2, 3, 3, 64, 44)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.isfinite(model(clip)).all()
    with torch.no_grad():
        logits = model.to(torch.bfloat16)(clip.bfloat16())
    assert logits.dtype == torch.bfloat16
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("small", {"depths": (1, 1, 1)}, "four stages, got 4 dims and 3 depths"),
        ("small", {"head_dim": 48}, "320 channels do not divide into heads of 48"),
        ("small", {"merging_frames": 2}, "see 1 or 3 frames at once, got 2"),
        ("small", {"layer_scale": 1.0}, "light models alone have layer scale"),
        ("small", {"attention": "divided"}, "is one of 'joint', 'split', got 'divided'"),
        ("xxs", {"attention": "split"}, "light models attend to space and time jointly"),
        ("xxs", {"keep": 1.5}, "above 0 and up to 1, got 1.5"),
        ("xxs", {"keep": 0.0}, r"above 0 and up to 1, got 0\.0"),
        ("xxs", {"keep": ((0.5,) * 8, (0.5, 0.5))}, r"first deep block keeps all patches, got 0\.5"),
        ("xxs", {"keep": ((1, 0.5), (0.5, 0.5))}, r"a share for each of \(8, 2\) blocks"),
    ],
)
def test_settings_that_do_not_fit(name: str, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingError, match=said):
        registry.create(f"uniformer_video/{name}", **settings)


@pytest.mark.parametrize(
    ("name", "vector", "wrapper"),
    [("small_8", "small-8x112", "model_state"), ("small", "small-split-6x96", None), ("xxs", "xxs-4x128", "model")],
)
def test_published_checkpoint(name: str, vector: str, wrapper: str | None, tmp_path: Path) -> None:
    """A file as the authors save it; one of split attention brings it."""
    fixture = Fixture.read(PARITY / f"uniformer-video--{vector}.json")
    state: Any = fixture.state_dict()
    torch.save({wrapper: state, "epoch": 3} if wrapper else state, tmp_path / "video.pth")
    model: Any = load_published(f"uniformer_video/{name}", tmp_path / "video.pth")
    assert model.backbone.config.attention == ("split" if "split" in vector else "joint")
    with torch.no_grad():
        fixture.compare("logits", model(fixture.input("video")), 1e-3)


def test_published_checkpoint_with_another_head(tmp_path: Path) -> None:
    fixture = Fixture.read(PARITY / "uniformer-video--xxs-4x128.json")
    torch.save(fixture.state_dict(), tmp_path / "xxs.pth")
    fresh: Any = load_published("uniformer_video/xxs", tmp_path / "xxs.pth", classes=7, new_head=True)
    assert (fresh.head.fc.out_features, fresh.head.fc_class.out_features) == (7, 7)
    assert torch.equal(fresh.head.norm.bias, fixture.state_dict()["norm.bias"])
    assert not fresh(torch.randn(1, 3, 2, 32, 32)).any()
    with pytest.raises(WeightsError, match="holds a network with d"):
        load_published("uniformer_video/xs", tmp_path / "xxs.pth")


@pytest.mark.parametrize(("name", "vector"), [("small_std", "small-224"), ("xxs", "xxs-128")])
def test_weights_of_images_are_inflated(name: str, vector: str, tmp_path: Path) -> None:
    """Each kernel is the image's along time, over its length; everything else is the image's own."""
    fixture = Fixture.read(PARITY / f"uniformer--{vector}.json")
    torch.save({"model": fixture.state_dict()}, tmp_path / "image.pth")
    image: Any = load_published(f"uniformer/{name.removesuffix('_std')}", tmp_path / "image.pth")
    with pytest.warns(UserWarning, match=r"stages\.0\.merge.* and \d+ more resized"):
        video: Any = load_published(f"uniformer_video/{name}", tmp_path / "image.pth")
    assert (video.backbone.config.head_dim, video.head.fc.out_features) == (image.backbone.config.head_dim, 1000)
    theirs, lengths = image.state_dict(), set()
    for key, value in video.state_dict().items():
        if value.ndim == 5:
            lengths.add(value.shape[2])
            assert all(torch.equal(part, theirs[key] / value.shape[2]) for part in value.unbind(2)), key
        else:
            assert torch.equal(value, theirs[key]), key
    assert lengths == {3, 5} | (set() if name == "small_std" else {1})


def test_inflation_needs_every_weight(tmp_path: Path) -> None:
    """Attention over time is in no image's file, and token labelling's head in no clip's network."""
    torch.save(Fixture.read(PARITY / "uniformer--small-224.json").state_dict(), tmp_path / "image.pth")
    with pytest.raises(WeightsError, match=r"time_mixer"):
        load_published("uniformer_video/small_split", tmp_path / "image.pth")
    torch.save(Fixture.read(PARITY / "uniformer--tl-small-160.json").state_dict(), tmp_path / "tl.pth")
    with pytest.raises(WeightsError, match=r"aux_head|scale"):
        load_published("uniformer_video/small", tmp_path / "tl.pth")


def test_the_authors_settings() -> None:
    read, variants = uniformer_video.from_published, uniformer_video.VARIANTS
    small = {"class": "Uniformer", "classes": 400, "depth": [3, 4, 8, 3], "dims": [64, 128, 320, 512], "hd": 64}
    assert read(small | {"ratio": 4}, {}) == variants["small"]
    assert read(small | {"split": True}, {}) == variants["small_split"]
    assert read(small | {"std": True}, {}) == variants["small_std"]
    config = {"EMBED_DIM": [64, 128, 320, 512], "DEPTH": [5, 8, 20, 7], "HEAD_DIM": 64, "MLP_RATIO": 4,
              "QKV_BIAS": True, "QKV_SCALE": None, "DROP_DEPTH_RATE": 0.3, "SPLIT": False, "STD": False,
              "PRETRAIN_NAME": "uniformer_base_in1k"}  # fmt: skip
    assert read(config, {}) == variants["base"]
    prune = [[], [], [1, *[0.5] * 7], [0.5, 0.5]]
    xxs = {"class": "Uniformer_light_fp32", "depth": [2, 5, 8, 2], "dims": [56, 112, 224, 448], "hd": 28,
           "ratio": [3, 3, 3, 3], "prune": prune, "drop_depth_rate": 0.05}  # fmt: skip
    assert read(xxs, {}) == variants["xxs"]
    uneven = read(xxs | {"prune": [[], [], [1, 1, *[0.7] * 6], [0.5, 0.5]]}, {})
    assert uneven.keep == ((1, 1, *[0.7] * 6), (0.5, 0.5))
    assert read(xxs | {"class": "Uniformer_light_ls_fp32", "INIT_VALUE": 0.1}, {}) == replace(
        variants["xxs"], layer_scale=0.1
    )
    with pytest.raises(SettingError, match="one MLP ratio for all stages"):
        read(xxs | {"ratio": [3, 3, 3, 4]}, {})


def test_the_width_of_heads_is_never_read_from_shapes() -> None:
    read = uniformer_video.from_published
    names = {v: Fixture.read(PARITY / f"uniformer-video--{v}.json").state for v in ("small-8x112", "xxs-4x128")}
    assert read({}, names["small-8x112"]).head_dim == 64
    assert read({"hd": 32}, names["small-8x112"]).head_dim == 32
    assert read({}, names["xxs-4x128"]).head_dim == 28
    narrow = replace(uniformer_video.VARIANTS["small"], head_dim=32)
    assert read({}, names["small-8x112"], narrow).head_dim == 32


@pytest.mark.parametrize(("name", "settings"), [*((n, {}) for n in FORMS), ("xxs", {"layer_scale": 1.0})])
def test_shapes_give_the_settings(name: str, settings: dict[str, Any]) -> None:
    changed: dict[str, Any] = {"in_channels": 4, "mlp_ratio": 2.0, "qkv_bias": False, "drop_path": 0.0} | settings
    model = registry.classifier(little(name, **changed), 3)
    ours = model.state_dict()
    theirs = published_names(ours)
    assert "blocks3.1.norm1.weight" in theirs
    shapes = {n: tuple(v.shape) for n, v in theirs.items()}
    given = {"head_dim": 4, "drop_depth_rate": 0}
    assert uniformer_video.from_published(given, shapes) == model.backbone.config
    back = convert(theirs, uniformer_video.PUBLISHED[0], model)
    assert back.keys() == ours.keys()
    assert all(torch.equal(back[n], ours[n]) for n in ours)


def published_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our names and values as the authors write them."""
    out = {}
    for name, value in state.items():
        parts = name.removeprefix("backbone.").split(".")
        if parts[0] == "stages":
            stage, rest = int(parts[1]), ".".join(parts[2:])
            for ours, theirs in (
                ("token_mixer.norm.", "norm1."), ("channel_mixer.norm.", "norm2."), ("position.conv.", "pos_embed."),
                ("norm_time.", "t_norm."), ("time_mixer.", "t_attn."),
                ("token_mixer.pointwise", "conv"), ("token_mixer.depthwise.", "attn."), ("token_mixer.", "attn."),
                ("channel_mixer.", "mlp."), ("scale1.scale", "gamma_1"), ("scale2.scale", "gamma_2"),
            ):  # fmt: skip
                rest = rest.replace(ours, theirs)
            if rest == "class_token":
                out["cls_token"] = value
            elif rest.startswith("carry."):
                out[rest.replace("carry", "cls_upsample")] = value
            elif rest.startswith("merge."):
                inner = rest.removeprefix("merge.").replace("layers.", "proj.").replace("conv.", "proj.")
                out[f"patch_embed{stage + 1}.{inner}"] = value
            else:
                value = value[..., None, None, None] if stage < 2 and value.ndim == 2 else value
                value = value[None, :, None, None, None] if stage < 2 and "gamma" in rest else value
                out[f"blocks{stage + 1}.{rest.removeprefix('blocks.')}"] = value
        else:
            known = {"head.norm": "norm", "head.fc": "head", "head.norm_class": "norm_cls", "head.fc_class": "head_cls"}
            stem, leaf = name.rsplit(".", 1)
            out[f"{known[stem]}.{leaf}"] = value
    return out


@pytest.mark.parametrize("name", FORMS)
def test_folded_network_answers_alike(name: str) -> None:
    """Stem, local blocks and head lose their batch norms."""
    model = fill_(registry.classifier(little(name), 5))
    folded = fold(model)
    assert not [n for n, m in folded.named_modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm3d)]
    clip = torch.randn(2, 3, 3, 64, 44)
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            want = model(clip)
            assert (folded(clip) - want).abs().max() < 1e-5 * want.std()


def test_lists_say_that_it_takes_clips() -> None:
    row = table.find("uniformer_video/small", table.load())
    assert (row.size, row.axes, row.classes, row.data) == ((16, 224, 224), (16, 224, 224), 400, "Kinetics-400")
    assert (row.parameters, row.top1) == (COUNTS["small"], 80.8)
    assert row.scores["Something-Something V2 top-1 from K600"] == 69.4
    assert row.strides == ([2, 4, 4], [2, 8, 8], [2, 16, 16], [2, 32, 32])
    assert table.cells(row)[2:7] == ("41.7 G", "16x224", "2x(4 8 16 32)", "arXiv 2201.04676", "80.8 K400")
    assert table.cells(replace(row, size=(16, 96, 128)))[3] == "16x96x128"
    image = table.find("uniformer/small", table.load())
    assert (image.axes, image.classes, image.data) == ((224, 224), 1000, "ImageNet-1k")
    assert table.cells(image)[3:5] == ("224", "4 8 16 32")


def test_the_published_input() -> None:
    square, wide = (published("uniformer_video/small", 3, (16, 224, side)) for side in (224, 320))
    assert (square.mean, square.std, square.size) == ((0.45,) * 3, (0.225,) * 3, (16, 224, 224))
    assert (square.resize.split(",")[0], square.crop) == ("short side of the frames to 224 pixels", (224, 224))
    assert (wide.resize.split(",")[0], wide.crop) == ("frames to 224 x 320 pixels", None)
    assert published("uniformer_video/small", 4, (16, 224, 224)).mean is None


def test_bench_counts_clips() -> None:
    settings = bench.Settings((2, 32, 40), threads=1, rounds=1)
    ours = bench.pair("uniformer_video/xxs_4x128", None, settings).contenders[0]
    assert ours.parameters == COUNTS["xxs"]
    model = measure.on_meta(lambda: registry.create("uniformer_video/xxs", classes=400))
    assert ours.macs == measure.macs(model, (1, 3, 2, 32, 40))
    with pytest.raises(SettingError, match="size is at least 1 pixel, got 0 x 32 x 40"):
        bench.Settings((0, 32, 40))


def test_reach_takes_all_frames_together() -> None:
    clip = reach.sample(64, (3,))
    assert clip.shape == (1, 3, 3, 64, 64)
    assert torch.equal(clip[:, :, 0], reach.sample(64))
    maps = reach.reach(little().eval(), clip)
    assert [m.shape for m in maps] == [(64, 64)] * 4
    assert (maps[0] > 0).mean() < 0.5 < (maps[3] > 0).mean()


def test_clips_of_short_videos_and_wrong_views() -> None:
    assert clips.clip_frames(2, 3, frames=4, stride=1) == [2, 2, 2, 2]
    assert clips.clip_frames(5, 100, frames=1, stride=8) == [5]
    assert clips.segments(1, 3) == [(0, 0)] * 3
    assert clips.segments(11, 4) == [(0, 2), (2, 5), (5, 8), (8, 10)]  # halves to the even number
    assert clips.segments(5, 4) == [(0, 1), (1, 2), (2, 3), (3, 4)]
    assert clips.short_side_to((224, 298), 224) == (224, 298)
    assert clips.short_side_to((100, 100), 224) == (224, 224)
    assert clips.crop_corner((225, 300), 224, 1) == (1, 38)
    for wrong, said in (
        (lambda: clips.clip_start(30, 8, 8, clips=4, clip=4), "clip 4 is not one of 4"),
        (lambda: clips.clip_frames(0, 0, 8, 8), "length is at least 1, got 0"),
        (lambda: clips.segment_frames(30, 8, views=1, view=1), "view 1 is not one of 1"),
        (lambda: clips.segments(30, 0), "frames is at least 1, got 0"),
        (lambda: clips.crop_corner((240, 320), 224, 3), "position is 0, 1 or 2, got 3"),
        (lambda: clips.crop_corner((200, 320), 224, 0), "frames of 200 x 320 pixels have no crop of 224"),
    ):
        with pytest.raises(SettingError, match=said):
            wrong()


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMS)
def test_compiles_whole(name: str) -> None:
    torch._dynamo.reset()
    model = fill_(registry.classifier(little(name), 5))
    clip = torch.randn(2, 3, 3, 64, 44)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(model, fullgraph=True)(clip), model(clip), atol=1e-3, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMS)
def test_exports(name: str, tmp_path: Path) -> None:
    """Odd sizes; light models with weights that tell patches apart, since random ones let rounding choose."""
    model = fill_(registry.classifier(little(name), 5))
    done = export.export(model, tmp_path / "x.onnx", (3, 70, 44), name=f"uniformer_video/{name}")
    assert done.difference < 1e-4
    about = json.loads(done.side.read_text())
    assert (about["input"]["shape"], about["input"]["size"]) == ([1, 3, 3, 70, 44], [3, 70, 44])
