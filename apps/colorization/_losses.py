"""What colorization minimises."""

from __future__ import annotations

from torch import Tensor

from core.errors import ShapeError


def huber(answer: Tensor, truth: Tensor, *, delta: float = 0.01) -> Tensor:
    """Huber loss of colours, a scalar: summed over a' and b', then the mean over all pixels.

    Of a difference d it is d^2 / (2 delta) below `delta`, |d| - delta / 2 above (the iColoriT card).

    Args:
        answer: (B, 2, H, W), a' and b'.
        truth: of the same shape.
        delta: where the square becomes a straight line.

    Raises ShapeError for other shapes.
    """
    if answer.shape != truth.shape or answer.ndim != 4 or answer.shape[1] != 2:
        raise ShapeError(f"colours are (B, 2, H, W) on both sides, got {tuple(answer.shape)} and {tuple(truth.shape)}")
    gap = (answer - truth).abs()
    each = (gap * gap * (0.5 / delta)).where(gap < delta, gap - 0.5 * delta)
    return each.sum(1).mean()
