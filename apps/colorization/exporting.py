"""A bundle's network as an ONNX file."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from apps.colorization import _contract, model
from apps.colorization.options import TASK
from core import bundle
from core import export as exports

PLANES = ("L", "a", "b", "hint")


def export(folder: Path, file: Path) -> exports.Exported:
    """ONNX of the network's only size with a side file; checked against torch.

    Args:
        folder: a bundle.
        file: ends in .onnx.

    Raises as core.export.export and core.bundle.load.
    """
    found = bundle.load(folder, task=TASK)
    exports.ready(file)
    network = model.create(found.settings.network.name, **found.settings.network.config)
    _contract.checked(found, network.size)
    bundle.fill(network, found)
    cell = network.size // network.cells
    stated = {k: v for k, v in asdict(found.settings.input).items() if k in ("range", "normalise")}
    contract = stated | {
        "channels": list(PLANES),
        "mean": [*_contract.MEAN, 0.0],
        "std": [*_contract.STD, 1.0],
        "planes": "L, a and b of CIE Lab under D65 minus mean, divided by std; L of every pixel; a and b of each hint "
        f"over its whole cell of {cell} x {cell} pixels, 0 elsewhere; hint is "
        + (
            "0.5 in cells with a hint and -0.5 elsewhere"
            if network.config.centred
            else "1 in cells with a hint, else 0"
        ),
        "resize": f"the whole photograph to {network.size} x {network.size}, bilinear with a widened filter (as PIL)",
    }
    meaning = "a / 110 and b / 110 of every pixel (1, 2, rows, columns); enlarge them and join the photograph's own L"
    size = (network.size, network.size)
    name = f"colorization/{found.settings.network.name}"
    return exports.export(
        model.FromPlanes(network), file, size, name=name, contract=contract, output="ab", meaning=meaning
    )
