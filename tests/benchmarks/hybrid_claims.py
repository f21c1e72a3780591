"""Claims of speed and of memory that published networks rest on, checked here: times of pairs and peaks of one pass.

    python tests/benchmarks/hybrid_claims.py [--only PART ...] [--batches 1 4] [--threads 2] [--rounds 15] [--out FILE]

Random weights, inference in float32, in torch and through onnxruntime (exported by core.export into a temporary
folder, as many threads). Batch norms are folded on both sides in torch, too. Each round times both of a pair in an
order that turns from round to round, every time at least 0.05 s; a ratio is the opponent's time over ours in the same
round, so more than 1 means ours is faster, and the table gives medians with quartiles. "at equal MACs" is the ratio
times our MACs over the opponent's: what one multiply-accumulate of theirs costs over one of ours.

Parts, with what is claimed:
  hybrids  Next-ViT-S, and the FMViT whose MACs are nearest, against CSWin-T at 224 pixels: convolutional hybrids are
           the faster ones at equal MACs (arXiv 2207.05501, arXiv 2311.05707; their own figures are of other machines)
  hilo     HiLo attention against attention in windows of 7 and against spatial reduction by 2, of equal width (384 in
           12 heads, maps of 14 and of 64 cells a side): 1.6 and 1.4 times as fast (arXiv 2205.13213)
  shvit    SHViT-S4 against timm's mobilevitv2_100, both at 256 pixels: 8.1 times as fast (arXiv 2401.16456)
  memory   peak resident set of one forward pass over that before it, 1024 x 1024 pixels, each in a process of its own:
           biformer/tiny, svit/small and transnext/micro are wanted below 6 GB

Prints tables and writes tests/benchmarks/results/claims.json; parts that --only leaves out keep their rows there.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))
from core import export, registry
from core import memory as peaks
from core.bench import Settings, _Timed, spread
from core.compression.fold import fold, fold_after
from core.layers.attend import attend, merge_heads
from core.layers.convs import convolve
from core.layers.linear import Linear
from core.measure import CLASSES, macs, on_meta
from core.mixers.high_low import HiLoAttention
from core.mixers.window import WindowAttention

LIMIT = 6e9  # bytes of one forward pass
LARGE = 1024  # pixels a side there
WARM_UP = 3  # passes
MEMORY = ("biformer/tiny", "svit/small", "transnext/micro")
RGB = {"channels": ["red", "green", "blue"]}

Row = dict[str, Any]


class SpatialReduction(nn.Module):
    """PVT's attention to a map that a convolution made smaller: (B, H, W, C) in and out (arXiv 2102.12122, 3.3)."""

    def __init__(self, dim: int, heads: int, reduction: int) -> None:
        super().__init__()
        self.heads = heads
        self.reduce, self.norm = nn.Conv2d(dim, dim, reduction, reduction), nn.LayerNorm(dim)
        self.q, self.kv, self.proj = Linear(dim, dim), Linear(dim, 2 * dim), Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        small = self.norm(convolve(self.reduce, x)).flatten(1, 2)
        q = self.q(x).flatten(1, 2).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = self.kv(small).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        out: Tensor = self.proj(merge_heads(attend(q, k, v)).view(x.shape))
        return out


def compare(
    ours: Callable[[], Any], theirs: Callable[[], Any], counts: Sequence[int], threads: int, rounds: int
) -> Row:  # fmt: skip
    """Seconds of both and the ratio of the same rounds.

    Args:
        ours: one pass.
        theirs: the opponent's.
        counts: MACs of both.
        threads: of torch.
        rounds: timed pairs, after a few passes of each that are not.
    """
    settings = Settings(threads=threads, rounds=rounds)
    pair = [_Timed(ours, settings), _Timed(theirs, settings)]
    for timed in pair:
        for _ in range(WARM_UP):
            timed.once()
        timed.calibrate()
    for i in range(rounds):
        for timed in pair if i % 2 == 0 else reversed(pair):
            timed.sample()
    ratios = [b / a for a, b in zip(pair[0].seconds, pair[1].seconds, strict=True)]
    ratio = spread(ratios)
    return {
        "macs": list(counts),
        "seconds": [vars(spread(timed.seconds)) for timed in pair],
        "ratio": vars(ratio),
        "at_equal_macs": ratio.median * counts[0] / counts[1],
    }


def timm_model(name: str) -> nn.Module:
    import timm

    return timm.create_model(name, num_classes=CLASSES)


def folded(model: nn.Module) -> nn.Module:
    """A copy in evaluation, batch norms inside convolutions; timm has norm and activation of a block in one module."""
    model = copy.deepcopy(model).eval()
    for block in model.modules():
        if type(block).__name__ == "ConvNormAct":
            block.conv, block.bn = fold_after(block.conv, block.bn), block.bn.act
    return fold(model)


