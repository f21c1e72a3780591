"""The plain ViT: counts, positions at other sizes, tokens, attention's options, and files in their authors' names."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from core import registry
from core.backbones.vit import VARIANTS, ViT, ViTConfig, from_published, head
from core.errors import SettingError, ShapeError, WeightsError
from core.layers.positions import resize_grid, sincos_1d, sincos_2d
from core.mixers.attention import SelfAttention
from core.weights import load_published

SMALL = ViTConfig(dim=32, depth=2, heads=2, image_size=32, patch=8)


def count(name: str, classes: int | None = None, **config: Any) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in registry.create(f"vit/{name}", classes=classes, **config).parameters())


AUDIO = {"in_channels": 1, "image_size": (592, 128)}
ICOLORIT = {"in_channels": 4, "class_token": False, "positions": "sincos_1d", "relative": True, "qkv_bias": "qv"}
PLAIN_COLORIT = ICOLORIT | {"relative": False}


@pytest.mark.parametrize(("name", "classes", "config", "published", "extra"), [
    # card's number, and what of it is no part of the ViT
    *(("base_distilled", n, {}, c, 0) for n, c in {10: 85_815_572, 100: 85_953_992, 1000: 87_338_192}.items()),
    ("base_distilled", 8142, {}, 98_322_588, 0),
    ("tiny", None, {}, 5_524_416, 0), ("small", None, {}, 21_665_664, 0), ("base", None, {}, 85_798_656, 0),  # gmml
    ("flax_tiny", 1000, {}, 5_717_416, 0), ("flax_small_32", 1000, {}, 22_878_952, 0),  # sam
    ("flax_small", 1000, {}, 22_050_664, 0), ("flax_small_8", 1000, {}, 22_055_272, 0),
    ("flax_base_32", 1000, {}, 88_224_232, 0), ("flax_base", 1000, {}, 86_567_656, 0),
    # glsim: aggregator, its norm, the unused anchor token
    ("tiny", 200, {}, 6_008_456, 444_864 + 3 * 192), ("small", 200, {}, 23_518_280, 1_774_464 + 3 * 384),
    ("base", 200, {}, 93_042_632, 7_087_872 + 3 * 768), ("large", 200, {}, 316_105_928, 12_596_224 + 3 * 1024),
    ("small", None, AUDIO, 21_507_456, 0), ("base", None, AUDIO, 85_482_240, 0),  # asit
    # icolorit with its linear head and no tables, then with its 3 x 3 convolution and tables
    ("tiny", 512, PLAIN_COLORIT, 5_632_064, 0), ("tiny_8", 128, PLAIN_COLORIT, 5_410_496, 0),
    ("tiny_32", 2048, PLAIN_COLORIT, 6_518_336, 0), ("small", 512, PLAIN_COLORIT, 21_880_448, 0),
    ("base", 512, PLAIN_COLORIT, 86_227_712, 0),
    ("tiny", None, ICOLORIT, 6_444_740, 512 * (9 * 192 + 1)),
    ("tiny_8", None, ICOLORIT, 5_716_004, 128 * (9 * 192 + 1)),
    ("tiny_32", None, ICOLORIT, 9_670_148, 2048 * (9 * 192 + 1)),
    ("small", None, ICOLORIT, 23_505_800, 512 * (9 * 384 + 1)),
    ("base", None, ICOLORIT, 89_478_416, 512 * (9 * 768 + 1)),
    ("dinov2_small", None, {"registers": 16}, 22_062_720, 384),  # ph-reg; the mask token
    ("dinov2_base", None, {"registers": 16}, 86_592_768, 768),
    ("base_distilled", 100, {}, 86_544_584, 768 * 769), ("base", 100, {}, 86_466_148, 768 * 769),  # lgvit; the pooler
    # locality-alignment's encoders with their square head
    ("tiny", 192, {}, 5_561_472, 0), ("base", 768, {}, 86_389_248, 0), ("clip_base", 768, {}, 86_390_016, 0),
    ("clip_large_336", 1024, {}, 304_557_056, 0), ("siglip_base", 768, {}, 86_387_712, 0),
    ("siglip_so400m_384", 1152, {}, 414_315_504, 0),
    ("dinov2_base_registers", 768, {"image_size": 224, "prefix_positions": False}, 86_317_824, 0),
])  # fmt: skip
def test_parameter_counts(name: str, classes: int | None, config: dict[str, Any], published: int, extra: int) -> None:
    assert count(name, classes, **config) == published - extra


def cubic(grid: np.ndarray, size: tuple[int, int], factors: tuple[float, float]) -> np.ndarray:
    """Bicubic sampling (a = -0.75, edges repeated) of (h, w, C) at (i + 0.5) / factor - 0.5, one row at a time."""

    def weight(t: float) -> float:
        t, a = abs(t), -0.75
        return (a + 2) * t**3 - (a + 3) * t**2 + 1 if t <= 1 else a * (t**3 - 5 * t**2 + 8 * t - 4) if t < 2 else 0.0

    for axis in (0, 1):
        rows = []
        for i in range(size[axis]):
            at = (i + 0.5) / factors[axis] - 0.5
            first = int(np.floor(at)) - 1
            taps = [(min(max(j, 0), grid.shape[axis] - 1), weight(at - j)) for j in range(first, first + 4)]
            rows.append(sum(w * grid.take(j, axis) for j, w in taps))
        grid = np.stack(rows, axis)
    return grid


@pytest.mark.parametrize("size", [(7, 5), (3, 4), (4, 4), (9, 2)])
def test_bicubic_resizing_equals_a_loop(size: tuple[int, int]) -> None:
    grid = torch.randn(4, 5, 3, dtype=torch.float64)
    exact = cubic(grid.numpy(), size, (size[0] / 4, size[1] / 5))
    offset = cubic(grid.numpy(), size, ((size[0] + 0.1) / 4, (size[1] + 0.1) / 5))
    torch.testing.assert_close(resize_grid(grid[None], size, "exact")[0].numpy(), exact, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(resize_grid(grid[None], size, "offset")[0].numpy(), offset, atol=1e-6, rtol=1e-6)
    assert np.abs(exact - offset).max() > 1e-3


@pytest.mark.parametrize("side", [2, 3, 5, 8, 11])
def test_linear_resizing_equals_a_loop_and_scipy(side: int) -> None:
    grid = torch.randn(5, 5, 3, dtype=torch.float64)
    at = [i * 4 / (side - 1) for i in range(side)]  # corners on corners
    low = [min(int(a), 3) for a in at]
    rows = torch.stack([(1 - a + i) * grid[i] + (a - i) * grid[i + 1] for a, i in zip(at, low, strict=True)])
    want = torch.stack([(1 - a + i) * rows[:, i] + (a - i) * rows[:, i + 1] for a, i in zip(at, low, strict=True)], 1)
    got = resize_grid(grid[None], (side, side), "linear")[0]
    torch.testing.assert_close(got, want)
    scipy = pytest.importorskip("scipy.ndimage")
    torch.testing.assert_close(got, torch.from_numpy(scipy.zoom(grid.numpy(), (side / 5, side / 5, 1), order=1)))


def test_linear_and_refuse_say_no() -> None:
    with pytest.raises(ShapeError, match="between squares only, not from 4 x 4"):
        resize_grid(torch.zeros(1, 4, 4, 2), (4, 5), "linear")
    with pytest.raises(ShapeError, match="built for 4 x 4 patches, the image has 4 x 5"):
        ViT(replace(SMALL, resize="refuse"))(torch.zeros(1, 3, 32, 40))


def added(model: ViT, height: int, width: int) -> Tensor:
    """Positions as an image of this size gets them, (patches, C)."""
    embed: Any = model.stages[0].embed
    image = torch.zeros(1, model.config.in_channels, height, width)
    x, _ = embed(image)
    return (x[:, model.prefix :] - embed.patches(image).flatten(1, 2))[0].detach()


def test_offset_leaves_the_table_alone_for_square_images_only() -> None:
    model = ViT(SMALL)
    table = model.stages[0].embed.learned[0, 1:].detach()
    torch.testing.assert_close(added(model, 32, 32), table)
    torch.testing.assert_close(added(model, 39, 39), table)  # a square image of the built 4 x 4 patches
    resized = torch.from_numpy(cubic(table.reshape(4, 4, 32).numpy(), (4, 4), (4.1 / 4, 4.1 / 4))).reshape(16, 32)
    torch.testing.assert_close(added(model, 39, 33), resized, atol=1e-5, rtol=1e-5)  # as many patches, not square
    torch.testing.assert_close(added(model, 33, 39), resized, atol=1e-5, rtol=1e-5)
    assert (resized - table).abs().max() > 1e-4
    exact = ViT(replace(SMALL, resize="exact"))
    exact.load_state_dict(model.state_dict())
    torch.testing.assert_close(added(exact, 39, 33), table)
    spectrogram = ViT(replace(SMALL, image_size=(48, 16)))  # a built rectangle is left alone at its own size
    torch.testing.assert_close(added(spectrogram, 50, 16), spectrogram.stages[0].embed.learned[0, 1:].detach())


@pytest.mark.parametrize("size", [(57, 83), (8, 8), (15, 40), (100, 31)])
@pytest.mark.parametrize("how", ["offset", "exact"])
def test_odd_sizes(size: tuple[int, int], how: Any) -> None:
    model = ViT(replace(SMALL, resize=how)).eval()
    image = torch.randn(1, 3, *size)
    with torch.no_grad():
        (level,) = model(image)
        h, w = size[0] // 8, size[1] // 8
        assert level.shape == (1, 32, h, w)
        torch.testing.assert_close(model.tokens(image)[:, 1:].transpose(1, 2).reshape(level.shape), level)
        if h > 1 and w > 1:  # what the patch does not divide is dropped
            assert not torch.equal(model(image.flip(3))[0], level)
            cut = torch.cat([image[:, :, : h * 8], image[:, :, h * 8 :] + 9], 2)
            torch.testing.assert_close(model(cut)[0], level)


def test_a_smaller_stride_makes_more_patches() -> None:
    model = ViT(replace(SMALL, stride=4)).eval()
    (level,) = model(torch.randn(1, 3, 32, 36))
    assert level.shape == (1, 32, 7, 8)  # 1 + (side - 8) / 4
    assert model.strides == (4,)
    assert model.stages[0].embed.learned.shape == (1, 17, 32)  # the table is of whole patches, and follows
    want = cubic(model.stages[0].embed.learned[0, 1:].detach().reshape(4, 4, 32).numpy(), (7, 8), (7.1 / 4, 8.1 / 4))
    torch.testing.assert_close(added(model, 32, 36), torch.from_numpy(want).reshape(56, 32), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("prefix_positions", [True, False])
def test_order_of_tokens(prefix_positions: bool) -> None:
    c = replace(SMALL, distillation_token=True, registers=3, prefix_positions=prefix_positions)
    model = ViT(c)
    embed: Any = model.stages[0].embed
    image = torch.randn(2, 3, 32, 32)
    x, size = model.embed(image)
    assert (model.prefix, size) == (5, (4, 4))
    assert x.shape == (2, 5 + 16, 32)
    placed = 2 if prefix_positions else 0
    assert embed.learned.shape == (1, placed + 16, 32)
    first = torch.cat([embed.class_token, embed.distillation_token], 1)
    if placed:
        first = first + embed.learned[:, :2]
    torch.testing.assert_close(x[0, :2], first[0])
    torch.testing.assert_close(x[1, 2:5], embed.registers[0])  # no position
    torch.testing.assert_close(x[:, 5:], embed.patches(image).flatten(1, 2) + embed.learned[:, placed:])


def test_fixed_positions_are_no_part_of_the_state() -> None:
    for kind, want in {
        "sincos_1d": sincos_1d(17, 32).float(),
        "sincos_2d": torch.cat([torch.zeros(1, 32), sincos_2d((4, 4), 32).float()]),
        "none": torch.zeros(17, 32),
    }.items():
        model = ViT(replace(SMALL, positions=kind))
        assert not [n for n in model.state_dict() if "table" in n or "learned" in n]
        torch.testing.assert_close(model.stages[0].embed.table[0], want)
        torch.testing.assert_close(added(model, 32, 32), want[1:], atol=1e-5, rtol=1e-5)
    assert sincos_1d(3, 4)[2].tolist() == pytest.approx([np.sin(2), np.cos(2), np.sin(0.02), np.cos(0.02)])
    column, row = sincos_2d((2, 3), 8)[4].chunk(2)  # cell (1, 1)
    assert column.tolist() == row.tolist() == pytest.approx([np.sin(1), np.sin(0.01), np.cos(1), np.cos(0.01)])


def test_features_are_the_blocks_outputs() -> None:
    model = ViT(replace(SMALL, depth=3)).eval()
    image = torch.randn(2, 3, 32, 40)
    x, (h, w) = model.embed(image)
    outputs = []
    for block in model.blocks:
        x = block(x)
        outputs.append(x[:, 1:].transpose(1, 2).reshape(2, 32, h, w))
    for got, want in zip(model.features(image, at=(0, 2, -3)), (outputs[0], outputs[2], outputs[0]), strict=True):
        torch.testing.assert_close(got, want)
    torch.testing.assert_close(model.features(image, at=(2,), norm=True)[0], model(image)[0])
    with pytest.raises(SettingError, match="no block 3 in a network of 3 blocks"):
        model.features(image, at=(0, 3))


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("grad", [False, True])
def test_taps_are_the_attention_and_cost_nothing_closed(relative: bool, grad: bool) -> None:
    model = ViT(replace(SMALL, relative=relative)).eval()
    image = torch.randn(2, 3, 32, 32)
    with torch.set_grad_enabled(grad):
        before = model.tokens(image)
        with model.tapped(1) as layers:
            inside = model.tokens(image)
            tap = layers[1].tap
            assert model.blocks[0].token_mixer.tap is None
        block = model.blocks[1]
        x = block.norm1(model.blocks[0](model.embed(image)[0]))
        q, k, v = block.token_mixer.qkv(x).reshape(2, 17, 3, 2, 16).permute(2, 0, 3, 1, 4)
        logits = q @ k.transpose(-2, -1) / 4
        if relative:
            logits = logits + block.token_mixer.bias()
        for got, want in ((tap.q, q), (tap.k, k), (tap.v, v), (tap.weights, logits.softmax(-1))):
            torch.testing.assert_close(got, want)
        out = block.token_mixer.proj((tap.weights @ tap.v).transpose(1, 2).flatten(2))
        torch.testing.assert_close(block.token_mixer(x), out)
        assert torch.equal(before, inside)
        assert torch.equal(before, model.tokens(image))
    assert all(b.token_mixer.tap is None and not b.token_mixer.keep_tap for b in model.blocks)


def test_query_and_value_bias_is_a_full_bias_without_key() -> None:
    split, full = SelfAttention(24, 3, qkv_bias="qv"), SelfAttention(24, 3)
    nn.init.normal_(split.q_bias)
    nn.init.normal_(split.v_bias)
    state = {n: v for n, v in split.state_dict().items() if n not in ("q_bias", "v_bias")}
    full.load_state_dict(state | {"qkv.bias": torch.cat([split.q_bias, torch.zeros(24), split.v_bias])})
    x = torch.randn(2, 5, 24)
    torch.testing.assert_close(split(x), full(x))
    assert not torch.allclose(split(x), full(x + 1))


@pytest.mark.parametrize("prefix", [0, 2])
def test_relative_bias_equals_a_loop(prefix: int) -> None:
    h, w = 2, 3
    layer = SelfAttention(8, 2, relative=(h, w), prefix=prefix)
    table = layer.bias_table.detach()
    assert len(table) == (2 * h - 1) * (2 * w - 1) + (3 if prefix else 0)
    got = layer.bias()
    for i in range(prefix + h * w):
        for j in range(prefix + h * w):
            if i < prefix and j < prefix:
                row = len(table) - 1
            elif j < prefix:
                row = len(table) - 2
            elif i < prefix:
                row = len(table) - 3
            else:
                (yi, xi), (yj, xj) = divmod(i - prefix, w), divmod(j - prefix, w)
                row = (yi - yj + h - 1) * (2 * w - 1) + xi - xj + w - 1
            torch.testing.assert_close(got[:, i, j], table[row])


FORMS = {
    "distilled": replace(SMALL, distillation_token=True, drop_path=0.1),
    "registers": replace(SMALL, registers=4, layer_scale=1.0, resize="exact", stride=4),
    "colorit": replace(
        SMALL, class_token=False, positions="sincos_1d", relative=True, qkv_bias="qv", pool="mean_tokens"
    ),
    "beit": replace(SMALL, positions="none", relative=True, qkv_bias="qv", layer_scale=0.1),
    "clip": replace(SMALL, norm_pre=True, patch_bias=False, activation="quick_gelu", eps=1e-5, head_dim=8),
    "pooled": replace(SMALL, norm=False, pool="mean_tokens", qkv_bias="none", drop_path=(0.1, 0.1)),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_forms(form: str) -> None:
    """Every parameter learns, the state round-trips, images do not mix, bfloat16 stays finite."""
    torch.manual_seed(0)
    model = registry.classifier(ViT(FORMS[form]), 3)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.05)
    image = torch.randn(3, 3, 32, 32)
    nn.functional.cross_entropy(model(image), torch.tensor([0, 2, 1])).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
    assert [n for n, p in model.named_parameters() if p.grad is not None and not p.grad.any()] == []
    model.eval()
    fresh = registry.classifier(ViT(FORMS[form]), 3).eval()
    fresh.load_state_dict(model.state_dict())
    with torch.no_grad():
        logits = model(image)
        assert torch.equal(fresh(image), logits)
        torch.testing.assert_close(model(image[1:2]), logits[1:2])
        low = fresh.to(torch.bfloat16)(image.bfloat16())
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), logits, atol=0.2, rtol=0.1)


def test_heads_look_where_they_should() -> None:
    tokens = torch.randn(2, 18, 32)
    twice = head(ViT(replace(SMALL, distillation_token=True)), 3)
    torch.testing.assert_close(twice(tokens), (twice.fc(tokens[:, 0]) + twice.fc_distilled(tokens[:, 1])) / 2)
    first = head(ViT(SMALL), 3)
    torch.testing.assert_close(first(tokens), first.fc(tokens[:, 0]))
    mean = head(ViT(replace(SMALL, registers=1, norm=False, pool="mean_tokens")), 3)
    torch.testing.assert_close(mean(tokens), mean.fc(mean.norm(tokens[:, 2:].mean(1))))
    last = ViT(replace(SMALL, norm_eps=0.5))
    assert (last.norm.eps, last.blocks[0].norm1.eps) == (0.5, 1e-6)


def test_wrong_settings_and_sizes() -> None:
    with pytest.raises(SettingError, match="2 blocks but 3 drop-path rates"):
        ViT(replace(SMALL, drop_path=(0.1, 0.1, 0.1)))
    with pytest.raises(SettingError, match="leave `stride` out"):
        ViT(replace(SMALL, relative=True, stride=4))
    with pytest.raises(ShapeError, match=r"an image of 7 x 32 pixels is smaller than a \(8, 8\) patch"):
        ViT(SMALL)(torch.zeros(1, 3, 7, 32))
    with pytest.raises(
        ShapeError, match=r"relative positions were built for \(4, 4\) patches .* the image has \(4, 5\)"
    ):
        ViT(replace(SMALL, relative=True))(torch.zeros(1, 3, 32, 40))


@pytest.mark.parametrize(("build", "rows", "size", "prefix_positions"), [
    ({"audio_size": [200, 128]}, 97, (200, 128), True),  # sides that the patch does not divide
    ({"img_size": [224]}, 197, 224, True),
    ({"img": 288}, 325, 288, True),
    ({}, 577, 384, True),  # read from the rows
    ({}, 256, 256, False),  # the class token has no position
    ({"image_size": 224}, 325, 288, True),  # the table knows better
    ({}, 297, 224, True),  # a rectangle that nobody states: left to the caller
])  # fmt: skip
def test_image_size_from_arguments_and_rows(
    build: dict[str, Any], rows: int, size: Any, prefix_positions: bool
) -> None:
    names = {
        "cls_token": (1, 1, 56), "pos_embed": (1, rows, 56), "patch_embed.proj.weight": (56, 1, 16, 16),
        "blocks.0.mlp.fc1.weight": (488, 56), "blocks.0.attn.proj.weight": (56, 64), "norm.weight": (56,),
    }  # fmt: skip
    c = from_published({"num_heads": 4} | build, names)
    assert (c.heads, c.head_dim, c.qkv_bias) == (4, 16, "none")
    assert (c.image_size, c.prefix_positions, c.in_channels, c.depth) == (size, prefix_positions, 1, 1)
    assert int(c.dim * c.mlp_ratio) == 488  # 488 / 56 * 56 falls short of 488 in floating point


# Files in their authors' names and wrappers. `timms` are ours under timm's names; the others start from those.


def timms(model: nn.Module) -> dict[str, Tensor]:
    names = [
        ("backbone.stages.0.embed.class_token", "cls_token"), ("backbone.stages.0.embed.learned", "pos_embed"),
        ("backbone.stages.0.embed.distillation_token", "dist_token"),
        ("backbone.stages.0.embed.registers", "reg_token"),
        ("backbone.stages.0.embed.patches.conv", "patch_embed.proj"), ("backbone.stages.0.embed.norm", "norm_pre"),
        ("backbone.stages.0.blocks", "blocks"), ("token_mixer.bias_table", "attn.rpb_table"), ("token_mixer", "attn"),
        ("channel_mixer", "mlp"), ("scale1.scale", "ls1.gamma"), ("scale2.scale", "ls2.gamma"),
        ("backbone.norm", "norm"), ("head.fc_distilled", "head_dist"), ("head.fc.", "head."),
    ]  # fmt: skip
    state = {}
    for name, value in model.state_dict().items():
        for ours, theirs in names:
            name = name.replace(ours, theirs)
        state[name] = value.clone()
    return state


def renamed(
    state: dict[str, Tensor], names: list[tuple[str, str]], split: tuple[str, str, str] | None
) -> dict[str, Tensor]:
    out = {}
    for name, value in state.items():
        parts = {name: value}
        if split and ".attn.qkv." in name:
            parts = {name.replace("attn.qkv", p): v for p, v in zip(split, value.chunk(3), strict=True)}
        for part, v in parts.items():
            new = part
            for pattern, replacement in names:
                new = re.sub(pattern, replacement, new)
            out[new] = v.contiguous()
    return out


def hugging_face(state: dict[str, Tensor], prefix: str = "vit.") -> dict[str, Tensor]:
    blocks = r"^blocks\.(\d+)\."
    return renamed(state, [
        (r"^cls_token", prefix + "embeddings.cls_token"), (r"^dist_token", prefix + "embeddings.distillation_token"),
        (r"^reg_token", prefix + "embeddings.register_tokens"),
        (r"^pos_embed", prefix + "embeddings.position_embeddings"),
        (r"^patch_embed\.proj", prefix + "embeddings.patch_embeddings.projection"),
        *([] if any("ls1" in n for n in state) else [  # DINOv2's blocks keep these names
            (blocks + "norm1", r"blocks.\1.layernorm_before"), (blocks + "norm2", r"blocks.\1.layernorm_after"),
            (blocks + r"mlp\.fc1", r"blocks.\1.intermediate.dense"), (blocks + r"mlp\.fc2", r"blocks.\1.output.dense"),
        ]),
        (r"ls(\d)\.gamma", r"layer_scale\1.lambda1"), (blocks + r"attn\.proj", r"blocks.\1.attention.output.dense"),
        (blocks, prefix + r"encoder.layer.\1."), (r"^norm\.", prefix + "layernorm."),
        (r"^head_dist\.", "distillation_classifier."),
        (r"^head\.", "cls_classifier." if "dist_token" in state else "classifier."),
    ], tuple(f"attention.attention.{p}" for p in ("query", "key", "value")))  # fmt: skip


def glsim(state: dict[str, Tensor]) -> dict[str, Tensor]:
    names = renamed(state, [
        ("^cls_token", "class_token"), ("^pos_embed", "positional_embedding.pos_embedding"),
        (r"^patch_embed\.proj", "patch_embedding"), (r"\.attn\.proj\.", ".proj."), (r"\.mlp\.", ".pwff."),
        (r"^blocks", "encoder.blocks"), (r"^norm\.", "encoder_norm."),
    ], ("attn.proj_q", "attn.proj_k", "attn.proj_v"))  # fmt: skip
    return {f"model.{n}": v for n, v in names.items()} | {"model.anchor_class_token": torch.zeros(1, 1, 32)}


def clip(state: dict[str, Tensor]) -> dict[str, Tensor]:
    names = renamed({n: v for n, v in state.items() if not n.startswith("head.")}, [
        ("^cls_token", "class_embedding"), ("^pos_embed", "positional_embedding"), (r"^patch_embed\.proj", "conv1"),
        (r"^norm_pre", "ln_pre"), (r"^norm\.", "ln_post."), (r"^blocks", "transformer.resblocks"),
        (r"\.norm(\d)", r".ln_\1"), (r"attn\.qkv\.", "attn.in_proj_"), (r"attn\.proj", "attn.out_proj"),
        (r"mlp\.fc1", "mlp.c_fc"), (r"mlp\.fc2", "mlp.c_proj"),
    ], None)  # fmt: skip
    names["class_embedding"], names["positional_embedding"] = (
        names["class_embedding"][0, 0],
        names["positional_embedding"][0],
    )
    text = {"token_embedding.weight": torch.zeros(5, 8), "transformer.resblocks.0.ln_1.weight": torch.zeros(8)}
    return {f"visual.{n}": v for n, v in names.items()} | {"visual.proj": torch.zeros(32, 16)} | text


def flax(state: dict[str, Tensor], heads: int) -> dict[str, np.ndarray]:
    """Google's .npz: kernels input first, heads as an axis of their own."""
    mixer = "MultiHeadDotProductAttention_1/"
    out = {}
    for name, value in state.items():
        dim = state["cls_token"].shape[-1]
        path = re.sub(r"^blocks\.(\d+)\.", r"Transformer/encoderblock_\1/", name)
        for ours, theirs in {
            "norm1.": "LayerNorm_0/", "norm2.": "LayerNorm_2/", "mlp.fc1.": "MlpBlock_3/Dense_0/",
            "mlp.fc2.": "MlpBlock_3/Dense_1/", "attn.proj.": mixer + "out/", "patch_embed.proj.": "embedding/",
            "head.": "head/", "pos_embed": "Transformer/posembed_input/pos_embedding", "cls_token": "cls",
        }.items():  # fmt: skip
            path = path.replace(ours, theirs)
        path = path.replace("norm.", "Transformer/encoder_norm/")
        if "attn.qkv" in name:
            for part, v in zip(("query", "key", "value"), value.chunk(3), strict=True):
                kernel = v.T.reshape(dim, heads, -1) if v.ndim == 2 else v.reshape(heads, -1)
                new = path.replace("attn.qkv.", mixer + part + "/").replace("weight", "kernel")
                out[new] = kernel.numpy()
            continue
        if "attn.proj.weight" in name:
            value = value.T.reshape(heads, -1, dim)
        elif value.ndim == 2:
            value = value.T
        elif value.ndim == 4:
            value = value.permute(2, 3, 1, 0)
        leaf = "scale" if "norm" in name or "LayerNorm" in path else "kernel"
        out[path.replace("weight", leaf)] = value.contiguous().numpy()
    return out


