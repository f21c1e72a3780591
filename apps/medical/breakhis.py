"""Names of BreakHis's files, which say class, subtype, slide and magnification: SOB_B_A-14-22549AB-40-001.png.

Procedure (SOB, excisional biopsy), class (B, M), subtype, year, slide, magnification, number. The letters after a
slide's number are part of its name; the data set's own partitions take the slide's name for the patient.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from core.errors import InputError

SUBTYPES = {
    "A": "adenosis",
    "F": "fibroadenoma",
    "PT": "phyllodes_tumor",
    "TA": "tubular_adenoma",
    "DC": "ductal_carcinoma",
    "LC": "lobular_carcinoma",
    "MC": "mucinous_carcinoma",
    "PC": "papillary_carcinoma",
}  # code in a name -> name of its folder
KINDS = {"B": "benign", "M": "malignant"}
MAGNIFICATIONS = (40, 100, 200, 400)
_NAME = re.compile(
    r"(?P<procedure>[A-Z]+)_(?P<kind>[BM])_(?P<subtype>[A-Z]+)-(?P<year>\d+)-(?P<slide>[0-9A-Za-z]+)"
    r"-(?P<magnification>\d+)-(?P<sequence>\d+)"
)


@dataclass(frozen=True)
class Name:
    """What a file's name says.

    Attributes:
        kind: "B" or "M".
        subtype: a key of SUBTYPES.
        year: as written ("14").
        slide: as written ("22549AB").
        magnification: 40, 100, 200 or 400 times.
        sequence: number of the picture.
    """

    kind: str
    subtype: str
    year: str
    slide: str
    magnification: int
    sequence: int

    @property
    def patient(self) -> str:
        """What a split must not cut: year and slide ("14-22549AB").

        One tumour may be diagnosed twice from one slide (13412 is listed as ductal and as lobular carcinoma), so the
        subtype is not part of it.
        """
        return f"{self.year}-{self.slide}"


def parse(name: str) -> Name:
    """What a file's name, with or without folders and ending, says. Raises InputError for any other name."""
    stem = Path(name).name
    match = _NAME.fullmatch(re.sub(r"\.[A-Za-z]+\Z", "", stem))
    if match is None or match["subtype"] not in SUBTYPES or int(match["magnification"]) not in MAGNIFICATIONS:
        raise InputError(f"{stem}: not a name of BreakHis, which look like SOB_B_A-14-22549AB-40-001.png")
    return Name(
        match["kind"], match["subtype"], match["year"], match["slide"], int(match["magnification"]),
        int(match["sequence"]),
    )  # fmt: skip


def is_name(name: str) -> bool:
    """Whether `parse` reads it."""
    try:
        parse(name)
    except InputError:
        return False
    return True
