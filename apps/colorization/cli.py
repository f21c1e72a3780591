"""The commands `glocal colorization ...`; nothing heavy is imported before one of them runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from apps.colorization.options import RECIPES, Options
from core import commands, flags
from core.commands import Device, Many, Precision
from core.errors import InputError, SettingError, UnknownNameError
from core.training.recipe import Recipe

_OptionFlags = flags.optional(Options, without=["settings"])
_RecipeFlags = flags.optional(Recipe, "recipe")
_NO_OPTIONS, _NO_CHANGES = _OptionFlags(), _RecipeFlags()
Protocol = Literal["published", "saved"]
Part = Literal["test", "val", "train"]
COUNTS = [1, 5, 10, 20, 50, 100]

app = App(
    name="colorization",
    help="Colour photographs from a few coloured points.",
    default_parameter=Parameter(negative=()),
)


@app.command
def inspect(*files: Path) -> int:
    """Show what photographs are: size, channels, bits, profile, how EXIF turns them; nothing that names owner or place.

    Args:
        files: JPEG, PNG, TIFF, WebP, BMP, GIF.
    """
    from core.data import photos

    return commands.inspect(files, photos.inspect)


@app.command
def check(data: Path, /, *, groups: Path | None = None, exclude: Path | None = None) -> int:
    """Open every photograph of a data set and list what is wrong (exit code 1 if anything).

    Args:
        data: folder of photographs (in class folders, or train/, val/, test/, or not), or the published test layout.
        groups: CSV with the columns case and group (scene), which a split must not cut.
        exclude: text file with the names of photographs to leave out, one a line.
    """
    from apps.colorization import check as checks

    return commands.checked(data, checks.check(data, groups=groups, exclude=exclude))


@app.command
def train(
    data: Path,
    /,
    *,
    out: Path,
    recipe: Annotated[str, Parameter(name="--recipe")] = "short",
    init: Path | None = None,
    groups: Path | None = None,
    exclude: Path | None = None,
    config: Path | None = None,
    set: Annotated[list[str] | None, Many] = None,
    device: Device = "auto",
    devices: int = 1,
    nodes: int = 1,
    options: Annotated[_OptionFlags, Parameter(name="*")] = _NO_OPTIONS,  # type: ignore[valid-type]
    changes: Annotated[_RecipeFlags, Parameter(name="*")] = _NO_CHANGES,  # type: ignore[valid-type]
) -> None:
    """Train on photographs in colour; the same command goes on with a run that was stopped.

    Args:
        data: folder of photographs (in class folders, or train/, val/, test/, or not).
        out: folder of the bundle, its logs and checkpoints.
        recipe: short, or published (the paper's: batches of 256 on a GPU, 25 epochs for the tiny network).
        init: weights to begin with: the authors', or a bundle.
        groups: CSV with the columns case and group (scene), which the validation split must not cut.
        exclude: text file with the names of photographs to leave out (grey ones, say), one a line.
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
    from apps.colorization import training

    training.run(
        data, out, chosen, how, init=init, groups=groups, exclude=exclude, device=device, devices=devices, nodes=nodes
    )


@app.command(name="import")
def import_(
    weights: Path,
    /,
    *,
    out: Path,
    network: str = "icolorit_tiny",
    set: Annotated[list[str] | None, Many] = None,
) -> None:
    """Make a bundle of the authors' weights.

    Args:
        weights: the file; read without running anything in it.
        out: folder of the bundle.
        network: icolorit_tiny, icolorit_tiny_p8, icolorit_tiny_p32, icolorit_small or icolorit.
        set: further settings that the file does not say: NAME=VALUE.
    """
    from apps.colorization import training

    training.import_(weights, out, network, flags.pairs(set or []))


@app.command
def evaluate(
    *bundles: Path,
    data: Path,
    part: Part = "test",
    counts: Annotated[list[int] | None, Many] = None,
    protocol: Protocol = "published",
    seed: int = 1234,
    lpips_weights: Path | None = None,
    out: Path | None = None,
    groups: Path | None = None,
    exclude: Path | None = None,
    device: Device = "auto",
    precision: Precision = "32",
) -> int:
    """Score a bundle (or the mean of several) on photographs in colour, beside grey, nearest hint and weighted hints.

    Args:
        bundles: that `train` or `import` wrote.
        data: the published test layout (imgs/ with h2-n5/ and so on), or photographs.
        part: test/, val/ or train/ of it; photographs without such folders are train.
        counts: of hints, 1 5 10 20 50 100 by default; published ones where the data has them, else drawn.
        protocol: published (pictures as computed), or saved (rounded to 8 bits and cut off first).
        seed: of hints that are drawn.
        lpips_weights: torchvision's vgg16-397923af.pth, for LPIPS; nothing is downloaded.
        out: folder for report.json and cases.csv.
        groups: CSV with the columns case and group, which intervals are drawn over.
        exclude: text file with the names of photographs to leave out (grey ones, say), one a line.
        device: where to run.
        precision: of the network.
    """
    if not bundles:
        raise InputError("name a bundle to evaluate")
    from apps.colorization import data as sets
    from apps.colorization import evaluate as scores
    from apps.colorization.pipeline import Pipeline
    from core import batch

    found = sets.find(data, groups=groups, exclude=exclude)
    photographs = sets.chosen(found, part)
    pipeline = Pipeline.load(*bundles, device=device, precision=precision)
    with batch.Log(len(photographs), out, what="photographs") as log:
        scored = scores.score(
            pipeline, found, photographs, counts=counts or COUNTS, by=protocol, seed=seed, lpips=lpips_weights, log=log
        )
    if scored.cases:
        print("\n" + scores.table(scored))
        if out is not None:
            scores.save(scored, out, {"data": found.folder.name, "part": part, "seed": seed})
    return log.code


@app.command
def compare(
    a: Path,
    b: Path,
    /,
    *,
    data: Path,
    part: Part = "test",
    counts: Annotated[list[int] | None, Many] = None,
    protocol: Protocol = "published",
    seed: int = 1234,
    lpips_weights: Path | None = None,
    groups: Path | None = None,
    exclude: Path | None = None,
    device: Device = "auto",
    precision: Precision = "32",
) -> int:
    """Score two bundles on the same photographs with the same hints and say by how much they differ.

    Args:
        a: a bundle.
        b: another.
        data: the published test layout, or photographs.
        part: test/, val/ or train/ of it.
        counts: of hints, 1 5 10 20 50 100 by default.
        protocol: published, or saved (rounded to 8 bits first).
        seed: of hints that are drawn.
        lpips_weights: torchvision's vgg16-397923af.pth, for LPIPS.
        groups: CSV with the columns case and group, which intervals are drawn over.
        exclude: text file with the names of photographs to leave out, one a line.
        device: where to run.
        precision: of the networks.
    """
    from apps.colorization import data as sets
    from apps.colorization import evaluate as scores
    from apps.colorization import metrics
    from apps.colorization.pipeline import Pipeline
    from core import batch

    found = sets.find(data, groups=groups, exclude=exclude)
    photographs = sets.chosen(found, part)
    both, code = [], 0
    for folder in (a, b):
        pipeline = Pipeline.load(folder, device=device, precision=precision)
        print(folder)
        with batch.Log(len(photographs), None, what="photographs") as log:
            both.append(
                scores.score(
                    pipeline, found, photographs, counts=counts or COUNTS, by=protocol, seed=seed, lpips=lpips_weights,
                    log=log,
                )
            )  # fmt: skip
        code |= log.code
    print("\n" + scores.compared(metrics.paired(both[0].cases, both[1].cases)))
    return code


@app.command
def predict(
    *paths: Path,
    out: Path,
    hints: Path | None = None,
    auto: int = 0,
    reference: Path | None = None,
    seed: int = 0,
    format: Literal["", "png", "jpg", "tif"] = "",
    quality: int = 95,
    drawings: Annotated[bool, Parameter(negative="--no-drawings")] = True,
    workers: int = 1,
    overwrite: bool = False,
    device: Device = "auto",
    precision: Precision = "32",
) -> int:
    """Colour photographs: pictures of the same size, luminance and bits, and how near the hints' colours were come to.

    The same command goes on where a run was stopped. With several files the good ones are finished, the bad ones listed
    in failures.csv, and the exit code is 1.

    Args:
        paths: one or several bundles (their mean is taken), then photographs and folders of them.
        out: a file (.png, .jpg, .tif) for one photograph, or a folder: pictures, hints/, drawings/, hints.csv with the
            colours asked for and got, applied.csv with what was done to each file.
        hints: CSV with x,y,r,g,b in pixels of the upright photograph (0-based; colours 0 to 255), JSON, or NAME.txt of
            the published tests; for several photographs with a column `file`, or a folder with NAME.csv or NAME.json.
        auto: take so many hints from a picture in colour.
        reference: that picture; by default each photograph itself.
        seed: of their places.
        format: of the results in a folder; by default the photograph's own (PNG where it is none of these).
        quality: of JPEG, 1 to 95.
        drawings: draw photograph, hints and result side by side.
        workers: processes.
        overwrite: work again on what is there.
        device: where to run.
        precision: of the network.
    """
    from core import bundle

    bundles, files = bundle.apart(paths)
    if workers < 1:
        raise SettingError(f"--workers is at least 1, got {workers}")
    from apps.colorization import predict as predictions

    choices = predictions.Choices(hints, auto, reference, seed, format, quality, drawings, device, precision, overwrite)
    return predictions.predict(bundles, files, out, choices, workers=workers)


@app.command
def serve(
    *bundles: Path,
    host: str = "127.0.0.1",
    port: int = 7860,
    open_browser: bool = False,
    device: Device = "auto",
    precision: Precision = "32",
) -> None:
    """Open a page: load a photograph, click a point, pick a colour, see the result; until Ctrl-C.

    Args:
        bundles: one or several (their mean is taken).
        host: address to listen at; by default this machine alone can see the page.
        port: to listen at.
        open_browser: show the page in the browser of this machine.
        device: where to run.
        precision: of the network.
    """
    if not bundles:
        raise InputError("name a bundle to serve")
    from apps.colorization import serve as pages

    pages.serve(bundles, host=host, port=port, device=device, precision=precision, open_browser=open_browser)


@app.command
def export(bundle: Path, file: Path, /) -> None:
    """Write a bundle's network as an ONNX file of fixed size, with a JSON file that says what goes in and comes out.

    Args:
        bundle: that `train` or `import` wrote.
        file: where to write, ends in .onnx.
    """
    from apps.colorization import exporting

    done = exporting.export(bundle, file)
    print(f"written: {done.path} and {done.side} ({done.exporter} exporter)")
    print(f"onnxruntime answers as torch does, within {done.difference:.1e} of the spread")


@app.command
def demo(*, out: Path = Path("demo"), full: bool = False) -> None:
    """Train on the sample photographs for a short time, and write a page with pictures, curves and numbers.

    Args:
        out: folder of the page.
        full: train for four minutes instead of one.
    """
    from apps.colorization import demo as demonstration

    demonstration.run(out, full=full)
