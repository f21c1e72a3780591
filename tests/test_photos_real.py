"""Every real photograph is read as its decoder has it, turned upright, or refused with one clear sentence.

The folder is GLOCAL_REAL, else ../shared/real beside the repository.
"""

import os
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("PIL")
pytest.importorskip("tifffile")
from PIL import Image, ImageOps

from core.data import photos
from core.errors import FileError

REAL = Path(os.environ.get("GLOCAL_REAL", Path(__file__).resolve().parents[2] / "shared" / "real"))
FOLDERS = ("general", "colorization", "deblurring", "pose", "counting")
FILES = sorted(p for d in FOLDERS if (REAL / d).is_dir() for p in (REAL / d).iterdir() if p.is_file())
REFUSED = {"truncated.jpg": "is damaged or cut short", ".json": "is none of JPEG, PNG", ".xml": "is none of JPEG, PNG"}
pytestmark = pytest.mark.skipif(not FILES, reason="no real files: GLOCAL_REAL names none, ../shared/real is not there")


@pytest.mark.parametrize("path", FILES, ids=lambda p: f"{p.parent.name}-{p.name}")
def test_read_right_or_refused(path, tmp_path):
    says = REFUSED.get(path.name, REFUSED.get(path.suffix))
    if says:
        with pytest.raises(FileError) as refused:
            photos.read(path)
        assert str(refused.value).startswith(f"{path}: {says}")
        assert "\n" not in str(refused.value)
        return
    photo = photos.read(path)
    if path.suffix == ".tif":
        import tifffile

        with tifffile.TiffFile(path) as file:
            page = file.pages[0]
            want = np.moveaxis(page.asarray(), page.axes.index("S"), -1).astype(photo.pixels.dtype)
    else:
        with Image.open(path) as picture:
            want = np.asarray(ImageOps.exif_transpose(picture).convert("RGB"))
    if any("profile" in words for words in photo.meta.applied):
        assert np.abs(photo.pixels.astype(int) - want).mean() > 0.5  # another colour space
    else:
        assert np.array_equal(photo.pixels, want)
    told = photos.inspect(path)
    assert told["size"] == list(photo.pixels.shape[:2])
    assert told["notes"] == [w for w in photo.meta.applied if not w.startswith("grey values")]
    ending = ".tif" if photo.pixels.dtype == np.float32 else ".png"
    photos.save(tmp_path / f"a{ending}", photo.pixels, photo)
    again = photos.read(tmp_path / f"a{ending}")
    assert (again.icc, again.pixels.dtype) == (photo.icc, photo.pixels.dtype)
    apart = np.abs(again.pixels.astype(float) - photo.pixels)
    assert apart.max() <= (2 if any("profile" in words for words in photo.meta.applied) else 0)


def test_what_the_awkward_ones_are():
    awkward = {
        "color_exif.jpg": "turned as EXIF orientation 6 says",
        "palette_color.png": "palette applied",
        "multipage_rgb.tif": "first of 2 pages read",
        "000000000785.jpg": "converted from its profile (Adobe RGB",
    }
    seen = {p.name: p for p in FILES}
    for name, words in awkward.items():
        if name in seen:
            assert any(said.startswith(words) for said in photos.read(seen[name]).meta.applied), name
