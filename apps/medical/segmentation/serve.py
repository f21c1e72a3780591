"""The page `glocal medical segment serve`: a scan or picture, its mask slice by slice, the mask as a file.

Nothing that names a person is shown: no file name, no header, and results are called "mask".
"""

import html
import shutil
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from apps.medical import readers
from apps.medical.segmentation.pipeline import Pipeline
from apps.medical.segmentation.predict import ENDINGS
from apps.medical.segmentation.results import NOTICE, Segmentation
from core import pictures, serving
from core.errors import FileError, InputError

LIMITS = serving.Limits(megabytes=600, pixels=400_000_000)  # voxels, too
_ENTRIES = 5000  # files of an archive
_TIMES = 4  # larger than an upload may be, unpacked
_BLOCK = 1 << 20
_STYLE = """
#volumes table { border-collapse: collapse; font-variant-numeric: tabular-nums }
#volumes td, #volumes th { text-align: right; padding: .2rem .8rem }
#volumes tr { border-bottom: 1px solid var(--border-color-primary) }
#volumes td:first-child, #volumes th:first-child { text-align: left; padding-left: 0 } #volumes th { font-weight: 500 }
#slice img { max-width: 100%; margin: 0 } #said { font-size: .92rem }
"""
_WAITING = "<p>Nothing is open yet.</p>"


def serve(
    bundles: Path | Sequence[Path],
    *,
    host: str = serving.LOCAL,
    port: int = serving.PORT,
    device: str = "auto",
    precision: str = "32",
    open_browser: bool = False,
) -> None:
    """Serve the page until Ctrl-C.

    Args:
        bundles: that `train` or `import` wrote; the mean of several.
        host: address to listen on.
        port: 0 for any that is free.
        device: where to run.
        precision: of the network.
        open_browser: once it runs.

    Raises core.bundle.BundleError for a bundle that cannot be used, and what `core.serving.serve` raises.
    """
    folders = [bundles] if isinstance(bundles, str | Path) else bundles
    pipeline = Pipeline.load(*folders, device=device, precision=precision)
    serving.serve(page(pipeline), host=host, port=port, limits=LIMITS, open_browser=open_browser)


def page(pipeline: Pipeline) -> serving.Page:
    """The page of a pipeline."""
    settings = pipeline.settings

    def build(desk: serving.Desk) -> None:
        import gradio as gr

        given = gr.File(
            label="NIfTI, DICOM (all files of a series, or a .zip of them), PNG, JPEG or TIFF, "
            f"up to {desk.limits.megabytes:g} MB",
            file_count="multiple", height=170, elem_id="given",
        )  # fmt: skip
        spacing = gr.Textbox(
            label="Spacing in mm, only where the file does not say", elem_id="spacing", max_lines=1,
            placeholder="rows columns, as in 0.5 0.5 (of volumes slices rows columns)",
            visible=settings.input.spacing is not None,
        )  # fmt: skip
        said = gr.HTML(_WAITING, elem_id="said", js_on_load=None)
        number = gr.Slider(1, 2, step=1, label="Slice", visible=False, elem_id="number")
        shown = gr.HTML("", elem_id="slice", js_on_load=None)
        volumes = gr.HTML("", elem_id="volumes", js_on_load=None)
        mask = gr.DownloadButton("Save the mask", visible=False, variant="primary", elem_id="mask")

        def take(paths: list[str] | None, steps: str, visit: serving.Visit) -> list[Any]:
            visit.clear()
            try:
                folder = gathered(paths or [], visit.folder, desk)
            finally:
                for path in paths or []:
                    desk.discard(path)
            result = segmented(pipeline, folder, desk.limits, steps or "")
            visit.data = result
            file = visit.folder / f"mask{ending(result)}"
            result.save(file)
            start = first(result)
            count = result.mask.shape[0] if result.mask.ndim == 3 else 1
            return [
                None,
                f"<p>{html.escape(told(result))}</p>",
                gr.Slider(
                    minimum=1, maximum=max(2, count), value=start + 1, visible=count > 1,
                    label="Frame" if result.frames else "Slice",
                ),
                drawn(result, start),
                table(result),
                gr.DownloadButton(value=str(file), visible=True),
                visit,
            ]  # fmt: skip

        def turn(which: float, visit: serving.Visit) -> str:
            if not isinstance(visit.data, Segmentation):
                raise InputError("open a scan first")
            return drawn(visit.data, int(which) - 1)

        def blank() -> list[Any]:
            return [None, _WAITING, gr.Slider(visible=False), "", "", gr.DownloadButton(visible=False)]

        outputs = [given, said, number, shown, volumes, mask]
        event = given.upload(take, [given, spacing, desk.state], [*outputs, desk.state], show_progress_on=[said])
        event.failure(blank, None, outputs, show_progress="hidden")
        number.input(turn, [number, desk.state], shown, show_progress="hidden", trigger_mode="always_last")

    classes = ", ".join(name for name, i in settings.output.classes.items() if i not in (0, settings.output.ignore))
    return serving.Page(
        "Segmentation",
        f"Finds {classes} in {', '.join(settings.input.channels)}. Files stay on this machine and go with the visit.",
        build,
        note=f"{NOTICE[:1].upper()}{NOTICE[1:]}.",
        style=_STYLE,
    )


