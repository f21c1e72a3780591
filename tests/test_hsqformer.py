"""HSQformer's network: its options, sparse experts, attention against PyTorch's own, maps of what was looked at."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apps.medical.ultrasound import _hsqformer_experts, model
from apps.medical.ultrasound._hsqformer_attention import Attention, CrossSelf, QueryBlock
from apps.medical.ultrasound._hsqformer_experts import Expert, Experts
from core import measure
from core.bundle import BundleError
from core.errors import SettingError, ShapeError, UnknownNameError, WeightsError
from core.weights import convert, load_published, save

HERE = Path(__file__).resolve().parent
VECTOR = HERE / "parity" / "hsqformer--serial-sparse_token.json"
SMALL: dict[str, Any] = {
    "size": 64, "dim": 24, "queries": 5, "heads": (1, 2, 3, 3), "drop_path": 0.1,
    "swin_settings": {"dim": 12, "depths": (1, 1, 2, 1), "heads": (1, 2, 3, 3)},
    "convnext_settings": {"dims": (12, 24, 48, 96), "depths": (1, 1, 2, 1)},
}  # fmt: skip
KINDS = ("sparse_token", "dense_token", "sparse_expert", "dense_expert")
ORDERS = ("serial", "parallel", "invert_serial")


def small(**settings: Any) -> Any:
    torch.manual_seed(0)
    return model.create("hsqformer", **{**SMALL, **settings})


@pytest.mark.parametrize(
    ("settings", "count"),
    [
        ({}, 160_904_172),
        ({"order": "invert_serial", "experts": "sparse_expert"}, 160_904_172),
        ({"experts": "mlp"}, 127_879_244),
        (
            {"order": "parallel", "experts": "dense_token", "queries": 50, "dim": 192, "head": "mlp",
             "depths": (1, 2, 1, 1)},
            144_394_868,
        ),
    ],
)  # fmt: skip
def test_published_counts(settings: dict[str, Any], count: int) -> None:
    assert measure.parameters(measure.on_meta(lambda: model.create("hsqformer", **settings))) == count


def test_what_the_table_of_networks_measures() -> None:
    network: Any = measure.on_meta(lambda: small().eval())
    image = torch.empty(1, 3, 64, 64, device="meta")
    assert [tuple(x.shape) for x in network.scales(image)] == [
        (1, 12, 16, 16), (1, 24, 8, 8), (1, 48, 4, 4), (1, 96, 2, 2)
    ]  # fmt: skip
    dense: Any = measure.on_meta(lambda: small(experts="dense_token").eval())
    one: Any = measure.on_meta(lambda: small(experts="mlp").eval())
    sparse, every, single = (measure.macs(n, (1, 3, 64, 64)) for n in (network, dense, one))
    assert single < sparse < every  # one MLP, one of four and a router, all four
    assert (sparse - single) * 20 < every - single


# --- experts ----------------------------------------------------------------------------------------------------------


def by_hand(x: Tensor, experts: Experts, kind: str, top: int, choice: str) -> Tensor:
    """Token by token, as the card says it."""
    count = len(experts.experts)
    r = F.linear(x, experts.router.weight, experts.router.bias)
    if kind.endswith("_expert"):
        r = (r.mean((0, 1)) if choice == "batch" else r.mean(1, keepdim=True)).expand(r.shape)
    out = torch.zeros_like(x)
    for b in range(x.shape[0]):
        for n in range(x.shape[1]):
            kept = r[b, n].argsort(descending=True)[: top if kind.startswith("sparse") else count]
            shares = torch.exp(r[b, n, kept]) / torch.exp(r[b, n, kept]).sum()
            for share, i in zip(shares, kept.tolist(), strict=True):
                expert: Any = experts.experts[i]
                hidden = F.gelu(F.linear(x[b, n], expert.fc1.weight, expert.fc1.bias))
                out[b, n] += share * F.linear(hidden, expert.fc2.weight, expert.fc2.bias)
    return out


@pytest.mark.parametrize("choice", ["batch", "image"])
@pytest.mark.parametrize("top", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_experts_equal_a_loop_over_tokens(kind: Any, top: int, choice: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    experts = Experts(6, kind, top=top, dropout=0.5, choice=choice).double().eval()
    nn.init.normal_(experts.router.weight, std=2)
    x = torch.randn(3, 7, 6, dtype=torch.float64)
    want = by_hand(x, experts, kind, top, choice)
    assert torch.allclose(experts(x), want, atol=1e-12)
    with torch.no_grad():
        assert torch.allclose(experts(x), want, atol=1e-12)
    monkeypatch.setattr(_hsqformer_experts, "_static", lambda: True)
    assert torch.allclose(experts(x), want, atol=1e-12)


def test_a_token_goes_through_its_expert_alone() -> None:
    torch.manual_seed(0)
    experts, seen = Experts(8).eval(), []
    nn.init.normal_(experts.router.weight, std=2)
    for expert in experts.experts:
        expert.register_forward_hook(lambda module, given, out: seen.append(len(given[0])))
    experts(torch.randn(2, 30, 8))
    assert sum(seen) == 60
    assert max(seen) < 60


def test_an_expert_that_nobody_chooses() -> None:
    experts = Experts(8)
    nn.init.zeros_(experts.router.weight)
    with torch.no_grad():
        experts.router.bias.copy_(torch.tensor([0.0, 50.0, 0.0, 0.0]))
    x = torch.randn(2, 5, 8, requires_grad=True)
    experts(x).square().sum().backward()
    grads = {n: p.grad for n, p in experts.named_parameters()}
    assert all(g is not None for g in grads.values())  # of zeros, so that several devices can share them
    assert float(grads["experts.1.fc1.weight"].abs().sum()) > 0  # type: ignore[union-attr]
    assert float(grads["experts.0.fc1.weight"].abs().sum()) == 0  # type: ignore[union-attr]
    # With one kept the weight is 1: the output teaches the router nothing, as published.
    assert float(grads["router.weight"].abs().sum()) == 0  # type: ignore[union-attr]
    two = Experts(8, top=2)
    two(x).square().sum().backward()
    assert float(two.router.weight.grad.abs().sum()) > 0  # type: ignore[union-attr]


def test_noise_of_the_router() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 200, 8)
    calm, published = Experts(8).eval(), Experts(8, noise="always").eval()
    published.load_state_dict(calm.state_dict())
    assert torch.equal(calm(x), calm(x))
    assert not torch.equal(published(x), published(x))
    calm.train()
    assert not torch.equal(calm(x), calm(x))
    nn.init.zeros_(calm.spread.weight)
    nn.init.constant_(calm.spread.bias, 1.5)
    spread = (calm.logits(x) - calm.router(x)).detach().std()
    assert float(spread) == pytest.approx(float(F.softplus(torch.tensor(1.5))), rel=0.05)


def test_what_a_choice_for_the_batch_depends_on() -> None:
    torch.manual_seed(3)
    x = torch.randn(4, 9, 8) + torch.eye(4).repeat_interleave(2, 1)[:, None] * 8  # each image wants another expert
    for choice, mixes in (("batch", True), ("image", False)):
        experts = Experts(8, "sparse_expert", choice=choice).eval()  # type: ignore[arg-type]
        with torch.no_grad():
            experts.router.weight.copy_(torch.eye(4).repeat_interleave(2, 1))
            together, alone = experts(x), torch.cat([experts(i[None]) for i in x])
        assert torch.allclose(together, alone, atol=1e-5) is not mixes
        assert small(experts="sparse_expert", choice=choice).mixes is mixes
    assert not small().mixes


def test_settings_of_experts() -> None:
    for bad in ({"top": 0}, {"top": 5}, {"kind": "mlp"}):
        with pytest.raises(SettingError, match="chosen"):
            Experts(8, **bad)  # type: ignore[arg-type]
    assert Expert(8, out=3)(torch.randn(2, 8)).shape == (2, 3)


# --- attention --------------------------------------------------------------------------------------------------------


def packed(layer: Attention) -> nn.MultiheadAttention:
    """PyTorch's own layer with the same weights."""
    theirs = nn.MultiheadAttention(layer.proj.weight.shape[0], layer.heads, batch_first=True).double()
    theirs.load_state_dict({
        "in_proj_weight": layer.qkv.weight, "in_proj_bias": layer.qkv.bias,
        "out_proj.weight": layer.proj.weight, "out_proj.bias": layer.proj.bias,
    })  # fmt: skip
    return theirs


