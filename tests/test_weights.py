"""Weights files, good and bad; each bad one gets one sentence that names it."""

from __future__ import annotations

import argparse
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from core import registry
from core.checkpoints import read_checkpoint
from core.errors import SettingError, UnknownNameError, WeightsError
from core.weights import KeyMap, convert, load, load_published, save

SHAPE = {"dim": 24, "depths": (1, 1), "heads": (2, 3)}


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch exploded",)


def published_swin(**extra: torch.Tensor) -> dict[str, torch.Tensor]:
    """A small Swin's state under the authors' names."""
    model = registry.create("swin/tiny", classes=4, **SHAPE)
    renames = [
        ("backbone.stages.0.merge.patches.conv", "patch_embed.proj"),
        ("backbone.stages.0.merge.patches.", "patch_embed."),
        ("backbone.stages.1.merge", "layers.0.downsample"), ("backbone.stages", "layers"),
        ("token_mixer.bias_table", "attn.relative_position_bias_table"), ("token_mixer", "attn"),
        ("channel_mixer", "mlp"), ("head.norm", "norm"), ("head.fc", "head"),
    ]  # fmt: skip
    state = {}
    for name, value in model.state_dict().items():
        for ours, theirs in renames:
            name = name.replace(ours, theirs)
        state[name] = value
    return state | extra


def one_sentence(error: BaseException, path: Path) -> str:
    text = str(error)
    assert str(path) in text
    assert "\n" not in text
    return text


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, write in {
        "new.pth": lambda p: torch.save({"model": Bomb()}, p),
        "old.pth": lambda p: torch.save({"model": Bomb()}, p, _use_new_zipfile_serialization=False),
        "raw.pkl": lambda p: p.write_bytes(pickle.dumps({"model": Bomb()})),
    }.items():
        write(tmp_path / name)
        with pytest.raises(WeightsError) as caught:
            load_published("swin/tiny", tmp_path / name)
        assert "refused, because reading it would run code" in one_sentence(caught.value, tmp_path / name)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("suffix", ["pth", "safetensors", "npz"])
