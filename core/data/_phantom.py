"""Made abdominal MR cases: organs as deformed ellipsoids in the patient's space, sampled on oblique, anisotropic grids.

Organs share their grey values with one another and with what is not labelled (stomach, bowel, muscle, a second vessel),
and move from case to case. So neither a threshold nor a mean map finds them; their surroundings tell them apart.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.errors import MissingExtraError

LABELS = {"background": 0, "liver": 1, "spleen": 2, "right kidney": 3, "left kidney": 4, "aorta": 5}
Floats = NDArray[np.float64]

# What a case may be, in the training part and beyond it in the test part: magnitudes, with either sign.
TRAIN = {"scale": (0.0, 0.07), "shift": (0.0, 10.0), "gamma": (0.0, 0.10), "organ": 6.0, "bias": 0.20, "noise": 0.020}
TEST = {"scale": (0.10, 0.15), "shift": (14.0, 20.0), "gamma": (0.15, 0.25), "organ": 9.0, "bias": 0.30, "noise": 0.028}


@dataclass(frozen=True)
class Case:
    """One made patient.

    Attributes:
        seed: of everything that is not listed here.
        scale: of the body, 1 as the mean patient.
        shift: of the body, millimetres to the right and to the front.
        gamma: exponent of the grey values, 1 as the mean scanner.
        organ: largest move of one organ within the body, millimetres along each axis.
        bias: half the range of the bias field, as a share.
        noise: standard deviation in each of the two receiver channels, as a share of fat's brightness.
        shape: columns, rows, slices as stored (i, j, k).
        affine: 4 x 4, from (i, j, k) to millimetres RAS+.
    """

    seed: int
    scale: float
    shift: tuple[float, float]
    gamma: float
    organ: float
    bias: float
    noise: float
    shape: tuple[int, int, int]
    affine: Floats


def case(number: int, part: str) -> Case:
    """Case `number` of "train" or "test", always the same one."""
    seed = 2 * number + (part == "test")
    rng = np.random.default_rng([702, seed])
    limits: dict[str, Any] = TEST if part == "test" else TRAIN

    def drawn(name: str) -> float:
        return float(rng.uniform(*limits[name]) * rng.choice([-1, 1]))

    spacing = np.array([*[rng.uniform(2.7, 3.1)] * 2, rng.uniform(5.5, 6.5)])
    shape = (int(rng.integers(104, 113)), int(rng.integers(84, 93)), int(rng.integers(20, 25)))
    turn = _rotation(np.radians(rng.uniform(-8, 8, 3)))
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag(spacing * [-1, 1, 1])  # columns run to the left, as scanners store them
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2) + rng.uniform(-5, 5, 3)
    affine = affine.astype(np.float32).astype(np.float64)  # what a NIfTI header can hold
    return Case(
        seed, 1 + drawn("scale"), (drawn("shift"), drawn("shift")), 1 + drawn("gamma"), limits["organ"], limits["bias"],
        limits["noise"], shape, affine,
    )  # fmt: skip


def made(patient: Case) -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
    """Image and label of a case, both in stored order (i, j, k)."""
    rng = np.random.default_rng([703, patient.seed])
    points = _points(patient)
    points += 4.0 * np.stack([_field(points, rng, 110.0) for _ in range(3)])  # soft deformation, mm
    edge = 0.5 * float(np.linalg.norm(patient.affine[:3, 0]))
    body = _ellipsoid(points, (0, 0, 0), (128, 92, 900))
    paint = _Paint(patient, rng, points, edge)
    paint.over(body, 92, 0.95)  # fat under the skin
    paint.over(_ellipsoid(points, (0, -3, 0), (114, 76, 900)), 76, 0.44)  # muscle of the wall
    paint.over(_ellipsoid(points, (0, 2, 0), (104, 66, 900)), 66, 0.80)  # fat between the organs
    for side in (-1, 1):
        paint.ball((35 * side, -58, 0), (24, 17, 900), 0.44)  # muscles along the spine
    for _ in range(14):
        at = rng.uniform((-75, 5, -75), (75, 50, 5))
        paint.ball(tuple(at), tuple(rng.uniform(11, 19, 3)), float(rng.uniform(0.40, 0.66)))  # bowel
    paint.ball((44, 30, 28), (36, 26, 34), 0.58, move=True)  # stomach
    paint.ball((-16, -22, 0), (10, 9, 900), 0.36, move=True)  # lower hollow vein
    paint.ball((0, -44, 0), (21, 18, 900), 0.50)  # spine
    liver = rng.uniform(-1, 1, 3) * patient.organ
    paint.ball((-58, 8, 24), (46, 52, 52), 0.50, "liver", by=liver)
    paint.ball((-12, 30, 34), (46, 24, 26), 0.50, "liver", by=liver)
    paint.ball((78, -22, 26), (22, 33, 36), 0.58, "spleen", move=True)
    for side, label in ((-1, "right kidney"), (1, "left kidney")):
        by = rng.uniform(-1, 1, 3) * patient.organ
        paint.ball((52 * side, -43, -14 + 4 * side), (24, 23, 45), 0.78, by=by)  # its capsule of fat
        paint.ball((52 * side, -43, -14 + 4 * side), (21, 20, 42), 0.62, label, by=by)
    paint.ball((12, -20, 0), (10, 10, 900), 0.36, "aorta", move=True)
    values = paint.image * (1 + 0.03 * _field(points, rng, 14.0)) + 0.012 * _field(points, rng, 9.0) * (paint.image > 0)
    values = np.clip(values, 0, None) ** patient.gamma
    bias = _field(points, rng, 160.0)
    values *= 1 + patient.bias * bias / np.abs(bias).max()
    noise = rng.normal(0, patient.noise, (2, *values.shape))
    values = np.hypot(values + noise[0], noise[1])  # Rician: the magnitude of two noisy channels
    return np.rint(1000 * values).astype(np.int16), np.where(body < 1, paint.label, 0).astype(np.uint8)


class _Paint:
    """An image and its label, painted from the back to the front."""

    def __init__(self, patient: Case, rng: np.random.Generator, points: Floats, edge: float) -> None:
        self.patient, self.rng, self.points, self.edge = patient, rng, points, edge
        self.image = np.zeros(patient.shape)
        self.label = np.zeros(patient.shape, np.uint8)

    def over(
        self, inside: Floats, radius: float, value: float, label: str = "", at: tuple[slice, ...] = (slice(None),) * 3
    ) -> None:
        """Where `inside` is below 1, with an edge one voxel wide in which values mix; `inside` covers the box `at`."""
        cover = np.clip(0.5 + (1 - np.sqrt(inside)) * radius / (2 * self.edge), 0, 1)
        self.image[at] = self.image[at] * (1 - cover) + value * cover
        self.label[at] = np.where(cover > 0.5, np.uint8(LABELS[label] if label else 0), self.label[at])

    def ball(
        self, middle: tuple[float, ...], radii: tuple[float, ...], value: float, label: str = "", *, move: bool = False,
        by: Floats | None = None,
    ) -> None:  # fmt: skip
        rng = self.rng
        if move:
            by = rng.uniform(-1, 1, 3) * self.patient.organ
        place = np.array(middle) + (0 if by is None else by)
        size = np.array(radii) * (1 + rng.uniform(-0.08, 0.08, 3))
        at = self._box(place, size)
        points = self.points[(slice(None), *at)]
        inside = _ellipsoid(points, tuple(place), tuple(size))
        inside = inside * (1 + 0.12 * _field(points, rng, 45.0))
        self.over(inside, float(min(size)), value * float(rng.uniform(0.95, 1.05)), label, at)

    def _box(self, place: Floats, size: Floats) -> tuple[slice, ...]:
        """Indices that a ball can reach: what is far away need not be computed."""
        sides = np.array([-1, 1, 1])
        world = place * sides * self.patient.scale + np.array([*self.patient.shift, 0.0])
        back = np.linalg.inv(self.patient.affine)
        middle = back[:3, :3] @ world + back[:3, 3]
        reach = np.abs(back[:3, :3]) @ ((np.minimum(size, 100) * 1.15 + 12) * self.patient.scale)
        low = np.clip(np.floor(middle - reach), 0, self.patient.shape).astype(int)
        high = np.clip(np.ceil(middle + reach) + 1, 0, self.patient.shape).astype(int)
        return tuple(slice(int(a), int(max(a, b))) for a, b in zip(low, high, strict=True))


def _points(patient: Case) -> Floats:
    """(3, i, j, k): millimetres to the right, front and top of the mean patient's middle."""
    index = np.indices(patient.shape, dtype=np.float64)
    world = np.einsum("ab,bijk->aijk", patient.affine[:3, :3], index) + patient.affine[:3, 3, None, None, None]
    world[0] -= patient.shift[0]
    world[1] -= patient.shift[1]
    world /= patient.scale
    world[0] *= -1  # organs are listed with the patient's left as positive
    return world


