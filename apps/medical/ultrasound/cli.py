"""The commands `glocal medical ultrasound ...`; nothing heavy is imported before one of them runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from apps.medical.ultrasound.options import RECIPES, Options
from core import commands, flags
from core.commands import Device, Many, Precision
from core.errors import InputError, SettingError, UnknownNameError
from core.training.recipe import Recipe

_OptionFlags = flags.optional(Options, without=["settings"])
_RecipeFlags = flags.optional(Recipe, "recipe")
_NO_OPTIONS, _NO_CHANGES = _OptionFlags(), _RecipeFlags()

Part = Literal["test", "val", "train", "all"]
Pool = Literal["mean", "median", "strongest"]

app = App(
    name="ultrasound",
    help="Classes of ultrasound stills and cine loops. Research use, not a medical device.",
    default_parameter=Parameter(negative=()),
)


@app.command
def inspect(*files: Path) -> int:
    """Show what files hold: size, frames, channels, type, spacing, and text and calipers that were burned in.

    Nothing that names a person is shown.

    Args:
        files: PNG, JPEG, BMP, TIFF or DICOM, stills or cine loops.
    """
    from apps.medical.ultrasound import inspecting

    return commands.inspect(files, inspecting.inspect)


@app.command
def check(data: Path, /, *, groups: Path | None = None) -> int:
    """Open every picture of a data set and list what is wrong (exit code 1 if anything).

    Unreadable files, pictures that look alike, pictures under two labels, patients in two parts, one class only, and
    text and calipers that are more frequent in one class.

    Args:
        data: class folders, US-Liver, BUSI, BUS-BRA, or a CSV of images and labels.
        groups: CSV with the columns image and patient, which a split must not cut.
    """
    from apps.medical.ultrasound import check as checks

    return commands.checked(data, checks.check(data, groups=groups))


@app.command
def train(
    data: Path,
    /,
    *,
    out: Path,
    recipe: Annotated[str, Parameter(name="--recipe")] = "short",
    init: Path | None = None,
    groups: Path | None = None,
    config: Path | None = None,
    set: Annotated[list[str] | None, Many] = None,
    device: Device = "auto",
    devices: int = 1,
    nodes: int = 1,
    options: Annotated[_OptionFlags, Parameter(name="*")] = _NO_OPTIONS,  # type: ignore[valid-type]
    changes: Annotated[_RecipeFlags, Parameter(name="*")] = _NO_CHANGES,  # type: ignore[valid-type]
) -> None:
    """Train on labelled pictures; the same command goes on with a run that was stopped.

    A threshold is chosen on the validation part and kept in the bundle.

    Args:
        data: class folders, US-Liver, BUSI, BUS-BRA, or a CSV of images and labels.
        out: folder of the bundle, its logs and checkpoints.
        recipe: short, or published (the paper's: 10 epochs, one cycle, three learning rates).
        init: weights to begin with: the authors' HSQformer, a bundle, published weights of Swin-S or ConvNeXt-S, or a
            folder with a file of each.
        groups: CSV with the columns image and patient, which the validation split must not cut.
        config: TOML with the tables [options] and [recipe]; flags win over it.
        set: further settings of the network, as `glocal models info NETWORK` lists them: NAME=VALUE.
        device: where to train.
        devices: of that kind on each machine.
        nodes: machines.
        options: what is trained.
        changes: of the recipe.
    """
    if recipe not in RECIPES:
        raise UnknownNameError("recipe", recipe, RECIPES)
    tables = flags.table(config, "options", "recipe")
    chosen = flags.settle(Options(), tables["options"], options)
    chosen = replace(chosen, settings={**chosen.settings, **flags.pairs(set or [])})
    how = flags.settle(RECIPES[recipe], tables["recipe"], changes)
    from apps.medical.ultrasound import training

    training.run(data, out, chosen, how, init=init, groups=groups, device=device, devices=devices, nodes=nodes)


@app.command(name="import")
def import_(
    weights: Path,
    /,
    *,
    out: Path,
    network: str = "hsqformer",
    classes: Annotated[list[str] | None, Many] = None,
    positive: str = "",
    set: Annotated[list[str] | None, Many] = None,
) -> None:
    """Make a bundle of the authors' weights; those of its backbones alone make one that a training can begin with.

    Args:
        weights: the file; read without running anything in it.
        out: folder of the bundle.
        network: hsqformer, or backbone.
        classes: names in the order of the network's answers; of two benign and malignant by default.
        positive: of two classes the one that is looked for; by default malignant or the like.
        set: further settings of the network, where it is not the published one: NAME=VALUE.
    """
    from apps.medical.ultrasound import training

    training.import_(weights, out, network, classes, positive, flags.pairs(set or []))


@app.command
def evaluate(
    *bundles: Path,
    data: Path,
    part: Part = "test",
    pool: Pool = "mean",
    out: Path | None = None,
    groups: Path | None = None,
    device: Device = "auto",
    precision: Precision = "32",
    batch: int = 8,
) -> int:
    """Score a bundle (or the mean of several) on labelled pictures, with intervals over patients.

    Args:
        bundles: that `train` or `import` wrote.
        data: class folders, US-Liver, BUSI, BUS-BRA, or a CSV of images and labels.
        part: as the data set's layout states it, or all of it.
        pool: how the frames of a loop become one answer.
        out: folder for report.json, cases.csv, and the calibration as table and plot.
        groups: CSV with the columns image and patient, which intervals are drawn over.
        device: where to run.
        precision: of the network.
        batch: frames at once.
    """
    from apps.medical.ultrasound import data as sets
    from apps.medical.ultrasound import evaluate as scores
    from apps.medical.ultrasound.pipeline import Pipeline
    from core import batch as batches

    if not bundles:
        raise InputError("name a bundle to evaluate")
    pipeline = Pipeline.load(*bundles, device=device, precision=precision, batch=batch)
    found = sets.find(data, groups=groups, classes=pipeline.names)
    pictures = sets.chosen(found, part)
    for note in found.notes:
        print(f"note: {note}")
    with batches.Log(len(pictures), out, what="pictures") as log:
        scored = scores.score(pipeline, found, pictures, pool=pool, log=log)
    if scored.answers:
        print("\n" + scores.table(scored.report))
        if out is not None:
            scores.save(scored, out, {"data": found.folder.name, "part": part, "pool": pool})
    return log.code


@app.command
def compare(
    a: Path,
    b: Path,
    /,
    *,
    data: Path,
    part: Part = "test",
    pool: Pool = "mean",
    groups: Path | None = None,
    device: Device = "auto",
    precision: Precision = "32",
) -> int:
    """Score two bundles on the same pictures and say by how much they differ, with intervals over patients.

    Args:
        a: a bundle.
        b: another.
        data: class folders, US-Liver, BUSI, BUS-BRA, or a CSV of images and labels.
        part: as the data set's layout states it, or all of it.
        pool: how the frames of a loop become one answer.
        groups: CSV with the columns image and patient, which intervals are drawn over.
        device: where to run.
        precision: of the networks.
    """
    from apps.medical.ultrasound import data as sets
    from apps.medical.ultrasound import evaluate as scores
    from apps.medical.ultrasound.pipeline import Pipeline
    from core import batch as batches

    both, code = [], 0
    for folder in (a, b):
        pipeline = Pipeline.load(folder, device=device, precision=precision)
        found = sets.find(data, groups=groups, classes=pipeline.names)
        pictures = sets.chosen(found, part)
        print(folder)
        with batches.Log(len(pictures), None, what="pictures") as log:
            both.append(scores.score(pipeline, found, pictures, pool=pool, log=log))
        code |= log.code
    if all(scored.answers for scored in both):
        print("\n" + scores.compared(scores.paired(*both)))
    return code


@app.command
def predict(
    *paths: Path,
    out: Path,
    pool: Pool = "mean",
    mask: Annotated[bool | None, Parameter(negative="--no-mask")] = None,
    overlays: Annotated[bool, Parameter(negative="--no-overlays")] = True,
    keep_identifiers: bool = False,
    workers: int = 1,
    batch: int = 8,
    overwrite: bool = False,
    device: Device = "auto",
    precision: Precision = "32",
) -> int:
    """Judge stills and cine loops: probabilities, what the network looked at, and burned-in marks of each.

    The same command goes on where a run was stopped. With several files the good ones are finished, the bad ones listed
    in failures.csv, and the exit code is 1.

    Args:
        paths: one or several bundles (their mean is taken), then files and folders.
        out: folder for predictions.csv, frames.csv (of loops), marks.csv (burned-in text, calipers), overlays/, and
            applied.csv with what was done to each file.
        pool: how the frames of a loop become one answer: mean, median, or strongest (the frame that speaks most for
            the positive class).
        mask: show the network the pictures without their burned-in marks; by default as it was trained.
        overlays: draw a picture for each item.
        keep_identifiers: leave burned-in text on these drawings.
        workers: processes.
        batch: frames at once.
        overwrite: work again on what is there.
        device: where to run.
        precision: of the network.
    """
    from core import bundle

    bundles, files = bundle.apart(paths)
    if workers < 1 or batch < 1:
        raise SettingError(f"--workers and --batch are at least 1, got {workers} and {batch}")
    from apps.medical.ultrasound import predict as predictions

    choices = predictions.Choices(pool, mask, overlays, keep_identifiers, device, precision, batch, overwrite)
    return predictions.predict(bundles, files, out, choices, workers=workers)


@app.command
def export(bundle: Path, file: Path, /) -> None:
    """Write a bundle's network as an ONNX file of fixed size, with a JSON file that says what goes in and comes out.

    Args:
        bundle: that `train` or `import` wrote.
        file: where to write, ends in .onnx.
    """
    from apps.medical.ultrasound import training

    training.export(bundle, file)


@app.command
def serve(
    *bundles: Path,
    host: str = "127.0.0.1",
    port: int = 7860,
    open_browser: bool = False,
    device: Device = "auto",
    precision: Precision = "32",
) -> None:
    """Open a page: load a picture or cine loop, see its probability and what was looked at, save it; until Ctrl-C.

    Args:
        bundles: one or several (their mean is taken).
        host: address to listen at; by default this machine alone can see the page.
        port: to listen at, 0 for any that is free.
        open_browser: show the page in the browser of this machine.
        device: where to run.
        precision: of the network.
    """
    if not bundles:
        raise InputError("name a bundle to serve")
    from apps.medical.ultrasound import serve as pages

    pages.serve(bundles, host=host, port=port, device=device, precision=precision, open_browser=open_browser)


@app.command
def demo(*, out: Path = Path("demo"), full: bool = False) -> None:
    """Train on a sample set for a short time, and write a page with pictures, curves and numbers.

    Args:
        out: folder of the page.
        full: train for four minutes instead of one.
    """
    from apps.medical.ultrasound import demo as demonstration

    demonstration.run(out, full=full)
