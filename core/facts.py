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
        top1: variant -> published top-1 on `data`, per cent.
        size: variant -> side of the published image in pixels where it is not 224, or frames, rows and columns of the
            published clip.
        reading: no code was published; choices are ours and named in the family's docstring under "Our reading".
        data: that top1 is measured on.
        scores: variant -> what else was published of it, as in "Kinetics-600 top-1" -> 82.8.
        classes: of the published classifier, which the tables count.
    """

    title: str
    paper: str
    licence: str
    top1: Mapping[str, float] = field(default_factory=dict)
    size: Mapping[str, int | tuple[int, ...]] = field(default_factory=dict)
    reading: bool = False
    data: str = "ImageNet-1k"
    scores: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    classes: int = 1000

    def axes(self, variant: str) -> tuple[int, ...]:
        """Of a variant's published input: rows and columns, of a clip frames, rows and columns.

        >>> Facts("Swin", "arXiv 2103.14030", "MIT", size={"base_384": 384}).axes("base_384")
        (384, 384)
        """
        size = self.size.get(variant, 224)
        return (size, size) if isinstance(size, int) else tuple(size)
