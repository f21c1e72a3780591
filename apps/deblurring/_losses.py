"""The losses of LMD-ViT: reconstruction, where pairs may be a pixel apart, and the decisions' against blur masks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.errors import ShapeError

WINDOW, SIGMA = 11, 1.5  # of SSIM's Gaussian
C1, C2 = 0.01**2, 0.03**2  # for values in 0..1
SHIFTS = tuple((dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1))


def ssim_map(a: Tensor, b: Tensor) -> Tensor:
    """SSIM of two pictures (B, C, H, W) in 0..1, pixel by pixel without a border: (B, C, H - 10, W - 10).

    Wang 2004: Gaussian window of 11, sigma 1.5, population variances. Raises ShapeError for sides below 11.
    """
    if min(a.shape[-2:]) < WINDOW:
        raise ShapeError(f"SSIM needs sides of {WINDOW} pixels, got {a.shape[-2]} x {a.shape[-1]}")
    return _ssim(_mean(a), _mean(a * a), _mean(b), _mean(b * b), _mean(a * b))


def _ssim(a: Tensor, a_square: Tensor, b: Tensor, b_square: Tensor, both: Tensor) -> Tensor:
    """Of the Gaussian means of two pictures, their squares and their product."""
    product, squares = a * b, a * a + b * b
    spread = a_square + b_square - squares
    return ((2 * product + C1) * (2 * (both - product) + C2)) / ((squares + C1) * (spread + C2))


def _mean(x: Tensor) -> Tensor:
    """Gaussian means (B, C, H - 10, W - 10).

    The published weights are rounded to float32, which an SSIM near 0 shows (4e-7): in float64 they are the same; else
    rows and columns go one after the other, eight times as fast and equal within rounding.
    """
    steps = torch.arange(WINDOW, device=x.device, dtype=torch.float32) - WINDOW // 2
    weights = torch.exp(-steps.square() / (2 * SIGMA * SIGMA))
    weights = weights / weights.sum()
    if x.dtype == torch.float64:
        square = torch.outer(weights, weights).to(x.dtype).expand(x.shape[1], 1, -1, -1)
        return F.conv2d(x, square, groups=x.shape[1])
    line = weights.to(x.dtype).expand(x.shape[1], 1, 1, -1)
    return F.conv2d(F.conv2d(x, line, groups=x.shape[1]), line.transpose(2, 3), groups=x.shape[1])


class Reconstruction(nn.Module):
    """L1 - SSIM + 0.1 FFT of restored and sharp pictures (B, C, H, W), 0..1; answers a scalar.

    FFT: mean modulus of the difference of the two half spectra, unnormalised. With `shifted` the sharp picture is moved
    by each of nine steps of at most a pixel (what enters is mirrored), and every term takes its own smallest value for
    each picture: the pairs of a beam splitter are not aligned better.
    """

    def __init__(self, *, l1: float = 1.0, ssim: float = 1.0, fft: float = 0.1, shifted: bool = True) -> None:
        super().__init__()
        self.weights = {"l1": l1, "ssim": ssim, "fft": fft}
        self.shifted = shifted

    def terms(self, restored: Tensor, sharp: Tensor) -> dict[str, Tensor]:
        """Unweighted, each a mean over the batch: l1, ssim (negative, lower is better), fft."""
        return {name: self._best(name, restored, sharp).mean() for name in self.weights}

    def forward(self, restored: Tensor, sharp: Tensor) -> Tensor:
        parts = [w * self._best(name, restored, sharp).mean() for name, w in self.weights.items() if w]
        return torch.stack(parts).sum()

    def _best(self, name: str, restored: Tensor, sharp: Tensor) -> Tensor:
        """One term for each picture (B,), at the shift where it is smallest."""
        if not self.shifted:
            return _TERMS[name](restored, sharp)
        with torch.no_grad():  # a gradient is needed at the best shift only
            values = _structures(restored, sharp) if name == "ssim" else _each(name, restored, sharp)
            moved = torch.stack(shifted(sharp))
            chosen = moved[values.argmin(0), torch.arange(len(sharp), device=sharp.device)]
        return _TERMS[name](restored, chosen)


def shifted(sharp: Tensor) -> list[Tensor]:
    """A picture moved by the steps of SHIFTS, rows first, its border mirrored: nine times (B, C, H, W)."""
    return _moves(F.pad(sharp, (1, 1, 1, 1), mode="reflect"))


def _moves(padded: Tensor) -> list[Tensor]:
    H, W = padded.shape[-2] - 2, padded.shape[-1] - 2
    return [padded[..., 1 - dy : 1 - dy + H, 1 - dx : 1 - dx + W] for dy, dx in SHIFTS]


def _l1(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).abs().mean((1, 2, 3))


def _structure(a: Tensor, b: Tensor) -> Tensor:
    return -ssim_map(a, b).mean((1, 2, 3))


def _spectrum(a: Tensor, b: Tensor) -> Tensor:
    return torch.fft.rfft2(a - b).abs().mean((1, 2, 3))


_TERMS = {"l1": _l1, "ssim": _structure, "fft": _spectrum}


def _each(name: str, restored: Tensor, sharp: Tensor) -> Tensor:
    """One term for every shift and picture, (9, B)."""
    return torch.stack([_TERMS[name](restored, one) for one in shifted(sharp)])


def _structures(restored: Tensor, sharp: Tensor) -> Tensor:
    """`_each` of the negative SSIM; the means of the moved pictures are the padded one's, moved."""
    padded = F.pad(sharp, (1, 1, 1, 1), mode="reflect")
    own = _mean(restored), _mean(restored * restored)
    theirs = zip(_moves(_mean(padded)), _moves(_mean(padded * padded)), _moves(padded), strict=True)
    return torch.stack([-_ssim(*own, b, bb, _mean(restored * one)).mean((1, 2, 3)) for b, bb, one in theirs])


def pruning(scores: Sequence[Tensor], mask: Tensor) -> Tensor:
    """Cross-entropy of every predictor's score map against the blur mask; a scalar.

    Reading: the paper says that masks guide the decisions; cross-entropy at all predictors and the weight 0.01 are
    recalled, not verified. The mask is brought to each map's size by area, so a target may lie between.

    Args:
        scores: logits (B, 2, h, w): keep, prune.
        mask: (B, 1, H, W), 0..1, 1 where blurred.
    """
    losses = []
    for score in scores:
        blurred = F.interpolate(mask, size=score.shape[-2:], mode="area").to(score.dtype)
        losses.append(F.cross_entropy(score, torch.cat([blurred, 1 - blurred], 1)))
    return torch.stack(losses).mean()
