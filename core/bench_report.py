"""What a benchmark says beside its numbers: the machine, the table for people, the JSON file."""

from __future__ import annotations

import json
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import core
from core.errors import InputError

SAME = 1e-3  # of the spread: float32 answers of one function written twice
CHECKOUT = Path(__file__).resolve().parent.parent
RESULTS = CHECKOUT / "tests" / "benchmarks" / "results"


def machine(device: str) -> dict[str, Any]:
    """What the numbers depend on: commit, versions, processor, date."""
    found: dict[str, Any] = {
        "commit": commit(),
        "glocal": core.__version__,
        "torch": torch.__version__,
        "cpu": _cpu(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }
    if device == "cuda":
        found["gpu"] = torch.cuda.get_device_name()
    return found


def commit() -> str | None:
    """The checkout's commit, "+" after it where files differ from it; None outside a checkout."""
    if not (CHECKOUT / ".git").exists():
        return None
    try:
        git = ["git", "-C", str(CHECKOUT)]
        head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True)
        dirty = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + ("+" if dirty.stdout.strip() else "")


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def text(document: dict[str, Any]) -> str:
    """The document as a table for people."""
    each = "images/s" if len(document["size"]) == 2 else "clips/s"
    head = ("network", "batch", "ms", "quartiles", each, "peak MB", "parameters", "MACs", "share")
    lines = [head]
    for result in document["results"]:
        for net in result["networks"]:
            low, high = net["latency"]["low"] * 1e3, net["latency"]["high"] * 1e3
            peak = "-" if net["peak_memory"] is None else f"{net['peak_memory'] / 1e6:.0f}"
            lines.append(
                (
                    net["name"], str(result["batch"]), f"{net['latency']['median'] * 1e3:.2f}",
                    f"{low:.2f}-{high:.2f}", f"{net['throughput']:.1f}", peak, f"{net['parameters'] / 1e6:.1f} M",
                    f"{net['macs'] / 1e9:.2f} G", f"{net['share']:.2f}",
                )
            )  # fmt: skip
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    out = [
        "  ".join(v.ljust(w) if i == 0 else v.rjust(w) for i, (v, w) in enumerate(zip(line, widths))) for line in lines
    ]
    for result in document["results"]:
        rate = f"matrix product {result['matrix_product_flops'] / 1e9:.0f} GFLOP/s"
        ratio = result.get("ratio")
        if ratio:
            rate = f"ratio {ratio['median']:.3f} ({ratio['low']:.3f}-{ratio['high']:.3f}), {rate}"
        out.append(f"batch {result['batch']}: {rate}")
    if document["against"]:
        gap = document["difference"]
        if gap is None:
            out.append(f"weights {document['weights']}")
        else:
            odd = " - not the same function at this size" if gap > SAME else ""
            out.append(f"{document['weights']} weights, answers differ by {gap:.1e} of their spread{odd}")
        out.append("ratio: time of the second over time of the first, median of pairs (quartiles)")
    form = "forward and backward" if document["train"] else "inference"
    size = "x".join(map(str, document["size"]))
    out.append(f"{form}, {size}, {document['dtype']}, {document['device']}, {document['threads']} threads")
    return "\n".join(out)


def ready(path: Path | None) -> None:
    """Raise what would stop writing to `path`, before anything is measured."""
    if path is not None and not path.parent.is_dir():
        raise InputError(f"{path}: no such folder as {path.parent}")


def save(document: dict[str, Any], path: Path | None) -> Path | None:
    """Write the document as JSON; into tests/benchmarks/results of a checkout by default, None where there is none."""
    ready(path)
    if path is None:
        if not (CHECKOUT / "pyproject.toml").exists() or not RESULTS.parent.is_dir():
            return None
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / default_name(document)
    aside = path.with_name(path.name + ".part")
    aside.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    aside.replace(path)
    return path


def default_name(document: dict[str, Any]) -> str:
    """A file name that says what was measured."""
    parts = [document["name"].replace("/", "-")]
    if document["against"]:
        parts.append("vs-" + document["against"].replace("/", "-").replace(":", "-"))
    parts += ["x".join(map(str, dict.fromkeys(document["size"]))), document["dtype"], f"{document['threads']}t"]
    parts += [k for k in ("train", "compile") if document[k]]
    parts += ["cuda"] if document["device"] == "cuda" else []
    return "--".join(parts) + ".json"
