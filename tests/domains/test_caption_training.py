"""Training for captions: bags prepared and drawn, clusters started, runs that learn, stop and go on, and bundles."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from apps.medical.pathology_caption import _start, baselines, clustering, inputs, model
from apps.medical.pathology_caption import train as training
from apps.medical.pathology_caption._bags import Bags, Source, changed, collate, prepare
from apps.medical.pathology_caption._work import Captioner, balanced
from apps.medical.pathology_caption.data import Bag, Found
from apps.medical.pathology_caption.decoder import NOTHING
from apps.medical.pathology_caption.describing import describe
from apps.medical.pathology_caption.options import LANGUAGE_RATE, RECIPES, Options
from core import bundle
from core.config import as_table
from core.errors import FileError, InputError, SettingError, ShapeError, UnknownNameError, WeightsError
from core.training import optimizers
from core.training.recipe import Recipe

SMALL: dict[str, Any] = {
    "size": 32,
    "overrides": {"dim": 32, "depth": 1, "heads": 2, "patch": 8},
    "width": 12,
    "clusters": 4,
    "dropout": 0.1,
    "decoder": {"dim": 32, "depth": 1, "heads": 2, "dropout": 0.0},
}
RECIPE = Recipe(epochs=2, batch=4, lr=2e-3, clip=1.0)
QUIET: Any = {"device": "cpu", "say": lambda _: None}


def tile(stripes: bool, checks: bool, draw: np.random.Generator, side: int = 32) -> NDArray[np.uint8]:
    """Rosy noise of a random tint, with stripes across, or fine checks."""
    rows, columns = np.mgrid[:side, :side]
    values = 200 + draw.normal(0, 8, (side, side, 1)) + draw.normal(0, 12, 3)
    values -= 60 * ((columns // 4) % 2)[..., None] * stripes + 60 * ((columns // 3 + rows // 3) % 2)[..., None] * checks
    return values.clip(0, 255).astype(np.uint8)


def slides(folder: Path, count: int = 16, *, parts: Sequence[str] = ("",), seed: int = 0) -> Found:
    """Bags of three to six patches; two signs, seen in every second patch each, make caption and class."""
    draw = np.random.default_rng(seed)
    bags = []
    for b in range(count):
        striped, checked = b % 2 == 1, b // 2 % 2 == 1
        paths = []
        for i in range(int(draw.integers(3, 7))):
            path = folder / f"slide{b:02d}_{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(tile(striped and i % 2 == 0, checked and i % 2 == 1, draw)).save(path)
            paths.append(path)
        caption = f"{'Striped' if striped else 'Plain'} tissue, {'with' if checked else 'without'} checks."
        label = "checked" if checked else "smooth"
        bags.append(Bag(f"slide{b:02d}", f"p{b // 2}", tuple(paths), caption, label, parts[b % len(parts)]))
    return Found(folder, tuple(bags), ("checked", "smooth"), "made", ())


def fitted(data: Found, out: Path, recipe: Recipe = RECIPE, **more: Any) -> tuple[Any, Any, Any]:
    settings = {**SMALL, **more.pop("settings", {})}
    init = more.pop("init", None)
    options = Options(settings=settings, **more)
    (part,) = training.parts(data, options, recipe.seed, out)
    return training.train(data, part, options, recipe, init=init, **QUIET)


# --- bags -----------------------------------------------------------------------------------------------------------


def test_bags_are_joined_with_masks() -> None:
    items = [
        {"values": torch.ones(3, 5), "label": 1, "tokens": [1, 4, 2]},
        {"values": 2 * torch.ones(1, 5), "label": NOTHING, "tokens": []},
    ]
    joined = collate(items)
    assert joined["mask"].tolist() == [[True, True, True], [True, False, False]]
    assert joined["values"].shape == (2, 3, 5)
    assert joined["values"][1].sum() == 10
    assert joined["tokens"].tolist() == [[1, 4, 2], [NOTHING] * 3]
    assert joined["label"].tolist() == [1, NOTHING]
    pixels = [{"values": torch.zeros(n, 8, 8, 3, dtype=torch.uint8), "label": 0, "tokens": []} for n in (2, 3)]
    assert collate(pixels)["values"].shape == (5, 8, 8, 3)
    assert collate(pixels)["mask"].sum(1).tolist() == [2, 3]


def test_parts_of_a_bag_are_drawn_anew(tmp_path: Path) -> None:
    np.save(tmp_path / "bag.npy", np.arange(20, dtype=np.float32)[:, None])
    source = Source(Bag("a", "a", tuple(Path(f"{i}.png") for i in range(20))), tmp_path / "bag.npy", 32)
    torch.manual_seed(0)
    few, whole = Bags([source], [0], [[]], most=6), Bags([source], [0], [[]], most=0)
    drawn = [few[0]["values"].flatten().tolist() for _ in range(5)]
    assert all(len(set(d)) == 6 and d == sorted(d) for d in drawn)
    assert len({tuple(d) for d in drawn}) > 1
    assert whole[0]["values"].flatten().tolist() == list(range(20))


def test_patches_are_turned_and_stained_alike_in_a_bag() -> None:
    torch.manual_seed(0)
    patch = torch.arange(8 * 8, dtype=torch.uint8).view(8, 8, 1).expand(-1, -1, 3) * 3
    made = changed(patch.expand(40, -1, -1, -1))
    corners = {(int(m[0, 0, 0]), int(m[0, -1, 0]), int(m[-1, 0, 0])) for m in made}
    assert len(corners) == 8  # turns and flips
    assert len({tuple(sorted(m[..., 0].flatten().tolist())) for m in made}) == 1  # one stain a bag
    other = changed(patch.expand(1, -1, -1, -1))
    assert sorted(other[..., 0].flatten().tolist()) != sorted(made[0, ..., 0].flatten().tolist())
    white = changed(torch.full((1, 4, 4, 3), 255, dtype=torch.uint8))
    assert white.min() == 255  # glass stays glass


def test_prepared_bags_are_made_once_and_anew_after_a_change(tmp_path: Path) -> None:
    data = slides(tmp_path / "data", 2)
    asked = []

    def make(bag: Bag) -> NDArray[np.uint8]:
        asked.append(bag.id)
        return np.zeros((len(bag.patches), 4), np.uint8)

    prepare(data.bags, tmp_path / "cache", "key", make, 32)
    prepare(data.bags, tmp_path / "cache", "key", make, 32)
    assert asked == ["slide00", "slide01"]
    os.utime(data.bags[1].patches[0], (1, 1))
    prepare(data.bags, tmp_path / "cache", "key", make, 32)
    assert asked == ["slide00", "slide01", "slide01"]
    prepare(data.bags, tmp_path / "cache", "other", make, 32)
    assert len(asked) == 5
    data.bags[0].patches[0].unlink()
    with pytest.raises(FileError, match=r"slide00_0\.png"):
        prepare(data.bags, tmp_path / "cache", "key", make, 32)


def test_a_set_that_is_too_large_is_read_again_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = slides(tmp_path / "data", 8)
    monkeypatch.setattr(_start, "KEPT", 1000)
    fitted(data, tmp_path / "run", replace(RECIPE, epochs=1), encoder="trained")
    assert not list((tmp_path / "run" / training.CACHE).glob("*.npy"))
    source = Source(data.bags[0], None, 32)
    np.testing.assert_array_equal(source.rows([1])[0], inputs.square(data.bags[0].patches[1], 32))


# --- patches --------------------------------------------------------------------------------------------------------


def test_patches_are_brought_to_the_networks_size(tmp_path: Path) -> None:
    wide = np.zeros((60, 100, 3), np.uint8)
    wide[:, 20:80] = 200
    assert (inputs.square(wide, 30)[:, 2:-2] > 195).all()  # the middle
    np.testing.assert_array_equal(inputs.square(wide[:, 20:80], 60), wide[:, 20:80])
    Image.fromarray(wide[..., 0]).save(tmp_path / "grey.png")
    assert inputs.square(tmp_path / "grey.png", 30).shape == (30, 30, 3)
    deep = (np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    assert abs(int(inputs.square(tmp_path / "deep.png", 8)[7, 7, 0]) - 63000 / 257) < 1
    clear = np.zeros((8, 8, 4), np.uint8)
    clear[:4, :, 3] = 255
    Image.fromarray(clear).save(tmp_path / "clear.png")
    assert inputs.square(tmp_path / "clear.png", 8)[:, 0, 0].tolist() == [0] * 4 + [255] * 4
    values = inputs.tensor(np.full((1, 8, 8, 3), 255, np.uint8))
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    want = [(1 - m) / s for m, s in zip(mean, std, strict=True)]
    np.testing.assert_allclose(values[0, :, 0, 0], want, rtol=1e-5)
    (tmp_path / "cut.png").write_bytes((tmp_path / "grey.png").read_bytes()[:60])
    for broken in ("cut.png", "none.png"):
        with pytest.raises(FileError, match=broken):
            inputs.square(tmp_path / broken, 8)
    with pytest.raises(ShapeError, match="float64"):
        inputs.square(np.zeros((8, 8, 3)), 8)  # type: ignore[arg-type]


def test_embedding_in_batches_is_embedding_at_once() -> None:
    torch.manual_seed(0)
    network = model.create("gnn_vitcap", **SMALL).eval()
    draw = np.random.default_rng(0)
    patches = [tile(True, False, draw) for _ in range(7)]
    parts = inputs.embed(network, iter(patches), batch=3)
    torch.testing.assert_close(parts, inputs.embed(network, patches, batch=100))
    assert parts.shape == (7, 32)
    with pytest.raises(InputError, match="a bag without patches"):
        inputs.embed(network, [])


# --- aims -----------------------------------------------------------------------------------------------------------


def test_what_is_learned_is_what_the_bags_have(tmp_path: Path) -> None:
    data = slides(tmp_path, 4)

    def part(**changes: Any) -> training.Part:
        return training.Part(tuple(replace(b, **changes) for b in data.bags), (), tmp_path)

    both = training.aim(part(), "auto", tmp_path)
    assert (set(both.classes), both.captions) == ({"smooth", "checked"}, True)
    assert training.aim(part(label=""), "auto", tmp_path) == training.Aim((), True)
    assert training.aim(part(label="smooth"), "auto", tmp_path) == training.Aim((), True)
    assert training.aim(part(caption=""), "auto", tmp_path).captions is False
    assert training.aim(part(), "class", tmp_path).captions is False
    assert training.aim(part(), "caption", tmp_path).classes == ()
    for changes, goal, words in (
        ({"label": "smooth"}, "class", r"one class only \(smooth\); two are needed"),
        ({"label": ""}, "both", "no classes; two are needed"),
        ({"caption": " "}, "caption", "no captions; give them, or ask for --goal class"),
        ({"caption": "", "label": "smooth"}, "auto", "neither captions nor two classes"),
    ):
        with pytest.raises(InputError, match=words):
            training.aim(part(**changes), goal, tmp_path)


def test_captions_become_numbers_with_an_end_of_their_own() -> None:
    from apps.medical.pathology_caption.vocabulary import Vocabulary

    words = Vocabulary(["gland", "tumour"])
    assert training.numbers("gland tumour", words, 5) == [1, 4, 5, 2]
    assert training.numbers("gland tumour", words, 2) == [1, 4, 5, 2]
    assert training.numbers("gland tumour gland", words, 2) == [1, 4, 5]  # cut: it does not end there
    assert training.numbers(" ", words, 5) == []


def test_patients_stay_on_one_side(tmp_path: Path) -> None:
    data = slides(tmp_path, 16)
    (part,) = training.parts(data, Options(), 0, tmp_path)
    assert {b.group for b in part.train} & {b.group for b in part.val} == set()
    assert len(part.train) + len(part.val) == 16
    folds = training.parts(data, Options(folds=4), 0, tmp_path)
    assert [p.out.name for p in folds] == [f"fold_{k}" for k in range(4)]
    assert sorted(b.id for p in folds for b in p.val) == [b.id for b in data.bags]
    own = slides(tmp_path, 12, parts=("train", "val", "test"))
    (part,) = training.parts(own, Options(), 0, tmp_path)
    assert {b.part for b in part.train} == {"train"}
    assert {b.part for b in part.val} == {"val"}
    with pytest.raises(InputError, match="no bags to train on"):
        training.parts(replace(own, bags=own.bags[1:2]), Options(), 0, tmp_path)


# --- losses ---------------------------------------------------------------------------------------------------------


class OneDevice:
    """What a module asks of Lightning's trainer between steps."""

    current_epoch = 0

    @property
    def strategy(self) -> Any:
        return self

    def reduce(self, value: Any, reduce_op: str) -> Any:
        assert reduce_op == "sum"
        return value


