"""How epithelium is arranged in made histology: glands, nests, files and so on, and where the nuclei lie."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from core.data._histology import Tissue

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Nuclei:
    """Nuclei, one value each: middle and half axes in micrometres, turn in radians, optical density."""

    x: Floats
    y: Floats
    a: Floats
    b: Floats
    turn: Floats
    dark: Floats


@dataclass(frozen=True)
class Layout:
    """What lies where, (rows, columns) each, 0 to 1: epithelium, empty space, mucin; and the nuclei."""

    epithelium: Floats
    hollow: Floats
    mucin: Floats
    nuclei: Nuclei


class _Field:
    """A tile that is being laid out."""

    def __init__(self, tissue: Tissue, shape: tuple[int, int], um: float, rng: np.random.Generator) -> None:
        self.tissue, self.rng, self.um = tissue, rng, um
        self.size = (shape[0] * um, shape[1] * um)  # micrometres down and across
        y, x = (np.arange(n, dtype=np.float32) for n in shape)
        self.y, self.x = np.meshgrid((y + 0.5) * um, (x + 0.5) * um, indexing="ij")
        self.epithelium = np.zeros(shape, np.float32)
        self.hollow = np.zeros(shape, np.float32)
        self.mucin = np.zeros(shape, np.float32)
        self.found: list[Floats] = []
        self._last: tuple[Any, tuple[slice, slice], Floats] = (None, (slice(0), slice(0)), self.x[:0])

    def middles(self, apart: float, loose: float = 0.35) -> list[tuple[float, float]]:
        """Places about so many micrometres apart, also just outside the tile."""
        places = []
        for i in range(-1, int(self.size[0] / apart) + 2):
            for j in range(-1, int(self.size[1] / apart) + 2):
                dy, dx = self.rng.uniform(-loose, loose, 2)
                places.append(((j + 0.5 * (i % 2) + dx) * apart, (i + dy) * apart))
        shift = self.rng.uniform(0, apart, 2)
        return [(x + shift[0] - apart / 2, y + shift[1] - apart / 2) for x, y in places]

    def outline(self, middle: tuple[float, float], radii: tuple[float, float], uneven: float) -> _Outline:
        waves = [(n, float(self.rng.uniform(0, uneven)), float(self.rng.uniform(0, 6.28))) for n in (2, 3, 5)]
        return _Outline(middle, radii, float(self.rng.uniform(0, np.pi)), waves)

    def fill(self, target: Floats, outline: _Outline, level: float, value: float = 1.0) -> None:
        """Where an outline's share lies below `level`, with an edge a pixel wide."""
        box, inside = self._near(outline)
        cover = np.clip((level - inside) * np.float32(min(outline.radii) / self.um) + np.float32(0.5), 0, 1)
        target[box] += cover * (np.float32(value) - target[box])

    def _near(self, outline: _Outline) -> tuple[tuple[slice, slice], Floats]:
        """The box that a structure and its surroundings can reach, and the shares in it; the last one is kept."""
        if self._last[0] is not outline:
            reach = 1.9 * max(outline.radii) + 2 * self.um
            low = [int(np.clip((m - reach) / self.um, 0, n)) for m, n in self._axes(outline)]
            high = [int(np.clip((m + reach) / self.um + 1, 0, n)) for m, n in self._axes(outline)]
            box = slice(low[0], high[0]), slice(low[1], high[1])
            self._last = outline, box, outline.share(self.x[box], self.y[box])
        return self._last[1], self._last[2]

    def _axes(self, outline: _Outline) -> list[tuple[float, int]]:
        return list(zip(outline.middle[::-1], self.x.shape, strict=True))

    def nuclei(self, x: Any, y: Any, turn: Any, *, long: float = 1.25) -> None:
        """Epithelial nuclei, their long axes along `turn`."""
        t, rng, count = self.tissue, self.rng, len(x)
        size = t.nucleus * np.exp(np.clip(rng.normal(0, t.spread, count), -0.7, 0.7))
        stretch = np.sqrt(long * np.exp(rng.normal(0, 0.5 * t.spread, count)))
        self.add(x, y, size * stretch, size / stretch, turn, rng.normal(0.82, 0.09, count))

    def add(self, x: Any, y: Any, a: Any, b: Any, turn: Any, dark: Any) -> None:
        """Nuclei of any kind."""
        self.found.append(np.stack(np.broadcast_arrays(x, y, a, b, turn, dark)).astype(np.float32))

    def around(self, outline: _Outline, level: float) -> None:
        """Nuclei along an outline, standing on it as in a gland."""
        rng = self.rng
        length = 2 * np.pi * level * float(np.mean(outline.radii))
        count = max(3, round(length / (2 * self.tissue.nucleus * self.tissue.gap)))
        jitter = 0.15 + self.tissue.spread
        angle = 2 * np.pi * (np.arange(count) + rng.normal(0, 0.25 * jitter, count)) / count
        x, y = outline.at(angle, level * (1 + rng.normal(0, 0.06 * jitter, count)))
        self.nuclei(x, y, angle + outline.turn + rng.normal(0, 0.5 * jitter, count), long=1.5)

    def within(self, outline: _Outline, level: float) -> None:
        """Nuclei all over the inside, without order."""
        apart = 2 * self.tissue.nucleus * self.tissue.gap
        reach = max(outline.radii) * 1.3
        steps = np.arange(-reach, reach, apart)
        dx, dy = (g.reshape(-1) + self.rng.uniform(-0.4, 0.4, g.size) * apart for g in np.meshgrid(steps, steps))
        x, y = outline.middle[0] + dx, outline.middle[1] + dy
        good = outline.share(x, y) < level
        self.nuclei(x[good], y[good], self.rng.uniform(0, np.pi, int(good.sum())))


