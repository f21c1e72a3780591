"""T2T-ViT beyond its vectors: the mixers against loops, sizes, positions, forms, checkpoints in the authors' names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from parity import Fixture, fill_
from torch import Tensor

from core import registry
from core.backbones import t2t_vit
from core.backbones._t2t_vit_published import resized
from core.errors import SettingError, ShapeError, WeightsError
from core.layers.positions import sincos_1d
from core.mixers.soft_split import FLOOR, PerformerAttention, ValueSkipAttention, soft_split
from core.weights import load_published

COUNTS = {  # the card's; 14_384 is the same network as 14
    "7": 4_255_694, "10": 5_834_702, "12": 6_887_374, "14": 21_465_806, "19": 39_085_070, "24": 64_000_974,
    "t_14": 21_465_422, "t_19": 39_084_686, "t_24": 64_000_590, "14_384": 21_465_806, "14_resnext": 21_465_806,
    "14_wide": 25_000_910, "14_se": 21_723_854, "16_ghost": 16_173_518,
}  # fmt: skip
PARITY = Path(__file__).parent / "parity"


def little(**more: Any) -> Any:
    """Two blocks of 32 channels on tokens of 8; positions for 4 x 4 tokens."""
    settings = {"dim": 32, "depth": 2, "heads": 2, "token_dim": 8, "table_size": 64} | more
    return registry.create("t2t_vit/7", **settings)


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts(name: str) -> None:
    assert set(COUNTS) == set(t2t_vit.VARIANTS)
    with torch.device("meta"):
        model = registry.create(f"t2t_vit/{name}", classes=1000)
    assert sum(p.numel() for p in model.parameters()) == COUNTS[name]


@pytest.mark.parametrize("size", [(9, 12), (7, 5), (3, 3)])
@pytest.mark.parametrize(("kernel", "stride", "padding"), [(7, 4, 2), (3, 2, 1), (4, 3, 1)])  # few channels and many
def test_soft_split_equals_a_loop(size: tuple[int, int], kernel: int, stride: int, padding: int) -> None:
    x = torch.randn(2, *size, 3, dtype=torch.float64)
    got = soft_split(x, kernel, stride, padding)
    around = F.pad(x, (0, 0, *[padding] * 4))
    rows, columns = ((n + 2 * padding - kernel) // stride + 1 for n in size)
    assert got.shape == (2, rows, columns, 3 * kernel**2)
    for i in range(rows):
        for j in range(columns):
            place = around[:, i * stride : i * stride + kernel, j * stride : j * stride + kernel]
            assert torch.equal(got[:, i, j], torch.stack([place[..., c].flatten(1) for c in range(3)], 1).flatten(1))


@pytest.mark.parametrize("grad", [False, True])
def test_value_skip_attention_equals_a_loop(grad: bool) -> None:
    """The scale is that of the wide input, and the shortcut is the values."""
    layer = fill_(ValueSkipAttention(20, 6).double())
    x = torch.randn(2, 3, 4, 20, dtype=torch.float64)
    q, k, v = (x @ w.T for w in layer.qkv.weight.chunk(3))
    want = torch.zeros_like(v)
    for b in range(2):
        keys, values = k[b].reshape(-1, 6), v[b].reshape(-1, 6)
        for i in range(3):
            for j in range(4):
                weights = (keys @ q[b, i, j] * 20**-0.5).softmax(0)
                want[b, i, j] = v[b, i, j] + layer.proj(weights @ values)
    with torch.set_grad_enabled(grad):
        torch.testing.assert_close(layer(x), want)


@pytest.mark.parametrize("loud", [0.3, 40.0])  # the second brings kernel values to the floor
def test_performer_equals_a_loop(loud: float) -> None:
    torch.manual_seed(0)
    layer = fill_(PerformerAttention(20, 8).double())
    with torch.no_grad():
        layer.kqv.weight[:16] *= loud**0.5
    x = torch.randn(2, 3, 4, 20, dtype=torch.float64)
    k, q, v = (F.linear(x, w, b).flatten(1, 2) for w, b in zip(layer.kqv.weight.chunk(3), layer.kqv.bias.chunk(3)))

    def phi(u: Tensor) -> Tensor:
        return torch.stack([(w @ u - u @ u / 2).exp() / 4**0.5 for w in layer.features])

    want, totals = torch.zeros_like(v), []
    for b in range(2):
        for t in range(12):
            weights = torch.stack([phi(q[b, t]) @ phi(k[b, s]) for s in range(12)])
            totals.append(weights.sum())
            want[b, t] = v[b, t] + layer.proj(weights @ v[b] / (weights.sum() + FLOOR))
    assert (min(totals) < FLOOR) == (loud > 1)
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            torch.testing.assert_close(layer(x), want.reshape(2, 3, 4, 8))


def test_underflow_leaves_the_shortcut() -> None:
    torch.manual_seed(0)
    layer = fill_(PerformerAttention(20, 8))
    with torch.no_grad():
        layer.kqv.weight[:16] *= 1000
        x = torch.randn(1, 3, 4, 20)
        torch.testing.assert_close(layer(x), F.linear(x, layer.kqv.weight[16:], layer.kqv.bias[16:]) + layer.proj.bias)


def test_random_features_are_kept_not_trained() -> None:
    """Orthogonal rows of length sqrt(m); part of the state, no parameter, another draw in each network."""
    torch.manual_seed(0)
    a, b = PerformerAttention(20, 64).features, PerformerAttention(20, 64).features
    torch.testing.assert_close(a @ a.T, 32 * torch.eye(32), atol=1e-4, rtol=0)
    assert not torch.equal(a, b)
    names = little().state_dict()
    assert sum(n.endswith("features") for n in names) == 2
    assert not any(n.endswith("table") for n in names)
    assert all("features" not in n for n, _ in little().named_parameters())


def test_performer_stays_in_float32() -> None:
    """Under autocast and in half precision; kernel values would underflow there otherwise."""
    torch.manual_seed(0)
    layer = fill_(PerformerAttention(20, 8))
    x = torch.randn(1, 6, 6, 20)
    with torch.no_grad():
        layer.kqv.weight *= 3
        kq, v = layer.kqv(x).flatten(1, 2).split([16, 8], -1)
        want = layer._attend(kq, v)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(layer._attend(kq, v), want)
            assert layer(x).isfinite().all()
        kq, v = kq.bfloat16(), v.bfloat16()
        half = layer.to(torch.bfloat16)
        want = half._attend(kq.float(), v.float())
        assert torch.equal(half._attend(kq, v), want.bfloat16())


def test_the_performers_dropout_is_there_without_a_rate() -> None:
    torch.manual_seed(0)
    for kind, noisy in (("performer", True), ("transformer", False)):
        split = fill_(little(tokens=kind)).stages[0].embed.tokens_to_token.train()
        image = torch.randn(1, 3, 64, 64)
        assert torch.equal(split(image), split(image)) != noisy
        assert torch.equal(split.eval()(image), split(image))
        rates = [m.p for m in split.modules() if isinstance(m, torch.nn.Dropout) and m.p]
        assert rates == [0.1] * (4 if noisy else 0)


@pytest.mark.parametrize("tokens", ["performer", "transformer"])
def test_token_transformer_from_the_card(tokens: str) -> None:
    model = fill_(little(tokens=tokens).double())
    part = model.stages[0].embed.tokens_to_token.mix1
    x = torch.randn(1, 4, 4, 147, dtype=torch.float64)
    y = part.token_mixer(F.layer_norm(x, (147,), part.norm1.weight, part.norm1.bias, 1e-5))
    z = F.layer_norm(y, (8,), part.norm2.weight, part.norm2.bias, 1e-5)
    mlp = part.channel_mixer
    assert mlp.fc1.weight.shape == (8, 8)
    torch.testing.assert_close(part(x), y + mlp.fc2(F.gelu(mlp.fc1(z))))


def tokens_along(side: int) -> int:
    first = (side + 1) // 4
    second = (first + 1) // 2
    return (second + 1) // 2


@pytest.mark.parametrize("side", [*range(3, 40), 160, 225, 226, 250])
def test_sizes_are_the_cards(side: int) -> None:
    """floor((S + 1) / 4), twice halved and rounded up; that is floor(S / 16) for S mod 16 of 0, 1 and 2."""
    with torch.device("meta"):
        level = little()(torch.empty(1, 3, side, side))[0]
    assert level.shape[2:] == (tokens_along(side),) * 2
    if side % 16 < 3 and side > 15:
        assert level.shape[2] == side // 16


def positions_of(model: Any, image: Tensor) -> Tensor:
    embed = model.stages[0].embed
    x, (h, w) = embed(image)
    split = embed.tokens_to_token(image)
    assert (h, w) == split.shape[1:3]
    return x - torch.cat([embed.class_token.expand(len(x), -1, -1), split.flatten(1, 2)], 1)


@pytest.mark.parametrize("side", [64, 65, 66])
def test_built_positions(side: int) -> None:
    """The class token has position 0; computed in double, kept in single precision."""
    got = positions_of(fill_(little().double()), torch.randn(2, 3, side, side, dtype=torch.float64))
    torch.testing.assert_close(got, sincos_1d(17, 32).float().double().expand(2, -1, -1))


@pytest.mark.parametrize("size", [(96, 96), (48, 80), (70, 64)])
def test_positions_of_other_sizes(size: tuple[int, int]) -> None:
    """The grid is resized bicubically, not computed anew, and the class token's row is left alone."""
    got = positions_of(fill_(little().double()), torch.randn(1, 3, *size, dtype=torch.float64))
    table = sincos_1d(17, 32).float().double()
    grid = (tokens_along(size[0]), tokens_along(size[1]))
    image = table[1:].reshape(1, 4, 4, 32).permute(0, 3, 1, 2)
    cells = F.interpolate(image, size=grid, mode="bicubic", align_corners=False).flatten(2).transpose(1, 2)[0]
    torch.testing.assert_close(got[0], torch.cat([table[:1], cells]))


