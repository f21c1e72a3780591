"""Medical segmentation as a user meets it: commands on files, good ones and bad ones."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import tifffile
import torch
from numpy.typing import NDArray
from PIL import Image

from apps.__main__ import main
from apps.medical.segmentation import inputs, model
from apps.medical.segmentation.options import TASK
from apps.medical.segmentation.pipeline import Pipeline
from core import bundle
from core.bundle import Input, Network, Output, Settings, Tile
from core.data.sample import Meta

OBLIQUE = np.array([[-1.2, 0.2, 0.0, 30.0], [0.2, 1.2, 0.1, -20.0], [0.0, -0.1, 4.0, 5.0], [0, 0, 0, 1.0]])
NETWORK = {"backbone": "convnext/v2_atto", "overrides": {"depths": [1, 1, 1, 1]}, "width": 8, "widest": 16}


def made(folder: Path, *, channels: int = 1, seed: int = 0, **given: object) -> Path:
    """A bundle with fresh weights."""
    torch.manual_seed(seed)
    config = model.configured("unet", {**NETWORK, "in_channels": channels, "classes": 3})
    values = {"channels": ("MR",) if channels == 1 else ("red", "green", "blue"), "normalise": "item"}
    settings = Settings(
        TASK,
        Network("unet", {**NETWORK, "in_channels": channels, "classes": 3}),
        Input(**{**values, **given}),  # type: ignore[arg-type]
        Output({"background": 0, "liver": 1, "spleen": 2}),
        Tile((32, 32), 0.25),
    )
    bundle.save(folder, model.build(config), settings, {"validation": None})
    return folder


@pytest.fixture(scope="module")
def grey(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("bundles") / "grey")


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("bundles") / "mr", spacing=(1.2, 1.2), plane="axial")


def volume(seed: int = 0, shape: tuple[int, int, int] = (40, 36, 5)) -> NDArray[np.int16]:
    return np.random.default_rng(seed).integers(0, 1000, shape).astype(np.int16)


def nifti(path: Path, values: NDArray[np.generic], affine: NDArray[np.floating] = OBLIQUE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(values, affine), path)
    return path


def grey_png(path: Path, size: tuple[int, int] = (40, 50), seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, size).astype(np.uint8)).save(path)
    return path


def segment(*words: object) -> int:
    return main(["medical", "segment", *map(str, words)])


# predict


def test_mask_lies_on_the_scans_own_grid(volumes: Path, tmp_path: Path) -> None:
    path = nifti(tmp_path / "scan.nii.gz", volume())
    assert segment("predict", volumes, path, "--out", tmp_path / "out", "--probabilities") == 0
    scan, mask = nib.load(path), nib.load(tmp_path / "out" / "scan.nii.gz")
    assert mask.shape == scan.shape
    assert np.array_equal(mask.affine, scan.affine)
    assert mask.header["sform_code"] == scan.header["sform_code"]
    labels = np.asarray(mask.dataobj)
    assert set(np.unique(labels)) <= {0, 1, 2}
    shares = np.asarray(nib.load(tmp_path / "out" / "scan.probabilities.nii.gz").dataobj)
    assert shares.shape == (*scan.shape, 3)
    assert np.allclose(shares.sum(-1), 1, atol=2e-3)
    assert np.array_equal(shares.argmax(-1), labels) or (shares.argmax(-1) != labels).mean() < 1e-3  # float16 ties
    rows = list(csv.DictReader((tmp_path / "out" / "volumes.csv").open()))
    assert [r["class"] for r in rows] == ["liver", "spleen"]
    voxel = abs(np.linalg.det(OBLIQUE[:3, :3]))
    for row in rows:
        count = int((labels == int(row["id"])).sum())
        assert int(row["samples"]) == count
        assert float(row["ml"]) == pytest.approx(count * voxel / 1000, rel=1e-3)
    assert (tmp_path / "out" / "overlays" / "scan.png").is_file()


def test_flipped_and_permuted_files_give_the_same_answer(volumes: Path) -> None:
    """The same voxels stored in another order of axes are the same scan."""
    pipeline = Pipeline.load(volumes)
    values, affine = volume(), np.diag([-1.2, -1.2, 4.0, 1.0])

    def answered(folder: Path, array: NDArray[np.int16], where: NDArray[np.floating]) -> NDArray[np.generic]:
        nifti(folder / "a.nii.gz", array, where)
        pipeline(folder / "a.nii.gz").save(folder / "mask.nii.gz")
        return np.asarray(nib.load(folder / "mask.nii.gz").dataobj)

    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        first = answered(Path(folder), values, affine)
        flip = np.diag([-1.0, 1, 1, 1])
        flip[0, 3] = values.shape[0] - 1
        assert np.array_equal(answered(Path(folder), values[::-1], affine @ flip)[::-1], first)
        swap = np.eye(4)[[2, 1, 0, 3]]
        turned = answered(Path(folder), values.transpose(2, 1, 0), affine @ swap)
        assert np.array_equal(turned.transpose(2, 1, 0), first)


def test_a_slice_in_one_tile_is_the_networks_own_answer(tmp_path: Path) -> None:
    folder = made(tmp_path / "b")
    pipeline = Pipeline.load(folder)
    picture = np.random.default_rng(0).integers(0, 255, (32, 32)).astype(np.uint8)
    result = pipeline(picture, probabilities=True)
    image = torch.from_numpy(picture.astype(np.float32))[None, None]
    image = (image - image.mean()) / image.std(correction=0)
    with torch.inference_mode():
        want = pipeline.members[0].network(image).softmax(1)[0]
    assert result.probabilities is not None
    assert np.abs(result.probabilities - want.numpy()).max() < 2e-3  # kept in half precision
    assert (result.mask != want.argmax(0).numpy()).mean() < 1e-3


def test_tiles_and_slices_do_not_mix(volumes: Path) -> None:
    pipeline = Pipeline.load(volumes, batch=3)
    stack = volume(3, (4, 70, 60))
    meta = Meta(spacing=(4.0, 1.2, 1.2))
    whole = pipeline(stack, meta=meta)
    contract = pipeline.settings.input
    assert contract.normalise == "item"
    fixed = stack.copy()
    fixed[1] = fixed[1][::-1]  # the same values elsewhere: the case's mean and spread stay
    again = pipeline(fixed, meta=meta)
    for z in (0, 2, 3):
        assert np.array_equal(whole.mask[z], again.mask[z])
    assert not np.array_equal(whole.mask[1], again.mask[1])


def test_spacing_is_resampled(tmp_path: Path) -> None:
    """A scene sampled twice as finely is segmented as the coarse one, at its own size."""
    pipeline = Pipeline.load(made(tmp_path / "b", spacing=(2.0, 2.0)))

    def sampled(step: float) -> NDArray[np.float32]:
        at = (np.arange(64 / step) + 0.5) * step  # pixel centres, millimetres
        return (np.sin(at[:, None] / 7) + np.cos(at / 5 + at[:, None] / 20)).astype(np.float32)

    coarse, fine, unscaled = (
        pipeline(sampled(step), meta=Meta(spacing=(said, said)), probabilities=True).probabilities
        for step, said in ((2.0, 2.0), (1.0, 1.0), (1.0, 2.0))
    )
    assert coarse is not None
    assert fine is not None
    assert unscaled is not None
    assert fine.shape == (3, 64, 64)

    def away(other: NDArray[np.floating]) -> float:
        return float(np.abs(other.reshape(3, 32, 2, 32, 2).mean((2, 4), dtype=float) - coarse).mean())

    assert away(fine) < 0.5 * away(unscaled)


def test_invalid_voxels_are_background(grey: Path, tmp_path: Path) -> None:
    picture = np.random.default_rng(0).normal(0, 1, (40, 40)).astype(np.float32)
    picture[5:9, 5:9] = np.nan
    picture[30, 30] = np.inf
    tifffile.imwrite(tmp_path / "a.tif", picture)
    result = Pipeline.load(grey)(tmp_path / "a.tif")
    assert not result.mask[5:9, 5:9].any()
    assert result.mask[30, 30] == 0
    assert any("NaN" in w for w in result.meta.applied)


def test_mean_of_bundles_and_folds(tmp_path: Path) -> None:
    a, b = made(tmp_path / "run" / "fold_0"), made(tmp_path / "run" / "fold_1", seed=1)
    picture = np.random.default_rng(0).integers(0, 255, (32, 32)).astype(np.uint8)
    one, two, mean, folder = (
        Pipeline.load(*f)(picture, probabilities=True).probabilities for f in ([a], [b], [a, b], [tmp_path / "run"])
    )
    assert one is not None
    assert two is not None
    assert mean is not None
    assert folder is not None
    assert np.abs((one.astype(float) + two) / 2 - mean).max() < 2e-3
    assert np.array_equal(mean, folder)
    assert np.abs(one.astype(float) - two).max() > 1e-2
    other = made(tmp_path / "other", channels=3)
    assert segment("predict", a, other, grey_png(tmp_path / "p.png"), "--out", tmp_path / "out") == 2


def test_fifty_files_of_which_three_are_bad(grey: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = tmp_path / "in"
    for i in range(47):
        grey_png(files / f"p{i:02d}.png", (33, 35), i)
    whole = grey_png(tmp_path / "q.png").read_bytes()
    (files / "x1.png").write_bytes(whole[: len(whole) // 2])
    (files / "x2.png").write_bytes(b"no picture at all")
    Image.fromarray(np.zeros((30, 30, 3), np.uint8)).save(files / "x3.png")
    assert segment("predict", grey, files, "--out", tmp_path / "out", "--no-overlays") == 1
    assert len(list((tmp_path / "out").glob("*.png"))) == 47
    rows = list(csv.DictReader((tmp_path / "out" / "failures.csv").open()))
    assert [Path(r["item"]).name for r in rows] == ["x1.png", "x2.png", "x3.png"]
    assert "has 3 channels where 1 channel would be right" in rows[2]["error"]
    assert all(r["error"].count("\n") == 0 and r["item"] in r["error"] for r in rows)
    # Mended, the same command does only what is left.
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").glob("*.png")}
    for name in ("x1.png", "x2.png", "x3.png"):
        grey_png(files / name)
    capsys.readouterr()
    assert segment("predict", grey, files, "--out", tmp_path / "out", "--no-overlays") == 0
    assert "47 of 50 are done already" in capsys.readouterr().out
    assert not (tmp_path / "out" / "failures.csv").exists()
    assert {p: p.stat().st_mtime_ns for p in stamps} == stamps
    assert len({r["item"] for r in csv.DictReader((tmp_path / "out" / "volumes.csv").open())}) == 50


def test_other_choices_or_a_changed_file_are_worked_on_again(grey: Path, tmp_path: Path) -> None:
    path, out = grey_png(tmp_path / "a.png"), tmp_path / "out"

    def stamp() -> int:
        assert segment("predict", grey, path, "--out", out, *more) == 0
        return (out / "a.png").stat().st_mtime_ns

    more: list[str] = []
    first = stamp()
    assert stamp() == first
    grey_png(path, seed=5)
    second = stamp()
    assert second != first
    more = ["--overlap", "0.5"]
    assert stamp() != second


def test_a_mask_that_was_deleted_is_made_again(grey: Path, tmp_path: Path) -> None:
    """Also where another item's name begins alike, or has letters that mean something in patterns."""
    out = tmp_path / "out"
    for name in ("a.png", "a.b.png", "c [1].png"):
        grey_png(tmp_path / "in" / name)
    for _ in range(2):
        assert segment("predict", grey, tmp_path / "in", "--out", out, "--no-overlays") == 0
        assert {p.name for p in out.glob("*.png")} == {"a.png", "a.b.png", "c [1].png"}
        stamp = (out / "c [1].png").stat().st_mtime_ns
        (out / "a.png").unlink()
    assert segment("predict", grey, tmp_path / "in", "--out", out, "--no-overlays") == 0
    assert (out / "a.png").is_file()
    assert (out / "c [1].png").stat().st_mtime_ns == stamp


