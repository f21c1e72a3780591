"""No patient name, id or date in anything that prediction writes or prints; and results that a full disk cuts short."""

from __future__ import annotations

import gzip
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest
from test_medical_dicom import PLANTED, saved, series
from test_medical_segment import grey_png, made, segment

NAMES = [PLANTED["PatientID"], "Quimby", "Louise", PLANTED["AccessionNumber"], "Saint Elmo", "Hartwig", "MRROOM4"]
DATES = [PLANTED["PatientBirthDate"], PLANTED["StudyDate"], PLANTED["StudyInstanceUID"]]


def everything(folder: Path) -> bytes:
    """All that lies in a folder, names included, compressed files opened."""
    found = b""
    for path in sorted(folder.rglob("*")):
        found += str(path.relative_to(folder)).encode() + b"\n"
        if path.is_file():
            content = path.read_bytes()
            found += gzip.decompress(content) if path.suffix == ".gz" else content
    return found


@pytest.mark.parametrize("format", ["", "nii.gz", "tif"])
def test_nothing_of_the_patient_leaves(format: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = made(tmp_path / "b")
    scans = tmp_path / "in"
    scans.mkdir()
    series(scans / "PX-77319 Quimby", [(0, 0, 4 * i) for i in range(4)])  # the folder is named after the patient
    pixels = np.arange(48, dtype=np.int16).reshape(6, 8)
    bad = saved(scans / "Quimby_Ada.dcm", pixels)
    content = bad.read_bytes()
    bad.write_bytes(content[:-20])  # damaged, so it is listed
    more = ["--format", format] if format else []
    assert segment("predict", folder, scans, "--out", tmp_path / "out", "--probabilities", *more) == 1
    out = everything(tmp_path / "out")
    assert b"liver" in out
    for word in [*NAMES, *DATES]:
        assert word.encode() not in out.replace(str(bad).encode(), b""), word
    told = capfd.readouterr()
    for word in [*NAMES, *DATES]:
        assert word not in (told.out + told.err).replace(str(bad), ""), word
    if not format:
        (mask,) = (tmp_path / "out").glob("*.dcm")
        assert pydicom.dcmread(mask).Modality == "SEG"


def test_identifiers_are_kept_only_when_asked_for(tmp_path: Path) -> None:
    folder = made(tmp_path / "b")
    series(tmp_path / "s", [(0, 0, 4 * i) for i in range(3)])
    words = ["predict", folder, tmp_path / "s", "--out"]
    assert segment(*words, tmp_path / "kept", "--keep-identifiers") == 0
    (mask,) = (tmp_path / "kept").glob("*.dcm")
    assert str(pydicom.dcmread(mask).PatientID) == PLANTED["PatientID"]


def test_a_disk_that_fills_while_writing(tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk: the mask does not fit, and nothing of it is left."""
    folder = made(tmp_path / "b")
    picture = grey_png(tmp_path / "in" / "a.png", (300, 300))
    out = tmp_path / "out"

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))

    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "apps",
            "medical",
            "segment",
            "predict",
            folder,
            picture,
            "--out",
            out,
            "--format",
            "tif",
        ],
        preexec_fn=limit,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert done.stderr.strip().endswith("the disk is full, nothing was written; free some space or name another folder")
    assert not list(out.glob("a.*"))
    assert not [p for p in out.rglob("*") if "part" in p.name]
