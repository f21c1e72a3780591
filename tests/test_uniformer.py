"""UniFormer beyond its vectors: mixers against loops, pruning, sizes, forms, checkpoints in the authors' names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from parity import Fixture, fill_
from torch import Tensor, nn

from core import measure, registry
from core.backbones import _uniformer_heads as heads
from core.backbones import _uniformer_layers as image_layers
from core.backbones import uniformer
from core.compression.fold import fold
from core.errors import SettingError, ShapeError, WeightsError
from core.layers import local_global as layers
from core.mixers import token_pruning as light
from core.weights import convert, load, load_published, save

COUNTS = {  # the card's measured ones, 1000 classes; token labelling has 641,000 or 513,000 in a dense head besides
    "xxs": 10_215_280, "xs": 16_509_264, "small": 21_545_256, "small_plus": 24_032_552, "base": 49_776_552,
    "base_ls": 49_796_520, "large_ls": 99_462_888 + 641_000,
}  # fmt: skip
MACS = {  # the card's, in units of 10^9 at a side in pixels
    ("xxs", 128): 0.425, ("xxs", 160): 0.657, ("xxs", 192): 0.951, ("xxs", 224): 1.299, ("xs", 192): 1.417,
    ("xs", 224): 1.931, ("small", 224): 3.632, ("small_plus", 224): 4.201, ("base", 224): 8.249,
    ("large_ls", 224): 19.71,
}  # fmt: skip
PARITY = Path(__file__).parent / "parity"
BOTH = pytest.mark.parametrize("grad", [False, True])


def little(name: str = "small", **more: Any) -> Any:
    """Two or more blocks a stage, heads of 4 channels."""
    settings = {"dims": (8, 12, 16, 24), "depths": (1, 2, 4, 2), "head_dim": 4} | more
    return registry.create(f"uniformer/{name}", **settings)


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_parameter_counts() -> None:
    for name in uniformer.VARIANTS:
        with torch.device("meta"):
            model = registry.create(f"uniformer/{name}", classes=1000)
        count = sum(p.numel() for p in model.parameters())
        plain = next(n for n in (name, name.rsplit("_", 1)[0], name.rsplit("_", 2)[0]) if n in COUNTS)
        dense = 513_000 if "_tl" in name else 0
        assert count == COUNTS[plain] + dense, name


def test_macs_are_the_card_s() -> None:
    for (name, size), macs in MACS.items():
        model = measure.on_meta(lambda name=name: registry.create(f"uniformer/{name}", classes=1000))
        assert measure.macs(model, (1, 3, size, size)) / 1e9 == pytest.approx(macs, rel=2e-3), (name, size)


@BOTH
@pytest.mark.parametrize("training", [False, True])
def test_local_block_is_the_card_s(training: bool, grad: bool) -> None:
    block = layers.LocalBlock(6, mlp_ratio=2.0, drop_path=0.0, layer_scale=0.5).double()
    block = fill_(block).train(training)
    state = {n: v.clone() for n, v in block.state_dict().items()}
    x = rand(2, 5, 4, 6)

    def conv(y: Tensor, name: str, **how: int) -> Tensor:
        weight = state[f"{name}.weight"]
        return F.conv2d(y, weight if weight.ndim == 4 else weight[..., None, None], state[f"{name}.bias"], **how)

    def normed(y: Tensor, name: str) -> Tensor:
        held = [state[f"{name}.{n}"].clone() for n in ("running_mean", "running_var", "weight", "bias")]
        return F.batch_norm(y, *held, training=training, eps=1e-5)

    y = x.permute(0, 3, 1, 2)
    y = y + conv(y, "position.conv", padding=1, groups=6)
    local = conv(normed(y, "token_mixer.norm"), "token_mixer.pointwise1")
    local = conv(conv(local, "token_mixer.depthwise", padding=2, groups=6), "token_mixer.pointwise2")
    y = y + state["scale1.scale"][:, None, None] * local
    wide = F.gelu(conv(normed(y, "channel_mixer.norm"), "channel_mixer.fc1"))
    y = y + state["scale2.scale"][:, None, None] * conv(wide, "channel_mixer.fc2")
    with torch.set_grad_enabled(grad):
        torch.testing.assert_close(block(x), y.permute(0, 2, 3, 1))


def loop_attention(layer: Any, cells: Tensor) -> Tensor:
    """One query and head at a time over tokens (T, C), q, k, v side by side in the projection."""
    d = layer.head_dim
    qkv = layer.qkv(cells).reshape(len(cells), 3, layer.heads, d)
    out = torch.zeros(len(cells), layer.heads, d, dtype=cells.dtype)
    for i in range(len(cells)):
        for h in range(layer.heads):
            logits = torch.stack([layer.scale * (qkv[i, 0, h] @ qkv[j, 1, h]) for j in range(len(cells))])
            out[i, h] = logits.softmax(0) @ qkv[:, 2, h]
    return layer.proj(out.flatten(1))


@BOTH
def test_global_block_looks_at_the_whole_map(grad: bool) -> None:
    model = fill_(little().double())
    block = model.stages[2].blocks[0]
    assert (block.norm1.eps, block.token_mixer.scale) == (1e-6, 0.5)
    x = rand(1, 4, 3, 16)
    y = block.position(x)
    with torch.no_grad():
        y = y + loop_attention(block.token_mixer, block.norm1(y).reshape(12, 16)).reshape(1, 4, 3, 16)
        want = y + block.channel_mixer(block.norm2(y))
    with torch.set_grad_enabled(grad):
        torch.testing.assert_close(block(x), want)


@BOTH
@pytest.mark.parametrize("size", [(3, 3), (4, 7), (1, 2)])
def test_windows_are_padded_after_the_norm_without_a_mask(size: tuple[int, int], grad: bool) -> None:
    layer = fill_(image_layers.WindowedAttention(8, 2, window=3, qkv_bias=True).double())
    x = rand(2, *size, 8)
    want = torch.zeros_like(x)
    padded = F.pad(x, (0, 0, 0, -size[1] % 3, 0, -size[0] % 3))
    for b in range(2):
        for top in range(0, padded.shape[1], 3):
            for left in range(0, padded.shape[2], 3):
                cells = padded[b, top : top + 3, left : left + 3]
                with torch.no_grad():
                    out = loop_attention(layer, cells.reshape(9, 8)).reshape(3, 3, 8)
                h, w = min(3, size[0] - top), min(3, size[1] - left)
                want[b, top : top + h, left : left + w] = out[:h, :w]
    with torch.set_grad_enabled(grad):
        torch.testing.assert_close(layer(x), want)


def test_window_kinds_share_weights_and_touch_stage_3_alone() -> None:
    kinds = {kind: fill_(little(windows=kind, window=2).double()) for kind in ("none", "all", "hybrid")}
    assert len({tuple(m.state_dict()) for m in kinds.values()}) == 1
    for kind, model in kinds.items():
        windowed = [
            [isinstance(b.token_mixer, image_layers.WindowedAttention) for b in s.blocks] for s in model.stages[2:]
        ]
        inner = {"none": [False] * 4, "all": [True] * 4, "hybrid": [True, True, True, False]}[kind]
        assert windowed == [inner, [False, False]]
    image = rand(1, 3, 97, 130)
    with torch.no_grad():
        first, *others = (m(image) for m in kinds.values())
    for other in others:
        assert torch.equal(first[1], other[1])
        assert not torch.allclose(first[2], other[2])
    # one window over the whole map is the whole map
    wide = little(windows="all", window=14).double().eval()
    wide.load_state_dict(kinds["none"].state_dict())
    square = rand(1, 3, 224, 224)
    with torch.no_grad():
        for a, b in zip(wide(square), kinds["none"](square), strict=True):
            torch.testing.assert_close(a, b)


def loop_pruning(block: Any, x: Tensor, token: Tensor, scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One image (H, W, C), token (C,), scores (N,), as the card says it."""
    H, W, C = x.shape
    patches = block.position(x[None])[0].reshape(H * W, C)
    order = sorted(range(H * W), key=lambda i: -scores[i].item())
    kept, rest = order[: int(H * W * block.keep)], order[int(H * W * block.keep) :]
    standin = sum(scores[i] * patches[i] for i in rest) / sum(scores[i] for i in rest)
    tokens = torch.stack([token, *(patches[i] for i in kept), standin])
    q, k, _ = block.token_mixer.qkv(block.norm1(tokens)).reshape(len(tokens), 3, block.token_mixer.heads, -1).unbind(1)
    row = torch.stack([
        (block.token_mixer.scale * k[:, h] @ q[0, h]).softmax(0) for h in range(q.shape[1])
    ]).mean(0)  # fmt: skip
    attended = loop_attention(block.token_mixer, block.norm1(tokens))
    mixed = block.channel_mixer(block.norm2(tokens + attended))
    out, new = patches.clone(), scores.clone()
    for place, i in enumerate(kept, 1):
        out[i] = (tokens + attended + mixed)[place]
        new[i] = 0.5 * scores[i] + 0.5 * row[place]
    for i in rest:
        out[i] = patches[i] + attended[-1] + mixed[-1]
    return out.reshape(H, W, C), (tokens + attended + mixed)[0], new


