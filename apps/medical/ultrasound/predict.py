"""Prediction over files: probabilities, drawings and burned-in marks of each, gone on with where a run was killed."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from apps.medical import readers
from apps.medical.tables import written as table
from apps.medical.ultrasound import metrics
from apps.medical.ultrasound.options import TASK
from apps.medical.ultrasound.pipeline import Pipeline, trained
from apps.medical.ultrasound.results import Screening
from core import bundle, jobs
from core.errors import InputError, UnknownNameError
from core.files import write_text

PREDICTIONS, FRAMES, MARKS, APPLIED = "predictions.csv", "frames.csv", "marks.csv", "applied.csv"
_MASK = re.compile(r"(?P<name>.+)_mask(_\d+)?", re.IGNORECASE)  # of BUSI, beside its picture


@dataclass(frozen=True)
class Choices:
    """What to write, and how to run.

    Attributes:
        pool: how the frames of a loop become one answer.
        mask: burned-in marks; None for as the network was trained.
        overlays: draw a picture for each item.
        keep_identifiers: leave burned-in text on the drawings.
        device: as for `core.device.pick`.
        precision: of the network: 32, bf16 or 16.
        batch: frames at once.
        overwrite: work again on what is there.
    """

    pool: str = "mean"
    mask: bool | None = None
    overlays: bool = True
    keep_identifiers: bool = False
    device: str = "auto"
    precision: str = "32"
    batch: int = 8
    overwrite: bool = False


def predict(folders: Sequence[Path], files: Sequence[Path], out: Path, choices: Choices, *, workers: int = 1) -> int:
    """Judge files and folders into `out`; returns the exit code.

    Raises:
        InputError: no file, a bundle that cannot be used; with a single file also what is wrong with that.
    """
    if choices.pool not in metrics.POOLS:
        raise UnknownNameError("pool", choices.pool, metrics.POOLS)
    bundles = [bundle.load(f, task=TASK) for given in folders for f in bundle.members(given)]
    for found in bundles:
        trained(found)
    items = pictures(readers.find(files))
    out.mkdir(parents=True, exist_ok=True)
    told = {**asdict(choices), "bundles": [b.report["sha256"] for b in bundles]}
    for free in ("device", "batch", "overwrite"):
        told.pop(free)
    job = jobs.Jobs(out, jobs.key_of(told))
    write_text(out / "settings.toml", bundle.settings_text(bundles[0].settings))
    code = jobs.run(
        items, partial(_setup, tuple(folders), choices, job), job, overwrite=choices.overwrite, workers=workers,
        what="items",
    )  # fmt: skip
    tables(job, items)
    return code


def pictures(items: Sequence[readers.Item]) -> list[readers.Item]:
    """The items without the masks that lie beside their pictures as BUSI's do. Raises InputError where none is left."""
    names = {(i.path.parent, i.path.stem) for i in items}
    kept = [
        i for i in items if not ((m := _MASK.fullmatch(i.path.stem)) and (i.path.parent, m["name"]) in names)
    ]  # fmt: skip
    if len(kept) < len(items):
        print(f"note: {len(items) - len(kept)} masks beside their pictures are left out")
    if not kept:
        raise InputError("nothing but masks is there; name pictures or cine loops")
    return kept


def _setup(folders: tuple[Path, ...], choices: Choices, job: jobs.Jobs) -> Callable[[readers.Item], str]:
    """Load the networks once, in the process that uses them."""
    pipeline = Pipeline.load(*folders, device=choices.device, precision=choices.precision, batch=choices.batch)
    return partial(_one, pipeline, choices, job)


def _one(pipeline: Pipeline, choices: Choices, job: jobs.Jobs, item: readers.Item) -> str:
    """Judge one item and write its results, the note that it is done last; returns what to say."""
    result = pipeline(readers.read_item(item), pool=choices.pool, mask=choices.mask, looked=choices.overlays)
    files = []
    if choices.overlays:
        files.append(job.out / "overlays" / f"{item.id}.png")
        result.save(files[-1], keep_identifiers=choices.keep_identifiers)
    told = [*result.meta.applied, *result.remarks]
    job.finish(
        item, files, row=result.row(), frames=result.frame_rows(), marks=result.mark_rows(), applied=told,
    )  # fmt: skip
    return line(item.id, result)


def line(id: str, result: Screening) -> str:
    """What is called, how surely, and what was found on the picture."""
    name = result.positive or result.called
    parts = [f"{id}: {result.called}", f"P({name}) {result.probability(name):.3f}"]
    if result.cine:
        parts.append(f"{len(result.frames)} frames")
    if result.marks:
        parts.append(result.marks.sentence() + (" (masked)" if result.masked else ""))
    return ", ".join([*parts, *result.remarks])


def tables(job: jobs.Jobs, items: Sequence[readers.Item]) -> None:
    """Over all finished items: predictions.csv, frames.csv of loops, marks.csv, and applied.csv of what was done."""
    notes = [(id, note) for id, note in job.notes(items)]
    if notes:
        columns = list(notes[0][1]["row"])
        write_text(job.out / PREDICTIONS, table([note["row"] | {"item": id} for id, note in notes], columns))
        names = ["item", "frame", *(c for c in columns if c.startswith("p_"))]
        rows = [row | {"item": id} for id, note in notes for row in note["frames"]]
        write_text(job.out / FRAMES, table(rows, names))
    marks = [row | {"item": id} for id, note in notes for row in note["marks"]]
    write_text(job.out / MARKS, table(marks, ("item", "kind", "x", "y", "width", "height")))
    steps = [{"item": id, "applied": words} for id, note in notes for words in note["applied"]]
    write_text(job.out / APPLIED, table(steps, ("item", "applied")))
