"""Prediction over files: a coloured picture, its hints and a drawing for each, gone on with where a run was killed."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from apps.colorization import _items, hints
from apps.colorization._items import Item
from apps.colorization.options import TASK
from apps.colorization.pipeline import Pipeline
from apps.colorization.results import OPAQUE, Coloured
from apps.colorization.session import Session
from core import bundle, jobs, pictures
from core.errors import FileError, SettingError
from core.files import aside, write_text

ENDINGS = {"JPEG": ".jpg", "PNG": ".png", "TIFF": ".tif"}  # of results, by the photograph's format; else .png
FILES = (".png", ".jpg", ".jpeg", ".jpe", ".tif", ".tiff")  # of --out, where it is a file


@dataclass(frozen=True)
class Choices:
    """What to take and write, and how to run.

    Attributes:
        hints: file or folder of them.
        auto: so many hints are taken from a picture in colour.
        reference: that picture; without it each photograph itself.
        seed: of their places.
        format: ending of the results ("png", "jpg", "tif"); "" for the photograph's own.
        quality: of JPEG.
        drawings: draw input, hints and result of each.
        device: as for `core.device.pick`.
        precision: of the network: 32, bf16 or 16.
        overwrite: work again on what is there.
    """

    hints: Path | None = None
    auto: int = 0
    reference: Path | None = None
    seed: int = 0
    format: str = ""
    quality: int = 95
    drawings: bool = True
    device: str = "auto"
    precision: str = "32"
    overwrite: bool = False


@dataclass(frozen=True)
class Jobs(jobs.Jobs):
    """A photograph is also done again when its lines in a common list of hints have changed."""

    def done(self, item: jobs.Item) -> bool:
        """As core's, and with the same hints."""
        assert isinstance(item, Item)
        return super().done(item) and (self.note(item) or {}).get("hints") == item.key


def predict(folders: Sequence[Path], files: Sequence[Path], out: Path, choices: Choices, *, workers: int = 1) -> int:
    """Colour photographs into the file or folder `out`; returns the exit code.

    Raises:
        InputError: no file, a bundle that cannot be used; with a single file also what is wrong with that.
    """
    _consistent(choices)
    bundles = [bundle.load(f, task=TASK) for given in folders for f in bundle.members(given)]
    _items.apart(out, files)
    found, said = _items.items(files, choices.hints)
    for line in said:
        print(f"note: {line}")
    if out.suffix.lower() in FILES and not out.is_dir():
        return _single(folders, found, out, choices)
    out.mkdir(parents=True, exist_ok=True)
    told = {**asdict(choices), "bundles": [b.report["sha256"][bundle.WEIGHTS] for b in bundles]}
    for free in ("device", "overwrite", "hints"):
        told.pop(free)
    if choices.reference is not None:
        told["reference"] = jobs.stamp([choices.reference])
    job = Jobs(out, jobs.key_of(told))
    write_text(out / "settings.toml", bundle.settings_text(bundles[0].settings))
    setup = partial(_setup, tuple(folders), choices, job)
    code = jobs.run(found, setup, job, overwrite=choices.overwrite, workers=workers, what="photographs")
    tables(job, found)
    return code


def _consistent(choices: Choices) -> None:
    """Raises SettingError for choices that exclude or need one another."""
    if choices.auto < 0:
        raise SettingError(f"--auto is a number of hints, got {choices.auto}")
    if choices.auto and choices.hints is not None:
        raise SettingError("--auto takes hints from a picture, --hints from a file; give one of the two")
    if choices.reference is not None and not choices.auto:
        raise SettingError("--reference is the picture that --auto takes hints from; say how many with --auto N")
    if not 1 <= choices.quality <= 95:
        raise SettingError(f"--quality is 1 to 95, got {choices.quality}")