@BOTH
@pytest.mark.parametrize("size", [(3, 4), (3, 3), (1, 2), (1, 1)])
def test_pruning_block_equals_a_loop(size: tuple[int, int], grad: bool) -> None:
    block = light.PruningBlock(8, 2, mlp_ratio=2.0, qkv_bias=True, scale=None, keep=0.5, drop_path=0.0)
    block = fill_(block.double())
    x, token = rand(2, *size, 8), rand(2, 1, 8, seed=1)
    scores = rand(2, size[0] * size[1], seed=2).softmax(1)
    with torch.set_grad_enabled(grad):
        out = block(light.Carried(x, token, scores))
    for b in range(2):
        with torch.no_grad():
            want = loop_pruning(block, x[b], token[b, 0], scores[b])
        for ours, theirs in zip((out.map[b], out.token[b, 0], out.scores[b]), want, strict=True):
            torch.testing.assert_close(ours, theirs)


def test_first_deep_block_keeps_all_and_begins_the_scores() -> None:
    model = fill_(little("xxs", dims=(8, 12, 16, 24)).double())
    keeps = [[b.keep for b in stage.blocks] for stage in model.stages[2:]]
    assert keeps == [[1, 0.5, 0.5, 0.5], [0.5, 0.5]]
    block, x, token = model.stages[2].blocks[0], rand(1, 3, 2, 16), rand(1, 1, 16, seed=1)
    with torch.no_grad():
        out = block(light.Carried(x, token, None))
        cells = torch.cat([token[0], block.position(x).reshape(6, 16)])
        normed = block.norm1(cells)
        q, k, _ = block.token_mixer.qkv(normed).reshape(7, 3, 4, 4).unbind(1)
        row = torch.stack([(k[:, h] @ q[0, h] * 0.5).softmax(0) for h in range(4)]).mean(0)
        cells = cells + loop_attention(block.token_mixer, normed)
        cells = cells + block.channel_mixer(block.norm2(cells))
    torch.testing.assert_close(out.scores[0], row[1:])
    torch.testing.assert_close(out.map[0], cells[1:].reshape(3, 2, 16))
    torch.testing.assert_close(out.token[0], cells[:1])