def captioner(**options: Any) -> Captioner:
    torch.manual_seed(0)
    more = {"dropout": 0.0, "words": ["gland", "tumour"], "longest": 4}
    module = Captioner(model.create("gnn_vitcap", **{**SMALL, **more}), Options(**options), torch.ones(4), frozen=True)
    module.trainer = OneDevice()  # type: ignore[assignment]
    return module


def a_batch() -> dict[str, Any]:
    values = torch.randn(3, 4, 32, generator=torch.Generator().manual_seed(1))
    mask = torch.arange(4) < torch.tensor([[4], [2], [3]])
    tokens = torch.tensor([[1, 4, 5, 2], [1, 5, 2, NOTHING], [NOTHING] * 4])
    return {"values": values, "mask": mask, "label": torch.tensor([1, NOTHING, 0]), "tokens": tokens}


def test_the_loss_is_the_sum_of_its_parts() -> None:
    module, batch = captioner(clustering=0.3, target="batch"), a_batch()
    slide = module.network.slide(batch["values"], batch["mask"])
    log = slide.logits.log_softmax(-1)
    classes = -(log[0, 1] + log[2, 0]) / 2  # the bag without a class does not count
    told, count = module.network.caption_loss(slide.embedding[:2], batch["tokens"][:2])
    points = module.network.projection(batch["values"])[batch["mask"]]
    dec = clustering.dec_loss(clustering.assignment(points, module.network.clusters.centres))
    torch.testing.assert_close(module.training_step(batch, 0), classes + told / count + 0.3 * dec)
    assert int(count) == 5
    none = captioner(clustering=0.0)
    torch.testing.assert_close(none.training_step(batch, 0), classes + told / count)


