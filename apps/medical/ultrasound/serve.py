"""The page `glocal medical ultrasound serve`: a picture or loop, its probabilities, what was looked at, burned-in text.

Nothing that names a person is shown: no file name, no header; burned-in text is masked; results are called "answer".
"""

import html
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from apps.medical import readers, tables
from apps.medical._scan import held
from apps.medical.ultrasound import metrics
from apps.medical.ultrasound.pipeline import Pipeline
from apps.medical.ultrasound.results import NOTICE, Screening
from core import pictures, serving
from core.errors import FileError, InputError
from core.files import write_text

LIMITS = serving.Limits(megabytes=300, pixels=400_000_000)  # of all frames together
_STYLE = """
#answer table { border-collapse: collapse; font-variant-numeric: tabular-nums }
#answer td, #answer th { text-align: right; padding: .2rem .8rem } #answer th { font-weight: 500 }
#answer tr { border-bottom: 1px solid var(--border-color-primary) }
#answer td:first-child, #answer th:first-child { text-align: left; padding-left: 0 }
#answer .called td { font-weight: 600 } #shown img { max-width: 100%; margin: 0 }
#marks p { border-left: 3px solid var(--color-accent); padding-left: .7rem; margin: .2rem 0 }
#said { font-size: .92rem }
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

    def build(desk: serving.Desk) -> None:
        import gradio as gr

        given = gr.File(
            label=f"PNG, JPEG, TIFF or DICOM, a still or a cine loop, up to {desk.limits.megabytes:g} MB",
            height=150, elem_id="given",
        )  # fmt: skip
        mask = gr.Checkbox(
            pipeline.masks, label="Mask burned-in text and calipers before the network sees the picture", elem_id="mask"
        )
        pool = gr.Dropdown(
            [(f"{name}: {words}", name) for name, words in metrics.POOLS.items()], value="mean",
            label="Frames of a loop", elem_id="pool",
        )  # fmt: skip
        said = gr.HTML(_WAITING, elem_id="said", js_on_load=None)
        marks = gr.HTML("", elem_id="marks", js_on_load=None)
        answer = gr.HTML("", elem_id="answer", js_on_load=None)
        shown = gr.HTML("", elem_id="shown", js_on_load=None)
        with gr.Row():
            rows = gr.DownloadButton("Save the answer (CSV)", visible=False, variant="primary", elem_id="csv")
            drawing = gr.DownloadButton("Save the picture (PNG)", visible=False, elem_id="png")

        def answered(result: Screening, visit: serving.Visit) -> list[Any]:
            files = written(result, visit.folder)
            return [
                f"<p>{html.escape(told(result))}</p>", noticed(result), probabilities(result), drawn(result),
                *(gr.DownloadButton(value=str(f), visible=True) for f in files),
            ]  # fmt: skip

        def take(path: str | None, covered: bool, how: str, visit: serving.Visit) -> list[Any]:
            visit.clear()
            with desk.taken(path, picture=False) as file:
                scan = opened(file, desk.limits)
            result = pipeline(scan, mask=covered, pool=how)
            visit.data = scan
            return [None, *answered(result, visit), visit]

        def again(covered: bool, how: str, visit: serving.Visit) -> list[Any]:
            if not isinstance(visit.data, readers.Scan):
                raise InputError("open a picture first")
            return answered(pipeline(visit.data, mask=covered, pool=how), visit)

        def blank() -> list[Any]:
            return [None, _WAITING, "", "", "", *(gr.DownloadButton(visible=False) for _ in range(2))]

        outputs = [said, marks, answer, shown, rows, drawing]
        event = given.upload(
            take, [given, mask, pool, desk.state], [given, *outputs, desk.state], show_progress_on=[said]
        )
        event.failure(blank, None, [given, *outputs], show_progress="hidden")
        for choice in (mask, pool):
            choice.input(again, [mask, pool, desk.state], outputs, show_progress_on=[said])

    looked = f"looks for {pipeline.positive}" if pipeline.positive else f"tells {', '.join(pipeline.names)} apart"
    return serving.Page(
        "Ultrasound screening",
        f"A network {looked}. Files stay on this machine and go with the visit.",
        build,
        note=f"{NOTICE[:1].upper()}{NOTICE[1:]}.",
        style=_STYLE,
    )


def opened(file: Path, limits: serving.Limits) -> readers.Scan:
    """The uploaded picture or loop, read whole, without anything that names it.

    Raises FileError for one of too many pixels, and what `readers.read` raises.
    """
    scan = readers.read(file)
    size = int(np.prod(scan.shape, dtype=np.int64))
    if size > limits.pixels:
        most = f"at most {limits.pixels / 1e6:g} million are taken here"
        raise FileError("the picture", f"has {size / 1e6:.3g} million pixels in its frames", most)
    values, valid = scan.array()  # the file is deleted before the answer is asked for again
    meta = replace(scan.meta, id="answer", path="the picture", group="")
    return replace(scan, meta=meta, window=held(values, valid))


def written(result: Screening, folder: Path) -> list[Path]:
    """The answer and its drawing as files in the visit's folder."""
    rows, drawing = folder / "answer.csv", folder / "answer.png"
    frames = result.frame_rows()
    # One table: the loop's row, then a row for each frame.
    head = result.row() | {"frame": "all" if frames else ""}
    write_text(rows, tables.written([head, *frames], list(head)))
    result.save(drawing)
    return [rows, drawing]


def told(result: Screening) -> str:
    """Frames, and what was done to the values."""
    parts = [f"{len(result.frames)} frames" if result.cine else "one picture"]
    return "; ".join([*parts, *result.meta.applied, *result.remarks])


def noticed(result: Screening) -> str:
    """What was found burned in, and what became of it."""
    if not result.marks:
        return "<p>No burned-in text or calipers were found. Look yourself before you pass the picture on.</p>"
    text = " It may name the patient; it is masked in the drawing." if result.marks.text.any() else ""
    seen = "was masked before the network saw it" if result.masked else "was left as it is for the network"
    words = result.marks.sentence().removeprefix("burned-in: ")
    return f"<p>Burned in: {html.escape(words)}.{text} The picture {seen}.</p>"


def probabilities(result: Screening) -> str:
    """Classes with their probabilities as an HTML table."""
    lines = []
    for name in sorted(result.classes, key=lambda n: -result.probability(n)):
        kind = ' class="called"' if name == result.called else ""
        at = f"{result.threshold:.3f}" if name == result.positive and result.threshold is not None else ""
        lines.append(f"<tr{kind}><td>{html.escape(name)}</td><td>{result.probability(name):.3f}</td><td>{at}</td></tr>")
    head = "<tr><th scope=col>class</th><th scope=col>probability</th><th scope=col>threshold</th></tr>"
    return f"<p>Called: <b>{html.escape(result.called)}</b></p><table><thead>{head}</thead>{''.join(lines)}</table>"


def drawn(result: Screening) -> str:
    """The drawing as HTML that holds the picture in itself."""
    words = f"the picture, called {html.escape(result.called)}, and what the network looked at"
    return f'<img src="{pictures.inline(result.draw())}" alt="{words}">'