def test_scores_are_pooled_and_keep_their_sum() -> None:
    scores = rand(2, 5 * 6).abs()
    small = light.pooled_scores(scores, (5, 6))
    means = scores.reshape(2, 5, 6)[:, :4].reshape(2, 2, 2, 3, 2).mean((2, 4)).reshape(2, 6)
    torch.testing.assert_close(small.sum(1), scores.sum(1))
    torch.testing.assert_close(small / small.sum(1, keepdim=True), means / means.sum(1, keepdim=True))


@BOTH
@pytest.mark.parametrize("name", ["small", "small_plus", "xxs"])
def test_images_do_not_mix(name: str, grad: bool) -> None:
    model = fill_(registry.classifier(little(name), 5).double())
    images = rand(2, 3, 101, 70)
    with torch.set_grad_enabled(grad):
        together = [model(images), *model.backbone(images)]
        for i, image in enumerate(images):
            for joint, single in zip(together, [model(image[None]), *model.backbone(image[None])], strict=True):
                torch.testing.assert_close(joint[i], single[0])


SIZES = {  # of a 101 x 70 image
    "small": [(25, 17), (12, 8), (6, 4), (3, 2)],
    "small_plus": [(26, 18), (13, 9), (7, 5), (4, 3)],
    "xxs": [(26, 18), (13, 9), (6, 4), (3, 2)],
}


