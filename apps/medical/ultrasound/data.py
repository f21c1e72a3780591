"""Labelled ultrasound pictures on disk: class folders, US-Liver, BUSI, BUS-BRA, or a CSV of images and labels.

What the layouts are and how they are told apart is in `apps.medical.labelled`. A file is a picture or a cine loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from apps.medical import labelled
from apps.medical._class_parts import PARTS, chosen, positive
from apps.medical.labelled import Labelled as Found
from apps.medical.labelled import Picture

__all__ = ["PARTS", "Found", "Picture", "chosen", "find", "positive"]


def find(folder: str | Path, *, groups: str | Path | None = None, classes: Sequence[str] | None = None) -> Found:
    """The data set in a folder or CSV; no picture is opened.

    Args:
        folder: in one of the layouts.
        groups: CSV with the columns image and patient.
        classes: in the order of a network's answers; by default those of the data set.

    Raises core.errors.FileError as `labelled.find`.
    """
    return labelled.find(Path(folder), groups=None if groups is None else Path(groups), classes=classes)
