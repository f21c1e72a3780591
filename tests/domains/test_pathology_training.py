"""Training on tiles: data, changes of tiles, a few seconds to a bundle, scores, the colour baseline, the page."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from apps.medical import classes as scores
from apps.medical import stain
from apps.medical.pathology_classify import augment, baselines, check, demo, evaluate, inputs, model, training
from apps.medical.pathology_classify import data as sets
from apps.medical.pathology_classify.augment import QuarterTurn, Shelf, Tiles, augmentation
from apps.medical.pathology_classify.options import PUBLISHED, RECIPES, SHORT, TASK, Options
from apps.medical.pathology_classify.pipeline import Pipeline
from apps.medical.pathology_classify.train import network, parts, settings, train
from core import bundle, flags
from core.batch import Failure
from core.errors import FileError, InputError, SettingError, UnknownNameError, WeightsError
from core.training.schedules import rate

PINK, PURPLE = (225, 130, 175), (95, 55, 140)
TINY: dict[str, Any] = {"dims": (8, 12, 16, 24), "depths": (1, 1, 1, 1)}
OPTIONS = Options(
    network="backbone", backbone="convnext/v2_atto", settings={"overrides": TINY}, size=32, validation=0.3
)  # fmt: skip
DUO = Options(
    backbone="convnext/v2_atto", validation=0.3,
    settings={"dim": 24, "heads": 2, "depth": 1, "backbone_settings": TINY},
)  # fmt: skip
QUICK = replace(SHORT, epochs=2, steps_per_epoch=2, batch=4)


def tissue(seed: int, malignant: bool, rows: int = 36, columns: int = 48) -> NDArray[np.uint8]:
    """Pink with purple dots; malignant ones are large."""
    draw = np.random.default_rng(seed)
    picture = np.full((rows, columns, 3), PINK, int) + draw.integers(-8, 9, (rows, columns, 3))
    side, count = (8, 4) if malignant else (3, 28)
    for _ in range(count):
        r, c = draw.integers(0, rows - side), draw.integers(0, columns - side)
        picture[r : r + side, c : c + side] = PURPLE
    return picture.clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """BreakHis's tree: eight slides with a tile at 100 and two at 200 times."""
    root = tmp_path_factory.mktemp("breakhis")
    for number in range(8):
        kind, code = ("M", ("DC", "LC")[number // 2 % 2]) if number % 2 else ("B", ("A", "F")[number // 2 % 2])
        names = {"A": "adenosis", "F": "fibroadenoma", "DC": "ductal_carcinoma", "LC": "lobular_carcinoma"}
        slide = f"SOB_{kind}_{code}_14-{number}"
        home = root / {"B": "benign", "M": "malignant"}[kind] / "SOB" / names[code] / slide
        for times, count in ((100, 1), (200, 2)):
            (home / f"{times}X").mkdir(parents=True)
            for k in range(count):
                file = home / f"{times}X" / f"SOB_{kind}_{code}-14-{number}-{times}-{k + 1:03d}.png"
                Image.fromarray(tissue(1000 * number + times + k, kind == "M")).save(file)
    return root


def answered(scored: evaluate.Scored) -> dict[str, float]:
    return {a.id: a.probabilities[1] for a in scored.answers}


# --- data -------------------------------------------------------------------------------------------------------------


def test_magnifications_and_subtypes(tree: Path) -> None:
    assert len(sets.find(tree).pictures) == 24
    found = sets.find(tree, magnification=200)
    assert len(found.pictures) == 16
    assert all("-200-" in p.path.name for p in found.pictures)
    assert found.notes[-1] == "16 of 24 pictures are taken: those at 200 times"
    assert {p.group for p in found.pictures} == {f"14-{i}" for i in range(8)}
    fine = sets.find(tree, classes=["ductal_carcinoma", "adenosis"], magnification=100)
    assert fine.classes == ("ductal_carcinoma", "adenosis")
    assert Counter(p.label for p in fine.pictures) == {"adenosis": 2, "ductal_carcinoma": 2}
    with pytest.raises(SettingError, match="--magnification is one of 40, 100, 200, 400, got 20"):
        sets.find(tree, magnification=20)
    with pytest.raises(InputError, match="no picture at 40 times, but at 100, 200"):
        sets.find(tree, magnification=40)


def test_magnification_is_of_breakhis_alone(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.fromarray(tissue(0, False)).save(tmp_path / name / "x.png")
    assert sets.find(tmp_path).classes == ("a", "b")
    with pytest.raises(InputError, match="pictures named as BreakHis's, and none here is"):
        sets.find(tmp_path, magnification=40)


def test_what_is_looked_for(tree: Path) -> None:
    assert sets.positive(("malignant", "benign")) == "malignant"
    assert sets.positive(("malignant", "benign"), "benign") == "benign"
    assert sets.positive(("a", "b")) == "b"
    assert sets.positive(("a", "b", "c")) is None
    with pytest.raises(InputError, match="one of two, and there are 3"):
        sets.positive(("a", "b", "c"), "a")
    with pytest.raises(InputError, match=r"has no test part .*states no parts"):
        sets.chosen(sets.find(tree), "test")
    with pytest.raises(UnknownNameError):
        sets.chosen(sets.find(tree), "tset")


def test_check_names_what_is_wrong(tree: Path, tmp_path: Path) -> None:
    assert check.check(tree, magnification=200).problems == []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for k in range(3):
            Image.fromarray(tissue(k + 10 * (name == "b"), name == "b")).save(tmp_path / name / f"{k}.png")
    Image.fromarray(np.full((40, 40, 3), 247, np.uint8)).save(tmp_path / "a" / "glass.png")
    Image.fromarray(tissue(99, True)[..., 0]).save(tmp_path / "b" / "grey.png")
    tifffile.imwrite(tmp_path / "b" / "deep.tif", np.zeros((40, 40, 3), np.uint16), photometric="rgb")
    for k, um in enumerate((0.25, 0.5)):
        given = tissue(70 + k, False)
        tifffile.imwrite(
            tmp_path / "a" / f"um{k}.tif", given, photometric="rgb", resolution=(1e4 / um, 1e4 / um), resolutionunit=3
        )
    (tmp_path / "a" / "cut.png").write_bytes((tmp_path / "a" / "0.png").read_bytes()[:200])
    seen: list[str] = []
    found = check.check(tmp_path, progress=seen.append)
    assert len(seen) == 12
    told = "\n".join(found.problems)
    assert told.count("cut.png") == 1
    assert "deep.tif: holds uint16 values" in told
    said = "\n".join(found.remarks)
    assert "1 tiles show glass and no tissue (a/glass)" in said
    assert "1 tiles have no colour" in said
    assert "different scales; train with --um" in said
    assert found.facts["micrometres to a pixel"].startswith("0.25-0.5 (2 of ")


# --- tiles ------------------------------------------------------------------------------------------------------------


def test_tiles_as_prediction_cuts_them(tree: Path) -> None:
    found = sets.find(tree, magnification=200)
    contract = inputs.contract(32)
    plain = Tiles(found.pictures, found.classes, OPTIONS, contract, Shelf(OPTIONS), train=False)
    item, picture = plain[5], found.pictures[5]
    whole = inputs.fitted(inputs.picture(picture.path), 32)
    left = round((whole.shape[1] - 32) / 2)
    square = torch.from_numpy(whole[:, left : left + 32].copy()).permute(2, 0, 1)
    assert torch.allclose(item["image"], inputs.normalised(square[None], contract)[0])
    assert int(item["target"]) == list(found.classes).index(picture.label)
    changed = Tiles(found.pictures, found.classes, OPTIONS, contract, Shelf(OPTIONS), train=True)
    torch.manual_seed(0)
    first, second = changed[5]["image"], changed[5]["image"]
    assert first.shape == (3, 32, 32)
    assert not torch.equal(first, second)


def test_changes_keep_the_size_of_nuclei() -> None:
    picture = torch.from_numpy(tissue(1, True)).permute(2, 0, 1)
    torch.manual_seed(0)
    light = augmentation("light", 32)
    turned = set()
    windows = {
        tuple(sorted(picture[:, r : r + 32, c : c + 32].flatten(1).sum(1).tolist()))
        for r in range(5)
        for c in range(17)
    }  # fmt: skip
    for _ in range(60):
        cut = light(picture)
        assert tuple(sorted(cut.flatten(1).sum(1).tolist())) in windows  # pixels of a place, in another order
        turned.add(bytes(cut.numpy()))
    assert len(turned) > 40
    coloured = augmentation("stain", 32)(picture)
    assert coloured.dtype == torch.uint8
    assert tuple(sorted(coloured.flatten(1).sum(1).tolist())) not in windows
    with pytest.raises(SettingError, match="none, light or stain"):
        augmentation("heavy", 32)


def test_quarter_turns_take_all_four() -> None:
    image, turn = torch.arange(4.0).view(1, 2, 2), QuarterTurn()
    torch.manual_seed(0)
    seen = {tuple(turn(image).flatten().tolist()) for _ in range(60)}
    assert seen == {(0, 1, 2, 3), (1, 3, 0, 2), (3, 2, 1, 0), (2, 0, 3, 1)}


def test_stains_and_micrometres_in_training_as_in_prediction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stain, "normalised", lambda picture: 255 - picture)
    file = tmp_path / "t.tif"
    tifffile.imwrite(file, tissue(3, True, 80, 80), photometric="rgb", resolution=(2e4, 2e4), resolutionunit=3)
    picture = sets.Picture(file, "t", "a", "1")
    assert Shelf(OPTIONS).tile(picture).shape == (32, 32, 3)
    finer = Shelf(replace(OPTIONS, um=1.0)).tile(picture)
    assert finer.shape == (40, 40, 3)  # 0.5 um to a pixel, at 1
    inverse = Shelf(replace(OPTIONS, um=1.0, stain="macenko")).tile(picture)
    assert np.abs(255 - inverse.astype(int) - finer).max() <= 1
    with pytest.raises(FileError, match="the network needs 0"):
        Shelf(replace(OPTIONS, um=0.25)).tile(picture)
    made = settings("backbone", network(OPTIONS, 2), ("a", "b"), replace(OPTIONS, um=0.5, stain="macenko"))
    assert made.input.spacing == (0.5, 0.5)
    assert made.input.steps == ("macenko",)
    assert made.tile.size == (32, 32)


def test_a_tile_is_read_once_while_there_is_room(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture, read = sets.find(tree).pictures[0], []
    cut = augment.cutting.cut
    monkeypatch.setattr(augment.cutting, "cut", lambda *a, **k: read.append(a) or cut(*a, **k))  # type: ignore[func-returns-value]
    for shelf, times in ((Shelf(OPTIONS), 1), (Shelf(OPTIONS, room=10), 3)):
        read.clear()
        for _ in range(3):
            shelf.tile(picture)
        assert len(read) == times


def test_slides_are_not_trained_on(tmp_path: Path) -> None:
    from test_slides import made as slide

    path = slide(tmp_path / "s.tif", np.full((600, 600, 3), PINK, np.uint8))
    with pytest.raises(FileError, match=r"s\.tif: is a whole slide"):
        Shelf(OPTIONS).tile(sets.Picture(path, "s", "a", "1"))


# --- recipes ----------------------------------------------------------------------------------------------------------


def test_the_published_recipe_is_torchs_one_cycle() -> None:
    assert RECIPES["published"] is PUBLISHED
    p = torch.nn.Parameter(torch.zeros(1))
    theirs = torch.optim.Adam([p], lr=5e-5, weight_decay=1e-4)
    cycle = torch.optim.lr_scheduler.OneCycleLR(theirs, 5e-5, total_steps=201, cycle_momentum=False)
    wanted = []
    for _ in range(200):
        wanted.append(theirs.param_groups[0]["lr"])
        theirs.step()
        cycle.step()
    turn = (0.3 * 201 - 1) / 200  # torch counts its turn in steps that begin at 0
    ours = [rate(replace(PUBLISHED, warmup=turn), t / 200) for t in range(200)]
    assert ours == pytest.approx(wanted, rel=1e-5)
    assert (PUBLISHED.optimizer, PUBLISHED.weight_decay, PUBLISHED.epochs, PUBLISHED.batch) == ("adam", 1e-4, 50, 128)


# --- a run ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "a"
    (made,) = training.run(tree, out, replace(OPTIONS, magnification=200), QUICK)
    assert made.folder == out
    return out


def test_a_bundle_with_its_threshold(run: Path, tree: Path) -> None:
    found = bundle.load(run, task=TASK)
    output = found.settings.output
    assert output.classes == {"benign": 0, "malignant": 1}
    assert output.positive == "malignant"
    assert found.report["threshold"] == {"value": output.threshold, "aim": "youden", "chosen_on": "validation"}
    assert found.report["magnification"] == 200
    data = sets.find(tree, magnification=200)
    seen = set(found.report["trained_on"])
    held = [p for p in data.pictures if p.id not in seen]
    assert not {p.group for p in held} & {p.group for p in data.pictures if p.id in seen}
    assert found.report["validation"]["pictures"] == len(held)
    scored = evaluate.score(Pipeline.load(run), data, held)
    assert output.threshold == pytest.approx(min(1.0, scores.choose_threshold(scored.answers, 1)), abs=1e-6)


def test_the_same_command_goes_on(run: Path, tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = replace(OPTIONS, magnification=200)
    training.run(tree, run, options, QUICK)
    assert "already trained" in capsys.readouterr().out
    for other in (replace(options, smoothing=0.2), replace(options, stain="macenko"), replace(options, um=1.0)):
        with pytest.raises(SettingError, match="other data or settings"):
            training.run(tree, run, other, QUICK)


def test_scores_are_those_of_the_answers(run: Path, tree: Path, tmp_path: Path) -> None:
    data, pipeline = sets.find(tree, magnification=200), Pipeline.load(run)
    scored = evaluate.score(pipeline, data, data.pictures)
    assert [a.id for a in scored.answers] == [p.id for p in data.pictures]
    for picture, answer in zip(data.pictures, scored.answers, strict=True):
        result = pipeline(picture.path)
        assert answer.probabilities == pytest.approx(result.probabilities, abs=1e-5)
        assert scored.called[answer.id] == result.label
        assert answer.target == int(picture.label == "malignant")
        assert answer.group == picture.group
    evaluate.save(scored, tmp_path, {"data": "x"})
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["pictures"] == 16
    assert report["groups"] == 8
    assert report["threshold"] == scored.threshold
    lines = (tmp_path / evaluate.CASES).read_text().splitlines()
    assert len(lines) == 17
    assert lines[0] == "id,patient,class,called,p_benign,p_malignant"
    with Image.open(tmp_path / evaluate.CURVE) as picture:
        assert picture.size[0] > 200
    assert "auroc" in evaluate.table(scored.report)
    flipped = replace(
        scored, answers=tuple(replace(a, probabilities=a.probabilities[::-1]) for a in scored.answers)
    )  # fmt: skip
    row = next(r for r in evaluate.paired(scored, flipped) if r["metric"] == "auroc")
    assert row["a"] == pytest.approx(1 - row["b"])
    assert "auroc" in evaluate.compared(scored, flipped)
    with pytest.raises(InputError, match="compare bundles of one task"):
        evaluate.paired(scored, replace(scored, classes=("a", "b")))


def test_a_tile_that_cannot_be_read_costs_no_other(run: Path, tree: Path, tmp_path: Path) -> None:
    data = sets.find(tree, magnification=100)
    bad = tmp_path / "bad.png"
    bad.write_bytes(data.pictures[0].path.read_bytes()[:150])
    pictures = [replace(data.pictures[0], path=bad), *data.pictures[1:]]
    scored = evaluate.score(Pipeline.load(run), data, pictures)
    assert len(scored.answers) == len(pictures) - 1
    (failure,) = scored.failures
    assert isinstance(failure, Failure)
    assert failure.item == data.pictures[0].id
    assert "bad.png" in failure.error
    strange = [replace(data.pictures[0], label="other")]
    with pytest.raises(InputError, match="score it on its own task"):
        evaluate.score(Pipeline.load(run), data, strange)


def test_slides_with_a_label_are_scored(run: Path, tmp_path: Path) -> None:
    from test_slides import made as slide

    rows = ["image,label,patient"]
    for k, (name, colour) in enumerate((("benign", PINK), ("malignant", PURPLE))):
        slide(tmp_path / f"{k}.tif", np.full((512, 512, 3), colour, np.uint8))
        rows.append(f"{k}.tif,{name},p{k}")
    (tmp_path / "list.csv").write_text("\n".join(rows) + "\n")
    found = bundle.load(run)
    with_um = replace(found.settings, input=replace(found.settings.input, spacing=(1.0, 1.0)))
    net = bundle.fill(model.create(with_um.network.name, **with_um.network.config), found)
    bundle.save(tmp_path / "um", net, with_um, {})
    data = sets.find(tmp_path / "list.csv")
    scored = evaluate.score(Pipeline.load(tmp_path / "um"), data, data.pictures)
    assert not scored.failures
    assert [a.target for a in scored.answers] == [0, 1]
    found_again = check.check(tmp_path / "list.csv")
    assert found_again.problems == []


def test_beginning_with_a_bundle(run: Path, tree: Path, tmp_path: Path) -> None:
    frozen = replace(QUICK, epochs=1, freeze_epochs=1, ema=0.0)
    (made,) = training.run(tree, tmp_path / "b", replace(OPTIONS, magnification=100), frozen, init=run)
    first, second = (Pipeline.load(f).members[0].network.state_dict() for f in (run, made.folder))
    assert all(torch.equal(first[n], second[n]) for n in first if n.startswith("encoder."))
    assert not torch.equal(first["head.fc.weight"], second["head.fc.weight"])


def test_folds_are_one_answer(tree: Path, tmp_path: Path) -> None:
    made = training.run(tree, tmp_path / "f", replace(OPTIONS, folds=2), replace(QUICK, epochs=1))
    assert [m.folder.name for m in made] == ["fold_0", "fold_1"]
    assert len(Pipeline.load(tmp_path / "f").members) == 2


def test_duoformer_trains_on_subtypes_and_is_exported(tree: Path, tmp_path: Path) -> None:
    options = replace(DUO, classes=("adenosis", "lobular_carcinoma", "fibroadenoma"), validation=0.5)
    recipe = replace(QUICK, epochs=1, steps_per_epoch=1, batch=2)
    (made,) = training.run(tree, tmp_path / "d", options, recipe)
    assert list(made.settings.output.classes) == ["adenosis", "lobular_carcinoma", "fibroadenoma"]
    assert made.settings.output.positive is None
    assert made.settings.output.threshold is None
    answer = Pipeline.load(made.folder)(tissue(5, True))
    assert sum(answer.probabilities) == pytest.approx(1)
    training.export(made.folder, tmp_path / "n.onnx")
    about = json.loads((tmp_path / "n.json").read_text())
    assert about["input"]["shape"] == [1, 3, 224, 224]
    assert about["input"]["classes"] == {"adenosis": 0, "lobular_carcinoma": 1, "fibroadenoma": 2}


def test_settings_that_do_not_fit(tree: Path, tmp_path: Path) -> None:
    found = sets.find(tree)
    (part,) = parts(found, OPTIONS, 0, tmp_path)
    for options, words in (
        (replace(OPTIONS, smoothing=1.0), "--smoothing is from 0"),
        (replace(OPTIONS, um=-1.0), "--um is a positive number"),
        (replace(DUO, size=256), "duoformer takes tiles of 224 pixels, got --size 256"),
        (replace(OPTIONS, settings={"in_channels": 1}), "3 channels"),
        (replace(DUO, settings={"backbone_settings": {"layer_scale": None}}), "cannot be kept"),
    ):
        with pytest.raises(SettingError, match=words):
            train(found, part, options, QUICK)
    with pytest.raises(UnknownNameError, match="duoformer"):
        train(found, part, replace(OPTIONS, network="duo"), QUICK)
    with pytest.raises(SettingError, match="a threshold aims at"):
        training.run(tree, tmp_path, replace(OPTIONS, aim="best"), QUICK)
    with pytest.raises(InputError, match="one class only"):
        training.run(tree, tmp_path, replace(OPTIONS, classes=("adenosis",)), QUICK)
    with pytest.raises(FileError):
        training.run(tmp_path / "none", tmp_path, OPTIONS, QUICK)


def test_imports_and_their_mistakes(tmp_path: Path) -> None:
    from core.weights import save

    net: Any = model.create("duoformer", **{**DUO.settings, "backbone": DUO.backbone})
    save(net, tmp_path / "w.safetensors")
    more = {**DUO.settings, "backbone": DUO.backbone}
    made = training.import_(tmp_path / "w.safetensors", tmp_path / "b", "duoformer", None, "", more)
    assert dict(made.settings.output.classes) == {"benign": 0, "malignant": 1}
    assert made.settings.output.positive == "malignant"
    assert made.settings.tile.size == (224, 224)
    assert Pipeline.load(tmp_path / "b")(tissue(0, False)).label in ("benign", "malignant")
    with pytest.raises(SettingError, match="names 3, the network answers 2"):
        training.import_(tmp_path / "w.safetensors", tmp_path / "d", "duoformer", ["x", "y", "z"], "", more)
    with pytest.raises(SettingError, match="names one twice"):
        training.import_(tmp_path / "w.safetensors", tmp_path / "d", "duoformer", ["x", "x"], "", more)
    torch.save({"a": torch.zeros(2)}, tmp_path / "bad.pth")
    with pytest.raises(WeightsError, match="neither the whole network"):
        training.import_(tmp_path / "bad.pth", tmp_path / "d", "duoformer", None, "", more)
    assert not (tmp_path / "d").exists()
    save(net.encoder, tmp_path / "cnn.safetensors")
    part = training.import_(tmp_path / "cnn.safetensors", tmp_path / "e", "duoformer", None, "", more)
    assert part.report["untrained"] == "all but its backbone"
    with pytest.raises(InputError, match="untrained"):
        Pipeline.load(tmp_path / "e")


def test_it_learns(tree: Path, tmp_path: Path) -> None:
    """Dots that the eye tells at once; their colour and area are alike."""
    recipe = replace(SHORT, epochs=4, steps_per_epoch=15, batch=8, lr=3e-3, ema=0.9)
    options = replace(OPTIONS, backbone="resnet/18", settings={"overrides": {"depths": (1, 1, 1, 1)}})
    (made,) = training.run(tree, tmp_path / "learns", options, recipe)
    pipeline = Pipeline.load(made.folder)
    fresh = [(pipeline(tissue(5000 + i, bool(i % 2))).probabilities[1], i % 2) for i in range(12)]
    assert min(p for p, kind in fresh if kind) > max(p for p, kind in fresh if not kind)


# --- without a network ------------------------------------------------------------------------------------------------


def test_features_are_colours_alone() -> None:
    tile = tissue(0, True)
    found = baselines.features(tile)
    assert found.shape == (12 + 3 * 32 + 512,)
    assert found[:3] == pytest.approx(tile.reshape(-1, 3).mean(0))
    assert found[6:9] == pytest.approx(tile.reshape(-1, 3).std(0))
    shuffled = np.random.default_rng(0).permutation(tile.reshape(-1, 3)).reshape(tile.shape)
    assert baselines.features(shuffled) == pytest.approx(found)
    assert found[12:44].sum() == pytest.approx(1)
    assert found[108:].sum() == pytest.approx(1)
    place = 108 + (PURPLE[0] // 32) * 64 + (PURPLE[1] // 32) * 8 + PURPLE[2] // 32
    assert found[place] == pytest.approx((tile == PURPLE).all(-1).mean(), abs=0.01)
    assert baselines.features(np.tile(tile, (2, 1, 1))) == pytest.approx(found)
    plain = baselines.features(np.full((9, 9, 3), PURPLE, np.uint8))
    assert plain[3] > baselines.features(np.full((9, 9, 3), PINK, np.uint8))[3]  # more haematoxylin


# --- the demonstration ------------------------------------------------------------------------------------------------


def test_the_demonstration_makes_its_section(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    show = demo.Show(DUO, OPTIONS, replace(QUICK, epochs=1, steps_per_epoch=1, batch=2), (0.02, 0.02), (24, 24))
    index = demo.run(tmp_path, full=True, show=show)
    said = capsys.readouterr().out
    assert "Gain in AUROC over colour histogram" in said
    assert "Gain in AUROC over its backbone alone" in said
    page = index.read_text()
    assert page.count("<img") >= 6
    assert "benign, judged worst" in page
    (file,) = tmp_path.rglob(demo.LIST)
    assert f"train demo/{file.relative_to(tmp_path).as_posix()}" in page
    found = sets.find(file)
    patients = {part: {p.group for p in found.pictures if p.part == part} for part in demo.SHARES}
    assert all(patients.values())
    assert not patients["train"] & (patients["val"] | patients["test"])
    assert not patients["val"] & patients["test"]


def test_the_demonstrations_commands_can_be_typed() -> None:
    command = demo._commands(demo.SHOW, 3.0, Path("work/x.csv"))[0]
    words = command.split("--set ")[1].split(" --recipe")[0]
    given = flags.pairs([w for w in words.split("'") if "=" in w])
    assert model.configured("duoformer", given) == model.configured("duoformer", demo.SHOW.options.settings)
    assert isinstance(model.create("duoformer", **given, backbone=demo.SHOW.options.backbone).head.weight, Tensor)
