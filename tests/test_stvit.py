"""STViT-R beyond its vectors: blocks and masks against loops, options, sizes, checkpoints in the authors' form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from parity import Fixture, filled
from torch import Tensor

from core import registry
from core.backbones import stvit
from core.compression.fold import fold
from core.errors import SettingError, ShapeError, WeightsError
from core.layers.mlp import MLP
from core.mixers.dumbbell import DenseDumbbell, Dumbbell, DumbbellSettings
from core.mixers.semantic_tokens import (
    HIDDEN,
    CrossAttention,
    GenerationBlock,
    LocalTokenBlock,
    NeighbourBlock,
    TokenBlock,
    key_mask,
    pooled,
)
from core.weights import load_published

COUNTS = {"r_swin_small": 49_625_518, "r_swin_base": 87_812_336}  # the card's
PARITY = Path(__file__).parent / "parity"
PICTURE = "stvit--stvit-r-swin-s.json"
DETECTOR = "stvit--stvit-r-det-narrow-198x270.json"
TINY = {"dim": 8, "depths": (1, 1, 2, 1), "heads": (1, 2, 4, 4)}


def little(**more: Any) -> Any:
    return registry.create("stvit/r_swin_small", **(TINY | more))


def stirred(module: torch.nn.Module) -> Any:
    """Every parameter random, so that norms, layer scales and biases count; float64, evaluation."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return module.double().eval()


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts(name: str) -> None:
    assert set(COUNTS) == set(stvit.VARIANTS)
    with torch.device("meta"):
        model = registry.create(f"stvit/{name}", classes=1000)
        assert sum(p.numel() for p in model.parameters()) == COUNTS[name]
        if name == "r_swin_small":
            detector = registry.create(f"stvit/{name}", dense=True)
            assert sum(p.numel() for p in detector.parameters()) == 48_857_862


# --- parts against plain loops -------------------------------------------------------------------------------------


def attention(layer: CrossAttention, queries: Tensor, keys: Tensor, add: Tensor | None = None) -> Tensor:
    """One query and one head at a time: (T, C), (K, C) of normed tokens -> (T, C); `add` (T, heads, K) to logits."""
    d = queries.shape[1] // layer.heads
    q = layer.q(queries).view(-1, layer.heads, d)
    k, v = layer.kv(keys).view(-1, 2, layer.heads, d).unbind(1)
    rows = []
    for t in range(len(queries)):
        out = []
        for h in range(layer.heads):
            logits = torch.stack([q[t, h] @ k[j, h] * d**-0.5 for j in range(len(keys))])
            weights = (logits if add is None else logits + add[t, h]).softmax(0)
            out.append(sum(weights[j] * v[j, h] for j in range(len(keys))))
        rows.append(torch.cat(out))
    return layer.proj(torch.stack(rows))


def relative(layer: CrossAttention, side: int) -> Tensor:
    """Position biases (T, heads, T) of a square grid of tokens."""
    cells = [(y, x) for y in range(side) for x in range(side)]
    span = 2 * side - 1
    rows = [[layer.bias_table[(a[0] - b[0] + side - 1) * span + a[1] - b[1] + side - 1] for b in cells] for a in cells]
    return torch.stack([torch.stack(row) for row in rows]).transpose(1, 2)


def finished(block: TokenBlock, shortcut: Tensor | float, attended: Tensor) -> Tensor:
    x = shortcut + block.scale1.scale * attended
    return x + block.scale2.scale * block.channel_mixer(block.norm2(x))


@pytest.mark.parametrize(("window", "sample"), [(7, 3), (5, 2), (4, 4), (3, 1)])
def test_pooling_is_adaptive_max_pooling_of_each_window(window: int, sample: int) -> None:
    x = random(2, 2 * window, 3 * window, 5)
    got = pooled(x, window, sample)
    assert got.shape == (2, 2 * sample, 3 * sample, 5)
    for i in range(2):
        for j in range(3):
            part = x[:, i * window : (i + 1) * window, j * window : (j + 1) * window].permute(0, 3, 1, 2)
            want = F.adaptive_max_pool2d(part, sample).permute(0, 2, 3, 1)
            torch.testing.assert_close(got[:, i * sample : (i + 1) * sample, j * sample : (j + 1) * sample], want)