def _single(folders: Sequence[Path], found: Sequence[Item], out: Path, choices: Choices) -> int:
    """One photograph into the file `out`."""
    if len(found) > 1:
        raise SettingError(f"--out {out} is one file, and there are {len(found)} photographs; name a folder")
    if choices.format:
        raise SettingError(f"--format is for a folder; the name {out.name} says the format already")
    if out.exists() and out.resolve() == found[0].path.resolve():
        raise FileError(out, "is the photograph itself", "name another file with --out")
    pipeline, reference = _ready(folders, choices)
    result = _coloured(pipeline, reference, choices, found[0])
    files = _written(result, out, out.with_name(f"{out.stem}.hints.csv"), choices)
    print(_line(result, files))
    return 0


def _ready(folders: Sequence[Path], choices: Choices) -> tuple[Pipeline, Session | None]:
    pipeline = Pipeline.load(*folders, device=choices.device, precision=choices.precision)
    return pipeline, None if choices.reference is None else pipeline.open(choices.reference)


def _setup(folders: tuple[Path, ...], choices: Choices, job: Jobs) -> Callable[[Item], str]:
    """Load the networks once, in the process that uses them."""
    pipeline, reference = _ready(folders, choices)
    return partial(_one, pipeline, reference, choices, job)


def _one(pipeline: Pipeline, reference: Session | None, choices: Choices, job: Jobs, item: Item) -> str:
    """Colour one photograph and write its results, the note that it is done last; returns what to say."""
    result = _coloured(pipeline, reference, choices, item)
    ending = "." + choices.format if choices.format else ENDINGS.get(result.photo.format, ".png")
    path = job.out / f"{item.id}{ending}"
    if path.exists() and path.resolve() == item.path.resolve():
        raise FileError(path, "is the photograph itself", "name another folder with --out")
    files = _written(result, path, job.out / "hints" / f"{item.id}.csv", choices)
    rows = [{hints.FILE: item.path.name, **row} for row in result.as_dict()["hints"]]
    job.finish(item, files, hints=item.key, rows=rows, applied=list(result.meta.applied))
    return _line(result, files)


def _coloured(pipeline: Pipeline, reference: Session | None, choices: Choices, item: Item) -> Coloured:
    session = pipeline.open(item.path)
    if not choices.auto:
        return session.coloured(item.hints(session.photo))
    return session.coloured(session.sampled(choices.auto, choices.seed, reference=reference))


def _written(result: Coloured, path: Path, listed: Path, choices: Choices) -> list[Path]:
    result.save(path, quality=choices.quality)
    files = [path]
    if result.reached:
        result.save_hints(listed)
        files.append(listed)
    if choices.drawings:
        files.append(path.parent / "drawings" / f"{path.stem}.png")
        with aside(files[-1]) as part:
            part.write_bytes(pictures.png(result.draw()))
    return files


def _line(result: Coloured, files: Sequence[Path]) -> str:
    opaque = result.photo.alpha is not None and files[0].suffix.lower() in OPAQUE
    lost = "; transparency left out, JPEG has no place for it" if opaque else ""
    return f"{files[0]}: {result.told()}{lost}"


def tables(job: Jobs, found: Sequence[Item]) -> None:
    """Over all finished photographs: hints.csv (asked and got colours, Delta E) and applied.csv (what was done)."""
    names = {i.id: i.path.name for i in found}
    steps = io.StringIO()
    done = csv.writer(steps, lineterminator="\n")
    done.writerow((hints.FILE, "applied"))
    text = io.StringIO()
    table: csv.DictWriter[str] | None = None
    for id, note in job.notes(found):
        for row in note["rows"]:
            if table is None:
                table = csv.DictWriter(text, list(row), lineterminator="\n")
                table.writeheader()
            table.writerow(row)
        done.writerows((names[id], words) for words in note["applied"])
    write_text(job.out / "hints.csv", text.getvalue() or ",".join((hints.FILE, *hints.COLUMNS)) + "\n")
    write_text(job.out / "applied.csv", steps.getvalue())
