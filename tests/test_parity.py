"""Every golden vector in tests/parity, through the runner that users have."""

import json
from pathlib import Path

import pytest
import run

VECTORS = sorted(run.HERE.glob("*.json"))


@pytest.mark.parametrize("path", VECTORS, ids=lambda p: p.stem)
def test_vector(path: Path) -> None:
    outcome = run.check(path)
    assert outcome.passed, "\n".join(outcome.failures)
    assert outcome.errors


def broken(path: Path, tmp_path: Path, **changes: object) -> Path:
    document = json.loads(path.read_text()) | changes
    target = tmp_path / path.name
    target.write_text(json.dumps(document))
    return target


SWIN = run.HERE / "swin--tiny-dense.json"


def test_a_wrong_number_fails(tmp_path: Path) -> None:
    outputs = json.loads(SWIN.read_text())["outputs"]
    outputs["stage4"]["values"][3] += 1e-3 * outputs["stage4"]["std"]
    outcome = run.check(broken(SWIN, tmp_path, outputs=outputs))
    assert not outcome.passed
    assert "stage4: off by" in outcome.failures[0]


def test_a_wrong_parameter_count_fails(tmp_path: Path) -> None:
    outcome = run.check(broken(SWIN, tmp_path, params=27520699))
    assert outcome.failures == ["27,520,698 parameters, published 27,520,699"]


def test_an_output_without_answer_fails(tmp_path: Path) -> None:
    outputs = json.loads(SWIN.read_text())["outputs"]
    outputs["stage9"] = outputs["stage4"]
    assert "tiny-dense.stage9: no answer" in run.check(broken(SWIN, tmp_path, outputs=outputs)).failures


def test_an_unclaimed_system_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken(SWIN, tmp_path, system="no-such-system")
    assert run.main([str(tmp_path)]) == 1
    assert "nobody claims no-such-system" in capsys.readouterr().out
    assert "FAIL" in (tmp_path / "TABLE.md").read_text()


def test_other_arguments_and_sizes(tmp_path: Path) -> None:
    """A recorded vector of our own at other sizes: what the runner reads from it builds the same network again."""
    import torch
    from parity import Fixture, fill_, fillable, summary

    from core import registry

    backbone = registry.create("swin/tiny", dim=24, depths=(1, 2), heads=(2, 3), window=5, in_channels=2, image_size=40)
    model = registry.classifier(backbone, 7)
    names = {
        n.replace("backbone.stages.0.merge.patches.conv", "patch_embed.proj")
        .replace("backbone.stages.0.merge.patches.norm", "patch_embed.norm")
        .replace("backbone.stages.1.merge", "layers.0.downsample")
        .replace("backbone.stages", "layers")
        .replace("token_mixer.bias_table", "attn.relative_position_bias_table")
        .replace("token_mixer", "attn")
        .replace("channel_mixer", "mlp")
        .replace("head.norm", "norm")
        .replace("head.fc", "head"): list(s)
        for n, s in fillable(model).items()
    }
    build = {"embed_dim": 24, "depths": [1, 2], "num_heads": [2, 3], "window_size": 5, "in_chans": 2, "img_size": 40}
    fixture = Fixture("swin", "own", {}, build, names, {"image": {"shape": [2, 2, 40, 40], "seed": 5}}, {}, 0)
    fixture.params = sum(p.numel() for p in model.parameters())
    fixture.outputs = {"logits": {"shape": [2, 7]}}
    filled = run.filled("swin", fixture, torch.float32)
    assert {n: tuple(p.shape) for n, p in filled.named_parameters()} == {
        n: tuple(p.shape) for n, p in model.named_parameters()
    }
    with torch.no_grad():
        fixture.outputs = {"logits": summary(filled(fixture.input()))}
    fixture.write(tmp_path / "swin--own.json")
    assert run.main([str(tmp_path)]) == 0
    fill_(model)
    assert not torch.equal(model(fixture.input()), filled(fixture.input())), "our names are not theirs"
