"""Colorization in Python: luminance, colours at hints, sessions, several networks, awkward sizes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from skimage import color
from torch import Tensor

from apps.colorization import _canvas, _contract, exporting, model, session
from apps.colorization.hints import Hint
from apps.colorization.pipeline import Pipeline
from apps.colorization.session import Session, from_array
from core import batch, bundle
from core.bundle import BundleError
from core.config import as_table
from core.data import photos
from core.errors import FileError, InputError, ShapeError

SMALL = {"size": 64, "dim": 24, "depth": 1, "heads": 2}


def made(folder: Path, *, seed: int = 0, **given: Any) -> Path:
    """A bundle with fresh weights, large enough that hints are seen in the answer."""
    torch.manual_seed(seed)
    network = model.create("icolorit_tiny", **{**SMALL, **given})
    with torch.no_grad():
        for weight in network.parameters():
            weight.mul_(1.5)
    settings = _contract.settings("icolorit_tiny", as_table(network.config), network.size)
    bundle.save(folder, network, settings, {"validation": None})
    return folder


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    return Pipeline.load(made(tmp_path_factory.mktemp("bundles") / "a"))


class Echo:
    """Networks that answer the hints' own colours, or one colour everywhere."""

    def __init__(self, size: int = 224, cells: int = 112, ab: tuple[float, float] | None = None) -> None:
        self.size, self.cells, self.ab = size, cells, ab

    def colour(self, lab: Tensor, mask: Tensor) -> Tensor:
        if self.ab is None:
            return lab[:, 1:]
        return torch.tensor(self.ab).reshape(1, 2, 1, 1).expand(len(lab), 2, self.size, self.size)


def scene(rows: int = 60, columns: int = 90, seed: int = 0) -> NDArray[np.uint8]:
    """A smooth picture in colour."""
    small = torch.from_numpy(np.random.default_rng(seed).random((1, 3, 5, 6), np.float32))
    large = F.interpolate(small, (rows, columns), mode="bicubic").clamp(0.05, 0.95)
    return (large[0].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)


def luminance(pixels: NDArray[Any]) -> NDArray[np.float64]:
    top = np.iinfo(pixels.dtype).max if pixels.dtype.kind == "u" else 1
    values = pixels / top if pixels.shape[2] == 3 else np.repeat(pixels / top, 3, axis=2)
    return color.rgb2lab(values)[..., 0]


@pytest.mark.parametrize("kind", ["grey 8", "colour 8", "grey 16", "colour 16", "float"])
def test_the_luminance_is_the_photographs_own(kind: str) -> None:
    values: NDArray[Any] = scene()
    if kind.endswith("16"):
        values = (values.astype(np.uint16) * 257 + np.arange(90, dtype=np.uint16)[None, :, None]).clip(0, 65535)
        values = values.astype(np.uint16)
    if kind == "float":
        values = (values / 255).astype(np.float32)
    if kind.startswith("grey"):
        values = values[..., 0]
    result = Session(Echo(), from_array(values)).coloured([Hint(20, 30, 230, 20, 30)])
    assert result.pixels.shape == (60, 90, 3)
    assert result.pixels.dtype == values.dtype
    bound = 0.01 if kind == "grey 16" else 0.5  # 8 bits round; colours that sRGB lacks are made paler within 0.4
    grey = values[..., None] if values.ndim == 2 else values
    assert np.abs(luminance(result.pixels) - luminance(grey))[:20].max() < bound
    assert np.abs(luminance(result.pixels) - luminance(grey)).max() < 0.7


def test_colours_that_srgb_lacks_become_paler_not_darker() -> None:
    grey = np.linspace(5, 250, 64).astype(np.uint8)[None].repeat(4, 0)
    result = Session(Echo(ab=(0.9, -0.9)), from_array(grey)).coloured()
    assert np.abs(luminance(result.pixels) - luminance(grey[..., None])).max() < 0.7
    found = color.rgb2lab(result.pixels / 255.0)
    middle = found[0, 32]
    assert middle[1] > 40
    assert middle[2] < -40
    assert np.degrees(np.arctan2(middle[2], middle[1])) == pytest.approx(-45, abs=3)  # the hue stays


