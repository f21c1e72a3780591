"""Memory that deblurring a large photograph takes above the process after its imports.

    python tests/benchmarks/photograph_memory.py [--size 6000 4000] [--networks reduced published] [--kinds jpg png16]
                                                 [--tiles 24] [--tile SIDE] [--folder DIR] [--out FILE]

Makes a photograph of that size (smooth with noise) in each kind: jpg (8 bits), png, png16 or tif16 (16 bits), and
deblurs it as `glocal deblurring predict` does: read, tiles through the network, strips kept on the disk, picture, mask
and overlay written. Networks have random weights: `published` is LMD-ViT as published, with every window worked on;
`reduced` has the same form and narrow stages. Every measurement is a process of its own. Printed and written is the
peak of the resident set (VmHWM, Linux) above that after the imports, weights included.

The network answers for the first `--tiles` tiles and for the rest the tile itself stands for the answer: what a tile
takes does not depend on how many came before, and all 24 million pixels would take hours on two cores. 0 is for all.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RESULTS = Path(__file__).resolve().parent / "results"
LIMIT = 800  # MB
KINDS = {"jpg": ("jpg", 8), "png": ("png", 8), "png16": ("png", 16), "tif16": ("tif", 16)}
NETWORKS: dict[str, dict[str, list[int]]] = {
    "published": {},
    "reduced": {"dims": [8, 16, 32, 64, 128], "depths": [1] * 9, "heads": [1] * 9},
}


def peak() -> float:
    """Highest resident set so far in MB."""
    line = next(t for t in Path("/proc/self/status").read_text().splitlines() if t.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def make(path: Path, width: int, height: int, bits: int) -> None:
    import numpy as np

    from core.data import photos

    noise = np.random.default_rng(0).normal(0, 0.01, (height // 4, width, 3)).astype(np.float32)
    rows, columns = (
        np.arange(height, dtype=np.float32)[:, None, None],
        np.arange(width, dtype=np.float32)[None, :, None],
    )
    values = 0.5 + 0.2 * np.sin(rows / 97 + np.arange(3)) + 0.2 * np.cos(columns / 131)
    values += np.tile(noise, (5, 1, 1))[:height]
    photos.save(path, photos.as_stored(values, np.uint8 if bits == 8 else np.uint16))


def child(bundle: Path, photo: Path, out: Path, tiles: int, tile: int) -> None:
    """One measurement; prints seconds and MB as JSON."""
    import torch
    import torchvision.io  # noqa: F401 - which decodes 16-bit PNG

    import core.data._photo_tiff
    import core.streaming.png  # noqa: F401
    from apps.deblurring import model  # noqa: F401
    from apps.deblurring import predict as predictions
    from apps.deblurring.pipeline import Pipeline
    from core import pictures

    pictures.font(12)  # Pillow's own, that the overlay is written with
    before, begin = peak(), time.perf_counter()
    pipeline = Pipeline.load(bundle, device="cpu")
    if tiles:
        pipeline.members[0].network = First(pipeline.members[0].network, tiles)
    choices = predictions.Choices(overlays=True, tile=(tile, tile) if tile else None)
    item = predictions._into_folder(photo, out, "")
    predictions._one(pipeline, None, choices, "benchmark", item)
    print(
        json.dumps({"seconds": time.perf_counter() - begin, "mb": peak() - before, "threads": torch.get_num_threads()})
    )


def First(network: object, tiles: int) -> object:  # noqa: N802 - a class that is made where torch is there
    import torch
    from torch import Tensor, nn

    class Answers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.network = tiles, network

        def forward(self, image: Tensor) -> object:
            self.left -= 1
            if self.left >= 0:
                return self.network(image, keep=1.0)  # type: ignore[operator]
            return type("Same", (), {"image": image, "blur": torch.zeros_like(image[:, :1])})

    return Answers()


def bundles(folder: Path, names: list[str], tile: int) -> dict[str, Path]:
    """Of random weights."""
    import torch

    from apps.deblurring import model
    from apps.deblurring.options import DEFAULT, TASK
    from core import bundle
    from core.bundle import Input, Network, Output, Settings, Tile

    made = {}
    for name in names:
        torch.manual_seed(0)
        side = tile or DEFAULT.tile
        settings = Settings(
            TASK, Network("lmd_vit", NETWORKS[name]), Input(channels=("red", "green", "blue")), Output(),
            Tile((side, side), DEFAULT.overlap),
        )  # fmt: skip
        bundle.save(folder / name, model.create("lmd_vit", **NETWORKS[name]), settings, {"validation": None})
        made[name] = folder / name
    return made


def measure(bundle: Path, photo: Path, out: Path, tiles: int, tile: int) -> dict[str, float]:
    root = str(Path(__file__).resolve().parents[2])
    command = [sys.executable, __file__, "--child", *map(str, (bundle, photo, out)), "--tiles", str(tiles)]
    done = subprocess.run(
        [*command, "--tile", str(tile)], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": root}
    )
    if done.returncode:
        raise SystemExit(f"{bundle.name}, {photo.name}: exit {done.returncode}\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs=2, default=(6000, 4000), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=["jpg", "png16"])
    parser.add_argument("--tiles", type=int, default=24, help="that the network works on; 0: all")
    parser.add_argument("--tile", type=int, default=0, help="rows and columns; 0: the app's default")
    parser.add_argument("--folder", type=Path, help="where the temporary folder is made")
    parser.add_argument("--out", type=Path, default=RESULTS / "photograph_memory.json")
    parser.add_argument("--child", nargs=3, type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(*args.child, args.tiles, args.tile)
        return
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        made = bundles(folder / "bundles", args.networks, args.tile)
        rows = []
        for kind in args.kinds:
            ending, bits = KINDS[kind]
            photo = folder / f"{kind}.{ending}"
            make(photo, *args.size, bits)
            for network, bundle in made.items():
                found = measure(bundle, photo, folder / "out" / network, args.tiles, args.tile)
                rows.append({"photograph": kind, "network": network, **found})
                print(f"{kind}, {network}: {found['mb']:.0f} MB, {found['seconds']:.0f} s", flush=True)
    import torch

    report = {
        "what": f"{args.size[0]} x {args.size[1]} photographs, tile {args.tile or 'default'}, network on "
        f"{args.tiles or 'all'} tiles, every window worked on; MB above the process after its imports",
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
