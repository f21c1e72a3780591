"""The selective scan of Mamba (S6) in plain torch: nothing to build, lean in memory, quick on a CPU.

Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", arXiv 2312.00752, section 3;
grouped as in VMamba, arXiv 2401.10166.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from core.mixers import _scan_kernels as kernels

EXPORT_CHUNK = 16  # positions unrolled at each level of the form that exporters see


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    *,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    z: Tensor | None = None,
    return_last_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Run x <- exp(delta A) x + delta B u, y = C x + D u over the last dimension, with x = 0 before it.

    Computed in float32, or in float64 where an input is, under autocast too.  Differentiable once; memory beyond
    inputs, output and gradients is a small part of a (B, D, L, N) tensor.  In a graph that is being exported the
    same function is written with standard operators only; under `torch.compile` it is one opaque operator.

    Args:
        u: The sequence, (B, D, L).
        delta: Step sizes, (B, D, L), before bias and softplus.
        A: Decay rates, (D, N), not positive (the scan is then free of overflow for every delta >= 0).
        B: Input maps, (B, N, L), or (B, G, N, L) where group g serves the channels g D/G to (g+1) D/G - 1.
        C: Output maps, like B.
        D: Skip weights, (D,).
        delta_bias: Added to delta first, (D,).
        delta_softplus: Pass delta through softplus, after the bias.
        z: A gate, (B, D, L): y is multiplied by silu(z) last.
        return_last_state: Also return x after the last position.

    Returns:
        y, (B, D, L) in u's dtype; with `return_last_state` also x, (B, D, N) in the dtype of the computation.

    Raises:
        ValueError: If a shape, dtype or device does not fit; the sentence says what was expected and given.

    >>> one = torch.ones(1, 1, 3)
    >>> selective_scan(one, one, torch.zeros(1, 1), one, one)  # no decay: a running sum
    tensor([[[1., 2., 3.]]])
    """
    if u.dim() != 3 or A.dim() != 2:
        raise ValueError(f"expected u (B, D, L) and A (D, N), got {tuple(u.shape)} and {tuple(A.shape)}")
    B, C = (t.unsqueeze(1) if t.dim() == 3 else t for t in (B, C))
    groups = max(B.shape[1], C.shape[1]) if B.dim() == C.dim() == 4 else 1
    if groups == 0 or u.shape[1] % groups:
        raise ValueError(f"expected groups of B and C that divide the {u.shape[1]} channels of u, got {groups}")
    B, C = (t.expand(-1, groups, -1, -1) if t.dim() == 4 and t.shape[1] == 1 else t for t in (B, C))
    batch, channels, length = u.shape
    row, maps = (channels,), (batch, groups, A.shape[1], length)
    _check(u, {"delta": (delta, u.shape), "A": (A, (channels, A.shape[1])), "B": (B, maps), "C": (C, maps),
               "D": (D, row), "delta_bias": (delta_bias, row), "z": (z, u.shape)})  # fmt: skip
    split = (groups, channels // groups)
    D, delta_bias = (None if t is None else t.unflatten(0, split) for t in (D, delta_bias))
    z = None if z is None else z.unflatten(1, split)
    y, last = _grouped(u.unflatten(1, split), delta.unflatten(1, split), A.unflatten(0, split), B, C, D, delta_bias, z,
                       delta_softplus)  # fmt: skip
    return (y.flatten(1, 2), last.flatten(1, 2)) if return_last_state else y.flatten(1, 2)


def grouped_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    *,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
) -> Tensor:
    """`selective_scan` with the channels of each group apart, so that they may be strided as the caller has them.

    Quickest when the memory of u and delta runs over channels first, that is for views of (B, G, L, D/G) tensors.

    Args:
        u: The sequences, (B, G, D/G, L), any strides.
        delta: Step sizes, like u.
        A: Decay rates, (G, D/G, N).
        B: Input maps, (B, G, N, L).
        C: Output maps, (B, G, N, L).
        D: Skip weights, (G, D/G).
        delta_bias: Added to delta first, (G, D/G).
        delta_softplus: Pass delta through softplus, after the bias.

    Returns:
        y, like u, strides included when u is dense.

    Raises:
        ValueError: If a shape, dtype or device does not fit; the sentence says what was expected and given.
    """
    if u.dim() != 4 or A.dim() != 3:
        raise ValueError(f"expected u (B, G, D/G, L) and A (G, D/G, N), got {tuple(u.shape)} and {tuple(A.shape)}")
    batch, groups, channels, length = u.shape
    row, maps = (groups, channels), (batch, groups, A.shape[-1], length)
    _check(u, {"delta": (delta, u.shape), "A": (A, (*row, A.shape[-1])), "B": (B, maps), "C": (C, maps),
               "D": (D, row), "delta_bias": (delta_bias, row)})  # fmt: skip
    return _grouped(u, delta, A, B, C, D, delta_bias, None, delta_softplus)[0]


def _check(u: Tensor, inputs: dict[str, tuple[Tensor | None, tuple[int, ...]]]) -> None:
    if u.shape[-1] == 0 or not u.is_floating_point():
        raise ValueError(f"expected a floating-point u with L >= 1, got {tuple(u.shape)} of {u.dtype}")
    for name, (value, shape) in inputs.items():
        if value is None:
            continue
        if value.shape != shape:
            raise ValueError(f"expected {name} of shape {tuple(shape)}, got {tuple(value.shape)}")
        if not value.is_floating_point() or value.device != u.device:
            raise ValueError(f"expected a floating-point {name} on {u.device}, got {value.dtype} on {value.device}")


