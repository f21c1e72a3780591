"""What is measured on coloured pictures, on tensors (the iColoriT card, "Data and metrics")."""

from __future__ import annotations

import torch
from torch import Tensor

from apps.colorization.lab import delta_e, units
from core.errors import ShapeError

FLOOR = 1e-5  # of the mean square error: no picture counts more than 50 dB
JND = 2.3  # of the Euclidean distance in CIE Lab: the least difference that is noticed


def psnr(rgb: Tensor, truth: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each picture in dB, at most 50.

    Args:
        rgb: (B, 3, H, W), 1 is full.
        truth: of the same shape.

    Returns (B,). Raises ShapeError for other shapes.
    """
    _alike(rgb, truth)
    return _decibels((rgb - truth).square().flatten(1).mean(1))


def b_psnr(rgb: Tensor, truth: Tensor, patch: int = 16) -> Tensor:
    """PSNR of the pixels that touch an inner border between patches: one row or column on either side of each.

    Args:
        rgb: (B, 3, H, W), 1 is full.
        truth: of the same shape.
        patch: side in pixels; a rest at the right and below belongs to no further patch.

    Returns (B,) in dB, at most 50. Raises ShapeError for other shapes and for pictures of one patch.
    """
    _alike(rgb, truth)
    rows, columns = (_borders(n, patch) for n in rgb.shape[2:])
    mask = rows[:, None] | columns[None, :]
    if not mask.any():
        raise ShapeError(
            f"a picture of {rgb.shape[2]} x {rgb.shape[3]} pixels has no border between patches of {patch}"
        )
    return _decibels((rgb - truth).square().mean(1)[:, mask].mean(1))


def pev(rgb: Tensor, truth: Tensor, patch: int = 16) -> Tensor:
    """Patch error variance: unbiased variance over a picture's patches of their root mean square error in 0..255.

    Args:
        rgb: (B, 3, H, W), 1 is full.
        truth: of the same shape.
        patch: side in pixels; a rest at the right and below is left out.

    Returns (B,). Raises ShapeError for other shapes and for pictures of fewer than two patches.
    """
    _alike(rgb, truth)
    high, wide = rgb.shape[2] // patch, rgb.shape[3] // patch
    if high * wide < 2:
        raise ShapeError(f"a variance over patches of {patch} needs two, the picture has {tuple(rgb.shape[2:])} pixels")
    error = (255 * (rgb - truth)).square().mean(1)[:, : high * patch, : wide * patch]
    return error.unflatten(2, (wide, patch)).unflatten(1, (high, patch)).mean((2, 4)).sqrt().flatten(1).var(1)


def propagation_range(before: Tensor, after: Tensor, hints: Tensor, *, jnd: float = JND) -> tuple[Tensor, Tensor]:
    """How far a new hint reaches: pixel distances from it of what changed noticeably.

    Args:
        before: L', a', b' (B, 3, H, W) predicted without the hint.
        after: the same with it.
        hints: row and column of the new hint (B, 2) in pixels.
        jnd: Euclidean distance in CIE Lab from which on a pixel has changed.

    Returns the mean and the unbiased deviation of the distances, each (B,); NaN without a changed pixel, the deviation
    also with one.
    """
    _alike(before, after)
    if tuple(hints.shape) != (before.shape[0], 2):
        raise ShapeError(f"{before.shape[0]} pictures have as many new hints (row, column), got {tuple(hints.shape)}")
    changed = (units(after) - units(before)).square().sum(1).sqrt() > jnd
    means, spreads = [], []
    for one, (row, column) in zip(changed, hints.tolist(), strict=True):
        y, x = one.nonzero().to(before.dtype).unbind(1)
        away = torch.hypot(y - row, x - column)
        means.append(away.mean())
        spreads.append(away.std() if len(away) > 1 else away.new_tensor(float("nan")))
    return torch.stack(means), torch.stack(spreads)


def hint_delta_e(answer: Tensor, asked: Tensor) -> Tensor:
    """CIEDE2000 between the colour that the picture got at hints and the colour asked for.

    The picture keeps its own luminance, so that of the answer is taken on both sides.

    Args:
        answer: L', a', b' (N, 3) of the picture at the hints.
        asked: L', a', b' (N, 3) of the hints; L' is not looked at.

    Returns (N,).
    """
    if answer.ndim != 2 or answer.shape[1] != 3 or answer.shape != asked.shape:
        raise ShapeError(f"colours at N hints are (N, 3), got {tuple(answer.shape)} and {tuple(asked.shape)}")
    wanted = torch.cat([answer[:, :1], asked[:, 1:]], dim=1)
    found = delta_e(units(answer).double().cpu().numpy(), units(wanted).double().cpu().numpy())
    return torch.from_numpy(found)


def _alike(one: Tensor, other: Tensor) -> None:
    if one.ndim != 4 or one.shape[1] != 3 or one.shape != other.shape:
        raise ShapeError(f"pictures are (B, 3, H, W) on both sides, got {tuple(one.shape)} and {tuple(other.shape)}")


def _decibels(error: Tensor) -> Tensor:
    return -10 * error.clamp(min=FLOOR).log10()


def _borders(length: int, patch: int) -> Tensor:
    """True at the last pixel of each patch but the last, and at the first pixel of the next."""
    mask = torch.zeros(length, dtype=torch.bool)
    starts = torch.arange(1, length // patch) * patch
    mask[starts - 1] = mask[starts] = True
    return mask
