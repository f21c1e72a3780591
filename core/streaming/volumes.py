"""NIfTI volumes by the slab, and results on the same grid."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from core.data.sample import Meta
from core.errors import FileError, MissingExtraError, SettingError
from core.streaming.arrays import Window, file_identity, numbered, padded
from core.streaming.sinks import StripSink

MAX_BYTES = 8 << 30  # of a compressed file, which is taken whole
_RATIO = 1100  # deflate does not shrink by more
_MILLIMETRES = {"meter": 1000.0, "mm": 1.0, "micron": 0.001}
_HELD = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64")


class NiftiSource:
    """A NIfTI-1, NIfTI-2 or Analyze file, its axes as stored: 2 or 3 spatial ones, all further ones are channels.

    A plain file is read by the window, a compressed one decoded whole. Where the header states a slope and intercept
    they are applied: float32, or float64 for stored float64 or 32-bit whole numbers. NaN and infinite voxels are
    invalid. `meta.affine` goes from array index to millimetres. Raises FileError for what is missing, cut short,
    complex-valued, or decodes to more than MAX_BYTES; MissingExtraError without nibabel.
    """

    def __init__(self, path: str | Path) -> None:
        nibabel = _import_nibabel()
        from nibabel.filebasedimages import ImageFileError
        from nibabel.spatialimages import HeaderDataError

        self._path = Path(path)
        if not self._path.is_file():
            raise FileError(path, "no such file", "give the path of a NIfTI file")
        try:
            self._image = nibabel.load(self._path)
            stored = np.dtype(self._image.get_data_dtype())
            shape = tuple(int(n) for n in self._image.shape)
            affine = self._image.affine
        except (ImageFileError, HeaderDataError, OSError, EOFError, ValueError, zlib.error):
            raise FileError(path, "is not a NIfTI file that can be read, or is cut short", "get it again") from None
        colour = stored.names is not None
        if not colour and stored.kind not in "buif":
            raise FileError(path, f"holds {stored}", "give real numbers")
        if len(shape) < 2 or any(n < 1 for n in shape):
            raise FileError(path, f"has the shape {shape}", "give an image of two or three axes")
        self._check_size(shape, stored.itemsize)
        try:
            raw = np.asanyarray(self._image.dataobj.get_unscaled())
        except (OSError, EOFError, ValueError, zlib.error):
            raise FileError(path, "is cut short or damaged", "get the file again") from None
        if colour:
            raw = np.stack([raw[name] for name in stored.names or ()], axis=-1)
        self.shape: tuple[int, ...] = shape[:3]
        self._raw = raw.reshape((*self.shape, -1), order="F")
        self._scaling = (float(self._image.dataobj.slope), float(self._image.dataobj.inter))
        plain = np.dtype(np.uint8) if colour else stored.newbyteorder("=")
        fine = plain.itemsize > 4 or (plain.kind in "iu" and plain.itemsize == 4)
        scaled = np.dtype(np.float64 if fine else np.float32)
        self.dtype: np.dtype[Any] = plain if self._scaling == (1.0, 0.0) and plain.itemsize <= 8 else scaled
        channels = self._raw.shape[-1]
        self.channels = ("red", "green", "blue", "alpha")[:channels] if colour else numbered(channels)
        self.meta = self._meta(np.asarray(affine, np.float64))

    @property
    def identity(self) -> str:
        return file_identity(self._path)

    @property
    def header(self) -> Any:
        """Header as nibabel has it, for a result on the same grid (see NiftiSink)."""
        return self._image.header

    def read(self, start: Sequence[int], stop: Sequence[int]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Values (C, *size) and valid (*size) of start <= index < stop; zero where not valid."""
        return padded(self._inside, self.shape, start, stop)

    def _inside(self, window: Window) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        values = np.moveaxis(self._raw[window], -1, 0)
        slope, intercept = self._scaling
        if self._scaling != (1.0, 0.0):
            values = values * slope + intercept
        values = np.ascontiguousarray(values, dtype=self.dtype)
        return values, np.ones(values.shape[1:], np.bool_)

    def _check_size(self, shape: Sequence[int], itemsize: int) -> None:
        """Refuse before memory is taken for what is not there."""
        claimed = int(np.prod(shape, dtype=object)) * itemsize
        data = Path(self._image.file_map["image"].filename or self._path)
        there = data.stat().st_size
        packed = data.suffix in (".gz", ".bz2", ".zst")
        if claimed > there * (_RATIO if packed else 1):
            raise FileError(self._path, f"is cut short: {shape} voxels do not fit its {there:,} bytes", "get it again")
        if packed and claimed > MAX_BYTES:
            raise FileError(self._path, f"decodes to {claimed:,} bytes", "decompress it: .nii is read by the window")

    def _meta(self, affine: NDArray[np.float64]) -> Meta:
        import nibabel

        header, applied = self._image.header, []
        unit = header.get_xyzt_units()[0] if hasattr(header, "get_xyzt_units") else "unknown"
        factor = _MILLIMETRES.get(unit, 1.0)
        affine = np.diag([factor, factor, factor, 1.0]) @ affine
        if factor != 1:
            applied.append(f"{unit} converted to millimetres")
        if not header.get("sform_code", 0) and not header.get("qform_code", 0):
            applied.append("no position in space is stated; the affine has the voxel sizes only")
        if self._scaling != (1.0, 0.0):
            applied.append("rescaled by slope {:g} and intercept {:g}".format(*self._scaling))
        if len(self._image.shape) > 3:
            applied.append("axes behind the third read as channels")
        zooms = tuple(float(z) * factor for z in header.get_zooms()[: len(self.shape)])
        return Meta(
            path=str(self._path),
            id=self._path.name.removesuffix(".gz").removesuffix(".nii"),
            spacing=zooms,
            affine=tuple((float(a), float(b), float(c), float(d)) for a, b, c, d in affine),
            orientation="".join(c or "?" for c in nibabel.aff2axcodes(affine))[: len(self.shape)],
            channels=self.channels,
            applied=tuple(applied),
        )


