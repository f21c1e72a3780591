"""Where DICOM images lie: positions along a line, or one sentence about what keeps them from being one volume."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.errors import FileError

ANGLE = 1e-3  # of direction cosines, as scanners round them
EVEN = 0.05  # share of the slice spacing by which gaps may differ
TILT = 0.01  # sine of the angle between the stack and the slices' normal that is said


@dataclass(frozen=True)
class Place:
    """One image's place in millimetres, in DICOM's own axes (left, posterior, superior)."""

    position: tuple[float, ...]  # of the first pixel's centre
    orientation: tuple[float, ...]  # along a row, then along a column
    spacing: tuple[float, ...]  # between rows, between columns

    @property
    def normal(self) -> NDArray[np.floating[Any]]:
        return np.cross(self.orientation[:3], self.orientation[3:])


def place(position: Any, orientation: Any, spacing: Any) -> Place | None:
    """A Place of header values, or None where one is missing or not usable."""
    try:
        values = [tuple(float(v) for v in part) for part in (position, orientation, spacing)]
    except (TypeError, ValueError):
        return None
    if [len(v) for v in values] != [3, 6, 2] or not all(np.isfinite(v).all() for v in values) or min(values[2]) <= 0:
        return None
    lengths = np.linalg.norm(np.reshape(values[1], (2, 3)), axis=1)
    return Place(*values) if np.abs(lengths - 1).max() < 0.01 else None


def alike(path: Path, places: Sequence[Place]) -> None:
    """Raise FileError for images of different orientation or pixel spacing."""
    spacings = np.array([p.spacing for p in places])
    if np.abs(spacings / spacings[0] - 1).max() > ANGLE:
        other = spacings[np.abs(spacings / spacings[0] - 1).max(axis=1).argmax()]
        pairs = " and ".join(f"{a:g} x {b:g} mm" for a, b in (spacings[0], other))
        raise FileError(path, f"mixed spacing: its images have pixels of {pairs}", "keep one series in a folder")
    turns = np.array([p.orientation for p in places])
    turned = np.abs(turns - turns[0]).max(axis=1) > ANGLE
    if turned.any():
        raise FileError(
            path,
            f"mixed orientation: {int(turned.sum())} of its {len(places)} images lie at another angle than the first",
            "keep images of one orientation in a folder",
        )


def stack(
    path: Path, places: Sequence[Place], thickness: float | None = None
) -> tuple[list[int], NDArray[np.floating[Any]], list[str]]:
    """The images' order along their normal, the affine from (slice, row, column) to millimetres RAS+, and what was odd.

    `thickness` stands for the slice spacing of a single image. Raises FileError for mixed spacing or orientation, two
    images at one place, a missing slice, or positions that do not lie on a line.
    """
    alike(path, places)
    first, words = places[0], []
    positions = np.array([p.position for p in places])
    along = positions @ first.normal
    order = [int(i) for i in np.argsort(along, kind="stable")]
    positions, along = positions[order], along[order]
    if len(places) == 1:
        step = first.normal * (thickness or 1.0)
        if not thickness:
            words.append("slice thickness unknown, taken as 1 mm")
    else:
        _even(path, along)
        step = (positions[-1] - positions[0]) / (len(places) - 1)
        off = np.abs(positions - positions[0] - np.arange(len(places))[:, None] * step).max()
        if off > max(0.1, EVEN * float(np.linalg.norm(step))):
            raise FileError(
                path, f"its slices do not lie on one line (up to {off:.3g} mm beside it)", "keep one stack in a folder"
            )
        lean = float(np.linalg.norm(np.cross(step, first.normal)) / np.linalg.norm(step))
        if lean > TILT:
            words.append(
                f"slices are tilted by {np.degrees(np.arcsin(min(1.0, lean))):.1f} degrees; kept in the affine"
            )
    affine = np.eye(4)
    affine[:3, 0] = step
    affine[:3, 1] = np.array(first.orientation[3:]) * first.spacing[0]
    affine[:3, 2] = np.array(first.orientation[:3]) * first.spacing[1]
    affine[:3, 3] = positions[0]
    affine[:2] *= -1  # left, posterior to right, anterior
    return order, affine, words


def _even(path: Path, along: NDArray[np.floating[Any]]) -> None:
    """Raise FileError where the gaps between neighbouring slices (mm, ascending) are not all the same."""
    gaps = np.diff(along)
    usual = float(np.median(gaps))
    if gaps.min() < 1e-3:
        many = int((gaps < 1e-3).sum()) + 1
        raise FileError(
            path,
            f"{many} of its images lie at a place that another one has (several times, echoes, or a copy)",
            "keep one image a slice in a folder",
        )
    worst = int(np.abs(gaps - usual).argmax())
    if abs(gaps[worst] - usual) > max(EVEN * usual, 0.01):
        missing = gaps[worst] / usual
        what = "a slice is missing" if missing > 1.5 else "uneven slices"
        raise FileError(
            path,
            f"{what}: {gaps[worst]:.4g} mm between slices {worst + 1} and {worst + 2} of {len(along)}, "
            f"{usual:.4g} mm elsewhere",
            "copy the whole series again",
        )
