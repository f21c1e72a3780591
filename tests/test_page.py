"""The demonstration page and its pictures."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from core import page, pictures, reach, registry


def test_heat_orders_by_value_and_greys_nan() -> None:
    colours = pictures.heat(np.array([[0.0, 1.0, 2.0, np.nan]]))
    lightness = colours[0, :3].astype(int) @ [2, 7, 1]
    assert lightness[0] < lightness[1] < lightness[2]
    assert colours[0, 3].tolist() == [128, 128, 128]
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(pictures.png(colours)))), colours)


def test_reach_of_windows_is_local_and_of_vit_global() -> None:
    image = torch.randn(1, 3, 112, 112)
    swin = registry.create("swin/tiny", depths=(1, 1), heads=(3, 6)).eval()
    first = reach.reach(swin, image)[0]
    assert first.shape == (112, 112)
    assert (first > 0).any()
    assert (first > 0).sum() == 28 * 28  # one window of 7 x 7 cells of 4 pixels
    vit = reach.reach(registry.create("vit/tiny", depth=1, image_size=112).eval(), image)[0]
    assert (vit > 0).all()


def test_decades() -> None:
    assert reach.decades(np.array([10.0, 1.0, 1e-9, 0.0])).tolist() == [0.0, -1.0, -5.0, -5.0]


def test_networks_hold_their_pictures() -> None:
    image = reach.sample(32)
    assert image.shape == (1, 3, 32, 32)
    row = reach.Row("a/<b>", "Title", 10, 0.1, [np.zeros((4, 4, 3), np.uint8)])
    text = reach.section([row], image)
    assert text.count("data:image/png;base64,") == 2
    assert "a/&lt;b&gt;" in text
    assert "http" not in text


def test_page_joins_sections(tmp_path: Path) -> None:
    figure = page.Figure(np.zeros((4, 6, 3), np.uint8), "a <caption>")
    table = page.Table([["who", "dice", "n"], ["we", 0.5, 3], ["nobody", None, 0]], "what it means")
    page.add(tmp_path, page.Section("b-app", "B & co", ["some text"], [figure, table], ["glocal b demo"]))
    page.add_html(tmp_path, "a-app", "<h2>A</h2>")
    text = page.assemble(tmp_path).read_text(encoding="utf-8")
    assert text.index("<h2>A</h2>") < text.index("<h2>B &amp; co</h2>")
    assert "a &lt;caption&gt;" in text
    assert "<td class='n'>0.500</td>" in text
    assert "<td class='n'>-</td>" in text
    assert "<code>glocal b demo</code>" in text
    assert "http" not in text