def test_the_target_counts_the_epoch_before() -> None:
    module, batch = captioner(), a_batch()
    whole: Any = module.trainer
    q = module.network.slide(batch["values"], batch["mask"]).assignment
    here = clustering.frequency(q.detach(), batch["mask"])
    module.training_step(batch, 0)
    module.training_step(batch, 1)
    torch.testing.assert_close(module.counting, 2 * here)
    torch.testing.assert_close(module.counts, torch.ones(4))  # the start's, for the whole first epoch
    whole.current_epoch = 1
    module.training_step(batch, 0)
    torch.testing.assert_close(module.counts, 2 * here)
    torch.testing.assert_close(module.counting, here)
    module.training_step(batch, 1)
    torch.testing.assert_close(module.counting, 2 * here)
    torch.testing.assert_close(module.counts, 2 * here)
    slide = module.network.slide(batch["values"], batch["mask"])
    torch.testing.assert_close(module._dec(slide), clustering.dec_loss(q, 2 * here, batch["mask"]))
    assert {"counts", "counting", "epoch"} <= set(module.state_dict())
    assert not any("count" in name for name in module.network.state_dict())


def test_the_score_is_of_words_and_classes() -> None:
    assert float(balanced(torch.tensor([0, 0, 0, 1]), torch.tensor([0, 0, 0, 0]))) == 0.75
    module, batch = captioner(), a_batch()
    told: dict[str, float] = {}
    module.log = lambda name, value, **_: told.update({name: float(value)})  # type: ignore[method-assign,assignment]
    module.eval()
    module.on_validation_epoch_start()
    with torch.no_grad():
        module.validation_step(batch, 0)
        module.on_validation_epoch_end()
        slide = module.network.slide(batch["values"], batch["mask"])
        loss, count = module.network.caption_loss(slide.embedding, batch["tokens"])
    assert told["val/words"] == pytest.approx(float((-loss / count).exp()), rel=1e-5)
    right = slide.logits[[0, 2]].argmax(1) == torch.tensor([1, 0])
    assert told["val/balanced accuracy"] == pytest.approx(float(right.float().mean()))
    assert told["val/score"] == pytest.approx((told["val/words"] + told["val/balanced accuracy"]) / 2)


