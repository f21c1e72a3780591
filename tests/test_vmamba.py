"""The first-generation VMamba encoder: checkpoints in both published forms, sizes, structure."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from parity import Fixture, filled

from core import registry
from core.errors import ShapeError
from core.weights import load_published

HERE = Path(__file__).parent / "parity"


def small(**config: object) -> torch.nn.Module:
    return registry.create("vmamba/tiny", dims=(16, 32), depths=(1, 2), **config)


def test_encoder_has_the_published_size() -> None:
    for name, patch, channels in (("base", 2, 48), ("d", 4, 3)):
        fixture = Fixture.read(HERE / f"swin-umamba--{name}.json")
        published = [s for n, s in fixture.state.items() if n.startswith("vssm_encoder.")]
        with torch.device("meta"):
            model = registry.create("vmamba/tiny", patch=patch, in_channels=channels)
        assert sum(p.numel() for p in model.parameters()) == sum(torch.Size(s).numel() for s in published)


def test_the_imagenet_release(tmp_path: Path) -> None:
    """Under "model", merging inside the layer before it, final norm and head beside the encoder."""
    fixture = Fixture.read(HERE / "swin-umamba--d.json")
    state = {
        n.removeprefix("vssm_encoder."): v for n, v in fixture.state_dict().items() if n.startswith("vssm_encoder.")
    }
    release = {n.replace("downsamples.", "layers.").replace(".reduction", ".downsample.reduction")
               if n.startswith("downsamples") else n: v for n, v in state.items()}  # fmt: skip
    release = {n.replace(".norm.", ".downsample.norm.") if n.count(".") == 3 and n.startswith("layers") else n: v
               for n, v in release.items()}  # fmt: skip
    assert "layers.0.downsample.norm.weight" in release
    release |= {"norm.weight": filled("norm.weight", (768,)), "norm.bias": filled("norm.bias", (768,)),
                "head.weight": filled("head.weight", (10, 768)), "head.bias": filled("head.bias", (10,))}  # fmt: skip
    torch.save({"model": release}, tmp_path / "vssmtiny_dp01_ckpt_epoch_292.pth")
    model = load_published("vmamba/tiny", tmp_path / "vssmtiny_dp01_ckpt_epoch_292.pth").double()
    with torch.no_grad():
        pyramid = model.backbone(fixture.input().double())
        for i, level in enumerate(pyramid, 1):
            fixture.compare(f"stage{i}", level)
        assert model(fixture.input().double()).shape == (1, 10)
    torch.save({f"vssm_encoder.{n}": v for n, v in state.items()}, tmp_path / "umamba.pth")
    encoder = load_published("vmamba/tiny", tmp_path / "umamba.pth", prefix="vssm_encoder.")
    for name, value in encoder.state_dict().items():
        assert torch.equal(value.double(), model.backbone.state_dict()[name]), name


def test_odd_sizes_lose_the_remainder() -> None:
    with torch.no_grad():
        pyramid = small()(torch.randn(1, 3, 31, 46))
        assert [tuple(p.shape[2:]) for p in pyramid] == [(7, 11), (3, 5)]
        model = small().eval()
        image = torch.randn(1, 3, 31, 46)
        torch.testing.assert_close(model(image)[0], model(image[..., :28, :44])[0])
    with pytest.raises(ShapeError, match="at least 8 pixels a side, got 6 x 40"):
        model(torch.randn(1, 3, 6, 40))


def test_no_feed_forward_branch_and_eps() -> None:
    block = registry.create("vmamba/tiny").stages[0].blocks[0]
    assert {n.split(".")[0] for n, _ in block.named_parameters()} == {"norm", "token_mixer"}
    assert block.norm.eps == 1e-5
