"""SViT beyond its vectors: super tokens against loops, sizes, gradients, checkpoints in the authors' form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from parity import Fixture, filled
from torch import Tensor

from core import registry
from core.backbones import svit
from core.compression.fold import fold
from core.errors import SettingError, WeightsError
from core.mixers.super_tokens import SuperTokenAttention, around, gathered
from core.weights import load_published

COUNTS = {"small": 25_495_624, "base": 51_691_288, "large": 94_971_096}  # the card's, trainable
PARITY = Path(__file__).parent / "parity"


def little(**more: Any) -> Any:
    settings = {"dims": (16, 24, 32, 40), "depths": (1, 2, 1, 1), "heads": (1, 2, 2, 4), "cells": (4, 2, 1, 1)} | more
    return registry.create("svit/small", **settings)


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts(name: str) -> None:
    assert set(COUNTS) == set(svit.VARIANTS)
    with torch.device("meta"):
        model = registry.create(f"svit/{name}", classes=1000)
    assert sum(p.numel() for p in model.parameters()) == COUNTS[name]


def loop(layer: SuperTokenAttention, image: Tensor) -> Tensor:
    """One image (H, W, C), one pixel and one super token at a time, from the card."""
    H, W, C = image.shape
    h, w = layer.cell
    rows, columns = -(-H // h), -(-W // w)
    padded = F.pad(image, (0, 0, 0, columns * w - W, 0, rows * h - H))
    tokens = torch.stack(
        [padded[i * h : (i + 1) * h, j * w : (j + 1) * w].mean((0, 1)) for i in range(rows) for j in range(columns)]
    ).view(rows, columns, C)
    share = {}
    for step in range(layer.iterations + 1):
        if step:
            total, mass = torch.zeros_like(tokens), torch.zeros(rows, columns, 1, dtype=image.dtype)
            for (y, x, i, j), value in share.items():
                if 0 <= i < rows and 0 <= j < columns:
                    total[i, j] += value * padded[y, x]
                    mass[i, j] += value
            tokens = total / (mass + 1e-12)
        if step == layer.iterations:
            break
        for y in range(rows * h):
            for x in range(columns * w):
                places = [(y // h + a, x // w + b) for a in (-1, 0, 1) for b in (-1, 0, 1)]
                logits = torch.stack(
                    [
                        padded[y, x] @ tokens[i, j] * C**-0.5
                        if 0 <= i < rows and 0 <= j < columns
                        else torch.zeros((), dtype=image.dtype)
                        for i, j in places
                    ]
                )
                for place, value in zip(places, logits.softmax(0), strict=True):
                    share[(y, x, *place)] = value
    d = C // layer.heads
    rowed = layer.qkv(tokens.view(-1, C)).view(-1, layer.heads, 3, d)
    heads = [((rowed[:, n, 0] @ rowed[:, n, 1].T) * d**-0.5).softmax(-1) @ rowed[:, n, 2] for n in range(layer.heads)]
    tokens = layer.proj(torch.cat(heads, -1)).view(rows, columns, C)
    out = torch.zeros_like(padded)
    for (y, x, i, j), value in share.items():
        if 0 <= i < rows and 0 <= j < columns:
            out[y, x] += value * tokens[i, j]
    return out[:H, :W]


@pytest.mark.parametrize("size", [(8, 12), (7, 5), (1, 2)])
@pytest.mark.parametrize("iterations", [1, 3])
@pytest.mark.parametrize("cell", [(4, 4), (2, 3)])
def test_mixer_equals_a_loop(size: tuple[int, int], iterations: int, cell: tuple[int, int]) -> None:
    torch.manual_seed(0)
    layer = SuperTokenAttention(12, 3, cell, iterations=iterations).double()
    x = torch.randn(2, *size, 12, dtype=torch.float64)
    with torch.no_grad():
        want = torch.stack([loop(layer, image) for image in x])
        torch.testing.assert_close(layer(x), want)
    torch.testing.assert_close(layer(x), want, msg="with gradients another kernel may run")


def test_cells_of_one_pixel_are_plain_attention() -> None:
    torch.manual_seed(0)
    layer = SuperTokenAttention(12, 3, (1, 1)).double()
    x = torch.randn(2, 3, 5, 12, dtype=torch.float64)
    q, k, v = layer.qkv(x).view(2, 15, 3, 3, 4).permute(3, 0, 2, 1, 4)
    want = ((q @ k.mT / 2).softmax(-1) @ v).transpose(1, 2).reshape(2, 3, 5, 12)
    torch.testing.assert_close(layer(x), layer.proj(want))


def test_gathering_is_the_transpose_of_looking_around() -> None:
    torch.manual_seed(0)
    tokens, slots = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 9, 5)
    assert (around(tokens) * slots).sum() == pytest.approx(float((tokens * gathered(slots)).sum()), rel=1e-5)
    torch.testing.assert_close(around(tokens)[0, 1, 1], tokens[0, 0:3, 0:3].reshape(9, 5))
    assert not around(tokens)[0, 0, 0, :3].any()  # above the first row there is nothing


def test_what_belongs_where_carries_no_gradient() -> None:
    layer = SuperTokenAttention(12, 3, (2, 2))
    pixels = torch.randn(1, 2, 2, 4, 12, requires_grad=True)
    weights, mass = layer.assign(pixels)
    assert not weights.requires_grad
    assert not mass.requires_grad
    torch.testing.assert_close(weights.sum(-1), torch.ones(1, 2, 2, 4))
    assert mass.sum() < 16  # the border's super tokens lose the share of neighbours that are not there


def test_no_pixels_by_super_tokens_matrix() -> None:
    """Memory of the early stage grows with the map, not with its square."""
    layer = SuperTokenAttention(8, 1, (8, 8))
    with torch.no_grad():
        weights, _ = layer.assign(torch.randn(1, 32, 32, 64, 8))
    assert weights.numel() == 9 * 256 * 256


@pytest.mark.parametrize("size", [(75, 43), (9, 200)])
def test_odd_sizes_round_up(size: tuple[int, int]) -> None:
    with torch.no_grad():
        pyramid = little().eval()(torch.randn(1, 3, *size))
    for stride, level in zip((4, 8, 16, 32), pyramid, strict=True):
        assert level.shape[2:] == tuple(-(-n // stride) for n in size)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The authors' file: their names and wrapper, the constant kernels stored as parameters of every block."""
    fixture = Fixture(**json.loads((PARITY / "svit--svit-s.json").read_text()))
    state = {n: filled(n, tuple(s)) for n, s in fixture.state.items()}
    for name in list(state):
        if name.endswith("stoken_refine.proj.weight"):
            for kind in ("unfold", "fold"):
                kernel = torch.eye(9).view(9, 1, 3, 3)
                state[name.replace("stoken_refine.proj.weight", f"{kind}.weights")] = kernel
    path = tmp_path_factory.mktemp("svit") / "stvit-small-224.pth"
    torch.save({"model": state}, path)
    return path


