"""Data sets of blurred and sharp pairs: every layout, and what is wrong with one."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from apps.__main__ import main
from apps.deblurring import _npy, check, data
from core.errors import FileError, InputError

Bytes = NDArray[np.uint8]


def picture(seed: int = 0, size: tuple[int, int] = (40, 48)) -> Bytes:
    """Structure that its own blurred form, and no other seed's, resembles."""
    coarse = np.random.default_rng(seed).integers(0, 255, (6, 6, 3)).astype(np.uint8)
    return np.asarray(Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC))


def blurred(values: Bytes) -> Bytes:
    return ((values.astype(int) + np.roll(values, 3, axis=1)) // 2).astype(np.uint8)


def put(path: Path, values: Bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)
    return path


def mask(size: tuple[int, int] = (40, 48)) -> Bytes:
    values = np.zeros(size, np.uint8)
    values[5:20, 8:30] = 1
    return values


def plain(folder: Path, count: int = 3, part: str = "", first: int = 0) -> Path:
    """blur/, sharp/ and masks/."""
    for i in range(first, first + count):
        put(folder / part / "sharp" / f"{i}.png", picture(i))
        put(folder / part / "blur" / f"{i}.png", blurred(picture(i)))
        put(folder / part / "masks" / f"{i}.png", mask())
    return folder


def npy(path: Path, **changes: object) -> Path:
    sharp = picture(3)
    share = np.linspace(0, 1, 40 * 48).reshape(40, 48)
    path.parent.mkdir(parents=True, exist_ok=True)
    held = {"img_blur": blurred(sharp), "img_gt": sharp, "blur_mask": share, **changes}
    np.save(path, held, allow_pickle=True)  # type: ignore[arg-type]
    return path


# layouts


def test_reloblur(tmp_path: Path) -> None:
    for part, scene, name in (
        ("train", "s01", "01"),
        ("train", "s01", "02"),
        ("train", "s02", "01"),
        ("test", "s9", "03"),
    ):
        place = tmp_path / "dataset" / part / scene / name
        put(place / f"{name}_sharp.png", picture())
        put(place / f"{name}_blur.png", blurred(picture()))
        if part == "train":
            put(tmp_path / "masks" / part / scene / name / f"{name}.png", mask())
    found = data.find(tmp_path)
    assert found.layout == "ReLoBlur"
    assert [p.id for p in found.train] == ["train/s01/01", "train/s01/02", "train/s02/01"]
    assert [p.group for p in found.train] == ["train/s01", "train/s01", "train/s02"]
    assert [p.mask for p in found.test] == [None]
    read = data.read_pair(found.train[0])
    assert read.blurred.dtype == np.float32
    assert np.array_equal(read.blurred * 255, blurred(picture()))
    assert read.mask is not None
    assert np.array_equal(read.mask, mask())  # the file holds 0 and 1: what is not 0 is blurred
    assert data.read_pair(found.test[0]).mask is None


def test_gopro_reads_the_folder_without_gamma(tmp_path: Path) -> None:
    for part in ("train", "test"):
        for kind in ("blur", "sharp", "blur_gamma"):
            put(tmp_path / part / f"GOPR_{part}" / kind / "000001.png", picture())
    found = data.find(tmp_path)
    assert found.layout == "GoPro"
    (pair,) = found.train
    assert (pair.id, pair.group, pair.blurred.parent.name) == ("train/GOPR_train/000001", "train/GOPR_train", "blur")
    assert len(found.test) == 1


def test_hide(tmp_path: Path) -> None:
    for path in (
        "train/1.png",
        "test/test-close-ups/2.png",
        "test/test-long-shot/3.png",
        "GT/1.png",
        "GT/2.png",
        "GT/3.png",
    ):
        put(tmp_path / path, picture())
    found = data.find(tmp_path)
    assert found.layout == "HIDE"
    assert [p.id for p in found.test] == ["test-close-ups/2", "test-long-shot/3"]
    assert found.train[0].sharp == tmp_path / "GT" / "1.png"


def test_realblur_by_its_lists(tmp_path: Path) -> None:
    lines = {"train": [], "test": []}
    for part, scene in (("train", "scene001"), ("test", "scene050")):
        base = f"RealBlur-J_ECC_IMCORR_centroid_itensity_ref/{scene}"
        for kind in ("gt", "blur"):
            put(tmp_path / base / kind / f"{kind}_4.png", picture())
        lines[part].append(f"{base}/gt/gt_4.png {base}/blur/blur_4.png ")
    for part, words in lines.items():
        (tmp_path / f"RealBlur_J_{part}_list.txt").write_text("\n".join(words) + "\n")
    found = data.find(tmp_path)
    assert found.layout == "RealBlur-J"
    assert [(p.id, p.group) for p in found.test] == [("scene050/blur_4", "scene050")]
    assert found.train[0].sharp is not None
    assert found.train[0].sharp.name == "gt_4.png"
    (tmp_path / "RealBlur_J_train_list.txt").write_text("../../etc/gt.png ../../etc/blur.png\n")
    with pytest.raises(FileError, match="stay inside its own folder"):
        data.find(tmp_path)


def test_plain_with_parts_and_groups(tmp_path: Path) -> None:
    plain(plain(tmp_path, 2, "train"), 1, "val", 7)
    found = data.find(tmp_path)
    assert found.layout == "blur + sharp"
    assert [p.id for p in (*found.train, *found.val)] == ["train/0", "train/1", "val/7"]
    table = tmp_path / "groups.csv"
    table.write_text("pair,group\ntrain/0,a\ntrain/1,a\nval/7,b\n")
    assert [p.group for p in data.find(tmp_path, groups=table).train] == ["a", "a"]
    table.write_text("pair,group\ntrain/0,a\n")
    with pytest.raises(FileError, match="no group for 2 pairs"):
        data.find(tmp_path, groups=table)
    assert data.chosen(found, "val") == found.val
    with pytest.raises(InputError, match="--part train"):
        data.chosen(found, "test")


def test_npy_files(tmp_path: Path) -> None:
    npy(tmp_path / "a.npy")
    found = data.find(tmp_path)
    assert found.layout == "LMD-ViT's files"
    read = data.read_pair(found.test[0])
    assert read.sharp is not None
    assert read.mask is not None
    assert np.array_equal(read.sharp * 255, picture(3))
    assert read.mask[-1, -1] == 1
    assert 0 < read.mask[20, 20] < 1


def test_npy_files_run_nothing(tmp_path: Path) -> None:
    class Bad:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return exec, (f"open({str(tmp_path / 'ran')!r}, 'w')",)

    path = npy(tmp_path / "a.npy", more=Bad())
    with pytest.raises(FileError, match=r"asks for builtins\.exec"):
        _npy.read(path)
    assert not (tmp_path / "ran").exists()
    np.load(path, allow_pickle=True)  # the file would have
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"blur_mask": np.full((40, 48), 200.0)}, "outside 0 to 1"),
        ({"blur_mask": np.zeros((4, 4))}, "blur_mask of"),
        ({"img_gt": np.zeros((9, 9, 3), np.uint8)}, "have one size"),
        ({"img_blur": np.zeros((40, 48, 3))}, "uint8"),
    ],
)
def test_npy_files_that_do_not_fit(tmp_path: Path, changes: dict[str, object], words: str) -> None:
    with pytest.raises(FileError, match=words):
        _npy.read(npy(tmp_path / "a.npy", **changes))


