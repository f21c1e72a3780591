"""Every registered network, without naming any."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import nn

from core import protocols, registry

FAMILIES = registry.families()


def small(family: str, **more: Any) -> Any:
    """The family's first variant with one or two blocks a stage."""
    config = next(iter(registry.family(family).VARIANTS.values()))
    fields = {f.name for f in dataclasses.fields(config)}
    shrunk: dict[str, Any] = dict(more)
    if "depths" in fields:
        shrunk["depths"] = tuple(min(d, 2) for d in config.depths)
    if "depth" in fields and isinstance(config.depth, int):
        shrunk["depth"] = 2
    return registry.create(f"{family}/{next(iter(registry.family(family).VARIANTS))}", **shrunk)


def size_of(family: str) -> tuple[int, ...]:
    """An input size that every family takes: the published one; of clips less, since any number of frames will do."""
    module = registry.family(family)
    axes: tuple[int, ...] = module.FACTS.axes(next(iter(module.VARIANTS)))
    return axes if len(axes) == 2 else (3, *(n // 2 for n in axes[1:]))


@pytest.mark.parametrize("name", registry.names())
def test_builds_on_the_meta_device(name: str) -> None:
    with torch.device("meta"):
        model = registry.create(name, classes=1000)
    assert sum(p.numel() for p in model.parameters()) > 1e6
    assert all(p.is_meta for p in model.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_contract(family: str) -> None:
    """Pyramid, channels, strides, stages, and any number of input channels."""
    module = registry.family(family)
    for attribute in ("FACTS", "VARIANTS", "build", "from_published", "PUBLISHED"):
        assert hasattr(module, attribute), f"{family} has no {attribute}"
    assert hasattr(module, "HEAD") or hasattr(module, "head")
    model = small(family, in_channels=5).eval()
    assert isinstance(model, protocols.Backbone)
    size = size_of(family)
    with torch.no_grad():
        pyramid = model(torch.randn(1, 5, *size))
    assert len(pyramid) == len(model.channels) == len(model.strides) == len(model.stages)
    for level, channels, stride in zip(pyramid, model.channels, model.strides, strict=True):
        assert level.shape[1] == channels
        per_axis = (stride,) * len(size) if isinstance(stride, int) else stride
        assert all(abs(a - n / s) <= 1 for a, n, s in zip(level.shape[2:], size, per_axis, strict=True))
    with pytest.raises(ValueError, match=r"C=5"):
        model(torch.randn(1, 3, *size))


@pytest.mark.parametrize("family", FAMILIES)
def test_classifier_learns_and_returns(family: str) -> None:
    """One training step gives every parameter a finite gradient; state_dict round-trips; evaluation is repeatable."""
    torch.manual_seed(0)
    backbone = small(family)
    model = registry.classifier(backbone, 3)
    image = torch.randn(2, 3, *size_of(family))
    levels = sum(level.square().mean() for level in backbone(image)) if len(backbone.channels) > 1 else 0.0
    (nn.functional.cross_entropy(model(image), torch.tensor([0, 2])) + levels).backward()
    missing = [n for n, p in model.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
    assert missing == []
    fresh = registry.classifier(small(family), 3)
    fresh.load_state_dict(model.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(fresh.eval()(image), model.eval()(image), rtol=0, atol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_images_do_not_mix(family: str) -> None:
    torch.manual_seed(0)
    model = small(family).eval()
    a, b = torch.randn(2, 1, 3, *size_of(family))
    with torch.no_grad():
        together, alone = model(torch.cat([a, b])), model(b)
    for joint, single in zip(together, alone, strict=True):
        torch.testing.assert_close(joint[1:], single, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_half_precision_stays_finite(family: str) -> None:
    model = registry.classifier(small(family), 3).eval().to(torch.bfloat16)
    with torch.no_grad():
        logits = model(torch.randn(1, 3, *size_of(family), dtype=torch.bfloat16))
    assert logits.dtype == torch.bfloat16
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_training_and_inference_paths_agree(family: str) -> None:
    """Attention takes other kernels under no_grad; both are the same function."""
    model = small(family).eval().double()
    image = torch.randn(1, 3, *size_of(family), dtype=torch.float64)
    with torch.no_grad():
        without = model(image)
    for a, b in zip(model(image), without, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_compiles_whole(family: str) -> None:
    torch._dynamo.reset()
    model = small(family).eval()
    image = torch.randn(1, 3, *size_of(family))
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True)(image)
        for a, b in zip(compiled, model(image), strict=True):
            torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-3)
