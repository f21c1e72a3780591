"""The page `glocal medical pathology caption serve`: patches of a slide, its caption and classes, and which decided.

Nothing that names a person is shown: no file name; patches are numbered, results are called "slide".
"""

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apps.medical.pathology_caption import inputs
from apps.medical.pathology_caption.pipeline import Pipeline
from apps.medical.pathology_caption.results import NOTICE, SIDE, Captioned
from core import pictures, serving
from core.data.sample import Meta
from core.errors import FileError

LIMITS = serving.Limits(megabytes=40, pixels=inputs.MAX_PIXELS)  # of one patch
MOST = 200  # patches of one slide
_STYLE = """
#caption { font-size: 1.15rem } #said { font-size: .92rem } #shown img { max-width: 100%; margin: 0 }
#classes table { border-collapse: collapse; font-variant-numeric: tabular-nums }
#classes td, #classes th { text-align: right; padding: .2rem .8rem } #classes th { font-weight: 500 }
#classes tr { border-bottom: 1px solid var(--border-color-primary) }
#classes td:first-child, #classes th:first-child { text-align: left; padding-left: 0 }
"""
_WAITING = "<p>No patch is open yet.</p>"


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
        bundles: that `train` or `import` wrote; several answer together.
        host: address to listen on.
        port: 0 for any that is free.
        device: where to run.
        precision: of the patch encoder.
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
            label=f"Patches of one slide (PNG, JPEG, TIFF), up to {MOST} of {desk.limits.megabytes:g} MB each",
            file_count="multiple", height=150, elem_id="given",
        )  # fmt: skip
        said = gr.HTML(_WAITING, elem_id="said", js_on_load=None)
        caption = gr.HTML("", elem_id="caption", js_on_load=None)
        classes = gr.HTML("", elem_id="classes", js_on_load=None)
        shown = gr.HTML("", elem_id="shown", js_on_load=None)
        with gr.Row():
            answer = gr.DownloadButton("Save the answer (JSON)", visible=False, variant="primary", elem_id="json")
            drawing = gr.DownloadButton("Save the picture (PNG)", visible=False, elem_id="png")

        def take(paths: list[str] | None, visit: serving.Visit) -> list[Any]:
            visit.clear()
            patches = read(paths or [], desk, max(SIDE, *(n.size for n in pipeline.networks)))
            result = pipeline(patches, meta=Meta(id="slide"))
            files = [visit.folder / name for name in ("slide.json", "slide.png")]
            for file in files:
                result.save(file)
            picture = f'<img src="{pictures.inline(result.draw())}" alt="the patches that decided">'
            return [
                None, f"<p>{html.escape(told(result))}</p>", written(result), table(result), picture,
                *(gr.DownloadButton(value=str(f), visible=True) for f in files), visit,
            ]  # fmt: skip

        def blank() -> list[Any]:
            return [None, _WAITING, "", "", "", *(gr.DownloadButton(visible=False) for _ in range(2))]

        outputs = [given, said, caption, classes, shown, answer, drawing]
        event = given.upload(take, [given, desk.state], [*outputs, desk.state], show_progress_on=[said])
        event.failure(blank, None, outputs, show_progress="hidden")

    does = [f"tells {', '.join(pipeline.names)} apart"] if pipeline.classes else []
    does += ["writes a caption"] if pipeline.writes else []
    return serving.Page(
        "Captions of histology",
        f"From the patches of one slide the network {' and '.join(does)}. Files stay on this machine and go with the "
        "visit.",
        build,
        note=f"{NOTICE[:1].upper()}{NOTICE[1:]}.",
        style=_STYLE,
    )


def read(paths: Sequence[str], desk: serving.Desk, size: int) -> list[NDArray[np.uint8]]:
    """The uploaded patches as squares; every upload is deleted, whatever becomes of the others.

    Raises FileError for too many, and for a patch that cannot be read, by its number.
    """
    found: list[NDArray[np.uint8]] = []
    try:
        if len(paths) > MOST:
            raise FileError("the slide", f"has {len(paths)} patches", f"up to {MOST} are taken here; use the command")
        for number, path in enumerate(paths, 1):
            try:
                found.append(inputs.square(desk.received(path), size))
            except FileError as error:
                said = str(error).removeprefix(f"{path}: ").removeprefix(f"{Path(path).name}: ")
                raise FileError(f"patch {number}", said) from None
    finally:
        for path in paths:
            desk.discard(path)
    return found


def told(result: Captioned) -> str:
    """How many patches, in how many groups, and what was done to them."""
    patches, kinds = len(result.names), len(result.shown)
    parts = [f"{patches} {'patch' if patches == 1 else 'patches'} of {kinds} {'kind' if kinds == 1 else 'kinds'}"]
    return "; ".join([*parts, *result.meta.applied])


def written(result: Captioned) -> str:
    """The caption as HTML; nothing where the network writes none."""
    if result.described.log_probability is None:
        return ""
    return f"<p>{html.escape(result.caption or '(The network wrote no word.)')}</p>"


def table(result: Captioned) -> str:
    """Classes with their probabilities as an HTML table, the likeliest first; nothing without a class head."""
    if not result.classes:
        return ""
    rows = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{result.probability(name):.3f}</td></tr>"
        for name in sorted(result.classes, key=result.probability, reverse=True)
    )
    return f"<table><thead><tr><th scope=col>class</th><th scope=col>probability</th></tr></thead>{rows}</table>"