def test_images_too_small() -> None:
    with pytest.raises(ShapeError, match="an image of 2 x 64 pixels is too small, sides start at 3"):
        little()(torch.randn(1, 3, 2, 64))


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("tokens", ["performer", "transformer"])
def test_images_do_not_mix(grad: bool, tokens: str) -> None:
    model = fill_(registry.classifier(little(tokens=tokens), 4).double())
    images = torch.randn(2, 3, 70, 53, dtype=torch.float64)
    with torch.set_grad_enabled(grad):
        for one, both in ((model, model(images)), (model.backbone, model.backbone(images)[0])):
            for i, image in enumerate(images):
                single = one(image[None])
                torch.testing.assert_close(both[i], (single[0] if isinstance(single, list) else single)[0])


def test_dense_form_and_features() -> None:
    """The pyramid's level is the normed patches; raw blocks on request."""
    model = fill_(little(depth=3).double())
    image = torch.randn(1, 3, 64, 96, dtype=torch.float64)
    with torch.no_grad():
        tokens, (level,) = model.tokens(image), model(image)
        first, last = model.features(image, (0, -1))
        (normed,) = model.features(image, (2,), norm=True)
        x, _ = model.embed(image)
        torch.testing.assert_close(first.flatten(2).transpose(1, 2), model.blocks[0](x)[:, 1:])
        torch.testing.assert_close(model.norm(last.flatten(2).transpose(1, 2)), tokens[:, 1:])
    assert torch.equal(level.flatten(2).transpose(1, 2), tokens[:, 1:])
    assert torch.equal(normed, level)
    with pytest.raises(SettingError, match="no block 3 in a network of 3 blocks"):
        model.features(image, (3,))