@pytest.mark.parametrize("positions", [False, True])
@pytest.mark.parametrize("shortcut", [False, True])
def test_generation_equals_a_loop(shortcut: bool, positions: bool) -> None:
    """Per window: 9 pooled cells look at themselves and at 10x10 cells from offset 0 or 4, all through one norm."""
    block = stirred(
        GenerationBlock(
            4, CrossAttention(4, 2), MLP(4), window=7, sample=3, size=10, stride=4, shortcut=shortcut,
            positions=positions, drop_path=0.5,
        )
    )  # fmt: skip
    x = random(2, 14, 14, 4)
    with torch.no_grad():
        got = block(x)
        for b in range(2):
            for i in range(2):
                for j in range(2):
                    part = x[b, 7 * i : 7 * i + 7, 7 * j : 7 * j + 7].permute(2, 0, 1)
                    cells = F.adaptive_max_pool2d(part, 3)
                    if block.positions is not None:
                        c = block.positions
                        cells = cells + F.conv2d(cells[None], c.weight, c.bias, padding=1, groups=4)[0]
                    cells = cells.flatten(1).T
                    near = x[b, 4 * i : 4 * i + 10, 4 * j : 4 * j + 10].reshape(100, 4)
                    keys = block.norm1(torch.cat([cells, near]))
                    attended = attention(block.token_mixer, block.norm1(cells), keys)
                    want = finished(block, cells if shortcut else 0.0, attended)
                    torch.testing.assert_close(got[b, 3 * i : 3 * i + 3, 3 * j : 3 * j + 3].reshape(9, 4), want)


def test_generation_without_shortcut_is_never_dropped() -> None:
    block = GenerationBlock(
        4, CrossAttention(4, 2), MLP(4), window=7, sample=3, size=10, stride=4, shortcut=False, positions=False,
        drop_path=0.9999,
    )  # fmt: skip
    assert block.train()(random(1, 14, 14, 4).float()).abs().sum() > 0


def test_refinement_and_recovery_equal_a_loop() -> None:
    block = stirred(TokenBlock(4, CrossAttention(4, 2), MLP(4)))
    x, keys = random(2, 5, 4), random(2, 9, 4).flip(0)
    with torch.no_grad():
        for b in range(2):
            attended = attention(block.token_mixer, block.norm1(x[b]), block.norm1(keys[b]))
            torch.testing.assert_close(block(x, keys)[b], finished(block, x[b], attended))


@pytest.mark.parametrize("biased", [False, True])
def test_attention_of_tokens_equals_a_loop(biased: bool) -> None:
    s = random(2, 6, 6, 4)
    local = stirred(LocalTokenBlock(4, CrossAttention(4, 2, grid=(3, 3) if biased else None), MLP(4), sample=3))
    whole = stirred(TokenBlock(4, CrossAttention(4, 2, grid=(6, 6) if biased else None), MLP(4)))
    with torch.no_grad():
        near, far = local(s), whole(s.flatten(1, 2))
        for b in range(2):
            for i in (0, 3):
                for j in (0, 3):
                    tokens = s[b, i : i + 3, j : j + 3].reshape(9, 4)
                    q = local.norm1(tokens)
                    add = relative(local.token_mixer, 3) if biased else None
                    want = finished(local, tokens, attention(local.token_mixer, q, q, add))
                    torch.testing.assert_close(near[b, i : i + 3, j : j + 3].reshape(9, 4), want)
            q = whole.norm1(s[b].reshape(36, 4))
            add = relative(whole.token_mixer, 6) if biased else None
            want = finished(whole, s[b].reshape(36, 4), attention(whole.token_mixer, q, q, add))
            torch.testing.assert_close(far[b], want)


def published_mask(shape: tuple[int, int], down: int, right: int, size: int, window: int) -> Tensor:
    """From the card: the slices [-down:, -right:] (whole axes for 0), then a border, all of -1000."""
    mask = torch.zeros(shape)
    mask[-down:, -right:] = HIDDEN
    low = (size - window) // 2
    return F.pad(mask, (low, size - window - low) * 2, value=HIDDEN)


