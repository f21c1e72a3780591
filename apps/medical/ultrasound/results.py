"""What the ultrasound pipeline answers for a picture or cine loop."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apps.medical import tables
from apps.medical.ultrasound import _drawing, burned, metrics
from apps.medical.ultrasound.burned import Marks
from core.data.sample import Meta
from core.errors import FileError, ShapeError
from core.files import aside, write_text

NOTICE = "research use, not a medical device"


@dataclass(frozen=True, eq=False)
class Screening:
    """Probabilities of a picture, or of a cine loop's frames and of the loop.

    Attributes:
        classes: name -> number.
        frames: (T, K) probabilities of each frame; NaN for frames that show nothing.
        probabilities: (K,) of the picture or loop.
        pool: how they came from the frames', a name of `metrics.POOLS`.
        positive: of two classes the one that is looked for.
        threshold: its probability from which on it is called; None for 0.5.
        meta: of the input, with what was done to it.
        shown: number of the frame that `picture` and `looked` are of: the one that speaks most for what is called.
        picture: (H, W, 3) uint8, that frame as stored.
        looked: (h, w) that adds up to 1: what the network looked at; None for a network that cannot say.
        marks: text, calipers and other things drawn into the picture; None where they were not searched for.
        masked: whether the network saw the picture without them.
        remarks: what is unlike the pictures that it is meant for.

    Raises ShapeError for arrays that do not fit one another.
    """

    classes: Mapping[str, int]
    frames: NDArray[np.float64]
    probabilities: NDArray[np.float64]
    meta: Meta
    shown: int
    picture: NDArray[np.uint8]
    pool: str = "mean"
    positive: str | None = None
    threshold: float | None = None
    looked: NDArray[np.float32] | None = None
    marks: Marks | None = None
    masked: bool = False
    remarks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        count = len(self.classes)
        if self.frames.ndim != 2 or self.frames.shape[1] != count or self.probabilities.shape != (count,):
            raise ShapeError(
                f"expected probabilities of {count} classes, got {self.frames.shape} and {self.probabilities.shape}"
            )
        if self.picture.ndim != 3 or self.picture.shape[-1] != 3 or not 0 <= self.shown < len(self.frames):
            raise ShapeError(f"expected a picture (H, W, 3) of one of the frames, got {self.picture.shape}")
        if self.marks is not None and self.marks.mask.shape != self.picture.shape[:2]:
            raise ShapeError(f"the picture has {self.picture.shape[:2]} pixels, its marks {self.marks.mask.shape}")

    @property
    def cine(self) -> bool:
        return len(self.frames) > 1

    @property
    def called(self) -> str:
        """The class that is called, by the threshold where there is one."""
        return metrics.called(self.probabilities, self.classes, self.positive, self.threshold)

    def probability(self, name: str | None = None) -> float:
        """Of a class; by default of the one that is looked for, else of the one that is called."""
        return float(self.probabilities[self.classes[name or self.positive or self.called]])

    def save(self, path: str | Path, *, keep_identifiers: bool = False) -> None:
        """Write the answer, whole or not at all; the suffix says how.

        `.csv`: a row for the picture or loop (as `predict` writes it). `.json`: `as_dict`. `.png`: `draw`, on which
        burned-in text is masked unless `keep_identifiers`.

        Raises FileError for another suffix, a full disk, a folder that cannot be written.
        """
        path = Path(path)
        kind = path.suffix.lower()
        if kind == ".csv":
            write_csv([self], path)
        elif kind == ".json":
            write_text(path, json.dumps(self.as_dict(), indent=1) + "\n")
        elif kind == ".png":
            from core import pictures

            with aside(path) as part:
                part.write_bytes(pictures.png(self.draw(keep_identifiers=keep_identifiers)))
        else:
            raise FileError(
                path, f"answers are not written as {kind or 'files without suffix'}", "use .csv, .json or .png"
            )

    def draw(self, *, keep_identifiers: bool = False) -> NDArray[np.uint8]:
        """A picture to judge the answer by, (H, W, 3) uint8: the frame with its marks framed, what the network looked
        at over it, and of a loop the probability by frame.

        Burned-in text, which may name the patient, is masked unless `keep_identifiers`. Where marks were not searched
        for, they are for this.
        """
        return _drawing.draw(self, NOTICE, keep_identifiers=keep_identifiers)

    def row(self) -> dict[str, Any]:
        """Item, what is called, the probabilities, the frames and the marks, for tables."""
        found: dict[str, Any] = {"item": self.meta.id, "called": self.called}
        found |= {f"p_{name}": float(self.probabilities[i]) for name, i in self.classes.items()}
        found["threshold"] = self.threshold
        found["frames"] = len(self.frames)
        found["blank_frames"] = int(np.isnan(self.frames).any(axis=1).sum())
        counts = self.marks.counts() if self.marks is not None else {}
        for name in burned.KINDS:
            found[name.replace(" ", "_")] = counts.get(name, 0) if self.marks is not None else None
        return found | {"masked": int(self.masked)}

    def frame_rows(self) -> list[dict[str, Any]]:
        """A row for each frame of a loop: item, frame from 0, probabilities (None for a frame that shows nothing)."""
        if not self.cine:
            return []
        names = list(self.classes.items())
        return [
            {"item": self.meta.id, "frame": t}
            | {f"p_{name}": None if np.isnan(row[i]) else float(row[i]) for name, i in names}
            for t, row in enumerate(self.frames)
        ]

    def mark_rows(self) -> list[dict[str, Any]]:
        """A row for each thing that was drawn into the picture: item, kind, x, y, width, height."""
        return [{"item": self.meta.id} | row for row in burned.rows(self.marks.marks if self.marks else ())]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        row = self.row()
        return {
            "id": self.meta.id,
            "called": self.called,
            "positive": self.positive,
            "threshold": self.threshold,
            "probabilities": {name: float(self.probabilities[i]) for name, i in self.classes.items()},
            "frames": [{k: v for k, v in r.items() if k != "item"} for r in self.frame_rows()],
            "blank_frames": row["blank_frames"],
            "pool": metrics.POOLS[self.pool] if self.cine else None,
            "shown_frame": self.shown,
            "marks": burned.rows(self.marks.marks) if self.marks is not None else None,
            "masked": self.masked,
            "looked": None if self.looked is None else np.round(self.looked.astype(float), 8).tolist(),
            "applied": list(self.meta.applied),
            "remarks": list(self.remarks),
            "notice": NOTICE,
        }


def write_csv(results: Iterable[Screening], path: str | Path) -> None:
    """A row for each answer. Written whole or not at all; raises FileError as `Screening.save` does."""
    write_text(path, tables.written([r.row() for r in results]))
