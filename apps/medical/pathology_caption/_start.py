"""Before the first step: bags prepared for a frozen or a trained encoder, and clusters started from their patches."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from apps.medical.pathology_caption import clustering, inputs
from apps.medical.pathology_caption._bags import KEPT, Source, prepare
from apps.medical.pathology_caption._gnn_vitcap import GNNViTCap
from apps.medical.pathology_caption.data import Bag
from apps.medical.pathology_caption.options import Options
from core.errors import InputError

STARTED = 2048  # patches that the clusters of a trained encoder start from
BATCH = 64


def prepared(net: GNNViTCap, bags: Sequence[Bag], cache: Path, frozen: bool, device: torch.device) -> list[Source]:
    """Embeddings of a frozen encoder, pixels for a trained one (in files as long as they fit into KEPT bytes).

    Raises FileError for a picture that cannot be read, InputError for a bag without patches.
    """
    size = net.size
    if empty := next((b for b in bags if not b.patches), None):
        raise InputError(f"{empty.id}: a bag without patches; give it at least one, or leave it out")
    if not frozen:
        fits = sum(len(b.patches) for b in bags) * 3 * size * size <= KEPT

        def pixels(bag: Bag) -> NDArray[np.uint8]:
            return np.stack([inputs.square(p, size) for p in bag.patches])

        return prepare(bags, cache, f"pixels {size}", pixels, size, kept=fits)
    net.encoder.to(device).eval()
    # Embeddings are of these very weights: others never meet them.
    digest = hashlib.sha256(repr((size, net.config.backbone, dict(net.config.overrides))).encode())
    for value in net.encoder.state_dict().values():
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())

    def embedded(bag: Bag) -> NDArray[np.float32]:
        return inputs.embed(net, bag.patches, device=device).cpu().numpy()

    found = prepare(bags, cache, digest.hexdigest(), embedded, size)
    net.encoder.cpu()
    return found


@torch.no_grad()
def clusters(
    net: GNNViTCap, seen: Sequence[Source], options: Options, seed: int, device: torch.device, *, frozen: bool,
    warm: bool, kept: bool,
) -> Tensor:  # fmt: skip
    """Start projection and centres from the training patches; f (K,) of these patches.

    Args:
        net: in place.
        seen: training bags, prepared.
        options: say where the projection starts.
        seed: of k-means.
        device: that embeds pixels.
        frozen: whether the bags are embeddings already.
        warm: whether the encoder has trained weights. One without is run as in training, so that its batch norms have
            seen patches: their first statistics would give embeddings that training never meets.
        kept: whether the network brings projection and centres.

    Raises as clustering.start.
    """
    share = max(1, STARTED // max(1, len(seen)))
    rows = torch.cat([torch.from_numpy(s.rows(range(len(s)) if frozen else _evenly(len(s), share))) for s in seen])
    if not frozen:
        mixed = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
        net.encoder.to(device).train(not warm)
        rows = torch.cat([_embedded(net, rows[some], device) for some in mixed.split(BATCH)])
        net.encoder.cpu()
    if not kept:
        clustering.start(net.projection, net.clusters, rows, seed=seed, pca=options.projection == "pca")
    return clustering.frequency(net.clusters(net.projection(rows)))


def _embedded(net: GNNViTCap, pixels: Tensor, device: torch.device) -> Tensor:
    return net.embed(inputs.normalised(pixels.permute(0, 3, 1, 2).float()).to(device)).float().cpu()


def _evenly(count: int, most: int) -> list[int]:
    """Places of at most so many of `count` things, evenly spread.

    >>> _evenly(3, 5), _evenly(9, 3), _evenly(4, 1)
    ([0, 1, 2], [0, 4, 8], [0])
    """
    return sorted({round(i * (count - 1) / max(1, most - 1)) for i in range(most)})
