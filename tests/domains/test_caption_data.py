"""Bags of patches: the layouts that are read, and what is refused in one sentence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from apps.medical.pathology_caption import check, data
from core.errors import FileError, InputError


def patch(path: Path, seed: int = 0) -> Path:
    """A small picture of noise in blocks, so that its structure survives resizing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    blocks = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(np.kron(blocks, np.ones((4, 4, 1), np.uint8))).save(path)
    return path


def gastric(folder: Path, text: str = "id,subtype,text\ns1,Well,One  caption.\ns2,Poor,Another.\n") -> Path:
    for i, name in enumerate(("s1_aa.jpg", "s1_bb.jpg", "s2_cc.jpg")):
        patch(folder / "patches_captions" / name, i)
    (folder / "captions.csv").write_text(text)
    return folder


def test_patchgastric(tmp_path: Path) -> None:
    found = data.find(gastric(tmp_path))
    assert [b.id for b in found.bags] == ["s1", "s2"]
    assert [len(b.patches) for b in found.bags] == [2, 1]
    assert found.bags[0].caption == "One caption."  # spaces and line breaks of a cell are one space
    assert found.classes == ("Poor", "Well")
    assert found.layout == "PatchGastricADC22"
    assert [b.group for b in found.bags] == ["s1", "s2"]  # nobody says whose slides they are


def test_groups_beside_the_data(tmp_path: Path) -> None:
    gastric(tmp_path)
    (tmp_path / "groups.csv").write_text("case,patient\ns1,p\ns2,p\n")
    assert [b.group for b in data.find(tmp_path).bags] == ["p", "p"]
    (tmp_path / "groups.csv").write_text("case,patient\ns1,p\n")
    with pytest.raises(FileError, match=r"groups\.csv: has no group for 1 cases \(s2\)"):
        data.find(tmp_path)


def test_breakhis_bags_are_slides(tmp_path: Path) -> None:
    home = tmp_path / "histology_slides" / "breast"
    for kind, letter, subtype, code in (("benign", "B", "adenosis", "A"), ("malignant", "M", "ductal_carcinoma", "DC")):
        for zoom in (100, 200):
            slide = f"SOB_{letter}_{code}_14-22549AB"
            name = f"SOB_{letter}_{code}-14-22549AB-{zoom}-001.png"
            patch(home / kind / "SOB" / subtype / slide / f"{zoom}X" / name, zoom)
    found = data.find(tmp_path)
    assert [len(b.patches) for b in found.bags] == [2, 2]
    assert [b.label for b in found.bags] == ["benign", "malignant"]
    assert len({b.group for b in found.bags}) == 1  # one patient: the slide's name is the same


def test_a_folder_for_each_bag(tmp_path: Path) -> None:
    for i, name in enumerate(("a/1.png", "a/2.png", "b/1.png")):
        patch(tmp_path / name, i)
    found = data.find(tmp_path)
    assert {b.id: len(b.patches) for b in found.bags} == {"a": 2, "b": 1}
    (tmp_path / "captions.csv").write_text("bag,caption,label,patient,part\na,x,k,p,train\nb,y,l,q,test\n")
    found = data.find(tmp_path)
    assert [(b.caption, b.label, b.group, b.part) for b in found.bags] == [
        ("x", "k", "p", "train"),
        ("y", "l", "q", "test"),
    ]
    assert [b.id for b in data.chosen(found, "train")] == ["a"]
    assert [b.id for b in data.wanted(found, "test")] == ["b"]
    with pytest.raises(InputError, match="no bag of the part val, only of test, train"):
        data.wanted(found, "val")


def test_class_folders_of_bags(tmp_path: Path) -> None:
    for name in ("benign/a/1.png", "malignant/a/1.png"):
        patch(tmp_path / name)
    found = data.find(tmp_path)
    assert [(b.id, b.label) for b in found.bags] == [("benign/a", "benign"), ("malignant/a", "malignant")]


