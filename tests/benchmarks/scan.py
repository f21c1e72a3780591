"""Figures of the selective scan: time against a plain loop, two threads against one, memory, error.

    python tests/benchmarks/scan.py [--rounds 15] [--loop-rounds 5] [--length 3136] [--threads 2]

Prints them and writes tests/benchmarks/results/scan.json. Times are wall seconds; the two sides of a comparison
alternate in one process, and ratios are taken pair by pair. `--peak forward` or `--peak backward` prints one number,
the peak memory of this fresh process beyond inputs, output and gradients as a fraction of the (B, D, L, N) tensor.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))
from core.mixers.scan import selective_scan

CHANNELS, GROUPS, STATE = 4 * 192, 4, 16


def inputs(length: int) -> list[Tensor]:
    """u, delta (after softplus), A, B, C, D at the size of SS2D's first stage."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    delta = torch.nn.functional.softplus(normal(1, CHANNELS, length) - 4)
    A = -torch.arange(1.0, STATE + 1).repeat(CHANNELS, 1)
    maps = (1, GROUPS, STATE, length)
    values = [normal(1, CHANNELS, length), delta, A, normal(*maps), normal(*maps), normal(CHANNELS)]
    return [t.requires_grad_() for t in values]


def loop(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """The plain loop, decays and drives position by position so that memory does not slow it down."""
    B, C = (t.repeat_interleave(CHANNELS // GROUPS, 1).movedim(-1, 0).contiguous() for t in (B, C))  # (L, B, D, N)
    steps, drives = delta.movedim(-1, 0).unsqueeze(-1), (delta * u).movedim(-1, 0).unsqueeze(-1)
    x, out = u.new_zeros(1, CHANNELS, STATE), []
    for step, drive, b, c in zip(steps.unbind(), drives.unbind(), B.unbind(), C.unbind(), strict=True):
        x = torch.exp(step * A) * x + drive * b
        out.append((x * c).sum(-1))
    return torch.stack(out, -1) + u * D[:, None]


def forward(scan: Callable[..., Tensor], given: list[Tensor]) -> list[Tensor]:
    with torch.no_grad():
        return [scan(*given)]


def both(scan: Callable[..., Tensor], given: list[Tensor]) -> list[Tensor]:
    y = scan(*given)
    return [y.detach(), *torch.autograd.grad(y, given, torch.ones_like(y))]


def seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def spread(values: list[float]) -> dict[str, float]:
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    return {"q1": round(float(low), 4), "median": round(float(middle), 4), "q3": round(float(high), 4),
            "min": round(min(values), 4)}  # fmt: skip


def pairs(slow: Callable[[], Any], fast: Callable[[], Any], rounds: int) -> dict[str, Any]:
    """Times of both, alternating, and of their quotient."""
    fast()
    taken = [(seconds(slow), seconds(fast)) for _ in range(rounds)]
    return {"rounds": rounds, "slow_s": spread([s for s, _ in taken]), "fast_s": spread([f for _, f in taken]),
            "ratio": spread([s / f for s, f in taken])}  # fmt: skip


def with_threads(count: int, call: Callable[[], Any]) -> Callable[[], Any]:
    def run() -> None:
        torch.set_num_threads(count)
        call()

    return run


def memory(name: str) -> int:
    """A line of this process's status, in bytes (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def peak(what: str, length: int) -> float:
    """Peak memory beyond inputs, output and gradients over the size of the (B, D, L, N) tensor."""
    run = {"forward": forward, "backward": both}[what]
    run(selective_scan, inputs(64))  # libraries and threads
    given = inputs(length)
    grad_y = given[0].numel() if what == "backward" else 0
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    out = run(selective_scan, given)
    own = 4 * (sum(t.numel() for t in out) + grad_y)
    return (memory("VmHWM") - before - own) / (4 * given[0].numel() * STATE)


def errors(length: int) -> dict[str, float]:
    """Largest difference from the loop over the standard deviation, for y and each gradient."""
    given = inputs(length)
    names = ("y", "grad_u", "grad_delta", "grad_A", "grad_B", "grad_C", "grad_D")
    zipped = zip(names, both(selective_scan, given), both(loop, given), strict=True)
    return {name: float(f"{(got - want).abs().max() / want.std():.3g}") for name, got, want in zipped}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--loop-rounds", type=int, default=5, help="pairs with the loop's backward pass")
    parser.add_argument("--length", type=int, default=3136)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peak", choices=["forward", "backward"])
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.peak:
        print(peak(given.peak, given.length))
        return
    values = inputs(given.length)
    load = os.getloadavg()[0]  # processes that want a core: past the cores left to us, two threads wait for each other
    report: dict[str, Any] = {
        "cores": os.cpu_count(), "load_before": round(load, 2),
        "torch": torch.__version__, "threads": given.threads, "dtype": "float32",
        "shapes": {"u": [1, CHANNELS, given.length], "A": [CHANNELS, STATE], "B": [1, GROUPS, STATE, given.length]},
    }  # fmt: skip
    kinds = (("forward", forward, given.rounds), ("forward_backward", both, given.loop_rounds))
    for name, run, _ in kinds:  # first: the loop leaves the allocator slower for what follows
        ours = lambda run=run: run(selective_scan, values)  # noqa: E731
        report[f"{name}_one_thread_over_{given.threads}"] = pairs(
            with_threads(1, ours), with_threads(given.threads, ours), given.rounds
        )
    torch.set_num_threads(given.threads)
    for name, run, loop_rounds in kinds:
        ours = lambda run=run: run(selective_scan, values)  # noqa: E731
        report[f"{name}_loop_over_ours"] = pairs(lambda run=run: run(loop, values), ours, loop_rounds)
    command = [sys.executable, __file__, "--length", str(given.length), "--threads", str(given.threads), "--peak"]
    report["peak_extra_over_BDLN"] = {
        what: round(float(subprocess.run([*command, what], capture_output=True, text=True, check=True).stdout), 4)
        for what in ("forward", "backward")
    }
    report["error_over_spread"] = errors(given.length)
    report["load_after"] = round(os.getloadavg()[0], 2)
    text = json.dumps(report, indent=2) + "\n"
    print(text)
    target = HERE / "results" / "scan.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(text)


if __name__ == "__main__":
    main()
