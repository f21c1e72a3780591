"""From files to what training reads: a plan out of the training cases, and their slices on the network's grid."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from apps.medical import readers
from apps.medical.segmentation import inputs, labels
from apps.medical.segmentation.data import Case, Data
from core.bundle import Input
from core.errors import FileError, SettingError
from core.files import aside

FIXED = ("ct",)  # channels whose values mean the same in every scan (Hounsfield units)
_SEEN = 50_000  # values per case that the quantiles are taken from
_SIDE = 512  # pixels, the largest patch by default (nnU-Net's 2-D plans stop there, too)


def scan(case: Case, channels: Sequence[str] = ()) -> readers.Scan:
    """The image of a case. Raises FileError where its channels are not those given."""
    found = readers.read(case.images[0]) if len(case.images) == 1 else readers.read_channels(case.images)
    return matched(found, channels)


def matched(found: readers.Scan, channels: Sequence[str]) -> readers.Scan:
    """The scan if its channels fit in number, else a FileError with the way out."""
    have, want = len(found.channels), len(channels)
    if channels and have != want:
        ways = {
            (3, 1): "convert it to grey first, or train on colour",
            (1, 3): "convert it to colour first, or train on grey",
        }
        way = ways.get((have, want), f"give one file for each of {', '.join(channels)} (CASE_0000, CASE_0001, ...)")
        raise FileError(found.meta.path, f"has {_count(have)} where {_count(want)} would be right", way)
    return found


def _count(n: int) -> str:
    return f"{n} channel" + ("s" if n != 1 else "")


@dataclass(frozen=True)
class Plan:
    """What training decides from its cases; the rest of a bundle's settings are the user's."""

    input: Input
    patch: tuple[int, int]  # rows and columns that the network trains on


@dataclass(frozen=True)
class Seen:
    """What the plan needs to know of one case, so that no more than one is in memory."""

    kind: str
    channels: tuple[str, ...]
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    spacing: tuple[float, ...] | None
    oriented: bool
    moments: inputs.Moments
    foreground: NDArray[np.float64]  # labelled values of CT, evenly thinned

    def across(self, plane: str) -> tuple[tuple[int, int], tuple[float, float] | None]:
        """Rows and columns of a slice, and their spacing."""
        axis = inputs.PLANES[plane] if plane else 0
        rest = [a for a in range(len(self.shape)) if len(self.shape) == 2 or a != axis]
        rows, columns = (self.shape[a] for a in rest)
        return (rows, columns), None if self.spacing is None else (self.spacing[rest[0]], self.spacing[rest[1]])


def see(data: Data, case: Case, channels: Sequence[str]) -> Seen:
    """Read a case once."""
    found = scan(case, channels)
    named = data.channels or found.channels
    foreground = np.empty(0)
    if all(c.lower() in FIXED for c in named) and case.label is not None:
        foreground = _foreground(found, labels.classes(case.label, found, data))
    return Seen(
        found.kind,
        found.channels,
        found.dtype,
        found.shape,
        found.meta.spacing,
        found.kind == "volume" and found.meta.affine is not None,
        inputs.moments(inputs.slices(found, "")),
        foreground,
    )


def _foreground(found: readers.Scan, target: NDArray[np.uint8]) -> NDArray[np.float64]:
    values, valid = found.array()
    inside = values[:, valid & (target > 0) & (target != labels.UNKNOWN)].ravel()
    return inside[:: max(1, inside.size // _SEEN)].astype(np.float64)


def plan(
    data: Data,
    cases: Sequence[Case],
    *,
    spacing: tuple[float, float] | None = None,
    plane: str = "",
    patch: tuple[int, int] | None = None,
    multiple: int = 32,
    progress: Callable[[str], None] = lambda _: None,
) -> Plan:
    """Plane, spacing, normalisation and patch for a data set, after nnU-Net's rules for 2-D configurations.

    Slices lie across the coarsest axis (median over cases); the spacing within them is the median; CT is clipped to
    the 0.5 and 99.5 % quantiles of its labelled voxels and shifted by their mean and spread, 8-bit colour by the mean
    and spread of all cases, and everything else by each case's own. The patch is the median slice, rounded up to
    `multiple`, at most 512.

    Args:
        data: for channels and classes.
        cases: of the training part only.
        spacing: millimetres along rows and columns that the network works at, instead of the median.
        plane: of the slices ("axial"), instead of the one across the coarsest axis.
        patch: rows and columns, instead of the median slice.
        multiple: sides that the network takes.
        progress: told each case's name.
    """
    found: list[Seen] = []
    for case in cases:
        progress(case.id)
        found.append(see(data, case, data.channels or (found[0].channels if found else ())))
        if found[-1].kind != found[0].kind:
            other = f"is a {found[-1].kind}, the others are {found[0].kind}s"
            raise FileError(case.images[0], other, "train on one kind at a time")
    oriented = all(s.oriented for s in found)
    if oriented and not plane:
        thick = np.median([s.spacing for s in found], axis=0)
        plane = list(inputs.PLANES)[int(np.argmax(np.round(thick, 3)))]
    plane = plane if oriented else ""
    sizes, known = zip(*(s.across(plane) for s in found), strict=True)
    if spacing is None and all(known) and (found[0].kind == "volume" or len(set(known)) > 1):
        rows, columns = np.median(np.array(known, float), axis=0)
        spacing = (float(f"{rows:.5g}"), float(f"{columns:.5g}"))
    if patch is None:
        scale = [np.divide(k, spacing) if spacing and k else np.ones(2) for k in known]
        median = np.median(np.array(sizes) * np.array(scale), axis=0)
        patch = (_up(median[0], multiple), _up(median[1], multiple))
    elif any(p % multiple for p in patch):
        raise SettingError(f"--patch is a multiple of {multiple} for this network, got {patch[0]} x {patch[1]}")
    settings = replace(_values(data.channels or found[0].channels, found), spacing=spacing, plane=plane)
    return Plan(settings, patch)


def _up(side: float, multiple: int) -> int:
    return int(min(_SIDE, max(multiple, -(-round(side) // multiple) * multiple)))


def _values(channels: tuple[str, ...], found: Sequence[Seen]) -> Input:
    """Range and normalisation."""
    dtype, moments = str(found[0].dtype), [s.moments for s in found]
    whole = (min(min(m.low) for m in moments), max(max(m.high) for m in moments))
    labelled = np.concatenate([s.foreground for s in found])
    if labelled.size:
        low, high = (float(v) for v in np.quantile(labelled, (0.005, 0.995)))
        cut = labelled.clip(low, high)
        mean, std = (float(cut.mean()),), (float(cut.std()) or 1.0,)
        return Input(channels, (), dtype, whole, (low, high), "fixed", mean * len(channels), std * len(channels))
    if len(channels) == 3 and found[0].dtype == np.uint8:
        weight = np.array([m.count for m in moments], float)
        average = np.average([m.mean for m in moments], axis=0, weights=weight)
        second = np.average([np.square(m.std) + np.square(m.mean) for m in moments], axis=0, weights=weight)
        spread = np.sqrt(np.maximum(second - average**2, 1e-8))
        return Input(channels, (), dtype, whole, None, "fixed", tuple(map(float, average)), tuple(map(float, spread)))
    return Input(channels, (), dtype, whole, None, "item")


@dataclass(frozen=True)
class Prepared:
    """A case on the network's grid, on disk: normalised image (S, C, h, w) float32, classes (S, h, w) uint8."""

    id: str
    group: str
    folder: Path
    rows: tuple[tuple[int, ...], ...]  # slices that hold class 1, 2, ...

    @property
    def image(self) -> NDArray[np.float32]:
        return np.load(self.folder / f"{self.id}.image.npy", mmap_mode="r")

    @property
    def target(self) -> NDArray[np.uint8]:
        return np.load(self.folder / f"{self.id}.target.npy", mmap_mode="r")


