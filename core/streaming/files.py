"""The source or sink that fits a file."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import DTypeLike

from core.data.sample import Meta
from core.errors import FileError, SettingError

if TYPE_CHECKING:
    from core.protocols import Sink, Source

_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_PICTURES = (b"\x89PNG", b"\xff\xd8\xff", b"BM", b"GIF8", b"RIFF")
_GEO = (33550, 33922, 34264, 34735, 42112, 42113)  # tags of GeoTIFF and GDAL


def open_source(path: str | Path, *, stack: bool = False, indices: bool = False) -> Source:
    """The source for a file, chosen by its first bytes: a picture, a TIFF, a GeoTIFF or a NIfTI volume.

    `stack` reads the pages of a TIFF as axis 0, `indices` the numbers of a palette instead of its colours. A TIFF
    with coordinates or GDAL's tags, or with a compression that only rasterio decodes, is read by rasterio. Raises
    FileError for what is missing or none of these.
    """
    path = Path(path)
    if path.is_dir():
        raise FileError(path, "is a folder", "give a file")
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except FileNotFoundError:
        raise FileError(path, "no such file", "give the path of an image") from None
    except OSError as error:
        raise FileError(path, f"cannot be read ({(error.strerror or 'input error').lower()})", "check it") from None
    if not head:
        raise FileError(path, "is empty", "get the file again")
    if head[128:132] == b"DICM":  # first: what precedes it may be a TIFF header
        raise FileError(path, "is a DICOM file", "the commands of `glocal medical` read it")
    if head[:4] in _TIFF:
        return _tiff(path, stack, indices)
    if head.startswith(_PICTURES):
        from core.streaming.pictures import PictureSource

        return PictureSource(path, indices=indices)
    from core.streaming.volumes import NiftiSource, is_nifti

    if is_nifti(head, path):
        return NiftiSource(path)
    raise FileError(path, "is none of PNG, JPEG, TIFF, GeoTIFF and NIfTI", "convert it to one of these")


def open_sink(
    path: str | Path,
    shape: Sequence[int],
    dtype: DTypeLike = np.uint8,
    *,
    meta: Meta | None = None,
    bands: int = 1,
    scale: int = 1,
    nodata: float | None = None,
    key: object = None,
) -> Sink:
    """The sink for a result, chosen by the suffix: .png, .jpg, .tif, .nii; GeoTIFF where `meta` has coordinates.

    `scale`: output pixels to an input pixel, `nodata`: both for GeoTIFF alone; see the sinks for more settings. Raises
    SettingError for another suffix and for what the format does not hold.
    """
    path = Path(path)
    name = path.name.lower()
    if name.endswith((".png", ".jpg", ".jpeg")):
        from core.streaming.pictures import PictureSink

        return PictureSink(path, shape, dtype, bands=bands, key=key)
    if name.endswith((".nii", ".nii.gz")):
        from core.streaming.volumes import NiftiSink

        return NiftiSink(path, shape, dtype, meta=meta, bands=bands, key=key)
    if name.endswith((".tif", ".tiff")):
        if meta and (meta.crs or meta.transform):
            from core.streaming.geotiff import GeoTiffSink

            return GeoTiffSink(path, shape, dtype, meta=meta, bands=bands, scale=scale, nodata=nodata, key=key)
        from core.streaming.tiffsink import TiffSink

        return TiffSink(path, shape, dtype, meta=meta, bands=bands, key=key)
    raise SettingError(f"a result is written as .png, .jpg, .tif, .nii or .nii.gz, got {path.name!r}")


def _tiff(path: Path, stack: bool, indices: bool) -> Source:
    from core.streaming.rasters import RasterSource
    from core.streaming.tiffs import CodecError, TiffSource, import_tifffile, quiet

    tifffile = import_tifffile()
    try:
        with quiet(), tifffile.TiffFile(path) as file:
            placed = any(tag in file.pages.first.tags for tag in _GEO)
    except (OSError, ValueError, KeyError, IndexError, TypeError, struct.error):
        raise FileError(path, "is damaged or cut short", "get the file again") from None
    if placed and not stack:
        return RasterSource(path)
    try:
        return TiffSource(path, stack=stack, indices=indices)
    except CodecError as error:
        if stack:
            raise
        try:
            return RasterSource(path)
        except ImportError:
            raise error from None
