"""FcaFormer beyond its vectors: forward cross attention against a loop, windows, sizes, checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from parity import Fixture
from torch import Tensor, nn

from core import measure, registry
from core.backbones import fcaformer
from core.compression.fold import fold
from core.errors import SettingError, ShapeError, WeightsError
from core.layers.convnext import ConvNeXtBlock
from core.mixers.forward_cross import ForwardCrossAttention
from core.weights import load_published

COUNTS = {"l1": 6_187_560, "l2": 16_275_870, "l3": 27_894_484, "l4": 65_638_204}  # the card's
MACS = {"l1": 1.374, "l2": 3.602, "l3": 6.651, "l4": 14.492}  # the card's, 1e9, with queries that are thrown away
DENSE: dict[str, Any] = {"windows": (0, 0, 3, 2), "outputs": (8, 12, 20, 24)}
PARITY = Path(__file__).parent / "parity"


def little(**more: Any) -> Any:
    settings = {"dims": (8, 12, 16, 24), "depths": (1, 2, 4, 3), "heads": (0, 0, 2, 3), "image_size": 64} | more
    return lively(registry.create("fcaformer/l1", **settings))


def lively(model: nn.Module) -> Any:
    """With numbers in place of starts that hide errors: scales near 0, biases of 0, norms that do nothing."""
    torch.manual_seed(0)
    for p in model.parameters():
        p.data += torch.randn_like(p) * 0.3
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.normal_(m.running_mean, std=0.1)
            nn.init.uniform_(m.running_var, 0.5, 2)
    return model.eval()


@pytest.mark.parametrize("name", COUNTS)
def test_parameters_and_macs(name: str) -> None:
    assert set(COUNTS) == set(fcaformer.VARIANTS)
    model: Any = measure.on_meta(lambda: registry.create(f"fcaformer/{name}", classes=1000))
    assert sum(p.numel() for p in model.parameters()) == COUNTS[name]
    queries = 0
    for stage in model.backbone.stages[2:]:
        queries += sum(b.token_mixer.cross * b.token_mixer.dim**2 for b in stage.blocks)
    assert (measure.macs(model, (1, 3, 224, 224)) + queries) / 1e9 == pytest.approx(MACS[name], abs=6e-4)


def loop(layer: ForwardCrossAttention, image: Tensor, tokens: Tensor) -> Tensor:
    """One image (h, w, C), its tokens (n, C), one head and one query at a time, from the card."""
    h, w, C = image.shape
    d = C // layer.heads
    others = layer.cross_norm(tokens * layer.cross_scale[0]) if layer.cross else tokens
    rows = torch.cat([image.reshape(-1, C), others])
    q, k, v = layer.qkv(rows).view(-1, 3, layer.heads, d).unbind(1)
    out = torch.zeros(h * w, layer.heads, d, dtype=image.dtype)
    for head in range(layer.heads):
        for i in range(h * w):
            logits = []
            for j in range(len(rows)):
                if j < h * w:
                    bias = layer.bias_table[head, abs(i // w - j // w) * w + abs(i % w - j % w)]
                else:
                    bias = layer.cross_bias[0, head, 0, j - h * w]
                logits.append(q[i, head] @ k[j, head] * d**-0.5 + bias)
            out[i, head] = torch.stack(logits).softmax(0) @ v[:, head]
    return layer.proj(out.view(h, w, C))


@pytest.mark.parametrize("grid", [(3, 4), (2, 2), (1, 5)])
@pytest.mark.parametrize("cross", [0, 3])
def test_mixer_equals_a_loop(grid: tuple[int, int], cross: int) -> None:
    layer = lively(ForwardCrossAttention(12, 3, grid, cross=cross)).double()
    x, tokens = torch.randn(2, *grid, 12, dtype=torch.float64), torch.randn(2, cross, 12, dtype=torch.float64)
    given = tokens if cross else None
    with torch.no_grad():
        want = torch.stack([loop(layer, a, b) for a, b in zip(x, tokens, strict=True)])
        torch.testing.assert_close(layer(x, given), want)
    torch.testing.assert_close(layer(x, given), want)


def test_offsets_are_numbered_as_they_first_appear() -> None:
    """The published table's order, built as the card says it is."""
    grid = (3, 4)
    points = [(y, x) for y in range(grid[0]) for x in range(grid[1])]
    numbers: dict[tuple[int, int], int] = {}
    want = []
    for y, x in points:
        for v, u in points:
            want.append(numbers.setdefault((abs(y - v), abs(x - u)), len(numbers)))
    assert ForwardCrossAttention(4, 1, grid).bias_index.tolist() == want


def test_mixer_refuses_other_maps() -> None:
    layer = ForwardCrossAttention(12, 3, (2, 2), cross=3)
    with pytest.raises(ShapeError, match=r"2 x 2 with 3 tokens .* got 2 x 3 with 0"):
        layer(torch.zeros(1, 2, 3, 12))
    with pytest.raises(SettingError, match="5 heads"):
        ForwardCrossAttention(12, 5, (2, 2))


