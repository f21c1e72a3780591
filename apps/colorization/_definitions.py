"""What each number means, in words that go into the report beside it."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from apps.colorization.metrics import Protocol


def definitions(rule: Protocol, unit: str, classes: Sequence[str], repeats: int) -> dict[str, str]:
    """A sentence or two for each metric of the protocol, and for "pictures", "mean" and "interval"."""
    p = rule.patch
    every = {
        "psnr": "10 log10(1 / MSE) in dB over the three channels of sRGB, the error of a picture no less than 1e-5 "
        "(50 dB at most); mean of the pictures' dB.",
        "b_psnr": f"PSNR of the pixels on both sides of every inner border between patches of {p} px.",
        "pev": f"Unbiased variance over a picture's patches of {p} px of their root mean square error in 0..255.",
        "lpips": "Perceptual distance by VGG-16 on values 0..1 (not -1..1, as published); torchmetrics "
        f"{version('torchmetrics')}; smaller is better.",
        "delta_e": "CIEDE2000 between the colour asked for at a hint and the picture's there, at the picture's own "
        f"luminance, mean over the hints; scikit-image {version('scikit-image')}; smaller is better.",
        "range": "Mean distance in pixels to the newest hint of the pixels that it changed by more than 2.3 in CIE "
        "Lab; 0 for the first picture of a sequence.",
    }
    words = {metric: every[metric] for metric in rule.metrics}
    if rule.saved:
        words["pictures"] = f"Rounded to 8 bits, cut off at 0 and 255; sides: {unit}."
    else:
        words["pictures"] = f"As computed, colours outside sRGB not cut off at 1; sides: {unit}."
    words["mean"] = "Over photographs for each count of hints, then over the counts."
    words["interval"] = (
        f"95 %, percentile bootstrap of {repeats} draws of whole groups (photographs); none with fewer than two."
    )
    return words