SHAPE = {"dim": 32, "depth": 2, "heads": 2, "patch": 8}  # what makes it another network than the variant


def small(variant: str, **changes: Any) -> ViTConfig:
    return replace(VARIANTS[variant], image_size=32, **SHAPE, **changes)


def stirred(config: ViTConfig, classes: int | None) -> nn.Module:
    model: Any = ViT(config)
    model = registry.classifier(model, classes) if classes else model
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * 0.1)
    return model.eval()


def written(model: nn.Module, form: str, path: Path) -> Path:
    """A file as the authors write it."""
    tower = model if hasattr(model, "head") else nn.ModuleDict({"backbone": model})
    state = timms(tower)
    files: dict[str, Any] = {
        "timm": lambda: state,
        "deit": lambda: {"model": state, "epoch": 3, "optimizer": {"state": {}}},
        "gmml": lambda: {"SiT_model": {f"module.backbone.{n}": v for n, v in state.items()} | {
            "module.head_recons.mlp.0.weight": torch.zeros(2, 2)}, "epoch": 1},
        "hugging_face": lambda: hugging_face(state) | {"vit.pooler.dense.weight": torch.zeros(32, 32)},
        "dinov2": lambda: hugging_face(state, "") | {"embeddings.mask_token": torch.zeros(1, 32)},
        "glsim": lambda: {"model": glsim(state)},
        "clip": lambda: clip(state),
        "flax": lambda: flax(state, 2),
    }  # fmt: skip
    content = files[form]()
    if form == "flax":
        path = path.with_suffix(".npz")
        np.savez(path, **content)
    else:
        torch.save(content, path)
    return path


