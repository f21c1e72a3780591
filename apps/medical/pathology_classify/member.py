"""One trained network among those whose answers are averaged."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from apps.medical.pathology_classify import inputs, model
from core import bundle
from core.device import autocast
from core.errors import InputError


class Member:
    """One bundle's network on a device: tiles -> class probabilities."""

    def __init__(self, found: bundle.Bundle, device: torch.device, precision: str) -> None:
        self.bundle, self.device, self.precision = found, device, precision
        self.network = _filled(found).to(device)

    @property
    def settings(self) -> bundle.Settings:
        return self.bundle.settings

    @property
    def stain(self) -> str:
        """The stain normalisation that it was trained with, "" for none."""
        return next((s for s in self.settings.input.steps if s), "")

    def __call__(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(N, size, size, 3) in stored values -> (N, K), each row adds up to one."""
        stored = torch.from_numpy(np.ascontiguousarray(np.moveaxis(tiles, -1, 1))).to(self.device)
        with torch.inference_mode(), autocast(self.device, self.precision):
            logits = self.network(inputs.normalised(stored, self.settings.input))
        found: NDArray[np.float32] = logits.float().softmax(1).cpu().numpy()
        return found


def _filled(found: bundle.Bundle) -> nn.Module:
    """The network on its file's own memory: published ones have 560 to 740 MB, which are not to be there twice."""
    name, config = found.settings.network.name, found.settings.network.config
    with torch.device("meta"):
        network: nn.Module = model.create(name, **config)
    bundle.fill(network, found, mapped=True)
    if any(t.is_meta for t in (*network.parameters(), *network.buffers())):  # tables that no state holds
        return bundle.fill(model.create(name, **config), found)
    return network


def trained(found: bundle.Bundle) -> None:
    """Raises InputError for a bundle whose network cannot answer yet."""
    if "untrained" in found.report:
        raise InputError(
            f"{found.folder}: {found.report['untrained']} is untrained, so it cannot classify yet; begin a training "
            f"with it: glocal medical pathology classify train DATA --init {found.folder}"
        )


def agree(one: bundle.Bundle, other: bundle.Bundle) -> None:
    """Raises InputError for bundles whose answers cannot be averaged."""
    a, b = one.settings, other.settings
    for what, left, right in (
        ("classes", dict(a.output.classes), dict(b.output.classes)),
        ("sizes of a tile", tuple(a.tile.size), tuple(b.tile.size)),
        ("micrometres to a pixel", a.input.spacing, b.input.spacing),
        ("stain normalisation", a.input.steps, b.input.steps),
    ):
        if left != right:
            raise InputError(
                f"{other.folder}: has other {what} than {one.folder} ({right} against {left}); name bundles of one task"
            )
