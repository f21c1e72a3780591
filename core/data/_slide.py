"""A made whole slide of any size: a tiled pyramid TIFF, written tile by tile, whose regions are known.

The slide is laid out in square cells; each cell shows a piece of made histology (`_histology`) of its class, one of a
few drawn once and turned in eight ways. So 40,000 x 30,000 pixels take seconds, and the memory of some tiles.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from core.data import _histology as made
from core.errors import MissingExtraError, SettingError
from core.files import aside

CELL = 512  # pixels of the finest level: 256 micrometres at 0.5
BACKGROUND, STROMA, BENIGN, MALIGNANT = range(4)
NAMES = ("background", "stroma", "benign", "malignant")
_PIECES = 3  # drawn of each class
Picture = NDArray[np.uint8]


@dataclass(frozen=True)
class Truth:
    """What a made slide shows.

    Attributes:
        cells: (rows, columns) numbers of NAMES.
        shape: rows and columns of the finest level.
        um: micrometres a pixel there.
        factors: of the levels.
    """

    cells: NDArray[np.uint8]
    shape: tuple[int, int]
    um: float
    factors: tuple[int, ...]

    def share(self, top: float, left: float, bottom: float, right: float) -> dict[str, float]:
        """How much of a rectangle of the finest level each class takes."""
        rows, columns = (
            np.clip(np.minimum(np.arange(n) * CELL + CELL, high) - np.maximum(np.arange(n) * CELL, low), 0, None)
            for n, low, high in zip(self.cells.shape, (top, left), (bottom, right), strict=True)
        )
        area = np.outer(rows, columns)
        return {name: float(area[self.cells == k].sum() / area.sum()) for k, name in enumerate(NAMES)}


def planned(shape: tuple[int, int], seed: int) -> NDArray[np.uint8]:
    """Classes of the cells: two pieces of tissue, a tumor in the larger, benign glands in both; none at the border."""
    rows, columns = (-(-n // CELL) for n in shape)
    rng = np.random.default_rng([921, seed])
    y, x = np.meshgrid((np.arange(rows) + 0.5) / rows, (np.arange(columns) + 0.5) / columns, indexing="ij")
    out = np.zeros((rows, columns), np.uint8)

    def blob(middle: tuple[float, float], radius: float, uneven: float) -> NDArray[np.bool_]:
        dy, dx = y - middle[0], (x - middle[1]) * shape[1] / shape[0]
        angle, phase = np.arctan2(dy, dx), rng.uniform(0, 6.28, 3)
        edge = 1 + uneven * sum(np.sin((k + 2) * angle + p) for k, p in enumerate(phase)) / 3
        return np.asarray(np.hypot(dy, dx) < radius * edge)

    large, small = (0.42, 0.36), (0.62, 0.78)
    out[blob(large, 0.33, 0.5)] = STROMA
    out[blob(small, 0.20, 0.4)] = STROMA
    out[blob((0.36, 0.30), 0.17, 0.5) & (out == STROMA)] = MALIGNANT
    out[blob((0.58, 0.50), 0.11, 0.4) & (out == STROMA)] = BENIGN
    out[blob((0.62, 0.78), 0.12, 0.4) & (out == STROMA)] = BENIGN
    return out


class _Pieces:
    """The drawn cells, at every level, and tiles put together of them."""

    def __init__(self, um: float, seed: int, factors: Sequence[int], quality: int) -> None:
        rng = np.random.default_rng([922, seed])
        stain = made.stain(rng)
        tissues = {
            STROMA: made.Tissue("stroma", 3, 0.1, 1, fibres=0.6, stain=stain),
            BENIGN: made.Tissue("tubules", 3.2, 0.10, 1.0, fibres=0.5, stain=stain),
            MALIGNANT: made.Tissue("nests", 4.4, 0.28, 1.55, fibres=0.5, empty=0.04, stain=stain),
        }
        light = np.array(stain.light)
        self.quality = quality
        self.drawn: dict[int, list[list[Picture]]] = {f: [] for f in factors}  # factor -> class -> pieces
        for kind in range(len(NAMES)):
            pieces = []
            for _ in range(_PIECES):
                if kind == BACKGROUND:
                    piece = light + rng.normal(0, 0.8, (CELL, CELL, 3))
                else:
                    piece = made.tile(tissues[kind], (CELL, CELL), um, rng).astype(np.float64)
                pieces.append(piece)
            for f in factors:
                small = [p.reshape(CELL // f, f, CELL // f, f, 3).mean(axis=(1, 3)) for p in pieces]
                self.drawn[f].append([np.clip(np.rint(p), 0, 255).astype(np.uint8) for p in small])
        self.packed: dict[Any, bytes] = {}

    def cell(self, factor: int, kind: int, code: int) -> Picture:
        """A cell of a class, code saying which piece and how it is turned."""
        piece = np.rot90(self.drawn[factor][kind][code % _PIECES], code // _PIECES % 4)
        return piece[:, ::-1] if code // _PIECES >= 4 else piece

    def tile(self, factor: int, kinds: NDArray[np.uint8], codes: NDArray[np.uint8]) -> bytes:
        """A JPEG of CELL pixels a side that shows factor x factor cells."""
        key = (factor, kinds.tobytes(), codes.tobytes())
        if key not in self.packed:
            rows = [
                np.concatenate([self.cell(factor, int(k), int(c)) for k, c in zip(line, code, strict=True)], axis=1)
                for line, code in zip(kinds, codes, strict=True)
            ]
            packed = self._jpeg(np.concatenate(rows))
            if kinds.size > 1 and kinds.any():  # seen once: only what comes again is kept
                return packed
            self.packed[key] = packed
        return self.packed[key]

    def _jpeg(self, picture: Picture) -> bytes:
        from PIL import Image

        stream = io.BytesIO()
        Image.fromarray(picture).save(stream, format="JPEG", quality=self.quality, subsampling="4:2:0")
        return stream.getvalue()


def write(
    path: str | Path,
    shape: tuple[int, int] = (30_000, 40_000),
    *,
    um: float | None = 0.5,
    factors: Sequence[int] = (1, 4, 16),
    form: Literal["tiff", "svs"] = "tiff",
    seed: int = 0,
    quality: int = 85,
    notes: str = "",
) -> Truth:
    """Write a slide, whole or not at all, and return what it shows; the same bytes every time on one machine.

    Args:
        path: of the file.
        shape: rows and columns of the finest level.
        um: micrometres a pixel that the file states; None states none (the tissue is drawn at 0.5 then).
        factors: of the levels, from 1 up, powers of two to 64.
        form: "tiff" (levels as pages with resolution tags) or "svs" (Aperio's order and description).
        seed: of everything.
        quality: of the JPEG tiles.
        notes: more of Aperio's description, "|Key = value", as scanners write names and dates there.

    Raises SettingError for other factors or a shape without pixels, MissingExtraError without tifffile.
    """
    good = factors and factors[0] == 1 and all(f in (1, 2, 4, 8, 16, 32, 64) for f in factors)
    if not good or sorted(set(factors)) != list(factors) or min(shape) < 1:
        raise SettingError(
            f"levels of a made slide are 1 and powers of two to 64, rising; got {tuple(factors)}, {shape}"
        )
    try:
        from tifffile import TiffWriter
    except ImportError:
        raise MissingExtraError("tifffile", "medical") from None
    cells = planned(shape, seed)
    codes = np.random.default_rng([923, seed]).integers(0, 8 * _PIECES, cells.shape).astype(np.uint8)
    pieces = _Pieces(um or 0.5, seed, factors, quality)
    with aside(path) as part:
        with TiffWriter(part, bigtiff=shape[0] * shape[1] > 2**32) as file:
            for number, factor in enumerate(factors):
                rows, columns = (-(-n // factor) for n in shape)
                file.write(
                    _tiles(pieces, factor, cells, codes), shape=(rows, columns, 3), dtype=np.uint8, tile=(CELL, CELL),
                    compression="zlib", photometric="rgb", metadata=None, extratags=[(530, "H", 2, (2, 2), True)],
                    subfiletype=1 if number and form == "tiff" else 0, **_stated(form, um, factor, shape, notes),
                )  # fmt: skip
                if form == "svs" and number == 0:
                    _thumbnail(file, cells, pieces)
        _named_jpeg(part)
    return Truth(cells, shape, um or 0.5, tuple(factors))


def _tiles(pieces: _Pieces, factor: int, cells: NDArray[np.uint8], codes: NDArray[np.uint8]) -> Iterator[bytes]:
    """The JPEG tiles of a level, row by row; cells beyond the plan are background."""
    beyond = [(0, -n % factor) for n in cells.shape]
    kinds, turned = np.pad(cells, beyond), np.pad(codes, beyond)
    for i in range(0, kinds.shape[0], factor):
        for j in range(0, kinds.shape[1], factor):
            box = slice(i, i + factor), slice(j, j + factor)
            yield pieces.tile(factor, kinds[box], turned[box])


def _named_jpeg(path: Path) -> None:
    """Say of the tiles that they are JPEG in YCbCr: tifffile writes packed tiles only under names that it can pack."""
    from tifffile import TiffFile, TiffPage

    with TiffFile(path, mode="r+") as file:
        for page in file.pages:
            if isinstance(page, TiffPage) and page.is_tiled:
                page.tags["Compression"].overwrite(7)
                page.tags["PhotometricInterpretation"].overwrite(6)


def _stated(form: str, um: float | None, factor: int, shape: tuple[int, int], notes: str) -> dict[str, Any]:
    """Resolution and description of a level."""
    if form == "tiff":
        return {} if um is None else {"resolution": (1e4 / (um * factor),) * 2, "resolutionunit": "CENTIMETER"}
    high, wide = shape
    measures = "" if um is None else f"|AppMag = {10 / um:g}|MPP = {um:g}"
    small = f" -> {-(-wide // factor)}x{-(-high // factor)}" if factor > 1 else ""
    size = f"{wide}x{high} [0,0 {wide}x{high}] ({CELL}x{CELL}){small} JPEG/RGB"
    return {"description": f"Aperio Image Library made\r\n{size}{measures}{notes}"}


def _thumbnail(file: Any, cells: NDArray[np.uint8], pieces: _Pieces) -> None:
    """Aperio's second page: a small picture in strips."""
    colours = np.array([np.mean([p.mean(axis=(0, 1)) for p in kind], axis=0) for kind in pieces.drawn[1]])
    small = np.rint(colours[cells]).astype(np.uint8)
    file.write(small, photometric="rgb", metadata=None, description="Aperio Image Library made\r\nthumbnail")
