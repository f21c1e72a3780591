"""The page `glocal deblurring serve`: a photograph before and after, and where blur was found."""

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apps.deblurring.pipeline import Pipeline
from apps.deblurring.results import Deblurred
from core import pictures, serving

LIMITS = serving.Limits(megabytes=150, pixels=60_000_000)
SHOWN = 1280  # longest side of what the browser is sent; the file to download is whole
_KINDS = {"JPEG": ".jpg", "TIFF": ".tif"}  # of the result, by the photograph's; else PNG
_FOUND = (213, 94, 0)  # colour of blur in the mask's view
_QUALITY = 92
_STYLE = """
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
            label=f"Photograph: JPEG, PNG, TIFF or WebP, up to {desk.limits.megabytes:g} MB "
            f"and {desk.limits.pixels / 1e6:g} million pixels",
            height=170, elem_id="given",
        )  # fmt: skip
        said = gr.HTML(_WAITING, elem_id="said", js_on_load=None)
        slider = gr.ImageSlider(
            label="Before (left) and after (right); drag the line", interactive=False, visible=False, elem_id="slider",
            max_height=600, buttons=["fullscreen"],
        )  # fmt: skip
        mask = gr.Image(
            label="Where blur was found (orange)", interactive=False, visible=False, elem_id="mask",
            buttons=["fullscreen"],
        )  # fmt: skip
        with gr.Row():
            whole = gr.DownloadButton("Save the photograph", visible=False, variant="primary", elem_id="whole")
            found = gr.DownloadButton("Save the blur mask", visible=False, elem_id="found")

        # The default of `progress` is how Gradio knows that it is to be given.
        def take(path: str | None, visit: serving.Visit, progress: gr.Progress = gr.Progress()) -> list[Any]:  # noqa: B008
            from core.data import photos

            with desk.taken(path) as file:
                photo = photos.read(file, max_pixels=desk.limits.pixels, colour=False)
            visit.clear()
            result = pipeline(photo, progress=lambda done, rows: progress(done / rows, desc="Deblurring"))
            files = written(result, visit.folder, photo.format)
            high, wide = result.mask.shape
            words = (
                f"{photo.meta.id}: {wide} x {high} pixels, {result.image.dtype}; "
                f"blur was found in {result.blurred:.0%} of them."
            )
            return [
                None,
                f"<p>{html.escape(words)}</p>",
                gr.ImageSlider((str(files["before"]), str(files["after"])), visible=True),
                gr.Image(str(files["mask"]), visible=True),
                gr.DownloadButton(value=str(files["whole"]), visible=True),
                gr.DownloadButton(value=str(files["found"]), visible=True),
                visit,
            ]

        def blank() -> list[Any]:
            hidden = [part(visible=False) for part in (gr.ImageSlider, gr.Image, gr.DownloadButton, gr.DownloadButton)]
            return [None, _WAITING, *hidden]

        outputs = [given, said, slider, mask, whole, found]
        event = given.upload(take, [given, desk.state], [*outputs, desk.state], show_progress_on=[said])
        event.failure(blank, None, outputs, show_progress="hidden")

    return serving.Page(
        "Deblurring",
        "Open a photograph with motion blur. The whole of it is worked on at its own size and depth.",
        build,
        style=_STYLE,
    )


def written(result: Deblurred, folder: Path, format: str) -> dict[str, Path]:
    """What the page shows and offers, as files in a visit's folder.

    Returns before, after and mask (views for the browser), whole (the photograph at its full size and depth, in its own
    format where that is JPEG, PNG or TIFF) and found (the mask as grey PNG).
    """
    kind = _KINDS.get(format, ".png")
    if kind == ".jpg" and (result.image.dtype != np.uint8 or (result.photo and result.photo.alpha is not None)):
        kind = ".png"
    name = result.meta.id or "photograph"
    files = {
        "whole": folder / f"{name}-deblurred{kind}",
        "found": folder / f"{name}-blur.png",
        **{view: folder / f"{view}.jpg" for view in ("before", "after", "mask")},
    }
    result.save(files["whole"])
    result.save_mask(files["found"])
    before, after = view(result.before), view(result.image)
    blur = pictures.resized(np.ascontiguousarray(result.mask[_step(result.mask)]), *before.shape[:2], smooth=True)
    # As dark as the photograph where nothing was found, orange where the network is sure.
    share = blur[..., None].astype(np.float32) / 255 * 0.75
    over = (before * (1 - share) + np.array(_FOUND, np.float32) * share).round().astype(np.uint8)
    for which, pixels in (("before", before), ("after", after), ("mask", over)):
        _jpeg(files[which], pixels)
    return files


def view(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    """(H, W, C) of any stored type -> (h, w, 3) uint8 of at most SHOWN a side, for the browser."""
    part = pixels[_step(pixels)]  # first whole steps, so that no copy of a large photograph is made
    if part.dtype == np.uint16:
        part = (part >> 8).astype(np.uint8)
    elif part.dtype != np.uint8:
        part = np.rint(np.clip(part, 0, 1) * 255).astype(np.uint8)
    part = np.repeat(part, 3, axis=2) if part.shape[2] == 1 else part
    factor = min(1.0, SHOWN / max(part.shape[:2]))
    size = [max(1, round(n * factor)) for n in part.shape[:2]]
    return pictures.resized(np.ascontiguousarray(part), size[0], size[1], smooth=True)


def _step(pixels: NDArray[Any]) -> tuple[slice, slice]:
    step = max(1, max(pixels.shape[:2]) // (2 * SHOWN))
    return slice(None, None, step), slice(None, None, step)


def _jpeg(path: Path, pixels: NDArray[np.uint8]) -> None:
    from PIL import Image

    Image.fromarray(pixels).save(path, quality=_QUALITY, subsampling=0)