@pytest.mark.parametrize("name", SIZES)
def test_sizes_are_rounded_as_published(name: str) -> None:
    model = fill_(little(name, in_channels=5))
    with torch.no_grad():
        pyramid = model(torch.randn(1, 5, 101, 70))
        least = {"small": 32, "small_plus": 1, "xxs": 29}[name]
        assert model(torch.randn(1, 5, least, least))[3].shape[2:] == (1, 1)
        if least > 1:
            with pytest.raises(ShapeError, match=f"{least} pixels a side and more, got 40 x {least - 1}"):
                model(torch.randn(1, 5, 40, least - 1))
    assert [tuple(level.shape[2:]) for level in pyramid] == SIZES[name]


@pytest.mark.parametrize("size", [(4, 6), (5, 3), (2, 3)])
def test_merging_drops_what_does_not_divide(size: tuple[int, int]) -> None:
    layer = fill_(layers.Merging(6, 10).double())
    x = rand(2, *size, 6)
    want = F.conv2d(x.permute(0, 3, 1, 2), layer.conv.weight, layer.conv.bias, stride=2).permute(0, 2, 3, 1)
    torch.testing.assert_close(layer(x), F.layer_norm(want, (10,), layer.norm.weight, layer.norm.bias, 1e-5))


def test_epsilons_that_no_vector_can_tell() -> None:
    """1e-5 in patch embeddings, batch norms and the light class head, 1e-6 in blocks and dense outputs."""
    model = registry.classifier(little("xxs", norms=(0, 1, 2, 3)), 5)
    for name, module in (*model.named_modules(), *registry.classifier(little(), 5).named_modules()):
        if isinstance(module, nn.LayerNorm):
            embedding = ".merge." in name or name == "head.norm_class"
            assert module.eps == (1e-5 if embedding else 1e-6), name
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            assert (module.eps, module.momentum) == (1e-5, 0.1)


def test_dense_form_norms_what_it_gives_out_only() -> None:
    plain, dense = fill_(little().double()), fill_(little(norms=(0, 1, 2, 3)).double())
    dense.load_state_dict(plain.state_dict(), strict=False)
    image = rand(1, 3, 70, 45)
    with torch.no_grad():
        for raw, level, norm in zip(plain(image), dense(image), dense.norms, strict=True):
            want = F.layer_norm(raw.permute(0, 2, 3, 1), norm.normalized_shape, norm.weight, norm.bias, 1e-6)
            torch.testing.assert_close(level, want.permute(0, 3, 1, 2))


def test_head_norms_every_position_and_pools() -> None:
    model = fill_(registry.classifier(little(), 5).double())
    image, norm = rand(2, 3, 96, 64), model.head.norm
    last = model.backbone(image)[-1]
    want = F.batch_norm(last, norm.running_mean, norm.running_var, norm.weight, norm.bias).mean((2, 3))
    torch.testing.assert_close(model(image), model.head.fc(want))


def test_token_labels_are_heard_in_evaluation() -> None:
    model = fill_(registry.classifier(little("small_tl"), 5).double())
    image, norm = rand(2, 3, 96, 64), model.head.norm
    last = model.backbone(image)[-1]
    tokens = F.batch_norm(last, norm.running_mean, norm.running_var, norm.weight, norm.bias).flatten(2).mT
    dense = model.head.fc_dense(tokens)
    torch.testing.assert_close(model(image), model.head.fc(tokens.mean(1)) + 0.5 * dense.max(1).values)


