"""FaViT beyond its vectors: the mixer against a loop, sizes and their refusal, checkpoints in the authors' form."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from parity import Fixture, fill_
from torch import Tensor

from core import registry
from core.backbones import favit
from core.errors import SettingError, ShapeError, WeightsError
from core.layers.convs import convolve
from core.mixers.factorized import FactorizedAttention
from core.weights import load, load_published, save

COUNTS = {"b0": 3_427_704, "b1": 12_958_568, "b2": 24_919_896, "b3": 48_746_440}  # the card's, 1000 classes
PARITY = Path(__file__).parent / "parity"


def little(**more: Any) -> Any:
    """One block a stage, the published ratios, 16 channels at first."""
    return registry.create("favit/b0", **({"dims": (16, 32, 64, 128), "depths": (1, 1, 1, 1)} | more))


def test_parameter_counts() -> None:
    assert set(COUNTS) == set(favit.VARIANTS)
    for name, count in COUNTS.items():
        with torch.device("meta"):
            model = registry.create(f"favit/{name}", classes=1000)
        assert sum(p.numel() for p in model.parameters()) == count, name


def softmax_of(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """One query (d,) against keys (T, d) and values (T, d)."""
    return (k @ q * q.shape[0] ** -0.5).softmax(0) @ v


def loop_pooled(x: Tensor, heads: int, M: int, dilation: int) -> Tensor:
    """One number at a time: (H, W, C) -> (heads, M * M, c); reflection by hand, runs of L entries."""
    H, W, C = x.shape
    c, side = C // heads, (M - 1) * dilation + 1
    rows, columns = -(-H // side), -(-W // side)

    def at(y: int, z: int) -> Tensor:
        return x[y if y < H else 2 * (H - 1) - y, z if z < W else 2 * (W - 1) - z]

    out = torch.zeros(heads, M * M, c, dtype=x.dtype)
    for h in range(heads):
        for i in range(M):
            for j in range(M):
                flat = []
                for r in range(rows):
                    for s in range(columns):
                        cell = at(r * side + i * dilation, s * side + j * dilation)
                        flat += [cell[h * c + e] for e in range(c)]
                L = rows * columns
                for t in range(c):
                    out[h, i * M + j, t] = sum(flat[t * L : t * L + L]) / L
    return out


def loop_attention(layer: FactorizedAttention, x: Tensor, ratio: int, M: int) -> Tensor:
    """One position, head and group at a time, from the card."""
    B, H, W, C = x.shape
    c0, h = C // 8, layer.heads
    sizes = [7 * C // 16] * 2 if ratio > 1 else [7 * C // 8]
    q = layer.q(x)
    out = torch.zeros_like(x)
    near = convolve(layer.pointwise, convolve(layer.depthwise, x[..., c0:]))
    for b in range(B):
        cells = torch.zeros(H // ratio, W // ratio, c0, dtype=x.dtype)
        for y in range(H // ratio):
            for z in range(W // ratio):
                square = x[b, y * ratio : y * ratio + ratio, z * ratio : z * ratio + ratio, :c0]
                weight = layer.coarse.reduce.weight.permute(2, 3, 1, 0)  # (rows, columns, in, out)
                cells[y, z] = torch.einsum("yzi,yzio->o", square, weight) + layer.coarse.reduce.bias
        norm = layer.coarse.norm
        kv = layer.coarse.kv(F.layer_norm(cells, (c0,), norm.weight, norm.bias, 1e-5))
        k, v = kv[..., :c0], kv[..., c0:]
        v = v + convolve(layer.coarse.near, v[None])[0]
        for y in range(H):
            for z in range(W):
                out[b, y, z, :c0] = softmax_of(q[b, y, z, :c0], k.flatten(0, 1), v.flatten(0, 1))
        start = 0
        for n, (size, dilation) in enumerate(zip(sizes, (1, ratio), strict=False)):
            keys, c = layer.tapped[n], size // h
            kv = keys.kv(keys.blend(loop_pooled(near[b, ..., start : start + size], h, M, dilation)))
            k, v = kv[..., :c], kv[..., c:]
            image = v.transpose(1, 2).reshape(1, size, M, M)
            added = F.conv2d(image, keys.near.weight, keys.near.bias, padding=1, groups=size)
            v = v + added.reshape(h, c, M * M).transpose(1, 2)
            for head in range(h):
                first = c0 + head * sum(sizes) // h + n * c  # interleaved queries
                to = c0 + start + head * c  # heads one after another
                for y in range(H):
                    for z in range(W):
                        query = q[b, y, z, first : first + c]
                        out[b, y, z, to : to + c] = softmax_of(query, k[head], v[head])
            start += size
    return layer.proj(out)


@pytest.mark.parametrize(
    ("size", "ratio", "window"),
    [((7, 9), 2, 3), ((4, 5), 2, 3), ((10, 3), 1, 3), ((5, 4), 4, 2), ((7, 7), 1, 7)],
)
@pytest.mark.parametrize("grad", [False, True])
def test_factorized_attention_equals_a_loop(size: tuple[int, int], ratio: int, window: int, grad: bool) -> None:
    torch.manual_seed(0)
    layer = fill_(FactorizedAttention(32, 2, ratio=ratio, window=window).double())
    x = torch.randn(2, *size, 32, dtype=torch.float64)
    with torch.set_grad_enabled(grad):
        torch.testing.assert_close(layer(x), loop_attention(layer, x, ratio, window))


def test_pooling_is_a_mean_over_tiles_for_one_tile_only() -> None:
    """The published pooling: runs of flat entries, not the mean over tiles that the paper describes."""
    keys = FactorizedAttention(32, 1, ratio=1).double().tapped[0]
    one, two = torch.randn(1, 7, 7, 28, dtype=torch.float64), torch.randn(1, 7, 14, 28, dtype=torch.float64)
    torch.testing.assert_close(keys.pooled(one)[0, 0], one.reshape(49, 28))
    tap = two[0, 0, [0, 7]].reshape(28, 2).mean(1)  # the first tap of both tiles, end to end, in runs of two
    torch.testing.assert_close(keys.pooled(two)[0, 0, 0], tap)


@pytest.mark.parametrize("grad", [False, True])
def test_images_do_not_mix(grad: bool) -> None:
    model = fill_(little().double())
    images = torch.randn(2, 3, 130, 103, dtype=torch.float64)
    with torch.set_grad_enabled(grad):
        together = model(images)
        for i, image in enumerate(images):
            for joint, single in zip(together, model(image[None]), strict=True):
                torch.testing.assert_close(joint[i], single[0])


@pytest.mark.parametrize("size", [(97, 97), (111, 205), (224, 98)])
def test_any_size_from_the_smallest(size: tuple[int, int]) -> None:
    model = fill_(little())
    with torch.no_grad():
        pyramid = model(torch.randn(1, 3, *size))
    h, w = (-(-n // 4) for n in size)
    for level, channels in zip(pyramid, model.channels, strict=True):
        assert tuple(level.shape) == (1, channels, h, w)
        assert torch.isfinite(level).all()
        h, w = -(-h // 2), -(-w // 2)


@pytest.mark.parametrize("size", [(96, 96), (300, 96), (33, 300)])
def test_too_small_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(ShapeError, match=rf"{size[0]} x {size[1]} pixels is too small.*at least 97 pixels"):
        little()(torch.zeros(1, 3, *size))


def test_the_mixer_refuses_alone() -> None:
    layer = FactorizedAttention(32, 2, ratio=2)  # tiles of 13
    assert layer(torch.zeros(1, 7, 7, 32)).shape == (1, 7, 7, 32)
    with pytest.raises(ShapeError, match="6 x 7 is too small to be mirrored to whole windows of 13 x 13"):
        layer(torch.zeros(1, 6, 7, 32))


@pytest.mark.parametrize(("window", "ratios"), [(7, (8, 4, 2, 1)), (3, (4, 4, 2, 1)), (4, (3, 2, 2, 1))])
def test_smallest_is_exact(window: int, ratios: tuple[int, ...]) -> None:
    """One pixel less and some map cannot be mirrored, even without the check in front."""
    model = fill_(little(window=window, ratios=ratios))
    side = model.smallest
    with torch.no_grad():
        model(torch.randn(1, 3, side, side))
        model.smallest = 0
        with pytest.raises(ShapeError, match="too small to be mirrored"):
            model(torch.randn(1, 3, side - 1, side - 1))


def test_normed_map_goes_on() -> None:
    """Levels are the stages' norms (eps 1e-6) of what the blocks answer, and stage i + 1 takes level i."""
    model = fill_(little().double())
    image = torch.randn(1, 3, 100, 120, dtype=torch.float64)
    with torch.no_grad():
        levels, x = model(image), image
        for stage, level in zip(model.stages, levels, strict=True):
            raw = stage.unnormed(x)
            x = F.layer_norm(raw, raw.shape[-1:], stage.norm.weight, stage.norm.bias, 1e-6)
            torch.testing.assert_close(level, x.permute(0, 3, 1, 2))
    assert {m.eps for n, m in model.named_modules() if n.endswith(("norm1", "norm2"))} == {1e-6}
    assert {m.eps for n, m in model.named_modules() if n.endswith(("embed.norm", "coarse.norm"))} == {1e-5}


