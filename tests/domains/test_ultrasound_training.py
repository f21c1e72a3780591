"""Ultrasound training: parts by patient, pictures, mixing, rates, a few seconds to a bundle, baselines."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from apps.medical import classes as scores
from apps.medical._class_learning import weights
from apps.medical.ultrasound import baselines, demo, exporting, inputs, model, training
from apps.medical.ultrasound import data as sets
from apps.medical.ultrasound._augmented import Pictures, Shelf, augmentation
from apps.medical.ultrasound.data import Found, Picture
from apps.medical.ultrasound.options import PUBLISHED, SHORT, Options
from apps.medical.ultrasound.pipeline import Pipeline
from apps.medical.ultrasound.train import Screener, network, parts, settings, train
from core import bundle
from core.errors import FileError, InputError, SettingError, WeightsError
from core.training.optimizers import optimizer
from core.training.recipe import Recipe

SMALL: dict[str, Any] = {
    "dim": 24, "queries": 4, "heads": (1, 2, 3, 3), "depths": (1, 1), "drop_path": 0.0, "dropout": 0.0,
    "swin_settings": {"dim": 12, "depths": (1, 1, 1, 1), "heads": (1, 2, 3, 3)},
    "convnext_settings": {"dims": (12, 24, 48, 96), "depths": (1, 1, 1, 1), "layer_scale": 1.0},
}  # fmt: skip
OPTIONS = Options(settings=SMALL, size=32, augment="light", mix=0.0, validation=0.3)
QUICK = replace(SHORT, epochs=2, steps_per_epoch=2, batch=4)


def speckle(seed: int, malignant: bool, height: int = 40, width: int = 48) -> NDArray[np.uint8]:
    """Noise; in malignant pictures in coarse grains."""
    draw = np.random.default_rng(seed)
    if malignant:
        small = draw.integers(40, 200, (height // 8, width // 8))
        return np.kron(small, np.ones((8, 8))).astype(np.uint8)
    return draw.integers(40, 200, (height, width)).astype(np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders and the patients of their pictures: eight with two pictures each."""
    root = tmp_path_factory.mktemp("us")
    rows = ["image,patient"]
    for patient in range(8):
        name = "malignant" if patient % 2 else "benign"
        (root / name).mkdir(exist_ok=True)
        for k in range(2):
            path = f"{name}/p{patient}_{k}.png"
            Image.fromarray(speckle(10 * patient + k, name == "malignant")).save(root / path)
            rows.append(f"{path},{patient}")
    (root / "groups.csv").write_text("\n".join(rows) + "\n")
    return root


def made(labels: str, part: str = "", *, each: int = 1) -> Found:
    """A data set without files: a letter a patient, b or m."""
    names = {"b": "benign", "m": "malignant"}
    pictures = tuple(
        Picture(Path(f"{i}_{k}.png"), f"{i}_{k}", names[letter], f"patient {i}", part)
        for i, letter in enumerate(labels)
        for k in range(each)
    )
    classes = tuple(sorted({p.label for p in pictures}))
    return Found(Path("data"), pictures, classes, "made", ())


# --- parts ------------------------------------------------------------------------------------------------------------


def test_no_patient_is_on_both_sides_and_classes_are_shared_out() -> None:
    found = made("bbbbbbbbmmmm" * 3, each=2)
    (part,) = parts(found, Options(validation=0.25), 0, Path("out"))
    assert not {p.group for p in part.train} & {p.group for p in part.val}
    assert len(part.train) + len(part.val) == 72
    assert Counter(p.label for p in part.val) == {"benign": 12, "malignant": 6}
    other = parts(found, Options(validation=0.25), 1, Path("out"))[0]
    assert {p.id for p in other.val} != {p.id for p in part.val}
    folds = parts(found, Options(folds=3), 0, Path("out"))
    assert [f.out.name for f in folds] == ["fold_0", "fold_1", "fold_2"]
    assert sorted(p.id for f in folds for p in f.val) == sorted(p.id for p in found.pictures)
    assert all(not {p.group for p in f.train} & {p.group for p in f.val} for f in folds)


