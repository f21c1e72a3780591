"""iColoriT: the mechanism against plain loops, the card's traps, counts, and files of authors."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from apps.colorization import model
from apps.colorization._icolorit import IColoriT, IColoriTConfig
from core import measure
from core.errors import SettingError, ShapeError, UnknownNameError, WeightsError
from core.layers.positions import relative_index
from core.weights import load_published, save

SMALL = IColoriTConfig(size=24, patch=6, cell=2, dim=32, depth=2, heads=2)
SETTINGS: dict[str, Any] = {"size": 24, "patch": 6, "dim": 32, "depth": 2, "heads": 2}
HEADS = ("cnn", "linear", "locattn")


def made(**settings: Any) -> IColoriT:
    torch.manual_seed(0)
    network = model.create("icolorit_tiny", **{**SETTINGS, **settings})
    with torch.no_grad():  # tables and biases that say something
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return network.double().eval()


def given(size: int = 24, cells: int = 12, batch: int = 2) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(1)
    lab = torch.randn(batch, 3, size, size, generator=draw, dtype=torch.float64) * 0.3
    return lab, torch.rand(batch, cells**2, generator=draw) < 0.8


# counts, from the card


@pytest.mark.parametrize(
    ("name", "cnn", "bare"),
    [
        ("icolorit_tiny", 6_444_740, 5_632_064),
        ("icolorit_tiny_p8", 5_716_004, 5_410_496),
        ("icolorit_tiny_p32", 9_670_148, 6_518_336),
        ("icolorit_small", 23_505_800, 21_880_448),
        ("icolorit", 89_478_416, 86_227_712),
    ],
)
def test_counts_are_the_cards(name: str, cnn: int, bare: int) -> None:
    for want, settings in ((cnn, {}), (bare, {"head": "linear", "relative": False})):
        network = measure.on_meta(lambda settings=settings: model.create(name, **settings))  # type: ignore[misc]
        assert measure.parameters(network) == want


def test_every_name_is_known_to_the_registry() -> None:
    from core import registry

    for name in model.NETWORKS:
        assert registry.is_network(f"colorization/{name}")
    assert registry.create("colorization/icolorit_tiny", **SETTINGS).size == 24


# the mechanism, written out


def looped(network: IColoriT, lab: Tensor, mask: Tensor) -> Tensor:
    """The card's sentences one pixel, token, head and key at a time."""
    c, w = network.config, {n: v.detach() for n, v in network.state_dict().items()}
    B, size, P, G = lab.shape[0], c.size, c.patch, c.size // c.patch
    cells = math.isqrt(mask.shape[1])
    side = size // cells
    out = torch.zeros(B, 2, size, size, dtype=lab.dtype)
    for b in range(B):
        seen = torch.zeros(4, size, size, dtype=lab.dtype)
        for y in range(size):
            for x in range(size):
                cy, cx = y // side, x // side
                hinted = not mask[b, cy * cells + cx]
                seen[0, y, x] = lab[b, 0, y, x]
                seen[3, y, x] = float(hinted) - (0.5 if c.centred else 0)
                if hinted and c.average:  # bilinear, unsmoothed: the pixels around the cell's middle
                    middle = [(side - 1) // 2, side // 2]
                    rows, columns = ([start * side + m for m in middle] for start in (cy, cx))
                    seen[1:3, y, x] = sum(lab[b, 1:, i, j] for i in rows for j in columns) / 4
                elif hinted:
                    seen[1:3, y, x] = lab[b, 1:, y, x]
        first = "backbone.stages.0."
        weight = w[f"{first}embed.patches.conv.weight"]
        tokens = torch.zeros(G * G, c.dim, dtype=lab.dtype)
        for n in range(G * G):
            gy, gx = divmod(n, G)
            patch = seen[:, gy * P : gy * P + P, gx * P : gx * P + P]
            tokens[n] = (weight * patch).sum((1, 2, 3)) + w[f"{first}embed.patches.conv.bias"]
            for i in range(c.dim):
                angle = n / 10000 ** (2 * (i // 2) / c.dim)
                tokens[n, i] += float(torch.tensor(math.sin(angle) if i % 2 == 0 else math.cos(angle)).float())
        for k in range(c.depth):
            block = f"{first}blocks.{k}."
            y = norm(tokens, w[f"{block}norm1.weight"], w[f"{block}norm1.bias"])
            bias = torch.cat([w[f"{block}token_mixer.q_bias"], torch.zeros(c.dim).double(),
                              w[f"{block}token_mixer.v_bias"]])  # fmt: skip
            q, key, v = (y @ w[f"{block}token_mixer.qkv.weight"].T + bias).chunk(3, 1)
            table = w.get(f"{block}token_mixer.bias_table")
            mixed = attended(q, key, v, c.heads, G, table, near=False)
            tokens = tokens + mixed @ w[f"{block}token_mixer.proj.weight"].T + w[f"{block}token_mixer.proj.bias"]
            y = norm(tokens, w[f"{block}norm2.weight"], w[f"{block}norm2.bias"])
            y = y @ w[f"{block}channel_mixer.fc1.weight"].T + w[f"{block}channel_mixer.fc1.bias"]
            y = 0.5 * y * (1 + torch.erf(y / math.sqrt(2)))
            tokens = tokens + y @ w[f"{block}channel_mixer.fc2.weight"].T + w[f"{block}channel_mixer.fc2.bias"]
        tokens = norm(tokens, w["backbone.norm.weight"], w["backbone.norm.bias"])
        patches = torch.zeros(G * G, 2 * P * P, dtype=lab.dtype)
        if c.head == "linear":
            patches = tokens @ w["head.out.weight"].T + w["head.out.bias"]
        elif c.head == "cnn":
            for n in range(G * G):
                gy, gx = divmod(n, G)
                patches[n] = w["head.out.bias"]
                for dy in (-1, 0, 1):
                    for dx in (-1, 0, 1):
                        m = mirrored(gy + dy, G) * G + mirrored(gx + dx, G)
                        patches[n] = patches[n] + w["head.out.weight"][:, :, dy + 1, dx + 1] @ tokens[m]
        else:
            q, key, v = (tokens @ w["head.qkv.weight"].T).chunk(3, 1)
            patches = attended(q, key, v, 8, G, None, near=True) @ w["head.proj.weight"].T + w["head.proj.bias"]
        for n in range(G * G):
            gy, gx = divmod(n, G)
            for i in range(P):
                for j in range(P):
                    for channel in range(2):
                        value = patches[n, (i * P + j) * 2 + channel].tanh()
                        out[b, channel, gy * P + i, gx * P + j] = value
    return out


def norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    x = x - x.mean(1, keepdim=True)
    return x / (x.square().mean(1, keepdim=True) + 1e-6).sqrt() * weight + bias


def mirrored(i: int, n: int) -> int:
    return -i if i < 0 else 2 * (n - 1) - i if i >= n else i


def attended(q: Tensor, k: Tensor, v: Tensor, heads: int, G: int, table: Tensor | None, *, near: bool) -> Tensor:
    width = q.shape[1] // heads
    out = torch.zeros_like(v)
    for h in range(heads):
        part = slice(h * width, (h + 1) * width)
        for n in range(G * G):
            y, x = divmod(n, G)
            logits = []
            keys = []
            for m in range(G * G):
                other_y, other_x = divmod(m, G)
                if near and max(abs(y - other_y), abs(x - other_x)) > 1:
                    continue
                logit = (q[n, part] * width**-0.5) @ k[m, part]
                if table is not None:
                    logit = logit + table[(y - other_y + G - 1) * (2 * G - 1) + x - other_x + G - 1, h]
                logits.append(logit)
                keys.append(m)
            weights = torch.stack(logits).softmax(0)
            out[n, part] = sum(a * v[m, part] for a, m in zip(weights, keys, strict=True))
    return out


@pytest.mark.parametrize(
    ("settings", "cells"),
    [
        ({"head": "cnn"}, 12),
        ({"head": "linear", "relative": False, "centred": True}, 12),
        ({"head": "locattn", "average": False}, 6),
        ({"head": "cnn", "heads": 4, "mlp_ratio": 2.0, "cell": 4}, 6),
        ({"head": "linear", "average": True, "patch": 8}, 8),
        ({"head": "linear", "average": False, "centred": True, "cell": 1}, 24),
    ],
)
def test_forward_is_the_card_written_out(settings: dict[str, Any], cells: int) -> None:
    network = made(**settings)
    lab, mask = given(cells=cells, batch=1)
    with torch.no_grad():
        torch.testing.assert_close(network(lab, mask), looped(network, lab, mask), atol=1e-9, rtol=1e-7)


def test_average_of_a_large_cell_is_of_its_middle_pixels() -> None:
    lab = torch.zeros(1, 3, 24, 24)
    lab[0, 1, :4, :4] = torch.arange(16.0).reshape(4, 4) / 100
    network = made(cell=4).float()
    mask = torch.ones(1, 36, dtype=torch.bool)
    mask[0, 0] = False
    planes = network.planes(lab, mask)
    assert planes[0, 1, 0, 0] == pytest.approx((5 + 6 + 9 + 10) / 400)
    assert planes[0, 1, 0, 0] == pytest.approx(float(lab[0, 1, :4, :4].mean()))  # of a ramp both are one
    lab[0, 1, 0, 0] = 0.9
    assert network.planes(lab, mask)[0, 1, 0, 0] == pytest.approx(planes[0, 1, 0, 0])  # a corner does not count


@pytest.mark.parametrize("settings", [{}, {"average": False}, {"centred": True}])
def test_input_is_not_written_to(settings: dict[str, Any]) -> None:
    network = made(**settings)
    lab, mask = given()
    before = lab.clone(), mask.clone()
    network(lab, mask)
    assert torch.equal(lab, before[0])
    assert torch.equal(mask, before[1])


def test_colours_without_a_hint_do_not_matter() -> None:
    network = made()
    lab, mask = given()
    other = lab.clone()
    other[:, 1:] += 5 * mask.reshape(-1, 1, 12, 12).repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(network(lab, mask), network(other, mask))
    everything = torch.ones_like(mask)
    torch.testing.assert_close(network(lab), network(other, everything))
    assert not torch.allclose(network(lab), network(lab, mask))


@pytest.mark.parametrize("head", HEADS)
def test_far_patches_change_what_a_local_head_says_only_through_the_body(head: str) -> None:
    network = made(head=head)
    tokens = torch.randn(1, 16, 32, dtype=torch.float64)
    other = tokens.clone()
    other[0, 15] += 1  # the far corner
    changed = (network.patches(tokens) != network.patches(other)).any(-1)[0].reshape(4, 4)
    reach = torch.zeros(4, 4, dtype=torch.bool)
    reach[3 if head == "linear" else 2 :, 3 if head == "linear" else 2 :] = True
    assert torch.equal(changed, reach)


@pytest.mark.parametrize("head", HEADS)
def test_answers_are_colours_in_range(head: str) -> None:
    network = made(head=head)
    lab, mask = given()
    answer = network(lab, mask)
    assert answer.shape == (2, 2, 24, 24)
    assert answer.abs().max() <= 1


# what is refused


@pytest.mark.parametrize(("size", "cells"), [(25, 12), (48, 24), (24, 5)])
def test_other_sizes_are_refused(size: int, cells: int) -> None:
    lab, mask = given(size, cells)
    with pytest.raises(ShapeError, match="24"):
        made()(lab, mask)


def test_masks_that_are_no_square_or_of_other_batches_are_refused() -> None:
    lab, mask = given()
    for wrong in (mask[:, :-1], mask[:1], mask.reshape(2, 12, 12)):
        with pytest.raises(ShapeError, match="144"):
            made()(lab, wrong)
    with pytest.raises(ShapeError, match="Lab"):
        made()(lab[:, :2], mask)


def test_sides_that_do_not_fit_are_refused_when_built() -> None:
    wrong: list[dict[str, Any]] = [{"patch": 7}, {"cell": 5}, {"patch": 24, "head": "cnn"}]
    for settings in (*wrong, {"dim": 4, "heads": 2, "head": "locattn"}):
        with pytest.raises(SettingError):
            model.create("icolorit_tiny", **{**SETTINGS, **settings})
    with pytest.raises(UnknownNameError, match="icolorit_tiny"):
        model.create("icolorit_tine")
    with pytest.raises(UnknownNameError, match="depth"):
        model.create("icolorit_tiny", depths=3)


# how it starts and runs


def test_it_starts_as_the_card_says() -> None:
    network = model.create("icolorit_tiny", size=64, patch=16, depth=2, head="linear")
    block = network.backbone.blocks[0]
    table = block.token_mixer.bias_table
    assert table.abs().max() <= 0.02
    assert 0.005 < table.std() < 0.02  # cut at one deviation
    bound = math.sqrt(6 / (192 + 3 * 192))
    assert block.token_mixer.qkv.weight.abs().max() <= bound
    assert block.token_mixer.qkv.weight.abs().max() > 0.95 * bound
    assert not block.token_mixer.q_bias.any()
    assert not network.head.out.bias.any()
    assert sum(n.endswith("k_bias") for n, _ in network.named_parameters()) == 0


def test_positions_and_indices_are_not_in_the_state() -> None:
    kept = set(made(head="locattn").state_dict())
    assert kept == {n for n, _ in made(head="locattn").named_parameters()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("head", HEADS)
def test_other_precisions_agree(head: str, dtype: torch.dtype) -> None:
    network = made(head=head)
    lab, mask = given()
    want = network(lab, mask)
    with torch.no_grad():
        got = network.to(dtype)(lab.to(dtype), mask).double()
    assert (got - want).abs().max() < (1e-4 if dtype == torch.float32 else 0.15)


@pytest.mark.parametrize("head", HEADS)
def test_every_parameter_gets_a_finite_gradient(head: str) -> None:
    network = made(head=head).train()
    lab, mask = given()
    network(lab, mask).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_drop_path_acts_in_training_only() -> None:
    network = made(drop_path=0.9)
    lab, mask = given()
    assert torch.equal(network(lab, mask), network(lab, mask))
    network.train()
    assert not torch.equal(network(lab, mask), network(lab, mask))


def test_compiles_as_one_graph() -> None:
    import torch._dynamo

    network = made().float()
    lab, mask = given()
    with torch.no_grad():
        traced = torch.compile(network, fullgraph=True, backend="eager")
        torch.testing.assert_close(traced(lab.float(), mask), network(lab.float(), mask))
    torch._dynamo.reset()


@pytest.mark.parametrize("head", ["cnn", *(pytest.param(h, marks=pytest.mark.slow) for h in HEADS[1:])])
def test_exports_to_onnx(head: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    from core import export

    network = made(head=head).float()
    contract = {"channels": ["L", "a", "b", "hint"]}
    done = export.export(
        model.FromPlanes(network), tmp_path / "net.onnx", (24, 24), name="colorization/icolorit_tiny", contract=contract
    )
    assert done.difference < 1e-4


# files


def published(network: IColoriT, *, index: bool = True) -> dict[str, Tensor]:
    """The state under the authors' names."""
    out: dict[str, Tensor] = {}
    for name, value in network.state_dict().items():
        name = name.removeprefix("backbone.")
        for ours, theirs in (
            ("stages.0.embed.patches.conv.", "patch_embed.proj."),
            ("stages.0.", ""),
            ("token_mixer.bias_table", "attn.rpb_table"),
            ("token_mixer.", "attn."),
            ("channel_mixer.", "mlp."),
        ):
            name = name.replace(ours, theirs)
        if name.startswith("head.out."):
            name = name.replace("head.out.", "head.head." if network.config.head == "cnn" else "head.")
        out[name] = value.float().clone()
        if index and name.endswith("rpb_table"):
            out[name.replace("rpb_table", "relative_position_index")] = relative_index((network.grid,) * 2)
    return out


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"head": "linear"},
        {"head": "locattn"},
        {"head": "linear", "relative": False},
        {"patch": 8, "mlp_ratio": 2.0},
    ],
)
def test_authors_files_are_read(settings: dict[str, Any], tmp_path: Path) -> None:
    network = made(**settings).float()
    torch.save({"model": published(network), "epoch": 24}, tmp_path / "a.pth")
    base = model.configured("icolorit_tiny", {"dim": 32, "depth": 2, "heads": 2, "size": 24, "mlp_ratio": 4.0,
                                              "patch": network.patch, **settings})  # fmt: skip
    found, taken = model.import_weights(tmp_path / "a.pth", "icolorit_tiny", base)
    assert taken.config == network.config
    assert taken.taken == len(network.state_dict())
    lab, mask = (x.float() if x.is_floating_point() else x for x in given())
    torch.testing.assert_close(found(lab, mask), network(lab, mask))
    loaded = load_published(
        "colorization/icolorit_tiny", tmp_path / "a.pth",
        **{k: getattr(base, k) for k in ("dim", "depth", "heads", "size", "patch", "mlp_ratio")},
    )  # fmt: skip
    torch.testing.assert_close(loaded(lab, mask), network(lab, mask))


def test_a_tiny_file_is_no_small_one(tmp_path: Path) -> None:
    network = model.create("icolorit_tiny", depth=12)
    torch.save({"model": published(network)}, tmp_path / "t.pth")
    with pytest.raises(WeightsError, match=r"t\.pth.*dim 192.*384"):
        model.import_weights(tmp_path / "t.pth", "icolorit_small")
    found, _ = model.import_weights(tmp_path / "t.pth", "icolorit_tiny")
    assert found.config == model.NETWORKS["icolorit_tiny"]


def test_a_stored_index_of_another_layout_is_refused(tmp_path: Path) -> None:
    network = made().float()
    state = published(network)
    state["blocks.1.attn.relative_position_index"] = state["blocks.1.attn.relative_position_index"].T.contiguous()
    torch.save({"model": state}, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=r"blocks\.1\.attn\.relative_position_index"):
        model.import_weights(tmp_path / "a.pth", "icolorit_tiny", SMALL)


def test_what_is_missing_or_left_over_is_named(tmp_path: Path) -> None:
    network = made().float()
    state = published(network)
    del state["blocks.1.norm2.bias"]
    state["blocks.0.attn.k_bias"] = torch.zeros(32)
    torch.save({"model": state}, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=r"k_bias: in the file.*norm2\.bias: in the network"):
        model.import_weights(tmp_path / "a.pth", "icolorit_tiny", SMALL)
    torch.save({"model": {"conv.weight": torch.zeros(1)}}, tmp_path / "b.pth")
    with pytest.raises(WeightsError, match=r"b\.pth: not a icolorit_tiny file"):
        model.import_weights(tmp_path / "b.pth", "icolorit_tiny")


def test_our_own_file_comes_back(tmp_path: Path) -> None:
    network = made(head="locattn").float()
    save(network, tmp_path / "w.safetensors")
    found, _ = model.import_weights(tmp_path / "w.safetensors", "icolorit_tiny", SMALL)
    assert found.config == network.config
    for name, value in network.state_dict().items():
        assert torch.equal(found.state_dict()[name], value)


def test_a_start_takes_the_body_of_a_file_with_another_head(tmp_path: Path) -> None:
    torch.save({"model": published(made().float())}, tmp_path / "a.pth")
    fresh = model.create("icolorit_tiny", **SETTINGS, head="linear")
    before = fresh.head.out.weight.clone()
    said = model.initialise(fresh, "icolorit_tiny", tmp_path / "a.pth")
    assert "head.out.weight" in said
    assert torch.equal(fresh.head.out.weight, before)
    assert torch.equal(fresh.backbone.norm.weight, made().float().backbone.norm.weight)
    wider = model.create("icolorit_tiny", **{**SETTINGS, "size": 48})
    with pytest.raises(WeightsError, match="bias_table"):
        model.initialise(wider, "icolorit_tiny", tmp_path / "a.pth")
