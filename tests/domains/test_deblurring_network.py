"""Deblurring's networks by name: settings, counts, the authors' files, our own, and ONNX."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from parity import filled
from torch import Tensor, nn

from apps.deblurring import model
from core import bundle, export, registry, weights
from core.errors import SettingError, UnknownNameError, WeightsError

SMALL: dict[str, Any] = {"dims": [8, 16, 32], "depths": [1, 2, 2, 2, 1], "heads": [1, 1, 2, 2, 1]}
OURS_TO_THEIRS = [
    ("embed.", "input_proj.proj.0."), ("out.", "output_proj.proj.0."), ("bottleneck.", "conv."),
    ("encoder.", "encoderlayer_"), ("decoder.", "decoderlayer_"),
]  # fmt: skip
INSIDE = [
    ("attention.bias_table", "attn.relative_position_bias_table"), ("attention.proj.", "attn.proj."),
    ("ffn.fc1.", "mlp.linear1.0."), ("ffn.depthwise.", "mlp.dwconv.0."), ("ffn.fc2.", "mlp.linear2.0."),
    ("predictor.local1.", "score_predictor.in_conv.0."), ("predictor.norm.", "score_predictor.in_conv.2."),
    ("predictor.local2.", "score_predictor.in_conv.3."), ("predictor.out1.", "score_predictor.out_conv.0."),
    ("predictor.out2.", "score_predictor.out_conv.2."), ("predictor.out3.", "score_predictor.out_conv.4."),
]  # fmt: skip


def published(network: nn.Module) -> dict[str, Tensor]:
    """A network's state under the authors' names, filled, with the index tables that they store."""
    found: dict[str, Tensor] = {}
    for name, value in network.state_dict().items():
        for ours, theirs in OURS_TO_THEIRS:
            if name.startswith(ours):
                name = theirs + name.removeprefix(ours)
                break
        if name.startswith(("downs.", "ups.")):
            kind, number, rest = name.split(".")
            name = f"dowsample_{number}.conv.0.{rest}" if kind == "downs" else f"upsample_{number}.deconv.0.{rest}"
        for ours, theirs in INSIDE:
            name = name.replace(ours, theirs)
        if name.endswith(".modulator"):
            name += ".weight"
        if ".attention.qkv." in name:
            leaf, dim = name.rsplit(".", 1)[1], value.shape[0] // 3
            for part, size in (("to_q", dim), ("to_kv", 2 * dim)):
                theirs = name.replace(f"attention.qkv.{leaf}", f"attn.qkv.{part}.{leaf}")
                found[theirs] = filled(theirs, (size, *value.shape[1:]))
            continue
        found[name] = filled(name, tuple(value.shape))
    tables = [name for name in found if name.endswith("relative_position_bias_table")]
    return found | {t.replace("bias_table", "index"): torch.zeros(64, 64, dtype=torch.long) for t in tables}


def test_the_registry_knows_it() -> None:
    network = registry.create("deblurring/lmd_vit", **SMALL)
    assert network.multiple == 32
    assert set(model.FACTS) == set(model.NETWORKS)
    with pytest.raises(UnknownNameError, match="did you mean lmd_vit"):
        model.create("lmd_vitt")
    with pytest.raises(UnknownNameError, match="did you mean depths"):
        model.create("lmd_vit", depth=[1])
    with pytest.raises(SettingError, match="window"):
        model.create("lmd_vit", window=2.5)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_an_authors_file_becomes_a_network(tmp_path: Path, prefix: str) -> None:
    torch.manual_seed(0)
    config = model.configured("lmd_vit", SMALL)
    state = published(model.build(config))
    torch.save({"state_dict": {prefix + n: v for n, v in state.items()}, "epoch": 3}, tmp_path / "model_LMDVIT.pth")
    network, taken = model.import_weights(tmp_path / "model_LMDVIT.pth", "lmd_vit", config)
    assert not network.training
    assert taken.config == config
    assert taken.sentence("file") == f"network of lmd_vit from file: {len(network.state_dict())} tensors"
    qkv = network.encoder[1].blocks[1].attention.qkv.weight  # type: ignore[union-attr,index]
    parts = [state[f"encoderlayer_1.blocks.1.attn.qkv.{part}.weight"] for part in ("to_q", "to_kv")]
    assert torch.equal(qkv.detach(), torch.cat(parts))  # type: ignore[arg-type]
    again = model.create("lmd_vit", **SMALL)
    model.initialise(again, "lmd_vit", tmp_path / "model_LMDVIT.pth")
    assert all(
        torch.equal(a, b) for a, b in zip(again.state_dict().values(), network.state_dict().values(), strict=True)
    )


def test_shapes_say_what_arguments_leave_open() -> None:
    changed = SMALL | {"window": 4, "ratio": 2.0, "prune": [True, False, True, True, True], "in_channels": 4}
    config = model.configured("lmd_vit", changed)
    network = model.build(config)
    for state in (published(network), network.state_dict()):
        shapes = {n: tuple(v.shape) for n, v in state.items()}
        assert model.from_published({}, shapes, model.NETWORKS["lmd_vit"]) == config
    plain = model.build(model.configured("lmd_vit", SMALL | {"modulator": False}))
    shapes = {n: tuple(v.shape) for n, v in published(plain).items()}
    found = model.from_published({"img_size": 256, "drop_path_rate": 0.2}, shapes, model.NETWORKS["lmd_vit"])
    assert not found.modulator
    assert (found.nominal, found.drop_path) == (256, 0.2)
    with pytest.raises(KeyError):
        model.from_published({}, {"patch_embed.weight": (1,)}, model.NETWORKS["lmd_vit"])


def test_files_of_another_network_are_refused(tmp_path: Path) -> None:
    state = published(model.create("lmd_vit", **SMALL))
    torch.save({"state_dict": state}, tmp_path / "small.pth")
    with pytest.raises(WeightsError, match=r"small\.pth: holds a network with dims"):
        model.import_weights(tmp_path / "small.pth", "lmd_vit")
    config = model.configured("lmd_vit", SMALL)
    torch.save({n: v for n, v in state.items() if "norm2" not in n}, tmp_path / "cut.pth")
    with pytest.raises(WeightsError, match=r"cut\.pth: .*norm2\.weight: in the network, not in the file"):
        model.import_weights(tmp_path / "cut.pth", "lmd_vit", config)
    torch.save({"net.weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match=r"other\.pth: not a lmd_vit file"):
        model.import_weights(tmp_path / "other.pth", "lmd_vit", config)
    with pytest.raises(WeightsError, match=r"no such weights file"):
        model.import_weights(tmp_path / "none.pth", "lmd_vit", config)


def test_our_own_files_and_bundles_come_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = model.create("lmd_vit", **SMALL).eval()
    weights.save(network, tmp_path / "own.safetensors")
    loaded, _ = model.import_weights(tmp_path / "own.safetensors", "lmd_vit", network.config)
    image = torch.rand(1, 3, 32, 64)
    with torch.no_grad():
        assert torch.equal(loaded(image).image, network(image).image)
    settings = bundle.Settings("deblurring", bundle.Network("lmd_vit", SMALL))
    bundle.save(tmp_path / "made", network, settings, {})
    fresh = model.create("lmd_vit", **SMALL).eval()
    assert "tensors" in model.initialise(fresh, "lmd_vit", tmp_path / "made")
    with torch.no_grad():
        assert torch.equal(fresh(image).image, network(image).image)


def test_onnx_gives_the_same_numbers(tmp_path: Path) -> None:
    """Through the form in which no shape hangs on values; windows that are left out stay as they were."""
    pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    network = model.create("lmd_vit", **{**SMALL, "dims": [8, 16], "depths": [1, 1, 1], "heads": [1, 1, 1]}).eval()
    image = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        for p in network.parameters():
            p += 0.2 * torch.randn_like(p)
        for i, stage in enumerate(network.stages()):  # each keeps about half of its windows
            predictor = stage.decisions[0].predictor
            assert predictor is not None
            score = network(image).scores[i]
            predictor.out3.bias[0] -= (score[:, 0] - score[:, 1]).median()
        found = network(image)
        assert any(0 < float(k.mean()) < 1 for k in found.keeps)
        torch.testing.assert_close(model.Dense(network)(image), torch.cat([found.image, found.blur], 1))
    done = export.export(
        model.Dense(network), tmp_path / "a.onnx", (32, 32), name="lmd_vit", contract={"channels": ["r", "g", "b"]}
    )
    assert done.difference < 1e-3
