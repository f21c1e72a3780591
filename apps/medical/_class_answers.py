"""What was said of one picture; see `classes`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Answer:
    """What a network (or several, or a baseline) said of one picture.

    Attributes:
        id: of the picture; unique.
        group: patient or slide; "" stands alone.
        target: number of the true class, None where it is not known.
        probabilities: of every class, adding up to 1.
    """

    id: str
    group: str
    target: int | None
    probabilities: tuple[float, ...]
