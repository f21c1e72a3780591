"""The blocked selective scan behind `core.mixers.scan`: forward, and backward by recomputation.

Layout.  Time is the outermost dimension and channels the innermost of every work buffer, (T, b, g, N, m), so one time
step of a tile is one contiguous slice, a group's B and C broadcast over contiguous channels, and the sums over the
state and over the channels are batched matrix-vector products.  The recurrence runs in time order, one multiply-add
per step over all of a tile's channels and states: there is no chunk correction and no quotient of decays, hence
nothing that can overflow for A <= 0.

Memory.  A tile's buffers hold STEP time steps of at most WIDTH channels x states, and stay in the caches.  For the
backward pass only the state before every STEP-th position is kept; each block of STEP positions is then computed
again, last block first.

Threads.  On a CPU each thread takes its own channels from the first position to the last, so nothing but the inputs'
B and C crosses cores.  A tile's work is one TorchScript function, which runs without the interpreter lock.

Every operation writes into a float32 or float64 buffer (`out=` or in place), which autocast leaves alone.

A last block that is not full is padded with delta = 0, a step that leaves the state as it is.
"""

import functools
import itertools
import math
import os
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

STEP = 64  # positions between two kept states: these then take 1/64 of the (B, D, L, N) tensor
FOLDS = 2  # of the recurrence, where a step is too narrow to pay for its call
NARROW = 8192  # channels x states of a tile below which that is so
SPAN = 4  # blocks whose delta, u, B, C (and y) are brought to the time-first layout at once
WIDTH = 16384  # channels x states of a CPU tile
WIDTH_ACCELERATOR = 1 << 22  # there the launch of each step is what costs
SHARE = 2048  # channels x states below which a thread of its own does not pay
MAPS = 32  # channels below which sums for B and C of a thread's own would take too much room
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


