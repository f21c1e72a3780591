"""What skipping windows saves in LMD-ViT: its time with 0, 25, 50, 75 and 100 per cent of the windows left out.

    python tests/benchmarks/pruned_windows.py [--size 512] [--threads 2] [--rounds 15] [--out FILE]

The published network with random weights, one picture, keep maps by hand (a fixed pseudo-random order), so the
predictors do not run on either side. Each round times the form that works on every window, then each other form; a
ratio is of two neighbours in time, and the table gives medians with quartiles. "masked" is the form that is exported
and trained, which works on every window and multiplies. Prints the table and writes
tests/benchmarks/results/pruned_windows.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))
from apps.deblurring import model
from core.bench import spread

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the windows, left out


def measure(size: int, threads: int, rounds: int, settings: dict[str, Any] | None = None) -> dict[str, Any]:
    """Seconds of each form and its ratio to the one that works on every window.

    Args:
        size: side of the picture in pixels.
        threads: of torch.
        rounds: timed, after one that is not.
        settings: of the network, instead of the published ones.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    network = model.create("lmd_vit", **(settings or {})).eval()
    image = torch.rand(1, 3, size, size)
    forms: dict[str, dict[str, Any]] = {f"{share:.0%} left out": {"keep": 1 - share} for share in SHARES[1:]}
    forms = {"every window": {"keep": 1.0}, "masked": {"keep": 0.5, "dense": True}, **forms}
    first, *others = forms

    def seconds(name: str) -> float:
        start = time.perf_counter()
        network(image, **forms[name])
        return time.perf_counter() - start

    times: dict[str, list[float]] = {name: [] for name in forms}
    ratios: dict[str, list[float]] = {name: [] for name in others}
    with torch.inference_mode():
        for name in forms:
            seconds(name)
        for _ in range(rounds):
            for name in others:
                whole = seconds(first)
                times[first].append(whole)
                times[name].append(seconds(name))
                ratios[name].append(whole / times[name][-1])
    rows = {name: {"seconds": vars(spread(found))} for name, found in times.items()}
    for name, found in ratios.items():
        rows[name]["ratio"] = vars(spread(found))
    return {
        "size": size, "threads": threads, "rounds": rounds, "settings": settings or "published",
        "torch": torch.__version__, "machine": platform.machine(), "forms": rows,
    }  # fmt: skip


def table(found: dict[str, Any]) -> str:
    lines = [f"{'windows':<16}{'seconds':>9}  [quartiles]        times as fast as every window  [quartiles]"]
    for name, row in found["forms"].items():
        s, r = row["seconds"], row.get("ratio")
        ratio = "" if r is None else f"{r['median']:.2f}  [{r['low']:.2f}, {r['high']:.2f}]"
        lines.append(f"{name:<16}{s['median']:>9.3f}  [{s['low']:.3f}, {s['high']:.3f}]   {ratio}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "pruned_windows.json")
    given = parser.parse_args()
    found = measure(given.size, given.threads, given.rounds)
    print(table(found))
    given.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
