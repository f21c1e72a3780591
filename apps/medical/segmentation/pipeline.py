"""From a scan to its mask: one or several bundles, tile by tile, on the scan's own grid."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from apps.medical import readers
from apps.medical._scan import held
from apps.medical.segmentation import inputs, model, prepare
from apps.medical.segmentation.labels import UNKNOWN
from apps.medical.segmentation.options import DEFAULT, SHORT, TASK, Options
from apps.medical.segmentation.results import Segmentation
from core import batch, bundle
from core.data.sample import Meta
from core.device import autocast, pick
from core.errors import FileError, InputError, SettingError
from core.streaming.arrays import ArraySink
from core.streaming.blend import argmax
from core.streaming.run import run

if TYPE_CHECKING:
    from apps.medical.segmentation.evaluate import Scored
    from core.training.recipe import Recipe


_SCALE = 8  # times wider or narrower than in training: another scale, not another patient


class Member:
    """One bundle's network on a device: tiles on the scan's grid -> class probabilities on the same grid."""

    def __init__(self, found: bundle.Bundle, device: torch.device, precision: str) -> None:
        self.bundle, self.device, self.precision = found, device, precision
        self.network = bundle.fill(_network(found.settings), found).to(device)
        self.multiple = int(getattr(self.network, "multiple", 1))
        self.smallest = int(getattr(self.network, "smallest", 1))

    @property
    def settings(self) -> bundle.Settings:
        return self.bundle.settings

    def on(self, stack: inputs.Slices) -> Prediction:
        """Ready for one scan."""
        return Prediction(self, inputs.norm(stack, self.settings.input), inputs.factors(stack, self.settings.input))


class Prediction:
    """One network's answers for one scan."""

    def __init__(self, member: Member, normal: inputs.Norm, factor: tuple[float, float]) -> None:
        self.member, self.normal, self.factor = member, normal, factor

    @property
    def tile(self) -> tuple[int, int]:
        """Rows and columns of a tile on the scan's grid."""
        rows, columns = self.member.settings.tile.size
        return max(1, round(rows / self.factor[0])), max(1, round(columns / self.factor[1]))

    def __call__(self, tiles: Tensor, valid: Tensor) -> Tensor:
        """(N, C, h, w) in stored values, valid (N, h, w) -> probabilities (N, K, h, w) float32."""
        image = self.normal(tiles, valid)
        size = inputs.scaled(image.shape[-2:], self.factor)
        image = inputs.resize(image, size)
        image = inputs.padded(image, self.member.multiple, self.member.smallest)
        with autocast(self.member.device, self.member.precision):
            logits = self.member.network(image)
        logits = logits.float()[..., : size[0], : size[1]]
        # Probabilities, not logits, are resampled and averaged: several networks' logits have no common scale.
        return inputs.resize(logits.softmax(1), (tiles.shape[-2], tiles.shape[-1]))


def _network(settings: bundle.Settings) -> nn.Module:
    return model.create(settings.network.name, **settings.network.config)