def test_convnext_block_is_its_parts() -> None:
    block = lively(ConvNeXtBlock(6, layer_scale=0.5))
    x = torch.randn(2, 5, 7, 6)
    y = F.conv2d(x.permute(0, 3, 1, 2), block.depthwise.weight, block.depthwise.bias, padding=3, groups=6)
    y = F.layer_norm(y.permute(0, 2, 3, 1), (6,), block.norm.weight, block.norm.bias, 1e-6)
    y = F.linear(y, block.channel_mixer.fc1.weight, block.channel_mixer.fc1.bias)
    y = F.linear(F.gelu(y), block.channel_mixer.fc2.weight, block.channel_mixer.fc2.bias)
    torch.testing.assert_close(block(x), x + y * block.scale.scale)


def map_stage(stage: Any, x: Tensor) -> Tensor:
    """A stage of FcaBlocks in windows, one image and one window at a time, from the card."""
    (h, w), history = stage.grid, dict[int, list[Tensor]]()
    for i, block in enumerate(stage.blocks):
        _, H, W, _ = x.shape
        down, right = -H % h, -W % w
        top, left = (0, 0) if i % 2 else (down, right)
        padded = F.pad(x, (0, 0, left, right - left, top, down - top))
        out = torch.empty_like(padded)
        for n, (y, z) in enumerate((y, z) for y in range(0, H + down, h) for z in range(0, W + right, w)):
            seen = history.setdefault(n, [])[-stage.remembered :]
            cells = padded[:, y : y + h, z : z + w]
            out[:, y : y + h, z : z + w], own = block(cells, torch.cat(seen, 1) if seen else None)
            history[n].append(own)
        x = out[:, top : top + H, left : left + W]
    return x


@pytest.mark.parametrize("size", [(6, 9), (7, 5), (2, 1), (1, 8)])
def test_windows_alternate_and_tokens_follow_their_number(size: tuple[int, int]) -> None:
    stage = little(**DENSE, remembered=2).stages[2]
    stage.merge = nn.Identity()
    x = torch.randn(2, *size, 16)
    with torch.no_grad():
        torch.testing.assert_close(stage(x), map_stage(stage, x), rtol=1e-4, atol=1e-4)