@pytest.mark.parametrize("missing", [(1, 4), (0, 4), (3, 0), (0, 0), (6, 6)])
@pytest.mark.parametrize(("ours", "theirs", "size", "shape"), [(3, 7, 14, (14, 21)), (7, 3, 9, (6, 9))])
def test_neighbours_equal_a_loop(
    missing: tuple[int, int], ours: int, theirs: int, size: int, shape: tuple[int, int]
) -> None:
    """Windows of queries look at patches of a map padded with zeros before the norm, under the published mask."""
    block = stirred(NeighbourBlock(4, CrossAttention(4, 2), MLP(4), ours=ours, theirs=theirs, size=size))
    grid = (2, 3)
    x, keys = random(1, 2 * ours, 3 * ours, 4), random(1, *shape, 4)
    mask = published_mask(shape, *missing, size, theirs).double()
    low = (size - theirs) // 2
    padded = F.pad(keys[0], (0, 0, low, size - theirs - low, low, size - theirs - low))
    with torch.no_grad():
        got = block(x, keys, key_mask(shape, missing, size, theirs))
        for i in range(grid[0]):
            for j in range(grid[1]):
                at = (slice(theirs * i, theirs * i + size), slice(theirs * j, theirs * j + size))
                tokens = x[0, ours * i : ours * i + ours, ours * j : ours * j + ours].reshape(-1, 4)
                add = mask[at].reshape(1, 1, -1).expand(len(tokens), 2, -1)
                near = block.norm1(padded[at].reshape(-1, 4))
                want = finished(block, tokens, attention(block.token_mixer, block.norm1(tokens), near, add))
                part = got[0, ours * i : ours * i + ours, ours * j : ours * j + ours].reshape(-1, 4)
                torch.testing.assert_close(part, want, rtol=1e-6, atol=1e-6)


def test_whole_mask_hides_border_and_padding() -> None:
    """Windows then give the same whatever lies in the hidden cells."""
    block = stirred(NeighbourBlock(4, CrossAttention(4, 2), MLP(4), ours=3, theirs=7, size=14))
    x, keys = random(1, 6, 6, 4), random(1, 14, 14, 4)
    other = keys.clone()
    other[:, 13:] = 5.0
    other[:, :, 10:] = -5.0
    with torch.no_grad():
        for published in (False, True):
            mask = key_mask((14, 14), (1, 4), 14, 7, published=published)
            same = torch.allclose(block(x, keys, mask), block(x, other, mask))
            assert same is not published
    assert key_mask((14, 14), (0, 0), 14, 7) is None
    border = key_mask((14, 14), (0, 0), 14, 7, published=False)
    assert border is not None
    # Of 14 rows the upper windows' patches lose 3 to the border, the lower windows' 4; columns likewise.
    assert (border == 0).sum() == 11 * 11 + 2 * 11 * 10 + 10 * 10


# --- the stage -----------------------------------------------------------------------------------------------------