class Pipeline:
    """Scan (path, array or Scan) -> Segmentation, by the mean of one or several networks.

    Networks may differ in kind, spacing and tile; they agree in channels, classes and plane.
    """

    def __init__(
        self, bundles: Sequence[bundle.Bundle], *, device: str = "auto", precision: str = "32", batch: int = 4
    ) -> None:
        first = bundles[0].settings
        for other in bundles[1:]:
            _agree(bundles[0], other)
        self.device = pick(device)
        self.members = [Member(b, self.device, precision) for b in bundles]
        self.settings, self.batch = first, batch

    @classmethod
    def load(cls, *folders: str | Path, device: str = "auto", precision: str = "32", batch: int = 4) -> Pipeline:
        """Of bundles, or of a folder of folds (all of them are taken).

        Args:
            folders: that `train`, `import` or `fit` wrote.
            device: "auto", "cpu", "cuda", "cuda:1", "mps".
            precision: "32", "bf16" or "16".
            batch: tiles at once.

        Raises:
            core.bundle.BundleError: missing, altered, of a later format, of another task.
            InputError: bundles that do not fit together.
        """
        found = [bundle.load(f, task=TASK) for given in folders for f in bundle.members(Path(given))]
        for one in found:
            trained(one)
        return cls(found, device=device, precision=precision, batch=batch)

    @classmethod
    def fit(
        cls, data: str | Path, out: str | Path, options: Options = DEFAULT, recipe: Recipe = SHORT, **how: Any
    ) -> Pipeline:
        """Train on a folder and load what came out; the same call goes on with a run that was stopped.

        Args:
            data: nnU-Net's raw layout, or images/ and masks/.
            out: folder of the bundle (or of one for each fold).
            options: what is trained.
            recipe: how.
            how: `init`, `groups`, `device`, `devices`, `nodes` as of `glocal medical segment train`.
        """
        from apps.medical.segmentation import training

        made = training.run(Path(data), Path(out), options, recipe, **how)
        return cls(made, device=how.get("device", "auto"))

    def evaluate(self, data: str | Path, part: str = "test", *, by: str = "house") -> Scored:
        """Scores on the labelled cases of a data set's "train" or "test" part; errors as of `evaluate.score`."""
        from apps.medical.segmentation import data as sets
        from apps.medical.segmentation import evaluate

        found = sets.find(data)
        return evaluate.score(self, found, sets.chosen(found, part), by=by)

    def export(self, file: str | Path) -> None:
        """The (first) network as ONNX with its side file, checked against torch."""
        from apps.medical.segmentation import training

        training.export(self.members[0].bundle.folder, Path(file))

    @property
    def classes(self) -> Mapping[str, int]:
        return self.settings.output.classes

    def __call__(
        self,
        scan: str | Path | NDArray[Any] | readers.Scan,
        *,
        meta: Meta | None = None,
        spacing: tuple[float, ...] | None = None,
        tile: tuple[int, int] | None = None,
        overlap: float | None = None,
        probabilities: bool = False,
    ) -> Segmentation:
        """Segment one scan.

        Args:
            scan: a file or DICOM folder; an array (Y, X), (Z, Y, X) in canonical order, or with channels last for
                colour pictures; or an opened scan.
            meta: of an array: spacing, affine and so on.
            spacing: millimetres along the scan's axes (slices, rows, columns), where the file does not say.
            tile: rows and columns on the network's grid, instead of the bundle's.
            overlap: of tiles as part of one, instead of the bundle's.
            probabilities: keep them in the result.

        Raises:
            core.errors.FileError: a scan that cannot be read or does not fit the input contract.
        """
        if isinstance(scan, np.ndarray):
            opened = from_array(scan, self.settings.input.channels, meta or Meta())
        else:
            opened = scan if isinstance(scan, readers.Scan) else readers.read(scan)
        if spacing is not None:
            opened = _spaced(opened, spacing)
        contract = self.settings.input
        prepare.matched(opened, contract.channels)
        said = differences(opened, contract)
        stack = inputs.slices(opened, contract.plane)
        parts = [m.on(stack) for m in self.members]
        rows, columns = tile or _largest(parts)
        if tile is not None:
            factor = parts[0].factor
            rows, columns = max(1, round(rows / factor[0])), max(1, round(columns / factor[1]))
        rows, columns = min(rows, stack.shape[1]), min(columns, stack.shape[2])
        part = self.settings.tile.overlap if overlap is None else overlap
        kept: list[NDArray[np.float16]] = []
        classes = argmax(np.uint8, invalid=UNKNOWN)

        def network(tiles: Tensor, valid: Tensor) -> Tensor:
            flat, known = (tiles, valid) if stack.picture else (tiles[:, :, 0], valid[:, 0])  # a tile is one slice deep
            total = parts[0](flat, known)
            for other in parts[1:]:
                total += other(flat, known)
            total /= len(parts)
            return total if stack.picture else total[:, :, None]

        def finish(scores: NDArray[np.floating[Any]], valid: NDArray[np.bool_]) -> NDArray[Any]:
            if probabilities:
                kept.append(scores.astype(np.float16))
            return classes(scores, valid)

        # A picture goes strip by strip, so that the scores of a large one never stand in memory; volumes by the slice.
        source, deep = (opened, ()) if stack.picture else (stack, (1,))
        sink = ArraySink(source.shape, np.uint8)
        run(
            source, network, sink, tile=(*deep, rows, columns), overlap=(*(0.0 for _ in deep), part, part),
            finish=finish, batch=self.batch, device=self.device,
        )  # fmt: skip
        shares = np.concatenate(kept, axis=1) if kept else None
        mask = sink.array
        if not stack.picture:
            mask = np.ascontiguousarray(stack.restore(mask))
            shares = None if shares is None else np.ascontiguousarray(stack.restore(shares))
        valid = mask != UNKNOWN
        mask[~valid] = 0
        return Segmentation(
            mask=mask,
            classes=dict(self.classes),
            ignore=self.settings.output.ignore,
            meta=opened.meta.did(*said),
            grid=opened.grid,
            scan=opened,
            valid=None if valid.all() else valid,
            probabilities=shares,
        )

    def many(self, paths: Sequence[str | Path]) -> Iterator[batch.Done[Segmentation] | batch.Failure]:
        """Segment files one after the other; the error of one is its Failure. One result is in memory at a time."""
        return batch.each(list(paths), lambda: self)


