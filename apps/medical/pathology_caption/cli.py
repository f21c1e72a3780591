"""The commands `glocal medical pathology caption ...`; nothing heavy is imported before one of them runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from apps.medical.pathology_caption.options import RECIPES, Options
from core import commands, flags
from core.commands import Device, Many, Precision
from core.errors import InputError, SettingError, UnknownNameError
from core.training.recipe import Recipe

_OptionFlags = flags.optional(Options, without=["settings"])
_RecipeFlags = flags.optional(Recipe, "recipe")
_NO_OPTIONS, _NO_CHANGES = _OptionFlags(), _RecipeFlags()

Part = Literal["test", "val", "train", "all"]

app = App(
    name="caption",
    help="Captions and classes of slides from their patches. Research use, not a medical device.",
    default_parameter=Parameter(negative=()),
)


@app.command
def inspect(*files: Path) -> int:
    """Show what patches, or folders of patches, hold: number, size, type.

    Args:
        files: PNG, JPEG, BMP, TIFF, or folders of them.
    """
    from apps.medical.pathology_caption import inspecting

    return commands.inspect(files, inspecting.inspect)


@app.command
def check(data: Path, /, *, groups: Path | None = None) -> int:
    """Open every patch of a data set and list what is wrong (exit code 1 if anything).

    Unreadable patches, patches that lie in two bags, patients in two parts, one class only, captions that repeat.

    Args:
        data: PatchGastricADC22, BreakHis's tree, a folder for each bag, or a CSV of images and bags.
        groups: CSV with the columns case (bag) and patient, which a split must not cut.
    """
    from apps.medical.pathology_caption import check as checks

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
    """Train on bags with captions or classes; the same command goes on with a run that was stopped.

    Args:
        data: PatchGastricADC22, BreakHis's tree, a folder for each bag, or a CSV of images and bags.
        out: folder of the bundle, its logs and checkpoints.
        recipe: short, or published (a reading: the authors' is not known).
        init: weights to begin with: a bundle, our own file, or published weights of the patch encoder.
        groups: CSV with the columns case (bag) and patient, which the validation split must not cut.
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
    from apps.medical.pathology_caption import training

    training.run(data, out, chosen, how, init=init, groups=groups, device=device, devices=devices, nodes=nodes)


@app.command(name="import")
def import_(
    weights: Path,
    /,
    *,
    out: Path,
    network: str = "gnn_vitcap",
    classes: Annotated[list[str] | None, Many] = None,
    set: Annotated[list[str] | None, Many] = None,
) -> None:
    """Make a bundle of weights: our own of a whole network, or published ones of its patch encoder to begin with.

    Args:
        weights: the file; read without running anything in it.
        out: folder of the bundle.
        network: gnn_vitcap or gnn_vitcap_base.
        classes: names in the order of the network's answers.
        set: further settings of the network, where it is not the usual one: NAME=VALUE.
    """
    from apps.medical.pathology_caption import training

    training.import_(weights, out, network, classes, flags.pairs(set or []))


@app.command
def evaluate(
    *bundles: Path,
    data: Path,
    part: Part = "test",
    out: Path | None = None,
    groups: Path | None = None,
    java: bool = False,
    device: Device = "auto",
    precision: Precision = "32",
    batch: int = 32,
) -> int:
    """Score a bundle (or several together) on bags whose caption or class is known, with intervals over patients.

    The commonest training caption and that of the nearest training bag are scored beside it.

    Args:
        bundles: that `train` or `import` wrote.
        data: PatchGastricADC22, BreakHis's tree, a folder for each bag, or a CSV of images and bags.
        part: as the data set states it, or all of it.
        out: folder for report.json, cases.csv and patches.csv.
        groups: CSV with the columns case (bag) and patient, which intervals are drawn over.
        java: words and METEOR 1.5 by Java's programs, as in most papers; else by nltk, without synonyms.
        device: where to run.
        precision: of the patch encoder.
        batch: patches at once.
    """
    from apps.medical.pathology_caption import data as sets
    from apps.medical.pathology_caption import evaluate as scores
    from apps.medical.pathology_caption.pipeline import Pipeline
    from core import batch as batches

    if not bundles:
        raise InputError("name a bundle to evaluate")
    pipeline = Pipeline.load(*bundles, device=device, precision=precision, batch=batch)
    found = sets.find(data, groups=groups)
    bags = sets.wanted(found, part)
    for note in found.notes:
        print(f"note: {note}")
    with batches.Log(len(bags), out, what="bags") as log:
        scored = scores.score(pipeline, found, bags, log=log, java=java)
    if scored.cases:
        print("\n" + scores.table(scored))
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
    java: bool = False,
    device: Device = "auto",
    precision: Precision = "32",
) -> int:
    """Score two bundles on the same bags and say by how much they differ, with intervals over patients.

    Args:
        a: a bundle.
        b: another.
        data: PatchGastricADC22, BreakHis's tree, a folder for each bag, or a CSV of images and bags.
        part: as the data set states it, or all of it.
        groups: CSV with the columns case (bag) and patient, which intervals are drawn over.
        java: words and METEOR 1.5 by Java's programs; else by nltk, without synonyms.
        device: where to run.
        precision: of the patch encoders.
    """
    from apps.medical.pathology_caption import data as sets
    from apps.medical.pathology_caption import evaluate as scores
    from apps.medical.pathology_caption.pipeline import Pipeline
    from core import batch as batches

    found = sets.find(data, groups=groups)
    bags = sets.wanted(found, part)
    both, code = [], 0
    for folder in (a, b):
        pipeline = Pipeline.load(folder, device=device, precision=precision)
        print(folder)
        with batches.Log(len(bags), None, what="bags") as log:
            both.append(scores.score(pipeline, found, bags, log=log, java=java, simple=False))
        code |= log.code
    if all(scored.cases for scored in both):
        print("\n" + scores.compared(scores.paired(*both)))
    return code


