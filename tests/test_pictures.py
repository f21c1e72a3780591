"""Overlays, panels, palettes and charts."""

from __future__ import annotations

import numpy as np
import pytest

from core import pictures
from core.errors import ShapeError


def test_overlay_colours_the_inside_and_the_edge() -> None:
    image = np.full((20, 20), 100, np.uint8)
    mask = np.zeros((20, 20), np.uint16)
    mask[5:15, 5:15], mask[0, 0] = 300, 7
    shown = pictures.overlay(image, mask, {300: (200, 0, 50)}, alpha=0.5, contour=1)
    assert shown.dtype == np.uint8
    assert shown[10, 10].tolist() == [150, 50, 75]
    assert shown[5, 10].tolist() == [200, 0, 50]  # the edge lies inside the class
    assert shown[4, 10].tolist() == [100, 100, 100]
    assert shown[0, 0].tolist() == [100, 100, 100]  # an id without a colour
    assert (shown == (200, 0, 50)).all(-1).sum() == 36
    wide = pictures.overlay(np.repeat(image[..., None], 3, 2), mask, {300: (200, 0, 50)}, alpha=0.5, contour=2)
    assert (wide == (200, 0, 50)).all(-1).sum() == 36 + 28
    assert not (pictures.overlay(image, mask, {300: (200, 0, 50)}, contour=0) == (200, 0, 50)).all(-1).any()
    with pytest.raises(ShapeError):
        pictures.overlay(image, mask[1:], {})


def test_palette_has_as_many_colours_as_asked() -> None:
    for n in (0, 1, 14, 256):
        assert len(set(pictures.palette(n))) == n
    assert pictures.palette(20)[:14] == pictures.palette(14)


def test_panel_sets_pictures_in_rows() -> None:
    red, blue = (np.full((30, 40, 3), c, np.uint8) for c in ((255, 0, 0), (0, 0, 255)))
    grey = np.full((50, 20), 90, np.uint8)
    sheet = pictures.panel([("a", red), ("b", blue), ("c", grey)], columns=2, legend={"first": (1, 200, 3)}, note="n")
    at = {name: np.argwhere((sheet == colour).all(-1)) for name, colour in (("a", (255, 0, 0)), ("b", (0, 0, 255)))}
    assert len(at["a"]) == len(at["b"]) == 1200
    assert (at["a"][:, 0] == at["b"][:, 0]).all()  # one row
    third = np.argwhere((sheet == 90).all(-1))
    assert third[:, 0].min() > at["a"][:, 0].max()
    assert len(third) == 1000
    assert (sheet == (1, 200, 3)).all(-1).any()
    assert pictures.panel([("a" * 500, red)]).shape[1] < 80  # a long caption is cut
    with pytest.raises(ShapeError):
        pictures.panel([])


def test_curve_draws_what_it_is_given() -> None:
    x = np.arange(50)
    chart = pictures.curve({"up": (x, x), "down": (x, 50 - x)}, "title", "epoch", "loss", (500, 300))
    assert chart.shape == (300, 500, 3)
    blue = np.argwhere((np.abs(chart.astype(int) - (0, 114, 178)) < 30).all(-1))
    line = blue[blue[:, 0] < 220]  # above the legend
    assert np.corrcoef(line[:, 1], -line[:, 0])[0, 1] > 0.99
    broken = pictures.curve({"a": ([0, 1, 2, 3], [1, 1, np.nan, 1])}, size=(300, 200))
    row = (np.abs(broken.astype(int) - (0, 114, 178)) < 60).all(-1).any(0)
    assert row[60:100].any()
    assert not row[220:240].any()  # nothing between the second point and the last
    for flat in ([3.0, 3.0], [0.0, 0.0], [-2.0, -2.0], [1e-9, 2e-9], [1e12, 2e12]):
        assert pictures.curve({"a": ([0, 1], flat)}).shape == (360, 640, 3)
    with pytest.raises(ShapeError):
        pictures.curve({"a": ([0, 1], [1])})
    with pytest.raises(ShapeError, match="finite"):
        pictures.curve({"a": ([0], [np.nan])})


def test_resized_masks_keep_their_ids() -> None:
    mask = np.array([[0, 300], [7, 2]], np.uint16)
    assert np.array_equal(pictures.resized(mask, 4, 6, smooth=False), np.kron(mask, np.ones((2, 3), int)))
    assert pictures.resized(np.zeros((4, 4, 3), np.uint8), 9, 5, smooth=True).shape == (9, 5, 3)
