"""What a file holds and what was drawn into it, for `inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from apps.medical import readers
from apps.medical.ultrasound import burned, inputs
from core.errors import InputError

_FRAMES = 12


def inspect(path: Path) -> dict[str, Any]:
    """As `readers.inspect`, with burned-in marks, or why a file is not taken for an ultrasound picture."""
    facts = readers.inspect(path)
    try:
        clip = inputs.opened(path)
        shown = clip.sampled(_FRAMES)
    except InputError as error:
        return facts | {"not taken": str(error).removeprefix(f"{path}: ")}
    found = burned.find(shown)
    facts["burned in"] = [
        f"{row['kind']} at {row['x']}, {row['y']} ({row['width']} x {row['height']})"
        for row in burned.rows(found.marks)
    ] or "nothing found"
    return facts | {"remarks": [*inputs.remarks(shown[:1])]}
