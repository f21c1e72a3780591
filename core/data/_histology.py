"""Made histology: tiles in haematoxylin and eosin whose architecture, nuclei, stroma and stain are known.

Everything is laid out in micrometres and drawn as optical density: haematoxylin in nuclei, eosin in cytoplasm and
fibres, nothing in lumens; light falls off as exp(-density) (Beer and Lambert). The fine texture of the tissue is taken
from the real immunohistochemistry picture that scikit-image ships; the rest is drawn.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.data._histology_forms import Layout, Nuclei, laid_out
from core.errors import MissingExtraError

Floats = NDArray[np.float32]
HAEMATOXYLIN, EOSIN = (0.65, 0.70, 0.29), (0.07, 0.99, 0.11)  # Ruifrok and Johnston 2001


@dataclass(frozen=True)
class Stain:
    """How a slide was stained and scanned.

    Attributes:
        haematoxylin, eosin: optical density of red, green and blue, of length 1.
        strength: of both, 1 as usual.
        light: of red, green and blue where there is no tissue, 0 to 255.
    """

    haematoxylin: tuple[float, float, float] = HAEMATOXYLIN
    eosin: tuple[float, float, float] = EOSIN
    strength: tuple[float, float] = (1.0, 1.0)
    light: tuple[float, float, float] = (244.0, 242.0, 245.0)


@dataclass(frozen=True)
class Tissue:
    """What a tile shows.

    Attributes:
        form: a key of `_histology_forms.FORMS`, how epithelium is arranged.
        nucleus: micrometres, mean radius of an epithelial nucleus.
        spread: standard deviation of the radius, as a share.
        gap: distance of neighbouring nuclei, in mean diameters.
        fibres: 0 for loose, 1 for dense and parallel stroma.
        lymphocytes: clusters of them in each 100 x 100 micrometres.
        mucin: share of the structures that lie in a pool of mucin.
        empty: share of the surface that is torn or fat, whatever the epithelium does.
        stain: of the slide.
    """

    form: str
    nucleus: float
    spread: float
    gap: float
    fibres: float = 0.5
    lymphocytes: float = 0.0
    mucin: float = 0.0
    empty: float = 0.0
    stain: Stain = Stain()


def stain(rng: np.random.Generator) -> Stain:
    """A laboratory's stain: hue, strength and light vary as between slides of several laboratories."""

    def turned(vector: tuple[float, float, float]) -> tuple[float, float, float]:
        moved = np.clip(np.array(vector) + rng.normal(0, 0.07, 3), 0.02, None)
        red, green, blue = moved / np.linalg.norm(moved)
        return float(red), float(green), float(blue)

    red, green, blue = np.clip(rng.uniform(232, 252) + rng.uniform(-5, 5, 3), 0, 255).tolist()
    strength = float(rng.uniform(0.7, 1.35)), float(rng.uniform(0.6, 1.4))
    return Stain(turned(HAEMATOXYLIN), turned(EOSIN), strength, (red, green, blue))


def tile(tissue: Tissue, shape: tuple[int, int], um: float, rng: np.random.Generator) -> NDArray[np.uint8]:
    """A picture (rows, columns, 3) of a tissue at so many micrometres a pixel."""
    return drawn(tissue, laid_out(tissue, shape, um, rng), um, rng)


def drawn(tissue: Tissue, layout: Layout, um: float, rng: np.random.Generator) -> NDArray[np.uint8]:
    """The picture of a layout."""
    fine = _texture(layout.epithelium.shape, um, rng)
    flow = _fibres(layout, um, tissue.fibres, rng)
    eosin = np.where(layout.epithelium > 0, 0.34 + 0.03 * fine, 0.30 + 0.20 * tissue.fibres * flow + 0.07 * fine)
    haematoxylin = np.where(layout.epithelium > 0, 0.16, 0.04) + 0.015 * fine
    pale = 1 - layout.hollow
    eosin, haematoxylin = eosin * pale, haematoxylin * pale
    eosin += layout.mucin * (0.05 - eosin * 0.9)
    haematoxylin += layout.mucin * (0.13 - haematoxylin * 0.8)
    haematoxylin = np.maximum(haematoxylin, painted(layout.nuclei, haematoxylin.shape, um))
    s = tissue.stain
    density = haematoxylin[..., None] * s.strength[0] * np.array(s.haematoxylin, np.float32)
    density += np.clip(eosin, 0, None)[..., None] * s.strength[1] * np.array(s.eosin, np.float32)
    light = np.array(s.light, np.float32) * np.exp(-density * np.float32(1.5))
    light += rng.normal(0, 0.8, light.shape).astype(np.float32)  # the camera
    return np.clip(np.rint(light), 0, 255).astype(np.uint8)


