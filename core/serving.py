"""A pipeline as a page in the browser: one function for every app, on Gradio.

The page is served to this machine alone unless another address is asked for. Nothing of it comes from another host.
What a visitor uploads, and what is made of it, lies in a folder of that server and goes with the visit.
"""

from __future__ import annotations

import contextlib
import html
import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core import _serving_server
from core._serving_gate import Gate, uploads
from core._serving_guard import guarded, leaving
from core._serving_server import ANY, LOCAL, OWN
from core._serving_visits import Root, Visit, picture_size
from core.errors import FileError, InputError, MissingExtraError, SettingError

__all__ = ["LOCAL", "PORT", "Desk", "Limits", "Page", "Running", "Visit", "run", "serve"]

PORT = 7860
_VISITS = 100  # whose state is kept; beyond that the oldest is dropped
_WAITING = 32  # events that may wait for the one worker
_STALE = (600, 3600)  # every ten minutes, files of an hour ago that no visit claimed
_STYLE = """
.gradio-container { max-width: 76rem !important; width: 100% !important; margin: 0 auto !important }
.gradio-container main, .gradio-container .wrap, .gradio-container .contain { width: 100% }
.page-head h1 { font-size: 1.5rem; font-weight: 600; margin: .5rem 0 .1rem } .page-head p { margin: 0; opacity: .8 }
.page-foot p { margin-top: 1rem; padding-top: .6rem; border-top: 1px solid var(--border-color-primary); opacity: .8 }
:focus-visible { outline: 2px solid var(--color-accent) !important; outline-offset: 2px }
footer { display: none !important }
"""


@dataclass(frozen=True)
class Limits:
    """Of what visitors give.

    Attributes:
        megabytes: of one upload, 10^6 bytes.
        pixels: of one picture, by its head, before anything is decoded.
    """

    megabytes: float = 100
    pixels: int = 100_000_000


@dataclass(frozen=True)
class Desk:
    """What a page's handlers need of the server.

    Attributes:
        state: a gr.State holding this visitor's Visit; name it among a handler's inputs.
        limits: of what visitors give.
    """

    state: Any
    limits: Limits
    _root: Root

    def received(self, path: str | Path | None, *, picture: bool = True) -> Path:
        """An uploaded file, checked: it came by this page, its size is allowed, and so are a picture's pixels.

        Raises InputError where nothing was given, FileError for what cannot be taken.
        """
        if not path:
            raise InputError("no file was given; choose one first")
        file = Path(path)
        if not self._root.holds(file) or not file.is_file():
            raise FileError(file.name, "is not here any more", "give it again")
        if file.stat().st_size > self.limits.megabytes * 1e6:
            raise FileError(file.name, f"is larger than the {self.limits.megabytes:g} MB taken here")
        if picture:
            picture_size(file, max_pixels=self.limits.pixels)
        return file

    def named(self, error: Exception) -> str:
        """An error's sentence as a visitor may read it: files by their names alone."""
        return self._root.named(" ".join(str(error).split()))

    @contextlib.contextmanager
    def taken(self, path: str | Path | None, *, picture: bool = True) -> Iterator[Path]:
        """`received`, and the file deleted when the block ends: what was read is not kept twice."""
        try:
            yield self.received(path, picture=picture)
        finally:
            if path:
                self.discard(path)

    def discard(self, path: str | Path) -> None:
        """Delete an upload; a path that is none is left alone."""
        self._root.drop(path)


@dataclass(frozen=True)
class Page:
    """What a page shows.

    Attributes:
        title: its heading, and the browser's.
        about: a sentence below.
        build: lays out components and their handlers inside an open gr.Blocks. Errors of handlers need no care: a
            user's mistake (core.errors) is shown as its sentence, anything else as a sentence of its kind.
        note: a line at the foot.
        style: CSS.
    """

    title: str
    about: str
    build: Callable[[Desk], None]
    note: str = ""
    style: str = ""


@dataclass(frozen=True)
class Running:
    """A page that is being served.

    Attributes:
        address: for the browser.
        folder: of its visitors' files.
    """

    address: str
    folder: Path
    _thread: threading.Thread

    def wait(self) -> None:
        """Until the server has ended."""
        while self._thread.is_alive():
            self._thread.join(0.2)  # with a limit, so that Ctrl-C is heard


