"""A bundle's network as an ONNX file.

A file of fixed form cannot leave windows out: what they would have given is computed and put aside.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch

from apps.deblurring import model
from apps.deblurring.options import TASK
from apps.deblurring.pipeline import Member
from core import bundle
from core import export as exports
from core.errors import SettingError

MEANING = (
    "red, green and blue of the sharp picture in sRGB, not limited to 0..1, then the blur that was found, 0..1; of a "
    "picture that is smaller, set zeros around it, with it in the middle, and cut them away again"
)


def export(folder: Path, file: Path, size: tuple[int, int] | None = None) -> exports.Exported:
    """ONNX of fixed size (by default the bundle's tile, one way or the other) with a side file, checked against torch.

    Raises InputError for a path that cannot be written, SettingError for a size that the network does not divide.
    """
    found = bundle.load(folder, task=TASK)
    exports.ready(file)
    member = Member(found, torch.device("cpu"), "32")
    rows, columns = size or (found.settings.tile.size[0], found.settings.tile.size[-1])
    if rows < 1 or columns < 1 or rows % member.multiple or columns % member.multiple:
        raise SettingError(f"--size is two multiples of {member.multiple}, got {rows} and {columns}")
    contract = asdict(found.settings.input) | {"range": [0.0, 1.0], "colours": "sRGB"}
    return exports.export(
        model.Dense(member.network), file, (rows, columns), name=found.settings.network.name, contract=contract,
        meaning=MEANING,
        output="restored",
    )  # fmt: skip
