"""The page of histology in a real browser, and what it does without one."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
from test_pages import Tab, _local, desk, downloads, tab
from test_pathology_predict import CLASSES, PURPLE, bundled, network, planted, scene, tile
from test_slides import made

from apps.medical.pathology_classify import serve
from apps.medical.pathology_classify.pipeline import Pipeline
from apps.medical.pathology_classify.results import Classification, SlideClassification
from core import serving
from core.errors import FileError, InputError

__all__ = ["desk", "downloads", "network", "tab"]  # fixtures


@pytest.fixture
def page(tmp_path: Path, network: None) -> Iterator[serving.Running]:
    pipeline = Pipeline.load(bundled(tmp_path / "b"), device="cpu")
    with serving.run(serve.page(pipeline), limits=serving.Limits(megabytes=8, pixels=2_000_000)) as running:
        yield running


def test_a_slide_and_a_tile(tab: Tab, page: serving.Running, tmp_path: Path) -> None:
    tab.open(page.address, "#given input[type=file]")
    assert "Research use, not a medical device" in tab.one(".page-foot").text
    assert "Tells stroma, tumour" in tab.one(".page-head").text
    tab.give("#given input[type=file]", planted(tmp_path / "Quimby Louise.svs"))
    tab.until(lambda: tab.all("#strip img"), "the deciding tiles")
    said = tab.one("#said").text
    assert said.startswith("stroma (")
    assert "tiles" in said
    assert {c.text for c in tab.all("#classes tbody td:first-child")} == set(CLASSES)
    wide = "return [...document.querySelectorAll('#shown img, #strip img')].every(i => i.naturalWidth > 200)"
    tab.until(lambda: tab.run(wide), "pictures")
    tab.shot(tmp_path / "page.png")
    assert not re.search(r"quimby|louise|s12-4711|1969-07-16", tab.driver.page_source, re.I)
    with tab.downloaded("slide-tiles.csv", "#table").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(r["rank"]) for r in rows] == list(range(1, len(rows) + 1))
    with tifffile.TiffFile(tab.downloaded("slide.heatmap.ome.tif", "#heat")) as file:
        assert file.series[0].shape[0] == 3
    outlines = json.loads(tab.downloaded("slide.geojson", "#outlines").read_text())
    assert len(outlines["features"]) > 20
    tab.give("#given input[type=file]", tile(tmp_path / "Doe.png", PURPLE))
    tab.until(lambda: "tumour (" in tab.one("#said").text, "the tile's class")
    tab.until(lambda: not [b for b in tab.all("#heat") if b.is_displayed()], "no heat map to save")
    assert not tab.all("#strip img")
    tab.downloaded("tile.csv", "#table")
    wrong = tmp_path / "John Smith.svs"
    wrong.write_text("no slide")
    tab.give("#given input[type=file]", wrong)
    complaint = tab.toast()
    assert "no slide that is read here" in complaint
    assert "Smith" not in complaint
    tab.until(lambda: "Nothing is open yet" in tab.one("#said").text, "the empty page")
    assert {r for r in tab.requests() if not _local(r, "http://127.0.0.1:")} == set()
    assert not list(page.folder.rglob("upload*"))


def received(desk: serving.Desk, path: Path) -> Path:
    """As an upload lies there."""
    return Path(shutil.copy(path, desk._root.new() / f"upload{path.suffix}"))


def test_slides_are_bounded_and_micrometres_can_be_given(desk: serving.Desk, tmp_path: Path) -> None:
    pipeline = Pipeline.load(bundled(tmp_path / "b"), device="cpu")
    bare = received(desk, made(tmp_path / "bare.tif", scene(300, 300), um=None))
    with pytest.raises(InputError, match="write the micrometres to a pixel of its finest level into their field"):
        serve.classified(pipeline, bare, desk)
    with pytest.raises(InputError, match=r"are a number, as in 0\.25, got 'one'"):
        serve.classified(pipeline, bare, desk, "one")
    found = serve.classified(pipeline, bare, desk, "0,25 um")
    assert isinstance(found, SlideClassification)
    assert found.plan.step * 2 == found.plan.tile
    assert found.meta.id == "slide"
    large = received(desk, made(tmp_path / "large.tif", np.full((600, 600, 3), PURPLE, np.uint8)))
    with pytest.raises(FileError, match=r"has 0 million pixels; at most 0\.1 million are taken"):
        serve.classified(pipeline, large, desk)
    text = tmp_path / "letter.docx"
    text.write_text("Dear Sir")
    with pytest.raises(FileError, match="no slide or picture that is read here"):
        serve.classified(pipeline, received(desk, text), desk)


def test_a_tile_shows_what_its_label_needs(desk: serving.Desk, tmp_path: Path) -> None:
    pipeline = Pipeline.load(bundled(tmp_path / "b"), device="cpu")
    found = serve.classified(pipeline, received(desk, tile(tmp_path / "a.png", PURPLE)), desk)
    assert isinstance(found, Classification)
    assert found.heat is not None
    assert found.heat.what == "what the label needs"
    assert "tumour (0.9" in serve.told(found)
    region = serve.classified(pipeline, received(desk, tile(tmp_path / "b.png", PURPLE, (64, 160))), desk)
    assert isinstance(region, Classification)
    assert region.heat is not None
    assert region.heat.what == "probability by place"
    with pytest.raises(FileError, match="million pixels"):
        serve.classified(pipeline, received(desk, tile(tmp_path / "c.png", PURPLE, (500, 500))), desk)


def test_words_of_a_page_cannot_be_code(tmp_path: Path) -> None:
    result = SimpleNamespace(classes=("<b>", "b"), probabilities=(0.2, 0.8))
    shown = serve.classes_of(result)  # type: ignore[arg-type]
    assert "&lt;b&gt;" in shown
    assert shown.index("b</td>") < shown.index("&lt;b")  # the likeliest first
