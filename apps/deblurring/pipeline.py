"""From a photograph to the sharp one: one or several bundles, tile by tile, on the photograph's own pixels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from math import lcm
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from apps.deblurring import _strips, model
from apps.deblurring._strips import Kept, Pixels
from apps.deblurring.options import DEFAULT, SHORT, TASK, Options
from apps.deblurring.results import Deblurred, smaller
from core import batch, bundle
from core.data.sample import Meta
from core.device import autocast, pick
from core.errors import InputError, SettingError, ShapeError
from core.streaming.arrays import ArraySource
from core.streaming.run import run

if TYPE_CHECKING:
    from apps.deblurring.evaluate import Scored
    from core.data.photos import Photo
    from core.protocols import Model
    from core.training.recipe import Recipe

_NAMES = {1: ("grey",), 3: ("red", "green", "blue")}


Into = Callable[[tuple[int, int], int, "np.dtype[Any]", "Photo | None"], Kept | Pixels]
"""Size, bands (the mask is the last), type, and the opened file -> where strips go."""


class Member:
    """One bundle's network on a device: pictures of any size -> sharp pictures and the blur that was found."""

    def __init__(self, found: bundle.Bundle, device: torch.device, precision: str) -> None:
        self.bundle, self.device, self.precision = found, device, precision
        network = model.create(found.settings.network.name, **found.settings.network.config)
        bundle.fill(network, found)
        self.network = network.to(device)
        self.multiple = self.network.multiple

    def __call__(self, image: Tensor) -> Tensor:
        """(N, 3, h, w), 0..1 -> (N, 4, h, w) float32: the picture, not limited to 0..1, and the blur, 0..1.

        Zeros are set around the picture up to a multiple of what the network divides, with the picture in the middle,
        and cut away again (as the published evaluation does).
        """
        rows, columns = image.shape[-2:]
        top, left = (-rows % self.multiple) // 2, (-columns % self.multiple) // 2
        around = (left, -columns % self.multiple - left, top, -rows % self.multiple - top)
        with autocast(self.device, self.precision):
            found = self.network(functional.pad(image, around) if any(around) else image)
        both = torch.cat([found.image.float(), found.blur.float()], 1)
        return both[..., top : top + rows, left : left + columns]


