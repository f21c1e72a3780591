"""How to look at slides and pictures, beside what a bundle says."""

from __future__ import annotations

from dataclasses import dataclass

from apps.medical import slides
from apps.medical.pathology_classify import pooling, tiling
from core.errors import SettingError, UnknownNameError


@dataclass(frozen=True)
class Look:
    """How to look at what is given, beside the bundle's own settings.

    Attributes:
        um_per_px: micrometres to a pixel of the input (of a slide's finest level), where its file does not say.
        um: micrometres to a pixel that the network works at, where the bundle does not say or another is wished for.
        overlap: part of a tile that it shares with the next: 0, 0.5 or 0.75 on slides.
        tissue: part of a slide's tile that must show tissue.
        pool: how a slide's label comes from its tiles: mean, top or vote.
        stain: "macenko" or "none" in place of what the bundle was trained with.
        explain: of a picture that is one tile, hide one part after the other, and see how much the label loses by it.
        reader: of slides: auto, tifffile or openslide.

    Raises SettingError for a value out of its range, UnknownNameError for a word that is not known.
    """

    um_per_px: float | None = None
    um: float | None = None
    overlap: float = 0.0
    tissue: float = tiling.TISSUE
    pool: str = "mean"
    stain: str = ""
    explain: bool = False
    reader: slides.Reader = "auto"

    def __post_init__(self) -> None:
        for flag, value in (("--um-per-px", self.um_per_px), ("--um", self.um)):
            if value is not None and not 0 < value < float("inf"):
                raise SettingError(f"{flag} is a positive number, got {value:g}")
        if not 0 <= self.overlap < 1:
            raise SettingError(f"--overlap is a part of a tile, 0 <= overlap < 1, got {self.overlap:g}")
        if not 0 <= self.tissue <= 1:
            raise SettingError(f"--tissue is a part from 0 to 1, got {self.tissue:g}")
        if self.pool not in pooling.POOLS:
            raise UnknownNameError("way of pooling tiles", self.pool, pooling.POOLS)
        if self.stain not in ("", "macenko", "none"):
            raise UnknownNameError("stain normalisation", self.stain, ("macenko", "none"))


DEFAULT_LOOK = Look()
