"""Memory that classifying a large slide takes above the process after its imports, also after it was killed.

    python tests/benchmarks/slide_memory.py [--size 40000 30000] [--networks reduced random] [--um 0.5] [--tiles 256]
                                            [--kill] [--folder DIR] [--out FILE]

Makes a slide of that size (core.data._slide: levels 1, 4, 16 in JPEG tiles of 512 pixels, 0.5 um to a pixel) and
classifies it as `glocal medical pathology classify predict` does: tissue, tiles through the network, a journal of
finished rows, heat map, outlines, table, pictures. Networks have random weights: `channel` and `random` are DuoFormer
as published over ResNet-50, with two scales and that scale token; `reduced` has the same form and is narrow. Every
measurement is a process of its own. Printed and written is the peak of the resident set (VmHWM, Linux) above that after
the imports, weights included.

The network answers for the first `--tiles` tiles and a constant for the rest: what a tile takes does not depend on how
many came before, and thousands would take hours on two cores. 0 is for all. With `--kill` the first process gets
SIGKILL when a third of the rows is done, and what is measured is the second, which goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
LIMIT = 800  # MB
NETWORKS: dict[str, dict[str, Any]] = {
    "reduced": {"backbone": "resnet/18", "scale_token": "random", "dim": 96, "heads": 4, "depth": 2},
    "random": {"scale_token": "random"},
    "channel": {"scale_token": "channel"},
}


def peak() -> float:
    """Highest resident set so far in MB."""
    line = next(t for t in Path("/proc/self/status").read_text().splitlines() if t.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def child(bundle: Path, slide: Path, out: Path, tiles: int, um: float) -> None:
    """One measurement; prints seconds and MB as JSON."""
    import skimage.filters
    import skimage.measure  # noqa: F401
    import tifffile  # noqa: F401
    import torch
    import torchvision  # noqa: F401 - whose ResNet it is

    from apps.medical.pathology_classify import predict as predictions
    from apps.medical.pathology_classify.pipeline import Look, Pipeline
    from core import jobs, pictures

    pictures.font(12)  # Pillow's own, that the overlay is written with
    out.mkdir(parents=True, exist_ok=True)
    before, begin = peak(), time.perf_counter()
    pipeline = Pipeline.load(bundle, device="cpu")
    if tiles:
        pipeline.members[0].network = First(pipeline.members[0].network, tiles)
    choices = predictions.Choices(look=Look(um=um))
    (item,) = predictions.find([slide])
    said = predictions.one(pipeline, choices, jobs.Jobs(out, "benchmark"), item)
    found = {"seconds": time.perf_counter() - begin, "mb": peak() - before, "threads": torch.get_num_threads()}
    print(json.dumps({**found, "said": said.partition(": ")[2]}))


def First(network: Any, tiles: int) -> Any:  # noqa: N802 - a class that is made where torch is there
    import torch
    from torch import Tensor, nn

    class Answers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.network = tiles, network

        def forward(self, image: Tensor) -> Tensor:
            self.left -= len(image)
            if self.left >= 0:
                return self.network(image)
            return torch.tensor([[0.0, 1.0]]).expand(len(image), 2)

    return Answers()


def bundles(folder: Path, names: list[str]) -> dict[str, Path]:
    """Of random weights."""
    import torch

    from apps.medical.pathology_classify import inputs, model
    from apps.medical.pathology_classify.options import TASK
    from core import bundle
    from core.bundle import Network, Output, Settings, Tile

    made = {}
    for name in names:
        torch.manual_seed(0)
        network = model.create("duoformer", **NETWORKS[name])
        config = {"classes": 2, **NETWORKS[name]}
        settings = Settings(
            TASK, Network("duoformer", config), inputs.contract(), Output({"benign": 0, "malignant": 1}),
            Tile((inputs.SIZE, inputs.SIZE), 0.0),
        )  # fmt: skip
        bundle.save(folder / name, network, settings, {"validation": None})
        made[name] = folder / name
    return made


def measure(bundle: Path, slide: Path, out: Path, tiles: int, um: float, *, kill: bool) -> dict[str, Any]:
    root = str(Path(__file__).resolve().parents[2])
    command = [sys.executable, __file__, "--child", *map(str, (bundle, slide, out)), "--tiles", str(tiles)]
    command += ["--um", str(um)]
    options: dict[str, Any] = {"text": True, "env": {**os.environ, "PYTHONPATH": root}}
    killed = 0
    if kill:
        rows = out / f"{slide.stem}.heatmap.ome.tif.part" / "rows.txt"
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, **options)
        while killed < 40 and process.poll() is None:
            killed = len(rows.read_text().splitlines()) if rows.is_file() else 0
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = subprocess.run(command, capture_output=True, **options)
    if done.returncode:
        raise SystemExit(f"{bundle.name}, {slide.name}: exit {done.returncode}\n{done.stderr}")
    return {**json.loads(done.stdout.splitlines()[-1]), "rows done before it was killed": killed}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs=2, default=(40_000, 30_000), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=["reduced", "random"])
    parser.add_argument("--um", type=float, default=0.5, help="micrometres to a pixel; the slide has 0.5")
    parser.add_argument("--tiles", type=int, default=256, help="that the network works on; 0: all")
    parser.add_argument("--kill", action="store_true", help="measure a run that goes on after SIGKILL")
    parser.add_argument("--folder", type=Path, help="where the temporary folder is made")
    parser.add_argument("--out", type=Path, default=RESULTS / "slide_memory.json")
    parser.add_argument("--child", nargs=3, type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(*args.child, args.tiles, args.um)
        return
    from core.data import _slide

    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        made = bundles(folder / "bundles", args.networks)
        slide = folder / "slide.tif"
        _slide.write(slide, (args.size[1], args.size[0]), um=0.5)
        rows = []
        for network, bundle in made.items():
            found = measure(bundle, slide, folder / "out" / network, args.tiles, args.um, kill=args.kill)
            rows.append({"network": network, **found})
            print(f"{network}: {found['mb']:.0f} MB, {found['seconds']:.0f} s, {found['said']}", flush=True)
    import torch

    report = {
        "what": f"{args.size[0]} x {args.size[1]} slide at {args.um:g} um, network on {args.tiles or 'all'} tiles; "
        "MB above the process after its imports",
        "limit": LIMIT,
        "machine": {"processor": platform.machine(), "cores": os.cpu_count(), "load": os.getloadavg()[0]},
        "versions": {"torch": torch.__version__},
        "rows": rows,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=1) + "\n")
    if worst := [r for r in rows if r["mb"] > LIMIT]:
        raise SystemExit(f"{len(worst)} of {len(rows)} above {LIMIT} MB")


if __name__ == "__main__":
    main()
