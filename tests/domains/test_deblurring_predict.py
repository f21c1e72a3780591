"""Deblurring as a user meets it: photographs of any kind, size and state, through tiles without seams."""

from __future__ import annotations

import contextlib
import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional

from apps.__main__ import main
from apps.deblurring import _strips, model, pipeline, predict
from apps.deblurring.options import TASK
from apps.deblurring.pipeline import Pipeline
from apps.deblurring.results import Deblurred
from core import bundle
from core.bundle import Input, Network, Output, Settings, Tile
from core.data import photos
from core.data.sample import Meta
from core.errors import InputError, SettingError, ShapeError

REDUCED = {"dims": [8, 8, 16], "depths": [1, 2, 1, 1, 1], "heads": [1] * 5, "prune": [True] * 5}
TINY = {"dims": [8, 8], "depths": [1] * 3, "heads": [1] * 3, "prune": [True] * 3}
MULTIPLE = 32  # that this network divides
ORIENTATION = 0x0112


def made(folder: Path, *, seed: int = 0, tile: int = 64, settings: dict[str, Any] = REDUCED) -> Path:
    """A bundle of a small network with fresh weights, scaled so that it changes pictures, and differently by place."""
    torch.manual_seed(seed)
    network = model.create("lmd_vit", **settings)
    with torch.no_grad():
        for name, p in network.named_parameters():
            if "output_proj" in name and p.ndim > 1:
                p.mul_(1.5)
    colours = Input(channels=("red", "green", "blue"))
    told = Settings(TASK, Network("lmd_vit", settings), colours, Output(), Tile((tile, tile), 0.25))
    bundle.save(folder, network, told, {"validation": None})
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("bundles") / "a")


@pytest.fixture(scope="module")
def loaded(folder: Path) -> Pipeline:
    return Pipeline.load(folder, device="cpu")


def real(rows: int = 300, columns: int = 451) -> NDArray[np.uint8]:
    return np.asarray(skimage.data.chelsea())[:rows, :columns]


def put(path: Path, values: NDArray[Any], **how: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path, **how)
    return path


def run(*words: object) -> int:
    return main(["deblurring", *map(str, words)])


# one pass, tiles, seams


@pytest.mark.parametrize("size", [(64, 64), (50, 77), (1, 1), (5, 250)])
def test_one_tile_is_the_networks_own_answer(loaded: Pipeline, size: tuple[int, int]) -> None:
    values = real(*size)
    rows, columns = values.shape[:2]
    got = loaded(values.astype(np.float32) / 255, tile=256)
    top, left = (-rows % MULTIPLE) // 2, (-columns % MULTIPLE) // 2
    image = torch.from_numpy(values.astype(np.float32) / 255).permute(2, 0, 1)[None].contiguous()
    image = functional.pad(image, (left, -columns % MULTIPLE - left, top, -rows % MULTIPLE - top))
    with torch.inference_mode():
        want = loaded.members[0].network(image)
    inside = (slice(top, top + rows), slice(left, left + columns))
    assert np.array_equal(got.image, want.image[0].permute(1, 2, 0).numpy()[inside].clip(0, 1))
    assert np.array_equal(got.mask, np.rint(want.blur[0, 0].numpy()[inside] * 255).astype(np.uint8))


def test_the_network_changes_pictures(loaded: Pipeline) -> None:
    """Else the tests of seams would say nothing."""
    values = real(128, 128)
    assert np.abs(loaded(values).image.astype(int) - values).mean() > 2


@pytest.mark.parametrize("kind", ["real", "ramp", "flat"])
def test_seams_cannot_be_seen(loaded: Pipeline, kind: str) -> None:
    """What tiles differ by from one pass changes across a tile's border no faster than elsewhere."""
    rows, columns = 128, 192  # which the network divides: one pass sees no zeros either
    if kind == "real":
        values = real(rows, columns).astype(np.float32) / 255
    elif kind == "ramp":
        values = np.repeat(np.linspace(0.1, 0.9, columns, dtype=np.float32)[None, :, None], rows, 0).repeat(3, 2)
    else:
        values = np.full((rows, columns, 3), 0.5, np.float32)
    whole = loaded(values, tile=(rows, columns)).image
    joined, cut = (loaded(values, tile=(rows, 64), overlap=share).image for share in (0.25, 0.0))
    step, control = (np.abs(np.diff(image - whole, axis=1)).mean(axis=(0, 2)) for image in (joined, cut))
    seams = [63, 127]  # between tiles that do not overlap
    assert control[seams].min() > 4 * np.median(control)  # the measure sees seams where there are some
    starts = [0, 48, 96, 128]
    edges = [s - 1 for s in starts[1:]] + [s + 63 for s in starts[:-1]]
    assert step[edges].max() <= 2 * np.quantile(step, 0.9)
    assert step.max() < 0.5 * control[seams].min()


