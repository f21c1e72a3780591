"""How near a result comes to the colours that were asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from apps.colorization import _canvas, lab
from apps.colorization.hints import Hint, Placed, lab_of

DISTANCES = ("delta_e76", "delta_e2000", "delta_colour")


@dataclass(frozen=True)
class Reached:
    """A hint and the colour of the result in its cell.

    Attributes:
        hint: as asked for.
        got: mean sRGB of the cell's pixels, 0..255.
        delta_e76: distance of the two in CIE Lab (CIE 1976).
        delta_e2000: by CIEDE2000.
        delta_colour: by CIEDE2000 if the asked colour had the photograph's luminance, which the result keeps.
    """

    hint: Hint
    got: tuple[int, int, int]
    delta_e76: float
    delta_e2000: float
    delta_colour: float

    def columns(self) -> dict[str, Any]:
        """Beside the hint in a table."""
        r, g, b = self.got
        return {"got_r": r, "got_g": g, "got_b": b} | {name: round(getattr(self, name), 2) for name in DISTANCES}


def reached(pixels: NDArray[Any], placed: Placed, grid: int) -> tuple[Reached, ...]:
    """What the result shows at each hint that counts.

    Args:
        pixels: (H, W, 3) of the result, uint8, uint16, or float from 0 to 1.
        placed: the hints on the grid.
        grid: cells along a side.
    """
    if not placed.hints:
        return ()
    rows, columns = pixels.shape[:2]
    got = torch.stack(
        [
            _canvas.mean_over(pixels, (*span(int(i), rows, grid), *span(int(j), columns, grid)))
            for i, j in zip(placed.rows, placed.columns, strict=True)
        ],
        dim=1,
    )
    asked = lab_of([h.colour for h in placed.hints])
    shown = _canvas.stored(lab.to_rgb(got[None, :, None])[0, :, 0].T.numpy(), np.dtype(np.uint8))
    level = torch.cat([got[:1], asked[1:]])
    ours, theirs, same = (lab.units(x[None])[0].T.double().numpy() for x in (got, asked, level))
    old, new = lab.delta_e(ours, theirs, "cie76"), lab.delta_e(ours, theirs)
    colour = lab.delta_e(ours, same)
    return tuple(
        Reached(h, (int(c[0]), int(c[1]), int(c[2])), float(d76), float(d00), float(own))
        for h, c, d76, d00, own in zip(placed.hints, shown, old, new, colour, strict=True)
    )


def span(cell: int, pixels: int, grid: int) -> tuple[int, int]:
    """First pixel of a cell along a side, and the one after its last; at least the pixel that its middle is in."""
    first, last = (-((grid - 2 * pixels * k) // (2 * grid)) for k in (cell, cell + 1))
    if first < last:
        return max(0, first), min(pixels, last)
    middle = (2 * cell + 1) * pixels // (2 * grid)
    return middle, middle + 1


def told(found: Sequence[Reached]) -> str:
    """In a few words: the mean and the largest distance at the hints."""
    if not found:
        return "no hints"
    old, new, colour = ([getattr(r, n) for r in found] for n in DISTANCES)
    count = f"{len(found)} hint{'s' if len(found) > 1 else ''}"
    return (
        f"Delta E at {count}: CIE76 {np.mean(old):.1f}, CIEDE2000 {np.mean(new):.1f} (largest {max(new):.1f}), "
        f"{np.mean(colour):.1f} at the photograph's luminance"
    )


def means(found: Sequence[Reached]) -> Mapping[str, float]:
    """Means over the hints; empty without any."""
    return {n: float(np.mean([getattr(r, n) for r in found])) for n in DISTANCES} if found else {}
