"""The commands `glocal medical pathology classify ...`; nothing heavy is imported before one of them runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from apps.medical.pathology_classify.options import RECIPES, Options
from core import commands, flags
from core.commands import Device, Many, Precision
from core.errors import InputError, SettingError, UnknownNameError
from core.training.recipe import Recipe

_OptionFlags = flags.optional(Options, without=["settings"])
_RecipeFlags = flags.optional(Recipe, "recipe")
_NO_OPTIONS, _NO_CHANGES = _OptionFlags(), _RecipeFlags()
Reader = Literal["auto", "tifffile", "openslide"]
Part = Literal["test", "val", "train", "all"]

app = App(
    name="classify",
    help="Classes of histology tiles and whole slides. Research use, not a medical device.",
    default_parameter=Parameter(negative=()),
)


@app.command
def inspect(*files: Path, um_per_px: float | None = None, reader: Reader = "auto") -> int:
    """Show what files hold: size, levels, micrometres to a pixel, compression; nothing that names a person.

    Args:
        files: slides (.svs, pyramids as .tif, what OpenSlide reads) and pictures of tiles.
        um_per_px: micrometres to a pixel of a slide's finest level, where its file does not say.
        reader: of slides.
    """
    from apps.medical import readers, slides

    def read(path: Path) -> dict[str, object]:
        if slides.recognised(path):
            return slides.inspect(path, um_per_px=um_per_px, reader=reader)
        return readers.inspect(path)

    return commands.inspect(files, read)


@app.command
def check(data: Path, /, *, groups: Path | None = None, magnification: int | None = None) -> int:
    """Open every tile of a data set and list what is wrong (exit code 1 if anything).

    Args:
        data: class folders, BreakHis's tree, or a CSV with the columns image and label.
        groups: CSV with the columns image and group (patient or slide), which a split must not cut.
        magnification: of BreakHis's pictures: 40, 100, 200 or 400; all where not given.
    """
    from apps.medical.pathology_classify import check as checks

    return commands.checked(data, checks.check(data, groups=groups, magnification=magnification))


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
    """Train on tiles; the same command goes on with a run that was stopped.

    Args:
        data: class folders, BreakHis's tree, or a CSV with the columns image and label.
        out: folder of the bundle, its logs and checkpoints.
        recipe: short, or published (the paper's).
        init: weights to begin with: of the ResNet, a published network, or a bundle.
        groups: CSV with the columns image and group (patient or slide), which the validation split must not cut.
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
    from apps.medical.pathology_classify import training

    training.run(data, out, chosen, how, init=init, groups=groups, device=device, devices=devices, nodes=nodes)


@app.command(name="import")
def import_(
    weights: Path,
    /,
    *,
    out: Path,
    network: str = "duoformer",
    classes: Annotated[list[str] | None, Many] = None,
    positive: str = "",
    set: Annotated[list[str] | None, Many] = None,
) -> None:
    """Make a bundle of the authors' weights.

    Args:
        weights: the file; read without running anything in it.
        out: folder of the bundle.
        network: as `glocal models list 'medical/*'` names it.
        classes: names in the order of the network's outputs; numbered where not given.
        positive: of two classes the one that is looked for.
        set: further settings of the network that the file leaves open: NAME=VALUE.
    """
    from apps.medical.pathology_classify import training

    training.import_(weights, out, network, classes, positive, flags.pairs(set or []))


@app.command
def evaluate(
    *bundles: Path,
    data: Path,
    part: Part = "test",
    out: Path | None = None,
    groups: Path | None = None,
    magnification: int | None = None,
    device: Device = "auto",
    precision: Precision = "32",
) -> int:
    """Score a bundle (or the mean of several) on labelled tiles.

    Args:
        bundles: that `train` or `import` wrote.
        data: class folders, BreakHis's tree, or a CSV with the columns image and label.
        part: of the data set, where it names parts.
        out: folder for report.json, the table of answers and the calibration plot.
        groups: CSV with the columns image and group, which intervals are drawn over.
        magnification: of BreakHis's pictures: 40, 100, 200 or 400; all where not given.
        device: where to run.
        precision: of the network.
    """
    from apps.medical.pathology_classify import data as sets
    from apps.medical.pathology_classify import evaluate as scores
    from apps.medical.pathology_classify.pipeline import Pipeline
    from core import batch

    if not bundles:
        raise InputError("name a bundle to evaluate")
    pipeline = Pipeline.load(*bundles, device=device, precision=precision)
    found = sets.find(data, groups=groups, classes=pipeline.classes, magnification=magnification)
    chosen = sets.chosen(found, part)
    with batch.Log(len(chosen), out, what="tiles") as log:
        scored = scores.score(pipeline, found, chosen, log=log)
    if scored.answers:
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
    part: Part = "test",
    groups: Path | None = None,
    magnification: int | None = None,
    device: Device = "auto",
    precision: Precision = "32",
) -> int:
    """Score two bundles on the same tiles and say by how much they differ.

    Args:
        a: a bundle.
        b: another.
        data: class folders, BreakHis's tree, or a CSV with the columns image and label.
        part: of the data set, where it names parts.
        groups: CSV with the columns image and group, which intervals are drawn over.
        magnification: of BreakHis's pictures: 40, 100, 200 or 400; all where not given.
        device: where to run.
        precision: of the networks.
    """
    from apps.medical.pathology_classify import data as sets
    from apps.medical.pathology_classify import evaluate as scores
    from apps.medical.pathology_classify.pipeline import Pipeline
    from core import batch

    pipelines = [Pipeline.load(folder, device=device, precision=precision) for folder in (a, b)]
    classes = pipelines[0].classes
    found = sets.find(data, groups=groups, classes=classes, magnification=magnification)
    chosen = sets.chosen(found, part)
    both, code = [], 0
    for folder, pipeline in zip((a, b), pipelines, strict=True):
        print(folder)
        with batch.Log(len(chosen), None, what="tiles") as log:
            both.append(scores.score(pipeline, found, chosen, log=log))
        code |= log.code
    print("\n" + scores.compared(both[0], both[1]))
    return code


