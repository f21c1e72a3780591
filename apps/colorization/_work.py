"""What one visitor of the page does with a photograph: hints come, change and go; each act has an answer to draw."""

import base64
import io
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from apps.colorization import _canvas, hints
from apps.colorization.hints import Hint
from apps.colorization.pipeline import Pipeline, Session
from core import serving
from core.errors import InputError

PREVIEW = 900  # longest side of what the browser is sent
_HUES, _CHROMAS = 9, (16.0, 34.0, 55.0, 80.0)
_ALIKE = 8  # levels by which two offered colours differ at least
_QUALITY = 90
_TURNS = itertools.count()  # no two answers are alike, so that each is drawn
_PAST = 200  # steps that can be undone
_KINDS = {"JPEG": "jpg", "TIFF": "tif"}  # of a saved picture, by the photograph's; else PNG

Hints = tuple[Hint, ...]


@dataclass(eq=False)
class Work:
    """One visitor's photograph and hints.

    Attributes:
        session: of the photograph, None before one is open.
        hints: in order.
        past: what `hints` was before each step, for undoing.
        point: column and row that a colour is chosen for.
        used: colours in the order of their first use.
    """

    pipeline: Pipeline
    limits: serving.Limits
    session: Session | None = None
    hints: Hints = ()
    past: list[Hints] = field(default_factory=list)
    point: tuple[int, int] | None = None
    used: list[str] = field(default_factory=list)
    _preview: NDArray[np.uint8] | None = None

    def answer(self, asked: Mapping[str, Any], desk: serving.Desk, visit: serving.Visit) -> dict[str, Any]:
        """What the board shows after an act; a user's mistake is said there, and nothing else changes."""
        acts: dict[str, Callable[[], dict[str, Any]]] = {
            "open": lambda: self._open(desk, asked.get("path")),
            "load": lambda: self._load(desk, asked.get("path")),
            "point": lambda: self._choose(_whole(asked, "x"), _whole(asked, "y")),
            "colour": lambda: self._colour(str(asked.get("colour"))),
            "remove": lambda: self._remove(_whole(asked, "index")),
            "undo": self._undo,
            "clear": lambda: self._change((), "All hints are removed."),
            "save": lambda: self._save(visit.folder, str(asked.get("kind"))),
            "savehints": lambda: self._save_hints(visit.folder),
        }
        act = acts.get(str(asked.get("act")))
        try:
            if act is None:
                raise InputError("the page asked for something that it cannot do; load it again")
            return self.shown(**act())
        except InputError as error:
            return self.shown(said=desk.named(error), bad=True)

    def shown(self, **more: Any) -> dict[str, Any]:
        """What the board draws; pictures only where they changed."""
        point = None
        offered: list[str] = []
        if self.session is not None and self.point is not None:
            x, y = self.point
            at = self._at(x, y)
            colour = _hex(self.hints[at].colour) if at is not None else _hex(self._got(x, y))
            point = {"x": x, "y": y, "hint": at, "colour": colour}
            offered = grid(self.session.luminance(x, y))
        return {
            "turn": next(_TURNS),
            "megabytes": self.limits.megabytes,
            "takes": f"JPEG, PNG, TIFF or WebP, up to {self.limits.megabytes:g} MB "
            f"and {self.limits.pixels / 1e6:g} million pixels",
            "size": None if self.session is None else list(self.session.size[::-1]),
            "hints": [
                {"x": h.x, "y": h.y, "colour": _hex(h.colour), "got": _hex(self._got(h.x, h.y))} for h in self.hints
            ],
            "point": point,
            "offered": offered,
            "used": self.used,
            "undo": len(self.past),
            "said": "",
            "bad": False,
            **more,
        }

    def _open(self, desk: serving.Desk, path: Any) -> dict[str, Any]:
        from core.data import photos

        with desk.taken(path) as file:
            photo = photos.read(file, max_pixels=self.limits.pixels, colour=False)
        self.session = self.pipeline.open(photo, preview=PREVIEW)
        self.hints, self.past, self.point = (), [], None
        grey = np.repeat(photo.pixels, 3, axis=2) if photo.pixels.shape[2] == 1 else photo.pixels
        rows, columns = self._drawn().shape[:2]
        before = _canvas.stored(_canvas.reduced(grey, rows, columns), np.dtype(np.uint8))
        high, wide = self.session.size
        return {
            "before": picture(before),
            "after": picture(self._drawn()),
            "kind": _KINDS.get(photo.format, "png"),
            "said": f"{photo.meta.id}: {wide} x {high} pixels. The colours without hints are the network's own.",
        }

    def _load(self, desk: serving.Desk, path: Any) -> dict[str, Any]:
        session = self._opened()
        with desk.taken(path, picture=False) as file:
            found = hints.read(file)
        hints.cells(found, session.size, self.pipeline.cells)  # refuses what lies outside
        for hint in found:
            self._use(_hex(hint.colour))
        return self._change(found, f"{_count(found)} loaded.")

    def _choose(self, x: int, y: int) -> dict[str, Any]:
        self._opened().luminance(x, y)  # refuses what lies outside
        self.point = (x, y)
        return {}

    def _colour(self, colour: str) -> dict[str, Any]:
        self._opened()
        if self.point is None:
            raise InputError("click a point of the photograph first")
        new = Hint(*self.point, *_rgb(colour))
        self._use(_hex(new.colour))
        at = self._at(*self.point)
        return self._change((*self.hints, new) if at is None else (*self.hints[:at], new, *self.hints[at + 1 :]))

    def _remove(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self.hints):
            raise InputError("there is no such hint any more")
        return self._change((*self.hints[:index], *self.hints[index + 1 :]))

    def _undo(self) -> dict[str, Any]:
        if not self.past:
            raise InputError("there is nothing to undo")
        self.hints = self.past.pop()
        return self._again("")

    def _change(self, new: Sequence[Hint], said: str = "") -> dict[str, Any]:
        self.past = [*self.past, self.hints][-_PAST:]
        self.hints = tuple(new)
        return self._again(said)

    def _again(self, said: str) -> dict[str, Any]:
        """Colour the preview with the hints as they are now."""
        session = self._opened()
        self._preview = None
        crowded = hints.cells(self.hints, session.size, self.pipeline.cells).said
        return {"after": picture(self._drawn()), "said": " ".join([said, *(f"{c}." for c in crowded)]).strip()}

    def _save(self, folder: Path, kind: str) -> dict[str, Any]:
        session = self._opened()
        if kind not in ("png", "jpg", "tif"):
            raise InputError(f"a picture is saved as png, jpg or tif, got {kind!r}")
        result = session.coloured(self.hints)
        path = folder / f"{session.photo.meta.id}-coloured.{kind}"
        result.save(path)
        high, wide = session.size
        return {"fetch": {"path": str(path), "name": path.name}, "said": f"{path.name}: {wide} x {high} pixels."}

    def _save_hints(self, folder: Path) -> dict[str, Any]:
        session = self._opened()
        path = folder / f"{session.photo.meta.id}-hints.csv"
        hints.write(path, self.hints)
        return {"fetch": {"path": str(path), "name": path.name}, "said": f"{path.name}: {_count(self.hints)}."}

    def _opened(self) -> Session:
        if self.session is None:
            raise InputError("open a photograph first")
        return self.session

    def _drawn(self) -> NDArray[np.uint8]:
        """The preview with the hints as they are, (h, w, 3)."""
        if self._preview is None:
            self._preview = self._opened().preview(self.hints)
        return self._preview

    def _at(self, x: int, y: int) -> int | None:
        """The hint at a pixel."""
        return next((i for i, h in enumerate(self.hints) if (h.x, h.y) == (x, y)), None)

    def _got(self, x: int, y: int) -> tuple[int, int, int]:
        """The colour that a pixel of the photograph has in the preview."""
        small, (rows, columns) = self._drawn(), self._opened().size
        r, g, b = small[y * small.shape[0] // rows, x * small.shape[1] // columns]
        return int(r), int(g), int(b)

    def _use(self, colour: str) -> None:
        if colour not in self.used:
            self.used.append(colour)


def grid(luminance: float) -> list[str]:
    """Colours of a luminance (0..100) that sRGB has, as #rrggbb, in rows of _HUES: pale to strong, grey at the end.

    A place whose colour nearly stands before it (sRGB has few strong ones that are very light or dark) is "".

    >>> [colour for colour in grid(100.0) if colour], len([colour for colour in grid(60.0) if colour])
    (['#ffffff'], 35)
    """
    angle = 2 * np.pi * np.arange(_HUES) / _HUES + 0.6
    chroma = np.array(_CHROMAS)[:, None] / 110
    ab = torch.from_numpy(np.stack([chroma * np.cos(angle), chroma * np.sin(angle)]).astype(np.float32))
    ab = torch.cat([ab.flatten(1), torch.zeros(2, 1)], 1)[:, None]  # (2, 1, colours)
    light = torch.full(ab.shape[1:], (luminance - 50) / 100)
    values = (_canvas.in_srgb(light, ab)[:, 0].T * 255).round().int()
    apart = (values[:, None] - values[None]).abs().amax(2) > _ALIKE  # (colours, colours)
    good = [bool(apart[i, :i].all() and apart[i, -1]) for i in range(len(values) - 1)]
    found = [_hex(v.tolist()) if kept else "" for v, kept in zip(values, [*good, True], strict=True)]
    while len(found) > _HUES and not any(found[-_HUES - 1 : -1]):  # no row of nothing
        found = [*found[: -_HUES - 1], found[-1]]
    return found


def picture(pixels: NDArray[np.uint8]) -> str:
    """(h, w, 3) as a JPEG in an address: quick to encode, small enough for every click."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=_QUALITY, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _hex(colour: Sequence[int]) -> str:
    return "#" + "".join(f"{int(v):02x}" for v in colour)


def _rgb(word: str) -> tuple[int, int, int]:
    digits = word.removeprefix("#")
    if len(word) != 7 or len(digits) != 6 or not all(c in "0123456789abcdefABCDEF" for c in digits):
        raise InputError(f"a colour is #rrggbb, got {word!r}")
    return int(digits[:2], 16), int(digits[2:4], 16), int(digits[4:], 16)


def _whole(asked: Mapping[str, Any], name: str) -> int:
    value = asked.get(name)
    if not isinstance(value, int) or isinstance(value, bool):
        raise InputError(f"{name} is a whole number, got {value!r}")
    return value


def _count(found: Sequence[Hint]) -> str:
    return f"{len(found)} hint{'' if len(found) == 1 else 's'}"
