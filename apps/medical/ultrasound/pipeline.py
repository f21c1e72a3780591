"""From a picture or cine loop to the probability of each class, by the mean of one or several networks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from apps.medical import readers
from apps.medical.ultrasound import burned, inputs, metrics, model
from apps.medical.ultrasound.inputs import Clip, Frames
from apps.medical.ultrasound.options import DEFAULT, SHORT, TASK, Options
from apps.medical.ultrasound.results import Screening
from core import batch as batches
from core import bundle
from core.data.sample import Meta
from core.device import autocast, check_precision, pick
from core.errors import FileError, InputError, SettingError, UnknownNameError

if TYPE_CHECKING:
    from apps.medical.ultrasound.evaluate import Scored
    from core.training.recipe import Recipe

_GRID = 56  # cells a side of the map of what was looked at: the networks' finest level
_FRAMES = 12  # of a loop that are searched for marks


class Member:
    """One bundle's network on a device."""

    def __init__(self, found: bundle.Bundle, device: torch.device, precision: str) -> None:
        self.bundle, self.device, self.precision = inputs.checked(found), device, precision
        settings = found.settings
        network: Any = model.create(settings.network.name, **settings.network.config)
        self.size = (int(settings.tile.size[0]), int(settings.tile.size[1]))
        wanted = int(getattr(network, "size", self.size[0]))
        if self.size != (wanted, wanted):
            raise bundle.BundleError(
                f"{found.folder / bundle.SETTINGS}: states the size {list(self.size)}, and its network takes "
                f"{wanted} x {wanted}; train or import it again"
            )
        self.network: Any = bundle.fill(network, found).to(device)
        self.alone = bool(getattr(network, "mixes", False))  # an answer must not depend on its neighbours in a batch

    @torch.inference_mode()
    def __call__(self, shown: Frames) -> NDArray[np.float64]:
        """Frames (T, H, W, 3) to probabilities (T, K)."""
        step = 1 if self.alone else len(shown)
        answers = []
        for start in range(0, len(shown), step):
            image = self._input(shown[start : start + step])
            with autocast(self.device, self.precision):
                logits = self.network(image)
            answers.append(logits.double().softmax(-1).cpu().numpy())
        return np.concatenate(answers)

    @torch.inference_mode()
    def looked(self, shown: Frames) -> NDArray[np.float32] | None:
        """What the network looked at in one frame (1, H, W, 3): (_GRID, _GRID), the mean of its levels, sum 1."""
        with autocast(self.device, self.precision):
            maps = model.attention(self.network, self._input(shown))
        if not maps:
            return None
        spread = [functional.interpolate(m.float()[:, None], (_GRID, _GRID), mode="bilinear") for m in maps]
        level = [s / s.sum().clamp_min(1e-12) for s in spread]
        return torch.stack(level).mean(0)[0, 0].cpu().numpy()

    def _input(self, shown: Frames) -> torch.Tensor:
        return inputs.prepared(shown, self.size, self.bundle.settings.input).to(self.device)


