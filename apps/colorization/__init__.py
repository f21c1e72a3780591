"""Colorization: a grey or colour photograph of any size and some coloured points become a picture in colour.

from apps.colorization import Hint, Pipeline
picture = Pipeline.load("runs/a")("photo.jpg", hints=[Hint(120, 80, 200, 30, 40)])
picture.save("coloured.png")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from apps.colorization.hints import Hint
    from apps.colorization.pipeline import Pipeline
    from apps.colorization.results import Coloured

__all__ = ["Coloured", "Hint", "Pipeline"]


def __getattr__(name: str) -> Any:
    """Each is imported when it is asked for: the pipeline pulls in torch."""
    if name == "Pipeline":
        from apps.colorization.pipeline import Pipeline

        return Pipeline
    if name == "Coloured":
        from apps.colorization.results import Coloured

        return Coloured
    if name == "Hint":
        from apps.colorization.hints import Hint

        return Hint
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
