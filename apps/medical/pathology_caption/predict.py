"""Prediction over bags: captions, classes and deciding patches of each, gone on with where a run was killed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from apps.medical import tables as csvs
from apps.medical.pathology_caption import data as sets
from apps.medical.pathology_caption import evaluate
from apps.medical.pathology_caption.data import Bag
from apps.medical.pathology_caption.describing import BEAMS
from apps.medical.pathology_caption.options import TASK
from apps.medical.pathology_caption.pipeline import Pipeline, trained
from core import bundle, jobs
from core.errors import FileError, InputError
from core.files import write_text

PREDICTIONS, REPRESENTATIVES, PATCHES, APPLIED = "predictions.csv", "representatives.csv", "patches.csv", "applied.csv"


@dataclass(frozen=True)
class Choices:
    """What to write, and how to run.

    Attributes:
        beams: of the search for captions; 1 is greedy.
        overlays: draw the representatives of each bag.
        device: as for `core.device.pick`.
        precision: of the patch encoder: 32, bf16 or 16.
        batch: patches at once.
        overwrite: work again on what is there.
    """

    beams: int = BEAMS
    overlays: bool = True
    device: str = "auto"
    precision: str = "32"
    batch: int = 32
    overwrite: bool = False


def predict(folders: Sequence[Path], given: Sequence[Path], out: Path, choices: Choices, *, workers: int = 1) -> int:
    """Describe bags into `out`; returns the exit code.

    Raises:
        InputError: no bag, a bundle that cannot be used; with a single bag also what is wrong with that.
    """
    bundles = [bundle.load(f, task=TASK) for folder in folders for f in bundle.members(folder)]
    for found in bundles:
        trained(found)
    bags = find(given)
    out.mkdir(parents=True, exist_ok=True)
    told = {**asdict(choices), "bundles": [b.report["sha256"] for b in bundles]}
    for free in ("device", "batch", "overwrite"):
        told.pop(free)
    job = jobs.Jobs(out, jobs.key_of(told))
    write_text(out / "settings.toml", bundle.settings_text(bundles[0].settings))
    code = jobs.run(
        bags, partial(_setup, tuple(folders), choices, job), job, overwrite=choices.overwrite, workers=workers,
        what="bags",
    )  # fmt: skip
    tables(job, bags)
    return code


def find(paths: Sequence[Path]) -> list[Bag]:
    """Bags under folders and in CSV files, in order; ids that occur twice are numbered.

    A folder with pictures in it is a bag; pictures named one by one are a bag together; any other folder is a data set
    as `data.find` reads it. Raises InputError for nothing, FileError for what is not there and as `data.find`.
    """
    bags: list[Bag] = []
    loose: list[Path] = []
    for path in paths:
        if not path.exists():
            raise FileError(path, "no such file or folder")
        if path.is_file() and path.suffix.lower() in sets.ENDINGS:
            loose.append(path)
        elif path.is_dir() and sets.holds_patches(path):
            bags.append(sets.one(path))
        else:
            bags += sets.find(path).bags
    if loose:
        bags.append(Bag("patches", "patches", tuple(loose)))
    if not bags:
        raise InputError("name folders of patches, a CSV of patches with their bags, or the patches of one bag")
    return _apart(bags)


def _apart(bags: Sequence[Bag]) -> list[Bag]:
    taken: set[str] = set()
    out = []
    for bag in bags:
        name, number = bag.id, 1
        while name in taken:
            number += 1
            name = f"{bag.id}-{number}"
        taken.add(name)
        out.append(replace(bag, id=name))
    return out


def _setup(folders: tuple[Path, ...], choices: Choices, job: jobs.Jobs) -> Callable[[Bag], str]:
    """Load the networks once, in the process that uses them."""
    pipeline = Pipeline.load(*folders, device=choices.device, precision=choices.precision, batch=choices.batch)
    return partial(_one, pipeline, choices, job)


def _one(pipeline: Pipeline, choices: Choices, job: jobs.Jobs, bag: Bag) -> str:
    """Describe one bag and write its results, the note that it is done last; returns what to say."""
    result = pipeline(bag, beams=choices.beams)
    files = [job.out / "bags" / f"{bag.id}.json"]
    result.save(files[0])
    if choices.overlays:
        files.append(job.out / "overlays" / f"{bag.id}.png")
        result.save(files[-1])
    strong = [
        {k: v for k, v in row.items() if k not in ("place", "neighbours")} for row in result.representative_rows()
    ]
    job.finish(
        bag, files, row=result.row(), strong=strong, patches=result.patch_rows(), applied=list(result.meta.applied)
    )
    return evaluate.line(result)


def tables(job: jobs.Jobs, bags: Sequence[Bag]) -> None:
    """Over all finished bags: predictions.csv, representatives.csv, patches.csv, and applied.csv of what was done."""
    notes = list(job.notes(bags))
    if notes:
        write_text(job.out / PREDICTIONS, csvs.written([note["row"] | {"bag": id} for id, note in notes]))
    strong = [{"bag": id} | row for id, note in notes for row in note["strong"]]
    write_text(
        job.out / REPRESENTATIVES,
        csvs.written(strong, ("bag", "cluster", "patch", "weight", "weight_in_cluster", "patches")),
    )
    patches = [row | {"bag": id} for id, note in notes for row in note["patches"]]
    write_text(job.out / PATCHES, csvs.written(patches, ("bag", "patch", "cluster", "weight")))
    steps = [{"bag": id, "applied": words} for id, note in notes for words in note["applied"]]
    write_text(job.out / APPLIED, csvs.written(steps, ("bag", "applied")))