@app.command
def predict(
    *paths: Path,
    out: Path,
    um_per_px: float | None = None,
    um: float | None = None,
    overlap: float = 0.0,
    tissue: float = 0.25,
    pool: Literal["mean", "top", "vote"] = "mean",
    stain: Literal["", "macenko", "none"] = "",
    reader: Reader = "auto",
    overlays: Annotated[bool, Parameter(negative="--no-overlays")] = True,
    each: bool = False,
    explain: bool = False,
    workers: int = 1,
    batch: int = 4,
    overwrite: bool = False,
    device: Device = "auto",
    precision: Precision = "32",
) -> int:
    """Classify tiles, pictures and whole slides: predictions.csv, and for each slide what decided its label.

    Of a slide: ID.heatmap.ome.tif (a pyramid with a channel for each class), ID.geojson (for QuPath), ID.tiles.csv (all
    tiles, the deciding ones first), overlays/ID.png, strips/ID.png. The same command goes on where a run was stopped,
    inside a slide, too. With several files the good ones are finished, the bad ones listed in failures.csv, and the
    exit code is 1.

    Args:
        paths: one or several bundles (their mean is taken), then files and folders.
        out: folder for the results.
        um_per_px: micrometres to a pixel of the files (of a slide's finest level), where they do not say.
        um: micrometres to a pixel that the network works at, where its bundle does not say.
        overlap: part of a tile that it shares with the next: 0, 0.5 or 0.75 on slides.
        tissue: part of a slide's tile that must show tissue; 0 for every tile.
        pool: how a slide's label comes from its tiles: mean of all, mean of each class's highest tenth, or vote.
        stain: normalise stains, or not, in place of what the bundle was trained with.
        reader: of slides.
        overlays: draw a picture of each slide and of its deciding tiles.
        each: draw a picture of each tile, too.
        explain: likewise, with the parts that its label needs (49 further answers of the network for each).
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
    from apps.medical.pathology_classify import predict as predictions
    from apps.medical.pathology_classify.pipeline import Look

    look = Look(um_per_px, um, overlap, tissue, pool, stain, explain, reader)
    choices = predictions.Choices(look, overlays, each or explain, device, precision, batch, overwrite)
    return predictions.predict(bundles, files, out, choices, workers=workers)


@app.command
def export(bundle: Path, file: Path, /) -> None:
    """Write a bundle's network as an ONNX file of fixed size, with a JSON file that says what goes in and comes out.

    Args:
        bundle: that `train` or `import` wrote.
        file: where to write, ends in .onnx.
    """
    from apps.medical.pathology_classify import training

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
    """Open a page: load a tile or a small slide, see its classes and where they are, save map and table; until Ctrl-C.

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
    from apps.medical.pathology_classify import serve as pages

    pages.serve(bundles, host=host, port=port, device=device, precision=precision, open_browser=open_browser)


@app.command
def demo(*, out: Path = Path("demo"), full: bool = False) -> None:
    """Train on the sample set for a short time, and write a page with pictures, curves and numbers.

    Args:
        out: folder of the page.
        full: train for four minutes instead of one.
    """
    from apps.medical.pathology_classify import demo as demonstration

    demonstration.run(out, full=full)