def random_biases(module: nn.Module) -> nn.Module:
    """As after training: no bias is zero, no norm is the identity."""
    for name, p in module.named_parameters():
        if p.ndim == 1:
            nn.init.normal_(p, mean=float("norm" in name and name.endswith("weight")), std=0.3)
    return module


@pytest.mark.parametrize("heads", [1, 3])
def test_attention_is_pytorchs(heads: int) -> None:
    torch.manual_seed(0)
    layer = random_biases(Attention(12, heads).double())
    q, k = torch.randn(2, 5, 12, dtype=torch.float64), torch.randn(2, 9, 12, dtype=torch.float64)
    theirs = packed(layer)  # type: ignore[arg-type]
    want, shares = theirs(q, k, k, average_attn_weights=True)
    assert torch.allclose(layer(q, k), want, atol=1e-12)
    assert torch.allclose(layer.shares(q, k), shares, atol=1e-12)
    assert torch.allclose(layer(q), theirs(q, q, q)[0], atol=1e-12)
    with pytest.raises(SettingError, match="12 channels do not divide into 5"):
        Attention(12, 5)


@pytest.mark.parametrize("order", ORDERS)
def test_orders_of_cross_and_self(order: Any) -> None:
    torch.manual_seed(0)
    layer: Any = random_biases(CrossSelf(12, 3, order).double())
    s, c = (torch.randn(2, 7, 12, dtype=torch.float64) for _ in range(2))
    cross_s, cross_c, self_s, self_c = map(
        packed, (layer.cross_swin, layer.cross_convnext, layer.self_swin, layer.self_convnext)
    )

    def crossed(s: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        a, b = layer.cross_norm_swin(s), layer.cross_norm_convnext(c)
        return cross_s(a, b, b)[0], cross_c(b, a, a)[0]

    def selfed(s: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        a, b = layer.self_norm_swin(s), layer.self_norm_convnext(c)
        return self_s(a, a, a)[0], self_c(b, b, b)[0]

    if order == "parallel":
        want = sum((*crossed(s, c), *selfed(s, c)), s + c)
    else:
        one, two = (crossed, selfed) if order == "serial" else (selfed, crossed)
        s1, c1 = (a + b for a, b in zip(one(s, c), (s, c), strict=True))
        s2, c2 = (a + b for a, b in zip(two(s1, c1), (s1, c1), strict=True))
        want = s2 + c2
    assert torch.allclose(layer(s, c), want, atol=1e-12)


def test_a_query_block_by_hand() -> None:
    torch.manual_seed(0)
    block: Any = random_biases(QueryBlock(12, 3, Expert(12)).double())
    q, x = torch.randn(2, 4, 12, dtype=torch.float64), torch.randn(2, 9, 12, dtype=torch.float64)
    k = block.norm_level(x)
    moved, shares = packed(block.cross)(block.norm_query(q), k, k)
    want = q + moved
    n = block.norm_self(want)
    want = want + packed(block.self_attention)(n, n, n)[0]
    want = want + block.experts(block.norm_experts(want))
    assert torch.allclose(block(q, x), want, atol=1e-12)
    assert torch.allclose(block.looked_at(q, x), shares.mean(1), atol=1e-12)


# --- the network ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        *({"experts": kind} for kind in (*KINDS, "mlp")),
        *({"order": order} for order in ORDERS[1:]),
        *({"depths": depths} for depths in ((2,), (1, 2), (1, 1, 1), (1, 2, 7, 2))),
        {"head": "mlp"}, {"head": "experts"}, {"classes": 3}, {"in_channels": 1}, {"size": 96}, {"top": 2},
    ],
    ids=str,
)  # fmt: skip
def test_every_option_answers_and_learns(settings: dict[str, Any]) -> None:
    network = small(**settings).train()
    c = network.config
    image = torch.randn(2, c.in_channels, c.size, c.size)
    logits = network(image)
    assert logits.shape == (2, c.classes)
    logits.square().sum().backward()
    used = {n: p for n, p in network.named_parameters() if p.requires_grad}
    assert [n for n, p in used.items() if p.grad is None] == []
    network.eval()
    with torch.no_grad():
        first, again = network(image), network(image)
    assert torch.equal(first, again)
    assert torch.isfinite(first).all()
    one_level = len(c.depths)
    assert len(network.fusions) == len(network.sides) == one_level