def gathered(paths: Sequence[str], into: Path, desk: serving.Desk) -> Path:
    """The uploaded files of one scan in one folder under numbers, archives unpacked.

    Raises InputError where nothing came, FileError for an archive that is damaged or unpacks to too much.
    """
    if not paths:
        raise InputError("no file was given; choose one first")
    folder = into / "scan"
    folder.mkdir()
    for path in paths:
        file = desk.received(path, picture=False)
        if zipfile.is_zipfile(file):
            _unpack(file, folder, int(desk.limits.megabytes * 1e6 * _TIMES))
        else:
            shutil.move(file, _next(folder, file.name))
    if not any(folder.iterdir()):
        raise InputError("the archive holds no file")
    return folder


def _next(folder: Path, name: str) -> Path:
    """A number in place of a name, which may be a person's; the suffix stays."""
    ending = ".nii.gz" if name.lower().endswith(".nii.gz") else Path(name).suffix.lower()[:8]
    return folder / f"file-{1 + sum(1 for _ in folder.iterdir())}{ending}"


def _unpack(file: Path, folder: Path, most: int) -> None:
    """Files of an archive, by what comes out of it, not by what its directory says."""
    wrong = "the archive"
    try:
        with zipfile.ZipFile(file) as archive:
            entries = [e for e in archive.infolist() if not e.is_dir() and _wanted(e.filename)]
            if len(entries) > _ENTRIES:
                raise FileError(wrong, f"holds {len(entries)} files", f"give one series, at most {_ENTRIES} files")
            for entry in entries:
                with archive.open(entry) as inside, _next(folder, entry.filename).open("wb") as out:
                    while block := inside.read(_BLOCK):
                        most -= len(block)
                        if most < 0:
                            raise FileError(wrong, "unpacks to more than is taken here", "give one series alone")
                        out.write(block)
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError, EOFError, OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        right = "pack it again without a password" if isinstance(error, RuntimeError) else "pack it again"
        raise FileError(wrong, "cannot be unpacked", right) from None


def _wanted(name: str) -> bool:
    parts = Path(name).parts
    return bool(parts) and "__MACOSX" not in parts and not parts[-1].startswith(".") and parts[-1] != "DICOMDIR"


def segmented(pipeline: Pipeline, folder: Path, limits: serving.Limits, spacing: str = "") -> Segmentation:
    """The mask of the one scan in a folder.

    Args:
        pipeline: that finds it.
        folder: with the files of one scan.
        limits: `pixels` bounds its samples.
        spacing: millimetres along its axes as a person writes them, "" for what the file says.

    Raises InputError for none or several scans, one too large, and what `Pipeline` raises.
    """
    items = readers.find([folder], channels=len(pipeline.settings.input.channels))
    if len(items) != 1:
        raise InputError(f"these are {len(items)} scans; give the files of one")
    scan = readers.read_item(items[0])
    size = int(np.prod(scan.shape, dtype=np.int64))
    if size > limits.pixels:
        most = f"at most {limits.pixels / 1e6:g} million are taken"
        raise FileError("the scan", f"has {size / 1e6:.3g} million samples", most)
    steps = _steps(spacing)
    try:
        return pipeline(replace(scan, meta=replace(scan.meta, id="scan")), spacing=steps)
    except InputError as error:
        words = str(error).replace(
            "give it by --spacing ROWS COLUMNS", "write it into its field and open the file again"
        )
        raise InputError(words.replace("--spacing", "the spacing")) from None


def _steps(words: str) -> tuple[float, ...] | None:
    """Numbers apart by blanks, commas or "x"; None for no word."""
    parts = words.lower().replace(",", " ").replace("x", " ").split()
    try:
        return tuple(float(p) for p in parts) or None
    except ValueError:
        raise InputError(f"the spacing is numbers in mm, as in 0.5 0.5, got {words!r}") from None


def ending(result: Segmentation) -> str:
    """Of the mask's file: the input's own format."""
    if result.frames:
        return ".tif"
    return ENDINGS.get(result.scan.format if result.scan is not None else "", ".png")


def first(result: Segmentation) -> int:
    """The slice that holds most of what was found, else the middle one."""
    if result.mask.ndim == 2:
        return 0
    found = np.isin(result.mask, list(result.scored().values())).sum((1, 2))
    return int(found.argmax()) if found.any() else len(found) // 2


def drawn(result: Segmentation, number: int) -> str:
    """A slice with its mask beside it, as HTML that holds the picture in itself."""
    panel = result.draw(number if result.mask.ndim == 3 else None)
    words = f"slice {number + 1}" if result.mask.ndim == 3 else "the picture"
    return f'<img src="{pictures.inline(panel)}" alt="{words} and its mask">'


def told(result: Segmentation) -> str:
    """Size, spacing and what was done to the values."""
    size = " x ".join(map(str, result.mask.shape[::-1]))
    spacing = result.meta.spacing
    parts = [f"{size} samples"]
    if spacing is not None:
        parts.append(" x ".join(f"{s:.3g}" for s in spacing[::-1]) + " mm")
    return "; ".join([", ".join(parts), *result.meta.applied])


def table(result: Segmentation) -> str:
    """Classes with their size as an HTML table."""
    units = [(unit, head) for unit, head in (("ml", "ml"), ("mm2", "mm²"), ("samples", "samples"))]
    rows = result.volumes()
    kept = [(unit, head) for unit, head in units if any(row[unit] is not None for row in rows)]
    head = "".join(f"<th scope=col>{name}</th>" for name in ("class", *(h for _, h in kept)))
    cells = [[html.escape(row["class"]), *(f"{row[unit]:,.6g}" for unit, _ in kept)] for row in rows]
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in cells)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
