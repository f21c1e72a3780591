"""The files that LMD-ViT's evaluation reads: a dict of arrays, saved by NumPy with pickle.

Only arrays are unpickled: a file that names anything else is refused before it runs.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.errors import FileError

KEYS = ("img_blur", "img_gt", "blur_mask")
_LARGEST = 2 << 30  # bytes; ReLoBlur's largest pair has 28 MB
_ALLOWED = {
    (module, name)
    for module in ("numpy.core.multiarray", "numpy._core.multiarray", "numpy.core.numeric", "numpy._core.numeric")
    for name in ("_reconstruct", "_frombuffer")
} | {("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")}
Triple = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32] | None]


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module, name)


def read(path: Path) -> Triple:
    """Blurred and sharp (H, W, 3) float32 0..1, mask (H, W) 0..1 or None.

    Raises FileError for a file that is none of these, holds more than arrays, or arrays that do not fit.
    """
    table = _table(path)
    blurred, sharp = (_picture(path, table, key) for key in KEYS[:2])
    if blurred.shape != sharp.shape:
        raise FileError(path, f"holds img_blur of {blurred.shape} and img_gt of {sharp.shape}", "they have one size")
    if KEYS[2] not in table:
        return blurred, sharp, None
    mask = np.asarray(table[KEYS[2]])
    if mask.ndim == 3 and mask.shape[2] in (1, 3):
        mask = mask[..., 0]
    if mask.shape != blurred.shape[:2] or mask.dtype.kind not in "buif":
        raise FileError(path, f"holds blur_mask of {mask.shape} for {blurred.shape[:2]} pixels", "they have one size")
    mask = mask.astype(np.float32)
    if not (np.isfinite(mask).all() and mask.min() >= 0 and mask.max() <= 1):
        raise FileError(path, "holds a blur_mask outside 0 to 1", "it is the share of blur at each pixel")
    return blurred, sharp, mask


def _table(path: Path) -> dict[str, Any]:
    what = "LMD-ViT's files hold a dict of img_blur, img_gt and blur_mask"
    try:
        if path.stat().st_size > _LARGEST:
            raise FileError(path, f"has {path.stat().st_size:,} bytes", f"at most {_LARGEST:,} are read")
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, kind = header(file)
            if shape != () or not kind.hasobject:
                raise FileError(path, f"holds an array {kind} of {shape}", what)
            found = _ArraysOnly(file).load()
    except FileError:
        raise
    except FileNotFoundError:
        raise FileError(path, "no such file") from None
    except Exception as error:  # pickle raises nearly anything on a damaged file
        raise FileError(path, f"cannot be read ({' '.join(str(error).split())[:100]})", what) from None
    if isinstance(found, np.ndarray) and found.shape == ():
        found = found.item()
    if not isinstance(found, dict) or not set(KEYS[:2]) <= set(found):
        raise FileError(path, "holds no pair", what)
    return found


def _picture(path: Path, table: dict[str, Any], key: str) -> NDArray[np.float32]:
    values = np.asarray(table[key])
    if values.ndim != 3 or values.shape[2] != 3 or values.dtype not in (np.uint8, np.uint16) or 0 in values.shape:
        raise FileError(path, f"holds {key} of {values.dtype} {values.shape}", "a picture is (H, W, 3) of uint8")
    return values.astype(np.float32) / np.float32(np.iinfo(values.dtype).max)
