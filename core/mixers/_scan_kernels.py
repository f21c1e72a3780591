"""The blocked selective scan behind `core.mixers.scan`: forward, and backward by recomputation.

Layout.  Time is the outermost dimension and channels the innermost of every work buffer, (T, b, g, N, m), so one time
step of a tile is one contiguous slice, a group's B and C broadcast over contiguous channels, and the sums over the
state and over the channels are batched matrix-vector products.  The recurrence runs in time order, one multiply-add
per step over all of a tile's channels and states: there is no chunk correction and no quotient of decays, hence
nothing that can overflow for A <= 0.

Memory.  A tile's buffers hold STEP time steps of at most WIDTH channels x states, and stay in the caches.  For the
backward pass only the state before every STEP-th position is kept; each block of STEP positions is then computed
again, last block first.

Every operation writes into a float32 or float64 buffer (`out=` or in place), which autocast leaves alone.

A last block that is not full is padded with delta = 0, a step that leaves the state as it is.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

STEP = 64  # positions between two kept states: these then take 1/64 of the (B, D, L, N) tensor
FOLDS = 2  # of the recurrence, where a step is too narrow to pay for its call
NARROW = 8192  # channels x states of a tile below which that is so
SPAN = 4  # blocks whose delta, u, B, C (and y) are brought to the time-first layout at once
WIDTH = 16384  # channels x states of a CPU tile
WIDTH_ACCELERATOR = 1 << 22  # there the launch of each step is what costs
LOG2_E = 1.4426950408889634

Tile = tuple[slice, slice, slice]
Gradients = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def block_length(length: int) -> tuple[int, int]:
    """How many blocks `length` positions make, and the positions in each (the last may be short)."""
    blocks = -(-length // STEP)
    unit = 2**FOLDS  # so that pairs, and pairs of pairs, come out even
    return blocks, -(-length // (blocks * unit)) * unit


def outputs(u: Tensor, A: Tensor, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Room for y like u, the last state (B, G, M, N) and, if `keep`, the states (blocks, B, G, N, M)."""
    batch, groups, channels, length = u.shape
    state = A.shape[-1]
    last = A.new_empty(batch, groups, channels, state)
    kept = A.new_empty(block_length(length)[0] if keep else 0, batch, groups, state, channels)
    return torch.empty_like(u), last, kept


def gradients(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, z: Tensor | None) -> Gradients:
    """Room for the gradients of u, delta, A, B, C, D, bias and z, z's empty where there is no z."""
    grad_z = A.new_empty(0) if z is None else torch.empty_like(z)
    row = A.shape[:-1]
    # what sums over channels or positions is contiguous; what belongs to a point has its input's strides
    return (torch.empty_like(u), torch.empty_like(delta), A.new_empty(A.shape), B.new_empty(B.shape),
            C.new_empty(C.shape), A.new_empty(row), A.new_empty(row), grad_z)  # fmt: skip