def attended(layer: Any, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Two heads of 16, written out."""
    heads = [(a @ b.transpose(1, 2) * scale).softmax(-1) @ c for a, b, c in zip(*(t.split(16, -1) for t in (q, k, v)))]
    return layer.proj(torch.cat(heads, -1))


def test_scale_of_the_backbone() -> None:
    x = torch.randn(1, 7, 32, dtype=torch.float64)
    for given, scale in ((None, 16**-0.5), (0.3, 0.3)):
        layer = fill_(little(qk_scale=given).double()).blocks[0].token_mixer
        torch.testing.assert_close(layer(x), attended(layer, *(x @ layer.qkv.weight.T).chunk(3, -1), scale))
    assert layer.qkv.bias is None
    assert t2t_vit.from_published({"fn": "t2t_vit_14", "pretrained": True}, {}).qk_scale == 384**-0.5
    assert t2t_vit.from_published({"fn": "t2t_vit_14", "qk_scale": 0.1}, {}).qk_scale == 0.1


def test_squeeze_and_excitation() -> None:
    layer = fill_(little(excite=True).double()).blocks[0].token_mixer
    x = torch.randn(2, 7, 32, dtype=torch.float64)
    y = attended(layer, *(x @ layer.qkv.weight.T).chunk(3, -1), 0.25)
    fc1, fc2 = layer.excite.fc1.weight, layer.excite.fc2.weight
    assert fc1.shape == (2, 32)
    torch.testing.assert_close(layer(x), y * (F.relu(y.mean(1, keepdim=True) @ fc1.T) @ fc2.T).sigmoid())


def test_ghost_block() -> None:
    block = fill_(little(ghost=True, mlp_ratio=3.0).double()).blocks[0]
    attention, mlp = block.token_mixer, block.channel_mixer
    x = torch.randn(2, 7, 32, dtype=torch.float64)
    halves = (x @ attention.qkv.weight.T).chunk(3, -1)
    q, k, v = (torch.cat([half, half * factor], -1) for half, factor in zip(halves, attention.copies))
    torch.testing.assert_close(attention(x), attended(attention, q, k, v, 0.25))
    a = mlp.fc1(x)
    wide = torch.cat([a, F.gelu(a * mlp.copies[0]), F.gelu(a * mlp.copies[1])], -1)
    torch.testing.assert_close(mlp(x), mlp.fc2(wide))


def test_initialisation_and_drop_path() -> None:
    torch.manual_seed(0)
    model = registry.create("t2t_vit/t_14", drop_path=0.13, classes=10)
    rates = [b.drop_path.p for b in model.backbone.blocks]
    assert rates == pytest.approx([0.01 * i for i in range(14)])
    split = model.backbone.stages[0].embed.tokens_to_token
    for layer in (split.mix2.token_mixer.qkv, split.project, model.backbone.blocks[3].channel_mixer.fc1):
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.03)
    assert model.backbone.stages[0].embed.class_token.std().item() == pytest.approx(0.02, rel=0.15)
    assert not split.project.bias.any()


@pytest.mark.parametrize("form", [{}, {"tokens": "transformer"}, {"excite": True}, {"ghost": True, "mlp_ratio": 3.0}])
def test_one_training_step(form: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = registry.classifier(little(drop_path=0.1, dropout=0.1, attention_dropout=0.1, **form), 5).train()
    F.cross_entropy(model(torch.randn(2, 3, 64, 45)), torch.tensor([1, 4])).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()] == []


def test_settings_that_do_not_fit() -> None:
    with pytest.raises(SettingError, match="5 heads do not divide 32 channels"):
        little(heads=5)
    with pytest.raises(SettingError, match="an even token_dim and a table_size from 16 up were expected, got 7 and 64"):
        little(token_dim=7)
    with pytest.raises(SettingError, match=r"whole number from 2 up, got 2\.5"):
        little(ghost=True, mlp_ratio=2.5)
    with pytest.raises(SettingError, match="come without squeeze-and-excitation"):
        little(ghost=True, excite=True)


def saved(path: Path, fixture: Fixture, **more: Tensor) -> Path:
    """As the authors' trainer writes it: two states, names under "module."."""
    state = {f"module.{n}": v for n, v in (fixture.state_dict() | more).items()}
    raw = {n: torch.zeros_like(v) for n, v in state.items() if "pos_embed" not in n}
    torch.save({"epoch": 9, "arch": "t2t_vit_7", "state_dict": raw, "state_dict_ema": state}, path)
    return path


@pytest.mark.parametrize("stored", [True, False])
def test_published_checkpoint(tmp_path: Path, stored: bool) -> None:
    fixture = Fixture.read(PARITY / "t2t-vit--t2t-vit-7.json")
    more = {"pos_embed": sincos_1d(197, 256)[None].float()} if stored else {}
    path = saved(tmp_path / "71.7_T2T_ViT_7.pth.tar", fixture, **more)
    model = load_published("t2t_vit/7", path, wrapper="state_dict_ema")
    assert model.backbone.config == t2t_vit.VARIANTS["7"]
    with torch.no_grad():
        fixture.compare("logits", model(fixture.input()), 1e-3)


def test_stored_positions_are_checked(tmp_path: Path) -> None:
    """Those of 14 x 14 tokens, or these resized, as in the file fine-tuned at 384 pixels; others are refused."""
    fixture = Fixture.read(PARITY / "t2t-vit--t2t-vit-7.json")
    built = sincos_1d(197, 256)[None].float()
    image = torch.randn(1, 3, 384, 384)
    path = saved(tmp_path / "384.pth.tar", fixture, pos_embed=resized(built, (24, 24)))
    model = load_published("t2t_vit/7", path, wrapper="state_dict_ema")
    with torch.no_grad():
        torch.testing.assert_close(positions_of(model.backbone, image), resized(built, (24, 24)), atol=1e-5, rtol=0)
    path = saved(tmp_path / "damaged.pth.tar", fixture, pos_embed=built + 0.1 * torch.randn_like(built))
    with pytest.raises(WeightsError, match="pos_embed: stored as a parameter, but not the constant"):
        load_published("t2t_vit/7", path, wrapper="state_dict_ema")
    path = saved(tmp_path / "scratch.pth.tar", fixture, pos_embed=sincos_1d(577, 256)[None].float())
    with pytest.raises(WeightsError, match=r"for 24 x 24 tokens, .* take it out of the file and pass table_size=384"):
        load_published("t2t_vit/7", path, wrapper="state_dict_ema")
    assert load_published("t2t_vit/7", saved(path, fixture), wrapper="state_dict_ema", table_size=384)


def test_another_variants_file_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "7.pth.tar", Fixture.read(PARITY / "t2t-vit--t2t-vit-7.json"))
    with pytest.raises(WeightsError, match="holds a network with depth 7, and t2t_vit/10 has 10"):
        load_published("t2t_vit/10", path, wrapper="state_dict_ema")


