"""Bundles: what is written is read back, and what was altered is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from core import bundle
from core.bundle import BundleError, Input, Network, Output, Settings, Tile

SETTINGS = Settings(
    "some task",
    Network("unet", {"dims": [1, 2], "nested": {"rate": 0.5}, "name": "a"}),
    Input(
        ("red", "nir"),
        (665.0, 842.0),
        "uint16",
        (0.0, 10000.0),
        None,
        "fixed",
        (1.0, 2.0),
        (3.0, 4.0),
        (10.0, 10.0),
        "m",
    ),
    Output({"background": 0, "tree": 1}, 255),
    Tile((256, 128), 0.5),
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    bundle.save(tmp_path / "b", torch.nn.Linear(3, 2), SETTINGS, {"dice": 0.5})
    return tmp_path / "b"


def test_round_trip(folder: Path) -> None:
    found = bundle.load(folder, task="some task")
    assert found.settings == SETTINGS
    assert found.report["dice"] == 0.5
    assert found.report["versions"]["torch"] == torch.__version__
    torch.manual_seed(1)
    model = bundle.fill(torch.nn.Linear(3, 2), found)
    assert not model.training
    again = bundle.save(folder, model, SETTINGS, {"dice": 0.6})
    assert again.report["sha256"][bundle.WEIGHTS] == found.report["sha256"][bundle.WEIGHTS]
    assert not list(folder.glob("*part*"))


def test_missing_files(folder: Path) -> None:
    with pytest.raises(BundleError, match="no such bundle"):
        bundle.load(folder / "nowhere")
    for name in (bundle.WEIGHTS, bundle.REPORT, bundle.SETTINGS):
        path = folder / name
        content = path.read_bytes()
        path.unlink()
        with pytest.raises(BundleError, match=f"{name} is missing"):
            bundle.load(folder)
        path.write_bytes(content)
    bundle.load(folder)


@pytest.mark.parametrize("name", [bundle.WEIGHTS, bundle.SETTINGS, bundle.REPORT])
def test_altered_files(folder: Path, name: str) -> None:
    path = folder / name
    content = bytearray(path.read_bytes())
    place = content.index(b"0.5") if name != bundle.WEIGHTS else len(content) - 1
    content[place] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(BundleError, match=f"{name}.* altered"):
        bundle.load(folder)


def test_cut_off_weights(folder: Path) -> None:
    path = folder / bundle.WEIGHTS
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(BundleError, match="cut off"):
        bundle.load(folder)


def _rewrite(folder: Path, old: str, new: str) -> None:
    """Change the settings as a later version would have written them, checksums included."""
    path = folder / bundle.SETTINGS
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    report = json.loads((folder / bundle.REPORT).read_text())
    del report["checksum"]
    report["sha256"][bundle.SETTINGS] = bundle._sha256(path)
    report["checksum"] = bundle._checksum(report)
    (folder / bundle.REPORT).write_text(json.dumps(report))


def test_later_format_unknown_setting_other_task(folder: Path) -> None:
    with pytest.raises(BundleError, match=r"is a bundle for 'some task'.*'other task'"):
        bundle.load(folder, task="other task")
    _rewrite(folder, "overlap = ", "overlapp = ")
    with pytest.raises(BundleError, match=r"settings.toml: no setting of Tile named 'overlapp'; did you mean overlap"):
        bundle.load(folder)
    _rewrite(folder, "format = 1", "format = 2")
    with pytest.raises(BundleError, match=r"format 2.*reads format 1; install a later glocal"):
        bundle.load(folder)


def test_killed_while_replacing_is_no_mixed_bundle(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("core.weights.save", stop)
    with pytest.raises(KeyboardInterrupt):
        bundle.save(folder, torch.nn.Linear(3, 2), SETTINGS, {})
    with pytest.raises(BundleError, match=r"report.json is missing"):
        bundle.load(folder)


def test_other_network(folder: Path) -> None:
    found = bundle.load(folder)
    with pytest.raises(ValueError, match=r"weights.safetensors.*\(2, 3\) in the file, \(2, 4\) in the network"):
        bundle.fill(torch.nn.Linear(4, 2), found)


def test_settings_text_leaves_out_what_is_not_set() -> None:
    text = bundle.settings_text(dataclasses.replace(SETTINGS, output=Output({"a": 0})))
    assert "ignore" not in text
    assert "clip" not in text
