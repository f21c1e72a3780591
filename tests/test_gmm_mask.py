"""Gaussian mixture masks: the mask and each masked attention against plain loops, the five hosts, published files."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from parity import Fixture
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from core import measure, protocols, registry, weights
from core.backbones import gmm_mask
from core.errors import SettingError, ShapeError, WeightsError
from core.layers.residual import DropPath
from core.mixers.attention import SelfAttention
from core.mixers.gaussian_mask import ElementMask, GaussianMask, base, pairs, times, with_masks
from core.mixers.soft_split import ValueSkipAttention
from core.mixers.talking_heads import TalkingHeads
from core.mixers.window import WindowAttention

VECTORS = Path(__file__).parent / "parity"
HOSTS = ("vit", "swin", "cait", "pit", "t2t")
FEW = {"vit": (2,), "swin": (1, 2, 1), "cait": (2,), "pit": (1, 2, 1), "t2t": (2,)}


def network(host: str, **more: Any) -> Any:
    settings = {"depths": FEW[host], **({"class_depth": 1} if host == "cait" else {})}
    return registry.create(f"gmm_mask/{host}", **(settings | more))


def factor(mask: GaussianMask, head: int, dy: int, dx: int) -> float:
    """One entry, from the definition."""
    G = math.sqrt(float(torch.tensor(math.exp(-(dy * dy + dx * dx)), dtype=torch.float32)))
    return sum(
        mask.alpha[k, head].item() * G ** (1 / (mask.sigma[k, head].item() ** 2 + 1e-5))
        for k in range(mask.sigma.shape[0])
    )


@pytest.mark.parametrize("grid", [(3, 5), (11, 2)], ids=["3x5", "11x2"])
def test_mask_is_the_loop_over_pairs(grid: tuple[int, int]) -> None:
    torch.manual_seed(0)
    h, w = grid
    mask = GaussianMask(2, grid, 3).double()
    got = mask().detach()
    assert got.shape == (2, h * w, h * w)
    for head in range(2):
        for i in range(h * w):
            for j in range(h * w):
                want = factor(mask, head, i // w - j // w, i % w - j % w)
                assert float(got[head, i, j]) == pytest.approx(want, rel=1e-6, abs=1e-9)


def test_mask_underflows_as_published() -> None:
    """Zero from a squared distance of 104 on; where the paper's equation says 0.59 at sigma 10."""
    mask = GaussianMask(1, (12, 12), 1)
    nn.init.constant_(mask.sigma, 10.0)
    nn.init.ones_(mask.alpha)
    rows = mask()[0, 0].view(12, 12)
    squared = torch.arange(12)[:, None] ** 2 + torch.arange(12) ** 2
    assert (rows[squared >= 104] == 0).all()
    assert (rows[squared < 104] > 0.59).all()
    near = squared < 87
    torch.testing.assert_close(rows[near], torch.exp(-squared[near] / 200), rtol=1e-5, atol=0)
    subnormal = (squared >= 88) & (squared < 104)
    assert (rows[subnormal] - torch.exp(-squared[subnormal] / 200)).abs().max() > 1e-5
    assert float(base((1, 11))[10]) == pytest.approx(math.sqrt(2.0**-149 * round(math.exp(-100) * 2.0**149)), rel=1e-6)
    assert not GaussianMask(2, (4, 4))().isnan().any()


