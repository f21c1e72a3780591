"""The socket and the thread of a page's server."""

from __future__ import annotations

import errno
import os
import socket
import threading
import time
from typing import Any

from core.errors import SettingError

LOCAL = "127.0.0.1"
OWN = frozenset({LOCAL, "localhost", "[::1]"})
ANY = ("0.0.0.0", "::", "")
_GRACE = 2  # seconds that open answers are given at the end


def listen(host: str, port: int) -> socket.socket:
    """A bound socket. Raises SettingError where that cannot be."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    if os.name == "posix":  # a server that just ended may be followed at once; elsewhere the flag means something else
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host.strip("[]"), port))
        listening.listen(128)
    except (OSError, OverflowError) as error:
        listening.close()
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            raise SettingError(f"port {port} of {host} is taken; name another with --port, or 0 for any") from None
        words = getattr(error, "strerror", None) or str(error)
        raise SettingError(f"cannot listen at {host} port {port} ({words}); --host is an address here") from None
    return listening


def start(app: Any, listening: socket.socket) -> tuple[Any, threading.Thread]:
    import uvicorn

    config = uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=_GRACE, lifespan="on")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listening],), daemon=True, name="glocal-page")
    thread.start()
    while not server.started:
        if not thread.is_alive():
            raise RuntimeError("the page's server ended while it started")
        time.sleep(0.01)
    return server, thread


def shown(host: str) -> str:
    """An address to give to a browser on this machine."""
    host = LOCAL if host in ANY else host.strip("[]")
    return f"[{host}]" if ":" in host else host