def prepare(
    data: Data,
    cases: Sequence[Case],
    settings: Input,
    folder: Path,
    *,
    progress: Callable[[str], None] = lambda _: None,
) -> list[Prepared]:
    """Write every case on the network's grid into `folder`, once: what is there of the same plan and files stays.

    Raises FileError for an image or label that cannot be used.
    """
    folder.mkdir(parents=True, exist_ok=True)
    done = []
    for case in cases:
        progress(case.id)
        key = _key(data, case, settings)
        note = folder / f"{case.id}.json"
        known: dict[str, Any] = {}
        if note.is_file():
            known = json.loads(note.read_text(encoding="utf-8"))
        if known.get("key") != key:
            rows = _prepare(data, case, settings, folder)
            known = {"key": key, "rows": rows}
            with aside(note) as part:
                part.write_text(json.dumps(known), encoding="utf-8")
        done.append(Prepared(case.id, case.group, folder, tuple(tuple(r) for r in known["rows"])))
    return done


def _key(data: Data, case: Case, settings: Input) -> str:
    files = [p for p in (*case.images, case.label) if p is not None]
    stamps = [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in files]
    told = json.dumps([asdict(settings), dict(data.classes), data.ignore, data.binary, stamps], sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()


def _prepare(data: Data, case: Case, settings: Input, folder: Path) -> list[list[int]]:
    assert case.label is not None
    found = scan(case, settings.channels)
    image, target = arrays(found, labels.classes(case.label, found, data), settings)
    for name, array in (("image", image), ("target", target)):
        with aside(folder / f"{case.id}.{name}.npy") as part, part.open("wb") as stream:
            np.save(stream, array)
    classes = sorted(v for v in data.classes.values() if v)
    return [[int(s) for s in np.flatnonzero((target == k).any(axis=(1, 2)))] for k in classes]


def arrays(
    found: readers.Scan, target: NDArray[np.uint8], settings: Input
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """A scan and its classes on the network's grid: (S, C, h, w) float32 and (S, h, w) uint8.

    Invalid voxels are 0 in the image and UNKNOWN in the target.
    """
    stack = inputs.slices(found, settings.plane)
    normal = inputs.norm(stack, settings)
    classes = target[None] if stack.picture else np.moveaxis(target, stack.axis, 0)
    size = inputs.scaled(stack.shape[1:], inputs.factors(stack, settings))
    images, targets = [], []
    for s in range(stack.shape[0]):
        values, valid = stack.read((s, 0, 0), (s + 1, *stack.shape[1:]))
        known = torch.from_numpy(valid)
        image = normal(torch.from_numpy(values.astype(np.float32)).transpose(0, 1), known)
        marked = torch.from_numpy(np.where(valid[0], classes[s], labels.UNKNOWN).astype(np.uint8))[None]
        images.append(inputs.resize(image, size).numpy())
        targets.append(inputs.resize_classes(marked, size).numpy())
    return np.concatenate(images), np.concatenate(targets)
