"""A trained network as a folder: weights, settings, and a report of what it scored.

    weights.safetensors   the network's state
    settings.toml         task, network, and what goes in and comes out (this file's dataclasses)
    report.json           scores with their definitions, versions, and the checksums of the other two

A bundle is written aside and renamed; loading refuses a missing or altered file, an unknown setting and a later format.
"""

from __future__ import annotations

import hashlib
import json
import platform
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from core import __version__
from core.config import merge
from core.errors import InputError, SettingError
from core.files import aside

if TYPE_CHECKING:
    from torch import nn

FORMAT = 1
WEIGHTS, SETTINGS, REPORT = "weights.safetensors", "settings.toml", "report.json"


class BundleError(InputError):
    """A bundle that cannot be used: names the folder or file, says what is wrong and what would be right."""


@dataclass(frozen=True)
class Network:
    name: str = ""  # as its task's `NETWORKS` or the registry knows it
    config: Mapping[str, Any] = field(default_factory=dict)  # its settings, all of them


@dataclass(frozen=True)
class Input:
    """The input contract: what the network was trained on and how values become its input."""

    channels: tuple[str, ...] = ()  # names, in order
    wavelengths: tuple[float, ...] = ()  # of the channels, in nanometres, where they have one
    dtype: str = ""  # of the stored values that it was trained on
    range: tuple[float, float] | None = None  # of those values: smallest and largest seen
    clip: tuple[float, float] | None = None  # values are cut off here first
    normalise: Literal["item", "fixed"] = "fixed"  # by each item's own mean and spread, or by `mean` and `std`
    mean: tuple[float, ...] = ()  # per channel, in stored units
    std: tuple[float, ...] = ()
    spacing: tuple[float, ...] | None = None  # along rows and columns (and slices), in `unit`; None: pixels as they are
    unit: str = "mm"
    plane: str = ""  # in which slices of a volume lie: axial, coronal, sagittal
    rate: float | None = None  # samples or frames a second
    steps: tuple[str, ...] = ()  # named changes that every item went through first ("mask burned-in marks")


@dataclass(frozen=True)
class Output:
    classes: Mapping[str, int] = field(default_factory=dict)  # name -> value in the result
    ignore: int | None = None  # value in the labels that nothing was learned from
    positive: str | None = None  # the class that is looked for, of two
    threshold: float | None = None  # its probability from which on an item is called so


@dataclass(frozen=True)
class Tile:
    size: tuple[int, ...] = ()  # of a tile at `Input.spacing`
    overlap: float = 0.25  # of neighbouring tiles, as part of one


@dataclass(frozen=True)
class Settings:
    task: str = ""  # "medical segment"
    network: Network = Network()
    input: Input = Input()
    output: Output = Output()
    tile: Tile = Tile()


@dataclass(frozen=True)
class Bundle:
    folder: Path
    settings: Settings
    report: Mapping[str, Any]

    @property
    def weights(self) -> Path:
        return self.folder / WEIGHTS


def save(folder: str | Path, model: nn.Module, settings: Settings, report: Mapping[str, Any]) -> Bundle:
    """Write a bundle, whole or not at all; one that stands there is replaced.

    Args:
        folder: to be made; what else lies in it (logs, checkpoints) stays.
        model: whose state is written.
        settings: everything that building and feeding it needs.
        report: what it scored, on what, how each number is defined; versions are added.
    """
    import tomli_w

    from core import weights

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / REPORT).unlink(missing_ok=True)  # until the new one is written this is no bundle, rather than a mixed one
    values = asdict(settings)
    table = {"format": FORMAT, "task": {"name": values.pop("task")}, **values}
    with aside(folder / WEIGHTS) as part:
        weights.save(model, part)
        state = _sha256(part)
    with aside(folder / SETTINGS) as part:
        part.write_text(tomli_w.dumps(_without_none(table)), encoding="utf-8")
        text = _sha256(part)
    written = {**report, "versions": versions(), "sha256": {WEIGHTS: state, SETTINGS: text}}
    with aside(folder / REPORT) as part:  # last: without it the others are no bundle
        part.write_text(json.dumps({**written, "checksum": _checksum(written)}, indent=1) + "\n", encoding="utf-8")
    return Bundle(folder, settings, written)


