"""Benchmark documents and ONNX files."""

import json
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from core import bench, bench_report, export, memory, registry, weights
from core.data.contract import published
from core.errors import InputError, MissingExtraError, SettingError, UnknownNameError, WeightsError

SMALL = {
    "swin/tiny": {"dim": 16, "depths": (1, 2), "heads": (1, 2), "image_size": 56},
    "vit/tiny": {"dim": 32, "depth": 2, "heads": 2, "image_size": 32},
}


@pytest.fixture(autouse=True)
def _shrunken(monkeypatch):
    """Variants that take no time: vit/a, vit/b (of other depth)."""
    module = registry.family("vit")
    base = replace(module.VARIANTS["tiny"], dim=32, depth=2, heads=2, image_size=32)
    monkeypatch.setitem(module.VARIANTS, "a", base)
    monkeypatch.setitem(module.VARIANTS, "b", replace(base, depth=1))


@pytest.fixture(scope="module")
def document():
    settings = bench.Settings((32, 32), threads=1, rounds=3)
    return bench.benchmark("vit/tiny", "timm:vit_tiny_patch16_224", [1, 2], settings)


def test_the_same_weights_give_the_same_answers(document):
    assert document["weights"] == "same"
    assert document["difference"] < 1e-4


def test_the_document_says_what_was_measured(document):
    assert [r["batch"] for r in document["results"]] == [1, 2]
    for result in document["results"]:
        assert result["matrix_product_flops"] > 1e8
        ratio = result["ratio"]
        assert ratio["low"] <= ratio["median"] <= ratio["high"]
        for net in result["networks"]:
            assert net["latency"]["low"] <= net["latency"]["median"] <= net["latency"]["high"]
            assert net["throughput"] == pytest.approx(result["batch"] / net["latency"]["median"])
            assert 0 < net["share"] < 2
        ours, theirs = result["networks"]
        assert (ours["name"], theirs["name"]) == ("vit/tiny", "timm:vit_tiny_patch16_224")
        assert ours["parameters"] == theirs["parameters"]
        assert ours["macs"] == pytest.approx(theirs["macs"], rel=0.02)
    for key in ("commit", "torch", "threads", "cpu", "dtype", "size", "date", "rounds", "device"):
        assert key in document
    assert document["threads"] == 1


def test_the_table_and_the_file(document, tmp_path, monkeypatch):
    said = bench_report.text(document)
    assert "same weights, answers differ by" in said
    assert said.count("vit/tiny") == 2
    assert "batch 2: ratio " in said
    assert "not the same function" not in said
    assert "not the same function" in bench_report.text({**document, "difference": 0.1})
    path = bench_report.save(document, tmp_path / "x.json")
    assert json.loads(path.read_text()) == json.loads(json.dumps(document))
    name = "vit-tiny--vs-timm-vit_tiny_patch16_224--32--float32--1t.json"
    assert bench_report.default_name(document) == name
    monkeypatch.setattr(bench_report, "RESULTS", tmp_path / "results")
    assert bench_report.save(document, None) == tmp_path / "results" / name
    monkeypatch.setattr(bench_report, "CHECKOUT", tmp_path)
    assert bench_report.save(document, None) is None
    assert bench_report.commit() is None


def test_training_half_precision_and_our_own_opponents():
    settings = bench.Settings((32, 32), dtype="bfloat16", threads=1, rounds=1, train=True)
    document = bench.benchmark("vit/a", "vit/a", [1], settings)
    assert document["weights"] == "same"
    assert document["difference"] == 0
    inference = bench.pair("vit/a", None, bench.Settings((32, 32))).contenders[0].macs
    assert 2.5 < document["results"][0]["networks"][0]["macs"] / inference < 3.01
    assert "forward and backward" in bench_report.text(document)


def test_networks_that_differ_keep_random_weights():
    settings = bench.Settings((32, 32))
    pair = bench.pair("vit/a", "vit/b", settings)
    assert pair.weights.startswith("random: ")
    assert pair.difference is None
    assert bench.pair("vit/a", "timm:resnet18", settings).weights.startswith("random: ")


def test_pairs_alternate_and_turn(monkeypatch):
    """Each round times every network once, and the order turns."""
    seen = []
    pair = bench.pair("vit/a", "vit/a", bench.Settings((32, 32)))
    for i, contender in enumerate(pair.contenders):
        contender.run = lambda image, i=i: seen.append(i)
    monkeypatch.setattr(bench._Timed, "calibrate", lambda self: None)
    bench.measure(pair, 1, bench.Settings((32, 32), rounds=4), warm_up=0)
    assert seen[2:] == [0, 1, 1, 0, 0, 1, 1, 0]  # one pass each before it, for the memory


