"""Made B-mode ultrasound pictures: speckle of a liver or a breast with one lesion whose kind is known.

The physics, in the order of `echo`:

- many scatterers in each resolution cell: complex white Gaussian noise, so that the envelope is Rayleigh distributed
  where tissue is even, times the square root of the tissue's backscatter;
- the system's pulse: a Gaussian along depth and a wider one across the beams that grows away from the focus;
- attenuation along each beam, less what time gain compensation takes back: more of it in a lesion leaves a shadow
  behind it, less of it an enhancement; ribs and gas shadow from the skin on;
- electronic noise, which gain compensation raises with depth; envelope, log compression to 8 bits; for the convex
  probe of the abdomen scan conversion from beams to a sector.

Benign lesions are smooth ovals, mostly even inside, more often with enhancement than with a shadow; malignant ones are
irregular, mostly uneven and with a dark rim, more often with a shadow. Brightness, size, depth, gain, dynamic range,
pulse length, vessels and shadows of ribs are drawn alike for both, so that the whole picture's grey values and texture
say little.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.errors import MissingExtraError

Floats = NDArray[np.floating[Any]]
CURVATURE = 45.0  # mm, radius of the convex probe
BENIGN, MALIGNANT, NORMAL = "benign", "malignant", "normal"


@dataclass(frozen=True)
class Scanner:
    """How a patient was scanned.

    Attributes:
        convex: a sector from a curved probe (abdomen), else a rectangle from a straight one (breast).
        depth, width: mm; of the convex probe the width is an angle in degrees.
        shape: rows and columns of the picture.
        pulse: mm, standard deviation of the pulse along depth.
        beam: beams, standard deviation across at the focus.
        focus: mm.
        gain: dB.
        range: dB between black and white.
        slope: dB over the whole depth that gain compensation is wrong by.
        noise: dB of electronic noise at the bottom, against tissue.
    """

    convex: bool
    depth: float
    width: float
    shape: tuple[int, int]
    pulse: float
    beam: float
    focus: float
    gain: float
    range: float
    slope: float
    noise: float


@dataclass(frozen=True)
class Lesion:
    """One lesion.

    Attributes:
        kind: BENIGN or MALIGNANT.
        middle: mm across and deep.
        radii: mm along and across its long axis.
        turn: degrees of the long axis from the horizontal.
        waves: (number around, amplitude as a share of the radius, phase) of the outline.
        contrast: dB against tissue.
        grain: dB, spread of its inside.
        rim: dB of a rim against tissue; 0 without one.
        loss: dB that a beam through its middle loses more than in tissue; below 0 enhances what is behind.
    """

    kind: str
    middle: tuple[float, float]
    radii: tuple[float, float]
    turn: float
    waves: tuple[tuple[int, float, float], ...]
    contrast: float
    grain: float
    rim: float
    loss: float

    def inside(self, x: Floats, z: Floats) -> Floats:
        """Distance from the middle as a share of the outline's there: below 1 inside."""
        turn = np.radians(self.turn)
        dx, dz = x - self.middle[0], z - self.middle[1]
        u = (np.cos(turn) * dx + np.sin(turn) * dz) / self.radii[0]
        v = (-np.sin(turn) * dx + np.cos(turn) * dz) / self.radii[1]
        angle = np.arctan2(v, u)
        outline = 1 + sum(a * np.cos(n * angle + p) for n, a, p in self.waves)
        return np.hypot(u, v) / outline


@dataclass(frozen=True)
class Patient:
    """One made patient.

    Attributes:
        seed: of the tissue around the lesions and of the pictures.
        kind: BENIGN, MALIGNANT or NORMAL (no lesion).
        breast: layers of a breast, else a liver.
    """

    seed: int
    kind: str
    breast: bool
    scanner: Scanner
    lesions: tuple[Lesion, ...]


def patient(number: int, kind: str, *, breast: bool, second: bool = False) -> Patient:
    """Patient `number` with a lesion of a kind, always the same one; with `second` there are two lesions."""
    rng = np.random.default_rng([811, int(breast), number])
    if breast:
        scanner = Scanner(
            False, rng.uniform(32, 44), rng.uniform(36, 44), (int(rng.integers(150, 190)), int(rng.integers(170, 220))),
            rng.uniform(0.11, 0.19), rng.uniform(0.7, 1.1), rng.uniform(10, 22), rng.uniform(-5, 5),
            rng.uniform(46, 62), rng.uniform(-6, 6), rng.uniform(-32, -18),
        )  # fmt: skip
    else:
        scanner = Scanner(
            True, rng.uniform(105, 150), rng.uniform(56, 72), (176, 208), rng.uniform(0.30, 0.50),
            rng.uniform(0.7, 1.1), rng.uniform(50, 90), rng.uniform(-5, 5), rng.uniform(46, 62), rng.uniform(-6, 6),
            rng.uniform(-32, -16),
        )  # fmt: skip
    sides: tuple[float, ...] = () if kind == NORMAL else (-0.5, 0.5) if second else (0.0,)
    return Patient(number, kind, breast, scanner, tuple(_lesion(rng, kind, scanner, side=s) for s in sides))