def test_mixtoken_swaps_before_the_blocks_and_back_after_the_dense_head() -> None:
    model = fill_(registry.classifier(little("small_tl"), 5).double())
    image, box = rand(2, 3, 96, 64), (8, 3, 24, 9)  # in cells of the first level, 24 x 16
    backbone: Any = model.backbone
    x = backbone.stages[0].merge(image)
    y = x.clone()
    y[0, 8:24, 3:9], y[1, 8:24, 3:9] = x[1, 8:24, 3:9], x[0, 8:24, 3:9]
    for i, stage in enumerate(backbone.stages):
        y = stage(y) if i else stage.blocks(y)
    pyramid = backbone.mixed(image, box)
    torch.testing.assert_close(pyramid[-1], y.permute(0, 3, 1, 2))
    plain_logits, plain = model.head.both(pyramid)
    logits, dense = model.head.both(pyramid, box)
    want = plain.unflatten(1, (3, 2)).clone()
    want[:, 1:3, 0:1] = want.flip(0)[:, 1:3, 0:1]  # an eighth, rounded down: rows 1 to 3, columns 0 to 1
    torch.testing.assert_close(dense, want.flatten(1, 2))
    torch.testing.assert_close(logits, plain_logits)
    assert not torch.allclose(pyramid[0], backbone(image)[0])


def test_light_head_reads_patches_alone_in_evaluation() -> None:
    model = fill_(registry.classifier(little("xxs"), 5).double())
    image, head = rand(2, 3, 96, 64), model.head
    tokens = model.backbone.tokens(image)
    last = model.backbone(image)[-1]
    torch.testing.assert_close(tokens[:, 1:].mT, last.flatten(2))
    norm = head.norm
    want = head.fc(F.batch_norm(last, norm.running_mean, norm.running_var, norm.weight, norm.bias).mean((2, 3)))
    torch.testing.assert_close(model(image), want)
    first, second = head.both(tokens)
    torch.testing.assert_close(first, want)
    torch.testing.assert_close(second, head.fc_class(head.norm_class(tokens[:, 0])))
    head.train()
    first, second = head.both(tokens)
    torch.testing.assert_close(head(tokens), (first + second) / 2)
    plain = little()
    assert (plain.prefix, model.backbone.prefix) == (0, 1)
    assert plain.tokens(torch.zeros(1, 3, 96, 64)).shape == (1, 6, 24)


@pytest.mark.parametrize("name", ["small", "small_plus", "small_tl", "large_ls", "xxs"])
def test_one_training_step(name: str) -> None:
    torch.manual_seed(0)
    model = registry.classifier(little(name, drop_path=0.1), 5).train()
    F.cross_entropy(model(torch.randn(4, 3, 96, 70)), torch.tensor([1, 4, 0, 2])).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()] == []


def test_initialisation_layer_scale_and_drop_path() -> None:
    torch.manual_seed(0)
    model = registry.create("uniformer/base_ls", depths=(1, 2, 3, 1), drop_path=0.6)
    rates = [b.drop_path.p for s in model.stages for b in s.blocks]
    assert rates == pytest.approx([0.1 * i for i in range(7)])
    scaled = {n: p for n, p in model.named_parameters() if n.endswith(".scale")}
    assert {n.split(".")[1] for n in scaled} == {"2", "3"}
    assert all(torch.equal(p, torch.full_like(p, 1e-6)) for p in scaled.values())
    everywhere = registry.create("uniformer/large_ls", dims=(8, 12, 64, 64), depths=(1, 1, 1, 1))
    assert {n.split(".")[1] for n, _ in everywhere.named_parameters() if n.endswith(".scale")} == {"0", "1", "2", "3"}
    deep, shallow = model.stages[2].blocks[0], model.stages[1].blocks[0]
    assert deep.channel_mixer.fc1.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert not deep.token_mixer.qkv.bias.any()
    uniform = (3 * 128) ** -0.5  # the framework's start of a convolution from 128 channels
    assert shallow.channel_mixer.fc1.weight.std().item() == pytest.approx(uniform, rel=0.02)
    assert shallow.channel_mixer.fc1.bias.any()
    assert not registry.create("uniformer/xxs").stages[2].class_token.any()


