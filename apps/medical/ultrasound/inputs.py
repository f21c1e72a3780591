"""How a picture or cine loop becomes what a network sees, in training and in prediction alike.

A network sees RGB of 8 bits, brought to exactly `size` x `size` pixels (bilinear over pixel areas; the aspect is not
kept), divided by 255 and normalised: the evaluation transform that HSQformer was published with.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from apps.medical import readers
from apps.medical._scan import held
from apps.medical.readers import Scan
from apps.medical.ultrasound import burned
from core.bundle import Bundle, BundleError, Input, Output, Tile
from core.data.contract import COLOURS, IMAGENET_MEAN, IMAGENET_STD
from core.data.sample import Meta
from core.errors import FileError, SettingError, ShapeError

SIZE = 224
MEAN, STD = IMAGENET_MEAN, IMAGENET_STD  # of RGB in 0..1
MASK = "mask burned-in marks"  # in Input.steps of networks that were trained on masked pictures
SMALLEST = 16  # rows or columns that a picture needs to show anything
_FULL, _DARK = 65535, 4095  # 16-bit pictures whose largest value is no higher were not stored over the whole range
_TINTED = 0.3  # share of coloured pixels that B-mode, with or without its labels, does not have
_BRIGHT = 190  # grey level that half of a B-mode picture stays under
Frames = NDArray[np.uint8]


def contract(
    classes: Sequence[str],
    *,
    positive: str | None = None,
    threshold: float | None = None,
    size: int = SIZE,
    steps: Sequence[str] = (),
) -> tuple[Input, Output, Tile]:
    """What goes in and comes out, for `core.bundle.Settings(TASK, network, *contract(...))`.

    Args:
        classes: in the order of the network's answers.
        positive: of two classes the one that is looked for.
        threshold: its probability from which on a picture is called so.
        size: rows and columns that the network sees.
        steps: (MASK,) where it was trained on pictures whose burned-in marks were masked.
    """
    mean, std = (tuple(255 * v for v in values) for values in (MEAN, STD))
    taken = Input(
        channels=COLOURS, dtype="uint8", range=(0.0, 255.0), normalise="fixed", mean=mean, std=std, steps=tuple(steps)
    )
    given = Output({name: i for i, name in enumerate(classes)}, positive=positive, threshold=threshold)
    return taken, given, Tile((size, size), 0.0)


def checked(found: Bundle) -> Bundle:
    """The bundle, if its contract is one that pictures are fed by here; raises BundleError where it is not."""
    taken, given, size = found.settings.input, found.settings.output, found.settings.tile.size
    wrong = ""
    if taken.channels != COLOURS or len(taken.mean) != 3 or len(taken.std) != 3 or taken.normalise != "fixed":
        wrong = "states no mean and spread of red, green and blue"
    elif len(size) != 2 or min(size) < SMALLEST:
        wrong = f"states the size {list(size)}, where rows and columns are expected"
    elif set(taken.steps) - {MASK}:
        wrong = f"asks for steps that are not known here ({', '.join(sorted(set(taken.steps) - {MASK}))})"
    elif sorted(given.classes.values()) != list(range(len(given.classes))) or len(given.classes) < 2:
        wrong = f"answers the classes {dict(given.classes)}, where two or more are numbered from 0"
    elif given.positive is not None and given.positive not in given.classes:
        wrong = f"looks for {given.positive!r}, which is none of its classes"
    elif given.threshold is not None and not 0 <= given.threshold <= 1:
        wrong = f"has the threshold {given.threshold}, which is no probability"
    if wrong:
        raise BundleError(f"{found.folder / 'settings.toml'}: {wrong}; train or import the network again")
    return found


@dataclass(frozen=True, eq=False)
class Clip:
    """A picture or cine loop, its frames read on demand as RGB of 8 bits.

    Attributes:
        scan: as the reader gave it.
        factor: that stored values are multiplied by to lie in 0..255.
        meta: of the scan, with what was done here.
    """

    scan: Scan
    factor: float
    meta: Meta

    @property
    def cine(self) -> bool:
        return len(self.scan.shape) == 3

    @property
    def count(self) -> int:
        return self.scan.shape[0] if self.cine else 1

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.scan.shape[-2], self.scan.shape[-1]

    def read(self, start: int = 0, stop: int | None = None) -> Frames:
        """Frames start <= i < stop as (T, H, W, 3); pixels without a measurement are black."""
        stop = self.count if stop is None else min(stop, self.count)
        if not 0 <= start < stop:
            raise ShapeError(f"frames {start} to {stop} of {self.count} were asked for")
        rows, columns = self.size
        low, high = ((start, 0, 0), (stop, rows, columns)) if self.cine else ((0, 0), (rows, columns))
        values, valid = self.scan.read(low, high)
        if self.factor != 1 or values.dtype != np.uint8:
            values = np.clip(np.rint(values * np.float64(self.factor)), 0, 255).astype(np.uint8)
        values = np.where(valid, values, np.uint8(0))
        shown = np.moveaxis(values, 0, -1)
        shown = shown if self.cine else shown[None]
        return np.ascontiguousarray(np.broadcast_to(shown, (*shown.shape[:-1], 3)))

    def chunks(self, frames: int) -> Iterator[tuple[int, Frames]]:
        """The number of the first frame and the frames, so many at a time."""
        for start in range(0, self.count, frames):
            yield start, self.read(start, start + frames)

    def sampled(self, most: int) -> Frames:
        """At most so many frames, spread evenly, the first and the last among them."""
        if self.count <= most:
            return self.read()
        at = np.linspace(0, self.count - 1, most).round().astype(int)
        return np.concatenate([self.read(int(i), int(i) + 1) for i in at])


def opened(scan: str | Path | Scan) -> Clip:
    """A file or scan as a clip.

    Raises FileError for a volume, for one with neither one nor three channels, for values that cannot be told to be a
    picture's (negative, below the range of 16 bits, not a number from 0 to 1), and for a picture of under 16 pixels.
    """
    found = scan if isinstance(scan, Scan) else readers.read(scan)
    path, words = found.meta.path or "the picture", []
    if found.kind == "volume":
        if found.format != "tiff":
            raise FileError(
                path, f"a volume of {found.shape[0]} slices, not an ultrasound picture or cine loop",
                "name stills, or cine loops in DICOM",
            )  # fmt: skip
        words.append(f"{found.shape[0]} pages taken as the frames of a cine loop")
    if len(found.channels) not in (1, 3):
        raise FileError(path, f"has {len(found.channels)} channels", "a grey or an RGB picture is expected")
    if min(found.shape[-2:]) < SMALLEST:
        rows, columns = found.shape[-2:]
        raise FileError(path, f"has only {columns} x {rows} pixels", f"at least {SMALLEST} a side show anything")
    factor, said = _factor(found, path)
    return Clip(found, factor, found.meta.did(*words, *said))


def _factor(scan: Scan, path: str) -> tuple[float, list[str]]:
    """What brings stored values to 0..255, and what to say of it."""
    if scan.dtype == np.uint8:
        return 1.0, []
    low, high = _range(scan)
    right = "export it as an 8-bit picture, as the scanner shows it"
    if scan.dtype.kind == "f":
        if low < 0 or high > 1:
            raise FileError(path, f"has values from {low:g} to {high:g} that are no grey levels", right)
        return 255.0, ["values from 0 to 1 scaled to 0 to 255"]
    if low < 0:
        raise FileError(path, f"has {scan.dtype} values from {low:g} to {high:g}, which are no grey levels", right)
    if high <= 255:
        return 1.0, [f"8-bit values in {scan.dtype}"]
    if _DARK < high <= _FULL and scan.dtype == np.uint16:
        return 255 / _FULL, ["16 bits scaled to 8"]
    raise FileError(path, f"has {scan.dtype} values up to {high:g}, so its range of grey is not known", right)


def _range(scan: Scan) -> tuple[float, float]:
    low, high = np.inf, -np.inf
    step = max(1, (1 << 24) // max(1, int(np.prod(scan.shape[1:]))))
    for start in range(0, scan.shape[0], step):
        stop = min(start + step, scan.shape[0])
        values, valid = scan.read((start, *(0 for _ in scan.shape[1:])), (stop, *scan.shape[1:]))
        inside = values[:, valid]
        if inside.size:
            low, high = min(low, float(inside.min())), max(high, float(inside.max()))
    return (low, high) if low <= high else (0.0, 0.0)


def from_array(array: NDArray[Any], meta: Meta | None = None) -> Scan:
    """A picture (H, W) or (H, W, 3), or a loop (T, H, W) or (T, H, W, 3), as a scan.

    A last axis of 3 is colour. Raises SettingError for another number of axes.
    """
    values = np.asarray(array)
    colour = values.ndim > 2 and values.shape[-1] == 3
    axes = values.ndim - colour
    if axes not in (2, 3) or 0 in values.shape or values.dtype.kind not in "buif":
        raise SettingError(
            f"expected an array (H, W[, 3]) or (T, H, W[, 3]) of numbers, got {values.dtype} {values.shape}"
        )
    values = values.astype(np.uint8) * np.uint8(255) if values.dtype.kind == "b" else values
    stacked = np.moveaxis(values, -1, 0) if colour else values[None]
    good = np.isfinite(stacked)
    valid = None if good.all() else good.all(axis=0)
    stacked = stacked if valid is None else np.where(good, stacked, 0)
    channels = COLOURS if colour else ("grey",)
    shape = stacked.shape[1:]
    found = replace(meta or Meta(), channels=channels)
    kind: readers.Kind = "picture" if axes == 2 else "frames"
    return Scan(shape, channels, stacked.dtype, found, readers.Grid(shape), kind, "array", held(stacked, valid))


def frames(scan: str | Path | Scan, start: int = 0, stop: int | None = None) -> Frames:
    """Frames of a file as (T, H, W, 3) RGB of 8 bits; errors as of `opened`."""
    return opened(scan).read(start, stop)


def picture(scan: str | Path | Scan, frame: int | None = None) -> Frames:
    """One picture (H, W, 3) of a file: of a loop the frame named, else the middle one; errors as of `opened`."""
    clip = opened(scan)
    at = clip.count // 2 if frame is None else frame
    return clip.read(at, at + 1)[0]


def resized(shown: Frames, size: tuple[int, int] = (SIZE, SIZE)) -> Tensor:
    """(T, H, W, 3) to (T, 3, *size) uint8: bilinear over pixel areas, the aspect not kept."""
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2.functional import resize

    image = torch.from_numpy(np.ascontiguousarray(shown)).permute(0, 3, 1, 2)
    if tuple(image.shape[-2:]) == tuple(size):
        return image
    done: Tensor = resize(image, list(size), InterpolationMode.BILINEAR, antialias=True)
    return done


def normalised(image: Tensor, taken: Input | None = None) -> Tensor:
    """(N, 3, h, w) uint8 (or float in 0..255) to the network's values, float32; without a contract by ImageNet's."""
    means, spreads = (taken.mean, taken.std) if taken else (tuple(255 * m for m in MEAN), tuple(255 * s for s in STD))
    mean, std = (torch.tensor(v, dtype=torch.float32, device=image.device).view(1, 3, 1, 1) for v in (means, spreads))
    return (image.float() - mean) / std


def prepared(shown: Frames, size: tuple[int, int] = (SIZE, SIZE), taken: Input | None = None) -> Tensor:
    """(T, H, W, 3) uint8 to the network's input (T, 3, *size) float32: the whole evaluation transform."""
    return normalised(resized(shown, size), taken)


def blank(shown: Frames) -> NDArray[np.bool_]:
    """(T,) whether a frame shows nothing: one value all over."""
    flat = shown.reshape(len(shown), -1, shown.shape[-1])
    result: NDArray[np.bool_] = (flat == flat[:, :1]).all(axis=(1, 2))
    return result


def remarks(shown: Frames) -> list[str]:
    """What is unlike a B-mode picture in frames (T, H, W, 3), a sentence each."""
    step = max(1, int(np.sqrt(shown[0, ..., 0].size / 250_000)))
    small = shown[:, ::step, ::step].astype(np.int16)
    lit = small.max(-1) > burned.DARK
    share = float(((np.ptp(small, axis=-1) > burned.COLOURED) & lit).sum() / max(1, lit.sum()))
    said = []
    if share > _TINTED:
        said.append(f"{share:.0%} of what is lit is coloured: a Doppler picture, or no B-mode picture at all")
    if np.median(small.max(-1)) > _BRIGHT:
        said.append("bright almost everywhere, as no B-mode picture is")
    return said


def masks(taken: Input) -> bool:
    """Whether a contract has burned-in marks masked."""
    return MASK in taken.steps