def test_threads_are_put_back():
    before = torch.get_num_threads()
    with pytest.raises(UnknownNameError, match="no timm model named 'vit_tny_patch16_224'; did you mean vit_tiny"):
        bench.benchmark("vit/tiny", "timm:vit_tny_patch16_224", [1], bench.Settings(threads=before + 3))
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"rounds": 0}, "rounds is at least 1, got 0"),
        ({"threads": 0}, "threads is at least 1, got 0"),
        ({"size": (0, 8)}, "size is at least 1 pixel, got 0 x 8"),
        ({"device": "tpu"}, "device is cpu or cuda, got 'tpu'"),
    ],
)
def test_wrong_settings(wrong, message):
    with pytest.raises(SettingError, match=message):
        bench.Settings(**wrong)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_no_gpu():
    with pytest.raises(SettingError, match="has no CUDA device"):
        bench.Settings(device="cuda")


def test_memory_is_the_peak():
    """An array of 80 MB that lives only inside the call."""
    got = memory.growth(lambda: torch.ones(20_000_000).sum(), "cpu")
    if got is None:
        pytest.skip("this system does not tell a process its peak")
    assert got == pytest.approx(80e6, rel=0.2)


def small(name, classes=5):
    torch.manual_seed(0)
    return registry.create(name, classes=classes, **SMALL[name]).eval()


@pytest.mark.parametrize("name", SMALL)
def test_export_answers_as_the_network(name, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model, side = small(name), SMALL[name]["image_size"]
    done = export.export(model, tmp_path / "net.onnx", (side, side), name=name, batch=2)
    assert done.difference < export.BOUND
    assert done.exporter == "dynamo"
    image = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(7))
    got = onnxruntime.InferenceSession(done.path).run(["logits"], {"image": image.numpy()})[0]
    with torch.no_grad():
        want = model(image)
    assert float((torch.from_numpy(got) - want).abs().max() / want.std()) < 1e-3
    about = json.loads(done.side.read_text())
    assert done.side == tmp_path / "net.json"
    assert about["input"]["shape"] == [2, 3, side, side]
    assert (about["input"]["mean"], about["input"]["channels"]) == ([0.485, 0.456, 0.406], ["red", "green", "blue"])
    assert about["output"] == [
        {"name": "logits", "shape": [2, 5], "dtype": "float32", "meaning": about["output"][0]["meaning"], "classes": 5}
    ]
    assert about["made_by"]["exporter"] == "dynamo"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.json", "net.onnx"]


@pytest.mark.slow
@pytest.mark.parametrize("family", registry.families())
def test_every_family_exports(family, tmp_path):
    module = registry.family(family)
    variant = next(iter(module.VARIANTS))
    axes = module.FACTS.axes(variant)
    done = export.export(
        registry.create(f"{family}/{variant}", classes=3), tmp_path / "x.onnx", axes, name=f"{family}/{variant}"
    )
    assert done.difference < export.BOUND


class Tiny(nn.Module):
    """Answers with a pyramid of two levels."""

    def __init__(self):
        super().__init__()
        self.config = registry.lookup("vit/tiny")[1]
        self.conv = nn.Conv2d(3, 4, 2, 2)

    def forward(self, image):
        x = self.conv(image)
        return [x, x[..., ::2, ::2] * 2]


def test_a_pyramid_is_exported_level_by_level(tmp_path):
    pytest.importorskip("onnxscript")
    done = export.export(Tiny(), tmp_path / "x.onnx", (8, 12), name="vit/tiny")
    outputs = json.loads(done.side.read_text())["output"]
    assert [(o["name"], o["shape"]) for o in outputs] == [("level0", [1, 4, 4, 6]), ("level1", [1, 4, 2, 3])]


def test_a_file_that_answers_otherwise_is_refused(tmp_path, monkeypatch):
    """Nothing new is left, and what was there stays."""
    pytest.importorskip("onnxscript")
    (tmp_path / "x.onnx").write_text("old")
    honest, model, spoilt = export._write, Tiny(), Tiny()
    monkeypatch.setattr(export, "_write", lambda _, image, *rest: honest(spoilt, image, *rest))
    with pytest.raises(
        export.ExportError, match=r"x\.onnx: not written, onnxruntime's answer differs .* of its spread"
    ):
        export.export(model, tmp_path / "x.onnx", (8, 8), name="vit/tiny")
    assert [p.name for p in tmp_path.iterdir()] == ["x.onnx"]
    assert (tmp_path / "x.onnx").read_text() == "old"