class Nothing(torch.nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


def test_rounds_of_the_classification_form() -> None:
    """The order of the card; centres join queries and residual of the first refinement, not its keys."""
    settings = DumbbellSettings(4, 2, centres=True)
    stage = stirred(Dumbbell(Nothing(), [Nothing(), Nothing()], settings, [0.0] * 12))
    x = random(2, 14, 14, 4)
    with torch.no_grad():
        want = x
        for i, (_, generate, refine, local, whole, recover) in enumerate(stage.rounds()):
            s = generate(want).reshape(2, 36, 4)
            cells = want.reshape(2, 196, 4)
            s = refine(s + stage.centres if i == 0 else s, torch.cat([s, cells], 1))
            s = whole(local(s.view(2, 6, 6, 4)).reshape(2, 36, 4))
            want = recover(cells, s).view(2, 14, 14, 4)
        torch.testing.assert_close(stage(x), want)
    with pytest.raises(ShapeError, match="14 x 14 cells, got 14 x 21"):
        stage(random(1, 14, 21, 4))


@pytest.mark.parametrize("size", [(13, 17), (14, 17), (14, 14), (5, 8)])
@pytest.mark.parametrize("kind", ["published", "whole", "none"])
def test_rounds_of_the_dense_form(size: tuple[int, int], kind: Any) -> None:
    settings = DumbbellSettings(4, 2, mask=kind)
    stage = stirred(DenseDumbbell(Nothing(), [Nothing()], settings, [0.0] * 6))
    _, generate, refine, local, whole, recover = stage.rounds()[0]
    x = random(2, *size, 4)
    down, right = -size[0] % 7, -size[1] % 7
    big = F.pad(x, (0, 0, 0, right, 0, down))
    shape = (big.shape[1], big.shape[2])
    grid = (shape[0] // 7 * 3, shape[1] // 7 * 3)
    if kind == "published":  # the pads in cells of the map index the grid of tokens, too
        made = [key_mask(shape, (down, right), k, 7) for k in (14, 21)] + [key_mask(grid, (down, right), 27, 3)]
    elif kind == "whole":  # pooled cells start at rows 0, 2, 4 of a window: those past the map's end saw nothing
        empty = tuple(sum(start >= 7 - n for start in (0, 2, 4)) for n in (down, right))
        made = [key_mask(shape, (down, right), k, 7, published=False) for k in (14, 21)]
        made += [key_mask(grid, (empty[0], empty[1]), 27, 3, published=False)]
    else:
        made = [None] * 3
    with torch.no_grad():
        s = refine(generate(pooled(big, 7, 3), big, made[0]), big, made[1])
        s = whole(local(s).flatten(1, 2)).unflatten(1, grid)
        want = recover(big, s, made[2])[:, : size[0], : size[1]]
        torch.testing.assert_close(stage(x), want)
        torch.testing.assert_close(stage(x[1:]), want[1:], msg="images do not mix")


def test_other_masks_are_other_functions() -> None:
    torch.manual_seed(0)
    models = {kind: stirred(little(dense=True, mask=kind)) for kind in ("published", "whole", "none")}
    image = random(1, 3, 198, 270)
    with torch.no_grad():
        levels = {kind: model(image)[2] for kind, model in models.items()}
    for kind in ("whole", "none"):
        assert (levels[kind] - levels["published"]).abs().max() > 1e-3 * levels["published"].std()


# --- the network ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(198, 270), (75, 43), (224, 224), (33, 30)])
def test_dense_sizes_round_up(size: tuple[int, int]) -> None:
    model = little(dense=True).eval()
    with torch.no_grad():
        pyramid = model(torch.randn(2, 3, *size))
    for stride, level in zip((4, 8, 16, 32), pyramid, strict=True):
        assert level.shape[2:] == tuple(-(-n // stride) for n in size)
        assert level.mean(1).abs().max() < 1e-4, "each level is normed"


def test_shifts_of_both_forms() -> None:
    """A map of one window is never shifted in the classification form, always in the dense one."""
    for dense in (False, True):
        last = little(depths=(1, 1, 1, 2), dense=dense).stages[3].blocks[1].token_mixer
        assert last.shift_for(7, 7) == (3 if dense else 0)


def test_classification_takes_one_size() -> None:
    with pytest.raises(ShapeError, match=r"224 x 224 pixels, got 256 x 224; the dense form"):
        little()(torch.randn(1, 3, 256, 224))


def test_options() -> None:
    """Each option of the authors' constructor changes the function and, but for the shortcut, the parameters."""
    image = random(1, 3, 224, 224)
    with torch.no_grad():
        plain = stirred(little())
        want = plain(image)[2]
        for name in ("shortcut", "relative_pos", "use_conv_pos", "use_global"):
            model = stirred(little(**{name: True}))
            more = {n: tuple(p.shape) for n, p in model.named_parameters() if n not in plain.state_dict()}
            model.load_state_dict({**model.state_dict(), **plain.state_dict()})
            assert bool(more) is (name != "shortcut")
            assert (model(image)[2] - want).abs().max() > 1e-6, name
            if name == "relative_pos":
                assert set(more.values()) == {(25, 4), (121, 4)}
            if name == "use_global":
                assert more == {"stages.2.centres": (1, 36, 32)}


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(SettingError, match="never come to one per window of 8"):
        little(window=8)
    with pytest.raises(SettingError, match="one entry a stage"):
        little(heads=(1, 2))
    with pytest.raises(SettingError, match="classification form's"):
        little(dense=True, use_global=True)
    with pytest.raises(SettingError, match="leave `shortcut` out"):
        little(dense=True, shortcut=True)
    with pytest.raises(SettingError, match="at least as many, got 5"):
        little(dense=True, reach=(5, 21, 27))
    with pytest.raises(SettingError, match="8 channels on 3 heads"):
        CrossAttention(8, 3)
    with pytest.raises(SettingError, match="rounds of 6 blocks, got depths"):
        stvit.from_published({"depths": [2, 2, 8, 2]}, {})


def test_folded_network_answers_the_same() -> None:
    model = little(dense=True).double().eval()
    for norm in model.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.running_mean.normal_(std=0.1)
            norm.running_var.uniform_(0.5, 2)
    image = random(2, 3, 50, 71)
    folded = fold(model)
    with torch.no_grad():
        for a, b in zip(folded(image), model(image), strict=True):
            torch.testing.assert_close(a, b)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in folded.modules())


# --- published files -----------------------------------------------------------------------------------------------


def state_of(fixture: Fixture) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {n: filled(n, tuple(s)) for n, s in fixture.state.items()}
    tables = [n for n in state if n.endswith("relative_position_bias_table")]
    return state | {n.replace("bias_table", "index"): torch.zeros(49, 49, dtype=torch.long) for n in tables}


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The authors' file: their names and wrapper, with the indices that Swin stores."""
    path = tmp_path_factory.mktemp("stvit") / "stvit-r-swin-s.pth"
    torch.save({"model": state_of(Fixture.read(PARITY / PICTURE))}, path)
    return path


def test_published_checkpoint(published: Path) -> None:
    fixture = Fixture.read(PARITY / PICTURE)
    model = load_published("stvit/r_swin_small", published)
    with torch.no_grad():
        fixture.compare("logits", model(fixture.input()), 1e-3)
    with pytest.raises(WeightsError, match="stvit/r_swin_base"):
        load_published("stvit/r_swin_base", published)


def test_published_detector(tmp_path: Path) -> None:
    fixture = Fixture.read(PARITY / DETECTOR)
    state = {f"backbone.{n}": v for n, v in state_of(fixture).items()}
    torch.save({"state_dict": state | {"rpn_head.rpn_conv.weight": torch.zeros(1)}}, tmp_path / "detector.pth")
    shape = {"dim": 48, "depths": (1, 1, 3, 1), "heads": (2, 4, 6, 8)}
    model = load_published("stvit/r_swin_small", tmp_path / "detector.pth", prefix="backbone.", **shape)
    assert model.config.dense
    with torch.no_grad():
        levels = model(fixture.input())
    for i, level in enumerate(levels, 1):
        fixture.compare(f"feat{i}", level, 1e-3)


def test_settings_of_published_names() -> None:
    """Options come from names and shapes, what has neither from the authors' arguments."""
    document = json.loads((PARITY / PICTURE).read_text())
    names = {n: tuple(s) for n, s in document["state"].items()}
    assert stvit.from_published(document["build"], names) == stvit.from_published({}, names)
    for i in (1, 7, 13):
        names |= {f"layers.2.blocks.{i}.conv_pos.weight": (384, 1, 3, 3), f"layers.2.blocks.{i}.conv_pos.bias": (384,)}
        names |= {f"layers.2.blocks.{i + 2}.attn.relative_position_bias_table": (25, 12)}
        names |= {f"layers.2.blocks.{i + 3}.attn.relative_position_bias_table": (121, 12)}
    names["layers.2.semantic_token2"] = (1, 36, 384)
    config = stvit.from_published({"shortcut": True}, names)
    assert config.shortcut
    assert config.relative_pos
    assert config.use_conv_pos
    assert config.use_global
    model = registry.classifier(stvit.build(config), 1000)
    keymap = stvit.PUBLISHED[0]
    ours = {n: tuple(v.shape) for n, v in model.state_dict().items() if not n.endswith("num_batches_tracked")}
    assert {keymap.name(n): tuple(s) for n, s in names.items()} == ours
    detector = json.loads((PARITY / DETECTOR).read_text())
    config = stvit.from_published({**detector["build"], "k_window_size_2": 28, "pad_mask": False}, detector["state"])
    assert (config.dense, config.reach, config.mask, config.depths) == (True, (14, 28, 27), "none", (1, 1, 3, 1))


@pytest.mark.slow
def test_dense_form_compiles_whole() -> None:
    """At a size that is padded on both sides and whose masks were kept before."""
    torch._dynamo.reset()
    model = little(dense=True, depths=(1, 1, 1, 1)).eval()
    image = torch.randn(1, 3, 100, 130)
    with torch.no_grad():
        want = model(image)
        for a, b in zip(torch.compile(model, fullgraph=True, dynamic=False)(image), want, strict=True):
            torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-3)
