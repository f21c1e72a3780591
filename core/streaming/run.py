"""The loop of prediction: windows in, tiles through the model, strips out."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from core.errors import SettingError
from core.streaming.arrays import file_identity
from core.streaming.blend import Finish, Strip
from core.streaming.journal import Resumable
from core.streaming.threads import ahead, behind, give_back
from core.streaming.tiles import Axis, count, grid

if TYPE_CHECKING:
    from core.protocols import Model, Sink, Source

_TRIMMED = 64 << 20  # bytes of scores after which free memory goes back to the system
_WIDER = {"uint16": np.int32, "uint32": np.int64, "uint64": np.int64}  # torch computes little with these


@dataclass(frozen=True)
class _Batch:
    """Tiles of one call of the model: `places` of all, arrays of those that hold a valid sample."""

    places: list[tuple[int, ...]]
    kept: list[bool]
    tiles: NDArray[Any]  # (N, C, *tile)
    valid: NDArray[np.bool_]  # (N, *tile)
    strips: dict[int, NDArray[np.bool_]]  # validity (tile, *rest) of the tile rows that end in this batch


def run(
    source: Source,
    model: Model,
    sink: Sink,
    *,
    tile: int | Sequence[int],
    overlap: float | Sequence[float],
    finish: Finish,
    scale: int = 1,
    batch: int = 4,
    device: torch.device | str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Predict `source` tile by tile into `sink` and close it. Memory does not grow with the length of axis 0.

    Tiles are read strip by strip in one thread, go through `model` in the caller's, and are joined, finished and
    written in a third. A scene that one tile holds is padded, and its scores are the model's own, bit for bit. Tiles
    without a valid sample are left out: their scores are zero.

    A sink that holds rows of an earlier run that was stopped goes on behind them. Batches are cut at the same tiles
    then, so that the result is bit-equal to that of a run without a stop (where the model repeats its own numbers).

    Args:
        source: 1, 2 or 3 spatial axes.
        model: tiles (N, C, *tile) in the source's type (uint16 as int32, uint32 as int64) and valid (N, *tile) on
            `device` to scores (N, K, *tile * scale); called under inference mode.
        sink: takes strips of the scene's size times `scale`.
        tile: samples of a tile, one number or one an axis.
        overlap: fraction of a tile shared with the next, 0 <= overlap < 1, one number or one an axis.
        finish: scores (K, *strip) and valid (*strip) to the strip that the sink takes. The scores are a view that is
            used again afterwards. Strips of a resumed run may begin elsewhere: where the sink cuts a strip, results
            must not depend on its extent.
        scale: output samples per input sample along every axis.
        batch: tiles of one call of the model.
        device: of the tiles that the model gets; None for the CPU.
        progress: called with the finished and all output rows after each strip, from the writing thread.

    Raises:
        SettingError: a tile, overlap, scale or batch outside its range.
        ShapeError: the model's scores do not have the stated shape.
        FileError: the source cannot be read or the sink not be written.
    """
    if scale < 1 or batch < 1:
        raise SettingError(f"scale and batch are at least 1, got {scale} and {batch}")
    axes = grid(source.shape, tile, overlap)
    place = torch.device(device or "cpu")
    if isinstance(sink, Resumable):
        sink.agree(
            tile=[axis.tile for axis in axes],
            starts=[axis.starts for axis in axes],
            scale=scale,
            batch=batch,
            device=place.type,
            source=identity(source),
        )
    try:
        written = sink.written
        strip = Strip([axis.scaled(scale) for axis in axes])
        last = strip.axes[0].length
        if written < last:
            rows = range(len(axes[0].starts))
            first = next(row for row in rows if strip.axes[0].starts[row] + strip.axes[0].used[row][1] > written)
            per_row = count(axes[1:])
            begin = first * per_row // batch * batch  # batches as in a run from the start
            joiner = _Joiner(strip, sink, finish, scale, first, progress)
            with (
                behind(joiner.take) as put,
                ahead(_batches(source, axes, begin, batch)) as batches,
                torch.inference_mode(),
            ):
                for b in batches:
                    put((b, _scores(model, b, place)))
        sink.close()
    except BaseException:
        if isinstance(sink, Resumable):
            sink.release()
        raise


def identity(source: Source) -> str:
    """What tells a source from another without naming it: its own `identity`, else the file's size and time."""
    stated = getattr(source, "identity", None)
    if stated is None:
        stated = file_identity(source.meta.path)
    text = repr((source.shape, source.channels, str(source.dtype), stated))
    return hashlib.sha256(text.encode()).hexdigest()


