"""What a family says of itself beside its code: paper, licence of the published weights, published accuracy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Facts:
    """Stated by a family as `FACTS`; parameters, MACs and strides are measured, never written by hand.

    Attributes:
        title: the system's name as its authors write it.
        paper: arXiv number or venue.
        licence: of the published weights.
        top1: variant -> published ImageNet-1k top-1, per cent.
        size: variant -> side of the published input in pixels, where it is not 224.
        reading: no code was published; choices are ours and named in the family's docstring under "Our reading".
    """

    title: str
    paper: str
    licence: str
    top1: Mapping[str, float] = field(default_factory=dict)
    size: Mapping[str, int] = field(default_factory=dict)
    reading: bool = False