def session(path: Path, threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def networks(names: Sequence[str], size: int, batches: Sequence[int], threads: int, rounds: int) -> list[Row]:
    """Two classifiers, in torch and through onnxruntime, at each batch size.

    Args:
        names: ours and the opponent, "family/variant" or "timm:NAME".
        size: rows and columns of the image.
        batches: images at once.
        threads: of torch and of onnxruntime.
        rounds: timed pairs.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(0)

    def make(name: str) -> nn.Module:
        if name.startswith("timm:"):
            return timm_model(name.removeprefix("timm:")).eval()
        return registry.create(name, classes=CLASSES).eval()

    counts = [macs(on_meta(lambda name=name: make(name)), (1, 3, size, size)) for name in names]
    both = [make(name) for name in names]
    rows = []
    for batch in batches:
        image = torch.randn(batch, 3, size, size)
        about = {"ours": names[0], "theirs": names[1], "size": size, "batch": batch}
        quick = [folded(model) for model in both]
        with torch.inference_mode():
            found = compare(*(partial(model, image) for model in quick), counts, threads, rounds)
        rows.append({**about, "by": "torch", **found})
        del quick
        with tempfile.TemporaryDirectory() as folder:
            sessions = []
            for i, (name, model) in enumerate(zip(names, both, strict=True)):
                path = Path(folder) / f"{i}.onnx"
                contract = RGB if name.startswith("timm:") else None
                export.export(model, path, (size, size), name=name, batch=batch, contract=contract)
                sessions.append(session(path, threads))
            given = {"image": image.numpy()}
            found = compare(*(partial(s.run, None, given) for s in sessions), counts, threads, rounds)
        rows.append({**about, "by": "onnxruntime", **found})
    return rows


def nearest(family: str, against: str, size: int) -> str:
    """The variant of a family whose MACs are nearest to those of a network, by their ratio."""

    def count(name: str) -> int:
        return macs(on_meta(lambda: registry.create(name, classes=CLASSES)), (1, 3, size, size))

    aim = count(against)
    names = [f"{family}/{variant}" for variant in registry.family(family).VARIANTS]
    return min(names, key=lambda name: max(count(name) / aim, aim / count(name)))


def hybrids(batches: Sequence[int], threads: int, rounds: int) -> list[Row]:
    pairs = [(ours, "cswin/tiny") for ours in ("next_vit/small", nearest("fmvit", "cswin/tiny", 224))]
    return [row for pair in pairs for row in networks(pair, 224, batches, threads, rounds)]


def shvit(batches: Sequence[int], threads: int, rounds: int) -> list[Row]:
    return networks(("shvit/s4", "timm:mobilevitv2_100"), 256, batches, threads, rounds)


def hilo(batches: Sequence[int], threads: int, rounds: int) -> list[Row]:
    """Layers alone, in torch; `alpha` 0.5 is the layer's own setting, 0.9 that of the published networks."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    dim, heads, rows = 384, 12, []
    opponents = {
        "windows of 7": lambda: WindowAttention(dim, heads, window=7),
        "spatial reduction by 2": lambda: SpatialReduction(dim, heads, 2),
    }
    for side in (14, 64):
        for alpha in (0.5, 0.9):
            for name, make in opponents.items():
                for batch in batches:
                    makes = (lambda alpha=alpha: HiLoAttention(dim, heads, alpha=alpha, qkv_bias=True), make)
                    counts = [macs(on_meta(m), (1, side, side, dim)) for m in makes]
                    pair, x = [m().eval() for m in makes], torch.randn(batch, side, side, dim)
                    with torch.inference_mode():
                        found = compare(*(partial(layer, x) for layer in pair), counts, threads, rounds)
                    about = {"ours": f"HiLo, alpha {alpha}", "theirs": name, "size": side, "batch": batch}
                    rows.append({**about, "by": "torch", **found})
    return rows


def memory(batches: Sequence[int], threads: int, rounds: int) -> list[Row]:
    """One pass of each network in a process of its own; batch 1 and a single round, whatever was asked for."""
    rows = []
    for name in MEMORY:
        command = [sys.executable, __file__, "--child", name, "--threads", str(threads)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{name}: exit {done.returncode}\n{done.stderr}")
        rows.append({"ours": name, "size": LARGE, "batch": 1, "limit": LIMIT, "bytes": int(done.stdout.split()[-1])})
    return rows


def child(name: str, threads: int) -> None:
    """Print the bytes that one forward pass takes at its peak above what is resident before it."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = export.network(name, size=(LARGE, LARGE))
    image = torch.randn(1, 3, LARGE, LARGE)
    with torch.inference_mode():
        taken = peaks.growth(lambda: model(image), "cpu")
    if taken is None:
        raise SystemExit("this system does not tell a process its peak of memory (Linux does)")
    print(taken)


PARTS: dict[str, Callable[[Sequence[int], int, int], list[Row]]] = {
    "hybrids": hybrids, "hilo": hilo, "shvit": shvit, "memory": memory,
}  # fmt: skip


def table(part: str, rows: Sequence[Row]) -> str:
    if part == "memory":
        lines = [f"{'network':<18}{'pixels':>8}{'GB':>8}{'wanted below':>14}"]
        lines += [f"{r['ours']:<18}{r['size']:>8}{r['bytes'] / 1e9:>8.2f}{r['limit'] / 1e9:>14.0f}" for r in rows]
        return "\n".join(lines)
    lines = [
        f"{'ours':<16}{'against':<24}{'size':>5}{'batch':>6}  {'by':<12}{'times as fast  [quartiles]':<28}at equal MACs"
    ]
    for r in rows:
        s = r["ratio"]
        spreads = f"{s['median']:.2f}  [{s['low']:.2f}, {s['high']:.2f}]"
        lines.append(
            f"{r['ours']:<16}{r['theirs']:<24}{r['size']:>5}{r['batch']:>6}  {r['by']:<12}{spreads:<28}"
            f"{r['at_equal_macs']:.2f}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 4], metavar="IMAGES")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "claims.json")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        child(given.child, given.threads)
        return
    found = json.loads(given.out.read_text()) if given.out.exists() else {"parts": {}}
    for part in given.only:
        rows = PARTS[part](given.batches, given.threads, given.rounds)
        print(f"{part}\n{table(part, rows)}\n", flush=True)
        found["parts"][part] = {
            "threads": given.threads, "rounds": 1 if part == "memory" else given.rounds, "rows": rows,
            "torch": torch.__version__, "machine": platform.machine(), "load": os.getloadavg()[0],
        }  # fmt: skip
        given.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
