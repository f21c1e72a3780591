"""Neighborhood attention: every cell attends to the k x k cells nearest to it, or to every D-th of them.

NAT (arXiv 2204.07143, 3.1) and DiNAT (arXiv 2209.15001, 3.1). Position i of an axis belongs to group i mod D; among the
m members of its group it has place p, and its neighbours are the places s to s + k - 1, s = clamp(p - (k - 1) / 2, 0,
m - k): at borders the window shifts inward, it never shrinks. The relative bias of the neighbour at place t is entry
t - p + k - 1 of an axis.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import is_in_torch_dispatch_mode
from torch.utils.flop_counter import register_flop_formula

from core.errors import SettingError, ShapeError, expect_shape
from core.layers.linear import Linear
from core.mixers import _neighborhood_kernels as kernels


def _forward(qkv: Tensor, table: Tensor | None, kernel: int, dilation: int, scale: float) -> Tensor:
    with torch.autocast(qkv.device.type, enabled=False):
        return kernels.forward(qkv, table, kernel, dilation, scale).contiguous()


# An operator of its own, because its backward pass computes the weights anew instead of keeping them.
_attend = torch.library.custom_op("glocal::neighborhood_attention", _forward, mutates_args=())


@_attend.register_fake
def _(qkv: Tensor, table: Tensor | None, kernel: int, dilation: int, scale: float) -> Tensor:
    B, H, W, _, h, d = qkv.shape
    return qkv.new_empty(B, H, W, h, d)


@torch.library.custom_op("glocal::neighborhood_attention_backward", mutates_args=())
def _attend_backward(
    grad: Tensor, qkv: Tensor, table: Tensor | None, kernel: int, dilation: int, scale: float
) -> tuple[Tensor, Tensor]:
    with torch.autocast(qkv.device.type, enabled=False):
        return kernels.backward(grad, qkv, table, kernel, dilation, scale)


@_attend_backward.register_fake
def _(
    grad: Tensor, qkv: Tensor, table: Tensor | None, kernel: int, dilation: int, scale: float
) -> tuple[Tensor, Tensor]:
    return qkv.new_empty(qkv.shape), qkv.new_empty(0) if table is None else table.new_empty(table.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    qkv, table, ctx.kernel, ctx.dilation, ctx.scale = inputs
    ctx.save_for_backward(qkv, table)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    qkv, table = ctx.saved_tensors
    grad_qkv, grad_table = _attend_backward(grad, qkv, table, ctx.kernel, ctx.dilation, ctx.scale)
    return grad_qkv, None if table is None else grad_table, None, None, None


_attend.register_autograd(_backward, setup_context=_setup)


@register_flop_formula(torch.ops.glocal.neighborhood_attention)
def _flops(qkv: Any, table: Any, kernel: int, *args: Any, **kwargs: Any) -> int:
    """Two products over k * k keys a query, as the papers count; what the dense blocks do beside is not counted."""
    B, H, W, _, h, d = qkv
    return 4 * B * H * W * h * d * kernel**2


@register_flop_formula(torch.ops.glocal.neighborhood_attention_backward)
def _backward_flops(grad: Any, qkv: Any, table: Any, kernel: int, *args: Any, **kwargs: Any) -> int:
    return 5 * _flops(qkv, table, kernel) // 2


def neighborhood_attention(
    qkv: Tensor, table: Tensor | None = None, *, kernel: int, dilation: int = 1, scale: float | None = None
) -> Tensor:
    """softmax(scale q k^T + bias) v over each cell's own window.

    Args:
        qkv: queries, keys and values, (B, H, W, 3, h, d); H and W at least `kernel * dilation`.
        table: relative biases by head, row and column offset, (h, 2 * kernel - 1, 2 * kernel - 1), or None.
        kernel: side of the window in cells, odd.
        dilation: step between the cells of a window.
        scale: d ** -0.5 by default.

    Returns:
        (B, H, W, h, d).

    Peak memory of a call at 64 x 64 with kernel 7, in sizes of q, k and v together: 2.2 to 2.8, the output included,
    and 3.7 to 5.1 with the gradients, since the backward pass computes the weights anew and nothing but the inputs is
    kept for it; with k * k keys and values copied for each query it is 35 and 51 (tests/benchmarks/neighborhood.py).
    Exported programs take all blocks at once: 8.

    Raises:
        ShapeError: another shape, or a map smaller than the windows.
    """
    sizes = expect_shape(qkv, "B H W three h d", three=3)
    if min(sizes["H"], sizes["W"]) < kernel * dilation:
        raise ShapeError(
            f"a map of {sizes['H']} x {sizes['W']} is smaller than {kernel} cells {dilation} apart: pad it to "
            f"{kernel * dilation}, or take a smaller dilation"
        )
    if table is not None:
        expect_shape(table, "h rows columns", h=sizes["h"], rows=2 * kernel - 1, columns=2 * kernel - 1)
    scale = sizes["d"] ** -0.5 if scale is None else scale
    if torch.compiler.is_exporting() and not torch.compiler.is_dynamo_compiling():  # other programs lack our operator
        return kernels.forward(qkv, table, kernel, dilation, scale)
    grad = torch.is_grad_enabled() and (qkv.requires_grad or (table is not None and table.requires_grad))
    if grad or torch.compiler.is_compiling() or is_in_torch_dispatch_mode():  # such modes count operations, say
        return _attend(qkv, table, kernel, dilation, scale)
    return _forward(qkv, table, kernel, dilation, scale)  # saves a tenth of a millisecond, at first two seconds


class NeighborhoodAttention(nn.Module):
    """Multi-head attention of every cell to its neighbourhood: (B, H, W, C) -> (B, H, W, C) for any H and W.

    A side shorter than `kernel * dilation` is padded with zeros at the bottom or right before the projection; what is
    added takes part as ordinary cells (its keys and values are the projection's biases) and is cut off afterwards.

    Args:
        dim: channels.
        heads: attention heads; they divide `dim`.
        kernel: side of the window in cells, odd.
        dilation: step between the cells of a window; no parameter depends on it.
        qkv_bias: biases of the q, k, v projection.
        relative_bias: learned bias for each head and offset.
        scale: of q; head width ** -0.5 by default.
        proj_dropout: of the output.
    """

    def __init__(
        self, dim: int, heads: int, *, kernel: int = 7, dilation: int = 1, qkv_bias: bool = True,
        relative_bias: bool = True, scale: float | None = None, proj_dropout: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        if kernel < 3 or kernel % 2 == 0 or dilation < 1:
            raise SettingError(
                "neighborhood attention takes an odd kernel from 3 on and a dilation from 1 on, got "
                f"{kernel} and {dilation}"
            )
        self.heads, self.kernel, self.dilation, self.scale = heads, kernel, dilation, scale
        self.qkv = Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = Linear(dim, dim)
        self.proj_dropout = nn.Dropout(proj_dropout)
        self.bias_table = None
        if relative_bias:
            self.bias_table = nn.Parameter(torch.empty(heads, 2 * kernel - 1, 2 * kernel - 1))
            nn.init.trunc_normal_(self.bias_table, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        H, W = x.shape[1:3]
        least = self.kernel * self.dilation
        if least > H or least > W:
            x = F.pad(x, (0, 0, 0, max(least - W, 0), 0, max(least - H, 0)))
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1))
        x = neighborhood_attention(qkv, self.bias_table, kernel=self.kernel, dilation=self.dilation, scale=self.scale)
        return self.proj_dropout(self.proj(x[:, :H, :W].flatten(-2)))

    def extra_repr(self) -> str:
        return f"kernel={self.kernel}, dilation={self.dilation}"
