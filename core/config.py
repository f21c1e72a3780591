"""Typed settings: frozen dataclasses, changed only by names that they have."""

from __future__ import annotations

import dataclasses
import tomllib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from core.errors import SettingError, UnknownNameError

T = TypeVar("T")


def merge(config: T, values: Mapping[str, Any], *, kind: str = "") -> T:
    """A copy of the dataclass `config` with `values` in place, checked by name and type.

    Lists become tuples and whole numbers become floats where the field asks for it; nested tables go into nested
    dataclasses. Raises UnknownNameError for a name that the dataclass lacks, SettingError for a value of another type.
    """
    assert dataclasses.is_dataclass(config)
    assert not isinstance(config, type)
    kind = kind or f"setting of {type(config).__name__}"
    hints = typing.get_type_hints(type(config))
    fields = {f.name for f in dataclasses.fields(config)}
    new: dict[str, Any] = {}
    for key, value in values.items():
        if key not in fields:
            raise UnknownNameError(kind, key, fields)
        old = getattr(config, key)
        if dataclasses.is_dataclass(old) and isinstance(value, Mapping):
            new[key] = merge(old, value)
        else:
            new[key] = _fitted(value, hints[key], f"{kind} {key!r}")
    return dataclasses.replace(config, **new)


def from_toml(config: T, path: str | Path) -> T:
    """`config` with the settings of a TOML file laid over it."""
    try:
        values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SettingError(f"{path}: no such settings file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingError(f"{path}: not a TOML file ({error})") from None
    return merge(config, values)


def _fitted(value: Any, hint: Any, what: str) -> Any:
    """`value` as the type `hint`, or a SettingError that names both."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        for option in arguments:
            try:
                return _fitted(value, option, what)
            except SettingError:
                continue
    elif origin is typing.Literal:
        if value in arguments:
            return value
        raise SettingError(f"{what} is one of {', '.join(map(repr, arguments))}, got {value!r}")
    elif origin is Mapping and isinstance(value, Mapping):
        key, kind = arguments
        return {_fitted(k, key, what): _fitted(v, kind, f"{what} {k!r}") for k, v in value.items()}
    elif origin is tuple and isinstance(value, list | tuple):
        kinds = [arguments[0]] * len(value) if arguments[-1] is ... else list(arguments)
        if len(kinds) == len(value):
            return tuple(_fitted(v, k, what) for v, k in zip(value, kinds, strict=True))
    elif hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    elif hint is int and isinstance(value, bool):
        pass
    elif hint is type(None):
        if value is None:
            return None
    elif isinstance(hint, type) and isinstance(value, hint):
        return value
    name = getattr(hint, "__name__", None) if origin is None else None
    raise SettingError(f"{what} is {name or str(hint).replace('typing.', '')}, got {value!r}")


def as_table(config: Any) -> dict[str, Any]:
    """A dataclass as a table for TOML: tuples as lists, unset (None) values left out; `merge` reads it back."""
    values = dataclasses.asdict(config)
    return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items() if v is not None}
