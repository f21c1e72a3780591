"""The commands `glocal deblurring ...`; nothing heavy is imported before one of them runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from apps.deblurring.options import RECIPES, Options
from core import commands, flags
from core.commands import Device, Many, Precision
from core.errors import InputError, SettingError, UnknownNameError
from core.training.recipe import Recipe

_OptionFlags = flags.optional(Options, without=["settings"])
_RecipeFlags = flags.optional(Recipe, "recipe")
_NO_OPTIONS, _NO_CHANGES = _OptionFlags(), _RecipeFlags()
Part = Literal["test", "val", "train"]

app = App(name="deblurring", help="Removal of motion blur from photographs.", default_parameter=Parameter(negative=()))


@app.command
def inspect(*files: Path) -> int:
    """Show what photographs are: size, channels, bits, profile, orientation, how blurred they look; not whose.

    Args:
        files: JPEG, PNG, TIFF, WebP, BMP, GIF.
    """

    def read(path: Path) -> dict[str, object]:
        from apps.deblurring import _look

        return _look.inspect(path)

    return commands.inspect(files, read)


@app.command
def check(data: Path, /, *, groups: Path | None = None) -> int:
    """Open every picture and mask of a data set and list what is wrong (exit code 1 if anything).

    Args:
        data: ReLoBlur's, GoPro's, HIDE's or RealBlur's folders, LMD-ViT's .npy files, or blur/ and sharp/ (and masks/).
        groups: CSV with the columns pair and group (scene), which a split must not cut.
    """
    from apps.deblurring import check as checks

    return commands.checked(data, checks.check(data, groups=groups))


@app.command
def make(
    *sharp: Path,
    out: Path,
    count: int = 4,
    length: tuple[float, float] = (8.0, 36.0),
    test: float = 0.2,
    size: int = 0,
    seed: int = 0,
) -> int:
    """Make pairs to train on from sharp photographs: a segment of each moves during the exposure.

    Writes ReLoBlur's layout (dataset/ and masks/); all pairs of a photograph are one scene, on one side of the split.

    Args:
        sharp: photographs, and folders of them.
        out: folder of the data set.
        count: pairs for each photograph.
        length: of the movement in pixels, least and most.
        test: part of the photographs that are kept for testing; 0 for none.
        size: longest side in pixels that photographs are made smaller to; 0 leaves them as they are.
        seed: of the movements, the segments and the split; the same seed makes the same files.
    """
    from apps.deblurring import _making

    return _making.make(sharp, out, _making.Choices(count, length, test, size, seed))


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
        data: a data set as `check` takes it; `make` makes one of any sharp photographs.
        out: folder of the bundle, its logs and checkpoints.
        recipe: short, or published (as far as it is known; the training code was never released).
        init: weights to begin with: the published network's, or a bundle.
        groups: CSV with the columns pair and group (scene), which the validation split must not cut.
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
    from apps.deblurring import training

    training.run(data, out, chosen, how, init=init, groups=groups, device=device, devices=devices, nodes=nodes)


@app.command(name="import")
def import_(
    weights: Path, /, *, out: Path, network: str = "lmd_vit", set: Annotated[list[str] | None, Many] = None
) -> None:
    """Make a bundle of the authors' weights.

    Args:
        weights: the file; read without running anything in it.
        out: folder of the bundle.
        network: lmd_vit.
        set: settings of the network, where it is not the published size: NAME=VALUE.
    """
    from apps.deblurring import training

    training.import_(weights, out, network, flags.pairs(set or []))


@app.command
def evaluate(
    *bundles: Path,
    data: Path,
    part: Part = "test",
    protocol: str = "house",
    out: Path | None = None,
    groups: Path | None = None,
    device: Device = "auto",
    precision: Precision = "32",
) -> int:
    """Score a bundle (or the mean of several) on pairs, beside the blurred photographs themselves.

    Args:
        bundles: that `train` or `import` wrote.
        data: a data set as `check` takes it, or a folder of photographs, which get a measure without a reference.
        part: test, val or train.
        protocol: house, lmd_vit, lbag or gopro (the last three as published: one pass; 8-bit rounding but in lmd_vit).
        out: folder for report.json and cases.csv.
        groups: CSV with the columns pair and group (scene), which intervals are drawn over.
        device: where to run.
        precision: of the network.
    """
    from apps.deblurring import data as sets
    from apps.deblurring import evaluate as scores
    from apps.deblurring.pipeline import Pipeline
    from core import batch

    if not bundles:
        raise InputError("name a bundle to evaluate")
    found = sets.find(data, groups=groups)
    pairs = sets.chosen(found, part)
    pipeline = Pipeline.load(*bundles, device=device, precision=precision)
    with batch.Log(len(pairs), out, what="photographs") as log:
        scored = scores.score(pipeline, found, pairs, by=protocol, log=log)
    if scored.cases:
        print("\n" + scores.table(scored))
        if out is not None:
            scores.save(scored, out, {"part": part})
    return log.code


@app.command
def compare(
    a: Path,
    b: Path,
    /,
    *,
    data: Path,
    part: Part = "test",
    protocol: str = "house",
    groups: Path | None = None,
    device: Device = "auto",
    precision: Precision = "32",
) -> int:
    """Score two bundles on the same photographs and say by how much they differ.

    Args:
        a: a bundle.
        b: another.
        data: a data set as `check` takes it.
        part: test, val or train.
        protocol: house, lmd_vit, lbag or gopro.
        groups: CSV with the columns pair and group (scene), which intervals are drawn over.
        device: where to run.
        precision: of the networks.
    """
    from apps.deblurring import data as sets
    from apps.deblurring import evaluate as scores
    from apps.deblurring import scoring
    from apps.deblurring.pipeline import Pipeline
    from core import batch

    found = sets.find(data, groups=groups)
    pairs = sets.chosen(found, part)
    both, code = [], 0
    for folder in (a, b):
        pipeline = Pipeline.load(folder, device=device, precision=precision)
        print(folder)
        with batch.Log(len(pairs), None, what="photographs") as log:
            both.append(scores.score(pipeline, found, pairs, by=protocol, log=log))
        code |= log.code
    print("\n" + scores.compared(scoring.paired(both[0].cases, both[1].cases)))
    return code


@app.command
def predict(
    *paths: Path,
    out: Path,
    format: Literal["", "png", "jpg", "tif"] = "",
    quality: int = 95,
    masks: Annotated[bool, Parameter(negative="--no-masks")] = True,
    overlays: bool = False,
    tile: tuple[int, int] | None = None,
    overlap: float | None = None,
    workers: int = 1,
    batch: int = 1,
    overwrite: bool = False,
    device: Device = "auto",
    precision: Precision = "32",
) -> int:
    """Deblur photographs of any size: the sharp picture with all that the file carried, and where it was blurred.

    The same command goes on where a run was stopped, inside a large photograph, too. With several files the good ones
    are finished, the bad ones listed in failures.csv, and the exit code is 1.

    Args:
        paths: one or several bundles (their mean is taken), then files and folders.
        out: folder for pictures, masks/, overlays/, blur.csv (share found blurred) and applied.csv (what was done to
            each file); or, of one photograph, the picture's file.
        format: of the pictures; by default the input's own (PNG where that is none of these).
        quality: of JPEG, 1 to 95.
        masks: write the blur that the predictor found, as a grey PNG.
        overlays: draw before, after and mask side by side.
        tile: rows and columns at once, instead of the bundle's.
        overlap: of tiles as part of one, instead of the bundle's.
        workers: processes.
        batch: tiles at once.
        overwrite: work again on what is there.
        device: where to run.
        precision: of the network.
    """
    from core import bundle

    bundles = [p for p in paths if (p / bundle.SETTINGS).is_file() or any(p.glob(f"fold_*/{bundle.SETTINGS}"))]
    if not bundles:
        raise InputError(f"{paths[0]}: is no bundle; name one that `train` or `import` wrote, then photographs" if paths
                         else "name a bundle, then photographs")  # fmt: skip
    files = [p for p in paths if p not in bundles]
    if workers < 1 or batch < 1:
        raise SettingError(f"--workers and --batch are at least 1, got {workers} and {batch}")
    if not 1 <= quality <= 95:
        raise SettingError(f"--quality is 1 to 95, got {quality}")
    from apps.deblurring import predict as predictions

    choices = predictions.Choices(format, quality, masks, overlays, tile, overlap, device, precision, batch, overwrite)
    return predictions.predict(bundles, files, out, choices, workers=workers)


@app.command
def export(bundle: Path, file: Path, /, *, size: tuple[int, int] | None = None) -> None:
    """Write a bundle's network as an ONNX file of fixed size, with a JSON file that says what goes in and comes out.

    Args:
        bundle: that `train` or `import` wrote.
        file: where to write, ends in .onnx.
        size: rows and columns; by default the bundle's tile.
    """
    from apps.deblurring import _export

    done = _export.export(bundle, file, size)
    print(f"written: {done.path} and {done.side} ({done.exporter} exporter)")
    print(f"onnxruntime answers as torch does, within {done.difference:.1e} of the spread")


@app.command
def serve(
    *bundles: Path,
    host: str = "127.0.0.1",
    port: int = 7860,
    open_browser: bool = False,
    device: Device = "auto",
    precision: Precision = "32",
) -> None:
    """Open a page: load a photograph, see it before and after, save it; until Ctrl-C.

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
    from apps.deblurring import serve as pages

    pages.serve(bundles, host=host, port=port, device=device, precision=precision, open_browser=open_browser)


@app.command
def demo(*, out: Path = Path("demo"), full: bool = False) -> None:
    """Train on real photographs for a short time, and write a page with pictures, curves and numbers.

    Args:
        out: folder of the page.
        full: train for four minutes instead of one.
    """
    from apps.deblurring import demo as demonstration

    demonstration.run(out, full=full)