def test_parts_that_the_data_name_are_taken() -> None:
    seen, held, away = made("bmbm", "train"), made("bm", "val"), made("bm", "test")
    pictures = [
        replace(p, id=f"{f}{p.id}", group=f"{f}{p.group}")
        for f, found in zip("abc", (seen, held, away), strict=True)
        for p in found.pictures
    ]
    found = replace(seen, pictures=tuple(pictures))
    (part,) = parts(found, Options(), 0, Path("out"))
    assert {p.id[0] for p in part.train} == {"a"}
    assert {p.id[0] for p in part.val} == {"b"}
    folds = parts(found, Options(folds=2), 0, Path("out"))
    assert {p.id[0] for f in folds for p in (*f.train, *f.val)} == {"a", "b"}  # never the test pictures


@pytest.mark.parametrize(
    ("labels", "options", "words"),
    [
        ("bbbb", Options(), "one class only"),
        ("bbbm", Options(), "no picture of malignant to"),
        ("bm", Options(folds=3), "--folds is 2 to 2"),
        ("bbmm", Options(folds=1), "--folds is 2 to 4"),
        ("bbmm", Options(validation=1.0), "--validation is a part"),
    ],
)
def test_data_that_cannot_be_split(labels: str, options: Options, words: str) -> None:
    with pytest.raises(InputError, match=words):
        parts(made(labels), options, 0, Path("out"))


# --- pictures ---------------------------------------------------------------------------------------------------------


def test_pictures_as_the_network_sees_them(folder: Path) -> None:
    found = sets.find(folder)
    shelf = Shelf(mask=False)
    plain = Pictures(found.pictures, found.classes, OPTIONS, shelf, train=False)
    item = plain[3]
    want = inputs.prepared(inputs.picture(found.pictures[3].path)[None], (32, 32))[0]
    assert torch.equal(item["image"], want)
    assert int(item["target"]) == list(found.classes).index(found.pictures[3].label)
    changed = Pictures(found.pictures, found.classes, OPTIONS, shelf, train=True)
    torch.manual_seed(0)
    first, second = changed[3]["image"], changed[3]["image"]
    assert first.shape == (3, 32, 32)
    assert not torch.equal(first, second)
    same = Pictures(found.pictures, found.classes, replace(OPTIONS, augment="none"), shelf, train=True)
    assert torch.allclose(same[3]["image"], want)
    strong = augmentation("published", 32)
    picture = torch.from_numpy(inputs.picture(found.pictures[0].path)).permute(2, 0, 1)
    assert all(strong(picture).shape == (3, 32, 32) for _ in range(8))
    assert strong(picture).dtype == torch.uint8
    with pytest.raises(SettingError, match="none, light or published"):
        augmentation("heavy", 32)