@dataclass(frozen=True)
class _Outline:
    """An uneven ellipse."""

    middle: tuple[float, float]
    radii: tuple[float, float]
    turn: float
    waves: list[tuple[int, float, float]]

    def _wavy(self, angle: Any) -> Any:
        out = 1.0
        for n, a, p in self.waves:
            out = out + a * np.cos(n * angle + p)
        return out

    def share(self, x: Any, y: Any) -> Floats:
        """Distance from the middle as a share of the outline's."""
        cos, sin = float(np.cos(self.turn)), float(np.sin(self.turn))
        dx, dy = x - np.float32(self.middle[0]), y - np.float32(self.middle[1])
        u, v = (cos * dx + sin * dy) / self.radii[0], (cos * dy - sin * dx) / self.radii[1]
        return np.asarray(np.hypot(u, v) / self._wavy(np.arctan2(v, u)), np.float32)

    def at(self, angle: Any, share: Any) -> tuple[Any, Any]:
        """Points in directions of the outline."""
        wavy = self._wavy(angle) * share
        u, v = self.radii[0] * wavy * np.cos(angle), self.radii[1] * wavy * np.sin(angle)
        cos, sin = np.cos(self.turn), np.sin(self.turn)
        return self.middle[0] + cos * u - sin * v, self.middle[1] + sin * u + cos * v


def _rings(field: _Field, apart: float, radius: float, flat: float, uneven: float, lumen: float) -> None:
    """Glands: a ring of nuclei around a lumen, which secretion fills now and then."""
    for middle in field.middles(apart):
        r = radius * float(field.rng.uniform(0.8, 1.2))
        outline = field.outline(middle, (r, r * flat), uneven)
        pool(field, outline)
        field.fill(field.epithelium, outline, 1.0)
        field.fill(field.hollow, outline, lumen, 0.9 if field.rng.random() < 0.7 else 0.15)
        field.around(outline, (1 + lumen) / 2 + 0.06)


def _nests(field: _Field, apart: float, radius: float, uneven: float) -> None:
    """Solid groups of cells without a lumen."""
    for middle in field.middles(apart):
        r = radius * float(field.rng.uniform(0.7, 1.25))
        outline = field.outline(middle, (r, r * float(field.rng.uniform(0.6, 1.0))), uneven)
        pool(field, outline)
        field.fill(field.epithelium, outline, 1.0)
        field.within(outline, 0.9)


def _files(field: _Field, apart: float) -> None:
    """Single cells one behind the other, in parallel rows."""
    rng = field.rng
    way = float(rng.uniform(0, np.pi))
    cos, sin = np.cos(way), np.sin(way)
    reach = float(np.hypot(*field.size))
    step = 2 * field.tissue.nucleus * field.tissue.gap * 1.05
    for aside in np.arange(-reach / 2, reach / 2, apart):
        bend, phase, start = rng.uniform(2, 8), rng.uniform(0, 6), rng.uniform(0, 60)
        along = np.arange(-reach / 2, reach / 2, step)
        along = along[np.sin((along + start) / 22 + phase) >= -0.35]  # files end and begin
        off = aside + bend * np.sin(along / 30 + phase)
        x = field.size[1] / 2 + cos * along - sin * off + rng.normal(0, 0.8, len(along))
        y = field.size[0] / 2 + sin * along + cos * off + rng.normal(0, 0.8, len(along))
        field.nuclei(x, y, way)


def _papillae(field: _Field, apart: float) -> None:
    """Fronds: a thin core between two rows of nuclei, in empty space."""
    field.hollow[...] = 0.85
    rng = field.rng
    for middle in field.middles(apart, 0.25):
        outline = field.outline(middle, (apart * 0.62, apart * 0.20), 0.12)
        field.fill(field.hollow, outline, 1.0, 0.0)
        field.fill(field.epithelium, outline, 1.0)
        field.fill(field.epithelium, outline, 0.35, 0.0)
        count = max(4, round(2 * np.pi * 0.44 * apart / (2 * field.tissue.nucleus * field.tissue.gap)))
        angle = 2 * np.pi * (np.arange(count) + rng.normal(0, 0.1, count)) / count
        field.nuclei(*outline.at(angle, 0.72), outline.turn + np.pi / 2)


