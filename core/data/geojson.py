"""Points in original pixels as GeoJSON (RFC 7946), whose coordinates here are x and y in pixels, not degrees."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from core.data.points import MAX_POINTS, Point, Points, expected, fits, short, text_of
from core.errors import FileError
from core.files import write_text


def read(path: str | Path, *, names: Sequence[str] = (), label: str = "label", further: bool = False) -> Points:
    """Points of a GeoJSON FeatureCollection, a single Feature, or a list of objects {"x": ..., "y": ...}.

    A feature's properties are a label and numbers; arguments as in `core.data.points.read_csv`. Raises FileError that
    names line and column for text that is not JSON, and the point or feature (counted from 1) for other geometries
    than Point and values that are not finite numbers.
    """
    path, label = Path(path), label.lower()
    text = text_of(path)
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise FileError(path, f"line {error.lineno}, column {error.colno}: is not JSON ({error.msg.lower()})") from None
    except (RecursionError, ValueError):  # nested too deeply, or a number of thousands of digits
        raise FileError(path, "is not JSON of points", "give a FeatureCollection or a list of {x, y}") from None
    flat = [_flat(path, i, entry) for i, entry in enumerate(_entries(path, found), 1)]
    if names:
        order = tuple(n.lower() for n in names)
    else:
        order = tuple(dict.fromkeys(k for entry in flat for k in entry if k not in ("x", "y", label)))
    items = []
    for i, entry in enumerate(flat, 1):
        unknown = [k for k in entry if k not in ("x", "y", label, *order)]
        if unknown and not further:
            raise FileError(path, f"point {i}: {unknown[0]!r} is not one of its entries", expected(order))
        numbers = {n: _value(path, f"point {i}", n, entry.get(n)) for n in ("x", "y", *order)}
        text = entry.get(label, "")
        if not isinstance(text, str | int):
            raise FileError(path, f"point {i}: the {label} is {str(text)[:40]!r}", "give a text")
        items.append(Point(numbers["x"], numbers["y"], str(text), tuple(numbers[n] for n in order)))
    return Points(tuple(items), order, tuple(f"point {i}" for i in range(1, len(items) + 1)))


def write(path: str | Path, points: Points) -> None:
    """Write a FeatureCollection of Points, whole or not at all."""
    features = []
    for i, p in enumerate(points):
        fits(path, points, i)
        properties: dict[str, Any] = {"label": p.label} if p.label else {}
        properties.update(zip(points.names, map(short, p.value), strict=True))
        place = {"type": "Point", "coordinates": [short(p.x), short(p.y)]}
        features.append({"type": "Feature", "geometry": place, "properties": properties})
    write_text(path, json.dumps({"type": "FeatureCollection", "features": features}, indent=1) + "\n")


def _entries(path: Path, found: Any) -> list[Any]:
    if isinstance(found, dict) and found.get("type") == "FeatureCollection":
        found = found.get("features")
    elif isinstance(found, dict) and found.get("type") == "Feature":
        found = [found]
    if not isinstance(found, list):
        raise FileError(path, "holds no points", "give a GeoJSON FeatureCollection or a list of {x, y}")
    if len(found) > MAX_POINTS:
        raise FileError(path, f"has more than {MAX_POINTS:,} points", "split the file")
    return found


def _flat(path: Path, number: int, entry: Any) -> dict[str, Any]:
    """A feature or an object as one table with x and y."""
    if not isinstance(entry, dict):
        raise FileError(path, f"point {number}: is {str(entry)[:40]!r}", 'give {"x": ..., "y": ...} or a feature')
    if entry.get("type") != "Feature":
        return {str(k).lower(): v for k, v in entry.items()}
    geometry, more = entry.get("geometry"), entry.get("properties") or {}
    if not isinstance(geometry, dict) or geometry.get("type") != "Point" or not isinstance(more, dict):
        kind = geometry.get("type") if isinstance(geometry, dict) else geometry
        raise FileError(path, f"feature {number}: its geometry is {kind!r}", "give Points")
    place = geometry.get("coordinates")
    if not isinstance(place, list) or len(place) not in (2, 3):
        raise FileError(path, f"feature {number}: its coordinates are {str(place)[:40]!r}", "give [x, y]")
    return {**{str(k).lower(): v for k, v in more.items()}, "x": place[0], "y": place[1]}


def _value(path: Path, place: str, name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e300:  # NaN, too
        wrong = "is missing" if value is None else f"is {str(value)[:40]!r}"
        raise FileError(path, f"{place}: {name} {wrong}", "give a number")
    return float(value)
