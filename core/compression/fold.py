"""Batch norms as part of the convolution or linear layer beside them, for inference.

In evaluation a batch norm is x -> scale x + shift per channel. Behind a convolution it scales the convolution's filters
and moves its bias; in front of one it scales the filters' inputs, which is exact only where no zeros are padded in
(they would be added after the norm). Papers: arXiv 1712.05877, section 3.2; of branches: arXiv 2101.03697.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from core.errors import SettingError
from core.layers.linear import Linear

Chain = list[tuple[nn.Module, str]]  # modules that alone read one another's output in turn, by parent and name

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_LAYERS = (*_CONVS, *_TRANSPOSED, nn.Linear, Linear)
# Blocks of other libraries that cannot carry the hint: class -> what `fusable` would say.
_KNOWN = {
    "torchvision.models.resnet.BasicBlock": (("conv1", "bn1"), ("conv2", "bn2")),
    "torchvision.models.resnet.Bottleneck": (("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3")),
}


def fold(model: nn.Module) -> nn.Module:
    """A copy of a network in evaluation mode, its batch norms folded where that is exact; `model` stays as it is.

    A batch norm is folded where the order of the data is written down, never guessed from a forward pass:

    - between neighbours of an `nn.Sequential`, which is taken to be called as a whole;
    - along the chains of names in a module's `fusable`, ("conv", "norm") say, which states that each of these children
      (names may be dotted) takes what the one before it gives and nothing else reads that. What lies unnamed between
      the two must commute with a scale and a shift per channel (a mean, a permutation);
    - in the blocks of torchvision's ResNets.

    A norm goes into the layer before it, else into the one after it if nothing is padded there. A module with
    a method `merged()` is first replaced by what it answers: its form of fewer branches. Left alone are modules that
    occur twice, that share parameters, have hooks or parametrisations, or norms that use the statistics of the batch.

    The copy is for inference: its norms are gone, so training it further is training another network.

    Raises:
        SettingError: a `fusable` that names a child that is not there.

    >>> conv = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    >>> fold(conv)[1]
    Identity()
    """
    with torch.no_grad():
        out = _merged(copy.deepcopy(model).eval(), {})
        once = _Once(out)
        for parent in list(out.modules()):
            for chain, stated in _chains(parent):
                _fold_chain(chain, once, stated=stated)
    return out


def fold_after(layer: nn.Module, norm: nn.Module) -> nn.Module:
    """norm(layer(x)) as one layer: a copy of a convolution, transposed convolution or linear layer.

    Args:
        layer: its output's channels are the norm's.
        norm: a batch norm with running statistics, in evaluation.
    """
    scale, shift = _affine(norm)
    weight = _weight(layer)
    if isinstance(layer, _TRANSPOSED):  # (in, out / groups, ...), the groups along the first
        by_group = weight.unflatten(0, (layer.groups, -1))
        factor = scale.reshape(layer.groups, 1, -1, *[1] * (weight.ndim - 2))
        weight = (by_group * factor).flatten(0, 1)
    else:
        weight = weight * scale.reshape(-1, *[1] * (weight.ndim - 1))
    bias = shift if layer.bias is None else _double(layer.bias) * scale + shift
    return _with(layer, weight, bias)


def fold_before(norm: nn.Module, layer: nn.Module) -> nn.Module:
    """layer(norm(x)) as one layer, for a linear layer or a convolution that pads no zeros: a copy of the layer.

    Args:
        norm: a batch norm with running statistics, in evaluation.
        layer: its input's channels are the norm's.
    """
    scale, shift = _affine(norm)
    weight = _weight(layer)
    groups = int(getattr(layer, "groups", 1))
    by_group = weight.unflatten(0, (groups, -1))  # (groups, out / groups, in / groups, ...)
    shape = (groups, 1, -1, *[1] * (weight.ndim - 2))
    moved = (by_group * shift.reshape(shape)).flatten(0, 1).flatten(1).sum(1)
    bias = moved if layer.bias is None else _double(layer.bias) + moved
    return _with(layer, (by_group * scale.reshape(shape)).flatten(0, 1), bias)


class _Rows(Linear):
    """A linear layer that took in a BatchNorm1d: over (B, C) alone, as a norm of (B, N, C) would be over N."""

    def forward(self, input: Tensor) -> Tensor:
        if input.ndim != 2:
            raise SettingError(f"a linear layer with a folded BatchNorm1d takes (B, C), got {tuple(input.shape)}")
        return super().forward(input)


class _Once:
    """Which modules can be replaced without anybody else noticing."""

    def __init__(self, model: nn.Module) -> None:
        self.alive = list(model.modules())  # so that no new module takes the id of one that is gone
        self.places = Counter(id(m) for _, m in model.named_modules(remove_duplicate=False))
        self.owners = Counter(id(p) for p in _tensors(model))

    def __call__(self, module: nn.Module) -> bool:
        hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
        return (
            self.places[id(module)] == 1
            and all(self.owners[id(p)] == 1 for p in _tensors(module))
            and not any(hooks)
            and not parametrize.is_parametrized(module)
        )

    def add(self, module: nn.Module) -> None:
        """A layer that this function made and put in one place."""
        self.alive.append(module)
        self.places[id(module)] += 1
        self.owners.update(id(p) for p in _tensors(module))


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    for module in model.modules():
        yield from (t for t in (*module._parameters.values(), *module._buffers.values()) if t is not None)


def _merged(module: nn.Module, done: dict[nn.Module, nn.Module]) -> nn.Module:
    """The module with each part that has `merged()` in the form that this answers; what occurs twice stays one."""
    if module not in done:
        merged: Any = getattr(module, "merged", None)
        if callable(merged):
            done[module] = merged().eval()
        else:
            done[module] = module
            for name, child in module._modules.items():
                if child is not None:
                    module._modules[name] = _merged(child, done)
    return done[module]


def _chains(parent: nn.Module) -> Iterator[tuple[Chain, bool]]:
    """Chains of a module's parts, and whether the module states them itself."""
    if isinstance(parent, nn.Sequential) and type(parent).forward is nn.Sequential.forward:
        yield [(parent, name) for name in parent._modules], False
    kind = type(parent)
    hint: Sequence[Sequence[str]] = getattr(parent, "fusable", _KNOWN.get(f"{kind.__module__}.{kind.__name__}", ()))
    for names in hint:
        yield [place for name in names if (place := _place(parent, name)) is not None], True


