"""The ultrasound page in a real browser, as a visitor uses it."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_pages import Tab
from test_ultrasound import made
from test_ultrasound_burned import speckle, written
from test_ultrasound_privacy import HEADER, NAMES, cine

from apps.medical.ultrasound import serve
from apps.medical.ultrasound.pipeline import Pipeline
from core import serving
from core.data import _ultrasound_dicom as dicom
from core.errors import FileError

LIMITS = serving.Limits(megabytes=2, pixels=400_000)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    return Pipeline.load(made(tmp_path_factory.mktemp("bundle") / "b", threshold=0.5), device="cpu")


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    found = Tab(tmp_path_factory.mktemp("downloads"))
    yield found
    found.driver.quit()


@pytest.fixture(scope="module")
def running(pipeline: Pipeline) -> Iterator[serving.Running]:
    with serving.run(serve.page(pipeline), limits=LIMITS) as found:
        yield found


def answered(tab: Tab) -> str:
    return str(tab.until(lambda: tab.all("#answer table") and tab.one("#answer").text, "an answer"))


def test_a_still_with_a_name_on_it(tab: Tab, running: serving.Running, tmp_path: Path) -> None:
    path = tmp_path / "Quimby.png"
    Image.fromarray(written(speckle(3, fan=True), "QUIMBY ADA", (3, 3))[0]).save(path)
    tab.open(running.address, "#given input[type=file]")
    tab.give("#given input[type=file]", path)
    assert "malignant" in answered(tab)
    assert "1 line of text. It may name the patient; it is masked in the drawing." in tab.one("#marks").text
    assert "left as it is for the network" in tab.one("#marks").text
    before = tab.one("#shown img").get_attribute("src")
    tab.one("#mask input").click()
    tab.until(lambda: "was masked before the network saw it" in tab.one("#marks").text, "the masked answer")
    assert tab.one("#shown img").get_attribute("src") != before
    with tab.downloaded("answer.csv", "#csv").open(newline="") as stream:
        (row,) = list(csv.DictReader(stream))
    assert row["item"] == "answer"
    assert row["masked"] == "1"
    with Image.open(tab.downloaded("answer.png", "#png")) as drawn:
        assert np.asarray(drawn).std() > 10
    assert "Quimby" not in tab.driver.page_source


def test_a_loop_and_what_cannot_be_taken(tab: Tab, running: serving.Running, tmp_path: Path) -> None:
    dicom.write(tmp_path / "a.dcm", cine(0), form="ybr", **HEADER)
    tab.open(running.address, "#given input[type=file]")
    tab.give("#given input[type=file]", tmp_path / "a.dcm")
    answered(tab)
    assert tab.one("#said").text.startswith("2 frames; YBR_FULL_422 converted to RGB")
    with tab.downloaded("answer.csv", "#csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [r["frame"] for r in rows] == ["all", "0", "1"]
    page = re.sub(r"base64,[\w+/=]+", "", tab.driver.page_source)  # pictures may spell a name
    assert not [word for word in NAMES if word in page]
    (tmp_path / "b.png").write_bytes(b"Dear Sir")
    tab.give("#given input[type=file]", tmp_path / "b.png")
    assert "not a kind of file that is read here" in tab.toast()
    tab.driver.get("about:blank")
    tab.until(lambda: not [p for p in running.folder.rglob("*") if p.is_file()], "files to go")


def test_too_many_pixels(tmp_path: Path) -> None:
    Image.new("L", (800, 600), 9).save(tmp_path / "a.png")
    with pytest.raises(FileError, match=r"has 0\.48 million pixels in its frames"):
        serve.opened(tmp_path / "a.png", LIMITS)
