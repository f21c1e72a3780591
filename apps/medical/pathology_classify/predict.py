"""Prediction over tiles, pictures and slides: a table of all; of each slide a map, outlines and deciding tiles."""

from __future__ import annotations

import csv
import io
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from apps.medical import _slide_openslide, readers, slides
from apps.medical.pathology_classify import tiling
from apps.medical.pathology_classify.options import TASK
from apps.medical.pathology_classify.pipeline import DEFAULT_LOOK, Look, Pipeline, trained
from apps.medical.pathology_classify.results import Classification, SlideClassification, columns
from core import bundle, jobs, pictures
from core.data.sample import Meta
from core.errors import InputError
from core.files import aside, write_text

MAP, OUTLINES, TILES = ".heatmap.ome.tif", ".geojson", ".tiles.csv"  # endings of a slide's results


@dataclass(frozen=True)
class Choices:
    """What to write, and how to run.

    Attributes:
        look: how to look at slides and pictures.
        overlays: draw a picture of each slide, and its deciding tiles.
        each: draw a picture of each tile, too.
        device: as for `core.device.pick`.
        precision: of the network: 32, bf16 or 16.
        batch: tiles at once.
        overwrite: work again on what is there.
    """

    look: Look = DEFAULT_LOOK
    overlays: bool = True
    each: bool = False
    device: str = "auto"
    precision: str = "32"
    batch: int = 4
    overwrite: bool = False


def predict(folders: Sequence[Path], files: Sequence[Path], out: Path, choices: Choices, *, workers: int = 1) -> int:
    """Classify files and folders into `out`; returns the exit code.

    Raises:
        InputError: no file, a bundle that cannot be used; with a single file also what is wrong with that.
    """
    bundles = [bundle.load(f, task=TASK) for given in folders for f in bundle.members(given)]
    for found in bundles:
        trained(found)
    settings = bundles[0].settings
    items = find(files)
    out.mkdir(parents=True, exist_ok=True)
    told = {**asdict(choices), "bundles": [b.report["sha256"][bundle.WEIGHTS] for b in bundles]}
    for free in ("device", "batch", "overwrite"):
        told.pop(free)
    job = jobs.Jobs(out, jobs.key_of(told))
    write_text(out / "settings.toml", bundle.settings_text(settings))
    setup = partial(_setup, tuple(folders), choices, job)
    try:
        return jobs.run(items, setup, job, overwrite=choices.overwrite, workers=workers, what="items")
    finally:
        tables(job, items, sorted(settings.output.classes, key=lambda n: settings.output.classes[n]))


def find(paths: Sequence[Path]) -> list[readers.Item]:
    """Pictures and slides under files and folders, in order; a slide's id holds nothing that its header says of anyone.

    Raises what `readers.find` raises.
    """
    found: list[readers.Item] = []
    for path in paths:
        foreign = []
        if path.is_dir():
            foreign = sorted(p for p in path.rglob("*") if p.suffix.lower() in _slide_openslide.SUFFIXES)
        try:
            here = readers.find([path])
        except InputError:
            if not foreign:
                raise
            here = []
        there = {p for i in here for p in i.paths}
        found += sorted([*here, *(readers.Item((p,), p.stem) for p in foreign if p not in there)], key=_order)
    if not found:
        return readers.find(paths)  # says that nothing was named
    return _unique([replace(i, id=slides.safe_id(i.path)) if slides.recognised(i.path) else i for i in found])


def _order(item: readers.Item) -> str:
    return str(item.path)


def _unique(items: Sequence[readers.Item]) -> list[readers.Item]:
    """Ids that name one item each: a number follows where several have the same name."""
    seen: Counter[str] = Counter()
    taken = {i.id for i in items}
    out = []
    for item in items:
        seen[item.id] += 1
        name = item.id
        while seen[item.id] > 1 and name in taken:
            name = f"{item.id}-{seen[item.id]}"
            if name in taken:
                seen[item.id] += 1
        taken.add(name)
        out.append(replace(item, id=name))
    return out


def _setup(folders: tuple[Path, ...], choices: Choices, job: jobs.Jobs) -> Callable[[readers.Item], str]:
    """Load the networks once, in the process that uses them."""
    pipeline = Pipeline.load(*folders, device=choices.device, precision=choices.precision, batch=choices.batch)
    return partial(one, pipeline, choices, job)


def one(pipeline: Pipeline, choices: Choices, job: jobs.Jobs, item: readers.Item) -> str:
    """Classify one item and write its results, the note that it is done last; returns what to say."""
    if item.series:
        raise InputError(f"{item.path.parent}: holds a DICOM series; give pictures of tiles, or slides")
    path = job.out / f"{item.id}{MAP}"
    with _Bar(item.id) as bar:
        result = pipeline(item.path, meta=Meta(id=item.id), look=choices.look, journal=path, progress=bar)
    files = (
        _slide(result, choices, job.out) if isinstance(result, SlideClassification) else _tile(result, choices, job.out)
    )
    job.finish(item, files, row=result.row(), applied=list(result.meta.applied))
    tiling.forget(path)
    of = f" of {len(result.tiles):,} tiles" if isinstance(result, SlideClassification) else ""
    return f"{item.path}: {result.label} {result.probability:.3f}{of}"


def _slide(result: SlideClassification, choices: Choices, out: Path) -> list[Path]:
    id = result.meta.id
    files = [out / f"{id}{ending}" for ending in (MAP, OUTLINES, TILES)]
    for file in files:
        result.save(file)
    if choices.overlays:
        for folder, picture in (("overlays", result.draw()), ("strips", result.strip())):
            files.append(out / folder / f"{id}.png")
            with aside(files[-1]) as part:
                part.write_bytes(pictures.png(picture))
    return files


def _tile(result: Classification, choices: Choices, out: Path) -> list[Path]:
    if not choices.each:
        return []
    file = out / "overlays" / f"{result.meta.id}.png"
    result.save(file)
    return [file]


class _Bar:
    """Tiles of a slide on a terminal; nothing elsewhere."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._bar: Any = None

    def __enter__(self) -> _Bar:
        return self

    def __call__(self, done: int, total: int) -> None:
        if self._bar is None and sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total, unit=" tiles", desc=self.name, dynamic_ncols=True, leave=False)
        if self._bar is not None:
            self._bar.update(done - self._bar.n)

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()


def tables(job: jobs.Jobs, items: Sequence[readers.Item], classes: Sequence[str]) -> None:
    """Over all finished items: predictions.csv, and applied.csv with what was done to each file."""
    answers, steps = io.StringIO(), io.StringIO()
    table = csv.DictWriter(answers, columns(classes), lineterminator="\n")
    table.writeheader()
    done = csv.writer(steps, lineterminator="\n")
    done.writerow(("item", "applied"))
    for id, note in job.notes(items):
        table.writerow(note["row"])
        done.writerows((id, words) for words in note["applied"])
    write_text(job.out / "predictions.csv", answers.getvalue())
    write_text(job.out / "applied.csv", steps.getvalue())
