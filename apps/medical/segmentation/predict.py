"""Prediction over files: a mask, an overlay and a row of volumes for each, gone on with where a run was killed."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from apps.medical import readers
from apps.medical.segmentation.options import TASK
from apps.medical.segmentation.pipeline import Pipeline, trained
from apps.medical.segmentation.results import COLUMNS
from core import bundle, jobs, pictures
from core.files import aside, write_text

ENDINGS = {"nifti": ".nii.gz", "dicom": ".dcm", "tiff": ".tif"}  # of masks, by the input's format; else .png


@dataclass(frozen=True)
class Choices:
    """What to write, and how to run.

    Attributes:
        format: ending of the masks ("nii.gz", "png", "tif", "dcm"); "" for the input's own.
        probabilities: write them, too.
        overlays: draw a picture for each item.
        tile: rows and columns on the network's grid; None for the bundle's.
        overlap: of tiles; None for the bundle's.
        spacing: millimetres along the scan's axes, where files do not say.
        keep_identifiers: leave patient name, id and dates in DICOM results.
        device: as for `core.device.pick`.
        precision: of the network: 32, bf16 or 16.
        batch: tiles at once.
        overwrite: work again on what is there.
    """

    format: str = ""
    probabilities: bool = False
    overlays: bool = True
    tile: tuple[int, int] | None = None
    overlap: float | None = None
    spacing: tuple[float, ...] | None = None
    keep_identifiers: bool = False
    device: str = "auto"
    precision: str = "32"
    batch: int = 4
    overwrite: bool = False


def predict(folders: Sequence[Path], files: Sequence[Path], out: Path, choices: Choices, *, workers: int = 1) -> int:
    """Segment files and folders into `out`; returns the exit code.

    Raises:
        InputError: no file, a bundle that cannot be used; with a single file also what is wrong with that.
    """
    bundles = [bundle.load(f, task=TASK) for given in folders for f in bundle.members(given)]
    for found in bundles:
        trained(found)
    settings = bundles[0].settings
    items = readers.find(files, channels=len(settings.input.channels))
    out.mkdir(parents=True, exist_ok=True)
    told = {**asdict(choices), "bundles": [b.report["sha256"][bundle.WEIGHTS] for b in bundles]}
    for free in ("device", "batch", "overwrite"):
        told.pop(free)
    job = jobs.Jobs(out, jobs.key_of(told))
    write_text(out / "settings.toml", bundle.settings_text(settings))
    setup = partial(_setup, tuple(folders), choices, job)
    code = jobs.run(items, setup, job, overwrite=choices.overwrite, workers=workers, what="items")
    tables(job, items)
    return code


def _setup(folders: tuple[Path, ...], choices: Choices, job: jobs.Jobs) -> Callable[[readers.Item], str]:
    """Load the networks once, in the process that uses them."""
    pipeline = Pipeline.load(*folders, device=choices.device, precision=choices.precision, batch=choices.batch)
    return partial(_one, pipeline, choices, job)


def _one(pipeline: Pipeline, choices: Choices, job: jobs.Jobs, item: readers.Item) -> str:
    """Segment one item and write its results, the note that it is done last; returns what to say."""
    scan = readers.read_item(item)
    result = pipeline(
        scan, spacing=choices.spacing, tile=choices.tile, overlap=choices.overlap, probabilities=choices.probabilities
    )
    usual = ".tif" if scan.kind == "frames" else ENDINGS.get(scan.format, ".png")  # frames have no place in a SEG
    ending = "." + choices.format.lstrip(".") if choices.format else usual
    out = job.out
    path = out / f"{item.id}{ending}"
    files = [path]
    result.save(path, keep_identifiers=choices.keep_identifiers)
    if choices.probabilities:
        files.append(out / f"{item.id}.probabilities{'.nii.gz' if ending == '.nii.gz' else '.npz'}")
        result.save_probabilities(files[-1])
    if choices.overlays:
        files.append(out / "overlays" / f"{item.id}.png")
        with aside(files[-1]) as part:
            part.write_bytes(pictures.png(result.draw()))
    job.finish(item, files, rows=result.volumes(), applied=list(result.meta.applied))
    return f"{path}: {', '.join(map(_amount, filter(_there, result.volumes()))) or 'nothing found'}"


def _there(row: dict[str, Any]) -> bool:
    return bool(row["samples"])


def _amount(row: dict[str, Any]) -> str:
    """A class with how much of it there is."""
    if row["ml"] is not None:
        return f"{row['class']} {row['ml']:.1f} ml"
    return (
        f"{row['class']} {row['mm2']:.0f} mm2" if row["mm2"] is not None else f"{row['class']} {row['samples']} pixels"
    )


def tables(job: jobs.Jobs, items: Sequence[readers.Item]) -> None:
    """Over all finished items: volumes.csv (class, samples, mm3, ml) and applied.csv (what was done to each file)."""
    sizes, steps = io.StringIO(), io.StringIO()
    measured = csv.DictWriter(sizes, COLUMNS, lineterminator="\n")
    measured.writeheader()
    done = csv.writer(steps, lineterminator="\n")
    done.writerow(("item", "applied"))
    for id, note in job.notes(items):
        for row in note["rows"]:
            numbers = {k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()}
            measured.writerow({"item": id, **numbers})
        done.writerows((id, words) for words in note["applied"])
    write_text(job.out / "volumes.csv", sizes.getvalue())
    write_text(job.out / "applied.csv", steps.getvalue())