def _ellipsoid(points: Floats, at: tuple[float, ...], radii: tuple[float, ...]) -> Floats:
    """Below 1 inside."""
    out = np.zeros(points.shape[1:])
    for axis in range(3):
        out += ((points[axis] - at[axis]) / radii[axis]) ** 2
    return out


def _field(points: Floats, rng: np.random.Generator, length: float) -> Floats:
    """A smooth random field of about unit spread whose waves are about `length` millimetres long."""
    out = np.zeros(points.shape[1:])
    waves = 6
    for _ in range(waves):
        way = rng.normal(size=3)
        way *= 2 * np.pi / (length * rng.uniform(0.7, 1.5) * np.linalg.norm(way))
        out += np.sin(np.einsum("a,aijk->ijk", way, points) + rng.uniform(0, 2 * np.pi))
    return out * np.sqrt(2 / waves)


def _rotation(angles: Floats) -> Floats:
    out = np.eye(3)
    for axis, angle in enumerate(angles):
        c, s = np.cos(angle), np.sin(angle)
        a, b = [i for i in range(3) if i != axis]
        step = np.eye(3)
        step[a, a], step[a, b], step[b, a], step[b, b] = c, -s, s, c
        out = out @ step
    return out


def write(folder: Path, *, train: int = 10, test: int = 6) -> None:
    """The made data set in nnU-Net's raw layout: MR_001 ... for training, then the test cases, with their truth.

    The same bytes every time on one machine.
    """
    try:
        import nibabel as nib
    except ImportError:
        raise MissingExtraError("nibabel", "medical") from None
    number = 0
    for part, ending, count in (("train", "Tr", train), ("test", "Ts", test)):
        images, labels = folder / f"images{ending}", folder / f"labels{ending}"
        images.mkdir(parents=True)
        labels.mkdir()
        for i in range(count):
            number += 1
            patient = case(i, part)
            image, label = made(patient)
            for path, array in (
                (images / f"MR_{number:03d}_0000.nii.gz", image),
                (labels / f"MR_{number:03d}.nii.gz", label),
            ):
                file = nib.Nifti1Image(array, patient.affine)
                file.header.set_xyzt_units("mm")
                nib.save(file, path)
    about = {
        "name": "abdomen-mr (made)",
        "channel_names": {"0": "MR"},
        "labels": LABELS,
        "numTraining": train,
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
