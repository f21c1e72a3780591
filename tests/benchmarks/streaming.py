"""Streaming of a large GeoTIFF against a bare rasterio loop, its memory, and what kill -9 leaves.

    python tests/benchmarks/streaming.py [--size 20000] [--rounds 3] [--batch 4] [--folder DIR] [--out FILE]

Makes a scene (uint8, deflate, 512 blocks, smooth with noise and nodata holes) in a temporary folder and inverts it: by
a loop that reads, inverts and writes block by block, and by `run` with tiles of 512 into the crash-safe sink, at
overlaps 0 and 0.25. Every measurement is a process of its own, in turn; times do not include the imports. Printed and
written are medians, the ratios of each round's pair, and the peak of the resident set (VmHWM, Linux) above that after
the imports. Then a run is killed at three random points and run again; its result must equal the others in pixels,
profile and tags.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RESULTS = Path(__file__).resolve().parent / "results"
OVERLAPS = ("0", "0.25")


def peak() -> float:
    """Highest resident set so far in MB."""
    line = next(t for t in Path("/proc/self/status").read_text().splitlines() if t.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def make(path: Path, size: int) -> None:
    import numpy as np
    import rasterio
    from rasterio.windows import Window

    noise = np.random.default_rng(0).normal(0, 2, (512, size)).astype(np.float32)
    columns = np.arange(size, dtype=np.float32)
    profile = {"driver": "GTiff", "count": 1, "dtype": "uint8", "nodata": 0, "compress": "deflate", "tiled": True,
               "blockxsize": 512, "blockysize": 512, "crs": "EPSG:32633",
               "transform": rasterio.Affine(10, 0, 5e5, 0, -10, 4e6)}  # fmt: skip
    with rasterio.open(path, "w", width=size, height=size, **profile) as data:
        for r in range(0, size, 512):
            rows = np.arange(r, min(r + 512, size), dtype=np.float32)[:, None]
            values = 110 + 60 * np.sin(rows / 397) + 40 * np.cos(columns / 531) + np.roll(noise[: len(rows)], r, axis=1)
            values = values.clip(1, 255).astype(np.uint8)
            if r // 512 % 7 == 3:
                values[100:300, size // 6 : size // 2] = 0
            data.write(values, 1, window=Window(0, r, size, len(rows)))


def child(how: str, source: Path, result: Path, batch: int) -> None:
    """One measurement; prints seconds and MB as JSON."""
    import numpy as np
    import rasterio
    import torch

    from core.streaming.blend import image
    from core.streaming.geotiff import GeoTiffSink
    from core.streaming.rasters import RasterSource
    from core.streaming.run import run

    before, begin = peak(), time.perf_counter()
    if how == "bare":
        with rasterio.open(source) as data, rasterio.open(result, "w", **data.profile) as out:
            for _, window in data.block_windows(1):
                x = data.read(1, window=window)
                out.write(np.where(x > 0, 255 - x, 0).astype(np.uint8), 1, window=window)
    else:
        scene = RasterSource(source)
        sink = GeoTiffSink(result, scene.shape, "uint8", meta=scene.meta, nodata=0)
        run(scene, lambda tiles, valid: torch.where(tiles > 0, 255 - tiles, 0).to(torch.uint8), sink, tile=512,
            overlap=float(how), batch=batch, finish=image("uint8"))  # fmt: skip
    print(json.dumps({"seconds": time.perf_counter() - begin, "mb": peak() - before}))


def start(how: str, source: Path, result: Path, batch: int) -> subprocess.Popen[str]:
    root = str(Path(__file__).resolve().parents[2])
    command = [sys.executable, __file__, "--child", how, str(source), str(result), "--batch", str(batch)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": root})


def measure(how: str, source: Path, result: Path, batch: int) -> dict[str, float]:
    result.unlink(missing_ok=True)
    process = start(how, source, result, batch)
    said = process.communicate()[0]
    if process.returncode:
        raise SystemExit(f"{how}: exit {process.returncode}")
    return json.loads(said.splitlines()[-1])


def kills(source: Path, result: Path, batch: int, seconds: float) -> int:
    """Kill a run at three random points, end it, and say how many rows it had before the last start."""
    rows = 0
    lines = result.with_name(result.name + ".part") / "rows.txt"
    for number in range(3):
        process = start("0.25", source, result, batch)
        while process.poll() is None and not (lines.exists() and lines.read_bytes().count(b"\n") > 3 * number):
            time.sleep(0.01)
        time.sleep(random.uniform(0, seconds / 5))
        process.send_signal(signal.SIGKILL)
        process.wait()
        if result.exists():
            raise SystemExit("the run was over before it was killed; take a larger --size")
        rows = int(lines.read_bytes().splitlines()[-1].split()[0])
    measure("0.25", source, result, batch)
    return rows


def same(a: Path, b: Path) -> dict[str, bool]:
    import numpy as np
    import rasterio

    with rasterio.open(a) as one, rasterio.open(b) as other:
        pixels = all(np.array_equal(one.read(1, window=w), other.read(1, window=w)) for _, w in one.block_windows(1))
        return {"pixels": pixels, "profile": one.profile == other.profile, "tags": one.tags() == other.tags()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--folder", type=Path, help="where the temporary folder is made")
    parser.add_argument("--out", type=Path, default=RESULTS / "streaming.json")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.child[0], Path(args.child[1]), Path(args.child[2]), args.batch)
        return
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        source = folder / "scene.tif"
        make(source, args.size)
        rounds = []
        for _ in range(args.rounds):
            rounds.append({how: measure(how, source, folder / f"{how}.tif", args.batch) for how in ("bare", *OVERLAPS)})
            print({how: f"{r['seconds']:.2f} s, {r['mb']:.0f} MB" for how, r in rounds[-1].items()}, flush=True)
        median = {how: statistics.median(r[how]["seconds"] for r in rounds) for how in rounds[0]}
        equal = {how: same(folder / "bare.tif", folder / f"{how}.tif") for how in OVERLAPS}
        rows = kills(source, folder / "killed.tif", args.batch, median["0.25"])
        equal["killed"] = same(folder / "0.25.tif", folder / "killed.tif")
    import rasterio
    import torch

    report = {
        "what": f"{args.size} x {args.size} uint8 GeoTIFF, deflate, 512 blocks; tile 512, batch {args.batch}",
        "machine": {"processor": platform.machine(), "cores": os.cpu_count(), "load": os.getloadavg()[0]},
        "versions": {"torch": torch.__version__, "rasterio": rasterio.__version__, "gdal": rasterio.__gdal_version__},
        "rounds": rounds,
        "seconds": median,
        "ratio": {h: statistics.median(r[h]["seconds"] / r["bare"]["seconds"] for r in rounds) for h in OVERLAPS},
        "mb": {how: max(r[how]["mb"] for r in rounds) for how in rounds[0]},
        "equal": equal,
        "rows_before_last_start": rows,
    }
    print(json.dumps({k: report[k] for k in ("seconds", "ratio", "mb", "equal", "machine")}, indent=1))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
