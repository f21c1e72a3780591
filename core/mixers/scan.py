"""The selective scan of state space models (Mamba's S6), in plain torch."""

from typing import Any

import torch
from torch import Tensor

from core.mixers import _scan_kernels as kernels


@torch.library.custom_op("glocal::selective_scan", mutates_args=())
def _scan_op(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, bias: Tensor | None,
             z: Tensor | None, softplus: bool, keep: bool) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    with torch.autocast(u.device.type, enabled=False):
        return kernels.forward(u, delta, A, B, C, D, bias, z, softplus, keep)


@_scan_op.register_fake
def _(u, delta, A, B, C, D, bias, z, softplus, keep):
    blocks = kernels.block_length(u.shape[-1])[0] if keep else 0
    last = A.new_empty(*u.shape[:3], A.shape[-1])
    return torch.empty_like(u), last, A.new_empty(blocks, *u.shape[:2], A.shape[-1], u.shape[2])


@torch.library.custom_op("glocal::selective_scan_backward", mutates_args=())
def _backward_op(
    grad_y: Tensor, grad_last: Tensor | None, kept: Tensor, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor,
    D: Tensor | None, bias: Tensor | None, z: Tensor | None, softplus: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    with torch.autocast(u.device.type, enabled=False):
        return kernels.backward(grad_y, grad_last, kept, u, delta, A, B, C, D, bias, z, softplus)


@_backward_op.register_fake
def _(grad_y, grad_last, kept, u, delta, A, B, C, D, bias, z, softplus):
    row = A.shape[:-1]
    return (torch.empty_like(u), torch.empty_like(delta), A.new_empty(A.shape), B.new_empty(B.shape), C.new_empty(C.shape),
            A.new_empty(row), A.new_empty(row), A.new_empty(0) if z is None else torch.empty_like(z))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, ctx.softplus, _ = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[2], *tensors)


def _backward(ctx: Any, grad_y: Tensor | None, grad_last: Tensor | None, _: Tensor | None) -> tuple[Any, ...]:
    kept, u, delta, A, B, C, D, bias, z = ctx.saved_tensors
    if grad_y is None:
        grad_y = torch.zeros_like(u)
    grads = _backward_op(grad_y, grad_last, kept, u, delta, A, B, C, D, bias, z, ctx.softplus)
    absent = (False,) * 5 + (D is None, bias is None, z is None)
    return *(None if missing else grad for grad, missing in zip(grads, absent, strict=True)), None, None


_scan_op.register_autograd(_backward, setup_context=_setup)

def selective_scan(u, delta, A, B, C, D=None, *, delta_bias=None, delta_softplus=False, z=None, return_last_state=False):
    if B.dim()==3: B=B.unsqueeze(1)
    if C.dim()==3: C=C.unsqueeze(1)
    G=B.shape[1]
    s=lambda t,d: None if t is None else t.unflatten(d,(G,-1))
    tensors=(u,delta,A,B,C)
    keep=torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    y,last,_=_scan_op(s(u,1),s(delta,1),s(A,0),B,C,s(D,0),s(delta_bias,0),s(z,1),delta_softplus,keep)
    y=y.flatten(1,2)
    return (y,last.flatten(1,2)) if return_last_state else y
