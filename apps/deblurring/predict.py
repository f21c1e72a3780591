"""Prediction over files: the sharp photograph and the mask of its blur for each; a killed run is gone on with."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from apps.deblurring._strips import Kept
from apps.deblurring.options import TASK
from apps.deblurring.pipeline import Pipeline, members
from apps.deblurring.results import Deblurred
from core import bundle, jobs, pictures
from core.data import photos
from core.errors import FileError, SettingError
from core.files import aside, write_text

if TYPE_CHECKING:
    from core.data.photos import Photo

KINDS = {".jpg": ".jpg", ".jpeg": ".jpg", ".jpe": ".jpg", ".png": ".png", ".tif": ".tif", ".tiff": ".tif"}
_FREE = ("device", "batch", "overwrite")  # do not change what comes out


@dataclass(frozen=True)
class Choices:
    """What to write, and how to run.

    Attributes:
        format: ending of the pictures ("png", "jpg", "tif"); "" for the input's own, PNG where that is none of these.
        quality: of JPEG.
        masks: write the blur masks, too.
        overlays: draw before, after and mask side by side.
        tile: rows and columns at once; None for the bundle's.
        overlap: of tiles; None for the bundle's.
        device: as for `core.device.pick`.
        precision: of the network: 32, bf16 or 16.
        batch: tiles at once.
        overwrite: work again on what is there.
    """

    format: str = ""
    quality: int = 95
    masks: bool = True
    overlays: bool = False
    tile: tuple[int, int] | None = None
    overlap: float | None = None
    device: str = "auto"
    precision: str = "32"
    batch: int = 1
    overwrite: bool = False


@dataclass(frozen=True)
class Item:
    """A photograph and where its results go."""

    path: Path
    picture: Path
    mask: Path
    overlay: Path

    @property
    def id(self) -> str:
        return self.path.stem

    @property
    def paths(self) -> tuple[Path, ...]:
        return (self.path,)


def predict(folders: Sequence[Path], files: Sequence[Path], out: Path, choices: Choices, *, workers: int = 1) -> int:
    """Deblur files and folders into the folder `out`, or one file into the file `out`; returns the exit code.

    Raises:
        InputError: no file, a bundle that cannot be used, a result that would replace its input; with a single file
            also what is wrong with that.
    """
    bundles = [bundle.load(f, task=TASK) for given in folders for f in members(given)]
    found = photos.find(files)
    single = out.suffix.lower() in KINDS and not out.is_dir()
    if single and len(found) > 1:
        raise FileError(out, f"is one file, and there are {len(found)} photographs", "name a folder with --out")
    items = [_into_file(found[0], out)] if single else [_into_folder(path, out, choices.format) for path in found]
    for item in items:
        if item.picture.resolve() == item.path.resolve():
            raise FileError(item.path, "would be replaced by its own result", "name another folder with --out")
    (out.parent if single else out).mkdir(parents=True, exist_ok=True)
    told = {k: v for k, v in asdict(choices).items() if k not in _FREE}
    told["bundles"] = [b.report["sha256"][bundle.WEIGHTS] for b in bundles]
    notes = jobs.Jobs(out, jobs.key_of(told))
    if single:
        print(_setup(tuple(folders), None, choices, notes.key)(items[0]))
        return 0
    write_text(out / "settings.toml", bundle.settings_text(bundles[0].settings))
    setup = partial(_setup, tuple(folders), notes, choices, notes.key)
    code = jobs.run(items, setup, notes, overwrite=choices.overwrite, workers=workers, what="photographs")
    _table(out, notes, items)
    return code


def _into_folder(path: Path, out: Path, format: str) -> Item:
    ending = f".{format.lstrip('.')}" if format else KINDS.get(path.suffix.lower(), ".png")
    name = path.stem
    return Item(path, out / f"{name}{ending}", out / "masks" / f"{name}.png", out / "overlays" / f"{name}.png")


def _into_file(path: Path, out: Path) -> Item:
    return Item(path, out, out.with_name(f"{out.stem}.blur.png"), out.with_name(f"{out.stem}.overlay.png"))


def _setup(folders: tuple[Path, ...], notes: jobs.Jobs | None, choices: Choices, key: str) -> Callable[[Item], str]:
    """Load the networks once, in the process that uses them."""
    pipeline = Pipeline.load(*folders, device=choices.device, precision=choices.precision, batch=choices.batch)
    return partial(_one, pipeline, notes, choices, key)


def _one(pipeline: Pipeline, notes: jobs.Jobs | None, choices: Choices, key: str, item: Item) -> str:
    """Deblur one photograph and write its results, the note that it is done last; returns what to say."""

    def into(size: tuple[int, int], bands: int, dtype: np.dtype[Any], photo: Photo | None) -> Kept:
        assert photo is not None
        _check(item, photo)
        item.picture.parent.mkdir(parents=True, exist_ok=True)
        return Kept(item.picture, size, bands, dtype, key=key, write=partial(_write, item, choices))

    result = pipeline(item.path, tile=choices.tile, overlap=choices.overlap, into=into)
    files = [item.picture, *([item.mask] if choices.masks else []), *([item.overlay] if choices.overlays else [])]
    if notes is not None:
        notes.finish(item, files, blurred=round(result.blurred, 4), applied=list(result.meta.applied))
    return f"{item.picture}: {100 * result.blurred:.0f} % of it found blurred"


def _check(item: Item, photo: Photo) -> None:
    """Raises SettingError for what the result's format does not hold, before any work is done."""
    kind, ending = photo.pixels.dtype, item.picture.suffix.lower()
    if KINDS[ending] == ".jpg" and (kind != np.uint8 or photo.alpha is not None):
        what = "an alpha channel" if kind == np.uint8 else f"values of {kind}"
        raise SettingError(f"{item.path}: has {what}, which JPEG does not hold; write it with --format png or tif")
    if KINDS[ending] == ".png" and kind.kind == "f":
        raise SettingError(f"{item.path}: has values of {kind}, which PNG does not hold; write it with --format tif")


def _write(item: Item, choices: Choices, path: Path, result: Deblurred) -> None:
    """All results of one photograph; the picture goes to `path`, which gets its own name afterwards."""
    if choices.masks:
        result.save_mask(item.mask)
    if choices.overlays:
        with aside(item.overlay) as part:
            part.write_bytes(pictures.png(result.draw()))
    result.save(path, quality=choices.quality)


def _table(out: Path, notes: jobs.Jobs, items: Sequence[Item]) -> None:
    """Over all finished photographs: blur.csv (share found blurred) and applied.csv (what was done to each file)."""
    shares, steps = io.StringIO(), io.StringIO()
    blur, done = csv.writer(shares, lineterminator="\n"), csv.writer(steps, lineterminator="\n")
    blur.writerow(("item", "blurred"))
    done.writerow(("item", "applied"))
    for id, note in notes.notes(items):
        blur.writerow((id, note["blurred"]))
        done.writerows((id, words) for words in note["applied"])
    write_text(out / "blur.csv", shares.getvalue())
    write_text(out / "applied.csv", steps.getvalue())