def trained(found: bundle.Bundle) -> None:
    """Raises InputError for a bundle whose network cannot answer yet (an imported encoder)."""
    if "untrained" in found.report:
        raise InputError(
            f"{found.folder}: {found.report['untrained']} is untrained, so it cannot segment yet; begin a training "
            f"with it: glocal medical segment train DATA --init {found.folder}"
        )


def _agree(one: bundle.Bundle, other: bundle.Bundle) -> None:
    a, b = one.settings, other.settings
    for what, left, right in (
        ("classes", dict(a.output.classes), dict(b.output.classes)),
        ("channels", a.input.channels, b.input.channels),
        ("planes", a.input.plane, b.input.plane),
    ):
        if left != right:
            raise InputError(
                f"{other.folder}: has other {what} than {one.folder} ({right} against {left}); name bundles of one task"
            )


def _largest(parts: Sequence[Prediction]) -> tuple[int, int]:
    rows, columns = zip(*(p.tile for p in parts), strict=True)
    return max(rows), max(columns)


def from_array(array: NDArray[Any], channels: tuple[str, ...], meta: Meta) -> readers.Scan:
    """An array as a scan: (Y, X) or (Z, Y, X) in canonical order, channels last where there are several.

    Raises SettingError for another number of axes or channels.
    """
    values = np.moveaxis(array, -1, 0) if len(channels) > 1 and array.ndim > 2 else array[None]
    axes = values.ndim - 1
    if axes not in (2, 3) or len(values) != len(channels):
        last = f", {len(channels)}" if len(channels) > 1 else ""
        raise SettingError(f"expected an array (Y, X{last}) or (Z, Y, X{last}), got {array.shape}")
    good = np.isfinite(values)
    shape = values.shape[1:]
    grid = readers.Grid(
        shape, meta.affine, tuple(range(axes)) if meta.affine else (), (False,) * axes if meta.affine else ()
    )
    window = held(np.where(good, values, 0), good.all(0))
    return readers.Scan(
        shape, channels, array.dtype, replace(meta, channels=channels), grid, "picture" if axes == 2 else "volume",
        "array", window,
    )  # fmt: skip


def _spaced(scan: readers.Scan, spacing: tuple[float, ...]) -> readers.Scan:
    if len(spacing) != len(scan.shape) or any(s <= 0 for s in spacing):
        raise SettingError(f"--spacing is {len(scan.shape)} positive numbers for this scan, got {spacing}")
    return replace(scan, meta=replace(scan.meta, spacing=spacing).did("spacing given by the user"))


def differences(scan: readers.Scan, contract: bundle.Input) -> list[str]:
    """In what a scan differs from what the network was trained on, where that can be lived with.

    Raises FileError where it cannot: values on another scale than those trained on, where they are taken as they are.
    Normalisation by each item's own mean and spread takes any scale.
    """
    said = []
    if contract.dtype and str(scan.dtype) != contract.dtype:
        said.append(f"values are {scan.dtype}, trained on {contract.dtype}")
    if contract.normalise == "fixed" and contract.range is not None:
        found = inputs.moments(inputs.slices(scan, contract.plane))
        low, high = min(found.low), max(found.high)
        have, want = high - low, contract.range[1] - contract.range[0]
        if have > _SCALE * want or 0 < have * _SCALE < want:
            raise FileError(
                scan.meta.path,
                f"has values from {low:g} to {high:g}, and this network takes them from {contract.range[0]:g} to "
                f"{contract.range[1]:g} as they are",
                "give the original file, not one that was scaled or windowed for viewing",
            )
    if scan.lossy:
        said.append("compressed with loss")
    return said