class NiftiSink(StripSink):
    """A NIfTI-1 file (.nii or .nii.gz) on the grid of `meta.affine`.

    `header` (of a NiftiSource) keeps its qform and sform codes, units and the like, but not its texts, which may name a
    person. More than one band becomes a fourth axis. `key` as in GeoTiffSink. Raises SettingError for what NIfTI does
    not hold.
    """

    def __init__(
        self,
        path: str | Path,
        shape: Sequence[int],
        dtype: DTypeLike,
        *,
        meta: Meta | None = None,
        header: Any = None,
        bands: int = 1,
        key: object = None,
    ) -> None:
        _import_nibabel()
        if not Path(path).name.lower().endswith((".nii", ".nii.gz")):
            raise SettingError(f"a NIfTI file ends in .nii or .nii.gz, got {Path(path).name!r}")
        if len(shape) not in (2, 3) or np.dtype(dtype).name not in _HELD:
            raise SettingError(f"NIfTI results have 2 or 3 axes of {', '.join(_HELD)}, got {tuple(shape)} of {dtype}")
        if max(shape) > 32_767:
            raise SettingError(f"NIfTI axes have at most 32,767 voxels, got {tuple(shape)}")
        self._affine = None if meta is None or meta.affine is None else np.array(meta.affine)
        self._header = header
        settings = {"affine": None if self._affine is None else self._affine.tolist()}
        super().__init__(path, shape, dtype, bands=bands, settings=settings, key=key)

    def _assemble(self, path: Path) -> None:
        import nibabel

        size = (*self.shape, *([1] * (3 - len(self.shape))), self.bands) if self.bands > 1 else self.shape
        raw = path.with_name("voxels")
        whole = np.memmap(raw, self.dtype, "w+", shape=size, order="F")
        for row, strip in self._strips():
            into = whole[row : row + strip.shape[1]]
            into[...] = (np.moveaxis(strip, 0, -1) if self.bands > 1 else strip[0]).reshape(into.shape)
        image = nibabel.Nifti1Image(whole, self._affine)
        if self._header is not None and self._affine is not None:
            theirs = self._header
            if theirs.get("qform_code") is not None:
                image.set_sform(self._affine, int(theirs["sform_code"]))
                image.set_qform(self._affine, int(theirs["qform_code"]))
        if self._affine is not None:
            image.header.set_xyzt_units("mm")
        nibabel.save(image, path)


def is_nifti(head: bytes, path: Path) -> bool:
    """Whether the first bytes of a file, unpacked where they are gzip, are a NIfTI header."""
    if head[:2] == b"\x1f\x8b":
        try:
            with gzip.open(path, "rb") as file:
                head = file.read(352)
        except (OSError, EOFError, zlib.error):
            return path.name.lower().endswith(".nii.gz")
    sizes = (head[:4], head[:4][::-1])
    small = (348).to_bytes(4, "little") in sizes and head[344:347] in (b"n+1", b"ni1")
    return small or ((540).to_bytes(4, "little") in sizes and head[4:7] in (b"n+2", b"ni2"))


def _import_nibabel() -> Any:
    try:
        import nibabel
    except ImportError:
        raise MissingExtraError("nibabel", "medical") from None
    return nibabel