@pytest.mark.parametrize("kind", [*KINDS, "mlp"])
def test_half_precision_stays_close(kind: str) -> None:
    network, image = small(experts=kind, top=2).eval(), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        want = network(image)
        with torch.autocast("cpu", torch.bfloat16):
            got = network(image).float()
    assert torch.isfinite(got).all()
    assert float((got - want).abs().max()) < 0.05


def test_fewer_levels_are_the_last() -> None:
    network, image = small(depths=(1, 1)).eval(), torch.randn(1, 3, 64, 64)
    assert network.sides == (4, 2)
    assert [p.shape for p in network.positions] == [(16, 48), (4, 96)]
    assert [f.attention.cross_swin.heads for f in network.fusions] == [3, 3]
    with torch.no_grad():
        pairs = [
            (a.flatten(2).mT, b.flatten(2).mT)
            for a, b in zip(network.swin(image), network.convnext(image), strict=True)
        ]
        want = network.fusions[0](pairs[2][0] + network.positions[0], pairs[2][1] + network.positions[0])
        assert torch.allclose(network.fused(image)[0], want, atol=1e-6)


def test_the_head_answers_per_query_before_the_mean() -> None:
    network = small(head="mlp").eval()
    q = torch.randn(3, 5, 24)
    with torch.no_grad():
        each = torch.stack([network.head(network.norm(q[:, i])) for i in range(5)])
        assert torch.allclose(network.answer(q), each.mean(0), atol=1e-6)
        assert not torch.allclose(network.answer(q), network.head(network.norm(q).mean(1)), atol=1e-6)


