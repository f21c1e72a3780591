"""Deep embedded clustering, and what represents each cluster of a bag.

Paper: arXiv 1511.06335 (DEC). Reference: github.com/vlukiyanov/pt-dec (MIT) at 11b3055, whose numbers these are.
Shapes: points (..., D), centres (K, D), q and p (..., K); a bag is points (B, N, D) under a mask (B, N), True where
there is a patch.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from core.errors import InputError, SettingError
from core.layers.linear import Linear

RESTARTS = 20  # of k-means
DRAWN = 50_000  # patches that k-means looks at


def assignment(points: Tensor, centres: Tensor, alpha: float = 1.0) -> Tensor:
    """q: how much each point belongs to each cluster, (1 + |z - mu|^2 / alpha)^(-(alpha + 1) / 2), sum 1 over clusters.

    Arithmetic is float32 at least.
    """
    points, centres = (x if x.dtype == torch.float64 else x.float() for x in (points, centres))
    away = (points.unsqueeze(-2) - centres).square().sum(-1)
    near = (1 + away / alpha).pow(-(alpha + 1) / 2)
    return near / near.sum(-1, keepdim=True)


def frequency(q: Tensor, mask: Tensor | None = None) -> Tensor:
    """f: how many points each cluster holds, softly; (..., K) under a mask (...) -> (K,)."""
    return (q if mask is None else q * mask.unsqueeze(-1)).flatten(0, -2).sum(0)


def target(q: Tensor, counts: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
    """p: what q is drawn towards, q^2 / f with the sum 1 over clusters; no gradient.

    Args:
        q: assignments (..., K).
        counts: f (K,) of a whole epoch; of these points by default. Its scale plays no role.
        mask: points that count for f.
    """
    q = q.detach()
    counts = frequency(q, mask) if counts is None else counts.to(q.dtype)
    sharp = q.square() / counts.clamp(min=torch.finfo(q.dtype).tiny)
    return sharp / sharp.sum(-1, keepdim=True)


def divergence(q: Tensor, p: Tensor) -> Tensor:
    """KL(p | q) of each point, (..., K) -> (...)."""
    return (torch.xlogy(p, p) - torch.xlogy(p, q)).sum(-1)


def dec_loss(q: Tensor, counts: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
    """The mean over points of KL(p | q); 0 where no point counts. Arguments as of `target`."""
    each = divergence(q, target(q, counts, mask))
    if mask is None:
        return each.mean()
    return (each * mask).sum() / mask.sum().clamp(min=1)


class Representatives(NamedTuple):
    """What stands for the clusters of each bag.

    Attributes:
        nodes: (B, K, D); zeros where the cluster is empty.
        present: (B, K) bool: clusters that hold a patch.
        weights: (B, N): the part of each patch in its cluster, sum 1 over a cluster; 0 for padding.
        cluster: (B, N): the cluster of each patch; -1 for padding.
    """

    nodes: Tensor
    present: Tensor
    weights: Tensor
    cluster: Tensor


class Clusters(nn.Module):
    """K centres: points (..., D) -> assignments q (..., K).

    Args:
        dim: of the points.
        clusters: K.
        alpha: degrees of freedom of the kernel.
    """

    def __init__(self, dim: int, clusters: int, *, alpha: float = 1.0) -> None:
        super().__init__()
        if clusters < 1 or alpha <= 0:
            raise SettingError(f"clusters are at least 1 and alpha is above 0, got {clusters} and {alpha}")
        self.alpha = alpha
        self.centres = nn.Parameter(torch.empty(clusters, dim))
        nn.init.normal_(self.centres)

    def forward(self, points: Tensor) -> Tensor:
        return assignment(points, self.centres, self.alpha)


class ClusterAttention(nn.Module):
    """One representative for each cluster of a bag, by attention among its members.

    Scores of the members are scaled dot products of the cluster's mean (query) and the member (key). "soft" takes the
    members' mean under the softmax of the scores; "hard" takes the member of the largest score, the first among equals,
    and in training hands on the soft form's gradient, since a choice has none.

    Args:
        dim: of the points.
        form: of the representatives.
    """

    def __init__(self, dim: int, *, form: Literal["soft", "hard"] = "soft") -> None:
        super().__init__()
        self.form = form
        self.query, self.key = Linear(dim, dim, bias=False), Linear(dim, dim, bias=False)

    def forward(self, points: Tensor, q: Tensor, mask: Tensor) -> Representatives:
        """Points (B, N, D) with assignments q (B, N, K) under a mask (B, N)."""
        cluster = torch.where(mask, q.argmax(-1), -1)
        member = cluster.unsqueeze(-1) == torch.arange(q.shape[-1], device=q.device)  # (B, N, K)
        inside = member.to(points.dtype)
        size = inside.sum(1)  # (B, K)
        mean = inside.transpose(1, 2) @ points / size.clamp(min=1).unsqueeze(-1)
        score = self.key(points) @ self.query(mean).transpose(1, 2) * points.shape[-1] ** -0.5  # (B, N, K)
        # The lowest finite number, not minus infinity: a column without members must not become NaN.
        shares = score.masked_fill(~member, torch.finfo(score.dtype).min).softmax(1) * inside
        nodes = shares.transpose(1, 2) @ points
        present = size > 0
        if self.form == "hard":
            first = shares.argmax(1)  # (B, K)
            chosen = points.gather(1, first.unsqueeze(-1).expand(-1, -1, points.shape[-1])) * present.unsqueeze(-1)
            nodes = chosen.detach() + nodes - nodes.detach() if self.training else chosen
        return Representatives(nodes, present, shares.sum(-1), cluster)


@torch.no_grad()
def start(projection: nn.Linear, clusters: Clusters, embeddings: Tensor, *, seed: int = 0, pca: bool = True) -> None:
    """Set projection and centres in place from the embeddings (P, D) of training patches.

    The projection becomes their principal axes (`pca`; else it stays), the centres come from k-means with RESTARTS
    restarts, and both are scaled by one factor so that the mean squared distance from a patch to the nearest centre is
    alpha: the kernel's own width, at which it tells clusters apart.

    Raises InputError for fewer different patches than clusters, SettingError for more axes than the embeddings have.
    """
    from sklearn.cluster import KMeans

    count, width = clusters.centres.shape
    generator = torch.Generator().manual_seed(seed)
    if len(embeddings) > DRAWN:
        embeddings = embeddings[torch.randperm(len(embeddings), generator=generator)[:DRAWN]]
    values = embeddings.detach().cpu().double()
    weight, bias = projection.weight.cpu().double(), projection.bias.cpu().double()
    if pca:
        weight, bias = _axes(values, width)
    points: NDArray[np.float64] = (values @ weight.T + bias).numpy()
    different = len(np.unique(points.round(9), axis=0))
    if different < count:
        raise InputError(
            f"{count} clusters need as many different patches, the training part has {different}; "
            f"ask for fewer with --set clusters={max(1, different)}"
        )
    found: Any = KMeans(count, n_init=RESTARTS, random_state=seed).fit(points)
    spread = float(found.inertia_) / len(points)
    scale = (clusters.alpha / spread) ** 0.5 if spread > 0 else 1.0
    projection.weight.copy_(weight * scale)
    projection.bias.copy_(bias * scale)
    clusters.centres.copy_(torch.from_numpy(np.asarray(found.cluster_centers_)) * scale)


def _axes(values: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """The first principal axes (width, D) and the offset that centres on them."""
    if width > values.shape[1]:
        raise SettingError(f"embeddings of {values.shape[1]} numbers have no {width} axes; --set width smaller")
    mean = values.mean(0)
    _, vectors = torch.linalg.eigh((values - mean).T @ (values - mean))  # ascending
    axes = vectors.flip(1)[:, :width].T
    largest = axes.gather(1, axes.abs().argmax(1, keepdim=True))
    axes = axes * torch.where(largest < 0, -1.0, 1.0)  # of the two directions of an axis always the same
    return axes, -(axes @ mean)
