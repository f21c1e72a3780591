"""A bundle's network as an ONNX file for bags of a fixed number of patches."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from torch import Tensor, nn

from apps.medical.pathology_caption import model
from apps.medical.pathology_caption._gnn_vitcap import GNNViTCap
from apps.medical.pathology_caption.options import TASK
from core import bundle
from core import export as exports

PATCHES = 16  # of a bag in the file


class OneBag(nn.Module):
    """Patches (N, 3, S, S) of one bag -> class logits (1, classes), or without classes the slide (1, D')."""

    def __init__(self, network: GNNViTCap) -> None:
        super().__init__()
        self.network = network

    def forward(self, patches: Tensor) -> Tensor:
        found = self.network(patches)
        return found.logits if self.network.config.classes else found.embedding


def export(folder: Path, file: Path, *, patches: int = PATCHES) -> exports.Exported:
    """ONNX of a bag of `patches` patches with a side file; checked against torch. The language model is not in it.

    Args:
        folder: a bundle.
        file: ends in .onnx.
        patches: of a bag; a patch that is repeated changes nothing, so smaller bags are filled up with their own.

    Raises as core.export.export and core.bundle.load.
    """
    found = bundle.load(folder, task=TASK)
    exports.ready(file)
    network = model.from_bundle(found)
    contract = asdict(found.settings.input) | {
        "patches": f"{patches} of one bag; fill a smaller bag up by repeating all of its patches equally often",
        "resize": f"shorter side to {network.size} pixels, bicubic, then the middle",
        "classes": dict(found.settings.output.classes),
    }
    output, meaning = "logits", "class logits of the bag (1, classes); a softmax makes probabilities"
    if not network.config.classes:
        output, meaning = (
            "slide",
            "the bag's embedding (1, width), from which the language model writes; it is not here",
        )
    size = (network.size, network.size)
    name = f"medical/{found.settings.network.name}"
    return exports.export(
        OneBag(network), file, size, name=name, batch=patches, contract=contract, output=output, meaning=meaning
    )
