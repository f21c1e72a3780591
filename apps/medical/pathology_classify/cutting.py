"""From a file or array to the squares that the networks answer for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apps.medical import readers, slides
from apps.medical.pathology_classify import inputs
from apps.medical.pathology_classify.look import Look
from core.data.sample import Meta
from core.errors import FileError, SettingError

_CUTS = 1024  # of one picture; more is a slide's business


def cut(
    given: str | Path | NDArray[Any], meta: Meta, look: Look, *, size: int, um: float | None, stained: bool
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], Meta]:
    """Squares of a picture at the network's pixels.

    Args:
        given: a file, or an array (rows, columns, 3) uint8.
        meta: of an array; of a file its `id` in place of the file's name.
        look: see Look.
        size: pixels a side of a tile.
        um: micrometres to a pixel of the network, where it is known.
        stained: whether stains are normalised.

    Returns the squares (n, size, size, 3), the picture that they were cut from, and what was done to it.

    Raises FileError for what cannot be read, is coarser than the network needs, or far too large; SettingError for an
    array of another form.
    """
    if isinstance(given, np.ndarray):
        if given.dtype != np.uint8 or given.ndim != 3 or given.shape[2] != 3 or not given.size:
            raise SettingError(f"a picture is a uint8 array (rows, columns, 3), got {given.dtype} {given.shape}")
        image, own = np.ascontiguousarray(given), None
    else:
        scan = readers.read(given)
        image, own = inputs.from_scan(scan), inputs.scan_spacing(scan)
        meta = scan.meta if not meta.id else replace(scan.meta, id=meta.id)
        meta = meta.did("grey taken as colour") if len(scan.channels) == 1 else meta
    factor = _factor(look.um_per_px or own, look.um or um, meta)
    stored = image.shape[:2]
    if stained:
        image = inputs.stained(image)
        meta = meta.did("stains normalised (Macenko)")
    by = factor or size / min(stored)
    count = int(np.prod([len(inputs.places(max(size, round(n * by)), size, look.overlap)) for n in stored]))
    if count > _CUTS:
        raise FileError(_name(meta), f"is {count:,} tiles large", "save it as a tiled pyramid (.tif), a slide")
    image = inputs.fitted(image, size, factor)
    if image.shape[:2] != stored:
        how = "to the network's micrometres" if factor is not None else "its micrometres to a pixel are not known"
        sizes = f"{stored[0]} x {stored[1]} to {image.shape[0]} x {image.shape[1]}"
        meta = meta.did(f"resampled from {sizes} pixels ({how})")
    return inputs.crops(image, size, look.overlap), image, meta


def _factor(own: float | None, wanted: float | None, meta: Meta) -> float | None:
    """The picture's pixels over the network's, None where one of them is not known."""
    if own is None or wanted is None:
        return None
    factor = own / wanted
    if factor > 1 + slides.SAME:
        raise FileError(
            _name(meta), f"its pixels are {own:.3g} um, and the network needs {wanted:.3g} um",
            "finer ones cannot be made up: give a scan at that resolution",
        )  # fmt: skip
    return 1.0 if abs(factor - 1) <= slides.SAME else factor


def _name(meta: Meta) -> str:
    return meta.path or "the picture"
