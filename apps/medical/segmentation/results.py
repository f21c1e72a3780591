"""What the segmentation pipeline answers for one item."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apps.medical._grid import Grid
from apps.medical._scan import Scan
from apps.medical.segmentation import _dicom_seg, _drawing, _ids, _writing
from core.data.sample import Meta
from core.errors import FileError, InputError, ShapeError
from core.files import aside

NOTICE = "research use, not a medical device"
COLUMNS = ("item", "class", "id", "samples", "mm3", "ml", "mm2")


@dataclass(frozen=True, eq=False)
class Segmentation:
    """A mask on the grid of its input.

    Attributes:
        mask: ids, uint8 or uint16, (Z, Y, X) in canonical order, (T, Y, X) of frames, or (Y, X).
        classes: name -> id, background included if it has a name.
        meta: of the input.
        grid: of the input as stored; None for arrays.
        valid: like `mask`, False where there was no measurement; None where all is measured.
        ignore: id that stands for "not labelled", None without.
        probabilities: (K, *mask.shape), 0..1, channel k for the k-th of `classes`; None unless asked for.
        scan: what to draw on, read slice by slice; with a cine loop or time series axis 0 is time, without volumes.
        image: what to draw on where there is no scan: like `mask`, or (C, *mask.shape).

    Raises ShapeError for arrays that do not fit one another, InputError for ids that are no class.
    """

    mask: NDArray[np.uint8 | np.uint16]
    classes: Mapping[str, int]
    meta: Meta
    grid: Grid | None = None
    valid: NDArray[np.bool_] | None = None
    ignore: int | None = None
    probabilities: NDArray[np.floating[Any]] | None = None
    scan: Scan | None = None
    image: NDArray[Any] | None = None

    def __post_init__(self) -> None:
        shape = self.mask.shape
        if self.mask.dtype not in (np.uint8, np.uint16) or len(shape) not in (2, 3):
            raise ShapeError(f"a mask is uint8 or uint16 with 2 or 3 axes, got {self.mask.dtype} {shape}")
        if self.grid is not None and self.grid.canonical_shape != shape:
            raise ShapeError(f"the mask has shape {shape}, its grid {self.grid.canonical_shape}")
        if self.valid is not None and self.valid.shape != shape:
            raise ShapeError(f"the mask has shape {shape}, its validity {self.valid.shape}")
        for seen in (self.scan, self.image):
            if seen is not None and shape not in (seen.shape, seen.shape[1:]):
                raise ShapeError(f"the mask has shape {shape}, its image {seen.shape}")
        if self.probabilities is not None and self.probabilities.shape != (len(self.classes), *shape):
            raise ShapeError(
                f"probabilities of {len(self.classes)} classes have shape {(len(self.classes), *shape)}, "
                f"got {self.probabilities.shape}"
            )
        strange = _ids.present(self.mask) - {0, self.ignore, *self.classes.values()}
        if strange:
            raise InputError(f"the mask holds {sorted(strange)}, which are not ids of the classes {dict(self.classes)}")

    def save(self, path: str | Path, *, keep_identifiers: bool = False) -> None:
        """Write the mask, whole or not at all; the suffix says how.

        `.nii`, `.nii.gz`: on exactly the input's grid (shape, affine, codes, units). `.png`: one picture whose values
        are the ids (a palette shows them in colour; 16 bit where an id is above 255). `.tif`, `.tiff`: a picture, or
        slices or frames as pages, with spacing. `.dcm`: DICOM-SEG for DICOM input (`_dicom_seg.write` says what stands
        in place of the patient's data unless `keep_identifiers`, which the other formats have no place for).

        Raises FileError for a suffix that does not suit, a full disk, a folder that cannot be written.
        """
        path = Path(path)
        kind = suffix(path)
        if kind in (".nii", ".nii.gz"):
            _writing.nifti(path, self.mask, self._grid())
        elif kind == ".png":
            _writing.png(path, self.mask, _drawing.colours(self.classes))
        elif kind in (".tif", ".tiff"):
            _writing.tiff(path, self.mask, None if self.frames else self.meta.spacing)
        elif kind == ".dcm":
            _dicom_seg.write(path, self.mask, self.scored(), self.grid, keep_identifiers=keep_identifiers)
        else:
            raise FileError(
                path, f"masks are not written as {kind or 'files without suffix'}", "use .nii.gz, .png, .tif or .dcm"
            )

    def save_probabilities(self, path: str | Path) -> None:
        """Write the probabilities as float32: `.nii`, `.nii.gz` (fourth axis: classes) on the input's grid, `.tif`
        (a page per class and slice), or `.npz` with `probabilities` (K, ...) and `classes`.

        Raises InputError where there are none, FileError as `save` does.
        """
        if self.probabilities is None:
            raise InputError("no probabilities were kept; ask for them when predicting (--probabilities)")
        path = Path(path)
        kind = suffix(path)
        if kind in (".nii", ".nii.gz"):
            _writing.nifti_channels(path, self.probabilities, self._grid())
        elif kind in (".tif", ".tiff"):
            _writing.tiff(path, self.probabilities.astype(np.float32), None if self.frames else self.meta.spacing)
        elif kind == ".npz":
            with aside(path) as part:
                names, values = np.array(list(self.classes)), self.probabilities.astype(np.float32)
                np.savez_compressed(part, probabilities=values, classes=names)
        else:
            raise FileError(
                path, f"probabilities are not written as {kind or 'files without suffix'}", "use .nii.gz, .tif or .npz"
            )

    def draw(
        self, slice: int | None = None, columns: int = 3, truth: NDArray[np.integer] | None = None
    ) -> NDArray[np.uint8]:
        """A picture to judge the mask by, (H, W, 3) uint8: the image, the mask over it, the truth over it if given.

        Of volumes and frames the slices (up to `columns`) that together show each class at its largest and lie apart,
        or only `slice`; grey values from the 1st to the 99th percentile; pixels in their physical proportions; colours
        that do not depend on the case; names of the classes below; nothing about the patient.
        """
        return _drawing.draw(self, slice, columns, truth, NOTICE)

    def volumes(self) -> list[dict[str, Any]]:
        """A row per class but the background: class, id, samples, mm3, ml, mm2 (None where it does not apply)."""
        counts = _ids.counts(self.mask, self.valid)
        spacing = None if self.frames else self.meta.spacing
        size = None if spacing is None or len(spacing) != self.mask.ndim else float(np.prod(spacing))
        if size is not None and self.meta.affine is not None and self.mask.ndim == 3:
            size = abs(float(np.linalg.det(np.array(self.meta.affine)[:3, :3])))  # a tilted gantry shears the voxels
        rows = []
        for name, i in self.scored().items():
            row: dict[str, Any] = {"class": name, "id": i, "samples": int(counts[i])}
            physical = None if size is None else row["samples"] * size
            flat = self.mask.ndim == 2
            row |= {"mm3": None, "ml": None, "mm2": physical if flat else None}
            if not flat and physical is not None:
                row |= {"mm3": physical, "ml": physical / 1000}
            rows.append(row)
        return rows

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "id": self.meta.id,
            "shape": list(self.mask.shape),
            "spacing": None if self.meta.spacing is None else list(self.meta.spacing),
            "orientation": self.meta.orientation,
            "classes": dict(self.classes),
            "ignore": self.ignore,
            "invalid": 0 if self.valid is None else int((~self.valid).sum()),
            "volumes": self.volumes(),
            "applied": list(self.meta.applied),
            "notice": NOTICE,
        }

    @property
    def frames(self) -> bool:
        """Whether axis 0 is time."""
        return self.scan is not None and self.scan.kind == "frames"

    def scored(self) -> dict[str, int]:
        """The classes without background and ignore."""
        return {name: i for name, i in self.classes.items() if i not in (0, self.ignore)}

    def _grid(self) -> Grid:
        """Of the input; for arrays the one that `meta.affine` gives."""
        if self.grid is not None or self.meta.affine is None:
            return self.grid or Grid(self.mask.shape)
        axes = self.mask.ndim
        return Grid(self.mask.shape, self.meta.affine, tuple(range(axes)), (False,) * axes)


def suffix(path: Path) -> str:
    """The file's kind in small letters, ".nii.gz" as one."""
    name = path.name.lower()
    return ".nii.gz" if name.endswith(".nii.gz") else path.suffix.lower()


def write_csv(results: Iterable[Segmentation], path: str | Path) -> None:
    """Volumes of every class of every case: item, class, id, samples, mm3, ml, mm2; empty where it does not apply.

    Takes the results one by one. Written whole or not at all; raises FileError as `Segmentation.save` does.
    """
    with aside(path) as part, part.open("w", newline="", encoding="utf-8") as stream:
        table = csv.DictWriter(stream, COLUMNS)
        table.writeheader()
        for result in results:
            for row in result.volumes():
                measured = {k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()}
                table.writerow({"item": result.meta.id} | measured)
