"""No patient name, id or date in anything that the ultrasound commands write or print."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_medical_privacy import everything
from test_ultrasound import made, png, ultrasound
from test_ultrasound_burned import written

from apps.medical.ultrasound import burned
from core.data import _ultrasound as made_up
from core.data import _ultrasound_dicom as dicom

NAMES = ("Quimby", "Ada", "PX-77319", "19510407", "1951-04-07")
HEADER = {"name": "Quimby^Ada", "number": "PX-77319", "birth": "19510407"}


def cine(seed: int, text: str = "QUIMBY ADA PX-77319") -> np.ndarray:
    """A loop with the patient's name burned in."""
    frames = made_up.cine(made_up.patient(seed, "malignant", breast=False), 2)
    banner = np.zeros((len(frames), 20, frames.shape[2]), np.uint8)
    return np.stack([written(f, text, (3, 4))[0] for f in np.concatenate([banner, frames], axis=1)])


def planted(folder: Path) -> Path:
    """Class folders of DICOM loops that are named after their patients."""
    for n, label in enumerate(("benign", "malignant", "benign", "malignant")):
        (folder / label).mkdir(parents=True, exist_ok=True)
        dicom.write(folder / label / f"Quimby_Ada_{n}.dcm", cine(n), form="grey", seed=n, **HEADER)
    return folder


def nothing_left(text: str, but: Path) -> None:
    """Fails where a planted word is in a text beside the paths that the user gave."""
    for word in NAMES:
        assert word not in text.replace(str(but), ""), word


def test_predict_and_inspect(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    bundle, scans = made(tmp_path / "b", threshold=0.5), planted(tmp_path / "in")
    bad = scans / "PX-77319.dcm"
    bad.write_bytes((scans / "benign" / "Quimby_Ada_0.dcm").read_bytes()[:-400])
    assert ultrasound("predict", bundle, scans, "--out", tmp_path / "out") == 1
    told = capfd.readouterr()
    out = everything(tmp_path / "out").replace(str(bad).encode(), b"")
    for word in NAMES:
        assert word.encode() not in out, word
        assert word not in (told.out + told.err).replace(str(bad), ""), word
    assert ultrasound("inspect", scans / "benign" / "Quimby_Ada_0.dcm") == 0
    nothing_left(capfd.readouterr().out, scans / "benign" / "Quimby_Ada_0.dcm")


def test_evaluate_numbers_patients(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    bundle, scans = made(tmp_path / "b", threshold=0.5), planted(tmp_path / "in")
    assert ultrasound("evaluate", bundle, "--data", scans, "--part", "all", "--out", tmp_path / "out") == 0
    told = capfd.readouterr()
    nothing_left(told.out + told.err, tmp_path)
    out = everything(tmp_path / "out").decode("utf-8", "replace")
    nothing_left(out, tmp_path)
    assert "1 patients" in told.out  # all four loops are of one patient
    # A list of patients may hold their names; files then say numbers.
    pictures = tmp_path / "png"
    for n, label in enumerate(("benign", "malignant") * 2):
        png(pictures / label / f"{n}.png", n)
    lines = ["image,patient", *(f"{n}.png,Quimby Ada {n % 3}" for n in range(4))]
    (tmp_path / "groups.csv").write_text("\n".join(lines) + "\n")
    words = ["--part", "all", "--groups", tmp_path / "groups.csv", "--out", tmp_path / "listed"]
    assert ultrasound("evaluate", bundle, "--data", pictures, *words) == 0
    told = capfd.readouterr()
    nothing_left(told.out + told.err + everything(tmp_path / "listed").decode("utf-8", "replace"), tmp_path)
    assert "4 pictures of 3 patients" in told.out


def test_burned_in_names_are_masked_on_drawings(tmp_path: Path) -> None:
    """What the drawing shows in the banner's place holds no letters, unless identifiers are kept."""
    bundle = made(tmp_path / "b", threshold=0.5)
    dicom.write(tmp_path / "a.dcm", cine(0), form="grey", **HEADER)
    for flags, there in (([], False), (["--keep-identifiers"], True)):
        out = tmp_path / f"out{len(flags)}"
        assert ultrasound("predict", bundle, tmp_path / "a.dcm", "--out", out, *flags) == 0
        with Image.open(next((out / "overlays").glob("*.png"))) as drawn:
            shown = np.asarray(drawn.convert("L"))
        panel = shown[29:60, 12:300]  # of the first picture, below its title, inside the frame around the text
        assert (panel.max() > 180) == there, panel.max()
    assert burned.find(cine(0)[0]).text[4:14, 4:100].mean() > 0.9