def test_a_file_is_read_once_while_there_is_room(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, read = sets.find(folder), []
    opened = inputs.opened
    monkeypatch.setattr(inputs, "opened", lambda path: read.append(path) or opened(path))  # type: ignore[func-returns-value]
    roomy, tight = Shelf(mask=False), Shelf(mask=False, room=10)
    for shelf, times in ((roomy, 1), (tight, 3)):
        read.clear()
        for _ in range(3):
            shelf.frames(found.pictures[0])
        assert len(read) == times


def test_a_loop_gives_any_frame_to_train_on_and_its_middle_to_validate(tmp_path: Path) -> None:
    import tifffile

    frames = np.stack([np.full((20, 24), 10 + 20 * t, np.uint8) for t in range(5)])
    frames[:, 0] = 0  # a frame of one value shows nothing
    tifffile.imwrite(tmp_path / "loop.tif", frames, photometric="minisblack", metadata={"axes": "TYX"})
    picture = Picture(tmp_path / "loop.tif", "loop", "benign", "1")
    options, shelf = replace(OPTIONS, augment="none"), Shelf(mask=False)
    middle = Pictures([picture], ["benign", "malignant"], options, shelf, train=False)[0]["image"]
    assert torch.equal(middle, inputs.prepared(shelf.frames(picture)[2][None], (32, 32))[0])
    drawn = Pictures([picture], ["benign", "malignant"], options, shelf, train=True)
    torch.manual_seed(0)
    assert len({float(drawn[0]["image"].mean()) for _ in range(40)}) == 5


def test_burned_in_marks_are_masked_on_request(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from apps.medical.ultrasound import burned

    asked = []

    def masked(frames: Any, marks: Any) -> Any:
        asked.append(len(frames))
        return np.zeros_like(frames)

    monkeypatch.setattr(burned, "masked", masked)
    found = sets.find(folder)
    assert not Shelf(mask=True).frames(found.pictures[0]).any()
    assert Shelf(mask=False).frames(found.pictures[0]).any()
    assert asked == [1]
    config = network(OPTIONS, 2)
    assert settings("hsqformer", config, found.classes, replace(OPTIONS, mask=True)).input.steps == (inputs.MASK,)
    assert settings("hsqformer", config, found.classes, OPTIONS).input.steps == ()


def test_classes_are_drawn_equally_often() -> None:
    from core.training.loading import Order

    assert weights([0, 1, 1, 2, 2, 2, 2]) == [1, 0.5, 0.5, 0.25, 0.25, 0.25, 0.25]
    targets = [0] * 90 + [1] * 10
    order = Order(100, seed=1, length=4000, weights=weights(targets))
    drawn = [targets[i] for i in order]
    assert len(drawn) == 4000
    assert 0.45 < np.mean(drawn) < 0.55
    assert list(order) == list(
        Order(100, seed=1, length=4000, weights=weights(targets))
    )  # so that it can be gone on with
    order.set_epoch(1)
    assert [targets[i] for i in order] != drawn
    order.start = 3990
    assert len(list(order)) == 10
    for wrong in ([1.0], [1.0] * 99 + [0.0]):
        with pytest.raises(SettingError, match="100 numbers above 0"):
            Order(100, weights=wrong)


# --- the module -------------------------------------------------------------------------------------------------------


class Fixed(nn.Module):
    """Answers what it is told, and keeps what it saw."""

    mixes = False

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits, self.seen = nn.Parameter(logits), []  # type: ignore[var-annotated]

    def forward(self, image: Tensor) -> Tensor:
        self.seen.append(image)
        return self.logits[: len(image)]


def test_the_loss_without_mixing() -> None:
    logits, target = torch.randn(4, 2), torch.tensor([0, 1, 1, 0])
    module = Screener(Fixed(logits), 2, replace(OPTIONS, mix=0.0, smoothing=0.1), 1)
    loss = module.training_step({"image": torch.zeros(4, 3, 8, 8), "target": target}, 0)
    soft = F.one_hot(target, 2) * 0.9 + 0.05
    assert float(loss) == pytest.approx(float(-(soft * logits.log_softmax(1)).sum(1).mean()), rel=1e-5)


def test_the_loss_of_mixed_pictures() -> None:
    """A mixed batch's targets, smoothed by the mixer and once more by the loss, as published."""
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 - timm draws from it
    logits, target = torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 2])
    fixed = Fixed(logits)
    module = Screener(fixed, 3, replace(OPTIONS, mix=1.0, smoothing=0.1), None)
    image = torch.arange(6.0).view(6, 1, 1, 1).expand(6, 3, 8, 8).contiguous()
    kept = image.clone()
    losses, kinds = [], set()
    for _ in range(30):
        losses.append(float(module.training_step({"image": image, "target": target}, 0)))
        seen = fixed.seen[-1]
        assert torch.equal(image, kept)  # the shelf's pictures stay as they are
        one = seen[0, 0]
        kinds.add("mixup" if len(one.unique()) == 1 else "cutmix")
        share = float(1 - one.mean() / 5)  # picture 0 is mixed with picture 5
        own = F.one_hot(target, 3) * 0.9 + 0.1 / 3
        mixed = share * own + (1 - share) * own.flip(0)
        soft = mixed * 0.9 + 0.1 / 3
        assert losses[-1] == pytest.approx(float(-(soft * logits.log_softmax(1)).sum(1).mean()), abs=1e-4)
    assert kinds == {"mixup", "cutmix"}
    odd = module.training_step({"image": image[:5], "target": target[:5]}, 0)
    assert torch.isfinite(odd)
    assert len(fixed.seen[-1]) == 4