def test_the_hinted_cell_gets_its_colour_and_says_how_near() -> None:
    ground = np.full((448, 448), 120, np.uint8)
    asked = Hint(100, 300, 200, 60, 60)
    result = Session(Echo(), from_array(ground)).coloured([asked])
    (reached,) = result.reached
    y, x = 300, 100
    got = result.pixels[y, x].astype(int)
    assert got[0] - got[1] > 40  # red
    assert np.ptp(result.pixels[50, 50].astype(int)) <= 2  # far away: grey
    assert reached.got == pytest.approx(tuple(result.pixels[y : y + 4, x : x + 4].reshape(-1, 3).mean(0)), abs=8)
    want = color.rgb2lab(np.array([[[200, 60, 60]]]) / 255.0)
    cell = color.rgb2lab(result.pixels[y : y + 4, x : x + 4] / 255.0).mean((0, 1), keepdims=True)
    assert reached.delta_e76 == pytest.approx(float(color.deltaE_cie76(want, cell)[0, 0]), abs=0.3)
    assert reached.delta_e2000 == pytest.approx(float(color.deltaE_ciede2000(want, cell)[0, 0]), abs=0.3)
    level = np.concatenate([cell[..., :1], want[..., 1:]], -1)
    assert reached.delta_colour == pytest.approx(float(color.deltaE_ciede2000(level, cell)[0, 0]), abs=0.3)
    assert "Delta E at 1 hint: CIE76" in result.told()
    row = result.as_dict()["hints"][0]
    assert (row["x"], row["r"], row["got_r"]) == (100, 200, reached.got[0])


def test_strips_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    photo, ab = from_array(scene()), torch.rand(2, 16, 16) - 0.5
    whole = _canvas.canvas(photo.pixels).colour(ab)
    monkeypatch.setattr(_canvas, "STRIP", 200)
    assert np.array_equal(_canvas.canvas(photo.pixels).colour(ab), whole)
    stretched = _canvas._stretched(_canvas._stretched(ab, 90, 2), 60, 1)
    assert torch.allclose(stretched, F.interpolate(ab[None], (60, 90), mode="bilinear")[0], atol=1e-6)


def test_a_session_reads_and_converts_once(pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos.save(tmp_path / "a.png", scene())
    opened = pipeline.open(tmp_path / "a.png", preview=45)
    first, small = opened.coloured([Hint(3, 3, 250, 0, 0)]), opened.preview([])
    assert small.shape == (30, 45, 3)
    with monkeypatch.context() as patch:
        patch.setattr(photos, "read", None)
        patch.setattr(_canvas, "reduced", None)
        patch.setattr(_canvas, "canvas", None)
        again, other = opened.coloured([Hint(3, 3, 250, 0, 0)]), opened.preview([Hint(3, 3, 0, 250, 0)])
    assert np.array_equal(first.pixels, again.pixels)
    assert not np.array_equal(small, other)
    assert np.array_equal(first.pixels, pipeline(tmp_path / "a.png", [Hint(3, 3, 250, 0, 0)]).pixels)
    assert opened.size == (60, 90)


def test_colour_of_the_input_does_not_leak(pipeline: Pipeline) -> None:
    """Only the luminance and the hints are seen, whatever colours the photograph has."""
    grey = np.repeat(scene()[..., :1], 3, axis=2)
    sess = pipeline.open(scene())
    other = pipeline.open(scene())
    other.lab = torch.cat([sess.lab[:1], torch.rand_like(sess.lab[1:])])
    assert torch.equal(sess.answer([Hint(1, 1, 9, 99, 9)])[0], other.answer([Hint(1, 1, 9, 99, 9)])[0])
    assert pipeline.open(grey).grey
    assert not sess.grey


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, 20000), (20000, 3), (64, 64)])
def test_any_size(pipeline: Pipeline, rows: int, columns: int) -> None:
    values = np.random.default_rng(0).integers(0, 256, (rows, columns), dtype=np.uint8)
    result = pipeline(values, [Hint(columns - 1, rows - 1, 250, 10, 10)])
    assert result.pixels.shape == (rows, columns, 3)
    assert len(result.reached) == 1
    assert result.draw().dtype == np.uint8
    assert np.abs(luminance(result.pixels) - luminance(values[..., None])).max() < 0.7


def test_several_networks_are_averaged(tmp_path: Path) -> None:
    a, b = made(tmp_path / "a", seed=1), made(tmp_path / "b", seed=2, patch=8)
    points = [Hint(5, 5, 200, 10, 10)]
    one, two, both = (Pipeline.load(*folders)(scene(), points) for folders in ((a,), (b,), (a, b)))
    assert np.abs(one.ab - two.ab).max() > 0.01
    assert np.allclose(both.ab, (one.ab + two.ab) / 2, atol=1e-6)
    c = made(tmp_path / "c", size=32)
    with pytest.raises(InputError, match="name bundles of one kind"):
        Pipeline.load(a, c)


@pytest.mark.parametrize("what", ["channels", "range", "mean", "std", "size"])
def test_the_input_contract_is_checked(tmp_path: Path, what: str) -> None:
    network = model.create("icolorit_tiny", **SMALL)
    good = _contract.settings("icolorit_tiny", as_table(network.config), network.size)
    other: dict[str, Any] = {
        "channels": ("red", "green", "blue"), "range": (0.0, 1.0), "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)
    }  # fmt: skip
    bad = (
        replace(good, tile=bundle.Tile((224, 224), 0.0))
        if what == "size"
        else replace(good, input=replace(good.input, **{what: other[what]}))
    )
    bundle.save(tmp_path, network, bad, {})
    with pytest.raises(BundleError, match=r"settings\.toml: states the "):
        Pipeline.load(tmp_path)