def test_a_language_model_of_others_is_trained_more_gently() -> None:
    module = captioner()
    recipe = RECIPES["published"]
    assert [g.get("lr", recipe.lr) for g in optimizers.optimizer(module, recipe).param_groups] == [1e-4]
    object.__setattr__(module.network, "config", replace(module.network.config, language="hosted"))
    rates = [g["lr"] for g in optimizers.optimizer(module, recipe).param_groups]
    assert rates == [1e-4, LANGUAGE_RATE * 1e-4]
    frozen = {id(p) for p in module.network.encoder.parameters()}
    assert not any(id(p) in frozen for g in optimizers.optimizer(module, recipe).param_groups for p in g["params"])


# --- runs -----------------------------------------------------------------------------------------------------------


def captions_of(network: Any, bags: Sequence[Bag]) -> list[str]:
    return [describe([network], [inputs.embed(network, b.patches)], beams=3).caption for b in bags]


def test_captions_and_classes_are_learned(tmp_path: Path) -> None:
    """On slides of other patients nearly every caption is right; the colours' neighbour is right by chance."""
    data = slides(tmp_path / "data", 64)
    test = slides(tmp_path / "test", 16, seed=9).bags
    recipe = replace(RECIPES["short"], epochs=50, lr=2e-3)
    settings, network, done = fitted(data, tmp_path / "run", recipe, encoder="frozen", settings={"clusters": 6})
    right = np.mean([a == b.caption for a, b in zip(captions_of(network, test), test, strict=True)])
    by_colour = baselines.nearest(data.bags, test)
    beside = np.mean([by_colour[b.id] == b.caption for b in test])
    assert right >= 0.8
    assert right > beside
    assert done.score is not None
    assert done.score > 0.8
    assert settings.output.classes == {"checked": 0, "smooth": 1}
    told = describe([network], [inputs.embed(network, test[0].patches)])
    assert told.probabilities[1] > 0.5
    assert len(told.representatives) > 1


