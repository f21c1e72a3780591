"""The page of captions in a real browser."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_caption_data import patch
from test_caption_predict import CLASSES, bundled
from test_pages import Tab, _local, desk, downloads, tab

from apps.medical.pathology_caption import serve
from apps.medical.pathology_caption.pipeline import Pipeline
from core import serving
from core.errors import FileError

__all__ = ["desk", "downloads", "tab"]  # fixtures


@pytest.fixture
def page(tmp_path: Path) -> Iterator[serving.Running]:
    pipeline = Pipeline.load(bundled(tmp_path / "b"), device="cpu")
    with serving.run(serve.page(pipeline), limits=serving.Limits(megabytes=1, pixels=100_000)) as running:
        yield running


def test_patches_of_a_slide(tab: Tab, page: serving.Running, tmp_path: Path) -> None:
    tab.open(page.address, "#given input[type=file]")
    assert "Research use, not a medical device" in tab.one(".page-foot").text
    assert "writes a caption" in tab.one(".page-head").text
    names = [patch(tmp_path / f"Quimby Louise {i}.png", i) for i in range(4)]
    tab.one("#given input[type=file]").send_keys("\n".join(map(str, names)))
    tab.until(lambda: tab.all("#shown img"), "the deciding patches")
    assert tab.one("#said").text.startswith("4 patches of ")
    assert tab.one("#caption").text.strip()
    assert {c.text for c in tab.all("#classes tbody td:first-child")} == set(CLASSES)
    tab.shot(tmp_path / "page.png")
    assert "Quimby" not in tab.driver.page_source
    document = json.loads(tab.downloaded("slide.json", "#json").read_text())
    assert len(document["patches"]) == 4
    assert document["id"] == "slide"
    bad = tmp_path / "John Smith.png"
    bad.write_bytes(b"no picture")
    tab.give("#given input[type=file]", bad)
    told = tab.toast()
    assert "patch 1" in told
    assert "Smith" not in told
    tab.until(lambda: "No patch is open yet" in tab.one("#said").text, "the empty page")
    assert {r for r in tab.requests() if not _local(r, "http://127.0.0.1:")} == set()


def test_uploads_are_bounded_and_deleted(desk: serving.Desk, tmp_path: Path) -> None:
    kept = [desk._root.new() / f"{i}.png" for i in range(3)]
    for i, path in enumerate(kept):
        patch(path, i)
    assert len(serve.read([str(p) for p in kept], desk, 32)) == 3
    assert not any(p.exists() for p in kept)
    many = [patch(desk._root.new() / "x.png") for _ in range(2)]
    with pytest.MonkeyPatch.context() as changed:
        changed.setattr(serve, "MOST", 1)
        with pytest.raises(FileError, match="up to 1 are taken"):
            serve.read([str(p) for p in many], desk, 32)
    assert not any(p.exists() for p in many)