def test_tiles_are_multiples_and_no_larger_than_the_picture(loaded: Pipeline) -> None:
    assert loaded.multiple == MULTIPLE
    assert loaded.tile((1000, 50)) == (64, 50)
    assert loaded.tile((1000, 900), 100) == (128, 128)
    assert loaded.tile((1000, 900), (33, 1)) == (64, 32)
    with pytest.raises(SettingError, match="at least 1"):
        loaded.tile((10, 10), 0)


def test_pictures_are_not_mixed_up(loaded: Pipeline) -> None:
    """Left and right, red and blue: a picture turned over its diagonal is another one."""
    values = real(128, 128)
    assert np.corrcoef(loaded(values).image.ravel(), values.ravel())[0, 1] > 0.8
    got = loaded(np.zeros((64, 64, 3), np.uint8)).image
    assert got.shape == (64, 64, 3)


def test_several_bundles_are_their_mean(folder: Path, tmp_path: Path) -> None:
    other = made(tmp_path / "b", seed=1)
    values = real(100, 140).astype(np.float32) / 255
    one, two, both = (Pipeline.load(*f, device="cpu")(values) for f in ((folder,), (other,), (folder, other)))
    raw = [m(torch.from_numpy(values).permute(2, 0, 1)[None])[0] for m in
           Pipeline.load(folder, other, device="cpu").members]  # fmt: skip
    mean = (sum(raw) / 2).detach().numpy()  # type: ignore[union-attr]
    assert np.abs(one.image - two.image).max() > 0.01
    one_tile = Pipeline.load(folder, other, device="cpu")(values, tile=256)
    assert np.allclose(one_tile.image, np.moveaxis(mean[:3], 0, -1).clip(0, 1), atol=1e-6)
    assert both.image.shape == values.shape


# kinds of photographs


def test_grey_stays_grey(loaded: Pipeline) -> None:
    values = real(64, 64)[..., :1]
    got = loaded(values)
    three = loaded(np.repeat(values, 3, axis=2).astype(np.float32) / 255)
    assert got.image.shape == (64, 64, 1)
    assert np.array_equal(got.image[..., 0], np.rint(three_mean(loaded, values) * 255))
    assert np.array_equal(got.mask, three.mask)
    assert loaded(values[..., 0]).image.shape == (64, 64, 1)


def three_mean(loaded: Pipeline, values: NDArray[np.uint8]) -> NDArray[np.float32]:
    image = torch.from_numpy(np.repeat(values, 3, axis=2).astype(np.float32) / 255).permute(2, 0, 1)[None].contiguous()
    with torch.inference_mode():
        return loaded.members[0](image)[0, :3].mean(0).clip(0, 1).numpy()


def test_16_bits_are_kept(loaded: Pipeline, folder: Path, tmp_path: Path) -> None:
    deep = (real(90, 100).astype(np.uint16) * 257) + 77
    photos.save(tmp_path / "deep.png", np.minimum(deep, 65535).astype(np.uint16))
    assert run("predict", folder, tmp_path / "deep.png", "--out", tmp_path / "out") == 0
    got = photos.read(tmp_path / "out" / "deep.png").pixels
    assert got.dtype == np.uint16
    want = loaded(photos.as_float(photos.read(tmp_path / "deep.png"))).image
    assert np.abs(got / 65535 - want).max() <= 0.51 / 65535 + 1e-6
    assert len(np.unique(got & 255)) > 100  # not 8 bits stretched