@pytest.mark.parametrize("name", ["small", "small_tl", "large_ls", "xxs"])
def test_state_round_trip(name: str, tmp_path: Path) -> None:
    model, fresh = fill_(registry.classifier(little(name), 5)), registry.classifier(little(name), 5).eval()
    save(model, tmp_path / "w.safetensors")
    load(fresh, tmp_path / "w.safetensors")
    image = torch.randn(1, 3, 96, 70)
    with torch.no_grad():
        assert torch.equal(model(image), fresh(image))


@pytest.mark.parametrize("name", ["small", "xxs"])
def test_half_precision(name: str) -> None:
    model = registry.classifier(little(name), 5).eval()
    image = torch.randn(2, 3, 75, 60)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.isfinite(model(image)).all()
    with torch.no_grad():
        logits = model.to(torch.bfloat16)(image.bfloat16())
    assert logits.dtype == torch.bfloat16
    assert torch.isfinite(logits).all()


def test_settings_that_do_not_fit() -> None:
    with pytest.raises(SettingError, match="four stages, got 4 dims and 3 depths"):
        registry.create("uniformer/small", depths=(1, 1, 1))
    with pytest.raises(SettingError, match="320 channels do not divide into heads of 48"):
        registry.create("uniformer/small", head_dim=48)
    with pytest.raises(SettingError, match="neither windows"):
        registry.create("uniformer/xxs", windows="all")
    with pytest.raises(SettingError, match=r"between 0 and 1, got 1\.5"):
        registry.create("uniformer/xxs", keep=1.5)


@pytest.mark.parametrize(
    ("name", "vector"), [("small", "small-224"), ("small_tl", "tl-small-160"), ("small", "tl-small-160")]
)
def test_published_checkpoint(name: str, vector: str, tmp_path: Path) -> None:
    """A file as the authors save it; one of token labelling brings its dense head and its heads' width."""
    fixture = Fixture.read(PARITY / f"uniformer--{vector}.json")
    torch.save({"model": fixture.state_dict()}, tmp_path / "uniformer.pth")
    model = load_published(f"uniformer/{name}", tmp_path / "uniformer.pth")
    with torch.no_grad():
        fixture.compare("logits", model(fixture.input()), 1e-3)
    with pytest.raises(WeightsError, match="depths"):
        load_published("uniformer/base", tmp_path / "uniformer.pth")


def test_light_checkpoint_with_another_head(tmp_path: Path) -> None:
    fixture = Fixture.read(PARITY / "uniformer--xxs-128.json")
    torch.save(fixture.state_dict(), tmp_path / "xxs.pth")
    model = load_published("uniformer/xxs", tmp_path / "xxs.pth")
    with torch.no_grad():
        fixture.compare("logits", model(fixture.input()), 1e-3)
        fresh: Any = load_published("uniformer/xxs", tmp_path / "xxs.pth", classes=7, new_head=True)
        assert not fresh(fixture.input()).any()
    assert torch.equal(fresh.head.norm_class.weight, model.head.norm_class.weight)


@pytest.mark.parametrize(
    ("vector", "windows", "stage"), [("dense-small-hybrid14-240x328", "hybrid", 2), ("pose-small-128x96", "none", 4)]
)
def test_dense_files_give_the_backbone(vector: str, windows: str, stage: int, tmp_path: Path) -> None:
    """Windows show in no file: they are settings."""
    fixture = Fixture.read(PARITY / f"uniformer--{vector}.json")
    torch.save({"state_dict": fixture.state_dict()}, tmp_path / "dense.pth")
    model: Any = load_published("uniformer/small", tmp_path / "dense.pth", windows=windows)
    assert (model.config.norms, model.config.windows, model.config.head_dim) == ((0, 1, 2, 3), windows, 64)
    with torch.no_grad():
        fixture.compare(f"stage{stage}", model(fixture.input())[stage - 1], 1e-3)


