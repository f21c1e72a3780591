"""Ultrasound commands over real files, where there are any: each is answered or refused in one clear sentence."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import pytest
from test_ultrasound import made, ultrasound

from apps.medical.ultrasound import burned, inputs

REAL = Path(os.environ.get("GLOCAL_REAL", Path(__file__).resolve().parents[3] / "shared" / "real"))
pytestmark = pytest.mark.skipif(not (REAL / "medical").is_dir(), reason="no folder of real files (GLOCAL_REAL)")

REFUSED = {
    "MR_small.dcm": "its range of grey is not known; export it as an 8-bit picture",
    "MR_truncated.dcm": "pixel data are cut off or damaged",
    "anatomical.nii": "a volume of 25 slices, not an ultrasound picture or cine loop",
    "example_ct_sm.nii.gz": "a volume of 30 slices, not an ultrasound picture or cine loop",
    "example_seg.nii.gz": "a volume of 30 slices, not an ultrasound picture or cine loop",
    "palette_color.png": "has only 10 x 10 pixels",
    "multipage_rgb.tif": "holds 2 colour pages",
    "truncated.jpg": "damaged or cut-off",
}
TAKEN = {
    "ExplVR_BigEnd", "cmu_small_region", "examples_ybr_color", "femur_input", "ihc", "img2d", "mask2d", "color_exif",
}  # fmt: skip


def test_every_file_is_answered_or_refused(tmp_path: Path) -> None:
    bundle, out = made(tmp_path / "b", threshold=0.5), tmp_path / "out"
    assert ultrasound("predict", bundle, REAL / "medical", REAL / "general", "--out", out, "--no-overlays") == 1
    bad = {Path(r["item"]).name: r["error"] for r in csv.DictReader((out / "failures.csv").open())}
    for name, words in REFUSED.items():
        assert words in bad.pop(name)
    assert not bad
    good = {r["item"]: r for r in csv.DictReader((out / "predictions.csv").open())}
    assert set(good) == TAKEN
    assert good["examples_ybr_color"]["frames"] == "30"
    told = {(r["item"], r["applied"]) for r in csv.DictReader((out / "applied.csv").open())}
    for item in ("ihc", "ExplVR_BigEnd"):
        assert any(name == item and "coloured" in words for name, words in told)
    assert any(name == "cmu_small_region" and "bright almost everywhere" in words for name, words in told)


@pytest.mark.parametrize("name", sorted([*REFUSED, "examples_ybr_color.dcm", "femur_input.png"]))
def test_inspect_reads_or_says_why(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = next(p for p in (REAL / "medical" / name, REAL / "general" / name) if p.exists())
    code = ultrasound("inspect", path)
    told = capsys.readouterr()
    words = told.out + told.err
    assert name in words
    assert (code == 0) or (code == 2 and "\n" not in told.err.strip())
    if name in REFUSED and code == 0:
        assert "not taken" in words


def test_marks_on_real_ultrasound() -> None:
    """The femur has none; the heart's loop has its settings around the sector, none of them inside it."""
    assert not burned.find(inputs.frames(REAL / "medical" / "femur_input.png"))
    found = burned.find(inputs.frames(REAL / "medical" / "examples_ybr_color.dcm"))
    texts = [m for m in found.marks if m.kind == "text"]
    assert len(texts) >= 4
    assert not found.mask[40:200, 90:230].any()


def test_marks_on_the_pictures_that_pydicom_ships() -> None:
    """A device's screens: header lines, calipers at the cyst, and no flow of the Doppler box taken for text."""
    pydicom = pytest.importorskip("pydicom")
    folder = Path(pydicom.__file__).parent / "data" / "test_files"
    palette = folder / "examples_palette.dcm"
    colour = folder / "examples_rgb_color.dcm"
    if not (palette.is_file() and colour.is_file()):
        pytest.fail("this pydicom ships no example pictures")
    found = burned.find(inputs.frames(palette))
    assert found.counts()["text"] >= 15
    assert sorted((m.left + m.right) // 2 // 10 for m in found.marks if m.kind == "caliper") == [46, 49]
    flow = burned.find(inputs.frames(colour))
    assert flow.counts()["text"] >= 14
    assert flow.mask[75:145, 45:270].mean() < 0.02
