"""Which pictures of a labelled data set are asked for, and which of two classes is looked for; light."""

from __future__ import annotations

from collections.abc import Sequence

from apps.medical.labelled import Labelled, Picture
from core.errors import InputError, UnknownNameError

PARTS = ("train", "val", "test", "all")
# Of two classes the one that is looked for, where the user names none; compared in small letters.
_LOOKED_FOR = ("malignant", "malign", "hcc", "cancer", "carcinoma", "tumor", "tumour", "positive", "abnormal", "lesion")


def chosen(found: Labelled, part: str) -> tuple[Picture, ...]:
    """The pictures of "train", "val" or "test" as the layout states them, or "all".

    Raises InputError where there are none, UnknownNameError for another part.
    """
    if part not in PARTS:
        raise UnknownNameError("part", part, PARTS)
    pictures = tuple(p for p in found.pictures if part == "all" or p.part == part)
    if not pictures:
        stated = sorted({p.part for p in found.pictures if p.part})
        has = f"it has {', '.join(stated)}" if stated else "its layout states no parts"
        raise InputError(f"{found.folder}: has no {part} part ({has}); --part all scores every picture")
    return pictures


def positive(classes: Sequence[str], wished: str = "") -> str | None:
    """Of two classes the one that is looked for, None where there are more.

    Args:
        classes: all of them.
        wished: the user's own choice, "" for malignant, HCC, cancer and the like, or else the second.

    Raises UnknownNameError for a wish that is no class, InputError for a wish among more than two.
    """
    if wished and wished not in classes:
        raise UnknownNameError("class", wished, classes)
    if len(classes) != 2:
        if wished:
            raise InputError(f"a positive class is one of two, and there are {len(classes)}: {', '.join(classes)}")
        return None
    known = [c for c in classes if c.lower() in _LOOKED_FOR]
    return wished or (known[0] if len(known) == 1 else classes[1])