def pool(field: _Field, outline: _Outline) -> None:
    """Mucin around a structure, for the share of structures that lie in some."""
    if field.rng.random() < field.tissue.mucin:
        field.fill(field.mucin, outline, 1.55)


FORMS: dict[str, Callable[[_Field], None]] = {
    "acini": lambda f: _rings(f, 46, 19, 0.9, 0.05, 0.38),
    "slits": lambda f: _rings(f, 88, 46, 0.32, 0.08, 0.42),
    "cysts": lambda f: _rings(f, 110, 50, 0.75, 0.10, 0.70),
    "tubules": lambda f: _rings(f, 56, 26, 0.95, 0.04, 0.48),
    "fused": lambda f: _rings(f, 40, 24, 0.7, 0.18, 0.30),
    "nests": lambda f: _nests(f, 74, 32, 0.14),
    "sheets": lambda f: _nests(f, 60, 40, 0.22),
    "files": lambda f: _files(f, 19),
    "islands": lambda f: _nests(f, 92, 26, 0.12),
    "papillae": lambda f: _papillae(f, 62),
    "stroma": lambda f: None,
}


def laid_out(tissue: Tissue, shape: tuple[int, int], um: float, rng: np.random.Generator) -> Layout:
    """Structures, stroma and nuclei of a tile (rows, columns) at so many micrometres a pixel."""
    field = _Field(tissue, shape, um, rng)
    FORMS[tissue.form](field)
    if tissue.empty:
        _torn(field)
    _stroma(field)
    _lymphocytes(field)
    table = _shown(field)
    mucin = field.mucin * (1 - field.epithelium)
    return Layout(field.epithelium, field.hollow * (1 - mucin), mucin, Nuclei(*table))


def _shown(field: _Field) -> Floats:
    """(6, nuclei): those whose middle lies in the tile, or near it, and not in empty space."""
    table = np.concatenate([np.zeros((6, 0), np.float32), *field.found], axis=1)
    rows, columns = (np.floor(table[i] / field.um).astype(int) for i in (1, 0))
    high, wide = field.hollow.shape
    far = 14 / field.um
    near = (rows > -far) & (rows < high + far) & (columns > -far) & (columns < wide + far)
    empty = field.hollow[np.clip(rows, 0, high - 1), np.clip(columns, 0, wide - 1)] > 0.5
    return table[:, near & ~empty]


def _torn(field: _Field) -> None:
    """Fat and clefts: empty, whatever the epithelium does."""
    area = field.size[0] * field.size[1]
    for _ in range(int(field.rng.poisson(field.tissue.empty * area / 700))):
        middle = float(field.rng.uniform(0, field.size[1])), float(field.rng.uniform(0, field.size[0]))
        r = float(field.rng.uniform(10, 20))
        outline = field.outline(middle, (r, r * float(field.rng.uniform(0.5, 1))), 0.1)
        field.fill(field.hollow, outline, 1.0, 0.95)
        field.fill(field.epithelium, outline, 1.0, 0.0)


def _stroma(field: _Field) -> None:
    """Long, thin nuclei of fibroblasts, more of them and all one way in dense stroma."""
    rng, t = field.rng, field.tissue
    way = float(rng.uniform(0, np.pi))
    count = int(rng.poisson((4 + 10 * t.fibres) * field.size[0] * field.size[1] / 1e4))
    x, y = rng.uniform(0, field.size[1], count), rng.uniform(0, field.size[0], count)
    turn, dark = way + rng.normal(0, 0.2 + 0.8 * (1 - t.fibres), count), rng.normal(0.7, 0.1, count)
    good = _free(field, x, y)
    field.add(x[good], y[good], 5.5, 1.5, turn[good], dark[good])


def _lymphocytes(field: _Field) -> None:
    """Clusters of small, round, dark nuclei in the stroma."""
    rng = field.rng
    for _ in range(int(rng.poisson(field.tissue.lymphocytes * field.size[0] * field.size[1] / 1e4))):
        middle = rng.uniform(0, field.size[1]), rng.uniform(0, field.size[0])
        x, y = rng.normal(0, 13, (2, int(rng.integers(12, 26)))) + np.array(middle)[:, None]
        good = _free(field, x, y)
        field.add(x[good], y[good], 2.4, 2.3, 0.0, rng.normal(1.0, 0.06, int(good.sum())))


def _free(field: _Field, x: Any, y: Any) -> NDArray[np.bool_]:
    """Which places lie in the tile's stroma."""
    row, column = np.floor(y / field.um).astype(int), np.floor(x / field.um).astype(int)
    high, wide = field.epithelium.shape
    taken = (field.epithelium + field.hollow)[np.clip(row, 0, high - 1), np.clip(column, 0, wide - 1)]
    return np.asarray((row >= 0) & (row < high) & (column >= 0) & (column < wide) & (taken < 0.5))
