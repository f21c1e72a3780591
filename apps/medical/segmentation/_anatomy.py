"""Names of organs as data sets write them, their codes and the tolerances of the published evaluation."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Structure:
    """A body structure.

    Attributes:
        code: its keyword in pydicom's dictionary of SNOMED CT codes.
        side: "left", "right" or "".
        tolerance: millimetres of the AbdomenMR evaluation for NSD, None where it has none.
        between: the AbdomenMR evaluation scores it only between its first and last labelled slice.
        other: further names, in lower case with single spaces.
    """

    code: str
    side: str = ""
    tolerance: float | None = None
    between: bool = False
    other: tuple[str, ...] = ()


# Tolerances: the Swin-UMamba card, "Data". Spellings: AMOS22 ("postcava", "arota"), BTCV, FLARE, TotalSegmentator.
STRUCTURES = {
    "liver": Structure("Liver", tolerance=5),
    "right kidney": Structure("Kidney", "right", 3, other=("kidney right", "rk")),
    "left kidney": Structure("Kidney", "left", 3, other=("kidney left", "lk")),
    "spleen": Structure("Spleen", tolerance=3),
    "pancreas": Structure("Pancreas", tolerance=5),
    "aorta": Structure("Aorta", tolerance=2, between=True, other=("arota",)),
    "inferior vena cava": Structure("InferiorVenaCava", "", 2, True, ("ivc", "postcava")),
    "right adrenal gland": Structure("AdrenalGland", "right", 2, other=("adrenal gland right", "rag")),
    "left adrenal gland": Structure("AdrenalGland", "left", 2, other=("adrenal gland left", "lag")),
    "gallbladder": Structure("Gallbladder", tolerance=2, other=("gall bladder",)),
    "oesophagus": Structure("Esophagus", "", 3, True, ("esophagus",)),
    "stomach": Structure("Stomach", tolerance=5),
    "duodenum": Structure("Duodenum", tolerance=7),
    "kidney": Structure("Kidney", other=("kidneys",)),
    "adrenal gland": Structure("AdrenalGland", other=("adrenal glands",)),
    "bladder": Structure("Bladder", other=("urinary bladder",)),
    "prostate": Structure("Prostate"),
    "uterus": Structure("Uterus"),
    "heart": Structure("Heart"),
    "lung": Structure("Lung", other=("lungs",)),
    "right lung": Structure("Lung", "right", other=("lung right",)),
    "left lung": Structure("Lung", "left", other=("lung left",)),
    "left ventricle": Structure("LeftVentricle"),
    "right ventricle": Structure("RightVentricle"),
    "brain": Structure("Brain"),
    "hippocampus": Structure("Hippocampus"),
    "spinal cord": Structure("SpinalCord"),
    "colon": Structure("Colon"),
    "small intestine": Structure("SmallIntestine", other=("small bowel",)),
    "rectum": Structure("Rectum"),
    "portal vein": Structure("PortalVein"),
    "trachea": Structure("Trachea"),
    "thyroid": Structure("Thyroid", other=("thyroid gland",)),
    "breast": Structure("Breast"),
    "femur": Structure("Femur"),
    "bone": Structure("Bone", other=("bones",)),
    "muscle": Structure("Muscle"),
    "skin": Structure("Skin"),
}

_BY_NAME = {name: known for key, known in STRUCTURES.items() for name in (key, *known.other)}


def structure(name: str) -> Structure | None:
    """The body structure that a class name means, None where the name is not known.

    >>> structure("Kidney_Right").tolerance, structure("IVC").code, structure("grasper")
    (3, 'InferiorVenaCava', None)
    """
    return _BY_NAME.get(re.sub(r"[\s_\-]+", " ", name).strip().lower())
