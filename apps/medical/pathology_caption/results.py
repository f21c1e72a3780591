"""What the captioning pipeline answers for a bag of patches."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apps.medical import tables
from apps.medical.pathology_caption.describing import Described
from core.data.sample import Meta
from core.errors import FileError, ShapeError
from core.files import aside, write_text

NOTICE = "research use, not a medical device"
SIDE = 160  # pixels of a representative in the drawing


@dataclass(frozen=True, eq=False)
class Captioned:
    """A caption and class probabilities of a bag, and the patches that decided.

    Attributes:
        classes: name -> number; empty without a class head.
        described: what the networks said.
        names: of the patches, in the bag's order.
        shown: (S, S, 3) uint8, the heaviest patch of each representative, in their order.
        meta: of the bag, with what was done to it.

    Raises ShapeError for parts that do not fit one another.
    """

    classes: Mapping[str, int]
    described: Described
    names: tuple[str, ...]
    shown: tuple[NDArray[np.uint8], ...]
    meta: Meta

    def __post_init__(self) -> None:
        d = self.described
        if len(d.probabilities) != len(self.classes) or len(d.weights) != len(self.names):
            raise ShapeError(
                f"expected {len(self.classes)} probabilities and {len(self.names)} weights, got "
                f"{len(d.probabilities)} and {len(d.weights)}"
            )
        if len(self.shown) != len(d.representatives):
            raise ShapeError(f"expected a picture of each of {len(d.representatives)} clusters, got {len(self.shown)}")

    @property
    def caption(self) -> str:
        """Empty where the networks write none, or nothing."""
        return self.described.caption

    @property
    def label(self) -> str:
        """The likeliest class, "" without a class head."""
        return max(self.classes, key=self.probability) if self.classes else ""

    def probability(self, name: str) -> float:
        return self.described.probabilities[self.classes[name]]

    def save(self, path: str | Path) -> None:
        """Write the answer, whole or not at all: `.json` (all), `.csv` (a row), `.txt` (the caption), `.png` (`draw`).

        Raises FileError for another suffix, a caption asked for where there is none, a folder that cannot be written.
        """
        path = Path(path)
        kind = path.suffix.lower()
        if kind == ".json":
            write_text(path, json.dumps(self.as_dict(), indent=1, ensure_ascii=False) + "\n")
        elif kind == ".csv":
            write_csv([self], path)
        elif kind == ".txt":
            if self.described.log_probability is None:
                raise FileError(path, "cannot be written: the network writes no caption", "use .json, .csv or .png")
            write_text(path, self.caption + "\n")
        elif kind == ".png":
            from core import pictures

            with aside(path) as part:
                part.write_bytes(pictures.png(self.draw()))
        else:
            raise FileError(
                path, f"answers are not written as {kind or 'files without suffix'}", "use .json, .csv, .txt or .png"
            )

    def draw(self) -> NDArray[np.uint8]:
        """The representatives, the heaviest cluster first, with their weights, (H, W, 3) uint8."""
        from core import pictures

        order = sorted(self.representative_rows(), key=lambda row: -row["weight"])
        row = [
            (
                f"{r['weight']:.0%} of the slide, {r['patches']} {'patch' if r['patches'] == 1 else 'patches'}",
                self.shown[r["place"]],
            )
            for r in order
        ]
        return pictures.panel(row, columns=min(4, len(row)))

    def representative_rows(self) -> list[dict[str, Any]]:
        """A row for each cluster: number, name of its heaviest patch, its part in the slide, its patches."""
        d = self.described
        shares: dict[int, float] = {}
        for cluster, weight in zip(d.clusters, d.weights, strict=True):
            shares[cluster] = shares.get(cluster, 0.0) + weight
        return [
            {
                "cluster": r.cluster, "patch": self.names[r.patch], "weight": shares[r.cluster],
                "weight_in_cluster": r.weight, "patches": r.patches, "neighbours": list(r.neighbours), "place": i,
            }
            for i, r in enumerate(d.representatives)
        ]  # fmt: skip

    def row(self) -> dict[str, Any]:
        """Bag, caption, class and probabilities, patches, for tables."""
        found: dict[str, Any] = {"bag": self.meta.id, "caption": self.caption}
        if self.classes:
            found["class"] = self.label
            found |= {f"p_{name}": self.probability(name) for name in self.classes}
        return found | {
            "log_probability": self.described.log_probability,
            "patches": len(self.names),
            "representatives": len(self.shown),
        }

    def patch_rows(self) -> list[dict[str, Any]]:
        """A row for each patch: bag, name, cluster, its part in the slide (all add up to 1)."""
        d = self.described
        return [
            {"bag": self.meta.id, "patch": name, "cluster": cluster, "weight": weight}
            for name, cluster, weight in zip(self.names, d.clusters, d.weights, strict=True)
        ]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "id": self.meta.id,
            "caption": self.caption or None,
            "log_probability": self.described.log_probability,
            "class": self.label or None,
            "probabilities": {name: self.probability(name) for name in self.classes},
            "representatives": [{k: v for k, v in r.items() if k != "place"} for r in self.representative_rows()],
            "patches": [{k: v for k, v in r.items() if k != "bag"} for r in self.patch_rows()],
            "applied": list(self.meta.applied),
            "notice": NOTICE,
        }


def write_csv(results: Iterable[Captioned], path: str | Path) -> None:
    """A row for each bag. Written whole or not at all; raises FileError as `Captioned.save` does."""
    write_text(path, tables.written([r.row() for r in results]))
