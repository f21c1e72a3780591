"""The page `glocal colorization serve`: a photograph, points on it, a colour for each, the picture at once."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from apps.colorization import _board
from apps.colorization._work import Work
from apps.colorization.pipeline import Pipeline
from core import serving

LIMITS = serving.Limits(megabytes=60, pixels=50_000_000)


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
    pipeline.open(np.zeros((8, 8), np.uint8)).preview()  # the first call of a network is its slowest
    serving.serve(page(pipeline), host=host, port=port, limits=LIMITS, open_browser=open_browser)


def page(pipeline: Pipeline) -> serving.Page:
    """The page of a pipeline."""

    def build(desk: serving.Desk) -> None:
        import gradio as gr

        limits = desk.limits
        empty = Work(pipeline, limits).shown()
        board = gr.HTML(
            empty, html_template=_board.HTML, js_on_load=_board.SCRIPT, apply_default_css=False, elem_id="board"
        )

        def answer(event: gr.EventData, visit: serving.Visit) -> tuple[dict[str, Any], serving.Visit]:
            work = visit.data = visit.data or Work(pipeline, limits)
            return work.answer(event._data, desk, visit), visit

        def failed(visit: serving.Visit) -> dict[str, Any]:
            words = "That failed; what you see is from before."
            return (visit.data or Work(pipeline, limits)).shown(said=words, bad=True)

        event = board.act(answer, desk.state, [board, desk.state], show_progress="hidden", trigger_mode="multiple")
        event.failure(failed, desk.state, board, show_progress="hidden")

    return serving.Page(
        "Colorization",
        "Open a photograph, click a point, choose its colour. Every hint colours what belongs to it.",
        build,
        style=_board.STYLE,
    )