def _grouped(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, bias: Tensor | None,
             z: Tensor | None, softplus: bool) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Y like u, (B, G, M, L), and the last state (B, G, M, N)."""
    given = [t for t in (u, delta, A, B, C, D, bias, z) if t is not None]
    dtype = torch.float64 if any(t.dtype == torch.float64 for t in given) else torch.float32
    A = A.to(dtype)
    D, bias = (None if t is None else t.to(dtype) for t in (D, bias))
    if torch.onnx.is_in_onnx_export() or torch.compiler.is_exporting():
        return _standard_operators(u, delta, A, B, C, D, bias, z, softplus)
    keep = torch.is_grad_enabled() and any(t.requires_grad for t in given)
    y, last, _ = _scan(u, delta, A, B, C, D, bias, z, softplus, keep)
    return y, last


# The operator. `keep`: also return the states that the backward pass starts its blocks from.


@torch.library.custom_op("glocal::selective_scan", mutates_args=())
def _scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, bias: Tensor | None,
          z: Tensor | None, softplus: bool, keep: bool) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return kernels.forward(u, delta, A, B, C, D, bias, z, softplus, keep)


@_scan.register_fake
def _(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, bias: Tensor | None,
      z: Tensor | None, softplus: bool, keep: bool) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return kernels.outputs(u, A, keep)


@torch.library.custom_op("glocal::selective_scan_backward", mutates_args=())
def _scan_backward(
    grad_y: Tensor, grad_last: Tensor | None, kept: Tensor, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor,
    D: Tensor | None, bias: Tensor | None, z: Tensor | None, softplus: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    return kernels.backward(grad_y, grad_last, kept, u, delta, A, B, C, D, bias, z, softplus)


@_scan_backward.register_fake
def _(
    grad_y: Tensor, grad_last: Tensor | None, kept: Tensor, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor,
    D: Tensor | None, bias: Tensor | None, z: Tensor | None, softplus: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    return kernels.gradients(u, delta, A, B, C, z)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, ctx.softplus, ctx.keep = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[2], *tensors)


def _differentiate(ctx: Any, grad_y: Tensor | None, grad_last: Tensor | None, _: Tensor | None) -> tuple[Any, ...]:
    if not ctx.keep:
        raise RuntimeError("the selective scan was run without keeping its states, so it has no gradient")
    kept, u, delta, A, B, C, D, bias, z = ctx.saved_tensors
    if grad_y is None:
        grad_y = torch.zeros_like(u)
    grads = _scan_backward(grad_y, grad_last, kept, u, delta, A, B, C, D, bias, z, ctx.softplus)
    given = (True,) * 5 + tuple(t is not None for t in (D, bias, z))
    return *(grad if there else None for grad, there in zip(grads, given, strict=True)), None, None


_scan.register_autograd(_differentiate, setup_context=_save)


# The same function for exporters.


def _standard_operators(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None,
                        bias: Tensor | None, z: Tensor | None, softplus: bool) -> tuple[Tensor, Tensor]:  # fmt: skip
    x, dt = u.to(A.dtype), delta.to(A.dtype)
    if bias is not None:
        dt = dt + bias.unsqueeze(-1)
    if softplus:
        dt = F.softplus(dt)
    step = dt.movedim(-1, 0).unsqueeze(-1)  # (L, B, G, M, 1)
    drive = (dt * x).movedim(-1, 0).unsqueeze(-1) * B.to(A.dtype).movedim(-1, 0).unsqueeze(-2)  # (L, B, G, M, N)
    states = _recurrence(torch.exp(step * A), drive)
    y = (states * C.to(A.dtype).movedim(-1, 0).unsqueeze(-2)).sum(-1).movedim(0, -1)  # (B, G, M, L)
    if D is not None:
        y = y + D.unsqueeze(-1) * x
    if z is not None:
        y = y * F.silu(z.to(A.dtype))
    return y.to(u.dtype), states[-1]


def _recurrence(decay: Tensor, drive: Tensor) -> Tensor:
    """All states x[l] = decay[l] x[l-1] + drive[l], (L, ...): all chunks at once, then the chunks' ends likewise."""
    length = len(decay)
    size = min(length, EXPORT_CHUNK)
    missing = -length % size
    if missing:  # decay 1, drive 0: a step that changes nothing
        decay = torch.cat([decay, torch.ones_like(decay[:1]).expand(missing, *decay.shape[1:])])
        drive = torch.cat([drive, torch.zeros_like(drive[:1]).expand(missing, *drive.shape[1:])])
    decay, drive = (t.unflatten(0, (-1, size)) for t in (decay, drive))  # (chunks, size, ...)
    states, decays = [drive[:, 0]], [decay[:, 0]]
    for i in range(1, size):
        states.append(decay[:, i] * states[-1] + drive[:, i])
        decays.append(decay[:, i] * decays[-1])
    x = torch.stack(states, 1)
    if length > size:
        ends = _recurrence(decays[-1], states[-1])  # (chunks, ...)
        start = torch.cat([torch.zeros_like(ends[:1]), ends[:-1]])
        x = x + torch.stack(decays, 1) * start.unsqueeze(1)
    return x.flatten(0, 1)[:length]