def _scores(model: Model, b: _Batch, device: torch.device) -> Tensor | None:
    if not len(b.tiles):
        return None
    return model(torch.from_numpy(b.tiles).to(device), torch.from_numpy(b.valid).to(device))


def _batches(source: Source, axes: Sequence[Axis], begin: int, batch: int) -> Iterator[_Batch]:
    """Batches from tile number `begin` on. Rows that two strips share are read once."""
    across = [range(len(axis.starts)) for axis in axes[1:]]
    per_row = count(axes[1:])
    rest = [max(axis.length, axis.tile) for axis in axes[1:]]
    wider = _WIDER.get(np.dtype(source.dtype).name)
    places: list[tuple[int, ...]] = []
    cuts: list[tuple[NDArray[Any], NDArray[np.bool_]] | None] = []
    strips: dict[int, NDArray[np.bool_]] = {}
    values: NDArray[Any] = np.empty(0)
    valid: NDArray[np.bool_] = np.empty(0, np.bool_)
    end = 0
    number, probed = begin // per_row * per_row, False
    for row in range(begin // per_row, len(axes[0].starts)):
        start, stop = axes[0].starts[row], axes[0].starts[row] + axes[0].tile
        fresh = source.read([max(start, end), *[0] * len(rest)], [stop, *rest])
        shared = max(0, end - start) if end else 0
        old = values.shape[1] - shared if shared else 0
        values = np.concatenate([values[:, old:], fresh[0]], axis=1) if shared else fresh[0]
        valid = np.concatenate([valid[old:], fresh[1]]) if shared else fresh[1]
        end = stop
        for place in itertools.product(*across):
            number += 1
            if number > begin:
                at = [axis.starts[i] for axis, i in zip(axes[1:], place, strict=True)]
                here = (slice(None), *(slice(s, s + axis.tile) for axis, s in zip(axes[1:], at, strict=True)))
                places.append((row, *place))
                measured = valid[here].any()
                cuts.append((values[(slice(None), *here)], valid[here]) if measured else None)
                if not measured and not probed and len(places) == 1:
                    probe = (values[(slice(None), *here)], valid[here])
            if number % per_row == 0 and number > begin:
                strips[row] = valid[(slice(None), *(slice(0, axis.length) for axis in axes[1:]))]
            if places and (number % batch == 0 or number == per_row * len(axes[0].starts)):
                kept = [c for c in cuts if c is not None]
                if not kept and not probed:  # how many scores there are must be known
                    kept = [probe]
                probed = True
                yield _Batch(
                    places,
                    [c is not None for c in cuts],
                    np.stack([c[0] for c in kept]).astype(wider or source.dtype, copy=False) if kept else np.empty(0),
                    np.stack([c[1] for c in kept]) if kept else np.empty(0, np.bool_),
                    strips,
                )
                places, cuts, strips = [], [], {}


class _Joiner:
    """Takes batches and their scores in order; joins, finishes and writes."""

    def __init__(
        self,
        strip: Strip,
        sink: Sink,
        finish: Finish,
        scale: int,
        first: int,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self._strip, self._sink, self._finish = strip, sink, finish
        self._scale, self._first, self._progress = scale, first, progress
        self._written = sink.written
        self._passed = 0  # bytes of scores since memory was given back
        self._last = tuple(len(axis.starts) - 1 for axis in strip.axes[1:])

    def take(self, item: tuple[_Batch, Tensor | None]) -> None:
        b, scores = item
        if not self._strip.ready:
            assert scores is not None
            self._strip.expect(scores[0])
        n = 0
        for place, kept in zip(b.places, b.kept, strict=True):
            if place[0] >= self._first:
                if kept:
                    assert scores is not None
                    self._strip.add(place, scores[n])
                if place[1:] == self._last:
                    self._write(place[0], b.strips[place[0]])
                    self._strip.advance(place[0])
            n += kept

    def _write(self, row: int, valid: NDArray[np.bool_]) -> None:
        first, last = self._strip.rows(row)
        start = max(first, self._written)
        if start >= last:
            return
        scale, origin = self._scale, self._strip.axes[0].starts[row]
        if scale > 1:
            low, high = (start - origin) // scale, -((origin - last) // scale)
            valid = valid[low:high]
            for axis in range(valid.ndim):
                valid = valid.repeat(scale, axis)
            origin += low * scale
        valid = valid[start - origin : last - origin]
        scores = self._strip.finished(row)[:, start - first :]
        self._sink.write(start, self._finish(scores, valid))
        self._passed += scores.nbytes
        if self._passed > _TRIMMED:
            give_back()
            self._passed = 0
        self._written = last
        if self._progress:
            self._progress(last, self._strip.axes[0].length)