def _tiles(u: Tensor, state: int) -> Iterator[Tile]:
    """Cut (B, G, M) into boxes of at most WIDTH channels x states, of even sizes."""
    width = WIDTH if u.device.type == "cpu" else WIDTH_ACCELERATOR
    room = max(1, width // state)
    sizes = []
    for n in (max(1, n) for n in reversed(u.shape[:3])):
        parts = -(-n // min(n, room))
        sizes.append(-(-n // parts))
        room = max(1, room // sizes[-1])
    m, g, b = sizes
    for b0 in range(0, u.shape[0], b):
        for g0 in range(0, u.shape[1], g):
            for m0 in range(0, u.shape[2], m):
                yield slice(b0, b0 + b), slice(g0, g0 + g), slice(m0, m0 + m)


def _time_first(buffer: Tensor, source: Tensor, start: int) -> None:
    """Fill `buffer` (T, ...) with positions start .. start+T of `source` (..., L); zeros past its end."""
    part = source[..., start : start + len(buffer)]
    n = part.shape[-1]
    buffer[:n].copy_(part.movedim(-1, 0))
    buffer[n:].zero_()


def _time_last(target: Tensor, buffer: Tensor, start: int) -> None:
    """Write `buffer` (T, ...) to positions start .. start+T of `target` (..., L), up to its end."""
    part = target[..., start : start + len(buffer)]
    part.copy_(buffer[: part.shape[-1]].movedim(0, -1))


class _Recurrence:
    """x[i+1] += link[i] x[i] for i = 0, 1, ... in place, or, in reverse, x[i] += link[i] x[i+1] from the end.

    `folds` times, the positions are first joined in pairs, by three operations that are wide (half of the positions
    at once, on all cores), which leaves half as many of the narrow ones that must follow each other.  The operations
    are planned once for the given buffers and run any number of times on their contents.
    """

    def __init__(self, x: Tensor, link: Tensor, folds: int, *, reverse: bool = False) -> None:
        self.products: list[tuple[Tensor, Tensor, Tensor]] = []
        self.adds: list[tuple[Tensor, Tensor, Tensor]] = []
        self._plan(x, link, folds, reverse)

    def _plan(self, x: Tensor, link: Tensor, folds: int, reverse: bool) -> None:
        if folds == 0:
            rows = x.unbind()
            steps = list(zip(rows[1:], link.unbind(), rows[:-1], strict=True))
            self.adds += [(near, by, far) for far, by, near in reversed(steps)] if reverse else steps
            return
        inner, outer = link[0::2], link[1::2]  # inside pairs, and from pair to pair
        near, far = (x[1::2], x[0::2]) if reverse else (x[0::2], x[1::2])
        joined = torch.empty_like(outer, memory_format=torch.contiguous_format)
        self.products.append((joined, outer, inner[:-1] if reverse else inner[1:]))
        self.adds.append((far, inner, near))
        self._plan(far, joined, folds - 1, reverse)
        self.adds.append((near[:-1], outer, far[1:]) if reverse else (near[1:], outer, far[:-1]))

    def run(self) -> None:
        for out, left, right in self.products:
            torch.mul(left, right, out=out)
        for target, by, source in self.adds:
            target.addcmul_(by, source)


class _Workspace:
    """One tile's buffers, and the recurrence over them."""

    def __init__(self, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None,
                 bias: Tensor | None, z: Tensor | None, softplus: bool, tile: Tile) -> None:  # fmt: skip
        b, g, m = tile
        self.tile, self.softplus = tile, softplus
        self.u, self.delta = u[b, g, m], delta[b, g, m]
        self.B, self.C = B[b, g], C[b, g]
        self.z = None if z is None else z[b, g, m]
        self.D = None if D is None else D[g, m]
        self.bias = None if bias is None else bias[g, m]
        self.A = A[g, m].transpose(-1, -2).contiguous()  # (g, N, m)
        self.A2 = self.A * LOG2_E  # exp(x) as exp2(x log2 e): vectorised three to nine times better on CPUs

        rows, groups, channels, length = self.u.shape
        state = A.shape[-1]
        self.blocks, self.step = block_length(length)
        span = min(SPAN, self.blocks) * self.step
        self.span = span
        new = A.new_empty
        wide, narrow, lean = (rows, groups, state, channels), (rows, groups, channels), (rows, groups, state)
        self.decay = new(self.step, *wide)
        self.states = new(self.step + 1, *wide)  # [i] is the state before the block's position i
        self.dt, self.ut, self.du, self.yt = (new(span, *narrow) for _ in range(4))
        self.Bt, self.Ct = new(span, *lean), new(span, *lean)
        self.folds = FOLDS if self.A2.device.type != "cpu" or rows * self.A2.numel() < NARROW else 0
        self.recurrence = _Recurrence(self.states[1:], self.decay[1:], self.folds)
        # views for each block of a span, made once
        self.dt_blocks = self.dt.unsqueeze(-2).split(self.step)
        self.du_blocks = self.du.unsqueeze(-2).split(self.step)
        self.Bt_blocks = self.Bt.unsqueeze(-1).split(self.step)
        n = self.step * rows * groups
        self.reached = self.states[1:].view(n, state, channels)
        self.C_rows = self.Ct.view(-1, 1, state).split(n)
        self.y_rows = self.yt.view(-1, 1, channels).split(n)

    def load(self, start: int) -> int:
        """Bring the span from position `start` in; returns how many blocks of it there are."""
        length = self.u.shape[-1]
        _time_first(self.dt, self.delta, start)
        _time_first(self.ut, self.u, start)
        _time_first(self.Bt, self.B, start)
        _time_first(self.Ct, self.C, start)
        if self.bias is not None:
            self.dt.add_(self.bias)
        if self.softplus:
            torch.ops.aten.softplus.out(self.dt, out=self.dt)
        self.dt[length - start :].zero_()  # padding: bias and softplus have filled it
        torch.mul(self.dt, self.ut, out=self.du)
        return min(SPAN, -(-(length - start) // self.step))

    def advance(self, block: int) -> None:
        """Run the recurrence over one block of the span, from states[0] to states[step]."""
        torch.mul(self.dt_blocks[block], self.A2, out=self.decay)
        self.decay.exp2_()
        torch.mul(self.du_blocks[block], self.Bt_blocks[block], out=self.states[1:])
        self.states[1].addcmul_(self.decay[0], self.states[0])
        self.recurrence.run()

    def read(self, block: int) -> None:
        """Put sum_n C x of the block just advanced into yt."""
        torch.bmm(self.C_rows[block], self.reached, out=self.y_rows[block])


def forward(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, bias: Tensor | None,
            z: Tensor | None, softplus: bool, keep: bool) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Fill `outputs`."""
    y, last, kept = outputs(u, A, keep)
    for tile in _tiles(u, A.shape[-1]):
        b, g, m = tile
        work = _Workspace(u, delta, A, B, C, D, bias, z, softplus, tile)
        first, final = work.states[0], work.states[-1]
        first.zero_()
        for start in range(0, u.shape[-1], work.span):
            for block in range(work.load(start)):
                if keep:
                    kept[start // work.step + block, b, g, :, m].copy_(first)
                work.advance(block)
                work.read(block)
                first.copy_(final)
            if work.D is not None:
                work.yt.addcmul_(work.ut, work.D)
            if work.z is not None:
                _time_first(work.ut, work.z, start)
                work.yt.mul_(F.silu(work.ut))
            _time_last(y[tile], work.yt, start)
        last[tile].copy_(first.transpose(-1, -2))
    return y, last, kept


class _Reverse(_Workspace):
    """The buffers of the backward pass, and the recurrence run from the end."""

    def __init__(self, u: Tensor, *inputs: Any) -> None:
        super().__init__(u, *inputs)
        rows, groups, state, channels = self.states.shape[1:]
        n = self.step * rows * groups
        self.carry = torch.zeros_like(self.states[0])  # gradient of the state the block last done started from
        self.grads = torch.empty_like(self.decay)  # gradient of the states a block reaches
        self.reverse = _Recurrence(self.grads, self.decay[1:], self.folds, reverse=True)
        self.sum_A = torch.zeros_like(self.decay)  # summed over time but for the position in the block
        self.gy, self.g_du, self.g_dt = (torch.empty_like(self.yt) for _ in range(3))
        self.g_Bt, self.g_Ct = torch.empty_like(self.Bt), torch.empty_like(self.Ct)
        self.ones = self.A.new_ones(n, 1, state)
        self.before = self.states[:-1]
        self.before_rows, self.grad_rows = self.before.view(n, state, channels), self.grads.view(n, state, channels)
        self.gy_blocks, self.C_blocks = self.gy.unsqueeze(-2).split(self.step), self.Ct.unsqueeze(-1).split(self.step)
        self.gy_rows, self.du_rows, self.g_du_rows, self.g_dt_rows = (
            t.view(-1, 1, channels).split(n) for t in (self.gy, self.du, self.g_du, self.g_dt)
        )
        self.B_rows, self.g_B_rows, self.g_C_rows = (
            t.view(-1, 1, state).split(n) for t in (self.Bt, self.g_Bt, self.g_Ct)
        )

    def retreat(self, block: int) -> None:
        """After `advance(block)`: the block's g_C, g_B, g_du, delta's gradient through delta A, and A's."""
        torch.bmm(self.gy_rows[block], self.reached.transpose(1, 2), out=self.g_C_rows[block])
        torch.mul(self.gy_blocks[block], self.C_blocks[block], out=self.grads)
        self.grads[-1].add_(self.carry)
        self.reverse.run()
        torch.mul(self.decay[0], self.grads[0], out=self.carry)
        torch.bmm(self.du_rows[block], self.grad_rows.transpose(1, 2), out=self.g_B_rows[block])
        torch.bmm(self.B_rows[block], self.grad_rows, out=self.g_du_rows[block])
        through = self.before.mul_(self.grads).mul_(self.decay)  # gradient of delta A
        self.sum_A.addcmul_(through, self.dt_blocks[block])
        through.mul_(self.A)
        torch.bmm(self.ones, self.before_rows, out=self.g_dt_rows[block])


def backward(grad_y: Tensor, grad_last: Tensor | None, kept: Tensor, u: Tensor, delta: Tensor, A: Tensor, B: Tensor,
             C: Tensor, D: Tensor | None, bias: Tensor | None, z: Tensor | None,
             softplus: bool) -> Gradients:  # fmt: skip
    """Fill `gradients`."""
    grad_u, grad_delta, grad_A, _, _, grad_D, grad_bias, grad_z = gradients(u, delta, A, B, C, z)
    grad_B, grad_C = A.new_zeros(B.shape), A.new_zeros(C.shape)  # summed in A's dtype over the tiles
    for total in (grad_A, grad_D, grad_bias):
        total.zero_()
    length = u.shape[-1]
    for tile in _tiles(u, A.shape[-1]):
        b, g, m = tile
        work = _Reverse(u, delta, A, B, C, D, bias, z, softplus, tile)
        if grad_last is not None:
            work.carry.copy_(grad_last[tile].transpose(-1, -2))
        for start in reversed(range(0, length, work.span)):
            blocks = work.load(start)
            _time_first(work.gy, grad_y[tile], start)
            if work.z is not None:
                zt, gated = torch.empty_like(work.gy), work.gy.clone()
                _time_first(zt, work.z, start)
                work.gy.mul_(F.silu(zt))
            for block in reversed(range(blocks)):
                work.states[0].copy_(kept[start // work.step + block, b, g, :, m])
                work.advance(block)
                if work.z is not None:
                    work.read(block)
                work.retreat(block)
            if work.z is not None:
                if work.D is not None:
                    work.yt.addcmul_(work.ut, work.D)
                _time_last(grad_z[tile], torch.ops.aten.silu_backward(gated.mul_(work.yt), zt), start)
            # u enters through delta u and D u, delta through delta A and delta u
            g_delta = work.g_dt.addcmul_(work.g_du, work.ut)
            if softplus:
                _time_first(work.du, work.delta, start)
                if work.bias is not None:
                    work.du.add_(work.bias)
                g_delta = torch.ops.aten.softplus_backward(g_delta, work.du, 1, 20)
            work.g_du.mul_(work.dt)
            if work.D is not None:
                work.g_du.addcmul_(work.gy, work.D)
                grad_D[g, m] += work.gy.mul_(work.ut).sum((0, 1))
            if work.bias is not None:
                grad_bias[g, m] += g_delta[: length - start].sum((0, 1))
            _time_last(grad_u[tile], work.g_du, start)
            _time_last(grad_delta[tile], g_delta, start)
            for grad, part in ((grad_B, work.g_Bt), (grad_C, work.g_Ct)):
                target = grad[b, g, :, start : start + work.span]
                target += part[: target.shape[-1]].movedim(0, -1)
        grad_A[g, m] += work.sum_A.sum((0, 1)).transpose(-1, -2)
    return grad_u, grad_delta, grad_A, grad_B.to(B.dtype), grad_C.to(C.dtype), grad_D, grad_bias, grad_z