def published_names(state: dict[str, Tensor], kind: str) -> dict[str, Tensor]:
    """Our names as the authors write them; for Ghost q, k and v apart."""
    first, second = ("mlp.fc1.", "mlp.fc2.") if kind == "transformer" else ("mlp.0.", "mlp.2.")
    attention = "attn." if kind == "transformer" else ""
    out = {}
    for name, value in state.items():
        for ours, theirs in (
            ("backbone.stages.0.", ""), ("embed.class_token", "cls_token"), ("embed.", ""),
            ("mix1.", "attention1."), ("mix2.", "attention2."),
        ):  # fmt: skip
            name = name.replace(ours, theirs)
        if name.startswith("tokens_to_token"):
            for ours, theirs in (
                ("token_mixer.features", "w"), ("token_mixer.", attention),
                ("channel_mixer.fc1.", first), ("channel_mixer.fc2.", second),
            ):  # fmt: skip
                name = name.replace(ours, theirs)
        for ours, theirs in (
            ("token_mixer.excite.fc1", "attn.se_layer.fc.0"), ("token_mixer.excite.fc2", "attn.se_layer.fc.2"),
            ("token_mixer.", "attn."), ("channel_mixer.", "mlp."), ("backbone.norm", "norm"), ("head.fc.", "head."),
        ):  # fmt: skip
            name = name.replace(ours, theirs)
        if name.endswith("copies"):
            place = name.removesuffix("copies")
            parts = "qkv" if "attn" in name else "23"
            out |= {f"{place}cheap_operation{'_' * (parts == 'qkv')}{p}.weight": v[:, None, None]
                    for p, v in zip(parts, value)}  # fmt: skip
        elif "ghost" in kind and "attn.qkv" in name and "blocks" in name:
            out |= {name.replace("qkv", p): v for p, v in zip("qkv", value.chunk(3))}
        else:
            out[name] = value
    return out


