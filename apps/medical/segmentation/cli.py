"""The commands `glocal medical segment ...`; nothing heavy is imported before one of them runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from apps.medical.segmentation.options import RECIPES, Options
from core import commands, flags
from core.commands import Device, Many, Precision
from core.errors import InputError, SettingError, UnknownNameError
from core.training.recipe import Recipe

_OptionFlags = flags.optional(Options, without=["settings"])
_RecipeFlags = flags.optional(Recipe, "recipe")
_NO_OPTIONS, _NO_CHANGES = _OptionFlags(), _RecipeFlags()

app = App(
    name="segment",
    help="Segmentation of scans and pictures. Research use, not a medical device.",
    default_parameter=Parameter(negative=()),
)


@app.command
def inspect(*files: Path) -> int:
    """Show what files hold: size, channels, type, spacing, orientation, range; nothing that names a person.

    Args:
        files: NIfTI, DICOM (or the folder of a series), PNG, JPEG, TIFF.
    """
    from apps.medical import readers

    return commands.inspect(files, readers.inspect)


@app.command
def check(data: Path, /, *, groups: Path | None = None) -> int:
    """Open every image and label of a data set and list what is wrong (exit code 1 if anything).

    Args:
        data: nnU-Net's raw layout, or images/ and masks/.
        groups: CSV with the columns case and group (patient), which a split must not cut.
    """
    from apps.medical.segmentation import check as checks

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
    """Train on a folder; the same command goes on with a run that was stopped.

    Args:
        data: nnU-Net's raw layout, or images/ and masks/.
        out: folder of the bundle, its logs and checkpoints.
        recipe: short, or published (the paper's: 1000 epochs of 250 steps).
        init: weights to begin with: ImageNet's for the encoder, a published network, or a bundle.
        groups: CSV with the columns case and group (patient), which the validation split must not cut.
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
    from apps.medical.segmentation import training

    training.run(data, out, chosen, how, init=init, groups=groups, device=device, devices=devices, nodes=nodes)


@app.command(name="import")
def import_(
    weights: Path,
    /,
    *,
    out: Path,
    network: str = "swin_umamba",
    classes: Annotated[list[str] | None, Many] = None,
    channels: Annotated[list[str] | None, Many] = None,
    spacing: tuple[float, float] | None = None,
    plane: Literal["", "axial", "coronal", "sagittal"] = "",
    patch: tuple[int, int] = (512, 512),
    set: Annotated[list[str] | None, Many] = None,
) -> None:
    """Make a bundle of the authors' weights (or any of nnU-Net's form with `network_weights`).

    Weights of an encoder alone (VMamba's ImageNet release) make a bundle that a training can begin with.

    Args:
        weights: the file; read without running anything in it.
        out: folder of the bundle.
        network: swin_umamba, swin_umamba_d or dynunet.
        classes: names in the order of their values, background first; numbered where not given.
        channels: names in order; the first decides the normalisation (CT by stored numbers is not known here).
        spacing: millimetres along rows and columns that it was trained at.
        plane: of its slices.
        patch: rows and columns that it was trained on.
        set: further settings of the network, where it is not the published size: NAME=VALUE.
    """
    from apps.medical.segmentation import training

    training.import_(weights, out, network, classes, channels, spacing, plane, patch, flags.pairs(set or []))


@app.command
def evaluate(
    *bundles: Path,
    data: Path,
    part: Literal["test", "train"] = "test",
    protocol: str = "house",
    out: Path | None = None,
    groups: Path | None = None,
    device: Device = "auto",
    precision: Precision = "32",
) -> int:
    """Score a bundle (or the mean of several) on labelled cases.

    Args:
        bundles: that `train` or `import` wrote.
        data: nnU-Net's raw layout, or images/ and masks/.
        part: cases of imagesTs/ (test/), or those that training was done on.
        protocol: house, abdomen_mr, endoscopy or microscopy (the last three as published for Swin-UMamba).
        out: folder for report.json and cases.csv.
        groups: CSV with the columns case and group, which intervals are drawn over.
        device: where to run.
        precision: of the network.
    """
    from apps.medical.segmentation import data as sets
    from apps.medical.segmentation import evaluate as scores
    from apps.medical.segmentation.pipeline import Pipeline
    from core import batch

    if not bundles:
        raise InputError("name a bundle to evaluate")
    found = sets.find(data, groups=groups)
    cases = sets.chosen(found, part)
    pipeline = Pipeline.load(*bundles, device=device, precision=precision)
    with batch.Log(len(cases), out, what="cases") as log:
        scored = scores.score(pipeline, found, cases, by=protocol, log=log)
    if scored.cases:
        print("\n" + scores.table(scored.report))
        if out is not None:
            scores.save(scored, out, {"data": found.folder.name, "part": part})
    return log.code


@app.command
def compare(
    a: Path,
    b: Path,
    /,
    *,
    data: Path,
    part: Literal["test", "train"] = "test",
    protocol: str = "house",
    groups: Path | None = None,
    device: Device = "auto",
    precision: Precision = "32",
) -> int:
    """Score two bundles on the same cases and say by how much they differ.

    Args:
        a: a bundle.
        b: another.
        data: nnU-Net's raw layout, or images/ and masks/.
        part: cases of imagesTs/ (test/), or those that training was done on.
        protocol: house, abdomen_mr, endoscopy or microscopy.
        groups: CSV with the columns case and group, which intervals are drawn over.
        device: where to run.
        precision: of the networks.
    """
    from apps.medical.segmentation import data as sets
    from apps.medical.segmentation import evaluate as scores
    from apps.medical.segmentation import metrics
    from apps.medical.segmentation.pipeline import Pipeline
    from core import batch

    found = sets.find(data, groups=groups)
    cases = sets.chosen(found, part)
    both, code = [], 0
    for folder in (a, b):
        pipeline = Pipeline.load(folder, device=device, precision=precision)
        print(folder)
        with batch.Log(len(cases), None, what="cases") as log:
            both.append(scores.score(pipeline, found, cases, by=protocol, log=log))
        code |= log.code
    print("\n" + scores.compared(metrics.paired(both[0].cases, both[1].cases)))
    return code


@app.command
def predict(
    *paths: Path,
    out: Path,
    format: Literal["", "nii.gz", "nii", "png", "tif", "dcm"] = "",
    probabilities: bool = False,
    overlays: Annotated[bool, Parameter(negative="--no-overlays")] = True,
    tile: tuple[int, int] | None = None,
    overlap: float | None = None,
    spacing: Annotated[tuple[float, ...] | None, Many] = None,
    keep_identifiers: bool = False,
    workers: int = 1,
    batch: int = 4,
    overwrite: bool = False,
    device: Device = "auto",
    precision: Precision = "32",
) -> int:
    """Segment scans: a mask on exactly the input's grid, an overlay and volumes for each.

    The same command goes on where a run was stopped. With several files the good ones are finished, the bad ones listed
    in failures.csv, and the exit code is 1.

    Args:
        paths: one or several bundles (their mean is taken), then files and folders.
        out: folder for masks, overlays/, volumes.csv, and applied.csv with what was done to each file.
        format: of the masks; by default the input's own (DICOM-SEG for DICOM).
        probabilities: write the classes' probabilities, too.
        overlays: draw a picture for each item.
        tile: rows and columns at the network's spacing, instead of the bundle's.
        overlap: of tiles as part of one, instead of the bundle's.
        spacing: millimetres along slices, rows and columns, where files do not say.
        keep_identifiers: leave patient name, id and dates in DICOM results.
        workers: processes.
        batch: tiles at once.
        overwrite: work again on what is there.
        device: where to run.
        precision: of the network.
    """
    from core import bundle

    bundles, files = bundle.apart(paths)
    if workers < 1 or batch < 1:
        raise SettingError(f"--workers and --batch are at least 1, got {workers} and {batch}")
    from apps.medical.segmentation import predict as predictions

    choices = predictions.Choices(
        format, probabilities, overlays, tile, overlap, spacing, keep_identifiers, device, precision, batch, overwrite
    )
    return predictions.predict(bundles, files, out, choices, workers=workers)


@app.command
def export(bundle: Path, file: Path, /) -> None:
    """Write a bundle's network as an ONNX file of fixed size, with a JSON file that says what goes in and comes out.

    Args:
        bundle: that `train` or `import` wrote.
        file: where to write, ends in .onnx.
    """
    from apps.medical.segmentation import training

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
    """Open a page: load a scan or picture, see its mask slice by slice, save the mask; until Ctrl-C.

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
    from apps.medical.segmentation import serve as pages

    pages.serve(bundles, host=host, port=port, device=device, precision=precision, open_browser=open_browser)


@app.command
def demo(*, out: Path = Path("demo"), full: bool = False) -> None:
    """Train on the sample sets for a short time, and write a page with pictures, curves and numbers.

    Args:
        out: folder of the page.
        full: train for four minutes instead of one.
    """
    from apps.medical.segmentation import demo as demonstration

    demonstration.run(out, full=full)
