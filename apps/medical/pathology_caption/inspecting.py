"""What a patch, or a folder of patches, holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from apps.medical import readers
from apps.medical.pathology_caption import data, inputs
from core.errors import FileError


def inspect(path: Path) -> dict[str, Any]:
    """Facts of a picture, or of a folder its number of patches, their sizes and how many show next to nothing.

    Raises FileError for what is not there, is no picture, or holds none.
    """
    if path.is_dir():
        return _folder(path)
    return readers.inspect(path)


def _folder(path: Path) -> dict[str, Any]:
    if not data.holds_patches(path):
        found = data.find(path)
        return {
            "layout": found.layout, "bags": len(found.bags), "patches": sum(len(b.patches) for b in found.bags),
            "captions": sum(bool(b.caption) for b in found.bags), "classes": ", ".join(found.classes),
        }  # fmt: skip
    bag = data.one(path)
    shades, bad = [], 0
    for patch in bag.patches:
        try:
            shades.append(inputs.square(patch, 64).std())
        except FileError:
            bad += 1
    empty = int(np.sum(np.array(shades) < _EMPTY))
    return {"patches": len(bag.patches), "unreadable": bad or None, "next to empty": empty or None}


_EMPTY = 4.0  # spread of the values, of 255, below which a patch shows glass
