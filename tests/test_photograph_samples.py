"""The photographs to colour and the pairs to deblur that the samples are made of."""

import hashlib

import numpy as np
import pytest

pytest.importorskip("skimage")
pytest.importorskip("sklearn")

from core.data import _photographs, cards, photos, samples


def digests(folder):
    return {p.relative_to(folder): hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*") if p.is_file()}


def fewer(monkeypatch):
    monkeypatch.setattr(_photographs, "TRAIN", ("coffee",))
    monkeypatch.setattr(_photographs, "TEST", ("chelsea",))


def test_parts_are_of_different_photographs_and_whole(tmp_path, monkeypatch):
    assert not set(_photographs.TRAIN) & set(_photographs.TEST)
    assert len(_photographs.TEST) >= 3
    for name in (*_photographs.TRAIN, *_photographs.TEST):
        picture = _photographs.photograph(name)
        assert picture.dtype == np.uint8
        assert min(picture.shape[:2]) >= 300
        assert np.abs(picture[..., 0].astype(int) - picture[..., 2]).mean() > 5, "a colour photograph"
    fewer(monkeypatch)
    _photographs.write(tmp_path)
    found = {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*.png")}
    assert found == {"train/coffee.png", "test/chelsea.png"}
    assert np.array_equal(photos.read(tmp_path / "train" / "coffee.png").pixels, _photographs.photograph("coffee"))


def test_pairs_stand_in_reloblur_s_layout_and_are_the_same_every_time(tmp_path, monkeypatch):
    fewer(monkeypatch)
    monkeypatch.setattr(_photographs, "_PAIRS", {"train": 2, "test": 1})
    _photographs.write_blurred(tmp_path / "a")
    _photographs.write_blurred(tmp_path / "b")
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    found = {p.relative_to(tmp_path / "a").as_posix() for p in (tmp_path / "a").rglob("*.png")}
    wanted = set()
    for place in ("train/coffee/01", "train/coffee/02", "test/chelsea/01"):
        number = place[-2:]
        wanted |= {f"dataset/{place}/{number}_{kind}.png" for kind in ("blur", "sharp")} | {
            f"masks/{place}/{number}.png"
        }
    assert found == wanted
    sizes = []
    for place in ("train/coffee/01", "train/coffee/02", "test/chelsea/01"):
        number = place[-2:]
        inside = tmp_path / "a" / "dataset" / place
        sharp, blurred = (photos.read(inside / f"{number}_{k}.png").pixels.astype(int) for k in ("sharp", "blur"))
        mask = photos.read(tmp_path / "a" / "masks" / place / f"{number}.png", colour=False).pixels[..., 0]
        assert mask.max() == 255
        assert 0.02 < (mask > 127).mean() < 0.6
        assert np.abs(sharp - blurred)[mask == 0].max() <= 1  # the mask has 255 steps
        assert np.abs(sharp - blurred)[mask > 127].mean() > 1
        sizes.append(sharp.shape[:2])
    assert sizes == [(256, 256), (200, 300), (300, 451)]


@pytest.mark.parametrize("name", ["photographs", "motion-blur"])
def test_the_card_counts_what_is_written(name):
    """`verify` holds a sample against its own mark; the card's numbers are checked here."""
    card = cards.find(name)
    parts = {"train": _photographs.TRAIN, "test": _photographs.TEST}
    pairs = _photographs._PAIRS if name == "motion-blur" else {"train": 1, "test": 1}
    counts = {part: len(names) * pairs[part] for part, names in parts.items()}
    assert {s.name: s.samples for s in card.splits} == counts
    for layout in card.layout:
        assert layout.count == counts["train" if "train/" in layout.pattern else "test"]
    assert samples.SHOWN[name] == (*_photographs.TRAIN, *_photographs.TEST)