@pytest.mark.parametrize("goal", ["class", "caption", "both"])
@pytest.mark.parametrize("encoder", ["frozen", "trained"])
def test_a_run_becomes_a_bundle(goal: Any, encoder: Any, tmp_path: Path) -> None:
    data = slides(tmp_path / "data")
    settings, network, done = fitted(data, tmp_path / "run", goal=goal, encoder=encoder, patches=4)
    assert done.epochs == 2
    assert (network.head is None) == (goal == "caption")
    assert (network.language is None) == (goal == "class")
    bundle.save(tmp_path / "run", network, settings, {})
    found = bundle.load(tmp_path / "run", task="medical pathology caption")
    again = model.from_bundle(found)
    assert not again.training
    embeddings = inputs.embed(network, data.bags[0].patches)
    assert describe([again], [inputs.embed(again, data.bags[0].patches)]) == describe([network], [embeddings])
    assert found.settings.input == inputs.contract()
    assert found.settings.tile.size == (32, 32)
    if goal != "class":
        text = (tmp_path / "run" / bundle.SETTINGS).read_text()
        assert '"checks"' in text  # the words stand there in plain text
    torch.manual_seed(0)
    asked = training.Aim(tuple(settings.output.classes), goal != "class")
    fresh = training.network(Options(settings=SMALL), asked, [b.caption for b in data.bags])
    moved = [
        n for (n, a), b in zip(network.encoder.named_parameters(), fresh.encoder.parameters(), strict=True)
        if not torch.equal(a, b)
    ]  # fmt: skip
    assert bool(moved) == (encoder == "trained")