def test_drop_path_grows_over_the_blocks() -> None:
    network = small(depths=(1, 2, 1, 1), drop_path=0.2)
    rates = [b.drop_path.p for blocks in network.blocks for b in blocks]
    assert rates == pytest.approx([0, 0.05, 0.1, 0.15, 0.2])
    assert network.swin.stages[-1].blocks[-1].drop_path.p == pytest.approx(0.2)
    assert network.fusions[0].experts.experts[0].dropout.p == 0.5
    assert network.blocks[0][0].experts.experts[0].dropout.p == 0.0


def test_the_start() -> None:
    network = small()
    assert float(network.queries.detach().abs().sum()) == 0
    assert float(network.query_positions.std()) == pytest.approx(0.02, rel=0.3)
    assert float(network.positions[0].std()) == pytest.approx(1, rel=0.1)
    packed = network.fusions[3].attention.self_swin.qkv.weight  # (288, 96), Xavier over the whole
    assert float(packed.detach().abs().max()) == pytest.approx((6 / (96 + 288)) ** 0.5, rel=0.02)
    assert float(network.fusions[3].attention.self_swin.proj.weight.std()) == pytest.approx(0.02, rel=0.1)
    assert float(network.projections[3].weight.std()) == pytest.approx(0.02, rel=0.1)
    assert "positions.2" in network.no_weight_decay()
    network.freeze_encoder()
    held = {n.split(".")[0] for n, p in network.named_parameters() if not p.requires_grad}
    assert held == {"swin", "convnext"}