def serve(
    page: Page, *, host: str = LOCAL, port: int = PORT, limits: Limits | None = None, open_browser: bool = False
) -> None:
    """Serve a page until Ctrl-C (or SIGTERM), then leave nothing behind.

    Args:
        page: what to show.
        host: address to listen on: this machine's own by default, 0.0.0.0 for every network it is in.
        port: 0 for any that is free.
        limits: of what visitors give.
        open_browser: once it runs.

    Raises:
        MissingExtraError: Gradio is not installed.
        SettingError: the address is taken, or is not one of this machine.
    """
    ended = [False]

    def end(*_: object) -> None:
        if not ended[0]:  # the second of two signals would break off the clearing away
            ended[0] = True
            raise KeyboardInterrupt

    main = threading.current_thread() is threading.main_thread()
    before = {s: signal.signal(s, end) for s in (signal.SIGINT, signal.SIGTERM)} if main else {}
    try:
        with run(page, host=host, port=port, limits=limits) as running:
            print(f"{page.title}: {running.address} (Ctrl-C ends it)", flush=True)
            if host not in OWN:
                print("note: whoever reaches this machine by the network can use the page", flush=True)
            if open_browser:
                import webbrowser

                webbrowser.open(running.address)
            running.wait()
    except KeyboardInterrupt:
        print("\nended", flush=True)
    finally:
        for which, handler in before.items():
            signal.signal(which, handler)


@contextlib.contextmanager
def run(page: Page, *, host: str = LOCAL, port: int = 0, limits: Limits | None = None) -> Iterator[Running]:
    """Serve a page beside what the block does; arguments and errors as of `serve`."""
    limits = limits or Limits()
    if limits.megabytes <= 0 or limits.pixels <= 0:
        raise SettingError(f"limits of uploads are positive, got {limits.megabytes:g} MB and {limits.pixels} pixels")
    _import()
    listening = _serving_server.listen(host, port)
    root = Root()
    try:
        number = int(listening.getsockname()[1])
        app = _app(page, limits, root, host, number)
        server, thread = _serving_server.start(app, listening)
        try:
            yield Running(f"http://{_serving_server.shown(host)}:{number}/", root.folder, thread)
        finally:
            server.should_exit = True
            thread.join(10)
    finally:
        listening.close()
        root.end()


def _import() -> Any:
    os.environ.update(GRADIO_ANALYTICS_ENABLED="False", HF_HUB_DISABLE_TELEMETRY="1")
    try:
        import gradio
    except ImportError:
        raise MissingExtraError("gradio", "serve") from None
    return gradio


def _app(page: Page, limits: Limits, root: Root, host: str, port: int) -> Gate:
    """The ASGI application."""
    gradio = _import()
    from fastapi import FastAPI

    with gradio.Blocks(title=page.title, analytics_enabled=False, delete_cache=_STALE) as blocks:
        state = gradio.State(Visit(root))
        gradio.HTML(
            f"<h1>{html.escape(page.title)}</h1><p>{html.escape(page.about)}</p>", elem_classes="page-head",
            js_on_load=None,
        )  # fmt: skip
        page.build(Desk(state, limits, root))
        if page.note:
            gradio.HTML(f"<p>{html.escape(page.note)}</p>", elem_classes="page-foot", js_on_load=None)
        blocks.unload(leaving(blocks, gradio))
    for handler in blocks.fns.values():
        if any(isinstance(i, gradio.Image | gradio.ImageSlider | gradio.Gallery) for i in handler.inputs):
            raise TypeError("Gradio decodes pictures before a handler can check them; take files by gradio.File")
        if handler.fn is not None:
            handler.fn = guarded(handler.fn, root, gradio)
        handler.concurrency_id, handler.concurrency_limit = "network", 1
        handler.api_visibility = "private"
    blocks.queue(max_size=_WAITING, api_open=False)
    blocks.state_session_capacity = _VISITS
    bytes_ = int(limits.megabytes * 1e6)
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    gate = Gate(app, root, bytes_, None if host in ANY else OWN | {host.lower(), f"[{host.lower()}]"})
    uploads(app, blocks, root, bytes_, gate.too_large())
    gradio.mount_gradio_app(
        app, blocks, "/", server_name=host, server_port=port, footer_links=[], run_history=False, root_path="",
        allowed_paths=[], show_error=False, max_file_size=bytes_, ssr_mode=False, enable_monitoring=False, pwa=False,
        mcp_server=False, theme=_theme(gradio), css=_STYLE + page.style,
    )  # fmt: skip
    blocks.has_launched = True  # else Gradio takes any path of this machine for an uploaded file
    return gate


def _theme(gradio: Any) -> Any:
    """Plain, in the fonts of the visitor's system: others would be fetched."""
    letters = ["system-ui", "-apple-system", "sans-serif"]
    return gradio.themes.Default(
        primary_hue="blue", neutral_hue="gray", font=letters, font_mono=["ui-monospace", "monospace"],
        radius_size="sm",
    )  # fmt: skip