def test_hints_from_a_picture(pipeline: Pipeline, tmp_path: Path) -> None:
    picture = scene(100, 100, seed=3)
    ours = pipeline.open(picture)
    drawn = ours.sampled(20, seed=5)
    assert drawn == ours.sampled(20, seed=5)
    assert drawn != ours.sampled(20, seed=6)
    assert len({(h.x, h.y) for h in drawn}) == 20
    wrong = [np.abs(picture[h.y, h.x].astype(int) - h.colour).max() for h in drawn]
    assert max(wrong) < 20  # means over cells of a smooth picture
    placed = ours.answer(drawn)[1]
    assert not placed.said
    assert len(placed.hints) == 20
    grey = pipeline.open(np.full((50, 30), 99, np.uint8))
    with pytest.raises(InputError, match="is grey, so hints cannot take its colours"):
        grey.sampled(3)
    lent = grey.sampled(3, seed=5, reference=ours)
    assert all(0 <= h.x < 30 and 0 <= h.y < 50 for h in lent)
    tiny = pipeline.open(np.zeros((1, 2), np.uint8))
    assert len(tiny.sampled(2, reference=ours)) == 2
    with pytest.raises(InputError, match="--auto is 1 to 2 hints"):
        tiny.sampled(3, reference=ours)


def test_offered_colours_suit_the_luminance(pipeline: Pipeline) -> None:
    opened = pipeline.open(scene())
    light = opened.luminance(40, 20)
    assert light == pytest.approx(luminance(scene())[20, 40], abs=0.05)
    offered = opened.palette(40, 20, 12)
    assert len(set(offered)) == len(offered) > 6
    for colour in offered:
        assert color.rgb2lab(np.array([[colour]]) / 255.0)[0, 0, 0] == pytest.approx(light, abs=1)
    with pytest.raises(InputError, match="lies outside"):
        opened.luminance(90, 0)


def test_the_drawing_shows_the_hints() -> None:
    result = Session(Echo(), from_array(np.full((100, 200), 128, np.uint8))).coloured([Hint(150, 50, 255, 0, 255)])
    drawn = result.draw().astype(int)
    marked = (np.abs(drawn - (255, 0, 255)).max(-1) < 10).sum()
    assert marked >= 9
    without = Session(Echo(), from_array(np.full((100, 200), 128, np.uint8))).coloured().draw().astype(int)
    assert not (np.abs(without - (255, 0, 255)).max(-1) < 10).any()


@pytest.mark.parametrize(
    ("array", "error", "words"),
    [
        (np.zeros((4, 4, 2), np.uint8), ShapeError, "a photograph is"),
        (np.zeros((0, 4), np.uint8), ShapeError, "a photograph is"),
        (np.full((4, 4), 2.0), InputError, "values from 0 to 1"),
        (np.full((4, 4), np.nan), InputError, "values from 0 to 1"),
        (np.zeros((4, 4), np.int32), InputError, "uint8, uint16 or float"),
    ],
)
def test_arrays_that_are_no_photograph(array: NDArray[Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        from_array(array)


def test_many_finishes_the_good_ones(pipeline: Pipeline, tmp_path: Path) -> None:
    photos.save(tmp_path / "a.png", scene())
    (tmp_path / "b.png").write_bytes(b"no picture")
    answers = list(pipeline.many([tmp_path / "b.png", tmp_path / "a.png"], [[], [Hint(1, 1, 9, 9, 200)]]))
    assert isinstance(answers[0], batch.Failure)
    assert isinstance(answers[1], batch.Done)
    assert len(answers[1].result.reached) == 1
    with pytest.raises(InputError, match="2 photographs and 1 lists"):
        pipeline.many([tmp_path / "b.png", tmp_path / "a.png"], [[]])
    with pytest.raises(FileError):
        pipeline(tmp_path / "b.png")


def test_export_answers_as_the_network(pipeline: Pipeline, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    import json

    done = exporting.export(pipeline.bundles[0].folder, tmp_path / "n.onnx")
    assert done.difference < 1e-3
    side = json.loads(done.side.read_text())
    assert side["input"]["channels"] == ["L", "a", "b", "hint"]
    assert side["input"]["shape"] == [1, 4, 64, 64]
    assert side["input"]["mean"] == [50, 0, 0, 0]
    assert "2 x 2" in side["input"]["planes"]
    assert [(o["name"], o["shape"]) for o in side["output"]] == [("ab", [1, 2, 64, 64])]


def test_wrong_shapes_are_named(pipeline: Pipeline) -> None:
    with pytest.raises(ShapeError, match=r"expected Lab images \(B, 3, 64, 64\)"):
        pipeline.colour(torch.zeros(1, 3, 32, 32), torch.ones(1, 1024, dtype=torch.bool))
    assert session.PREVIEW >= 512
