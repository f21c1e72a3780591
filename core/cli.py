"""The commands `glocal models ...` and `glocal datasets ...`; nothing heavy is imported before a command runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter

from core import table
from core.data import cards
from core.errors import SettingError

_PLAIN = Parameter(negative=())  # no --no-train, no --empty-batch
models = App(name="models", help="Networks: list, info, bench, export.", default_parameter=_PLAIN)
datasets = App(name="datasets", help="Data sets: list, info, verify, sample.", default_parameter=_PLAIN)

WIDTH = 120  # characters of a line
Many = Parameter(consume_multiple=True)


@models.command(name="list")
def list_models(pattern: str = "", /) -> None:
    """List the networks with parameters, multiply-accumulates, strides, paper, accuracy and licence.

    Args:
        pattern: part of a name, or a pattern such as 'swin/*'.
    """
    rows = table.known()
    print(table.text(table.select(rows, pattern) if pattern else rows, WIDTH))


@models.command
def info(name: str, /) -> None:
    """Show everything that is known of one network.

    Args:
        name: family/variant or domain/network, as in `glocal models list`; a network's own name will do.
    """
    row = table.find(name, table.known())
    channels = "1 channel" if row.in_channels == 1 else f"{row.in_channels} channels"
    fields = {
        "network": f"{row.name}, {row.title}",
        "paper": row.paper,
        "licence": f"{row.licence} (published weights)",
        "code": "no code was published: our reading of the paper" if row.reading else "published",
        "parameters": f"{row.parameters:,} with {row.classes:,} classes",
        "MACs": f"{row.macs:,} for {_input(row)}, {channels}",
        "channels": " ".join(map(str, row.channels)),
        "strides": table.strides(row),
    }
    if row.module:
        fields["strides"] += " (of its answers)"
    else:
        fields["top-1"] = "-" if row.top1 is None else f"{row.top1:.1f} % ({row.data}, published)"
    fields |= {k: f"{v:g} (published)" for k, v in row.scores.items()}
    if row.module:
        fields["module"] = row.module
    _fields(fields)
    print("\nsettings")
    shown = {k: _value(v) for k, (v, _) in row.settings.items()}
    names, values = max(map(len, shown)), min(max(map(len, shown.values())), 40)
    for key, (_, meaning) in row.settings.items():
        print(f"  {key.ljust(names)}  {shown[key].ljust(values)}  {meaning}".rstrip())


def _input(row: table.Row) -> str:
    *frames, rows, columns = row.axes
    clip = f"a clip of {frames[0]} frames" if frames else "an image"
    return f"{clip} of {rows} x {columns} pixels"


def _value(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(_value, value))
    if isinstance(value, dict):
        return ", ".join(f"{k} {_value(v)}" for k, v in value.items()) or "-"
    return "-" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _fields(values: dict[str, str]) -> None:
    width = max(map(len, values))
    for key, value in values.items():
        print(f"{key.ljust(width)}  {value}")


def _ready(name: str) -> table.Row:
    """The row of a network, which can be built by its full name from now on."""
    from core import registry

    row = table.find(name, table.known())
    if row.module:
        registry.register(row.name, row.module)
    return row


def _axes(size: list[int] | None, row: table.Row) -> tuple[int, ...]:
    """Rows and columns in pixels, for clips frames before them; what is not given is that of the published input."""
    if not size:
        return row.axes
    if len(size) > len(row.axes):
        more = " or frames, rows and columns" if len(row.axes) == 3 else ""
        raise SettingError(f"--size takes one side or rows and columns{more}, got {len(size)} numbers")
    return tuple(size) if len(size) == 3 else (*row.axes[:-2], size[0], size[-1])


@models.command
def bench(
    name: str,
    /,
    *,
    against: str | None = None,
    batch: Annotated[list[int], Many] = [1, 4],  # noqa: B006 - read only
    size: Annotated[list[int] | None, Many] = None,
    dtype: Literal["float32", "bfloat16"] = "float32",
    threads: int = 2,
    rounds: int = 15,
    train: bool = False,
    compile: bool = False,
    device: Literal["cpu", "cuda"] = "cpu",
    out: Path | None = None,
) -> None:
    """Time a network, alone or against another in alternating pairs with the same weights.

    Args:
        name: family/variant or domain/network.
        against: another of these, or timm:NAME.
        batch: images at once; each number is measured.
        size: side of the image in pixels, or rows and columns, or for clips frames, rows and columns; the published
            one by default.
        dtype: of weights and images.
        threads: of torch on the CPU.
        rounds: timed pairs after warm-up.
        train: time forward and backward in training mode.
        compile: time what torch.compile makes of the networks.
        device: where to run.
        out: JSON file; by default under tests/benchmarks/results of a checkout.
    """
    from core import bench as benchmarks
    from core import bench_report

    row = _ready(name)
    axes, theirs = _axes(size, row), 2  # timm's networks take images
    if against is not None and not against.startswith("timm:"):
        other = _ready(against)
        against, theirs = other.name, len(other.axes)
    if against is not None and theirs != len(axes):
        takes = {2: "images", 3: "clips"}
        raise SettingError(f"{row.name} takes {takes[len(axes)]} and {against} {takes[theirs]}: nothing to compare")
    settings = benchmarks.Settings(axes, dtype, threads, rounds, train, compile, device)
    bench_report.ready(out)
    document = benchmarks.benchmark(row.name, against, batch, settings)
    print(bench_report.text(document))
    written = bench_report.save(document, out)
    print(f"written: {written}" if written else "not written: no checkout here, name a file with --out")


@models.command
def export(
    name: str,
    file: Path,
    /,
    *,
    weights: Path | None = None,
    classes: int | None = None,
    size: Annotated[list[int] | None, Many] = None,
    batch: int = 1,
) -> None:
    """Write a network as an ONNX file of fixed size, with a JSON file beside it that says what goes in and comes out.

    Without weights and classes it is the backbone with its pyramid; a file with a classifier gives the classifier. A
    network of an app comes with its own answer.

    Args:
        name: family/variant or domain/network.
        file: where to write, ends in .onnx.
        weights: the authors' weights file, or one of ours; random weights without it.
        classes: number of classes of the classifier.
        size: side of the image in pixels, or rows and columns, or for clips frames, rows and columns; the published
            one by default.
        batch: images at once.
    """
    from core import export as exports

    for option, value in (("batch", batch), ("classes", classes), *(("size", s) for s in size or ())):
        if value is not None and value < 1:
            raise SettingError(f"--{option} is at least 1, got {value}")
    row = _ready(name)
    axes = _axes(size, row)
    exports.ready(file)
    model = exports.network(row.name, weights_file=weights, classes=classes, size=axes)
    done = exports.export(model, file, axes, name=row.name, batch=batch)
    what = "" if weights else " with random weights"
    print(f"written: {done.path}{what} and {done.side} ({done.exporter} exporter)")
    print(f"onnxruntime answers as torch does, within {done.difference:.1e} of the spread")


@datasets.command(name="list")
def list_datasets() -> None:
    """List the data sets that have a card."""
    home = cards.folder()
    found = [cards.read(home / name / "card.md") for name in cards.names()]
    name, title = (max(len(getattr(c, k)) for c in found) for k in ("name", "title"))
    for card in found:
        line = f"{card.name.ljust(name)}  {card.title.ljust(title)}  {card.samples:>11,} samples  {card.task}"
        print(line if len(line) <= WIDTH else line[: WIDTH - 1] + "…")
    print(f"\ncards in {home}")


@datasets.command(name="info")
def info_dataset(name: str, /) -> None:
    """Show a data set's card.

    Args:
        name: as in `glocal datasets list`.
    """
    card = cards.find(name)
    _fields(
        {
            "data set": f"{card.name}, {card.title}",
            "task": card.task,
            "licence": card.licence,
            "source": card.source,
            "citation": card.citation,
            "samples": f"{card.samples:,} in {card.classes:,} classes" if card.classes else f"{card.samples:,}",
            "size": card.size,
            "values": card.units,
            "channels": " ".join(card.channels),
            "mean": " ".join(map(str, card.mean)),
            "std": " ".join(map(str, card.std)),
        }
    )
    for split in card.splits:
        print(f"split {split.name}: {split.samples:,}" + (f" ({split.rule})" if split.rule else ""))
    print("layout:")
    for part in card.layout:
        print(f"  {part.pattern}  {'at least one' if part.count is None else f'{part.count:,}'}")
    if card.made:
        print(f"sample: {card.made}")
    print(f"\n{card.text}")


@datasets.command
def verify(name: str, folder: Path, /) -> int:
    """Compare a folder with the published layout: what is missing, unreadable, unexpected (exit code 1 if anything).

    Args:
        name: as in `glocal datasets list`.
        folder: of the data set.
    """
    from core.data import verify as checks

    report = checks.verify(cards.find(name), folder)
    for pattern, count in report.counts.items():
        print(f"{pattern}: {count:,}")
    for kind in ("missing", "unreadable", "unexpected"):
        found = getattr(report, kind)
        for line in found[:20]:
            print(f"{kind}: {line}")
        if len(found) > 20:
            print(f"{kind}: and {len(found) - 20:,} more")
    verdict = "as published" if report.good else "not as published"
    if report.made:
        verdict = f"a sample of the layout{'' if report.good else ', damaged'}. {report.made}"
    print(f"{report.files:,} files: {verdict}")
    return 0 if report.good else 1


@datasets.command
def sample(name: str, folder: Path, /) -> None:
    """Write a small set in exactly the published layout.

    Args:
        name: as in `glocal datasets list`.
        folder: a new or empty one.
    """
    from core.data import samples

    card = cards.find(name)
    count = samples.sample(card, folder)
    print(f"written: {count} files in {folder}. {card.made}")
