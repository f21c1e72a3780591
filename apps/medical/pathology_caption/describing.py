"""From the embeddings of a bag to its class, its caption, and what decided."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from apps.medical.pathology_caption._gnn_vitcap import GNNViTCap, Slide
from apps.medical.pathology_caption.generation import write
from core.errors import InputError

BEAMS = 5


@dataclass(frozen=True)
class Representative:
    """What stands for one cluster of a bag.

    Attributes:
        cluster: its number.
        patch: of the heaviest patch, its place in the bag, from 0.
        weight: of that patch in the cluster, 0 to 1.
        patches: that the cluster holds.
        neighbours: numbers of the clusters that it is joined to in the graph.
    """

    cluster: int
    patch: int
    weight: float
    patches: int
    neighbours: tuple[int, ...]


@dataclass(frozen=True)
class Described:
    """What networks say of one bag.

    Attributes:
        caption: "" where they write none.
        log_probability: of the caption, natural logarithm, its end included; None without one.
        probabilities: of the classes; () without a class head.
        clusters: of each patch its cluster.
        weights: of each patch its part in the mean of the representatives, before the graph; the sum is 1.
        representatives: by cluster.
    """

    caption: str
    log_probability: float | None
    probabilities: tuple[float, ...]
    clusters: tuple[int, ...]
    weights: tuple[float, ...]
    representatives: tuple[Representative, ...]


@torch.no_grad()
def describe(
    networks: Sequence[GNNViTCap], embeddings: Sequence[Tensor], *, beams: int = BEAMS, longest: int | None = None
) -> Described:
    """Describe one bag by one or several networks, in evaluation mode.

    Several networks' class probabilities are averaged, and so are the probabilities of each next word. Clusters and
    representatives are the first one's, weights the mean.

    Args:
        networks: which agree in classes and in words.
        embeddings: of each network, (N, D) of the bag's patches in one order, on its device.
        beams: of the search for the caption; 1 is greedy.
        longest: words at most; by default the fewest of the networks' settings.

    Raises InputError for no patch and for networks that do not agree, SettingError as generation.write.
    """
    if any(len(e) != len(embeddings[0]) for e in embeddings):
        raise InputError("the networks were given different numbers of patches")
    if not len(embeddings[0]):
        raise InputError("a bag without patches; give at least one picture")
    slides = [network.slide(e.unsqueeze(0)) for network, e in zip(networks, embeddings, strict=True)]
    kinds = {(n.config.classes, n.language is not None) for n in networks}
    if len(kinds) > 1:
        raise InputError("these networks do not fit together: they differ in classes, or only some write captions")
    classes, writes = kinds.pop()
    probabilities: tuple[float, ...] = ()
    if classes:
        mean = torch.stack([s.logits[0].double().softmax(-1).cpu() for s in slides]).mean(0)
        probabilities = tuple(mean.tolist())
    caption, log = "", None
    if writes:
        most = min(n.config.longest for n in networks) if longest is None else longest
        prefixes = [n.prefixes(s.embedding) for n, s in zip(networks, slides, strict=True)]
        (written,) = write([n.writer for n in networks], prefixes, longest=most, beams=beams)
        caption, log = networks[0].writer.vocabulary.text(written.tokens), written.log_probability
    weights = torch.stack([s.weights[0].double().cpu() for s in slides]).mean(0)
    first = slides[0]
    return Described(
        caption, log, probabilities, tuple(first.cluster[0].tolist()), tuple(weights.tolist()), _representatives(first)
    )


def _representatives(slide: Slide) -> tuple[Representative, ...]:
    cluster, shares, joined = slide.cluster[0].cpu(), slide.shares[0].cpu(), slide.adjacency[0].cpu()
    found = []
    for k in slide.present[0].nonzero().flatten().tolist():
        members = (cluster == k).nonzero().flatten()
        heaviest = int(members[shares[members].argmax()])
        others = tuple(joined[k].nonzero().flatten().tolist())
        found.append(Representative(k, heaviest, float(shares[heaviest]), len(members), others))
    return tuple(found)