def _place(parent: nn.Module, name: str) -> tuple[nn.Module, str] | None:
    """The module that holds a part by a dotted name, and the part's own name; None where the part is None."""
    *path, last = name.split(".")
    for step in path:
        inner = _part(parent, step, name)
        if inner is None:
            return None
        parent = inner
    return None if _part(parent, last, name) is None else (parent, last)


def _part(parent: nn.Module, step: str, name: str) -> nn.Module | None:
    if step not in parent._modules and getattr(parent, step, name) is not None:
        raise SettingError(f"{type(parent).__name__} has no part {step!r}, which `fusable` names ({name})")
    return parent._modules.get(step)


def _fold_chain(chain: Chain, once: _Once, *, stated: bool) -> None:
    before: tuple[nn.Module, str] | None = None
    for parent, name in chain:
        module = parent._modules[name]
        if module is None or type(module) is nn.Identity:
            continue
        last = None if before is None else before[0]._modules[before[1]]
        if before is not None and last is not None and once(module) and once(last):
            if made := _after(last, module, stated=stated):
                once.add(made)
                before[0]._modules[before[1]], parent._modules[name] = made, nn.Identity()
                continue
            if made := _before(last, module, stated=stated):
                once.add(made)
                before[0]._modules[before[1]], parent._modules[name] = nn.Identity(), made
        before = (parent, name)


def _after(layer: nn.Module, norm: nn.Module, *, stated: bool) -> nn.Module | None:
    """The layer with the norm behind it, None where that is not one layer."""
    if not _fit(layer, norm, stated=stated) or _channels(layer)[1] != norm.num_features:
        return None
    made = fold_after(layer, norm)
    return made if stated or not isinstance(made, nn.Linear) else _as_rows(made)


def _before(norm: nn.Module, layer: nn.Module, *, stated: bool) -> nn.Module | None:
    """The layer with the norm in front of it, None where that is not one layer."""
    if not _fit(layer, norm, stated=stated) or _channels(layer)[0] != norm.num_features or not _unpadded(layer):
        return None
    made = fold_before(norm, layer)
    return made if stated or not isinstance(made, nn.Linear) else _as_rows(made)


def _fit(layer: nn.Module, norm: nn.Module, *, stated: bool) -> bool:
    """Whether these are a layer and a norm of the same axis, precision and place."""
    if not (_is_layer(layer) and _is_norm(norm) and _alike(layer, norm)):
        return False
    if stated or type(norm) is nn.SyncBatchNorm:
        return stated or not isinstance(layer, nn.Linear)
    axes = 1 if isinstance(layer, nn.Linear) else layer.weight.ndim - 2  # type: ignore[operator]
    return type(norm) is _NORMS[int(axes) - 1]


def _unpadded(layer: nn.Module) -> bool:
    """Whether each output of the layer reads as many inputs, none of them a zero from outside the map."""
    if isinstance(layer, _TRANSPOSED):
        return False
    if isinstance(layer, nn.Linear) or layer.padding_mode != "zeros":
        return True
    conv: Any = layer
    if conv.padding == "same":
        return max(conv.kernel_size) == 1
    return conv.padding == "valid" or not any(conv.padding)


def _is_layer(module: nn.Module) -> bool:
    return type(module) in (*_LAYERS, _Rows)


def _is_norm(module: nn.Module) -> bool:
    return type(module) in _NORMS and not module.training and module.running_mean is not None


def _alike(layer: Any, norm: Any) -> bool:
    """Of one precision and place, so that folding changes neither."""
    return bool((layer.weight.dtype, layer.weight.device) == (norm.running_mean.dtype, norm.running_mean.device))


def _channels(layer: Any) -> tuple[int, int]:
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    return layer.in_channels, layer.out_channels


def _double(value: Any) -> Tensor:
    out: Tensor = value.detach().double()
    return out


def _weight(layer: Any) -> Tensor:
    return _double(layer.weight)


def _affine(norm: Any) -> tuple[Tensor, Tensor]:
    """Scale and shift (C,) of a batch norm in evaluation, in float64."""
    scale = (_double(norm.running_var) + norm.eps).rsqrt()
    scale = scale if norm.weight is None else scale * _double(norm.weight)
    shift = -_double(norm.running_mean) * scale
    return scale, shift if norm.bias is None else shift + _double(norm.bias)


def _with(layer: Any, weight: Tensor, bias: Tensor) -> nn.Module:
    """A copy of a layer with other numbers, in its own precision and memory layout."""
    out: Any = copy.deepcopy(layer)
    with torch.no_grad():
        kept = torch.empty_like(layer.weight).copy_(weight)
    out.weight = nn.Parameter(kept, requires_grad=layer.weight.requires_grad)
    out.bias = nn.Parameter(bias.to(kept.dtype), requires_grad=layer.weight.requires_grad)
    return out


def _as_rows(layer: nn.Linear) -> _Rows:
    rows = _Rows(layer.in_features, layer.out_features, device="meta")
    rows.weight, rows.bias = layer.weight, layer.bias
    return rows.eval()
