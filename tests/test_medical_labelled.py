"""Labelled pictures: every published layout, CSV files as people write them, patients, and what `check` finds."""

import shutil

import numpy as np
import pytest
from PIL import Image

from apps.medical import breakhis, groups, labelled, tables
from core.errors import FileError, InputError


def picture(path, seed=0, size=(40, 48), mode="L"):
    """Speckle: each seed another picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)
    Image.fromarray(values).convert(mode).save(path)
    return path


def folders(tmp_path, names=("benign/a.png", "benign/b.png", "malignant/c.png")):
    for i, name in enumerate(names):
        picture(tmp_path / name, i)
    return tmp_path


def by_id(found):
    return {p.id: p for p in found.pictures}


# class folders


def test_class_folders(tmp_path):
    found = labelled.find(folders(tmp_path))
    assert (found.layout, found.classes) == ("class folders", ("benign", "malignant"))
    assert [(p.id, p.label, p.group, p.part) for p in found.pictures] == [
        ("benign/a", "benign", "benign/a", ""),
        ("benign/b", "benign", "benign/b", ""),
        ("malignant/c", "malignant", "malignant/c", ""),
    ]
    assert any("each picture stands alone" in n for n in found.notes)


def test_parts_above_the_classes(tmp_path):
    names = ["train/benign/a.png", "train/malignant/b.jpg", "valid/Benign/c.png", "test/malignant/d.bmp"]
    found = labelled.find(folders(tmp_path, names))
    assert {p.id: p.part for p in found.pictures} == {
        "train/benign/a": "train", "train/malignant/b": "train", "valid/Benign/c": "val", "test/malignant/d": "test",
    }  # fmt: skip
    assert found.classes == ("benign", "malignant")
    assert {p.label for p in found.pictures} == {"benign", "malignant"}
    assert [p.id for p in found.part("val")] == ["valid/Benign/c"]


def test_a_folder_below_the_class_is_a_patient(tmp_path):
    found = labelled.find(folders(tmp_path, ["benign/p1/a.png", "benign/p1/b.png", "malignant/p1/c.png"]))
    assert [p.group for p in found.pictures] == ["benign/p1", "benign/p1", "malignant/p1"]
    assert any("taken for one patient" in n for n in found.notes)


def test_equal_names_get_their_own_ids(tmp_path):
    found = labelled.find(folders(tmp_path, ["x/a.png", "x/a.jpg", "y/a.png"]))
    assert sorted(p.id for p in found.pictures) == ["x/a.jpg", "x/a.png", "y/a"]


def test_wanted_classes_choose_and_order(tmp_path):
    folders(tmp_path, ["Normal/a.png", "benign/b.png", "malignant/c.png"])
    found = labelled.find(tmp_path, classes=["Malignant", "BENIGN"])
    assert found.classes == ("Malignant", "BENIGN")
    assert {p.label for p in found.pictures} == {"Malignant", "BENIGN"}
    assert any("1 pictures of Normal are left out" in n for n in found.notes)
    with pytest.raises(InputError, match="has the classes Normal, benign, malignant, none of hcc"):
        labelled.find(tmp_path, classes=["hcc"])
    assert "no picture is of class hcc" in labelled.find(tmp_path, classes=["benign", "hcc"]).notes
    with pytest.raises(InputError, match="a name occurs twice"):
        labelled.find(tmp_path, classes=["benign", "Benign"])


def test_what_is_no_picture_is_passed_over(tmp_path):
    folders(tmp_path)
    (tmp_path / "benign" / "notes.txt").write_text("x")
    (tmp_path / "benign" / ".hidden.png").write_bytes(b"x")
    (tmp_path / ".git").mkdir()
    assert len(labelled.find(tmp_path).pictures) == 3


def test_scans_and_slides_are_passed_over_with_a_note(tmp_path):
    folders(tmp_path)
    (tmp_path / "benign" / "slide.svs").write_bytes(b"x")
    assert [n for n in labelled.find(tmp_path).notes if "1 scans or slides are passed over (slide.svs ...)" in n]


def test_nothing_to_read(tmp_path):
    with pytest.raises(FileError, match="no such folder; class folders"):
        labelled.find(tmp_path / "none")
    with pytest.raises(FileError, match="has no pictures of a known layout"):
        labelled.find(tmp_path)
    with pytest.raises(FileError, match="nothing says their classes"):
        labelled.find(folders(tmp_path, ["a.png", "b.png"]))
    with pytest.raises(FileError, match="is one file, not a data set"):
        labelled.find(tmp_path / "a.png")


# patients


def test_a_groups_csv_names_patients_by_id_path_or_name(tmp_path):
    folders(tmp_path)
    table = tmp_path / "who.csv"
    table.write_text("image,patient\nbenign/a,p1\nbenign/b.png,p1\nc.png,p2\n")
    found = labelled.find(tmp_path, groups=table)
    assert [p.group for p in found.pictures] == ["p1", "p1", "p2"]
    assert "patients are those of who.csv" in found.notes
    shutil.move(table, tmp_path / "groups.csv")
    assert [p.group for p in labelled.find(tmp_path).pictures] == ["p1", "p1", "p2"]
    (tmp_path / "groups.csv").write_text("image,patient\nbenign/a,p1\n")
    with pytest.raises(FileError, match=r"has no group for 2 cases \(benign/b, malignant/c\)"):
        labelled.find(tmp_path)


def test_groups_are_one_for_each_case(tmp_path):
    table = tmp_path / "g.csv"
    table.write_text("﻿Case;Group\na;p1\nb;\n", encoding="utf-8")
    assert groups.read(table) == {"a": "p1", "b": ""}
    assert groups.of(table, groups.read(table), [("a",), ("b",)]) == ["p1", "b"]
    table.write_text("case,group\na,p1\na,p2\n")
    with pytest.raises(FileError, match="line 3 puts 'a' into another group"):
        groups.read(table)
    table.write_text("name,who\na,p1\n")
    with pytest.raises(FileError, match="has the columns name, who; case and group are needed"):
        groups.read(table)
    with pytest.raises(FileError, match="no such file"):
        groups.read(tmp_path / "none.csv")


def test_dicom_files_are_of_their_patient_and_keep_no_name(tmp_path):
    pytest.importorskip("pydicom")
    from core.data import _ultrasound_dicom

    values = np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint8)
    for label, name in (("benign", "one"), ("malignant", "DOE_JANE_19700131")):
        (tmp_path / label).mkdir()
        _ultrasound_dicom.write(
            tmp_path / label / f"{name}.dcm", values, name="Doe^Jane", number="4711", birth="19700131"
        )
    shutil.copy(tmp_path / "benign" / "one.dcm", tmp_path / "benign" / "IM0001")  # as scanners name them
    found = labelled.find(tmp_path)
    assert len(found.pictures) == 3
    assert len({p.group for p in found.pictures}) == 1
    told = " ".join(f"{p.id} {p.group}" for p in found.pictures).lower()
    assert "doe" not in told
    assert "4711" not in told
    assert "1970" not in told


# US-Liver, BUSI, BUS-BRA


def liver(tmp_path, rows=("Benign/1.png,0", "Benign/2.png,0", "Malignant/3.png,1")):
    folders(tmp_path, ["Benign/1.png", "Benign/2.png", "Malignant/3.png"])
    (tmp_path / "list.csv").write_text("images,labels\n" + "\n".join(rows) + "\n")
    return tmp_path


def test_us_liver(tmp_path):
    found = labelled.find(liver(tmp_path))
    assert (found.layout, found.classes, found.conflicts) == ("US-Liver", ("Benign", "Malignant"), ())
    assert len(found.pictures) == 3


def test_us_liver_lists_from_other_machines(tmp_path):
    rows = ["D:\\data\\Benign\\1.png,0", "/home/x/US/Benign/2.png,0.0", "3.png,1"]
    assert labelled.find(liver(tmp_path, rows)).conflicts == ()


def test_us_liver_says_where_list_and_folders_differ(tmp_path):
    found = labelled.find(liver(tmp_path, ["Benign/1.png,1", "Malignant/3.png,1"]))
    assert found.conflicts == ("list.csv: Benign/1.png is malignant in line 2 and lies in Benign/",)
    assert any("1 pictures are in the folders but not in list.csv" in n for n in found.notes)
    assert any("is malignant in line 2" in p for p in labelled.check(found).problems)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("Benign/9.png,0", r"line 2 names 'Benign/9.png', which does not exist"),
        ("../x.png,0", r"line 2 names '../x.png'; paths in it stay inside"),
        ("1.png,2", r"line 2 has the label '2'; the classes are benign, malignant"),
        ("1.png,", r"line 2 has no label"),
    ],
)
def test_us_liver_with_a_wrong_list(tmp_path, row, message):
    with pytest.raises(FileError, match=r"list\.csv: " + message):
        labelled.find(liver(tmp_path, [row]))


def test_busi_merges_masks(tmp_path):
    root = tmp_path / "Dataset_BUSI_with_GT"
    for name in ("benign/benign (1)", "malignant/malignant (1)", "normal/normal (1)"):
        picture(root / f"{name}.png", len(name), mode="RGB")
        picture(root / f"{name}_mask.png", 1)
    picture(root / "benign/benign (1)_mask_1.png", 2)
    found = labelled.find(tmp_path)
    assert (found.layout, found.classes) == ("BUSI", ("benign", "malignant", "normal"))
    assert len(found.pictures) == 3
    assert [m.name for m in by_id(found)["benign/benign (1)"].masks] == ["benign (1)_mask.png", "benign (1)_mask_1.png"]


def test_a_mask_without_its_picture_is_a_picture(tmp_path):
    """It may be somebody's file name; nothing says otherwise."""
    found = labelled.find(folders(tmp_path, ["x/face_mask.png", "y/b.png"]))
    assert len(found.pictures) == 2