def painted(nuclei: Nuclei, shape: tuple[int, int], um: float) -> Floats:
    """Haematoxylin of nuclei: darker at their border, with clumps; the denser of two that overlap."""
    out = np.zeros(shape, np.float32)
    if not len(nuclei.x):
        return out
    reach = int(np.ceil(float(max(nuclei.a.max(), nuclei.b.max())) / um)) + 1
    step = np.arange(-reach, reach + 1, dtype=np.float32)
    column, row = np.floor(nuclei.x / um).astype(np.int64), np.floor(nuclei.y / um).astype(np.int64)
    dx = (step[None, None] + (column + 0.5 - nuclei.x / um).astype(np.float32)[:, None, None]) * np.float32(um)
    dy = (step[None, :, None] + (row + 0.5 - nuclei.y / um).astype(np.float32)[:, None, None]) * np.float32(um)
    cos, sin = (f(nuclei.turn)[:, None, None].astype(np.float32) for f in (np.cos, np.sin))
    u = (cos * dx + sin * dy) / nuclei.a[:, None, None]
    v = (cos * dy - sin * dx) / nuclei.b[:, None, None]
    inside = np.sqrt(u * u + v * v)
    edge = np.float32(um) / nuclei.b[:, None, None]  # a pixel wide
    hits = np.nonzero(inside < 1 + edge / 2)
    u, v, inside = u[hits], v[hits], inside[hits]
    which, down, across = hits
    cover = np.clip((1 - inside) / edge[which, 0, 0] + np.float32(0.5), 0, 1)
    clumps = 0.16 * np.sin(5.1 * u + 7 * nuclei.turn[which]) * np.sin(4.3 * v)
    value = cover * nuclei.dark[which] * (0.78 + 0.22 * np.minimum(inside, 1) ** 2 + clumps)
    rows, columns = row[which] + down - reach, column[which] + across - reach
    good = (rows >= 0) & (rows < shape[0]) & (columns >= 0) & (columns < shape[1])
    np.maximum.at(out, (rows[good], columns[good]), value[good].astype(np.float32))
    return out


def _fibres(layout: Layout, um: float, dense: float, rng: np.random.Generator) -> Floats:
    """Waves of collagen around the structures, -1 to 1."""
    y, x = (np.arange(n, dtype=np.float32) * um for n in layout.epithelium.shape)
    way = rng.uniform(0, np.pi)
    along = float(np.sin(way)) * y[:, None] + float(np.cos(way)) * x[None]
    aside = float(np.cos(way)) * y[:, None] - float(np.sin(way)) * x[None]
    bent = aside + (6 + 8 * (1 - dense)) * np.sin(along / 35 + rng.uniform(0, 6))
    fine, coarse = (2 * np.pi / (n + 9 * (1 - dense)) for n in (5.0, 8.3))
    return np.asarray((np.sin(fine * bent) + np.sin(coarse * bent + along / 50)) / 2, np.float32)


def _texture(shape: tuple[int, ...], um: float, rng: np.random.Generator) -> Floats:
    """A piece of the real picture's fine texture, of about unit spread, turned at random."""
    source = _source()
    rows, columns = (min(max(8, int(n * um / 0.5)), m) for n, m in zip(shape, source.shape, strict=True))
    top, left = (int(rng.integers(0, m - n + 1)) for n, m in zip((rows, columns), source.shape, strict=True))
    piece = source[top : top + rows, left : left + columns]
    if rng.random() < 0.5:
        piece = piece[::-1]
    if rng.random() < 0.5:
        piece = piece[:, ::-1]
    at = [np.minimum(np.arange(n) * m // n, m - 1) for n, m in zip(shape, piece.shape, strict=True)]
    return piece[np.ix_(*at)]


@cache
def _source() -> Floats:
    """The brightness of the real picture less its surroundings, at about 0.5 micrometres a pixel."""
    try:
        import skimage.data
        from scipy import ndimage
    except ImportError:
        raise MissingExtraError("scikit-image", "dense") from None
    grey = np.asarray(skimage.data.immunohistochemistry(), np.float32).mean(axis=2)
    rest: Any = grey - ndimage.gaussian_filter(grey, 6)
    return np.clip(rest / rest.std(), -3, 3).astype(np.float32)