@app.command
def predict(
    *paths: Path,
    out: Path,
    beams: int = 5,
    overlays: Annotated[bool, Parameter(negative="--no-overlays")] = True,
    workers: int = 1,
    batch: int = 32,
    overwrite: bool = False,
    device: Device = "auto",
    precision: Precision = "32",
) -> int:
    """Describe bags of patches: a caption, the probability of each class, and the patches that decided.

    The same command goes on where a run was stopped. With several bags the good ones are finished, the bad ones listed
    in failures.csv, and the exit code is 1.

    Args:
        paths: one or several bundles (answered together), then folders of patches, data sets of them, CSV files of
            images and bags, or the patches of one bag.
        out: folder for predictions.csv, representatives.csv, patches.csv, bags/ (JSON), overlays/, and applied.csv
            with what was done to each bag.
        beams: of the search for captions; 1 is greedy.
        overlays: draw the deciding patches of each bag.
        workers: processes.
        batch: patches at once.
        overwrite: work again on what is there.
        device: where to run.
        precision: of the patch encoder.
    """
    from core import bundle

    bundles, given = bundle.apart(paths)
    if workers < 1 or batch < 1 or beams < 1:
        raise SettingError(f"--workers, --batch and --beams are at least 1, got {workers}, {batch} and {beams}")
    from apps.medical.pathology_caption import predict as predictions

    choices = predictions.Choices(beams, overlays, device, precision, batch, overwrite)
    return predictions.predict(bundles, given, out, choices, workers=workers)


@app.command
def export(bundle: Path, file: Path, /) -> None:
    """Write a bundle's patch encoder as an ONNX file, with a JSON file that says what goes in and comes out.

    Args:
        bundle: that `train` or `import` wrote.
        file: where to write, ends in .onnx.
    """
    from apps.medical.pathology_caption import training

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
    """Open a page: load the patches of a slide, see its caption and which patches decided, save it; until Ctrl-C.

    Args:
        bundles: one or several (answered together).
        host: address to listen at; by default this machine alone can see the page.
        port: to listen at, 0 for any that is free.
        open_browser: show the page in the browser of this machine.
        device: where to run.
        precision: of the patch encoder.
    """
    if not bundles:
        raise InputError("name a bundle to serve")
    from apps.medical.pathology_caption import serve as pages

    pages.serve(bundles, host=host, port=port, device=device, precision=precision, open_browser=open_browser)


@app.command
def demo(*, out: Path = Path("demo"), full: bool = False) -> None:
    """Train on the sample set for a short time, and write a page with pictures, curves and numbers.

    Args:
        out: folder of the page.
        full: train for four minutes instead of one.
    """
    from apps.medical.pathology_caption import demo as demonstration

    demonstration.run(out, full=full)
