"""GNN-ViTCap: a bag of patches to a class and a caption, by clusters, their representatives and a graph over them.

Paper: arXiv 2507.07006 (GNN-ViTCap). Reference: none was published; only deep embedded clustering has code,
github.com/vlukiyanov/pt-dec (MIT) at 11b3055. Stated by the authors: a Vision Transformer embeds each patch, deep
embedded clustering removes redundancy, a scalar dot attention picks representatives, each is joined to its nearest
neighbours in the similarity matrix, a graph network mixes, the mean over the nodes is the slide, on which a class head
stands and from which a linear layer makes input of a language model.
Our reading:
- patches: `size` x `size` pixels, ImageNet's mean and spread; embedding: the class token after the last norm (the mean
  of the patch tokens where a backbone has none, of a pyramid the normed mean of the last level);
- clustering: on z = Linear(embedding) of `width` numbers, since distances of many are all alike; centres and projection
  start from k-means and principal axes of the training patches (clustering.start); a patch's cluster is argmax q;
- "scalar dot attention": scaled dot product of a cluster's mean and its members, softmax over the members; the
  representative is their weighted mean, or the heaviest member; an empty cluster gives no node;
- graph: cosine similarity, min(5, nodes - 1) nearest others, made symmetric; self-loops for GCN and GAT only;
- graph network: two layers of GraphSAGE's mean form with ReLU, dropout 0.5 after each, all `width` wide;
- caption: `prefix` tokens = Linear(slide), before begin and the words; cross-entropy on the words and the end only;
- loss: cross-entropy of class, of caption, or their sum, plus lambda times the clustering's KL (see train.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apps.medical.pathology_caption.clustering import ClusterAttention, Clusters
from apps.medical.pathology_caption.decoder import NOTHING, Decoder, DecoderConfig, Language
from apps.medical.pathology_caption.graph import GraphNetwork, neighbours
from core import registry
from core.errors import InputError, SettingError, ShapeError, expect_shape
from core.layers.linear import Linear


@dataclass(frozen=True)
class GNNViTCapConfig:
    in_channels: int = 3
    classes: int = 2  # of the class head; 0 for none
    size: int = 224  # rows and columns of a patch, pixels
    backbone: str = "vit/small"  # family/variant that embeds patches
    overrides: Mapping[str, Any] = field(default_factory=dict)  # of the backbone's settings
    width: int = 64  # of the clustering, the graph and the slide
    clusters: int = 16
    alpha: float = 1.0  # degrees of freedom of the clusters' kernel
    representatives: Literal["soft", "hard"] = "soft"  # weighted mean of a cluster, or its heaviest patch
    neighbours: int = 5  # that each node is joined to, at most
    graph: Literal["sage", "gcn", "gat"] = "sage"
    layers: int = 2  # of the graph network
    graph_heads: int = 4  # of "gat"
    normalise: bool = False  # scale nodes to length 1 after each layer
    dropout: float = 0.5  # after each layer
    language: Literal["none", "decoder", "hosted"] = "decoder"  # what writes captions
    words: tuple[str, ...] = ()  # of the decoder's vocabulary
    prefix: int = 1  # tokens that the slide becomes
    longest: int = 60  # words of a caption at most
    decoder: DecoderConfig = field(default_factory=DecoderConfig)  # the small one's size
    hosted: Mapping[str, str] = field(default_factory=dict)  # file of the hosted model -> SHA-256


class Slide(NamedTuple):
    """What the network makes of a batch of bags; B bags, N patches at most, K clusters, D' `width`.

    Attributes:
        logits: (B, classes); (B, 0) without a head.
        embedding: (B, D'), the mean over the nodes after the graph.
        assignment: q, (B, N, K); padding has some, too.
        mask: (B, N), True where there is a patch.
        cluster: (B, N), -1 for padding.
        weights: (B, N): the part of each patch in the mean of the representatives, sum 1 over a bag.
        shares: (B, N): the part of each patch in its cluster's representative.
        nodes: (B, K, D'), representatives before the graph.
        present: (B, K) bool: clusters that hold a patch.
        adjacency: (B, K, K) bool.
    """

    logits: Tensor
    embedding: Tensor
    assignment: Tensor
    mask: Tensor
    cluster: Tensor
    weights: Tensor
    shares: Tensor
    nodes: Tensor
    present: Tensor
    adjacency: Tensor


class PatchEncoder(nn.Module):
    """Patches (P, C, S, S) -> embeddings (P, D) by a backbone: its class token, else a mean."""

    def __init__(self, c: GNNViTCapConfig) -> None:
        super().__init__()
        settings = {"in_channels": c.in_channels, **c.overrides}
        _, known = registry.lookup(c.backbone)
        if "image_size" in vars(known):
            settings.setdefault("image_size", c.size)  # positions are built for the patches that come
        self.backbone: Any = registry.create(c.backbone, **settings)
        self.dim = int(self.backbone.channels[-1])
        tokens = hasattr(self.backbone, "tokens")
        # Registers are no class tokens; a ViT's settings tell them apart.
        leads = getattr(self.backbone.config, "class_token", tokens and self.backbone.prefix > 0)
        self.how = ("token" if leads else "mean_tokens") if tokens else "mean"
        # Tokens come normed; a pyramid's last level often does not, and its size would drift away from the clusters.
        self.norm = nn.Identity() if tokens else nn.LayerNorm(self.dim)

    def forward(self, patches: Tensor) -> Tensor:
        if self.how == "mean":
            pooled: Tensor = self.norm(self.backbone(patches)[-1].mean((2, 3)))
            return pooled
        tokens = self.backbone.tokens(patches)
        return tokens[:, 0] if self.how == "token" else tokens[:, self.backbone.prefix :].mean(1)


class GNNViTCap(nn.Module):
    """Patches of all bags, one bag after the other, (P, C, S, S) and mask (B, N) with P places -> Slide.

    Attributes:
        size: S.
        dim: D of the embeddings.
        language: what writes captions, or None.

    Raises SettingError for a hosted language model that is not given.
    """

    def __init__(self, config: GNNViTCapConfig, language: Any = None) -> None:
        super().__init__()
        c = self.config = config
        if min(c.neighbours, c.layers, c.classes) < 0 or min(c.prefix, c.longest, c.width, c.size) < 1:
            raise SettingError("gnn_vitcap: sizes are 1 or more; neighbours, layers and classes 0 or more")
        if (c.language == "hosted") != (language is not None):
            raise SettingError(
                "a network with a language model from a folder is read by its bundle or with that folder"
            )
        self.size = c.size
        self.encoder = PatchEncoder(c)
        self.dim = self.encoder.dim
        self.projection = Linear(self.dim, c.width)
        self.clusters = Clusters(c.width, c.clusters, alpha=c.alpha)
        self.attention = ClusterAttention(c.width, form=c.representatives)
        self.graph = GraphNetwork(
            c.graph, c.width, layers=c.layers, heads=c.graph_heads, normalise=c.normalise, dropout=c.dropout
        )
        self.head = Linear(c.width, c.classes) if c.classes else None
        self.language: Any = language
        if c.language == "decoder":
            self.language = Decoder(c.decoder, c.words, c.prefix + 1 + c.longest)
        self.to_prefix = None if self.language is None else Linear(c.width, c.prefix * self.language.dim)
        if self.language is not None and c.prefix + 1 + c.longest > self.language.room:
            raise SettingError(
                f"the language model has {self.language.room} positions: prefix and longest are at most "
                f"{self.language.room - 1} together, got {c.prefix} and {c.longest}"
            )

    def embed(self, patches: Tensor) -> Tensor:
        """Patches (P, C, S, S) -> embeddings (P, D)."""
        expect_shape(patches, "P C H W", C=self.config.in_channels, H=self.size, W=self.size)
        embedded: Tensor = self.encoder(patches)
        return embedded

    def slide(self, embeddings: Tensor, mask: Tensor | None = None) -> Slide:
        """Embeddings (B, N, D) under a mask (B, N) -> Slide. A bag without a patch has no node: its embedding is 0."""
        expect_shape(embeddings, "B N D", D=self.dim)
        if mask is None:
            mask = torch.ones(embeddings.shape[:2], dtype=torch.bool, device=embeddings.device)
        if mask.shape != embeddings.shape[:2]:
            raise ShapeError(f"embeddings {tuple(embeddings.shape)} need a mask of their bags, got {tuple(mask.shape)}")
        points = self.projection(embeddings) * mask.unsqueeze(-1)
        q = self.clusters(points)
        nodes, present, shares, cluster = self.attention(points, q, mask)
        adjacency = neighbours(nodes, present, self.config.neighbours)
        mixed = self.graph(nodes, adjacency, present)
        count = present.sum(1, keepdim=True).clamp(min=1)
        embedding = mixed.sum(1) / count  # absent nodes are zero
        logits = embedding[:, :0] if self.head is None else self.head(embedding)
        return Slide(logits, embedding, q, mask, cluster, shares / count, shares, nodes, present, adjacency)

    def forward(self, values: Tensor, mask: Tensor | None = None) -> Slide:
        """Patches as above, or embeddings (B, N, D) where they are known already."""
        if values.ndim == 3:
            return self.slide(values, mask)
        embedded = self.embed(values)
        if mask is None:
            return self.slide(embedded.unsqueeze(0))
        return self.slide(spread(embedded, mask), mask)

    def scales(self, patches: Tensor) -> list[Tensor]:
        """The class logits of one bag as a map of one place, for core.facts_table."""
        return [self(patches).logits[:, :, None, None]]

    def prefixes(self, embedding: Tensor) -> Tensor:
        """Slides (B, D') -> prefix (B, prefix, d) of the language model. Raises InputError without one."""
        if self.to_prefix is None:
            raise InputError("this network writes no captions: it was trained for classes alone")
        made: Tensor = self.to_prefix(embedding).unflatten(-1, (self.config.prefix, -1))
        return made

    @property
    def writer(self) -> Language:
        """The language model. Raises InputError without one."""
        if self.language is None:
            raise InputError("this network writes no captions: it was trained for classes alone")
        found: Language = self.language
        return found

    def caption_loss(self, embedding: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Sum of the cross-entropies of the words and ends, and how many they are.

        Args:
            embedding: of slides (B, D').
            tokens: begin, words and end (B, T), behind them NOTHING; a row of NOTHING has no caption.
        """
        prefix = self.prefixes(embedding)
        inputs = torch.cat([prefix, self.writer.embed(tokens[:, :-1]).to(prefix.dtype)], dim=1)
        logits, _ = self.writer(inputs)
        told, wanted = logits[:, prefix.shape[1] :], tokens[:, 1:]
        loss = F.cross_entropy(told.flatten(0, 1).float(), wanted.flatten(), ignore_index=NOTHING, reduction="sum")
        return loss, (wanted != NOTHING).sum()


def spread(vectors: Tensor, mask: Tensor) -> Tensor:
    """Vectors (P, D) of all bags, one after the other, at the places of a mask (B, N) -> (B, N, D), zeros elsewhere.

    Raises ShapeError where the mask has not P places.
    """
    if not torch.compiler.is_compiling() and mask.device.type != "meta" and int(mask.sum()) != len(vectors):
        raise ShapeError(f"{len(vectors)} patches, and a mask with {int(mask.sum())} places")
    out = vectors.new_zeros(*mask.shape, vectors.shape[-1])
    return out.masked_scatter(mask.unsqueeze(-1), vectors)


def build(config: GNNViTCapConfig, *, folder: str | Path | None = None, weights: bool = True) -> GNNViTCap:
    """The network of a configuration.

    Args:
        config: its settings.
        folder: of a hosted language model; needed for `language="hosted"`, and for nothing else.
        weights: take the folder's weights.

    Raises SettingError for settings that do not fit, and as hosted.read.
    """
    if folder is None or config.language != "hosted":
        return GNNViTCap(config)
    from apps.medical.pathology_caption import hosted

    return GNNViTCap(config, hosted.read(folder, weights=weights))
