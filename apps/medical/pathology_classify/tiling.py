"""The tiles of a slide: where they lie, which show tissue, and the loop that classifies them row by row."""

from __future__ import annotations

import shutil
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apps.medical import stain, tissue
from apps.medical.slides import Slide, SlideSource
from core.errors import FileError, SettingError
from core.streaming.journal import Journal
from core.streaming.threads import ahead, give_back

TISSUE = 0.25  # part of a tile that shows tissue, from which on it is classified
_THUMBNAIL = 1024  # pixels of the longer side of the picture that tissue is looked for in
_SAMPLED = 48  # tiles that a slide's stains are told from
_EVERY = 4  # of their pixels along each side
Answer = Callable[[NDArray[np.uint8]], NDArray[np.floating]]
Batch = tuple[int, NDArray[np.intp], NDArray[np.uint8]]


@dataclass(frozen=True, eq=False)
class Plan:
    """The tiles of a slide on a regular grid; those at its ends may reach beyond it, onto white.

    Attributes:
        source: the slide at the network's micrometres to a pixel.
        tile: pixels a side of a tile.
        step: pixels from one tile to the next; a tile is a whole number of them.
        rows: upper edges, in pixels of `source`.
        columns: left edges, likewise.
        covered: (rows, columns), the part of each tile that tissue covers.
        kept: (rows, columns), which are classified.
        thumbnail: the slide small, (h, w, 3).
        scale: pixels of level 0 to one of the thumbnail.
    """

    source: SlideSource
    tile: int
    step: int
    rows: NDArray[np.intp]
    columns: NDArray[np.intp]
    covered: NDArray[np.float32]
    kept: NDArray[np.bool_]
    thumbnail: NDArray[np.uint8] = field(repr=False)
    scale: tuple[float, float]

    def read(self, row: int, column: int) -> NDArray[np.uint8]:
        """One tile (tile, tile, 3); what was not scanned is white."""
        start = int(self.rows[row]), int(self.columns[column])
        values, valid = self.source.read(start, (start[0] + self.tile, start[1] + self.tile))
        return np.moveaxis(np.where(valid, values, np.uint8(255)), 0, -1)


def plan(slide: Slide, um: float, tile: int, *, overlap: float = 0.0, least: float = TISSUE) -> Plan:
    """Where to look on a slide.

    Args:
        slide: open.
        um: micrometres to a pixel of the network.
        tile: pixels a side.
        overlap: part of a tile that it shares with the next: 0, 0.5 or 0.75, so that a tile is a whole number of steps.
        least: part of a tile that must show tissue; 0 for every tile.

    Raises:
        SettingError: another overlap.
        FileError: no tile shows tissue; and what `Slide.at` and reading raise.
    """
    step = round(tile * (1 - overlap))
    if step < 1 or tile % step:
        raise SettingError(f"--overlap is 0, 0.5 or 0.75 (a tile is a whole number of steps), got {overlap:g}")
    source = slide.at(um)
    rows, columns = (np.arange(max(1, -(-max(0, n - tile) // step) + 1)) * step for n in source.shape)
    thumbnail, valid, scale = slide.thumbnail(_THUMBNAIL)
    found = tissue.mask(thumbnail, valid)
    down, across = source.scale
    covered = tissue.covered(found, scale, rows * down, columns * across, (tile * down, tile * across))
    kept = covered >= least if least > 0 else np.ones(covered.shape, np.bool_)
    if not kept.any():
        raise FileError(
            slide.path, f"no tile of {tile * um:.0f} um shows tissue on {least:.0%} of it",
            "lower --tissue; with 0 every tile is classified",
        )  # fmt: skip
    give_back()  # what looking for tissue took
    return Plan(source, tile, step, rows, columns, covered, kept, thumbnail, scale)


def stains(plan: Plan) -> stain.Stain | None:
    """The slide's stains, told from tiles spread evenly over its tissue; None where they cannot be told."""
    there = np.argwhere(plan.kept)
    chosen = there[np.unique(np.linspace(0, len(there) - 1, _SAMPLED).round().astype(int))]
    return stain.fit(np.concatenate([plan.read(r, c)[::_EVERY, ::_EVERY].reshape(-1, 3) for r, c in chosen]))


def classify(
    plan: Plan,
    answer: Answer,
    classes: int,
    *,
    batch: int = 4,
    journal: Journal | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> NDArray[np.float32]:
    """Class probabilities (K, rows, columns) of the kept tiles; NaN for the others.

    Rows of tiles that the journal holds from an earlier run are taken from it. Batches do not cross rows, so that a
    run that was stopped gives the same numbers. Reading and the network overlap.

    Args:
        plan: where the tiles lie.
        answer: tiles (n, tile, tile, 3) to probabilities (n, K).
        classes: K.
        batch: tiles of one call.
        journal: of finished rows; it stays.
        progress: called with the finished and all kept tiles after each batch.
    """
    height, width = plan.kept.shape
    scores = np.full((classes, height, width), np.nan, np.float32)
    first = 0
    if journal is not None:
        for (block,) in journal.read():
            part = np.frombuffer(zlib.decompress(block), np.float32).reshape(classes, -1, width)
            scores[:, first : first + part.shape[1]] = part
            first += part.shape[1]
    last = {row: np.flatnonzero(plan.kept[row])[-1] for row in range(height) if plan.kept[row].any()}
    done, total = int(plan.kept[:first].sum()), int(plan.kept.sum())
    with ahead(_batches(plan, first, batch)) as batches:
        for row, columns, tiles in batches:
            scores[:, row, columns] = answer(tiles).T
            done += len(columns)
            if journal is not None and columns[-1] == last[row]:  # rows without a tile before it go with it
                _keep(journal, scores, journal.rows, row + 1)
            if progress is not None:
                progress(done, total)
    if journal is not None and journal.rows < height:
        _keep(journal, scores, journal.rows, height)
    return scores


def _keep(journal: Journal, scores: NDArray[np.float32], first: int, stop: int) -> None:
    journal.append(stop, [zlib.compress(np.ascontiguousarray(scores[:, first:stop]).data, 1)])


def _batches(plan: Plan, first: int, batch: int) -> Iterator[Batch]:
    for row in range(first, len(plan.rows)):
        columns = np.flatnonzero(plan.kept[row])
        for start in range(0, len(columns), batch):
            part = columns[start : start + batch]
            yield row, part, np.stack([plan.read(row, int(c)) for c in part])


def forget(path: Path) -> None:
    """Remove the journal of a slide whose results are written."""
    shutil.rmtree(path.with_name(path.name + ".part"), ignore_errors=True)


def key(plan: Plan, **more: Any) -> dict[str, Any]:
    """What the numbers of a journal depend on beside the networks."""
    source = plan.source
    return {
        "source": source.identity,
        "size": source.shape,
        "tile": (plan.tile, plan.step),
        "kept": zlib.crc32(np.packbits(plan.kept).tobytes()),
        **more,
    }
