"""What the pipeline answers for a tile or picture, and for a slide."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apps.medical.pathology_classify import _drawing, heatmap, pooling
from apps.medical.pathology_classify.tiling import Plan
from core import pictures
from core.data.sample import Meta
from core.errors import FileError, ShapeError
from core.files import aside, write_text

NOTICE = "research use, not a medical device"
DECIDING = 12  # tiles in a strip


@dataclass(frozen=True, eq=False)
class Heat:
    """What parts of a picture say.

    Attributes:
        values: (rows, columns) over the whole picture.
        what: they are, in words.
    """

    values: NDArray[np.float32]
    what: str


@dataclass(frozen=True, eq=False)
class Classification:
    """The class of a tile or picture.

    Attributes:
        probabilities: of `classes`, in their order; they add up to one.
        classes: names.
        meta: of the input; `applied` says what was done to it.
        label: the class that was decided for.
        cuts: squares of the picture whose mean the probabilities are.
        image: as the network saw it, (rows, columns, 3), before normalisation.
        heat: where the label comes from; None for a single square that was not asked about.

    Raises ShapeError where probabilities and classes do not fit.
    """

    probabilities: tuple[float, ...]
    classes: tuple[str, ...]
    meta: Meta
    label: str
    cuts: int = 1
    image: NDArray[np.uint8] | None = field(default=None, repr=False)
    heat: Heat | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if len(self.probabilities) != len(self.classes) or self.label not in self.classes:
            raise ShapeError(f"{len(self.probabilities)} probabilities and {self.label!r} for {self.classes}")

    @property
    def probability(self) -> float:
        """Of the label."""
        return self.probabilities[self.classes.index(self.label)]

    def as_dict(self) -> dict[str, Any]:
        return {
            "item": self.meta.id,
            "kind": "picture",
            "label": self.label,
            "probabilities": dict(zip(self.classes, self.probabilities, strict=True)),
            "cuts": self.cuts,
            "applied": list(self.meta.applied),
            "notice": NOTICE,
        }

    def row(self) -> dict[str, Any]:
        """For a table of many items; see `columns`."""
        return _row(self.meta.id, "picture", self.label, self.classes, self.probabilities, self.cuts)

    def save(self, path: str | Path) -> None:
        """Write .json (`as_dict`), .csv (one row) or .png (`draw`), whole or not at all; FileError for other kinds."""
        path = Path(path)
        if path.suffix.lower() == ".csv":
            write_rows(path, columns(self.classes), [self.row()])
        else:
            _save(path, self)

    def draw(self) -> NDArray[np.uint8]:
        """The picture, where its label comes from, and a bar for each class, (H, W, 3)."""
        return _drawing.tile(self, NOTICE)


@dataclass(frozen=True)
class Tile:
    """A tile that took part in a slide's label, in pixels of level 0."""

    rank: int  # 1 gave most
    x: int
    y: int
    width: int
    height: int
    tissue: float  # part of it
    label: str  # its likeliest class
    share: float  # of the probability of the slide's label
    probabilities: tuple[float, ...]
    place: tuple[int, int]  # row and column in the grid