def _lesion(rng: np.random.Generator, kind: str, scanner: Scanner, *, side: float) -> Lesion:
    """A lesion whose cues each hold for most of its kind: none alone decides."""
    bad = kind == MALIGNANT
    size = scanner.depth * rng.uniform(0.19, 0.26) * (0.6 if side else 1)
    flat = rng.uniform(0.75, 1.0) if bad else rng.uniform(0.62, 0.85)
    across = 0.30 * scanner.depth if scanner.convex else 0.28 * scanner.width
    middle = (across * (rng.uniform(-1, 1) if not side else 1.6 * side), scanner.depth * rng.uniform(0.38, 0.56))
    if bad:
        numbers = rng.choice(np.arange(4, 11), 3, replace=False)
        waves = tuple((int(n), float(rng.uniform(0.12, 0.19)), float(rng.uniform(0, 6.28))) for n in numbers)
    else:
        waves = tuple((n, float(rng.uniform(0, 0.06)), float(rng.uniform(0, 6.28))) for n in (2, 3))
    contrast = float(rng.choice([rng.uniform(-15, -9), rng.uniform(6, 10)], p=[0.65, 0.35]))
    usual = rng.random() < 0.85
    grain = rng.uniform(3.5, 5.5) if bad == usual else rng.uniform(0.2, 1.0)
    rim = -rng.uniform(8, 14) if bad == (rng.random() < 0.85) else 0.0
    sign = 1 if bad else -1
    loss = float(rng.choice([sign, 0, -sign], p=[0.45, 0.3, 0.25]) * rng.uniform(6, 11))
    contrast += 1.5 if rim else -1.0  # as dark on the whole with a rim as without
    return Lesion(kind, middle, (size, size * flat), float(rng.uniform(-25, 25)), waves, contrast, grain, rim, loss)


def view(who: Patient, number: int) -> Patient:
    """The patient in picture `number`: the probe a little elsewhere, the lesion cut a little differently."""
    if number == 0:
        return who
    rng = np.random.default_rng([812, int(who.breast), who.seed, number])
    depth = who.scanner.depth
    shift, scale = rng.uniform(-0.06, 0.06, 2) * depth, rng.uniform(0.85, 1.1)
    moved = tuple(
        replace(
            x,
            middle=(x.middle[0] + shift[0], x.middle[1] + shift[1]),
            radii=(x.radii[0] * scale, x.radii[1] * scale),
            turn=x.turn + rng.uniform(-12, 12),
            waves=tuple((n, a, p + rng.uniform(-0.4, 0.4)) for n, a, p in x.waves),
        )
        for x in who.lesions
    )
    scanner = replace(who.scanner, gain=who.scanner.gain + rng.uniform(-1, 1))
    return replace(who, lesions=moved, scanner=scanner)


def grid(scanner: Scanner) -> tuple[Floats, Floats]:
    """Where the samples of the beams lie: mm across and deep, each (depth, beams)."""
    down, beams = (256, 128) if scanner.convex else (scanner.shape[0], 128)
    depth = (np.arange(down) + 0.5) / down * scanner.depth
    if not scanner.convex:
        across = ((np.arange(beams) + 0.5) / beams - 0.5) * scanner.width
        x, z = np.meshgrid(across, depth)
        return x.astype(np.float32), z.astype(np.float32)
    angle = np.radians(((np.arange(beams) + 0.5) / beams - 0.5) * scanner.width)
    radius = CURVATURE + depth[:, None]
    x, z = radius * np.sin(angle), radius * np.cos(angle) - CURVATURE
    return x.astype(np.float32), z.astype(np.float32)


