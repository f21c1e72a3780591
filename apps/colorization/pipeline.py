"""From a photograph and coloured points to a picture in colour, by the mean of one or several networks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from apps.colorization import _contract, model
from apps.colorization.hints import Hint
from apps.colorization.options import DEFAULT, SHORT, TASK, Options
from apps.colorization.results import Coloured
from apps.colorization.session import PREVIEW, Session, from_array
from core import batch, bundle
from core.device import autocast, check_precision, pick
from core.errors import InputError, ShapeError

if TYPE_CHECKING:
    from apps.colorization.evaluate import Scored
    from core.data.photos import Photo
    from core.data.sample import Meta
    from core.training.recipe import Recipe

__all__ = ["Pipeline", "Session"]


class Pipeline:
    """Photograph (path, array or Photo) and hints -> Coloured.

    Networks may differ in width, patch and head; they agree in the size of their image and in its cells.

    Attributes:
        size: side of the image that the networks see.
        cells: hint cells along that side.
        settings: of the first bundle.
    """

    def __init__(self, bundles: Sequence[bundle.Bundle], *, device: str = "auto", precision: str = "32") -> None:
        self.device, self.precision = pick(device), precision
        check_precision(self.device, precision)
        self.bundles, self.settings = tuple(bundles), bundles[0].settings
        self.networks = []
        for found in bundles:
            network = model.create(found.settings.network.name, **found.settings.network.config)
            _contract.checked(found, network.size)
            bundle.fill(network, found)
            self.networks.append(network.to(self.device))
        self.size, self.cells = self.networks[0].size, self.networks[0].cells
        for found, network in zip(self.bundles[1:], self.networks[1:], strict=True):
            if (network.size, network.cells) != (self.size, self.cells):
                raise InputError(
                    f"{found.folder}: sees {network.size} pixels in {network.cells} cells a side, "
                    f"{self.bundles[0].folder} {self.size} in {self.cells}; name bundles of one kind"
                )

    @classmethod
    def load(cls, *folders: str | Path, device: str = "auto", precision: str = "32") -> Pipeline:
        """Of bundles, or of a folder of folds (all of them are taken).

        Args:
            folders: that `train`, `import` or `fit` wrote.
            device: "auto", "cpu", "cuda", "cuda:1", "mps".
            precision: "32", "bf16" or "16".

        Raises:
            core.bundle.BundleError: missing, altered, of a later format, of another task or input contract.
            InputError: bundles that do not fit together.
        """
        found = [bundle.load(f, task=TASK) for given in folders for f in bundle.members(Path(given))]
        if not found:
            raise InputError("name a bundle, then photographs")
        return cls(found, device=device, precision=precision)

    @classmethod
    def fit(
        cls, data: str | Path, out: str | Path, options: Options = DEFAULT, recipe: Recipe = SHORT, **how: Any
    ) -> Pipeline:
        """Train on a folder and load what came out; the same call goes on with a run that was stopped.

        Args:
            data: photographs in colour, class folders of them, or the published test layout.
            out: folder of the bundle (or of one for each fold).
            options: what is trained.
            recipe: how.
            how: `init`, `groups`, `exclude`, `device`, `devices`, `nodes` as of `glocal colorization train`.
        """
        from apps.colorization import training

        made = training.run(Path(data), Path(out), options, recipe, **how)
        return cls(made, device=how.get("device", "auto"))

    def evaluate(self, data: str | Path, part: str = "test", **how: Any) -> Scored:
        """Scores on the photographs of a data set's part; `how` and errors as of `evaluate.score`."""
        from apps.colorization import data as sets
        from apps.colorization import evaluate

        found = sets.find(data)
        return evaluate.score(self, found, sets.chosen(found, part), **how)

    def export(self, file: str | Path) -> None:
        """The (first) network as ONNX with its side file, checked against torch."""
        from apps.colorization import exporting

        exporting.export(self.bundles[0].folder, Path(file))

    @torch.inference_mode()
    def colour(self, lab: Tensor, mask: Tensor) -> Tensor:
        """The networks' mean answer.

        Args:
            lab: (B, 3, size, size): L' of the photograph, a' and b' of the hints over their whole cells.
            mask: (B, cells * cells) bool, True where there is NO hint.

        Returns (B, 2, size, size) float32 on the CPU: a', b'. Raises ShapeError for other shapes.
        """
        if lab.ndim != 4 or tuple(lab.shape[1:]) != (3, self.size, self.size):
            raise ShapeError(f"expected Lab images (B, 3, {self.size}, {self.size}), got {tuple(lab.shape)}")
        lab, mask = lab.to(self.device), mask.to(self.device)
        total: Tensor | None = None
        for network in self.networks:
            with autocast(self.device, self.precision):
                answer = network(lab, mask).float()
            total = answer if total is None else total + answer
        assert total is not None
        return (total / len(self.networks)).cpu()

    def open(
        self, photo: str | Path | NDArray[Any] | Photo, *, meta: Meta | None = None, preview: int = PREVIEW
    ) -> Session:
        """A photograph ready for any number of hints: it is decoded and converted once.

        Args:
            photo: a file; an array (H, W) or (H, W, C) of uint8, uint16, or float from 0 to 1; or one that was read.
            meta: of an array.
            preview: longest side of the pictures that `Session.preview` gives.

        Raises core.errors.FileError: a file that cannot be read.
        """
        from core.data import photos

        if isinstance(photo, np.ndarray):
            opened = from_array(photo, meta)
        else:
            opened = photos.read(Path(photo), colour=False) if isinstance(photo, str | Path) else photo
        return Session(self, opened, preview)

    def __call__(
        self,
        photo: str | Path | NDArray[Any] | Photo,
        hints: Sequence[Hint] = (),
        *,
        meta: Meta | None = None,
    ) -> Coloured:
        """Colour one photograph.

        Args:
            photo: as for `open`.
            hints: on its own pixels, upright; none at all is possible.
            meta: of an array.

        Raises:
            core.errors.FileError: a photograph that cannot be read.
            InputError: a hint outside it.
        """
        return self.open(photo, meta=meta).coloured(hints)

    def many(
        self, paths: Sequence[str | Path], hints: Sequence[Sequence[Hint]] | None = None
    ) -> Iterator[batch.Done[Coloured] | batch.Failure]:
        """Colour files one after the other, each with its hints; the error of one is its Failure.

        One result is in memory at a time. Raises InputError where there are not as many lists of hints as files.
        """
        if hints is not None and len(hints) != len(paths):
            raise InputError(f"{len(paths)} photographs and {len(hints)} lists of hints; give one for each")
        pairs = list(zip(paths, hints or [()] * len(paths), strict=True))
        return batch.each(pairs, lambda: lambda pair: self(pair[0], pair[1]), name=lambda pair: str(pair[0]))