def test_a_start_for_narrow_networks() -> None:
    """What goes into a layer comes out as large, where the published start leaves a fifth of it."""
    outs = {}
    for start in ("published", "scaled"):
        network = small(start=start)
        with torch.no_grad():
            outs[start] = float(network.projections[3](torch.randn(200, 96)).std())
        assert float(network.positions[0].std()) == pytest.approx({"published": 1, "scaled": 0.1}[start], rel=0.1)
    assert outs["published"] == pytest.approx(0.02 * 96**0.5, rel=0.15)
    assert outs["scaled"] == pytest.approx(1, rel=0.15)
    assert float(small(start="scaled").fusions[0].norm.weight.detach().mean()) == 1


def test_maps_of_what_the_queries_looked_at() -> None:
    network, image = small(depths=(1, 2, 1)).eval(), torch.randn(2, 3, 64, 64)
    logits, maps = model.explained(network, image)
    assert maps is not None
    with torch.no_grad():
        assert torch.equal(logits, network(image))
    assert [m.shape for m in maps] == [(2, 8, 8), (2, 4, 4), (2, 2, 2)]
    assert all(torch.allclose(m.sum((1, 2)), torch.ones(2), atol=1e-5) for m in maps)
    # A block that is forced to one place looks there, and nowhere else.
    block = network.blocks[1][0]
    tokens = torch.randn(1, 16, 24)
    with torch.no_grad():
        block.norm_level.weight.fill_(0)
    spread = block.looked_at(torch.randn(1, 5, 24), tokens)
    assert torch.allclose(spread, torch.full((1, 16), 1 / 16), atol=1e-6)


