"""Made histology as data sets: BreakHis's tree, and PatchGastricADC22's patches with captions said from the truth."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from core.data import _histology as made
from core.errors import MissingExtraError

# Subtype: class, folder, form, micrometres of a nucleus, spread of its radius, distance of neighbours.
SUBTYPES: dict[str, tuple[str, str, str, float, float, float]] = {
    "A": ("B", "adenosis", "acini", 3.3, 0.10, 1.1),
    "F": ("B", "fibroadenoma", "slits", 3.3, 0.10, 0.9),
    "PT": ("B", "phyllodes_tumor", "cysts", 3.4, 0.12, 0.9),
    "TA": ("B", "tubular_adenoma", "tubules", 3.2, 0.10, 1.0),
    "DC": ("M", "ductal_carcinoma", "nests", 4.4, 0.28, 1.55),
    "LC": ("M", "lobular_carcinoma", "files", 4.0, 0.22, 1.30),
    "MC": ("M", "mucinous_carcinoma", "islands", 4.2, 0.25, 1.35),
    "PC": ("M", "papillary_carcinoma", "papillae", 4.3, 0.28, 1.15),
}
KINDS = {"B": "benign", "M": "malignant"}
UM = {200: 1.0, 100: 2.0}  # micrometres a pixel of the made pictures, by magnification
SHAPE = (138, 210)  # 460 x 700, reduced to three tenths


@dataclass(frozen=True)
class Slide:
    """One made patient of the tree: name of the slide, and its tissue."""

    subtype: str
    number: str
    tissue: made.Tissue

    @property
    def kind(self) -> str:
        return SUBTYPES[self.subtype][0]


def slide(number: int) -> Slide:
    """Made patient `number`, always the same one; subtypes take turns, benign and malignant alternate."""
    codes = list(SUBTYPES)
    subtype = codes[(number // 2) % 4 + 4 * (number % 2)]
    kind, _, form, nucleus, spread, gap = SUBTYPES[subtype]
    rng = np.random.default_rng([901, number])
    tissue = made.Tissue(
        form, nucleus * rng.uniform(0.92, 1.08), spread * rng.uniform(0.8, 1.25), gap * rng.uniform(0.9, 1.15),
        fibres=rng.uniform(0, 1), lymphocytes=rng.choice([0.0, 0.6], p=[0.7, 0.3]),
        mucin=0.9 if subtype == "MC" else 0.15 * rng.random(),
        empty=rng.uniform(0.0, 0.06) if kind == "B" else rng.uniform(0.02, 0.14), stain=made.stain(rng),
    )  # fmt: skip
    return Slide(subtype, f"{90001 + number}", tissue)


def write_breakhis(folder: Path, *, patients: int = 64, pictures: int = 3) -> None:
    """BreaKHis_v1/histology_slides/breast/{benign,malignant}/SOB/SUBTYPE/SLIDE/{100X,200X}/SOB_....png.

    Each patient has one picture at 100 and `pictures` at 200 times. The same bytes every time on one machine.
    """
    images = _pillow()
    root = folder / "BreaKHis_v1" / "histology_slides" / "breast"
    for number in range(patients):
        who = slide(number)
        stem = f"SOB_{who.kind}_{who.subtype}"
        home = root / KINDS[who.kind] / "SOB" / SUBTYPES[who.subtype][1] / f"{stem}_14-{who.number}"
        for magnification, count in ((100, 1), (200, pictures)):
            inside = home / f"{magnification}X"
            inside.mkdir(parents=True)
            for k in range(count):
                rng = np.random.default_rng([902, number, magnification, k])
                shown = made.tile(who.tissue, SHAPE, UM[magnification], rng)
                name = f"{stem}-14-{who.number}-{magnification}-{k + 1:03d}.png"
                images.fromarray(shown).save(inside / name, format="PNG")


# captions

GRADES = {
    "well": ("tubules", "Well differentiated tubular adenocarcinoma", "round glands with open lumens"),
    "moderate": ("fused", "Moderately differentiated tubular adenocarcinoma", "fused and irregular small glands"),
    "poor": ("sheets", "Poorly differentiated adenocarcinoma, solid type", "solid sheets of cells without glands"),
}
FIELD, UM_GASTRIC = 96, 1.5  # pixels of a patch (300 in the published set), micrometres a pixel


@dataclass(frozen=True)
class Finding:
    """What one made slide shows, and so what is said of it.

    Attributes:
        grade: a key of GRADES.
        marked: large and uneven nuclei.
        fibrous: dense stroma.
        lymphocytes, mucin: whether there is any.
    """

    grade: str
    marked: bool
    fibrous: bool
    lymphocytes: bool
    mucin: bool

    @property
    def subtype(self) -> str:
        return GRADES[self.grade][1]

    @property
    def text(self) -> str:
        nuclei = "enlarged nuclei of uneven size" if self.marked else "small and even nuclei"
        stroma = "dense and fibrous" if self.fibrous else "loose"
        cells = "with clusters of lymphocytes" if self.lymphocytes else "with few inflammatory cells"
        mucin = " Pools of mucin surround the tumor." if self.mucin else ""
        return (
            f"{self.subtype}. Tumor cells form {GRADES[self.grade][2]} and have {nuclei}. "
            f"The stroma is {stroma} {cells}.{mucin}"
        )

    def tissue(self, stain: made.Stain) -> made.Tissue:
        form = GRADES[self.grade][0]
        size, spread = (4.5, 0.28) if self.marked else (3.1, 0.08)
        gap = (1.45 if self.marked else 1.9) if form == "sheets" else 1.1
        return made.Tissue(
            form, size, spread, gap, fibres=0.95 if self.fibrous else 0.05, lymphocytes=1.0 * self.lymphocytes,
            mucin=0.6 * self.mucin, empty=0.03, stain=stain,
        )  # fmt: skip


def findings() -> list[Finding]:
    """All 48 of them."""
    flags = (False, True)
    return [Finding(g, *rest) for g, *rest in product(GRADES, flags, flags, flags, flags)]


def gastric(slides: int) -> list[tuple[str, str, Finding, made.Stain]]:
    """(slide id, patient, finding, stain) of made slides; every third patient has two, of one finding."""
    rng = np.random.default_rng(911)
    every = findings()
    out: list[tuple[str, str, Finding, made.Stain]] = []
    patient = 0
    while len(out) < slides:
        found = every[int(rng.integers(len(every)))]
        for _ in range(2 if patient % 3 == 0 else 1):
            name = hashlib.sha256(f"made slide {len(out)}".encode()).hexdigest()[:12]
            out.append((name, f"P{patient + 1:03d}", found, made.stain(rng)))
        patient += 1
    return out[:slides]


def write_gastric(folder: Path, *, slides: int = 160, patches: int = 8) -> None:
    """captions.csv (id, subtype, text), patches_captions/ID_HASH.jpg, and groups.csv (case, patient).

    Of each slide's patches two show mostly stroma, which says little of the tumor, as on real slides.
    """
    images = _pillow()
    home = folder / "patches_captions"
    home.mkdir(parents=True)
    lines, groups = ["id,subtype,text"], ["case,patient"]
    for number, (name, patient, found, stain) in enumerate(gastric(slides)):
        tissue = found.tissue(stain)
        for k in range(patches):
            rng = np.random.default_rng([912, number, k])
            shown = replace(tissue, form="stroma", empty=0.08) if k >= patches - 2 else tissue
            digest = hashlib.sha256(f"{name} {k}".encode()).hexdigest()[:10]
            picture = images.fromarray(made.tile(shown, (FIELD, FIELD), UM_GASTRIC, rng))
            picture.save(home / f"{name}_{digest}.jpg", format="JPEG", quality=90)
        lines.append(f'{name},"{found.subtype}","{found.text}"')
        groups.append(f"{name},{patient}")
    (folder / "captions.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "groups.csv").write_text("\n".join(groups) + "\n", encoding="utf-8")


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError:
        raise MissingExtraError("Pillow", "medical") from None
    return Image
