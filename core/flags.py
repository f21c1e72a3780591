"""Dataclasses of settings as optional flags of a command: what is not given stays as the preset has it."""

from __future__ import annotations

import dataclasses
import tomllib
import typing
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

from cyclopts import Parameter

from core.config import merge
from core.errors import FileError, SettingError

T = TypeVar("T")


def optional(kind: type, prefix: str = "", *, without: Collection[str] = ()) -> type:
    """A frozen dataclass with the fields and help of `kind`, each None until given, as flags `--PREFIX.field`.

    Fields named in `without` are left out, for the command to take in another form. Use it as the type of a command's
    parameter named "*". Switches also come as `--PREFIX.no-field`.
    """
    hints = typing.get_type_hints(kind)
    lead = f"--{prefix}." if prefix else "--"
    annotations: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        if field.name in without:
            continue
        name = field.name.replace("_", "-")
        negative = f"{lead}no-{name}" if hints[field.name] is bool else ()
        flag = Parameter(name=lead + name, negative=negative, show_default=False)
        annotations[field.name] = Annotated[hints[field.name] | None, flag]
    body = {
        "__annotations__": annotations,
        "__doc__": kind.__doc__,
        "__module__": __name__,
        **dict.fromkeys(annotations),
    }
    return dataclasses.dataclass(frozen=True)(type(f"{kind.__name__}Flags", (), body))


def settle(preset: T, table: Mapping[str, Any], flags: Any) -> T:
    """The preset with a file's settings over it, and the given flags over those.

    Raises UnknownNameError or SettingError for a setting of the file that `preset` does not have or cannot hold.
    """
    given = {f.name: v for f in dataclasses.fields(flags) if (v := getattr(flags, f.name)) is not None}
    return merge(merge(preset, table), given)


def table(path: Path | None, *names: str) -> dict[str, dict[str, Any]]:
    """The named tables of a TOML file, empty where it lacks them. Raises FileError for any other entry."""
    if path is None:
        return {name: {} for name in names}
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileError(path, "no such settings file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise FileError(path, f"is not a TOML file ({error})") from None
    for key, value in found.items():
        if key not in names or not isinstance(value, dict):
            raise FileError(path, f"has the entry {key!r}", f"it holds the tables {', '.join(f'[{n}]' for n in names)}")
    return {name: found.get(name, {}) for name in names}


def pairs(words: Sequence[str]) -> dict[str, Any]:
    """Settings given as NAME=VALUE, each value as TOML writes it, or a plain word.

    Raises SettingError for a word without "=".

    >>> pairs(["depths=[1, 2]", "rate=0.5", "backbone=swin/tiny"])
    {'depths': [1, 2], 'rate': 0.5, 'backbone': 'swin/tiny'}
    """
    found: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name.strip():
            raise SettingError(f"a setting is NAME=VALUE ('depths=[1, 1, 2, 1]', say), got {word!r}")
        try:
            found[name.strip()] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            found[name.strip()] = value
    return found
