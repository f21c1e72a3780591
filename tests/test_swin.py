"""Swin beyond its vectors: sizes, windows, tables, checkpoints in the authors' form."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from parity import Fixture, filled
from torch import nn

from core import registry
from core.backbones.swin import stage_windows
from core.errors import WeightsError
from core.layers.positions import relative_index
from core.mixers.window import WindowAttention, WindowMLP
from core.weights import load_published

COUNTS = {  # the card's measured ones, 1000 classes
    "tiny": 28_288_354, "small": 49_606_258, "base": 87_768_224, "base_384": 87_903_584, "large": 196_532_476,
    "large_384": 196_735_516, "tiny_c24": 28_306_432, "mlp_tiny_c24": 20_386_632, "mlp_tiny_c12": 21_152_072,
    "mlp_tiny_c6": 22_682_952, "mlp_base": 60_659_416,
}  # fmt: skip


def test_parameter_counts() -> None:
    assert set(COUNTS) == set(registry.family("swin").VARIANTS)
    for name, count in COUNTS.items():
        with torch.device("meta"):
            model = registry.create(f"swin/{name}", classes=1000)
        assert sum(p.numel() for p in model.parameters()) == count, name


def loop_attention(layer: WindowAttention, x: torch.Tensor, shift: int) -> torch.Tensor:
    """Window attention one query at a time, from the card: pad, roll, windows, bias, -100 between regions."""
    B, H, W, C = x.shape
    M, d = layer.window[0], C // layer.heads
    Hp, Wp = -(-H // M) * M, -(-W // M) * M
    padded = torch.zeros(B, Hp, Wp, C, dtype=x.dtype)
    padded[:, :H, :W] = x
    qkv = layer.qkv(padded).reshape(B, Hp, Wp, 3, layer.heads, d)
    out = torch.zeros(B, Hp, Wp, layer.heads, d, dtype=x.dtype)

    def region(i: int, n: int) -> int:
        return (i >= n - M) + (i >= n - shift) if shift else 0

    for b in range(B):
        for y in range(Hp):
            for z in range(Wp):
                ry, rz = (y - shift) % Hp, (z - shift) % Wp  # place after the roll
                keys = [(ry // M * M + i, rz // M * M + j) for i in range(M) for j in range(M)]
                for h in range(layer.heads):
                    q = qkv[b, y, z, 0, h]
                    scores, values = [], []
                    for ky, kz in keys:
                        k, v = qkv[b, (ky + shift) % Hp, (kz + shift) % Wp, 1:, h]
                        row = (ry % M - ky % M + M - 1) * (2 * M - 1) + rz % M - kz % M + M - 1
                        same = (region(ry, Hp), region(rz, Wp)) == (region(ky, Hp), region(kz, Wp))
                        scores.append(q @ k * d**-0.5 + layer.bias_table[row, h] - (0 if same else 100))
                        values.append(v)
                    out[b, y, z, h] = torch.stack(scores).softmax(0) @ torch.stack(values)
    return layer.proj(out[:, :H, :W].flatten(3))


@pytest.mark.parametrize(("size", "shift"), [((6, 6), 0), ((6, 9), 1), ((5, 7), 1), ((4, 7), 2)])
@pytest.mark.parametrize("grad", [False, True])
def test_window_attention_equals_a_loop(size: tuple[int, int], shift: int, grad: bool) -> None:
    torch.manual_seed(0)
    layer = WindowAttention(8, 2, window=3, shift=shift, shift_single=True).double()
    x = torch.randn(2, *size, 8, dtype=torch.float64)
    with torch.set_grad_enabled(grad):
        torch.testing.assert_close(layer(x), loop_attention(layer, x, shift))


@pytest.mark.parametrize(("size", "shift"), [((6, 6), 0), ((6, 9), 1), ((5, 7), 2)])
def test_window_mlp_equals_a_loop(size: tuple[int, int], shift: int) -> None:
    torch.manual_seed(0)
    layer = WindowMLP(4, 2, window=3, shift=shift).double()
    nn.init.normal_(layer.bias)
    x = torch.randn(2, *size, 4, dtype=torch.float64)
    got, (B, H, W, C), M = layer(x), x.shape, 3
    before = M - shift if shift else 0  # zeros at the top and left; windows start there
    Hp, Wp = -(-H // M) * M + (M if shift else 0), -(-W // M) * M + (M if shift else 0)
    padded = torch.zeros(B, Hp, Wp, C, dtype=x.dtype)
    padded[:, before : before + H, before : before + W] = x
    for y in range(H):
        for z in range(W):
            py, pz = y + before, z + before
            cell = (py % M) * M + pz % M
            window = padded[:, py // M * M :][:, :M, pz // M * M :][:, :, :M].reshape(B, M * M, 2, 2)
            want = torch.einsum("hk,bkhd->bhd", layer.weight[:, cell], window) + layer.bias[:, cell, None]
            torch.testing.assert_close(got[:, y, z], want.flatten(1))


def test_relative_index_is_the_difference() -> None:
    index = relative_index((2, 3))
    assert index.shape == (6, 6)
    for i in range(6):
        for j in range(6):
            assert index[i, j] == (i // 3 - j // 3 + 1) * 5 + i % 3 - j % 3 + 2


def test_classification_windows_shrink_with_the_built_size() -> None:
    config = registry.family("swin").VARIANTS["tiny"]
    assert stage_windows(config) == [(7, True), (7, True), (7, True), (7, False)]
    small = registry.changed(config, {"image_size": 64}, "swin/tiny")
    assert stage_windows(small) == [(7, True), (7, True), (4, False), (2, False)]
    dense = registry.changed(config, {"image_size": 64, "dense": True}, "swin/tiny")
    assert [w for w, _ in stage_windows(dense)] == [7, 7, 7, 7]


@pytest.mark.parametrize("variant", ["tiny", "mlp_tiny_c24"])
@pytest.mark.parametrize("dense", [False, True])
def test_any_size(variant: str, dense: bool) -> None:
    model = registry.create(f"swin/{variant}", depths=(2, 2, 2, 2), dense=dense).eval()
    with torch.no_grad():
        pyramid = model(torch.randn(1, 3, 101, 67))
    assert [tuple(p.shape[2:]) for p in pyramid] == [(26, 17), (13, 9), (7, 5), (4, 3)]
    assert all(torch.isfinite(p).all() for p in pyramid)


def test_absolute_positions_follow_the_size() -> None:
    model = registry.create("swin/tiny", depths=(1, 1), heads=(3, 6), absolute=True, image_size=(64, 48)).eval()
    table = model.stages[0].merge.positions
    assert table.shape == (1, 16, 12, 96)
    image = torch.randn(1, 3, 96, 96)
    with torch.no_grad():
        before = model(image)[0]
        table.copy_(torch.randn_like(table))
        want = nn.functional.interpolate(table.permute(0, 3, 1, 2), (24, 24), mode="bicubic").permute(0, 2, 3, 1)
        stem = model.stages[0].merge
        torch.testing.assert_close(stem(image) - stem.patches(image), want)
        assert not torch.allclose(model(image)[0], before)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Fixture]:
    """A file as the authors save it: under "model", with the derived buffers beside the weights."""
    fixture = Fixture.read(Path(__file__).parent / "parity" / "swin--tiny.json")
    state = fixture.state_dict()
    state["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(49, 49, dtype=torch.long)
    state["layers.0.blocks.1.attn_mask"] = torch.zeros(64, 49, 49)
    path = tmp_path_factory.mktemp("swin") / "swin_tiny_patch4_window7_224.pth"
    torch.save({"model": state, "epoch": 300}, path)
    return path, fixture


def test_published_checkpoint(published: tuple[Path, Fixture]) -> None:
    path, fixture = published
    model = load_published("swin/tiny", path).double()
    with torch.no_grad():
        fixture.compare("logits", model(fixture.input().double()))


def test_published_checkpoint_in_timms_names(published: tuple[Path, Fixture], tmp_path: Path) -> None:
    path, _ = published
    state = {}
    for name, value in torch.load(path)["model"].items():
        parts = name.split(".")
        if parts[2:3] == ["downsample"]:
            parts[1] = str(int(parts[1]) + 1)
        state[".".join(parts).replace("head.", "head.fc.")] = value
    torch.save(state, tmp_path / "timm.pth")
    ours, theirs = load_published("swin/tiny", path), load_published("swin/tiny", tmp_path / "timm.pth")
    for name, value in ours.state_dict().items():
        assert torch.equal(value, theirs.state_dict()[name]), name


def test_other_window_resizes_the_tables(published: tuple[Path, Fixture]) -> None:
    path, _ = published
    with pytest.warns(UserWarning, match=r"bias_table and 11 more resized to the size that swin/base_384"):
        model = load_published("swin/base_384", path, dim=96, depths=(2, 2, 6, 2), heads=(3, 6, 12, 24))
    table = filled("layers.0.blocks.0.attn.relative_position_bias_table", (169, 3))
    want = nn.functional.interpolate(table.T.reshape(1, 3, 13, 13), (23, 23), mode="bicubic").reshape(3, 529).T
    torch.testing.assert_close(model.backbone.stages[0].blocks[0].token_mixer.bias_table, want)
    with pytest.raises(WeightsError, match=r"swin_tiny.*bias_table: \(169, 3\) in the file, \(529, 3\) in the network"):
        load_published("swin/base_384", path, dim=96, depths=(2, 2, 6, 2), heads=(3, 6, 12, 24), resize=False)


def test_other_class_count(published: tuple[Path, Fixture]) -> None:
    path, _ = published
    with pytest.raises(WeightsError, match=r"has a head for 1000 classes, 5 were asked for.*new_head=True"):
        load_published("swin/tiny", path, classes=5)
    model = load_published("swin/tiny", path, classes=5, new_head=True)
    assert not model.head.fc.weight.any()
    torch.testing.assert_close(model.head.norm.weight, filled("norm.weight", (768,)))
    with torch.no_grad():
        assert model(torch.randn(1, 3, 64, 64)).tolist() == [[0.0] * 5]


def test_dense_file_gives_the_backbone(tmp_path: Path) -> None:
    fixture = Fixture.read(Path(__file__).parent / "parity" / "swin--tiny-dense.json")
    torch.save({"state_dict": {f"module.{n}": v for n, v in fixture.state_dict().items()}}, tmp_path / "dense.pth")
    model = load_published("swin/tiny", tmp_path / "dense.pth").double()
    assert model.config.dense
    with torch.no_grad():
        fixture.compare("stage4", model(fixture.input().double())[3])


def test_initialisation() -> None:
    torch.manual_seed(0)
    block = registry.create("swin/tiny").stages[2].blocks[0]
    assert abs(block.channel_mixer.fc1.weight.std().item() - 0.02) < 5e-4
    assert not block.token_mixer.qkv.bias.any()
    assert abs(block.token_mixer.bias_table.std().item() - 0.02) < 2e-3
    rates = [b.drop_path.p for s in registry.create("swin/tiny").stages for b in s.blocks]
    assert rates == pytest.approx([0.2 * i / 11 for i in range(12)])


def test_nothing_derived_is_in_the_state() -> None:
    layer = WindowAttention(8, 2, window=3, shift=1)
    assert set(layer.state_dict()) == {"bias_table", "qkv.weight", "qkv.bias", "proj.weight", "proj.bias"}
    assert layer.double().masks.dtype == torch.float64
