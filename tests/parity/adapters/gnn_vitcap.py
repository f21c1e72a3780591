"""GNN-ViTCap: the one part with published code, deep embedded clustering: q, p and the divergence of each point."""

from __future__ import annotations

from typing import Any

import torch
from run import Fixture
from torch import Tensor

from apps.medical.pathology_caption.clustering import Clusters, divergence, target

SCALE = 0.3  # of the recipe's input, as the vector's notes say


def model(fixture: Fixture, dtype: torch.dtype) -> Clusters:
    """The layer of the vector's size, with its centres."""
    count, dim = fixture.state["cluster_centers"]
    made = Clusters(dim, count, alpha=fixture.build["alpha"])
    with torch.no_grad():
        made.centres.copy_(fixture.state_dict()["cluster_centers"])
    return made.to(dtype).eval()


def answers(clusters: Any, fixture: Fixture, dtype: torch.dtype) -> dict[str, Tensor]:
    q = clusters(SCALE * fixture.input("embeddings").to(dtype))
    p = target(q)
    return {"q": q, "p": p, "kl_per_patch": divergence(q, p)}
