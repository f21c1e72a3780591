"""Graphs over the representatives of a bag, and networks on them, batched over bags as dense matrices with masks.

Papers: arXiv 1706.02216 (GraphSAGE), 1609.02907 (GCN), 1710.10903 (GAT). Shapes: nodes (B, K, D), present (B, K) bool,
adjacency (B, K, K) bool, symmetric and without self-loops. Nodes that are not present stay zero.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.errors import SettingError
from core.layers.linear import Linear


def neighbours(nodes: Tensor, present: Tensor, count: int) -> Tensor:
    """Adjacency (B, K, K): each node with the `count` others of the largest cosine similarity, and they with it.

    With fewer others all of them are taken; among equals the first ones. No gradient. Places are counted by comparing
    every other with every other, which needs no sorting and can be exported.
    """
    with torch.no_grad():
        unit = F.normalize(nodes, dim=-1)
        pairs = present.unsqueeze(2) & present.unsqueeze(1)
        pairs = pairs & ~torch.eye(nodes.shape[1], dtype=torch.bool, device=nodes.device)
        similar = (unit @ unit.transpose(1, 2)).masked_fill(~pairs, -torch.inf)
        mine, other = similar.unsqueeze(3), similar.unsqueeze(2)  # (B, K, K, K): of a node, one other against all
        first = torch.ones_like(pairs[0]).triu(1).T  # among equals the one with the smaller number
        rank = ((other > mine) | ((other == mine) & first)).sum(-1)
        kept = pairs & (rank < count)
        return kept | kept.transpose(1, 2)


class GraphSAGE(nn.Module):
    """h' = ReLU(W1 h + W2 mean of the neighbours' h); the mean of no neighbours is 0.

    Args:
        dim: of the nodes, before and after.
        normalise: scale each node to length 1 afterwards.
    """

    def __init__(self, dim: int, *, normalise: bool = False) -> None:
        super().__init__()
        self.normalise = normalise
        self.own, self.others = Linear(dim, dim), Linear(dim, dim, bias=False)

    def forward(self, nodes: Tensor, adjacency: Tensor, present: Tensor) -> Tensor:
        joined = adjacency.to(nodes.dtype)
        mean = joined @ nodes / joined.sum(-1, keepdim=True).clamp(min=1)
        return _finished(self.own(nodes) + self.others(mean), present, self.normalise)


class GCN(nn.Module):
    """h' = ReLU(D^-1/2 (A + I) D^-1/2 h W + b), D the degrees with the self-loop. Arguments as of GraphSAGE."""

    def __init__(self, dim: int, *, normalise: bool = False) -> None:
        super().__init__()
        self.normalise = normalise
        self.linear = Linear(dim, dim)

    def forward(self, nodes: Tensor, adjacency: Tensor, present: Tensor) -> Tensor:
        looped = _looped(adjacency).to(nodes.dtype)
        root = looped.sum(-1, keepdim=True).rsqrt()
        mixed = root * (looped @ (root * nodes))
        return _finished(self.linear(mixed), present, self.normalise)


class GAT(nn.Module):
    """h' = ReLU(sum of a W h + b) over neighbours and the node itself, a by softmax of LeakyReLU(l.Wh_i + r.Wh_j).

    Args:
        dim: of the nodes, before and after; the heads' answers are joined.
        heads: that divide `dim`.
        normalise: as of GraphSAGE.
    """

    SLOPE = 0.2  # of the LeakyReLU, the paper's

    def __init__(self, dim: int, *, heads: int = 4, normalise: bool = False) -> None:
        super().__init__()
        if heads < 1 or dim % heads:
            raise SettingError(f"{heads} heads of the graph do not divide its width {dim}")
        self.heads, self.normalise = heads, normalise
        self.linear = Linear(dim, dim, bias=False)
        self.bias = nn.Parameter(torch.zeros(dim))
        self.left, self.right = (nn.Parameter(torch.empty(heads, dim // heads)) for _ in range(2))
        for vector in (self.left, self.right):
            nn.init.xavier_uniform_(vector)

    def forward(self, nodes: Tensor, adjacency: Tensor, present: Tensor) -> Tensor:
        values = self.linear(nodes).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, heads, K, d)
        asks, answers = ((values * v.unsqueeze(1)).sum(-1) for v in (self.left, self.right))  # (B, heads, K)
        logits = F.leaky_relu(asks.unsqueeze(-1) + answers.unsqueeze(-2), self.SLOPE)  # (B, heads, K, K)
        # Self-loops are everywhere, absent nodes included: no row is empty.
        weights = logits.masked_fill(~_looped(adjacency).unsqueeze(1), -torch.inf).softmax(-1)
        mixed = (weights @ values).transpose(1, 2).flatten(2)
        return _finished(mixed + self.bias, present, self.normalise)


def _looped(adjacency: Tensor) -> Tensor:
    return adjacency | torch.eye(adjacency.shape[-1], dtype=torch.bool, device=adjacency.device)


def _finished(nodes: Tensor, present: Tensor, normalise: bool) -> Tensor:
    nodes = nodes.relu() * present.unsqueeze(-1)
    return F.normalize(nodes, dim=-1) if normalise else nodes


class GraphNetwork(nn.Module):
    """Layers of one kind with dropout after each; nodes (B, K, D) -> the same.

    Args:
        kind: "sage", "gcn" or "gat".
        dim: of the nodes.
        layers: how many; 0 leaves the nodes as they are.
        heads: of "gat".
        normalise: as of GraphSAGE.
        dropout: part of the numbers that is dropped in training.
    """

    def __init__(
        self, kind: str, dim: int, *, layers: int = 2, heads: int = 4, normalise: bool = False, dropout: float = 0.5
    ) -> None:
        super().__init__()
        kinds = {
            "sage": lambda: GraphSAGE(dim, normalise=normalise),
            "gcn": lambda: GCN(dim, normalise=normalise),
            "gat": lambda: GAT(dim, heads=heads, normalise=normalise),
        }
        self.layers = nn.ModuleList(kinds[kind]() for _ in range(layers))
        self.dropout = nn.Dropout(dropout)

    def forward(self, nodes: Tensor, adjacency: Tensor, present: Tensor) -> Tensor:
        for layer in self.layers:
            nodes = self.dropout(layer(nodes, adjacency, present))
        return nodes