def test_a_csv_of_patches(tmp_path: Path) -> None:
    for name in ("x/1.png", "x/2.png", "3.png"):
        patch(tmp_path / name)
    table = tmp_path / "patches.csv"
    table.write_text("image;bag;caption;label\nx/1.png;a;said;k\nx\\2.png;a;;\n3.png;b;;\n")
    found = data.find(table)
    assert [(b.id, len(b.patches), b.caption, b.label) for b in found.bags] == [("a", 2, "said", "k"), ("b", 1, "", "")]
    assert [b.id for b in data.find(tmp_path).bags] == ["a", "b"]
    table.write_text("image;bag;caption\nx/1.png;a;said\nx/2.png;a;other\n")
    with pytest.raises(FileError, match="line 3 says another caption of a"):
        data.find(table)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("image,bag\nnone.png,a\n", r"line 2 names 'none\.png', which does not exist"),
        ("image,bag\n../out.png,a\n", "stay inside"),
        ("image,bag\n1.png,../../a\n", "is no path|leads elsewhere"),
        ("image,bag\n1.png,\n", "line 2 names no bag"),
        ("image,bag\n1.png,a\n1.png,a\n", "a second time"),
        ("image,bag,part\n1.png,a,exam\n", "parts are train, val and test"),
        ("image,bag\nnotes.txt,a\n", r"patches end in"),
    ],
)
def test_bad_tables_of_patches(tmp_path: Path, rows: str, said: str) -> None:
    home = tmp_path / "set"
    patch(home / "1.png")
    patch(tmp_path / "out.png")
    (home / "notes.txt").write_text("x")
    (home / "list.csv").write_text(rows)
    with pytest.raises(FileError, match=said) as caught:
        data.find(home)
    assert "list.csv" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("id,subtype,text\ns9,Well,x\n", "of which patches_captions/ has no patch"),
        ("id,subtype,text\ns1,Well,x\ns1,Well,y\n", "line 3 names 's1' a second time"),
        ("id,subtype\ns1,Well\n", "id and caption are needed"),
    ],
)
def test_bad_captions(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(FileError, match=said):
        data.find(gastric(tmp_path, text))


def test_bags_without_patches(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileError, match="holds no patch"):
        data.one(tmp_path / "empty")
    with pytest.raises(FileError, match="holds no bag of patches"):
        data.find(tmp_path)
    with pytest.raises(FileError, match="no such folder"):
        data.find(tmp_path / "none")


def test_slides_without_a_caption_are_left_out_and_said(tmp_path: Path) -> None:
    found = data.find(gastric(tmp_path, "id,subtype,text\ns1,Well,x\n"))
    assert [b.id for b in found.bags] == ["s1"]
    assert any("1 slides have patches and no caption" in n for n in found.notes)


def test_check_says_what_is_wrong(tmp_path: Path) -> None:
    patch(tmp_path / "a" / "1.png", 1)
    patch(tmp_path / "b" / "1.png", 1)  # the same picture in another bag
    (tmp_path / "b" / "2.png").write_bytes(b"no picture")
    (tmp_path / "bags.csv").write_text("bag,label,patient,part\na,k,p,train\nb,k,p,test\n")
    report = check.check(tmp_path)
    assert not report.good
    told = "\n".join(report.problems)
    assert "2.png" in told
    assert "patient p is in the parts train and test" in told
    assert "one class only (k)" in told
    assert any("look alike (a and b)" in r for r in report.remarks)


def test_check_of_a_good_set(tmp_path: Path) -> None:
    report = check.check(gastric(tmp_path))
    assert report.good
    assert report.facts["captions"] == "2 of 2 bags, 2 different"
    assert report.facts["classes"] == "1 Poor, 1 Well"


def test_nothing_to_learn(tmp_path: Path) -> None:
    patch(tmp_path / "a" / "1.png")
    assert any("no bag has a caption or a class" in p for p in check.check(tmp_path).problems)