def bus_bra(tmp_path):
    for i, name in enumerate(("0001-l", "0001-r", "0002-l")):
        picture(tmp_path / "Images" / f"bus_{name}.png", i)
        picture(tmp_path / "Masks" / f"mask_{name}.png", i)
    (tmp_path / "bus_data.csv").write_text(
        "ID,Case,Histology,Pathology,BIRADS\nbus_0001-l,1,Fibroadenoma,benign,3\nbus_0001-r,1,Ductal,malignant,5\n"
        "bus_0002-l,2,Cyst,benign,2\n"
    )
    (tmp_path / "5-fold-cv.csv").write_text("ID,Pathology,kFold\nbus_0001-l,benign,1\n")
    return tmp_path


def test_bus_bra_names_its_patients(tmp_path):
    found = labelled.find(bus_bra(tmp_path))
    assert (found.layout, found.classes) == ("BUS-BRA", ("benign", "malignant"))
    assert [(p.id, p.group, p.label) for p in found.pictures] == [
        ("bus_0001-l", "1", "benign"), ("bus_0001-r", "1", "malignant"), ("bus_0002-l", "2", "benign"),
    ]  # fmt: skip
    assert all(len(p.masks) == 1 for p in found.pictures)
    (tmp_path / "Images" / "bus_0002-l.png").unlink()
    with pytest.raises(FileError, match=r"line 4 names 'Images/bus_0002-l.png', which does not exist"):
        labelled.find(tmp_path)