def test_gradients_are_finite_where_the_mask_is_zero() -> None:
    torch.manual_seed(0)
    mask = GaussianMask(2, (16, 16))
    mask().square().sum().backward()
    for parameter in mask.parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()
        assert parameter.grad.abs().min() > 0
    small = GaussianMask(1, (2, 12), 2).double()

    def with_parameters(sigma: Tensor, alpha: Tensor) -> Tensor:
        return torch.func.functional_call(small, {"sigma": sigma, "alpha": alpha}, ())

    values = [torch.randn(2, 1, 1, 1, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    assert torch.autograd.gradcheck(with_parameters, tuple(values))


def test_mask_starts_as_published_and_forgets_the_sign_of_sigma() -> None:
    torch.manual_seed(0)
    mask = GaussianMask(400, (2, 2), 50)
    assert mask.sigma.shape == mask.alpha.shape == (50, 400, 1, 1)
    sigma, alpha = mask.sigma.detach(), mask.alpha.detach()
    assert (float(sigma.mean()), float(sigma.std())) == pytest.approx((10, 10), rel=0.05)
    assert float(alpha.mean()) == pytest.approx(0, abs=0.05)
    assert float(alpha.std()) == pytest.approx(2, rel=0.05)
    before = mask().detach()
    diagonal = before.diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(diagonal, mask.alpha.sum(0).view(-1, 1).expand(-1, 4).detach(), atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        mask.sigma.neg_()
    torch.testing.assert_close(mask(), before, rtol=0, atol=0)
    assert list(mask.state_dict()) == ["sigma", "alpha"]


def test_element_mask_starts_at_zero_and_is_shared_by_heads() -> None:
    mask = ElementMask((2, 3))
    assert mask.weight.shape == (6, 6)
    scores = torch.randn(2, 4, 6, 6)
    assert (times(scores, mask) == 0).all()
    nn.init.normal_(mask.weight)
    torch.testing.assert_close(times(scores, mask), scores * mask.weight)


def softmax_loop(scores: list[list[float]], v: Tensor) -> Tensor:
    return torch.stack([(torch.tensor(row, dtype=v.dtype).softmax(0)[:, None] * v).sum(0) for row in scores])


@pytest.mark.parametrize("prefix", [0, 2])
@torch.no_grad()
def test_masked_attention_is_the_loop_over_tokens(prefix: int) -> None:
    torch.manual_seed(0)
    h, w, heads, d = 2, 3, 2, 4
    layer = with_masks(nn.Sequential(SelfAttention(8, heads)), (h, w), prefix=prefix)[0].double()
    x = torch.randn(1, prefix + h * w, 8, dtype=torch.float64)
    q, k, v = F.linear(x[0], layer.qkv.weight, layer.qkv.bias).split(8, -1)
    out = []
    for head in range(heads):
        own = slice(head * d, head * d + d)
        scores = [[float(a[own] @ b[own]) * d**-0.5 for b in k] for a in q]
        for i in range(prefix, len(x[0])):
            for j in range(prefix, len(x[0])):
                m, n = i - prefix, j - prefix
                scores[i][j] *= factor(layer.mask, head, m // w - n // w, m % w - n % w)
        out.append(softmax_loop(scores, v[:, own]))
    want = F.linear(torch.cat(out, 1), layer.proj.weight, layer.proj.bias)
    torch.testing.assert_close(layer(x)[0], want, rtol=1e-6, atol=1e-6)
    layer.keep_tap = True
    layer(x)
    torch.testing.assert_close((layer.tap.weights @ layer.tap.v).transpose(1, 2).flatten(2)[0], torch.cat(out, 1),
                               rtol=1e-6, atol=1e-6)  # fmt: skip


@torch.no_grad()
def test_masked_windows_are_the_loop_over_windows() -> None:
    """The mask comes before relative bias and shift mask, which are not multiplied."""
    torch.manual_seed(0)
    M, shift = 2, 1
    layer = with_masks(nn.Sequential(WindowAttention(4, 1, window=M, shift=shift)))[0].double()
    nn.init.normal_(layer.bias_table)
    side = 4
    x = torch.randn(1, side, side, 4, dtype=torch.float64)
    q, k, v = F.linear(x[0], layer.qkv.weight, layer.qkv.bias).split(4, -1)
    got, cells = layer(x)[0], [(y, z) for y in range(M) for z in range(M)]
    for top in range(0, side, M):
        for left in range(0, side, M):
            at = [((top + y + shift) % side, (left + z + shift) % side) for y, z in cells]
            region = [(top + y >= side - shift, left + z >= side - shift) for y, z in cells]
            scores = [[0.0] * 4 for _ in cells]
            for i, (y, z) in enumerate(cells):
                for j, (yy, zz) in enumerate(cells):
                    s = float(q[at[i]] @ k[at[j]]) * 0.5 * factor(layer.mask, 0, y - yy, z - zz)
                    s += float(layer.bias_table[(y - yy + M - 1) * (2 * M - 1) + z - zz + M - 1, 0])
                    scores[i][j] = s - 100 * (region[i] != region[j])
            mixed = F.linear(softmax_loop(scores, torch.stack([v[p] for p in at])), layer.proj.weight, layer.proj.bias)
            for p, value in zip(at, mixed, strict=True):
                torch.testing.assert_close(got[p], value, rtol=1e-6, atol=1e-6)


@torch.no_grad()
def test_masked_talking_heads_are_the_loop_over_heads() -> None:
    """First the mask, then the mixing of scores; out head g is the sum over h of M[h, g] times head h."""
    torch.manual_seed(0)
    heads, d, N = 3, 2, 4
    layer = with_masks(nn.Sequential(TalkingHeads(5, heads, head_dim=d)), (2, 2))[0].double()
    x = torch.randn(2, 2, 2, 5, dtype=torch.float64)
    for image in range(2):
        tokens = x[image].reshape(N, 5)
        q = (tokens @ layer.q.weight.T).view(N, heads, d)
        k, v = (tokens @ layer.kv.weight.T).view(N, 2, heads, d).unbind(1)
        scores = torch.zeros(heads, N, N, dtype=torch.float64)
        for head in range(heads):
            for i in range(N):
                for j in range(N):
                    f = factor(layer.mask, head, i // 2 - j // 2, i % 2 - j % 2)
                    scores[head, i, j] = q[i, head] @ k[j, head] * d**-0.5 * f
        mixed = [sum(layer.mix_scores[a, g] * scores[a] for a in range(heads)) for g in range(heads)]
        soft = [m.softmax(-1) for m in mixed]  # type: ignore[union-attr]
        attn = [sum(layer.mix_weights[a, g] * soft[a] for a in range(heads)) for g in range(heads)]
        joined = torch.cat([attn[g] @ v[:, g] for g in range(heads)], 1)
        want = F.linear(joined, layer.proj.weight, layer.proj.bias)
        torch.testing.assert_close(layer(x)[image].reshape(N, 5), want, rtol=1e-6, atol=1e-6)


@torch.no_grad()
def test_masked_value_skip_is_the_loop_over_tokens() -> None:
    torch.manual_seed(0)
    layer = with_masks(nn.Sequential(ValueSkipAttention(6, 4)), (2, 2))[0].double()
    x = torch.randn(1, 2, 2, 6, dtype=torch.float64)
    q, k, v = (x.reshape(4, 6) @ layer.qkv.weight.T).split(4, -1)
    scores = [
        [float(q[i] @ k[j]) * 6**-0.5 * factor(layer.mask, 0, i // 2 - j // 2, i % 2 - j % 2) for j in range(4)]
        for i in range(4)
    ]
    want = v + F.linear(softmax_loop(scores, v), layer.proj.weight, layer.proj.bias)
    torch.testing.assert_close(layer(x).reshape(4, 4), want, rtol=1e-6, atol=1e-6)


def flat(model: nn.Module) -> int:
    """Make every mask one everywhere; the number of masks."""
    masks = [m for m in model.modules() if isinstance(m, GaussianMask)]
    for mask in masks:
        nn.init.constant_(mask.sigma, 1e6)
        nn.init.constant_(mask.alpha, 1 / mask.alpha.shape[0])
    return len(masks)


@pytest.mark.parametrize(
    ("name", "settings", "grid", "prefix", "masks"),
    [
        ("vit/tiny", {"image_size": 32, "patch": 4, "depth": 2}, (8, 8), 1, 2),
        ("vit/tiny", {"image_size": 32, "patch": 8, "depth": 2, "relative": True}, (4, 4), 1, 2),
        ("vit/tiny", {"image_size": (32, 48), "patch": 8, "depth": 1, "class_token": False, "qkv_bias": "qv"},
         (4, 6), 0, 1),
        ("swin/tiny", {"depths": (2, 2), "heads": (3, 6), "image_size": 56}, None, 0, 4),
        ("coswin/patch2_32", {"depths": (2, 2, 2)}, None, 0, 6),
    ],
)  # fmt: skip
def test_masks_of_one_leave_every_host_as_it_is(
    name: str, settings: dict[str, Any], grid: tuple[int, int] | None, prefix: int, masks: int
) -> None:
    """The host is an argument: its own weights go on, under their names, with masks beside them."""
    torch.manual_seed(0)
    host = registry.create(name, **settings).double().eval()
    for parameter in host.parameters():
        nn.init.normal_(parameter, std=0.1)
    state = host.state_dict()
    size = settings.get("image_size", 32)
    image = torch.randn(2, 3, *((size, size) if isinstance(size, int) else size), dtype=torch.float64)
    with torch.no_grad():
        before = host(image)
        assert with_masks(host, grid, prefix=prefix) is host
        masked = host(image)
        assert flat(host) == masks
        after = host(image)
    for a, b, c in zip(before, after, masked, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
        assert (a - c).abs().max() > 1e-3
    new = host.state_dict()
    assert {n for n in new if n not in state} == {n for n in new if ".mask." in n}
    assert all(torch.equal(new[n], v) for n, v in state.items())
    assert {p.dtype for p in host.parameters()} == {torch.float64}
    with torch.no_grad():
        grad_free, training = host(image), [t.detach() for t in torch.enable_grad()(host)(image)]
    for a, b in zip(grad_free, training, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_hosts_that_cannot_take_masks_are_told() -> None:
    with pytest.raises(SettingError, match="no attention layer"):
        with_masks(nn.Sequential(nn.Linear(3, 3)), (2, 2))
    with pytest.raises(SettingError, match="grid"):
        with_masks(nn.Sequential(SelfAttention(8, 2)))
    host = with_masks(nn.Sequential(SelfAttention(8, 2)), (2, 2))
    with pytest.raises(ShapeError, match="4 tokens"):
        host(torch.zeros(1, 5, 8))
    with pytest.raises(SettingError, match="no attention layer"):
        with_masks(host, (2, 2))


@pytest.mark.parametrize(
    ("variant", "classes", "parameters"),
    [
        ("vit", 100, 2_710_492), ("vit_plain", 100, 2_709_796), ("swin", 100, 7_108_738), ("cait", 100, 9_038_948),
        ("cait_tiny", 100, 5_089_604), ("pit", 100, 7_007_836), ("t2t", 100, 6_509_700), ("cait_64", 200, 9_085_896),
    ],
)  # fmt: skip
def test_parameters_are_the_published_number(variant: str, classes: int, parameters: int) -> None:
    model = measure.on_meta(lambda: registry.create(f"gmm_mask/{variant}", classes=classes))
    assert measure.parameters(model) == parameters


def test_every_variant_builds() -> None:
    for name, config in gmm_mask.VARIANTS.items():
        model = measure.on_meta(lambda name=name: registry.create(f"gmm_mask/{name}", classes=100))
        side = config.image_size
        assert model(torch.zeros(1, 3, side, side, device="meta")).shape == (1, 100)
        assert gmm_mask.FACTS.size[name] == side


@pytest.mark.parametrize("image_size", [32, 64])
@pytest.mark.parametrize("host", HOSTS)
def test_levels(host: str, image_size: int) -> None:
    """The dense form: a map per stage, whichever tokens the host carries along."""
    name = host if image_size == 32 else f"{host}_64"
    model = registry.create(f"gmm_mask/{name}", in_channels=2, depths=FEW[host]).eval()
    assert isinstance(model, protocols.TokenBackbone)
    image = torch.randn(2, 2, image_size, image_size)
    with torch.no_grad():
        levels, tokens = model(image), model.tokens(image)
    sides = {"swin": [16, 8, 4], "pit": [16, 8, 4]}.get(host, [8])
    want = [(2, c, n, n) for c, n in zip(model.channels, sides, strict=True)]
    assert [tuple(level.shape) for level in levels] == want
    assert [image_size // n for n in sides] == list(model.strides)
    assert tokens.shape == (2, model.prefix + sides[-1] ** 2, model.channels[-1])
    torch.testing.assert_close(tokens[:, model.prefix :], levels[-1].flatten(2).transpose(1, 2), rtol=0, atol=0)


@pytest.mark.parametrize("host", HOSTS)
def test_one_step_of_training(host: str) -> None:
    """Every trained parameter gets a gradient; what was published untrained stays so."""
    torch.manual_seed(0)
    model = registry.classifier(network(host), 5).train()
    F.cross_entropy(model(torch.randn(4, 3, 32, 32)), torch.arange(4)).backward()
    still = {n for n, p in model.named_parameters() if not p.requires_grad}
    assert {n.split(".")[-2 if "norm" in n else -1] for n in still} == ({"unused_norm", "unused_token"} if host == "t2t"
                                                                       else set())  # fmt: skip
    missing = [n for n, p in model.named_parameters() if n not in still and (p.grad is None or not p.grad.any())]
    if host == "pit":  # the head looks at the class token, whose row no mask touches
        missing = [n for n in missing if not n.startswith("backbone.stages.2.blocks.0.token_mixer.mask")]
    assert missing == []
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("mask", ["elements", "none"])
@pytest.mark.parametrize("host", HOSTS)
def test_other_masks(host: str, mask: str) -> None:
    """Without masks a state fits but for them; element masks start as attention to everything alike."""
    torch.manual_seed(0)
    model, gaussian = network(host, mask=mask), network(host)
    added = sum(isinstance(m, GaussianMask) for m in gaussian.modules())
    assert not any(isinstance(m, GaussianMask) for m in model.modules())
    assert sum(isinstance(m, ElementMask) for m in model.modules()) == (added if mask == "elements" else 0)
    with torch.no_grad():
        assert all(level.isfinite().all() for level in model.eval()(torch.randn(1, 3, 32, 32)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("host", HOSTS)
def test_precisions_and_batches(host: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = registry.classifier(network(host), 5).eval().to(dtype)
    images = torch.randn(2, 3, 32, 32, dtype=dtype)
    with torch.no_grad():
        together, alone = model(images), torch.cat([model(i[None]) for i in images])
    assert together.dtype == dtype
    assert together.isfinite().all()
    if dtype == torch.float64:
        torch.testing.assert_close(together, alone, rtol=1e-9, atol=1e-9)
        training = model(images)  # under gradients scores are not changed in place
        torch.testing.assert_close(training.detach(), together, rtol=1e-9, atol=1e-9)


def test_other_sizes_are_refused() -> None:
    model = network("swin")
    with pytest.raises(ShapeError, match="32 x 32 pixels, the image has 32 x 40"):
        model(torch.zeros(1, 3, 32, 40))
    with pytest.raises(ShapeError, match="32 x 32 pixels, the image has 64 x 64"):
        network("t2t")(torch.zeros(1, 3, 64, 64))
    for name, settings in (
        ("vit", {"image_size": 48}), ("vit", {"patch": 5}), ("swin", {"patch": 4}), ("pit", {"patch": 16}),
        ("t2t", {"patch": 2}), ("vit", {"depths": (2, 2), "heads": (2, 2)}), ("vit", {"class_depth": 1}),
        ("swin", {"heads": (5, 6, 12)}), ("swin", {"head_dim": 16}), ("cait", {"class_depth": 0}),
        ("vit", {"heads": (5,)}),
    ):  # fmt: skip
        with pytest.raises(SettingError, match="gmm_mask"):
            registry.create(f"gmm_mask/{name}", **settings)


def rates(model: nn.Module) -> list[float]:
    return [round(m.p, 4) for m in model.modules() if isinstance(m, DropPath)]


def test_drop_path_is_even_or_linear() -> None:
    assert rates(network("vit")) == [0.1, 0.1]
    assert rates(network("cait")) == [0.1, 0.1, 0.1]
    assert rates(network("pit")) == [0.1] * 4
    assert rates(network("swin")) == [0.0, 0.0333, 0.0667, 0.1]
    assert rates(registry.create("gmm_mask/t2t", depths=(3,))) == [0.0, 0.05, 0.1]


def test_starts() -> None:
    """Xavier normal, truncated normal or the framework's, as the card says; layer scale by the layer's place."""
    torch.manual_seed(0)
    vit = registry.classifier(network("vit"), 400)
    block = vit.backbone.stages[0].blocks[0]
    assert float(block.channel_mixer.fc1.weight.std()) == pytest.approx((2 / (192 + 384)) ** 0.5, rel=0.03)
    assert float(vit.head.fc.weight.std()) == pytest.approx((2 / (192 + 400)) ** 0.5, rel=0.03)
    embedding = vit.backbone.stages[0].merge
    assert float(embedding.patches.conv.weight.std()) == pytest.approx((2 / (192 + 48)) ** 0.5, rel=0.05)
    assert float(embedding.positions.std()) == pytest.approx(1, rel=0.05)
    pit = network("pit")
    assert float(pit.stages[0].merge.patches.conv.weight.std()) == pytest.approx((2 / (12 + 384)) ** 0.5, rel=0.1)
    t2t = registry.classifier(network("t2t"), 400)
    assert float(t2t.backbone.stages[0].blocks[0].channel_mixer.fc1.weight.std()) == pytest.approx(0.02, rel=0.05)
    swin = network("swin")
    assert float(swin.stages[0].blocks[0].channel_mixer.fc2.weight.std()) == pytest.approx((3 * 192) ** -0.5, rel=0.05)
    assert float(swin.stages[0].merge.positions.std()) == pytest.approx(0.02, rel=0.1)
    for model in (vit, pit, t2t):
        assert all(not m.bias.any() for m in model.modules() if isinstance(m, nn.Linear) and m.bias is not None)
    cait = registry.create("gmm_mask/cait")
    scales = [float(b.scale2.scale.unique()) for b in cait.stages[0].blocks]
    assert scales == pytest.approx([0.1] * 18 + [1e-5] * 6)


def test_class_token_is_not_among_its_keys() -> None:
    torch.manual_seed(0)
    block = network("cait").class_blocks[0]
    token, patches = torch.randn(1, 1, 192), torch.randn(1, 6, 192)
    seen: list[Tensor] = []
    block.attention.kv.register_forward_hook(lambda _, given, __: seen.append(given[0]))
    with torch.no_grad():
        block(token, patches)
    assert torch.equal(seen[0], patches)  # neither the token nor a norm


def test_windows_of_the_last_stage_do_not_shift() -> None:
    shifts = [[b.token_mixer.shift for b in s.blocks] for s in registry.create("gmm_mask/swin").stages]
    assert shifts == [[0, 2], [0, 2] * 3, [0] * 4]


def published(host: str) -> tuple[Fixture, dict[str, Tensor]]:
    """The state that the authors' trainer saves: the vector's, with the constants that they stored as parameters."""
    fixture = Fixture.read(VECTORS / f"gmm-mask--{host}.json")
    state = fixture.state_dict()
    mean = {"swin": [4] * 3, "pit": [16, 8, 4]}
    for name in [n for n in state if n.endswith("mask.sigma")]:
        if host == "t2t":
            side = 16 if name.startswith("tokens_to_token") else 8
        else:
            side = mean.get(host, [8] * 3)[int(name.split(".")[1]) // 2 if host == "pit" else 0]
        state[name.replace("sigma", "mask")] = pairs((side, side))
    state["mask"] = pairs((8, 8))
    if host == "t2t":
        i = torch.arange(256)
        angle = torch.arange(64.0)[:, None] / 10000 ** (2 * (i // 2) / 256)
        state["pos_embed"] = torch.where(i % 2 == 0, angle.sin(), angle.cos())[None]
    return fixture, state


@pytest.mark.parametrize("host", HOSTS)
def test_published_files_are_read(host: str, tmp_path: Path) -> None:
    fixture, state = published(host)
    path = tmp_path / "best.pth"
    torch.save({"model_state_dict": state, "epoch": 3}, path)
    name = "gmm_mask/cait_64" if host == "cait" else f"gmm_mask/{host}"
    model = weights.load_published(name, path)
    with torch.no_grad():
        assert fixture.compare("logits", model(fixture.input()), 1e-3) < 1e-3
    assert model.backbone.config == replace(
        registry.lookup(name)[1], drop_path=model.backbone.config.drop_path
    )  # nothing about the network was left to chance
    wrong = dict(state)
    key = next(n for n in wrong if n.endswith("mask.mask"))
    wrong[key] = wrong[key] + 0.1
    torch.save(wrong, path)
    with pytest.raises(WeightsError, match=r"mask\.mask: stored as a parameter, but not the constant"):
        weights.load_published(name, path)


def test_files_of_other_hosts_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "best.pth"
    torch.save(published("pit")[1], path)
    with pytest.raises(WeightsError, match="host pit, and this one has vit"):
        weights.load_published("gmm_mask/vit", path)
    torch.save(published("cait")[1], path)
    with pytest.raises(WeightsError, match="patch 8"):
        weights.load_published("gmm_mask/cait", path)
    torch.save({"other": torch.zeros(3)}, path)
    with pytest.raises(WeightsError, match="none of the networks"):
        weights.load_published("gmm_mask/cait", path)


@pytest.mark.parametrize("mask", ["gaussian", "elements", "none"])
@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("size", ["", "_64"])
def test_own_names_go_there_and_back(host: str, mask: str, size: str) -> None:
    """Every shape is found again from the authors' names, for widths and depths that no vector has."""
    dim, heads = {"swin": (24, (2, 4, 8)), "pit": (24, (2, 2, 2))}.get(host, (24, (2,)))
    config = replace(
        registry.lookup(f"gmm_mask/{host}{size}")[1], dim=dim, heads=heads, depths=FEW[host], mask=mask, kernels=3,
        in_channels=3, mlp_ratio=3.0, **({"class_depth": 3} if host == "cait" else {}),
        **({"head_dim": 10} if host not in ("swin",) else {}),
    )  # fmt: skip
    model = gmm_mask.build(config)
    keymaps = gmm_mask.GAUSSIAN if mask == "gaussian" else gmm_mask.OTHERS
    names = theirs(host, model, mask)
    assert sorted(filter(None, map(keymaps[host].name, names))) == sorted(f"backbone.{n}" for n in model.state_dict())
    arguments = {"num_heads": list(heads), "stochastic_depth": 0.1}
    found = gmm_mask.from_published(arguments, names)
    assert found == replace(config, kernels=found.kernels if mask != "gaussian" else 3)


def theirs(host: str, model: nn.Module, mask: str) -> dict[str, tuple[int, ...]]:
    """Our names of a host as its authors'."""
    pre = {"vit": "transformer", "cait": "patch_transformer"}.get(host, "")
    fn = "fn.fn" if host == "cait" else "fn"
    found = {}
    for name, value in model.state_dict().items():
        parts, shape = name.split("."), tuple(value.shape)
        new = name
        if host in ("vit", "pit", "cait"):
            new = new.replace("token_mixer", f"0.{fn}").replace("attention.", f"0.{fn}.")
            new = new.replace("channel_mixer.fc1", f"1.{fn}.net.0").replace("channel_mixer.fc2", f"1.{fn}.net.3")
            wrap = "fn." if host == "cait" else ""
            new = new.replace("norm1", f"0.{wrap}norm").replace("norm2", f"1.{wrap}norm")
            new = new.replace("scale1", "0").replace("scale2", "1").replace("proj", "to_out.0")
            new = new.replace("mix_scores", "mix_heads_pre_attn").replace("mix_weights", "mix_heads_post_attn")
            new = new.replace(".qkv.", ".to_qkv.").replace(".q.", ".to_q.").replace(".kv.", ".to_kv.")
            new = new.replace("stages.0.merge.patches.conv", f"to_patch_embedding.{int(host != 'pit')}")
            new = new.replace("stages.0.merge.class_token", "cls_token").replace("class_token", "cls_token")
            new = new.replace("stages.0.merge.positions", "pos_embedding")
            if "blocks" in parts[0]:
                new = new.replace("class_blocks", "cls_transformer.layers")
            elif "blocks" in parts:
                stage = int(parts[1])
                prefix = f"layers.{2 * stage}" if host == "pit" else pre
                new = new.replace(f"stages.{stage}.blocks", f"{prefix}.layers")
            elif parts[0] == "stages" and parts[1] != "0":
                new = new.replace(f"stages.{parts[1]}.merge", f"layers.{2 * int(parts[1]) - 1}")
                new = new.replace("depthwise", "downsample.net.0").replace("pointwise", "downsample.net.1")
                new = new.replace("cls_token", "cls_ff")
            if "to_patch_embedding.1.weight" in new:
                shape = (shape[0], math.prod(shape[1:]))
        elif host == "swin":
            new = new.replace("stages.0.merge.positions", "absolute_pos_embed").replace("channel_mixer", "mlp")
            new = new.replace("stages.0.merge.patches.conv", "patch_embed.proj")
            new = new.replace("stages.0.merge.patches.norm", "patch_embed.norm")
            new = new.replace("token_mixer.bias_table", "attn.relative_position_bias_table")
            new = new.replace("token_mixer", "attn")
            if new.startswith("stages."):
                stage = int(parts[1])
                merge = f"layers.{stage - 1}.downsample"
                new = new.replace(f"stages.{stage}.merge", merge).replace(f"stages.{stage}", f"layers.{stage}")
        else:
            new = new.replace("stages.0.merge.mixers.0", "tokens_to_token.attention1")
            new = new.replace("stages.0.merge.mixers.1", "tokens_to_token.attention2")
            new = new.replace("stages.0.merge.unused_token", "cls_token")
            new = new.replace("stages.0.merge.unused_norm", "tokens_to_token.norm").replace("stages.0.", "")
            new = new.replace("merge.project", "tokens_to_token.project").replace("token_mixer.attention", "attn")
            new = new.replace("token_mixer", "attn").replace("channel_mixer", "mlp")
        found[new.replace("mask.weight", "mask") if mask == "elements" else new] = shape
    return found


@pytest.mark.parametrize(
    ("name", "published"), [("vit", 170.9), ("swin", 236.9), ("cait_tiny", 305.9), ("pit", 239.1), ("t2t", 417.4)]
)
def test_macs_of_the_paper(name: str, published: float) -> None:
    """Its counts (millions) are those of linear layers and convolutions; products inside attention are not in them."""
    model = measure.on_meta(lambda: registry.create(f"gmm_mask/{name}", classes=100))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 3, 32, 32, device="meta"))
    found = counter.get_flop_counts()["Global"]
    layers = sum(n for kind, n in found.items() if "bmm" not in str(kind)) / 2e6
    if name == "cait_tiny":  # of one image the mixing of 4 heads, twice in 24 layers, is a plain product
        layers -= 24 * 2 * 4 * 4 * 64**2 / 1e6
    assert layers == pytest.approx(published, rel=5e-3)
    assert sum(found.values()) / 2e6 > 1.01 * layers


@pytest.mark.slow
@pytest.mark.parametrize("host", HOSTS)
def test_every_host_compiles_whole(host: str) -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = registry.classifier(network(host), 5).eval()
    image = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True)(image)
        torch.testing.assert_close(compiled, model(image), atol=1e-3, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("host", HOSTS)
def test_every_host_exports(host: str, tmp_path: Path) -> None:
    from core import export

    name = f"gmm_mask/{host}"
    done = export.export(registry.create(name, classes=3, depths=FEW[host]), tmp_path / "x.onnx", (32, 32), name=name)
    assert done.difference < export.BOUND


def test_head_is_the_hosts() -> None:
    """The classifier is found by the module in which the hosts live."""
    assert sys.modules[type(network("cait")).__module__].head is gmm_mask.head