def test_npy_files_that_are_something_else(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    np.save(path, np.zeros((4, 4)))
    with pytest.raises(FileError, match="holds an array float64"):
        _npy.read(path)
    path.write_bytes(npy(tmp_path / "b.npy").read_bytes()[:500])
    with pytest.raises(FileError, match="cannot be read"):
        _npy.read(path)
    path.write_bytes(pickle.dumps({}))
    with pytest.raises(FileError, match="cannot be read"):
        _npy.read(path)


def test_photographs_alone_have_no_partner(tmp_path: Path) -> None:
    put(tmp_path / "a.png", picture())
    found = data.find(tmp_path)
    assert (found.layout, found.test[0].sharp) == ("photographs alone", None)


def test_what_is_none_of_them(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="no such folder"):
        data.find(tmp_path / "none")
    with pytest.raises(FileError, match="no data set of a known layout"):
        data.find(tmp_path)


# faults


def test_unequal_sizes_name_both_files(tmp_path: Path) -> None:
    plain(tmp_path, 1)
    put(tmp_path / "sharp" / "0.png", picture(0, (40, 50)))
    (pair,) = data.find(tmp_path).train
    with pytest.raises(FileError) as error:
        data.read_pair(pair)
    assert f"{tmp_path / 'sharp' / '0.png'}: has 50 x 40 pixels" in str(error.value)
    assert f"{tmp_path / 'blur' / '0.png'} has 48 x 40" in str(error.value)


def test_a_missing_partner_is_refused_and_listed(tmp_path: Path) -> None:
    plain(tmp_path, 3)
    (tmp_path / "sharp" / "1.png").unlink()
    (tmp_path / "blur" / "2.png").unlink()
    with pytest.raises(FileError, match=r"1\.png: has no sharp partner"):
        data.find(tmp_path)
    found = check.check(tmp_path)
    assert any("1.png: has no sharp partner" in p for p in found.problems)
    assert any("2.png: has no blurred partner" in p for p in found.problems)


def test_check_of_a_good_data_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain(plain(tmp_path, 3, "train"), 2, "test", 5)
    assert main(["deblurring", "check", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    assert "3 photographs of 3 scenes" in told
    assert "48 x 40 (5)" in told
    assert "17.2 % of the pixels are blurred" in told
    assert "ready to train" in told


def test_check_lists_every_fault(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain(plain(tmp_path, 4, "train"), 2, "test", 5)
    put(tmp_path / "train" / "blur" / "0.png", picture(0))  # equal to its partner
    put(tmp_path / "train" / "masks" / "1.png", np.zeros((40, 48), np.uint8))
    put(tmp_path / "train" / "masks" / "2.png", mask((40, 40)))
    (tmp_path / "train" / "blur" / "3.png").write_bytes((tmp_path / "train" / "blur" / "3.png").read_bytes()[:200])
    for kind in ("blur", "sharp"):  # the same photograph on both sides
        (tmp_path / "test" / kind / "5.png").write_bytes((tmp_path / "train" / kind / "1.png").read_bytes())
    assert main(["deblurring", "check", str(tmp_path)]) == 1
    told = capsys.readouterr().out
    for words in (
        "train/blur/0.png: is equal to its sharp partner",
        "train/masks/1.png: is empty",
        "train/masks/2.png: has 40 x 40 pixels",
        "train/blur/3.png: is damaged or cut short",
        "train/1 (train) and test/5 (test) look alike",
        "5 problems",
    ):
        assert words in told


def test_check_of_a_scene_on_both_sides(tmp_path: Path) -> None:
    plain(plain(tmp_path, 1, "train"), 1, "test", 5)
    table = tmp_path / "groups.csv"
    table.write_text("pair,group\ntrain/0,car\ntest/5,car\n")
    assert any("scene car is in train and test" in p for p in check.check(tmp_path, groups=table).problems)


def test_check_of_photographs_alone_says_that_nothing_can_be_learned(tmp_path: Path) -> None:
    put(tmp_path / "a.png", picture())
    assert any("no pair to train on" in p for p in check.check(tmp_path).problems)


def test_masks_that_belong_elsewhere_are_remarked(tmp_path: Path) -> None:
    plain(tmp_path, 2)
    local = picture(0).copy()
    local[30:] = blurred(picture(0))[30:]  # the blur lies below, the mask above
    put(tmp_path / "blur" / "0.png", local)
    (remark,) = [r for r in check.check(tmp_path).remarks if "do not lie where" in r]
    assert "1 masks" in remark
    assert "train/0" in remark
