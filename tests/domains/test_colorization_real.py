"""Colorization of real files, where there are any: each is coloured at its own size or refused in one sentence."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_colorization_cli import colorization
from test_colorization_predict import made

from core.data import photos

REAL = Path(os.environ.get("GLOCAL_REAL", Path(__file__).resolve().parents[3] / "shared" / "real"))
pytestmark = pytest.mark.skipif(not (REAL / "colorization").is_dir(), reason="no folder of real files (GLOCAL_REAL)")

REFUSED = {"truncated.jpg": "damaged or cut short"}
SIZES = {  # upright: columns, rows
    "buffalo_bank_1908.jpg": (936, 750),
    "chelsea.png": (451, 300),
    "mortar_pestle.jpg": (600, 507),
    "color_exif.jpg": (300, 400),
    "multipage_rgb.tif": (10, 10),
    "palette_color.png": (10, 10),
}


def test_every_file(tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["--out", out, "--no-drawings", "--auto", 12, "--reference", REAL / "colorization" / "chelsea.png"]
    assert colorization("predict", made(tmp_path / "b"), REAL / "colorization", REAL / "general", *words) == 1
    rows = {Path(r["item"]).name: r["error"] for r in csv.DictReader((out / "failures.csv").open())}
    for name, sentence in REFUSED.items():
        assert sentence in rows.pop(name)
    assert not rows
    for name, size in SIZES.items():
        result = photos.read(out / name)
        assert result.pixels.shape == (*size[::-1], 3)
        assert not any("turned" in step for step in result.meta.applied)
    assert photos.read(out / "multipage_rgb.tif").pixels.dtype == np.float32  # as it came
    table = list(csv.DictReader((out / "hints.csv").open()))
    assert {r["file"] for r in table} == set(SIZES)
    assert all(float(r["delta_e2000"]) >= 0 for r in table)
    with Image.open(REAL / "colorization" / "chelsea.png") as given, Image.open(out / "chelsea.png") as got:
        assert got.info.get("icc_profile") == given.info.get("icc_profile")


def test_check_and_inspect(capsys: pytest.CaptureFixture[str]) -> None:
    assert colorization("check", REAL / "colorization") == 0
    assert colorization("check", REAL / "general") == 1
    assert "truncated.jpg: is damaged" in capsys.readouterr().out
    assert colorization("inspect", REAL / "general" / "color_exif.jpg") == 0
    assert "6" in capsys.readouterr().out


def test_evaluate_leaves_nothing_unsaid(tmp_path: Path) -> None:
    words = ["--data", REAL / "colorization", "--part", "train", "--counts", 1, 5, "--out", tmp_path / "o"]
    assert colorization("evaluate", made(tmp_path / "b"), *words) == 0
    rows = list(csv.DictReader((tmp_path / "o" / "cases.csv").open()))
    psnr = [float(r["value"]) for r in rows if r["metric"] == "psnr" and r["method"] == "grey"]
    assert len(psnr) == 6
    assert np.isfinite(psnr).all()
