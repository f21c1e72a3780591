"""Deblurring of real files, where there are any: each is read right or refused in one clear sentence."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_deblurring_predict import TINY, made, run

from core.data import photos

REAL = Path(os.environ.get("GLOCAL_REAL", Path(__file__).resolve().parents[3] / "shared" / "real"))
pytestmark = pytest.mark.skipif(not (REAL / "deblurring").is_dir(), reason="no folder of real files (GLOCAL_REAL)")

REFUSED = {"truncated.jpg": "is damaged or cut short"}
SIZES = {
    "01.png": (1280, 720),
    "07.png": (1280, 720),
    "blurry.jpg": (1280, 720),
    "clock_motion.png": (400, 300),
    "coffee.png": (600, 400),
    "color_exif.jpg": (300, 400),  # stored 400 x 300, to be seen upright
    "palette_color.png": (10, 10),
}
MODES = {"clock_motion.png": "L"}


def test_every_file_is_read_right_or_refused(tmp_path: Path) -> None:
    folder, out = made(tmp_path / "b", tile=512, settings=TINY), tmp_path / "out"
    assert run("predict", folder, REAL / "deblurring", REAL / "general", "--out", out, "--overlap", 0.1) == 1
    rows = {Path(r["item"]).name: r["error"] for r in csv.DictReader((out / "failures.csv").open())}
    for name, words in REFUSED.items():
        assert words in rows.pop(name)
    assert not rows
    for name, size in SIZES.items():
        with Image.open(out / name) as result, Image.open(out / "masks" / f"{Path(name).stem}.png") as mask:
            assert result.size == mask.size == size
            assert result.mode == MODES.get(name, "RGB")
    applied = {r["item"]: r["applied"] for r in csv.DictReader((out / "applied.csv").open())}
    assert applied["color_exif"] == "turned as EXIF orientation 6 says"
    assert applied["palette_color"] == "palette applied"
    assert "first of 2 pages" in applied["multipage_rgb"]
    pages = photos.read(REAL / "general" / "multipage_rgb.tif").pixels
    assert photos.read(out / "multipage_rgb.tif").pixels.shape == pages.shape


def test_blurred_ones_look_more_blurred(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("inspect", REAL / "deblurring" / "coffee.png", REAL / "deblurring" / "clock_motion.png") == 0
    sharp, moved = (float(t.split()[2]) for t in capsys.readouterr().out.splitlines() if "blur effect" in t)
    assert sharp < moved


def test_a_photograph_without_a_change_of_the_network_is_itself(tmp_path: Path) -> None:
    """What reading and writing alone do to a real JPEG: nothing that is not a rounding of JPEG."""
    path = REAL / "general" / "color_exif.jpg"
    photo = photos.read(path)
    photos.save(tmp_path / "same.png", photo.pixels, like=photo)
    assert np.array_equal(photos.read(tmp_path / "same.png").pixels, photo.pixels)
