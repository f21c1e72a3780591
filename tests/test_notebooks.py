"""Every notebook runs from its first cell to its last on its sample set."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def test_there_is_a_notebook() -> None:
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOCAL_NOTEBOOK", str(tmp_path))
    monkeypatch.setenv("GLOCAL_NOTEBOOK_MINUTES", "0.15")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # the tests run two at a time
    notebook = nbformat.read(path, as_version=4)
    assert not any(c.get("outputs") for c in notebook.cells), "stored without outputs"
    NotebookClient(
        notebook, timeout=240, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    last = "".join(o.get("text", "") for o in notebook.cells[-2]["outputs"])
    assert "mean" in last  # a table of scores
