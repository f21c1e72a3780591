"""Losses of dense prediction: soft Dice with cross-entropy, and deep supervision over the levels of a decoder."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.errors import ShapeError


class DiceCE(nn.Module):
    """1 - soft Dice, plus cross-entropy, both over valid pixels only.

    Dice of a class: (2 sum p t + smooth) / (sum p + sum t + smooth), p the softmax probability, t the truth; the mean
    over classes (and, without `batch_dice`, over images) is taken. nnU-Net's convention: smooth 1e-5, no background,
    and with `batch_dice` the sums run over the whole batch. Cross-entropy is the mean over the valid pixels of the
    batch. A batch without a valid pixel gives 0 with zero gradients, never NaN.

    Arithmetic is float32 at least, also under mixed precision.

    Args:
        classes: K of the logits, background included.
        ignore: target value of pixels that do not count.
        batch_dice: sums over the whole batch instead of one Dice an image.
        smooth: added above and below.
        include_background: whether class 0 has a Dice term.
    """

    def __init__(
        self,
        classes: int,
        ignore: int | None = None,
        batch_dice: bool = False,
        smooth: float = 1e-5,
        include_background: bool = False,
    ) -> None:
        super().__init__()
        self.classes, self.ignore, self.smooth = classes, ignore, smooth
        self.batch_dice, self.include_background = batch_dice, include_background

    def forward(self, logits: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
        """Logits (B, K, *size), target (B, *size) class numbers, valid (B, *size) bool or None -> a scalar.

        Raises ShapeError where the three do not fit. Target values must lie in 0 .. K - 1 where the pixel counts.
        """
        _fit(logits, target, valid, self.classes)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        counts = torch.ones_like(target, dtype=torch.bool) if valid is None else valid.bool()
        if self.ignore is not None:
            counts = counts & (target != self.ignore)
        truth = target.long().masked_fill(~counts, 0)
        pixel = counts.unsqueeze(1)
        # Logits of pixels that do not count may be NaN or infinite: filled before the softmax, their gradient is 0.
        log = F.log_softmax(logits.masked_fill(~pixel, 0.0), 1)
        entropy = -(log.gather(1, truth.unsqueeze(1)) * pixel).sum() / counts.sum().clamp(min=1)
        p = log.exp() * pixel
        t = torch.zeros_like(p).scatter_(1, truth.unsqueeze(1), pixel.to(p.dtype))
        return entropy + self._dice(p, t, counts)

    def _dice(self, p: Tensor, t: Tensor, counts: Tensor) -> Tensor:
        first = 0 if self.include_background or self.classes == 1 else 1
        axes = (*((0,) if self.batch_dice else ()), *range(2, p.ndim))
        both, sizes = ((x[:, first:].sum(axes)) for x in (p * t, p + t))
        loss = 1 - (2 * both + self.smooth) / (sizes + self.smooth)  # (B, K') or (K')
        if self.batch_dice:
            return loss.mean() * counts.any()
        # An image without a valid pixel has a Dice of 1 (smooth / smooth): it adds 0, and is not averaged over.
        seen = counts.flatten(1).any(1)
        return loss.mean(1).masked_fill(~seen, 0.0).sum() / seen.sum().clamp(min=1)


class DeepSupervision(nn.Module):
    """A loss over several levels: each level's loss at its own size, added with weights.

    Args:
        loss: takes logits, target and valid.
        weights: of the levels, finest first, scaled here to the sum 1; a weight of 0 leaves its level out.
    """

    def __init__(self, loss: nn.Module, weights: Sequence[float] = (1.0, 0.5, 0.25, 0.0)) -> None:
        super().__init__()
        total = float(sum(weights))
        if total <= 0 or min(weights) < 0:
            raise ShapeError(f"weights of deep supervision are 0 or more with a sum above 0, got {tuple(weights)}")
        self.loss, self.weights = loss, tuple(float(w) / total for w in weights)

    def forward(self, logits: Sequence[Tensor] | Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
        """Logits (B, K, h_i, w_i) finest first, target and valid (B, H, W) -> a scalar.

        Target and valid are brought to each level's size by nearest neighbour. A single tensor (a network without deep
        supervision, or in evaluation) is taken with weight 1.
        """
        levels = [logits] if isinstance(logits, Tensor) else list(logits)
        weights = (1.0,) if len(levels) == 1 else self.weights
        if len(levels) != len(weights):
            raise ShapeError(f"deep supervision has {len(weights)} weights, the network gives {len(levels)} levels")
        parts = [
            w * self.loss(level, *(nearest(m, level.shape[2:]) for m in (target, valid)))
            for w, level in zip(weights, levels, strict=True)
            if w > 0
        ]
        return torch.stack(parts).sum()


def nearest(mask: Tensor | None, size: Sequence[int]) -> Tensor | None:
    """A mask (B, *size) of any type at another size, by nearest neighbour (index floor(i * old / new))."""
    if mask is None or tuple(mask.shape[1:]) == tuple(size):
        return mask
    for axis, (old, new) in enumerate(zip(mask.shape[1:], size, strict=True), 1):
        if old != new:
            index = torch.arange(new, device=mask.device) * old // new
            mask = mask.index_select(axis, index)
    return mask


def _fit(logits: Tensor, target: Tensor, valid: Tensor | None, classes: int) -> None:
    want = (logits.shape[0], *logits.shape[2:])
    if logits.ndim < 3 or logits.shape[1] != classes:
        raise ShapeError(f"expected logits of shape (B, {classes}, *size), got {tuple(logits.shape)}")
    for name, mask in (("target", target), ("valid", valid)):
        if mask is not None and tuple(mask.shape) != want:
            raise ShapeError(f"logits {tuple(logits.shape)} need a {name} of shape {want}, got {tuple(mask.shape)}")
