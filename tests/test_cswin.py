"""CSWin: its mixer against a loop over stripes, sizes, training, published files."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from parity import Fixture, made_input
from torch import Tensor, nn

from core import registry, weights
from core.backbones import cswin
from core.backbones.cswin import CSWin, CSWinConfig
from core.errors import SettingError, ShapeError, WeightsError
from core.mixers.cross_window import CrossWindowAttention

VECTORS = Path(__file__).parent / "parity"
SMALL = CSWinConfig(dim=16, depths=(1, 1, 2, 1), heads=(2, 4, 4, 4), stripes=(1, 2, 3, 7), drop_path=0.0)
PARAMETERS = {  # of the card, with 1000 classes
    "tiny": 22_320_552, "small": 34_643_304, "base": 77_382_184, "base_384": 77_382_184,
    "large": 173_262_664, "large_384": 173_262_664,
}  # fmt: skip


def by_loop(m: CrossWindowAttention, x: Tensor) -> Tensor:
    """The mixer, one image, stripe and head at a time, in the layout of the published code."""
    B, H, W, C = x.shape
    dim, heads = C // m.branches, C // m.branches // m.head_dim
    out = torch.zeros_like(x)
    for b in range(B):
        whole = F.linear(x[b], m.qkv.weight, m.qkv.bias)
        for branch in range(m.branches):
            own = slice(branch * dim, (branch + 1) * dim)
            q, k, v = (whole[..., i * C : (i + 1) * C][..., own] for i in range(3))
            rows, columns = (H, W) if m.stripe is None else (H, m.stripe) if branch == 0 else (m.stripe, W)
            down, right = -H % rows, -W % columns
            top, left = down // 2, right // 2
            q, k, v = (F.pad(t, (0, 0, left, right - left, top, down - top)) for t in (q, k, v))
            joined = torch.zeros_like(q)
            for y in range(0, H + down, rows):
                for z in range(0, W + right, columns):
                    at = (slice(y, y + rows), slice(z, z + columns))
                    image = v[at].permute(2, 0, 1)[None]
                    position = F.conv2d(image, m.lepe.weight[own], m.lepe.bias[own], padding=1, groups=dim)[0]
                    for h in range(heads):
                        c = slice(h * m.head_dim, (h + 1) * m.head_dim)
                        qs, ks, vs = (t[at][..., c].reshape(-1, m.head_dim) for t in (q, k, v))
                        a = (qs @ ks.T * m.head_dim**-0.5).softmax(-1) @ vs
                        joined[at][..., c] = a.view(rows, columns, -1) + position[c].permute(1, 2, 0)
            out[b, :, :, own] = joined[top : top + H, left : left + W]
    return F.linear(out, m.proj.weight, m.proj.bias)


@pytest.mark.parametrize("grad", [False, True], ids=["inference", "training"])  # two kernels
@pytest.mark.parametrize("size", [(6, 6), (6, 9), (7, 7), (5, 8), (2, 1)], ids=lambda s: f"{s[0]}x{s[1]}")
@pytest.mark.parametrize("stripe", [None, 1, 3])
def test_mixer_is_the_loop_over_stripes(stripe: int | None, size: tuple[int, int], grad: bool) -> None:
    torch.manual_seed(0)
    m = CrossWindowAttention(16, 4, stripe=stripe).double()
    nn.init.normal_(m.qkv.bias)  # tells zeros put in before the projection from zeros put in after it
    x = torch.randn(2, *size, 16, dtype=torch.float64)
    with torch.set_grad_enabled(grad):
        got = m(x)
    torch.testing.assert_close(got, by_loop(m, x), rtol=0, atol=1e-12)


def test_mixer_reaches_a_cross_and_no_further() -> None:
    m = CrossWindowAttention(16, 4, stripe=2).double()
    x = torch.randn(1, 6, 8, 16, dtype=torch.float64)
    moved = x.clone()
    moved[0, 3, 4] += 1.0
    changed = (m(moved) - m(x)).abs().amax(-1)[0] > 1e-12
    cross = torch.zeros(6, 8, dtype=torch.bool)
    cross[2:4], cross[:, 4:6] = True, True
    assert torch.equal(changed, cross)


def test_mixer_refuses_heads_that_do_not_share_out() -> None:
    with pytest.raises(SettingError, match="3 heads do not go into 24 channels and 2 directions"):
        CrossWindowAttention(24, 3)


def test_dropout_is_of_training_only() -> None:
    m = CrossWindowAttention(16, 4, stripe=2, dropout=0.5)
    x = torch.randn(1, 4, 4, 16)
    with torch.no_grad():
        assert not torch.equal(m(x), m(x))
        m.eval()
        assert torch.equal(m(x), m(x))


@pytest.mark.parametrize("variant", list(cswin.VARIANTS))
def test_parameters_are_the_published_number(variant: str) -> None:
    with torch.device("meta"):
        model = registry.create(f"cswin/{variant}", classes=1000)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[variant]


def test_images_of_a_batch_do_not_mix() -> None:
    torch.manual_seed(0)
    model = CSWin(replace(SMALL, dense=True)).eval()
    images = torch.randn(2, 3, 70, 53)
    with torch.no_grad():
        together, alone = model(images), [model(i[None]) for i in images]
    for level, first, second in zip(together, *alone, strict=True):
        torch.testing.assert_close(level, torch.cat([first, second]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(91, 62), (3, 3), (64, 64)], ids=lambda s: f"{s[0]}x{s[1]}")
@pytest.mark.parametrize("dense", [False, True])
def test_levels_of_any_size(size: tuple[int, int], dense: bool) -> None:
    model = CSWin(replace(SMALL, dense=dense, in_channels=5)).eval()
    with torch.no_grad():
        levels = model(torch.randn(1, 5, *size))
    h, w = ((n - 3) // 4 + 1 for n in size)
    for level, dim in zip(levels, model.channels, strict=True):
        assert level.shape == (1, dim, h, w)
        assert level.isfinite().all()
        h, w = -(-h // 2), -(-w // 2)


def test_stages_one_stripe_wide_are_whole_for_classification_only() -> None:
    assert cswin.whole_stages(cswin.TINY) == (3,)
    assert cswin.whole_stages(replace(cswin.TINY, image_size=112)) == (2, 3)
    assert cswin.whole_stages(replace(cswin.TINY, image_size=112, dense=True)) == (3,)
    names = {n: tuple(s) for n, s in Fixture.read(VECTORS / "cswin--tiny.json").state.items()}
    one = {n: s for n, s in names.items() if not (n.startswith("stage3.") and "attns.1." in n)}
    config = cswin.from_published({}, one)
    assert (config.whole, config.dense) == ((2, 3), False)
    assert cswin.from_published({"img_size": 112}, {}).whole is None


def test_one_step_of_training() -> None:
    torch.manual_seed(0)
    model = registry.classifier(CSWin(replace(SMALL, attention_dropout=0.1)), 10).train()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    image, target = torch.randn(4, 3, 50, 66), torch.arange(4)
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
    model = CSWin(replace(SMALL, dim=64, depths=(1, 1, 1, 1), drop_path=0.3))
    block = model.stages[2].blocks[0]
    assert float(block.token_mixer.qkv.weight.detach().std()) == pytest.approx(0.02, rel=0.05)
    assert not block.token_mixer.qkv.bias.any()
    assert float(block.token_mixer.lepe.weight.detach().abs().max()) == pytest.approx(
        1 / 3, rel=0.05
    )  # uniform, fan-in 9
    assert [s.blocks[0].drop_path.p for s in model.stages] == pytest.approx([0, 0.1, 0.2, 0.3])


def test_state_round_trip(tmp_path: Path) -> None:
    first, second = CSWin(SMALL).eval(), CSWin(SMALL).eval()
    weights.save(first, tmp_path / "w.safetensors")
    weights.load(second, tmp_path / "w.safetensors")
    image = torch.randn(1, 3, 40, 40)
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(first(image), second(image), strict=True))


def test_bfloat16_is_finite() -> None:
    model = CSWin(replace(SMALL, dense=True)).to(torch.bfloat16).eval()
    image = torch.randn(1, 3, 66, 45, dtype=torch.bfloat16)
    with torch.no_grad():
        levels = model(image)
    assert all(level.dtype == torch.bfloat16 and level.isfinite().all() for level in levels)
    sum(level.float().square().mean() for level in model.train()(image)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_wrong_input_is_one_sentence() -> None:
    with pytest.raises(ShapeError, match=r"expected a tensor of shape \(B C=3 H W\), got \(1, 4, 32, 32\)"):
        CSWin(SMALL)(torch.zeros(1, 4, 32, 32))
    with pytest.raises(ShapeError, match="an image of 32 x 2 pixels is too small, sides start at 3"):
        CSWin(SMALL)(torch.zeros(1, 3, 32, 2))
    with pytest.raises(SettingError, match="2 depths, 4 heads and 4 stripes"):
        CSWin(replace(SMALL, depths=(1, 1)))


def test_published_classifier(tmp_path: Path) -> None:
    """The authors' trainer keeps averaged weights, which they evaluate, beside the plain ones."""
    vector = Fixture.read(VECTORS / "cswin--tiny.json")
    averaged = vector.state_dict()
    path = tmp_path / "cswin_tiny_224.pth"
    torch.save({"epoch": 1, "state_dict": {n: v[:0] for n, v in averaged.items()}, "state_dict_ema": averaged}, path)
    model = weights.load_published("cswin/tiny", path, wrapper="state_dict_ema")
    with torch.no_grad():
        vector.compare("logits", model(vector.input()), 1e-3)
    with pytest.raises(WeightsError, match=r"cswin_tiny_224\.pth: \d+ names do not fit Classifier"):
        weights.load_published("cswin/tiny", path, wrapper="state_dict_ema", dim=16, depths=(1, 1, 1, 2))