# BreakHis


def tree(tmp_path, root="BreaKHis_v1/histology_slides/breast"):
    for i, (kind, subtype, name) in enumerate((
        ("benign", "adenosis", "SOB_B_A-14-22549AB-40-001.png"),
        ("benign", "adenosis", "SOB_B_A-14-22549AB-100-002.png"),
        ("malignant", "ductal_carcinoma", "SOB_M_DC-14-13412-40-001.png"),
        ("malignant", "lobular_carcinoma", "SOB_M_LC-14-13412-40-007.png"),
    )):  # fmt: skip
        slide = "-".join(name.split("-")[:3]).replace("-14-", "_14-")
        picture(tmp_path / root / kind / "SOB" / subtype / slide / f"{name.split('-')[3]}X" / name, i)
    return tmp_path


@pytest.mark.parametrize("root", ["BreaKHis_v1/histology_slides/breast", "histology_slides/breast", "breast", ""])
def test_breakhis(tmp_path, root):
    found = labelled.find(tree(tmp_path, root))
    assert (found.layout, found.classes) == ("BreakHis", ("benign", "malignant"))
    assert {p.id: p.group for p in found.pictures} == {
        "SOB_B_A-14-22549AB-40-001": "14-22549AB",
        "SOB_B_A-14-22549AB-100-002": "14-22549AB",
        "SOB_M_DC-14-13412-40-001": "14-13412",
        "SOB_M_LC-14-13412-40-007": "14-13412",
    }


