"""A bundle's network as an ONNX file.

A file of fixed form cannot send each token to one expert alone: every expert is computed and weighted there.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from apps.medical.ultrasound import inputs, model
from apps.medical.ultrasound.options import TASK
from core import bundle
from core import export as exports
from core.errors import SettingError

MEANING = "a logit for each class; softmax gives probabilities"


def export(folder: Path, file: Path) -> exports.Exported:
    """ONNX of the network's only size with a side file; checked against torch.

    Args:
        folder: a bundle.
        file: ends in .onnx.

    Raises SettingError for a network whose router is noisy in prediction, and as core.export.export and
    core.bundle.load.
    """
    found = inputs.checked(bundle.load(folder, task=TASK))
    exports.ready(file)
    if found.settings.network.config.get("noise") == "always":
        raise SettingError(f"{folder}: its router is noisy in prediction (noise=always), which a file cannot repeat")
    network = model.create(found.settings.network.name, **found.settings.network.config)
    bundle.fill(network, found)
    output = found.settings.output
    contract = asdict(found.settings.input) | {
        "resize": "the whole picture to this size, bilinear over pixel areas, the aspect not kept",
        "classes": dict(output.classes),
        "positive": output.positive,
        "threshold": output.threshold,
    }
    rows, columns = found.settings.tile.size
    name = f"medical/{found.settings.network.name}"
    return exports.export(network, file, (rows, columns), name=name, contract=contract, meaning=MEANING)
