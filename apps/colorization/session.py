"""One photograph that is coloured again and again, as a person adds hints; nothing of it is read or converted twice."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from apps.colorization import _canvas, _fidelity, hints
from apps.colorization.hints import Hint, Placed
from apps.colorization.results import Coloured
from core.data.sample import Meta
from core.errors import InputError, ShapeError

if TYPE_CHECKING:
    from core.data.photos import Photo

PREVIEW = 1024
GREY = 2.0  # of a and b: a picture that nowhere has more is grey
_CHROMA = (60.0, 30.0)  # of the offered colours


class Networks(Protocol):
    """What colours; see `Pipeline.colour`."""

    size: int
    cells: int

    def colour(self, lab: Tensor, mask: Tensor) -> Tensor: ...


class Session:
    """A photograph with its luminance at its own, at the preview's and at the network's size.

    Attributes:
        photo: as read.
        size: rows and columns of the photograph.
    """

    def __init__(self, networks: Networks, photo: Photo, preview: int = PREVIEW) -> None:
        self.networks, self.photo = networks, photo
        self.size: tuple[int, int] = (photo.pixels.shape[0], photo.pixels.shape[1])
        if not all(self.size):
            raise ShapeError(f"a photograph has pixels, got {photo.pixels.shape}")
        side = networks.size
        self.lab = _canvas.lab_of(_canvas.reduced(photo.pixels, side, side))  # (3, S, S), of a colour photograph too
        self._preview = preview

    @cached_property
    def _whole(self) -> _canvas.Canvas:
        return _canvas.canvas(self.photo.pixels)

    @cached_property
    def _small(self) -> _canvas.Canvas:
        factor = min(1.0, self._preview / max(self.size))
        rows, columns = (max(1, round(n * factor)) for n in self.size)
        small = _canvas.reduced(self.photo.pixels, rows, columns)
        return _canvas.canvas(_canvas.stored(small, np.dtype(np.uint8)))

    @property
    def grey(self) -> bool:
        """Whether the photograph has no colour of its own."""
        return bool(self.lab[1:].abs().max() * 110 <= GREY)

    def coloured(self, points: Sequence[Hint] = ()) -> Coloured:
        """The photograph at its own size with these hints. Raises InputError for a hint outside it."""
        ab, placed = self.answer(points)
        pixels = self._whole.colour(ab)
        rows, columns = self.size
        did = [
            f"colours of a {self.networks.size} x {self.networks.size} network on the luminance of {columns} x {rows}"
        ]
        return Coloured(
            pixels=pixels,
            ab=ab.numpy(),
            photo=self.photo,
            hints=tuple(points),
            reached=_fidelity.reached(pixels, placed, self.networks.cells),
            meta=self.photo.meta.did(*did, *placed.said),
            said=placed.said,
        )

    def preview(self, points: Sequence[Hint] = ()) -> NDArray[np.uint8]:
        """The same at the preview's size, (h, w, 3) uint8, for a page's clicks; hints are on original pixels."""
        shown: NDArray[np.uint8] = self._small.colour(self.answer(points)[0])
        return shown

    def answer(self, points: Sequence[Hint]) -> tuple[Tensor, Placed]:
        """a', b' (2, S, S) of the networks, and the hints as placed. Raises InputError for a hint outside."""
        placed = hints.cells(points, self.size, self.networks.cells)
        side = self.networks.size // self.networks.cells
        planes = torch.from_numpy(placed.planes)
        planes = planes.repeat_interleave(side, dim=1).repeat_interleave(side, dim=2)
        image = torch.cat([self.lab[:1], planes])[None]
        return self.networks.colour(image, torch.from_numpy(placed.mask)[None])[0], placed

    def luminance(self, x: int, y: int) -> float:
        """L of CIE Lab at a pixel of the photograph, 0..100. Raises InputError outside it."""
        hints.cells([Hint(x, y, 0, 0, 0)], self.size, self.networks.cells)
        return float(_canvas.lab_of(self.photo.pixels[y : y + 1, x : x + 1])[0, 0, 0]) * 100 + 50

    def palette(self, x: int, y: int, n: int = 12) -> list[tuple[int, int, int]]:
        """At most `n` sRGB colours of the luminance at a pixel, all round the hues, every second one paler."""
        light = torch.full((1, 1), (self.luminance(x, y) - 50) / 100)
        found: list[tuple[int, int, int]] = []
        for k in range(n):
            angle, chroma = 2 * math.pi * k / n + 0.6, _CHROMA[k % 2] / 110
            ab = torch.tensor([math.cos(angle), math.sin(angle)]).reshape(2, 1, 1) * chroma
            r, g, b = (int(v) for v in (_canvas.in_srgb(light, ab).reshape(3) * 255).round())
            if (r, g, b) not in found:
                found.append((r, g, b))
        return found

    def sampled(self, count: int, seed: int = 0, *, reference: Session | None = None) -> tuple[Hint, ...]:
        """Hints at random cells, as training draws them, with the colours of a picture.

        Args:
            count: hints, at most one a cell.
            seed: of the places; the same seed gives the same places in every photograph.
            reference: a picture in colour that is laid over the whole photograph; the photograph itself without it.

        Raises InputError for a grey reference, or more hints than cells.
        """
        source, grid = reference or self, self.networks.cells
        if source.grey:
            raise InputError(
                f"{source.photo.meta.path or 'the picture'}: is grey, so hints cannot take its colours; "
                "name a picture in colour with --reference"
            )
        rows, columns = self.size
        # Each pixel of a small picture is in one cell only: hints go where there are pixels.
        places = [np.unique((2 * np.arange(n) + 1) * grid // (2 * n)) for n in (rows, columns)]
        most = len(places[0]) * len(places[1])
        if not 0 < count <= most:
            raise InputError(f"--auto is 1 to {most:,} hints for a photograph of {columns} x {rows}, got {count}")
        drawn = np.random.default_rng(seed).choice(most, count, replace=False)
        means = torch.nn.functional.adaptive_avg_pool2d(source.lab[None], grid)[0]  # (3, grid, grid)
        found = []
        for i, j in zip(*np.divmod(drawn, len(places[1])), strict=True):
            row, column = int(places[0][i]), int(places[1][j])
            value = means[:, row, column].reshape(3, 1, 1)
            r, g, b = (int(v) for v in (_canvas.in_srgb(value[0], value[1:]).reshape(3) * 255).round())
            (top, bottom), (left, right) = _fidelity.span(row, rows, grid), _fidelity.span(column, columns, grid)
            found.append(Hint((left + right - 1) // 2, (top + bottom - 1) // 2, r, g, b))
        return tuple(found)


def from_array(array: NDArray[Any], meta: Meta | None = None) -> Photo:
    """An array as a photograph: (H, W), (H, W, 1) or (H, W, 3) of uint8, uint16, or float from 0 to 1.

    Raises ShapeError for other shapes, InputError for other types or values.
    """
    from core.data.photos import Photo

    values = array[:, :, None] if array.ndim == 2 else array
    if values.ndim != 3 or values.shape[2] not in (1, 3) or 0 in values.shape:
        raise ShapeError(f"a photograph is (H, W), (H, W, 1) or (H, W, 3), got {array.shape}")
    if values.dtype.kind == "f":
        if not np.isfinite(values).all() or values.min() < 0 or values.max() > 1:
            raise InputError("a photograph of floats has values from 0 to 1")
        values = values.astype(np.float32)
    elif values.dtype not in (np.uint8, np.uint16):
        raise InputError(f"a photograph is uint8, uint16 or float, got {array.dtype}")
    return Photo(pixels=np.ascontiguousarray(values), meta=meta or Meta())