def test_floats_are_kept(loaded: Pipeline, folder: Path, tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    values = real(60, 90).astype(np.float32) / 255
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb")
    assert run("predict", folder, tmp_path / "a.tif", "--out", tmp_path / "out") == 0
    got = photos.read(tmp_path / "out" / "a.tif").pixels
    assert got.dtype == np.float32
    assert np.array_equal(got, loaded(values).image)


@pytest.mark.parametrize("ending", ["jpg", "png", "tif"])
def test_metadata_are_kept(folder: Path, tmp_path: Path, ending: str) -> None:
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    exif[0x013B] = "Someone"  # the artist
    path = put(tmp_path / f"a.{ending}", real(60, 90), exif=exif, icc_profile=profile, dpi=(300, 300))
    assert run("predict", folder, path, "--out", tmp_path / "out") == 0
    with Image.open(tmp_path / "out" / f"a.{ending}") as result:
        assert result.size == (60, 90)  # upright
        assert result.info["icc_profile"] == profile
        assert result.getexif().get(ORIENTATION, 1) == 1
        assert result.getexif()[0x013B] == "Someone"
        assert round(float(result.info["dpi"][0])) == 300


def test_alpha_is_kept(folder: Path, tmp_path: Path) -> None:
    values = np.dstack([real(60, 90), np.arange(60 * 90, dtype=np.uint32).reshape(60, 90) % 256]).astype(np.uint8)
    path = put(tmp_path / "a.png", values)
    assert run("predict", folder, path, "--out", tmp_path / "out") == 0
    with Image.open(tmp_path / "out" / "a.png") as result:
        assert result.mode == "RGBA"
        assert np.array_equal(np.asarray(result)[..., 3], values[..., 3])


@pytest.mark.parametrize("mode", ["CMYK", "P", "LA", "1", "L"])
def test_odd_modes_are_read(folder: Path, tmp_path: Path, mode: str) -> None:
    ending = "jpg" if mode == "CMYK" else "png"
    path = tmp_path / f"a.{ending}"
    Image.fromarray(real(60, 90)).convert(mode).save(path)
    assert run("predict", folder, path, "--out", tmp_path / "out") == 0
    with Image.open(tmp_path / "out" / f"a.{ending}") as result:
        assert result.size == (90, 60)
        assert result.mode == {"CMYK": "RGB", "P": "RGB", "LA": "LA", "1": "L", "L": "L"}[mode]


@pytest.mark.parametrize("size", [(1, 1), (3, 20000), (2, 3)])
def test_odd_sizes_are_read(folder: Path, tmp_path: Path, size: tuple[int, int]) -> None:
    values = np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8)
    words = ["--out", tmp_path / "out", "--tile", 32, 4096, "--overlays"]
    assert run("predict", folder, put(tmp_path / "a.png", values), *words) == 0
    with Image.open(tmp_path / "out" / "a.png") as result, Image.open(tmp_path / "out" / "masks" / "a.png") as mask:
        assert result.size == mask.size == size[::-1]


# files