def test_the_score_is_the_auroc_of_what_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    from sklearn.metrics import roc_auc_score

    torch.manual_seed(0)
    logits, target = torch.randn(40, 2), torch.randint(2, (40,))
    several, three = torch.randn(40, 3), torch.arange(40) % 3
    for values, truth, looked_for, want in (
        (logits, target, 1, roc_auc_score(target, logits.softmax(1)[:, 1])),
        (logits, target, 0, roc_auc_score(1 - target, logits.softmax(1)[:, 0])),
        (several, three, None, roc_auc_score(three, several.softmax(1), multi_class="ovr")),
    ):
        module, logged = Screener(Fixed(values), values.shape[1], OPTIONS, looked_for), {}
        monkeypatch.setattr(module, "log", lambda name, value, **_: logged.update({name: float(value)}))  # noqa: B023
        module.on_validation_epoch_start()
        module.validation_step({"image": torch.zeros(40, 3, 4, 4), "target": truth}, 0)
        module.on_validation_epoch_end()
        assert logged["val/score"] == pytest.approx(want, abs=1e-6)
        assert logged["val/loss"] == pytest.approx(float(F.cross_entropy(values, truth)), rel=1e-5)


def test_a_network_that_mixes_is_validated_picture_by_picture() -> None:
    fixed = Fixed(torch.randn(4, 2))
    fixed.mixes = True
    module = Screener(fixed, 2, OPTIONS, 1)
    module.on_validation_epoch_start()
    module.validation_step({"image": torch.zeros(3, 3, 4, 4), "target": torch.zeros(3).long()}, 0)
    assert [len(x) for x in fixed.seen] == [1, 1, 1]


def test_three_learning_rates() -> None:
    net: Any = model.create("hsqformer", **SMALL, size=32)
    module = Screener(net, 2, replace(OPTIONS, rates=(0.5, 1.0, 1.5)), 1)
    recipe = Recipe(lr=1e-2, decay_norms=True)
    found = {id(p): g for g in optimizer(module, recipe).param_groups for p in g["params"]}
    for name, p in net.named_parameters():
        share = 0.5 if name.startswith("swin.") else 1.0 if name.startswith("convnext.") else 1.5
        assert found[id(p)]["initial_lr"] == pytest.approx(share * 1e-2)
    assert len({g["initial_lr"] for g in found.values()}) == 3
    spared = {id(p): g for g in optimizer(module, Recipe(lr=1e-2)).param_groups for p in g["params"]}
    assert spared[id(net.positions[0])]["weight_decay"] == 0
    assert spared[id(net.queries)]["weight_decay"] == 0
    assert spared[id(net.head.weight)]["weight_decay"] > 0
    plain: Any = model.create("backbone", backbone="resnet/18", size=32)
    rates = {g["initial_lr"] for g in optimizer(Screener(plain, 2, OPTIONS, 1), recipe).param_groups}
    assert sorted(rates) == pytest.approx([1e-2, 1.5e-2])


def test_the_published_cycle_begins_and_ends_at_nothing() -> None:
    from core.training.schedules import rate

    p = nn.Parameter(torch.zeros(1))
    theirs = torch.optim.SGD([p], lr=1.0)
    cycle = torch.optim.lr_scheduler.OneCycleLR(
        theirs, 1e-4, total_steps=201, pct_start=0.05, div_factor=float("inf"), final_div_factor=1000,
        cycle_momentum=False,
    )  # fmt: skip
    wanted = []
    for _ in range(200):
        wanted.append(theirs.param_groups[0]["lr"])
        theirs.step()
        cycle.step()
    turn = (0.05 * 201 - 1) / 200  # torch counts its turn in steps that begin at 0
    ours = [rate(replace(PUBLISHED, warmup=turn), t / 200) for t in range(200)]
    assert ours == pytest.approx(wanted, rel=1e-5, abs=1e-12)
    assert rate(PUBLISHED, 0.0) == rate(PUBLISHED, 1.0) == 0
    assert rate(PUBLISHED, 0.05, 1.5e-4) == pytest.approx(1.5e-4)
    with pytest.raises(SettingError, match="cycle_start is from 0 to 1"):
        Recipe(cycle_start=2.0)


