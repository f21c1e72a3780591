"""The made ultrasound patients as data sets: US-Liver's and BUSI's folders, and what is burned into some pictures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.data import _ultrasound as made
from core.errors import MissingExtraError

Picture = NDArray[np.uint8]
GROUPS = "groups.csv"
LIST = "labels.csv"
_WORDS = ("2.1 cm", "1.4 cm", "LT 10:00", "RT UOQ", "DIST 1.72", "MI 1.1  TIS 0.4")  # nothing that names anyone


def write_liver(folder: Path, *, patients: int = 160, pictures: int = 2) -> None:
    """Benign/ and Malignant/ of grey PNG, labels.csv (images, labels) and groups.csv (image, patient).

    As many patients of either kind (US-Liver has twice as many malignant pictures as benign ones), each with so many
    pictures. The same bytes every time on one machine.
    """
    images = _pillow()
    listed, groups = ["images,labels"], ["image,patient"]
    for name in ("Benign", "Malignant"):
        (folder / name).mkdir(parents=True)
    counts = {"Benign": 0, "Malignant": 0}
    for number in range(patients):
        kind = made.MALIGNANT if number % 2 else made.BENIGN
        who = made.patient(number, kind, breast=False)
        for k in range(pictures):
            name = kind.capitalize()
            counts[name] += 1
            path = f"{name}/{counts[name]:04d}.png"
            images.fromarray(made.picture(who, k)[0]).save(folder / path, format="PNG")
            listed.append(f"{path},{int(kind == made.MALIGNANT)}")
            groups.append(f"{path},P{number + 1:03d}")
    (folder / LIST).write_text("\n".join(listed) + "\n", encoding="utf-8")
    (folder / GROUPS).write_text("\n".join(groups) + "\n", encoding="utf-8")


def breasts(patients: int) -> Iterator[made.Patient]:
    """Made patients: five of ten benign, four malignant, one without a lesion; some have two lesions."""
    for number in range(patients):
        kind = (made.BENIGN, made.MALIGNANT)[number % 2] if number % 10 != 9 else made.NORMAL
        yield made.patient(number, kind, breast=True, second=number % 12 == 0)


def write_busi(folder: Path, *, patients: int = 60, pictures: int = 2) -> None:
    """benign/, malignant/, normal/ of RGB PNG `benign (1).png`, `benign (1)_mask.png`, `..._mask_1.png`; groups.csv.

    A second lesion has a mask of its own, normal pictures an empty one; into every fifth patient's pictures calipers
    and letters are burned, whatever the kind.
    """
    images = _pillow()
    counts = {made.BENIGN: 0, made.MALIGNANT: 0, made.NORMAL: 0}
    groups = ["image,patient"]
    for name in counts:
        (folder / name).mkdir(parents=True)
    for who in breasts(patients):
        for k in range(pictures):
            counts[who.kind] += 1
            stem = f"{who.kind}/{who.kind} ({counts[who.kind]})"
            shown, _ = made.picture(who, k)
            colour = np.repeat(shown[..., None], 3, axis=2)
            if who.seed % 5 == 2:
                colour, _ = burned(colour, _mask(who, k, None), seed=100 * who.seed + k)
            images.fromarray(colour).save(folder / f"{stem}.png", format="PNG")
            for i in range(max(1, len(who.lesions))):
                mask = _mask(who, k, i).astype(np.uint8) * 255
                images.fromarray(mask).save(folder / f"{stem}_mask{f'_{i}' if i else ''}.png", format="PNG")
            groups.append(f"{stem}.png,P{who.seed + 1:03d}")
    (folder / GROUPS).write_text("\n".join(groups) + "\n", encoding="utf-8")


def _mask(who: made.Patient, number: int, lesion: int | None) -> NDArray[np.bool_]:
    """(rows, columns): one lesion of a picture, or all of them."""
    seen = made.view(who, number)
    x, z = made.grid(seen.scanner)
    inside = np.zeros(x.shape)
    for i, one in enumerate(seen.lesions):
        if lesion in (None, i):
            inside = np.maximum(inside, (one.inside(x, z) < 1).astype(float))
    shown, valid = made.converted(seen.scanner, inside)
    return (shown > 0.5) & valid


def burned(picture: Picture, lesion: NDArray[np.bool_], *, seed: int) -> tuple[Picture, NDArray[np.bool_]]:
    """A picture (rows, columns, 3) with calipers at the ends of a lesion and letters in a corner, and where they are.

    Calipers are crosses joined by dots, in yellow or white, as scanners draw them; without a lesion only letters.
    """
    from PIL import Image, ImageDraw, ImageFont

    rng = np.random.default_rng([831, seed])
    ink = Image.new("L", (picture.shape[1], picture.shape[0]), 0)
    draw = ImageDraw.Draw(ink)
    draw.fontmode = "1"  # hard edges, so that the mask is exact
    if lesion.any():
        rows, columns = np.nonzero(lesion)
        row = int(np.median(rows))
        left, right = int(columns[rows == row].min()), int(columns[rows == row].max())
        for x in (left, right):
            draw.line((x - 4, row, x + 4, row), 255)
            draw.line((x, row - 4, x, row + 4), 255)
        for x in range(left, right, 5):
            draw.point((x, row), 255)
    corner = (4, picture.shape[0] - 16) if rng.random() < 0.5 else (4, 3)
    draw.text(corner, str(rng.choice(_WORDS)), 255, ImageFont.load_default(11))
    marks = np.asarray(ink) > 0
    out = picture.copy()
    out[marks] = (250, 220, 40) if rng.random() < 0.5 else (255, 255, 255)
    return out, marks


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError:
        raise MissingExtraError("Pillow", "medical") from None
    return Image
