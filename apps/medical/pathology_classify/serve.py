"""The page `glocal medical pathology classify serve`: a tile, picture or small slide, its classes and where they are.

Nothing that names a person is shown: no file name, no header, and results are called "slide" or "tile".
"""

import html
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from apps.medical import slides
from apps.medical.pathology_classify.look import Look
from apps.medical.pathology_classify.pipeline import Pipeline, Result
from apps.medical.pathology_classify.results import NOTICE, SlideClassification
from core import pictures, serving
from core.data.sample import Meta
from core.errors import FileError, InputError

LIMITS = serving.Limits(megabytes=600, pixels=400_000_000)  # of a slide's finest level, too
_STYLE = """
#classes table { border-collapse: collapse; font-variant-numeric: tabular-nums }
#classes td, #classes th { text-align: right; padding: .2rem .8rem }
#classes tr { border-bottom: 1px solid var(--border-color-primary) }
#classes td:first-child, #classes th:first-child { text-align: left; padding-left: 0 } #classes th { font-weight: 500 }
#shown img, #strip img { max-width: 100%; margin: 0 } #said { font-size: .92rem }
"""
_WAITING = "<p>Nothing is open yet.</p>"
_FLAG = "give the micrometres to a pixel of its finest level by --um-per-px"
_FIELD = "write the micrometres to a pixel of its finest level into their field and open the file again"
_SUFFIXES = (".svs", ".tif", ".tiff", ".png", ".jpg", ".jpeg", ".bmp", ".ndpi", ".scn", ".bif", ".svslide")


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

    def build(desk: serving.Desk) -> None:
        import gradio as gr

        given = gr.File(
            label=f"A slide (.svs, pyramid as .tif) or a tile (PNG, JPEG, TIFF), up to {desk.limits.megabytes:g} MB",
            height=170, elem_id="given",
        )  # fmt: skip
        um = gr.Textbox(
            label="Micrometres to a pixel, only where the file does not say", elem_id="um", max_lines=1,
            placeholder="of its finest level, as in 0.25",
        )  # fmt: skip
        said = gr.HTML(_WAITING, elem_id="said", js_on_load=None)
        shown = gr.HTML("", elem_id="shown", js_on_load=None)
        classes = gr.HTML("", elem_id="classes", js_on_load=None)
        strip = gr.HTML("", elem_id="strip", js_on_load=None)
        with gr.Row():
            table = gr.DownloadButton("Save the table", visible=False, variant="primary", elem_id="table")
            heat = gr.DownloadButton("Save the heat map", visible=False, elem_id="heat")
            outlines = gr.DownloadButton("Save outlines for QuPath", visible=False, elem_id="outlines")

        # The default of `progress` is how Gradio knows that it is to be given.
        def take(path: str | None, um: str, visit: serving.Visit, progress: gr.Progress = gr.Progress()) -> list[Any]:  # noqa: B008
            visit.clear()
            with desk.taken(path, picture=False) as file:  # its name may be a person's
                moved = Path(shutil.move(file, visit.folder / f"upload{file.suffix.lower()[:8]}"))
            try:
                result = classified(
                    pipeline, moved, desk, um or "",
                    lambda done, all: progress(done / all, desc="Classifying tiles"),
                )  # fmt: skip
                of_slide = isinstance(result, SlideClassification)
                rows = visit.folder / ("slide-tiles.csv" if of_slide else "tile.csv")
                more = [visit.folder / "slide.heatmap.ome.tif", visit.folder / "slide.geojson"] if of_slide else []
                for name in (rows, *more):
                    result.save(name)
                seen = [image(result.draw(), "where its classes are"), classes_of(result)]
                decided = result.strip() if isinstance(result, SlideClassification) else None
                seen.append("" if decided is None else image(decided, "the tiles that decided"))
            finally:
                moved.unlink(missing_ok=True)
            files = [gr.DownloadButton(value=str(name), visible=True) for name in (rows, *more)]
            files += [gr.DownloadButton(visible=False)] * (3 - len(files))
            return [None, f"<p>{html.escape(told(result))}</p>", *seen, *files, visit]

        def blank() -> list[Any]:
            return [None, _WAITING, "", "", "", *[gr.DownloadButton(visible=False)] * 3]

        outputs = [given, said, shown, classes, strip, table, heat, outlines]
        event = given.upload(take, [given, um, desk.state], [*outputs, desk.state], show_progress_on=[said])
        event.failure(blank, None, outputs, show_progress="hidden")

    about = f"Tells {', '.join(pipeline.classes)}. Files stay on this machine and go with the visit."
    return serving.Page("Histology", about, build, note=f"{NOTICE[:1].upper()}{NOTICE[1:]}.", style=_STYLE)


def classified(pipeline: Pipeline, file: Path, desk: serving.Desk, um: str = "", progress: Any = None) -> Result:
    """The class of an uploaded file: a slide with tiles that overlap by half, a picture with what its label needs.

    Args:
        pipeline: that answers.
        file: as it came.
        desk: whose limits hold.
        um: micrometres to a pixel as a person writes them, "" for what the file says.
        progress: as of `Pipeline`.

    Raises InputError for another kind of file, one too large, and what `Pipeline` raises.
    """
    if file.suffix.lower() not in _SUFFIXES:
        raise FileError(file.name, "is no slide or picture that is read here", "give .svs, .tif, .png or .jpg")
    look = Look(um_per_px=_number(um), explain=True)
    try:
        if slides.recognised(file):
            slide = slides.open_slide(file, um_per_px=look.um_per_px)
            if (pixels := slide.size[0] * slide.size[1]) > desk.limits.pixels:
                most = f"at most {desk.limits.pixels / 1e6:g} million are taken; use the command for whole slides"
                raise FileError(file.name, f"has {pixels / 1e6:,.0f} million pixels", most)
            return pipeline(slide, meta=Meta(id="slide"), look=replace(look, overlap=0.5), progress=progress)
        desk.received(file)  # checks the pixels of a picture by its head
        return pipeline(file, meta=Meta(id="tile"), look=replace(look, overlap=0.25))
    except InputError as error:
        if _FLAG not in str(error):
            raise
        raise InputError(str(error).replace(_FLAG, _FIELD)) from None


def _number(words: str) -> float | None:
    """A number as people write it; None for no word."""
    text = words.strip().lower().removesuffix("um").removesuffix("µm").strip().replace(",", ".")
    try:
        return float(text) if text else None
    except ValueError:
        raise InputError(f"micrometres to a pixel are a number, as in 0.25, got {words!r}") from None


def image(picture: Any, words: str) -> str:
    """A picture as HTML that holds it in itself."""
    return f'<img src="{pictures.inline(picture)}" alt="{words}">'


def told(result: Result) -> str:
    """The label, from how many tiles, and what was done."""
    parts = [f"{result.label} ({result.probability:.2f})"]
    if isinstance(result, SlideClassification):
        parts.append(f"the mean of {len(result.tiles):,} tiles")
    return "; ".join([*parts, *result.meta.applied])


def classes_of(result: Result) -> str:
    """Probabilities as an HTML table."""
    rows = sorted(zip(result.classes, result.probabilities, strict=True), key=lambda r: -r[1])
    body = "".join(f"<tr><td>{html.escape(name)}</td><td>{p:.3f}</td></tr>" for name, p in rows)
    head = "<tr><th scope=col>class</th><th scope=col>probability</th></tr>"
    return f"<table><thead>{head}</thead><tbody>{body}</tbody></table>"
