"""Burned-in text and calipers: found where they were drawn, not found in speckle, gone when masked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from apps.medical.ultrasound import burned
from core.errors import ShapeError

Grey = NDArray[np.uint8]
TEXTS = ("DOE JANE", "RT LOBE 5.2 cm", "12/03/1961", "ID 445-77-9", "Liver seg VI", "D1 23.4 mm")


def speckle(seed: int, *, shape: tuple[int, int] = (180, 240), fan: bool = False) -> Grey:
    """Log-compressed fully developed speckle with lesions, an interface and attenuation; of a sector where `fan`."""
    random = np.random.default_rng(seed)
    H, W = shape
    y, x = np.mgrid[:H, :W]
    strength = np.ones(shape)
    for _ in range(2):
        cy, cx, a, b = random.uniform((0.3 * H, 0.2 * W, 10, 10), (0.8 * H, 0.8 * W, 40, 40))
        strength[((y - cy) / a) ** 2 + ((x - cx) / b) ** 2 < 1] *= random.choice([0.0, 0.2, 3.0])
    line = random.uniform(0.5, 0.95) * H + random.uniform(3, 12) * np.sin(x / random.uniform(30, 80))
    strength += random.uniform(5, 30) * np.exp(-(((y - line) / random.uniform(1, 2.5)) ** 2))
    spread = random.uniform((0.7, 1.0), (1.8, 3.5))
    parts = [ndimage.gaussian_filter(random.normal(size=shape) * strength, spread) for _ in range(2)]
    envelope = np.hypot(*parts)
    level = 20 * np.log10(envelope / np.quantile(envelope, 0.995) + 1e-9) - y / H * random.uniform(0, 20)
    grey = np.clip((level + 55) / 55 * 255 + random.uniform(-40, 10), 0, 255)
    if fan:
        angle, radius = np.arctan2(x - W / 2, y + 40), np.hypot(x - W / 2, y + 40)
        grey = np.where((np.abs(angle) < 0.65) & (radius < H + 30) & (radius > 50), grey, 0)
    return grey.astype(np.uint8)


def written(grey: Grey, text: str, at: tuple[int, int], size: float | None = None, fill: Any = 255) -> tuple[Grey, Any]:
    """The picture with a text in Pillow's own font, and the box that it fills (left, top, right, bottom)."""
    sheet = Image.fromarray(grey)
    pen = ImageDraw.Draw(sheet)
    letters = ImageFont.load_default() if size is None else ImageFont.load_default(size)
    pen.text(at, text, fill=fill, font=letters)
    return np.asarray(sheet), pen.textbbox(at, text, font=letters)


def covered(found: burned.Marks, kind: str, box: tuple[float, float, float, float]) -> float:
    """Share of a box that marks of a kind cover."""
    where = np.zeros(found.mask.shape, bool)
    for mark in found.marks:
        if mark.kind == kind:
            where[max(0, mark.top - 1) : mark.bottom + 1, max(0, mark.left - 1) : mark.right + 1] = True
    left, top, right, bottom = (round(v) for v in box)
    return float(where[top:bottom, left:right].mean())


@pytest.mark.parametrize("size", [None, 10, 12, 16, 24, 36])
@pytest.mark.parametrize("fill", [255, 170])
def test_text_beside_the_sector(size: float | None, fill: int) -> None:
    for seed, text in enumerate(TEXTS):
        picture, box = written(speckle(seed, fan=True), text, (4, 3), size, fill)
        if box[2] < 90:  # so long a text runs into the sector
            assert covered(burned.find(picture), "text", box) > 0.85, (text, size)


@pytest.mark.parametrize("size", [None, 12, 16, 24])
def test_text_on_tissue(size: float | None) -> None:
    share = []
    for seed in range(12):
        picture, box = written(speckle(seed), TEXTS[seed % 6], (40, 60), size)
        share.append(covered(burned.find(picture), "text", box) > 0.6)
    assert np.mean(share) >= 0.8


def test_speckle_is_no_text_and_no_caliper() -> None:
    false = [seed for seed in range(24) if burned.find(speckle(seed, fan=seed % 2 == 0))]
    assert len(false) <= 1


def test_the_made_sample_pictures_are_clean(tmp_path: Path) -> None:
    from core.data import _ultrasound as made

    pictures = [
        made.picture(made.patient(n, ("benign", "malignant")[n % 2], breast=n % 3 == 0), 0)[0] for n in range(12)
    ]
    assert not [n for n, picture in enumerate(pictures) if burned.find(picture)]


@pytest.mark.parametrize("kind", ["+", "x"])
@pytest.mark.parametrize("arm", [5, 7, 9])
def test_calipers(kind: str, arm: int) -> None:
    good = 0
    for seed in range(8):
        sheet = Image.fromarray(speckle(seed))
        pen = ImageDraw.Draw(sheet)
        for x, y in ((70, 60), (160, 120)):
            if kind == "+":
                pen.line((x - arm, y, x + arm, y), 255)
                pen.line((x, y - arm, x, y + arm), 255)
            else:
                pen.line((x - arm, y - arm, x + arm, y + arm), 255)
                pen.line((x - arm, y + arm, x + arm, y - arm), 255)
        found = burned.find(np.asarray(sheet))
        places = [((m.top + m.bottom) / 2, (m.left + m.right) / 2) for m in found.marks if m.kind == "caliper"]
        good += sum(any(abs(y - b) < 3 and abs(x - a) < 3 for b, a in places) for x, y in ((70, 60), (160, 120)))
        assert len(places) <= 2
    assert good >= 14  # of 16