def load(folder: str | Path, *, task: str = "") -> Bundle:
    """Read and check a bundle; the weights' tensors are not loaded yet.

    Args:
        folder: that `save` wrote.
        task: which it must be for, "" for any.

    Raises:
        BundleError: no such folder, a file missing or altered, a later format, an unknown setting, another task.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise BundleError(f"{folder}: no such bundle; name the folder that `train` or `import` wrote")
    for name in (SETTINGS, REPORT, WEIGHTS):
        if not (folder / name).is_file():
            raise BundleError(
                f"{folder}: is no bundle, {name} is missing; a bundle has {WEIGHTS}, {SETTINGS}, {REPORT}"
            )
    report = _report(folder / REPORT)
    for name, digest in report["sha256"].items():
        if name in (WEIGHTS, SETTINGS) and _sha256(folder / name) != digest:
            right = "flags of a command change settings for one run" if name == SETTINGS else "copy it again"
            raise BundleError(f"{folder / name}: was altered or cut off after the bundle was written; {right}")
    settings = _settings(folder / SETTINGS)
    if task and settings.task != task:
        raise BundleError(f"{folder}: is a bundle for {settings.task!r}; this command needs one for {task!r}")
    return Bundle(folder, settings, report)


def fill(model: nn.Module, bundle: Bundle, *, mapped: bool = False) -> nn.Module:
    """The bundle's weights in `model`, which is put into evaluation mode; `mapped` as of core.weights.load."""
    from core import weights

    weights.load(model, bundle.weights, mapped=mapped)
    return model.eval()


def members(folder: Path) -> list[Path]:
    """The bundle in a folder, or its folds (fold_0, fold_1, ...)."""
    if not (folder / SETTINGS).is_file():
        folds = sorted(p for p in folder.glob("fold_*") if (p / SETTINGS).is_file())
        if folds:
            return folds
    return [folder]


def apart(paths: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """The bundles (or folders of folds) among the paths that a command was given, and the rest.

    Raises InputError where there is no bundle.
    """
    # A folder of results holds the settings that they were made with, too; weights tell the two apart.
    found = [p for p in paths if any((m / SETTINGS).is_file() and (m / WEIGHTS).is_file() for m in members(p))]
    if not found:
        raise InputError(
            f"{paths[0]}: is no bundle; name one that `train` or `import` wrote, then files"
            if paths
            else "name a bundle, then files"
        )
    return found, [p for p in paths if p not in found]


def settings_text(settings: Settings) -> str:
    """As TOML, for people."""
    import tomli_w

    return tomli_w.dumps(_without_none(asdict(settings)))


def versions() -> dict[str, str]:
    """Of what a number depends on."""
    import numpy
    import torch

    return {
        "glocal": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": numpy.__version__,
    }


def _settings(path: Path) -> Settings:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BundleError(f"{path}: is not TOML ({error})") from None
    found = table.pop("format", None)
    if found != FORMAT:
        later = isinstance(found, int) and found > FORMAT
        way = "install a later glocal" if later else "write the bundle again"
        raise BundleError(f"{path}: has format {found!r}, this glocal ({__version__}) reads format {FORMAT}; {way}")
    task = table.pop("task", {})
    try:
        return merge(Settings(), {**table, "task": task.get("name", "")})
    except InputError as error:
        raise BundleError(f"{path}: {error}") from None


def _report(path: Path) -> dict[str, Any]:
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        checksum = report.pop("checksum")
        files = report["sha256"]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, AttributeError):
        raise BundleError(f"{path}: is not a bundle's report; it was altered or cut off") from None
    if checksum != _checksum(report) or not {WEIGHTS, SETTINGS} <= set(files):
        raise BundleError(f"{path}: was altered after the bundle was written; copy the bundle again")
    return dict(report)


def _checksum(report: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(report, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _without_none(value: Any) -> Any:
    """TOML has no null: what is None is left out and read back as the default."""
    if isinstance(value, Mapping):
        return {k: _without_none(v) for k, v in value.items() if v is not None}
    if isinstance(value, list | tuple):
        if any(v is None for v in value):
            raise SettingError(f"a list with a gap cannot be written: {value}")
        return [_without_none(v) for v in value]
    return value
