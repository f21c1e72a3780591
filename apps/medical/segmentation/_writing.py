"""Masks and probabilities as files, each written whole or not at all."""

from __future__ import annotations

import gzip
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
from numpy.typing import NDArray

from apps.medical._grid import Grid
from core.errors import FileError, InputError, MissingExtraError
from core.files import aside
from core.pictures import RGB


def nifti(path: Path, mask: NDArray[np.integer], grid: Grid) -> None:
    """A canonical mask on exactly the grid of the input. Raises FileError where the grid is of a picture."""
    _stream(path, _placed(path, mask, grid))


def nifti_channels(path: Path, values: NDArray[np.floating[Any]], grid: Grid) -> None:
    """Canonical values (K, Z, Y, X) as a float32 file with K along the fourth axis."""
    parts = [_placed(path, channel.astype(np.float32), grid) for channel in values]
    stacked = np.stack([np.asarray(part.dataobj) for part in parts], axis=-1)
    while stacked.ndim < 4:  # a two-dimensional file
        stacked = stacked[..., None, :]
    _stream(path, type(parts[0])(stacked, parts[0].affine, parts[0].header))


def _placed(path: Path, values: NDArray[Any], grid: Grid) -> Any:
    try:
        return grid.nifti(values)
    except MissingExtraError:
        raise
    except InputError:
        raise FileError(
            path, "pictures and frames without an affine have no place in NIfTI", "save them as .png or .tif"
        ) from None


def _stream(path: Path, image: Any) -> None:
    with aside(path) as part, part.open("wb") as raw:
        if path.name.lower().endswith(".gz"):
            with gzip.GzipFile("", "wb", 6, raw, mtime=0) as packed:  # neither name nor time in the file
                image.to_stream(cast(IO[bytes], packed))
        else:
            image.to_stream(raw)


def png(path: Path, mask: NDArray[np.integer], colours: Mapping[int, RGB]) -> None:
    """One mask (Y, X) whose stored values are the ids. Raises FileError for a volume."""
    from PIL import Image

    if mask.ndim != 2:
        raise FileError(path, f"a PNG holds one picture, not {mask.shape[0]} slices", "save volumes as .nii.gz or .tif")
    if int(mask.max(initial=0)) > 255:
        picture = Image.fromarray(mask.astype(np.uint16))
    else:
        picture = Image.fromarray(mask.astype(np.uint8))
        table = np.zeros((256, 3), np.uint8)
        for i, colour in colours.items():
            if i < 256:
                table[i] = colour
        picture.putpalette(table.tobytes())
    with aside(path) as part:
        picture.save(part, format="PNG", optimize=False)


def tiff(path: Path, values: NDArray[Any], spacing: Sequence[float] | None) -> None:
    """Values (Y, X), (Z, Y, X) or (K, Y, X) or (K, Z, Y, X) as pages; `spacing` in millimetres goes into the tags."""
    try:
        import tifffile
    except ImportError:
        raise MissingExtraError("tifffile", "medical") from None
    options: dict[str, Any] = {"photometric": "minisblack", "compression": "zlib", "metadata": None}
    if values.ndim > 2:
        # ImageJ's description holds the third spacing and says that pages are slices (Z) or channels (C).
        axes = {3: "ZYX", 4: "CZYX"}[values.ndim]
        if spacing is not None and len(spacing) == values.ndim - 1 == 2:
            axes = "CYX"
        values = np.ascontiguousarray(values.swapaxes(0, 1) if axes == "CZYX" else values)
        options |= {"imagej": True, "metadata": {"axes": "ZCYX" if axes == "CZYX" else axes}}
    if spacing is not None:
        rows, columns = spacing[-2:]
        options |= {"resolution": (10 / columns, 10 / rows), "resolutionunit": "CENTIMETER"}
        if len(spacing) == 3:
            options["metadata"] |= {"spacing": spacing[0], "unit": "mm"}
    with aside(path) as part:
        tifffile.imwrite(part, values, bigtiff=values.nbytes > 2**32 - 2**25 and values.ndim == 2, **options)