@pytest.mark.parametrize(("name", "count"), [("small", 25_233_489), ("base", 53_464_785)])
def test_pose_network(name: str, count: int) -> None:
    """The card's counts with the keypoint head; heatmaps have a quarter of the image's sides."""
    with torch.device("meta"):
        backbone: Any = registry.create(f"uniformer/{name}", norms=(0, 1, 2, 3))
        head = heads.KeypointHead(512, 17)
        maps = head(backbone(torch.empty(1, 3, 256, 192)))
    assert sum(p.numel() for module in (backbone, head) for p in module.parameters()) == count
    assert maps.shape == (1, 17, 64, 48)


def names_of(vector: str) -> dict[str, list[int]]:
    return Fixture.read(PARITY / f"uniformer--{vector}.json").state


def test_the_width_of_heads_is_never_read_from_shapes() -> None:
    """Wrong heads load silently: factory, argument, form and `base` decide, in this order after an argument."""
    read = uniformer.from_published
    plain, dense_head, xxs = names_of("small-224"), names_of("tl-small-160"), names_of("xxs-128")
    assert read({"factory": "uniformer_small"}, plain).head_dim == 64
    assert read({"factory": "uniformer_small"}, dense_head).head_dim == 32
    assert read({"factory": "uniformer_small_dim64"}, dense_head).head_dim == 64
    assert read({"head_dim": 16}, dense_head).head_dim == 16
    assert read({"factory": "uniformer_small_plus"}, {}).head_dim == 32
    assert read({"class": "UniFormer"}, dense_head).head_dim == 64
    assert read({}, dense_head, uniformer.VARIANTS["base_tl_dim64"]).head_dim == 64
    assert read({}, plain, uniformer.VARIANTS["base"]).head_dim == 64
    assert read({}, xxs).head_dim == 28
    assert read({"factory": "uniformer_xxs"}, xxs) == uniformer.VARIANTS["xxs"]


@pytest.mark.parametrize("name", ["small", "small_plus", "base_ls", "small_tl", "large_ls", "xxs", "xs"])
def test_shapes_give_the_settings(name: str) -> None:
    changed: dict[str, Any] = {"in_channels": 4, "mlp_ratio": 2.0, "qkv_bias": False, "drop_path": 0.0}
    model = registry.classifier(little(name, **changed), 3)
    ours = model.state_dict()
    theirs = published_names(ours)
    assert "blocks3.1.norm1.weight" in theirs
    shapes = {n: tuple(v.shape) for n, v in theirs.items()}
    assert uniformer.from_published({"head_dim": 4, "drop_path_rate": 0}, shapes) == model.backbone.config
    back = convert(theirs, uniformer.PUBLISHED[0], model)
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
                matrix = stage < 2 and value.ndim == 2
                value = value[..., None, None] if matrix else value
                if stage < 2 and "gamma" in rest:
                    value = value[None, :, None, None]
                out[f"blocks{stage + 1}.{rest.removeprefix('blocks.')}"] = value
        else:
            known = {"head.norm": "norm", "head.fc": "head", "head.fc_dense": "aux_head",
                     "head.norm_class": "norm_cls", "head.fc_class": "head_cls"}  # fmt: skip
            stem, leaf = name.rsplit(".", 1)
            out[f"{known[stem]}.{leaf}"] = value
    return out


@pytest.mark.parametrize("name", ["small", "small_plus", "small_tl", "xxs"])
def test_folded_network_answers_alike(name: str) -> None:
    """Stem, local blocks and head lose their batch norms; token labelling keeps the one that two heads read."""
    model = fill_(registry.classifier(little(name), 5))
    folded = fold(model)
    left = [n for n, m in folded.named_modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    assert left == (["head.norm"] if name == "small_tl" else [])
    image = torch.randn(2, 3, 96, 70)
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            want = model(image)
            assert (folded(image) - want).abs().max() < 1e-5 * want.std()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["small", "small_plus", "small_tl", "xxs"])
def test_compiles_whole(name: str) -> None:
    torch._dynamo.reset()
    windows = {} if name == "xxs" else {"windows": "hybrid", "window": 3}
    model = fill_(registry.classifier(little(name, **windows), 5))
    image = torch.randn(2, 3, 96, 70)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(model, fullgraph=True)(image), model(image), atol=1e-3, rtol=1e-3)
