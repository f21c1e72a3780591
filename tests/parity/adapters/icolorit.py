"""iColoriT: the network from the authors' names and arguments, and the colour functions around it."""

from __future__ import annotations

from typing import Any

import torch
from run import Fixture
from torch import Tensor, nn

from apps.colorization import lab, metrics
from apps.colorization import model as networks
from apps.colorization._losses import huber
from core.weights import choose, convert

BASE = networks.NETWORKS["icolorit_tiny"]


def model(fixture: Fixture, dtype: torch.dtype) -> nn.Module:
    """The network that the fixture's shapes describe, filled by its recipe."""
    state = fixture.state_dict()
    shapes = {n: tuple(v.shape) for n, v in state.items()}
    build = dict(fixture.build)
    image = fixture.inputs["image"]["shape"]
    build.setdefault("img_size", image[-1])  # the network takes the size that it was built for, and no other
    network = networks.build(networks.from_published(build, shapes, BASE))
    network.load_state_dict(convert(state, choose(networks.PUBLISHED, shapes), network))
    return network.to(dtype).eval()


def answers(network: Any, fixture: Fixture, dtype: torch.dtype) -> dict[str, Tensor]:
    """Tokens after the last norm, the head's answer per token, and the colours of the image."""
    image, mask = fixture.input("image").to(dtype), fixture.input("hint") != 0
    tokens = network.backbone.tokens(network.planes(image, mask))
    patches = network.patches(tokens)
    return {"tokens": tokens, "output": patches, "ab": network(image, mask)}


def check(document: dict[str, Any]) -> dict[str, float]:
    """Lab both ways, Huber, PSNR, B-PSNR, PEV and hint propagation range."""
    fixture = Fixture(**document)
    build, kind = fixture.build, torch.float64
    a, b = (fixture.input(name).to(kind) for name in ("a", "b"))
    rgb = a.sigmoid()
    true = lab.to_lab(rgb)
    guessed = torch.cat([true[:, :1], true[:, 1:] + 0.1 * b[:, 1:]], dim=1)
    colour = lab.to_rgb(guessed)
    patch = build["patch"]
    boundary = metrics.b_psnr(colour, rgb, patch=patch).mean()
    mean, std = metrics.propagation_range(true, guessed, torch.tensor([[5, 9]] * len(a)), jnd=build["jnd"])

    loss = huber(guessed[:, 1:], true[:, 1:], delta=build["huber_delta"])
    answers = {
        "lab": true,
        "back": lab.to_rgb(true),
        "rgb_pred": colour,
        "psnr_hpr": torch.stack([metrics.psnr(colour, rgb).mean(), boundary, mean.mean(), std.mean()]),
        "pev_huber": torch.stack([metrics.pev(colour, rgb, patch=patch).mean(), loss]),
    }
    return {name: fixture.compare(name, value) for name, value in answers.items()}