def test_block_has_no_shortcut_around_its_convolution() -> None:
    block = little().stages[3].blocks[0]
    nn.init.zeros_(block.scale1.scale)
    nn.init.zeros_(block.scale2.scale)
    x = torch.randn(1, 2, 2, 24)
    with torch.no_grad():
        y, tokens = block(x, None)
        torch.testing.assert_close(y, block.local(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
        torch.testing.assert_close(tokens, block.compact(x.permute(0, 3, 1, 2)).flatten(2).transpose(1, 2))


def test_a_block_sees_the_last_ones_only() -> None:
    stage = little(remembered=2, image_size=128).stages[2]
    tokens = 2 * 2  # of a map of 8 x 8
    assert [b.token_mixer.cross for b in stage.blocks] == [0, tokens, 2 * tokens, 2 * tokens]
    assert stage.blocks[-1].compact is None
    with torch.no_grad():
        x = torch.randn(1, 16, 16, 12)
        want = stage(x)
        stage.blocks[0].compact.weight.add_(1)  # seen by the two after it
        assert (stage(x) - want).abs().max() > 1e-4
        stage.blocks[0].compact.weight.sub_(1)
        stage.blocks[1].token_mixer.cross_scale.neg_()
        assert (stage(x) - want).abs().max() > 1e-4


def test_image_of_another_shape() -> None:
    model = little(image_size=(64, 96))
    with torch.no_grad():
        assert [tuple(level.shape[2:]) for level in model(torch.randn(2, 3, 64, 96))] == [
            (16, 24), (8, 12), (4, 6), (2, 3),
        ]  # fmt: skip
        with pytest.raises(ShapeError, match=r"built for 64 x 96 pixels, got 96 x 64: .*image_size=\(96, 64\)"):
            model(torch.randn(1, 3, 96, 64))


@pytest.mark.parametrize("size", [(75, 43), (9, 200), (64, 64)])
def test_dense_form_takes_any_size(size: tuple[int, int]) -> None:
    model = little(**DENSE)
    assert model.channels == (8, 12, 20, 24)
    with torch.no_grad():
        a, b = torch.randn(2, 1, 3, *size)
        both = model(torch.cat([a, b]))
        for stride, width, level, alone in zip((4, 8, 16, 32), model.channels, both, model(b), strict=True):
            assert level.shape[1:] == (width, *(-(-n // stride) for n in size))
            torch.testing.assert_close(level[1:], alone, rtol=1e-3, atol=1e-3)


def test_one_window_is_the_whole_map() -> None:
    """So that the weights for 224 pixels serve the dense form, as published."""
    whole = little(image_size=96)
    cut = little(windows=(0, 0, 6, 3))
    cut.load_state_dict(whole.state_dict())
    with torch.no_grad():
        image = torch.randn(1, 3, 96, 96)
        for a, b in zip(whole(image), cut(image), strict=True):
            torch.testing.assert_close(a, b)


def test_folded_network_answers_the_same() -> None:
    model = registry.classifier(little(**DENSE), 5).double().eval()
    image = torch.randn(2, 3, 50, 71, dtype=torch.float64)
    with torch.no_grad():
        folded = fold(model)
        torch.testing.assert_close(folded(image), model(image))
    assert not [n for n, m in folded.named_modules() if isinstance(m, nn.BatchNorm2d)]


def test_start_and_rates() -> None:
    model = registry.create("fcaformer/l1", drop_path=0.11)
    blocks = [b for stage in model.stages for b in stage.blocks]
    assert [round(b.drop_path.p, 3) for b in blocks] == [round(0.01 * i, 3) for i in range(12)]
    assert model.stages[2].blocks[1].scale1.scale.detach().tolist() == pytest.approx([1e-6] * 192)
    weight = model.stages[2].blocks[1].channel_mixer.fc1.weight
    assert float(weight.detach().std()) == pytest.approx(0.02, rel=0.1)
    assert not model.stages[0].blocks[0].depthwise.bias.any()


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The authors' form: their names and wrapper, with the index of offsets that a state dict may hold."""
    state = Fixture.read(PARITY / "fcaformer--l1-224.json").state_dict()
    state["layer_3.blocks.0.attention_bias_idxs"] = torch.zeros(49, 49, dtype=torch.long)
    path = tmp_path_factory.mktemp("fcaformer") / "fcaformer_l1.pth"
    torch.save({"model": state}, path)
    return path


def test_published_checkpoint(published: Path) -> None:
    fixture = Fixture.read(PARITY / "fcaformer--l1-224.json")
    with torch.no_grad():
        fixture.compare("logits", load_published("fcaformer/l1", published)(fixture.input()), 1e-3)
    with pytest.raises(WeightsError, match="fcaformer/l2"):
        load_published("fcaformer/l2", published)
    with pytest.raises(WeightsError, match=r"bias_table: \(6, 196\) in the file, \(6, 64\)"):
        load_published("fcaformer/l1", published, image_size=128)


def test_dense_checkpoint_into_windows(published: Path) -> None:
    model = load_published("fcaformer/l1", published, windows=(0, 0, 14, 7))
    with torch.no_grad():
        assert model(torch.randn(1, 3, 100, 130)).shape == (1, 1000)
    dense = Fixture.read(PARITY / "fcaformer--dense-l1-232x296.json")
    torch.save({"state_dict": dense.state_dict()}, published.with_name("dense.pth"))
    model = load_published("fcaformer/l1", published.with_name("dense.pth"))
    with torch.no_grad():
        dense.compare("stage4", model(dense.input())[3], 1e-3)


def test_arguments_and_shapes() -> None:
    names = dict(Fixture.read(PARITY / "fcaformer--l1-224.json").state)
    config = fcaformer.from_published({"factory": "fcaformer_l1"}, names)
    assert (config.image_size, config.windows, config.remembered) == (224, (), 12)
    assert config.depths == (2, 2, 6, 2)
    wide = names | {"layer_2.blocks.0.attention_biases": [6, 12 * 16], "layer_3.blocks.0.attention_biases": [10, 48]}
    assert fcaformer.from_published({"img_size": [192, 256]}, wide).image_size == (192, 256)
    assert fcaformer.from_published({}, wide).image_size == 224  # nothing says which side is which
    larger = names | {"layer_2.blocks.0.attention_biases": [6, 24 * 24]}
    assert fcaformer.from_published({}, larger).image_size == 384
    short = names | {f"layer_2.blocks.{i}.s_scale_factors": [1, 16 * min(i, 3), 1] for i in range(1, 6)}
    assert fcaformer.from_published({}, short).remembered == 3
    dense = Fixture.read(PARITY / "fcaformer--dense-l1-232x296.json")
    config = fcaformer.from_published(dense.build, dense.state)
    assert (config.windows, config.outputs) == ((0, 0, 14, 7), (64, 128, 256, 512))
    assert fcaformer.from_published({"factory": "fcaformer_l3"}, {}).depths == (3, 6, 12, 3)


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(SettingError, match="one entry a stage, got 4, 3, 4"):
        little(depths=(1, 1, 1))
    with pytest.raises(SettingError, match="stages with heads, and no others, have windows"):
        little(windows=(7, 0, 14, 7))
    with pytest.raises(SettingError, match="sides that 32 divides"):
        little(image_size=100)
    with pytest.raises(SettingError, match="remembered=0"):
        little(remembered=0)