FORMS = [
    {"tokens": "performer"}, {"tokens": "transformer", "qkv_bias": True, "in_channels": 5}, {"excite": True},
    {"ghost": True, "mlp_ratio": 3.0}, {"ghost": True, "mlp_ratio": 3.0, "qkv_bias": True},
]  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("classes", [0, 4])
def test_names_and_shapes_give_the_settings(tmp_path: Path, form: dict[str, Any], classes: int) -> None:
    """A file alone brings back all but heads and positions; with a classifier or without."""
    backbone = fill_(little(**form))
    model = fill_(registry.classifier(backbone, classes)) if classes else backbone
    ours = {n if classes else f"backbone.{n}": v for n, v in model.state_dict().items()}
    state = published_names(ours, "ghost" if "ghost" in form else form.get("tokens", "performer"))
    base = t2t_vit.T2TViTConfig(heads=2, dim=32, table_size=64)
    seen = t2t_vit.from_published({}, {n: tuple(v.shape) for n, v in state.items()}, base)
    assert seen == backbone.config
    torch.save({"state_dict": state}, tmp_path / "x.pth.tar")
    given = {"dim": 32, "depth": 2, "heads": 2, "mlp_ratio": form.get("mlp_ratio", 2.0), "table_size": 64}
    loaded = load_published("t2t_vit/7", tmp_path / "x.pth.tar", **given)
    image = torch.randn(1, form.get("in_channels", 3), 50, 70)
    with torch.no_grad():
        a, b = loaded(image), model.eval()(image)
    torch.testing.assert_close(a if classes else a[0], b if classes else b[0])