def picture(who: Patient, number: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Picture `number` of a patient, and where its lesions are: (rows, columns) each."""
    seen = view(who, number)
    rng = np.random.default_rng([813, int(who.breast), who.seed, number])
    return rendered(seen, _noise(rng, grid(seen.scanner)[0].shape), rng)


def _noise(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.complex128]:
    return rng.normal(size=shape) + 1j * rng.normal(size=shape)


def rendered(
    who: Patient, scatterers: NDArray[np.complex128], rng: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """The picture of given scatterers, and the mask."""
    x, z = grid(who.scanner)
    levels = _compressed(who.scanner, echo(who, scatterers, rng))
    inside = np.zeros(x.shape, bool)
    for lesion in who.lesions:
        inside |= lesion.inside(x, z) < 1
    shown, valid = converted(who.scanner, levels)
    mask, _ = converted(who.scanner, inside.astype(float))
    shown = np.where(valid, shown, 0)
    return np.clip(np.rint(shown), 0, 255).astype(np.uint8), (mask > 0.5) & valid


def echo(who: Patient, scatterers: NDArray[np.complex128], rng: np.random.Generator) -> Floats:
    """The envelope along the beams (depth, beams); even tissue has a mean square of 2."""
    ndimage = _ndimage()
    from core.data._ultrasound_tissue import backscatter, loss

    x, z = grid(who.scanner)
    scanner = who.scanner
    amplitude = 10 ** (backscatter(who, x, z) / 20)
    step = scanner.depth / len(x)
    near = scatterers * amplitude
    across = scanner.beam, 2.2 * scanner.beam
    sharp, wide = (_pulsed(near, scanner.pulse / step, s, ndimage) for s in across)
    away = np.clip(np.abs(z - scanner.focus) / scanner.depth * 1.6, 0, 1)
    alike = float(_kernel(across[0]) @ _kernel(across[1]))  # both are of the same scatterers
    power = (1 - away) ** 2 + away**2 + 2 * away * (1 - away) * alike
    signal = (sharp * (1 - away) + wide * away) / np.sqrt(power)
    depth = np.linspace(0, 1, len(x))[:, None]
    signal *= 10 ** ((scanner.slope * (depth - 0.5) - loss(who, x, z)) / 20)
    noise = 10 ** ((scanner.noise - 24 * (1 - depth)) / 20)
    return np.abs(signal + noise * _noise(rng, x.shape))


def _pulsed(field: NDArray[np.complex128], down: float, across: float, ndimage: Any) -> NDArray[np.complex128]:
    """Convolved with the pulse, scaled so that even tissue keeps its power."""
    kernel = [_kernel(s) for s in (down, across)]
    parts = [
        ndimage.convolve1d(ndimage.convolve1d(p, kernel[0], 0, mode="reflect"), kernel[1], 1, mode="reflect")
        for p in (field.real, field.imag)
    ]
    return parts[0] + 1j * parts[1]


def _kernel(sigma: float) -> NDArray[np.float64]:
    """A Gaussian in samples whose squares add up to 1."""
    weights = np.exp(-0.5 * (np.arange(-9, 10) / sigma) ** 2)
    return weights / np.sqrt((weights**2).sum())


def _compressed(scanner: Scanner, envelope: Floats) -> Floats:
    """Decibels as grey values: even tissue at gain 0 lies at 45 % of the range."""
    level = 20 * np.log10(np.maximum(envelope, 1e-6) / np.sqrt(2)) + scanner.gain
    return 255 * np.clip(0.45 + level / scanner.range, 0, 1)


def converted(scanner: Scanner, values: Floats) -> tuple[Floats, NDArray[np.bool_]]:
    """From beams to the picture, and where the picture shows anything."""
    ndimage = _ndimage()
    rows, columns = scanner.shape
    down, beams = values.shape
    if not scanner.convex:
        at = np.linspace(0, down - 1, rows), np.linspace(0, beams - 1, columns)
        return ndimage.map_coordinates(values, np.meshgrid(*at, indexing="ij"), order=1), np.ones(scanner.shape, bool)
    half = np.radians(scanner.width / 2)
    top = CURVATURE * np.cos(half)  # the picture begins where the probe's ends lie
    far = CURVATURE + scanner.depth
    z = np.linspace(top, far, rows)[:, None]
    x = np.linspace(-far * np.sin(half), far * np.sin(half), columns)[None]
    radius, angle = np.hypot(x, z), np.arctan2(x, np.broadcast_to(z, scanner.shape))
    valid = (radius >= CURVATURE) & (radius <= far) & (np.abs(angle) <= half)
    at_depth = (radius - CURVATURE) / scanner.depth * down - 0.5
    at_beam = (angle / (2 * half) + 0.5) * beams - 0.5
    return ndimage.map_coordinates(values, [at_depth, at_beam], order=1, mode="nearest"), valid


def cine(who: Patient, frames: int) -> NDArray[np.uint8]:
    """A loop (frames, rows, columns): the patient breathes, speckle moves with the tissue and slowly changes."""
    rng = np.random.default_rng([814, int(who.breast), who.seed])
    shape = grid(who.scanner)[0].shape
    step = who.scanner.depth / shape[0]
    field, out = _noise(rng, shape), []
    for t in range(frames):
        moved = round(0.02 * who.scanner.depth * np.sin(2 * np.pi * t / 24) / step)
        field = np.sqrt(0.96) * field + np.sqrt(0.04) * _noise(rng, shape)
        lesions = tuple(replace(x, middle=(x.middle[0], x.middle[1] + moved * step)) for x in who.lesions)
        out.append(rendered(replace(who, lesions=lesions), np.roll(field, moved, axis=0), rng)[0])
    return np.stack(out)


def _ndimage() -> Any:
    try:
        from scipy import ndimage
    except ImportError:
        raise MissingExtraError("scipy", "medical") from None
    return ndimage