def test_a_place_that_is_looked_at_is_found() -> None:
    """Queries that match one token: its place has the largest share, row and column not exchanged."""
    network = small(depths=(1,), size=96).eval()
    block = network.blocks[0][0]
    with torch.no_grad():
        dim = 24
        block.cross.qkv.weight.zero_()
        block.cross.qkv.bias.zero_()
        block.cross.qkv.weight[:dim] = 0
        block.cross.qkv.bias[:dim] = 5.0
        block.cross.qkv.weight[dim : 2 * dim] = torch.eye(dim) * 5
        sign = torch.ones(dim)
        tokens = torch.zeros(1, 9, 96)
    network.projections[0] = nn.Linear(96, dim)
    with torch.no_grad():
        nn.init.zeros_(network.projections[0].weight)
        nn.init.zeros_(network.projections[0].bias)
        network.projections[0].weight[: dim // 2] = 1.0
        network.levels.copy_(sign[None] * 0)
        block.norm_level.weight.fill_(1.0)
        block.norm_level.bias.copy_(torch.cat([torch.zeros(dim // 2), torch.zeros(dim - dim // 2)]))
        block.cross.qkv.weight[dim : 2 * dim, dim // 2 :] = 0  # keys: the first half of the channels alone
        tokens[0, 5] = 1.0  # row 1, column 2 of 3 x 3
        seen: list[Tensor] = []
        network.read([tokens], seen)
    assert seen[0].unflatten(1, (3, 3))[0].flatten().argmax() == 5


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"size": 100}, "multiple of 32"), ({"queries": 0}, "at least one query"), ({"depths": ()}, "depths are"),
        ({"depths": (1, 0, 1, 1)}, "at least 1"), ({"depths": (1,) * 5}, "heads for 4"),
        ({"depths": (1,) * 5, "heads": (1,) * 5}, "has 4"),
        ({"heads": (5, 5, 5, 5)}, "do not divide into 5"), ({"top": 9}, "chosen 9 of 4"),
        ({"convnext_settings": {"dims": (8, 16, 32, 64), "depths": (1, 1, 1, 1)}}, "they must be equal"),
    ],
)  # fmt: skip
def test_settings_that_do_not_fit(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingError, match=words):
        small(**settings)


def test_names_and_sizes_that_are_not_known() -> None:
    with pytest.raises(UnknownNameError, match="hsqformer"):
        model.create("hsqformr")
    with pytest.raises(UnknownNameError, match="queries"):
        model.create("hsqformer", querys=3)
    with pytest.raises(SettingError):
        model.create("hsqformer", order="sideways")
    with pytest.raises(ShapeError, match="H=64"):
        small()(torch.zeros(1, 3, 96, 96))


@pytest.mark.parametrize("kind", [*KINDS, "mlp"])
def test_one_graph(kind: str) -> None:
    network, image = small(experts=kind, depths=(1, 1)).eval(), torch.randn(2, 3, 64, 64)
    torch.compiler.reset()
    with torch.no_grad():
        compiled = torch.compile(network, fullgraph=True, backend="eager")
        assert torch.allclose(compiled(image), network(image), atol=1e-5)


# --- the backbone to compare with -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "overrides", "mapped"),
    [
        ("swin/tiny", {"depths": (1, 1, 1, 1), "dim": 12, "heads": (1, 1, 1, 1)}, True),
        ("convnext/v2_atto", {"depths": (1, 1, 1, 1)}, True),
        ("resnet/18", {}, True),
        ("vit/tiny", {"depth": 1}, False),
    ],
)
def test_any_backbone_with_a_linear_head(name: str, overrides: dict[str, Any], mapped: bool) -> None:
    torch.manual_seed(0)
    network: Any = model.create("backbone", backbone=name, overrides=overrides, classes=3, size=64).eval()
    image = torch.randn(2, 3, 64, 64)
    logits, maps = model.explained(network, image)
    with torch.no_grad():
        assert torch.equal(logits, network(image))
    assert logits.shape == (2, 3)
    assert (maps is not None) is mapped
    if maps is not None:
        assert torch.allclose(maps[0].sum((1, 2)), torch.ones(2), atol=1e-5)
        assert float(maps[0].min()) >= 0
    network.freeze_encoder()
    assert {n.split(".")[0] for n, p in network.named_parameters() if p.requires_grad} == {"head"}


def test_a_class_activation_map_by_hand() -> None:
    torch.manual_seed(0)
    overrides = {"depths": (1, 1, 1, 1), "dim": 12, "heads": (1, 1, 1, 1)}
    network: Any = model.create("backbone", backbone="swin/tiny", overrides=overrides, size=96).eval()
    image = torch.randn(1, 3, 96, 96)
    logits, maps = model.explained(network, image)
    assert maps is not None
    with torch.no_grad():
        x = network.head.norm(network.encoder(image)[-1].permute(0, 2, 3, 1))
        each = x @ network.head.fc.weight[int(logits.argmax())]
        assert float(each.mean() + network.head.fc.bias[int(logits.argmax())]) == pytest.approx(
            float(logits.max()), abs=1e-5
        )
        want = each.clamp(min=0)
    assert torch.allclose(maps[0], want / want.sum(), atol=1e-6)


# --- weights of the authors -------------------------------------------------------------------------------------------


def names() -> dict[str, tuple[int, ...]]:
    document = json.loads(VECTOR.read_text())
    return {n: tuple(s) for n, s in document["state"].items()}


def authors(network: Any) -> dict[str, Tensor]:
    """The authors' names with the values of a small network of ours, all of which they must give."""
    keymap, ours = model.KEYMAPS["hsqformer"], network.state_dict()
    found: dict[str, Tensor] = {}
    kinds = {n.replace("moe.experts.0.", "moe."): s for n, s in names().items() if "moe.experts.0." in n}
    heads = ("head.fc1.weight", "head.fc1.bias", "head.fc2.weight", "head.fc2.bias")
    blocks = {n.replace(".0.0.", ".1.1.") for n in names() if n.startswith("q_cross_stage.0.0.")}
    moe_head = {n.replace("sc_att_mlp.0.moe.", "head.") for n in names() if n.startswith("sc_att_mlp.0.moe.")}
    for name in {*names(), *kinds, *heads, *blocks, *moe_head, *(n.replace(".0.0.", ".1.1.") for n in kinds)}:
        if (mine := keymap.name(name)) in ours:
            found[name] = ours[mine]
    assert len(found) == len(ours)
    return found


@pytest.mark.parametrize("kind", ["token", "mlp"])
def test_every_published_name_has_its_place(kind: str) -> None:
    given = names()
    if kind == "mlp":
        given = {n.replace("moe.experts.0.", "moe."): s for n, s in given.items() if not any(
            w in n for w in ("topkroute", "noise_linear", "experts.1", "experts.2", "experts.3")
        )}  # fmt: skip
    state = {n: torch.empty(s, device="meta") for n, s in given.items()}
    found = model.from_published({}, given, model.NETWORKS["hsqformer"])
    assert found == replace(model.NETWORKS["hsqformer"], experts="mlp" if kind == "mlp" else "sparse_token")  # type: ignore[type-var]
    network = measure.on_meta(lambda: model.build(found))
    assert len(convert(state, model.KEYMAPS["hsqformer"], network)) == len(state)


@pytest.mark.parametrize(
    "settings",
    [
        {}, {"experts": "mlp"}, {"depths": (1, 2, 1, 1)}, {"head": "mlp", "queries": 7, "dim": 48}, {"head": "experts"},
        {"depths": (1, 1), "order": "parallel"}, {"classes": 4},
    ],
    ids=str,
)  # fmt: skip
def test_an_authors_file(settings: dict[str, Any], tmp_path: Path) -> None:
    network = small(**settings).eval()
    path = tmp_path / "LENet_val0.pth"
    wheel = torch.optim.SGD(network.parameters(), lr=0.1)
    cycle = torch.optim.lr_scheduler.OneCycleLR(wheel, 0.1, total_steps=10)
    state = {f"module.{n}": v for n, v in authors(network).items()}
    state["module.swintransformer.layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(49, 49).long()
    torch.save(
        {"epoch": 7, "state_dict": state, "optimizer": wheel.state_dict(), "lr_schedule": cycle.state_dict()}, path
    )
    # What shapes cannot say is said; queries, width, depths, head and classes are read.
    base = model.configured("hsqformer", {**SMALL, **{k: v for k, v in settings.items() if k == "order"}})
    found, taken = model.import_weights(path, "hsqformer", base)
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(found(image), network(image))
    assert taken.part == "network"
    assert taken.taken == len(network.state_dict())
    assert "network of hsqformer from x" in taken.sentence("x")


def test_files_that_do_not_fit(tmp_path: Path) -> None:
    network = small()
    base = model.configured("hsqformer", SMALL)
    state = authors(network)
    cut, path = dict(state), tmp_path / "a.pth"
    cut.pop("head_norm.bias")
    torch.save(cut, path)
    with pytest.raises(WeightsError, match=r"a\.pth: 1 names do not fit.*norm\.bias: in the network, not in the file"):
        model.import_weights(path, "hsqformer", base)
    torch.save({n: v for n, v in state.items() if n != "query_tokens"}, path)
    with pytest.raises(WeightsError, match="not a hsqformer file, it has no 'query_tokens'"):
        model.import_weights(path, "hsqformer", base)
    torch.save({"a": torch.zeros(2)}, path)
    with pytest.raises(WeightsError, match=r"a\.pth: neither the whole network nor a backbone"):
        model.import_weights(path, "hsqformer", base)
    torch.save(state, path)
    with pytest.raises(WeightsError, match="holds a hsqformer, backbone was asked for"):
        model.import_weights(path, "backbone")
    with pytest.raises(WeightsError, match="asks for one MLP"):
        model.import_weights(path, "hsqformer", model.configured("hsqformer", {**SMALL, "experts": "mlp"}))
    with pytest.raises(WeightsError, match="serial_parallel is one of"):
        model.from_published({"serial_parallel": "both"}, names(), model.NETWORKS["hsqformer"])
    with pytest.raises((WeightsError, BundleError)):
        model.import_weights(tmp_path / "none.pth", "hsqformer")


def test_authors_arguments() -> None:
    given = json.loads(VECTOR.read_text())
    build = given["build"] | {"serial_parallel": "parallel", "sparse_dense": "dense_expert", "dropout": 0.25}
    found: Any = model.from_published(build, names(), model.NETWORKS["hsqformer"])
    assert (found.order, found.experts, found.dropout, found.drop_path) == ("parallel", "dense_expert", 0.25, 0.2)
    assert (found.queries, found.dim, found.depths, found.size, found.head) == (200, 384, (1, 1, 1, 1), 224, "linear")


def swin_and_convnext(folder: Path) -> tuple[Any, Any]:
    """Files of two small backbones in the authors' names, with a classifier for 10 classes."""
    torch.manual_seed(5)
    network = small()
    theirs = authors(network)
    folder.mkdir()
    for prefix in ("swintransformer.", "convnext."):
        state = {n.removeprefix(prefix): v.clone() for n, v in theirs.items() if n.startswith(prefix)}
        width = 96
        state |= {"norm.weight": torch.ones(width), "norm.bias": torch.zeros(width)}
        state |= {"head.weight": torch.zeros(10, width), "head.bias": torch.zeros(10)}
        torch.save({"model": state}, folder / f"{prefix}pth")
    return network.swin, network.convnext


def test_beginning_with_the_two_backbones(tmp_path: Path) -> None:
    swin, convnext = swin_and_convnext(tmp_path / "both")
    torch.manual_seed(9)
    network: Any = model.create("hsqformer", **SMALL)
    before = {n: v.clone() for n, v in network.state_dict().items()}
    said = model.initialise(network, "hsqformer", tmp_path / "both")
    assert "convnext and swin of hsqformer" in said
    for part, want in (("swin", swin), ("convnext", convnext)):
        mine = getattr(network, part).state_dict()
        assert all(torch.equal(v, mine[n]) for n, v in want.state_dict().items())
    assert torch.equal(before["fusions.0.norm.weight"], network.fusions[0].norm.weight)
    other: Any = model.create("hsqformer", **SMALL)
    assert model.initialise(other, "hsqformer", tmp_path / "both" / "convnext.pth").startswith("convnext of")
    (tmp_path / "both" / "again.pth").write_bytes((tmp_path / "both" / "convnext.pth").read_bytes())
    with pytest.raises(WeightsError, match="neither the whole network"):
        model.initialise(other, "hsqformer", tmp_path / "both")


def test_our_own_files_and_heads_for_other_classes(tmp_path: Path) -> None:
    network = small().eval()
    save(network, tmp_path / "ours.safetensors")
    built, taken = model.import_weights(
        tmp_path / "ours.safetensors", "hsqformer", model.configured("hsqformer", SMALL)
    )
    assert taken.part == "network"
    assert all(torch.equal(v, built.state_dict()[n]) for n, v in network.state_dict().items())
    torch.manual_seed(4)
    fresh: Any = model.create("hsqformer", **SMALL, classes=3)
    kept = fresh.head.weight.clone()
    said = model.initialise(fresh, "hsqformer", tmp_path / "ours.safetensors")
    assert "not taken: head.bias, head.weight" in said
    assert torch.equal(fresh.head.weight, kept)
    assert torch.equal(fresh.norm.weight, network.norm.weight)
    wider: Any = model.create("hsqformer", **{**SMALL, "queries": 6})
    with pytest.raises(WeightsError, match=r"quer.* is \(1, 5, 24\) there and \(1, 6, 24\)"):
        model.initialise(wider, "hsqformer", tmp_path / "ours.safetensors")
    loaded = load_published("medical/hsqformer", tmp_path / "ours.safetensors", **SMALL)
    assert all(torch.equal(v, loaded.state_dict()[n]) for n, v in network.state_dict().items())
    plain: Any = model.create("backbone", backbone="resnet/18", size=64)
    save(plain, tmp_path / "plain.safetensors")
    again, _ = model.import_weights(
        tmp_path / "plain.safetensors", "backbone", model.configured("backbone", {"backbone": "resnet/18"})
    )
    assert torch.equal(again.state_dict()["head.fc.weight"], plain.head.fc.weight)
