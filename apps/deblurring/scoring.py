"""The score of one photograph by a named protocol, the means over photographs, and two models compared.

What is measured is in `metrics`; here is how: rounded or not, in one pass or in tiles, and in which words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apps.deblurring import metrics
from core import scores
from core.errors import ShapeError, UnknownNameError
from core.scores import REPEATS, Comparison, Report

CLASS = "photographs"  # all are scored as one
Picture = NDArray[np.float32]


@dataclass(frozen=True)
class Protocol:
    """How photographs are scored.

    Attributes:
        name: of the protocol.
        metrics: in the order of the report.
        rounded: pictures are rounded to 8 bits first, as a file would hold them.
        whole: the network sees each photograph in one pass, as the published evaluations do; else tiles, as `predict`.
        average: for core.scores; there is one class.
    """

    name: str
    metrics: tuple[str, ...]
    rounded: bool
    whole: bool
    average: str = "classes"


_MASKED = ("weighted_psnr", "weighted_ssim")
_AGREEMENT = ("precision", "recall", "accuracy")
PROTOCOLS = {
    p.name: p
    for p in (
        Protocol("house", ("psnr", "ssim", *_MASKED, "blur_effect", *_AGREEMENT), rounded=True, whole=False),
        Protocol("lmd_vit", ("psnr", "ssim", *_MASKED, *_AGREEMENT), rounded=False, whole=True),
        Protocol("lbag", ("psnr", "ssim", *_MASKED, "aligned_psnr"), rounded=True, whole=True),
        Protocol("gopro", ("psnr", "ssim"), rounded=True, whole=True),
    )
}


@dataclass(frozen=True)
class CaseScore:
    """What one photograph scored.

    Attributes:
        id, group: of the pair; the group (scene) is what the intervals resample.
        protocol: that scored it.
        unit: none.
        values: "photographs" -> metric -> value; NaN where left out.
        left_out: "photographs" -> metric -> why.
    """

    id: str
    group: str
    protocol: Protocol
    values: Mapping[str, Mapping[str, float]]
    left_out: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    unit: str = ""

    @property
    def row(self) -> Mapping[str, float]:
        return self.values[CLASS]

    def as_dict(self) -> dict[str, Any]:
        """For JSON: null where a value is left out or infinite (a PSNR of equal pictures)."""
        row = {m: float(v) if np.isfinite(v) else None for m, v in self.row.items()}
        return {"id": self.id, "group": self.group, "values": row, "left_out": dict(self.left_out.get(CLASS, {}))}


def protocol(name: str) -> Protocol:
    """The protocol of that name. Raises UnknownNameError."""
    if name not in PROTOCOLS:
        raise UnknownNameError("scoring protocol", name, PROTOCOLS)
    return PROTOCOLS[name]


def score(
    picture: Picture,
    sharp: Picture | None,
    mask: Picture | None = None,
    found: Picture | None = None,
    *,
    by: str = "house",
    id: str = "",
    group: str = "",
) -> CaseScore:
    """Score a picture.

    Args:
        picture: (H, W, 3), 0..1; what is outside counts as its limit.
        sharp: the truth, alike; None where nobody knows it: only the measure without a reference is given then.
        mask: (H, W), 0..1, of the true blur.
        found: (H, W), 0..1, of the blur that the network found.
        by: name of a protocol.
        id: of the pair.
        group: its scene.

    Raises ShapeError for arrays that do not fit.
    """
    rule = protocol(by)
    size = picture.shape[:2]
    for name, array in (("sharp picture", sharp), ("mask", mask), ("mask that was found", found)):
        if array is not None and array.shape[:2] != size:
            raise ShapeError(f"{id or 'photograph'}: the {name} has {array.shape[:2]} pixels, the picture {size}")
    picture, truth = _stored(picture, rule), None if sharp is None else _stored(sharp, rule)
    values: dict[str, float] = {}
    why: dict[str, str] = {}
    for metric in rule.metrics:
        reason = _reason(metric, truth, mask, found)
        if reason:
            values[metric], why[metric] = float("nan"), reason
            continue
        value = _measured(metric, picture, truth, mask, found)
        values[metric] = value
        if np.isnan(value):
            why[metric] = "not defined for this picture"
    if np.isinf(values.get("psnr", 0.0)):
        for metric in ("psnr", "weighted_psnr", "aligned_psnr"):
            if metric in values and np.isinf(values[metric]):
                values[metric], why[metric] = float("nan"), "equal to the sharp picture"
    return CaseScore(id, group, rule, {CLASS: values}, {CLASS: why} if why else {})


def _stored(picture: Picture, rule: Protocol) -> Picture:
    picture = np.clip(picture, 0, 1, dtype=np.float32)
    if not rule.rounded:
        return picture
    return np.divide(np.rint(picture * 255), 255, dtype=np.float32)


def _reason(metric: str, sharp: Picture | None, mask: Picture | None, found: Picture | None) -> str:
    """Why a metric cannot be given, "" where it can."""
    if metric in _AGREEMENT:
        return "" if mask is not None and found is not None else "no mask" if mask is None else "nothing is found by it"
    if metric == "blur_effect":
        return ""
    if sharp is None:
        return "no sharp picture"
    if metric in _MASKED:
        return "no mask" if mask is None else "" if mask.any() else "nothing is blurred"
    return ""


def _measured(
    metric: str, picture: Picture, sharp: Picture | None, mask: Picture | None, found: Picture | None
) -> float:
    if metric == "blur_effect":
        return float(metrics.blur_effect(picture))
    if metric in _AGREEMENT:
        assert mask is not None and found is not None  # noqa: PT018
        return float(getattr(metrics.agreement(found, mask), metric))
    measure = getattr(metrics, metric)
    return float(measure(picture, sharp, mask) if metric in _MASKED else measure(picture, sharp))


def definitions(rule: Protocol, unit: str, names: Sequence[str], repeats: int) -> dict[str, str]:
    """Metric, "mean" and "interval" -> a sentence."""
    rounding = "Pictures are limited to 0..1" + (" and rounded to 8 bits." if rule.rounded else ", not rounded.")
    passes = "in one pass" if rule.whole else "in the tiles that prediction takes"
    words = {m: DEFINITIONS[m] for m in rule.metrics}
    return words | {
        "pictures": f"{rounding} The network works on each photograph {passes}.",
        "mean": "over photographs, each counting once where its value is defined.",
        "interval": f"95 %: whole scenes are drawn {repeats} times with replacement (percentiles of the means).",
    }


DEFINITIONS = {
    "psnr": "PSNR in dB over all values of the RGB picture, peak 1, higher is better.",
    "ssim": (
        "SSIM (Wang 2004) of RGB: Gaussian window of 11, sigma 1.5, no padding, C1 = 0.01^2, C2 = 0.03^2, population "
        "variances, mean over channels and pixels (skimage.metrics.structural_similarity); higher is better."
    ),
    "weighted_psnr": "PSNR of the squared error weighted by the blur mask: what is blurred counts alone.",
    "weighted_ssim": "The same SSIM map weighted by the blur mask.",
    "aligned_psnr": (
        "PSNR after the picture is moved as a whole onto the sharp one (phase correlation to 1/20 pixel); LBAG aligns "
        "by OpenCV's ECC, which may also turn and scale, so its numbers can differ."
    ),
    "blur_effect": (
        "Perceptual blur without a reference (Crete-Roffet 2007; skimage.measure.blur_effect), 0 sharp to 1 blurred."
    ),
    "precision": "Share of the pixels found blurred (0.5 or more) whose mask says blur.",
    "recall": "Share of the pixels whose mask says blur that were found (0.5 or more).",
    "accuracy": "Share of all pixels where mask and found blur agree.",
}


def report(cases: Sequence[CaseScore], *, repeats: int = REPEATS, seed: int = 0) -> Report:
    """The means of cases that one protocol scored; errors as of core.scores.report."""
    return scores.report(cases, definitions, repeats=repeats, seed=seed)


def paired(a: Sequence[CaseScore], b: Sequence[CaseScore], *, repeats: int = REPEATS, seed: int = 0) -> Comparison:
    """Two models on the same photographs; errors as of core.scores.paired."""
    return scores.paired(a, b, definitions, repeats=repeats, seed=seed)
