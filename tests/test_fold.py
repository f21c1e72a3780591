"""Folding of batch norms: exact where it is done, not done where it would not be."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from parity import fill_
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from core import registry
from core.compression.fold import fold, fold_after, fold_before
from core.errors import SettingError
from core.layers.linear import Linear

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def norms(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, NORMS)]


def check(model: nn.Module, *shape: int, left: list[str], bound: float = 1e-5, dtype: Any = torch.float32) -> nn.Module:
    """Fold a filled model; its answer stays within `bound` of the spread, and `left` are the norms that stay."""
    model = fill_(model.to(dtype))
    state = {n: v.clone() for n, v in model.state_dict().items()}
    folded = fold(model)
    image = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=dtype)
    with torch.no_grad():
        want, got = model(image), folded(image)
    for a, b in zip(*((x if isinstance(x, list) else [x]) for x in (got, want)), strict=True):
        assert (a - b).abs().max() <= bound * b.std()
    assert norms(folded) == left
    assert not folded.training
    assert state.keys() == model.state_dict().keys()  # the original stays as it is
    assert all(torch.equal(v, state[n]) for n, v in model.state_dict().items())
    ours = {id(p) for p in model.parameters()}
    assert all(id(p) not in ours for p in folded.parameters())
    return folded


LAYERS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "conv": (lambda: nn.Sequential(nn.Conv2d(6, 8, 3, 2, 1), nn.BatchNorm2d(8)), (6, 9, 7)),
    "no bias": (lambda: nn.Sequential(nn.Conv2d(6, 8, 3, bias=False), nn.BatchNorm2d(8)), (6, 9, 7)),
    "groups": (lambda: nn.Sequential(nn.Conv2d(6, 8, 3, groups=2), nn.BatchNorm2d(8)), (6, 9, 7)),
    "depthwise": (lambda: nn.Sequential(nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.BatchNorm2d(6)), (6, 9, 7)),
    "dilated": (lambda: nn.Sequential(nn.Conv2d(6, 8, 3, dilation=2), nn.BatchNorm2d(8)), (6, 9, 7)),
    "1d": (lambda: nn.Sequential(nn.Conv1d(6, 8, 3), nn.BatchNorm1d(8)), (6, 9)),
    "3d": (lambda: nn.Sequential(nn.Conv3d(6, 8, 3), nn.BatchNorm3d(8)), (6, 9, 7, 5)),
    "transposed": (lambda: nn.Sequential(nn.ConvTranspose2d(6, 8, 4, 2, 1), nn.BatchNorm2d(8)), (6, 5, 7)),
    "transposed groups": (
        lambda: nn.Sequential(nn.ConvTranspose2d(6, 9, 4, 2, 1, bias=False, groups=3), nn.BatchNorm2d(9)),
        (6, 5, 7),
    ),
    "linear": (lambda: nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8)), (6,)),
    "house linear": (lambda: nn.Sequential(Linear(6, 8, bias=False), nn.BatchNorm1d(8)), (6,)),
    "no affine": (lambda: nn.Sequential(nn.Conv2d(6, 8, 3), nn.BatchNorm2d(8, affine=False)), (6, 9, 7)),
    "synchronised": (lambda: nn.Sequential(nn.Conv2d(6, 8, 3), nn.SyncBatchNorm(8)), (6, 9, 7)),
    "identity between": (lambda: nn.Sequential(nn.Conv2d(6, 8, 3), nn.Identity(), nn.BatchNorm2d(8)), (6, 9, 7)),
    "two norms": (lambda: nn.Sequential(nn.Conv2d(6, 8, 3), nn.BatchNorm2d(8), nn.BatchNorm2d(8)), (6, 9, 7)),
    "before 1x1": (lambda: nn.Sequential(nn.BatchNorm2d(6), nn.Conv2d(6, 8, 1)), (6, 9, 7)),
    "before 1x1 same": (lambda: nn.Sequential(nn.BatchNorm2d(6), nn.Conv2d(6, 8, 1, padding="same")), (6, 9, 7)),
    "before 3x3": (lambda: nn.Sequential(nn.BatchNorm2d(6), nn.Conv2d(6, 8, 3, 2, bias=False)), (6, 9, 7)),
    "before groups": (lambda: nn.Sequential(nn.BatchNorm2d(6), nn.Conv2d(6, 8, (2, 3), groups=2)), (6, 9, 7)),
    "before mirrored": (
        lambda: nn.Sequential(nn.BatchNorm2d(6), nn.Conv2d(6, 8, 3, padding=1, padding_mode="reflect")),
        (6, 9, 7),
    ),
    "before linear": (lambda: nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 8)), (6,)),
    "both sides": (
        lambda: nn.Sequential(nn.BatchNorm2d(6), nn.Conv2d(6, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1)),
        (6, 9, 7),
    ),
    "nested": (
        lambda: nn.Sequential(nn.Sequential(nn.Conv2d(6, 8, 3), nn.BatchNorm2d(8), nn.ReLU()), nn.Conv2d(8, 4, 1)),
        (6, 9, 7),
    ),
}


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_folded_layers_are_exact(kind: str, dtype: torch.dtype) -> None:
    make, shape = LAYERS[kind]
    check(make(), 3, *shape, left=[], bound=1e-5 if dtype == torch.float32 else 1e-12, dtype=dtype)


class Doubled(nn.Conv2d):
    """A convolution whose output is not the convolution's."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).square()