def test_one_training_step() -> None:
    torch.manual_seed(0)
    model = registry.classifier(little(drop_path=0.1), 5).train()
    F.cross_entropy(model(torch.randn(2, 3, 98, 130)), torch.tensor([1, 4])).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()] == []


def test_initialisation_and_drop_path() -> None:
    torch.manual_seed(0)
    model = registry.create("favit/b1", drop_path=0.11)
    rates = [b.drop_path.p for s in model.stages for b in s.blocks]
    assert rates == pytest.approx([0.01 * i for i in range(12)])
    block = model.stages[3].blocks[0]
    assert block.channel_mixer.fc1.weight.std().item() == pytest.approx(0.02, rel=0.02)
    depthwise = block.channel_mixer.depthwise  # one channel a group: 2 / (3 * 3 * 1)
    assert depthwise.weight.std().item() == pytest.approx((2 / 9) ** 0.5, rel=0.03)
    assert block.token_mixer.pointwise.weight.std().item() == pytest.approx((2 / 448) ** 0.5, rel=0.02)
    assert model.stages[1].embed.conv.weight.std().item() == pytest.approx((2 / (9 * 128)) ** 0.5, rel=0.02)
    assert not any(m.bias.any() for m in model.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear))


def test_state_round_trip(tmp_path: Path) -> None:
    model, fresh = fill_(little()), little().eval()
    save(model, tmp_path / "w.safetensors")
    load(fresh, tmp_path / "w.safetensors")
    image = torch.randn(1, 3, 100, 97)
    with torch.no_grad():
        for a, b in zip(model(image), fresh(image), strict=True):
            assert torch.equal(a, b)