def test_breakhis_by_subtype(tmp_path):
    wanted = ["adenosis", "ductal_carcinoma", "lobular_carcinoma"]
    found = labelled.find(tree(tmp_path), classes=wanted)
    assert found.classes == tuple(wanted)
    assert {p.label for p in found.pictures} == set(wanted)


def test_breakhis_passes_over_strange_names(tmp_path):
    tree(tmp_path)
    picture(tmp_path / "BreaKHis_v1/histology_slides/breast/benign/SOB/adenosis/x/40X/copy.png")
    found = labelled.find(tmp_path)
    assert len(found.pictures) == 4
    assert any("1 files whose names are not BreakHis's" in n for n in found.notes)


def test_names_of_breakhis():
    name = breakhis.parse("x/SOB_M_MC-14-18842D-200-011.png")
    assert (name.kind, name.subtype, name.patient, name.magnification, name.sequence) == (
        "M", "MC", "14-18842D", 200, 11,
    )  # fmt: skip
    for wrong in ("SOB_X_A-14-1-40-1.png", "SOB_B_ZZ-14-1-40-1.png", "SOB_B_A-14-1-50-1.png", "a.png"):
        with pytest.raises(InputError, match="not a name of BreakHis"):
            breakhis.parse(wrong)
        assert not breakhis.is_name(wrong)


# CSV


