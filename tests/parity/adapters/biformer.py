"""BiFormer: pyramid and logits, and for the vector of gradients those of the mean squared logit."""

from __future__ import annotations

from typing import Any

import torch
from run import Fixture, pyramid_answers
from torch import Tensor

from core.backbones.biformer import PUBLISHED
from core.weights import choose


def answers(model: Any, fixture: Fixture, dtype: torch.dtype) -> dict[str, Tensor]:
    if not any(name.startswith("grad") for name in fixture.outputs):
        return pyramid_answers(model, fixture, dtype)
    image = fixture.input().to(dtype).requires_grad_()
    logits = model(image)
    logits.square().mean().backward()
    assert image.grad is not None
    found = {"logits": logits, "grad_image": image.grad}
    ours, keymap = dict(model.named_parameters()), choose(PUBLISHED, fixture.state)
    for output in fixture.outputs:
        if output.startswith("grad:"):
            published = output.removeprefix("grad:")
            name = keymap.name(published)
            assert name is not None
            gradient = ours[name].grad
            assert gradient is not None
            found[output] = gradient.reshape(fixture.state[published])  # a 1x1 convolution is a matrix here
    return found