def shared() -> nn.Module:
    conv = nn.Conv2d(6, 6, 3, padding=1)
    return nn.Sequential(conv, nn.BatchNorm2d(6), nn.Sequential(conv))


def tied() -> nn.Module:
    a, b = nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
    b.weight = a.weight
    return nn.Sequential(a, nn.BatchNorm2d(6), b)


def norm_of_two() -> nn.Module:
    norm = nn.BatchNorm2d(6)
    return nn.Sequential(nn.Conv2d(6, 6, 1), norm, nn.ReLU(), nn.Conv2d(6, 6, 1), norm)


class Taps(nn.Module):
    """Two children beside one another, and no statement of how they are joined."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x) + self.conv(x)


class Sums(nn.Sequential):
    """A Sequential with a forward pass of its own."""

    def forward(self, input: Tensor) -> Tensor:
        total: Tensor = sum(layer(input) for layer in self)  # type: ignore[assignment]
        return total


def stateless() -> nn.Module:
    return nn.Sequential(nn.Conv2d(6, 8, 3), nn.BatchNorm2d(8, track_running_stats=False))


APART: dict[str, tuple[Any, list[str]]] = {
    "zeros between": (lambda: nn.Sequential(nn.BatchNorm2d(6), nn.Conv2d(6, 8, 3, padding=1)), ["0"]),
    "same": (lambda: nn.Sequential(nn.BatchNorm2d(6), nn.Conv2d(6, 8, 3, padding="same")), ["0"]),
    "before transposed": (lambda: nn.Sequential(nn.BatchNorm2d(6), nn.ConvTranspose2d(6, 8, 3)), ["0"]),
    "activation between": (lambda: nn.Sequential(nn.Conv2d(6, 6, 3), nn.ReLU(), nn.BatchNorm2d(6)), ["2"]),
    "another forward": (lambda: nn.Sequential(Doubled(6, 6, 3), nn.BatchNorm2d(6)), ["1"]),
    "batch statistics": (stateless, ["1"]),
    "a layer twice": (shared, ["1"]),
    "a weight twice": (tied, ["1"]),
    "a norm twice": (norm_of_two, ["1"]),
    "no statement": (Taps, ["norm"]),
    "own forward": (lambda: Sums(nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)), ["1"]),
    "a weight norm": (
        lambda: nn.Sequential(parametrizations.weight_norm(nn.Conv2d(6, 6, 3)), nn.BatchNorm2d(6)), ["1"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", APART)
def test_what_cannot_be_folded_stays(kind: str) -> None:
    make, left = APART[kind]
    check(make(), 3, 6, 9, 7, left=left, bound=0.0 if kind != "a layer twice" else 1e-6)


def test_hooks_keep_their_layers() -> None:
    seen: list[Tensor] = []
    model = fill_(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)))
    model[0].register_forward_hook(lambda module, given, out: seen.append(out))
    assert norms(fold(model)) == ["1"]


def test_a_linear_layer_over_positions_is_refused_and_not_wrong() -> None:
    """Of (B, N, C) a BatchNorm1d norms N, which only shows when N = C; the folded layer asks for (B, C)."""
    model = fill_(nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8)))
    with pytest.raises(SettingError, match=r"takes \(B, C\), got \(2, 8, 6\)"):
        fold(model)(torch.randn(2, 8, 6))


class Stated(nn.Module):
    """A channels-last linear layer between two batch norms, and a deeper part."""

    fusable = (("norm", "fc", "after.norm"), ("missing", "spare"))

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.fc = nn.BatchNorm2d(6), Linear(6, 8)
        self.after = nn.ModuleDict({"norm": nn.BatchNorm2d(8)})
        self.missing, self.spare = None, nn.BatchNorm2d(8)  # nothing to fold the spare norm into

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc(self.norm(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.spare(F.relu(self.after["norm"](y)))


def test_modules_state_their_own_chains() -> None:
    check(nn.Sequential(Stated()), 2, 6, 5, 4, left=["0.spare"])
    wrong = Stated()
    wrong.fusable = (("norm", "fc", "after.bias"),)  # type: ignore[assignment]
    with pytest.raises(SettingError, match=r"no part 'bias', which `fusable` names \(after\.bias\)"):
        fold(wrong)


class Branches(nn.Module):
    """x + conv(x) in training, one convolution for inference."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.norm(self.conv(x))

    def merged(self) -> nn.Module:
        conv = fold_after(self.conv, self.norm)
        conv.weight[:, :, 1, 1] += torch.eye(4)
        return conv