@pytest.mark.parametrize(("form", "variant", "changes", "classes", "prefix"), [
    ("timm", "tiny", {}, 5, ""),
    ("timm", "tiny", {"registers": 2, "prefix_positions": False, "layer_scale": 1.0}, 5, ""),
    ("timm", "clip_base", {"activation": "gelu"}, 5, ""),
    ("timm", "siglip_base", {}, None, ""),
    ("deit", "tiny_distilled", {}, 5, ""),
    ("gmml", "tiny", {}, None, "backbone."),
    ("hugging_face", "tiny", {"eps": 1e-12}, 5, ""),
    ("hugging_face", "tiny_distilled", {"eps": 1e-12}, 5, ""),
    ("dinov2", "dinov2_base_registers", {}, None, ""),
    ("glsim", "tiny", {"eps": 1e-12}, 5, ""),
    ("clip", "clip_base", {"head_dim": 8}, None, "visual."),
    ("flax", "flax_tiny", {}, 5, ""),
])  # fmt: skip
def test_published_files(
    tmp_path: Path, form: str, variant: str, changes: dict[str, Any], classes: int | None, prefix: str
) -> None:
    """Image size, tokens, biases, norms and epsilons are read from the file; answers are equal, at other sizes, too."""
    model = stirred(small(variant, **changes), classes)
    path = written(model, form, tmp_path / "file.pth")
    stated = {k: v for k, v in changes.items() if k in ("activation", "head_dim")}  # no shape shows them
    loaded = load_published(f"vit/{variant}", path, prefix=prefix, **SHAPE, **stated)
    got, want = (getattr(m, "backbone", m).config for m in (loaded, model))
    assert replace(got, drop_path=0.0) == replace(want, drop_path=0.0)
    for size in (32, 32), (48, 48):
        image = torch.randn(1, 3, *size)
        with torch.no_grad():
            torch.testing.assert_close(loaded(image), model(image), rtol=0, atol=0)


