"""Bundles that come from elsewhere and go elsewhere: import, export, several processes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_medical_networks import DIMS, release
from test_medical_segment import grey_png, made, segment

from apps.medical.segmentation import model
from apps.medical.segmentation.pipeline import Pipeline
from core import bundle


def published(path: Path, **settings: object) -> torch.nn.Module:
    """A checkpoint of nnU-Net's form with fresh weights of MONAI's DynUNet."""
    torch.manual_seed(0)
    network = model.create("dynunet", **{"patch_size": [32, 32], "width": 8, "widest": 16, **settings})
    torch.save({"network_weights": network.state_dict(), "current_epoch": 7}, path)
    return network.eval()


def test_import_makes_a_bundle_that_answers_as_the_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network = published(tmp_path / "a.pth", in_channels=1, classes=3)
    words = ["--network", "dynunet", "--patch", "32", "32", "--classes", "background", "left", "right"]
    assert segment("import", tmp_path / "a.pth", "--out", tmp_path / "b", *words, "--channels", "MR") == 0
    found = bundle.load(tmp_path / "b")
    assert dict(found.settings.output.classes) == {"background": 0, "left": 1, "right": 2}
    assert found.report["validation"] is None
    picture = np.random.default_rng(0).integers(0, 255, (32, 32)).astype(np.uint8)
    image = torch.from_numpy(picture.astype(np.float32))[None, None]
    with torch.inference_mode():
        want = network((image - image.mean()) / image.std(correction=0)).argmax(1)[0].numpy()
    assert (Pipeline.load(tmp_path / "b")(picture).mask == want).mean() > 0.999
    capsys.readouterr()
    for wrong, told in (
        (["--classes", "background", "left"], "--classes names 2, the network answers 3"),
        (["--channels", "MR", "CT"], "--channels names 2, the network takes 1"),
        (["--channels", "CT"], "a CT network needs"),
    ):
        assert segment("import", tmp_path / "a.pth", "--out", tmp_path / "c", *words[:5], *wrong) == 2
        assert told in capsys.readouterr().err
        assert not (tmp_path / "c").exists()


def test_an_imported_encoder_is_what_training_begins_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """VMamba's ImageNet file in its authors' names, into swin_umamba: a bundle to begin with, not to predict by."""
    state = release(3)
    torch.save({"model": state}, tmp_path / "vssm.pth")
    small = [f"{k}={list(v)}" for k, v in DIMS.items()]
    words = ["--network", "swin_umamba", "--classes", "background", "organ", "--channels", "MR", "--set", *small]
    assert segment("import", tmp_path / "vssm.pth", "--out", tmp_path / "b", *words) == 0
    assert "is untrained: begin with it" in capsys.readouterr().out
    found = bundle.load(tmp_path / "b")
    assert found.settings.network.config["classes"] == 2
    assert segment("predict", tmp_path / "b", grey_png(tmp_path / "a.png"), "--out", tmp_path / "out") == 2
    assert "cannot segment yet" in capsys.readouterr().err
    filled = bundle.fill(model.create("swin_umamba", **found.settings.network.config), found)
    got = filled.state_dict()["encoder.stages.2.merge.reduction.weight"]
    assert torch.equal(got, state["layers.1.downsample.reduction.weight"])


def test_export_of_a_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import onnxruntime

    folder = made(tmp_path / "b", spacing=(1.5, 1.5), plane="axial")
    assert segment("export", folder, tmp_path / "net.onnx") == 0
    assert "onnxruntime answers as torch does" in capsys.readouterr().out
    side = json.loads((tmp_path / "net.json").read_text())
    assert side["input"]["spacing"] == [1.5, 1.5]
    assert side["input"]["classes"] == {"background": 0, "liver": 1, "spleen": 2}
    session = onnxruntime.InferenceSession(str(tmp_path / "net.onnx"))
    (answer,) = session.run(None, {"image": np.zeros((1, 1, 32, 32), np.float32)})
    assert answer.shape == (1, 3, 32, 32)
    assert segment("export", folder, tmp_path / "net.txt") == 2


def test_two_workers_write_what_one_does(tmp_path: Path) -> None:
    folder = made(tmp_path / "b")
    for i in range(4):
        grey_png(tmp_path / "in" / f"{i}.png", (33, 40), i)
    for count in (1, 2):
        words = ["--out", tmp_path / str(count), "--workers", count, "--no-overlays"]
        assert segment("predict", folder, tmp_path / "in", *words) == 0
    for i in range(4):
        one, two = (np.asarray(Image.open(tmp_path / f"{k}" / f"{i}.png")) for k in (1, 2))
        assert (one == two).mean() > 0.999  # the number of threads may move the last digit
