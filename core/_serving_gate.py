"""What stands between the network and Gradio: only the routes that a page needs, bounded bodies, no foreign address."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from core._serving_visits import Root

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

API = "/gradio_api"
_WORDS = 4 << 20  # bytes that an event's JSON may have: texts and numbers, never files
_FORM = 1 << 16  # bytes that a form adds to its files
_ROUTES = re.compile(
    r"/|/config/?|/theme\.css|/favicon\.ico|/robots\.txt|/(assets|static)/.*"
    rf"|{API}/(upload|upload_progress|queue/join|queue/data|cancel|reset/?|heartbeat/\w+|startup-events|file=.*)"
)
# A browser that honours this asks no other host for anything, whatever a package's page names.
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; worker-src 'self' blob:; "
    "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
_HEADERS = [
    (b"content-security-policy", _POLICY.encode()),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
]
# Addresses for the previews of other sites, and a manifest that is not there.
_FOREIGN = re.compile(rb'\s*<(?:meta\s+(?:property|name)="(?:og|twitter):|link rel="manifest")[^>]*/>')


class Gate:
    """ASGI: passes on what a page needs, refuses the rest.

    Args:
        app: Gradio's.
        root: of the server's files.
        bytes_: that one upload (all files of it) may have.
        hosts: names by which this server may be called, None for any. A page of another site that points its own
            name at this machine is refused so.
    """

    def __init__(self, app: App, root: Root, bytes_: int, hosts: frozenset[str] | None) -> None:
        self.app, self.root, self.bytes, self.hosts = app, root, bytes_, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            return
        path = str(scope["path"])
        headers = dict(scope["headers"])
        if self.hosts is not None and _host(headers) not in self.hosts:
            await _answer(send, 400, "this address is not one of this server")
        elif not _same(headers):
            await _answer(send, 403, "another page may not ask this server for anything")
        elif not _ROUTES.fullmatch(path) or not self._ours(path):
            await _answer(send, 404, "there is nothing at this address")
        else:
            await self._pass(scope, path, headers, receive, send)

    def _ours(self, path: str) -> bool:
        lead = f"{API}/file="
        return not path.startswith(lead) or self.root.holds(path[len(lead) :])

    async def _pass(self, scope: Scope, path: str, headers: dict[bytes, bytes], receive: Receive, send: Send) -> None:
        upload = path == f"{API}/upload"
        limit = self.bytes + _FORM if upload else _WORDS
        said = headers.get(b"content-length", b"0")
        if not said.isdigit() or int(said) > limit:
            await _answer(send, 413, self.too_large(upload))
            return
        counted = _Counted(receive, limit)
        if path == f"{API}/queue/join":
            body = await counted.all()
            if body is None:
                await _answer(send, 413, self.too_large(upload=False))
                return
            if not self._known(body):
                await _answer(send, 400, "the request names a file that was not uploaded here")
                return
            await self.app(scope, _again(body, receive), _with(send, _HEADERS))
        elif path == "/":
            await _page(self.app, scope, counted, send)
        else:
            await self.app(scope, counted, _with(send, _HEADERS))

    def too_large(self, upload: bool = True) -> str:
        most = f"{self.bytes / 1e6:.3g} MB" if upload else f"{_WORDS / 1e6:.3g} MB"
        return f"this is larger than the {most} taken here; give something smaller"

    def _known(self, body: bytes) -> bool:
        """Whether every file that a request names was uploaded: Gradio would fetch web addresses."""
        try:
            found = json.loads(body)
        except ValueError:
            return False
        left = [found]
        while left:
            one = left.pop()
            if isinstance(one, dict):
                left.extend(one.values())
                path = one.get("path")
                if isinstance(path, str) and not self.root.holds(path):
                    return False
            elif isinstance(one, list):
                left.extend(one)
        return True


class _Counted:
    """A request's body, cut off where it grows beyond its limit, whatever its head says."""

    def __init__(self, receive: Receive, limit: int) -> None:
        self.receive, self.left = receive, limit

    async def __call__(self) -> Message:
        message = await self.receive()
        if message["type"] == "http.request":
            self.left -= len(message.get("body", b""))
            if self.left < 0:
                return {"type": "http.disconnect"}
        return message

    async def all(self) -> bytes | None:
        parts = []
        while True:
            message = await self()
            if message["type"] != "http.request":
                return None
            parts.append(message.get("body", b""))
            if not message.get("more_body"):
                return b"".join(parts)


