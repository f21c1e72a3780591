"""Colorization: photographs found, hints drawn, crops, a training run from a folder to a bundle and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from apps.colorization import data, model, simulate, training
from apps.colorization._crops import Crops, Decoded, Squares, recoloured, square
from apps.colorization._start import even
from apps.colorization.options import RECIPES, Options
from apps.colorization.train import Colorizer, parts
from core import bundle
from core.errors import FileError, InputError, SettingError, ShapeError
from core.training import optimizers
from core.training.recipe import Recipe

TINY: dict[str, Any] = {"size": 32, "patch": 8, "dim": 16, "depth": 1, "heads": 2}
RECIPE = Recipe(epochs=2, steps_per_epoch=3, batch=2, lr=1e-3)


def photograph(path: Path, seed: int = 0, size: tuple[int, int] = (48, 40)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    small = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), np.uint8)
    Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).save(path)
    return path


def folder(root: Path, names: tuple[str, ...] = ("a", "b", "c")) -> Path:
    for i, name in enumerate(names):
        photograph(root / f"{name}.png", i)
    return root


# photographs in folders


def test_any_folder_is_photographs_to_train_on(tmp_path: Path) -> None:
    folder(tmp_path / "set", ("b", "a/x"))
    (tmp_path / "set" / "notes.txt").write_text("no picture")
    photograph(tmp_path / "set" / ".hidden" / "c.png")
    found = data.find(tmp_path / "set")
    assert (found.layout, [p.id for p in found.train]) == ("photographs", ["a/x", "b"])
    assert [p.group for p in found.train] == ["a/x", "b"]
    with pytest.raises(InputError, match="no test photographs; --part train"):
        data.chosen(found, "test")


def test_parts_of_class_folders(tmp_path: Path) -> None:
    for part in ("train/cats", "train/dogs", "val/cats", "test"):
        photograph(tmp_path / part / "one.jpg")
    found = data.find(tmp_path)
    assert [p.id for p in found.train] == ["cats/one", "dogs/one"]
    assert [p.id for p in found.val] == ["cats/one"]
    assert [p.id for p in found.test] == ["one"]
    assert parts(found, Options(), 0, tmp_path / "run")[0].val == found.val


def test_the_published_validation_set(tmp_path: Path) -> None:
    for name in ("one", "two"):
        photograph(tmp_path / "imgs" / f"{name}.jpg")
    for count in (0, 10):
        (tmp_path / "hints" / f"h2-n{count}").mkdir(parents=True)
        (tmp_path / "hints" / f"h2-n{count}" / "one.txt").write_text("3 4\n" * count)
    found = data.find(tmp_path)
    assert found.layout == "published"
    assert found.cell == 2
    assert sorted(found.test[0].hints) == [0, 10]
    assert not found.test[1].hints
    with pytest.raises(InputError, match="no photographs to train"):
        parts(found, Options(), 0, tmp_path)


def test_groups_and_what_is_left_out(tmp_path: Path) -> None:
    folder(tmp_path / "set", ("a", "b", "c", "d"))
    (tmp_path / "set" / "groups.csv").write_text("case,group\na,x\nb,x\nc,y\nd,z\n")
    (tmp_path / "grey.txt").write_text("d.png\n")
    found = data.find(tmp_path / "set", exclude=tmp_path / "grey.txt")
    assert [(p.id, p.group) for p in found.train] == [("a", "x"), ("b", "x"), ("c", "y")]
    for part in parts(found, Options(folds=2), 0, tmp_path):
        assert not {p.group for p in part.train} & {p.group for p in part.val}
    (tmp_path / "few.csv").write_text("case,group\na,x\n")
    with pytest.raises(FileError, match="no group for 3 photographs"):
        data.find(tmp_path / "set", groups=tmp_path / "few.csv")
    (tmp_path / "grey.txt").write_text("e\n")
    with pytest.raises(FileError, match="names 'e'"):
        data.find(tmp_path / "set", exclude=tmp_path / "grey.txt")


def test_what_is_no_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="no such folder"):
        data.find(tmp_path / "none")
    with pytest.raises(FileError, match="holds no photograph"):
        data.find(tmp_path)
    photograph(tmp_path / "a.png")
    photograph(tmp_path / "a.jpg")
    with pytest.raises(FileError, match="has the name of"):
        data.find(tmp_path)


# hints


def test_training_hints_are_distinct_and_0_to_the_most() -> None:
    draw = np.random.default_rng(0)
    counts = [int((~simulate.training_mask(16, 8, draw)).sum()) for _ in range(300)]
    assert set(counts) == set(range(9))
    assert min(counts.count(n) for n in range(9)) > 15
    few = [int((~simulate.training_mask(2, 4, draw)).sum()) for _ in range(300)]
    assert few.count(4) > 30  # all four cells: with replacement every tenth of these
    with pytest.raises(SettingError, match="0 to 4"):
        simulate.training_mask(2, 5, draw)


def test_test_hints_are_always_the_same_and_fewer_are_part_of_more() -> None:
    places = simulate.test_cells(20, 112, "cat")
    assert np.array_equal(simulate.test_cells(5, 112, "cat"), places[:5])
    assert not np.array_equal(simulate.test_cells(20, 112, "dog"), places)
    assert not np.array_equal(simulate.test_cells(20, 112, "cat", seed=1), places)
    assert places.tolist()[:3] == [[43, 63], [45, 81], [45, 14]]  # would change every published figure of ours
    many = simulate.test_cells(500, 4, "cat")
    assert len(many) == 500
    assert many.min() == 0
    assert many.max() == 3


def test_cells_become_masks() -> None:
    mask = simulate.as_mask(np.array([[0, 1], [3, 2], [0, 1]]), 4)
    assert (~mask).nonzero().flatten().tolist() == [1, 14]
    assert simulate.as_mask(np.zeros((0, 2), int), 4).all()
    with pytest.raises(ShapeError, match="0 to 3"):
        simulate.as_mask(np.array([[0, 4]]), 4)


# items


def test_crops_hang_on_torchs_generator_alone(tmp_path: Path) -> None:
    found = data.find(folder(tmp_path))
    crops = Crops(found.train, 32, 16, Options(hints=20, augment="colours"))
    torch.manual_seed(1)
    first = [crops[0], crops[0]]
    np.random.seed(5)  # noqa: NPY002 - must not matter
    torch.manual_seed(1)
    again = [Crops(found.train, 32, 16, Options(hints=20, augment="colours"))[0], crops[0]]
    for one, other in zip(first, again, strict=True):
        assert torch.equal(one["lab"], other["lab"])
        assert torch.equal(one["mask"], other["mask"])
    assert not torch.equal(first[0]["lab"], first[1]["lab"])
    assert first[0]["lab"].shape == (3, 32, 32)
    assert first[0]["mask"].shape == (256,)


def test_published_crops_keep_the_colours(tmp_path: Path) -> None:
    """A picture of one colour has that colour in every crop; turned, another of the same strength of grey."""
    from apps.colorization.lab import to_lab

    Image.new("RGB", (40, 40), (180, 90, 60)).save(tmp_path / "a.png")
    found = data.find(tmp_path)
    want = to_lab(torch.tensor([180, 90, 60]).view(1, 3, 1, 1) / 255)[0]
    torch.testing.assert_close(Crops(found.train, 32, 16, Options())[0]["lab"], want.expand(3, 32, 32))
    turned = Crops(found.train, 32, 16, Options(augment="colours"))[0]["lab"]
    torch.testing.assert_close(turned[0], want[0].expand(32, 32))
    assert not torch.allclose(turned[1:], want[1:].expand(2, 32, 32))


def test_recoloured_turns_and_scales_around_grey() -> None:
    lab = torch.randn(3, 8, 8) * 0.2
    new = recoloured(lab, np.random.default_rng(0))
    strength = new[1:].norm(dim=0).flatten().sort().values / lab[1:].norm(dim=0).flatten().sort().values
    assert strength.std() < 1e-4
    assert 0.5 <= strength.mean() <= 1.6
    light = torch.sort(lab[0].flatten()).values, torch.sort(new[0].flatten()).values
    assert not torch.allclose(*light)
    assert light[1].abs().max() <= 0.5
    assert recoloured(torch.zeros(3, 8, 8), np.random.default_rng(0))[1:].abs().max() == 0


def test_squares_are_whole_pictures_as_pil_shrinks_them(tmp_path: Path) -> None:
    path = photograph(tmp_path / "a.png", size=(100, 70))
    (photo,) = data.find(tmp_path).train
    item = Squares([photo], 32, 16, (0, 5))[0]
    want = np.asarray(Image.open(path).resize((32, 32), Image.Resampling.BILINEAR)) / 255
    assert np.abs(item["rgb"].permute(1, 2, 0).numpy() - want).max() < 1.5 / 255
    assert item["masks"].shape == (2, 256)
    assert item["masks"][0].all()
    assert 1 <= (~item["masks"][1]).sum() <= 5


def test_large_photographs_are_kept_small_and_16_bit_ones_as_float(tmp_path: Path) -> None:
    photograph(tmp_path / "a.png", size=(400, 200))
    store = Decoded(50)
    kept = store.read(tmp_path / "a.png")
    assert tuple(kept.shape) == (3, 50, 100)
    assert kept.dtype == torch.uint8
    assert store.read(tmp_path / "a.png") is kept
    from core.data import photos

    deep = np.full((20, 20, 3), 65535 * 0.25, np.uint16)
    photos.save(tmp_path / "b.png", deep)
    assert square(store.read(tmp_path / "b.png"), 20).mean() == pytest.approx(0.25, abs=1e-4)


# training


def test_the_published_recipe_decays_matrices_and_tables_only() -> None:
    network = model.create("icolorit_tiny", **TINY)
    module = Colorizer(network)
    found = optimizers.optimizer(module, RECIPES["published"])
    assert isinstance(found, torch.optim.AdamW)
    names = {id(p): n for n, p in network.named_parameters()}
    still = {names[id(p)] for g in found.param_groups if g["weight_decay"] == 0 for p in g["params"]}
    assert still == {n for n, p in network.named_parameters() if p.ndim <= 1}
    tables = [n for n in names.values() if n.endswith("bias_table")]
    assert tables
    assert not still & set(tables)
    assert {g["lr"] for g in found.param_groups} == {5e-4}
    assert found.defaults["betas"] == (0.9, 0.95)


@pytest.mark.parametrize("head", ["cnn", "linear", "locattn"])
def test_the_even_start_is_even(head: str) -> None:
    network = model.create("icolorit_tiny", **{**TINY, "dim": 64, "head": head})
    before = {n: p.clone() for n, p in network.named_parameters()}
    even(network)
    weight = network.backbone.stages[0].embed.patches.conv.weight
    assert torch.equal(weight[:, 1:], weight[:, 1:, :1, :1].expand_as(weight[:, 1:]))
    added = weight[:, 0] - before["backbone.stages.0.embed.patches.conv.weight"][:, 0]
    torch.testing.assert_close(added, added[:, :1, :1].expand_as(added), atol=1e-5, rtol=0)
    lab = torch.zeros(1, 3, 32, 32)
    lab[:, 1] = 0.4
    mask = torch.ones(1, 256, dtype=torch.bool)
    mask[0, 0] = False
    answer = network(lab, mask)
    patches = answer.unfold(2, 8, 8).unfold(3, 8, 8).flatten(4)
    assert patches.std(-1).max() < 1e-6
    for name, parameter in network.named_parameters():
        assert parameter.isfinite().all(), name
    # a hint anywhere in its patch has the same effect
    other = torch.ones(1, 256, dtype=torch.bool)
    other[0, 16 * 3 + 3] = False
    torch.testing.assert_close(answer, network(lab, other))
    table = network.backbone.blocks[0].token_mixer.bias_table
    assert (table.argmax(0) == table.shape[0] // 2).all()  # falls from the patch itself
    # it begins with the hint's colour, strongest where the hint is, and with little without one
    assert answer[0, 0, 2, 2] > 0.15
    assert answer[0, 0, 2, 2] > 1.2 * answer[0, 0, 30, 30]
    assert network(lab).abs().max() < 0.1
    uneven = model.create("icolorit_tiny", **{**TINY, "dim": 20, "heads": 3, "head": head})
    even(uneven)  # a width that neither 3 heads nor the local head's 8 divide
    assert uneven(lab, mask).isfinite().all()


def test_a_run_from_a_folder_to_a_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = folder(tmp_path / "set")
    options = Options(settings=TINY, augment="colours", start="even", hints=20)
    (made,) = training.run(found, tmp_path / "run", options, RECIPE, device="cpu")
    said = capsys.readouterr().out
    assert "2 photographs to train on, 1 to validate" in said
    assert "psnr" in said
    report = bundle.load(tmp_path / "run", task="colorization").report
    assert report["validation"]["cases"] == 1
    assert report["trained_on"] == sorted(report["trained_on"])
    network = model.create(made.settings.network.name, **made.settings.network.config)
    bundle.fill(network, made)
    assert network.size == 32
    start = model.create("icolorit_tiny", **TINY)
    even(start, seed=RECIPE.seed)
    assert not torch.equal(network.head.out.bias, start.head.out.bias)
    # the same call says that it is done; a bundle starts another run
    training.run(found, tmp_path / "run", options, RECIPE, device="cpu")
    assert "already trained" in capsys.readouterr().out
    training.run(found, tmp_path / "next", options, RECIPE, init=tmp_path / "run", device="cpu")
    assert "icolorit_tiny from" in capsys.readouterr().out


def test_the_same_seed_gives_the_same_network(tmp_path: Path) -> None:
    found = folder(tmp_path / "set")
    options = Options(settings={**TINY, "head": "linear"}, hints=20)
    one, other = (
        training.run(found, tmp_path / name, options, RECIPE, device="cpu")[0].weights.read_bytes() for name in "ab"
    )
    assert one == other


def test_training_lowers_the_loss_on_a_fixed_batch() -> None:
    torch.manual_seed(0)
    network = model.create("icolorit_tiny", **TINY)
    even(network)
    module = Colorizer(network)
    lab = torch.zeros(4, 3, 32, 32)
    lab[:, 0] = torch.linspace(-0.4, 0.4, 32)
    lab[:, 1:] = torch.randn(4, 2, 1, 1) * 0.3
    mask = torch.rand(4, 256) < 0.95
    found = optimizers.optimizer(module, Recipe(lr=3e-3))
    losses = []
    for _ in range(25):
        loss = module.training_step({"lab": lab, "mask": mask}, 0)
        found.zero_grad()
        loss.backward()
        found.step()
        losses.append(float(loss.detach()))
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    assert losses[-1] < 0.5 * losses[0]


def test_import_makes_a_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from core.weights import save

    network = model.create("icolorit_tiny", **TINY, head="locattn")
    save(network, tmp_path / "w.safetensors")
    training.import_(tmp_path / "w.safetensors", tmp_path / "out", "icolorit_tiny", {**TINY, "cell": 4})
    made = bundle.load(tmp_path / "out", task="colorization")
    assert made.settings.network.config["head"] == "locattn"
    assert made.settings.network.config["cell"] == 4
    assert made.settings.tile.size == (32, 32)
    assert "tensors" in capsys.readouterr().out


def test_the_demonstration_trains_scores_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from apps.colorization import demo

    small = Options(settings={**TINY, "size": 64, "patch": 16}, augment="colours", start="even", hints=20)
    show = demo.Show(small, Recipe(epochs=1, steps_per_epoch=2, batch=2), (1.0, 1.0))
    index = demo.run(tmp_path, show=show)
    page = index.read_text()
    for name in ("chelsea", "flower", "rocket"):
        assert page.count(f"<td>{name}</td>") == len(demo.NAMES)
    for words in (*demo.NAMES.values(), "PSNR@20", "glocal colorization train", "--start even"):
        assert words in page
    assert page.count("<img") == 4
    assert "network: PSNR" in capsys.readouterr().out
    trained = bundle.load(tmp_path / "work" / demo.CARD / "run").report
    assert trained["validation"] is None