def test_the_older_exporter_is_the_fallback_and_said(tmp_path, monkeypatch):
    pytest.importorskip("onnxscript")
    real = torch.onnx.export

    def failing(*arguments, dynamo, **more):
        if dynamo:
            raise RuntimeError("not today\nat all")
        return real(*arguments, dynamo=False, **more)

    monkeypatch.setattr(torch.onnx, "export", failing)
    done = export.export(Tiny(), tmp_path / "x.onnx", (8, 8), name="vit/tiny")
    assert done.exporter == "torchscript"
    monkeypatch.setattr(torch.onnx, "export", lambda *a, **k: (_ for _ in ()).throw(RuntimeError("no\nway")))
    message = r"no exporter takes this network \(dynamo: no; torchscript: no\)"
    with pytest.raises(export.ExportError, match=message):
        export.export(Tiny(), tmp_path / "y.onnx", (8, 8), name="vit/tiny")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.json", "x.onnx"]


def test_difference_is_relative_and_never_nan(tmp_path):
    pytest.importorskip("onnxscript")
    export.export(Tiny(), tmp_path / "x.onnx", (8, 8), name="vit/tiny")
    image = torch.zeros(1, 3, 8, 8)
    wrong = [torch.full((1, 4, 4, 4), math.nan), torch.zeros(1, 4, 2, 2)]
    assert export._difference(tmp_path / "x.onnx", image, wrong) == math.inf


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_export_without_a_package(package, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "find_spec", lambda name: None if name == package else object())
    with pytest.raises(MissingExtraError, match=rf"^{package} is not installed; .* 'glocal\[export\]'"):
        export.ready(tmp_path / "x.onnx")


def test_wrong_paths(tmp_path):
    pytest.importorskip("onnxscript")
    with pytest.raises(InputError, match=r"x\.pt: the file's name must end in \.onnx"):
        export.ready(tmp_path / "x.pt")
    with pytest.raises(InputError, match="no such folder as"):
        export.ready(tmp_path / "none" / "x.onnx")


def test_networks_with_our_weights(tmp_path):
    """A classifier and a backbone of ours, and the class count that differs."""
    saved = registry.create("vit/a", classes=4)
    weights.save(saved, tmp_path / "c.safetensors")
    weights.save(saved.backbone, tmp_path / "b.safetensors")
    model = export.network("vit/a", weights_file=tmp_path / "c.safetensors")
    assert torch.equal(model.head.fc.weight, saved.head.fc.weight)
    assert not model.training
    bare = export.network("vit/a", weights_file=tmp_path / "b.safetensors")
    assert torch.equal(bare.norm.weight, saved.backbone.norm.weight)
    with pytest.raises(InputError, match=r"c\.safetensors: has 4 classes, 7 were asked for"):
        export.network("vit/a", weights_file=tmp_path / "c.safetensors", classes=7)
    with pytest.raises(InputError, match=r"b\.safetensors: has no classes, 7 were asked for"):
        export.network("vit/a", weights_file=tmp_path / "b.safetensors", classes=7)
    with pytest.raises(WeightsError, match=r"c\.safetensors"):
        export.network("resnet/18", weights_file=tmp_path / "c.safetensors")


def test_networks_without_weights():
    assert export.network("vit/a", classes=4, size=(32, 48)).backbone.config.image_size == (32, 48)
    assert not hasattr(export.network("vit/a"), "head")


@pytest.mark.parametrize(
    ("name", "size", "mean", "resize", "crop"),
    [
        ("swin/tiny", (224, 224), 0.485, "short side to 256 pixels, bicubic", (224, 224)),
        ("swin/base_384", (384, 384), 0.485, "to 384 x 384 pixels, bicubic", None),
        ("cswin/tiny", (224, 224), 0.485, "short side to 248 pixels, bicubic", (224, 224)),
        ("vit/flax_base", (224, 224), 0.5, "short side to 256 pixels, bicubic", (224, 224)),
        ("vit/clip_base", (224, 224), 0.48145466, "short side to 224 pixels, bicubic", (224, 224)),
        ("swin/tiny", (224, 320), 0.485, "to 224 x 320 pixels, bicubic", None),
    ],
)
def test_input_contract(name, size, mean, resize, crop):
    contract = published(name, 3, size)
    assert (contract.mean[0], contract.resize, contract.crop) == (mean, resize, crop)


def test_input_contract_of_other_channels_claims_nothing():
    contract = published("swin/tiny", 5, (64, 64))
    assert (len(contract.channels), contract.mean, contract.std, contract.resize) == (5, None, None, "")
