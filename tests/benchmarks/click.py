"""How long one click on the page of colorization takes: the networks' answer, the preview, its JPEG.

Fresh weights (the time does not depend on them), a photograph of 12 million pixels, up to twenty hints. On an idle
machine:

    python tests/benchmarks/click.py [--threads 2] [--rounds 15] [--out FILE.json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from apps.colorization import _contract, _work, model
from apps.colorization.hints import Hint
from apps.colorization.pipeline import Pipeline
from core import bundle
from core.config import as_table
from core.data.photos import Photo

NAMES = {"tiny": "icolorit_tiny", "small": "icolorit_small", "base": "icolorit"}
SIZE = (3000, 4000)
HINTS = 20


def photograph() -> Photo:
    """Smooth noise with edges, (3000, 4000, 1)."""
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.random((1, 1, 30, 40), np.float32))
    fine = torch.nn.functional.interpolate(coarse, SIZE, mode="bicubic")[0, 0].clamp(0, 1).numpy()
    fine[1000:2000, 1500:2500] *= 0.5
    return Photo(pixels=(fine * 255).astype(np.uint8)[..., None])


def loaded(name: str, folder: Path) -> Pipeline:
    torch.manual_seed(0)
    network = model.create(name)
    settings = _contract.settings(name, as_table(network.config), network.size)
    bundle.save(folder, network, settings, {"validation": None})
    return Pipeline.load(folder, device="cpu")


def measured(pipeline: Pipeline, photo: Photo, rounds: int) -> dict[str, Any]:
    """Seconds: of opening, of a click (median and quartiles), of the whole picture as it is saved."""
    start = time.perf_counter()
    session = pipeline.open(photo, preview=_work.PREVIEW)
    _work.picture(session.preview())
    opened = time.perf_counter() - start
    rng = np.random.default_rng(1)
    hints = [
        Hint(int(rng.integers(SIZE[1])), int(rng.integers(SIZE[0])), *map(int, rng.integers(0, 256, 3)))
        for _ in range(HINTS)
    ]
    times, bytes_ = [], 0
    for turn in range(rounds + 2):
        start = time.perf_counter()
        bytes_ = len(_work.picture(session.preview(hints[: 1 + turn % HINTS])))
        if turn >= 2:  # after warm-up
            times.append(time.perf_counter() - start)
    start = time.perf_counter()
    session.coloured(hints)
    whole = time.perf_counter() - start
    low, median, high = statistics.quantiles(times, n=4)
    return {
        "open_s": opened, "click_s": median, "quartiles_s": [low, high], "whole_s": whole, "preview_kB": bytes_ / 1000,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    photo, table = photograph(), {}
    print(f"{SIZE[1]} x {SIZE[0]} pixels, preview {_work.PREVIEW}, {given.threads} threads, {given.rounds} rounds")
    for short, name in NAMES.items():
        with tempfile.TemporaryDirectory() as folder:
            pipeline = loaded(name, Path(folder))
        found = table[short] = measured(pipeline, photo, given.rounds)
        low, median, high = (1000 * v for v in (found["quartiles_s"][0], found["click_s"], found["quartiles_s"][1]))
        print(
            f"{short:6} at {pipeline.size}: click {median:.0f} ms ({low:.0f} to {high:.0f}), "
            f"open {found['open_s']:.2f} s, whole picture {found['whole_s']:.2f} s, "
            f"{found['preview_kB']:.0f} kB a click",
            flush=True,
        )
    if given.out:
        about = {"size": SIZE, "preview": _work.PREVIEW, "threads": given.threads, "torch": torch.__version__}
        given.out.write_text(json.dumps({**about, "rounds": given.rounds, "results": table}, indent=1) + "\n")


if __name__ == "__main__":
    main()