def test_a_file_cut_off(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"cut.{suffix}"
    state = published_swin()
    if suffix == "pth":
        torch.save({"model": state}, path)
    elif suffix == "npz":
        np.savez(path, **{n: v.numpy() for n, v in state.items()})
    else:
        save_file(state, path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(WeightsError) as caught:
        load_published("swin/tiny", path, **SHAPE)
    assert "cut off" in one_sentence(caught.value, path)


def test_missing_empty_and_foreign_files(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no such weights file"):
        read_checkpoint(tmp_path / "none.pth")
    torch.save({"model": {"epoch": 3}}, tmp_path / "empty.pth")
    with pytest.raises(WeightsError, match="holds no named tensors"):
        read_checkpoint(tmp_path / "empty.pth")
    (tmp_path / "text.pth").write_text("not weights at all")
    with pytest.raises(WeightsError, match="cut off, or not a PyTorch weights file"):
        read_checkpoint(tmp_path / "text.pth")
    torch.save({"model": published_swin()}, tmp_path / "model.pth")
    with pytest.raises(WeightsError, match="has no 'model_ema'"):
        read_checkpoint(tmp_path / "model.pth", wrapper="model_ema")


def test_another_network_lists_what_is_left_both_ways(tmp_path: Path) -> None:
    path = tmp_path / "vit.pth"
    vit = registry.create("vit/tiny", depth=1, classes=4)
    torch.save(vit.state_dict(), path)
    with pytest.raises(WeightsError) as caught:
        load_published("swin/tiny", path, **SHAPE)
    text = one_sentence(caught.value, path)
    assert "in the file, not in the network" in text
    assert "and" in text
    state = published_swin(**{"layers.9.extra": torch.zeros(2)})
    del state["norm.bias"]
    model = registry.create("swin/tiny", classes=4, **SHAPE)
    with pytest.raises(WeightsError) as caught:
        convert(state, registry.family("swin").PUBLISHED[-1], model)
    assert "layers.9.extra: in the file, not in the network" in str(caught.value)
    assert "head.norm.bias: in the network, not in the file" in str(caught.value)


def test_another_variant_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "small.pth"
    torch.save(timm.create_model("vit_small_patch16_224", depth=2).state_dict(), path)
    with pytest.raises(WeightsError) as caught:
        load_published("vit/base", path, depth=2)
    assert "holds a network with dim 384, and vit/base has 768" in one_sentence(caught.value, path)


def test_wrappers_and_prefixes(tmp_path: Path) -> None:
    state = published_swin()
    arguments = argparse.Namespace(lr=1e-3, output="run")
    forms: dict[str, Any] = {
        "plain": state,
        "model": {"model": state, "optimizer": {"state": {}}, "args": arguments},
        "module": {"state_dict": {f"module.{n}": v for n, v in state.items()}},
        "compiled": {"model": {f"_orig_mod.module.{n}": v for n, v in state.items()}},
    }
    for name, form in forms.items():
        torch.save(form, tmp_path / name)
        model = load_published("swin/tiny", tmp_path / name, **SHAPE)
        torch.testing.assert_close(model.head.fc.weight, state["head.weight"], rtol=0, atol=0)
    torch.save({f"tower.{n}": v for n, v in state.items()} | {"other": torch.zeros(1)}, tmp_path / "inside.pth")
    load_published("swin/tiny", tmp_path / "inside.pth", prefix="tower.", **SHAPE)
    with pytest.raises(WeightsError, match=r"no name starts with 'towr\.'"):
        load_published("swin/tiny", tmp_path / "inside.pth", prefix="towr.", **SHAPE)


def test_keymap_joins_transforms_and_checks() -> None:
    model = nn.Module()
    model.qkv = nn.Linear(2, 6)
    published = {
        **{f"{n}.weight": torch.full((2, 2), float(i)) for i, n in enumerate(("query", "key", "value"))},
        **{f"{n}.bias": torch.full((2,), float(i)) for i, n in enumerate(("value", "key", "query"))},
        "scale": torch.ones(3),
    }
    rename = [(rf"^{n}\.(\w+)$", rf"qkv.\1[{i}]") for i, n in enumerate(("query", "key", "value"))]
    keymap = KeyMap(
        rename=rename, constants={"^scale$": lambda v: bool((v == 1).all())}, transform={"bias": lambda v: -v}
    )
    state = convert(published, keymap, model)
    assert state["qkv.weight"][:, 0].tolist() == [0, 0, 1, 1, 2, 2]
    assert state["qkv.bias"].tolist() == [-2, -2, -1, -1, 0, 0]
    with pytest.raises(WeightsError, match="scale: stored as a parameter, but not the constant"):
        convert(published | {"scale": torch.zeros(3)}, keymap, model)


def test_own_weights_round_trip(tmp_path: Path) -> None:
    model, other = (registry.create("swin/tiny", classes=4, **SHAPE) for _ in range(2))
    save(model, tmp_path / "weights.safetensors")
    load(other, tmp_path / "weights.safetensors")
    for name, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[name])
    assert [p.name for p in tmp_path.iterdir()] == ["weights.safetensors"]
    with pytest.raises(WeightsError, match=r"weights.safetensors: .*head.fc.weight: \(4, 48\) in the file, \(9, 48\)"):
        load(registry.create("swin/tiny", classes=9, **SHAPE), tmp_path / "weights.safetensors")


def test_unknown_names_and_wrong_overrides() -> None:
    with pytest.raises(UnknownNameError, match=r"no backbone family named 'swim'; did you mean swin"):
        registry.create("swim/tiny")
    with pytest.raises(UnknownNameError, match=r"no swin variant named 'swin/tinny'; did you mean swin/tiny"):
        registry.create("swin/tinny")
    with pytest.raises(UnknownNameError, match="no swin variant named 'swin/'"):
        registry.create("swin")
    with pytest.raises(UnknownNameError, match=r"no swin setting named 'drop_pth'; did you mean drop_path"):
        registry.create("swin/tiny", drop_pth=0.1)
    with pytest.raises(SettingError, match=r"swin setting 'depths' is tuple\[int, ...\], got 'many'"):
        registry.create("swin/tiny", depths="many")
    with pytest.raises(SettingError, match="4 depths but 2 heads"):
        registry.create("swin/tiny", heads=(3, 6))
    assert registry.create("swin/tiny", depths=[1, 1, 1, 1], drop_path=0).config.depths == (1, 1, 1, 1)


def test_wrong_shapes_say_what_is_wanted() -> None:
    model = registry.create("swin/tiny", depths=(1, 1, 1, 1))
    with pytest.raises(ValueError, match=r"expected a tensor of shape \(B C=3 H W\), got \(1, 4, 32, 32\)"):
        model(torch.zeros(1, 4, 32, 32))
    with pytest.raises(ValueError, match=r"expected a tensor of shape \(B C=3 H W\), got \(3, 32, 32\)"):
        model(torch.zeros(3, 32, 32))


def test_numpy_values_beside_the_weights_are_read(tmp_path: Path) -> None:
    """As nnU-Net keeps its losses and plan there; arrays of objects, which could hold code, are refused."""
    path = tmp_path / "a.pth"
    logs = {"losses": [np.float64(0.5), np.float32(1.0)], "plan": np.array([320, 320])}
    torch.save({"network_weights": {"a": torch.ones(2)}, "logging": logs}, path)
    assert torch.equal(read_checkpoint(path)["a"], torch.ones(2))
    torch.save({"network_weights": {"a": torch.ones(2)}, "logging": np.array([print], dtype=object)}, path)
    with pytest.raises(WeightsError, match=r"a.pth: (refused|cut off, or not)"):
        read_checkpoint(path)
