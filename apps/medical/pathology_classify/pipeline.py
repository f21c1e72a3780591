"""From a tile, picture or slide to its class: one or several bundles, the mean of their probabilities."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from apps.medical import slides
from apps.medical.pathology_classify import cutting, heat, inputs, pooling, tiling
from apps.medical.pathology_classify.look import DEFAULT_LOOK, Look
from apps.medical.pathology_classify.member import Member, agree, trained
from apps.medical.pathology_classify.options import DEFAULT, RECIPES, TASK, Options
from apps.medical.pathology_classify.results import Classification, SlideClassification
from core import batch, bundle
from core.data.sample import Meta
from core.device import pick
from core.errors import InputError
from core.streaming.journal import Journal

if TYPE_CHECKING:
    from apps.medical.pathology_classify.evaluate import Scored
    from core.training.recipe import Recipe

__all__ = ["DEFAULT_LOOK", "Look", "Member", "Pipeline", "trained"]

_SHORT = next(iter(RECIPES.values()))
Given = str | Path | NDArray[Any] | slides.Slide
Result = Classification | SlideClassification
Answered = batch.Done[Result] | batch.Failure


class Pipeline:
    """Tile, picture or slide -> its class, by the mean of one or several networks.

    Networks may differ in kind; they agree in classes, size of a tile, micrometres to a pixel and stain normalisation.
    """

    def __init__(
        self, bundles: Sequence[bundle.Bundle], *, device: str = "auto", precision: str = "32", batch: int = 4
    ) -> None:
        for other in bundles[1:]:
            agree(bundles[0], other)
        self.device = pick(device)
        self.members = [Member(b, self.device, precision) for b in bundles]
        self.settings, self.batch = bundles[0].settings, batch
        self.classes = tuple(sorted(self.settings.output.classes, key=lambda n: self.settings.output.classes[n]))

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
            InputError: bundles that do not fit together, or whose network is not trained.
        """
        found = [bundle.load(f, task=TASK) for given in folders for f in bundle.members(Path(given))]
        if not found:
            raise InputError("name a bundle that `train` or `import` wrote")
        for one in found:
            trained(one)
        return cls(found, device=device, precision=precision, batch=batch)

    @classmethod
    def fit(
        cls, data: str | Path, out: str | Path, options: Options = DEFAULT, recipe: Recipe = _SHORT, **how: Any
    ) -> Pipeline:
        """Train on a folder and load what came out; the same call goes on with a run that was stopped.

        Args:
            data: tiles in class folders, BreakHis's tree, or a CSV.
            out: folder of the bundle (or of one for each fold).
            options: what is trained.
            recipe: how.
            how: `init`, `groups`, `device`, `devices`, `nodes` as of `glocal medical pathology classify train`.
        """
        from apps.medical.pathology_classify import training

        made = training.run(Path(data), Path(out), options, recipe, **how)
        return cls(made, device=how.get("device", "auto"))

    def evaluate(self, data: str | Path, part: str = "test", *, groups: str | Path | None = None) -> Scored:
        """Scores on the labelled tiles of a part of a data set; errors as of `evaluate.score`."""
        from apps.medical.pathology_classify import data as sets
        from apps.medical.pathology_classify import evaluate

        found = sets.find(Path(data), groups=None if groups is None else Path(groups), classes=self.classes)
        return evaluate.score(self, found, sets.chosen(found, part))

    def export(self, file: str | Path) -> None:
        """The (first) network as ONNX with its side file, checked against torch."""
        from apps.medical.pathology_classify import training

        training.export(self.members[0].bundle.folder, Path(file))

    @property
    def size(self) -> int:
        """Pixels a side of a tile."""
        return self.settings.tile.size[0]

    @property
    def um(self) -> float | None:
        """Micrometres to a pixel that the networks were trained at."""
        spacing = self.settings.input.spacing
        return None if spacing is None else sum(spacing) / len(spacing)

    def probabilities(self, tiles: NDArray[np.uint8]) -> NDArray[np.float64]:
        """(N, size, size, 3) uint8 -> (N, K), the mean of the networks, `batch` tiles at once."""
        parts = []
        for start in range(0, len(tiles), self.batch):
            part = tiles[start : start + self.batch]
            parts.append(np.mean([m(part) for m in self.members], axis=0, dtype=np.float64))
        return np.concatenate(parts)

    def __call__(
        self,
        given: Given,
        *,
        meta: Meta | None = None,
        look: Look = DEFAULT_LOOK,
        journal: Path | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Result:
        """Classify one tile, picture or slide.

        Args:
            given: a file, an array (rows, columns, 3) uint8, or a slide that is open. A pyramid (.svs, .tif) is a
                slide: it is read tile by tile. Of a picture the squares that cover it are averaged.
            meta: of an array; in place of what a file says, its `id`.
            look: see Look.
            journal: of a slide: a file beside which finished rows of tiles are kept, so that a run that was killed goes
                on; they stay until `tiling.forget(journal)`, when its results are safe.
            progress: called with finished and all tiles of a slide.

        Raises:
            core.errors.FileError: what cannot be read, or does not fit what the network was trained on.
            core.errors.SettingError: a value of `look` out of range.
        """
        if isinstance(given, str | Path) and slides.recognised(given):
            given = slides.open_slide(given, um_per_px=look.um_per_px, reader=look.reader)
        if isinstance(given, slides.Slide):
            return self._slide(given, look, meta, journal, progress)
        cuts, image, known = self._picture(given, look, meta or Meta())
        return self._answer(self.probabilities(cuts), image, known, look)

    def many(self, paths: Sequence[str | Path], *, look: Look = DEFAULT_LOOK) -> Iterator[Answered]:
        """Classify files in order; the error of one is its Failure. One slide, or one batch of tiles, is in memory."""

        def named(path: str | Path) -> Result:
            return self(path, look=look)

        waiting: list[str | Path] = []
        for path in paths:
            slide = slides.recognised(path)
            if not slide:
                waiting.append(path)
            if waiting and (slide or len(waiting) == self.batch):
                yield from self.tiles(waiting, look=look)
                waiting = []
            if slide:
                yield from batch.each([path], lambda: named)
        yield from self.tiles(waiting, look=look)

    def tiles(self, paths: Sequence[str | Path], *, look: Look = DEFAULT_LOOK) -> Iterator[Answered]:
        """Classify pictures in order, several in one call of the networks; the error of one is its Failure."""
        for start in range(0, len(paths), self.batch):
            ready = list(
                batch.each(list(paths[start : start + self.batch]), lambda: lambda p: self._picture(p, look, Meta()))
            )
            read = [r.result for r in ready if isinstance(r, batch.Done)]
            found = self.probabilities(np.concatenate([cuts for cuts, _, _ in read])) if read else np.empty((0, 0))
            first = 0
            for one in ready:
                if isinstance(one, batch.Failure):
                    yield one
                    continue
                cuts, image, meta = one.result
                part = found[first : first + len(cuts)]
                first += len(cuts)
                yield batch.Done(one.item, self._answer(part, image, meta, look), one.seconds)

    def journal_key(self) -> dict[str, Any]:
        """What a slide's numbers depend on of this pipeline."""
        return {
            "bundles": [m.bundle.report["sha256"][bundle.WEIGHTS] for m in self.members],
            "input": [repr(m.settings.input) for m in self.members],
            "precision": self.members[0].precision,
            "device": self.device.type,
            "batch": self.batch,
        }

    def _answer(self, cuts: NDArray[np.float64], image: NDArray[np.uint8], meta: Meta, look: Look) -> Classification:
        mean = tuple(float(p) for p in cuts.mean(0))
        output = self.settings.output
        label = pooling.decided(mean, self.classes, output.positive, output.threshold)
        winner, found = self.classes.index(label), None
        if len(cuts) > 1:
            found = heat.of_cuts(cuts, (image.shape[0], image.shape[1]), self.size, look.overlap, winner)
        elif look.explain:
            found = heat.hidden(inputs.crops(image, self.size)[0], self.probabilities, winner)
        return Classification(mean, self.classes, meta, label, len(cuts), image, found)

    def _stained(self, look: Look) -> bool:
        """Whether stains are normalised."""
        if look.stain == "none":
            return False
        return bool(look.stain or self.members[0].stain)

    def _picture(
        self, given: str | Path | NDArray[Any], look: Look, meta: Meta
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8], Meta]:
        return cutting.cut(given, meta, look, size=self.size, um=self.um, stained=self._stained(look))

    def _slide(
        self,
        slide: slides.Slide,
        look: Look,
        meta: Meta | None,
        journal: Path | None,
        progress: Callable[[int, int], None] | None,
    ) -> SlideClassification:
        um = look.um or self.um
        if um is None:
            raise InputError(
                f"{self.members[0].bundle.folder}: does not say how many micrometres to a pixel it was trained at, "
                "which slides need; give them by --um"
            )
        plan = tiling.plan(slide, um, self.size, overlap=look.overlap, least=look.tissue)
        stained = self._stained(look)
        known = plan.source.meta
        known = known if meta is None or not meta.id else replace(known, id=meta.id)
        kept = None
        if journal is not None:
            kept = Journal(journal, tiling.key(plan, stain=stained, **self.journal_key()))
        try:
            scores = self._scores(plan, stained, kept, progress)
        finally:
            if kept is not None:
                kept.release()
        there = np.isfinite(scores[0])
        mean = tuple(float(p) for p in pooling.pooled(scores[:, there].T, look.pool))
        words = [f"{int(there.sum()):,} of {there.size:,} tiles show tissue", *_stain_words(stained)]
        label = pooling.decided(mean, self.classes)  # a bundle's threshold was chosen on tiles and holds for them
        return SlideClassification(mean, self.classes, known.did(*words), label, scores, plan, look.pool)

    def _scores(
        self,
        plan: tiling.Plan,
        stained: bool,
        journal: Journal | None,
        progress: Callable[[int, int], None] | None,
    ) -> NDArray[np.float32]:
        done = journal is not None and journal.rows == len(plan.rows)
        stains = tiling.stains(plan) if stained and not done else None

        def answer(tiles: NDArray[np.uint8]) -> NDArray[np.float64]:
            return self.probabilities(tiles if stains is None else stains(tiles))

        return tiling.classify(plan, answer, len(self.classes), batch=self.batch, journal=journal, progress=progress)


def _stain_words(stained: bool) -> tuple[str, ...]:
    return ("stains normalised (Macenko, told once from the whole slide)",) if stained else ()
