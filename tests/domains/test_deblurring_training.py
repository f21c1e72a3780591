"""Deblurring's training: crops, splits, a few seconds from pairs to a bundle, the demonstration, learning by heart."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from apps.deblurring import data as sets
from apps.deblurring import demo, model, training
from apps.deblurring._crops import Crops, Looks, Shelf, cut
from apps.deblurring._losses import Reconstruction
from apps.deblurring.data import Data, Pair
from apps.deblurring.options import SHORT, Options
from apps.deblurring.pipeline import Pipeline
from apps.deblurring.train import Deblurrer, parts, train
from core import bundle
from core.data import photos
from core.errors import InputError, SettingError

SMALL: dict[str, Any] = {"dims": [8, 16], "depths": [1, 2, 1], "heads": [1, 1, 1], "window": 4}
OPTIONS = Options(settings=SMALL, patch=32, tile=64)
QUICK = replace(SHORT, epochs=2, steps_per_epoch=2, batch=2)


def picture(seed: int, height: int = 48, width: int = 56) -> NDArray[np.uint8]:
    """Random blocks of colour."""
    draw = np.random.default_rng(seed)
    return np.kron(draw.integers(0, 256, (height // 8, width // 8, 3)), np.ones((8, 8, 1))).astype(np.uint8)


def blurred(sharp: NDArray[np.uint8], columns: slice = slice(8, 32)) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A stand-in for motion: the mean of seven neighbours in a row, in some columns; and the mask."""
    out, mask = sharp.copy(), np.zeros((*sharp.shape[:2], 1), np.uint8)
    whole = np.mean([np.roll(sharp.astype(float), k, axis=1) for k in range(-3, 4)], axis=0)
    out[8:40, columns], mask[8:40, columns] = whole[8:40, columns].round(), 255
    return out, mask


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The plain layout with masks: four scenes to train on, one to test."""
    root = tmp_path_factory.mktemp("pairs")
    for i in range(5):
        sharp = picture(i)
        for name, values in zip(("sharp", "blur", "masks"), (sharp, *blurred(sharp)), strict=True):
            place = root / ("test" if i == 4 else "train") / name
            place.mkdir(parents=True, exist_ok=True)
            photos.save(place / f"p{i}.png", values)
    return root


def pair(root: Path, name: str, part: str = "train", *, mask: bool = True) -> Pair:
    place = root / part
    return Pair(name, place / f"blur/{name}.png", place / f"sharp/{name}.png",
                place / f"masks/{name}.png" if mask else None, name)  # fmt: skip


# ---- crops


def test_a_crop_is_of_one_place_in_all_three(folder: Path) -> None:
    crops = Crops([pair(folder, "p0")], 16, OPTIONS, 0, Shelf())
    read = sets.read_pair(pair(folder, "p0"))
    assert read.sharp is not None
    assert read.mask is not None
    seen = set()
    for i in range(12):
        crop = crops[i]
        assert crop["blurred"].shape == (3, 16, 16)
        assert all(torch.equal(crop[k], crops[i][k]) for k in crop)
        for way in (crop, {k: v.flip(-1) for k, v in crop.items()}):
            for top in range(33):
                for left in range(41):
                    here = slice(top, top + 16), slice(left, left + 16)
                    if np.array_equal(read.sharp[here], way["sharp"].permute(1, 2, 0).numpy()) and np.array_equal(
                        read.blurred[here], way["blurred"].permute(1, 2, 0).numpy()
                    ):
                        assert np.array_equal(read.mask[here], way["mask"][0].numpy())
                        seen.add((i, way is crop))
    assert {i for i, _ in seen} == set(range(12))
    assert {way for _, way in seen} == {True, False}


def test_crops_on_the_blur_hold_some(folder: Path) -> None:
    arrays = Shelf().read(pair(folder, "p0"))
    shares = {}
    for chance in (0.0, 1.0):
        held = [cut(arrays, 8, np.random.default_rng(i), chance)["mask"].any() for i in range(60)]
        shares[chance] = np.mean(held)
    assert shares[1.0] == 1
    assert shares[0.0] < 0.8


def test_changed_colours_are_the_same_in_both(folder: Path) -> None:
    pairs, shelf = [pair(folder, "p0")], Shelf()
    kept, others = (Crops(pairs, 16, replace(OPTIONS, colours=c), 0, shelf) for c in (False, True))
    negatives, orders = set(), set()
    for i in range(16):
        plain, crop = kept[i], others[i]
        assert min(float(crop[n].min()) for n in ("blurred", "sharp")) >= 0
        assert max(float(crop[n].max()) for n in ("blurred", "sharp")) <= 1
        found = []
        for turns in range(4):
            back = {n: v.rot90(-turns, (1, 2)) for n, v in crop.items()}
            for order in ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)):
                x, y = (torch.cat([p[n][list(o)].flatten() for n in ("blurred", "sharp")])
                        for p, o in ((plain, order), (back, (0, 1, 2))))  # fmt: skip
                slope = float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())
                line = y.mean() + slope * (x - x.mean())
                if torch.allclose(line, y, atol=1e-4) and torch.equal(back["mask"], plain["mask"]):
                    found.append((slope < 0, order))
        assert found
        negatives.add(found[0][0])
        orders.add(found[0][1])
    assert negatives == {True, False}
    assert len(orders) > 2


def test_small_photographs_are_mirrored() -> None:
    values = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    crop = cut((values, values, None), 4, np.random.default_rng(0), 1.0)
    assert torch.equal(crop["blurred"][..., 2:, :], crop["blurred"][..., :2, :].flip(1))
    assert torch.equal(crop["mask"], torch.ones(1, 4, 4))  # nothing is known: blurred all over


def test_sets_with_and_without_masks_are_mixed_evenly(folder: Path) -> None:
    pairs = [pair(folder, "p0"), *(pair(folder, f"p{i}", mask=False) for i in (1, 2, 3))]
    crops = Crops(pairs, 48, replace(OPTIONS, blurred=0.0), 0, Shelf())
    marked = [not bool(crops[i]["mask"].all()) for i in range(80)]
    assert 0.3 < np.mean(marked) < 0.7


def test_the_shelf_keeps_to_its_limit(folder: Path) -> None:
    one = sum(a.nbytes for a in Shelf().read(pair(folder, "p0")) if a is not None)
    assert one < 48 * 56 * 7 * 4  # eight bits a value where that is exact
    shelf = Shelf(limit=2 * one)
    for name in ("p0", "p1", "p2", "p3"):
        shelf.read(pair(folder, name))
    assert shelf.held <= 2 * one
    assert shelf.read(pair(folder, "p3")) is shelf.read(pair(folder, "p3"))


def test_looks_are_always_the_same(folder: Path) -> None:
    looks = Looks([pair(folder, "p0"), pair(folder, "p1")], 16, Shelf(), limit=6)
    assert len(looks) == 6
    assert [int(looks[i]["photograph"]) for i in range(6)] == [0, 0, 0, 1, 1, 1]
    assert all(torch.equal(looks[i]["sharp"], looks[i]["sharp"]) for i in range(6))
    assert len({float(looks[i]["sharp"].sum()) for i in range(6)}) == 6


# ---- parts


def test_scenes_stay_together(folder: Path) -> None:
    data = sets.find(folder)
    (part,) = parts(data, replace(OPTIONS, validation=0.25), 0, folder / "x")
    assert len(part.train) == 3
    assert len(part.val) == 1
    rounds = parts(data, replace(OPTIONS, folds=2), 0, folder / "x")
    assert [p.out.name for p in rounds] == ["fold_0", "fold_1"]
    assert {p.group for p in rounds[0].val}.isdisjoint(p.group for p in rounds[0].train)
    alone = Data(folder, "plain", tuple(replace(p, sharp=None) for p in data.train), (), ())
    with pytest.raises(InputError, match="no pair of a blurred and a sharp photograph"):
        parts(alone, OPTIONS, 0, folder / "x")


# ---- training


class Whole(torch.nn.Module):
    """Answers the blurred picture, a little nearer to grey; says that everything is blurred."""

    def forward(self, image: torch.Tensor) -> Any:
        ones = torch.ones_like(image[:, :1])
        return type("Answer", (), {"image": 0.9 * image + 0.05, "blur": ones, "gate": 0.7 * ones, "scores": []})()


def test_the_score_is_the_mean_gain_of_photographs() -> None:
    module = Deblurrer(Whole(), OPTIONS)
    logged: dict[str, float] = {}
    module.log = lambda name, value, **_: logged.__setitem__(name, float(value))  # type: ignore[method-assign,assignment,misc]
    draw = torch.Generator().manual_seed(0)
    sharp = torch.rand(3, 3, 8, 8, generator=draw)
    image = (sharp + 0.05 * torch.randn(sharp.shape, generator=draw)).clamp(0, 1)
    mask = torch.zeros(3, 1, 8, 8)
    mask[:2, :, :4] = 1
    module.on_validation_epoch_start()
    module.validation_step({"blurred": image, "sharp": sharp, "mask": mask, "photograph": torch.tensor([0, 0, 1])}, 0)
    module.on_validation_epoch_end()
    errors = [[((x - sharp) ** 2)[rows].mean() for rows in ([0, 1], [2])] for x in (0.9 * image + 0.05, image)]
    want = np.mean([-10 * np.log10(float(e)) for e in errors[0]]) - np.mean(
        [-10 * np.log10(float(e)) for e in errors[1]]
    )
    assert logged["val/score"] == pytest.approx(want, abs=1e-4)
    assert logged["val/recall"] == 1
    assert logged["val/precision"] == pytest.approx(1 / 3)


def test_pairs_become_a_bundle(folder: Path, tmp_path: Path) -> None:
    (made,) = training.run(folder, tmp_path / "run", OPTIONS, QUICK)
    assert made.settings.task == "deblurring"
    assert made.settings.input.channels == ("red", "green", "blue")
    assert made.settings.tile.size == (64, 64)
    assert made.report["validation"]["cases"] == 1
    assert {"psnr", "weighted_psnr"} <= set(made.report["validation"]["scores"][0]["values"])
    result = Pipeline.load(tmp_path / "run")(picture(9))
    assert result.image.shape == (48, 56, 3)
    again = training.run(folder, tmp_path / "run", OPTIONS, QUICK)  # it is finished: nothing is trained again
    assert again[0].report["epochs"] == 2
    with pytest.raises(SettingError, match="prune"):
        training.run(folder, tmp_path / "run", replace(OPTIONS, prune=0.5), QUICK)
    begun = training.run(
        folder, tmp_path / "next", replace(OPTIONS, shifted=False, prune=0.0), QUICK, init=tmp_path / "run"
    )
    assert begun[0].report["epochs"] == 2


def test_sides_are_rounded_up(folder: Path, tmp_path: Path) -> None:
    (part,) = parts(sets.find(folder), OPTIONS, 0, tmp_path)
    said: list[str] = []
    with pytest.raises(SettingError, match="1 channels, a photograph has 3"):
        train(part, replace(OPTIONS, settings=SMALL | {"in_channels": 1}), QUICK, say=said.append)
    train(part, replace(OPTIONS, patch=30), replace(QUICK, epochs=1, steps_per_epoch=1), say=said.append)
    assert any("crops of 32 x 32 pixels" in line for line in said)
    with pytest.raises(SettingError, match="--blurred is a part"):
        train(part, replace(OPTIONS, blurred=2.0), QUICK, say=said.append)


def test_published_weights_become_a_bundle(folder: Path, tmp_path: Path) -> None:
    training.run(folder, tmp_path / "run", OPTIONS, replace(QUICK, epochs=1))
    made = training.import_(tmp_path / "run" / bundle.WEIGHTS, tmp_path / "made", "lmd_vit", SMALL)
    assert made.settings.tile.size == (256, 256)
    image = picture(7)
    one, two = (Pipeline.load(tmp_path / name)(image, tile=64) for name in ("run", "made"))
    assert np.array_equal(one.image, two.image)


def test_what_the_options_change_reaches_the_loss() -> None:
    network = torch.nn.Identity()
    assert Deblurrer(network, replace(OPTIONS, shifted=False)).loss.shifted is False
    assert isinstance(Deblurrer(network, OPTIONS).loss, Reconstruction)
    assert Deblurrer(network, replace(OPTIONS, prune=0.3)).prune == 0.3
    batch = {"blurred": torch.rand(2, 3, 16, 16), "sharp": torch.rand(2, 3, 16, 16), "mask": torch.zeros(2, 1, 16, 16)}
    with_gate, without = (Deblurrer(Whole(), replace(OPTIONS, gate=g)).training_step(batch, 0) for g in (2.0, 0.0))
    assert float(with_gate - without) == pytest.approx(2 * 0.49, abs=1e-4)
    assert Deblurrer(network, replace(OPTIONS, ssim=0.2, fft=0.0)).loss.weights == {"l1": 1, "ssim": 0.2, "fft": 0}


def test_the_last_layer_has_its_own_rate() -> None:
    network = model.create("lmd_vit", **SMALL)
    for last, rates in ((1.0, {1e-3}), (0.1, {1e-3, 1e-4})):
        found = Deblurrer(network, replace(OPTIONS, last=last)).parameter_groups(replace(QUICK, lr=1e-3))
        assert {g["lr"] for g in found} == rates
        assert sum(len(g["params"]) for g in found) == len(list(network.parameters()))
        small = [p for g in found if g["lr"] < 1e-3 for p in g["params"]]
        assert {id(p) for p in small} == ({id(p) for p in network.out.parameters()} if last < 1 else set())


# ---- the demonstration


def test_the_demonstration_makes_its_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    import shutil

    def sample(_: Any, place: Path) -> None:
        shutil.copytree(folder, place)

    monkeypatch.setattr(demo.samples, "sample", sample)
    recipe = replace(demo.SHOW.recipe, epochs=1, steps_per_epoch=1, batch=2)
    show = replace(demo.SHOW, options=replace(OPTIONS, validation=0.25), recipe=recipe, steps=1)
    text = demo.run(tmp_path, full=True, show=show).read_text(encoding="utf-8")
    for words in ("learns 4 fixed crops by heart", "the blurred picture", "Richardson-Lucy", "left out of training",
                  "glocal deblurring train data"):  # fmt: skip
        assert words in text, words


@pytest.mark.slow
def test_four_crops_are_learned_by_heart(tmp_path: Path) -> None:
    """Leaving the picture as it is attracts strongly; a network that never gets past that learns nothing."""
    from core.data import cards, samples

    samples.sample(cards.find(demo.CARD), tmp_path)
    gain, steps = demo.overfitted(sets.find(tmp_path).train, enough=1.0)
    assert gain >= 1.0, steps