def listed(tmp_path, text, name="list.csv"):
    for i, file in enumerate(("p/a.png", "p/b.png", "c.png")):
        picture(tmp_path / file, i)
    (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("by_file", [False, True])
def test_a_csv_with_patients_and_parts(tmp_path, by_file):
    rows = "p/a.png,benign,P1,train\np\\b.png,malignant,P2,validation\nc.png,benign,P3,test\n"
    listed(tmp_path, "Image,Label,Patient,Split\n\n" + rows)
    found = labelled.find(tmp_path / "list.csv" if by_file else tmp_path)
    assert (found.layout, found.classes) == ("CSV", ("benign", "malignant"))
    assert [(p.id, p.group, p.part) for p in found.pictures] == [
        ("p/a", "P1", "train"), ("p/b", "P2", "val"), ("c", "P3", "test"),
    ]  # fmt: skip


def test_semicolons_and_a_byte_order_mark(tmp_path):
    listed(tmp_path, "﻿file;class\np/a.png;x\nc.png;y\n")
    assert labelled.find(tmp_path).classes == ("x", "y")


def test_numbers_are_places_among_the_wanted_classes(tmp_path):
    listed(tmp_path, "image,label\np/a.png,1\np/b.png,0.0\nc.png,Malignant\n")
    found = labelled.find(tmp_path, classes=["benign", "malignant"])
    assert [p.label for p in found.pictures] == ["malignant", "benign", "malignant"]
    listed(tmp_path, "image,label\np/a.png,1\np/b.png,0.0\n")
    assert labelled.find(tmp_path).classes == ("0", "1")


def test_a_file_for_each_part(tmp_path):
    listed(tmp_path, "image,label\np/a.png,x\nc.png,y\n", "train.csv")
    (tmp_path / "test.csv").write_text("image,label\np/b.png,y\n")
    found = labelled.find(tmp_path)
    assert {p.id: p.part for p in found.pictures} == {"p/a": "train", "c": "train", "p/b": "test"}


def test_several_lists(tmp_path):
    listed(tmp_path, "image,label\np/a.png,x\n")
    (tmp_path / "other.csv").write_text("image,label\np/b.png,y\n")
    with pytest.raises(FileError, match=r"has several lists \(list.csv, other.csv\); name the one"):
        labelled.find(tmp_path)
    assert len(labelled.find(tmp_path / "other.csv").pictures) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,label\nnone.png,x\n", "line 2 names 'none.png', which does not exist"),
        ("image,label\nc.png,x\n../c.png,x\n", "line 3 names '../c.png'; paths in it stay inside its own folder"),
        ("image,label\n/etc/passwd,x\n", "line 2 names '/etc/passwd'; paths in it stay inside"),
        ("image,label\nC:\\c.png,x\n", "paths in it stay inside"),
        ("image,label\np/../../c.png,x\n", "paths in it stay inside"),
        ("image,label\n,x\n", "paths in it stay inside"),
        ("image,label\nc.png,\n", "line 2 has no label; every picture has one"),
        ("image,label,part\nc.png,x,holdout\n", "line 2 has the part 'holdout'; train, val and test"),
        ("image,label\nc.png\n", "line 2 has 1 cells, the header 2"),
        ("image,label\n", "has a header but no rows"),
        ("image,label,image\nc.png,x,y\n", "has two columns named image"),
        ('image,label\n"c.png,x\n', "not a CSV that can be read"),
    ],
)
def test_a_wrong_csv_is_one_sentence(tmp_path, text, message):
    listed(tmp_path, text)
    with pytest.raises(FileError) as caught:
        labelled.find(tmp_path / "list.csv")
    assert message in str(caught.value)
    assert "list.csv" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_label_that_the_network_does_not_know(tmp_path):
    listed(tmp_path, "image,label\nc.png,bengin\n")
    with pytest.raises(FileError, match="line 2 has the label 'bengin'; the classes are benign, malignant"):
        labelled.find(tmp_path, classes=["benign", "malignant"])


def test_files_that_are_no_csv(tmp_path):
    path = tmp_path / "list.csv"
    for content, message in (
        (b"", "an empty file"),
        (b"\xff\xfe\x00", "not a text in UTF-8"),
        (b"a,b\n1,2\n", "needed"),
    ):
        path.write_bytes(content)
        with pytest.raises(FileError, match=message):
            labelled.find(path)
    with pytest.raises(FileError, match="is a folder"):
        tables.rows(tmp_path, {"image": ("image",)})


def test_a_link_out_of_the_folder(tmp_path):
    (tmp_path / "data").mkdir()
    picture(tmp_path / "secret.png")
    (tmp_path / "data" / "link.png").symlink_to(tmp_path / "secret.png")
    (tmp_path / "data" / "list.csv").write_text("image,label\nlink.png,x\n")
    with pytest.raises(FileError, match="paths in it stay inside its own folder"):
        labelled.find(tmp_path / "data")


# check


def test_a_sound_set(tmp_path):
    names = [f"{label}/{i}.png" for label in ("benign", "malignant") for i in range(4)]
    found = labelled.check(labelled.find(folders(tmp_path, names)))
    assert found.good, found.problems
    assert found.facts["class benign"] == "4 pictures of 4 patients"
    assert found.facts["pictures"] == "8, 40 x 48"


def test_one_picture_under_two_labels(tmp_path):
    folders(tmp_path)
    source = Image.open(tmp_path / "benign" / "a.png")
    source.resize((60, 50)).save(tmp_path / "malignant" / "copy.jpg", quality=90)
    problems = labelled.check(labelled.find(tmp_path)).problems
    assert len(problems) == 1
    assert "benign/a (benign) and malignant/copy (malignant) look alike: one picture under two labels" in problems[0]


