"""How a file's own axes map to the canonical order of a scan, and back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.data.sample import Affine
from core.errors import InputError, MissingExtraError

CANONICAL = "SPL"  # slices upwards, rows to the back, columns to the patient's left: as radiology shows an axial slice
SHIFT = 1e-3  # mm, by which two grids may lie apart
TURN = 1e-4  # mm per index, by which their axes may differ


@dataclass(frozen=True)
class Grid:
    """The grid of a file as stored, and the way from there to the canonical order (axes permuted and flipped only).

    Attributes:
        shape: of the stored spatial array: (i, j, k) for NIfTI, (slice, row, column) for DICOM, (Y, X) for
            pictures (after EXIF orientation, which every viewer applies).
        affine: 4 x 4 from the stored index to millimetres RAS+, or None where the file does not say.
        order: canonical axis a is the stored axis order[a].
        flips: whether canonical axis a runs against its stored axis.
        header: NIfTI header of the input without its free texts, b"" for other formats.
        files: DICOM files in the order of the stored slices, () for other formats.
    """

    shape: tuple[int, ...]
    affine: Affine | None = None
    order: tuple[int, ...] = ()
    flips: tuple[bool, ...] = ()
    header: bytes = field(default=b"", repr=False)
    files: tuple[str, ...] = field(default=(), repr=False)

    @property
    def _turned(self) -> tuple[Any, ...]:
        return (..., *(slice(None, None, -1 if f else 1) for f in self.flips))

    def canonical(self, stored: NDArray[Any]) -> NDArray[Any]:
        """(..., *stored axes) in canonical order; a view."""
        lead = stored.ndim - len(self.shape)
        moved = stored.transpose(*range(lead), *(lead + a for a in self.order)) if self.order else stored
        return moved[self._turned]

    def restore(self, canonical: NDArray[Any]) -> NDArray[Any]:
        """(..., *canonical axes) in the file's own axis order; the inverse of `canonical`, contiguous."""
        lead = canonical.ndim - len(self.shape)
        back = canonical[self._turned]
        if self.order:
            back = back.transpose(*range(lead), *(lead + int(a) for a in np.argsort(self.order)))
        return np.ascontiguousarray(back)

    @property
    def canonical_shape(self) -> tuple[int, ...]:
        return tuple(self.shape[a] for a in self.order) if self.order else self.shape

    @property
    def canonical_affine(self) -> Affine | None:
        """From canonical index to millimetres RAS+."""
        if self.affine is None:
            return None
        move = np.zeros((4, 4))
        move[3, 3] = 1
        for a, (stored, flip) in enumerate(zip(self.order, self.flips, strict=True)):
            move[stored, a] = -1 if flip else 1
            move[stored, 3] = self.shape[stored] - 1 if flip else 0
        return rows(np.array(self.affine) @ move)

    def nifti(self, mask: NDArray[Any]) -> Any:
        """A canonical volume (Z, Y, X) as a nibabel image on exactly this grid.

        From NIfTI, sform, qform, their codes and units are the input's; from DICOM, axes are (column, row, slice).
        Raises InputError where the grid has no place in the world.
        """
        try:
            import nibabel as nib
        except ImportError:
            raise MissingExtraError("nibabel", "medical") from None
        stored = self.restore(mask)
        if self.header:
            two = len(self.header) >= 540
            header = (nib.Nifti2Header if two else nib.Nifti1Header)(self.header[: 540 if two else 348])
            stored = stored.reshape(self.shape[:2]) if header["dim"][0] == 2 else stored
            header.set_data_dtype(stored.dtype)
            header["cal_min"] = header["cal_max"] = 0
            header.set_slope_inter(1, 0)
            header.set_intent("none")
            return (nib.Nifti2Image if two else nib.Nifti1Image)(stored, header.get_best_affine(), header)
        if self.affine is None or len(self.shape) != 3:
            raise InputError("a NIfTI file needs a volume with an affine; save pictures as .png or .tif")
        image = nib.Nifti1Image(stored.transpose(2, 1, 0), np.array(self.affine)[:, [2, 1, 0, 3]])
        image.header.set_xyzt_units("mm")
        return image


def rows(affine: NDArray[np.floating[Any]]) -> Affine:
    """A 4 x 4 array as nested tuples of floats."""
    return tuple((float(r[0]), float(r[1]), float(r[2]), float(r[3])) for r in affine)


def oriented(shape: tuple[int, ...], affine: NDArray[np.floating[Any]], **extra: Any) -> Grid:
    """The grid of a volume whose affine (stored index to millimetres RAS+) is known and can be inverted."""
    try:
        from nibabel import orientations
    except ImportError:
        raise MissingExtraError("nibabel", "medical") from None
    stored = orientations.io_orientation(affine)  # a row per stored axis: (world axis, sign)
    wanted = orientations.axcodes2ornt(tuple(CANONICAL))
    order, flips = [], []
    for world, sign in wanted:
        (axis,) = np.flatnonzero(stored[:, 0] == world)
        order.append(int(axis))
        flips.append(bool(stored[axis, 1] != sign))
    return Grid(shape, rows(affine), tuple(order), tuple(flips), **extra)


def spacing(affine: Affine) -> tuple[float, ...]:
    """Millimetres between samples along each axis."""
    return tuple(float(s) for s in np.linalg.norm(np.array(affine)[:3, :3], axis=0))


def letters(affine: NDArray[np.floating[Any]]) -> str:
    """The sides that the stored axes grow towards ("LAS")."""
    from nibabel import orientations

    return "".join(str(c) for c in orientations.aff2axcodes(affine))


def differs(one: Grid, other: Grid) -> str:
    """What keeps two scans from lying on the same grid once both are canonical, "" where nothing does."""
    if one.canonical_shape != other.canonical_shape:
        return f"{sizes(other.canonical_shape)} samples against {sizes(one.canonical_shape)}"
    a, b = one.canonical_affine, other.canonical_affine
    if a is None and b is None:
        return ""
    if a is None or b is None:
        return "only one of the two has an affine"
    gap = np.abs(np.array(a) - np.array(b))
    if gap[:3, :3].max() > TURN:
        return f"spacing or direction differ by up to {gap[:3, :3].max():.4g} mm per sample"
    if gap[:3, 3].max() > SHIFT:
        return f"origins lie {gap[:3, 3].max():.4g} mm apart"
    return ""


def sizes(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