def test_dotted_lines() -> None:
    good = 0
    for seed in range(8):
        grey = speckle(seed).copy()
        for step in range(16):
            grey[40 + 5 * step : 42 + 5 * step, 60 + 7 * step : 62 + 7 * step] = 255
        found = burned.find(grey)
        good += covered(found, "dotted line", (60, 40, 166, 116)) > 0.6
    assert good >= 6  # of 8: on tissue at the top of the scale dots do not stand out


def test_coloured_marks_on_a_grey_picture() -> None:
    colour = np.repeat(speckle(3)[..., None], 3, axis=2)
    picture, box = written(colour, "LT OVARY 3", (50, 60), 16, (255, 255, 0))
    assert covered(burned.find(picture), "text", box) > 0.8
    sheet = Image.fromarray(colour)
    ImageDraw.Draw(sheet).rectangle((70, 60, 150, 120), outline=(0, 255, 255))
    marks = burned.find(np.asarray(sheet)).marks
    assert [m.kind for m in marks] == ["graphics"]
    assert (marks[0].left, marks[0].right) == (pytest.approx(70, abs=4), pytest.approx(151, abs=4))


def test_flow_is_no_drawing() -> None:
    """Red to yellow vessels of a Doppler box are left alone; text beside them is found."""
    random = np.random.default_rng(0)
    colour = np.repeat(speckle(5)[..., None], 3, axis=2)
    speed = ndimage.gaussian_filter(random.normal(size=colour.shape[:2]), 5)
    flow = speed > 0.7 * speed.std()
    green = np.clip((speed - speed[flow].min()) / np.ptp(speed[flow]) * 255, 0, 255)
    colour[flow] = np.stack([np.full_like(green, 255), green, np.zeros_like(green)], -1)[flow].astype(np.uint8)
    plain = burned.find(colour)
    assert plain.mask.mean() < 0.02
    picture, box = written(np.pad(colour, ((30, 0), (0, 0), (0, 0))), "PWR 72% 2.0 kHz", (5, 5))
    assert covered(burned.find(picture), "text", box) > 0.8


def test_a_toned_picture_has_no_colour() -> None:
    grey = speckle(2)
    sepia = (grey[..., None] * np.array([1.0, 0.85, 0.6])).astype(np.uint8)
    assert not burned.find(sepia)
    assert burned.colourfulness(sepia).max() <= burned.COLOURED


def test_of_a_loop_what_stands_still() -> None:
    frames = np.stack([np.repeat(speckle(s, fan=True)[..., None], 3, axis=2) for s in range(6)])
    drawn = np.stack([written(f, "P. MOUSE", (80, 95), 14, (255, 255, 255))[0] for f in frames])
    box = written(frames[0], "P. MOUSE", (80, 95), 14, (255, 255, 255))[1]
    found = burned.find(drawn)
    assert covered(found, "text", box) > 0.8
    assert not burned.find(frames).text.any()


def test_a_large_picture_is_searched_reduced() -> None:
    small = written(speckle(1, shape=(600, 700), fan=True), "DOE JANE", (10, 10), 20)[0]
    large = small.repeat(3, 0).repeat(3, 1)[:1799, :2098]
    found = burned.find(large)
    assert found.mask.shape == large.shape
    assert covered(found, "text", (36, 50, 310, 88)) > 0.9


def test_masked_text_cannot_be_read() -> None:
    grey = speckle(4)
    picture, (left, top, right, bottom) = written(grey, "DOE JANE 1961", (60, 70), 16)
    found = burned.find(picture)
    gone = burned.masked(np.repeat(picture[..., None], 3, axis=2), found)
    inside = gone[round(top) : round(bottom), round(left) : round(right), 0].astype(float)
    assert np.abs(np.diff(inside, axis=1)).max() < 25  # smooth: a letter's edge is above 100
    assert abs(inside.mean() - grey[round(top) : round(bottom), round(left) : round(right)].mean()) < 25
    assert np.array_equal(gone[~found.mask], np.repeat(picture[..., None], 3, axis=2)[~found.mask])
    assert not burned.find(gone).text.any()


def test_only_text_is_masked_where_asked() -> None:
    sheet = Image.fromarray(np.zeros((120, 200), np.uint8))
    pen = ImageDraw.Draw(sheet)
    pen.text((5, 5), "SMITH 12345", fill=255)
    pen.line((93, 80, 107, 80), 255)
    pen.line((100, 73, 100, 87), 255)
    picture = np.repeat(np.asarray(sheet)[..., None], 3, axis=2)
    found = burned.find(picture)
    assert found.counts() == {"text": 1, "caliper": 1}
    assert found.sentence() == "burned-in: 1 line of text, 1 caliper"
    kept = burned.masked(picture, found, text=True)
    assert kept[:25].max() == 0
    assert kept[80, 100, 0] == 255
    assert burned.masked(picture, found).max() == 0


def test_rows_and_odd_arrays() -> None:
    picture, _ = written(np.zeros((40, 120), np.uint8), "ABC 123", (10, 12))
    (row,) = burned.rows(burned.find(picture).marks)
    assert row["kind"] == "text"
    assert abs(row["x"] - 10) <= 2
    for odd in (
        np.zeros((20, 20), np.float32),
        np.zeros((2, 3, 20, 20, 3), np.uint8),
        np.zeros((0, 20, 20, 3), np.uint8),
    ):
        with pytest.raises(ShapeError, match="8 bits"):
            burned.find(odd)
    for empty in (np.zeros((30, 40), np.uint8), np.full((30, 40), 255, np.uint8), np.full((16, 16, 3), 90, np.uint8)):
        assert not burned.find(empty)
    everything = np.ones((16, 16), bool)
    assert burned.filled(np.full((16, 16, 3), 90, np.uint8), everything).max() == 0