def _again(body: bytes, receive: Receive) -> Receive:
    given = False

    async def read() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return read


def _with(send: Send, headers: list[tuple[bytes, bytes]]) -> Send:
    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", []), *headers]}
        await send(message)

    return sent


async def _page(app: App, scope: Scope, receive: Receive, send: Send) -> None:
    """The page itself, without the addresses of other hosts that Gradio's template names."""
    plain = {**scope, "headers": [(k, v) for k, v in scope["headers"] if k != b"accept-encoding"]}
    start: Message = {}
    parts: list[bytes] = []

    async def collect(message: Message) -> None:
        nonlocal start
        if message["type"] == "http.response.start":
            start = message
            return
        parts.append(message.get("body", b""))
        if message.get("more_body"):
            return
        body = _FOREIGN.sub(b"", b"".join(parts))
        kept = [(k, v) for k, v in start["headers"] if k.lower() != b"content-length"]
        length = (b"content-length", str(len(body)).encode())
        await send({**start, "headers": [*kept, length, *_HEADERS]})
        await send({"type": "http.response.body", "body": body})

    await app(plain, receive, collect)


def _host(headers: dict[bytes, bytes]) -> str:
    name = headers.get(b"host", b"").decode("latin-1").lower()
    return name.rpartition(":")[0] if re.search(r":\d+$", name) else name


def _same(headers: dict[bytes, bytes]) -> bool:
    """Whether a request comes from the page itself (browsers name the page that asks), or from no page."""
    origin = headers.get(b"origin")
    return origin is None or origin.partition(b"://")[2].lower() == headers.get(b"host", b"").lower()


async def _answer(send: Send, status: int, text: str) -> None:
    body = text.encode()
    head = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode()), *_HEADERS]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": body})


def uploads(app: Any, blocks: Any, root: Root, bytes_: int, most: str) -> None:
    """Take uploads in Gradio's place: each in a folder of its own.

    Gradio names the folder by the content, so that two visitors with one file would share it, and deleting the one's
    would delete the other's.

    Args:
        app: FastAPI, before Gradio is mounted on it.
        blocks: Gradio's, which is told what came, for its own clearing away.
        root: where files go.
        bytes_: of each file.
        most: what to say of larger ones.
    """
    from fastapi import BackgroundTasks, Request
    from fastapi.responses import JSONResponse, PlainTextResponse, Response
    from gradio.route_utils import upload_fn
    from gradio.routes import file_upload_statuses
    from starlette.formparsers import MultiPartException
    from starlette.requests import ClientDisconnect

    async def upload(request: Request, tasks: BackgroundTasks, upload_id: str | None = None) -> Response:
        folder = root.new()
        try:
            files, _, _ = await upload_fn(
                request, folder, bytes_, upload_id, upload_progress=file_upload_statuses if upload_id else None
            )
        except (MultiPartException, ClientDisconnect):
            shutil.rmtree(folder, ignore_errors=True)
            return PlainTextResponse(most, status_code=413)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        blocks.upload_file_set.update(files)
        return JSONResponse([str(f) for f in files])

    # Annotations are texts here, and FastAPI would look for their names in the module.
    upload.__annotations__ |= {"request": Request, "tasks": BackgroundTasks, "return": Response}
    app.add_api_route(f"{API}/upload", upload, methods=["POST"], response_model=None)