# --- a run ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "a"
    (made,) = training.run(folder, out, OPTIONS, QUICK)
    assert made.folder == out
    return out


def test_a_bundle_with_its_threshold(run: Path, folder: Path) -> None:
    found = bundle.load(run, task="medical ultrasound")
    assert found.settings.network.name == "hsqformer"
    assert found.settings.output.classes == {"benign": 0, "malignant": 1}
    assert found.settings.output.positive == "malignant"
    threshold = found.settings.output.threshold
    assert threshold is not None
    assert found.report["threshold"] == {"value": threshold, "aim": "youden", "chosen_on": "validation"}
    assert found.report["validation"]["pictures"] == 4
    assert not any("p" in str(i) and str(folder) in str(i) for i in found.report["trained_on"])
    pipeline = Pipeline.load(run)
    trained_on = set(found.report["trained_on"])
    held = [p for p in sets.find(folder).pictures if p.id not in trained_on]
    assert len(held) == 4
    answers = [pipeline(p.path).probability("malignant") for p in held]
    wanted = scores.choose_threshold(
        [
            scores.Answer(p.id, p.group, int(p.label == "malignant"), (1 - a, a))
            for p, a in zip(held, answers, strict=True)
        ],
        1,
    )
    assert threshold == pytest.approx(wanted, abs=1e-6)