@dataclass(frozen=True, eq=False)
class SlideClassification:
    """The class of a slide, tile by tile.

    Attributes:
        probabilities: of `classes`, pooled over its tiles.
        classes: names.
        meta: of the slide at the resolution that was read.
        label: the class that was decided for.
        scores: (K, rows, columns), probabilities of each tile; NaN where there is no tissue.
        plan: where the tiles lie, and the slide itself.
        pool: how the label came from the tiles, a name of pooling.POOLS.
    """

    probabilities: tuple[float, ...]
    classes: tuple[str, ...]
    meta: Meta
    label: str
    scores: NDArray[np.float32] = field(repr=False)
    plan: Plan = field(repr=False)
    pool: str = "mean"

    def __post_init__(self) -> None:
        if self.scores.shape != (len(self.classes), *self.plan.kept.shape):
            raise ShapeError(f"scores {self.scores.shape} for {len(self.classes)} classes on {self.plan.kept.shape}")
        if len(self.probabilities) != len(self.classes) or self.label not in self.classes:
            raise ShapeError(f"{len(self.probabilities)} probabilities and {self.label!r} for {self.classes}")

    @property
    def probability(self) -> float:
        """Of the label."""
        return self.probabilities[self.classes.index(self.label)]

    @cached_property
    def tiles(self) -> tuple[Tile, ...]:
        """Every tile that was classified, the one that gave most to the label first."""
        places = np.argwhere(np.isfinite(self.scores[0]))
        values = self.scores[:, places[:, 0], places[:, 1]].T
        given = pooling.shares(values, self.pool, self.classes.index(self.label))
        order = np.lexsort((places[:, 1], places[:, 0], -values[:, self.classes.index(self.label)], -given))
        down, across = self.plan.source.scale
        high, wide = round(self.plan.tile * down), round(self.plan.tile * across)
        found = []
        for rank, i in enumerate(order, 1):
            r, c = (int(n) for n in places[i])
            found.append(
                Tile(
                    rank, round(float(self.plan.columns[c]) * across), round(float(self.plan.rows[r]) * down), wide,
                    high, float(self.plan.covered[r, c]), self.classes[int(values[i].argmax())], float(given[i]),
                    tuple(float(p) for p in values[i]), (r, c),
                )
            )  # fmt: skip
        return tuple(found)

    @cached_property
    def cells(self) -> heatmap.Cells:
        """The map: a value for each step of the tiles."""
        source = self.plan.source
        assert source.slide.um is not None
        down, across = source.scale
        size = self.plan.step * down, self.plan.step * across
        return heatmap.cells(self.scores, self.plan.tile // self.plan.step, size, source.slide.size, source.slide.um)

    @property
    def tissue(self) -> float:
        """Part of the slide that shows tissue: of all tiles' area the part that is covered."""
        return float(self.plan.covered.mean())

    def as_dict(self) -> dict[str, Any]:
        um = self.plan.source.um
        return {
            "item": self.meta.id,
            "kind": "slide",
            "label": self.label,
            "probabilities": dict(zip(self.classes, self.probabilities, strict=True)),
            "pooled by": pooling.POOLS[self.pool],
            "tiles": len(self.tiles),
            "tissue": round(self.tissue, 4),
            "um per px": None if um is None else [round(u, 5) for u in um],
            "tile": self.plan.tile,
            "step": self.plan.step,
            "deciding tiles": [{"x": t.x, "y": t.y, "share": round(t.share, 6)} for t in self.tiles[:DECIDING]],
            "applied": list(self.meta.applied),
            "notice": NOTICE,
        }

    def row(self) -> dict[str, Any]:
        """For a table of many items; see `columns`."""
        return _row(self.meta.id, "slide", self.label, self.classes, self.probabilities, len(self.tiles))

    def save(self, path: str | Path) -> None:
        """Write whole or not at all, by the suffix; FileError for other kinds.

        `.tif` (name it .ome.tif): the heat map as a pyramid; `.geojson`: its cells for QuPath; `.csv`: every tile, the
        deciding ones first; `.json`: `as_dict`; `.png`: `draw`.
        """
        path = Path(path)
        kind = path.suffix.lower()
        if kind in (".tif", ".tiff"):
            heatmap.write_tiff(path, self.cells, self.classes)
        elif kind == ".geojson":
            heatmap.write_geojson(path, self.cells, self.classes, self.meta.id)
        elif kind == ".csv":
            write_rows(path, tile_columns(self.classes), [self._tile(t) for t in self.tiles])
        else:
            _save(path, self)

    def draw(self) -> NDArray[np.uint8]:
        """The slide beside itself with the classes in colour, the deciding tiles framed, (H, W, 3)."""
        return _drawing.slide(self, NOTICE)

    def strip(self, count: int = DECIDING) -> NDArray[np.uint8]:
        """The tiles that decided the label side by side, the most important first, (H, W, 3)."""
        return _drawing.strip(self, count, NOTICE)

    def _tile(self, tile: Tile) -> dict[str, Any]:
        given = {f"probability {n}": f"{p:.6f}" for n, p in zip(self.classes, tile.probabilities, strict=True)}
        return {
            "item": self.meta.id, "rank": tile.rank, "x": tile.x, "y": tile.y, "width": tile.width,
            "height": tile.height, "tissue": f"{tile.tissue:.4f}", "label": tile.label, "share": f"{tile.share:.8f}",
            **given,
        }  # fmt: skip


def columns(classes: Sequence[str]) -> list[str]:
    """Of a table of items."""
    return ["item", "kind", "label", "tiles", *(f"probability {c}" for c in classes)]


def tile_columns(classes: Sequence[str]) -> list[str]:
    """Of the table of a slide's tiles."""
    first = ["item", "rank", "x", "y", "width", "height", "tissue", "label", "share"]
    return [*first, *(f"probability {c}" for c in classes)]


def write_rows(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """A CSV, whole or not at all."""
    with aside(path) as part, part.open("w", newline="", encoding="utf-8") as stream:
        table = csv.DictWriter(stream, columns, lineterminator="\n")
        table.writeheader()
        table.writerows(rows)


def _row(
    id: str, kind: str, label: str, classes: Sequence[str], probabilities: Sequence[float], tiles: int
) -> dict[str, Any]:
    given = {f"probability {n}": f"{p:.6f}" for n, p in zip(classes, probabilities, strict=True)}
    return {"item": id, "kind": kind, "label": label, "tiles": tiles, **given}


def _save(path: Path, result: Classification | SlideClassification) -> None:
    kind = path.suffix.lower()
    if kind == ".json":
        write_text(path, json.dumps(result.as_dict(), indent=1) + "\n")
    elif kind == ".png":
        with aside(path) as part:
            part.write_bytes(pictures.png(result.draw()))
    else:
        more = ", .tif, .geojson" if isinstance(result, SlideClassification) else ""
        raise FileError(path, f"a classification is not written as {kind or 'a file without suffix'}",
                        f"use .json, .csv, .png{more}")  # fmt: skip