def test_timms_own_network(tmp_path: Path) -> None:
    """Not our names turned round: timm's networks and timm's answers."""
    from timm.models.vision_transformer import VisionTransformer

    arguments = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 5}
    for variant, more in {
        "tiny": {},
        "siglip_base": {"class_token": False, "global_pool": "avg", "fc_norm": False},
        "tiny_8": {"global_pool": "avg", "qkv_bias": False},  # its norm comes after pooling
        "dinov2_base_registers": {"reg_tokens": 4, "no_embed_class": True, "init_values": 1e-5},
    }.items():
        net = VisionTransformer(**arguments, **more)
        with torch.no_grad():
            for p in net.parameters():
                p.add_(torch.randn_like(p) * 0.1)
        torch.save(net.state_dict(), tmp_path / "timm.pth")
        pool = {"pool": "mean_tokens"} if more.get("global_pool") == "avg" else {}
        model = load_published(f"vit/{variant}", tmp_path / "timm.pth", **SHAPE, **pool)
        image = torch.randn(2, 3, 32, 32)
        with torch.no_grad():
            torch.testing.assert_close(model(image), net.eval()(image), atol=1e-4, rtol=1e-4)


def test_a_file_at_another_size_is_resized_by_the_rule(tmp_path: Path) -> None:
    model = stirred(small("tiny"), 5)
    path = written(model, "deit", tmp_path / "file.pth")
    with pytest.warns(UserWarning, match="embed.learned resized to the size that vit/tiny asks for"):
        larger = load_published("vit/tiny", path, **SHAPE, image_size=(48, 40))
    table = model.backbone.stages[0].embed.learned[0].detach()
    want = cubic(table[1:].reshape(4, 4, 32).numpy(), (6, 5), (6.1 / 4, 5.1 / 4)).reshape(30, 32)
    got = larger.backbone.stages[0].embed.learned[0]
    torch.testing.assert_close(got[1:].detach(), torch.from_numpy(want), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(got[0], table[0])
    with pytest.raises(WeightsError, match=r"embed.learned: \(1, 17, 32\) in the file, \(1, 31, 32\) in the network"):
        load_published("vit/tiny", path, **SHAPE, image_size=(48, 40), resize=False)


def test_a_rectangle_is_stated_by_the_caller(tmp_path: Path) -> None:
    model = stirred(replace(small("tiny"), image_size=(88, 24), in_channels=1), None)
    path = written(model, "timm", tmp_path / "audio.pth")
    loaded = load_published("vit/tiny", path, **SHAPE, image_size=(88, 24))
    spectrogram = torch.randn(1, 1, 88, 24)
    with torch.no_grad():
        torch.testing.assert_close(loaded(spectrogram)[0], model(spectrogram)[0], rtol=0, atol=0)


def test_other_files_are_refused(tmp_path: Path) -> None:
    torch.save(
        {"patch_embed.proj.weight": torch.zeros(32, 3, 8, 8), "cls_token": torch.zeros(1, 1, 32)}, tmp_path / "v.pth"
    )
    with pytest.raises(WeightsError, match=r"v.pth: not a vit/tiny file"):
        load_published("vit/tiny", tmp_path / "v.pth")
    state = timms(stirred(small("tiny"), 5)) | {"blocks.0.attn.extra": torch.zeros(1)}
    torch.save(state, tmp_path / "extra.pth")
    with pytest.raises(WeightsError, match=r"blocks.0.token_mixer.extra: in the file, not in the network"):
        load_published("vit/tiny", tmp_path / "extra.pth", **SHAPE)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_compiles_whole(form: str) -> None:
    torch._dynamo.reset()
    model = ViT(FORMS[form]).eval()
    with torch.no_grad():
        for size in (32, 32), (40, 48):
            if size == (32, 32) or not FORMS[form].relative:
                image = torch.randn(1, 3, *size)
                compiled = torch.compile(model, fullgraph=True)(image)[0]
                torch.testing.assert_close(compiled, model(image)[0], atol=1e-4, rtol=1e-4)
