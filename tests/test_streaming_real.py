"""Every real file of three domains is read right or refused with one clear sentence.

The folder is GLOCAL_REAL, else ../shared/real beside the repository.
"""

import os
from pathlib import Path

import numpy as np
import pytest

from core.errors import FileError
from core.streaming.files import open_source

REAL = Path(os.environ.get("GLOCAL_REAL", Path(__file__).resolve().parents[2] / "shared" / "real"))
REFUSED = {
    "truncated.jpg": "damaged or cut short",
    "corrupt.tif": "cannot be decoded",
    "ExplVR_BigEnd.dcm": "DICOM",
    "MR_small.dcm": "DICOM",
    "MR_truncated.dcm": "DICOM",
    "examples_ybr_color.dcm": "DICOM",
    "OSBS_029.csv": "is none of",
}
FILES = sorted(p for d in ("general", "medical", "remote_sensing") if (REAL / d).is_dir() for p in (REAL / d).iterdir())
pytestmark = pytest.mark.skipif(not FILES, reason="no real files: GLOCAL_REAL names none, ../shared/real is not there")


def everything(path, **options):
    source = open_source(path, **options)
    return source, *source.read([0] * len(source.shape), source.shape)


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_read_right_or_refused(path):
    for package in ("PIL", "tifffile", "rasterio", "nibabel"):
        pytest.importorskip(package)
    if path.name in REFUSED:
        with pytest.raises(FileError, match=REFUSED[path.name]) as refused:
            everything(path)
        assert "\n" not in str(refused.value)
        assert str(refused.value).startswith(str(path))
        return
    source, values, valid = everything(path)
    want, where = reference(path)
    assert source.dtype == want.dtype.newbyteorder("=")
    assert np.array_equal(valid, where)
    assert np.array_equal(values, np.where(where, want, 0))
    low = [n // 3 for n in source.shape]
    window, _ = source.read(low, [n // 2 for n in source.shape])
    assert np.array_equal(window, values[(slice(None), *(slice(a, n // 2) for a, n in zip(low, source.shape)))])


def reference(path):
    """Values (C, *size) and validity as the field's own library has them."""
    if path.suffix in (".jpg", ".png"):
        from PIL import Image, ImageOps

        picture = ImageOps.exif_transpose(Image.open(path))
        picture = picture.convert("RGB") if picture.mode == "P" else picture
        values = np.asarray(picture)
        values = values[None] if values.ndim == 2 else np.moveaxis(values, -1, 0)
    elif ".nii" in path.name:
        import nibabel

        values = np.asarray(nibabel.load(path).dataobj)[None]
    elif path.parent.name == "remote_sensing" or path.suffix == ".svs":
        import rasterio

        with rasterio.open(path) as data:
            colours = [i for i, c in zip(data.indexes, data.colorinterp) if c.name != "alpha"]
            return data.read(colours), data.dataset_mask() > 0
    else:
        import tifffile

        with tifffile.TiffFile(path) as file:
            page = file.pages[0]
            values = page.asarray()
        values = values[None] if values.ndim == 2 else np.moveaxis(values, page.axes.index("S"), 0)
    return values, np.ones(values.shape[1:], np.bool_)


def test_what_was_done_is_said():
    for package in ("PIL", "tifffile", "rasterio"):
        pytest.importorskip(package)
    done = {p.name: open_source(p).meta for p in FILES if p.name not in REFUSED}
    assert done["color_exif.jpg"].applied == ("turned as EXIF orientation 6 says",)
    assert done["palette_color.png"].applied == ("palette applied",)
    assert done["multipage_rgb.tif"].applied == ("first of 2 pages read",)
    assert done["alpha.tif"].applied == ("alpha band read as validity",)
    assert done["all-nodata.tif"].channels == ("blue", "green", "red", "nir")
    assert "32617" in done["red.tif"].crs
    assert done["rotated.tif"].crs is None
    assert done["rotated.tif"].transform is not None
    assert done["anatomical.nii"].orientation == "LAS"
    assert open_source(REAL / "general" / "multipage_rgb.tif", stack=True).shape == (2, 10, 10)


def test_a_rotated_grid_is_kept(tmp_path):
    rasterio = pytest.importorskip("rasterio")
    from core.streaming.blend import image
    from core.streaming.geotiff import GeoTiffSink
    from core.streaming.run import run

    source = open_source(REAL / "remote_sensing" / "rotated.tif")
    sink = GeoTiffSink(tmp_path / "o.tif", source.shape, "uint8", meta=source.meta)
    run(source, lambda t, v: t, sink, tile=8, overlap=0.5, finish=image("uint8"))
    with rasterio.open(tmp_path / "o.tif") as a, rasterio.open(REAL / "remote_sensing" / "rotated.tif") as b:
        assert a.transform == b.transform
        assert np.array_equal(a.read(), b.read())