def test_arguments_alone() -> None:
    for name, config in t2t_vit.VARIANTS.items():
        assert t2t_vit.from_published({"fn": f"t2t_vit_{name}"}, {}) == config
    build = {
        "tokens_type": "transformer", "embed_dim": 128, "depth": 3, "num_heads": 4, "mlp_ratio": 2, "in_chans": 4,
        "token_dim": 32, "img_size": [160, 160], "drop_path_rate": 0.1, "qkv_bias": True,
    }  # fmt: skip
    config = t2t_vit.from_published(build, {})
    assert (config.tokens, config.dim, config.depth, config.heads) == ("transformer", 128, 3, 4)
    assert (config.in_channels, config.token_dim, config.table_size, config.drop_path) == (4, 32, 160, 0.1)
    assert t2t_vit.from_published({"embed_dim": 448}, {}).heads == 7


def test_bfloat16_is_finite() -> None:
    model = registry.classifier(little(), 5).eval().to(torch.bfloat16)
    with torch.no_grad():
        logits = model(torch.randn(2, 3, 75, 60, dtype=torch.bfloat16))
    assert logits.dtype == torch.bfloat16
    assert torch.isfinite(logits).all()


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_compiles_whole(form: dict[str, Any]) -> None:
    torch._dynamo.reset()
    model = fill_(little(**form))
    image = torch.randn(2, form.get("in_channels", 3), 96, 70)
    with torch.no_grad():
        for a, b in zip(torch.compile(model, fullgraph=True)(image), model(image), strict=True):
            torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-3)
