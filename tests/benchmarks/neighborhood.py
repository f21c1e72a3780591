"""Memory and speed of neighborhood attention against its gather form.

    python tests/benchmarks/neighborhood.py [--device cpu|cuda] [--threads 2] [--rounds 15] [--out FILE]

The gather form copies the k * k keys and values of every query. Both run the same inputs in alternating pairs; printed
and written are medians with quartiles, and the peak of what is allocated during one call (profiler's allocation events
on the CPU, the allocator's peak on CUDA; the output included, the inputs not) as a multiple of the inputs q, k and v.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor

from core.mixers.neighborhood import neighborhood_attention

RESULTS = Path(__file__).resolve().parent / "results"
CASES = [  # images, side of the map, heads of 32, kernel, dilation
    (1, 64, 2, 7, 1),
    (4, 64, 2, 7, 1),
    (1, 64, 4, 7, 1),
    (1, 64, 2, 7, 9),
    (1, 56, 2, 7, 8),
    (1, 28, 4, 7, 1),
    (1, 14, 8, 7, 2),
    (1, 128, 2, 7, 1),
    (1, 96, 6, 11, 8),
]


def places(length: int, kernel: int, dilation: int) -> tuple[Tensor, Tensor]:
    """The neighbours of every position of an axis and the entries of their biases, (length, kernel) each."""
    i = torch.arange(length)[:, None]
    members = (length - i % dilation + dilation - 1) // dilation
    place = i // dilation
    start = torch.minimum((place - kernel // 2).clamp(min=0), members - kernel)
    at = start + torch.arange(kernel)
    return i % dilation + at * dilation, at - place + kernel - 1


def gather_form(qkv: Tensor, table: Tensor, kernel: int, dilation: int) -> Tensor:
    """(B, H, W, 3, h, d) -> (B, H, W, h, d) by copies of every query's keys and values."""
    (y, row), (x, column) = (
        [t.to(qkv.device) for t in places(n, kernel, dilation)] for n in (qkv.shape[1], qkv.shape[2])
    )
    H, W = qkv.shape[1:3]
    bias = table[:, row[:, None, :, None], column[None, :, None, :]].reshape(-1, H * W, 1, kernel**2)
    cells = (y[:, None, :, None] * W + x[None, :, None, :]).reshape(-1)
    q, k, v = qkv.flatten(1, 2).permute(2, 0, 3, 1, 4).unbind(0)  # (B, h, H * W, d) each
    k, v = (t.index_select(2, cells).unflatten(2, (H * W, -1)) for t in (k, v))  # (B, h, H * W, k * k, d)
    logits = torch.matmul((q * q.shape[-1] ** -0.5)[..., None, :], k.transpose(-2, -1)) + bias
    return torch.matmul(logits.softmax(-1), v).squeeze(3).transpose(1, 2).unflatten(1, (H, W))


def peak(call: Callable[[], object], device: torch.device) -> int:
    """Most bytes held at a time by what one call allocates."""
    call()
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        kept = call()
    del kept
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    return max(accumulate(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())))


def paired(
    ours: Callable[[], object], theirs: Callable[[], object], rounds: int, device: torch.device
) -> list[list[float]]:
    """Milliseconds of alternating calls, two lists."""
    times: list[list[float]] = [[], []]
    for i in range(rounds + 2):
        for kept, call in zip(times, (ours, theirs), strict=True):
            if device.type == "cuda":
                torch.cuda.synchronize()
            start = time.perf_counter()
            call()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if i > 1:
                kept.append(1e3 * (time.perf_counter() - start))
    return times


def training(form: Callable[[Tensor, Tensor], Tensor], qkv: Tensor, table: Tensor) -> Callable[[], object]:
    """One forward and backward pass."""
    inputs = [t.detach().requires_grad_() for t in (qkv, table)]
    return lambda: torch.autograd.grad(form(*inputs).sum(), inputs)


def measure(case: tuple[int, int, int, int, int], rounds: int, device: torch.device) -> dict[str, object]:
    B, side, heads, kernel, dilation = case
    torch.manual_seed(0)
    qkv = torch.randn(B, side, side, 3, heads, 32, device=device)
    table = torch.randn(heads, 2 * kernel - 1, 2 * kernel - 1, device=device)

    def ours(x: Tensor, t: Tensor) -> Tensor:
        return neighborhood_attention(x, t, kernel=kernel, dilation=dilation)

    def theirs(x: Tensor, t: Tensor) -> Tensor:
        return gather_form(x, t, kernel, dilation)

    size = qkv.numel() * qkv.element_size()
    found: dict[str, object] = {
        "images": B, "side": side, "heads": heads, "head_dim": 32, "kernel": kernel, "dilation": dilation,
        "input_bytes": size,
    }  # fmt: skip
    with torch.inference_mode():
        found["largest_difference"] = float((ours(qkv, table) - theirs(qkv, table)).abs().max())
    for name, calls in {
        "forward": (lambda: ours(qkv, table), lambda: theirs(qkv, table)),
        "training": (training(ours, qkv, table), training(theirs, qkv, table)),
    }.items():
        with torch.inference_mode(name == "forward"):
            memory = [peak(call, device) / size for call in calls]
            times = paired(*calls, rounds, device)
        ratios = [b / a for a, b in zip(*times, strict=True)]
        found[name] = {
            "memory": round(memory[0], 2), "memory_gather": round(memory[1], 2),
            "ms": round(statistics.median(times[0]), 3), "ms_gather": round(statistics.median(times[1]), 3),
            "speed": [round(q, 2) for q in statistics.quantiles(ratios, n=4)],
        }  # fmt: skip
        print(
            f"{B} x {side} x {side}, {heads} heads, kernel {kernel}, dilation {dilation}: {name} {found[name]}",
            flush=True,
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    device = torch.device(given.device)
    cpu = platform.processor() or platform.machine()
    report = {
        "what": "neighborhood attention against its gather form: peak memory of a call over that of q, k and v, "
        "medians in milliseconds, quartiles of the paired ratios as speed",
        "device": torch.cuda.get_device_name() if device.type == "cuda" else cpu,
        "torch": torch.__version__, "threads": given.threads, "dtype": "float32", "rounds": given.rounds,
        "cases": [measure(case, given.rounds, device) for case in CASES],
    }  # fmt: skip
    out = given.out or RESULTS / ("neighborhood.json" if device.type == "cpu" else f"neighborhood-{device.type}.json")
    out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
