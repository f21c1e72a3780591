"""Prediction over real files, where there are any: each is segmented or refused in one clear sentence."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from test_medical_segment import made, segment

REAL = Path(os.environ.get("GLOCAL_REAL", Path(__file__).resolve().parents[3] / "shared" / "real"))
pytestmark = pytest.mark.skipif(not (REAL / "medical").is_dir(), reason="no folder of real files (GLOCAL_REAL)")

COLOUR = "has 3 channels where 1 channel would be right"
REFUSED = {
    "ExplVR_BigEnd.dcm": COLOUR,
    "MR_truncated.dcm": "pixel data are cut off or damaged",
    "cmu_small_region.svs": COLOUR,
    "examples_ybr_color.dcm": COLOUR,
    "ihc.png": COLOUR,
    "color_exif.jpg": COLOUR,
    "multipage_rgb.tif": "holds 2 colour pages",
    "palette_color.png": COLOUR,
    "truncated.jpg": "damaged or cut-off",
}


def test_a_grey_network_over_every_file(tmp_path: Path) -> None:
    folder, out = made(tmp_path / "b"), tmp_path / "out"
    assert segment("predict", folder, REAL / "medical", REAL / "general", "--out", out, "--no-overlays") == 1
    rows = {Path(r["item"]).name: r["error"] for r in csv.DictReader((out / "failures.csv").open())}
    for name, words in REFUSED.items():
        assert words in rows.pop(name)
    assert not rows
    scan, mask = (nib.load(p) for p in (REAL / "medical" / "anatomical.nii", out / "anatomical.nii.gz"))
    assert mask.shape == scan.shape
    assert np.array_equal(mask.affine, scan.affine)
    assert pydicom.dcmread(out / "MR_small.dcm").Modality == "SEG"
    assert {p.name for p in out.iterdir() if p.is_file()} >= {"femur_input.png", "img2d.tif", "mask2d.tif"}


def test_a_colour_network_over_some(tmp_path: Path) -> None:
    folder, out = made(tmp_path / "b", channels=3), tmp_path / "out"
    names = ["medical/ihc.png", "medical/examples_ybr_color.dcm", "general/color_exif.jpg", "general/palette_color.png"]
    words = ["--out", out, "--no-overlays", "--tile", "128", "128"]
    assert segment("predict", folder, *(REAL / n for n in names), *words) == 0
    assert {p.name for p in out.glob("*.*") if p.suffix in (".png", ".tif")} == {
        "ihc.png", "examples_ybr_color.tif", "color_exif.png", "palette_color.png",
    }  # fmt: skip
