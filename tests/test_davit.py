"""DaViT beyond its vectors: both mixers against loops, sizes, forms, checkpoints in the authors' form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from parity import Fixture, fill_
from torch import Tensor

from core import registry
from core.backbones import davit
from core.errors import SettingError
from core.layers.gelu import GELU
from core.mixers.channel import ChannelAttention
from core.mixers.window import PlainWindowAttention
from core.weights import load, load_published, save

COUNTS = {  # the card's measured ones, 1000 classes
    "tiny": 28_360_168, "small": 49_745_896, "base": 87_954_408, "large": 196_811_752, "huge": 348_922_856,
    "giant": 1_406_470_120,
}  # fmt: skip
PARITY = Path(__file__).parent / "parity"


def little(**more: Any) -> Any:
    """One or two pairs a stage, 16 channels in two heads, windows of 3."""
    settings = {"dims": (16, 32, 48), "depths": (1, 2, 1), "heads": (2, 4, 4), "window": 3} | more
    return registry.create("davit/tiny", **settings)


def test_parameter_counts() -> None:
    assert set(COUNTS) == set(davit.VARIANTS)
    for name, count in COUNTS.items():
        with torch.device("meta"):
            model = registry.create(f"davit/{name}", classes=1000)
        assert sum(p.numel() for p in model.parameters()) == count, name


def loop_channel_attention(layer: ChannelAttention, x: Tensor) -> Tensor:
    """One pair of channels at a time, from the card: A from k and v, applied to q."""
    B, H, W, C = x.shape
    d = C // layer.groups
    q, k, v = layer.qkv(x).reshape(B, H * W, 3, C).unbind(2)
    out = torch.zeros(B, H * W, C, dtype=x.dtype)
    for b in range(B):
        for start in range(0, C, d):
            for i in range(start, start + d):
                logits = torch.stack([d**-0.5 * (k[b, :, i] @ v[b, :, j]) for j in range(start, start + d)])
                for j, weight in zip(range(start, start + d), logits.softmax(0), strict=True):
                    out[b, :, i] += weight * q[b, :, j]
    return layer.proj(out).reshape(B, H, W, C)


@pytest.mark.parametrize("size", [(1, 1), (3, 4), (4, 4), (7, 5)])  # 16 positions and more go by the Gram matrix
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_channel_attention_equals_a_loop(size: tuple[int, int], grad: bool, bias: bool) -> None:
    torch.manual_seed(0)
    layer = fill_(ChannelAttention(8, 2, qkv_bias=bias).double())
    x = torch.randn(2, *size, 8, dtype=torch.float64)
    with torch.set_grad_enabled(grad):
        torch.testing.assert_close(layer(x), loop_channel_attention(layer, x))


def test_channel_attention_both_ways_in_float32() -> None:
    """The Gram form loses no digits that the definition keeps, at the published width and size."""
    layer = fill_(ChannelAttention(96, 3))
    x = torch.randn(2, 56, 56, 96, generator=torch.Generator().manual_seed(0)) / 8
    with torch.no_grad():
        assert layer._gram_is_faster(x.flatten(1, 2))
        gram, tokens = layer(x).flatten(1, 2), layer._by_tokens(x.flatten(1, 2))
        exact = layer.double()._by_tokens(x.double().flatten(1, 2))
    assert (gram - exact).abs().max() < max(3 * (tokens - exact).abs().max(), 1e-5 * exact.std())


def loop_window_attention(layer: PlainWindowAttention, x: Tensor) -> Tensor:
    """One cell at a time: zeros after the norm to whole windows, attended to, no bias, no mask."""
    B, H, W, C = x.shape
    M, d = layer.window, C // layer.heads
    Hp, Wp = -(-H // M) * M, -(-W // M) * M
    padded = torch.zeros(B, Hp, Wp, C, dtype=x.dtype)
    padded[:, :H, :W] = x
    qkv = layer.qkv(padded).reshape(B, Hp, Wp, 3, layer.heads, d)
    out = torch.zeros(B, H, W, layer.heads, d, dtype=x.dtype)
    for b in range(B):
        for y in range(H):
            for z in range(W):
                cells = qkv[b, y // M * M : y // M * M + M, z // M * M : z // M * M + M].flatten(0, 1)
                for h in range(layer.heads):
                    scores = cells[:, 1, h] @ qkv[b, y, z, 0, h] * d**-0.5
                    out[b, y, z, h] = scores.softmax(0) @ cells[:, 2, h]
    return layer.proj(out.flatten(3))


@pytest.mark.parametrize("size", [(3, 3), (6, 3), (5, 7), (2, 1)])
@pytest.mark.parametrize("grad", [False, True])
def test_window_attention_equals_a_loop(size: tuple[int, int], grad: bool) -> None:
    torch.manual_seed(0)
    layer = fill_(PlainWindowAttention(8, 2, window=3, qkv_bias=True).double())
    x = torch.randn(2, *size, 8, dtype=torch.float64)
    with torch.set_grad_enabled(grad):
        torch.testing.assert_close(layer(x), loop_window_attention(layer, x))


@pytest.mark.parametrize("overlapped", [False, True])
@pytest.mark.parametrize("size", [(4, 6), (5, 3), (1, 2)])
def test_merging_is_a_padded_convolution(overlapped: bool, size: tuple[int, int]) -> None:
    layer = fill_(davit.Merging(6, 10, overlapped=overlapped).double())
    x = torch.randn(2, *size, 6, dtype=torch.float64)
    want = F.pad(layer.norm(x).permute(0, 3, 1, 2), (0, size[1] % 2, 0, size[0] % 2))
    want = F.conv2d(want, layer.conv.weight, layer.conv.bias, stride=2, padding=int(overlapped))
    torch.testing.assert_close(layer(x), want.permute(0, 2, 3, 1))


def test_block_adds_to_the_map_with_its_positions() -> None:
    block = fill_(davit.DualBlock(8, ChannelAttention(8, 2), mlp_ratio=2.0, drop_path=0.0).double())
    x = torch.randn(2, 5, 4, 8, dtype=torch.float64)

    def near(y: Tensor, i: int) -> Tensor:
        conv = block.positions[i].conv
        return y + F.conv2d(y.permute(0, 3, 1, 2), conv.weight, conv.bias, padding=1, groups=8).permute(0, 2, 3, 1)

    y = near(x, 0)
    y = near(y + block.token_mixer(F.layer_norm(y, (8,), block.norm1.weight, block.norm1.bias)), 1)
    mlp = block.channel_mixer
    y = y + mlp.fc2(F.gelu(mlp.fc1(F.layer_norm(y, (8,), block.norm2.weight, block.norm2.bias))))
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            torch.testing.assert_close(block(x), y)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_gelu_in_place_is_gelu(dtype: torch.dtype) -> None:
    x = torch.randn(100, dtype=dtype)
    want = F.gelu(x)
    assert torch.equal(GELU()(x), want)
    with torch.no_grad():
        assert torch.equal(GELU()(x), want)


@pytest.mark.parametrize("grad", [False, True])
def test_images_do_not_mix(grad: bool) -> None:
    model = fill_(little().double())
    images = torch.randn(2, 3, 70, 53, dtype=torch.float64)
    with torch.set_grad_enabled(grad):
        together = model(images)
        for i, image in enumerate(images):
            for joint, single in zip(together, model(image[None]), strict=True):
                torch.testing.assert_close(joint[i], single[0])


@pytest.mark.parametrize("size", [(101, 67), (97, 98), (1, 5)])
@pytest.mark.parametrize("overlapped", [False, True])
def test_any_size(size: tuple[int, int], overlapped: bool) -> None:
    """Zeros at the bottom and right: of an image to whole cells, so an image with them drawn in is the same."""
    model = fill_(little(overlapped=overlapped).double())
    image = torch.randn(1, 3, *size, dtype=torch.float64)
    h, w = (-(-n // 4) for n in size)
    with torch.no_grad():
        pyramid = model(image)
        drawn = model(F.pad(image, (0, -size[1] % 4, 0, -size[0] % 4)))
    for level, same in zip(pyramid, drawn, strict=True):
        assert tuple(level.shape[2:]) == (h, w)
        assert torch.equal(level, same)
        h, w = -(-h // 2), -(-w // 2)


def test_dense_form_norms_what_it_gives_out_only() -> None:
    plain, dense = fill_(little().double()), fill_(little(norms=(0, 2)).double())
    dense.load_state_dict(plain.state_dict(), strict=False)
    image = torch.randn(1, 3, 50, 41, dtype=torch.float64)
    with torch.no_grad():
        pairs = list(zip(plain(image), dense(image), dense.norms, strict=True))
    for i, (raw, level, norm) in enumerate(pairs):
        want = norm(raw.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        torch.testing.assert_close(level, want)
        assert torch.equal(raw, level) == (i == 1)


def test_head_pools_before_its_norm() -> None:
    model = fill_(registry.classifier(little(), 5).double())
    image = torch.randn(2, 3, 40, 40, dtype=torch.float64)
    last, norm = model.backbone(image)[-1], model.head.norm
    want = F.layer_norm(last.mean((2, 3)), (48,), norm.weight, norm.bias, 1e-5)
    torch.testing.assert_close(model(image), model.head.fc(want))


def test_one_training_step() -> None:
    torch.manual_seed(0)
    model = registry.classifier(little(drop_path=0.1), 5).train()
    F.cross_entropy(model(torch.randn(2, 3, 64, 45)), torch.tensor([1, 4])).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()] == []


def test_initialisation_and_drop_path() -> None:
    torch.manual_seed(0)
    model = registry.create("davit/tiny", drop_path=0.22)
    rates = [b.drop_path.p for s in model.stages for pair in s.pairs for b in pair]
    assert rates == pytest.approx([0.02 * i for i in range(12)])
    block = model.stages[3].pairs[0][1]
    assert block.channel_mixer.fc1.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert not block.token_mixer.qkv.bias.any()
    merge = model.stages[3].merge.conv.weight  # the framework's: uniform within fan-in ** -0.5
    assert merge.std().item() == pytest.approx((3 * 4 * 384) ** -0.5, rel=0.02)


def test_state_round_trip(tmp_path: Path) -> None:
    model, fresh = fill_(little(norms=(0, 1, 2))), little(norms=(0, 1, 2)).eval()
    save(model, tmp_path / "w.safetensors")
    load(fresh, tmp_path / "w.safetensors")
    image = torch.randn(1, 3, 50, 41)
    with torch.no_grad():
        for a, b in zip(model(image), fresh(image), strict=True):
            assert torch.equal(a, b)


def test_bfloat16_is_finite() -> None:
    model = registry.classifier(little(), 5).eval().to(torch.bfloat16)
    with torch.no_grad():
        logits = model(torch.randn(2, 3, 75, 60, dtype=torch.bfloat16))
    assert logits.dtype == torch.bfloat16
    assert torch.isfinite(logits).all()


def test_settings_that_do_not_fit() -> None:
    with pytest.raises(SettingError, match="4 dims, 3 depths and 4 heads"):
        registry.create("davit/tiny", depths=(1, 1, 1))
    with pytest.raises(SettingError, match="do not divide into heads: 384 by 10"):
        registry.create("davit/tiny", heads=(3, 6, 10, 24))
    with pytest.raises(SettingError, match="patches of 4 pixels, got 2"):
        davit.from_published({"patch_size": 2}, {})


def test_published_checkpoint(tmp_path: Path) -> None:
    """A file as the trainer saves it."""
    fixture = Fixture.read(PARITY / "davit--tiny.json")
    torch.save({"epoch": 309, "arch": "DaViT", "state_dict": fixture.state_dict()}, tmp_path / "davit_t.pth")
    model = load_published("davit/tiny", tmp_path / "davit_t.pth")
    with torch.no_grad():
        fixture.compare("logits", model(fixture.input()), 1e-3)


def test_dense_file_gives_the_backbone(tmp_path: Path) -> None:
    fixture = Fixture.read(PARITY / "davit--tiny-dense.json")
    torch.save({"state_dict": {f"backbone.{n}": v for n, v in fixture.state_dict().items()}}, tmp_path / "dense.pth")
    model = load_published("davit/tiny", tmp_path / "dense.pth", prefix="backbone.")
    assert model.config.norms == (0, 1, 2, 3)
    with torch.no_grad():
        fixture.compare("stage4", model(fixture.input())[3], 1e-3)


def test_timm_file(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    theirs = fill_(timm.models.davit.DaVit(depths=(1, 1), embed_dims=(32, 64), num_heads=(1, 2), num_classes=7))
    torch.save(theirs.state_dict(), tmp_path / "timm.pth")
    model = load_published("davit/tiny", tmp_path / "timm.pth", dims=(32, 64), depths=(1, 1), heads=(1, 2))
    image = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model(image), theirs(image), rtol=1e-3, atol=1e-3)


def test_arguments_and_shapes_give_the_settings() -> None:
    names = {n: tuple(s) for n, s in Fixture.read(PARITY / "davit--tiny-dense.json").state.items()}
    seen = davit.from_published({"window_size": 12, "drop_path_rate": 0.2}, names, davit.VARIANTS["base"])
    assert (seen.dims, seen.depths, seen.heads) == ((96, 192, 384, 768), (1, 1, 3, 1), (3, 6, 12, 24))
    assert (seen.norms, seen.window, seen.drop_path, seen.overlapped) == ((0, 1, 2, 3), 12, 0.2, False)
    config = davit.DaViTConfig(
        in_channels=5, dims=(16, 24), depths=(1, 2), heads=(4, 2), overlapped=True, qkv_bias=False, mlp_ratio=3.0
    )
    ours = registry.classifier(davit.build(config), 4).state_dict()
    theirs = {n: tuple(v.shape) for n, v in published_names(ours).items()}
    assert davit.from_published({"num_heads": [4, 2]}, theirs, davit.DaViTConfig()) == config


def published_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our names as the authors write them."""
    out = {}
    for name, value in state.items():
        for ours, theirs in (
            ("backbone.stages.", "stages."), (".token_mixer.", ".attn."), (".channel_mixer.", ".mlp."),
            ("head.norm.", "norms."), ("head.fc.", "head."), (".positions.", ".cpe."), (".pairs.", "."),
        ):  # fmt: skip
            name = name.replace(ours, theirs)
        if name.startswith("stages."):
            merging = ".merge." in name
            name = name.replace("stages.", "patch_embeds." if merging else "main_blocks.", 1).replace(".merge.", ".")
            name = name.replace(".conv.", ".proj.")
        out[name] = value
    return out


@pytest.mark.slow
@pytest.mark.parametrize("norms", [(), (0, 1, 2)])
def test_compiles_whole(norms: tuple[int, ...]) -> None:
    torch._dynamo.reset()
    model = fill_(little(norms=norms))
    image = torch.randn(2, 3, 96, 70)
    with torch.no_grad():
        for a, b in zip(torch.compile(model, fullgraph=True)(image), model(image), strict=True):
            torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-3)
