"""What semantic tokens save: multiply-accumulates and speed of DeiT and Swin with and without them.

    python tests/benchmarks/semantic_tokens.py [NAME ...] [--batch 4] [--threads 2] [--rounds 15] [--out FILE]

Random weights, 224 x 224 pixels, inference in float32. DeiT (vit/tiny, small, base) carries plain STViT with 16 tokens
after 4 of its 12 blocks; Swin the dumbbell of STViT-R in its third stage and, in a second row, plain STViT with 16
tokens per window after 2 blocks of that stage (core.compression.semantic_tokens). Each round times the dense network
and then the sparse one; a speed is the ratio of two neighbours in time, and the table gives medians with quartiles.

The paper (arXiv 2303.08685): DeiT with 16 tokens about 60 per cent fewer FLOPs and over 100 per cent more images a
second; STViT-R-Swin-S 5.83 G by the authors' log, where Swin-S has 8.7 G; Swin with 16 tokens per window about 20 per
cent faster. Prints the table and writes tests/benchmarks/results/semantic_tokens.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))
from core import registry
from core.bench import spread
from core.compression.semantic_tokens import plain_semantic_swin, semantic_swin, semantic_vit
from core.measure import CLASSES, macs, on_meta, parameters

NAMES = ("vit/tiny", "vit/small", "vit/base", "swin/tiny", "swin/small", "swin/base")
FORMS: dict[str, dict[str, Callable[[nn.Module], nn.Module]]] = {
    "vit": {"plain": semantic_vit},
    "swin": {"R": semantic_swin, "plain": plain_semantic_swin},
}


def measure(name: str, form: str, batch: int, threads: int, rounds: int, **config: Any) -> dict[str, Any]:
    """Counts of one image and the speed of the sparse network over the dense one.

    Args:
        name: a plain ViT or a Swin by "family/variant".
        form: of its semantic tokens, a key of its FORMS.
        batch: images.
        threads: of torch.
        rounds: timed pairs, after one that is not.
        config: settings over the variant's.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    dense = registry.create(name, classes=CLASSES, **config).eval()
    make = FORMS[name.split("/")[0]][form]
    sparse = make(dense)
    image = torch.randn(batch, 3, 224, 224)
    times: dict[str, list[float]] = {"dense": [], "sparse": []}
    with torch.inference_mode():
        for i in range(rounds + 1):
            for kind, model in (("dense", dense), ("sparse", sparse)):
                start = time.perf_counter()
                model(image)
                if i:
                    times[kind].append(time.perf_counter() - start)
    bare = on_meta(lambda: registry.create(name, classes=CLASSES, **config))
    counts = [macs(model, (1, 3, 224, 224)) for model in (bare, on_meta(lambda: make(bare)))]
    return {
        "parameters": [parameters(dense), parameters(sparse)],
        "macs": counts,
        "saved": round(1 - counts[1] / counts[0], 4),
        "seconds": {kind: vars(spread(found)) for kind, found in times.items()},
        "speed": vars(spread([a / b for a, b in zip(times["dense"], times["sparse"], strict=True)])),
    }


def table(found: dict[str, Any]) -> str:
    lines = [f"{'network':<18}{'GMACs dense':>12}{'sparse':>8}{'saved':>8}   times as fast  [quartiles]"]
    for name, row in found["networks"].items():
        dense, sparse = (n / 1e9 for n in row["macs"])
        s = row["speed"]
        lines.append(
            f"{name:<18}{dense:>12.2f}{sparse:>8.2f}{row['saved']:>8.1%}   {s['median']:>13.2f}  "
            f"[{s['low']:.2f}, {s['high']:.2f}]"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=NAMES, metavar="NAME")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "semantic_tokens.json")
    given = parser.parse_args()
    found = {
        "batch": given.batch, "threads": given.threads, "rounds": given.rounds, "torch": torch.__version__,
        "machine": platform.machine(),
        "networks": {
            f"{name} {form}": measure(name, form, given.batch, given.threads, given.rounds)
            for name in given.names for form in FORMS[name.split("/")[0]]
        },
    }  # fmt: skip
    print(table(found))
    given.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