def test_the_same_command_goes_on(run: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    training.run(folder, run, OPTIONS, QUICK)
    assert "already trained" in capsys.readouterr().out
    with pytest.raises(SettingError, match="other data or settings"):
        training.run(folder, run, replace(OPTIONS, smoothing=0.2), QUICK)


def test_beginning_with_a_bundle(run: Path, folder: Path, tmp_path: Path) -> None:
    frozen = replace(QUICK, epochs=1, freeze_epochs=1, ema=0.0)
    (made,) = training.run(folder, tmp_path / "b", OPTIONS, frozen, init=run)
    first, second = (Pipeline.load(f).members[0].network.state_dict() for f in (run, made.folder))
    assert all(torch.equal(first[n], second[n]) for n in first if n.startswith(("swin.", "convnext.")))
    assert not torch.equal(first["projections.0.weight"], second["projections.0.weight"])


def test_folds_are_one_answer(folder: Path, tmp_path: Path) -> None:
    made = training.run(folder, tmp_path / "f", replace(OPTIONS, folds=2), replace(QUICK, epochs=1))
    assert [m.folder.name for m in made] == ["fold_0", "fold_1"]
    assert len(Pipeline.load(tmp_path / "f").members) == 2


def test_settings_that_do_not_fit(folder: Path, tmp_path: Path) -> None:
    found = sets.find(folder)
    (part,) = parts(found, OPTIONS, 0, tmp_path)
    for options, recipe, words in (
        (replace(OPTIONS, mix=2.0), QUICK, "--mix is 0 to 1"),
        (replace(OPTIONS, mix=0.5), replace(QUICK, batch=3), "--recipe.batch is even"),
        (replace(OPTIONS, rates=(1.0, 0.0, 1.0)), QUICK, "--rates are"),
        (replace(OPTIONS, size=40), QUICK, "multiple of 32"),
        (replace(OPTIONS, settings={**SMALL, "in_channels": 1}), QUICK, "3 channels"),
        (replace(OPTIONS, settings={"convnext_settings": {"layer_scale": None}}), QUICK, "cannot be kept"),
    ):
        with pytest.raises(SettingError, match=words):
            train(found, part, options, recipe)
    with pytest.raises(SettingError, match="a threshold aims at"):
        training.run(folder, tmp_path, replace(OPTIONS, aim="best"), QUICK)
    with pytest.raises(FileError):
        training.run(tmp_path / "none", tmp_path, OPTIONS, QUICK)


def test_a_picture_that_cannot_be_read_is_named(folder: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(folder, tmp_path / "data")
    for path in (tmp_path / "data").rglob("*.png"):
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match=r"\.png"):
        training.run(tmp_path / "data", tmp_path / "out", OPTIONS, QUICK)


def test_a_plain_backbone_trains(folder: Path, tmp_path: Path) -> None:
    options = replace(
        OPTIONS, network="backbone", backbone="convnext/v2_atto", mix=1.0, augment="published",
        settings={"overrides": {"dims": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}},
    )  # fmt: skip
    (made,) = training.run(folder, tmp_path / "plain", options, replace(QUICK, epochs=1))
    answer = Pipeline.load(made.folder)(speckle(1, True))
    assert answer.looked is not None
    assert answer.probabilities.sum() == pytest.approx(1)


def test_imports_and_their_mistakes(tmp_path: Path) -> None:
    from core.weights import save

    net: Any = model.create("hsqformer", **SMALL, size=32)
    save(net, tmp_path / "w.safetensors")
    more = {**SMALL, "size": 32}
    made = training.import_(tmp_path / "w.safetensors", tmp_path / "b", "hsqformer", None, "", more)
    assert dict(made.settings.output.classes) == {"benign": 0, "malignant": 1}
    assert made.settings.output.positive == "malignant"
    assert Pipeline.load(tmp_path / "b")(speckle(0, False)).called in ("benign", "malignant")
    named = training.import_(tmp_path / "w.safetensors", tmp_path / "c", "hsqformer", ["x", "y"], "x", more)
    assert named.settings.output.positive == "x"
    with pytest.raises(SettingError, match="names 3, the network answers 2"):
        training.import_(tmp_path / "w.safetensors", tmp_path / "d", "hsqformer", ["x", "y", "z"], "", more)
    with pytest.raises(SettingError, match="names one twice"):
        training.import_(tmp_path / "w.safetensors", tmp_path / "d", "hsqformer", ["x", "x"], "", more)
    torch.save({f"encoder.{n}": v for n, v in net.swin.state_dict().items()}, tmp_path / "bad.pth")
    with pytest.raises(WeightsError, match="neither the whole network"):
        training.import_(tmp_path / "bad.pth", tmp_path / "d", "hsqformer", None, "", more)
    assert not (tmp_path / "d").exists()
    save(net.swin, tmp_path / "swin.safetensors")
    part = training.import_(tmp_path / "swin.safetensors", tmp_path / "e", "hsqformer", None, "", more)
    assert part.report["untrained"] == "all but its swin"
    with pytest.raises(InputError, match="untrained"):
        Pipeline.load(tmp_path / "e")


def test_an_exported_file_answers_alike(run: Path, tmp_path: Path) -> None:
    done = exporting.export(run, tmp_path / "n.onnx")
    assert done.difference < 1e-3
    import json

    about = json.loads(done.side.read_text())
    assert about["input"]["shape"] == [1, 3, 32, 32]
    assert about["input"]["positive"] == "malignant"
    assert about["input"]["classes"] == {"benign": 0, "malignant": 1}
    noisy: Any = model.create("hsqformer", **SMALL, size=32, noise="always")
    given = bundle.load(run).settings
    config = dict(given.network.config) | {"noise": "always"}
    bundle.save(tmp_path / "noisy", noisy, replace(given, network=bundle.Network("hsqformer", config)), {})
    with pytest.raises(SettingError, match="noisy in prediction"):
        exporting.export(tmp_path / "noisy", tmp_path / "m.onnx")


def test_it_learns(folder: Path, tmp_path: Path) -> None:
    """Grain that the eye tells at once."""
    recipe = replace(SHORT, epochs=1, steps_per_epoch=25, batch=8, lr=1e-3, ema=0.9)
    options = replace(OPTIONS, settings={**SMALL, "start": "scaled"})
    (made,) = training.run(folder, tmp_path / "learns", options, recipe)
    pipeline = Pipeline.load(made.folder)
    fresh = [(pipeline(speckle(500 + i, bool(i % 2))).probability("malignant"), i % 2) for i in range(12)]
    assert min(p for p, kind in fresh if kind) > max(p for p, kind in fresh if not kind)


# --- without a network ------------------------------------------------------------------------------------------------


def test_features_tell_intensity_and_texture() -> None:
    fine, coarse = speckle(0, False), speckle(0, True)
    a, b = baselines.features(fine), baselines.features(coarse)
    assert a.shape == b.shape
    assert np.isfinite(a).all()
    assert baselines.features(np.repeat(fine[..., None], 3, -1)) == pytest.approx(a)
    flat = baselines.features(np.full((40, 40), 90, np.uint8))
    assert flat[0] == 90
    assert np.isfinite(flat).all()
    bright = baselines.features(np.clip(fine.astype(int) + 30, 0, 255).astype(np.uint8))
    assert bright[0] - a[0] == pytest.approx(30, abs=1)
    assert abs(b - a)[25:].max() > 0.1  # behind the histogram: texture


def test_logistic_regression_against_scikit_learn_itself() -> None:
    from sklearn.linear_model import LogisticRegression

    draw = np.random.default_rng(0)
    x, target = draw.normal(size=(80, 5)), np.arange(80) % 2
    x[:, 0] += 2 * target
    x = x * [1, 10, 1, 1, 1000]
    groups = [str(i // 2 % 20) for i in range(80)]
    got = baselines.logistic_baseline(x[:60], target[:60].tolist(), groups[:60], x[60:])
    assert np.allclose(got.sum(1), 1)
    scaled = (x - x[:60].mean(0)) / x[:60].std(0)
    close = []
    for strength in (1e-4, 1e-3, 1e-2, 1e-1, 1, 10):
        fitted = LogisticRegression(C=strength, class_weight="balanced", max_iter=2000).fit(scaled[:60], target[:60])
        close.append(np.abs(fitted.predict_proba(scaled[60:]) - got).max())
    assert min(close) < 1e-6
    with pytest.raises(InputError, match="two classes with two patients"):
        baselines.logistic_baseline(x[:60], [0] * 60, groups[:60], x[60:])
    with pytest.raises(InputError, match="two classes with two patients"):
        baselines.logistic_baseline(x[:4], [0, 1, 0, 1], ["a", "b", "a", "b"], x[60:])


# --- the demonstration ------------------------------------------------------------------------------------------------


def test_the_demonstration_makes_its_section(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    show = demo.Show(
        OPTIONS, replace(OPTIONS, network="backbone", backbone="convnext/v2_atto", settings={}), QUICK, (0.02, 0.02),
        (24, 24),
    )  # fmt: skip
    index = demo.run(tmp_path, full=True, show=show)
    said = capsys.readouterr().out
    assert "Gain in AUROC over logistic regression" in said
    assert "Gain in AUROC over one backbone" in said
    page = index.read_text()
    assert page.count("<img") >= 6
    assert "Benign, judged worst" in page
    found = sets.find(tmp_path / "work" / "us-liver" / "data" / demo.LIST)
    patients = {part: {p.group for p in found.pictures if p.part == part} for part in demo.SHARES}
    assert all(patients.values())
    assert not patients["train"] & (patients["val"] | patients["test"])
    assert not patients["val"] & patients["test"]


def test_the_demonstrations_commands_can_be_typed(tmp_path: Path) -> None:
    from core import flags

    command = demo._commands(demo.SHOW, 3.0)[0]
    words = command.split("--set ")[1].split(" --size")[0]
    given = flags.pairs([w for w in words.split("'") if "=" in w])
    assert model.configured("hsqformer", given) == model.configured("hsqformer", demo.SHOW.options.settings)