def _shares(sizes: Sequence[int], state: int, threads: int) -> list[Tile]:
    """Cut (B, G, M) into at most `threads` boxes, the largest as small as can be, each wide enough to pay."""
    batch, groups, channels = (max(1, n) for n in sizes)
    threads = max(1, min(threads, batch * groups * channels * state // SHARE))
    ways = [(b, g, m) for b in range(1, min(batch, threads) + 1) for g in range(1, min(groups, threads // b) + 1)
            for m in range(1, max(1, min(channels // MAPS, threads // (b * g))) + 1)]  # fmt: skip
    # parts of one group each need their own sums for B and C: no more of them than it takes
    way = min(ways, key=lambda w: (math.prod(-(-n // p) for n, p in zip(sizes, w, strict=True)), w[2], w[0]))
    cuts = [[slice(n * i // p, n * (i + 1) // p) for i in range(p)] for n, p in zip(sizes, way, strict=True)]
    return [(b, g, m) for b in cuts[0] for g in cuts[1] for m in cuts[2]]


def _tiles(share: Tile, state: int, width: int) -> Iterator[Tile]:
    """Cut a share of (B, G, M) into boxes of at most `width` channels x states, of even sizes."""
    room = max(1, width // state)
    sizes = []
    for n in (max(1, s.stop - s.start) for s in reversed(share)):
        parts = -(-n // min(n, room))
        sizes.append(-(-n // parts))
        room = max(1, room // sizes[-1])
    for starts in itertools.product(*(range(s.start, s.stop, n) for s, n in zip(share, reversed(sizes), strict=True))):
        b, g, m = (slice(i, min(i + n, s.stop)) for i, n, s in zip(starts, reversed(sizes), share, strict=True))
        yield b, g, m


def _time_first(buffer: Tensor, source: Tensor, start: int) -> None:
    """Fill `buffer` (T, ...) with positions start .. start+T of `source` (..., L); zeros past its end."""
    part = source[..., start : start + buffer.shape[0]]
    n = part.shape[-1]
    buffer[:n].copy_(part.movedim(-1, 0))
    buffer[n:].zero_()


def _time_last(target: Tensor, buffer: Tensor, start: int) -> None:
    """Write `buffer` (T, ...) to positions start .. start+T of `target` (..., L), up to its end."""
    part = target[..., start : start + buffer.shape[0]]
    part.copy_(buffer[: part.shape[-1]].movedim(0, -1))


# What runs on a tile. These functions are compiled by TorchScript, so they keep to its part of Python. Lists of views
# come from unbind and split, never from slices of lists: a change made through those is lost in the compiled function.


def _plan(x: Tensor, link: Tensor, folds: int, reverse: bool) -> tuple[list[list[Tensor]], list[list[Tensor]]]:
    """Plan x[i+1] += link[i] x[i] for i = 0, 1, ... in place or, in reverse, x[i] += link[i] x[i+1] from the end.

    `folds` times, the positions are first joined in pairs, by three operations that are wide (half of the positions
    at once), which leaves half as many of the narrow ones that must follow each other.  The operations are planned
    once for the given buffers and run any number of times on their contents.

    Returns:
        Products [out, left, right] and then additions [target, factor, source], each to be run in order.
    """
    products: list[list[Tensor]] = []
    adds: list[list[Tensor]] = []
    late: list[list[Tensor]] = []
    for _ in range(folds):
        inner, outer = link[0::2], link[1::2]  # inside pairs, and from pair to pair
        near, far = x[0::2], x[1::2]
        if reverse:
            near, far = far, near
        joined = torch.empty_like(outer, memory_format=torch.contiguous_format)
        products.append([joined, outer, inner[:-1] if reverse else inner[1:]])
        adds.append([far, inner, near])
        late.append([near[:-1], outer, far[1:]] if reverse else [near[1:], outer, far[:-1]])
        x, link = far, joined
    early, later, links = x[:-1].unbind(), x[1:].unbind(), link.unbind()
    steps = len(links)
    for i in range(steps):
        if reverse:
            adds.append([early[steps - 1 - i], links[steps - 1 - i], later[steps - 1 - i]])
        else:
            adds.append([later[i], links[i], early[i]])
    for i in range(len(late)):
        adds.append(late[len(late) - 1 - i])  # noqa: PERF401 (TorchScript has no generators)
    return products, adds


def _run(plan: tuple[list[list[Tensor]], list[list[Tensor]]]) -> None:
    products, adds = plan
    for p in products:
        torch.mul(p[1], p[2], out=p[0])
    for a in adds:
        a[0].addcmul_(a[1], a[2])


def _load(dt: Tensor, ut: Tensor, du: Tensor, Bt: Tensor, Ct: Tensor, u: Tensor, delta: Tensor, B: Tensor, C: Tensor,
          bias: Tensor | None, softplus: bool, start: int) -> None:  # fmt: skip
    """Bring the span from position `start` into the time-first buffers, and delta through bias and softplus."""
    _time_first(dt, delta, start)
    _time_first(ut, u, start)
    _time_first(Bt, B, start)
    _time_first(Ct, C, start)
    if bias is not None:
        dt.add_(bias)
    if softplus:
        dt.copy_(F.softplus(dt))
    dt[u.shape[-1] - start :].zero_()  # padding: bias and softplus have filled it
    torch.mul(dt, ut, out=du)


def _forward_tile(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, bias: Tensor | None,
                  z: Tensor | None, y: Tensor, last: Tensor, kept: Tensor, softplus: bool, keep: bool, folds: int,
                  step: int, span: int, log2_e: float) -> None:  # fmt: skip
    """Fill y (b, g, m, L), last (b, g, m, N) and, if `keep`, kept (blocks, b, g, N, m)."""
    rows, groups, channels, length = u.shape[0], u.shape[1], u.shape[2], u.shape[3]
    state = A.shape[-1]
    A2 = A.transpose(-1, -2).contiguous() * log2_e  # exp(x) as exp2(x log2 e): vectorised far better on CPUs
    decay = A.new_empty([step, rows, groups, state, channels])
    states = A.new_empty([step + 1, rows, groups, state, channels])  # [i] is the state before the block's position i
    dt = A.new_empty([span, rows, groups, channels])
    ut, du, yt = torch.empty_like(dt), torch.empty_like(dt), torch.empty_like(dt)
    Bt = A.new_empty([span, rows, groups, state])
    Ct = torch.empty_like(Bt)
    plan = _plan(states[1:], decay[1:], folds, False)
    n = step * rows * groups
    # views for each block of a span, made once
    dts, dus, Bs = dt.unsqueeze(-2).split(step), du.unsqueeze(-2).split(step), Bt.unsqueeze(-1).split(step)
    C_rows, y_rows = Ct.view(-1, 1, state).split(n), yt.view(-1, 1, channels).split(n)
    drive, first, second, last_state, decay_first = states[1:], states[0], states[1], states[step], decay[0]
    reached = drive.view(n, state, channels)
    first.zero_()
    for start in range(0, length, span):
        _load(dt, ut, du, Bt, Ct, u, delta, B, C, bias, softplus, start)
        for i in range(min(span // step, (length - start + step - 1) // step)):
            if keep:
                kept[start // step + i].copy_(first)
            torch.mul(dts[i], A2, out=decay)
            decay.exp2_()
            torch.mul(dus[i], Bs[i], out=drive)
            second.addcmul_(decay_first, first)
            _run(plan)
            torch.bmm(C_rows[i], reached, out=y_rows[i])
            first.copy_(last_state)
        if D is not None:
            yt.addcmul_(ut, D)
        if z is not None:
            _time_first(ut, z, start)
            yt.mul_(F.silu(ut))
        _time_last(y, yt, start)
    last.copy_(first.transpose(-1, -2))


def _backward_tile(grad_y: Tensor, grad_last: Tensor | None, kept: Tensor, u: Tensor, delta: Tensor, A: Tensor,
                   B: Tensor, C: Tensor, D: Tensor | None, bias: Tensor | None, z: Tensor | None, grad_u: Tensor,
                   grad_delta: Tensor, grad_A: Tensor, grad_B: Tensor, grad_C: Tensor, grad_D: Tensor,
                   grad_bias: Tensor, grad_z: Tensor, softplus: bool, folds: int, step: int, span: int,
                   log2_e: float) -> None:  # fmt: skip
    """Fill the tile's part of the gradients of u, delta and z; add to those of A, B, C, D and bias."""
    rows, groups, channels, length = u.shape[0], u.shape[1], u.shape[2], u.shape[3]
    state = A.shape[-1]
    A1 = A.transpose(-1, -2).contiguous()  # (g, N, m)
    A2 = A1 * log2_e
    decay = A.new_empty([step, rows, groups, state, channels])
    states = A.new_empty([step + 1, rows, groups, state, channels])
    dt = A.new_empty([span, rows, groups, channels])
    ut, du, yt = torch.empty_like(dt), torch.empty_like(dt), torch.empty_like(dt)
    Bt = A.new_empty([span, rows, groups, state])
    Ct = torch.empty_like(Bt)
    plan = _plan(states[1:], decay[1:], folds, False)
    grads = torch.empty_like(decay)  # gradient of the states a block reaches
    reverse = _plan(grads, decay[1:], folds, True)
    sum_A = torch.zeros_like(decay)  # summed over time but for the position in the block
    gy, g_du, g_dt = torch.empty_like(yt), torch.empty_like(yt), torch.empty_like(yt)
    g_Bt, g_Ct = torch.empty_like(Bt), torch.empty_like(Ct)
    n = step * rows * groups
    ones = A.new_ones([n, 1, state])
    dts, dus, Bs = dt.unsqueeze(-2).split(step), du.unsqueeze(-2).split(step), Bt.unsqueeze(-1).split(step)
    gys, Cs = gy.unsqueeze(-2).split(step), Ct.unsqueeze(-1).split(step)
    B_rows, C_rows = Bt.view(-1, 1, state).split(n), Ct.view(-1, 1, state).split(n)
    g_B_rows, g_C_rows = g_Bt.view(-1, 1, state).split(n), g_Ct.view(-1, 1, state).split(n)
    y_rows, gy_rows = yt.view(-1, 1, channels).split(n), gy.view(-1, 1, channels).split(n)
    du_rows, g_du_rows = du.view(-1, 1, channels).split(n), g_du.view(-1, 1, channels).split(n)
    g_dt_rows = g_dt.view(-1, 1, channels).split(n)
    drive, first, second, before, decay_first = states[1:], states[0], states[1], states[:step], decay[0]
    grads_first, grads_last = grads[0], grads[step - 1]
    reached, before_rows = drive.view(n, state, channels), before.view(n, state, channels)
    grad_rows = grads.view(n, state, channels)
    reached_t, grad_t = reached.transpose(1, 2), grad_rows.transpose(1, 2)
    carry = torch.zeros_like(first)  # gradient of the state the block last done started from
    if grad_last is not None:
        carry.copy_(grad_last.transpose(-1, -2))
    spans = (length + span - 1) // span
    for s in range(spans):
        start = (spans - 1 - s) * span
        _load(dt, ut, du, Bt, Ct, u, delta, B, C, bias, softplus, start)
        _time_first(gy, grad_y, start)
        gated, zt = gy, gy
        if z is not None:
            zt, gated = torch.empty_like(gy), gy.clone()
            _time_first(zt, z, start)
            gy.mul_(F.silu(zt))
        blocks = min(span // step, (length - start + step - 1) // step)
        for j in range(blocks):
            i = blocks - 1 - j
            first.copy_(kept[start // step + i])
            torch.mul(dts[i], A2, out=decay)
            decay.exp2_()
            torch.mul(dus[i], Bs[i], out=drive)
            second.addcmul_(decay_first, first)
            _run(plan)
            if z is not None:
                torch.bmm(C_rows[i], reached, out=y_rows[i])
            torch.bmm(gy_rows[i], reached_t, out=g_C_rows[i])
            torch.mul(gys[i], Cs[i], out=grads)
            grads_last.add_(carry)
            _run(reverse)
            torch.mul(decay_first, grads_first, out=carry)
            torch.bmm(du_rows[i], grad_t, out=g_B_rows[i])
            torch.bmm(B_rows[i], grad_rows, out=g_du_rows[i])
            before.mul_(grads).mul_(decay)  # gradient of delta A
            sum_A.addcmul_(before, dts[i])
            before.mul_(A1)
            torch.bmm(ones, before_rows, out=g_dt_rows[i])
        if z is not None:
            if D is not None:
                yt.addcmul_(ut, D)
            _time_last(grad_z, torch.ops.aten.silu_backward(gated.mul_(yt), zt), start)
        # u enters through delta u and D u, delta through delta A and delta u
        g_dt.addcmul_(g_du, ut)
        if softplus:
            _time_first(du, delta, start)
            if bias is not None:
                du.add_(bias)
            g_dt.copy_(torch.ops.aten.softplus_backward(g_dt, du, 1, 20))
        g_du.mul_(dt)
        if D is not None:
            g_du.addcmul_(gy, D)
            grad_D.add_(gy.mul_(ut).sum([0, 1]))
        if bias is not None:
            grad_bias.add_(g_dt[: length - start].sum([0, 1]))
        _time_last(grad_u, g_du, start)
        _time_last(grad_delta, g_dt, start)
        for_B, for_C = grad_B[..., start : start + span], grad_C[..., start : start + span]
        for_B.add_(g_Bt[: for_B.shape[-1]].movedim(0, -1))
        for_C.add_(g_Ct[: for_C.shape[-1]].movedim(0, -1))
    grad_A.add_(sum_A.sum([0, 1]).transpose(-1, -2))


# Threads.


@functools.cache
def _compiled(function: Callable[..., None]) -> Callable[..., None]:
    """`function` by TorchScript, once per process; on first use, so that importing this module stays cheap."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, but torch has no other way to run without the interpreter lock
        return torch.jit.script(function)


_making: dict[int, threading.Lock] = {}  # by process: a lock may be held where its process is forked


@functools.cache
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """Threads whose torch operations use one core each; a forked process (another `process`) gets its own."""
    del process
    started = threading.Barrier(threads + 1)

    def single() -> None:
        torch.get_num_threads()  # the first call in a thread takes the process-wide number
        torch.set_num_threads(1)  # of the calling thread, and of threads still to come: put back below
        started.wait()

    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(threads, "selective_scan", initializer=single)
    for _ in range(threads):
        pool.submit(int)
    started.wait()
    torch.set_num_threads(before)
    return pool


class _Spread:
    """Moves a thread that finds itself on the CPU of another of its call.

    Linux may leave two busy threads on one CPU for tens of milliseconds while another idles.  A thread is only pushed:
    it may run anywhere that it could before.
    """

    def __init__(self) -> None:
        self.taken: set[int] = set()
        self.lock = threading.Lock()

    def __call__(self) -> None:
        try:
            here = int(Path("/proc/thread-self/stat").read_text().rpartition(")")[2].split()[36])
            allowed = os.sched_getaffinity(0)
        except (AttributeError, OSError):  # not Linux
            return
        with self.lock:
            free = sorted(allowed - self.taken, key=lambda cpu: (cpu <= here, cpu))
            move = here in self.taken and bool(free)
            here = free[0] if move else here
            self.taken.add(here)
        if move:
            os.sched_setaffinity(0, {here})
            os.sched_setaffinity(0, allowed)


def _in_threads(jobs: list[Callable[[], None]]) -> None:
    """Run the jobs side by side, the first error raised once all have ended."""
    spread = _Spread()

    def run(job: Callable[[], None]) -> None:
        if len(jobs) > 1:
            spread()
        with torch.inference_mode(), torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
            job()

    if len(jobs) == 1:
        return run(jobs[0])
    with _making.setdefault(os.getpid(), threading.Lock()):
        pool = _pool(os.getpid(), len(jobs))
    done = [pool.submit(run, job) for job in jobs]
    wait(done)
    for one in done:
        one.result()


def _settings(u: Tensor, tile: Tile, state: int) -> tuple[int, int, int, float]:
    """Folds of the recurrence, positions in a block and in a span, log2 e."""
    blocks, step = block_length(u.shape[-1])
    narrow = math.prod(s.stop - s.start for s in tile) * state < NARROW
    return FOLDS if u.device.type != "cpu" or narrow else 0, step, min(SPAN, blocks) * step, LOG2_E


def _threads(u: Tensor) -> int:
    return torch.get_num_threads() if u.device.type == "cpu" else 1


def _width(u: Tensor) -> int:
    return WIDTH if u.device.type == "cpu" else WIDTH_ACCELERATOR


def forward(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, bias: Tensor | None,
            z: Tensor | None, softplus: bool, keep: bool) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Fill `outputs`."""
    y, last, kept = outputs(u, A, keep)
    state, run = A.shape[-1], _compiled(_forward_tile)

    def work(share: Tile) -> None:
        for tile in _tiles(share, state, _width(u)):
            b, g, m = tile
            run(u[tile], delta[tile], A[g, m], B[b, g], C[b, g], None if D is None else D[g, m],
                None if bias is None else bias[g, m], None if z is None else z[tile], y[tile], last[tile],
                kept[:, b, g, :, m], softplus, keep, *_settings(u, tile, state))  # fmt: skip

    _in_threads([functools.partial(work, share) for share in _shares(u.shape[:3], state, _threads(u))])
    return y, last, kept


def backward(grad_y: Tensor, grad_last: Tensor | None, kept: Tensor, u: Tensor, delta: Tensor, A: Tensor, B: Tensor,
             C: Tensor, D: Tensor | None, bias: Tensor | None, z: Tensor | None,
             softplus: bool) -> Gradients:  # fmt: skip
    """Fill `gradients`."""
    grad_u, grad_delta, grad_A, _, _, grad_D, grad_bias, grad_z = gradients(u, delta, A, B, C, z)
    grad_B, grad_C = A.new_empty(B.shape), A.new_empty(C.shape)  # summed in A's dtype
    state, run = A.shape[-1], _compiled(_backward_tile)
    shares = _shares(u.shape[:3], state, _threads(u))
    # Threads whose shares meet in one of these sums get zeros of their own, added in the order of the shares: the
    # same result from run to run.  The others write to their part of the sum.
    split_rows, split_maps = shares[0][0].stop < u.shape[0], shares[0][2].stop < u.shape[2]
    totals = ((grad_A, split_rows), (grad_B, split_maps), (grad_C, split_maps), (grad_D, split_rows),
              (grad_bias, split_rows))  # fmt: skip
    places = [((g, m), (b, g), (b, g), (g, m), (g, m)) for b, g, m in shares]
    sums: list[list[Tensor]] = [[] for _ in shares]

    def work(i: int) -> None:
        share, place = shares[i], places[i]
        sums[i] = [
            torch.zeros_like(t[at]) if split else t[at].zero_() for (t, split), at in zip(totals, place, strict=True)
        ]
        sum_A, sum_B, sum_C, sum_D, sum_bias = sums[i]
        for tile in _tiles(share, state, _width(u)):
            b, g, m = tile
            at = [slice(t.start - s.start, t.stop - s.start) for t, s in zip(tile, share, strict=True)]
            row, maps = (at[1], at[2]), (at[0], at[1])
            run(grad_y[tile], None if grad_last is None else grad_last[tile], kept[:, b, g, :, m], u[tile], delta[tile],
                A[g, m], B[b, g], C[b, g], None if D is None else D[g, m], None if bias is None else bias[g, m],
                None if z is None else z[tile], grad_u[tile], grad_delta[tile], sum_A[row], sum_B[maps], sum_C[maps],
                sum_D[row], sum_bias[row], grad_z if z is None else grad_z[tile], softplus,
                *_settings(u, tile, state))  # fmt: skip

    _in_threads([functools.partial(work, i) for i in range(len(shares))])
    with torch.inference_mode():
        for k, (total, split) in enumerate(totals):
            if split:
                total.zero_()
                for place, parts in zip(places, sums, strict=True):
                    total[place[k]] += parts[k]
    return grad_u, grad_delta, grad_A, grad_B.to(B.dtype), grad_C.to(C.dtype), grad_D, grad_bias, grad_z