def test_the_same_row_under_two_labels(tmp_path):
    found = labelled.find(listed(tmp_path, "image,label\nc.png,x\nc.png,y\np/a.png,y\n"))
    assert found.conflicts == ("list.csv: c.png is x in line 2 and y in line 3",)
    assert any("c.png is x in line 2" in p for p in labelled.check(found).problems)


def test_duplicates_in_two_parts_and_of_two_patients(tmp_path):
    names = [f"{part}/{label}/{i}.png" for part in ("train", "test") for label in "xy" for i in range(3)]
    for k, name in enumerate(names):
        picture(tmp_path / name, k)
    shutil.copy(tmp_path / "train/x/0.png", tmp_path / "test/x/9.png")
    shutil.copy(tmp_path / "train/y/0.png", tmp_path / "train/y/9.png")
    found = labelled.check(labelled.find(tmp_path))
    assert [p for p in found.problems if "and are in" in p]
    assert len(found.problems) == 1
    assert [r for r in found.remarks if "say so with --groups" in r and "train/y/0" in r]


def test_a_patient_in_two_parts(tmp_path):
    rows = "p/a.png,x,P1,train\np/b.png,y,P1,test\nc.png,y,P2,train\n"
    found = labelled.check(labelled.find(listed(tmp_path, "image,label,patient,part\n" + rows)))
    assert [p.partition(": ")[2] for p in found.problems] == ["patient P1 is in test and train"]


def test_one_class_only(tmp_path):
    found = labelled.check(labelled.find(folders(tmp_path, ["benign/a.png", "benign/b.png"])))
    assert found.problems[-1].endswith("has one class only (benign); two are needed to tell apart")


def test_what_cannot_be_read_is_listed_with_the_rest(tmp_path):
    folders(tmp_path)
    good = (tmp_path / "benign" / "a.png").read_bytes()
    (tmp_path / "benign" / "cut.png").write_bytes(good[: len(good) // 2])
    (tmp_path / "malignant" / "empty.png").write_bytes(b"")
    (tmp_path / "malignant" / "words.jpg").write_text("no picture")
    problems = labelled.check(labelled.find(tmp_path)).problems
    assert [n for n in ("cut.png", "empty.png", "words.jpg") if any(n in p for p in problems)] == [
        "cut.png", "empty.png", "words.jpg",
    ]  # fmt: skip
    assert len(problems) == 3


def test_a_mask_of_another_size(tmp_path):
    for name in ("benign/benign (1)", "malignant/malignant (1)"):
        picture(tmp_path / f"{name}.png", len(name))
        picture(tmp_path / f"{name}_mask.png", 1)
    picture(tmp_path / "benign/benign (1)_mask_1.png", 2, size=(30, 30))
    problems = labelled.check(labelled.find(tmp_path)).problems
    assert len(problems) == 1
    assert "_mask_1.png: is 30 x 30, its picture 40 x 48" in problems[0]


def test_pictures_of_one_scanner_are_no_duplicates(tmp_path):
    """A shared outline and fading make hashes agree; the detail tells them apart."""
    row = np.linspace(200, 20, 96)[:, None] * (np.abs(np.arange(96) - 48) < np.arange(96)[:, None])
    for i in range(12):
        noise = np.random.default_rng(i).rayleigh(0.5, (96, 96))
        path = tmp_path / "xy"[i % 2] / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.clip(row * noise, 0, 255).astype(np.uint8)).save(path)
    assert labelled.check(labelled.find(tmp_path)).good


def test_a_flood_of_problems_is_cut(tmp_path):
    folders(tmp_path)
    for i in range(70):
        (tmp_path / "benign" / f"bad{i}.png").write_bytes(b"x")
    problems = labelled.check(labelled.find(tmp_path)).problems
    assert len(problems) == 51
    assert problems[-1] == "and 20 more such files"
