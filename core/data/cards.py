"""Dataset cards: what a data set is, where it comes from and how its published folder looks.

A card is `datasets/<name>/card.md`: TOML between two lines of `+++`, then prose. Cards are looked for in the folder
that GLOCAL_DATASETS names, else in ./datasets, else beside this checkout.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path, PurePosixPath
from typing import Any

from core.config import merge
from core.errors import InputError, SettingError, UnknownNameError

VARIABLE = "GLOCAL_DATASETS"
_HASH = {"sha256": 64, "md5": 32}


class CardError(InputError):
    """A card that cannot be read; the message names the file and the entry."""


@dataclass(frozen=True)
class Split:
    name: str = ""
    samples: int = 0
    rule: str = ""  # how it was made


@dataclass(frozen=True)
class File:
    path: str = ""  # inside the data set's folder
    bytes: int | None = None
    sha256: str = ""
    md5: str = ""  # where the publisher gives only this
    optional: bool = False  # may be missing (an archive beside its unpacked files)


@dataclass(frozen=True)
class Layout:
    pattern: str = ""  # of paths inside the folder, a star within one name; with "/" at its end of folders
    count: int | None = None  # exact number of matches; at least one by default
    format: str = ""  # what the files are (core.data.verify.FORMATS), "" for not opened


@dataclass(frozen=True)
class Attribution:
    picture: str = ""
    author: str = ""
    licence: str = ""
    source: str = ""


@dataclass(frozen=True)
class Card:
    """One data set.

    Attributes:
        samples: of all splits together.
        classes: 0 where there are none.
        size: rows and columns in pixels, or what they vary between.
        units: what a value means.
        channels: names, in the stored order.
        mean, std: per channel, of values from 0 to 1, as the published recipes use them.
        made: what the sample set is made of, said plainly.
        text: the prose below the front matter.
    """

    name: str
    title: str
    task: str
    licence: str
    source: str
    citation: str
    samples: int
    classes: int
    size: str
    units: str
    channels: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    splits: tuple[Split, ...]
    layout: tuple[Layout, ...]
    made: str = ""
    files: tuple[File, ...] = ()
    attribution: tuple[Attribution, ...] = ()
    text: str = ""


_PARTS: dict[str, type] = {"splits": Split, "files": File, "layout": Layout, "attribution": Attribution}


def read(path: Path) -> Card:
    """The card in a file, every entry checked. Raises CardError with the file, the entry and what would be right."""
    try:
        content = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise CardError(f"{path}: no such card") from None
    except UnicodeDecodeError:
        raise CardError(f"{path}: not a text in UTF-8") from None
    found = re.match(r"\A\+\+\+[ \t]*\r?\n(.*?)^\+\+\+[ \t]*\r?$\n?(.*)\Z", content, re.S | re.M)
    if found is None:
        raise CardError(f"{path}: a card starts with TOML between two lines of +++")
    try:
        values = tomllib.loads(found[1].replace("\r\n", "\n"))
    except tomllib.TOMLDecodeError as error:
        raise CardError(f"{path}: the front matter is not TOML ({error})") from None
    try:
        card = _card(values, found[2].strip())
    except InputError as error:
        raise CardError(f"{path}: {error}") from None
    if card.name != path.parent.name:
        raise CardError(f"{path}: is named {card.name!r}, but its folder {path.parent.name!r}")
    return card


def _card(values: Mapping[str, Any], text: str) -> Card:
    known = {f.name for f in fields(Card)} - {"text"}
    for key in values:
        if key not in known:
            raise UnknownNameError("entry of a card", key, known)
    missing = [f.name for f in fields(Card) if f.default is MISSING and f.name not in values]
    if missing:
        raise SettingError(f"has no {', '.join(map(repr, missing))}")
    parts = {key: _parts(key, values[key]) for key in _PARTS if key in values}
    plain = {k: v for k, v in values.items() if k not in _PARTS}
    empty = Card("", "", "", "", "", "", 0, 0, "", "", (), (), (), (), ())
    card = merge(empty, {**plain, "text": text}, kind="entry")
    card = Card(**{f.name: parts.get(f.name, getattr(card, f.name)) for f in fields(Card)})
    for key in ("name", "title", "task", "licence", "source", "citation", "size", "units"):
        if not getattr(card, key).strip():
            raise SettingError(f"entry {key!r} is empty")
    _agree(card)
    return card


def _parts(key: str, values: Any) -> tuple[Any, ...]:
    if not isinstance(values, list) or not all(isinstance(v, Mapping) for v in values):
        raise SettingError(f"entry {key!r} is a list of tables ([[{key}]])")
    return tuple(merge(_PARTS[key](), value, kind=f"entry of [[{key}]]") for value in values)


def _agree(card: Card) -> None:
    """Entries that must fit one another."""
    if not len(card.channels) == len(card.mean) == len(card.std):
        raise SettingError(
            f"{len(card.channels)} channels, but {len(card.mean)} values of mean and {len(card.std)} of std"
        )
    if sum(s.samples for s in card.splits) != card.samples:
        parts = " + ".join(str(s.samples) for s in card.splits)
        raise SettingError(f"samples is {card.samples}, but the splits have {parts or 'none'}")
    if not card.layout:
        raise SettingError("entry 'layout' is empty: say which paths the published folder has")
    for path in (*(f.path for f in card.files), *(p.pattern for p in card.layout)):
        pure = PurePosixPath(path)
        if not path or pure.is_absolute() or ".." in pure.parts:
            raise SettingError(f"{path!r} is not a path inside the data set's folder")
    for file in card.files:
        for kind, length in _HASH.items():
            value = getattr(file, kind)
            if value and not re.fullmatch(rf"[0-9a-f]{{{length}}}", value):
                raise SettingError(f"{kind} of {file.path!r} is {length} hexadecimal digits, got {value!r}")
    for picture in card.attribution:
        if not (picture.picture and picture.author and picture.licence and picture.source):
            raise SettingError("each [[attribution]] has picture, author, licence and source")


def places() -> list[Path]:
    """The folders in which cards are looked for, best first."""
    given = os.environ.get(VARIABLE)
    if given:
        return [Path(given)]
    return list(dict.fromkeys([Path("datasets").resolve(), Path(__file__).resolve().parents[2] / "datasets"]))


def folder() -> Path:
    """The first place that has cards. Raises InputError that names every place."""
    for place in places():
        if any(place.glob("*/card.md")):
            return place
    looked = " and ".join(str(p) for p in places())
    raise InputError(f"no data set cards (<name>/card.md) in {looked}; set {VARIABLE} to the folder that holds them")


def names() -> list[str]:
    """The data sets that have a card; none where there are no cards."""
    try:
        return sorted(p.parent.name for p in folder().glob("*/card.md"))
    except InputError:
        return []


def find(name: str) -> Card:
    """The card of a data set; a wrong name is answered with near ones."""
    home = folder()
    known = names()
    if name not in known:
        raise UnknownNameError("data set", name, known)
    return read(home / name / "card.md")