def test_a_folder_with_bad_files(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(tmp_path / "in" / "good.jpg", real(60, 90))
    put(tmp_path / "in" / "more" / "other.png", real(40, 40))
    cut = put(tmp_path / "in" / "cut.jpg", real(200, 300))
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    (tmp_path / "in" / "none.png").write_bytes(b"")
    assert run("predict", folder, tmp_path / "in", "--out", tmp_path / "out", "--overlays") == 1
    rows = {Path(r["item"]).name: r["error"] for r in csv.DictReader((tmp_path / "out" / "failures.csv").open())}
    assert set(rows) == {"cut.jpg", "none.png"}
    assert "cut short" in rows["cut.jpg"]
    assert "is empty" in rows["none.png"]
    out = tmp_path / "out"
    assert {p.relative_to(out).as_posix() for p in out.rglob("*.*") if p.suffix in (".png", ".jpg")} == {
        "good.jpg", "other.png", "masks/good.png", "masks/other.png", "overlays/good.png", "overlays/other.png"
    }  # fmt: skip
    shares = {r["item"]: float(r["blurred"]) for r in csv.DictReader((out / "blur.csv").open())}
    assert set(shares) == {"good", "other"}
    assert not list(out.rglob("*.part*"))
    cut.write_bytes(put(tmp_path / "again.jpg", real(200, 300)).read_bytes())
    (tmp_path / "in" / "none.png").unlink()
    capsys.readouterr()
    assert run("predict", folder, tmp_path / "in", "--out", out, "--overlays") == 0
    assert "2 of 3 are done already" in capsys.readouterr().out
    assert not (out / "failures.csv").exists()


def test_one_file_into_one_file(folder: Path, tmp_path: Path) -> None:
    path = put(tmp_path / "a.jpg", real(60, 90))
    assert run("predict", folder, path, "--out", tmp_path / "new" / "sharp.png") == 0
    assert {p.name for p in (tmp_path / "new").iterdir()} == {"sharp.png", "sharp.blur.png"}
    assert run("predict", folder, path, "--out", tmp_path / "other.tif", "--no-masks") == 0
    assert {p.name for p in tmp_path.iterdir()} == {"a.jpg", "new", "other.tif"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["a.jpg", "b.jpg", "--out", "one.png"], "is one file, and there are 2 photographs"),
        (["a.jpg", "--out", "."], "would be replaced by its own result"),
        (["a.jpg", "--out", "a.jpg"], "would be replaced by its own result"),
        (["a.jpg", "--out", "o", "--quality", "99"], "--quality is 1 to 95"),
        (["a.jpg", "--out", "o", "--batch", "0"], "at least 1"),
        (["a.jpg", "--out", "o", "--overlap", "1"], "overlap is a fraction"),
        (["a.jpg", "--out", "o", "--tile", "0", "0"], "at least 1 row"),
        (["none.jpg", "--out", "o"], "no such file"),
        (["deep.png", "--out", "o", "--format", "jpg"], "which JPEG does not hold"),
        (["clear.png", "--out", "o.jpg"], "an alpha channel, which JPEG does not hold"),
        (["a.jpg", "a.png", "--out", "o"], "has the same name"),
    ],
)
def test_mistakes_are_one_sentence(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    words: list[str], said: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    before = put(tmp_path / "a.jpg", real(60, 90)).read_bytes()
    put(tmp_path / "b.jpg", real(60, 90))
    put(tmp_path / "a.png", real(60, 90))
    photos.save(tmp_path / "deep.png", np.zeros((60, 90, 3), np.uint16))
    put(tmp_path / "clear.png", np.zeros((60, 90, 4), np.uint8))
    assert run("predict", folder, *words) == 2
    told = capsys.readouterr().err.strip()
    assert said in told
    assert "\n" not in told
    assert (tmp_path / "a.jpg").read_bytes() == before


def test_no_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = put(tmp_path / "a.jpg", real(60, 90))
    assert run("predict", path, "--out", tmp_path / "o") == 2
    assert "is no bundle" in capsys.readouterr().err


def stopped(monkeypatch: pytest.MonkeyPatch, after: int, *words: object) -> dict[str, int]:
    """Run a command that ends at that call of the network; the dict goes on counting calls, with no end."""
    calls = {"n": 0, "stop": after}
    own = pipeline.Member.__call__

    def counted(member: pipeline.Member, image: torch.Tensor) -> torch.Tensor:
        calls["n"] += 1
        if calls["n"] > calls["stop"]:
            raise KeyboardInterrupt
        return own(member, image)

    monkeypatch.setattr(pipeline.Member, "__call__", counted)
    with contextlib.suppress(KeyboardInterrupt):
        run(*words)
    calls |= {"n": 0, "stop": 10**6}
    return calls


def test_a_run_that_was_killed_goes_on_inside_a_photograph(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = put(tmp_path / "a.png", real(300, 150))  # six rows of three tiles
    assert run("predict", folder, path, "--out", tmp_path / "whole") == 0
    words = ["predict", folder, path, "--out", tmp_path / "out"]
    calls = stopped(monkeypatch, 8, *words)
    assert not (tmp_path / "out" / "a.png").exists()
    assert (tmp_path / "out" / "a.png.part" / "rows.txt").read_text()
    assert run(*words) == 0
    assert calls["n"] == 15  # the first row of tiles is finished, the second is needed for the third
    for name in ("a.png", "masks/a.png"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not (tmp_path / "out" / "a.png.part").exists()


@pytest.mark.filterwarnings("ignore:.*starting again")
def test_rows_of_another_bundle_are_not_gone_on_with(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, other = put(tmp_path / "a.png", real(300, 150)), made(tmp_path / "b", seed=1)
    assert run("predict", other, path, "--out", tmp_path / "whole") == 0
    calls = stopped(monkeypatch, 8, "predict", folder, path, "--out", tmp_path / "out")
    assert run("predict", other, path, "--out", tmp_path / "out") == 0
    assert calls["n"] == 18
    assert (tmp_path / "out" / "a.png").read_bytes() == (tmp_path / "whole" / "a.png").read_bytes()


def test_a_large_photograph_does_not_stand_in_memory_twice(folder: Path, tmp_path: Path) -> None:
    """The result that is written from disk holds a small form of what came in, and no pixels of the file."""
    path, seen = put(tmp_path / "a.png", np.tile(real(64, 64), (1, 41, 1))), []

    def into(size: tuple[int, int], bands: int, dtype: np.dtype[Any], _: object) -> _strips.Kept:
        return _strips.Kept(
            tmp_path / "o.png", size, bands, dtype, key="", write=lambda p, r: (seen.append(r), r.save(p))[1]
        )

    result = Pipeline.load(folder, device="cpu")(path, into=into)
    assert seen == [result]
    assert result.image.shape == (64, 64 * 41, 3)
    assert result.before.shape == (32, 32 * 41, 3)
    assert result.photo is not None
    assert not result.photo.pixels.size
    assert result.draw().shape[1] >= 640
    assert np.array_equal(photos.read(tmp_path / "o.png").pixels, result.image)


def test_another_bundle_or_choice_is_worked_on_again(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = put(tmp_path / "in" / "a.png", real(60, 90))
    put(tmp_path / "in" / "b.png", real(60, 80))
    words = ["predict", folder, path.parent, "--out", tmp_path / "out"]
    assert run(*words) == 0
    first = (tmp_path / "out" / "a.png").read_bytes()
    capsys.readouterr()
    assert run(*words) == 0
    assert "2 of 2 are done already" in capsys.readouterr().out
    assert run("predict", made(tmp_path / "b", seed=3), path.parent, "--out", tmp_path / "out") == 0
    assert "done already" not in capsys.readouterr().out
    assert (tmp_path / "out" / "a.png").read_bytes() != first


def test_what_was_done_is_listed(folder: Path, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 3
    put(tmp_path / "in" / "a.jpg", real(60, 90), exif=exif)
    put(tmp_path / "in" / "b.png", real(60, 90))
    assert run("predict", folder, tmp_path / "in", "--out", tmp_path / "out") == 0
    rows = list(csv.DictReader((tmp_path / "out" / "applied.csv").open()))
    assert [(r["item"], "orientation 3" in r["applied"]) for r in rows] == [("a", True)]


# results and parts


def test_a_result_says_what_it_is(loaded: Pipeline) -> None:
    result = loaded(real(200, 300), meta=Meta(id="cat"))
    told = result.as_dict()
    assert (told["id"], told["shape"], told["dtype"]) == ("cat", [200, 300, 3], "uint8")
    assert told["blurred"] == pytest.approx(float((result.mask >= 128).mean()))
    json.dumps(told)
    drawn = result.draw()
    assert drawn.dtype == np.uint8
    assert drawn.shape[1] > 3 * 300
    tall = loaded(real(300, 20)).draw()
    assert tall.shape[0] >= 300


def test_results_must_fit_their_input() -> None:
    image, mask = np.zeros((4, 5, 3), np.uint8), np.zeros((4, 5), np.uint8)
    with pytest.raises(ShapeError, match="like its input"):
        Deblurred(image, mask, np.zeros((4, 5, 3), np.uint16), Meta())
    with pytest.raises(ShapeError, match="the mask is uint8"):
        Deblurred(image, mask[:3], image, Meta())


@pytest.mark.parametrize("shape", [(4, 4, 4), (4,), (0, 4, 3)])
def test_arrays_that_are_no_photograph(loaded: Pipeline, shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="expected"):
        loaded(np.zeros(shape, np.uint8))
    with pytest.raises(ShapeError, match="float64"):
        loaded(np.zeros((4, 4, 3)))


@pytest.mark.parametrize(("kind", "top"), [("uint8", 255), ("uint16", 65535), ("float32", 1)])
def test_strips_are_rounded_and_limited(kind: str, top: int) -> None:
    scores = np.array([[[-1.0, 0.5, 2.0]], [[0.0, 1 / 3, 1.0]]], np.float32)
    strip = _strips.finish(np.dtype(kind))(scores, np.ones((1, 3), bool))
    assert strip.dtype == kind
    want = np.clip(scores, 0, 1) * top
    assert np.allclose(strip, want if kind == "float32" else np.rint(want), atol=1e-6)
    pixels = _strips.Pixels((1, 3), 2, np.dtype(kind))
    pixels.write(0, strip)
    assert pixels.mask.tolist() == [[0, 85, 255]]
    with pytest.raises(SettingError, match="row 1 comes next"):
        pixels.write(0, strip)


def test_many_goes_on_after_a_bad_file(loaded: Pipeline, tmp_path: Path) -> None:
    good = put(tmp_path / "a.png", real(30, 30))
    answers = list(loaded.many([tmp_path / "none.png", good]))
    assert [type(a).__name__ for a in answers] == ["Failure", "Done"]


def test_a_bundle_for_another_number_of_channels(folder: Path, tmp_path: Path) -> None:
    network = bundle.load(folder).settings.network
    told = Settings(TASK, network, Input(channels=("grey",)), Output(), Tile((128, 128)))
    bundle.save(tmp_path / "b", model.create("lmd_vit", **REDUCED), told, {})
    with pytest.raises(InputError, match="takes 1 channels"):
        Pipeline.load(tmp_path / "b")


def test_choices_that_change_nothing_are_not_in_the_key() -> None:
    assert set(predict._FREE) == {"device", "batch", "overwrite"}