class Pipeline:
    """Picture or cine loop (path, array or Scan) -> Screening.

    Networks may differ in kind and size; they agree in their classes, in what they look for and in whether marks are
    masked. With several, probabilities are averaged, and so are thresholds.
    """

    def __init__(
        self, bundles: Sequence[bundle.Bundle], *, device: str = "auto", precision: str = "32", batch: int = 8
    ) -> None:
        if not bundles:
            raise InputError("name a bundle, then pictures")
        if batch < 1:
            raise SettingError(f"a batch is at least 1, got {batch}")
        for other in bundles[1:]:
            _agree(bundles[0], other)
        self.device, self.batch = pick(device), batch
        check_precision(self.device, precision)
        self.members = [Member(b, self.device, precision) for b in bundles]
        self.settings = bundles[0].settings
        given = self.settings.output
        self.positive = given.positive
        chosen = [b.settings.output.threshold for b in bundles]
        known = [t for t in chosen if t is not None]
        self.threshold = float(np.mean(known)) if len(known) == len(chosen) and self.positive else None

    @classmethod
    def load(cls, *folders: str | Path, device: str = "auto", precision: str = "32", batch: int = 8) -> Pipeline:
        """Of bundles, or of a folder of folds (all of them are taken).

        Args:
            folders: that `train`, `import` or `fit` wrote.
            device: "auto", "cpu", "cuda", "cuda:1", "mps".
            precision: "32", "bf16" or "16".
            batch: frames at once.

        Raises:
            core.bundle.BundleError: missing, altered, of a later format, of another task or input contract.
            InputError: bundles that do not fit together, or of a network that cannot answer yet.
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
            data: class folders, US-Liver, BUSI, BUS-BRA, or a CSV of images and labels.
            out: folder of the bundle (or of one for each fold).
            options: what is trained.
            recipe: how.
            how: `init`, `groups`, `device`, `devices`, `nodes` as of `glocal medical ultrasound train`.
        """
        from apps.medical.ultrasound import training

        made = training.run(Path(data), Path(out), options, recipe, **how)
        return cls(made, device=how.get("device", "auto"))

    def evaluate(
        self, data: str | Path, part: str = "test", *, pool: str = "mean", groups: str | Path | None = None
    ) -> Scored:
        """Scores on a part ("train", "val", "test", "all") of a data set; errors as of `evaluate.score`."""
        from apps.medical.ultrasound import data as sets
        from apps.medical.ultrasound import evaluate

        found = sets.find(data, groups=groups, classes=self.names)
        return evaluate.score(self, found, sets.chosen(found, part), pool=pool)

    def export(self, file: str | Path) -> None:
        """The (first) network as ONNX with its side file, checked against torch."""
        from apps.medical.ultrasound import training

        training.export(self.members[0].bundle.folder, Path(file))

    @property
    def classes(self) -> Mapping[str, int]:
        return self.settings.output.classes

    @property
    def names(self) -> tuple[str, ...]:
        """The classes in the order of their numbers."""
        return tuple(sorted(self.classes, key=lambda name: self.classes[name]))

    @property
    def masks(self) -> bool:
        """Whether the networks were trained on pictures whose burned-in marks were masked."""
        return inputs.masks(self.settings.input)

    def __call__(
        self,
        scan: str | Path | NDArray[Any] | readers.Scan,
        *,
        meta: Meta | None = None,
        pool: str = "mean",
        mask: bool | None = None,
        marks: bool = True,
        looked: bool = True,
    ) -> Screening:
        """Judge one picture or cine loop.

        Args:
            scan: a file; an array (H, W), (H, W, 3), or of a loop (T, H, W), (T, H, W, 3); or an opened scan.
            meta: of an array.
            pool: how the frames of a loop become one answer, a name of `metrics.POOLS`.
            mask: show the network the picture without its burned-in marks; by default as it was trained.
            marks: search for burned-in text and calipers.
            looked: keep what the network looked at.

        Raises:
            core.errors.FileError: a file that cannot be read, does not fit the input contract or shows nothing.
        """
        if pool not in metrics.POOLS:
            raise UnknownNameError("pool", pool, metrics.POOLS)
        opened = inputs.from_array(scan, meta) if isinstance(scan, np.ndarray) else scan
        clip = inputs.opened(opened)
        covered = self.masks if mask is None else mask
        found = burned.find(clip.sampled(_FRAMES)) if marks or covered else None
        frames = self._scored(clip, found if covered else None)
        number = None if self.positive is None else self.classes[self.positive]
        together = metrics.pooled(frames, pool, number)
        name = metrics.called(together, self.classes, self.positive, self.threshold)
        at = metrics.strongest(frames, self.classes[name])
        picture = clip.read(at, at + 1)
        seen = self._looked(burned.masked(picture, found) if covered and found else picture) if looked else None
        return Screening(
            classes=dict(self.classes),
            frames=frames,
            probabilities=together,
            meta=clip.meta.did(*self._said(clip, frames, found, covered)),
            shown=at,
            picture=picture[0],
            pool=pool,
            positive=self.positive,
            threshold=self.threshold,
            looked=seen,
            marks=found,
            masked=bool(covered and found),
            remarks=tuple(inputs.remarks(picture)),
        )

    def many(self, paths: Sequence[str | Path]) -> Iterator[batches.Done[Screening] | batches.Failure]:
        """Judge files one after the other; the error of one is its Failure. One result is in memory at a time."""
        return batches.each(list(paths), lambda: self)

    def _scored(self, clip: Clip, cover: burned.Marks | None) -> NDArray[np.float64]:
        """Probabilities (T, K); NaN for frames that show nothing. Raises FileError where none does."""
        rows = []
        for _, shown in clip.chunks(self.batch):
            if cover is not None:
                shown = burned.masked(shown, cover)
            empty = inputs.blank(shown)
            part = np.full((len(shown), len(self.classes)), np.nan)
            if not empty.all():
                part[~empty] = np.mean([member(shown[~empty]) for member in self.members], axis=0)
            rows.append(part)
        frames = np.concatenate(rows)
        if np.isnan(frames).all():
            what = "every frame has" if clip.cine else "the picture has"
            raise FileError(clip.meta.path or "the picture", f"{what} one value all over, so there is nothing to see")
        if not np.isfinite(frames[~np.isnan(frames).all(axis=1)]).all():
            raise FileError(clip.meta.path or "the picture", "the network answers no number", "use --precision 32")
        return frames

    def _looked(self, shown: Frames) -> NDArray[np.float32] | None:
        maps = [m for member in self.members if (m := member.looked(shown)) is not None]
        return np.mean(maps, axis=0) if maps else None

    def _said(self, clip: Clip, frames: NDArray[np.float64], found: burned.Marks | None, covered: bool) -> list[str]:
        said = []
        rows, columns = clip.size
        sizes = dict.fromkeys(m.size for m in self.members)
        said += [f"{columns} x {rows} pixels brought to {w} x {h}" for h, w in sizes if (h, w) != (rows, columns)]
        empty = int(np.isnan(frames).any(axis=1).sum())
        if empty:
            said.append(f"{empty} of {len(frames)} frames show nothing and were left out")
        if found is not None and found:
            said.append(found.sentence() + (", masked" if covered else ""))
        if covered != self.masks:
            said.append(
                "burned-in marks masked, and the network was trained on pictures with them" if covered
                else "burned-in marks left, and the network was trained on pictures without them"
            )  # fmt: skip
        return said


def trained(found: bundle.Bundle) -> None:
    """Raises InputError for a bundle whose network cannot answer yet (imported backbones)."""
    if "untrained" in found.report:
        raise InputError(
            f"{found.folder}: {found.report['untrained']} is untrained, so it cannot answer yet; begin a training "
            f"with it: glocal medical ultrasound train DATA --init {found.folder}"
        )


def _agree(one: bundle.Bundle, other: bundle.Bundle) -> None:
    a, b = one.settings, other.settings
    for what, left, right in (
        ("classes", dict(a.output.classes), dict(b.output.classes)),
        ("positive classes", a.output.positive, b.output.positive),
        ("steps", a.input.steps, b.input.steps),
    ):
        if left != right:
            raise InputError(
                f"{other.folder}: has other {what} than {one.folder} ({right} against {left}); name bundles of one task"
            )