def _missing(tmp: Path) -> Path:
    return tmp / "none.nii.gz"


def _cut_nifti(tmp: Path) -> Path:
    path = nifti(tmp / "cut.nii.gz", volume())
    path.write_bytes(path.read_bytes()[:-800])
    return path


def _cut_tiff(tmp: Path) -> Path:
    path = tmp / "cut.tif"
    tifffile.imwrite(path, np.zeros((64, 64), np.uint8))
    path.write_bytes(path.read_bytes()[:2000])
    return path


def _colour(tmp: Path) -> Path:
    Image.fromarray(np.zeros((30, 30, 3), np.uint8)).save(tmp / "colour.png")
    return tmp / "colour.png"


def _empty(tmp: Path) -> Path:
    (tmp / "empty").mkdir()
    return tmp / "empty"


def _nothing_valid(tmp: Path) -> Path:
    return nifti(tmp / "nan.nii.gz", np.full((5, 5, 2), np.nan, np.float32))


@pytest.mark.parametrize("maker", [_missing, _cut_nifti, _cut_tiff, _colour, _empty, _nothing_valid])
def test_bad_input_is_one_sentence_and_leaves_nothing(
    maker: Callable[[Path], Path], grey: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = maker(tmp_path)
    assert segment("predict", grey, path, "--out", tmp_path / "out") == 2
    told = capsys.readouterr().err.strip()
    assert told.startswith("glocal: ")
    assert "\n" not in told
    assert path.name in told
    assert not [p for p in (tmp_path / "out").rglob("*") if p.is_file() and p.suffix in (".png", ".gz", ".tif", ".csv")]


def test_a_scan_without_spacing_says_how_to_give_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = made(tmp_path / "b", spacing=(1.0, 1.0))
    path = grey_png(tmp_path / "a.png")
    assert segment("predict", folder, path, "--out", tmp_path / "out") == 2
    assert "--spacing" in capsys.readouterr().err
    assert segment("predict", folder, path, "--out", tmp_path / "out", "--spacing", "0.5", "0.5") == 0
    assert np.asarray(Image.open(tmp_path / "out" / "a.png")).shape == (40, 50)


def test_an_image_smaller_than_a_tile(grey: Path) -> None:
    assert Pipeline.load(grey)(np.zeros((7, 5), np.uint8)).mask.shape == (7, 5)


def test_no_bundle_and_an_altered_one(grey: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = grey_png(tmp_path / "a.png")
    assert segment("predict", path, "--out", tmp_path / "out") == 2
    assert "is no bundle" in capsys.readouterr().err
    shutil.copytree(grey, tmp_path / "b")
    settings = tmp_path / "b" / "settings.toml"
    settings.write_text(settings.read_text().replace("overlap = 0.25", "overlap = 0.75"))
    assert segment("predict", tmp_path / "b", path, "--out", tmp_path / "out") == 2
    assert "was altered" in capsys.readouterr().err


# data sets


def dataset(folder: Path, cases: int = 3, *, ignore: bool = False) -> Path:
    """nnU-Net's layout; bright squares are class 1, with a dark one of class 2 beside them."""
    draw = np.random.default_rng(0)
    for part, count in (("Tr", cases), ("Ts", 2)):
        for i in range(count):
            x, y = draw.integers(4, 18, 2)
            mask = np.zeros((36, 40, 4), np.uint8)
            mask[x : x + 12, y : y + 12] = 1
            mask[x + 12 : x + 18, y : y + 12] = 2
            values = (100 + 80 * (mask == 1) - 60 * (mask == 2) + draw.normal(0, 8, mask.shape)).astype(np.int16)
            if ignore:
                mask[:3] = 3
            nifti(folder / f"images{part}" / f"{part}{i}_0000.nii.gz", values)
            nifti(folder / f"labels{part}" / f"{part}{i}.nii.gz", mask)
    labels = {"background": 0, "bright": 1, "dark": 2, **({"ignore": 3} if ignore else {})}
    table = {"channel_names": {"0": "MR"}, "labels": labels, "numTraining": cases, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(table))
    return folder


def test_check_lists_every_problem(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = dataset(tmp_path / "d", 4)
    assert segment("check", folder) == 0
    assert "ready to train" in capsys.readouterr().out
    label = folder / "labelsTr" / "Tr0.nii.gz"
    nifti(label, np.zeros((36, 40, 4), np.uint8), OBLIQUE + np.diag([0.5, 0, 0, 0]))  # another grid
    nifti(folder / "labelsTr" / "Tr1.nii.gz", np.full((36, 40, 4), 7, np.uint8))  # an unknown value
    image = folder / "imagesTr" / "Tr2_0000.nii.gz"
    image.write_bytes(image.read_bytes()[:-500])
    shutil.copy(folder / "imagesTs" / "Ts0_0000.nii.gz", folder / "imagesTr" / "Tr3_0000.nii.gz")  # a test scan
    assert segment("check", folder) == 1
    told = capsys.readouterr().out
    assert "Tr0.nii.gz: lies on another grid" in told
    assert "Tr1.nii.gz: holds the value 7; known are 0 (background), 1 (bright), 2 (dark)" in told
    assert "Tr2_0000.nii.gz" in told
    assert "Tr3 (train) and Ts0 (test) look alike" in told
    assert "4 problems" in told


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"labels": {"background": 0, "a": [1, 2]}}, "is a region of several values"),
        ({"labels": {"background": 0, "a": 2}}, "count from 0"),
        ({"labels": {"background": 0, "a": 1, "ignore": 5}}, "ignore label is 5; it comes after the last class, so 2"),
        ({"channel_names": {}}, 'has no "channel_names"'),
        ({"file_ending": ".jpg"}, "file_ending"),
        ({"dataset": {"x": {"images": ["../../secret.nii.gz"], "label": "a"}}}, "paths in it stay inside"),
    ],
)
def test_faults_of_dataset_json(
    tmp_path: Path, change: dict[str, object], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = dataset(tmp_path / "d") / "dataset.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    assert segment("check", tmp_path / "d") == 2
    told = capsys.readouterr().err
    assert words in told
    assert "dataset.json" in told


def test_plain_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(3):
        grey_png(tmp_path / "d" / "images" / f"{i}.png", seed=i)
        mask = np.zeros((40, 50), np.uint8)
        mask[5:20, 5:30] = 255
        (tmp_path / "d" / "masks").mkdir(exist_ok=True)
        Image.fromarray(mask).save(tmp_path / "d" / "masks" / f"{i}.png")
    assert segment("check", tmp_path / "d") == 0
    assert "class 1 foreground" in capsys.readouterr().out
    (tmp_path / "d" / "masks" / "1.png").unlink()
    assert segment("check", tmp_path / "d") == 2
    assert "1.png: has no mask in masks/" in capsys.readouterr().err


# inputs


def test_moments_of_pieces_are_those_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    from apps.medical.segmentation.pipeline import from_array

    values = (np.random.default_rng(0).normal(3e4, 5, (7, 20, 30))).astype(np.float32)
    values[2, 3:9] = np.nan
    monkeypatch.setattr(inputs, "_CHUNK", 400)
    found = inputs.moments(inputs.slices(from_array(values, ("MR",), Meta()), ""))
    known = values[np.isfinite(values)].astype(float)
    assert found.count == known.size
    assert found.mean[0] == pytest.approx(known.mean(), rel=1e-9)
    assert found.std[0] == pytest.approx(known.std(), rel=1e-6)
    assert (found.low[0], found.high[0]) == (known.min(), known.max())


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_planes_come_back(plane: str) -> None:
    from apps.medical.segmentation.pipeline import from_array

    values = np.arange(2 * 3 * 4).reshape(2, 3, 4).astype(np.int16)
    affine = tuple(tuple(map(float, r)) for r in np.eye(4))
    stack = inputs.slices(from_array(values, ("MR",), Meta(affine=affine, spacing=(5.0, 2.0, 1.0))), plane)  # type: ignore[arg-type]
    axis = inputs.PLANES[plane]
    assert stack.shape == np.moveaxis(values, axis, 0).shape
    read, valid = stack.read((0, 0, 0), stack.shape)
    assert valid.all()
    assert np.array_equal(read[0], np.moveaxis(values, axis, 0))
    assert np.array_equal(stack.restore(read[0]), values)
    part, known = stack.read((0, -1, 1), (1, 1, 2))
    assert part.shape == (1, 1, 2, 1)
    assert known[0, 0, 0] == np.False_
    assert part[0, 0, 1, 0] == read[0, 0, 0, 1]


def test_norm_clips_and_puts_invalid_values_at_the_mean() -> None:
    normal = inputs.Norm((10.0,), (2.0,), (0.0, 20.0))
    values = torch.tensor([[[[0, 14, 50, 99]]]], dtype=torch.int16)
    valid = torch.tensor([[[True, True, True, False]]])
    assert normal(values, valid).flatten().tolist() == [-5.0, 2.0, 5.0, 0.0]
