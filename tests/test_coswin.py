"""CoSwin: its block against a loop over windows, sizes, training, published files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from parity import Fixture, made_input
from torch import Tensor, nn

from core import registry, weights
from core.backbones import coswin
from core.backbones.coswin import ConvBranch, CoSwin, CoSwinBlock, CoSwinConfig
from core.errors import SettingError, ShapeError, WeightsError
from core.layers.mlp import MLP
from core.mixers.window import WindowAttention

VECTOR = Path(__file__).parent / "parity" / "coswin--cifar100.json"
SMALL = CoSwinConfig(dim=16, depths=(2, 2, 2), heads=(2, 4, 4), drop_path=0.0)


def by_loop(block: CoSwinBlock, x: Tensor, window: int, shift: int) -> Tensor:
    """The block on a map that the window divides, one image, window and head at a time."""
    B, H, W, C = x.shape
    m = block.token_mixer
    d = C // m.heads
    out = torch.empty_like(x)
    cells = [(y, z) for y in range(window) for z in range(window)]
    for b in range(B):
        image = x[b].permute(2, 0, 1)[None]
        hidden = F.conv2d(image, block.conv.conv1.weight, block.conv.conv1.bias, padding=1).relu()
        c = F.conv2d(hidden, block.conv.conv2.weight, block.conv.conv2.bias, padding=1)[0].permute(1, 2, 0)
        normed = F.layer_norm(x[b], (C,), block.norm1.weight, block.norm1.bias)
        q, k, v = F.linear(normed, m.qkv.weight, m.qkv.bias).split(C, -1)
        a = torch.empty(H, W, C, dtype=x.dtype)
        for top in range(0, H, window):
            for left in range(0, W, window):
                rolled = [(top + y, left + z) for y, z in cells]
                at = [((y + shift) % H, (z + shift) % W) for y, z in rolled]
                region = [
                    ((y >= H - window) + (y >= H - shift), (z >= W - window) + (z >= W - shift)) for y, z in rolled
                ]
                if not shift:
                    region = [(0, 0)] * len(cells)
                for h in range(m.heads):
                    own = slice(h * d, (h + 1) * d)
                    logits = torch.empty(len(cells), len(cells), dtype=x.dtype)
                    for i, p in enumerate(at):
                        for j, r in enumerate(at):
                            dy, dx = cells[i][0] - cells[j][0], cells[i][1] - cells[j][1]
                            row = (dy + window - 1) * (2 * window - 1) + dx + window - 1
                            logits[i, j] = q[p][own] @ k[r][own] * d**-0.5 + m.bias_table[row, h]
                            logits[i, j] -= 100 * (region[i] != region[j])
                    mixed = logits.softmax(-1) @ torch.stack([v[r][own] for r in at])
                    for i, p in enumerate(at):
                        a[p][own] = mixed[i]
        first = x[b] + F.linear(a, m.proj.weight, m.proj.bias) + block.blend.sigmoid() * c
        out[b] = first + block.channel_mixer(F.layer_norm(first, (C,), block.norm2.weight, block.norm2.bias))
    return out


@pytest.mark.parametrize("size", [(6, 9), (3, 3)], ids=["6x9", "3x3"])
def test_block_is_the_loop_over_windows(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    block = CoSwinBlock(8, WindowAttention(8, 2, window=3, shift=1), MLP(8, ratio=2), 0.0).double()
    for p in block.parameters():
        nn.init.normal_(p, std=0.5)
    x = torch.randn(2, *size, 8, dtype=torch.float64)
    shift = 1 if min(size) > 3 else 0
    with torch.no_grad():
        torch.testing.assert_close(block(x), by_loop(block, x, 3, shift), rtol=0, atol=1e-10)


def test_conv_branch_reads_the_map_before_its_norm() -> None:
    block = CoSwinBlock(8, WindowAttention(8, 2, window=2), MLP(8), 0.0).double()
    nn.init.zeros_(block.token_mixer.proj.weight)
    nn.init.zeros_(block.channel_mixer.fc2.weight)
    for p in (block.conv.conv1.bias, block.conv.conv2.bias, block.token_mixer.proj.bias, block.channel_mixer.fc2.bias):
        nn.init.zeros_(p)
    x = torch.randn(1, 4, 4, 8, dtype=torch.float64)
    with torch.no_grad():  # without biases, convolutions and ReLU are homogeneous; a norm is not
        torch.testing.assert_close(block(3 * x), 3 * block(x))
        torch.testing.assert_close(block(x), x + 0.6224593312 * block.conv(x))


def test_one_draw_of_drop_path_covers_both_branches() -> None:
    torch.manual_seed(0)
    block = CoSwinBlock(8, WindowAttention(8, 2, window=2), MLP(8), 0.5).train()
    nn.init.zeros_(block.channel_mixer.fc2.weight)
    nn.init.zeros_(block.channel_mixer.fc2.bias)
    x = torch.randn(16, 2, 2, 8)
    with torch.no_grad():
        change = block(x) - x
        both = 2 * (block.token_mixer(block.norm1(x)) + block.blend.sigmoid() * block.conv(x))
    kept = change.flatten(1).any(1)
    assert 0 < kept.sum() < 16
    torch.testing.assert_close(change, both * kept[:, None, None, None], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("variant", "classes", "parameters"),
    [("patch2_32", 10, 23_460_300), ("patch2_32", 100, 23_494_950), ("patch4_64", 200, 23_536_906)],
)
def test_parameters_are_the_published_number(variant: str, classes: int, parameters: int) -> None:
    with torch.device("meta"):
        model = registry.create(f"coswin/{variant}", classes=classes)
    assert sum(p.numel() for p in model.parameters()) == parameters
    branches = [m for m in model.modules() if isinstance(m, ConvBranch)]
    assert sum(p.numel() for m in branches for p in m.parameters()) == 16_411_676
    assert sum(n.endswith(".blend") for n, _ in model.named_parameters()) == 12


def test_windows_and_shifts_follow_the_built_size() -> None:
    assert coswin.stage_windows(CoSwinConfig()) == [(4, 2), (4, 2), (4, 0)]
    assert coswin.stage_windows(CoSwinConfig(image_size=16)) == [(4, 2), (4, 0), (2, 0)]
    shifts = [[b.token_mixer.shift for b in s.blocks] for s in CoSwin(SMALL).stages]
    assert shifts == [[0, 2], [0, 2], [0, 0]]


def test_images_of_a_batch_do_not_mix() -> None:
    torch.manual_seed(0)
    model = CoSwin(SMALL).eval()
    images = torch.randn(2, 3, 44, 35)
    with torch.no_grad():
        together, alone = model(images), [model(i[None]) for i in images]
    for level, first, second in zip(together, *alone, strict=True):
        torch.testing.assert_close(level, torch.cat([first, second]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(32, 32), (45, 22), (1, 3)], ids=lambda s: f"{s[0]}x{s[1]}")
@pytest.mark.parametrize("absolute", [False, True])
def test_levels_of_any_size(size: tuple[int, int], absolute: bool) -> None:
    model = CoSwin(replace(SMALL, absolute=absolute, in_channels=5)).eval()
    with torch.no_grad():
        levels = model(torch.randn(1, 5, *size))
    for level, dim, stride in zip(levels, model.channels, model.strides, strict=True):
        assert level.shape == (1, dim, -(-size[0] // stride), -(-size[1] // stride))
        assert level.isfinite().all()


def test_one_step_of_training() -> None:
    torch.manual_seed(0)
    model = registry.classifier(CoSwin(replace(SMALL, absolute=True)), 10).train()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    image, target = torch.randn(4, 3, 32, 32), torch.arange(4)
    F.cross_entropy(model(image), target).backward()
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        assert p.grad.isfinite().all(), name
        assert p.grad.abs().sum() > 0, name
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimiser.step()
    assert all(not torch.equal(p, before[n]) for n, p in model.named_parameters())


def test_initialisation() -> None:
    torch.manual_seed(0)
    model = CoSwin(replace(SMALL, dim=32, drop_path=0.1))
    block = model.stages[2].blocks[1]
    assert float(block.token_mixer.qkv.weight.detach().std()) == pytest.approx(0.02, rel=0.05)
    assert not block.channel_mixer.fc1.bias.any()
    bound = (9 * block.conv.conv1.in_channels) ** -0.5  # the framework's: uniform within it
    assert float(block.conv.conv1.weight.detach().abs().max()) == pytest.approx(bound, rel=0.01)
    assert float(block.blend.detach()) == 0.5
    rates = [b.drop_path.p for s in model.stages for b in s.blocks]
    assert rates == pytest.approx([0, 0.02, 0.04, 0.06, 0.08, 0.1])


def test_state_round_trip(tmp_path: Path) -> None:
    first, second = CoSwin(SMALL).eval(), CoSwin(SMALL).eval()
    weights.save(first, tmp_path / "w.safetensors")
    weights.load(second, tmp_path / "w.safetensors")
    image = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(first(image), second(image), strict=True))


def test_bfloat16_is_finite() -> None:
    model = CoSwin(SMALL).to(torch.bfloat16).eval()
    image = torch.randn(1, 3, 34, 27, dtype=torch.bfloat16)
    with torch.no_grad():
        levels = model(image)
    assert all(level.dtype == torch.bfloat16 and level.isfinite().all() for level in levels)
    model.train()(image)[-1].float().square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_wrong_input_is_one_sentence() -> None:
    with pytest.raises(ShapeError, match=r"expected a tensor of shape \(B C=3 H W\), got \(1, 1, 32, 32\)"):
        CoSwin(SMALL)(torch.zeros(1, 1, 32, 32))
    with pytest.raises(SettingError, match="2 depths but 3 heads"):
        CoSwin(replace(SMALL, depths=(1, 1)))


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The authors' file: state, optimizer and epoch, and the buffers that their state carries."""
    vector = Fixture.read(VECTOR)
    state = vector.state_dict()
    for s in range(2):
        state[f"layers.{s}.blocks.1.attn_mask"] = torch.zeros(4, 16, 16)
    state["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(16, 16, dtype=torch.int64)
    path = tmp_path_factory.mktemp("coswin") / "cifar100.pt"
    torch.save({"model_state_dict": state, "optimizer_state_dict": {"param_groups": []}, "epoch": 99}, path)
    return path


def test_published_classifier(published: Path) -> None:
    vector = Fixture.read(VECTOR)
    model = weights.load_published("coswin/patch2_32", published)
    assert model.head.fc.out_features == 100
    with torch.no_grad():
        vector.compare("logits", model(vector.input()), 1e-3)
    with pytest.raises(WeightsError, match="has a head for 100 classes, 10 were asked for"):
        weights.load_published("coswin/patch2_32", published, classes=10)


def test_published_tables_are_resized_to_another_window(published: Path) -> None:
    vector = Fixture.read(VECTOR)
    with pytest.warns(UserWarning, match=r"bias_table and 11 more resized to the size that coswin/patch2_32 asks for"):
        model = weights.load_published("coswin/patch2_32", published, window=8, image_size=64)
    table = model.backbone.stages[0].blocks[1].token_mixer.bias_table
    old = vector.state_dict()["layers.0.blocks.1.attn.relative_position_bias_table"].T.reshape(1, 3, 7, 7)
    image = F.interpolate(old, size=(15, 15), mode="bicubic", align_corners=False)
    torch.testing.assert_close(table.detach(), image.reshape(3, 225).T)


def test_absolute_positions_are_read_and_resized() -> None:
    names = {n: tuple(s) for n, s in Fixture.read(VECTOR).state.items()}
    assert not coswin.from_published({}, names).absolute
    config = coswin.from_published({"embed_dim": 8, "qkv_bias": False}, names | {"absolute_pos_embed": (1, 256, 8)})
    assert (config.absolute, config.dim, config.qkv_bias) == (True, 8, True)
    (keymap,) = coswin.PUBLISHED
    model = CoSwin(replace(SMALL, absolute=True, image_size=48))
    change, fit = keymap.transform[r"^absolute_pos_embed$"], keymap.resize[r"merge\.positions$"]
    grid = change(torch.arange(256.0).view(1, 256, 1).expand(-1, -1, 16))
    assert grid[0, 3, 5, 0] == 3 * 16 + 5
    assert fit(grid, model.state_dict()["stages.0.merge.positions"], model).shape == (1, 24, 24, 16)


@pytest.mark.slow
@pytest.mark.parametrize("size", [(32, 32), (37, 26)], ids=lambda s: f"{s[0]}x{s[1]}")
def test_compiles_in_one_graph(size: tuple[int, int]) -> None:
    model = CoSwin(replace(SMALL, depths=(2, 1), heads=(2, 4))).eval()
    image = made_input((2, 3, *size))
    with torch.no_grad():
        for ours, plain in zip(torch.compile(model, fullgraph=True, dynamic=False)(image), model(image), strict=True):
            torch.testing.assert_close(ours, plain, rtol=1e-3, atol=1e-4)
