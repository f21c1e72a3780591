"""What a page's handlers raise, as one sentence for the visitor; and what is done when the visitor leaves."""

from __future__ import annotations

import contextlib
import functools
import html
import inspect
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from core._serving_visits import Root, Visit
from core.errors import InputError

_SHOWN = 12  # seconds


def leaving(blocks: Any, gradio: Any) -> Callable[..., None]:
    """A handler that deletes a visitor's state and files when the page is closed."""

    def leave(request: Any) -> None:
        session = blocks.state_holder.session_data.pop(request.session_hash, None)
        for value in session.state_data.values() if session is not None else ():
            if isinstance(value, Visit):
                value.end()

    leave.__annotations__["request"] = gradio.Request
    return leave


def guarded(handler: Callable[..., Any], root: Root, gradio: Any) -> Callable[..., Any]:
    """A handler whose errors reach the page as one sentence."""

    @contextlib.contextmanager
    def sentences() -> Iterator[None]:
        try:
            yield
        except gradio.Error:
            raise
        except InputError as error:
            words = html.escape(root.named(" ".join(str(error).split())))
            raise gradio.Error(words, title="That cannot be done", duration=_SHOWN, print_exception=False) from None
        except Exception as error:
            # The sentence on the terminal names the fault; what is in the message may name a person.
            where = _line(error)
            sys.stderr.write(f"failed: {type(error).__name__} at {where}\n")
            words = f"something went wrong here ({type(error).__name__}); the terminal says where"
            raise gradio.Error(words, title="That failed", duration=_SHOWN, print_exception=False) from None

    if inspect.isgeneratorfunction(handler):

        @functools.wraps(handler)
        def steps(*values: Any, **named: Any) -> Iterator[Any]:
            with sentences():
                yield from handler(*values, **named)

        return steps

    @functools.wraps(handler)
    def answer(*values: Any, **named: Any) -> Any:
        with sentences():
            return handler(*values, **named)

    return answer


def _line(error: BaseException) -> str:
    """File and line where an error arose."""
    found = inspect.getinnerframes(error.__traceback__) if error.__traceback__ else []
    return f"{Path(found[-1].filename).name}:{found[-1].lineno}" if found else "an unknown place"