def test_bfloat16_is_finite() -> None:
    model = registry.classifier(little(), 5).eval().to(torch.bfloat16)
    with torch.no_grad():
        logits = model(torch.randn(2, 3, 101, 120, dtype=torch.bfloat16))
    assert logits.dtype == torch.bfloat16
    assert torch.isfinite(logits).all()


def test_settings_that_do_not_fit() -> None:
    with pytest.raises(SettingError, match="4 dims, 3 depths, 4 heads"):
        registry.create("favit/b0", depths=(1, 1, 1))
    with pytest.raises(SettingError, match="24 channels do not divide into groups of 2 : 7 : 7 and 1 heads"):
        registry.create("favit/b0", dims=(24, 64, 128, 256))
    with pytest.raises(SettingError, match=r"32 channels .* and 3 heads"):
        registry.create("favit/b0", heads=(3, 2, 4, 8))


def test_published_checkpoint(tmp_path: Path) -> None:
    """A file as the trainer would save it; another variant's name says what does not fit."""
    fixture = Fixture.read(PARITY / "favit--b0-odd.json")
    torch.save({"model": fixture.state_dict(), "epoch": 299}, tmp_path / "checkpoint.pth")
    model = load_published("favit/b0", tmp_path / "checkpoint.pth")
    with torch.no_grad():
        fixture.compare("logits", model(fixture.input()), 1e-3)
    state = fixture.state_dict()
    del state["block2.1.attn.sr.bias"]
    torch.save({"model": state}, tmp_path / "short.pth")
    with pytest.raises(WeightsError, match=r"stages\.1\.blocks\.1\.token_mixer\.coarse\.reduce\.bias: in the network"):
        load_published("favit/b0", tmp_path / "short.pth")


def test_arguments_and_shapes_give_the_settings() -> None:
    """Every variant comes back from its own names and shapes, whatever the base; arguments stand."""
    for name, config in favit.VARIANTS.items():
        with torch.device("meta"):
            ours = registry.create(f"favit/{name}", classes=10).state_dict()
        assert favit.from_published({}, published_names(ours), favit.VARIANTS["b3"]) == config
    odd = replace(favit.B0, dims=(48, 80), depths=(2, 1), heads=(3, 5), ratios=(4, 1), mlp_ratios=(3.0, 2.5),
                  in_channels=7, qkv_bias=True)  # fmt: skip
    names = published_names(registry.classifier(favit.build(odd), 3).state_dict())
    assert favit.from_published({}, names) == odd
    assert favit.from_published({"drop_path_rate": 0.3}, names).drop_path == 0.3
    assert favit.from_published({"name": "favit_b2"}, {}) == favit.VARIANTS["b2"]


def published_names(state: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Our names as the authors write them, and the shapes."""
    out = {}
    for name, value in state.items():
        for ours, theirs in (
            ("head.fc.", "head."), (".token_mixer.", ".attn."), (".channel_mixer.", ".mlp."),
            (".coarse.reduce.", ".sr."), (".coarse.kv.", ".kv_g."), (".coarse.near.", ".local_conv_g."),
            (".coarse.norm.", ".norm."), (".attn.depthwise.", ".attn.kv_l.depth_conv."),
            (".attn.pointwise.", ".attn.kv_l.point_conv."), (".mlp.depthwise.", ".mlp.dwconv.dwconv."),
        ):  # fmt: skip
            name = name.replace(ours, theirs)
        if name.startswith("backbone."):
            _, _, stage, part, rest = name.split(".", 4)
            number = int(stage) + 1
            if part == "blocks":
                name = f"block{number}.{rest}"
                for ours, theirs in (("blend", "fcs"), ("kv", "single_heads"), ("near", "local_convs")):
                    for i in "01":
                        name = name.replace(f".tapped.{i}.{ours}.", f".{theirs}.{i}.")
            elif part == "embed":
                name = f"patch_embed{number}.{rest.replace('conv.', 'proj.')}"
            else:
                name = f"norm{number}.{rest}"
        out[name] = tuple(value.shape)
    return out


@pytest.mark.slow
def test_compiles_whole() -> None:
    torch._dynamo.reset()
    model = fill_(little())
    image = torch.randn(2, 3, 130, 101)
    with torch.no_grad():
        for a, b in zip(torch.compile(model, fullgraph=True)(image), model(image), strict=True):
            torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-3)