def test_published_checkpoint(published: Path) -> None:
    fixture = Fixture.read(PARITY / "svit--svit-s.json")
    model = load_published("svit/small", published)
    with torch.no_grad():
        fixture.compare("logits", model(fixture.input()), 1e-3)
    with pytest.raises(WeightsError, match="svit/base"):
        load_published("svit/base", published)


def test_other_kernels_are_refused(published: Path, tmp_path: Path) -> None:
    state = torch.load(published, weights_only=True)["model"]
    state["layers.0.blocks.0.attn.fold.weights"] = torch.zeros(9, 1, 3, 3)
    torch.save({"model": state}, tmp_path / "changed.pth")
    with pytest.raises(WeightsError, match="not the constant that this network uses"):
        load_published("svit/small", tmp_path / "changed.pth")


def test_folded_network_answers_the_same() -> None:
    torch.manual_seed(0)
    model = registry.classifier(little(), 5)
    for norm in model.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.running_mean.normal_(std=0.1)
            norm.running_var.uniform_(0.5, 2)
    model = model.double().eval()
    image = torch.randn(2, 3, 50, 71, dtype=torch.float64)
    with torch.no_grad():
        folded = fold(model)
        torch.testing.assert_close(folded(image), model(image))
    left = [n for n, m in folded.named_modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert all(n.startswith("backbone.stages.0.merge") for n in left), left  # in the stem they come after GELU


def test_options_of_the_authors_arguments() -> None:
    fixture = Fixture.read(PARITY / "svit--svit-b-short-150x214.json")
    build = fixture.build | {"n_iter": [2, 3, 1, 1]}
    config = svit.from_published(build, fixture.state)
    assert config.iterations == (2, 3, 1, 1)
    assert config.scaled == (False, False, True, True)
    assert (config.projection, config.mlp_ratio, config.depths) == (1024, 4.0, (2, 2, 3, 1))


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(SettingError, match="one entry a stage"):
        little(cells=(8, 4))
    with pytest.raises(SettingError, match="24 channels on 5 heads"):
        little(heads=(1, 5, 2, 4))
