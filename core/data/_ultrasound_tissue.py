"""The tissue of the made ultrasound pictures: how much it scatters back, and how much it takes from a beam."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from core.data._ultrasound import Patient

Floats = NDArray[np.floating[Any]]


def backscatter(who: Patient, x: Floats, z: Floats) -> Floats:
    """Decibels against even tissue at points mm across and deep."""
    rng = np.random.default_rng([821, int(who.breast), who.seed])
    around = _breast(who, rng, x, z) if who.breast else _liver(who, rng, x, z)
    for lesion in who.lesions:
        inside = lesion.inside(x, z)
        body = lesion.contrast + lesion.grain * _field(rng, x, z, 0.5 * lesion.radii[1])
        edge = np.clip((1 - inside) * 8 + 0.5, 0, 1)  # an eighth of the radius wide
        around = around * (1 - edge) + body * edge
        if lesion.rim:
            rim = np.exp(-0.5 * ((inside - 1.04) / 0.08) ** 2)
            around = around * (1 - rim) + lesion.rim * rim
    return around


def _liver(who: Patient, rng: np.random.Generator, x: Floats, z: Floats) -> Floats:
    """Parenchyma with vessels, the wall above it and the diaphragm below."""
    depth = who.scanner.depth
    out = rng.uniform(0.5, 3.0) * _field(rng, x, z, rng.uniform(4, 14))
    for _ in range(int(rng.integers(1, 4))):
        out = _tube(rng, out, x, z, depth, rng.uniform(1.5, 5.0))
    wall = rng.uniform(12, 22) + 2 * np.sin(x / 17 + rng.uniform(0, 6))
    layers = 4 * np.sin(2 * np.pi * z / rng.uniform(4, 7))
    out = np.where(z < wall, layers + rng.uniform(-2, 4), out)
    height = rng.uniform(0.80, 0.95) * depth + (x - rng.uniform(-20, 20)) ** 2 / rng.uniform(300, 600)
    bright = np.exp(-0.5 * ((z - height) / 1.4) ** 2)
    out = np.where(z > height + 2, out - 6, out)
    return out * (1 - bright) + 16 * bright


def _breast(who: Patient, rng: np.random.Generator, x: Floats, z: Floats) -> Floats:
    """Skin, fat with ligaments, gland, muscle."""
    depth = who.scanner.depth
    borders = np.sort(rng.uniform([0.16, 0.66], [0.36, 0.84])) * depth
    waves = [depth * 0.02 * np.sin(2 * np.pi * x / rng.uniform(14, 30) + rng.uniform(0, 6)) for _ in range(2)]
    fat, gland, muscle = rng.uniform(-9, -5), rng.uniform(-1, 3), rng.uniform(-7, -3)
    out = gland + 2.0 * _field(rng, x, z, 3.0)
    out = np.where(z < borders[0] + waves[0], fat + 1.2 * _field(rng, x, z, 2.5), out)
    streaks = 3 * np.sin(2 * np.pi * (z + 0.1 * x) / rng.uniform(1.5, 2.5))
    out = np.where(z > borders[1] + waves[1], muscle + streaks, out)
    for border, wave in zip(borders, waves, strict=True):
        out = out + 9 * np.exp(-0.5 * ((z - border - wave) / 0.25) ** 2)
    for _ in range(int(rng.integers(2, 6))):  # ligaments
        place, lean = rng.uniform(-0.5, 0.5) * who.scanner.width, rng.uniform(-0.6, 0.6)
        line = np.exp(-0.5 * ((x - place - lean * z) / 0.35) ** 2) * (z < borders[0] + waves[0])
        out = out * (1 - line) + 4 * line
    return np.where(z < 1.6, 8.0, out)


def _tube(rng: np.random.Generator, out: Floats, x: Floats, z: Floats, depth: float, radius: float) -> Floats:
    """A vessel: nearly echo-free, its wall bright where it is thick."""
    middle = rng.uniform(-0.35, 0.35) * depth, rng.uniform(0.25, 0.75) * depth
    way = rng.uniform(0, np.pi)
    along = np.cos(way) * (x - middle[0]) + np.sin(way) * (z - middle[1])
    aside = -np.sin(way) * (x - middle[0]) + np.cos(way) * (z - middle[1])
    aside = aside + 3 * np.sin(along / 15 + rng.uniform(0, 6))
    length = rng.uniform(0.05, 0.3) * depth
    inside = np.hypot(aside / radius, np.maximum(np.abs(along) - length, 0) / radius)
    hollow = np.clip((1 - inside) * 4 + 0.5, 0, 1)
    wall = np.exp(-0.5 * ((inside - 1.15) / 0.12) ** 2) * (radius > 2.5) * 0.7
    return (out * (1 - wall) + 6 * wall) * (1 - hollow) - 24 * hollow


def loss(who: Patient, x: Floats, z: Floats) -> Floats:
    """Decibels that each sample has lost on its way, beyond what gain compensation takes back."""
    rng = np.random.default_rng([822, int(who.breast), who.seed])
    step = who.scanner.depth / len(x)
    rate = np.zeros_like(x)  # dB for each mm, there and back
    for lesion in who.lesions:
        inside = lesion.inside(x, z) < 1
        rate += np.where(inside, lesion.loss / (2 * lesion.radii[1]), 0)
    lost = np.cumsum(rate, axis=0) * step
    beams = np.linspace(-1, 1, x.shape[1])
    for _ in range(int(rng.integers(0, 3))):  # ribs, gas, a nipple, poor contact
        place = rng.choice([-1, 1]) * rng.uniform(0.45, 1.0)
        width, strength = rng.uniform(0.06, 0.14), rng.uniform(6, 14)
        start = rng.uniform(0.03, 0.2) * who.scanner.depth
        lost = lost + strength * np.exp(-(((beams - place) / width) ** 4)) * np.clip((z - start) / 4, 0, 1)
    if rng.random() < 0.5:  # a small vessel or cyst that enhances what is behind it, whatever the lesion does
        place, width = rng.uniform(-0.9, 0.9), rng.uniform(0.03, 0.07)
        start = rng.uniform(0.3, 0.7) * who.scanner.depth
        lost = lost - rng.uniform(3, 6) * np.exp(-(((beams - place) / width) ** 2)) * (z > start)
    return lost


def _field(rng: np.random.Generator, x: Floats, z: Floats, length: float) -> Floats:
    """A smooth random field of about unit spread whose waves are about `length` mm long."""
    waves = 8
    out = np.zeros_like(x)
    for _ in range(waves):
        way = rng.uniform(0, 2 * np.pi)
        k = 2 * np.pi / (length * rng.uniform(0.7, 1.6))
        out += np.sin(float(k * np.cos(way)) * x + float(k * np.sin(way)) * z + rng.uniform(0, 2 * np.pi))
    return out * float(np.sqrt(2 / waves))
