"""A line chart by Pillow alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from core.errors import ShapeError

if TYPE_CHECKING:
    from PIL import ImageDraw

_INK, _GRID, _PAPER = (32, 32, 36), (224, 224, 228), (255, 255, 255)
_FINE = 2  # drawn larger and reduced: smooth lines
# Okabe and Ito without yellow, which white swallows; repeated with dashes.
_LINES = ((0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167), (86, 180, 233), (230, 159, 0))


def curve(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    title: str = "",
    x_label: str = "",
    y_label: str = "",
    size: tuple[int, int] = (640, 360),
) -> NDArray[np.uint8]:
    """A line chart: (height, width, 3) uint8 with axes, ticks and, for more than one line, a legend.

    Args:
        series: name -> x and y of equal length, in the order to draw; points that are not finite break the line.
        title: above the chart.
        x_label: below the axis.
        y_label: above the axis, at the left.
        size: width and height in pixels.

    Raises ShapeError for x and y of unlike length, or where no point is finite.
    """
    from PIL import Image, ImageDraw, ImageFont

    lines = {name: (np.asarray(x, float), np.asarray(y, float)) for name, (x, y) in series.items()}
    for name, (x, y) in lines.items():
        if x.shape != y.shape or x.ndim != 1:
            raise ShapeError(f"line {name!r} has {x.shape} positions and {y.shape} values")
    points = [np.stack([x, y])[:, np.isfinite(x) & np.isfinite(y)] for x, y in lines.values()]
    every = np.concatenate(points, axis=1) if points else np.zeros((2, 0))
    if not every.size:
        raise ShapeError("a chart needs at least one finite point")
    xs, ys = _ticks(every[0].min(), every[0].max()), _ticks(every[1].min(), every[1].max())
    width, height = (n * _FINE for n in size)
    letter = max(11, min(size) // 26) * _FINE
    small, bold = ImageFont.load_default(letter), ImageFont.load_default(letter * 1.2)
    line = round(letter * 1.5)
    words_y = [_number(v, ys) for v in ys]
    left = round(max(small.getlength(w) for w in words_y)) + line
    legend = list(lines) if len(lines) > 1 else []
    places, deep = _places([round(small.getlength(n)) + 3 * line for n in legend], width - left - line)
    top = line // 2 + (round(letter * 2) if title else 0) + (line if y_label else 0)
    bottom = height - line * (2 if x_label else 1) - line // 2 - (deep + 1) * line * bool(legend)
    right = width - line
    sheet = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    lows, highs = np.array([xs[0], ys[0]]), np.array([xs[-1], ys[-1]])

    def at(x: float, y: float) -> tuple[float, float]:
        u, v = (np.array([x, y]) - lows) / (highs - lows)
        return left + u * (right - left), bottom - v * (bottom - top)

    if title:
        draw.text((left, line // 3), title, _INK, bold)
    if y_label:
        draw.text((left - round(letter * 0.5), top - round(line * 1.1)), y_label, _INK, small)
    for value, word in zip(ys, words_y, strict=True):
        _, level = at(xs[0], value)
        draw.line((left, level, right, level), _GRID, _FINE)
        draw.text((left - letter // 2, level), word, _INK, small, anchor="rm")
    for value in xs:
        across, _ = at(value, ys[0])
        draw.line((across, bottom, across, bottom + letter // 3), _INK, _FINE)
        draw.text((across, bottom + letter // 2), _number(value, xs), _INK, small, anchor="mt")
    draw.line((left, top, left, bottom, right, bottom), _INK, _FINE)
    if x_label:
        draw.text(((left + right) / 2, bottom + line * 1.1), x_label, _INK, small, anchor="mt")
    for i, (x_values, y_values) in enumerate(lines.values()):
        colour, dashed = _LINES[i % len(_LINES)], i >= len(_LINES)
        run: list[tuple[float, float]] = []
        for px, py in [*zip(x_values, y_values, strict=True), (math.nan, math.nan)]:
            if math.isfinite(px) and math.isfinite(py):
                run.append(at(px, py))
            elif run:
                _stroke(draw, run, colour, dashed)
                run = []
    for i, (name, (start, row)) in enumerate(zip(legend, places, strict=True)):
        begin, down = left + start, height - (deep + 1 - row) * line + line // 3
        _stroke(draw, [(begin, down), (begin + 2 * line, down)], _LINES[i % len(_LINES)], i >= len(_LINES))
        draw.text((begin + round(2.3 * line), down), name, _INK, small, anchor="lm")
    return np.asarray(sheet.resize(size, Image.Resampling.LANCZOS))


def _stroke(
    draw: ImageDraw.ImageDraw, run: Sequence[tuple[float, float]], colour: tuple[int, int, int], dashed: bool
) -> None:
    """A line through the points, or a dot where there is only one."""
    if len(run) == 1:
        (x, y), r = run[0], 3 * _FINE
        draw.ellipse((x - r, y - r, x + r, y + r), colour)
        return
    if not dashed:
        draw.line(run, colour, 2 * _FINE, joint="curve")
        return
    done, dash = 0.0, 7.0 * _FINE
    for (x0, y0), (x1, y1) in pairwise(run):
        length, here = math.hypot(x1 - x0, y1 - y0), 0.0
        while here < length:
            step = min(dash - done % dash, length - here)
            if int(done // dash) % 2 == 0:
                a, b = here / length, (here + step) / length
                ends = (x0 + (x1 - x0) * a, y0 + (y1 - y0) * a, x0 + (x1 - x0) * b, y0 + (y1 - y0) * b)
                draw.line(ends, colour, 2 * _FINE)
            here, done = here + step, done + step


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers from at or below `low` to at or above `high`, three to seven steps apart."""
    if high <= low:
        low, high = (low - 0.5, low + 0.5) if low == 0 else (low - abs(low) / 2, low + abs(low) / 2)
    raw = (high - low) / 6
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


def _number(value: float, ticks: Sequence[float]) -> str:
    """`value` with as many places as the step between ticks needs."""
    step = ticks[1] - ticks[0]
    if max(abs(t) for t in ticks) >= 1e6 or step < 1e-4:
        return f"{value:.3g}"
    places = next((p for p in range(5) if abs(step * 10**p - round(step * 10**p)) < 1e-6 * step * 10**p), 5)
    return f"{value:.{places}f}" if value else f"{0:.{places}f}"


def _places(widths: Sequence[int], width: int) -> tuple[list[tuple[int, int]], int]:
    """Where legend entries stand (x, line) in lines of `width`, and the number of the last line."""
    places, x, y = [], 0, 0
    for wide in widths:
        if x and x + wide > width:
            x, y = 0, y + 1
        places.append((x, y))
        x += wide
    return places, y
