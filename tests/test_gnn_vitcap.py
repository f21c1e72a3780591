"""GNN-ViTCap: clustering, representatives, graphs and the whole network, against plain loops and what bags are."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from apps.medical.pathology_caption import clustering, graph, model
from apps.medical.pathology_caption._gnn_vitcap import GNNViTCap, Slide, spread
from apps.medical.pathology_caption.clustering import ClusterAttention, Clusters
from apps.medical.pathology_caption.decoder import NOTHING
from apps.medical.pathology_caption.describing import describe
from core import registry
from core.errors import InputError, SettingError, ShapeError

SMALL = {
    "size": 32,
    "overrides": {"dim": 24, "depth": 2, "heads": 2, "patch": 8},
    "width": 12,
    "clusters": 5,
    "neighbours": 2,
    "graph_heads": 3,
    "words": ["gland", "tumour", "."],
    "longest": 6,
    "decoder": {"dim": 16, "depth": 2, "heads": 2},
}
GRAPHS = ("sage", "gcn", "gat")


def made(seed: int = 0, **more: Any) -> GNNViTCap:
    torch.manual_seed(seed)
    network = model.create("gnn_vitcap", **{**SMALL, **more}).double().eval()
    with torch.no_grad():  # centres among the points, so that several clusters are in use
        points = network.projection(torch.randn(60, network.dim, dtype=torch.float64))
        network.clusters.centres.copy_(points[:: 60 // len(network.clusters.centres)][: len(network.clusters.centres)])
    return network


def bag(count: int, seed: int = 1) -> Tensor:
    return torch.randn(count, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def alone(network: GNNViTCap, embeddings: Tensor) -> Slide:
    with torch.no_grad():
        return network.slide(embeddings.unsqueeze(0))


# --- deep embedded clustering ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [1.0, 2.5])
def test_assignment_target_and_divergence_are_the_formulas(alpha: float) -> None:
    points, centres = bag(7)[:, :4], bag(3, 5)[:, :4]
    q = clustering.assignment(points, centres, alpha)
    near = [[(1 + float((z - c) @ (z - c)) / alpha) ** (-(alpha + 1) / 2) for c in centres] for z in points]
    want = np.array([[v / sum(row) for v in row] for row in near])
    np.testing.assert_allclose(q.numpy(), want, rtol=1e-12)
    f = want.sum(0)
    sharp = np.array([[v**2 / f[k] for k, v in enumerate(row)] for row in want])
    p = sharp / sharp.sum(1, keepdims=True)
    np.testing.assert_allclose(clustering.target(q).numpy(), p, rtol=1e-12)
    kl = [sum(p[i, k] * math.log(p[i, k] / want[i, k]) for k in range(3)) for i in range(7)]
    np.testing.assert_allclose(clustering.divergence(q, clustering.target(q)).numpy(), kl, rtol=1e-9)
    assert float(clustering.dec_loss(q)) == pytest.approx(float(np.mean(kl)))


def test_the_target_is_of_a_whole_epoch_and_has_no_gradient() -> None:
    centres = bag(3, 5)[:, :4].requires_grad_()
    q = clustering.assignment(bag(8)[:, :4], centres)
    whole = clustering.target(q)
    halves = torch.cat([clustering.target(part, clustering.frequency(q)) for part in q.split(3)])
    torch.testing.assert_close(halves, whole)
    assert not torch.allclose(torch.cat([clustering.target(part) for part in q.split(3)]), whole)
    torch.testing.assert_close(clustering.target(q, 7 * clustering.frequency(q)), whole)  # its scale plays no role
    assert not whole.requires_grad
    clustering.dec_loss(q).backward()
    assert centres.grad is not None
    assert float(centres.grad.abs().sum()) > 0


def test_padding_does_not_count_for_the_clusters() -> None:
    points, centres = bag(9)[:, :4], bag(3, 5)[:, :4]
    q = clustering.assignment(points, centres)
    mask = torch.tensor([True] * 6 + [False] * 3)
    torch.testing.assert_close(clustering.dec_loss(q, mask=mask), clustering.dec_loss(q[:6]))
    torch.testing.assert_close(clustering.frequency(q, mask), clustering.frequency(q[:6]))
    assert float(clustering.dec_loss(q, mask=torch.zeros(9, dtype=torch.bool))) == 0


def test_the_start_finds_clusters_and_sets_the_kernels_width() -> None:
    draw = torch.Generator().manual_seed(3)
    middles = 20 * torch.randn(4, 10, generator=draw)
    truth = torch.arange(80) % 4
    embeddings = middles[truth] + torch.randn(80, 10, generator=draw)
    projection, clusters = torch.nn.Linear(10, 3), Clusters(3, 4, alpha=1.0)
    clustering.start(projection, clusters, embeddings)
    points = projection(embeddings).detach()
    found = clusters(points).argmax(1)
    assert all(len(found[truth == k].unique()) == 1 for k in range(4))
    assert len(found.unique()) == 4
    away = (points[:, None] - clusters.centres.detach()).square().sum(-1).min(1).values
    assert float(away.mean()) == pytest.approx(1.0, rel=1e-4)
    # Principal axes: no offset, no correlation, the largest spread first.
    spread_ = torch.cov(points.T)
    assert float(points.mean(0).abs().max()) < 1e-4
    assert float((spread_ - spread_.diag().diag()).abs().max()) < 1e-3 * float(spread_.max())
    assert spread_.diag().tolist() == sorted(spread_.diag().tolist(), reverse=True)
    again = torch.nn.Linear(10, 3), Clusters(3, 4)
    clustering.start(*again, embeddings)
    torch.testing.assert_close(again[1].centres, clusters.centres)


def test_the_start_keeps_a_random_projections_directions() -> None:
    projection, clusters = torch.nn.Linear(10, 3), Clusters(3, 4)
    before = projection.weight.detach().clone()
    clustering.start(projection, clusters, bag(50)[:, :10].float(), pca=False)
    factor = projection.weight.detach() / before
    torch.testing.assert_close(factor, torch.full_like(factor, float(factor[0, 0])))


def test_too_few_patches_for_the_clusters_are_refused() -> None:
    same = torch.ones(30, 10)
    with pytest.raises(InputError, match="4 clusters need as many different patches, the training part has 1"):
        clustering.start(torch.nn.Linear(10, 3), Clusters(3, 4), same)
    with pytest.raises(SettingError, match="have no 12 axes"):
        clustering.start(torch.nn.Linear(10, 12), Clusters(12, 4), bag(50)[:, :10].float())
    with pytest.raises(SettingError, match="at least 1"):
        Clusters(3, 0)


# --- representatives ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["soft", "hard"])
def test_representatives_equal_a_plain_loop(form: Any) -> None:
    torch.manual_seed(0)
    layer = ClusterAttention(6, form=form).double().eval()
    points, centres = torch.randn(2, 9, 6, dtype=torch.float64), torch.randn(4, 6, dtype=torch.float64)
    mask = torch.arange(9) < torch.tensor([[9], [5]])
    q = clustering.assignment(points, centres)
    with torch.no_grad():
        got = layer(points, q, mask)
        for b in range(2):
            members: dict[int, list[int]] = {}
            for i in range(9):
                if mask[b, i]:
                    members.setdefault(int(q[b, i].argmax()), []).append(i)
            assert {k for k in range(4) if got.present[b, k]} == set(members)
            for k in range(4):
                if k not in members:
                    assert not got.nodes[b, k].any()
                    continue
                mean = sum(points[b, i] for i in members[k]) / len(members[k])
                scores = torch.stack([layer.query(mean) @ layer.key(points[b, i]) / 6**0.5 for i in members[k]])
                shares = scores.softmax(0)
                torch.testing.assert_close(got.weights[b, members[k]], shares)
                want = sum(s * points[b, i] for s, i in zip(shares, members[k], strict=True))
                if form == "hard":
                    want = points[b, members[k][int(shares.argmax())]]
                torch.testing.assert_close(got.nodes[b, k], want)
            assert got.cluster[b].tolist() == [
                next((k for k, m in members.items() if i in m), -1) for i in range(9)
            ]  # fmt: skip


def test_a_hard_choice_is_a_member_and_hands_on_the_soft_gradient() -> None:
    torch.manual_seed(0)
    hard, soft = (ClusterAttention(6, form=f).double() for f in ("hard", "soft"))
    soft.load_state_dict(hard.state_dict())
    points, centres = torch.randn(1, 9, 6, dtype=torch.float64), torch.randn(2, 6, dtype=torch.float64)
    mask = torch.ones(1, 9, dtype=torch.bool)
    q = clustering.assignment(points, centres)
    nodes = hard(points, q, mask).nodes
    for node in nodes[0].detach():
        assert float((points[0] - node).abs().sum(1).min()) < 1e-12
    pull = torch.randn_like(nodes)
    (nodes * pull).sum().backward()
    (soft(points, q, mask).nodes * pull).sum().backward()
    for a, b in zip(hard.parameters(), soft.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


# --- graphs ---------------------------------------------------------------------------------------------------------


def some_graph(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    nodes = torch.randn(3, 7, 12, dtype=torch.float64, generator=draw)
    present = torch.rand(3, 7, generator=draw) < 0.7
    present[2] = torch.arange(7) == 4  # one node only
    nodes = nodes * present.unsqueeze(-1)
    return nodes, present, graph.neighbours(nodes, present, 2)


def test_neighbours_equal_a_plain_loop() -> None:
    nodes, present, adjacency = some_graph()
    for b in range(3):
        there = [i for i in range(7) if present[b, i]]
        want = torch.zeros(7, 7, dtype=torch.bool)
        for i in there:
            similar = {
                j: float(nodes[b, i] @ nodes[b, j] / nodes[b, i].norm() / nodes[b, j].norm()) for j in there if j != i
            }
            for j in sorted(similar, key=lambda j: -similar[j])[: min(2, len(there) - 1)]:
                want[i, j] = want[j, i] = True
        assert torch.equal(adjacency[b], want)
    assert not adjacency[2].any()


def test_equal_neighbours_are_taken_in_order_and_never_too_many() -> None:
    nodes = torch.ones(1, 5, 3, dtype=torch.float64)
    present = torch.ones(1, 5, dtype=torch.bool)
    adjacency = graph.neighbours(nodes, present, 1)
    want = torch.zeros(5, 5, dtype=torch.bool)
    want[0, 1:] = want[1:, 0] = True  # all look to node 0, which looks to node 1
    assert torch.equal(adjacency[0], want)
    assert int(graph.neighbours(nodes, present, 50).sum()) == 20
    assert not graph.neighbours(nodes, present, 0).any()


def loop_sage(layer: Any, h: Tensor, neighbours: list[list[int]]) -> list[Tensor]:
    out = []
    for v, near in enumerate(neighbours):
        mean = sum(h[u] for u in near) / len(near) if near else torch.zeros(12, dtype=torch.float64)
        out.append((layer.own.weight @ h[v] + layer.own.bias + layer.others.weight @ mean).relu())
    return out


def loop_gcn(layer: Any, h: Tensor, neighbours: list[list[int]]) -> list[Tensor]:
    degree = [len(near) + 1 for near in neighbours]
    out = []
    for v, near in enumerate(neighbours):
        mixed = sum(h[u] / math.sqrt(degree[v] * degree[u]) for u in [v, *near])
        out.append((layer.linear.weight @ mixed + layer.linear.bias).relu())
    return out


def loop_gat(layer: Any, h: Tensor, neighbours: list[list[int]]) -> list[Tensor]:
    wide = 12 // layer.heads
    out = []
    for v, near in enumerate(neighbours):
        parts = []
        for head in range(layer.heads):
            weight = layer.linear.weight[head * wide : (head + 1) * wide]
            logits = []
            for u in [v, *near]:
                e = layer.left[head] @ (weight @ h[v]) + layer.right[head] @ (weight @ h[u])
                logits.append(e if e > 0 else 0.2 * e)
            shares = torch.stack(logits).softmax(0)
            parts.append(sum(s * (weight @ h[u]) for s, u in zip(shares, [v, *near], strict=True)))
        out.append((torch.cat(parts) + layer.bias).relu())
    return out


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("kind", GRAPHS)
def test_graph_layers_equal_a_plain_loop(kind: str, normalise: bool) -> None:
    torch.manual_seed(0)
    nodes, present, adjacency = some_graph()
    layer = {"sage": graph.GraphSAGE, "gcn": graph.GCN, "gat": graph.GAT}[kind](12, normalise=normalise).double()
    with torch.no_grad():
        for vector in (getattr(layer, "bias", None), getattr(getattr(layer, "own", None), "bias", None)):
            if isinstance(vector, torch.nn.Parameter):
                vector.normal_()
        got = layer(nodes, adjacency, present)
        for b in range(3):
            there = [i for i in range(7) if present[b, i]]
            near = [[there.index(j) for j in there if adjacency[b, i, j]] for i in there]
            want = {"sage": loop_sage, "gcn": loop_gcn, "gat": loop_gat}[kind](layer, nodes[b, there], near)
            for i, value in zip(there, want, strict=True):
                value = value / value.norm().clamp(min=1e-12) if normalise else value
                torch.testing.assert_close(got[b, i], value)
            assert not got[b, ~present[b]].any()


@pytest.mark.parametrize("kind", GRAPHS)
def test_a_graph_of_one_node_or_none_is_finite(kind: str) -> None:
    torch.manual_seed(0)
    layers = graph.GraphNetwork(kind, 12, heads=3).double().eval()
    nodes, present, adjacency = some_graph()
    with torch.no_grad():
        none = layers(torch.zeros_like(nodes), torch.zeros_like(adjacency), torch.zeros_like(present))
        one = layers(nodes, adjacency, present)[2]
    assert not none.any()
    assert one[4].isfinite().all()
    assert int(one.any(-1).sum()) <= 1


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(SettingError, match="5 heads"):
        graph.GAT(12, heads=5)


# --- bags -----------------------------------------------------------------------------------------------------------

BAGS = pytest.mark.parametrize(
    "network",
    [made(graph=g, representatives=r) for g in GRAPHS for r in ("soft", "hard")],
    ids=[f"{g}-{r}" for g in GRAPHS for r in ("soft", "hard")],
)


@BAGS
def test_the_order_of_patches_does_not_matter(network: GNNViTCap) -> None:
    patches = bag(17)
    order = torch.randperm(17, generator=torch.Generator().manual_seed(2))
    one, other = alone(network, patches), alone(network, patches[order])
    assert int(one.present.sum()) >= 3
    for name in ("logits", "embedding", "nodes"):
        torch.testing.assert_close(getattr(other, name), getattr(one, name), rtol=1e-10, atol=1e-12)
    assert torch.equal(other.cluster, one.cluster[:, order])
    torch.testing.assert_close(other.weights, one.weights[:, order])
    assert torch.equal(other.adjacency, one.adjacency)


@BAGS
def test_a_bag_given_twice_is_the_same_bag(network: GNNViTCap) -> None:
    patches = bag(17)
    one, other = alone(network, patches), alone(network, patches.repeat(2, 1))
    for name in ("logits", "embedding", "nodes"):
        torch.testing.assert_close(getattr(other, name), getattr(one, name), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(other.weights[:, :17] + other.weights[:, 17:], one.weights)


@BAGS
def test_doubling_one_patch_moves_its_clusters_node_only(network: GNNViTCap) -> None:
    patches = bag(17)
    one = alone(network, patches)
    sizes = torch.bincount(one.cluster[0], minlength=5)
    chosen = next(i for i in range(17) if sizes[one.cluster[0, i]] > 1)
    other = alone(network, torch.cat([patches, patches[chosen : chosen + 1]]))
    moved = (other.nodes - one.nodes).abs().amax(-1)[0] > 1e-12
    wanted = torch.arange(5) == one.cluster[0, chosen]
    if network.config.representatives == "soft":
        assert torch.equal(moved, wanted)
    else:  # the mean that asks moves, and its choice may stay
        assert not (moved & ~wanted).any()
    assert torch.equal(other.present, one.present)


@BAGS
def test_a_bag_of_one_patch(network: GNNViTCap) -> None:
    found = alone(network, bag(1))
    assert int(found.present.sum()) == 1
    assert not found.adjacency.any()
    assert found.weights.tolist() == [[1.0]]
    assert found.logits.isfinite().all()
    torch.testing.assert_close(found.nodes.sum(1), network.projection(bag(1)))
    told = describe([network], [bag(1)], beams=2)
    assert [r.patch for r in told.representatives] == [0]


@BAGS
def test_an_empty_cluster_gives_no_node(network: GNNViTCap) -> None:
    patches = bag(17)
    gone = int(alone(network, patches).cluster[0, 0])
    moved = made(graph=network.config.graph, representatives=network.config.representatives)
    moved.load_state_dict(network.state_dict())
    with torch.no_grad():
        moved.clusters.centres[gone] = 1e6  # nobody's
    found = alone(moved, patches)
    assert not found.present[0, gone]
    assert not found.nodes[0, gone].any()
    assert not found.adjacency[0, gone].any()
    assert found.logits.isfinite().all()
    four = made(graph=network.config.graph, representatives=network.config.representatives, clusters=4)
    others = network.clusters.centres[[k for k in range(5) if k != gone]]
    four.load_state_dict(network.state_dict() | {"clusters.centres": others})
    torch.testing.assert_close(alone(four, patches).logits, found.logits)


@BAGS
def test_padding_and_other_bags_do_not_matter(network: GNNViTCap) -> None:
    bags = [bag(n, n) for n in (3, 11, 1)]
    values = torch.full((3, 14, 24), 1e3, dtype=torch.float64)  # what stands behind a bag's end is arbitrary
    mask = torch.zeros(3, 14, dtype=torch.bool)
    for b, one in enumerate(bags):
        values[b, : len(one)], mask[b, : len(one)] = one, True
    with torch.no_grad():
        together = network.slide(values, mask)
    for b, one in enumerate(bags):
        single = alone(network, one)
        for name in ("logits", "embedding", "nodes", "present", "adjacency"):
            torch.testing.assert_close(getattr(together, name)[b], getattr(single, name)[0], rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(together.weights[b, : len(one)], single.weights[0])
        assert not together.weights[b, len(one) :].any()
        assert (together.cluster[b, len(one) :] == -1).all()


def test_patches_of_several_bags_go_through_in_one_row() -> None:
    network = made()
    patches = torch.randn(7, 3, 32, 32, dtype=torch.float64)
    mask = torch.arange(5) < torch.tensor([[5], [2]])
    with torch.no_grad():
        both = network(patches, mask)
        for b, part in enumerate((patches[:5], patches[5:])):
            torch.testing.assert_close(both.logits[b], network(part).logits[0])
        embedded = network.embed(patches)
        torch.testing.assert_close(network(spread(embedded, mask), mask).logits, both.logits)
    assert network.embed(patches).shape == (7, 24)
    with pytest.raises(ShapeError, match="7 patches, and a mask with 3 places"):
        network(patches, torch.ones(1, 3, dtype=torch.bool))
    with pytest.raises(ShapeError, match="W=32"):
        network(torch.randn(2, 3, 32, 40))
    with pytest.raises(ShapeError, match="mask of their bags"):
        network.slide(bag(4)[None], torch.ones(1, 3, dtype=torch.bool))


def test_weights_say_what_decided() -> None:
    network = made()
    told = describe([network], [bag(17)], beams=1)
    found = alone(network, bag(17))
    assert sum(told.weights) == pytest.approx(1)
    assert sum(told.probabilities) == pytest.approx(1)
    assert told.clusters == tuple(found.cluster[0].tolist())
    assert sum(r.patches for r in told.representatives) == 17
    for r in told.representatives:
        members = [i for i in range(17) if told.clusters[i] == r.cluster]
        assert r.patch == max(members, key=lambda i: told.weights[i])
        assert told.weights[r.patch] * len(told.representatives) == pytest.approx(r.weight)
        assert r.neighbours == tuple(found.adjacency[0, r.cluster].nonzero().flatten().tolist())


def test_several_networks_speak_with_their_mean() -> None:
    one, other = made(0), made(7)
    both = describe([one, other], [bag(9), bag(9, 4)], beams=2)
    single = [describe([n], [b], beams=2) for n, b in ((one, bag(9)), (other, bag(9, 4)))]
    np.testing.assert_allclose(both.probabilities, np.mean([s.probabilities for s in single], axis=0))
    np.testing.assert_allclose(both.weights, np.mean([s.weights for s in single], axis=0))
    assert both.clusters == single[0].clusters
    twice = describe([one, one], [bag(9), bag(9)], beams=2)
    assert twice.caption == single[0].caption
    assert twice.log_probability == pytest.approx(single[0].log_probability)
    with pytest.raises(InputError, match="different words"):
        describe([one, made(words=["gland", "stroma", "."])], [bag(9), bag(9)])
    with pytest.raises(InputError, match="do not fit together"):
        describe([one, made(classes=3)], [bag(9), bag(9)])
    with pytest.raises(InputError, match="different numbers of patches"):
        describe([one, other], [bag(9), bag(8)])
    with pytest.raises(InputError, match="without patches"):
        describe([one], [bag(0)])


# --- the whole network ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["soft", "hard"])
@pytest.mark.parametrize("kind", GRAPHS)
def test_every_weight_gets_a_gradient(kind: str, form: str) -> None:
    network = made(graph=kind, representatives=form, dropout=0.0).train()
    mask = torch.arange(6) < torch.tensor([[6], [5]])
    patches = torch.randn(11, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():  # several clusters in both bags
        network.clusters.centres.copy_(network.projection(network.embed(patches)[[0, 2, 4, 6, 8]]))
    slide = network(patches, mask)
    assert int(slide.present.sum(1).min()) > 1
    tokens = torch.tensor([[1, 4, 5, 6, 2], [1, 5, 2, NOTHING, NOTHING]])
    loss, count = network.caption_loss(slide.embedding, tokens)
    assert int(count) == 6
    total = loss + slide.logits.square().sum() + clustering.dec_loss(slide.assignment, mask=slide.mask)
    total.backward()
    missing = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert missing == []


def test_a_network_for_classes_or_captions_alone() -> None:
    classes = made(language="none", words=[])
    assert classes.language is None
    with pytest.raises(InputError, match="writes no captions"):
        classes.prefixes(torch.zeros(1, 12))
    assert describe([classes], [bag(3)]).caption == ""
    captions = made(classes=0)
    assert captions.head is None
    assert alone(captions, bag(3)).logits.shape == (1, 0)
    assert describe([captions], [bag(3)]).probabilities == ()
    with pytest.raises(SettingError, match="language model from a folder"):
        model.create("gnn_vitcap", **SMALL, language="hosted")
    with pytest.raises(SettingError, match="sizes are 1 or more"):
        model.create("gnn_vitcap", **{**SMALL, "prefix": 0})


@pytest.mark.parametrize(
    ("backbone", "overrides", "how"),
    [
        ("vit/tiny", {"dim": 24, "depth": 1, "heads": 2, "patch": 8, "class_token": False}, "mean_tokens"),
        ("vit/dinov2_small_registers", {"dim": 24, "depth": 1, "heads": 2, "patch": 8}, "token"),
        ("convnext/v2_atto", {}, "mean"),
    ],
)
def test_other_backbones_embed_patches(backbone: str, overrides: dict[str, Any], how: str) -> None:
    torch.manual_seed(0)
    network = model.create("gnn_vitcap", **{**SMALL, "backbone": backbone, "overrides": overrides}).eval()
    patches = torch.randn(3, 3, 32, 32)
    assert network.encoder.how == how
    with torch.no_grad():
        embedded = network.embed(patches)
        body = network.encoder.backbone
        last = body(patches)[-1].mean((2, 3))
        want = torch.nn.functional.layer_norm(last, last.shape[1:]) if how == "mean" else body.tokens(patches)
        if how == "mean_tokens":
            want = want.mean(1)
        elif how == "token":
            want = want[:, 0]
    torch.testing.assert_close(embedded, want)
    assert network(patches).logits.shape == (1, 2)


def test_half_precision_stays_finite_and_compiled_answers_are_equal() -> None:
    network = made().float()
    patches = torch.randn(7, 3, 32, 32)
    mask = torch.arange(5) < torch.tensor([[5], [2]])
    with torch.no_grad():
        plain = network(patches, mask)
        with torch.autocast("cpu", torch.bfloat16):
            half = network(patches, mask)
        whole = torch.compile(network, fullgraph=True, backend="eager")(patches, mask)
    assert half.logits.isfinite().all()
    assert half.assignment.dtype == torch.float32
    torch.testing.assert_close(whole.logits, plain.logits)


def test_it_is_known_by_name_and_its_weights_come_back(tmp_path: Any) -> None:
    from core import weights

    network = made().float()
    weights.save(network, tmp_path / "own.safetensors")
    again, taken = model.import_weights(
        tmp_path / "own.safetensors", "gnn_vitcap", model.configured("gnn_vitcap", SMALL)
    )
    assert taken.part == "network"
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), again.parameters(), strict=True))
    assert registry.lookup("medical/gnn_vitcap")[1] == model.NETWORKS["gnn_vitcap"]
    more = weights.load_published("medical/gnn_vitcap", tmp_path / "own.safetensors", classes=5, new_head=True, **SMALL)
    assert more.head is not None  # type: ignore[union-attr]
    assert more.config.classes == 5  # type: ignore[union-attr]


def test_published_weights_of_the_backbone_fill_the_encoder(tmp_path: Any) -> None:
    """A file under the authors' names (timm's, DeiT's) of a plain ViT."""
    from safetensors.torch import save_file

    from core.errors import WeightsError

    torch.manual_seed(1)
    names = {
        "cls_token": (1, 1, 24), "pos_embed": (1, 17, 24), "patch_embed.proj.weight": (24, 3, 8, 8),
        "patch_embed.proj.bias": (24,), "norm.weight": (24,), "norm.bias": (24,),
    }  # fmt: skip
    for i in range(2):
        at = f"blocks.{i}."
        names |= {
            f"{at}norm1.weight": (24,), f"{at}norm1.bias": (24,), f"{at}attn.qkv.weight": (72, 24),
            f"{at}attn.qkv.bias": (72,), f"{at}attn.proj.weight": (24, 24), f"{at}attn.proj.bias": (24,),
            f"{at}norm2.weight": (24,), f"{at}norm2.bias": (24,), f"{at}mlp.fc1.weight": (96, 24),
            f"{at}mlp.fc1.bias": (96,), f"{at}mlp.fc2.weight": (24, 96), f"{at}mlp.fc2.bias": (24,),
        }  # fmt: skip
    state = {name: torch.randn(shape) for name, shape in names.items()}
    save_file(state, tmp_path / "vit.safetensors")
    config = model.configured("gnn_vitcap", SMALL)
    network, taken = model.import_weights(tmp_path / "vit.safetensors", "gnn_vitcap", config)
    assert taken.part == "patch encoder"
    assert taken.taken == len(state)
    torch.testing.assert_close(network.encoder.backbone.norm.weight, state["norm.weight"])  # type: ignore[union-attr]
    fresh = made().float()
    told = model.initialise(fresh, "gnn_vitcap", tmp_path / "vit.safetensors")
    assert "patch encoder of gnn_vitcap" in told
    torch.testing.assert_close(fresh.embed(torch.ones(1, 3, 32, 32)), network.embed(torch.ones(1, 3, 32, 32)))  # type: ignore[operator]
    del state["blocks.1.norm2.weight"]
    save_file(state, tmp_path / "cut.safetensors")
    with pytest.raises(WeightsError, match=r"cut\.safetensors.*norm2\.weight"):
        model.import_weights(tmp_path / "cut.safetensors", "gnn_vitcap", config)
