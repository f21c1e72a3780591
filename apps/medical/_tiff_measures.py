"""Pixel size and frame rate as TIFF files state them: Aperio, OME, ImageJ, resolution tags."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from apps.medical._scan import Kind

PLAUSIBLE = (0.01, 20.0)  # micrometres a pixel: coarser resolution tags are for printing
_UM = {"um": 1.0, "µm": 1.0, "μm": 1.0, "micron": 1.0, "microns": 1.0, "nm": 1e-3, "mm": 1e3, "cm": 1e4, "m": 1e6}


def measures(file: Any, kind: Kind) -> tuple[tuple[float, ...] | None, float | None, list[str]]:
    """Millimetres (and seconds along frames), frames a second, and where they come from."""
    page = file.series[0].keyframe
    across = [page.tags.valueof(t) for t in (283, 282)]  # pixels per unit along rows, columns
    per = [float(v[0]) / float(v[1]) if v and v[1] and v[0] else 0.0 for v in across]
    um: list[float] = []
    deep, rate, words = 0.0, None, []
    if file.is_svs and (found := re.search(r"MPP\s*=\s*([0-9.]+)", page.description)):
        um, words = [float(found[1])] * 2, ["pixel size as the scanner wrote it (MPP)"]
    elif file.is_ome:
        pixels = re.search(r"<Pixels\b[^>]*>", file.ome_metadata or "")
        known = dict(re.findall(r"(\w+)=\"([^\"]*)\"", pixels[0] if pixels else ""))
        y, x, z = (
            float(known.get(f"PhysicalSize{a}", 0)) * _UM.get(known.get(f"PhysicalSize{a}Unit", "µm"), 0) for a in "YXZ"
        )
        um, deep, words = [y, x], z, ["pixel size from OME"]
        step = float(known.get("TimeIncrement", 0)) if known.get("TimeIncrementUnit", "s") == "s" else 0.0
        rate = 1 / step if step > 0 else None
    elif file.is_imagej:
        about = file.imagej_metadata or {}
        unit = _UM.get(str(about.get("unit", "")).replace("\\u00B5", "µ"), 0.0)
        um = [unit / p if p > 0 else 0.0 for p in per]
        deep, words = float(about.get("spacing", 0)) * unit, ["pixel size from ImageJ"]
        step = float(about.get("finterval", 0) or 0)
        rate = 1 / step if step > 0 else None
    elif int(page.tags.valueof(296, default=2)) in (2, 3) and all(p > 0 for p in per):
        scale = 25400.0 if int(page.tags.valueof(296, default=2)) == 2 else 10000.0
        um = [scale / p for p in per]
        um = um if all(PLAUSIBLE[0] <= v <= PLAUSIBLE[1] for v in um) else []
        words = ["pixel size from the resolution tags"]
    if len(um) != 2 or not all(np.isfinite(v) and v > 0 for v in um):
        return None, rate, []
    plane = (um[0] / 1000, um[1] / 1000)
    if kind == "picture":
        return plane, rate, words
    first = deep / 1000 if kind == "volume" else 1 / rate if rate else 0.0
    return ((first, *plane) if first > 0 else None), rate, words