class Pipeline:
    """Photograph (path, array or Photo) -> Deblurred, by the mean of one or several networks."""

    def __init__(
        self, bundles: Sequence[bundle.Bundle], *, device: str = "auto", precision: str = "32", batch: int = 1
    ) -> None:
        for one in bundles:
            if len(one.settings.input.channels) != 3:
                raise InputError(f"{one.folder}: takes {len(one.settings.input.channels)} channels, a photograph has 3")
        self.device = pick(device)
        self.members = [Member(b, self.device, precision) for b in bundles]
        self.settings, self.batch = bundles[0].settings, batch
        self.multiple = lcm(*(m.multiple for m in self.members))

    @classmethod
    def load(cls, *folders: str | Path, device: str = "auto", precision: str = "32", batch: int = 1) -> Pipeline:
        """Of bundles, or of a folder of folds (all of them are taken).

        Args:
            folders: that `train`, `import` or `fit` wrote.
            device: "auto", "cpu", "cuda", "cuda:1", "mps".
            precision: "32", "bf16" or "16".
            batch: tiles at once.

        Raises:
            core.bundle.BundleError: missing, altered, of a later format, of another task.
            InputError: no bundle is named, or one that does not take photographs.
        """
        found = [bundle.load(f, task=TASK) for given in folders for f in members(Path(given))]
        if not found:
            raise InputError("name a bundle to load")
        return cls(found, device=device, precision=precision, batch=batch)

    @classmethod
    def fit(
        cls, data: str | Path, out: str | Path, options: Options = DEFAULT, recipe: Recipe = SHORT, **how: Any
    ) -> Pipeline:
        """Train on a folder and load what came out; the same call goes on with a run that was stopped.

        Args:
            data: pairs in one of the layouts of `apps.deblurring.data`.
            out: folder of the bundle (or of one for each fold).
            options: what is trained.
            recipe: how.
            how: `init`, `groups`, `device`, `devices`, `nodes` as of `glocal deblurring train`.
        """
        from apps.deblurring import training

        made = training.run(Path(data), Path(out), options, recipe, **how)
        return cls(made, device=how.get("device", "auto"))

    def evaluate(self, data: str | Path, part: str = "test", *, by: str = "house") -> Scored:
        """Scores on the "train", "val" or "test" part of a data set; errors as of `evaluate.score`."""
        from apps.deblurring import data as sets
        from apps.deblurring import evaluate

        found = sets.find(data)
        return evaluate.score(self, found, sets.chosen(found, part), by=by)

    def export(self, file: str | Path) -> None:
        """The (first) network as ONNX with its side file, checked against torch."""
        from apps.deblurring import _export

        _export.export(self.members[0].bundle.folder, Path(file))

    def __call__(
        self,
        photo: str | Path | NDArray[Any] | Photo,
        *,
        meta: Meta | None = None,
        tile: int | tuple[int, int] | None = None,
        overlap: float | None = None,
        into: Into | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Deblurred:
        """Deblur one photograph.

        Args:
            photo: a file; an array (H, W, 3), (H, W, 1) or (H, W), sRGB: uint8, uint16, or float32 0..1; or an
                opened Photo.
            meta: of an array.
            tile: rows and columns at once, instead of the bundle's; raised to a multiple of what the network divides.
                A photograph that one tile holds gives the network's own answer, bit for bit.
            overlap: of tiles as part of one, instead of the bundle's.
            into: makes the sink, where finished strips are to outlive a killed run; the result's `before` is a small
                form then, and its `photo` has no pixels.
            progress: called with the finished and all rows.

        Raises:
            core.errors.FileError: a photograph that cannot be read.
            ShapeError, SettingError: an array, a tile or an overlap that does not fit.
        """
        opened, values = self._opened(photo)
        known = (meta or Meta()) if opened is None else opened.meta
        size, channels, kind = (values.shape[0], values.shape[1]), values.shape[2], values.dtype
        source = ArraySource(np.moveaxis(values, -1, 0), meta=known)
        sink = (into or _in_memory)(size, channels + 1, kind, opened)
        run(
            source,
            self._network(kind),
            sink,
            tile=self.tile(size, tile),
            overlap=self.settings.tile.overlap if overlap is None else overlap,
            finish=_strips.finish(kind),
            batch=self.batch,
            device=self.device,
            progress=progress,
        )
        if isinstance(sink, Pixels):
            return Deblurred(sink.image, sink.mask, values, known, opened)
        before = smaller(values)
        if opened is not None:
            opened = replace(opened, pixels=np.empty((0, 0, channels), kind))
        del source, values, photo  # input and result of a large photograph need not stand in memory together
        return sink.finish(lambda pixels: Deblurred(pixels.image, pixels.mask, before, known, opened))

    def many(self, paths: Sequence[str | Path]) -> Iterator[batch.Done[Deblurred] | batch.Failure]:
        """Deblur files one after the other; the error of one is its Failure. One result is in memory at a time."""
        return batch.each(list(paths), lambda: self)

    def tile(self, size: tuple[int, int], given: int | tuple[int, int] | None = None) -> tuple[int, int]:
        """Rows and columns of the tiles of a picture; an axis that one tile holds is taken as it is.

        Raises SettingError for less than 1.
        """
        wanted = (self.settings.tile.size or DEFAULT.tile) if given is None else given
        rows, columns = (wanted, wanted) if isinstance(wanted, int) else (wanted[0], wanted[-1])
        if rows < 1 or columns < 1:
            raise SettingError(f"a tile has at least 1 row and column, got {rows} and {columns}")
        whole = [-(-side // self.multiple) * self.multiple for side in (rows, columns)]
        return min(whole[0], size[0]), min(whole[1], size[1])

    def _opened(self, photo: str | Path | NDArray[Any] | Photo) -> tuple[Photo | None, NDArray[Any]]:
        """The opened photograph and its values (H, W, C)."""
        if isinstance(photo, np.ndarray):
            values = photo[..., None] if photo.ndim == 2 else photo
            kinds = (np.uint8, np.uint16, np.float32)
            if values.ndim != 3 or values.shape[2] not in _NAMES or values.dtype not in kinds or 0 in values.shape:
                raise ShapeError(
                    f"expected (H, W, 3), (H, W, 1) or (H, W) of uint8, uint16 or float32, got {photo.dtype} "
                    f"{photo.shape}"
                )
            return None, values
        if isinstance(photo, str | Path):
            from core.data import photos

            photo = photos.read(Path(photo), colour=False)
        return photo, photo.pixels

    def _network(self, dtype: np.dtype[Any]) -> Model:
        top = _strips.largest(dtype)

        def answer(tiles: Tensor, valid: Tensor) -> Tensor:
            image = (tiles.float() / top).contiguous()  # as any other caller gives it: layouts differ in rounding
            grey = image.shape[1] == 1
            image = image.expand(-1, 3, -1, -1) if grey else image
            total = self.members[0](image)
            for other in self.members[1:]:
                total += other(image)
            total /= len(self.members)
            return torch.cat([total[:, :3].mean(1, keepdim=True), total[:, 3:]], 1) if grey else total

        return answer


def _in_memory(size: tuple[int, int], bands: int, dtype: np.dtype[Any], _: Photo | None) -> Pixels:
    return Pixels(size, bands, dtype)


def members(folder: Path) -> list[Path]:
    """The bundle in a folder, or its folds."""
    if not (folder / bundle.SETTINGS).is_file():
        folds = sorted(p for p in folder.glob("fold_*") if (p / bundle.SETTINGS).is_file())
        if folds:
            return folds
    return [folder]