def test_other_stripes_and_sizes_take_the_same_weights() -> None:
    vector = Fixture.read(VECTORS / "cswin--tiny.json")
    resized: list[str] = []
    with torch.device("meta"):
        state = {n: torch.empty(tuple(s)) for n, s in vector.state.items()}
        model = registry.create("cswin/tiny", classes=1000, stripes=(1, 2, 12, 12), image_size=384)
    weights.convert(state, cswin.PUBLISHED[0], model, resized=resized)
    assert not resized
    assert model.backbone.stages[2].blocks[0].token_mixer.stripe == 12


def test_published_dense_backbone(tmp_path: Path) -> None:
    """A segmentation checkpoint: names under "backbone.", beside those of the decoder; stage 3 cut short for time."""
    vector = Fixture.read(VECTORS / "cswin--tiny-dense.json")
    vector.state = {n: s for n, s in vector.state.items() if not re.match(r"stage3\.([2-9]|1\d|20)\.", n)}
    state = {f"backbone.{n}": v for n, v in vector.state_dict().items()}
    path = tmp_path / "upernet_cswin_tiny.pth"
    torch.save({"meta": {}, "state_dict": state | {"decode_head.conv_seg.bias": torch.zeros(150)}}, path)
    model = weights.load_published("cswin/tiny", path, prefix="backbone.", depths=(1, 2, 2, 1))
    assert isinstance(model, CSWin)
    with torch.no_grad():
        levels = model(vector.input())
    for i in (1, 2):
        vector.compare(f"stage{i}", levels[i - 1], 1e-3)
    assert [list(level.shape) for level in levels] == [vector.outputs[f"stage{i}"]["shape"] for i in (1, 2, 3, 4)]


def test_biases_of_the_projection_are_read_from_the_names() -> None:
    names = {n: tuple(s) for n, s in Fixture.read(VECTORS / "cswin--tiny-dense.json").state.items()}
    config = cswin.from_published({"qkv_bias": False, "depth": [1, 2, 21, 1]}, names)  # dense: always on
    assert config.qkv_bias
    assert config.dense
    bare = {n: s for n, s in names.items() if not n.endswith("qkv.bias")}
    assert not cswin.from_published({"qkv_bias": True}, bare).qkv_bias


@pytest.mark.slow
@pytest.mark.parametrize("size", [(64, 64), (50, 71)], ids=lambda s: f"{s[0]}x{s[1]}")
def test_compiles_in_one_graph(size: tuple[int, int]) -> None:
    model = CSWin(replace(SMALL, dense=True, depths=(1, 1), heads=(2, 4), stripes=(3, 7))).eval()
    image = made_input((2, 3, *size))
    with torch.no_grad():
        for ours, plain in zip(torch.compile(model, fullgraph=True, dynamic=False)(image), model(image), strict=True):
            torch.testing.assert_close(ours, plain, rtol=1e-3, atol=1e-4)