def test_branches_are_merged_and_then_folded() -> None:
    model = nn.Sequential(Branches(), nn.BatchNorm2d(4), nn.ReLU(), Branches())
    folded = check(model, 2, 4, 7, 6, left=[])
    assert [type(m) for m in folded] == [nn.Conv2d, nn.Identity, nn.ReLU, nn.Conv2d]


def test_fold_before_and_after_leave_their_layers() -> None:
    conv, norm = fill_(nn.Conv2d(4, 4, 1)), fill_(nn.BatchNorm2d(4))
    kept = copy.deepcopy((conv.state_dict(), norm.state_dict()))
    x = torch.randn(2, 4, 3, 3)
    torch.testing.assert_close(fold_after(conv, norm)(x), norm(conv(x)))
    torch.testing.assert_close(fold_before(norm, conv)(x), conv(norm(x)))
    assert all(torch.equal(a[n], b[n]) for a, b in zip(kept, (conv.state_dict(), norm.state_dict()), strict=True)
               for n in a)  # fmt: skip


def test_meta_and_precision() -> None:
    with torch.device("meta"):
        folded = fold(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)))
    assert norms(folded) == []
    half = fold(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).to(torch.bfloat16))
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    mixed = nn.Sequential(nn.Conv2d(3, 8, 3).to(torch.bfloat16), nn.BatchNorm2d(8))
    assert norms(fold(mixed)) == ["1"]
    conv = nn.Conv2d(3, 8, 3).to(memory_format=torch.channels_last)
    folded = fold(nn.Sequential(conv, nn.BatchNorm2d(8)))
    assert folded[0].weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("family", registry.families())
def test_every_family_answers_alike(family: str) -> None:
    """Backbones with one block or two a stage, whether or not they have a batch norm; on the whole pyramid.

    In float64: in float32 rounding alone comes to 1.2e-5 of the spread in single values (SViT).
    """
    module = registry.family(family)
    name, config = next(iter(module.VARIANTS.items()))
    few = {"depths": tuple(min(d, 2) for d in config.depths)} if hasattr(config, "depths") else {}
    few |= {"depth": 2} if isinstance(getattr(config, "depth", None), int) else {}
    torch.manual_seed(0)
    model = registry.classifier(registry.create(f"{family}/{name}", **few), 7).eval()
    for part in model.modules():
        if isinstance(part, NORMS):
            assert part.running_mean is not None
            assert part.running_var is not None
            nn.init.normal_(part.running_mean, std=0.1)
            nn.init.uniform_(part.running_var, 0.5, 2.0)
    axes = module.FACTS.axes(name)
    axes = axes if len(axes) == 2 else (3, *(n // 2 for n in axes[1:]))  # a clip of any size
    model, image = model.double(), torch.randn(1, 3, *axes, dtype=torch.float64)
    folded: Any = fold(model)
    with torch.no_grad():
        pairs = [(folded(image), model(image)), *zip(folded.backbone(image), model.backbone(image), strict=True)]
    for got, want in pairs:
        assert (got - want).abs().max() <= 1e-9 * want.std()


def test_resnets_lose_every_norm() -> None:
    for name in ("18", "50"):
        model = registry.create(f"resnet/{name}", depths=(1, 1, 1, 1))
        check(model, 1, 3, 64, 64, left=[])