def test_a_stopped_run_goes_on_as_if_it_had_not_been(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = slides(tmp_path / "data")
    recipe = replace(RECIPE, epochs=3, ema=0.9)
    how: Any = {"encoder": "trained", "patches": 3}
    _, whole, _ = fitted(data, tmp_path / "whole", recipe, **how)
    step = Captioner.training_step
    seen = []

    def stopping(self: Captioner, batch: Any, number: int) -> Any:
        seen.append(number)
        if len(seen) == 5:  # inside the second epoch
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, batch, number)

    with monkeypatch.context() as patched:
        patched.setattr(Captioner, "training_step", stopping)
        with pytest.raises(KeyboardInterrupt):
            fitted(data, tmp_path / "cut", recipe, **how)
    _, again, done = fitted(data, tmp_path / "cut", recipe, **how)
    assert done.resumed_from == 1
    for (name, a), b in zip(whole.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    with pytest.raises(SettingError, match="clustering"):
        fitted(data, tmp_path / "cut", recipe, clustering=0.5, **how)


def test_a_run_begins_with_a_bundle_or_an_encoder(tmp_path: Path) -> None:
    data = slides(tmp_path / "data")
    settings, first, _ = fitted(data, tmp_path / "one", encoder="trained", goal="class")
    bundle.save(tmp_path / "one", first, settings, {})
    one = replace(RECIPE, epochs=1, lr=1e-12, weight_decay=0.0)
    _, second, _ = fitted(data, tmp_path / "two", one, goal="both", init=tmp_path / "one")
    for name in ("encoder.backbone.norm.weight", "clusters.centres", "projection.weight", "head.weight"):
        torch.testing.assert_close(second.state_dict()[name], first.state_dict()[name])
    assert all(torch.equal(a, b) for a, b in zip(first.encoder.parameters(), second.encoder.parameters(), strict=True))
    other = replace(
        data, bags=tuple(replace(b, label=b.label + "!") for b in data.bags), classes=("checked!", "smooth!")
    )
    _, third, _ = fitted(other, tmp_path / "three", one, goal="class", init=tmp_path / "one")
    assert not torch.allclose(third.head.weight, first.head.weight)  # other classes: another head
    _, fourth, _ = fitted(data, tmp_path / "four", one, goal="class", init=tmp_path / "one", settings={"clusters": 3})
    torch.testing.assert_close(fourth.projection.weight.norm(), fourth.projection.weight.norm())
    assert fourth.clusters.centres.shape == (3, 12)
    deeper = {"overrides": {**SMALL["overrides"], "depth": 2}}
    with pytest.raises(WeightsError, match=r"encoder\.backbone\.stages\.0\.blocks\.1"):
        fitted(data, tmp_path / "five", one, init=tmp_path / "one", settings=deeper)


def test_clusters_that_are_started_anew_fit_the_embeddings(tmp_path: Path) -> None:
    """A bundle with other clusters brings its projection but no centres: both are started anew."""
    data = slides(tmp_path / "data")
    settings, first, _ = fitted(data, tmp_path / "one", encoder="trained", goal="class")
    bundle.save(tmp_path / "one", first, settings, {})
    one = replace(RECIPE, epochs=1, lr=1e-12, weight_decay=0.0)
    _, second, _ = fitted(data, tmp_path / "two", one, goal="class", init=tmp_path / "one", settings={"clusters": 3})
    with torch.no_grad():
        points = [second.projection(inputs.embed(second, b.patches)) for b in data.bags]
        away = (torch.cat(points)[:, None] - second.clusters.centres).square().sum(-1).min(1).values
    assert 0.3 < float(away.mean()) < 3  # the kernel's width, 1


def test_bags_that_cannot_be_used_stop_the_run_in_a_sentence(tmp_path: Path) -> None:
    data = slides(tmp_path / "data", 6)
    for encoder in ("frozen", "trained"):
        empty = replace(data, bags=(replace(data.bags[0], patches=()), *data.bags[1:]))
        with pytest.raises(InputError, match="without patches"):
            fitted(empty, tmp_path / "empty", encoder=encoder)
        broken = tmp_path / "broken.png"
        broken.write_text("no picture")
        bad = replace(data, bags=(replace(data.bags[0], patches=(broken,)), *data.bags[1:]))
        with pytest.raises(FileError, match=r"broken\.png"):
            fitted(bad, tmp_path / "bad", encoder=encoder)
    with pytest.raises(InputError, match="200 clusters need as many different patches"):
        fitted(data, tmp_path / "many", settings={"clusters": 200})
    with pytest.raises(UnknownNameError, match="clusers"):
        fitted(data, tmp_path / "wrong", settings={"clusers": 2})
    with pytest.raises(FileError, match="no such folder"):
        fitted(data, tmp_path / "none", language_model=str(tmp_path / "nowhere"))


# --- baselines ------------------------------------------------------------------------------------------------------


def test_the_commonest_caption_and_class() -> None:
    bags = [
        Bag(str(i), "", (), c, lab)
        for i, (c, lab) in enumerate([("b", "y"), ("a", "x"), ("b", ""), ("a", "x"), ("", "")])
    ]
    assert baselines.majority(bags) == "a"
    assert baselines.majority(bags[:3]) == "b"
    assert baselines.majority_class(bags) == "x"
    with pytest.raises(InputError, match="training bags with captions"):
        baselines.majority(bags[4:])
    with pytest.raises(InputError, match="training bags with classes"):
        baselines.majority_class(bags[4:])


def test_the_nearest_bags_caption_is_given(tmp_path: Path) -> None:
    def dyed(name: str, colour: tuple[int, int, int], caption: str = "") -> Bag:
        paths = []
        for i in range(2):
            path = tmp_path / f"{name}{i}.png"
            Image.fromarray(np.full((40, 40, 3), colour, np.uint8)).save(path)
            paths.append(path)
        return Bag(name, name, tuple(paths), caption)

    known = [dyed("r", (200, 40, 40), "red"), dyed("g", (40, 200, 40), "green"), dyed("u", (0, 0, 0))]
    asked = [dyed("a", (180, 60, 50)), dyed("b", (60, 190, 30)), dyed("u2", (0, 0, 0))]
    found = baselines.nearest(known, asked)
    assert (found["a"], found["b"]) == ("red", "green")
    assert found["u2"] in ("red", "green")  # never the bag without a caption
    row = baselines.colours(known[0])
    np.testing.assert_allclose(row[:9], [200, 40, 40, 0, 0, 0, 0, 0, 0])
    np.testing.assert_allclose(row[9:].reshape(3, 8).argmax(1), [6, 1, 1])
    np.testing.assert_allclose(row[9:].reshape(3, 8).sum(1), 1)
    torch.manual_seed(0)
    network = model.create("gnn_vitcap", **SMALL).eval()
    by_network = baselines.nearest(known, asked, baselines.embedding(network))
    assert (by_network["a"], by_network["b"]) == ("red", "green")
    with pytest.raises(InputError, match="without patches"):
        baselines.colours(Bag("x", "x", ()))


def test_the_cache_is_of_the_encoder_that_made_it(tmp_path: Path) -> None:
    """Other weights of a frozen encoder never meet embeddings of the old ones."""
    data = slides(tmp_path / "data", 6)
    for seed in (0, 1):
        torch.manual_seed(seed)
        network = model.create("gnn_vitcap", **SMALL).eval()
        found = _start.prepared(network, data.bags, tmp_path / "cache", True, torch.device("cpu"))
        want = inputs.embed(network, data.bags[2].patches)
        np.testing.assert_allclose(found[2].rows(range(len(want))), want.numpy(), rtol=1e-5, atol=1e-6)
    assert len(list((tmp_path / "cache").glob("*.npy"))) == 12


# --- export ---------------------------------------------------------------------------------------------------------


def test_a_bag_network_is_exported_and_answers_as_torch_does(tmp_path: Path) -> None:
    import onnxruntime

    from apps.medical.pathology_caption import exporting

    torch.manual_seed(0)
    config = model.configured("gnn_vitcap", {**SMALL, "language": "none"})
    network = model.build(config).eval()
    data = slides(tmp_path / "data", 4)
    embeddings = torch.cat([inputs.embed(network, b.patches) for b in data.bags])
    clustering.start(network.projection, network.clusters, embeddings)
    settings = bundle.Settings(
        "medical pathology caption", bundle.Network("gnn_vitcap", as_table(config)), inputs.contract(),
        bundle.Output({"a": 0, "b": 1}), bundle.Tile((32, 32), 0.0),
    )  # fmt: skip
    bundle.save(tmp_path / "run", network, settings, {})
    done = exporting.export(tmp_path / "run", tmp_path / "bag.onnx", patches=6)
    assert done.difference < 1e-3
    session = onnxruntime.InferenceSession(tmp_path / "bag.onnx", providers=["CPUExecutionProvider"])
    patches = [p for b in data.bags for p in b.patches][:6]
    pixels = inputs.tensor(np.stack([inputs.square(p, 32) for p in patches]))
    (answer,) = session.run(None, {session.get_inputs()[0].name: pixels.numpy()})
    with torch.no_grad():
        found = network(pixels)
    assert int(found.present.sum()) > 1
    np.testing.assert_allclose(answer, found.logits.numpy(), atol=1e-4)
    side = json.loads((tmp_path / "bag.json").read_text())
    assert "6 of one bag" in str(side)
    captions = model.create("gnn_vitcap", **{**SMALL, "classes": 0}).eval()
    with torch.no_grad():
        torch.testing.assert_close(exporting.OneBag(captions)(pixels), captions(pixels).embedding)


# --- from folders to bundles ----------------------------------------------------------------------------------------


def tabled(folder: Path, data: Found) -> Path:
    """The bags as a CSV of patches."""
    lines = ["image,bag,caption,label,patient,part"]
    for b in data.bags:
        lines += [f'{p.name},{b.id},"{b.caption}",{b.label},{b.group},{b.part}' for p in b.patches]
    (folder / "patches.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def test_a_folder_becomes_a_bundle_with_its_scores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from apps.medical.pathology_caption import training as commands

    made = slides(tmp_path / "data", 16, parts=("train", "train", "val"))
    odd = replace(made.bags[2], label="unheard of")  # a validation bag of a class that nothing was trained on
    folder = tabled(tmp_path / "data", replace(made, bags=(*made.bags[:2], odd, *made.bags[3:])))
    options = Options(settings=SMALL, encoder="frozen")
    (found,) = commands.run(folder, tmp_path / "run", options, RECIPE, device="cpu")
    validation = found.report["validation"]
    assert validation["captions"]["bags"] == 5
    assert set(validation["baselines"]) == {"majority caption", "nearest-neighbour caption"}
    assert not (tmp_path / "run" / training.CACHE).exists()
    assert "p1" not in (tmp_path / "run" / "report.json").read_text()  # no patient
    again = commands.run(folder, tmp_path / "run", options, RECIPE, device="cpu")
    assert again[0].report["trained_on"] == found.report["trained_on"]
    assert "already trained" in capsys.readouterr().out
    folds = commands.run(folder, tmp_path / "folds", replace(options, folds=2), replace(RECIPE, epochs=1))
    assert [b.folder.name for b in folds] == ["fold_0", "fold_1"]


def test_weights_become_a_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from apps.medical.pathology_caption import training as commands
    from core import weights

    torch.manual_seed(0)
    network = model.create("gnn_vitcap", **SMALL, classes=3, language="none")
    weights.save(network, tmp_path / "own.safetensors")
    made = commands.import_(tmp_path / "own.safetensors", tmp_path / "run", "gnn_vitcap", ("a", "b", "c"), SMALL)
    assert made.settings.output.classes == {"a": 0, "b": 1, "c": 2}
    assert torch.equal(model.from_bundle(made).clusters.centres, network.clusters.centres)
    with pytest.raises(SettingError, match="--classes names 2, the network answers 3"):
        commands.import_(tmp_path / "own.safetensors", tmp_path / "no", "gnn_vitcap", ("a", "b"), SMALL)
    weights.save(network.encoder.backbone, tmp_path / "vit.safetensors")
    made = commands.import_(tmp_path / "vit.safetensors", tmp_path / "part", "gnn_vitcap", None, {**SMALL, "size": 32})
    assert made.report["untrained"] == "all but its patch encoder"
    assert "begins with it" in capsys.readouterr().out


def test_the_demonstrations_parts_are_of_patients(tmp_path: Path) -> None:
    from apps.medical.pathology_caption import demo

    made = slides(tmp_path / "patches_captions", 16)
    lines = [f'{b.id},{b.label},"{b.caption}"' for b in made.bags]
    (tmp_path / "captions.csv").write_text("\n".join(["id,subtype,text", *lines]) + "\n")
    groups = [f"{b.id},{b.group}" for b in made.bags]
    (tmp_path / "groups.csv").write_text("\n".join(["case,patient", *groups]) + "\n")
    found = demo.divided(tmp_path)
    held = {part: {b.group for b in found.bags if b.part == part} for part in demo.PARTS}
    assert all(held.values())
    assert sum(len(g) for g in held.values()) == 8
    assert [b.caption for b in found.bags] == [b.caption for b in made.bags]
    assert demo.divided(tmp_path) == found
